#include <omp.h>

#include <algorithm>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "engine/tile_pack.h"
#include "engine/workspace.h"

namespace lamina::kernels {
namespace {

constexpr std::int64_t kBlockFloats = 96 * 1024;  // of x held in the second-level cache
constexpr std::int64_t kDepth = 1024;             // inner indices handled at a time

// How the rows of one product are cut. Blocks of rows meet each panel of weights once; a block is
// made of tiles of nearly equal height, so that no small last tile runs at a fraction of the speed.
struct Rows {
  std::int64_t rows, blocks, tiles;

  Rows(std::int64_t n, std::int64_t n_in, int tile_rows, std::int64_t least_blocks) : rows(n) {
    const std::int64_t most =
        std::max<std::int64_t>(tile_rows, kBlockFloats / std::max<std::int64_t>(n_in, 1));
    tiles = (rows + tile_rows - 1) / tile_rows;
    blocks = std::min(tiles, std::max(least_blocks, (rows + most - 1) / most));
  }
  std::int64_t tile_begin(std::int64_t tile) const { return tile * rows / tiles; }
  std::int64_t block_begin(std::int64_t block) const { return block * tiles / blocks; }
};

/// What to bring into the cache while a tile is computed. A lone tile is bound by memory: its own
/// weights some way ahead. Otherwise the first two tiles of a panel fetch half each of the weights
/// that come one panel later, at the same inner indices; the other tiles find everything there.
void fetch_ahead(TileArgs& args, std::int64_t tile, std::int64_t tiles, std::int64_t n_in) {
  constexpr std::int64_t kWidth = PackedMatrix::kPanel;
  args.ahead = args.b;
  if (tiles == 1) {
    args.ahead += 32 * kWidth;
    args.ahead_step = kWidth;
  } else if (tile < 2) {
    args.ahead += n_in * kWidth + tile * (args.k * kWidth / 2);
    args.ahead_step = kWidth / 2;
  }
}

}  // namespace

void multiply(const float* x, std::int64_t ldx, std::int64_t rows, const PackedMatrix& w,
              const float* bias, float* y, std::int64_t ldy) {
  const std::int64_t n_in = w.n_in(), n_out = w.n_out();
  if (rows <= 0 || n_out <= 0) return;
  const KernelTable& t = table();
  const std::int64_t panels = (n_out + PackedMatrix::kPanel - 1) / PackedMatrix::kPanel;
  const std::int64_t depth = round_up(n_in, 16);
  // Below some 50 µs of arithmetic the fork costs more than it saves.
  const bool fork = rows * n_in * n_out > 200'000 && !omp_in_parallel();
  const int threads = fork ? omp_get_max_threads() : 1;
  const std::int64_t least_blocks = (2 * threads + panels - 1) / panels;
  const Rows cut(rows, n_in, t.tile_rows, threads > 1 ? least_blocks : 1);

  // Each thread packs the block of x it is at for itself: cheaper than a barrier, and the block is
  // then in that core's cache. Beside it, one column panel where y is narrower than a panel.
  static thread_local Workspace workspace;
  const std::int64_t block_rows = round_up((cut.tiles / cut.blocks + 1) * t.tile_rows, 16);
  const std::int64_t share = block_rows * (depth + PackedMatrix::kPanel);
  float* scratch = workspace.get(static_cast<std::size_t>(threads * share));
  float last_bias[PackedMatrix::kPanel] = {};
  const std::int64_t last_width = n_out - (panels - 1) * PackedMatrix::kPanel;
  if (bias != nullptr) std::copy_n(bias + n_out - last_width, last_width, last_bias);

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const std::int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    float* packed = scratch + me * share;
    float* edge_panel = packed + block_rows * depth;
    std::int64_t packed_block = -1;
    const std::int64_t tasks = cut.blocks * panels;
    for (std::int64_t task = me * tasks / team; task < (me + 1) * tasks / team; ++task) {
      const std::int64_t block = task / panels, p = task % panels;
      const std::int64_t first_tile = cut.block_begin(block);
      const std::int64_t end_tile = cut.block_begin(block + 1);
      const std::int64_t first_row = cut.tile_begin(first_tile);
      if (block != packed_block) {
        packed_block = block;
        for (std::int64_t tile = first_tile; tile < end_tile; ++tile) {
          const std::int64_t begin = cut.tile_begin(tile);
          const int height = static_cast<int>(cut.tile_begin(tile + 1) - begin);
          for (int r = 0; r < height; ++r) {
            pack_tile_row(x + (begin + r) * ldx, n_in, height, r,
                          packed + (begin - first_row) * depth);
          }
        }
      }
      const bool edge = p == panels - 1 && last_width < PackedMatrix::kPanel;
      float* c = edge ? edge_panel : y + first_row * ldy + p * PackedMatrix::kPanel;
      const std::int64_t ldc = edge ? PackedMatrix::kPanel : ldy;
      const float* panel_bias =
          bias == nullptr ? nullptr : (edge ? last_bias : bias + p * PackedMatrix::kPanel);
      std::int64_t k = 0;
      do {  // once even if n_in is 0: y is then the bias
        const std::int64_t count = std::min(kDepth, n_in - k);
        const bool last = k + count == n_in;
        for (std::int64_t tile = first_tile; tile < end_tile; ++tile) {
          const std::int64_t begin = cut.tile_begin(tile);
          const int height = static_cast<int>(cut.tile_begin(tile + 1) - begin);
          TileArgs args{packed + (begin - first_row) * depth + k * height,
                        w.panel(p) + k * PackedMatrix::kPanel,
                        PackedMatrix::kPanel,
                        count,
                        c + (begin - first_row) * ldc,
                        ldc,
                        last ? panel_bias : nullptr,
                        k > 0,
                        nullptr,
                        0};
          fetch_ahead(args, tile - first_tile, end_tile - first_tile, n_in);
          t.tile(height, args);
        }
        k += count;
      } while (k < n_in);
      if (edge) {
        const std::int64_t end_row = cut.tile_begin(end_tile);
        for (std::int64_t r = first_row; r < end_row; ++r) {
          std::copy_n(c + (r - first_row) * ldc, last_width, y + r * ldy + n_out - last_width);
        }
      }
    }
  }
}

}  // namespace lamina::kernels

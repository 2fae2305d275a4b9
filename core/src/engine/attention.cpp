#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "engine/kernels.h"
#include "engine/simd/table.h"
#include "engine/tile_pack.h"
#include "engine/workspace.h"
#include "lamina/core/attention.h"
#include "lamina/core/error.h"

// One task is a block of consecutive queries of one prompt for all heads that share a key head:
// rows (query, head) in that order, so that packed keys and values serve the whole group. Every
// score is one chain over d_head, every value of z one chain over the visible keys in increasing
// order; block sizes therefore change no bit.

namespace lamina::kernels {
namespace {

constexpr std::int64_t kPanel = 32;      // columns of a tile
constexpr std::int64_t kKeyChunk = 256;  // keys whose values are packed at a time

struct Range {
  std::int64_t begin, end;
};

/// The keys that query i may see; empty if end ≤ begin.
Range visible(const AttentionArgs& a, std::int64_t i) {
  const std::int64_t position = a.keys - a.queries + i;
  const std::int64_t begin = a.window > 0 ? std::max<std::int64_t>(0, position - a.window + 1) : 0;
  const std::int64_t end = a.causal ? std::min(a.keys, position + 1) : a.keys;
  return {begin, std::max(begin, end)};
}

struct Task {
  const AttentionArgs* args;
  std::int64_t kv_head, first, count;  // queries first … first + count − 1

  std::int64_t group() const { return args->heads / args->kv_heads; }
  std::int64_t rows() const { return count * group(); }
  std::int64_t query(std::int64_t row) const { return first + row / group(); }
  std::int64_t head(std::int64_t row) const { return kv_head * group() + row % group(); }
  /// Keys that any query of the block sees, from a multiple of 16: softmax lanes go by position.
  Range keys() const {
    const Range low = visible(*args, first), high = visible(*args, first + count - 1);
    return {low.begin / 16 * 16, std::max(low.begin / 16 * 16, high.end)};
  }
  std::int64_t width() const {
    const Range r = keys();
    return round_up(r.end - r.begin, kPanel);
  }
  std::int64_t z_width() const { return round_up(args->d_head, kPanel); }
  std::int64_t depth() const { return round_up(args->d_head, 16); }

  std::size_t query_floats() const { return static_cast<std::size_t>(rows() * depth()); }
  std::size_t score_floats() const { return static_cast<std::size_t>(rows() * width()); }
  std::size_t key_floats() const { return static_cast<std::size_t>(kPanel * depth()); }
  std::size_t z_floats() const { return static_cast<std::size_t>(rows() * z_width()); }
  std::size_t value_floats() const { return static_cast<std::size_t>(kKeyChunk * z_width()); }
  std::size_t pattern_floats(int tile_rows) const {
    return static_cast<std::size_t>(kKeyChunk * tile_rows);
  }
  std::size_t floats(int tile_rows) const {
    return query_floats() + score_floats() + key_floats() + z_floats() + value_floats() +
           pattern_floats(tile_rows);
  }
};

/// Raw dot products of the task's rows with its keys: scores [rows, width], whose first column is
/// key keys().begin. Columns no row of a tile sees are left alone.
void dot_products(const KernelTable& t, const Task& task, float* scores, float* scratch) {
  const AttentionArgs& a = *task.args;
  const std::int64_t rows = task.rows(), width = task.width(), depth = task.depth();
  const Range keys = task.keys();
  float* packed = scratch;
  float* panel = scratch + task.query_floats();
  const std::int64_t tiles = (rows + t.tile_rows - 1) / t.tile_rows;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t begin = tile * rows / tiles;
    const int height = static_cast<int>((tile + 1) * rows / tiles - begin);
    for (int r = 0; r < height; ++r) {
      const float* q = a.q + (task.query(begin + r) * a.heads + task.head(begin + r)) * a.d_head;
      pack_tile_row(q, a.d_head, height, r, packed + begin * depth);
    }
  }
  for (std::int64_t key = keys.begin; key < keys.end; key += kPanel) {
    const std::int64_t count = std::min(kPanel, keys.end - key);
    if (count < kPanel) std::fill_n(panel, kPanel * a.d_head, 0.0f);
    transpose_to_panel(a.k + (key * a.kv_heads + task.kv_head) * a.d_head, a.kv_heads * a.d_head,
                       count, a.d_head, panel);
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t begin = tile * rows / tiles, end = (tile + 1) * rows / tiles;
      if (visible(a, task.query(begin)).begin >= key + kPanel ||
          visible(a, task.query(end - 1)).end <= key) {
        continue;
      }
      t.tile(static_cast<int>(end - begin),
             {packed + begin * depth, panel, kPanel, a.d_head,
              scores + begin * width + (key - keys.begin), width, nullptr, false, panel, 0});
    }
  }
}

/// Turns a row's dot products into scores: scaled, capped.
void finish_scores(const KernelTable& t, const AttentionArgs& a, float* scores, std::int64_t n) {
  t.scale(scores, n, a.scale);
  if (a.softcap > 0) t.softcap(scores, n, a.softcap);
}

/// z of the task's rows. pattern(row) gives the weights of a row from key `first_key` on.
/// With `written` the pattern may be anything (a hook's work): weights other than zero count
/// wherever they stand. Otherwise keys a row cannot see are skipped, whatever stands there.
template <class Pattern>
void weighted_values(const KernelTable& t, const Task& task, Pattern pattern,
                     std::int64_t first_key, Range keys, bool written, float* scratch) {
  const AttentionArgs& a = *task.args;
  const std::int64_t rows = task.rows(), z_width = task.z_width();
  const std::int64_t stride = a.kv_heads * a.d_head;
  float* z = scratch;
  float* packed_values = z + task.z_floats();
  float* packed_pattern = packed_values + task.value_floats();
  std::fill_n(z, rows * z_width, 0.0f);
  const bool direct = a.d_head % kPanel == 0;

  for (std::int64_t chunk = keys.begin; chunk < keys.end; chunk += kKeyChunk) {
    const std::int64_t chunk_end = std::min(keys.end, chunk + kKeyChunk);
    const float* values = a.v + chunk * stride + task.kv_head * a.d_head;
    if (!direct) {
      for (std::int64_t j = 0; j < chunk_end - chunk; ++j) {
        float* out = packed_values + j * z_width;
        std::copy_n(values + j * stride, a.d_head, out);
        std::fill(out + a.d_head, out + z_width, 0.0f);
      }
    }
    const float* v = direct ? values : packed_values;
    const std::int64_t ldv = direct ? stride : z_width;
    const auto accumulate = [&](std::int64_t row, int height, Range r) {
      r = {std::max(r.begin, chunk), std::min(r.end, chunk_end)};
      if (r.begin >= r.end) return;
      const float* p = pattern(row) + (r.begin - first_key);
      if (height > 1) {
        for (int i = 0; i < height; ++i) {
          pack_tile_row(pattern(row + i) + (r.begin - first_key), r.end - r.begin, height, i,
                        packed_pattern);
        }
        p = packed_pattern;
      }
      for (std::int64_t column = 0; column < z_width; column += kPanel) {
        const float* b = v + (r.begin - chunk) * ldv + column;
        t.tile(height, {p, b, ldv, r.end - r.begin, z + row * z_width + column, z_width, nullptr,
                        true, b, 0});
      }
    };
    const std::int64_t tiles = (rows + t.tile_rows - 1) / t.tile_rows;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t begin = tile * rows / tiles, end = (tile + 1) * rows / tiles;
      // Keys all rows of the tile see are handled together, those at the two ends row by row.
      const std::int64_t common = visible(a, task.query(end - 1)).begin;
      const std::int64_t common_end = std::max(common, visible(a, task.query(begin)).end);
      bool elsewhere = false;
      if (written) {
        for (std::int64_t row = begin; row < end && !elsewhere; ++row) {
          const Range see = visible(a, task.query(row));
          const float* p = pattern(row) - first_key;
          for (std::int64_t j = chunk; j < chunk_end && !elsewhere; ++j) {
            elsewhere = (j < see.begin || j >= see.end) && p[j] != 0;
          }
        }
      }
      if (elsewhere) {
        for (std::int64_t row = begin; row < end; ++row) {
          const Range see = visible(a, task.query(row));
          const float* p = pattern(row) - first_key;
          for (std::int64_t j = chunk; j < chunk_end; ++j) {
            if ((j >= see.begin && j < see.end) || p[j] != 0) accumulate(row, 1, {j, j + 1});
          }
        }
        continue;
      }
      for (std::int64_t row = begin; row < end; ++row) {
        const Range see = visible(a, task.query(row));
        accumulate(row, 1, {see.begin, std::min(see.end, common)});
      }
      accumulate(begin, static_cast<int>(end - begin), {common, common_end});
      for (std::int64_t row = begin; row < end; ++row) {
        const Range see = visible(a, task.query(row));
        accumulate(row, 1, {std::max(see.begin, common_end), see.end});
      }
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    std::copy_n(z + row * z_width, a.d_head,
                a.z + (task.query(row) * a.heads + task.head(row)) * a.d_head);
  }
}

/// Cuts prompts into tasks: scores of a block stay within a cache, and every thread gets some.
std::vector<Task> make_tasks(std::span<const AttentionArgs> prompts, int threads) {
  constexpr std::int64_t kScoreFloats = 192 * 1024;
  std::vector<Task> tasks;
  std::int64_t groups = 0;
  for (const AttentionArgs& a : prompts) groups += a.kv_heads;
  for (const AttentionArgs& a : prompts) {
    const std::int64_t group = a.heads / a.kv_heads;
    std::int64_t block = std::max<std::int64_t>(1, kScoreFloats / (group * (a.keys + 1)));
    block = std::min(block, std::max<std::int64_t>(1, 192 / group));
    const std::int64_t wanted = (4 * threads + groups - 1) / groups;  // blocks for a fair share
    if (threads > 1) block = std::min(block, std::max<std::int64_t>(16, a.queries / wanted));
    for (std::int64_t first = 0; first < a.queries; first += block) {
      for (std::int64_t h = 0; h < a.kv_heads; ++h) {
        tasks.push_back({&a, h, first, std::min(block, a.queries - first)});
      }
    }
  }
  return tasks;
}

/// run(task, scratch) for all tasks of the prompts, in parallel.
template <class Run>
void for_tasks(std::span<const AttentionArgs> prompts, const KernelTable& t, Run run) {
  const int most = omp_in_parallel() ? 1 : omp_get_max_threads();
  const std::vector<Task> tasks = make_tasks(prompts, most);
  std::size_t need = 0;
  std::int64_t work = 0;
  for (const Task& task : tasks) {
    need = std::max(need, task.floats(t.tile_rows));
    work += task.rows() * task.width() * task.args->d_head;
  }
  need = (need + 15) / 16 * 16;
  const int threads = work > 100'000 ? most : 1;
  static thread_local Workspace workspace;
  float* scratch = workspace.get(need * static_cast<std::size_t>(threads));
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    run(tasks[i], scratch + need * static_cast<std::size_t>(omp_get_thread_num()));
  }
}

}  // namespace

void attention_batch(std::span<const AttentionArgs> prompts) {
  const KernelTable& t = table();
  for_tasks(prompts, t, [&](const Task& task, float* scratch) {
    const AttentionArgs& a = *task.args;
    const Range keys = task.keys();
    const std::int64_t width = task.width();
    float* scores = scratch;
    float* rest = scratch + task.score_floats();
    dot_products(t, task, scores, rest);
    for (std::int64_t row = 0; row < task.rows(); ++row) {
      const Range see = visible(a, task.query(row));
      float* s = scores + row * width;
      std::fill(s, s + (see.begin - keys.begin), -std::numeric_limits<float>::infinity());
      finish_scores(t, a, s + (see.begin - keys.begin), see.end - see.begin);
      t.softmax(s, see.end - keys.begin);
    }
    weighted_values(
        t, task, [&](std::int64_t row) { return scores + row * width; }, keys.begin, keys, false,
        rest);
  });
}

void attention(const AttentionArgs& args) {
  attention_batch({&args, 1});
}

void attention_scores(const AttentionArgs& args, float* scores) {
  const KernelTable& t = table();
  for_tasks({&args, 1}, t, [&](const Task& task, float* scratch) {
    const Range keys = task.keys();
    const std::int64_t width = task.width();
    dot_products(t, task, scratch, scratch + task.score_floats());
    for (std::int64_t row = 0; row < task.rows(); ++row) {
      const Range see = visible(args, task.query(row));
      float* out = scores + (task.head(row) * args.queries + task.query(row)) * args.keys;
      std::fill(out, out + args.keys, -std::numeric_limits<float>::infinity());
      std::copy_n(scratch + row * width + (see.begin - keys.begin), see.end - see.begin,
                  out + see.begin);
      finish_scores(t, args, out + see.begin, see.end - see.begin);
    }
  });
}

void attention_softmax(std::int64_t rows, std::int64_t keys, float* scores) {
  const KernelTable& t = table();
#pragma omp parallel for if (rows * keys > 20'000 && !omp_in_parallel())
  for (std::int64_t r = 0; r < rows; ++r) t.softmax(scores + r * keys, keys);
}

void attention_values(const AttentionArgs& args, const float* pattern) {
  const KernelTable& t = table();
  for_tasks({&args, 1}, t, [&](const Task& task, float* scratch) {
    weighted_values(
        t, task,
        [&](std::int64_t row) {
          return pattern + (task.head(row) * args.queries + task.query(row)) * args.keys;
        },
        0, {0, args.keys}, true, scratch);
  });
}

void attention_rows(const AttentionArgs& a, std::int64_t kv_head,
                    const std::function<void(const AttentionRow&)>& row) {
  const KernelTable& t = table();
  const std::int64_t group = a.heads / a.kv_heads;
  // As in make_tasks: a block's scores stay within a cache.
  const std::int64_t block =
      std::max<std::int64_t>(1, std::min(192 / group, 192 * 1024 / (group * (a.keys + 1))));
  static thread_local Workspace workspace;
  for (std::int64_t first = 0; first < a.queries; first += block) {
    const Task task{&a, kv_head, first, std::min(block, a.queries - first)};
    const Range keys = task.keys();
    const std::int64_t width = task.width();
    const std::size_t need = (task.floats(t.tile_rows) + 15) / 16 * 16;
    float* scores = workspace.get(need + static_cast<std::size_t>(width));
    float* pattern = scores + need;
    dot_products(t, task, scores, scores + task.score_floats());
    for (std::int64_t r = 0; r < task.rows(); ++r) {
      const Range see = visible(a, task.query(r));
      const auto count = static_cast<std::size_t>(see.end - see.begin);
      float* s = scores + r * width + (see.begin - keys.begin);
      finish_scores(t, a, s, see.end - see.begin);
      float* p = pattern + (see.begin - keys.begin);
      std::fill(pattern, p, -std::numeric_limits<float>::infinity());
      std::copy_n(s, count, p);
      t.softmax(pattern, see.end - keys.begin);
      row({task.head(r), task.query(r), see.begin, {s, count}, {p, count}});
    }
  }
}

}  // namespace lamina::kernels

namespace lamina {
namespace {

kernels::AttentionArgs mask_args(const ModelConfig& config, std::int32_t layer,
                                 std::int64_t tokens) {
  kernels::AttentionArgs args{};
  args.queries = args.keys = tokens;
  args.heads = config.n_heads;
  args.kv_heads = config.n_kv_heads;
  args.d_head = config.d_head;
  args.scale = static_cast<float>(config.attn_scale);
  args.softcap = static_cast<float>(config.attn_softcap);
  args.causal = config.causal;
  args.window = config.layers.at(static_cast<std::size_t>(layer)).window;
  return args;
}

}  // namespace

VisibleKeys visible_keys(const ModelConfig& config, std::int32_t layer, std::int64_t tokens,
                         std::int64_t query) {
  const kernels::Range see = kernels::visible(mask_args(config, layer, tokens), query);
  return {see.begin, see.end};
}

void attention_rows(const ModelConfig& config, std::int32_t layer, std::int64_t kv_head,
                    std::span<const float> q, std::span<const float> k,
                    const std::function<void(const AttentionRow&)>& row) {
  const auto tokens =
      static_cast<std::int64_t>(q.size()) / std::max<std::int64_t>(1, config.d_attn());
  if (static_cast<std::int64_t>(q.size()) != tokens * config.d_attn() ||
      static_cast<std::int64_t>(k.size()) != tokens * config.d_kv()) {
    fail(
        "attention rows: {} query and {} key values were given, multiples of {} and {} for as "
        "many tokens were expected",
        q.size(), k.size(), config.d_attn(), config.d_kv());
  }
  kernels::AttentionArgs args = mask_args(config, layer, tokens);
  args.q = q.data();
  args.k = k.data();
  kernels::attention_rows(args, kv_head, row);
}

void attention_softmax(std::span<float> scores) {
  kernels::table().softmax(scores.data(), static_cast<std::int64_t>(scores.size()));
}

}  // namespace lamina

// head_effects MODEL ID ID …   What the most likely next token's logit owes to each attention head:
// the gradient's estimate of the change if the head's output were 0, and the change itself.

#include <lamina/core/backward.h>
#include <lamina/core/error.h>
#include <lamina/core/forward.h>
#include <lamina/core/model.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

struct Effects {
  std::vector<double> estimate, exact;  // [layer · heads + head]
};

// The logit of `token` at the last row of the last pass.
float logit(lamina::Forward& forward, std::int64_t row, std::size_t token) {
  std::vector<float> logits(static_cast<std::size_t>(forward.model().config().d_vocab));
  forward.run_logits({&row, 1}, logits);
  return logits[token];
}

Effects head_effects(const lamina::Model& model, const lamina::Batch& batch) {
  const lamina::ModelConfig& config = model.config();
  const auto layers = static_cast<std::int32_t>(config.n_layers);
  const std::int64_t heads = config.n_heads, width = config.d_head;
  lamina::Forward forward(model);

  // One pass that keeps what the way back and later passes need.
  lamina::RunState state;
  lamina::Tape tape;
  std::vector<std::vector<float>> z(config.n_layers);  // [layer][tokens, heads, width]
  lamina::Hooks reading;
  for (std::int32_t l = 0; l < layers; ++l) {
    reading.read({lamina::SiteKind::z, l}, [&z](lamina::SiteView& view) {
      z[view.site.layer].assign(view.values.begin(), view.values.end());
    });
  }
  forward.run(batch, reading, {.keep = &state, .tape = &tape});

  const std::int64_t last = batch.tokens() - 1;
  std::vector<float> seed(static_cast<std::size_t>(config.d_vocab));
  forward.run_logits({&last, 1}, seed);
  const auto token =
      static_cast<std::size_t>(std::max_element(seed.begin(), seed.end()) - seed.begin());
  const float before = seed[token];

  // One pass backwards from that logit: Σ −z · gradient for every head.
  Effects effects;
  effects.estimate.assign(static_cast<std::size_t>(layers * heads), 0.0);
  std::fill(seed.begin(), seed.end(), 0.0f);
  seed[token] = 1.0f;
  lamina::Backward backward(model);
  backward.seed(tape, {&last, 1}, seed);
  lamina::Hooks gradients;
  for (std::int32_t l = 0; l < layers; ++l) {
    gradients.read({lamina::SiteKind::z, l}, [&](lamina::SiteView& view) {
      const std::int32_t layer = view.site.layer;  // l is gone when the hook is called
      for (std::size_t i = 0; i < view.values.size(); ++i) {
        const std::int64_t head = static_cast<std::int64_t>(i) / width % heads;
        effects.estimate[layer * heads + head] -= view.values[i] * z[layer][i];
      }
    });
  }
  backward.run(tape, {}, gradients);

  // The truth, from the head's layer on: one continuation of the prompt per head.
  for (std::int32_t l = 0; l < layers; ++l) {
    const std::vector<lamina::Continuation> copies(heads, {.prompt = 0, .first = 0});
    lamina::Hooks zeroing;
    zeroing.write({lamina::SiteKind::z, l}, [&](lamina::SiteView& view) {
      for (std::int64_t head = 0; head < heads; ++head) {  // continuation `head` loses head `head`
        for (std::int64_t t = view.batch.offsets[head]; t < view.batch.offsets[head + 1]; ++t) {
          float* values = view.values.data() + (t * heads + head) * width;
          std::fill(values, values + width, 0.0f);
        }
      }
    });
    forward.resume(state, l, copies, zeroing);
    for (std::int64_t head = 0; head < heads; ++head) {
      effects.exact.push_back(logit(forward, (head + 1) * batch.tokens() - 1, token) - before);
    }
  }
  return effects;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: head_effects MODEL ID [ID ...]\n");
    return 2;
  }
  try {
    const lamina::Model model = lamina::Model::load(argv[1]);
    std::vector<std::int32_t> ids;
    for (int i = 2; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
    lamina::Batch batch;
    batch.add(ids);
    const Effects effects = head_effects(model, batch);
    std::printf("layer\thead\testimate\texact\n");
    for (std::size_t i = 0; i < effects.exact.size(); ++i) {
      const std::size_t heads = static_cast<std::size_t>(model.config().n_heads);
      std::printf("%zu\t%zu\t%.5g\t%.5g\n", i / heads, i % heads, effects.estimate[i],
                  effects.exact[i]);
    }
    return 0;
  } catch (const lamina::Error& e) {
    std::fprintf(stderr, "head_effects: %s\n", e.what());
    return 1;
  }
}

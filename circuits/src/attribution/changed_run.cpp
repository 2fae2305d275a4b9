// Runs of the replacement model: the prompt's own, with changed sources, with none.

#include <algorithm>

#include "attribution/replacement.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::string_view kFreedoms[] = {"direct", "constrained", "free"};
constexpr std::int64_t kBatchTokens = 1024;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool has_final_norm(const ModelConfig& c) {
  return c.norm != NormKind::none && c.final_norm;
}

}  // namespace

std::string_view freedom_name(Freedom freedom) {
  return kFreedoms[static_cast<std::size_t>(freedom)];
}

Freedom parse_freedom(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kFreedoms); ++i)
    if (name == kFreedoms[i]) return static_cast<Freedom>(i);
  fail_usage("freedom '{}': expected direct, constrained or free", name);
}

// Reads what features read, and the last token behind the final norm.
void Replacement::Impl::watch(Hooks& hooks, Values& values) const {
  values.inputs.resize(size(config.n_layers));
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    if (const Transcoder* t = transcoders[size(l)]) {
      hooks.read(t->config.input.site, [&values, l, t, this](SiteView& view) {
        values.inputs[size(l)].assign(view.values.begin(), view.values.end());
        apply_place(forward.model(), t->config.input, values.inputs[size(l)]);
      });
    }
  }
  const Site last = has_final_norm(config) ? Site{SiteKind::ln_final_normalized, -1}
                                           : Site{SiteKind::resid_post,
                                                  static_cast<std::int32_t>(config.n_layers - 1)};
  hooks.read(last, [&values](SiteView& view) {
    values.normalized.assign(view.values.begin(), view.values.end());
  });
}

void Replacement::Impl::freeze(Hooks& hooks) const {
  for (const auto& [site, kept] : scales) {
    hooks.write(site, [&values = kept](SiteView& view) {  // no capture of a binding: Clang 16
      for (std::size_t i = 0; i < view.values.size(); ++i)
        view.values[i] = values[i % values.size()];
    });
  }
  for (std::int32_t l = 0; l < config.n_layers; ++l) {
    hooks.write({SiteKind::pattern, l}, [this, l](SiteView& view) {
      std::copy(patterns[size(l)].begin(), patterns[size(l)].end(), view.values.begin());
    });
  }
}

std::vector<ReplacementRun> Replacement::Impl::results(std::int64_t copies,
                                                       const Values& values) const {
  const std::int64_t d = config.d_model, n_out = config.d_out();
  std::vector<std::int64_t> rows(size(copies));
  for (std::int64_t c = 0; c < copies; ++c) rows[size(c)] = (c + 1) * tokens - 1;
  std::vector<float> logits(size(copies * n_out));
  forward.run_logits(rows, logits);
  std::vector<ReplacementRun> runs(size(copies));
  for (std::int64_t c = 0; c < copies; ++c) {
    ReplacementRun& run = runs[size(c)];
    run.logits.assign(logits.begin() + c * n_out, logits.begin() + (c + 1) * n_out);
    const float* last = values.normalized.data() + rows[size(c)] * d;
    run.residual.assign(last, last + d);
    run.pre_activations.resize(features.size());
#pragma omp parallel for schedule(static)
    for (std::size_t i = 0; i < features.size(); ++i) {
      const ActiveFeature& f = features[i];
      const Transcoder& t = *transcoders[size(f.layer)];
      const float* x = values.inputs[size(f.layer)].data() + (c * tokens + f.position) * d;
      const float* w = t.encoder.data() + f.feature * d;
      double sum = t.encoder_bias[size(f.feature)];
      const bool shifted = t.config.subtract_decoder_bias;
      for (std::int64_t j = 0; j < d; ++j)
        sum += double{w[j]} * (x[j] - (shifted ? t.decoder_bias[size(j)] : 0.0F));
      run.pre_activations[i] = static_cast<float>(sum);
    }
  }
  return runs;
}

// y [rows, D] += W_skip x, or W_skip (x − x of the prompt).
void Replacement::Impl::add_skip(std::int32_t layer, std::span<const float> x, bool difference,
                                 std::span<float> y) const {
  const Transcoder* t = transcoders[size(layer)];
  if (t == nullptr || !t->config.skip) return;
  const std::int64_t d = config.d_model, rows = static_cast<std::int64_t>(x.size()) / d;
  const float* own = difference ? inputs[size(layer)].data() : nullptr;
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* before = own == nullptr ? nullptr : own + r % tokens * d;
    for (std::int64_t i = 0; i < d; ++i) {
      const float* w = t->skip.data() + i * d;
      double sum = 0;
      for (std::int64_t j = 0; j < d; ++j)
        sum += double{w[j]} * (x[size(r * d + j)] - (before == nullptr ? 0.0F : before[j]));
      y[size(r * d + i)] += static_cast<float>(sum);
    }
  }
}

std::vector<ReplacementRun> Replacement::Impl::pass(std::span<const std::vector<SourceChange>> sets,
                                                    Freedom freedom) const {
  const std::int64_t d = config.d_model, layers = config.n_layers;
  const auto copies = static_cast<std::int64_t>(sets.size());
  const auto n_features = static_cast<std::int64_t>(features.size());
  struct Change {
    std::int64_t row;              // of the batch
    const ActiveFeature* feature;  // nullptr: an error
    float factor;
  };
  std::vector<std::vector<Change>> changes(size(layers));
  std::vector<Change> token_changes;
  for (std::int64_t c = 0; c < copies; ++c) {
    for (const SourceChange& change : sets[size(c)]) {
      const std::int64_t s = change.source, last = n_features + (layers + 1) * tokens;
      if (s < 0 || s >= last) fail_usage("source {} was to be changed, there are {}", s, last);
      const auto factor = static_cast<float>(change.factor);
      if (s < n_features) {
        const ActiveFeature& f = features[size(s)];
        for (std::int32_t l = f.layer; l < layers && first_writer(l) <= f.layer; ++l)
          changes[size(l)].push_back({c * tokens + f.position, &f, factor});
        continue;
      }
      const std::int64_t at = s - n_features, row = c * tokens + at % tokens;
      auto& list = at < layers * tokens ? changes[size(at / tokens)] : token_changes;
      list.push_back({row, nullptr, factor});
    }
  }

  Batch batch;
  for (std::int64_t c = 0; c < copies; ++c) batch.add(ids);
  Hooks hooks;
  Values values;
  watch(hooks, values);
  if (freedom != Freedom::free) freeze(hooks);
  if (!token_changes.empty()) {
    hooks.write({SiteKind::embed, -1}, [&](SiteView& view) {
      for (const Change& c : token_changes)
        for (std::int64_t i = 0; i < d; ++i) view.values[size(c.row * d + i)] *= c.factor;
    });
  }
  const auto add_errors = [&](std::int32_t l, std::span<float> y) {
    for (const Change& c : changes[size(l)]) {
      if (c.feature != nullptr) continue;
      const float* e = error[size(l)].data() + c.row % tokens * d;
      for (std::int64_t i = 0; i < d; ++i) y[size(c.row * d + i)] += (c.factor - 1.0F) * e[i];
    }
  };
  std::vector<float> row(size(d));
  std::vector<SparseRows> active(size(layers));  // of a constrained run
  // What a changed feature writes to a layer's MLP output, in the place of what it writes now.
  const auto add_features = [&](std::int32_t l, std::span<float> y) {
    for (const Change& c : changes[size(l)]) {
      if (c.feature == nullptr) continue;
      const ActiveFeature& f = *c.feature;
      float now = f.activation;
      if (freedom != Freedom::direct) {
        const bool all = freedom == Freedom::constrained;
        const SparseRows one =
            all ? SparseRows{}
                : transcoders[size(f.layer)]->encode(
                      std::span(values.inputs[size(f.layer)]).subspan(size(c.row * d), size(d)));
        const SparseRows& z = all ? active[size(f.layer)] : one;
        const std::int64_t at = all ? c.row : 0;
        now = 0.0F;
        for (std::int64_t i = z.offsets[size(at)]; i < z.offsets[size(at + 1)]; ++i)
          if (z.feature[size(i)] == f.feature) now = z.value[size(i)];
      }
      write_rows(f.layer, l, std::span(&f.feature, 1), row);
      const float amount = c.factor * f.activation - now;
      for (std::int64_t i = 0; i < d; ++i) y[size(c.row * d + i)] += amount * row[size(i)];
    }
  };
  for (std::int32_t l = 0; has_mlp() && l < layers; ++l) {
    if (freedom == Freedom::free && changes[size(l)].empty()) continue;
    hooks.write({SiteKind::mlp_out, l}, [&, l](SiteView& view) {
      const std::span<float> y = view.values;
      const std::vector<float>&own = mlp[size(l)], &e = error[size(l)];
      if (freedom == Freedom::constrained && transcoders[size(l)] != nullptr) {
        const std::vector<float>& x = values.inputs[size(l)];
        active[size(l)] = transcoders[size(l)]->encode(x);
        decode(l, active, x, y);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += e[i % e.size()];
      } else if (freedom != Freedom::free) {
        for (std::size_t i = 0; i < y.size(); ++i) y[i] = own[i % own.size()];
        add_skip(l, values.inputs[size(l)], true, y);
      }
      add_features(l, y);
      add_errors(l, y);
      if (freedom != Freedom::constrained || !options.constant_first) return;
      for (std::int64_t c = 0; c < copies; ++c) {
        const auto first = size(c * tokens * d);
        std::copy_n(constant[size(l)].begin(), d, y.begin() + c * tokens * d);
        if (transcoders[size(l)] != nullptr)
          add_skip(l, std::span(values.inputs[size(l)]).subspan(first, size(d)), false,
                   y.subspan(first, size(d)));
      }
    });
  }
  forward.run(batch, hooks);
  return results(copies, values);
}

std::vector<ReplacementRun> Replacement::run(std::span<const std::vector<SourceChange>> sets,
                                             Freedom freedom) const {
  const std::size_t some = size(std::max<std::int64_t>(1, kBatchTokens / impl_->tokens));
  std::vector<ReplacementRun> runs;
  for (std::size_t first = 0; first < sets.size(); first += some) {
    auto part = impl_->pass(sets.subspan(first, std::min(some, sets.size() - first)), freedom);
    for (ReplacementRun& run : part) runs.push_back(std::move(run));
  }
  return runs;
}

ReplacementRun Replacement::biases() const {
  const Impl& s = *impl_;
  Batch batch;
  batch.add(s.ids);
  Hooks hooks;
  Impl::Values values;
  s.watch(hooks, values);
  s.freeze(hooks);
  hooks.write({SiteKind::embed, -1},
              [](SiteView& view) { std::fill(view.values.begin(), view.values.end(), 0.0F); });
  for (std::int32_t l = 0; s.has_mlp() && l < s.config.n_layers; ++l) {
    hooks.write({SiteKind::mlp_out, l}, [&, l](SiteView& view) {
      std::copy(s.constant[size(l)].begin(), s.constant[size(l)].end(), view.values.begin());
      s.add_skip(l, values.inputs[size(l)], false, view.values);
    });
  }
  s.forward.run(batch, hooks);
  return s.results(1, values).front();
}

}  // namespace lamina

#include "lamina/circuits/replacement.h"

#include <algorithm>
#include <map>

#include "lamina/core/error.h"

namespace lamina {
namespace {

constexpr std::string_view kFreedoms[] = {"direct", "constrained", "free"};
constexpr std::int64_t kBatchTokens = 1024;

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool has_norms(const ModelConfig& c) {
  return c.norm != NormKind::none && c.norm_place != NormPlace::none;
}
bool has_final_norm(const ModelConfig& c) {
  return c.norm != NormKind::none && c.final_norm;
}

void check_model(const ModelConfig& c) {
  if (c.head != Head::language || !c.causal || c.head_dense)
    fail_usage("a {} model has no next-token head: it has no replacement model", c.family);
  if (has_norms(c) && c.norm_place == NormPlace::post)
    fail_usage("a {} model has norms behind the residual addition: no replacement model", c.family);
}

// Denominators that a replacement model keeps.
std::vector<Site> scale_sites(const ModelConfig& c) {
  std::vector<Site> sites;
  for (const Site site : all_sites(c)) {
    switch (site.kind) {
      case SiteKind::embed_ln_scale:
      case SiteKind::ln1_scale:
      case SiteKind::ln1_post_scale:
      case SiteKind::ln2_scale:
      case SiteKind::ln_final_scale:
        sites.push_back(site);
        break;
      default:
        break;
    }
  }
  return sites;
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

struct Replacement::Impl {
  Impl(Forward& f, std::span<const Transcoder> given, const CrossLayerTranscoder* across,
       std::span<const std::int32_t> prompt, const ReplacementOptions& o)
      : forward(f), config(f.model().config()), options(o), ids(prompt.begin(), prompt.end()) {
    check_model(config);
    if (ids.empty()) fail("a replacement model needs a prompt of at least one token");
    tokens = static_cast<std::int64_t>(ids.size());
    cross = across;
    transcoders.assign(size(config.n_layers), nullptr);
    if (cross != nullptr) {
      if (cross->layers() != config.n_layers) {
        fail("a cross-layer transcoder of {} layers, the model has {}", cross->layers(),
             config.n_layers);
      }
      for (std::int64_t l = 0; l < cross->layers(); ++l) place(cross->encoder(l));
    }
    for (const Transcoder& t : given) {
      t.check();
      place(t);
    }
    read_prompt();
  }

  Forward& forward;
  const ModelConfig& config;
  ReplacementOptions options;
  std::vector<std::int32_t> ids;
  std::int64_t tokens = 0;
  const CrossLayerTranscoder* cross = nullptr;
  std::vector<const Transcoder*> transcoders;  // [layer], nullptr without
  std::vector<ActiveFeature> features;

  // Of the prompt's own run.
  std::map<Site, std::vector<float>> scales;           // [T]
  std::vector<std::vector<float>> patterns;            // [layer][H, T, T]
  std::vector<std::vector<float>> inputs, mlp, error;  // [layer][T, width], [T, D], [T, D]
  std::vector<std::vector<float>> constant;  // [layer][T, D] MLP outputs without features, errors
                                             // and skip: b_dec, or all of a constant first token
  std::vector<float> embed;                  // [T, D]
  ReplacementRun clean;

  struct Values {  // of a pass over copies
    std::vector<std::vector<float>> inputs;
    std::vector<float> normalized;  // [rows, D] over the final denominator
  };

  void place(const Transcoder& t);
  std::int32_t first_writer(std::int32_t target) const { return cross != nullptr ? 0 : target; }
  void write_rows(std::int32_t layer, std::int32_t target,
                  std::span<const std::int32_t> features_of, std::span<float> out) const;
  void decode(std::int32_t target, std::span<const SparseRows> z, std::span<const float> x,
              std::span<float> y) const;
  void read_prompt();
  bool has_mlp() const { return config.d_mlp > 0; }
  void watch(Hooks& hooks, Values& values) const;
  void freeze(Hooks& hooks) const;
  std::vector<ReplacementRun> results(std::int64_t copies, const Values& values) const;
  void add_skip(std::int32_t layer, std::span<const float> x, bool difference,
                std::span<float> y) const;
  std::vector<ReplacementRun> pass(std::span<const std::vector<SourceChange>> sets,
                                   Freedom freedom) const;
};

void Replacement::Impl::place(const Transcoder& t) {
  const TranscoderConfig& c = t.config;
  const std::int32_t layer = c.output.site.layer;
  if (c.output.site.kind != SiteKind::mlp_out) {
    fail_usage("{}: rebuilds {}, a replacement model needs one of hook_mlp_out", c.name,
               dictionary_place_name(c.output));
  }
  if (layer < 0 || layer >= config.n_layers || !has_mlp()) {
    fail_usage("{}: rebuilds {}, the model has {} layers with an MLP", c.name,
               site_name(c.output.site), has_mlp() ? config.n_layers : 0);
  }
  const SiteKind in = c.input.site.kind;
  const bool readable = in == SiteKind::resid_pre || in == SiteKind::resid_mid ||
                        in == SiteKind::ln1_normalized || in == SiteKind::ln2_normalized;
  if (!readable || c.input.site.layer != layer) {
    fail_usage("{}: reads {}, a replacement model needs the residual stream or a norm of layer {}",
               c.name, dictionary_place_name(c.input), layer);
  }
  if (c.d_in != config.d_model || c.d_out != config.d_model) {
    fail("{}: reads {} values and rebuilds {}, the model's width is {}", c.name, c.d_in, c.d_out,
         config.d_model);
  }
  if (transcoders[size(layer)] != nullptr) {
    fail_usage("{} and {}: both rebuild {}", transcoders[size(layer)]->config.name, c.name,
               site_name(c.output.site));
  }
  transcoders[size(layer)] = &t;
}

void Replacement::Impl::write_rows(std::int32_t layer, std::int32_t target,
                                   std::span<const std::int32_t> features_of,
                                   std::span<float> out) const {
  if (cross != nullptr) {
    cross->decoder_rows(layer, target, features_of, out);
    return;
  }
  const std::int64_t d = config.d_model;
  for (std::size_t i = 0; i < features_of.size(); ++i) {
    const float* w = transcoders[size(layer)]->decoder.data() + features_of[i] * d;
    std::copy_n(w, d, out.data() + i * size(d));
  }
}

// y [rows, D] of MLP `target`, z by layer, x what its dictionary reads.
void Replacement::Impl::decode(std::int32_t target, std::span<const SparseRows> z,
                               std::span<const float> x, std::span<float> y) const {
  if (cross != nullptr) {
    cross->decode(target, z.first(size(target) + 1), y);
  } else {
    transcoders[size(target)]->decode(z[size(target)], x, y);
  }
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

void Replacement::Impl::read_prompt() {
  const std::int64_t d = config.d_model, layers = config.n_layers;
  Batch batch;
  batch.add(ids);
  Hooks hooks;
  patterns.resize(size(layers));
  for (auto* all : {&mlp, &error, &constant}) all->resize(size(layers));
  for (const Site site : scale_sites(config)) {
    std::vector<float>& kept = scales[site];
    hooks.read(site, [&kept](SiteView& v) { kept.assign(v.values.begin(), v.values.end()); });
  }
  hooks.read({SiteKind::embed, -1},
             [&](SiteView& v) { embed.assign(v.values.begin(), v.values.end()); });
  for (std::int32_t l = 0; l < layers; ++l) {
    hooks.read({SiteKind::pattern, l}, [this, l](SiteView& v) {
      patterns[size(l)].assign(v.values.begin(), v.values.end());
    });
    if (has_mlp()) {
      hooks.read({SiteKind::mlp_out, l},
                 [this, l](SiteView& v) { mlp[size(l)].assign(v.values.begin(), v.values.end()); });
    }
  }
  Values values;
  watch(hooks, values);
  forward.run(batch, hooks);

  std::vector<SparseRows> active(size(layers));
  for (std::int32_t l = 0; l < layers; ++l)
    if (transcoders[size(l)] != nullptr)
      active[size(l)] = transcoders[size(l)]->encode(values.inputs[size(l)]);
  for (std::int32_t l = 0; l < layers; ++l) {
    std::vector<float>& e = error[size(l)];
    std::vector<float>& fixed = constant[size(l)];
    e = mlp[size(l)];
    fixed.assign(e.size(), 0.0F);
    if (const Transcoder* t = transcoders[size(l)]) {
      const std::vector<float>& x = values.inputs[size(l)];
      const SparseRows& z = active[size(l)];
      std::vector<float> rebuilt(size(tokens * d));
      decode(l, active, x, rebuilt);
      for (std::size_t i = 0; i < e.size(); ++i) {
        e[i] -= rebuilt[i];
        fixed[i] = t->decoder_bias[i % size(d)];
      }
      for (std::int64_t p = options.constant_first ? 1 : 0; p < tokens; ++p) {
        for (std::int64_t i = z.offsets[size(p)]; i < z.offsets[size(p + 1)]; ++i) {
          features.push_back(
              {l, static_cast<std::int32_t>(p), z.feature[size(i)], z.value[size(i)]});
        }
      }
    }
    if (options.constant_first && has_mlp()) {
      std::vector<float> skipped(size(d));
      if (const Transcoder* t = transcoders[size(l)]; t != nullptr && t->config.skip)
        add_skip(l, std::span(values.inputs[size(l)]).first(size(d)), false, skipped);
      for (std::size_t i = 0; i < size(d); ++i) {
        fixed[i] = mlp[size(l)][i] - skipped[i];
        e[i] = 0.0F;
      }
    }
  }
  inputs = values.inputs;
  clean = results(1, values).front();
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

Replacement::Replacement(Forward& forward, std::span<const Transcoder> transcoders,
                         std::span<const std::int32_t> ids, const ReplacementOptions& options)
    : impl_(std::make_unique<Impl>(forward, transcoders, nullptr, ids, options)) {}
Replacement::Replacement(Forward& forward, const CrossLayerTranscoder& transcoder,
                         std::span<const std::int32_t> ids, const ReplacementOptions& options)
    : impl_(std::make_unique<Impl>(forward, std::span<const Transcoder>(), &transcoder, ids,
                                   options)) {}
Replacement::~Replacement() = default;
Replacement::Replacement(Replacement&&) noexcept = default;

const Model& Replacement::model() const {
  return impl_->forward.model();
}
Forward& Replacement::forward() const {
  return impl_->forward;
}
std::int64_t Replacement::tokens() const {
  return impl_->tokens;
}
std::span<const std::int32_t> Replacement::ids() const {
  return impl_->ids;
}
bool Replacement::constant_first() const {
  return impl_->options.constant_first;
}
std::span<const ActiveFeature> Replacement::features() const {
  return impl_->features;
}
std::int64_t Replacement::sources() const {
  return static_cast<std::int64_t>(impl_->features.size()) +
         (impl_->config.n_layers + 1) * impl_->tokens;
}
const Transcoder* Replacement::transcoder(std::int32_t layer) const {
  return impl_->transcoders.at(size(layer));
}
std::span<const float> Replacement::error(std::int32_t layer) const {
  return impl_->error.at(size(layer));
}
std::span<const float> Replacement::embedding() const {
  return impl_->embed;
}
std::span<const float> Replacement::scale(SiteKind kind, std::int32_t layer) const {
  return impl_->scales.at({kind, layer});
}
std::span<const float> Replacement::logits() const {
  return impl_->clean.logits;
}
const ReplacementRun& Replacement::clean() const {
  return impl_->clean;
}

std::vector<float> Replacement::source_vector(std::int64_t source) const {
  const Impl& s = *impl_;
  const std::int64_t d = s.config.d_model;
  const auto n_features = static_cast<std::int64_t>(s.features.size());
  if (source < 0 || source >= sources()) fail_usage("source {} of {}", source, sources());
  std::vector<float> out(size(d));
  if (source < n_features) {
    const ActiveFeature& f = s.features[size(source)];
    s.write_rows(f.layer, f.layer, std::span(&f.feature, 1), out);
    for (float& v : out) v *= f.activation;
    return out;
  }
  const std::int64_t at = source - n_features, layer = at / s.tokens, position = at % s.tokens;
  const std::vector<float>& rows = layer < s.config.n_layers ? s.error[size(layer)] : s.embed;
  if (!rows.empty()) std::copy_n(rows.begin() + position * d, d, out.begin());
  return out;
}

std::int32_t Replacement::first_writer(std::int32_t target) const {
  return impl_->first_writer(target);
}

void Replacement::write_rows(std::int32_t layer, std::int32_t target,
                             std::span<const std::int32_t> features, std::span<float> out) const {
  impl_->write_rows(layer, target, features, out);
}

double Replacement::unexplained(std::int32_t layer) const {
  const std::vector<float>&y = impl_->mlp.at(size(layer)), &e = impl_->error[size(layer)];
  if (y.empty()) return 0.0;
  const auto d = size(impl_->config.d_model);
  std::vector<double> mean(d);
  for (std::size_t i = 0; i < y.size(); ++i) mean[i % d] += y[i];
  for (double& m : mean) m /= static_cast<double>(impl_->tokens);
  double errors = 0, all = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    errors += double{e[i]} * e[i];
    all += (y[i] - mean[i % d]) * (y[i] - mean[i % d]);
  }
  return all > 0 ? errors / all : 0.0;
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

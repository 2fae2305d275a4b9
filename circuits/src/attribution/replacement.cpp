#include "attribution/replacement.h"

#include <algorithm>

#include "lamina/core/error.h"

namespace lamina {
namespace {

std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

bool has_norms(const ModelConfig& c) {
  return c.norm != NormKind::none && c.norm_place != NormPlace::none;
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

Replacement::Impl::Impl(Forward& f, std::span<const Transcoder> given,
                        const CrossLayerTranscoder* across, std::span<const std::int32_t> prompt,
                        const ReplacementOptions& o)
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

}  // namespace lamina

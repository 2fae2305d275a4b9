#include "lamina/probes/lens.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "lamina/core/error.h"
#include "lens/decode.h"
#include "lens/row_stats.h"

namespace lamina {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
void append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// The residual stream itself, in contrast to what a sublayer adds to it.
bool on_stream(Site site) {
  return site.kind == SiteKind::resid_post || site.kind == SiteKind::resid_pre;
}

void reserve_rows(LensResults& r, std::int64_t count) {
  const auto tokens = static_cast<std::size_t>(r.tokens() + count);
  const std::size_t cells = tokens * r.sites.size();
  const auto entries = cells * static_cast<std::size_t>(r.k);
  for (auto* v : {&r.prompt, &r.position, &r.token_id, &r.target, &r.exit_layer}) v->resize(tokens);
  r.target_rank.resize(cells, -1);
  r.target_logprob.resize(cells, kNaN);
  for (auto* v : {&r.entropy, &r.kl_to_final, &r.kl_from_final, &r.overlap}) v->resize(cells);
  r.topk_ids.resize(entries);
  r.topk_logprobs.resize(entries);
}

// What is said about one token at one site. False if the logits are not finite.
bool summarise(LensResults& r, std::int64_t token, std::int64_t site, std::int64_t overlap_k,
               std::span<const float> logits, const rows::Reference& final, bool is_final) {
  const std::int64_t cell = token * r.site_count() + site;
  const rows::Comparison c = rows::compare(logits, final);
  r.entropy[cell] = static_cast<float>(c.softmax.entropy_bits());
  // The model's own output is compared with itself: exactly zero, not rounding noise.
  r.kl_to_final[cell] = is_final ? 0.0F : static_cast<float>(c.kl_to);
  r.kl_from_final[cell] = is_final ? 0.0F : static_cast<float>(c.kl_from);

  std::vector<std::int32_t> top(
      static_cast<std::size_t>(std::max(r.k, static_cast<std::int64_t>(final.top.size()))));
  rows::top_k(logits, top);
  for (std::int64_t i = 0; i < r.k; ++i) {
    r.topk_ids[cell * r.k + i] = top[i];
    r.topk_logprobs[cell * r.k + i] = static_cast<float>(c.softmax.logprob(logits[top[i]]));
  }
  std::int64_t shared = 0;
  for (std::size_t i = 0; i < final.top.size(); ++i) {
    shared += std::find(final.top.begin(), final.top.end(), top[i]) != final.top.end();
  }
  r.overlap[cell] = static_cast<float>(shared) / static_cast<float>(overlap_k);

  const std::int32_t target = r.target[token];
  if (target >= 0) {
    r.target_rank[cell] = rows::rank(logits, target);
    r.target_logprob[cell] = static_cast<float>(c.softmax.logprob(logits[target]));
  }
  return c.softmax.valid();
}

// First layer from which the argmax never changes again, along the residual stream.
std::int32_t exit_layer(const LensResults& r, std::int64_t token) {
  const std::int64_t s = r.site_count();
  const auto argmax = [&](std::int64_t site) { return r.topk_ids[(token * s + site) * r.k]; };
  std::int32_t layer = r.sites.back().layer;
  for (std::int64_t i = s - 2; i >= 0; --i) {
    if (!on_stream(r.sites[i])) continue;
    if (argmax(i) != argmax(s - 1)) break;
    // resid_pre of a layer is what left the layer before it.
    layer = r.sites[i].kind == SiteKind::resid_pre ? r.sites[i].layer - 1 : r.sites[i].layer;
  }
  return layer;
}

}  // namespace

std::vector<Site> default_lens_sites(const ModelConfig& config) {
  std::vector<Site> sites = {{SiteKind::resid_pre, 0}};
  for (std::int32_t l = 0; l < config.n_layers; ++l) sites.push_back({SiteKind::resid_post, l});
  return sites;
}

std::string lens_label(Site site) {
  if (site.kind == SiteKind::resid_pre && site.layer == 0) return "embed";
  if (site.kind == SiteKind::resid_post) return std::to_string(site.layer);
  const std::string name = site_name(site);
  const std::size_t hook = name.rfind("hook_");
  const std::string kind = hook == std::string::npos ? name : name.substr(hook + 5);
  return site.layer < 0 ? kind : fmt::format("{}.{}", site.layer, kind);
}

void parse_positions(std::string_view text, LensOptions& options) {
  options.position_list.clear();
  if (text == "last" || text == "all") {
    options.positions = text == "last" ? LensPositions::last : LensPositions::all;
    return;
  }
  options.positions = LensPositions::list;
  for (std::string_view rest = text;;) {
    const std::string_view item = rest.substr(0, rest.find(','));
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), value);
    if (error != std::errc() || end != item.data() + item.size()) {
      fail_usage("positions \"{}\": expected last, all or a list of numbers such as 0,5,-1", text);
    }
    options.position_list.push_back(value);
    if (item.size() == rest.size()) break;
    rest.remove_prefix(item.size() + 1);
  }
}

LogitLens::LogitLens(const ModelConfig& config, const Readout& readout, LensOptions options,
                     const Tokenizer* tokenizer)
    : config_(config), readout_(&readout), options_(std::move(options)), tokenizer_(tokenizer) {
  if (options_.top_k < 1) fail_usage("lens: top_k must be at least 1, got {}", options_.top_k);
  if (options_.overlap_k < 1) {
    fail_usage("lens: overlap_k must be at least 1, got {}", options_.overlap_k);
  }
  if (config_.n_layers < 1) fail("lens: the model has no layers");
  if (readout.d_model() != config_.d_model || readout.d_vocab() != config_.d_vocab) {
    fail("lens: the activations are {} wide with {} tokens, the model that decodes them {} with {}",
         config_.d_model, config_.d_vocab, readout.d_model(), readout.d_vocab());
  }
  if (options_.translators && options_.translators->d_model != config_.d_model) {
    fail("lens: translators are for d_model {}, the model has {}", options_.translators->d_model,
         config_.d_model);
  }
  std::vector<Site> sites = options_.sites;
  if (sites.empty()) sites = default_lens_sites(config_);
  check_lens_sites(sites, config_);
  const Site last{SiteKind::resid_post, static_cast<std::int32_t>(config_.n_layers) - 1};
  sites.push_back(last);
  for (Site site : all_sites(config_)) {  // firing order, without repeats
    if (std::find(sites.begin(), sites.end(), site) != sites.end()) results_.sites.push_back(site);
  }
  if (options_.translators && options_.translators->find(last)) {
    fail("lens: translators change {}, which is the model's own output", site_name(last));
  }
  results_.k = std::min(options_.top_k, config_.d_vocab);
}

LogitLens::~LogitLens() = default;

std::string LogitLens::name() const {
  return options_.translators ? "tuned_lens" : "lens";
}

std::vector<Site> LogitLens::sites(const ModelConfig&) const {
  return results_.sites;
}

std::unique_ptr<Probe> LogitLens::fresh() const {
  return std::make_unique<LogitLens>(config_, *readout_, options_, tokenizer_);
}

void LogitLens::observe(const ActivationBlock& block) {
  LensResults& r = results_;
  std::vector<std::int64_t> rows;  // token rows of the block
  const std::int64_t first = r.tokens();
  const auto prompts = static_cast<std::int64_t>(block.prompts.size());
  for (std::int64_t i = 0; i < prompts; ++i) {
    const Prompt& prompt = block.prompts[i];
    r.prompt_ids.push_back(prompt.id);
    for (std::int64_t position : selected_positions(block, i, options_)) {
      const std::int32_t target = expected_next(prompt, position);
      if (target >= config_.d_vocab) {
        fail("prompt \"{}\": target id {} is outside the vocabulary of {} tokens", prompt.id,
             target, config_.d_vocab);
      }
      rows.push_back(block.batch.offsets[i] + position);
      r.prompt.push_back(static_cast<std::int32_t>(r.prompt_ids.size()) - 1);
      r.position.push_back(static_cast<std::int32_t>(position));
      r.token_id.push_back(block.batch.ids[rows.back()]);
      r.target.push_back(target);
    }
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  reserve_rows(r, 0);

  // The final logits of some tokens stay while the other sites pass by, a few at a time: for a
  // vocabulary of 262,144 one row is 1 MiB, so all sites at once would not fit.
  const std::int64_t row_bytes = config_.d_vocab * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t budget =
      std::max<std::int64_t>(8, static_cast<std::int64_t>(options_.logit_bytes) / row_bytes);
  const std::int64_t step = std::max<std::int64_t>(1, budget / 8);
  for (std::int64_t begin = 0; begin < count; begin += step) {
    const std::int64_t n = std::min(step, count - begin);
    read_tokens(block, first + begin, n, std::span(rows).subspan(begin, n));
  }
}

void LogitLens::read_tokens(const ActivationBlock& block, std::int64_t first, std::int64_t count,
                            std::span<const std::int64_t> rows) {
  LensResults& r = results_;
  const std::int64_t v = config_.d_vocab, sites = r.site_count();
  const std::int64_t row_bytes = v * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t budget = static_cast<std::int64_t>(options_.logit_bytes) / row_bytes;
  const std::int64_t group = std::max<std::int64_t>(1, (budget - 3 * count) / count);

  RowDecoder decoder(*readout_, options_.translators.get());
  std::vector<float> final_logits, logits;
  decoder.gather(block, r.sites.back(), rows);
  decoder.decode(final_logits);
  std::vector<rows::Reference> finals(static_cast<std::size_t>(count));
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < count; ++i) {
    finals[i] = rows::reference(std::span(final_logits).subspan(i * v, v), options_.overlap_k);
  }

  const auto read = [&](std::int64_t site, std::int64_t token, std::span<const float> row) {
    return summarise(r, first + token, site, options_.overlap_k, row, finals[token],
                     site == sites - 1);
  };
  const auto check = [&](std::int64_t site, std::int64_t token, bool valid) {  // not in parallel
    if (valid) return;
    fail("prompt \"{}\", position {}: the logits at {} are not finite",
         r.prompt_ids[r.prompt[first + token]], r.position[first + token],
         site_name(r.sites[site]));
  };
  for (std::int64_t i = 0; i < count; ++i) check(sites - 1, i, finals[i].softmax.valid());
  for (std::int64_t site = 0; site < sites - 1; site += group) {
    const std::int64_t n = std::min(group, sites - 1 - site);
    for (std::int64_t s = 0; s < n; ++s) decoder.gather(block, r.sites[site + s], rows);
    decoder.decode(logits);
    std::vector<std::uint8_t> valid(static_cast<std::size_t>(n * count));
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < n * count; ++i) {
      valid[i] = read(site + i / count, i % count, std::span(logits).subspan(i * v, v));
    }
    for (std::int64_t i = 0; i < n * count; ++i) check(site + i / count, i % count, valid[i] != 0);
  }
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < count; ++i) {
    read(sites - 1, i, finals[i].logits);
    r.exit_layer[first + i] = exit_layer(r, first + i);
  }
}

void LogitLens::merge(Probe& other) {
  auto& from = dynamic_cast<LogitLens&>(other).results_;
  LensResults& r = results_;
  if (r.sites != from.sites || r.k != from.k) fail("lens: results of different settings");
  const auto shift = static_cast<std::int32_t>(r.prompt_ids.size());
  for (std::int32_t& p : from.prompt) p += shift;
  append(r.prompt_ids, from.prompt_ids);
  append(r.prompt, from.prompt);
  append(r.position, from.position);
  append(r.token_id, from.token_id);
  append(r.target, from.target);
  append(r.exit_layer, from.exit_layer);
  append(r.topk_ids, from.topk_ids);
  append(r.topk_logprobs, from.topk_logprobs);
  append(r.target_rank, from.target_rank);
  append(r.target_logprob, from.target_logprob);
  append(r.entropy, from.entropy);
  append(r.kl_to_final, from.kl_to_final);
  append(r.kl_from_final, from.kl_from_final);
  append(r.overlap, from.overlap);
  LensResults empty;
  empty.sites = from.sites;
  empty.k = from.k;
  from = std::move(empty);
}

LensAverages average(const LensResults& r) {
  const std::int64_t sites = r.site_count(), tokens = r.tokens();
  LensAverages a;
  a.tokens = tokens;
  for (std::int64_t t = 0; t < tokens; ++t) a.targets += r.target[t] >= 0;
  for (auto* v : {&a.agreement, &a.accuracy, &a.target_logprob, &a.entropy, &a.kl_to_final,
                  &a.kl_from_final, &a.overlap}) {
    v->assign(static_cast<std::size_t>(sites), 0.0);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t final = r.topk_ids[((t + 1) * sites - 1) * r.k];
    for (std::int64_t s = 0; s < sites; ++s) {
      const std::int64_t cell = t * sites + s;
      a.agreement[s] += r.topk_ids[cell * r.k] == final;
      a.entropy[s] += r.entropy[cell];
      a.kl_to_final[s] += r.kl_to_final[cell];
      a.kl_from_final[s] += r.kl_from_final[cell];
      a.overlap[s] += r.overlap[cell];
      if (r.target[t] < 0) continue;
      a.accuracy[s] += r.target_rank[cell] == 1;
      a.target_logprob[s] += r.target_logprob[cell];
    }
  }
  // 0/0 = NaN says that there was nothing to average.
  for (auto* v : {&a.agreement, &a.entropy, &a.kl_to_final, &a.kl_from_final, &a.overlap}) {
    for (double& x : *v) x /= static_cast<double>(tokens);
  }
  for (auto* v : {&a.accuracy, &a.target_logprob}) {
    for (double& x : *v) x /= static_cast<double>(a.targets);
  }
  return a;
}

}  // namespace lamina

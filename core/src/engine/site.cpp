#include "lamina/core/site.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>

#include "lamina/core/edit_distance.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// One row per kind: where it stands, its name inside a block (or of the model), and its shorthand.
struct Row {
  SiteKind kind;
  bool in_block;
  std::string_view name;
  std::string_view shorthand;
};

constexpr std::array kRows = {
    Row{SiteKind::embed, false, "hook_embed", "embed"},
    Row{SiteKind::pos_embed, false, "hook_pos_embed", "pos_embed"},
    Row{SiteKind::embed_ln_scale, false, "embed.ln.hook_scale", "embed_ln_scale"},
    Row{SiteKind::embed_ln_normalized, false, "embed.ln.hook_normalized", "embed_ln_normalized"},
    Row{SiteKind::resid_pre, true, "hook_resid_pre", "resid_pre"},
    Row{SiteKind::ln1_scale, true, "ln1.hook_scale", "ln1_scale"},
    Row{SiteKind::ln1_normalized, true, "ln1.hook_normalized", "ln1_normalized"},
    Row{SiteKind::q, true, "attn.hook_q", "q"},
    Row{SiteKind::k, true, "attn.hook_k", "k"},
    Row{SiteKind::v, true, "attn.hook_v", "v"},
    Row{SiteKind::rot_q, true, "attn.hook_rot_q", "rot_q"},
    Row{SiteKind::rot_k, true, "attn.hook_rot_k", "rot_k"},
    Row{SiteKind::attn_scores, true, "attn.hook_attn_scores", "attn_scores"},
    Row{SiteKind::pattern, true, "attn.hook_pattern", "pattern"},
    Row{SiteKind::z, true, "attn.hook_z", "z"},
    Row{SiteKind::result, true, "attn.hook_result", "result"},
    Row{SiteKind::ln1_post_scale, true, "ln1_post.hook_scale", "ln1_post_scale"},
    Row{SiteKind::ln1_post_normalized, true, "ln1_post.hook_normalized", "ln1_post_normalized"},
    Row{SiteKind::attn_out, true, "hook_attn_out", "attn_out"},
    Row{SiteKind::resid_mid, true, "hook_resid_mid", "resid_mid"},
    Row{SiteKind::normalized_resid_mid, true, "hook_normalized_resid_mid", "normalized_resid_mid"},
    Row{SiteKind::ln2_scale, true, "ln2.hook_scale", "ln2_scale"},
    Row{SiteKind::ln2_normalized, true, "ln2.hook_normalized", "ln2_normalized"},
    Row{SiteKind::mlp_pre, true, "mlp.hook_pre", "pre"},
    Row{SiteKind::mlp_pre_linear, true, "mlp.hook_pre_linear", "pre_linear"},
    Row{SiteKind::mlp_post, true, "mlp.hook_post", "post"},
    Row{SiteKind::ln2_post_scale, true, "ln2_post.hook_scale", "ln2_post_scale"},
    Row{SiteKind::ln2_post_normalized, true, "ln2_post.hook_normalized", "ln2_post_normalized"},
    Row{SiteKind::mlp_out, true, "hook_mlp_out", "mlp_out"},
    Row{SiteKind::resid_post, true, "hook_resid_post", "resid_post"},
    Row{SiteKind::normalized_resid_post, true, "hook_normalized_resid_post",
        "normalized_resid_post"},
    Row{SiteKind::ln_final_scale, false, "ln_final.hook_scale", "ln_final_scale"},
    Row{SiteKind::ln_final_normalized, false, "ln_final.hook_normalized", "ln_final_normalized"},
};

// Names that TransformerLens 4 gives the same places.
std::optional<SiteKind> alias(std::string_view name, const ModelConfig& config) {
  static const std::map<std::string_view, SiteKind> kCommon = {
      {"hook_in", SiteKind::resid_pre},
      {"ln2.hook_in", SiteKind::resid_mid},
      {"hook_out", SiteKind::resid_post},
      {"attn.hook_out", SiteKind::attn_out},
      {"mlp.hook_out", SiteKind::mlp_out},
      {"attn.q.hook_out", SiteKind::q},
      {"attn.k.hook_out", SiteKind::k},
      {"attn.v.hook_out", SiteKind::v},
      {"attn.o.hook_in", SiteKind::z},
      {"mlp.out.hook_in", SiteKind::mlp_post},
      {"mlp.gate.hook_out", SiteKind::mlp_pre},
      {"embed.hook_out", SiteKind::embed},
      {"pos_embed.hook_out", SiteKind::pos_embed},
  };
  if (name == "mlp.in.hook_out") return config.gated ? SiteKind::mlp_pre_linear : SiteKind::mlp_pre;
  // With sandwich norms the sublayer's own output is not what is added to the residual.
  if (config.norm_place == NormPlace::sandwich &&
      (name == "attn.hook_out" || name == "mlp.hook_out")) {
    return std::nullopt;
  }
  const auto found = kCommon.find(name);
  if (found == kCommon.end()) return std::nullopt;
  return found->second;
}

const Row& row(SiteKind kind) {
  return kRows[static_cast<std::size_t>(kind)];
}

bool exists(SiteKind kind, const ModelConfig& c) {
  const bool norms = c.norm != NormKind::none && c.norm_place != NormPlace::none;
  switch (kind) {
    case SiteKind::pos_embed:
      return c.positions == Positions::learned;
    case SiteKind::resid_mid:
      return !c.parallel && c.d_mlp > 0;
    case SiteKind::embed_ln_scale:
    case SiteKind::embed_ln_normalized:
      return c.embed_norm;
    case SiteKind::normalized_resid_mid:
    case SiteKind::normalized_resid_post:
      return norms && c.norm_place == NormPlace::post && c.d_mlp > 0;
    case SiteKind::ln1_scale:
    case SiteKind::ln1_normalized:
      return norms;
    case SiteKind::ln2_scale:
    case SiteKind::ln2_normalized:
      return norms && c.d_mlp > 0 && !(c.parallel && c.shared_parallel_norm);
    case SiteKind::ln1_post_scale:
    case SiteKind::ln1_post_normalized:
      return norms && c.norm_place == NormPlace::sandwich;
    case SiteKind::ln2_post_scale:
    case SiteKind::ln2_post_normalized:
      return norms && c.d_mlp > 0 && c.norm_place == NormPlace::sandwich;
    case SiteKind::rot_q:
    case SiteKind::rot_k:
      return c.positions == Positions::rotary;
    case SiteKind::mlp_pre:
    case SiteKind::mlp_post:
    case SiteKind::mlp_out:
      return c.d_mlp > 0;
    case SiteKind::mlp_pre_linear:
      return c.d_mlp > 0 && c.gated;
    case SiteKind::ln_final_scale:
    case SiteKind::ln_final_normalized:
      return c.final_norm && c.norm != NormKind::none;
    default:
      return true;
  }
}

// '*' matches any run of characters, '?' one. Iterative: linear in practice, never recursive.
bool glob(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p, ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++, mark = t;
    } else if (star != std::string_view::npos) {
      p = star + 1, t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::optional<std::int64_t> number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// The few valid names and shorthands closest to what was typed.
std::string nearest(std::string_view name, const ModelConfig& config) {
  std::vector<std::pair<std::size_t, std::string>> scored;
  const std::string_view typed = name.substr(0, 200);
  // Where a layer of this model was typed, its sites are the ones that were meant.
  std::int32_t layer = 0;
  if (typed.starts_with("blocks.")) {
    const std::string_view rest = typed.substr(7);
    const auto value = number(rest.substr(0, rest.find('.')));
    if (value && *value >= 0 && *value < config.n_layers) layer = static_cast<std::int32_t>(*value);
  }
  for (Site site : all_sites(config)) {
    if (site.layer >= 0 && site.layer != layer) continue;
    const std::string full = site_name(site), shorthand(row(site.kind).shorthand);
    scored.emplace_back(edit_distance(typed, full), full);
    scored.emplace_back(edit_distance(typed.substr(0, typed.find(':')), shorthand), shorthand);
  }
  std::stable_sort(scored.begin(), scored.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string out;
  for (std::size_t i = 0; i < std::min<std::size_t>(scored.size(), 4); ++i) {
    out += (i == 0 ? "" : ", ") + scored[i].second;
  }
  return out;
}

[[noreturn]] void no_such_site(std::string_view pattern, const ModelConfig& config) {
  fail_usage("no site of this {}-layer {} model matches '{}'; nearest: {}", config.n_layers,
             config.family, pattern.substr(0, 200), nearest(pattern, config));
}

struct LayerRange {
  std::int64_t first, last;
};

// "3", "-1" (from the end) or "0-5", in a model of n layers.
LayerRange layer_range(std::string_view text, std::string_view pattern, const ModelConfig& config) {
  const std::int64_t n = config.n_layers;
  auto one = [&](std::string_view part) {
    const auto value = number(part);
    if (!value) fail_usage("site '{}': '{}' is not a layer number or range", pattern, part);
    const std::int64_t layer = *value < 0 ? *value + n : *value;
    if (layer < 0 || layer >= n) {
      fail_usage("site '{}': layer {} is outside this model's {} layers (0 to {})", pattern, *value,
                 n, n - 1);
    }
    return layer;
  };
  const std::size_t dash = text.find('-', 1);
  if (dash == std::string_view::npos) {
    const std::int64_t layer = one(text);
    return {layer, layer};
  }
  const LayerRange range{one(text.substr(0, dash)), one(text.substr(dash + 1))};
  if (range.first > range.last) fail_usage("site '{}': the range ends before it begins", pattern);
  return range;
}

void append_matches(std::string_view pattern, const ModelConfig& config,
                    const std::vector<Site>& sites, std::vector<Site>& out) {
  const std::size_t before = out.size();
  const std::size_t colon = pattern.find(':');
  const std::string_view stem = pattern.substr(0, colon);
  const auto known =
      std::find_if(kRows.begin(), kRows.end(), [&](const Row& r) { return r.shorthand == stem; });
  if (known != kRows.end()) {
    LayerRange range{-1, config.n_layers - 1};
    if (colon != std::string_view::npos) {
      if (!known->in_block) fail_usage("site '{}': '{}' has no layers", pattern, stem);
      range = layer_range(pattern.substr(colon + 1), pattern, config);
    }
    for (Site site : sites) {
      if (site.kind == known->kind && site.layer >= range.first && site.layer <= range.last) {
        out.push_back(site);
      }
    }
  } else if (colon == std::string_view::npos) {
    for (Site site : sites) {
      if (glob(pattern, site_name(site))) out.push_back(site);
    }
    if (out.size() == before) {  // TransformerLens 4 names, with or without a glob for the layer
      std::string_view rest = pattern;
      std::string_view layer = "*";
      if (rest.starts_with("blocks.")) {
        rest.remove_prefix(7);
        const std::size_t dot = rest.find('.');
        layer = rest.substr(0, dot);
        rest = dot == std::string_view::npos ? std::string_view{} : rest.substr(dot + 1);
      }
      const auto kind = alias(rest, config);
      if (kind && row(*kind).in_block == pattern.starts_with("blocks.")) {
        for (Site site : sites) {
          if (site.kind == *kind && (site.layer < 0 || glob(layer, std::to_string(site.layer)))) {
            out.push_back(site);
          }
        }
      }
    }
  }
  if (out.size() == before) no_such_site(pattern, config);
}

}  // namespace

std::string site_name(Site site) {
  const Row& r = row(site.kind);
  if (!r.in_block) return std::string(r.name);
  return fmt::format("blocks.{}.{}", site.layer, r.name);
}

SiteShape site_shape(Site site, const ModelConfig& c) {
  switch (site.kind) {
    case SiteKind::q:
    case SiteKind::rot_q:
    case SiteKind::z:
      return {false, c.n_heads, c.d_head};
    case SiteKind::k:
    case SiteKind::rot_k:
    case SiteKind::v:
      return {false, c.n_kv_heads, c.d_head};
    case SiteKind::result:
      return {false, c.n_heads, c.d_model};
    case SiteKind::attn_scores:
    case SiteKind::pattern:
      return {true, c.n_heads, 0};
    case SiteKind::mlp_pre:
    case SiteKind::mlp_pre_linear:
    case SiteKind::mlp_post:
      return {false, 0, c.d_mlp};
    case SiteKind::ln1_scale:
    case SiteKind::ln2_scale:
    case SiteKind::ln1_post_scale:
    case SiteKind::ln2_post_scale:
    case SiteKind::embed_ln_scale:
    case SiteKind::ln_final_scale:
      return {false, 0, 1};
    default:
      return {false, 0, c.d_model};
  }
}

std::vector<std::string> site_dimensions(Site site) {
  switch (site.kind) {
    case SiteKind::q:
    case SiteKind::rot_q:
    case SiteKind::z:
      return {"head", "d_head"};
    case SiteKind::k:
    case SiteKind::rot_k:
    case SiteKind::v:
      return {"kv_head", "d_head"};
    case SiteKind::result:
      return {"head", "d_model"};
    case SiteKind::attn_scores:
    case SiteKind::pattern:
      return {"head", "query", "key"};
    case SiteKind::mlp_pre:
    case SiteKind::mlp_pre_linear:
    case SiteKind::mlp_post:
      return {"d_mlp"};
    case SiteKind::ln1_scale:
    case SiteKind::ln2_scale:
    case SiteKind::ln1_post_scale:
    case SiteKind::ln2_post_scale:
    case SiteKind::embed_ln_scale:
    case SiteKind::ln_final_scale:
      return {"one"};
    default:
      return {"d_model"};
  }
}

std::string site_semantics(Site site, const ModelConfig& c) {
  const bool post = c.norm_place == NormPlace::post;
  const bool layer_norm = c.norm == NormKind::layer;
  auto scale = [&](std::string_view of) {
    return fmt::format("denominator of the norm {}: sqrt({} + {:g})", of,
                       layer_norm ? "variance" : "mean square", c.norm_eps);
  };
  auto normalized = [&](std::string_view of) {
    return fmt::format("{} over the denominator of its norm, before the norm's weight and bias",
                       layer_norm ? fmt::format("{} minus its mean,", of) : std::string(of));
  };
  switch (site.kind) {
    case SiteKind::embed:
      return c.embed_scale != 1.0 ? fmt::format("token embedding times {:g}", c.embed_scale)
                                  : "token embedding";
    case SiteKind::pos_embed:
      return "learned position embedding";
    case SiteKind::embed_ln_scale:
      return scale("on the sum of the embeddings");
    case SiteKind::embed_ln_normalized:
      return normalized("the sum of the embeddings");
    case SiteKind::normalized_resid_mid:
      return "residual stream after the attention's addition and its norm, entering the MLP";
    case SiteKind::normalized_resid_post:
      return "residual stream leaving the block: after the MLP's addition and its norm";
    case SiteKind::resid_pre:
      return "residual stream entering the block";
    case SiteKind::ln1_scale:
      return scale(post ? "after the attention's addition" : "before attention");
    case SiteKind::ln1_normalized:
      return normalized(post ? "the stream after the attention's addition" : "the block's input");
    case SiteKind::q:
      return c.qk_norm ? "query projection with its bias, before the query norm and the rotation"
                       : "query projection with its bias, before the rotation";
    case SiteKind::k:
      return c.qk_norm ? "key projection with its bias, before the key norm and the rotation"
                       : "key projection with its bias, before the rotation";
    case SiteKind::v:
      return "value projection with its bias";
    case SiteKind::rot_q:
      return "query after norm (if any) and rotation, as it meets the keys";
    case SiteKind::rot_k:
      return "key after norm (if any) and rotation, as it meets the queries";
    case SiteKind::attn_scores:
      return fmt::format("attention scores: q·k times {:g}{}, masked keys -inf", c.attn_scale,
                         c.attn_softcap > 0 ? fmt::format(", soft-capped at {:g}", c.attn_softcap)
                                            : std::string());
    case SiteKind::pattern:
      return "attention pattern: softmax of the scores over the keys";
    case SiteKind::z:
      return "pattern-weighted sum of values per head, before the output projection";
    case SiteKind::result:
      return "each head's part of the attention output: z times the head's output projection, "
             "without bias (derived)";
    case SiteKind::ln1_post_scale:
      return scale("on the attention's output");
    case SiteKind::ln1_post_normalized:
      return normalized("the attention's output");
    case SiteKind::attn_out:
      return c.norm_place == NormPlace::sandwich
                 ? "attention output after its own norm: the vector added to the residual stream"
                 : "attention output with its bias: the vector added to the residual stream";
    case SiteKind::resid_mid:
      return post ? "residual stream after the attention's addition, before its norm"
                  : "residual stream between attention and MLP";
    case SiteKind::ln2_scale:
      return scale(post ? "after the MLP's addition" : "before the MLP");
    case SiteKind::ln2_normalized:
      return normalized(post ? "the stream after the MLP's addition" : "the MLP's input stream");
    case SiteKind::mlp_pre:
      return c.gated ? "gate projection of the MLP, before the activation"
                     : "hidden units of the MLP, before the activation";
    case SiteKind::mlp_pre_linear:
      return "up projection of the gated MLP";
    case SiteKind::mlp_post:
      return c.gated ? "activated gate times up projection, entering the down projection"
                     : "activated hidden units, entering the down projection";
    case SiteKind::ln2_post_scale:
      return scale("on the MLP's output");
    case SiteKind::ln2_post_normalized:
      return normalized("the MLP's output");
    case SiteKind::mlp_out:
      return c.norm_place == NormPlace::sandwich
                 ? "MLP output after its own norm: the vector added to the residual stream"
                 : "MLP output with its bias: the vector added to the residual stream";
    case SiteKind::resid_post:
      return post ? "residual stream after the MLP's addition, before its norm"
                  : "residual stream leaving the block";
    case SiteKind::ln_final_scale:
      return scale("before the unembedding");
    case SiteKind::ln_final_normalized:
      return normalized(c.head_dense ? "the output of the head's dense layer"
                                     : "the last block's output");
  }
  return {};
}

std::vector<Site> all_sites(const ModelConfig& config) {
  std::vector<Site> sites;
  auto add = [&](bool in_block, std::int32_t layer, SiteKind from, SiteKind to) {
    for (const Row& r : kRows) {
      if (r.in_block == in_block && r.kind >= from && r.kind <= to && exists(r.kind, config)) {
        sites.push_back({r.kind, layer});
      }
    }
  };
  add(false, -1, SiteKind::embed, SiteKind::embed_ln_normalized);
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    add(true, layer, SiteKind::resid_pre, SiteKind::normalized_resid_post);
  }
  add(false, -1, SiteKind::ln_final_scale, SiteKind::ln_final_normalized);
  return sites;
}

Site parse_site(std::string_view name, const ModelConfig& config) {
  const std::string pattern(name);
  const std::vector<Site> found = match_sites(std::span(&pattern, 1), config);
  if (found.size() != 1) {
    fail_usage("'{}' names {} sites, one was expected; nearest: {}", name, found.size(),
               nearest(name, config));
  }
  return found.front();
}

std::vector<Site> match_sites(std::span<const std::string> patterns, const ModelConfig& config) {
  const std::vector<Site> sites = all_sites(config);
  std::vector<Site> matched;
  for (const std::string& pattern : patterns) append_matches(pattern, config, sites, matched);
  std::vector<Site> ordered;
  for (Site site : sites) {
    if (std::find(matched.begin(), matched.end(), site) != matched.end()) ordered.push_back(site);
  }
  return ordered;
}

}  // namespace lamina

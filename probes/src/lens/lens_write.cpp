// Results of the lens as datasets.

#include <fmt/format.h>

#include <set>
#include <string>

#include "lamina/core/error.h"
#include "lamina/probes/lens.h"

namespace lamina {
namespace {

std::string positions_text(const LensOptions& options) {
  if (options.positions == LensPositions::last) return "last";
  if (options.positions == LensPositions::all) return "all";
  return fmt::format("{}", fmt::join(options.position_list, ","));
}

// The text of every token id that occurs in the results: [seen_id].
void write_vocabulary(ResultFile& file, const LensResults& r, const Tokenizer& tokenizer) {
  std::set<std::int32_t> seen(r.topk_ids.begin(), r.topk_ids.end());
  for (const auto* v : {&r.token_id, &r.target}) seen.insert(v->begin(), v->end());
  seen.erase(seen.begin(), seen.lower_bound(0));
  const std::vector<std::int64_t> ids(seen.begin(), seen.end());
  std::vector<std::string> text;
  for (std::int64_t id : ids)
    text.push_back(printable_piece(tokenizer, static_cast<std::int32_t>(id)));
  file.axis("seen_id", ids);
  file.dataset("text", std::vector<std::string>{"seen_id"}, text,
               "text of every token id that occurs in these results", "");
}

}  // namespace

std::string printable_piece(const Tokenizer& tokenizer, std::int32_t id) {
  if (id < 0 || id >= tokenizer.vocab_size()) return fmt::format("<{}>", id);
  const std::string& piece = tokenizer.piece(id);
  std::string text;
  for (std::size_t i = 0; i < piece.size();) {
    const auto lead = static_cast<unsigned char>(piece[i]);
    std::size_t length = lead < 0x80    ? 1
                         : lead >= 0xF0 ? 4
                         : lead >= 0xE0 ? 3
                         : lead >= 0xC2 ? 2
                                        : 0;
    if (lead > 0xF4 || i + length > piece.size()) length = 0;
    for (std::size_t j = 1; j < length; ++j) {
      if ((static_cast<unsigned char>(piece[i + j]) & 0xC0) != 0x80) length = 0;
    }
    if (length == 1 && lead == '\n') {
      text += "⏎";
    } else if (length == 0 || lead < 0x20 || lead == 0x7F) {
      text += fmt::format("<0x{:02X}>", lead);
    } else {
      text.append(piece, i, length);
    }
    i += length == 0 ? 1 : length;
  }
  return text;
}

void LogitLens::write(ResultFile& file) const {
  using Names = std::vector<std::string>;
  const LensResults& r = results_;
  file.setting("positions", positions_text(options_));
  file.setting("top_k", r.k);
  file.setting("overlap_k", options_.overlap_k);
  file.setting("translators", std::string(options_.translators ? "yes" : "no"));

  Names labels, names;
  for (Site site : r.sites) {
    labels.push_back(lens_label(site));
    names.push_back(site_name(site));
  }
  std::vector<std::int64_t> token(static_cast<std::size_t>(r.tokens()));
  for (std::size_t i = 0; i < token.size(); ++i) token[i] = static_cast<std::int64_t>(i);
  std::vector<std::int64_t> k(static_cast<std::size_t>(r.k));
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<std::int64_t>(i);
  file.axis("prompt", r.prompt_ids);
  file.axis("token", token);
  file.axis("layer", labels);
  file.axis("k", k);

  const Names per_token{"token"}, per_layer{"layer"}, cell{"token", "layer"};
  const Names entry{"token", "layer", "k"};
  file.dataset("site", per_layer, names, "the site that each layer entry reads", "");
  file.dataset("token_prompt", per_token, r.prompt, "index of the token's prompt", "");
  file.dataset("token_position", per_token, r.position, "position within the prompt, from 0", "");
  file.dataset("token_id", per_token, r.token_id, "id of the token read", "");
  file.dataset("target_id", per_token, r.target, "id expected next; -1 if nobody knows", "");
  file.dataset("exit_layer", per_token, r.exit_layer,
               "first layer from which the most probable token never changes again, along the "
               "residual stream; -1 = the embedding already names it",
               "layer");

  file.dataset("topk_ids", entry, r.topk_ids, "most probable ids, ties by smaller id", "");
  file.dataset("topk_logprobs", entry, r.topk_logprobs, "their log-probabilities", "nats");
  file.dataset("target_rank", cell, r.target_rank, "rank of the target, 1 = first; -1 = no target",
               "");
  file.dataset("target_logprob", cell, r.target_logprob, "log-probability of the target", "nats");
  file.dataset("entropy", cell, r.entropy, "entropy of the decoded distribution", "bits");
  file.dataset("kl_to_final", cell, r.kl_to_final, "KL(p_layer || p_final)", "nats");
  file.dataset("kl_from_final", cell, r.kl_from_final, "KL(p_final || p_layer)", "nats");
  file.dataset("overlap", cell, r.overlap,
               fmt::format("share of the final {} most probable ids among the layer's own",
                           options_.overlap_k),
               "");

  const LensAverages a = average(r);
  file.setting("tokens", a.tokens);
  file.setting("targets", a.targets);
  file.dataset("agreement", per_layer, a.agreement,
               "early exit: share of tokens whose most probable id is the final one", "");
  file.dataset("accuracy", per_layer, a.accuracy,
               "early exit: share of tokens with a target whose most probable id is the target",
               "");
  file.dataset("mean_target_logprob", per_layer, a.target_logprob, "mean over tokens with a target",
               "nats");
  file.dataset("mean_entropy", per_layer, a.entropy, "mean over tokens", "bits");
  file.dataset("mean_kl_to_final", per_layer, a.kl_to_final, "mean over tokens", "nats");
  file.dataset("mean_kl_from_final", per_layer, a.kl_from_final, "mean over tokens", "nats");
  file.dataset("mean_overlap", per_layer, a.overlap, "mean over tokens", "");

  if (tokenizer_) write_vocabulary(file, r, *tokenizer_);
}

}  // namespace lamina

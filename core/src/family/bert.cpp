// BERT, RoBERTa and DistilBERT (transformers: models/bert, roberta, distilbert): encoders with
// post-norm blocks. The head follows from `architectures`, since one checkpoint name serves several
// models. Only token type 0 is used.

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "family/family_parts.h"
#include "family/registry.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

// The names of the labels by number: id2label, "LABEL_i" if it has none, two labels by default.
std::vector<std::string> read_labels(ConfigReader& r) {
  const nlohmann::json* names = r.object("id2label");
  if (names == nullptr) {
    const std::int64_t count = r.integer("num_labels", 2);
    if (count < 1 || count > 65536) r.refuse("num_labels", "expected 1 to 65536");
    std::vector<std::string> labels;
    for (std::int64_t i = 0; i < count; ++i) labels.push_back(fmt::format("LABEL_{}", i));
    return labels;
  }
  if (names->empty() || names->size() > 65536) {
    r.refuse("id2label", fmt::format("{} labels; expected 1 to 65536", names->size()));
  }
  std::vector<std::string> labels(names->size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto found = names->find(std::to_string(i));
    if (found == names->end() || !found->is_string()) {
      r.refuse("id2label", fmt::format("no text for label {} of {}", i, labels.size()));
    }
    labels[i] = found->get<std::string>();
  }
  return labels;
}

// "BertForSequenceClassification", …; without `architectures` the model is the bare encoder.
Head read_head(ConfigReader& r, std::string_view name) {
  const std::vector<std::string> all = r.texts("architectures");
  if (all.empty()) return Head::none;
  const std::string& one = all.front();
  const std::string model(name);
  if (one == model + "Model") return Head::none;
  if (one == model + "ForSequenceClassification") return Head::classifier;
  if (one == model + "ForMaskedLM" || one == model + "ForPreTraining") return Head::language;
  r.refuse("architectures", fmt::format("known: {0}Model, {0}ForMaskedLM, {0}ForPreTraining, "
                                        "{0}ForSequenceClassification",
                                        model));
}

// What the three share; `head_act` is the activation in front of the words.
void encoder(ModelConfig& c, ConfigReader& r, std::string_view name, double eps) {
  c.norm = NormKind::layer;
  c.norm_place = NormPlace::post;
  c.norm_eps = eps;
  c.positions = Positions::learned;
  c.causal = false;
  c.attn_scale = 1.0 / std::sqrt(static_cast<double>(c.d_head));
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.embed_norm = true;
  c.head = read_head(r, name);
  const bool tied = r.boolean("tie_word_embeddings", true);
  c.final_norm = c.head == Head::language;  // of the transform in front of the words
  c.head_dense = c.head_bias = c.head != Head::none;
  if (c.head == Head::language) {
    c.tied = tied;
    c.head_act = c.act;
  } else if (c.head == Head::classifier) {
    c.labels = read_labels(r);
    c.head_act = Activation::tanh;
  }
  if (r.text("position_embedding_type", "absolute") != "absolute") {
    r.refuse("position_embedding_type", "only \"absolute\" is supported");
  }
  r.only("is_decoder", false);
  r.only("add_cross_attention", false);
  // Of a pooler that no release uses; how the loss would be taken.
  r.ignore({"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
            "pooler_size_per_head", "pooler_type", "directionality", "problem_type", "num_labels",
            "gradient_checkpointing", "label2id", "id2label"});
}

}  // namespace

ModelConfig read_bert(ConfigReader& r) {
  ModelConfig c = read_sizes(r, "bert", 0, 0);
  c.act = read_activation(r, "hidden_act", "gelu");
  c.n_types = positive(r, "type_vocab_size", 2);
  encoder(c, r, "Bert", r.number("layer_norm_eps", 1e-12));
  return c;
}

ModelConfig read_roberta(ConfigReader& r) {
  ModelConfig c = read_sizes(r, "roberta", 0, 0);
  c.act = read_activation(r, "hidden_act", "gelu");
  c.n_types = positive(r, "type_vocab_size", 2);
  encoder(c, r, "Roberta", r.number("layer_norm_eps", 1e-12));
  // Positions count from the padding id + 1, which is 1 in every release; the rows before are not
  // used.
  if (r.integer("pad_token_id", 1) != 1) r.refuse("pad_token_id", "only 1 is supported");
  c.n_ctx -= 2;
  if (c.n_ctx < 1) r.refuse("max_position_embeddings", "expected 3 or more");
  if (c.head == Head::language) c.head_act = Activation::gelu;  // whatever the blocks have
  return c;
}

ModelConfig read_distilbert(ConfigReader& r) {
  ModelConfig c;
  c.family = "distilbert";
  c.n_layers = r.integer("n_layers", 6);
  if (c.n_layers < 1 || c.n_layers > 4096) r.refuse("n_layers", "expected 1 to 4096");
  c.d_model = r.integer("dim", 768);
  c.n_heads = c.n_kv_heads = r.integer("n_heads", 12);
  if (c.n_heads < 1 || c.d_model % c.n_heads != 0) {
    r.refuse("n_heads", fmt::format("dim = {} must be a multiple of it", c.d_model));
  }
  c.d_head = c.d_model / c.n_heads;
  c.d_mlp = positive(r, "hidden_dim", 3072);
  c.d_vocab = r.integer("vocab_size", 30522);
  c.n_ctx = r.integer("max_position_embeddings", 512);
  c.layers.resize(static_cast<std::size_t>(c.n_layers));
  c.act = read_activation(r, "activation", "gelu");
  encoder(c, r, "DistilBert", 1e-12);
  if (c.head == Head::classifier) c.head_act = Activation::relu;
  // The table is in the file either way; the flag says how it was first filled.
  r.ignore({"sinusoidal_pos_embds", "attention_dropout", "seq_classif_dropout", "qa_dropout",
            "tie_weights_"});
  return c;
}

namespace {

// BERT's and RoBERTa's blocks; old checkpoints call a norm's weight and bias gamma and beta.
constexpr std::array kBlocks = std::to_array<TensorRule>({
    {"embed", "{p}embeddings.word_embeddings.weight"},
    {"type_embed", "{p}embeddings.token_type_embeddings.weight"},
    {"embed_norm.w", "{p}embeddings.LayerNorm.weight"},
    {"embed_norm.w", "{p}embeddings.LayerNorm.gamma"},
    {"embed_norm.b", "{p}embeddings.LayerNorm.bias"},
    {"embed_norm.b", "{p}embeddings.LayerNorm.beta"},
    {"L.q", "{p}encoder.layer.{l}.attention.self.query.weight"},
    {"L.q.b", "{p}encoder.layer.{l}.attention.self.query.bias"},
    {"L.k", "{p}encoder.layer.{l}.attention.self.key.weight"},
    {"L.k.b", "{p}encoder.layer.{l}.attention.self.key.bias"},
    {"L.v", "{p}encoder.layer.{l}.attention.self.value.weight"},
    {"L.v.b", "{p}encoder.layer.{l}.attention.self.value.bias"},
    {"L.o", "{p}encoder.layer.{l}.attention.output.dense.weight"},
    {"L.o.b", "{p}encoder.layer.{l}.attention.output.dense.bias"},
    {"L.ln1.w", "{p}encoder.layer.{l}.attention.output.LayerNorm.weight"},
    {"L.ln1.w", "{p}encoder.layer.{l}.attention.output.LayerNorm.gamma"},
    {"L.ln1.b", "{p}encoder.layer.{l}.attention.output.LayerNorm.bias"},
    {"L.ln1.b", "{p}encoder.layer.{l}.attention.output.LayerNorm.beta"},
    {"L.in", "{p}encoder.layer.{l}.intermediate.dense.weight"},
    {"L.in.b", "{p}encoder.layer.{l}.intermediate.dense.bias"},
    {"L.out", "{p}encoder.layer.{l}.output.dense.weight"},
    {"L.out.b", "{p}encoder.layer.{l}.output.dense.bias"},
    {"L.ln2.w", "{p}encoder.layer.{l}.output.LayerNorm.weight"},
    {"L.ln2.w", "{p}encoder.layer.{l}.output.LayerNorm.gamma"},
    {"L.ln2.b", "{p}encoder.layer.{l}.output.LayerNorm.bias"},
    {"L.ln2.b", "{p}encoder.layer.{l}.output.LayerNorm.beta"},
});
constexpr std::array kDistilBlocks = std::to_array<TensorRule>({
    {"embed", "{p}embeddings.word_embeddings.weight"},
    {"pos_embed", "{p}embeddings.position_embeddings.weight"},
    {"embed_norm.w", "{p}embeddings.LayerNorm.weight"},
    {"embed_norm.b", "{p}embeddings.LayerNorm.bias"},
    {"L.q", "{p}transformer.layer.{l}.attention.q_lin.weight"},
    {"L.q.b", "{p}transformer.layer.{l}.attention.q_lin.bias"},
    {"L.k", "{p}transformer.layer.{l}.attention.k_lin.weight"},
    {"L.k.b", "{p}transformer.layer.{l}.attention.k_lin.bias"},
    {"L.v", "{p}transformer.layer.{l}.attention.v_lin.weight"},
    {"L.v.b", "{p}transformer.layer.{l}.attention.v_lin.bias"},
    {"L.o", "{p}transformer.layer.{l}.attention.out_lin.weight"},
    {"L.o.b", "{p}transformer.layer.{l}.attention.out_lin.bias"},
    {"L.ln1.w", "{p}transformer.layer.{l}.sa_layer_norm.weight"},
    {"L.ln1.b", "{p}transformer.layer.{l}.sa_layer_norm.bias"},
    {"L.in", "{p}transformer.layer.{l}.ffn.lin1.weight"},
    {"L.in.b", "{p}transformer.layer.{l}.ffn.lin1.bias"},
    {"L.out", "{p}transformer.layer.{l}.ffn.lin2.weight"},
    {"L.out.b", "{p}transformer.layer.{l}.ffn.lin2.bias"},
    {"L.ln2.w", "{p}transformer.layer.{l}.output_layer_norm.weight"},
    {"L.ln2.b", "{p}transformer.layer.{l}.output_layer_norm.bias"},
});

template <std::size_t N, std::size_t M>
constexpr std::array<TensorRule, N + M> join(const std::array<TensorRule, N>& a,
                                             const std::array<TensorRule, M>& b) {
  std::array<TensorRule, N + M> out{};
  std::copy(a.begin(), a.end(), out.begin());
  std::copy(b.begin(), b.end(), out.begin() + N);
  return out;
}

constexpr std::array kBertRules =
    join(kBlocks, std::to_array<TensorRule>({
                      {"pos_embed", "{p}embeddings.position_embeddings.weight"},
                      {"head", "cls.predictions.transform.dense.weight"},
                      {"head.b", "cls.predictions.transform.dense.bias"},
                      {"ln_final.w", "cls.predictions.transform.LayerNorm.weight"},
                      {"ln_final.w", "cls.predictions.transform.LayerNorm.gamma"},
                      {"ln_final.b", "cls.predictions.transform.LayerNorm.bias"},
                      {"ln_final.b", "cls.predictions.transform.LayerNorm.beta"},
                      {"unembed", "cls.predictions.decoder.weight"},
                      {"unembed.b", "cls.predictions.bias"},
                  }));
constexpr std::array kBertClassifierRules =
    join(kBlocks, std::to_array<TensorRule>({
                      {"pos_embed", "{p}embeddings.position_embeddings.weight"},
                      {"head", "{p}pooler.dense.weight"},
                      {"head.b", "{p}pooler.dense.bias"},
                      {"unembed", "classifier.weight"},
                      {"unembed.b", "classifier.bias"},
                  }));
constexpr std::array kRobertaRules =
    join(kBlocks, std::to_array<TensorRule>({
                      {"pos_embed", "{p}embeddings.position_embeddings.weight", Form::rows_from_2},
                      {"head", "lm_head.dense.weight"},
                      {"head.b", "lm_head.dense.bias"},
                      {"ln_final.w", "lm_head.layer_norm.weight"},
                      {"ln_final.b", "lm_head.layer_norm.bias"},
                      {"unembed", "lm_head.decoder.weight"},
                      {"unembed.b", "lm_head.bias"},
                  }));
constexpr std::array kRobertaClassifierRules =
    join(kBlocks, std::to_array<TensorRule>({
                      {"pos_embed", "{p}embeddings.position_embeddings.weight", Form::rows_from_2},
                      {"head", "classifier.dense.weight"},
                      {"head.b", "classifier.dense.bias"},
                      {"unembed", "classifier.out_proj.weight"},
                      {"unembed.b", "classifier.out_proj.bias"},
                  }));
constexpr std::array kDistilRules =
    join(kDistilBlocks, std::to_array<TensorRule>({
                            {"head", "vocab_transform.weight"},
                            {"head.b", "vocab_transform.bias"},
                            {"ln_final.w", "vocab_layer_norm.weight"},
                            {"ln_final.b", "vocab_layer_norm.bias"},
                            {"unembed", "vocab_projector.weight"},
                            {"unembed.b", "vocab_projector.bias"},
                        }));
constexpr std::array kDistilClassifierRules =
    join(kDistilBlocks, std::to_array<TensorRule>({
                            {"head", "pre_classifier.weight"},
                            {"head.b", "pre_classifier.bias"},
                            {"unembed", "classifier.weight"},
                            {"unembed.b", "classifier.bias"},
                        }));

constexpr std::string_view kBertPrefixes[] = {"bert.", ""};
constexpr std::string_view kRobertaPrefixes[] = {"roberta.", ""};
constexpr std::string_view kDistilPrefixes[] = {"distilbert.", ""};
// A pooler serves classifiers only; a head of pretraining may be left in a classifier's file, and
// the bias of the words stands under two names.
constexpr std::string_view kIgnored[] = {"{p}embeddings.position_ids",   "{p}pooler.dense.weight",
                                         "{p}pooler.dense.bias",         "cls.seq_relationship.*",
                                         "cls.predictions.decoder.bias", "lm_head.decoder.bias"};
constexpr std::string_view kClassifierIgnored[] = {"{p}embeddings.position_ids",
                                                   "{p}pooler.dense.weight",
                                                   "{p}pooler.dense.bias",
                                                   "cls.*",
                                                   "lm_head.*",
                                                   "vocab_*"};

}  // namespace

const TensorTable kBertTensors = {kBertRules, kBertPrefixes, kIgnored};
const TensorTable kBertClassifierTensors = {kBertClassifierRules, kBertPrefixes,
                                            kClassifierIgnored};
const TensorTable kRobertaTensors = {kRobertaRules, kRobertaPrefixes, kIgnored};
const TensorTable kRobertaClassifierTensors = {kRobertaClassifierRules, kRobertaPrefixes,
                                               kClassifierIgnored};
const TensorTable kDistilBertTensors = {kDistilRules, kDistilPrefixes, kIgnored};
const TensorTable kDistilBertClassifierTensors = {kDistilClassifierRules, kDistilPrefixes,
                                                  kClassifierIgnored};

}  // namespace lamina

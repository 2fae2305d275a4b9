// verify_recording finds a single wrong value, names the check and the place, and finds nothing in
// sound recordings of every stored type.

#include "lamina/core/verify.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "cli/command.h"
#include "lamina/core/error.h"

namespace lamina::test {
namespace {

class Verify : public Cli {
 protected:
  Verify()
      : model_(Model::load(LAMINA_SOURCE_DIR "/data/organism")),
        forward_(model_),
        prompts_(read_prompts(kPrompts, model_.tokenizer(), model_.config().d_vocab)) {
    prompts_.resize(5);
  }

  using Change = std::function<void(ActivationBlock&)>;
  Recording record(StoreType store, const Change& change = {}) {
    const auto path = folder() / ("run" + std::to_string(count_++) + ".h5");
    RecordingHeader header;
    header.model_sha256 = model_.sha256();
    header.model_id = "organism";
    header.config = model_.config();
    header.prompts_sha256 = "of these";
    header.store = store;
    header.sites = all_sites(model_.config());
    header.topk = 3;
    header.total_prompts = static_cast<std::int64_t>(prompts_.size());
    RecordingWriter writer(path, header, prompts_);
    LiveOptions options;
    options.topk = 3;
    run_live(forward_, prompts_, header.sites, options, [&](const ActivationBlock& block) {
      ActivationBlock copy = block;
      if (change) change(copy);
      writer.append(copy);
    });
    writer.finish();
    return Recording::open(path);
  }
  // Adds `delta` to one value of a token site.
  static Change add(Site site, std::int64_t token, std::int64_t column, float delta) {
    return [=](ActivationBlock& block) {
      auto& values = block.sites.at(ActivationBlock::site_key(site));
      values.values[static_cast<std::size_t>(token * values.shape.row() + column)] += delta;
    };
  }
  // Names of the failed checks, without and with the model.
  std::vector<std::string> failed(const VerifyReport& report) {
    std::vector<std::string> names;
    for (const VerifyCheck& check : report.checks) {
      if (check.passed()) continue;
      names.push_back(check.name);
      places_.push_back(check.place);
    }
    return names;
  }
  using Names = std::vector<std::string>;
  bool place_seen(const std::string& text) const {
    return std::any_of(places_.begin(), places_.end(), [&](const std::string& place) {
      return place.find(text) != std::string::npos;
    });
  }

  const Names again_ = {"stored values = the model run again"};
  Model model_;
  Forward forward_;
  std::vector<Prompt> prompts_;
  std::vector<std::string> places_;
  int count_ = 0;
};

TEST_F(Verify, SoundRecordingsPass) {
  for (StoreType store : {StoreType::f32, StoreType::f16, StoreType::bf16}) {
    const Recording recording = record(store);
    for (Forward* forward : {static_cast<Forward*>(nullptr), &forward_}) {
      const VerifyReport report = verify_recording(recording, forward);
      EXPECT_TRUE(report.passed()) << store_type_name(store);
      EXPECT_EQ(failed(report), Names());
      EXPECT_EQ(report.checks.size(), forward != nullptr ? 11U : 7U);
      for (const VerifyCheck& check : report.checks) {
        // This model has no learned positions, which only the model can say.
        const bool needs_model = check.name.starts_with("resid_pre of block 0");
        EXPECT_EQ(check.compared > 0, forward != nullptr || !needs_model) << check.name;
        EXPECT_LE(check.error, check.allowed) << check.name;
      }
    }
  }
}

TEST_F(Verify, AWrongStreamIsFound) {
  // 1e-4 is far above the rounding of values of this size, and far below the values themselves.
  const Recording post = record(StoreType::f32, add({SiteKind::resid_post, 2}, 7, 5, 1e-4f));
  EXPECT_EQ(failed(verify_recording(post)), (Names{"each block begins where the last ended",
                                                   "resid_post = resid_pre + attn_out + mlp_out"}));
  EXPECT_TRUE(place_seen("blocks.2.hook_resid_post, prompt 0 'ioi-example', token 7, column 5"));

  const Recording mid = record(StoreType::f32, add({SiteKind::resid_mid, 4}, 0, 0, 1e-4f));
  EXPECT_EQ(failed(verify_recording(mid)), Names{"resid_mid = resid_pre + attn_out"});

  const Recording last = record(StoreType::f32, add({SiteKind::resid_post, 5}, 20, 127, 1e-3f));
  EXPECT_EQ(failed(verify_recording(last)), Names{"resid_post = resid_pre + attn_out + mlp_out"});
  EXPECT_TRUE(place_seen("prompt 1 'greater_than-example', token 5, column 127"));

  const Recording embed = record(StoreType::f32, add({SiteKind::embed, -1}, 3, 1, 1e-3f));
  EXPECT_EQ(failed(verify_recording(embed)),
            Names());  // nothing to compare with, without the model
  EXPECT_EQ(failed(verify_recording(embed, &forward_)),
            (Names{"resid_pre of block 0 = embed + pos_embed", again_[0]}));
}

TEST_F(Verify, WrongHeadsAreFoundWithTheModel) {
  const Recording z = record(StoreType::f32, add({SiteKind::z, 1}, 9, 33, 0.05f));
  EXPECT_EQ(failed(verify_recording(z)), Names());
  EXPECT_EQ(failed(verify_recording(z, &forward_)),
            (Names{"attn_out = output projection of z", again_[0]}));
  const Recording result = record(StoreType::f32, add({SiteKind::result, 1}, 9, 200, 0.05f));
  EXPECT_EQ(failed(verify_recording(result, &forward_)),
            (Names{"attn_out = sum of head results + bias", again_[0]}));
}

TEST_F(Verify, AnyOtherSiteIsFoundByRunningAgain) {
  const Recording q = record(StoreType::f32, add({SiteKind::q, 3}, 4, 17, 1e-6f));
  EXPECT_EQ(failed(verify_recording(q)), Names());
  EXPECT_EQ(failed(verify_recording(q, &forward_)), again_);
  EXPECT_TRUE(place_seen("blocks.3.attn.hook_q, prompt 0 'ioi-example', token 4, column 17"));
  const Recording half = record(StoreType::f16, add({SiteKind::mlp_post, 3}, 4, 17, 0.1f));
  EXPECT_EQ(failed(verify_recording(half, &forward_)), again_);
}

TEST_F(Verify, ValuesThatAreNoNumbersAreFound) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Recording key = record(StoreType::f32, add({SiteKind::k, 0}, 2, 3, nan));
  EXPECT_EQ(failed(verify_recording(key)), Names{"every value is finite"});
  EXPECT_TRUE(place_seen("blocks.0.attn.hook_k, prompt 0 'ioi-example', token 2, column 3"));
  const Recording infinite = record(StoreType::f32, [](ActivationBlock& block) {
    block.sites.at(ActivationBlock::site_key({SiteKind::attn_scores, 0})).values[0] =
        std::numeric_limits<float>::infinity();
  });
  EXPECT_EQ(failed(verify_recording(infinite)), Names{"every value is finite"});
}

TEST_F(Verify, WrongPatternsAreFound) {
  const auto change = [](std::size_t at, float delta) {
    return [=](ActivationBlock& block) {
      block.sites.at(ActivationBlock::site_key({SiteKind::pattern, 2})).values[at] += delta;
    };
  };
  const Names pattern = {"attention patterns sum to 1 over the visible keys"};
  EXPECT_EQ(failed(verify_recording(record(StoreType::f32, change(0, -1e-4f)))), pattern);
  // Attention to a later token, taken from nowhere visible: the sum alone would not show 0 + NaN.
  EXPECT_EQ(failed(verify_recording(record(StoreType::f32, change(1, 1e-9f)))), pattern);
}

TEST_F(Verify, WrongLogitsAreFound) {
  const Names order = {"top logits are ordered log-probabilities of the vocabulary"};
  const Recording swapped = record(StoreType::f32, [](ActivationBlock& block) {
    std::swap(block.logits.topk_logprobs[3], block.logits.topk_logprobs[4]);
  });
  EXPECT_EQ(failed(verify_recording(swapped)), order);
  const Recording outside =
      record(StoreType::f32, [](ActivationBlock& block) { block.logits.topk_ids[5] = 1449; });
  EXPECT_EQ(failed(verify_recording(outside)), order);
  const Recording shifted = record(
      StoreType::f32, [](ActivationBlock& block) { block.logits.target_logprob[1] -= 1e-5f; });
  EXPECT_EQ(failed(verify_recording(shifted)), Names());
  EXPECT_EQ(failed(verify_recording(shifted, &forward_)),
            Names{"stored log-probabilities = the model run again"});
}

TEST_F(Verify, AnotherModelIsRefused) {
  const Recording recording = record(StoreType::f32);
  const Model other = Model::load(LAMINA_SOURCE_DIR "/data/planted/majority");
  Forward forward(other);
  EXPECT_THROW(verify_recording(recording, &forward), Error);
}

}  // namespace
}  // namespace lamina::test

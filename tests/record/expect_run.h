#pragma once

#include <gtest/gtest.h>

#include "fake_run.h"
#include "lamina/core/dtype.h"

namespace lamina::testing {

inline float as_stored(StoreType store, float value) {
  switch (store) {
    case StoreType::f16:
      return f16_to_f32(f32_to_f16(value));
    case StoreType::bf16:
      return bf16_to_f32(f32_to_bf16(value));
    default:
      return value;
  }
}

/// Whether `part` stands in the message (or in one of the notes).
inline ::testing::AssertionResult has(const std::string& message, const std::string& part) {
  if (message.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "'" << part << "' is not in '" << message << "'";
}
inline ::testing::AssertionResult has(const std::vector<std::string>& notes,
                                      const std::string& part) {
  std::string all;
  for (const std::string& note : notes) all += note + "\n";
  return has(all, part);
}
#define EXPECT_HAS(message, part) EXPECT_TRUE(::lamina::testing::has(message, part))

/// Everything that the run's blocks hold is what the recording gives back, bit for bit.
inline void expect_equal(const FakeRun& run, const Recording& recording, std::int64_t first = 0,
                         std::int64_t last = -1) {
  if (last < 0) last = static_cast<std::int64_t>(run.prompts.size());
  ASSERT_EQ(recording.prompts().size(), static_cast<std::size_t>(last - first));
  for (std::int64_t i = first; i < last; ++i) {
    const Prompt& a = run.prompts[static_cast<std::size_t>(i)];
    const Prompt& b = recording.prompts()[static_cast<std::size_t>(i - first)];
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.text, b.text);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.given, b.given);
    EXPECT_EQ(a.target, b.target);
    EXPECT_EQ(a.labels, b.labels);
  }
  EXPECT_EQ(recording.sites(), run.header.sites);
  for (std::int64_t step : {last - first, std::int64_t{1}}) {
    for (std::int64_t p = first; p < last; p += step) {
      const ActivationBlock want = run.block(p, step);
      const ActivationBlock got = recording.read_block(run.header.sites, p - first, step);
      EXPECT_EQ(got.first_prompt, p);
      EXPECT_EQ(got.batch.ids, want.batch.ids);
      EXPECT_EQ(got.batch.offsets, want.batch.offsets);
      for (Site site : run.header.sites) {
        std::vector<float> expected = want.at(site).values;
        for (float& value : expected) value = as_stored(run.header.store, value);
        EXPECT_TRUE(same_bits(got.at(site).values, expected)) << site_name(site) << " " << p;
        EXPECT_EQ(got.at(site).offsets, want.at(site).offsets) << site_name(site);
      }
      EXPECT_EQ(got.logits.topk_ids, want.logits.topk_ids);
      EXPECT_TRUE(same_bits(got.logits.topk_logprobs, want.logits.topk_logprobs));
      EXPECT_TRUE(same_bits(got.logits.target_logprob, want.logits.target_logprob));
    }
  }
}

}  // namespace lamina::testing

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lamina/circuits/feature_stats.h"
#include "lamina/circuits/feature_weights.h"
#include "lamina/circuits/transcoder.h"
#include "lamina/probes/probe.h"

namespace lamina {

/// Where some features fire: their strongest places with what stands around them, and how strongly
/// they fire there token by token.
class FeatureContexts : public Probe {
 public:
  /// `features`: what dictionary each is of, and its name. `dictionaries` stay valid. `model` may
  /// be nullptr if no dictionary reads norm weights.
  struct Feature {
    std::size_t dictionary = 0;
    Hop name;
  };
  FeatureContexts(std::vector<const Transcoder*> dictionaries, std::vector<Feature> features,
                  const Model* model, std::int64_t skip);
  std::string name() const override { return "paths_contexts"; }
  std::vector<Site> sites(const ModelConfig& config) const override;
  std::unique_ptr<Probe> fresh() const override;
  void observe(const ActivationBlock& block) override;
  void merge(Probe& other) override;
  void write(ResultFile& file) const override;

  struct Place {
    std::int64_t token = 0;  // of SeenTokens
    float value = 0;
  };
  /// The `count` strongest places of a feature, strongest first, ties by the earlier token;
  /// `every_place`: also several of one prompt, otherwise the strongest of each.
  std::vector<Place> top(std::size_t feature, std::int64_t count, bool every_place) const;
  /// The activation at a token, 0 if it does not fire there.
  float at(std::size_t feature, std::int64_t token) const;
  /// Tokens at which a feature fires.
  std::int64_t count(std::size_t feature) const { return std::ssize(places_.at(feature)); }
  const SeenTokens& seen() const { return seen_; }
  std::span<const Feature> features() const { return features_; }
  std::int64_t tokens() const { return counted_; }

  /// What write() writes.
  struct Output {
    const Tokenizer* tokenizer = nullptr;
    std::int64_t examples = 10, context = 10;
    bool every_place = false;
  } output;

 private:
  std::vector<const Transcoder*> dictionaries_;
  std::vector<Feature> features_;
  const Model* model_;
  std::int64_t skip_;
  std::int64_t counted_ = 0;
  SeenTokens seen_;
  std::vector<std::vector<Place>> places_;  // [feature], tokens ascending
};

}  // namespace lamina

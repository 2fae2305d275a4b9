#pragma once

#include "lamina/circuits/trainer.h"
#include "shuffle.h"

namespace lamina {

struct TrainingRun::Impl {
  const Model& model;
  std::vector<TranscoderConfig> configs;
  TrainingOptions options;
  std::vector<DictionaryPlace> places;       // columns of the buffer, without repeats
  std::vector<std::size_t> inputs, outputs;  // column of each dictionary
  std::vector<TranscoderTrainer> trainers;
  training::ShuffleBuffer buffer;
  std::vector<TrainingStep> curve;  // [step, dictionary]
  std::int64_t position = 0;
  bool flushing = false;
  Progress progress;
  std::filesystem::path checkpoint_path;
  std::int64_t checkpoint_every = 0;
  std::map<std::string, std::string> identity;
  std::vector<std::vector<float>> batch;  // [column] of the step

  std::int64_t steps() const { return trainers.front().steps(); }
  bool done() const { return steps() >= options.steps; }
  void drain();
  void save();
  void load(const std::filesystem::path& path);
};

}  // namespace lamina

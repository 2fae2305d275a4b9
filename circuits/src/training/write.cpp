#include "lamina/core/result_file.h"
#include "rows.h"
#include "run_impl.h"

namespace lamina {

using training::size;

namespace {

void write_settings(const TrainingOptions& o, ResultFile& file) {
  file.setting("loss", std::string(training_loss_name(o.loss)));
  file.setting("penalty", std::string(sparsity_penalty_name(o.penalty)));
  file.setting("lambda", o.lambda);
  file.setting("lambda_warmup_steps", o.lambda_warmup);
  file.setting("tanh_scale", o.tanh_scale);
  file.setting("first_threshold", o.threshold);
  file.setting("bandwidth", o.bandwidth);
  file.setting("threshold_average", o.threshold_average);
  file.setting("dead_features", std::string(dead_features_name(o.dead)));
  file.setting("dead_window_steps", o.dead_window);
  file.setting("auxk", o.auxk);
  file.setting("auxk_weight", o.auxk_weight);
  file.setting("resample_encoder_norm", o.resample_encoder);
  file.setting("unit_decoder", std::int64_t{o.unit_decoder});
  file.setting("mean_biases", std::int64_t{o.mean_biases});
  file.setting("batch", o.batch);
  file.setting("steps_planned", o.steps);
  file.setting("optimizer", std::string("Adam"));
  file.setting("learning_rate", o.learning_rate);
  file.setting("rate_warmup_steps", o.rate_warmup);
  file.setting("rate_decay_steps", o.rate_decay);
  file.setting("beta1", o.beta1);
  file.setting("beta2", o.beta2);
  file.setting("epsilon", o.epsilon);
  file.setting("buffer_rows", o.buffer_rows);
  file.setting("skip_first", o.skip_first);
  file.setting("seed", std::to_string(o.seed));
}

}  // namespace

void TrainingRun::write(ResultFile& file) const {
  const Impl& m = *impl_;
  const std::size_t n = m.configs.size(), steps = m.curve.size() / n;
  write_settings(m.options, file);
  file.setting("tokens", m.position);
  std::vector<std::string> names, inputs, outputs, activations;
  std::vector<std::int32_t> features, k;
  for (const TranscoderConfig& c : m.configs) {
    names.push_back(c.name);
    inputs.push_back(dictionary_place_name(c.input));
    outputs.push_back(dictionary_place_name(c.output));
    activations.emplace_back(feature_activation_name(c.activation));
    features.push_back(static_cast<std::int32_t>(c.features));
    k.push_back(static_cast<std::int32_t>(c.k));
  }
  std::vector<std::int64_t> numbers(steps);
  for (std::size_t s = 0; s < steps; ++s) numbers[s] = static_cast<std::int64_t>(s) + 1;
  file.axis("dictionary", names);
  file.axis("step", numbers);
  const std::vector<std::string> each = {"dictionary"}, both = {"dictionary", "step"};
  const std::vector<std::string> along = {"step"};
  file.dataset("input", each, inputs, "place that is read; ·w: with the norm's weights", "");
  file.dataset("output", each, outputs, "place that is rebuilt", "");
  file.dataset("activation", each, activations, "what becomes of pre-activations", "");
  file.dataset("features", each, features, "features of the dictionary", "");
  file.dataset("k", each, k, "features kept per row by topk and batch_topk, else 0", "");
  const auto curve = [&](const char* name, double TrainingStep::*member, const char* description,
                         const char* units) {
    std::vector<double> values(n * steps);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t s = 0; s < steps; ++s) values[i * steps + s] = m.curve[s * n + i].*member;
    }
    file.dataset(name, both, values, description, units);
  };
  curve("loss", &TrainingStep::loss, "error + penalty + auxiliary, before the step", "");
  curve("error", &TrainingStep::error, "mean error of the batch as the loss measures it", "");
  curve("penalty", &TrainingStep::penalty, "mean sparsity penalty, lambda included", "");
  curve("auxiliary", &TrainingStep::auxiliary, "mean AuxK loss, its weight included", "");
  curve("l0", &TrainingStep::l0, "active features per row", "features");
  curve("dead_share", &TrainingStep::dead, "share of features inactive for the window", "");
  curve("explained_variance", &TrainingStep::explained_variance,
        "1 - sum of squared errors / sum of squares about the batch's mean", "");
  std::vector<double> rate(steps), lambda(steps);
  for (std::size_t s = 0; s < steps; ++s) {
    rate[s] = m.curve[s * n].learning_rate;
    lambda[s] = m.curve[s * n].lambda;
  }
  file.dataset("learning_rate_of_step", along, rate, "learning rate of the step", "");
  file.dataset("lambda_of_step", along, lambda, "lambda of the step", "");
}

}  // namespace lamina

// Results of the inflection analysis as datasets.

#include <fmt/format.h>

#include "lamina/probes/inflection.h"

namespace lamina {

void write_inflection(ResultFile& file, const InflectionResults& r,
                      const InflectionOptions& options) {
  using Names = std::vector<std::string>;
  const InflectionRun& first = r.runs.front();
  const bool lossy = r.loss != InflectionLoss::none;
  file.setting("loss", std::string(inflection_loss_name(r.loss)));
  file.setting("label", options.label);
  file.setting("weight", options.weight);
  file.setting("gradient", std::string(options.batch_gradient ? "batch" : "token"));
  file.setting("band_share", options.band);
  file.setting("components", options.components);
  file.setting("variance", options.variance);
  file.setting("skip", options.skip);
  file.setting("batch_tokens", options.batch_tokens);
  file.setting("tokens", first.tokens);
  file.setting("batches", first.batches);
  file.setting("predicted", first.predicted);

  Names models, stream_names = {"embed"};
  std::vector<std::int64_t> layers, heads;
  for (const InflectionRun& run : r.runs) {
    models.push_back(fmt::format("{}: {}", models.size(), run.model_id));
  }
  for (std::int64_t l = 0; l < r.n_layers; ++l) {
    layers.push_back(l);
    stream_names.push_back(std::to_string(l));
  }
  for (std::int64_t h = 0; h < r.n_heads; ++h) heads.push_back(h);
  file.axis("model", models);
  file.axis("layer", layers);
  file.axis("stream", stream_names);
  file.axis("head", heads);

  using Field = std::vector<double> InflectionRun::*;
  const auto write = [&](std::string_view name, const Names& dimensions, Field field,
                         std::string_view description, std::string_view units) {
    std::vector<double> all;
    for (const InflectionRun& run : r.runs) {
      all.insert(all.end(), (run.*field).begin(), (run.*field).end());
    }
    file.dataset(name, dimensions, all, description, units);
  };
  const Names per_model{"model"}, layer{"model", "layer"}, head{"model", "layer", "head"};
  const Names stream{"model", "stream"};
  write("entropy", layer, &InflectionRun::entropy,
        "attention entropy, mean over heads and query tokens", "nats");
  write("entropy_normalized", layer, &InflectionRun::entropy_normalized,
        "attention entropy over the logarithm of the number of visible keys, queries that see one "
        "key left out, mean over heads and queries",
        "1");
  write("head_entropy", head, &InflectionRun::head_entropy,
        "attention entropy, mean over query tokens", "nats");
  write("head_entropy_normalized", head, &InflectionRun::head_entropy_normalized,
        "as entropy_normalized, per head", "1");
  if (lossy) {
    Names text;
    std::vector<double> loss, accuracy;
    std::vector<std::int32_t> band, candidate;
    for (const InflectionRun& run : r.runs) {
      loss.push_back(run.loss);
      accuracy.push_back(run.accuracy);
      band.push_back(run.band_first);
      band.push_back(run.band_last);
      std::vector<std::int32_t> place(static_cast<std::size_t>(r.n_layers), 0);
      for (std::size_t i = 0; i < run.candidates.size(); ++i) {
        place[static_cast<std::size_t>(run.candidates[i])] = static_cast<std::int32_t>(i) + 1;
      }
      candidate.insert(candidate.end(), place.begin(), place.end());
    }
    file.axis("band_end", Names{"first", "last"});
    file.dataset("loss", per_model, loss, "mean cross-entropy over the tokens or labels predicted",
                 "nats");
    file.dataset("accuracy", per_model, accuracy, "share of them that is most probable", "1");
    write("token_gradient", stream, &InflectionRun::token_gradient,
          "norm of the gradient of the summed loss at the stream behind the layer (embed: entering "
          "layer 0), mean over tokens",
          "nats");
    write("batch_gradient", stream, &InflectionRun::batch_gradient,
          "norm of the gradient of a batch's mean loss at the streams of all its tokens, mean over "
          "batches",
          "nats");
    write(
        "layer_gradient", layer, &InflectionRun::layer_gradient,
        "norm of the gradient of a batch's mean loss with respect to all parameters of the layer, "
        "mean over batches",
        "nats");
    write("low_entropy", layer, &InflectionRun::low_entropy,
          "-entropy scaled to 0 to 1 over layers", "1");
    write("low_gradient", layer, &InflectionRun::low_gradient,
          "-log gradient scaled to 0 to 1 over layers", "1");
    write("ski", layer, &InflectionRun::score,
          "saturation score: weight * low_entropy + (1 - weight) * low_gradient", "1");
    file.dataset("candidate", layer, candidate,
                 "rank of the layer among the local maxima of ski, 1 = highest; 0 = none", "1");
    file.dataset("band", Names{"model", "band_end"}, band,
                 "layers around the peak of ski that score at least band_share of it", "layer");
    // Both models have the same sizes, but may differ in their biases and norms.
    for (std::size_t m = 0; m < r.runs.size(); ++m) {
      const InflectionRun& run = r.runs[m];
      const std::string tail = m == 0 ? "" : "_against";
      const Names parameter{"parameter" + tail};
      file.axis("parameter" + tail, run.parameters);
      file.dataset("parameter_layer" + tail, parameter, run.parameter_layer,
                   "layer of the tensor, -1 outside the layers", "layer");
      file.dataset("parameter_gradient" + tail, parameter, run.parameter_gradient,
                   "norm of the gradient of a batch's mean loss with respect to the tensor, mean "
                   "over batches",
                   "nats");
    }
  }
  if (r.delta_cka.empty()) return;
  const Names one{"stream"};
  file.dataset("delta_cka", one, r.delta_cka,
               "1 - linear CKA of the two models in their shared principal components", "1");
  file.dataset("full_delta_cka", one, r.full_delta_cka,
               "1 - linear CKA of the two models in all dimensions", "1");
  file.dataset("basis_components", one, r.components, "principal components of the shared basis",
               "1");
  file.dataset("basis_variance", one, r.kept_variance,
               "share of the sum of squares of both that the basis holds", "1");
}

}  // namespace lamina

#include "lamina/core/error.h"
#include "lamina/probes/cka.h"

namespace lamina {

void write_cka(ResultFile& file, const CkaResults& r, const CkaOptions& o) {
  using Names = std::vector<std::string>;
  const bool minibatch = o.mode == CkaMode::minibatch;
  file.setting("mode", std::string(cka_mode_name(o.mode)));
  file.setting("site", o.site.empty() ? std::string("resid_post") : o.site);
  file.setting("skip", o.skip);
  file.setting("pool", std::string(cka_pool_name(o.pool)));
  file.setting("rows", r.rows);
  if (minibatch) {
    file.setting("minibatch", o.minibatch);
    file.setting("minibatches", r.minibatches);
    file.setting("rows_left_out", r.rows_left_out);
  }
  std::string notes;
  for (const std::string& note : r.notes) notes += (notes.empty() ? "" : "\n") + note;
  if (!notes.empty()) file.setting("notes", notes);
  file.axis("layer", r.layers);
  file.axis("layer_other", r.self ? r.layers : r.layers_other);

  const Names both{"layer", "layer_other"}, own{"layer"}, other{"layer_other"};
  const auto matrix = [&](const char* name, const std::vector<double>& values, const char* what) {
    if (!values.empty()) file.dataset(name, both, values, what, "");
  };
  matrix("linear", r.linear, "linear CKA");
  matrix("debiased", r.debiased,
         minibatch ? "linear CKA from unbiased HSIC averaged over minibatches"
                   : "linear CKA from unbiased HSIC");
  matrix("debiased_error", r.debiased_error,
         "standard error of debiased, infinitesimal jackknife over minibatches");
  matrix("rbf", r.rbf, "CKA with Gaussian kernels, of the sampled rows");
  matrix("rbf_debiased", r.rbf_debiased, "the same from unbiased HSIC");
  matrix("svcca", r.svcca, "mean canonical correlation of the leading principal components");
  matrix("pwcca", r.pwcca, "canonical correlations weighted by projections of `layer`");
  if (!r.rbf.empty()) {
    file.setting("sample", r.sample);
    file.setting("bandwidth", o.bandwidth);
    file.setting("sample_seed", static_cast<std::int64_t>(o.seed));
    file.dataset("sigma", own, r.sigma, "width of the Gaussian kernel", "");
    if (!r.self) file.dataset("sigma_other", other, r.sigma_other, "the same of the others", "");
  }
  if (!r.svcca.empty()) {
    file.setting("variance", o.variance);
    file.dataset("components", own, r.components, "principal components that SVCCA kept", "");
    if (!r.self) {
      file.dataset("components_other", other, r.components_other, "the same of the others", "");
    }
  }
  if (!r.pwcca.empty()) file.setting("floor", o.floor);
  if (!r.first_token.empty()) {
    file.dataset("first_token", own, r.first_token,
                 "share of the variance that the prompts' first tokens hold", "");
    if (!r.self) {
      file.dataset("first_token_other", other, r.first_token_other, "the same of the others", "");
    }
  }
}

}  // namespace lamina

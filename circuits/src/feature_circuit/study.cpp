// Names of nodes and settings, and what dictionaries a study can take.

#include <algorithm>
#include <array>
#include <set>

#include "feature_circuit/states.h"
#include "lamina/circuits/feature_circuit.h"
#include "lamina/core/error.h"

namespace lamina {
namespace {

template <class Enum, std::size_t N>
Enum parse_name(std::string_view what, std::string_view name,
                const std::array<std::string_view, N>& names) {
  std::string list;
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    list += (list.empty() ? "" : ", ") + std::string(names[i]);
  }
  fail_usage("{}: '{}', expected {}", what, name, list);
}

constexpr std::array<std::string_view, 3> kBaselines = {"pair", "zero", "mean"};
constexpr std::array<std::string_view, 3> kMethods = {"atp", "ig", "relp"};
constexpr std::array<std::string_view, 3> kErrors = {"ranked", "keep", "remove"};

}  // namespace

std::string_view feature_baseline_name(FeatureBaseline baseline) {
  return kBaselines[static_cast<std::size_t>(baseline)];
}
FeatureBaseline parse_feature_baseline(std::string_view name) {
  return parse_name<FeatureBaseline>("baseline", name, kBaselines);
}
std::string_view feature_method_name(FeatureMethod method) {
  return kMethods[static_cast<std::size_t>(method)];
}
FeatureMethod parse_feature_method(std::string_view name) {
  return parse_name<FeatureMethod>("method", name, kMethods);
}
std::string_view error_nodes_name(ErrorNodes errors) {
  return kErrors[static_cast<std::size_t>(errors)];
}
ErrorNodes parse_error_nodes(std::string_view name) {
  return parse_name<ErrorNodes>("errors", name, kErrors);
}

std::string feature_node_name(const FeatureNode& node, std::span<const Transcoder> dictionaries) {
  const Site site = dictionaries[static_cast<std::size_t>(node.dictionary)].config.output.site;
  std::string name =
      site_name(site) + "/" + (node.feature == kErrorNode ? "error" : std::to_string(node.feature));
  if (node.position != kAllPositions) name += fmt::format("@{}", node.position);
  return name;
}

namespace feature_circuit {

void check_feature_nodes(const FeatureStudy& study, std::span<const FeatureNode> nodes) {
  for (const FeatureNode& node : nodes) {
    if (node.dictionary < 0 || node.dictionary >= std::ssize(study.dictionaries)) {
      fail_usage("dictionary {} was asked for; there are {}", node.dictionary,
                 study.dictionaries.size());
    }
    const TranscoderConfig& config = study.dictionaries[size(node.dictionary)].config;
    if (node.feature < kErrorNode || node.feature >= config.features) {
      fail_usage("{}: feature {} was asked for, it has {}", config.name, node.feature,
                 config.features);
    }
  }
}

}  // namespace feature_circuit

void check_feature_study(const FeatureStudy& study) {
  if (study.pairs.empty()) fail_usage("a feature circuit needs at least one pair");
  if (study.metric.pairs() != static_cast<std::int64_t>(study.pairs.size())) {
    fail_usage("a metric of {} pairs was given for {} pairs", study.metric.pairs(),
               study.pairs.size());
  }
  if (study.dictionaries.empty()) fail_usage("a feature circuit needs at least one dictionary");
  const ModelConfig& config = study.forward.model().config();
  const std::vector<Site> sites = all_sites(config);
  const auto order = [&](Site site) { return std::find(sites.begin(), sites.end(), site); };
  std::set<Site> rebuilt;
  for (const Transcoder& t : study.dictionaries) {
    const TranscoderConfig& c = t.config;
    const std::string place = dictionary_place_name(c.output);
    for (const Site site : {c.input.site, c.output.site}) {
      if (order(site) == sites.end()) {
        fail_usage("{}: model '{}' has no {}", c.name, study.forward.model().id(), site_name(site));
      }
    }
    if (c.output.site.layer < 0) {
      fail_usage("{}: it rebuilds {}; feature circuits take the sites of a layer", c.name, place);
    }
    if (c.output.norm_weights) {
      fail_usage(
          "{}: it rebuilds {}, and what follows a norm's weights cannot be replaced at a site",
          c.name, place);
    }
    if (c.skip) {
      fail_usage("{}: it is a skip transcoder; a part of its reconstruction is no feature's",
                 c.name);
    }
    const SiteShape shape = site_shape(c.output.site, config);
    if (shape.attention || shape.row() != c.d_out) {
      fail_usage("{}: it rebuilds {} values at {}, model '{}' has {} there", c.name, c.d_out, place,
                 study.forward.model().id(), shape.attention ? 0 : shape.row());
    }
    if (order(c.input.site) > order(c.output.site)) {
      fail_usage("{}: it reads {}, which comes after {}, which it rebuilds", c.name,
                 dictionary_place_name(c.input), place);
    }
    if (!rebuilt.insert(c.output.site).second) {
      fail_usage("two dictionaries rebuild {}; a feature circuit takes one (the second is {})",
                 site_name(c.output.site), c.name);
    }
  }
}

}  // namespace lamina

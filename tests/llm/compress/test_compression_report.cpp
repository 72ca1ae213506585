// SPDX-License-Identifier: Apache-2.0
#include "compress/compression_report.hpp"

#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

// Every field has a value of its own.
compression_report whole_report() {
  compression_report r;
  r.program = "ressvd-llm 0.1.0";
  r.model = "model";
  r.output = "out";
  r.method = "tempered";
  r.allocation = "sensitivity";
  r.options = R"({"allocation":"sensitivity","method":"tempered","ratio":0.4})";
  r.samples = {.count = 3, .length = 16, .source = "text.txt", .self = 1};
  r.requested_ratio = 0.4;
  r.achieved_ratio = 0.41;
  r.choice = {.last_layers = 2,
              .search = {{2, 0.4, 0.3}, {1, 0.8, 0.5}},
              .layer_ratios = {0.1, 0.7},
              .probes = {{"a", 5, 0.01, 2.5, 1.5}},
              .loss = loss_prediction{0.1, 0.09, 0.12},
              .rounds = {{1, 1.0, 0.2, true}, {2, 0.5, 0.3, false}},
              .curvature_rounds = {{2, 0.5, 0.25, true}}};
  r.power = 0.6;
  r.power_curve = {{0.4, 0.2}, {0.6, 0.1}};
  const whitening_summary singular{"eigenvalues", 1e-9, 1e-10,
                                   std::numeric_limits<double>::infinity()};
  r.matrices = {{"layers.0.q_proj", 8, 6, std::nullopt},
                {"layers.0.o_proj", 8, 6,
                 factors_report{3, 2, loss_report{1.5, 0.1}, loss_report{2.5, 0.2}, 0.125,
                                whitening_summary{"cholesky", 0, 0, 12.5}, 6, 0.25}},
                {"layers.1.q_proj", 8, 6,
                 factors_report{3, 3, std::nullopt, std::nullopt, std::nullopt, singular, 4, 0.5}}};
  r.refinement = refinement_report{7,
                                   2,
                                   {{0, {0.5, 0.4}, {0.3, 0.2}, 3, 4, 1, 5e-4, 1.25},
                                    {1, {0.7, 0.6}, {0.7, 0.6}, 0, 2, 4, 1e-4, 2.5}}};
  r.heldout = {4, 64, 20.5, 21.5, 0.125};
  r.seconds = {{"factoring", 1.5}, {"sampling", 0.5}};
  r.memory = {.program = 10, .estimate = 20, .peak = 30};
  r.fallbacks = {1, "by syevj"};
  r.parameters = 1000;
  r.bytes = 4000;
  return r;
}

std::vector<std::string> keys_of(const nlohmann::ordered_json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items())
    keys.push_back(key);
  return keys;
}

} // namespace

TEST_CASE("a report survives its JSON form", "[report]") {
  for (const compression_report& report : {whole_report(), [] {
                                             compression_report bare;
                                             bare.options =
                                                 R"({"allocation":"uniform","method":"svd"})";
                                             return bare;
                                           }()}) {
    const std::string text = to_json(report).dump();
    const auto again = compression_report_from_json(nlohmann::json::parse(text));
    CHECK(nlohmann::json(to_json(again)) == nlohmann::json::parse(text));
  }
  const auto again =
      compression_report_from_json(nlohmann::json::parse(to_json(whole_report()).dump()));
  CHECK(again.method == "tempered");
  CHECK(again.allocation == "sensitivity");
  CHECK(again.total_seconds() == 2.0);
  CHECK(again.matrices.at(2).factors->whitening->condition ==
        std::numeric_limits<double>::infinity());
}

TEST_CASE("the keys of a report are those that files already have", "[report]") {
  const auto json = to_json(whole_report());
  using names = std::vector<std::string>;
  CHECK(keys_of(json) == names{"program", "model", "output", "options", "samples",
                               "requested_ratio", "achieved_ratio", "allocation", "power",
                               "power_curve", "matrices", "refinement", "heldout", "seconds",
                               "memory", "disk", "fallbacks", "parameters", "bytes"});
  CHECK(keys_of(json["allocation"]) == names{"last_layers", "search", "layer_ratios", "probes",
                                             "predicted_loss", "loss_bound", "measured_loss",
                                             "rounds", "curvature_rounds"});
  CHECK(keys_of(json["matrices"][1]) == names{"name", "rows", "cols", "rank", "intermediate_rank",
                                              "weight_loss", "activation_loss", "curvature_loss",
                                              "whitening", "numerical_rank", "seconds"});
  CHECK(json["matrices"][0]["rank"].is_null());
  CHECK(keys_of(json["refinement"]) == names{"training_windows", "heldout_windows", "blocks"});
  CHECK(keys_of(json["refinement"]["blocks"][0]) == names{"layer", "before", "after", "epochs",
                                                          "trained_epochs", "halvings", "rate",
                                                          "seconds"});
  CHECK(keys_of(json["heldout"]) ==
        names{"windows", "tokens", "original_perplexity", "compressed_perplexity", "divergence"});
}

TEST_CASE("reports without the keys that came later are read", "[report]") {
  auto json = nlohmann::json::parse(to_json(whole_report()).dump());
  for (const char* key : {"program", "samples", "achieved_ratio", "power", "power_curve",
                          "refinement", "memory", "disk", "fallbacks"})
    json.erase(key);
  json["allocation"].erase("loss_bound");
  json["matrices"][1].erase("whitening");
  json["matrices"][2]["whitening"]["path"] = ""; // as plain SVD had it
  const auto report = compression_report_from_json(json);
  CHECK(report.parameters == 1000);
  CHECK(report.choice.loss->predicted == 0.1);
  CHECK(report.matrices.at(1).factors->rank == 3);
  CHECK_FALSE(report.matrices.at(2).factors->whitening);
}

TEST_CASE("a report says how the factors were fitted and what is missing to the ratio",
          "[report]") {
  compression_report report = whole_report();
  CHECK(report.refit().empty());
  report.options = R"({"allocation":"uniform","method":"svd-llm","retruncate":true})";
  CHECK(report.refit() == "retruncate");
  report.options = R"({"allocation":"uniform","method":"svd-llm","update":true})";
  CHECK(report.refit() == "update");
  CHECK_FALSE(to_json(report).contains("ratio_shortfall"));
  report.shortfall = 0.25;
  const auto json = nlohmann::json::parse(to_json(report).dump());
  CHECK(json["ratio_shortfall"] == 0.25);
  CHECK(compression_report_from_json(json).shortfall == 0.25);
}

TEST_CASE("what is no report is refused", "[report]") {
  using error = nlohmann::json::exception;
  const auto whole = nlohmann::json::parse(to_json(whole_report()).dump());
  for (const char* key :
       {"options", "requested_ratio", "allocation", "matrices", "seconds", "bytes"}) {
    INFO(key);
    auto json = whole;
    json.erase(key);
    CHECK_THROWS_AS(compression_report_from_json(json), error);
    json[key] = "text";
    CHECK_THROWS_AS(compression_report_from_json(json), error);
  }
  auto unevaluated = whole;
  unevaluated["heldout"] = "text";
  CHECK_THROWS_AS(compression_report_from_json(unevaluated), error);
  unevaluated["heldout"] = nullptr; // as earlier versions wrote it
  CHECK_FALSE(compression_report_from_json(unevaluated).heldout);
  unevaluated.erase("heldout");
  CHECK_FALSE(compression_report_from_json(unevaluated).heldout);
  for (const char* text : {"{}", "[]", "null", "3", "\"text\"", R"({"options": [1, 2]})"})
    CHECK_THROWS_AS(compression_report_from_json(nlohmann::json::parse(text)), error);
}

} // namespace ressvd_llm

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Pipelines/Calibrate.h"

#include "KernelLoads.h"

#include "sluice-support/Json.h"
#include "sluice/Analysis/TimeFit.h"
#include "sluice/Import/Expected.h"
#include "sluice/Target/ScratchDirectory.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <nlohmann/json.hpp>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::support::JsonField;

//===----------------------------------------------------------------------===//
// Probes
//===----------------------------------------------------------------------===//

namespace {
/// The sizes of a Llama.
struct Shape {
  int64_t width, mlp, heads, kvHeads, layers, vocabulary;
  int64_t headDim = width / heads;
};

struct Probe {
  std::string name;
  Shape shape;
  std::string weights, keys, values;
  /// Of the cache, and measured.
  int64_t positions;
  std::vector<int64_t> contexts;
  /// Tokens of prompts, each read in one step.
  std::vector<int64_t> prompts = {};
};
} // namespace

static json configOf(const Shape &shape, int64_t positions) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"head_dim", shape.headDim},
          {"hidden_act", "silu"},
          {"hidden_size", shape.width},
          {"intermediate_size", shape.mlp},
          {"max_position_embeddings", positions},
          {"num_attention_heads", shape.heads},
          {"num_key_value_heads", shape.kvHeads},
          {"num_hidden_layers", shape.layers},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"tie_word_embeddings", false},
          {"vocab_size", shape.vocabulary}};
}

static std::vector<Probe> probesFor(const TargetDescription &target, bool quick) {
  std::vector<Probe> probes;
  if (quick) {
    Shape shape{256, 768, 4, 2, 1, 512};
    for (const char *cache : {"f16", "int8"})
      probes.push_back(
          {std::string("int8-g128-") + cache, shape, "int8-g128", cache, cache, 128, {64, 128}});
    probes.back().prompts = {16};
    return probes;
  }
  if (!target.isGpu()) {
    // Keys and values of two sizes of a head, read by two and by four query heads.
    Shape large{2048, 8192, 16, 8, 2, 16384}, small{2048, 8192, 32, 8, 2, 16384};
    for (const char *weights : {"int8-g128", "int8-g32", "int4-g128", "int4-g64", "int4-g32",
                                "q4_k", "q6_k", "iq4_nl", "f16"})
      probes.push_back({weights, large, weights, "f16", "f16", 512, {512}, {64}});
    for (const char *cache : {"f16", "int8", "int4", "fp8"}) {
      probes.push_back(
          {std::string("cache-") + cache, large, "int8-g128", cache, cache, 8192, {512, 8192}});
      probes.push_back(
          {std::string("heads-") + cache, small, "int8-g128", cache, cache, 8192, {512, 8192}});
    }
    return probes;
  }
  // The layers of an 8B model, of one with few key/value heads, and of one of 1B.
  Shape large{4096, 14336, 32, 8, 6, 32768}, few{4096, 14336, 32, 2, 6, 32768},
      small{2048, 8192, 32, 8, 8, 128256};
  for (StringRef weights : {"f16", "int8-g128", "int8-g32", "int4-g128", "int4-g32", "q2_k", "q3_k",
                            "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"}) {
    probes.push_back({weights.str(), large, weights.str(), "f16", "f16", 2048, {512}});
    // Products of many tokens: exact integers, floats and records, by single warps and by
    // warpgroups, bound by memory, by copies and by arithmetic.
    if (is_contained({"f16", "int8-g128", "int4-g128", "q4_k", "q6_k"}, weights))
      probes.back().prompts = {16, 32, 64, 128, 512};
  }
  for (const char *weights : {"int8-g128", "int4-g128"}) {
    for (const char *cache : {"f16", "int8", "int4"})
      probes.push_back({std::string(weights) + "-cache-" + cache,
                        large,
                        weights,
                        cache,
                        cache,
                        33024,
                        {512, 8192, 32768}});
    probes.push_back({std::string(weights) + "-1b", small, weights, "f16", "f16", 2048, {512}});
    probes.back().prompts = {16, 64, 512};
  }
  probes.push_back({"cache-fp8", large, "int8-g128", "fp8", "fp8", 33024, {8192, 32768}});
  for (const char *cache : {"f16", "int8"})
    probes.push_back({std::string("few-heads-") + cache,
                      few,
                      "int8-g128",
                      cache,
                      cache,
                      33024,
                      {512, 8192, 32768}});
  return probes;
}

static Error writeText(const std::string &path, StringRef text) {
  if (std::error_code code = writeFile(path, text))
    return createStringError(code, path + ": " + code.message());
  return Error::success();
}

/// How a probe is compiled: `folder` gets its config.json.
static Expected<CompileOptions> compileOptions(const Twine &folder, const json &config,
                                               StringRef target, StringRef weights, StringRef keys,
                                               StringRef values, int64_t positions,
                                               ArrayRef<int64_t> prompts) {
  CompileOptions options;
  options.model = (folder + "/config.json").str();
  if (Error error = writeText(options.model, config.dump(1) + "\n"))
    return std::move(error);
  options.target = target.str();
  options.weights = weights.str();
  options.keyCache = keys.str();
  options.valueCache = values.str();
  options.context = positions;
  options.syntheticWeights = true;
  options.prefill =
      prompts.empty() ? "none"
                      : join(map_range(prompts, [](int64_t n) { return std::to_string(n); }), ",");
  return options;
}

Error sluice::compileProbes(const ProbeOptions &options) {
  Expected<TargetDescription> target = loadTarget(options.target);
  if (!target)
    return target.takeError();
  Expected<ScratchDirectory> scratch = ScratchDirectory::createTemporary("sluice");
  if (!scratch)
    return scratch.takeError();
  std::vector<Probe> probes = probesFor(*target, options.quick);
  json list = {{"format", "sluice-probes"}, {"version", 1}, {"target", options.target}};
  if (options.quick)
    list["tokens"] = 2;
  if (!target->isGpu()) {
    // The caches of a CPU may hold a whole probe, but not the models whose time is predicted.
    list["cold"] = true;
    list["repetitions"] = options.quick ? 2 : 10;
  }
  for (const auto &[index, probe] : enumerate(probes)) {
    if (options.progress)
      options.progress("compiling probe " + probe.name,
                       static_cast<double>(index) / static_cast<double>(probes.size()));
    json config = configOf(probe.shape, probe.positions);
    Expected<CompileOptions> compiled =
        compileOptions(scratch->path(), config, options.target, probe.weights, probe.keys,
                       probe.values, probe.positions, probe.prompts);
    if (!compiled)
      return compiled.takeError();
    compiled->output = options.directory + "/" + probe.name;
    if (Error error = compile(*compiled))
      return error;
    list["probes"].push_back({{"name", probe.name},
                              {"config", config},
                              {"weights", probe.weights},
                              {"keys", probe.keys},
                              {"values", probe.values},
                              {"positions", probe.positions},
                              {"contexts", probe.contexts},
                              {"prompts", probe.prompts}});
  }
  return writeText(options.directory + "/probes.json", list.dump(1) + "\n");
}

//===----------------------------------------------------------------------===//
// Fitting
//===----------------------------------------------------------------------===//

/// What was measured of a step's kernels, which are `loads`.
static void readKernels(const JsonField &measured, ArrayRef<KernelLoad> loads,
                        StepMeasurement &step) {
  step.kernels = loads.vec();
  for (const JsonField &kernel : measured.at("kernels").elements(1 << 20))
    step.alone.push_back(kernel.at("seconds").asPositive());
  if (step.alone.size() != loads.size())
    measured.at("kernels").failWith("are " + std::to_string(step.alone.size()) +
                                    ", but this compiler's step has " +
                                    std::to_string(loads.size()));
}

/// Adds the steps of one probe, and the read bandwidths that were seen.
static Error readProbe(const JsonField &probe, StringRef target, StringRef folder,
                       std::vector<double> &bandwidths, std::vector<StepMeasurement> &steps) {
  // Results of before there were prompts have none.
  std::vector<int64_t> tokens;
  std::optional<JsonField> prompts = probe.find("prompts");
  if (prompts)
    for (const JsonField &prompt : prompts->elements(64))
      tokens.push_back(prompt.at("tokens").asInt(2, INT32_MAX));
  Expected<CompileOptions> options =
      compileOptions(folder, probe.at("config").get(), target, probe.at("weights").asText(),
                     probe.at("keys").asText(), probe.at("values").asText(),
                     probe.at("positions").asInt(1, INT32_MAX), tokens);
  if (!options)
    return options.takeError();
  Expected<std::vector<KernelLoad>> loads = kernelLoads(*options);
  if (!loads)
    return loads.takeError();
  for (const JsonField &bench : probe.at("benches").elements(64)) {
    StepMeasurement &step = steps.emplace_back();
    step.context = bench.at("context").asInt(1, INT32_MAX);
    readKernels(bench, *loads, step);
    step.seconds = bench.positiveAt("step_seconds", 0);
    if (step.seconds == 0)
      step.seconds = 1 / bench.at("tokens_per_second").asPositive();
    step.readBandwidth = bench.at("read_bandwidth").at("bytes_per_second").asNumber(1e6, 1e18);
    bandwidths.push_back(step.readBandwidth);
  }
  if (!prompts)
    return Error::success();
  for (auto [prompt, count] : zip_equal(prompts->elements(64), tokens)) {
    Expected<std::vector<KernelLoad>> many =
        kernelLoads(*options, "prefill_" + std::to_string(count));
    if (!many)
      return many.takeError();
    StepMeasurement &step = steps.emplace_back();
    step.context = count;
    step.readBandwidth = bandwidths.empty() ? 0 : bandwidths.back();
    readKernels(prompt, *many, step);
    step.seconds = static_cast<double>(count) / prompt.at("tokens_per_second").asPositive();
  }
  return Error::success();
}

Expected<Calibration> sluice::calibrateTarget(StringRef results, StringRef path, StringRef target,
                                              StringRef name) {
  Expected<ScratchDirectory> scratch = ScratchDirectory::createTemporary("sluice");
  if (!scratch)
    return scratch.takeError();
  std::vector<StepMeasurement> steps;
  std::string device, date;
  std::vector<double> bandwidths;
  Error failed = Error::success();
  (void)!failed;
  Expected<std::string> base = toExpected([&] {
    json parsed = support::parseJson(results, path.str());
    std::string file = path.str();
    JsonField root(parsed, "", file);
    if (root.at("format").asText() != "sluice-probe-results")
      root.at("format").fail("\"sluice-probe-results\", which sluice-run calibrate writes");
    device = root.at("device").asText();
    date = root.at("date").asText();
    std::string base = target.empty() ? root.at("target").asText() : target.str();
    for (const JsonField &probe : root.at("probes").elements(1024))
      if (!failed)
        failed = readProbe(probe, base, scratch->path(), bandwidths, steps);
    return base;
  });
  if (failed)
    return std::move(failed);
  if (!base)
    return base.takeError();
  Expected<TargetDescription> first = loadTarget(*base);
  if (!first)
    return first.takeError();
  std::string source = "measured by sluice calibrate on " + device + ", " + date;
  TargetDescription start = *first;
  if (!bandwidths.empty()) {
    llvm::sort(bandwidths);
    // A CPU's memory is shared with other programs and, on a virtual machine, with other machines:
    // what is predicted is what is to be expected, not the best that was seen.
    double ceiling = start.isGpu() ? bandwidths.back() : bandwidths[bandwidths.size() / 2];
    start.readCeiling = Sourced<double>{ceiling, source};
    if (start.peakBandwidth && start.peakBandwidth->value < ceiling)
      start.peakBandwidth = start.readCeiling;
  }
  TargetDescription fitted = fitTime(start, steps, source);
  fitted.name = name.str();
  fitted.description = first->description + ", calibrated";
  Expected<std::string> text = calibratedText(*base, fitted);
  if (!text)
    return text.takeError();
  // What is written must be readable.
  if (Expected<TargetDescription> again = parseTarget(*text, "the new description"); !again)
    return again.takeError();
  FitErrors errors = predictionErrors(fitted, steps);
  return Calibration{
      *text, formatv("{0} steps on {1}: predicted within {2:F1}% (median; at most {3:F1}%), single "
                     "kernels within {4:F1}% (median)",
                     steps.size(), device, 100 * errors.step, 100 * errors.worstStep,
                     100 * errors.kernel)};
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Commands.h"

#include "runtime/commands/BenchJson.h"
#include "runtime/commands/Console.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

using namespace sluice::runtime;

static double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// What counts of times that were measured again and again.
static double typical(std::vector<double> seconds, const BenchOptions &options) {
  if (!options.cold)
    return median(std::move(seconds));
  auto quarter = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 4);
  std::nth_element(seconds.begin(), quarter, seconds.end());
  return *quarter;
}

static std::string describe(const SamplingOptions &options) {
  std::string text = options.temperature == 0
                         ? std::string("greedy")
                         : format("temperature %g", static_cast<double>(options.temperature));
  auto add = [&](const char *name, double value) { text += format(", %s %g", name, value); };
  if (options.temperature != 0) {
    if (options.topK > 0)
      add("top-k", options.topK);
    if (options.topP < 1)
      add("top-p", static_cast<double>(options.topP));
    if (options.minP > 0)
      add("min-p", static_cast<double>(options.minP));
  }
  if (options.repetitionPenalty != 1)
    add("repeat-penalty", static_cast<double>(options.repetitionPenalty));
  return text;
}

/// A launch that took `seconds` at a context, with what was predicted.
static void addKernel(std::vector<BenchKernel> &kernels, const Launch &launch, double seconds,
                      int64_t context) {
  auto positions = static_cast<uint64_t>(context);
  uint64_t bytes = launch.traffic ? launch.traffic->bytes(positions) : 0;
  BenchKernel &kernel =
      kernels.emplace_back(BenchKernel{launch.label, launch.kernel, seconds, bytes, {}, {}});
  if (!launch.time)
    return;
  kernel.predictedInStep = launch.time->seconds(positions);
  kernel.predicted = *kernel.predictedInStep + launch.time->alone;
}

/// The tokens of a prompt of the length asked for. Those of different sequences begin differently,
/// so that each is read.
static std::vector<int32_t> promptToMeasure(const ModelInfo &model, const BenchOptions &options,
                                            int64_t sequence = 0) {
  if (options.prompt > model.contextLength)
    throw Error("option --prompt is " + std::to_string(options.prompt) +
                ", expected 1 to the artifact's context of " + std::to_string(model.contextLength));
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < options.prompt; ++i)
    ids.push_back(static_cast<int32_t>((i * 7919 + sequence) % model.vocabSize));
  return ids;
}

/// Fills in the speeds of reading `tokens` tokens, which `read` does and times in seconds.
template <typename Read>
static void measureReading(PromptSpeed &result, int64_t tokens, const BenchOptions &options,
                           Read read) {
  read();
  std::vector<double> seconds;
  for (int64_t r = 0; r < options.repetitions; ++r)
    seconds.push_back(read());
  auto speed = [&](double time) { return static_cast<double>(tokens) / time; };
  result.tokensPerSecond = speed(typical(seconds, options));
  result.slowest = speed(*std::max_element(seconds.begin(), seconds.end()));
  result.fastest = speed(*std::min_element(seconds.begin(), seconds.end()));
}

static PromptSpeed measurePrompt(Session &session, const BenchOptions &options) {
  const std::vector<int32_t> ids = promptToMeasure(session.artifact().model(), options);
  PromptSpeed result;
  result.tokens = options.prompt;
  Sampler sampler(options.sampling);
  auto read = [&] {
    InterruptGuard::check();
    session.reset();
    if (options.cold)
      session.device().measureReadBandwidth();
    auto start = std::chrono::steady_clock::now();
    std::span<const int32_t> rest = ids;
    // The last step chooses a token.
    const size_t last = (rest.size() - 1) % static_cast<size_t>(session.chunk()) + 1;
    if (rest.size() > last)
      session.append(rest.first(rest.size() - last));
    (void)session.next(rest.last(last), sampler, ids);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  measureReading(result, result.tokens, options, read);
  const Plan &plan = session.artifact().plan();
  result.predicted = plan.predictedPrompt(options.prompt);
  if (!options.perKernel)
    return result;
  result.stepTokens = std::min(options.prompt, session.chunk());
  const Step &step = plan.steps[*plan.stepFor(result.stepTokens)];
  std::vector<std::vector<double>> launches(step.launches.size());
  for (int64_t r = 0; r < options.repetitions; ++r) {
    session.reset();
    if (options.cold)
      session.device().measureReadBandwidth();
    std::vector<double> times =
        session.profile(std::span(ids).first(static_cast<size_t>(result.stepTokens)));
    for (size_t k = 0; k < times.size(); ++k)
      launches[k].push_back(times[k]);
  }
  for (size_t k = 0; k < launches.size(); ++k)
    addKernel(result.kernels, step.launches[k], typical(launches[k], options), result.stepTokens);
  return result;
}

/// Every sequence reads a prompt, from joining to the choice of its first token, with which it
/// leaves.
static PromptSpeed measurePrompts(Batch &batch, const BenchOptions &options) {
  const ModelInfo &model = batch.artifact().model();
  PromptSpeed result;
  result.tokens = options.prompt;
  auto read = [&] {
    while (batch.size() < batch.capacity())
      (void)batch.add(promptToMeasure(model, options, batch.size()), options.sampling);
    auto start = std::chrono::steady_clock::now();
    while (batch.size()) {
      InterruptGuard::check();
      for (const Batch::Choice &choice : batch.step())
        batch.remove(choice.sequence);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  measureReading(result, options.prompt * batch.capacity(), options, read);
  return result;
}

BenchResult sluice::runtime::measureSpeed(Session &session, const BenchOptions &options) {
  const Plan &plan = session.artifact().plan();
  int64_t longest = plan.model.contextLength;
  BenchResult result;
  result.context = options.context ? options.context : std::min<int64_t>(512, longest);
  if (result.context < 1 || result.context > longest)
    throw Error("option --context is " + std::to_string(result.context) +
                ", expected 1 to the artifact's " + std::to_string(longest));
  if (options.repetitions < 1 || options.tokens < 0)
    throw Error("a measurement needs at least one repetition of at least one token");
  const uint32_t decodeStep = session.device().decodeStep();
  const Step &step = plan.steps[decodeStep];
  result.bytesPerToken = plan.bytes(step, static_cast<uint64_t>(result.context));
  result.repetitions = options.repetitions;

  // Always a step at the same position, as the last of so many tokens, and of the token that the
  // step before chose: what a generation does, but that it moves on.
  int32_t token = std::max(plan.model.bosId, 0);
  Sampler sampler(options.sampling);
  result.sampling = describe(options.sampling);
  result.sampledInStep = plan.samples() && !sampler.needsHistory();
  result.startsAhead = session.startsAhead(sampler);
  auto decode = [&](int64_t count) {
    auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < count; ++i) {
      InterruptGuard::check();
      session.seek(result.context - 1);
      token = session.next(token, sampler, {},
                           i + 1 < count ? std::optional(result.context - 1) : std::nullopt);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  // Memory that nobody has written is one page of zeros, which the hardware's caches hold.
  session.reset();
  // Warm up, and see how long a token takes.
  double once = decode(1);
  once = std::min(once, decode(3) / 3);
  result.tokensEach =
      options.cold     ? 1
      : options.tokens ? options.tokens
                       : std::clamp<int64_t>(std::llround(0.5 / std::max(once, 1e-6)), 3, 100'000);
  session.device().measureReadBandwidth();

  Progress progress;
  // Of a token, and of one of the buffer's bytes.
  std::vector<double> tokenSeconds, byteSeconds, steps;
  std::vector<std::vector<double>> launches(step.launches.size());
  auto readBuffer = [&] {
    result.bandwidth = session.device().measureReadBandwidth();
    bool some = options.cold && result.bandwidth.undisturbed > 0;
    byteSeconds.push_back(1 /
                          (some ? result.bandwidth.undisturbed : result.bandwidth.bytesPerSecond));
  };
  auto perToken = [&](double seconds) { return seconds / static_cast<double>(result.tokensEach); };
  for (int64_t r = 0; r < options.repetitions; ++r) {
    readBuffer();
    tokenSeconds.push_back(perToken(decode(result.tokensEach)));
    if (auto seconds = session.device().measureStep(decodeStep, result.tokensEach))
      steps.push_back(*seconds);
    if (options.perKernel)
      for (int64_t i = 0; i < std::clamp<int64_t>(result.tokensEach, 1, 20); ++i) {
        InterruptGuard::check();
        if (options.cold)
          readBuffer();
        session.seek(result.context - 1);
        std::vector<double> times = session.profile(token);
        for (size_t k = 0; k < times.size(); ++k)
          launches[k].push_back(times[k]);
      }
    progress.show(format("measurement %lld of %lld: %.1f tokens/s", static_cast<long long>(r + 1),
                         static_cast<long long>(options.repetitions), 1 / tokenSeconds.back()));
  }
  result.tokensPerSecond = 1 / typical(tokenSeconds, options);
  result.slowest = 1 / *std::max_element(tokenSeconds.begin(), tokenSeconds.end());
  result.fastest = 1 / *std::min_element(tokenSeconds.begin(), tokenSeconds.end());
  result.bandwidth.bytesPerSecond = 1 / typical(byteSeconds, options);
  if (!steps.empty())
    result.stepSeconds = typical(steps, options);
  result.profileRemark = session.device().profileRemark();
  if (options.perKernel)
    for (size_t k = 0; k < launches.size(); ++k)
      addKernel(result.kernels, step.launches[k], typical(launches[k], options), result.context);
  if (options.prompt)
    result.prompt = measurePrompt(session, options);
  result.predictedStep = step.predictedSeconds(static_cast<uint64_t>(result.context));
  return result;
}

std::vector<BenchClass> BenchResult::classes() const {
  std::vector<BenchClass> classes;
  std::vector<std::vector<double>> measured, predicted;
  // Launches of a kernel may read weights of different sizes, and different parts of the context.
  std::map<std::pair<std::string, uint64_t>, size_t> indices;
  for (const BenchKernel &kernel : kernels) {
    if (!kernel.predicted)
      continue;
    auto [place, isNew] = indices.try_emplace({kernel.kernel, kernel.bytes}, classes.size());
    if (isNew) {
      classes.push_back({kernel.label, 0, 0, 0});
      measured.emplace_back();
      predicted.emplace_back();
    }
    ++classes[place->second].launches;
    measured[place->second].push_back(kernel.seconds);
    predicted[place->second].push_back(*kernel.predicted);
  }
  for (size_t i = 0; i < classes.size(); ++i) {
    classes[i].seconds = median(measured[i]);
    classes[i].predicted = median(predicted[i]);
  }
  return classes;
}

/// The median of the kernels' errors, whatever their sign; every launch counts.
static double medianError(const BenchResult &result) {
  std::vector<double> errors;
  for (const BenchKernel &kernel : result.kernels)
    if (kernel.predicted)
      errors.push_back(std::abs(*kernel.predicted / kernel.seconds - 1));
  return errors.empty() ? 0 : median(errors);
}

static nlohmann::json promptJson(const PromptSpeed &prompt) {
  nlohmann::json json = {{"tokens", prompt.tokens},
                         {"tokens_per_second", prompt.tokensPerSecond},
                         {"tokens_per_second_slowest", prompt.slowest},
                         {"tokens_per_second_fastest", prompt.fastest}};
  if (prompt.predicted)
    json["predicted_tokens_per_second"] = static_cast<double>(prompt.tokens) / *prompt.predicted;
  return json;
}

nlohmann::json sluice::runtime::benchJson(const BenchResult &result, const Artifact &artifact,
                                          const std::string &device) {
  double ceiling = result.bandwidth.bytesPerSecond;
  nlohmann::json json = {
      {"model", artifact.model().name},
      {"weights", artifact.model().weights},
      {"target", artifact.plan().target.name},
      {"device", device},
      {"memory",
       {{"weights", artifact.plan().bytes(BufferKind::Weights)},
        {"keys_and_values", artifact.plan().bytes(BufferKind::Cache)},
        {"intermediate_results", artifact.plan().bytes(BufferKind::Arena)}}},
      {"context", result.context},
      {"tokens_each", result.tokensEach},
      {"repetitions", result.repetitions},
      {"sampling", result.sampling},
      {"sampled_in_step", result.sampledInStep},
      {"starts_ahead", result.startsAhead},
      {"tokens_per_second", result.tokensPerSecond},
      {"tokens_per_second_slowest", result.slowest},
      {"tokens_per_second_fastest", result.fastest},
      {"bytes_per_token", result.bytesPerToken},
      {"bytes_per_second", result.bytesPerSecond()},
      {"read_bandwidth",
       {{"bytes_per_second", ceiling},
        {"buffer", result.bandwidth.buffer},
        {"method", result.bandwidth.method},
        {"buffer_bytes", result.bandwidth.bufferBytes}}},
      {"share", result.bytesPerSecond() / ceiling},
  };
  if (result.stepSeconds) {
    json["step_seconds"] = *result.stepSeconds;
    json["step_share"] = static_cast<double>(result.bytesPerToken) / *result.stepSeconds / ceiling;
  }
  auto kernelsJson = [&](const std::vector<BenchKernel> &measured) {
    auto kernels = nlohmann::json::array();
    for (const BenchKernel &kernel : measured) {
      double speed = static_cast<double>(kernel.bytes) / kernel.seconds;
      kernels.push_back({{"label", kernel.label},
                         {"kernel", kernel.kernel},
                         {"seconds", kernel.seconds},
                         {"bytes", kernel.bytes},
                         {"bytes_per_second", speed},
                         {"share", speed / ceiling}});
      if (kernel.predicted) {
        kernels.back()["predicted_seconds"] = *kernel.predicted;
        kernels.back()["predicted_seconds_in_step"] = *kernel.predictedInStep;
      }
    }
    return kernels;
  };
  if (!result.kernels.empty())
    json["kernels"] = kernelsJson(result.kernels);
  if (result.prompt) {
    json["prompt"] = promptJson(*result.prompt);
    if (!result.prompt->kernels.empty()) {
      json["prompt"]["step_tokens"] = result.prompt->stepTokens;
      json["prompt"]["kernels"] = kernelsJson(result.prompt->kernels);
    }
  }
  if (result.predictedStep) {
    auto &prediction =
        json["prediction"] = {{"step_seconds", *result.predictedStep},
                              {"step_error", *result.predictedStep / result.measuredStep() - 1}};
    if (!result.kernels.empty())
      prediction["median_kernel_error"] = medianError(result);
    for (const BenchClass &kernels : result.classes())
      prediction["kernels"].push_back({{"label", kernels.label},
                                       {"launches", kernels.launches},
                                       {"seconds", kernels.seconds},
                                       {"predicted_seconds", kernels.predicted},
                                       {"error", kernels.error()}});
  }
  return json;
}

static void printKernels(const BenchResult &result, const std::vector<BenchKernel> &kernels,
                         std::FILE *out) {
  size_t width = 6;
  for (const BenchKernel &kernel : kernels)
    width = std::max(width, std::min<size_t>(kernel.label.size(), 60));
  int column = static_cast<int>(width);
  writeText(out, format("\n%-*s %10s %10s %10s %7s\n", column, "kernel", "time", "bytes", "GB/s",
                        "share"));
  double seconds = 0;
  uint64_t bytes = 0;
  auto row = [&](const std::string &label, double seconds, uint64_t bytes) {
    double speed = static_cast<double>(bytes) / seconds;
    writeText(out, format("%-*.60s %7.1f us %10s %10.2f %6.1f%%\n", column, label.c_str(),
                          seconds * 1e6, formatBytes(static_cast<double>(bytes)).c_str(),
                          speed / 1e9, 100 * speed / result.bandwidth.bytesPerSecond));
  };
  for (const BenchKernel &kernel : kernels) {
    row(kernel.label, kernel.seconds, kernel.bytes);
    seconds += kernel.seconds;
    bytes += kernel.bytes;
  }
  row("sum", seconds, bytes);
  if (!result.profileRemark.empty())
    writeText(out, "(" + result.profileRemark + ")\n");
}

static void printPredictions(const BenchResult &result, std::FILE *out) {
  size_t width = 6;
  for (const BenchKernel &kernel : result.kernels)
    width = std::max(width, std::min<size_t>(kernel.label.size(), 60));
  int column = static_cast<int>(width);
  writeText(out, format("\n%-*s %8s %10s %10s %7s\n", column, "predicted", "launches", "measured",
                        "predicted", "error"));
  auto line = [&](const std::string &label, int64_t launches, double measured, double predicted) {
    writeText(out, format("%-*.60s %8lld %7.1f us %7.1f us %+6.1f%%\n", column, label.c_str(),
                          static_cast<long long>(launches), measured * 1e6, predicted * 1e6,
                          100 * (predicted / measured - 1)));
  };
  for (const BenchClass &kernels : result.classes())
    line(kernels.label, kernels.launches, kernels.seconds, kernels.predicted);
  line("step", static_cast<int64_t>(result.kernels.size()), result.measuredStep(),
       *result.predictedStep);
  writeText(out, format("median error of a kernel %.1f%%\n", 100 * medianError(result)));
}

/// A line beside a measured speed.
static std::string predictedText(double predicted, double measured) {
  return format("predicted       %.1f tokens/s (%+.1f%%)\n", predicted,
                100 * (predicted / measured - 1));
}

/// All sequences of a batch at the same position, again and again.
static void benchBatch(std::shared_ptr<const Artifact> artifact, const BenchOptions &options,
                       std::FILE *out) {
  const Plan &plan = artifact->plan();
  int64_t longest = plan.model.contextLength;
  int64_t context = options.context ? options.context : std::min<int64_t>(512, longest);
  if (context > longest)
    throw Error("option --context is " + std::to_string(context) +
                ", expected 1 to the artifact's " + std::to_string(longest));
  if (options.perKernel)
    throw Error("option --per-kernel is for artifacts of one sequence, this one decodes " +
                std::to_string(plan.model.batch));
  if (options.prompt)
    (void)promptToMeasure(plan.model, options);
  Batch batch = openBatch(artifact, options.session);
  InterruptGuard guard;
  auto run = [&](int64_t count) {
    double seconds = 0;
    for (int64_t i = 0; i < count; ++i) {
      InterruptGuard::check();
      batch.seekAll(context - 1);
      auto start = std::chrono::steady_clock::now();
      batch.step();
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return seconds;
  };
  // As in measureSpeed.
  batch.device().clearCaches();
  double once = std::min(run(1), run(3) / 3);
  int64_t count =
      options.tokens ? options.tokens : std::clamp<int64_t>(std::llround(0.5 / once), 3, 100'000);
  std::vector<double> speeds, steps;
  for (int64_t r = 0; r < options.repetitions; ++r) {
    speeds.push_back(static_cast<double>(count * batch.capacity()) / run(count));
    if (auto seconds = batch.device().measureStep(batch.device().decodeStep(), count))
      steps.push_back(*seconds);
  }
  std::optional<PromptSpeed> prompt;
  if (options.prompt) {
    for (int64_t sequence = 0; sequence < batch.capacity(); ++sequence)
      batch.remove(sequence);
    prompt = measurePrompts(batch, options);
  }
  const std::string device = batch.device().name() + ": " + batch.device().description();
  const std::optional<double> predicted =
      plan.steps[batch.device().decodeStep()].predictedSeconds(static_cast<uint64_t>(context));
  if (options.json) {
    nlohmann::json json = {{"model", plan.model.name},
                           {"weights", plan.model.weights},
                           {"target", plan.target.name},
                           {"device", device},
                           {"context", context},
                           {"batch", batch.capacity()},
                           {"tokens_per_second", median(speeds)}};
    if (!steps.empty())
      json["step_seconds"] = median(steps);
    if (predicted)
      json["prediction"] = {
          {"step_seconds", *predicted},
          {"tokens_per_second", static_cast<double>(batch.capacity()) / *predicted}};
    if (prompt)
      json["prompt"] = promptJson(*prompt);
    writeText(out, json.dump(2) + "\n");
  } else {
    writeText(out,
              format("model           %s, weights %s, for target %s\n", plan.model.name.c_str(),
                     plan.model.weights.c_str(), plan.target.name.c_str()));
    writeText(out, format("device          %s\n", device.c_str()));
    writeText(out, format("memory          %s\n", memoryText(plan).c_str()));
    writeText(out,
              format("context         %lld positions of each of %lld sequences\n",
                     static_cast<long long>(context), static_cast<long long>(batch.capacity())));
    writeText(out, format("speed           %.1f tokens/s in all (median of %lld x %lld steps)\n",
                          median(speeds), static_cast<long long>(options.repetitions),
                          static_cast<long long>(count)));
    if (predicted)
      writeText(out,
                predictedText(static_cast<double>(batch.capacity()) / *predicted, median(speeds)));
    if (!steps.empty())
      writeText(out,
                format("step alone      %.1f us on the device (%.1f tokens/s)\n",
                       median(steps) * 1e6, static_cast<double>(batch.capacity()) / median(steps)));
    if (prompt)
      writeText(out, format("prompts         %lld tokens of each, %.1f tokens/s in all (median of "
                            "%lld; %.1f to %.1f)\n",
                            static_cast<long long>(prompt->tokens), prompt->tokensPerSecond,
                            static_cast<long long>(options.repetitions), prompt->slowest,
                            prompt->fastest));
  }
  flush(out);
}

void sluice::runtime::bench(const std::filesystem::path &path, const BenchOptions &options,
                            std::FILE *out) {
  std::shared_ptr<const Artifact> artifact = openArtifact(path);
  if (artifact->model().batch > 1)
    return benchBatch(artifact, options, out);
  Session session = openSession(artifact, options.session);
  InterruptGuard guard;
  BenchResult result = measureSpeed(session, options);
  const std::string device = session.device().name() + ": " + session.device().description();
  if (options.json) {
    writeText(out, benchJson(result, *artifact, device).dump(2) + "\n");
    flush(out);
    return;
  }
  const ModelInfo &model = artifact->model();
  double ceiling = result.bandwidth.bytesPerSecond;
  writeText(out, format("model           %s, weights %s, for target %s\n", model.name.c_str(),
                        model.weights.c_str(), artifact->plan().target.name.c_str()));
  writeText(out, format("device          %s\n", device.c_str()));
  writeText(out, format("memory          %s\n", memoryText(artifact->plan()).c_str()));
  writeText(out,
            format("context         %lld positions\n", static_cast<long long>(result.context)));
  writeText(out, format("sampling        %s, %s the step\n", result.sampling.c_str(),
                        result.sampledInStep ? "in" : "after"));
  writeText(out, format("steps           %s\n",
                        result.startsAhead
                            ? "each starts before the host knows its token, which the one before "
                              "passes on"
                            : "each starts when the host knows its token"));
  writeText(out,
            format("speed           %.1f tokens/s (median of %lld x %lld tokens; %.1f to %.1f)\n",
                   result.tokensPerSecond, static_cast<long long>(result.repetitions),
                   static_cast<long long>(result.tokensEach), result.slowest, result.fastest));
  writeText(out, format("read bandwidth  %.2f GB/s (%s of %s, %s)\n", ceiling / 1e9,
                        result.bandwidth.method.c_str(), result.bandwidth.buffer.c_str(),
                        formatBytes(static_cast<double>(result.bandwidth.bufferBytes)).c_str()));
  if (result.bytesPerToken == 0) {
    writeText(out, "traffic         unknown: the plan does not say how many bytes a token moves\n");
  } else {
    writeText(out, format("traffic         %s a token, %.2f GB/s\n",
                          formatBytes(static_cast<double>(result.bytesPerToken)).c_str(),
                          result.bytesPerSecond() / 1e9));
    writeText(out, format("share           %.1f%% of the read bandwidth\n",
                          100 * result.bytesPerSecond() / ceiling));
    if (result.stepSeconds)
      writeText(out, format("step alone      %.1f us on the device (%.1f tokens/s), %.1f%% of the "
                            "read bandwidth\n",
                            *result.stepSeconds * 1e6, 1 / *result.stepSeconds,
                            100 * static_cast<double>(result.bytesPerToken) / *result.stepSeconds /
                                ceiling));
    // A buffer is at least four times the largest cache.
    if (result.bytesPerToken < result.bandwidth.bufferBytes / 4)
      writeText(out,
                "                (a token's bytes fit into the caches, so it can exceed 100%)\n");
  }
  if (result.prompt)
    writeText(out,
              format("prompt          %lld tokens, %.1f tokens/s (median of %lld; %.1f to "
                     "%.1f)\n",
                     static_cast<long long>(result.prompt->tokens), result.prompt->tokensPerSecond,
                     static_cast<long long>(result.repetitions), result.prompt->slowest,
                     result.prompt->fastest));
  if (result.prompt && result.prompt->predicted)
    writeText(out,
              predictedText(static_cast<double>(result.prompt->tokens) / *result.prompt->predicted,
                            result.prompt->tokensPerSecond));
  if (options.perKernel) {
    printKernels(result, result.kernels, out);
    if (result.predictedStep)
      printPredictions(result, out);
    if (result.prompt) {
      writeText(out, format("\nthe step of a prompt's %lld tokens\n",
                            static_cast<long long>(result.prompt->stepTokens)));
      printKernels(result, result.prompt->kernels, out);
    }
  }
  flush(out);
}

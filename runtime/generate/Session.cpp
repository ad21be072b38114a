// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Session.h"

#include "runtime/generate/Checks.h"
#include "sluice-support/Float16.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

using namespace sluice::runtime;
using sluice::support::printable;

Session::Session(std::shared_ptr<const Artifact> artifact, const SessionOptions &options)
    : theArtifact(std::move(artifact)) {
  const Plan &plan = theArtifact->plan();
  if (plan.model.batch != 1)
    throw Error(theArtifact->planName() + ": decodes " + std::to_string(plan.model.batch) +
                " sequences together, a session has one; compile the model without --batch");
  theDevice = openDevice(theArtifact, options);
  queue = theDevice->queue();
  tokenBuffer = plan.bufferIndex("token");
  positionBuffer = plan.bufferIndex("position");
  logitsBuffer = plan.bufferIndex("logits");
  if (plan.findBuffer("tokens")) {
    tokensBuffer = plan.bufferIndex("tokens");
    positionsBuffer = plan.bufferIndex("positions");
    countBuffer = plan.bufferIndex("count");
  }
  if (plan.verifyStep())
    allLogitsBuffer = plan.bufferIndex("all_logits");
  if (plan.samples()) {
    samplingBuffer = plan.bufferIndex("sampling");
    nextBuffer = plan.bufferIndex("next");
    feedsToken = plan.buffers[tokenBuffer].fedBy == nextBuffer;
  }
}

bool Session::Inputs::operator==(const Inputs &other) const {
  // By bits, so that every NaN is equal to itself.
  return tokens == other.tokens && allLogits == other.allLogits && position == other.position &&
         std::memcmp(&sampling, &other.sampling, sizeof(sampling)) == 0;
}

Session::Inputs Session::checkedInputs(std::span<const int32_t> tokens) const {
  const ModelInfo &model = theArtifact->model();
  checkTokens(model, tokens);
  if (nextPosition + static_cast<int64_t>(tokens.size()) > model.contextLength)
    throw Error("the context is full: position " +
                std::to_string(std::max(nextPosition, model.contextLength)) + " of a context of " +
                std::to_string(model.contextLength) +
                "; compile the model with a longer one (--context)");
  return {{tokens.begin(), tokens.end()}, nextPosition, {}};
}

void Session::write(const Inputs &inputs) {
  std::vector<int32_t> positions(inputs.tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(inputs.position));
  bool isOne = positions.size() == 1 && !inputs.allLogits;
  theDevice->write(isOne ? tokenBuffer : *tokensBuffer, 0, std::as_bytes(std::span(inputs.tokens)));
  theDevice->write(isOne ? positionBuffer : *positionsBuffer, 0,
                   std::as_bytes(std::span(positions)));
  if (!isOne) {
    int32_t count = static_cast<int32_t>(positions.size());
    theDevice->write(*countBuffer, 0, std::as_bytes(std::span(&count, 1)));
  }
  if (samplingBuffer && !inputs.allLogits)
    theDevice->write(*samplingBuffer, 0, std::as_bytes(std::span(&inputs.sampling, 1)));
}

void Session::start(const Inputs &inputs) {
  if (ahead == inputs) {
    ahead.reset();
  } else {
    discardAhead();
    write(inputs);
    if (queue)
      queue->start(stepOf(inputs), /*fed=*/false);
    else
      theDevice->run(stepOf(inputs));
    wait();
  }
  unfinished = queue != nullptr;
  last = inputs;
}

void Session::wait() {
  if (std::exchange(unfinished, false))
    queue->finish();
}

void Session::discardAhead() {
  if (!std::exchange(ahead, std::nullopt))
    return;
  try {
    queue->finish();
  } catch (const Error &) {
    // Nobody asked for this step. If the device cannot go on, the next one says so.
  }
}

void Session::append(std::span<const int32_t> tokens) {
  // All are checked before the first step runs.
  (void)checkedInputs(tokens);
  const size_t most = static_cast<size_t>(chunk());
  while (!tokens.empty()) {
    std::span<const int32_t> part = tokens.first(std::min(tokens.size(), most));
    start(checkedInputs(part));
    advance(part);
    tokens = tokens.subspan(part.size());
  }
}

void Session::advance(std::span<const int32_t> tokens) {
  sequence.insert(sequence.end(), tokens.begin(), tokens.end());
  nextPosition += static_cast<int64_t>(tokens.size());
}

int32_t Session::next(std::span<const int32_t> tokens, Sampler &sampler,
                      std::span<const int32_t> history, std::optional<int64_t> followAt) {
  if (tokens.empty() || static_cast<int64_t>(tokens.size()) > chunk())
    throw Error("a step has " + std::to_string(tokens.size()) + " tokens, expected 1 to " +
                std::to_string(chunk()));
  if (!nextBuffer || sampler.needsHistory()) {
    append(tokens);
    return choose(0, sampler, history);
  }
  Inputs inputs = checkedInputs(tokens);
  inputs.sampling = sampler.nextWords();
  start(inputs);
  std::optional<Inputs> following;
  if (followAt && startsAhead(sampler) && *followAt < theArtifact->model().contextLength) {
    following = Inputs{{tokens.back()}, *followAt, sampler.peekWords()};
    write(*following);
    try {
      queue->start(stepOf(*following), /*fed=*/true);
    } catch (const Error &) {
      // It may never be asked for; if it is, it is started again.
      following.reset();
    }
  }
  wait();
  advance(tokens);
  int32_t chosen = *static_cast<const int32_t *>(theDevice->output(*nextBuffer));
  if (following) {
    following->tokens = {chosen};
    ahead = following;
  }
  if (!isInVocabulary(theArtifact->model(), chosen)) {
    try {
      // Says what is wrong with the logits.
      (void)greedy(logits());
    } catch (const Error &error) {
      throw explained(error);
    }
    failChoice(theArtifact->model(), chosen);
  }
  return chosen;
}

int64_t Session::verifyChunk() const {
  const Plan &plan = theArtifact->plan();
  std::optional<uint32_t> step = plan.verifyStep();
  return step ? plan.steps[*step].tokens : 1;
}

std::span<const float> Session::verify(std::span<const int32_t> tokens) {
  if (tokens.empty() || static_cast<int64_t>(tokens.size()) > verifyChunk())
    throw Error("a step has " + std::to_string(tokens.size()) + " tokens, expected 1 to " +
                std::to_string(verifyChunk()));
  if (tokens.size() == 1)
    return decode(tokens[0]);
  Inputs inputs = checkedInputs(tokens);
  inputs.allLogits = true;
  start(inputs);
  wait();
  advance(tokens);
  return {static_cast<const float *>(theDevice->output(*allLogitsBuffer)),
          tokens.size() * static_cast<size_t>(theArtifact->model().vocabSize)};
}

std::span<const float> Session::verified(int64_t row) {
  if (!last.allLogits)
    return logits();
  const size_t vocabulary = static_cast<size_t>(theArtifact->model().vocabSize);
  return {static_cast<const float *>(theDevice->output(*allLogitsBuffer)) + row * vocabulary,
          vocabulary};
}

int32_t Session::choose(int64_t row, Sampler &sampler, std::span<const int32_t> history) {
  std::span<const float> scores = verified(row);
  try {
    return sampler.sample(scores, history);
  } catch (const Error &error) {
    throw explained(error, scores);
  }
}

std::span<const float> Session::decode(int32_t token) {
  append(token);
  return logits();
}

std::vector<double> Session::score(std::span<const int32_t> tokens,
                                   std::span<const int32_t> targets) {
  std::span<const float> scores = verify(tokens);
  const size_t vocabulary = static_cast<size_t>(theArtifact->model().vocabSize);
  std::vector<double> results;
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::span<const float> row = scores.subspan(i * vocabulary, vocabulary);
    try {
      results.push_back(negativeLogLikelihood(row, targets[i]));
    } catch (const Error &error) {
      throw explained(error, row);
    }
  }
  return results;
}

Error Session::explained(const Error &error, std::span<const float> scores) {
  if (scores.empty())
    scores = logits();
  if (std::all_of(scores.begin(), scores.end(), [](float logit) { return std::isfinite(logit); }))
    return error;
  std::string where = firstNonFinite();
  return Error(error.what() + (where.empty() ? "" : "; " + where));
}

std::string Session::firstNonFinite() {
  const Plan &plan = theArtifact->plan();
  std::string found;
  // The caches hold what the last step found there, so that it does the same again.
  discardAhead();
  write(last);
  const uint32_t step = stepOf(last);
  theDevice->trace(step, [&](size_t index) {
    const Launch &launch = plan.steps[step].launches[index];
    for (uint32_t argument : launch.arguments) {
      BufferKind kind = plan.buffers[argument].kind;
      if (kind == BufferKind::Weights || kind == BufferKind::Input)
        continue;
      // What the launch reads was checked after the one that wrote it, so this is a result.
      if (std::optional<std::string> element = nonFiniteElement(argument)) {
        found = "the first result that is not finite is " + *element + ", of kernel \"" +
                printable(launch.kernel) + "\" for \"" + printable(launch.label) + "\"";
        return false;
      }
    }
    return true;
  });
  return found;
}

std::optional<std::string> Session::nonFiniteElement(uint32_t index) {
  const Buffer &buffer = theArtifact->plan().buffers[index];
  // Infinity and NaN have all bits of the exponent set.
  uint32_t exponent = buffer.type == "f32"    ? 0x7F800000
                      : buffer.type == "f16"  ? 0x7C00
                      : buffer.type == "bf16" ? 0x7F80
                                              : 0;
  if (!exponent)
    return std::nullopt;
  const size_t width = buffer.type == "f32" ? 4 : 2;
  std::vector<std::byte> part(std::min<uint64_t>(buffer.bytes, 1 << 20));
  for (uint64_t begin = 0; begin < buffer.bytes; begin += part.size()) {
    part.resize(std::min<uint64_t>(part.size(), buffer.bytes - begin));
    theDevice->read(index, begin, part);
    for (size_t at = 0; at + width <= part.size(); at += width) {
      uint32_t bits = 0;
      std::memcpy(&bits, part.data() + at, width);
      if ((bits & exponent) != exponent)
        continue;
      const uint32_t fraction = (1u << std::countr_zero(exponent)) - 1;
      std::string value = bits & fraction                ? "NaN"
                          : bits >> (8 * width - 1) != 0 ? "-infinity"
                                                         : "infinity";
      return "element " + std::to_string((begin + at) / width) + " of buffer \"" +
             printable(buffer.name) + "\" (" + buffer.type + "), " + value;
    }
  }
  return std::nullopt;
}

std::span<const float> Session::logits() {
  wait();
  if (last.allLogits)
    return verified(static_cast<int64_t>(last.tokens.size()) - 1);
  return {static_cast<const float *>(theDevice->output(logitsBuffer)),
          static_cast<size_t>(theArtifact->model().vocabSize)};
}

std::vector<double> Session::profile(std::span<const int32_t> tokens) {
  Inputs inputs = checkedInputs(tokens);
  // Choosing a token takes as long as it did.
  inputs.sampling = last.sampling;
  wait();
  discardAhead();
  write(inputs);
  return theDevice->profile(stepOf(inputs));
}

void Session::reset() {
  wait();
  discardAhead();
  theDevice->clearCaches();
  nextPosition = 0;
  sequence.clear();
}

void Session::seek(int64_t position) {
  if (position < 0 || position >= theArtifact->model().contextLength)
    throw Error("position " + std::to_string(position) + " is not in the context of " +
                std::to_string(theArtifact->model().contextLength));
  nextPosition = position;
  sequence.resize(static_cast<size_t>(position), -1);
}

int64_t Session::rewind(std::span<const int32_t> ids) {
  if (ids.empty())
    throw Error("there are no tokens to go back to, expected at least one");
  auto [end, ignored] = std::mismatch(sequence.begin(), sequence.end(), ids.begin(), ids.end() - 1);
  seek(end - sequence.begin());
  return position();
}

std::vector<std::byte> Session::readBuffer(std::string_view name) {
  const Plan &plan = theArtifact->plan();
  uint32_t index = plan.bufferIndex(name);
  wait();
  std::vector<std::byte> bytes(plan.buffers[index].bytes);
  theDevice->read(index, 0, bytes);
  return bytes;
}

std::vector<float> Session::readBufferAsFloat(std::string_view name) {
  const Plan &plan = theArtifact->plan();
  const Buffer &buffer = plan.buffers[plan.bufferIndex(name)];
  std::vector<std::byte> bytes = readBuffer(name);
  size_t count = 1;
  for (int64_t extent : buffer.shape)
    count *= static_cast<size_t>(extent);
  std::vector<float> values(count);
  if (buffer.type == "f32") {
    std::memcpy(values.data(), bytes.data(), count * sizeof(float));
  } else if (buffer.type == "f16") {
    for (size_t i = 0; i < count; ++i) {
      uint16_t half;
      std::memcpy(&half, bytes.data() + i * sizeof(half), sizeof(half));
      values[i] = sluice::support::f16ToFloat(half);
    }
  } else {
    throw Error("buffer \"" + buffer.name + "\" is of type " + buffer.type +
                ", expected f32 or f16");
  }
  return values;
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Batch.h"

#include "runtime/generate/Checks.h"

#include <algorithm>

using namespace sluice::runtime;

Batch::Batch(std::shared_ptr<const Artifact> artifact, const SessionOptions &options)
    : theArtifact(std::move(artifact)) {
  const Plan &plan = theArtifact->plan();
  theDevice = openDevice(theArtifact, options);
  sequences.resize(static_cast<size_t>(plan.model.batch));
  decodeStep = theDevice->decodeStep();
  tokenBuffer = plan.bufferIndex("token");
  positionBuffer = plan.bufferIndex("position");
  logitsBuffer = plan.bufferIndex("logits");
  countBuffer = plan.findBuffer("count");
  if (plan.samples()) {
    samplingBuffer = plan.bufferIndex("sampling");
    nextBuffer = plan.bufferIndex("next");
  }
}

int64_t Batch::size() const {
  return std::count_if(sequences.begin(), sequences.end(),
                       [](const Sequence &sequence) { return sequence.exists; });
}

const Batch::Sequence &Batch::at(int64_t sequence) const {
  if (sequence < 0 || sequence >= capacity() || !sequences[static_cast<size_t>(sequence)].exists)
    throw Error("there is no sequence " + std::to_string(sequence));
  return sequences[static_cast<size_t>(sequence)];
}

int64_t Batch::add(std::span<const int32_t> prompt, const SamplingOptions &sampling) {
  const ModelInfo &model = theArtifact->model();
  if (prompt.empty())
    throw Error("the prompt has no tokens, expected at least one");
  if (static_cast<int64_t>(prompt.size()) > model.contextLength)
    throw Error("the prompt has " + std::to_string(prompt.size()) + " tokens, the context " +
                std::to_string(model.contextLength) +
                "; compile the model with a longer one (--context)");
  checkTokens(model, prompt);
  auto place = std::find_if(sequences.begin(), sequences.end(),
                            [](const Sequence &sequence) { return !sequence.exists; });
  if (place == sequences.end())
    throw Error("there are " + std::to_string(capacity()) +
                " sequences already; compile the model for more (--batch)");
  Sampler sampler(sampling);
  *place = {true, {prompt.begin(), prompt.end()}, 0, std::move(sampler)};
  return place - sequences.begin();
}

void Batch::remove(int64_t sequence) {
  (void)at(sequence);
  sequences[static_cast<size_t>(sequence)] = {};
}

void Batch::seekAll(int64_t position) {
  for (Sequence &sequence : sequences)
    sequence = {true, std::vector<int32_t>(static_cast<size_t>(position) + 1, 0), position,
                Sampler({.temperature = 0})};
}

std::span<const float> Batch::logits(int64_t sequence) {
  (void)at(sequence);
  const size_t vocabulary = static_cast<size_t>(theArtifact->model().vocabSize);
  return {static_cast<const float *>(theDevice->output(logitsBuffer)) +
              static_cast<size_t>(sequence) * vocabulary,
          vocabulary};
}

int32_t Batch::choose(size_t place) {
  Sequence &sequence = sequences[place];
  if (!nextBuffer || sequence.sampler->needsHistory())
    return sequence.sampler->sample(logits(static_cast<int64_t>(place)), sequence.tokens);
  int32_t chosen = static_cast<const int32_t *>(theDevice->output(*nextBuffer))[place];
  if (!isInVocabulary(theArtifact->model(), chosen)) {
    // Says what is wrong with the logits.
    (void)greedy(logits(static_cast<int64_t>(place)));
    failChoice(theArtifact->model(), chosen);
  }
  return chosen;
}

std::span<const Batch::Choice> Batch::step() {
  if (std::none_of(sequences.begin(), sequences.end(),
                   [&](const Sequence &sequence) { return goesOn(sequence); }))
    throw Error("there is no sequence that can go on");
  // Places that take no part compute a token that nobody reads: at position 0 where they are free,
  // else at the sequence's last one, which stays as it is.
  std::vector<int32_t> tokens(sequences.size()), positions(sequences.size());
  std::vector<sampling::SamplingWords> words(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence &sequence = sequences[i];
    if (!sequence.exists)
      continue;
    int64_t position = goesOn(sequence) ? sequence.position : sequence.position - 1;
    positions[i] = static_cast<int32_t>(position);
    tokens[i] = sequence.tokens[static_cast<size_t>(position)];
    bool chooses = goesOn(sequence) && position + 1 == static_cast<int64_t>(sequence.tokens.size());
    if (samplingBuffer && chooses && !sequence.sampler->needsHistory())
      words[i] = sequence.sampler->nextWords();
  }
  theDevice->write(tokenBuffer, 0, std::as_bytes(std::span(tokens)));
  theDevice->write(positionBuffer, 0, std::as_bytes(std::span(positions)));
  if (countBuffer) {
    int32_t count = static_cast<int32_t>(sequences.size());
    theDevice->write(*countBuffer, 0, std::as_bytes(std::span(&count, 1)));
  }
  if (samplingBuffer)
    theDevice->write(*samplingBuffer, 0, std::as_bytes(std::span(words)));
  theDevice->run(decodeStep);
  choices.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence &sequence = sequences[i];
    if (!goesOn(sequence))
      continue;
    if (++sequence.position < static_cast<int64_t>(sequence.tokens.size()))
      continue;
    int32_t token = choose(i);
    sequence.tokens.push_back(token);
    choices.push_back({static_cast<int64_t>(i), token});
  }
  return choices;
}

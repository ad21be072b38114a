// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Batch.h"

#include "runtime/generate/Checks.h"

#include <algorithm>
#include <numeric>

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
  mostTokens = plan.mostTokens();
  if (mostTokens > 1) {
    tokensBuffer = plan.bufferIndex("tokens");
    positionsBuffer = plan.bufferIndex("positions");
  }
  if (pages()) {
    pagesBuffer = plan.bufferIndex("pages");
    promptPagesBuffer = plan.findBuffer("prompt_pages");
    // The first ones stand for places without a sequence.
    unused.resize(static_cast<size_t>(pages()));
    std::iota(unused.rbegin(), unused.rend(), static_cast<uint32_t>(capacity()));
    users.resize(static_cast<size_t>(capacity() + pages()));
  }
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

void Batch::extend(Sequence &sequence, int64_t positions) {
  while (pagesBuffer && static_cast<int64_t>(sequence.pages.size()) < pagesFor(positions)) {
    sequence.pages.push_back(unused.back());
    users[unused.back()] = 1;
    unused.pop_back();
  }
}

void Batch::drop(uint32_t page) {
  if (--users[page] == 0)
    unused.push_back(page);
}

void Batch::release(Sequence &sequence) {
  for (size_t i = sequence.pages.size(); i-- > 0;)
    drop(sequence.pages[i]);
  sequence = {};
}

std::pair<const Batch::Sequence *, int64_t> Batch::findShared(std::span<const int32_t> tokens,
                                                              int64_t position) const {
  const Sequence *best = nullptr;
  int64_t most = 0;
  if (!pagesBuffer)
    return {best, most};
  for (const Sequence &other : sequences) {
    if (!other.exists || !other.isComputed)
      continue;
    auto computed = tokens.first(std::min(static_cast<size_t>(other.position), tokens.size() - 1));
    auto differ = std::mismatch(computed.begin(), computed.end(), other.tokens.begin()).first;
    int64_t full = (differ - computed.begin()) / ModelInfo::kPagePositions;
    if (full > most && full * ModelInfo::kPagePositions > position) {
      best = &other;
      most = full;
    }
  }
  return {best, most};
}

void Batch::share(Sequence &sequence, const Sequence &other, int64_t count) {
  // What it has before its position is the same; behind it no other sequence has a page of it.
  for (size_t i = static_cast<size_t>(sequence.position / ModelInfo::kPagePositions);
       i < static_cast<size_t>(count); ++i) {
    ++users[other.pages[i]];
    if (i == sequence.pages.size()) {
      sequence.pages.push_back(other.pages[i]);
      continue;
    }
    drop(sequence.pages[i]);
    sequence.pages[i] = other.pages[i];
  }
  shared += count * ModelInfo::kPagePositions - sequence.position;
  sequence.position = count * ModelInfo::kPagePositions;
}

void Batch::shareRest() {
  for (Sequence &sequence : sequences) {
    if (!goesOn(sequence) || sequence.pending() == 1)
      continue;
    if (auto [other, count] = findShared(sequence.tokens, sequence.position); other)
      share(sequence, *other, count);
  }
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
  const int64_t positions = static_cast<int64_t>(prompt.size());
  auto [other, common] = findShared(prompt, 0);
  if (int64_t needed = pagesFor(positions) - common; pagesBuffer && needed > freePages())
    throw CachesFull("the prompt of " + std::to_string(positions) + " tokens needs " +
                     std::to_string(needed) + " pages of the caches" +
                     (common ? " beside " + std::to_string(common) + " that it shares" : "") +
                     ", " + std::to_string(freePages()) + " of " + std::to_string(pages()) +
                     " are free; remove a sequence, or compile the model with more "
                     "(--cache-pages)");
  Sampler sampler(sampling);
  *place = {true, {prompt.begin(), prompt.end()}, 0, std::move(sampler), {}, joined++};
  if (other)
    share(*place, *other, common);
  extend(*place, positions);
  return place - sequences.begin();
}

void Batch::remove(int64_t sequence) {
  (void)at(sequence);
  release(sequences[static_cast<size_t>(sequence)]);
}

void Batch::seekAll(int64_t position) {
  for (size_t i = sequences.size(); i-- > 0;)
    release(sequences[i]);
  if (pagesBuffer && capacity() * pagesFor(position + 1) > freePages())
    throw CachesFull(std::to_string(capacity()) + " sequences of " + std::to_string(position + 1) +
                     " positions need " + std::to_string(capacity() * pagesFor(position + 1)) +
                     " pages of the caches, there are " + std::to_string(pages()) +
                     "; compile the model with more (--cache-pages)");
  for (Sequence &sequence : sequences) {
    sequence = {true,     std::vector<int32_t>(static_cast<size_t>(position) + 1, 0),
                position, Sampler({.temperature = 0}),
                {},       joined++,
                false};
    extend(sequence, position + 1);
  }
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

void Batch::extendAll() {
  int64_t wanted = 0, first = -1;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence &sequence = sequences[i];
    if (!goesOn(sequence) ||
        pagesFor(sequence.position + 1) <= static_cast<int64_t>(sequence.pages.size()))
      continue;
    if (++wanted > freePages() && first < 0)
      first = static_cast<int64_t>(i);
  }
  if (first >= 0)
    throw CachesFull("sequence " + std::to_string(first) + " needs another page of the caches, " +
                     std::to_string(freePages()) + " of " + std::to_string(pages()) +
                     " are free for " + std::to_string(wanted) +
                     " sequences; remove a sequence, or compile the model with more "
                     "(--cache-pages)");
  for (Sequence &sequence : sequences)
    if (goesOn(sequence))
      extend(sequence, sequence.position + 1);
}

void Batch::fillRow(std::span<uint32_t> row, size_t place, std::span<const uint32_t> pages) const {
  std::fill(row.begin(), row.end(), static_cast<uint32_t>(place));
  std::copy(pages.begin(), pages.end(), row.begin());
}

void Batch::readPrompt(Sequence &sequence, int64_t count) {
  const Plan &plan = theArtifact->plan();
  const Step *chosen = nullptr;
  for (const Step &step : plan.steps)
    if (!step.allLogits && step.tokens >= count && (!chosen || step.tokens < chosen->tokens))
      chosen = &step;
  const int32_t *tokens = sequence.tokens.data() + sequence.position;
  std::vector<int32_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(sequence.position));
  const int32_t present = static_cast<int32_t>(count);
  theDevice->write(*tokensBuffer, 0, std::as_bytes(std::span(tokens, positions.size())));
  theDevice->write(*positionsBuffer, 0, std::as_bytes(std::span(positions)));
  theDevice->write(*countBuffer, 0, std::as_bytes(std::span(&present, 1)));
  if (promptPagesBuffer) {
    std::vector<uint32_t> row(static_cast<size_t>(plan.buffers[*promptPagesBuffer].shape[1]));
    fillRow(row, static_cast<size_t>(&sequence - sequences.data()), sequence.pages);
    theDevice->write(*promptPagesBuffer, 0, std::as_bytes(std::span(row)));
  }
  theDevice->run(static_cast<uint32_t>(chosen - plan.steps.data()));
  sequence.position += count;
}

void Batch::readPrompts() {
  if (mostTokens == 1)
    return;
  auto anyDecodes = [&] {
    return std::any_of(sequences.begin(), sequences.end(),
                       [&](const Sequence &sequence) { return decodes(sequence); });
  };
  do {
    Sequence *behind = nullptr;
    for (Sequence &sequence : sequences)
      if (goesOn(sequence) && !decodes(sequence) && (!behind || sequence.number < behind->number))
        behind = &sequence;
    if (!behind)
      return;
    readPrompt(*behind, std::min(behind->pending() - 1, mostTokens));
    shareRest();
  } while (!anyDecodes());
}

void Batch::decode() {
  // Places that take no part compute a token that nobody reads: in a page of their own, at position
  // 0, or where a sequence's context is full at its last position, which stays as it is.
  std::vector<int32_t> tokens(sequences.size()), positions(sequences.size());
  std::vector<sampling::SamplingWords> words(sequences.size());
  const size_t tiles =
      pagesBuffer ? static_cast<size_t>(theArtifact->plan().buffers[*pagesBuffer].shape[1]) : 0;
  std::vector<uint32_t> table(sequences.size() * tiles);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence &sequence = sequences[i];
    const bool isThere = sequence.exists && (decodes(sequence) || !goesOn(sequence));
    if (pagesBuffer)
      fillRow(std::span(table).subspan(i * tiles, tiles), i,
              isThere ? sequence.pages : std::span<const uint32_t>());
    if (!isThere)
      continue;
    int64_t position = goesOn(sequence) ? sequence.position : sequence.position - 1;
    positions[i] = static_cast<int32_t>(position);
    tokens[i] = sequence.tokens[static_cast<size_t>(position)];
    bool chooses = goesOn(sequence) && sequence.pending() == 1;
    if (samplingBuffer && chooses && !sequence.sampler->needsHistory())
      words[i] = sequence.sampler->nextWords();
  }
  theDevice->write(tokenBuffer, 0, std::as_bytes(std::span(tokens)));
  theDevice->write(positionBuffer, 0, std::as_bytes(std::span(positions)));
  if (pagesBuffer)
    theDevice->write(*pagesBuffer, 0, std::as_bytes(std::span(table)));
  if (countBuffer) {
    int32_t count = static_cast<int32_t>(sequences.size());
    theDevice->write(*countBuffer, 0, std::as_bytes(std::span(&count, 1)));
  }
  if (samplingBuffer)
    theDevice->write(*samplingBuffer, 0, std::as_bytes(std::span(words)));
  theDevice->run(decodeStep);
}

std::span<const Batch::Choice> Batch::step() {
  if (std::none_of(sequences.begin(), sequences.end(),
                   [&](const Sequence &sequence) { return goesOn(sequence); }))
    throw Error("there is no sequence that can go on");
  shareRest();
  extendAll();
  readPrompts();
  decode();
  choices.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence &sequence = sequences[i];
    if (!decodes(sequence))
      continue;
    if (++sequence.position < static_cast<int64_t>(sequence.tokens.size()))
      continue;
    int32_t token = choose(i);
    sequence.tokens.push_back(token);
    choices.push_back({static_cast<int64_t>(i), token});
  }
  return choices;
}

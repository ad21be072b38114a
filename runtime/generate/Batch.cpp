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
  mostTokens = plan.mostTokens();
  if (mostTokens > 1) {
    countBuffer = plan.bufferIndex("count");
    tokensBuffer = plan.bufferIndex("tokens");
    positionsBuffer = plan.bufferIndex("positions");
  }
  if (pages()) {
    pagesBuffer = plan.bufferIndex("pages");
    sequencesBuffer = plan.findBuffer("sequences");
    startsBuffer = plan.findBuffer("starts");
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

/// Whole pages of equal tokens that two sequences begin with.
static int64_t fullPages(std::span<const int32_t> x, std::span<const int32_t> y) {
  auto [end, other] = std::mismatch(x.begin(), x.end(), y.begin(), y.end());
  return (end - x.begin()) / ModelInfo::kPagePositions;
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
    int64_t full = fullPages(tokens.first(tokens.size() - 1),
                             std::span(other.tokens).first(static_cast<size_t>(other.position)));
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
  place->start({prompt.begin(), prompt.end()}, Sampler(sampling), joined++);
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
    sequence.start(std::vector<int32_t>(static_cast<size_t>(position) + 1, 0),
                   Sampler({.temperature = 0}), joined++);
    sequence.position = position;
    sequence.isComputed = false;
    extend(sequence, position + 1);
  }
}

std::span<const float> Batch::logits(int64_t sequence) {
  if (const Sequence &found = at(sequence); !found.logits.empty())
    return found.logits;
  const size_t vocabulary = static_cast<size_t>(theArtifact->model().vocabSize);
  return {static_cast<const float *>(theDevice->output(logitsBuffer)) +
              static_cast<size_t>(sequence) * vocabulary,
          vocabulary};
}

void Batch::choose(size_t place) {
  int32_t token = chosenBy(place);
  sequences[place].tokens.push_back(token);
  choices.push_back({static_cast<int64_t>(place), token});
}

int32_t Batch::chosenBy(size_t place) {
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
  if (!pagesBuffer)
    return;
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

void Batch::writePages(const std::function<bool(size_t place)> &isThere) {
  if (!pagesBuffer)
    return;
  const size_t tiles = static_cast<size_t>(theArtifact->plan().buffers[*pagesBuffer].shape[1]);
  std::vector<uint32_t> table;
  for (size_t place = 0; place < sequences.size(); ++place) {
    if (isThere(place))
      table.insert(table.end(), sequences[place].pages.begin(), sequences[place].pages.end());
    table.resize((place + 1) * tiles, static_cast<uint32_t>(place));
  }
  write<uint32_t>(*pagesBuffer, table);
}

void Batch::writeSampling(const std::function<bool(size_t place)> &chooses) {
  if (!samplingBuffer)
    return;
  std::vector<sampling::SamplingWords> words(sequences.size());
  for (size_t place = 0; place < sequences.size(); ++place)
    if (chooses(place) && !sequences[place].sampler->needsHistory())
      words[place] = sequences[place].sampler->nextWords();
  write<sampling::SamplingWords>(*samplingBuffer, words);
}

void Batch::readChunk(std::span<const int64_t> counts) {
  std::vector<int32_t> tokens, positions, owners, starts = {0};
  for (size_t place = 0; place < sequences.size(); ++place) {
    const Sequence &sequence = sequences[place];
    for (int64_t i = 0; i < counts[place]; ++i) {
      const int64_t position = sequence.position + i;
      tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
      positions.push_back(static_cast<int32_t>(position));
      owners.push_back(static_cast<int32_t>(place));
    }
    starts.push_back(static_cast<int32_t>(tokens.size()));
  }
  const int32_t count = starts.back();
  const Step *chosen = nullptr;
  const Plan &plan = theArtifact->plan();
  for (const Step &step : plan.steps)
    if (!step.allLogits && step.tokens >= count && (!chosen || step.tokens < chosen->tokens))
      chosen = &step;
  auto ends = [&](size_t place) {
    return counts[place] && counts[place] == sequences[place].pending();
  };
  write<int32_t>(*tokensBuffer, tokens);
  write<int32_t>(*positionsBuffer, positions);
  write<int32_t>(*countBuffer, std::span(&count, 1));
  if (startsBuffer) {
    write<int32_t>(*sequencesBuffer, owners);
    write<int32_t>(*startsBuffer, starts);
  }
  writePages([&](size_t place) { return counts[place] > 0; });
  writeSampling(ends);
  theDevice->run(static_cast<uint32_t>(chosen - plan.steps.data()));
  for (size_t place = 0; place < sequences.size(); ++place) {
    Sequence &sequence = sequences[place];
    const bool isAtEnd = ends(place);
    sequence.position += counts[place];
    if (!isAtEnd)
      continue;
    choose(place);
    // The step that follows has other logits there.
    const size_t vocabulary = static_cast<size_t>(plan.model.vocabSize);
    sequence.logits.resize(vocabulary);
    theDevice->read(logitsBuffer, place * vocabulary * sizeof(float),
                    std::as_writable_bytes(std::span(sequence.logits)));
    sequence.chose = true;
  }
}

bool Batch::waits(const Sequence &sequence) const {
  if (!pagesBuffer)
    return false;
  auto shareable = std::span(sequence.tokens).first(sequence.tokens.size() - 1);
  return std::any_of(sequences.begin(), sequences.end(), [&](const Sequence &other) {
    return goesOn(other) && !other.chose && !decodes(other) && other.number < sequence.number &&
           fullPages(shareable, other.tokens) * ModelInfo::kPagePositions > sequence.position;
  });
}

void Batch::readPrompts() {
  if (mostTokens == 1)
    return;
  do {
    std::vector<size_t> behind;
    for (size_t place = 0; place < sequences.size(); ++place) {
      const Sequence &sequence = sequences[place];
      if (goesOn(sequence) && !sequence.chose && !decodes(sequence) && !waits(sequence))
        behind.push_back(place);
    }
    if (behind.empty())
      return;
    std::sort(behind.begin(), behind.end(),
              [&](size_t x, size_t y) { return sequences[x].number < sequences[y].number; });
    std::vector<int64_t> counts(sequences.size());
    int64_t room = mostTokens;
    for (size_t place : behind) {
      counts[place] = std::min(sequences[place].pending(), room);
      room -= counts[place];
    }
    readChunk(counts);
    shareRest();
  } while (choices.empty() && !anyDecodes());
}

void Batch::decode() {
  // Places that take no part compute a token that nobody reads: in a page of their own, at position
  // 0, or where a sequence's context is full at its last position, which stays as it is.
  auto isThere = [&](size_t place) {
    const Sequence &sequence = sequences[place];
    return sequence.exists && (decodes(sequence) || !goesOn(sequence));
  };
  std::vector<int32_t> tokens(sequences.size()), positions(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence &sequence = sequences[i];
    if (!isThere(i))
      continue;
    int64_t position = goesOn(sequence) ? sequence.position : sequence.position - 1;
    positions[i] = static_cast<int32_t>(position);
    tokens[i] = sequence.tokens[static_cast<size_t>(position)];
  }
  write<int32_t>(tokenBuffer, tokens);
  write<int32_t>(positionBuffer, positions);
  writePages(isThere);
  writeSampling(
      [&](size_t place) { return decodes(sequences[place]) && sequences[place].pending() == 1; });
  theDevice->run(decodeStep);
  for (size_t i = 0; i < sequences.size(); ++i)
    if (decodes(sequences[i]) &&
        ++sequences[i].position == static_cast<int64_t>(sequences[i].tokens.size()))
      choose(i);
}

std::span<const Batch::Choice> Batch::step() {
  if (std::none_of(sequences.begin(), sequences.end(),
                   [&](const Sequence &sequence) { return goesOn(sequence); }))
    throw Error("there is no sequence that can go on");
  choices.clear();
  for (Sequence &sequence : sequences) {
    sequence.chose = false;
    sequence.logits.clear();
  }
  shareRest();
  extendAll();
  readPrompts();
  if (anyDecodes())
    decode();
  std::sort(choices.begin(), choices.end(),
            [](const Choice &x, const Choice &y) { return x.sequence < y.sequence; });
  return choices;
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Several sequences that are decoded together: a step reads the weights once for all of them.

#ifndef SLUICE_RUNTIME_BATCH_H
#define SLUICE_RUNTIME_BATCH_H

#include "sluice-runtime/Session.h"

#include <algorithm>
#include <functional>

namespace sluice::runtime {

/// No page of the caches is free; nothing has changed, and goes on when a sequence has left.
class CachesFull : public Error {
public:
  using Error::Error;
};

/// An artifact that was compiled for several sequences (--batch), on a device. Sequences join and
/// leave between steps; each has a position, a length and a sampler of its own. Used by one thread
/// at a time. Functions throw Error.
///
/// The caches are pages of 32 positions. A sequence takes those of its prompt when it joins,
/// another one when it has filled them, and gives all back when it leaves. There may be fewer than
/// all sequences need that are as long as the context (--cache-pages).
///
/// Where a prompt begins as the tokens of another sequence that is there, the pages that are full
/// of such tokens, and that the other one has computed, are had by both instead of computed again;
/// a page is free when the last one that has it leaves. No sequence writes into a page that another
/// one has, too: it is full, and where a sequence writes grows. So that there are logits to choose
/// by, a prompt's last token is computed in any case.
///
/// Prompts are read by the artifact's steps of many tokens, which take those of several sequences
/// together: as many as there is room for of the one that joined first, then of the next one.
/// A sequence whose prompt ends in such a step chooses its first token by it. Before the step in
/// which all others go on a token at most one such step is run, so that a long prompt holds them up
/// by no more than that; where no sequence would go on, as many as it takes until one does. A
/// sequence that is behind in its prompt waits; so does one that could share what another prompt is
/// about to compute. Without such steps (--prefill none) prompts are read a token a step, beside
/// the others' answers. What a sequence chooses is the same in any case.
class Batch {
public:
  explicit Batch(std::shared_ptr<const Artifact> artifact, const SessionOptions &options = {});

  const Artifact &artifact() const { return *theArtifact; }
  Device &device() { return *theDevice; }

  /// The most sequences that there can be, and how many there are.
  int64_t capacity() const { return static_cast<int64_t>(sequences.size()); }
  int64_t size() const;

  /// Pages that there are, and that no sequence has; 0 of an artifact of one sequence.
  int64_t pages() const { return theArtifact->model().cachePages; }
  int64_t freePages() const { return static_cast<int64_t>(unused.size()); }
  /// Tokens of prompts that were not computed, because another sequence had their pages; of all
  /// sequences that there have been.
  int64_t sharedTokens() const { return shared; }

  /// Adds a sequence that begins with `prompt`, at least one token; returns its number, 0 to
  /// capacity() - 1. An Error, and no change, if there are as many as there can be, a token is not
  /// in the vocabulary or the prompt does not fit into the context; CachesFull if it does not fit
  /// into the free pages and those that it shares.
  int64_t add(std::span<const int32_t> prompt, const SamplingOptions &sampling = {});

  /// A token that a sequence chose; it is the sequence's next one.
  struct Choice {
    int64_t sequence;
    int32_t token;
  };
  /// Takes every sequence one token on. Returns what those chose that are behind their prompts,
  /// valid until the next step; a sequence whose context is full takes no part any more. An Error
  /// if there is no sequence that could go on; CachesFull if there are fewer free pages than
  /// sequences that need one.
  std::span<const Choice> step();

  /// Removes a sequence; its number is free for others, and so are its pages that no other one has.
  void remove(int64_t sequence);

  /// All tokens of a sequence, its prompt included; how many of them have been in a step.
  std::span<const int32_t> tokens(int64_t sequence) const { return at(sequence).tokens; }
  int64_t position(int64_t sequence) const { return at(sequence).position; }
  /// The logits of a sequence that went on in the last step, valid until the next one.
  std::span<const float> logits(int64_t sequence);

  /// Makes every place a sequence at `position`, to measure a step as it is there. CachesFull, and
  /// no sequence is left, if there are not pages for all.
  void seekAll(int64_t position);

private:
  struct Sequence {
    bool exists = false;
    std::vector<int32_t> tokens;
    int64_t position = 0;
    std::optional<Sampler> sampler;
    /// Of its positions, in order.
    std::vector<uint32_t> pages;
    /// How many joined before it.
    uint64_t number = 0;
    /// Whether its pages hold what its tokens are; not where a step is only measured.
    bool isComputed = true;
    /// Whether it chose in this step already, behind its prompt, and by which logits.
    bool chose = false;
    std::vector<float> logits;
    void start(std::vector<int32_t> prompt, Sampler chooser, uint64_t before) {
      exists = true;
      tokens = std::move(prompt);
      sampler = std::move(chooser);
      number = before;
    }
    /// Tokens that have not been in a step.
    int64_t pending() const { return static_cast<int64_t>(tokens.size()) - position; }
  };
  const Sequence &at(int64_t sequence) const;
  bool goesOn(const Sequence &sequence) const {
    return sequence.exists && sequence.position < theArtifact->model().contextLength &&
           sequence.position < static_cast<int64_t>(sequence.tokens.size());
  }
  /// Whether it has a row in the next step that decodes.
  bool decodes(const Sequence &sequence) const {
    return goesOn(sequence) && !sequence.chose && (mostTokens == 1 || sequence.pending() == 1);
  }
  bool anyDecodes() const {
    return std::any_of(sequences.begin(), sequences.end(),
                       [&](const Sequence &sequence) { return decodes(sequence); });
  }
  /// The sequence's next token, by the logits of the step that was run.
  void choose(size_t place);
  int32_t chosenBy(size_t place);
  /// Pages for so many positions.
  int64_t pagesFor(int64_t positions) const {
    return (positions + ModelInfo::kPagePositions - 1) / ModelInfo::kPagePositions;
  }
  /// Gives a sequence pages for so many positions, of those that are free.
  void extend(Sequence &sequence, int64_t positions);
  void release(Sequence &sequence);
  /// A page that a sequence has no more; free if no other one has it.
  void drop(uint32_t page);
  /// The sequence that has computed the most pages of `tokens`, and how many: they do not reach the
  /// last token, and reach behind `position`. Null and 0 if there is none.
  std::pair<const Sequence *, int64_t> findShared(std::span<const int32_t> tokens,
                                                  int64_t position) const;
  /// Takes `count` pages from `other` in place of its own, and goes on behind them.
  void share(Sequence &sequence, const Sequence &other, int64_t count);
  /// What others have computed of prompts since these joined.
  void shareRest();
  /// Gives a page to every sequence whose next position needs one, or throws.
  void extendAll();
  /// Runs the steps for prompts that come before the next one that decodes.
  void readPrompts();
  /// Whether an earlier prompt that is being read has pages that this one could share.
  bool waits(const Sequence &sequence) const;
  /// Runs a step of tokens of prompts: so many of each place.
  void readChunk(std::span<const int64_t> counts);
  void decode();
  /// Writes the page table: the pages of places of which `isThere` holds, else a place's own one.
  void writePages(const std::function<bool(size_t place)> &isThere);
  /// Writes what the places that choose by the next step are chosen by.
  void writeSampling(const std::function<bool(size_t place)> &chooses);
  template <typename T> void write(uint32_t buffer, std::span<const T> values) {
    theDevice->write(buffer, 0, std::as_bytes(values));
  }

  std::shared_ptr<const Artifact> theArtifact;
  std::unique_ptr<Device> theDevice;
  std::vector<Sequence> sequences;
  std::vector<Choice> choices;
  uint64_t joined = 0;
  /// Numbers of pages, the next one last.
  std::vector<uint32_t> unused;
  /// How many sequences have a page, by its number.
  std::vector<int64_t> users;
  int64_t shared = 0;
  /// Of steps for prompts; 1 if there are none.
  int64_t mostTokens = 1;
  uint32_t decodeStep, tokenBuffer, positionBuffer, logitsBuffer;
  std::optional<uint32_t> countBuffer, samplingBuffer, nextBuffer, pagesBuffer;
  std::optional<uint32_t> tokensBuffer, positionsBuffer, sequencesBuffer, startsBuffer;
};

struct BatchCallbacks {
  /// After each step, with the number of tokens that were chosen in it; false ends all texts.
  std::function<bool(size_t tokens)> onStep;
  /// When a text has ended, with its prompt's place.
  std::function<void(size_t prompt, const GenerateResult &result)> onEnd;
};
/// Continues every prompt by the same options, as many of them together as the batch has places
/// and pages for; the next one joins when a place is free. Each text is what the prompt alone would
/// have become: each has a sampler that starts from the seed. Where pages run out between, the
/// text that joined last leaves, and is begun again later. A result's `seconds` is the time from
/// the call to its end. The batch must have no sequences, and has none afterwards. An Error if a
/// prompt cannot be added to a batch without others, or there is a drafter; the batch may have
/// sequences then.
std::vector<GenerateResult> generate(Batch &batch, std::span<const std::vector<int32_t>> prompts,
                                     const GenerateOptions &options,
                                     const BatchCallbacks &callbacks = {});

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_BATCH_H

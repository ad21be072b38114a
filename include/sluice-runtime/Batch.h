// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Several sequences that are decoded together: a step reads the weights once for all of them.

#ifndef SLUICE_RUNTIME_BATCH_H
#define SLUICE_RUNTIME_BATCH_H

#include "sluice-runtime/Session.h"

namespace sluice::runtime {

/// An artifact that was compiled for several sequences (--batch), on a device. Sequences join and
/// leave between steps; each has a position, a length and a sampler of its own. Their prompts are
/// read a token a step. Used by one thread at a time. Functions throw Error.
class Batch {
public:
  explicit Batch(std::shared_ptr<const Artifact> artifact, const SessionOptions &options = {});

  const Artifact &artifact() const { return *theArtifact; }
  Device &device() { return *theDevice; }

  /// The most sequences that there can be, and how many there are.
  int64_t capacity() const { return static_cast<int64_t>(sequences.size()); }
  int64_t size() const;

  /// Adds a sequence that begins with `prompt`, at least one token; returns its number, 0 to
  /// capacity() - 1. An Error, and no change, if there are as many as there can be, a token is not
  /// in the vocabulary or the prompt does not fit into the context.
  int64_t add(std::span<const int32_t> prompt, const SamplingOptions &sampling = {});

  /// A token that a sequence chose; it is the sequence's next one.
  struct Choice {
    int64_t sequence;
    int32_t token;
  };
  /// Takes every sequence one token on. Returns what those chose that are behind their prompts,
  /// valid until the next step; a sequence whose context is full takes no part any more. An Error
  /// if there is no sequence that could go on.
  std::span<const Choice> step();

  /// Removes a sequence; its number is free for another one.
  void remove(int64_t sequence);

  /// All tokens of a sequence, its prompt included; how many of them have been in a step.
  std::span<const int32_t> tokens(int64_t sequence) const { return at(sequence).tokens; }
  int64_t position(int64_t sequence) const { return at(sequence).position; }
  /// The logits of a sequence in the last step, valid until the next one.
  std::span<const float> logits(int64_t sequence);

  /// Makes every place a sequence at `position`, to measure a step as it is there.
  void seekAll(int64_t position);

private:
  struct Sequence {
    bool exists = false;
    std::vector<int32_t> tokens;
    int64_t position = 0;
    std::optional<Sampler> sampler;
  };
  const Sequence &at(int64_t sequence) const;
  bool goesOn(const Sequence &sequence) const {
    return sequence.exists && sequence.position < theArtifact->model().contextLength &&
           sequence.position < static_cast<int64_t>(sequence.tokens.size());
  }
  int32_t choose(size_t place);

  std::shared_ptr<const Artifact> theArtifact;
  std::unique_ptr<Device> theDevice;
  std::vector<Sequence> sequences;
  std::vector<Choice> choices;
  uint32_t decodeStep, tokenBuffer, positionBuffer, logitsBuffer;
  std::optional<uint32_t> countBuffer, samplingBuffer, nextBuffer;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_BATCH_H

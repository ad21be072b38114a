// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention over random keys and values: its text, its buffers, and what the definition makes of
// them. For kernels of hosts and GPUs alike.

#ifndef SLUICE_TEST_UNIT_COMPILER_CACHEDATTENTION_H
#define SLUICE_TEST_UNIT_COMPILER_CACHEDATTENTION_H

#include "HostKernels.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/CacheScheme.h"
#include "sluice/Reference/Ops.h"

namespace sluice::test {

/// Formats of keys and values.
using CachePair = std::pair<const char *, const char *>;
/// Every format of keys with every one of values.
std::vector<CachePair> allCachePairs();
/// As a test's name: "int8_h32_rot_f16".
std::string cachePairName(const CachePair &pair);

struct CachedAttention {
  int64_t dim = 64, heads = 2, group = 2, tokens = 1, sequences = 1, positions = 320;
  formats::CacheChoice keyChoice = {}, valueChoice = {};
  /// Whether the operation appends the step's key and value, as it must where they are rounded by
  /// heads.
  bool appends = false;
  double scale = 0.125;
  std::optional<int64_t> window = std::nullopt;
  std::optional<double> softCap = std::nullopt;
  /// Rows that the operation is made for, of which `tokens` are there: neighbouring tokens of one
  /// sequence. What it appends is then appended by an operation of its own.
  std::optional<int64_t> rows = std::nullopt;
  /// Whether that one stores the query as f16, as it may for keys in f16 or fp8.
  bool halfQuery = false;
  /// What the operation does to queries and new keys before it rotates and rounds them.
  bool norms = false;
  enum class Rotary { None, Halves, Interleaved } rotary = Rotary::None;

  /// `keys` and `values` name formats; "int4-rot" rotates keys.
  CachedAttention &caches(llvm::StringRef keys, llvm::StringRef values);

  formats::CacheShape shape(bool keys, bool isGpu) const;
  int64_t width() const { return heads * group * dim; }
  /// Whether new keys are computed with, so that a number may be rounded to the other side.
  bool computes() const { return norms || rotary != Rotary::None; }
  /// The module: one function with one attention. Arguments of its kernel are the query, new keys
  /// and values if it appends, positions, the norms' gains and the rotary table if it has them,
  /// keys, values and the result. With `rows` the number of tokens follows positions; and if
  /// something is appended, there are two kernels, the append's first.
  std::string text(const std::string &schedule, bool isGpu,
                   const std::string &appendSchedule = "") const;

  /// Keys and values of all positions, the query of every token.
  struct Data {
    std::vector<float> query, keys, values;
  };
  Data data(Random &random) const;

  /// A step with the tokens at `positions`.
  struct Step {
    std::vector<Buffer> buffers; ///< in the order of the kernel's arguments, the result last
    std::optional<Buffer> query; ///< of an append of its own, its result
    std::vector<double> expected;
    std::vector<uint8_t> keysAfter, valuesAfter; ///< the bytes of the caches after the step
    bool isGpu = false;
    std::vector<int32_t> positions;
    reference::Tensor attended;            ///< the queries that meet the keys
    reference::Cache keysRead, valuesRead; ///< the caches after the step
    std::vector<Buffer *> arguments();
    /// Of the two kernels where the append has its own.
    std::vector<Buffer *> appendArguments(), attentionArguments();
  };
  /// What no position has yet, and what is behind the window, is there as 0xFF, which is NaN in
  /// every format.
  Step step(const Data &data, const std::vector<int32_t> &positions, bool isGpu) const;
  /// Compares the result with the definition and, if the step appends, the caches: bit for bit, but
  /// where the step computes with new keys, a few of their codes may be neighbours; the result is
  /// then that of the keys that were stored.
  void check(Step &step, double tolerance) const;

private:
  /// Heads of `x`, of which row r is at positions[r], as they meet each other: normalised with
  /// `gain`, turned, rotated.
  reference::Tensor prepared(reference::Tensor x, llvm::ArrayRef<float> gain,
                             const std::vector<int32_t> &positions) const;
  std::vector<float> gain(bool keys) const;
  reference::Tensor ropeTable() const;
  static constexpr double epsilon = 1e-5, theta = 10000;
};

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILER_CACHEDATTENTION_H

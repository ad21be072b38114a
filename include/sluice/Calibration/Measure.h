// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Runs a model over calibration text and writes what it sees to a file of statistics
// (Calibration/Statistics.h). No MLIR type appears here, so that tools need none.
//
// clang-format off
//
//   statistics    windows of 512 tokens go through the model segment by segment (ForwardPass.h);
//                 moments and Hessians are sums over the inputs of its products
//   sensitivity   of a weight W [N, K]: noise E, whose elements are +s or -s at random with
//                 s^2 = noise |W|^2 / (N K), is added to W for the first windows, and the results
//                 are compared with those without:
//                   a = (mean of D(p || p')) * N_white / (mean of |E x_t|^2)
//                 so that how much of the noise these tokens met does not matter
//   caches        the same with keys or values of one layer rounded as formats::CacheEncoding has
//                 it; "-rot" rotates keys by a Walsh-Hadamard matrix before and after
//
// clang-format on
//
// What was changed in a segment goes on as a stream of its own through all later ones, so that each
// weight is read once for all of them. A stream is [tokens, width] float32; where all of them need
// more than a quarter of the machine's memory, they go in several rounds.

#ifndef SLUICE_CALIBRATION_MEASURE_H
#define SLUICE_CALIBRATION_MEASURE_H

#include "sluice/Calibration/Statistics.h"
#include "sluice/Import/ModelFiles.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <string>

namespace sluice::calibration {

/// Tokens of a window, or the model's context if that is shorter.
inline constexpr int64_t calibrationWindow = 512;

struct MeasureOptions {
  /// The text's tokens. Each window's first one is replaced by `bosId` unless that is negative.
  llvm::ArrayRef<int32_t> tokens;
  int32_t bosId = -1;
  /// Tokens for moments and Hessians, and how many of them for sensitivities and caches (0: none):
  /// both rounded up to whole windows, of which the text may have fewer.
  int64_t statisticsTokens = 16384, sensitivityTokens = 1024;
  bool hessians = true;
  uint64_t seed = 0;
  /// Squared size of the noise, relative to the weight's: far above the rounding of float32, and
  /// where the divergence is still proportional to it.
  double noise = 0.04;
  /// XXH3 of the text, in hexadecimal digits: for the file alone.
  std::string textChecksum;
  /// Bytes that streams may have; 0: a quarter of the memory.
  uint64_t streamBytes = 0;
  /// Called with what is being done and how much of it (0 to 1), one call at a time. May be empty.
  std::function<void(llvm::StringRef what, double done)> progress;
};

struct MeasureSummary {
  StatisticsSource source;
  size_t inputs = 0, weights = 0, layers = 0;
  bool hessians = false;
  uint64_t fileBytes = 0;
};

/// Measures and writes `path`, which appears when it is complete. The numbers do not depend on the
/// number of threads. Errors: a model without weights, or whose results are not finite; a text of
/// less than one window; a token that the model has not; errors of reading and writing.
llvm::Expected<MeasureSummary> measure(const ModelFiles &model, llvm::StringRef path,
                                       const MeasureOptions &options);

} // namespace sluice::calibration

#endif // SLUICE_CALIBRATION_MEASURE_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Predicts what rounding a weight or a cache costs, as a divergence from the unquantized model.
//
//   a weight W in a format:  sensitivity * (error of its product's output, relative to that of
//                            white noise of the weight's size); the error is that of some rows,
//                            really rounded
//   a cache in a format:     what was measured with this cache alone in that format
//
// Divergences of weights and caches add up. docs/planner.md has where this comes from and how well
// it holds.

#ifndef SLUICE_LIB_PLANNER_ERRORMODEL_H
#define SLUICE_LIB_PLANNER_ERRORMODEL_H

#include "sluice/Calibration/Statistics.h"
#include "sluice/Formats/CacheScheme.h"
#include "sluice/Formats/Encoding.h"

#include "dialects/Model/Model.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace sluice::planner {

/// A weight that is to be rounded in one of some formats.
struct RoundingTask {
  model::WeightOp weight;
  int64_t rows = 0, columns = 0;
  std::vector<formats::Encoding> encodings;
  /// An entry for each encoding, in nats a token.
  std::vector<double> divergences;
};

class ErrorModel {
public:
  /// `statistics`: a file, or empty: then sensitivities are what models commonly have.
  static llvm::Expected<ErrorModel> create(mlir::ModuleOp module, llvm::StringRef statistics);

  /// Fills the divergences of all tasks, on all processors.
  llvm::Error predict(llvm::MutableArrayRef<RoundingTask> tasks,
                      const std::function<void(double done)> &progress) const;

  /// Of the keys or values of layer `layer` alone; nothing where that was not measured.
  std::optional<double> keys(int64_t layer, const formats::CacheChoice &choice) const;
  std::optional<double> values(int64_t layer, const formats::CacheChoice &choice) const;

  /// How a weight is rounded, for people; empty without statistics.
  llvm::StringRef roundingOf(llvm::StringRef weight) const {
    return statistics ? calibration::roundingName(statistics->inputOf(weight)) : "";
  }

  bool hasStatistics() const { return statistics.has_value(); }
  /// How much greater an error may be than what is predicted.
  double margin() const;
  /// "statistics of 4096 tokens"; "the weights alone".
  std::string basis() const;

private:
  /// Without sensitivities predictions were seen to miss by up to this factor (docs/planner.md).
  static constexpr double kMarginWithoutSensitivities = 3;

  mlir::ModuleOp module;
  std::optional<calibration::Statistics> statistics;
  std::string statisticsPath;
};

} // namespace sluice::planner

#endif // SLUICE_LIB_PLANNER_ERRORMODEL_H

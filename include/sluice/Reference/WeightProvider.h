// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Provides the reference evaluator with the numbers of `model.weight`.

#ifndef SLUICE_REFERENCE_WEIGHTPROVIDER_H
#define SLUICE_REFERENCE_WEIGHTPROVIDER_H

#include "dialects/Model/Model.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Reference/Tensor.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"

#include <memory>

namespace sluice::reference {

class WeightProvider {
public:
  virtual ~WeightProvider();
  /// The numbers of a weight, rows in the order of its file: the caller undoes
  /// `interleaved`.
  virtual llvm::Expected<WeightValue> read(model::WeightOp weight) = 0;
};

/// Reads the model files that weights name. A synthetic weight is an error.
class FileWeights : public WeightProvider {
public:
  explicit FileWeights(std::shared_ptr<FileSet> files) : files(std::move(files)) {}
  /// The files of a module that knows its source (`model.source`).
  static llvm::Expected<FileWeights> open(mlir::ModuleOp module);

  llvm::Expected<WeightValue> read(model::WeightOp weight) override;

private:
  std::shared_ptr<FileSet> files;
};

/// Weights by name, for tests. A name that is missing is an error.
class ArrayWeights : public WeightProvider {
public:
  void set(llvm::StringRef name, WeightValue value) { weights[name] = std::move(value); }
  llvm::Expected<WeightValue> read(model::WeightOp weight) override;

private:
  llvm::StringMap<WeightValue> weights;
};

} // namespace sluice::reference

#endif // SLUICE_REFERENCE_WEIGHTPROVIDER_H

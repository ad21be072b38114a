// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Runs a module of the first stages (model, quantized, fused, scheduled) and so defines what its
// operations mean. Ops.h has the operations; this walks over them.

#ifndef SLUICE_REFERENCE_EVALUATOR_H
#define SLUICE_REFERENCE_EVALUATOR_H

#include "sluice/Reference/Tensor.h"
#include "sluice/Reference/WeightProvider.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <memory>

namespace sluice::reference {

using TensorPtr = std::shared_ptr<const Tensor>;
using QuantizedPtr = std::shared_ptr<const QuantizedMatrix>;

/// What an SSA value holds: one of the two.
struct EvaluatedValue {
  TensorPtr tensor;
  QuantizedPtr matrix;
};

class PersistentStep;

class Evaluator {
public:
  /// Called for each operation, those of prologues and epilogues included, once its results are
  /// known. The values of its operands and of everything before it can be looked up.
  using Hook = std::function<void(mlir::Operation *, llvm::ArrayRef<EvaluatedValue>)>;

  /// `module` must be valid and, like `weights`, outlive the evaluator and stay as it is. Caches
  /// start as zeros.
  Evaluator(mlir::ModuleOp module, WeightProvider &weights);
  ~Evaluator();

  /// Runs a function. Errors, one line that names the operation: an unknown function, arguments
  /// that do not have its types, an operation without semantics here, a token or position out of
  /// range, a weight that cannot be read or does not have its declared type.
  llvm::Expected<llvm::SmallVector<Tensor>> call(llvm::StringRef function,
                                                 llvm::ArrayRef<Tensor> arguments);

  void setHook(Hook hook) { this->hook = std::move(hook); }

  /// The value of `value` in the latest call; empty if that has not computed it.
  EvaluatedValue lookup(mlir::Value value) const;

  /// The numbers that the symbol of a weight, rotary table or packed weight stands for, in logical
  /// order.
  llvm::Expected<EvaluatedValue> symbol(llvm::StringRef name);

  /// The cache of that name, or null.
  Cache *cache(llvm::StringRef name);
  void resetCaches();

private:
  using Results = llvm::SmallVector<EvaluatedValue, 2>;

  llvm::Expected<Results> runBlock(mlir::Block &block, llvm::ArrayRef<EvaluatedValue> arguments);
  llvm::Expected<Results> run(mlir::Operation *op);
  /// What a prologue, which may be empty, makes of `inputs`, of which it changes the first.
  llvm::Expected<EvaluatedValue> runPrologue(mlir::Region &prologue,
                                             llvm::ArrayRef<EvaluatedValue> inputs);
  llvm::Expected<Results> runProduct(mlir::Operation *op);
  /// The sums of all weights' rows.
  Tensor runWeights(mlir::Operation *op, const Tensor &input) const;
  llvm::Expected<EvaluatedValue> runElementwise(mlir::Operation *op);
  llvm::Expected<EvaluatedValue> readWeight(model::WeightOp weight);
  llvm::Expected<EvaluatedValue> makePacked(quantized::PackedOp packed);
  const Tensor &tensor(mlir::Value value) const;
  /// The cache of that name, which `pages`, if not null, is the page table of; `owners` as
  /// Cache::owners.
  llvm::Expected<Cache *> cacheWith(llvm::StringRef name, mlir::Value pages,
                                    std::vector<int32_t> owners);

  mlir::ModuleOp module;
  WeightProvider &weights;
  Hook hook;
  llvm::StringMap<Cache> caches;
  llvm::StringMap<EvaluatedValue> symbols;
  /// Of a function that is planned as one kernel (`sluice.persistent`).
  std::unique_ptr<PersistentStep> persistent;
  /// Values of the call that is running or ran last.
  llvm::DenseMap<mlir::Value, EvaluatedValue> values;
  /// Values that depend on weights alone, kept from call to call.
  llvm::DenseMap<mlir::Value, EvaluatedValue> constants;
};

} // namespace sluice::reference

#endif // SLUICE_REFERENCE_EVALUATOR_H

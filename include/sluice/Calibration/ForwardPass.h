// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Runs a module of the model stage over text, many tokens at once, in float32, and lets others look
// at and change what products and caches get and give.
//
// The operations are those of the reference evaluator (Reference/Ops.h), which says what they mean;
// here they are computed in float32, fast. The step's rows are the tokens of one window of text:
// row i is position i, and its keys and values are not rounded.
//
// The model is cut into segments where a single value is alive: after the residual additions. So
// all that a segment needs from those before it is one tensor a window, and only the weights of one
// segment have to be in memory, whatever the number of windows.

#ifndef SLUICE_CALIBRATION_FORWARDPASS_H
#define SLUICE_CALIBRATION_FORWARDPASS_H

#include "dialects/Model/Model.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Reference/Tensor.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <memory>
#include <vector>

namespace sluice::calibration {

using reference::Tensor;

/// The numbers of weights, so that a model can be run with others than its files'.
class WeightRows {
public:
  virtual ~WeightRows();
  /// Rows `first` and following of a matrix (a vector is one row), as many as `rows` holds, in the
  /// order that the module has them. Called from many threads.
  virtual llvm::Error read(model::WeightOp weight, int64_t first,
                           llvm::MutableArrayRef<float> rows) = 0;
};

/// Those of the model's files. Errors: a weight that cannot be read.
class FileWeightRows : public WeightRows {
public:
  /// The files of a module that knows its source (`model.source`).
  static llvm::Expected<std::unique_ptr<FileWeightRows>> open(mlir::ModuleOp module);
  ~FileWeightRows() override;
  llvm::Error read(model::WeightOp weight, int64_t first,
                   llvm::MutableArrayRef<float> rows) override;

private:
  struct State;
  explicit FileWeightRows(std::unique_ptr<State> state);
  std::unique_ptr<State> state;
};

/// What happens while a segment runs, called from the thread that runs it. Either may be empty.
struct ForwardHooks {
  /// After each product: its input and, to be changed, its output.
  std::function<void(model::LinearOp, const std::shared_ptr<const Tensor> &input, Tensor &output)>
      product;
  /// Before keys or values go into a cache: the rows [tokens, heads * head size], to be changed.
  std::function<void(model::CacheAppendOp, Tensor &rows)> append;
};

class ForwardPass {
public:
  /// The function `decode` of a module, whose rows are the tokens of a window; both arguments
  /// outlive it. Errors: no such function, an operation that is none of the model stage.
  static llvm::Expected<ForwardPass> create(mlir::ModuleOp module, WeightRows &weights);
  ForwardPass(ForwardPass &&) noexcept;
  ~ForwardPass();

  /// Tokens of a window.
  int64_t window() const;
  int64_t vocabulary() const;
  size_t segments() const;
  /// Products and attention of a segment, in order.
  llvm::ArrayRef<mlir::Operation *> operations(size_t segment) const;
  /// Multiplications and additions of a segment for one window, about.
  double work(size_t segment) const;
  /// Whether each row of the segment's result depends on the same row of its input alone, so that
  /// `run` takes any number of rows.
  bool isByRow(size_t segment) const;

  /// The weight that a product multiplies by.
  model::WeightOp weightOf(model::LinearOp product) const;

  /// The sum of the squares of its elements; of a product of the loaded segment.
  double squaredNorm(model::LinearOp product) const;

  /// Makes a segment the one that run() runs: reads its weights (on all cores), drops those of the
  /// one before. `tokens`: all that will be asked for, of which the embedding needs the rows.
  /// Errors: of reading; a token outside the vocabulary.
  llvm::Error load(size_t segment, llvm::ArrayRef<int32_t> tokens);

  /// Runs the loaded segment on one window. `input` is the result of the segment before (of the
  /// first nothing, `tokens` then has a token a row). May run on many threads at once.
  std::shared_ptr<Tensor> run(std::shared_ptr<const Tensor> input, llvm::ArrayRef<int32_t> tokens,
                              const ForwardHooks &hooks = {}) const;

private:
  struct State;
  explicit ForwardPass(std::unique_ptr<State> state);
  std::unique_ptr<State> state;
};

/// Rows of logits that others are compared with.
class ReferenceLogits {
public:
  explicit ReferenceLogits(Tensor logits);

  /// D(p || q) in nats, p being what row `row` of the reference's logits stands for and q what
  /// `other` does. In float32, but the error is relative to how far they are apart.
  double divergence(int64_t row, llvm::ArrayRef<float> other) const;
  int64_t rows() const { return logits.rows(); }

private:
  Tensor logits, probabilities;
  /// The sum of a row's probabilities, 1 but for rounding.
  std::vector<double> masses;
};

} // namespace sluice::calibration

#endif // SLUICE_CALIBRATION_FORWARDPASS_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Rounds a weight so that the output of its product changes little, not the weight itself.
//
// With weights W [rows, K], their rounded values Q and inputs x of the product, the mean over
// inputs of |W x - Q x|^2 is
//
//   E(Q) = tr((W - Q) H (W - Q)^T),    H = mean of x x^T  [K, K], the Hessian of E / 2
//
// The diagonal of H are the moments, the means of x_j^2. Rows do not depend on each other.
//
// With a Hessian, a row is rounded so:
//
// 1. H is damped: H' = H + 0.1 m I, where m is the mean of its diagonal; a column whose diagonal is
//    0 gets m.
// 2. Each group's scale is the best of a search, weighted by the moments: 32 parts, for 4 bits 1 /
//    0.8 to 1 / 2.6, of the scale that covers the group, with both signs, each fitted to the
//    integers that it gives; then 14 finer ones about the best.
//    Formats with offsets, zero points or scales that are not F16 or I8 start from quantizeRow.
// 3. Columns are rounded one after another, by descending moments, each to what is nearest to the
//    weight plus what makes up best for the errors of the columns before (GPTQ: Frantar et al.,
//    "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022).
//    In the form of Chee et al., "QuIP", 2023, section 3.2 (LDLQ), which needs no inverse: with
//    H' = R R^T, R upper triangular in the order of the columns,
//      q_k = round(w_k + sum over i < k of (w_i - q_i) R_ik / R_kk)
// 4. Twice: all scales of a row at once are fitted with its integers fixed (least squares in H',
//    a system of a row's groups, or of 128 at a time; scales F16 and I8), and stored; then
//    coordinate descent, two sweeps in the same order, of which each step chooses the best integer
//    of a column given all others:  q_k = round(q_k + (H' (w - q))_k / H'_kk).
// 5. Scales are fitted once more. Errors are those of the numbers as stored.
//
// Step 3 takes rows * K^2 operations, step 4 and 5 about 18 rows * K^2 of them.
//
// With moments only (H is diagonal) a row gets the scales of step 2 and the nearest integers. With
// nothing, what quantizeRow makes of it.
//
// All arithmetic is float32 in a fixed order, without contraction: numbers depend neither on the
// machine's vector unit nor on which rows are rounded together or on which thread.

#ifndef SLUICE_FORMATS_ROUNDING_H
#define SLUICE_FORMATS_ROUNDING_H

#include "sluice/Formats/Encoding.h"

#include "llvm/Support/Error.h"

#include <memory>

namespace sluice::formats {

/// What is known of a product's input, prepared to round all weights that read it. Immutable:
/// threads may share one.
class Rounder {
public:
  enum class Basis : uint8_t { Nothing, Moments, Hessian };

  /// Rounds by quantizeRow; errors are those for inputs of mean square 1 without correlation.
  static Rounder plain(int64_t columns);
  /// `moments`: the mean of x_j^2, for each column j. An error if one is negative, NaN or infinite.
  static llvm::Expected<Rounder> byMoments(llvm::ArrayRef<float> moments);
  /// `lower`: the mean of x_i x_j for j <= i: i + 1 numbers of row i = 0, then of row 1, and so on,
  /// K (K + 1) / 2 in all. Holds 8 K^2 bytes, and takes K^3 / 3 operations on all CPUs. An error if
  /// the matrix has numbers that are not finite, or is not positive semidefinite.
  static llvm::Expected<Rounder> byHessian(llvm::ArrayRef<float> lower, int64_t columns);

  Basis basis() const { return base; }
  int64_t columns() const { return numColumns; }
  /// The mean of the moments.
  double meanMoment() const { return mean; }

  /// A row to round.
  struct Row {
    /// columns() numbers.
    llvm::ArrayRef<float> weights;
    /// Where the numbers go, as of EncodedRows.
    RowNumbers to;
    /// For messages.
    int64_t index = 0;
  };
  /// Rows that are rounded together at full speed; others are, too.
  static constexpr size_t rowsAtOnce = 64;

  /// Rounds rows to an integer format (with Basis::Nothing also to FP8), on this thread. `errors`,
  /// if not empty, gets the error E of each row (of H, not of H'), by the numbers as they are
  /// stored. Errors are those of quantizeRow.
  llvm::Error round(const Encoding &format, llvm::ArrayRef<Row> rows,
                    llvm::MutableArrayRef<double> errors = {}) const;

  /// E of rows in a format, relative to that of white noise of the rows' size:
  /// E / (|W|^2 * meanMoment()). `weights` has whole rows one after another; a sample of a matrix's
  /// rows stands for it. Zero rows have error 0.
  llvm::Expected<double> relativeError(const Encoding &format, llvm::ArrayRef<float> weights) const;

private:
  class Block;

  Rounder(Basis base, int64_t columns) : base(base), numColumns(columns) {}

  Basis base;
  int64_t numColumns;
  /// Columns with padding, to a multiple of 64: the width of the matrices.
  int64_t width = 0;
  double mean = 1;
  /// Of Basis::Moments and Hessian, per column, relative to the mean.
  std::vector<float> moments;
  /// Of Basis::Hessian: H' / mean, what the damping of each column is; R_ik / R_kk at (i, k) for
  /// i < k, else 0, in the order of step 3; that order.
  std::shared_ptr<const std::vector<float>> damped, feedback;
  std::vector<float> damping;
  std::vector<int32_t> order;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_ROUNDING_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a model's products and caches meet when it reads text, and how much its results suffer from
// errors: what rounding and the choice of formats are guided by. docs/planner.md, "Statistics".
//
// clang-format off
//
//   x_t               the input of a product for token t of the text, K numbers; y_t = W x_t
//   H                 [K, K], the mean over the tokens of x_t x_t^T
//   moments           [K], its diagonal
//   output error      of a matrix Q in place of W: the mean of |W x_t - Q x_t|^2
//                       E(Q) = tr((W - Q) H (W - Q)^T)
//   white noise       of W's own norm, whose elements are independent, has the output error
//                       N = |W|^2 tr(H) / K       (|W|^2: the sum of the squares of all elements)
//   relative error    e(Q) = E(Q) / N
//   sensitivity       a, nats a token: the KL divergence D(p || p') of the model with noise, p',
//                     from the model without, p, is a * e for small e
//   predicted loss    the sum over all weights of a * e(Q), and over all caches of their losses
//
// clang-format on
//
// D is the mean of sum_v p(v) ln(p(v) / p'(v)) over the tokens in the second half of each window of
// text: those that `sluice perplexity` counts.

#ifndef SLUICE_CALIBRATION_STATISTICS_H
#define SLUICE_CALIBRATION_STATISTICS_H

#include "sluice/Formats/Rounding.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Import/Safetensors.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace sluice::calibration {

/// Elements of the lower triangle of a symmetric matrix of `size` rows, and where element (i, j),
/// j <= i, is in it: row after row.
constexpr size_t packedSize(size_t size) { return size * (size + 1) / 2; }
constexpr size_t packedIndex(size_t i, size_t j) { return i * (i + 1) / 2 + j; }

/// Of an input that one or more products read. The arrays are those of the Statistics.
struct InputStatistics {
  /// K numbers.
  llvm::ArrayRef<float> moments;
  /// packedSize(K) numbers, or none.
  llvm::ArrayRef<float> hessian;

  int64_t columns() const { return static_cast<int64_t>(moments.size()); }
};

/// How weights that read an input (null: none is known) are rounded, for people: "rounded by its
/// input's Hessian".
llvm::StringRef roundingName(const InputStatistics *input);
/// What rounds them, `columns` wide: by the Hessian, else by the moments, else plainly. Errors are
/// those of the Rounder.
llvm::Expected<formats::Rounder> makeRounder(const InputStatistics *input, int64_t columns);

/// E(Q). `weight` and `rounded` are [rows][K]. Without a Hessian its diagonal stands for it.
double outputError(llvm::ArrayRef<float> weight, llvm::ArrayRef<float> rounded,
                   const InputStatistics &input);
/// N, the output error of white noise of the weight's norm.
double whiteNoiseError(llvm::ArrayRef<float> weight, const InputStatistics &input);
/// e(Q); 0 if N is.
double relativeError(llvm::ArrayRef<float> weight, llvm::ArrayRef<float> rounded,
                     const InputStatistics &input);

struct WeightStatistics {
  /// Index into Statistics::inputs().
  size_t input = 0;
  /// Nats a token; nothing if it was not measured.
  std::optional<double> sensitivity;
};

/// The losses, in nats a token, that formats of one layer's keys (or values) cause alone.
struct CacheLosses {
  /// As formats::CacheChoice names them: "int8", "int4-h32-rot".
  std::vector<std::string> formats;
  /// [layers][formats].
  std::vector<float> nats;
};

/// Where the numbers come from.
struct StatisticsSource {
  /// The model's path; of an imatrix file its data sets.
  std::string model;
  /// Tokens that the moments are means of, and that the losses are.
  int64_t tokens = 0, sensitivityTokens = 0;
  /// Sixteen hexadecimal digits, XXH3 of the text; empty if not known.
  std::string text;
  uint64_t seed = 0;
};

class Statistics {
public:
  /// Opens a file that `write` or StatisticsWriter wrote, or an importance matrix of llama.cpp in
  /// its GGUF form (moments only), which are told apart by their first bytes. The big arrays stay
  /// in the file, which is mapped. Errors, one line that names the file: it is neither; it is of
  /// another version; an array is missing, has another size, or holds a number that is not finite
  /// or, of moments, negative.
  static llvm::Expected<Statistics> read(llvm::StringRef path);
  /// Whether the file is one that `write` or StatisticsWriter wrote, of any version.
  static bool isStatistics(llvm::StringRef path);
  /// Writes a file of them; errors of the file system.
  llvm::Error write(llvm::StringRef path) const;

  /// Null if there are none of that weight. Names are those of the model stage (`blk.0.attn_q`).
  const WeightStatistics *find(llvm::StringRef weight) const;
  const InputStatistics &input(const WeightStatistics &weight) const {
    return inputList[weight.input];
  }
  /// The input of that weight, or null.
  const InputStatistics *inputOf(llvm::StringRef weight) const {
    const WeightStatistics *known = find(weight);
    return known ? &inputList[known->input] : nullptr;
  }
  /// The loss of a cache's format; nothing if it was not measured.
  std::optional<double> cacheLoss(int64_t layer, bool isKey, llvm::StringRef format) const;

  /// In the order in which they were added.
  llvm::ArrayRef<std::string> weights() const { return names; }
  llvm::ArrayRef<InputStatistics> inputs() const { return inputList; }
  bool hasHessians() const;
  bool hasSensitivities() const;

  /// `moments` has K entries, `hessian` packedSize(K) or none. Returns its index.
  size_t addInput(std::vector<float> moments, std::vector<float> hessian = {});
  /// A weight that reads an input; another one of the same name is replaced.
  void addWeight(llvm::StringRef name, size_t input,
                 std::optional<double> sensitivity = std::nullopt);

  StatisticsSource source;
  CacheLosses keys, values;

private:
  friend class StatisticsWriter;
  static llvm::Expected<Statistics> readOwn(const SafetensorsFile &file);
  static llvm::Expected<Statistics> readImatrix(llvm::StringRef path);

  std::vector<std::string> names;
  llvm::StringMap<WeightStatistics> byName;
  std::vector<InputStatistics> inputList;
  /// What inputs refer to: arrays of their own (a deque keeps them in place), or a file.
  std::shared_ptr<std::deque<std::vector<float>>> owned =
      std::make_shared<std::deque<std::vector<float>>>();
  std::shared_ptr<const MappedFile> file;
};

/// Writes a file piece by piece, as Hessians of a large model do not fit into memory together. The
/// file appears under its name when finish() succeeds.
class StatisticsWriter {
public:
  struct Input {
    int64_t columns;
    /// The weights that read it, at least one.
    std::vector<std::string> weights;
  };
  /// `hasLosses` says whether finish() gets sensitivities.
  static llvm::Expected<StatisticsWriter> create(llvm::StringRef path, llvm::ArrayRef<Input> inputs,
                                                 bool hasHessians, bool hasSensitivities,
                                                 const StatisticsSource &source,
                                                 llvm::ArrayRef<std::string> keyFormats,
                                                 llvm::ArrayRef<std::string> valueFormats,
                                                 int64_t layers);

  /// Each once for every input; `hessian` if there are Hessians.
  llvm::Error moments(size_t input, llvm::ArrayRef<float> moments);
  llvm::Error hessian(size_t input, llvm::ArrayRef<float> hessian);
  /// One sensitivity a weight in the order of the inputs (NaN: not measured), and [layers][formats]
  /// losses of caches. Fails if an array is missing.
  llvm::Error finish(llvm::ArrayRef<float> sensitivities, llvm::ArrayRef<float> keyLosses,
                     llvm::ArrayRef<float> valueLosses);

  uint64_t fileBytes() const { return writer.fileBytes(); }

private:
  explicit StatisticsWriter(SafetensorsWriter writer) : writer(std::move(writer)) {}
  llvm::Error append(size_t tensor, llvm::ArrayRef<float> numbers);

  SafetensorsWriter writer;
  /// Tensors of the file by what they hold.
  std::vector<size_t> momentTensors, hessianTensors;
  std::optional<size_t> sensitivityTensor, keyTensor, valueTensor;
};

} // namespace sluice::calibration

#endif // SLUICE_CALIBRATION_STATISTICS_H

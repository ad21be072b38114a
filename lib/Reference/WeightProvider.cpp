// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Reference/WeightProvider.h"

#include "sluice/Formats/Quantizer.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/TensorReader.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;

WeightProvider::~WeightProvider() = default;

llvm::Expected<FileWeights> FileWeights::open(ModuleOp module) {
  llvm::Expected<std::string> root = weightRoot(module);
  if (!root)
    return root.takeError();
  return FileWeights(std::make_shared<FileSet>(*root));
}

llvm::Expected<WeightValue> FileWeights::read(model::WeightOp weight) {
  llvm::Expected<Weight> located = weightInFile(weight);
  if (!located)
    return located.takeError();
  // The evaluator permutes these itself, also where numbers come from no file.
  located->tensor.view.interleaved = 0;
  llvm::Expected<TensorReader> reader = TensorReader::open(*located, *files);
  if (!reader)
    return reader.takeError();
  int64_t rows = reader->rows(), columns = reader->columns();
  if (!reader->encoding()) {
    Tensor tensor =
        Tensor::zeros(llvm::to_vector(cast<RankedTensorType>(weight.getType()).getShape()));
    for (int64_t row = 0; row < rows; ++row)
      reader->readRow(row,
                      llvm::MutableArrayRef<float>(tensor.values).slice(row * columns, columns));
    return tensor;
  }
  QuantizedMatrix matrix(*reader->encoding(), rows, columns);
  for (int64_t row = 0; row < rows; ++row) {
    reader->readNumbers(row, matrix, row);
    if (llvm::Error error =
            formats::checkFiniteNumbers(matrix.encoding, matrix.row(row), columns, row))
      return std::move(error);
  }
  return matrix;
}

llvm::Expected<WeightValue> ArrayWeights::read(model::WeightOp weight) {
  auto it = weights.find(weight.getSymName());
  if (it == weights.end())
    return llvm::createStringError("weight '" + weight.getSymName() + "' was not given");
  return it->second;
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/TensorReader.h"

#include "Diagnostics.h"

#include "sluice-support/Float16.h"
#include "sluice/Formats/Quantizer.h"

#include "llvm/ADT/bit.h"
#include "llvm/Support/Endian.h"

#include <cassert>

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using sluice::detail::quote;
using sluice::support::bf16ToFloat;
using sluice::support::f16ToFloat;

Expected<TensorReader> TensorReader::open(const TensorRef &tensor, FileSet &files) {
  auto file = files.get(tensor.file);
  if (!file)
    return file.takeError();
  return open(tensor, *file);
}

Expected<TensorReader> TensorReader::open(const TensorRef &tensor,
                                          std::shared_ptr<const MappedFile> file) {
  StringRef path = file->path();
  std::string name = "tensor " + quote(tensor.name);
  if (!isUsableWeight(tensor.type) && tensor.type != StorageType::Q8_K)
    return fail(path, name + " has type " + tensor.typeText() + ", expected " + usableWeights());
  std::optional<uint64_t> bytes = storageBytes(tensor.type, tensor.shape);
  if (!bytes || *bytes == 0 || *bytes != tensor.bytes)
    return fail(path, name + " is declared with " + Twine(tensor.bytes) +
                          " bytes, which is not what " + storageName(tensor.type) + " " +
                          shapeText(tensor.shape) + " takes");
  if (tensor.offset > file->size() || tensor.bytes > file->size() - tensor.offset)
    return fail(path, name + " lies at byte " + Twine(tensor.offset) + " and has " +
                          Twine(tensor.bytes) + " bytes, but the file has " + Twine(file->size()));

  TensorReader reader;
  reader.data = reinterpret_cast<const uint8_t *>(file->bytes().data()) + tensor.offset;
  reader.file = std::move(file);
  reader.storage = tensor.type;
  reader.block = formats::GgufBlock::named(storageName(tensor.type));
  if (reader.block)
    reader.numbers = reader.block->encoding;
  reader.numColumns = tensor.shape.empty() ? 1 : tensor.shape.back();
  reader.numRows = static_cast<int64_t>(*elementCount(tensor.shape)) / reader.numColumns;
  reader.bytesPerRow = tensor.bytes / static_cast<uint64_t>(reader.numRows);
  return reader;
}

Expected<TensorReader> TensorReader::open(const Weight &weight, FileSet &files) {
  if (!weight.parts)
    return open(weight.tensor, files);
  auto matrix = CheckpointMatrix::open(weight, files);
  if (!matrix)
    return matrix.takeError();
  TensorReader reader;
  // What no encoding holds is read as values.
  if (weight.parts->encoding) {
    const std::optional<formats::Encoding> &found = (*matrix)->encoding();
    if (found != weight.parts->encoding)
      return fail(weight.tensor.file, "tensor " + quote(weight.tensor.name) + " is declared as " +
                                          weight.parts->encoding->name() + ", but has " +
                                          (found ? found->name() : "float32 values"));
    reader.numbers = found;
  }
  reader.matrix = std::move(*matrix);
  reader.numRows = reader.matrix->rows();
  reader.numColumns = reader.matrix->columns();
  return reader;
}

ArrayRef<uint8_t> TensorReader::rowBytes(int64_t row) const {
  assert(row >= 0 && row < numRows && "row out of range");
  return {data + static_cast<uint64_t>(row) * bytesPerRow, bytesPerRow};
}

void TensorReader::readRow(int64_t row, MutableArrayRef<float> out) const {
  assert(out.size() == static_cast<size_t>(numColumns) && "one float a column");
  if (matrix)
    return matrix->readRow(row, out);
  const uint8_t *source = rowBytes(row).data();
  float *target = out.data();
  int64_t count = numColumns;
  switch (storage) {
  case StorageType::F32:
    for (int64_t i = 0; i < count; ++i)
      target[i] = bit_cast<float>(llvm::support::endian::read32le(source + 4 * i));
    return;
  case StorageType::F16:
    for (int64_t i = 0; i < count; ++i)
      target[i] = f16ToFloat(llvm::support::endian::read16le(source + 2 * i));
    return;
  case StorageType::BF16:
    for (int64_t i = 0; i < count; ++i)
      target[i] = bf16ToFloat(llvm::support::endian::read16le(source + 2 * i));
    return;
  case StorageType::Q8_K:
    return formats::dequantizeQ8_K(rowBytes(row), out);
  default: {
    assert(block && "open() admits no other type");
    formats::EncodedRows numbers(block->encoding, 1, count);
    readNumbers(row, numbers, 0);
    formats::dequantizeRow(block->encoding, numbers.row(0), out);
  }
  }
}

void TensorReader::readNumbers(int64_t row, formats::EncodedRows &rows, int64_t to) const {
  assert(rows.encoding == encoding() && rows.columns == numColumns);
  if (matrix)
    return matrix->readNumbers(row, rows.numbers(to));
  block->read(rowBytes(row), rows.numbers(to));
}

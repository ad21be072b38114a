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

/// The bytes from the first to the last number of a tensor that is a view; nothing if that is too
/// many, or if the type has no such views.
static std::optional<uint64_t> viewBytes(StorageType type, ArrayRef<int64_t> shape,
                                         const formats::RowView &view) {
  if (view.isPlain())
    return storageBytes(type, shape);
  // Of a vector elements are what rows are of a matrix.
  bool isMatrix = shape.size() == 2;
  if (shape.empty() || shape.size() > 2 || (!isPlainFloat(type) && (!isMatrix || view.pitch)))
    return std::nullopt;
  int64_t rows = view.fileRows(shape[0]);
  if (!view.pitch)
    return isMatrix ? storageBytes(type, {rows, shape[1]}) : storageBytes(type, rows);
  std::optional<uint64_t> before = storageBytes(type, {shape[1] - 1, view.pitch}),
                          last = storageBytes(type, rows);
  if (!before || !last || shape[1] < 1)
    return std::nullopt;
  return *before + *last;
}

std::optional<StorageType> sluice::repackedStorage(const formats::Encoding &encoding,
                                                   const TensorRef &tensor) {
  for (size_t i = 0; i < static_cast<size_t>(StorageType::Unknown); ++i) {
    auto type = static_cast<StorageType>(i);
    const formats::GgufBlock *block = formats::GgufBlock::named(storageName(type));
    if (block && block->isRepacked() && block->encoding == encoding &&
        viewBytes(type, tensor.shape, tensor.view) == tensor.bytes)
      return type;
  }
  return std::nullopt;
}

Expected<TensorReader> TensorReader::open(const TensorRef &tensor,
                                          std::shared_ptr<const MappedFile> file) {
  StringRef path = file->path();
  std::string name = "tensor " + quote(tensor.name);
  if (!isUsableWeight(tensor.type))
    return fail(path, name + " has type " + tensor.typeText() + ", expected " + usableWeights());
  std::optional<uint64_t> bytes = viewBytes(tensor.type, tensor.shape, tensor.view);
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
  reader.bytesPerRow = *storageBytes(tensor.type, reader.numColumns);
  reader.view = tensor.view;
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
  reader.numRows = weight.parts->rows;
  reader.numColumns = reader.matrix->columns();
  reader.view = weight.tensor.view;
  return reader;
}

ArrayRef<uint8_t> TensorReader::rowBytes(int64_t row) const {
  assert(row >= 0 && row < numRows && "row out of range");
  return {data + static_cast<uint64_t>(fileRow(row)) * bytesPerRow, bytesPerRow};
}

void TensorReader::readRow(int64_t row, MutableArrayRef<float> out) const {
  assert(out.size() == static_cast<size_t>(numColumns) && "one float a column");
  if (matrix && !numbers)
    return matrix->readRow(fileRow(row), out);
  int64_t count = numColumns;
  if (numbers) {
    formats::EncodedRows encoded(*numbers, 1, count);
    readNumbers(row, encoded, 0);
    return formats::dequantizeRow(*numbers, encoded.row(0), out);
  }
  // Where element i lies, in elements.
  auto plain = [](int64_t i) { return i; };
  auto permuted = [&](int64_t i) { return view.fileRow(i); };
  auto transposed = [&](int64_t i) { return i * view.pitch; };
  auto read = [&](const uint8_t *source, auto placeOf) {
    if (storage == StorageType::F32)
      for (int64_t i = 0; i < count; ++i)
        out[i] = bit_cast<float>(llvm::support::endian::read32le(source + 4 * placeOf(i)));
    else if (storage == StorageType::F16)
      for (int64_t i = 0; i < count; ++i)
        out[i] = f16ToFloat(llvm::support::endian::read16le(source + 2 * placeOf(i)));
    else
      for (int64_t i = 0; i < count; ++i)
        out[i] = bf16ToFloat(llvm::support::endian::read16le(source + 2 * placeOf(i)));
  };
  if (view.pitch)
    return read(data + fileRow(row) * *storageBytes(storage, 1), transposed);
  if (numRows == 1 && !view.isPlain())
    return read(data, permuted);
  return read(rowBytes(row).data(), plain);
}

void TensorReader::readNumbers(int64_t row, formats::EncodedRows &rows, int64_t to) const {
  assert(rows.encoding == encoding() && rows.columns == numColumns);
  if (matrix)
    return matrix->readNumbers(fileRow(row), rows.numbers(to));
  block->read(rowBytes(row), rows.numbers(to));
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/TensorReader.h"

#include "Diagnostics.h"

#include "sluice-support/Float16.h"
#include "sluice/Formats/GgufBlocks.h"

#include "llvm/ADT/bit.h"
#include "llvm/Support/Endian.h"

#include <array>
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
  if (!isUsableWeight(tensor.type))
    return fail(path, name + " has type " + tensor.typeText() +
                          ", expected F32, F16, BF16, Q8_0 or Q4_0");
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
  reader.blocked = storageInfo(tensor.type).blockElements != 1;
  reader.numColumns = tensor.shape.empty() ? 1 : tensor.shape.back();
  reader.numRows = static_cast<int64_t>(*elementCount(tensor.shape)) / reader.numColumns;
  reader.bytesPerRow = tensor.bytes / static_cast<uint64_t>(reader.numRows);
  return reader;
}

ArrayRef<uint8_t> TensorReader::rowBytes(int64_t row) const {
  assert(row >= 0 && row < numRows && "row out of range");
  return {data + static_cast<uint64_t>(row) * bytesPerRow, bytesPerRow};
}

/// Consecutive blocks of a type that open() admits.
static void splitBlocks(StorageType type, ArrayRef<uint8_t> blocks, MutableArrayRef<int8_t> q,
                        MutableArrayRef<uint16_t> scaleBits) {
  if (type == StorageType::Q8_0)
    formats::readQ8_0(blocks, q, scaleBits);
  else
    formats::readQ4_0(blocks, q, scaleBits);
}

void TensorReader::readRow(int64_t row, MutableArrayRef<float> out) const {
  assert(out.size() == static_cast<size_t>(numColumns) && "one float a column");
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
  case StorageType::Q8_0:
  case StorageType::Q4_0: {
    std::array<int8_t, formats::ggufBlockColumns> q;
    uint16_t scaleBits = 0;
    uint64_t bytes = storageInfo(storage).blockBytes;
    for (int64_t begin = 0; begin < count; begin += formats::ggufBlockColumns, source += bytes) {
      splitBlocks(storage, {source, bytes}, q, scaleBits);
      float scale = f16ToFloat(scaleBits);
      for (int64_t i = 0; i < formats::ggufBlockColumns; ++i)
        target[begin + i] = scale * q[i];
    }
    return;
  }
  default:
    llvm_unreachable("open() admits no other type");
  }
}

void TensorReader::readBlocks(int64_t row, MutableArrayRef<int8_t> q,
                              MutableArrayRef<uint16_t> scaleBits) const {
  assert(blocked && "plain numbers have no blocks");
  splitBlocks(storage, rowBytes(row), q, scaleBits);
}

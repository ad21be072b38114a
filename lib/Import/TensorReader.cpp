// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/TensorReader.h"

#include "Diagnostics.h"

#include "sluice-support/Float16.h"

#include "llvm/ADT/bit.h"
#include "llvm/Support/Endian.h"

#include <cassert>

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using sluice::detail::quote;
using sluice::support::bf16ToFloat;
using sluice::support::f16ToFloat;

static constexpr int64_t blockSize = 32;
static constexpr int64_t q8Bytes = 34; // f16 scale, 32 signed bytes
static constexpr int64_t q4Bytes = 18; // f16 scale, 16 bytes: low nibbles 0..15, high 16..31

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
    return fail(path, name + " has type " + storageName(tensor.type) +
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
    for (int64_t block = 0; block < count / blockSize; ++block, source += q8Bytes) {
      float scale = f16ToFloat(llvm::support::endian::read16le(source));
      for (int64_t i = 0; i < blockSize; ++i)
        target[block * blockSize + i] = scale * static_cast<int8_t>(source[2 + i]);
    }
    return;
  case StorageType::Q4_0:
    for (int64_t block = 0; block < count / blockSize; ++block, source += q4Bytes) {
      float scale = f16ToFloat(llvm::support::endian::read16le(source));
      for (int64_t i = 0; i < blockSize / 2; ++i) {
        target[block * blockSize + i] = scale * ((source[2 + i] & 15) - 8);
        target[block * blockSize + i + blockSize / 2] = scale * ((source[2 + i] >> 4) - 8);
      }
    }
    return;
  default:
    llvm_unreachable("open() admits no other type");
  }
}

void TensorReader::readBlocks(int64_t row, MutableArrayRef<int8_t> q,
                              MutableArrayRef<uint16_t> scaleBits) const {
  assert(blocked && "plain numbers have no blocks");
  assert(q.size() == static_cast<size_t>(numColumns) && "one integer a column");
  assert(scaleBits.size() == static_cast<size_t>(numColumns / blockSize) && "one scale a block");
  const uint8_t *source = rowBytes(row).data();
  for (int64_t block = 0; block < numColumns / blockSize; ++block) {
    scaleBits[block] = llvm::support::endian::read16le(source);
    int8_t *target = q.data() + block * blockSize;
    if (storage == StorageType::Q8_0) {
      for (int64_t i = 0; i < blockSize; ++i)
        target[i] = static_cast<int8_t>(source[2 + i]);
      source += q8Bytes;
    } else {
      for (int64_t i = 0; i < blockSize / 2; ++i) {
        target[i] = static_cast<int8_t>((source[2 + i] & 15) - 8);
        target[i + blockSize / 2] = static_cast<int8_t>((source[2 + i] >> 4) - 8);
      }
      source += q4Bytes;
    }
  }
}

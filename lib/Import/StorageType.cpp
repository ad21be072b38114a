// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/StorageType.h"

#include "sluice-support/Safetensors.h"
#include "sluice/Formats/GgufBlocks.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/MathExtras.h"

using namespace llvm;
using namespace sluice;

// Block sizes: ggml-common.h (the block_* structs) and gguf-py's GGML_QUANT_SIZES. Numbers missing
// from ggml's sequence (4, 5, 31 to 33, 36 to 38) were withdrawn from the format.
static constexpr StorageInfo table[] = {
    {StorageType::F32, "F32", 1, 4, 0},
    {StorageType::F16, "F16", 1, 2, 1},
    {StorageType::BF16, "BF16", 1, 2, 30},
    {StorageType::F64, "F64", 1, 8, 28},
    {StorageType::I8, "I8", 1, 1, 24},
    {StorageType::I16, "I16", 1, 2, 25},
    {StorageType::I32, "I32", 1, 4, 26},
    {StorageType::I64, "I64", 1, 8, 27},
    {StorageType::U8, "U8", 1, 1, -1},
    {StorageType::U16, "U16", 1, 2, -1},
    {StorageType::U32, "U32", 1, 4, -1},
    {StorageType::U64, "U64", 1, 8, -1},
    {StorageType::Bool, "BOOL", 1, 1, -1},
    {StorageType::F8E4M3, "F8_E4M3", 1, 1, -1},
    {StorageType::F8E5M2, "F8_E5M2", 1, 1, -1},
    {StorageType::F8E8M0, "F8_E8M0", 1, 1, -1},
    {StorageType::Q4_0, "Q4_0", formats::ggufBlockColumns, formats::q4_0BlockBytes, 2},
    {StorageType::Q4_1, "Q4_1", 32, 20, 3},
    {StorageType::Q5_0, "Q5_0", 32, 22, 6},
    {StorageType::Q5_1, "Q5_1", 32, 24, 7},
    {StorageType::Q8_0, "Q8_0", formats::ggufBlockColumns, formats::q8_0BlockBytes, 8},
    {StorageType::Q8_1, "Q8_1", 32, 36, 9},
    {StorageType::Q2_K, "Q2_K", 256, 84, 10},
    {StorageType::Q3_K, "Q3_K", 256, 110, 11},
    {StorageType::Q4_K, "Q4_K", 256, 144, 12},
    {StorageType::Q5_K, "Q5_K", 256, 176, 13},
    {StorageType::Q6_K, "Q6_K", 256, 210, 14},
    {StorageType::Q8_K, "Q8_K", 256, 292, 15},
    {StorageType::IQ2_XXS, "IQ2_XXS", 256, 66, 16},
    {StorageType::IQ2_XS, "IQ2_XS", 256, 74, 17},
    {StorageType::IQ2_S, "IQ2_S", 256, 82, 22},
    {StorageType::IQ3_XXS, "IQ3_XXS", 256, 98, 18},
    {StorageType::IQ3_S, "IQ3_S", 256, 110, 21},
    {StorageType::IQ1_S, "IQ1_S", 256, 50, 19},
    {StorageType::IQ1_M, "IQ1_M", 256, 56, 29},
    {StorageType::IQ4_NL, "IQ4_NL", 32, 18, 20},
    {StorageType::IQ4_XS, "IQ4_XS", 256, 136, 23},
    {StorageType::TQ1_0, "TQ1_0", 256, 54, 34},
    {StorageType::TQ2_0, "TQ2_0", 256, 66, 35},
    {StorageType::MXFP4, "MXFP4", 32, 17, 39},
    {StorageType::NVFP4, "NVFP4", 64, 36, 40},
    {StorageType::Q1_0, "Q1_0", 128, 18, 41},
    // Its blocks are not known; storageBytes() knows that.
    {StorageType::Unknown, "unknown", 1, 1, -1},
};

static constexpr bool tableIsInEnumOrder() {
  for (size_t i = 0; i < std::size(table); ++i)
    if (static_cast<size_t>(table[i].type) != i)
      return false;
  return true;
}
static_assert(tableIsInEnumOrder());

const StorageInfo &sluice::storageInfo(StorageType type) {
  return table[static_cast<size_t>(type)];
}

std::optional<StorageType> sluice::storageFromName(StringRef name) {
  for (const StorageInfo &info : table)
    if (info.name == name && info.type != StorageType::Unknown)
      return info.type;
  return std::nullopt;
}

std::optional<StorageType> sluice::storageFromGGML(uint32_t id) {
  for (const StorageInfo &info : table)
    if (info.ggmlId >= 0 && static_cast<uint32_t>(info.ggmlId) == id)
      return info.type;
  return std::nullopt;
}

std::optional<StorageType> sluice::storageFromSafetensors(StringRef dtype) {
  return support::safetensorsElementBits(dtype) ? storageFromName(dtype) : std::nullopt;
}

bool sluice::isInSafetensors(StorageType type) {
  return support::safetensorsElementBits(storageName(type)).has_value();
}

bool sluice::isPlainFloat(StorageType type) {
  return type == StorageType::F32 || type == StorageType::F16 || type == StorageType::BF16;
}

bool sluice::isUsableWeight(StorageType type) {
  return isPlainFloat(type) || type == StorageType::Q8_0 || type == StorageType::Q4_0;
}

std::optional<uint64_t> sluice::elementCount(ArrayRef<int64_t> shape) {
  constexpr uint64_t limit = uint64_t(1) << 62;
  bool empty = false;
  uint64_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 0)
      return std::nullopt;
    if (dim == 0) {
      empty = true;
      continue;
    }
    if (static_cast<uint64_t>(dim) > limit / count)
      return std::nullopt;
    count *= static_cast<uint64_t>(dim);
  }
  return empty ? 0 : count;
}

std::optional<uint64_t> sluice::storageBytes(StorageType type, ArrayRef<int64_t> shape) {
  const StorageInfo &info = storageInfo(type);
  std::optional<uint64_t> count = elementCount(shape);
  if (!count || type == StorageType::Unknown)
    return std::nullopt;
  uint64_t innermost = shape.empty() ? 1 : static_cast<uint64_t>(shape.back());
  if (innermost % info.blockElements != 0)
    return std::nullopt;
  uint64_t blocks = *count / info.blockElements;
  if (blocks > UINT64_MAX / info.blockBytes)
    return std::nullopt;
  return blocks * info.blockBytes;
}

std::string sluice::shapeText(ArrayRef<int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

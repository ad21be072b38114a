// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How model files store tensor elements: plain numbers and ggml's blocks.

#ifndef SLUICE_IMPORT_STORAGETYPE_H
#define SLUICE_IMPORT_STORAGETYPE_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <cstdint>
#include <optional>
#include <string>

namespace sluice {

/// The element types that a safetensors or GGUF file may declare. Types that both formats have are
/// one type here.
enum class StorageType : uint8_t {
  F32,
  F16,
  BF16,
  F64,
  I8,
  I16,
  I32,
  I64,
  U8,
  U16,
  U32,
  U64,
  Bool,
  F8E4M3,
  F8E5M2,
  F8E8M0,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q8_1,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  Q8_K,
  IQ2_XXS,
  IQ2_XS,
  IQ2_S,
  IQ3_XXS,
  IQ3_S,
  IQ1_S,
  IQ1_M,
  IQ4_NL,
  IQ4_XS,
  TQ1_0,
  TQ2_0,
  MXFP4,
  NVFP4,
  Q1_0,
  /// A type that this list lacks. A tensor of it can be listed and passed over, but not read.
  Unknown,
};

struct StorageInfo {
  StorageType type;
  /// The name that the format's own tools print: "F16", "Q8_0", "F8_E4M3".
  llvm::StringLiteral name;
  /// Elements and bytes of a block along the innermost dimension; a plain number is a block of one.
  uint32_t blockElements;
  uint32_t blockBytes;
  /// The number in GGUF tensor infos (ggml.h, enum ggml_type); -1 where GGUF lacks the type.
  int ggmlId;
};

const StorageInfo &storageInfo(StorageType type);
inline llvm::StringRef storageName(StorageType type) { return storageInfo(type).name; }

std::optional<StorageType> storageFromName(llvm::StringRef name);
std::optional<StorageType> storageFromGGML(uint32_t id);
std::optional<StorageType> storageFromSafetensors(llvm::StringRef dtype);
/// Whether safetensors has the type (under the same name).
bool isInSafetensors(StorageType type);

/// Whether norms and biases may be stored as the type: F32, F16 and BF16.
bool isPlainFloat(StorageType type);
/// Whether matrices may be stored as the type: the plain floats, Q8_0 and Q4_0.
bool isUsableWeight(StorageType type);

/// Number of elements, or nothing when a dimension is negative or the product of those that are not
/// zero is above 2^62.
std::optional<uint64_t> elementCount(llvm::ArrayRef<int64_t> shape);

/// Bytes of a dense tensor, innermost dimension last; nothing when the count overflows or the
/// innermost dimension is not a whole number of blocks.
std::optional<uint64_t> storageBytes(StorageType type, llvm::ArrayRef<int64_t> shape);

/// "[4, 512]".
std::string shapeText(llvm::ArrayRef<int64_t> shape);

} // namespace sluice

#endif // SLUICE_IMPORT_STORAGETYPE_H

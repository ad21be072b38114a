// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The GGUF format, versions 2 and 3, little-endian, as ggml's docs/gguf.md describes it.

#ifndef SLUICE_IMPORT_GGUF_H
#define SLUICE_IMPORT_GGUF_H

#include "sluice/Import/FileSet.h"
#include "sluice/Import/TensorRef.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"

#include <memory>
#include <optional>
#include <vector>

namespace sluice {

/// Types of metadata values, by their numbers in the file.
enum class GGUFType : uint32_t {
  U8 = 0,
  I8 = 1,
  U16 = 2,
  I16 = 3,
  U32 = 4,
  I32 = 5,
  F32 = 6,
  Bool = 7,
  String = 8,
  Array = 9,
  U64 = 10,
  I64 = 11,
  F64 = 12,
};

llvm::StringRef ggufTypeName(GGUFType type);

/// A metadata value: a view of its bytes in the file, already walked and checked, so that reading
/// an array of a million strings allocates nothing until someone asks for them.
class GGUFValue {
public:
  GGUFType type() const { return valueType; }
  bool isArray() const { return valueType == GGUFType::Array; }
  /// Arrays only.
  GGUFType elementType() const { return elemType; }
  uint64_t count() const { return elements; }

  /// Each returns nothing when the value has another type. asInteger() takes every integer type
  /// whose value fits; asFloat() takes f32 and f64.
  std::optional<int64_t> asInteger() const;
  std::optional<double> asFloat() const;
  std::optional<bool> asBool() const;
  std::optional<llvm::StringRef> asString() const;
  /// The first `limit` elements.
  std::optional<std::vector<llvm::StringRef>> asStrings(uint64_t limit = UINT64_MAX) const;
  std::optional<std::vector<int64_t>> asIntegers(uint64_t limit = UINT64_MAX) const;
  std::optional<std::vector<double>> asFloats(uint64_t limit = UINT64_MAX) const;
  std::optional<std::vector<GGUFValue>> asValues(uint64_t limit = UINT64_MAX) const;

private:
  friend class GGUFFile;
  friend class GGUFParser;
  GGUFType valueType = GGUFType::U8;
  GGUFType elemType = GGUFType::U8;
  uint64_t elements = 0;
  /// The value without its type (and, for arrays and strings, without their counts).
  llvm::StringRef raw;
};

/// One checked GGUF file: all bounds, counts, types and offsets have been verified and tensors do
/// not overlap.
class GGUFFile {
public:
  /// The deepest nesting of arrays in arrays that is accepted.
  static constexpr unsigned maxDepth = 4;

  /// Whether the bytes begin like a GGUF file of any version.
  static bool hasMagic(llvm::StringRef bytes) { return bytes.starts_with("GGUF"); }

  /// `withTensors` false reads the metadata only; the file may then end where they do. The error is
  /// one line that names the file and what was expected.
  static llvm::Expected<GGUFFile> parse(std::shared_ptr<const MappedFile> file,
                                        llvm::StringRef relative, bool withTensors = true);
  static llvm::Expected<GGUFFile> open(llvm::StringRef path, bool withTensors = true);

  const MappedFile &file() const { return *mapped; }
  std::shared_ptr<const MappedFile> sharedFile() const { return mapped; }
  uint32_t version() const { return fileVersion; }
  uint64_t alignment() const { return dataAlignment; }

  /// Keys and values in the file's order.
  llvm::ArrayRef<std::pair<llvm::StringRef, GGUFValue>> metadata() const { return values; }
  const GGUFValue *find(llvm::StringRef key) const;

  llvm::ArrayRef<TensorRef> tensors() const { return tensorList; }
  const TensorRef *findTensor(llvm::StringRef name) const;
  /// Number of bytes after the last tensor and its padding, which are ignored.
  uint64_t trailingBytes() const { return bytesLeft; }

private:
  friend class GGUFParser;
  std::shared_ptr<const MappedFile> mapped;
  uint32_t fileVersion = 0;
  uint64_t dataAlignment = 32;
  std::vector<std::pair<llvm::StringRef, GGUFValue>> values;
  llvm::StringMap<size_t> keys;
  std::vector<TensorRef> tensorList;
  llvm::StringMap<size_t> tensorIndex;
  uint64_t bytesLeft = 0;
};

} // namespace sluice

#endif // SLUICE_IMPORT_GGUF_H

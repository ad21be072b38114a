// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The safetensors format, as https://huggingface.co/docs/safetensors describes it: eight bytes of
// header length, a JSON header, then the tensors' bytes without holes.

#ifndef SLUICE_IMPORT_SAFETENSORS_H
#define SLUICE_IMPORT_SAFETENSORS_H

#include "sluice/Import/FileSet.h"
#include "sluice/Import/TensorRef.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sluice {

/// One checked safetensors file. Every tensor's bounds, and the extent of those whose type is
/// known, have been verified; tensors neither overlap nor leave holes.
class SafetensorsFile {
public:
  /// `relative` goes into each TensorRef's `file`.
  static llvm::Expected<SafetensorsFile> parse(std::shared_ptr<const MappedFile> file,
                                               llvm::StringRef relative);
  static llvm::Expected<SafetensorsFile> open(llvm::StringRef path);

  const MappedFile &file() const { return *mapped; }
  std::shared_ptr<const MappedFile> sharedFile() const { return mapped; }
  /// Sorted by their offsets in the file.
  llvm::ArrayRef<TensorRef> tensors() const { return tensorList; }
  const TensorRef *find(llvm::StringRef name) const;
  /// The header's `__metadata__`, sorted by key.
  llvm::ArrayRef<std::pair<std::string, std::string>> metadata() const { return metadataList; }

  /// Number of bytes after the last tensor, which are ignored.
  uint64_t trailingBytes() const { return bytesLeft; }

private:
  std::shared_ptr<const MappedFile> mapped;
  uint64_t bytesLeft = 0;
  std::vector<TensorRef> tensorList;
  llvm::StringMap<size_t> byName;
  std::vector<std::pair<std::string, std::string>> metadataList;
};

/// `model.safetensors.index.json`: which shard holds which tensor.
struct SafetensorsIndex {
  /// Shard file names, relative to the index, sorted and unique; none leaves the folder.
  std::vector<std::string> shards;
  /// Tensor name to position in `shards`.
  llvm::StringMap<size_t> shardOf;

  static llvm::Expected<SafetensorsIndex> parse(const MappedFile &file);
};

/// Writes one safetensors file of declared tensors. Each tensor's bytes begin at a multiple of 64
/// from the start of the file, so that a mapping of it can be read with aligned vector loads: the
/// header is padded with spaces, tensors whose size is not a multiple of 64 come last, and where
/// two of those follow each other a U8 tensor named `__padding__.N` fills the gap, as the format
/// allows no holes. The file appears under its name only when finish() succeeds.
class SafetensorsWriter {
public:
  struct Declaration {
    std::string name;
    StorageType type;
    llvm::SmallVector<int64_t, 4> shape;
  };
  static constexpr uint64_t alignment = 64;

  /// Lays the file out and writes its header to a temporary file in the same folder. Fails on a
  /// duplicate or reserved name, a type that safetensors lacks, a bad shape, and errors of the file
  /// system.
  static llvm::Expected<SafetensorsWriter>
  create(llvm::StringRef path, llvm::ArrayRef<Declaration> declarations,
         llvm::ArrayRef<std::pair<std::string, std::string>> metadata = {});

  SafetensorsWriter(SafetensorsWriter &&) noexcept;
  SafetensorsWriter &operator=(SafetensorsWriter &&) noexcept;
  /// Without a finish() the temporary file is removed.
  ~SafetensorsWriter();

  /// The first byte of the `index`-th declared tensor in the file, and its bytes.
  uint64_t offset(size_t index) const;
  uint64_t bytes(size_t index) const;
  uint64_t fileBytes() const;

  /// Appends to the `index`-th declared tensor. Tensors may be written in any order and in pieces;
  /// two threads may append to different tensors at the same time.
  llvm::Error append(size_t index, llvm::ArrayRef<uint8_t> data);

  /// Fails, naming the tensor, when one is incomplete; else renames the file into place.
  llvm::Error finish();

private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state;
};

} // namespace sluice

#endif // SLUICE_IMPORT_SAFETENSORS_H

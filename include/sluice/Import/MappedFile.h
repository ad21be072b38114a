// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Read-only views of files, and the set of files that one model is made of.

#ifndef SLUICE_IMPORT_MAPPEDFILE_H
#define SLUICE_IMPORT_MAPPEDFILE_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/MemoryBuffer.h"

#include <memory>
#include <mutex>
#include <string>

namespace sluice {

/// A regular file in memory: mapped when it is large, read when it is small. The bytes stay valid
/// as long as the object, which is shared by everything that points into it.
class MappedFile {
public:
  /// Fails, naming the path, on a missing or unreadable file and on anything that is not a regular
  /// file (a directory, a device, a pipe).
  static llvm::Expected<std::shared_ptr<const MappedFile>> open(llvm::StringRef path);

  /// As given to open(); error messages start with it.
  llvm::StringRef path() const { return filePath; }
  uint64_t size() const { return buffer->getBufferSize(); }
  llvm::StringRef text() const { return buffer->getBuffer(); }
  llvm::ArrayRef<uint8_t> bytes() const {
    return {reinterpret_cast<const uint8_t *>(buffer->getBufferStart()), size()};
  }

private:
  MappedFile(std::string path, std::unique_ptr<llvm::MemoryBuffer> buffer)
      : filePath(std::move(path)), buffer(std::move(buffer)) {}

  std::string filePath;
  std::unique_ptr<llvm::MemoryBuffer> buffer;
};

/// The files below one model's folder, each opened at most once. Safe to use from many threads.
class FileSet {
public:
  explicit FileSet(std::string root) : rootPath(std::move(root)) {}

  llvm::StringRef root() const { return rootPath; }

  /// `relative` must stay below the root: an absolute path or one with ".." is an error, so that a
  /// model file cannot make the compiler read elsewhere.
  llvm::Expected<std::shared_ptr<const MappedFile>> get(llvm::StringRef relative);

private:
  std::string rootPath;
  std::mutex mutex;
  llvm::StringMap<std::shared_ptr<const MappedFile>> files;
};

} // namespace sluice

#endif // SLUICE_IMPORT_MAPPEDFILE_H

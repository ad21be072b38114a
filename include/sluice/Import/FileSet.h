// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The files that one model is made of, mapped read-only.

#ifndef SLUICE_IMPORT_FILESET_H
#define SLUICE_IMPORT_FILESET_H

#include "sluice-support/MappedFile.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <memory>
#include <mutex>
#include <string>

namespace sluice {

using support::MappedFile;

/// Maps a file, which is shared by everything that points into it. Fails as MappedFile's
/// constructor does.
llvm::Expected<std::shared_ptr<const MappedFile>> mapFile(llvm::StringRef path,
                                                          uint64_t limit = UINT64_MAX);

/// The files below one model's folder, each opened at most once. Safe to use from many threads.
class FileSet {
public:
  explicit FileSet(std::string root) : rootPath(std::move(root)) {}

  llvm::StringRef root() const { return rootPath; }

  /// Maps the file at `relative`, which must stay below the root: an absolute path or one with ".."
  /// is an error, so that a model file cannot make the compiler read elsewhere.
  llvm::Expected<std::shared_ptr<const MappedFile>> get(llvm::StringRef relative);

private:
  std::string rootPath;
  std::mutex mutex;
  llvm::StringMap<std::shared_ptr<const MappedFile>> files;
};

} // namespace sluice

#endif // SLUICE_IMPORT_FILESET_H

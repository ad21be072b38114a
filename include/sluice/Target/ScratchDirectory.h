// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Files that nobody is to find when something goes wrong.

#ifndef SLUICE_TARGET_SCRATCHDIRECTORY_H
#define SLUICE_TARGET_SCRATCHDIRECTORY_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <string>

namespace sluice {

/// Writes a whole file.
std::error_code writeFile(llvm::StringRef path, llvm::StringRef contents);
/// Reads a whole file.
llvm::Expected<std::string> readFile(llvm::StringRef path);

/// A new directory that goes away with everything in it: when the object does, and when SIGHUP,
/// SIGINT or SIGTERM ends the process. Not when the process crashes.
///
/// The first one installs handlers for those signals, which do their work and then what was the
/// signal's action before. Whoever installs other handlers has to put the former ones back.
class ScratchDirectory {
public:
  /// None at all.
  ScratchDirectory() = default;
  /// Fails if `path` exists.
  static llvm::Expected<ScratchDirectory> create(llvm::StringRef path);
  /// In the system's folder for temporary files, with a name of its own that begins with `prefix`.
  static llvm::Expected<ScratchDirectory> createTemporary(llvm::StringRef prefix);

  ScratchDirectory(ScratchDirectory &&other) noexcept;
  ScratchDirectory &operator=(ScratchDirectory &&other) noexcept;
  ~ScratchDirectory();

  llvm::StringRef path() const { return directory; }
  /// Gives it another name, which must be free or an empty directory's, and keeps it.
  llvm::Error keepAs(llvm::StringRef path);
  /// Exchanges it with the directory `path`, at once: what has been there goes away instead.
  std::error_code exchange(llvm::StringRef path);

private:
  explicit ScratchDirectory(std::string path);
  void remove();

  std::string directory;
  int slot = -1;
};

} // namespace sluice

#endif // SLUICE_TARGET_SCRATCHDIRECTORY_H

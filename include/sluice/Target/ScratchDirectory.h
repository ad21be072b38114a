// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Files and directories that are removed when something goes wrong.

#ifndef SLUICE_TARGET_SCRATCHDIRECTORY_H
#define SLUICE_TARGET_SCRATCHDIRECTORY_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <string>

namespace sluice {

std::error_code writeFile(llvm::StringRef path, llvm::StringRef contents);
llvm::Expected<std::string> readFile(llvm::StringRef path);

/// A new directory that is removed with everything in it by the destructor, and when SIGHUP, SIGINT
/// or SIGTERM ends the process; not when the process crashes.
///
/// The first one installs handlers for those signals, which remove the directories and then run the
/// signal's former action. Whoever installs other handlers has to put the former ones back.
class ScratchDirectory {
public:
  /// Owns no directory.
  ScratchDirectory() = default;
  /// Fails if `path` exists.
  static llvm::Expected<ScratchDirectory> create(llvm::StringRef path);
  /// Creates one in the system's folder for temporary files, with a name of its own that begins
  /// with `prefix`.
  static llvm::Expected<ScratchDirectory> createTemporary(llvm::StringRef prefix);

  ScratchDirectory(ScratchDirectory &&other) noexcept;
  ScratchDirectory &operator=(ScratchDirectory &&other) noexcept;
  ~ScratchDirectory();

  llvm::StringRef path() const { return directory; }
  /// Renames the directory and keeps it. `path` must be free or an empty directory.
  llvm::Error keepAs(llvm::StringRef path);
  /// Exchanges the directory with `path` atomically; the former contents of `path` are removed
  /// instead.
  std::error_code exchange(llvm::StringRef path);

private:
  explicit ScratchDirectory(std::string path);
  void remove();

  std::string directory;
  int slot = -1;
};

} // namespace sluice

#endif // SLUICE_TARGET_SCRATCHDIRECTORY_H

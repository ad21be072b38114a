// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/Artifact.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;
using namespace sluice;

namespace fs = llvm::sys::fs;

static Error fileError(const Twine &path, std::error_code code) {
  return createStringError(code, path + ": " + code.message());
}

Expected<ArtifactDirectory> ArtifactDirectory::create(StringRef path) {
  SmallString<128> target(path);
  // A trailing slash would make the temporary directory a child of the target.
  while (target.size() > 1 && sys::path::is_separator(target.back()))
    target.pop_back();
  if (fs::exists(target)) {
    if (!fs::is_directory(target))
      return createStringError(target + ": exists and is not a directory");
    std::error_code code;
    bool empty = fs::directory_iterator(target, code) == fs::directory_iterator();
    if (code)
      return fileError(target, code);
    if (!empty && !fs::exists(target + "/plan.json"))
      return createStringError(target + ": is a directory that is not an artifact (it has no plan.json); "
                                        "choose another output or remove it");
  }
  StringRef parent = sys::path::parent_path(target);
  if (!parent.empty())
    if (std::error_code code = fs::create_directories(parent))
      return fileError(parent, code);
  // Beside the target: rename() needs the same file system.
  SmallString<128> temporary(
      (Twine(target) + ".partial-" + Twine(sys::Process::getProcessId())).str());
  if (std::error_code code = fs::create_directory(temporary, /*IgnoreExisting=*/false, fs::all_all))
    return fileError(temporary, code);
  return ArtifactDirectory(target.str().str(), temporary.str().str());
}

ArtifactDirectory::ArtifactDirectory(ArtifactDirectory &&other) noexcept
    : path(std::move(other.path)), temporary(std::move(other.temporary)) {
  other.temporary.clear();
}

ArtifactDirectory::~ArtifactDirectory() {
  if (!temporary.empty())
    fs::remove_directories(temporary);
}

std::string ArtifactDirectory::pathOf(StringRef name) const {
  return (Twine(temporary) + "/" + name).str();
}

Error ArtifactDirectory::write(StringRef name, StringRef contents) {
  std::error_code code;
  raw_fd_ostream os(pathOf(name), code);
  if (code)
    return fileError(path + "/" + name, code);
  os << contents;
  os.close();
  if (os.has_error()) {
    code = os.error();
    os.clear_error();
    return fileError(path + "/" + name, code);
  }
  return Error::success();
}

Error ArtifactDirectory::commit() {
  if (fs::exists(path))
    if (std::error_code code = fs::remove_directories(path, /*IgnoreErrors=*/false))
      return fileError(path, code);
  if (std::error_code code = fs::rename(temporary, path))
    return fileError(path, code);
  temporary.clear();
  return Error::success();
}

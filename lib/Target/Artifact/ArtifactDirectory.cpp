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

/// What an artifact may hold: a directory with anything else is not one that may be replaced.
static bool isArtifactFile(StringRef name) {
  return name == "plan.json" || name == "weights.safetensors" || name == "tokenizer.json" ||
         name == "ir" || name.starts_with("kernels.") || name.ends_with(".mlir");
}

static Error checkReplaceable(StringRef target) {
  bool empty = true, hasPlan = false;
  std::string stranger;
  std::error_code code;
  for (fs::directory_iterator entry(target, code), end; !code && entry != end;
       entry.increment(code)) {
    empty = false;
    StringRef name = sys::path::filename(entry->path());
    hasPlan |= name == "plan.json";
    if (!isArtifactFile(name))
      stranger = name;
  }
  if (code)
    return fileError(target, code);
  if (empty || (hasPlan && stranger.empty()))
    return Error::success();
  return createStringError(
      target + ": is a directory that is not an artifact (it " +
      (hasPlan ? "holds '" + stranger + "', which no artifact has" : "has no plan.json") +
      "); choose another output or remove it");
}

/// An error if `path` is a symbolic link to something that does not exist: nothing can be made
/// there.
static Error checkNotDangling(StringRef path) {
  if (!fs::is_symlink_file(path) || fs::exists(path))
    return Error::success();
  return createStringError(path + ": is a symbolic link to something that does not exist");
}

Expected<ArtifactDirectory> ArtifactDirectory::create(StringRef path) {
  ArtifactDirectory result;
  SmallString<128> target(path);
  // A trailing slash would make the temporary directory a child of the target.
  while (target.size() > 1 && sys::path::is_separator(target.back()))
    target.pop_back();
  result.given = target.str();
  if (fs::exists(target)) {
    // A link stays one, and "." gets a name.
    SmallString<128> real;
    if (std::error_code code = fs::real_path(target, real))
      return fileError(target, code);
    target = real;
    if (!fs::is_directory(target))
      return createStringError(target + ": exists and is not a directory");
    if (Error error = checkReplaceable(target))
      return std::move(error);
  }
  if (Error error = checkNotDangling(target))
    return std::move(error);
  result.path = target.str();

  // Beside the target, because a rename needs the same file system; where folders above it are
  // missing, beside the first of them, so that they need not be made before the end.
  StringRef highest = target;
  for (StringRef folder = sys::path::parent_path(target); !folder.empty() && !fs::exists(folder);
       folder = sys::path::parent_path(folder)) {
    if (Error error = checkNotDangling(folder))
      return std::move(error);
    highest = folder;
  }
  Expected<ScratchDirectory> scratch =
      ScratchDirectory::create((highest + ".partial-" + Twine(sys::Process::getProcessId())).str());
  if (!scratch)
    return scratch.takeError();
  result.scratch = std::move(*scratch);
  return result;
}

std::string ArtifactDirectory::pathOf(StringRef name) const {
  return (scratch.path() + "/" + name).str();
}

std::optional<std::string> ArtifactDirectory::pathInside(StringRef other) const {
  auto absolute = [](StringRef path) {
    SmallString<128> result(path);
    if (fs::make_absolute(result))
      result.clear();
    sys::path::remove_dots(result, /*remove_dot_dot=*/true);
    return result;
  };
  SmallString<128> inner = absolute(other);
  for (StringRef outer : {given, path}) {
    StringRef rest = inner;
    if (rest.consume_front(absolute(outer)) &&
        (rest.empty() || sys::path::is_separator(rest.front())))
      return (scratch.path() + rest).str();
  }
  return std::nullopt;
}

Error ArtifactDirectory::write(StringRef name, StringRef contents) {
  if (std::error_code code = writeFile(pathOf(name), contents))
    return fileError(path + "/" + name, code);
  return Error::success();
}

Error ArtifactDirectory::commit() {
  StringRef parent = sys::path::parent_path(path);
  if (!parent.empty())
    if (std::error_code code = fs::create_directories(parent))
      return fileError(parent, code);
  // Another compilation may put its artifact there, or take it away, at any time.
  for (int attempt = 0;; ++attempt) {
    if (fs::exists(path)) {
      std::error_code code = scratch.exchange(path);
      if (!code)
        return Error::success();
      // Not every file system can exchange two directories.
      if (code != std::errc::no_such_file_or_directory)
        if ((code = fs::remove_directories(path, /*IgnoreErrors=*/false)))
          return fileError(path, code);
    }
    Error error = scratch.keepAs(path);
    if (!error || attempt == 8)
      return error;
    consumeError(std::move(error));
  }
}

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
         name == "ir" || name.starts_with("kernels.");
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

Expected<ArtifactDirectory> ArtifactDirectory::create(StringRef path) {
  ArtifactDirectory result;
  SmallString<128> target(path);
  // A trailing slash would make the temporary directory a child of the target.
  while (target.size() > 1 && sys::path::is_separator(target.back()))
    target.pop_back();
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
  result.path = target.str();

  for (StringRef folder = sys::path::parent_path(target); !folder.empty() && !fs::exists(folder);
       folder = sys::path::parent_path(folder))
    result.madeFolders.insert(result.madeFolders.begin(), folder.str());
  for (auto [index, folder] : enumerate(result.madeFolders))
    if (std::error_code code = fs::create_directory(folder)) {
      std::string failed = folder;
      result.madeFolders.resize(index);
      return fileError(failed, code);
    }
  // Beside the target: a rename needs the same file system.
  Expected<ScratchDirectory> scratch = ScratchDirectory::create(
      (target + ".partial-" + Twine(sys::Process::getProcessId())).str());
  if (!scratch)
    return scratch.takeError();
  result.scratch = std::move(*scratch);
  return result;
}

ArtifactDirectory::~ArtifactDirectory() {
  scratch = ScratchDirectory();
  // Those that someone else uses by now are not empty.
  for (const std::string &folder : reverse(madeFolders))
    if (fs::remove(folder))
      break;
}

std::string ArtifactDirectory::pathOf(StringRef name) const {
  return (scratch.path() + "/" + name).str();
}

std::optional<std::string> ArtifactDirectory::pathInside(StringRef other) const {
  SmallString<128> inner(other), outer(path);
  if (fs::make_absolute(inner) || fs::make_absolute(outer))
    return std::nullopt;
  sys::path::remove_dots(inner, /*remove_dot_dot=*/true);
  sys::path::remove_dots(outer, /*remove_dot_dot=*/true);
  StringRef rest = inner;
  if (!rest.consume_front(outer) || (!rest.empty() && !sys::path::is_separator(rest.front())))
    return std::nullopt;
  return (scratch.path() + rest).str();
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
  // The old artifact moves into a directory that goes away. Another compilation may put its own
  // there in between, so try again.
  for (int attempt = 0;; ++attempt) {
    ScratchDirectory former;
    std::string aside;
    if (fs::exists(path)) {
      Expected<ScratchDirectory> made = ScratchDirectory::create(
          (path + ".partial-old-" + Twine(sys::Process::getProcessId())).str());
      if (!made)
        return made.takeError();
      former = std::move(*made);
      aside = (former.path() + "/artifact").str();
      std::error_code code = fs::rename(path, aside);
      if (code && code != std::errc::no_such_file_or_directory)
        return fileError(path, code);
    }
    Error error = scratch.keepAs(path);
    if (!error) {
      madeFolders.clear();
      return error;
    }
    if (!aside.empty())
      (void)fs::rename(aside, path); // Unless there is one again.
    if (attempt == 8)
      return error;
    consumeError(std::move(error));
  }
}

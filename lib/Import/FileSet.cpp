// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/FileSet.h"

#include "Diagnostics.h"

#include "sluice/Import/Expected.h"

#include "llvm/Support/Path.h"

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;

Expected<std::shared_ptr<const MappedFile>> sluice::mapFile(StringRef path, uint64_t limit) {
  return toExpected([&] { return std::make_shared<const MappedFile>(path.str(), limit); });
}

Expected<std::shared_ptr<const MappedFile>> FileSet::get(StringRef relative) {
  if (relative.empty() || relative.contains('\0') || sys::path::is_absolute(relative))
    return fail(rootPath,
                "file name " + detail::quote(relative) + " is not a path below the model's folder");
  for (StringRef part : make_range(sys::path::begin(relative), sys::path::end(relative)))
    if (part == "..")
      return fail(rootPath, "file name " + detail::quote(relative) + " leaves the model's folder");

  std::lock_guard<std::mutex> lock(mutex);
  auto [entry, isNew] = files.try_emplace(relative);
  if (!isNew)
    return entry->second;
  SmallString<256> path(rootPath);
  sys::path::append(path, relative);
  auto file = mapFile(path);
  if (!file) {
    files.erase(entry);
    return file.takeError();
  }
  entry->second = *file;
  return entry->second;
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/MappedFile.h"

#include "Diagnostics.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;

Expected<std::shared_ptr<const MappedFile>> MappedFile::open(StringRef path) {
  // MemoryBuffer would read a pipe or a device to its end, which may never come.
  sys::fs::file_status status;
  if (std::error_code ec = sys::fs::status(path, status))
    return fail(path, "cannot be opened: " + ec.message());
  if (status.type() == sys::fs::file_type::directory_file)
    return fail(path, "is a directory, expected a file");
  if (status.type() != sys::fs::file_type::regular_file)
    return fail(path, "is not a regular file");
  auto buffer = MemoryBuffer::getFile(path, /*IsText=*/false, /*RequiresNullTerminator=*/false);
  if (!buffer)
    return fail(path, "cannot be opened: " + buffer.getError().message());
  return std::shared_ptr<const MappedFile>(new MappedFile(path.str(), std::move(*buffer)));
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
  auto file = MappedFile::open(path);
  if (!file) {
    files.erase(entry);
    return file.takeError();
  }
  entry->second = *file;
  return entry->second;
}

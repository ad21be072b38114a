// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_SUPPORT_MAPPEDFILE_H
#define SLUICE_SUPPORT_MAPPEDFILE_H

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sluice::support {

/// A regular file, mapped read-only. The bytes are valid as long as the object.
class MappedFile {
public:
  /// Throws an Error that names the path if the file is missing or unreadable, if it is not a
  /// regular file (a directory, a device, a pipe), if it has more than `limit` bytes, or if it is a
  /// git-lfs pointer to the file that is meant.
  explicit MappedFile(std::string path, uint64_t limit = UINT64_MAX);
  ~MappedFile();
  MappedFile(const MappedFile &) = delete;
  MappedFile &operator=(const MappedFile &) = delete;

  /// As given; error messages start with it.
  const std::string &path() const { return filePath; }
  uint64_t size() const { return length; }
  std::span<const std::byte> bytes() const { return {data, length}; }
  std::string_view text() const { return {reinterpret_cast<const char *>(data), length}; }

private:
  std::string filePath;
  const std::byte *data = nullptr;
  size_t length = 0;
};

} // namespace sluice::support

#endif // SLUICE_SUPPORT_MAPPEDFILE_H

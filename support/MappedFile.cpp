// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/MappedFile.h"

#include "sluice-support/Error.h"
#include "sluice-support/Text.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

using namespace sluice::support;

namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0)
      close(fd);
  }
};

} // namespace

MappedFile::MappedFile(std::string path, uint64_t limit) : filePath(std::move(path)) {
  auto fail = [&](const std::string &why) { throw Error(filePath + ": " + why); };
  auto reason = [] { return std::generic_category().message(errno); };
  // The system would open another file: it takes the path to end there.
  if (filePath.find('\0') != filePath.npos)
    throw Error(quote(filePath) + ": is not a path: it holds a NUL character");
  // Without O_NONBLOCK the opening of a named pipe would wait for a writer.
  Descriptor file{open(filePath.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0)
    fail("cannot be opened: " + reason());
  struct stat status;
  if (fstat(file.fd, &status))
    fail("cannot be read: " + reason());
  if (S_ISDIR(status.st_mode))
    fail("is a directory, expected a file");
  if (!S_ISREG(status.st_mode))
    fail("is not a regular file");
  length = static_cast<size_t>(status.st_size);
  if (length > limit)
    fail("has " + std::to_string(length) + " bytes, expected at most " + std::to_string(limit));
  if (length == 0)
    return;
  void *address = mmap(nullptr, length, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED)
    fail("cannot be mapped: " + reason());
  data = static_cast<const std::byte *>(address);
  // What a clone that was made without git-lfs has in the place of a large file.
  if (text().starts_with("version https://git-lfs.github.com/spec/")) {
    munmap(address, length);
    fail("is a git-lfs pointer, expected the file that `git lfs pull` puts in its place");
  }
}

MappedFile::~MappedFile() {
  if (data)
    munmap(const_cast<std::byte *>(data), length);
}

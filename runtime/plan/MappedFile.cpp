// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Artifact.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace sluice::runtime;

namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0)
      close(fd);
  }
};

} // namespace

MappedFile::MappedFile(std::filesystem::path path) : filePath(std::move(path)) {
  auto fail = [&](const std::string &why) { throw Error(filePath.string() + ": " + why); };
  // Without O_NONBLOCK the opening of a named pipe would wait for a writer.
  Descriptor file{open(filePath.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0)
    fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status;
  if (fstat(file.fd, &status))
    fail(std::string("cannot be read: ") + std::strerror(errno));
  if (!S_ISREG(status.st_mode))
    fail("is not a regular file");
  size = static_cast<size_t>(status.st_size);
  if (size == 0)
    return;
  void *address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED)
    fail(std::string("cannot be mapped: ") + std::strerror(errno));
  data = static_cast<const std::byte *>(address);
}

MappedFile::~MappedFile() {
  if (data)
    munmap(const_cast<std::byte *>(data), size);
}

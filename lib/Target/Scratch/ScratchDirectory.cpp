// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/ScratchDirectory.h"

#include "sluice-support/MappedFile.h"
#include "sluice/Import/Expected.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Signals.h"
#include "llvm/Support/raw_ostream.h"

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <system_error>
#include <unistd.h>

using namespace llvm;
using namespace sluice;

namespace fs = llvm::sys::fs;

std::error_code sluice::writeFile(StringRef path, StringRef contents) {
  std::error_code code;
  raw_fd_ostream os(path, code);
  if (code)
    return code;
  os << contents;
  os.close();
  code = os.error();
  os.clear_error();
  return code;
}

Expected<std::string> sluice::readFile(StringRef path) {
  return toExpected([&] { return std::string(support::MappedFile(path.str()).text()); });
}

// What follows runs in a signal handler: system calls and lock-free atomics only.

/// Paths to remove. Whoever takes one out of its slot owns it.
static std::atomic<char *> slots[16];
static_assert(std::atomic<char *>::is_always_lock_free);

static constexpr int handledSignals[] = {SIGHUP, SIGINT, SIGTERM};
static struct sigaction formerActions[std::size(handledSignals)];

static void removeTree(int parent, const char *name) {
  // Other threads still run, and may put files into a directory that has just been emptied.
  for (int attempt = 0; attempt < 8; ++attempt) {
    int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0) {
      unlinkat(parent, name, 0);
      return;
    }
    // The kernel's struct linux_dirent64, which no header declares: two 64-bit numbers, the
    // record's length, a type, the name.
    constexpr long lengthAt = 16, nameAt = 19;
    alignas(8) char entries[2048];
    long bytes;
    while ((bytes = syscall(SYS_getdents64, directory, entries, sizeof(entries))) > 0)
      for (long at = 0; at < bytes;) {
        unsigned short length;
        std::memcpy(&length, entries + at + lengthAt, sizeof(length));
        const char *entry = entries + at + nameAt;
        if (std::strcmp(entry, ".") != 0 && std::strcmp(entry, "..") != 0)
          removeTree(directory, entry);
        at += length;
      }
    close(directory);
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
      return;
  }
}

static void removeAndGoOn(int signal) {
  int savedErrno = errno;
  for (std::atomic<char *> &slot : slots)
    if (const char *path = slot.exchange(nullptr))
      removeTree(AT_FDCWD, path);
  for (size_t i = 0; i < std::size(handledSignals); ++i)
    if (handledSignals[i] == signal)
      sigaction(signal, &formerActions[i], nullptr);
  // Blocked until this returns.
  raise(signal);
  errno = savedErrno;
}

// End of the signal handler.

/// Whether a signal was ignored when the program started (nohup, a shell's background): then it
/// must not end it, nor what it made.
static const auto ignoredAtStart = [] {
  std::array<bool, std::size(handledSignals)> ignored;
  for (size_t i = 0; i < ignored.size(); ++i) {
    struct sigaction action = {};
    ignored[i] =
        sigaction(handledSignals[i], nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
  }
  return ignored;
}();

static void installHandlers() {
  // LLVM's handlers do not ask whether a signal is ignored. They come once: now, not after these.
  sys::SetInterruptFunction(nullptr);
  for (size_t i = 0; i < std::size(handledSignals); ++i) {
    if (ignoredAtStart[i]) {
      std::signal(handledSignals[i], SIG_IGN);
      continue;
    }
    struct sigaction action = {};
    action.sa_handler = removeAndGoOn;
    sigfillset(&action.sa_mask);
    sigaction(handledSignals[i], &action, &formerActions[i]);
  }
}

namespace {
/// Holds signals back from when a directory is made until their handler knows of it.
class SignalsHeldBack {
public:
  SignalsHeldBack() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int signal : handledSignals)
      sigaddset(&signals, signal);
    pthread_sigmask(SIG_BLOCK, &signals, &former);
  }
  ~SignalsHeldBack() { pthread_sigmask(SIG_SETMASK, &former, nullptr); }

private:
  sigset_t former;
};
} // namespace

ScratchDirectory::ScratchDirectory(std::string path) : directory(std::move(path)) {
  static std::once_flag installed;
  std::call_once(installed, installHandlers);
  // The process may change its working directory.
  SmallString<256> absolute(directory);
  char *copy = fs::make_absolute(absolute) ? nullptr : strdup(absolute.c_str());
  for (size_t i = 0; copy && i < std::size(slots); ++i) {
    char *empty = nullptr;
    if (slots[i].compare_exchange_strong(empty, copy)) {
      slot = static_cast<int>(i);
      return;
    }
  }
  free(copy); // More than anyone makes; the destructor still works.
}

Expected<ScratchDirectory> ScratchDirectory::create(StringRef path) {
  SignalsHeldBack held;
  if (std::error_code code = fs::create_directory(path, /*IgnoreExisting=*/false, fs::all_all))
    return createStringError(code, path + ": " + code.message());
  return ScratchDirectory(path.str());
}

Expected<ScratchDirectory> ScratchDirectory::createTemporary(StringRef prefix) {
  SignalsHeldBack held;
  SmallString<128> path;
  if (std::error_code code = fs::createUniqueDirectory(prefix, path)) {
    SmallString<128> folder;
    sys::path::system_temp_directory(/*ErasedOnReboot=*/true, folder);
    return createStringError(code,
                             folder + ": cannot make a temporary directory: " + code.message());
  }
  return ScratchDirectory(path.str().str());
}

ScratchDirectory::ScratchDirectory(ScratchDirectory &&other) noexcept
    : directory(std::exchange(other.directory, {})), slot(std::exchange(other.slot, -1)) {}

ScratchDirectory &ScratchDirectory::operator=(ScratchDirectory &&other) noexcept {
  if (this != &other) {
    remove();
    directory = std::exchange(other.directory, {});
    slot = std::exchange(other.slot, -1);
  }
  return *this;
}

ScratchDirectory::~ScratchDirectory() { remove(); }

void ScratchDirectory::remove() {
  if (directory.empty())
    return;
  fs::remove_directories(directory);
  if (slot >= 0)
    free(slots[slot].exchange(nullptr));
  directory.clear();
  slot = -1;
}

Error ScratchDirectory::keepAs(StringRef path) {
  if (std::error_code code = fs::rename(directory, path))
    return createStringError(code, path + ": " + code.message());
  if (slot >= 0)
    free(slots[slot].exchange(nullptr));
  directory.clear();
  slot = -1;
  return Error::success();
}

std::error_code ScratchDirectory::exchange(StringRef path) {
  // In no header of every C library: RENAME_EXCHANGE.
  constexpr unsigned exchangeFlag = 2;
  if (syscall(SYS_renameat2, AT_FDCWD, directory.c_str(), AT_FDCWD, path.str().c_str(),
              exchangeFlag) == 0)
    return {};
  return std::error_code(errno, std::generic_category());
}

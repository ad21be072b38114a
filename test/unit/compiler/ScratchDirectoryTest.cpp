// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/ScratchDirectory.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"

#include <chrono>
#include <csignal>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace sluice;

// A signal that comes at any time while directories are made leaves none of them.
TEST(ScratchDirectory, SignalsWhileItIsMade) {
  struct sigaction action = {};
  if (sigaction(SIGTERM, nullptr, &action) == 0 && action.sa_handler == SIG_IGN)
    GTEST_SKIP() << "signals are ignored here, and do not end what makes directories";
  llvm::SmallString<128> parent;
  ASSERT_FALSE(llvm::sys::fs::createUniqueDirectory("scratch", parent));
  for (int attempt = 0; attempt < 100; ++attempt) {
    pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      // One after the other, so that the signal is likely to come while one is made.
      for (int number = 0;; ++number)
        llvm::consumeError(
            ScratchDirectory::create(parent.str().str() + "/" + std::to_string(number))
                .takeError());
    }
    usleep(500 + 37 * attempt);
    kill(child, SIGTERM);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
  }
  std::error_code code;
  int left = 0;
  for (llvm::sys::fs::directory_iterator file(parent, code), end; !code && file != end;
       file.increment(code))
    ++left;
  EXPECT_EQ(left, 0);
  llvm::sys::fs::remove_directories(parent);
}

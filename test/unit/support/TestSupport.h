// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_SUPPORT_TESTSUPPORT_H
#define SLUICE_TEST_UNIT_SUPPORT_TESTSUPPORT_H

#include "sluice-support/Error.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice::support::test {

/// The message of the Error that `function` throws, or "no error".
template <typename F> std::string errorOf(F &&function) {
  try {
    function();
  } catch (const Error &error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

} // namespace sluice::support::test

#endif // SLUICE_TEST_UNIT_SUPPORT_TESTSUPPORT_H

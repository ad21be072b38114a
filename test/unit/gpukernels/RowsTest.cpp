// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Kernels of rows, of which not all have to be there.

#include "GpuKernels.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

constexpr int64_t rows = 6, width = 150;

/// Rows of which `active` are there; the others hold NaN, which no kernel may read.
std::vector<float> someRows(int64_t active) {
  std::vector<float> x = Random(3).normal(active * width);
  x.resize(rows * width, NAN);
  return x;
}

Buffer count(int64_t active) { return Buffer(std::vector<int32_t>{static_cast<int32_t>(active)}); }

/// The first rows are `expected`, the others have not been written.
void check(Buffer &output, const std::vector<float> &expected) {
  SCOPED_TRACE(std::to_string(expected.size() / width) + " rows");
  std::vector<float> found(output.as<float>(), output.as<float>() + expected.size());
  EXPECT_EQ(found, expected);
  EXPECT_TRUE(output.untouchedFrom(expected.size() * 4));
}

} // namespace

TEST(GpuRows, OnlyActiveRows) {
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(
      "func.func @f(%x: tensor<6x150xf32>, %n: tensor<1xi32>) -> tensor<6x150xf32> {\n"
      "  %y = fused.rows active(%n) " +
          gpuSchedule(rows, 2, 1, 1, width, 1, "none") +
          " -> tensor<6x150xf32> body {\n"
          "    %s = arith.addf %x, %x : tensor<6x150xf32>\n"
          "    fused.yield %s : tensor<6x150xf32>\n  }\n"
          "  return %y : tensor<6x150xf32>\n}\n",
      "h200");
  ASSERT_TRUE(kernels);
  for (int64_t active : {1, 4, 6}) {
    std::vector<float> x = someRows(active), expected(active * width);
    for (int64_t i = 0; i < active * width; ++i)
      expected[i] = 2 * x[i];
    Buffer n = count(active), input(x), output(rows * width * 4);
    kernels->run(0, {&n, &input, &output}, active);
    check(output, expected);
  }
}

TEST(GpuLastRow, IsTheLastActiveOne) {
  for (int64_t blocks : {1, 3, 1000}) {
    std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(
        "func.func @f(%x: tensor<6x150xf32>, %n: tensor<1xi32>) -> tensor<1x150xf32> {\n"
        "  %y = fused.last_row %x active(%n) " +
            gpuSchedule(blocks, 1, 1, 1, width, 1, "none") +
            " : tensor<6x150xf32> -> tensor<1x150xf32>\n"
            "  return %y : tensor<1x150xf32>\n}\n",
        "h200");
    ASSERT_TRUE(kernels);
    for (int64_t active : {1, 4, 6}) {
      std::vector<float> x = someRows(active);
      Buffer n = count(active), input(x), output(width * 4);
      kernels->run(0, {&input, &n, &output}, active);
      EXPECT_EQ(output.copy<float>(),
                std::vector<float>(x.begin() + (active - 1) * width, x.begin() + active * width))
          << active << " rows";
    }
  }
}

TEST(GpuEmbeddingOf, OnlyActiveTokens) {
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(
      "func.func @f(%t: tensor<6xi32>, %w: tensor<9x150xf32>, %n: tensor<1xi32>) -> "
      "tensor<6x150xf32> {\n  %y = fused.embedding %t, %w active(%n) " +
          gpuSchedule(rows * 2, 2, 1, 1, width, 1, "none") +
          " : tensor<6xi32>, tensor<9x150xf32> -> tensor<6x150xf32>\n"
          "  return %y : tensor<6x150xf32>\n}\n",
      "h200");
  ASSERT_TRUE(kernels);
  std::vector<float> table = Random(4).normal(9 * width);
  const std::vector<int32_t> ids = {4, 0, 8, 3, 3, 1};
  for (int64_t active : {1, 4, 6}) {
    std::vector<float> expected(active * width);
    for (int64_t row = 0; row < active; ++row)
      std::copy_n(table.begin() + ids[row] * width, width, expected.begin() + row * width);
    Buffer tokens(ids), weight(table), n = count(active), output(rows * width * 4);
    kernels->run(0, {&tokens, &weight, &n, &output}, active);
    check(output, expected);
  }
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "GpuKernels.h"

#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

TEST(GpuEmbedding, RowsOfAllFormats) {
  struct Table {
    Encoding format;
    int64_t columns;
    bool builtin = false;
  };
  std::vector<Table> tables = {
      {{Encoding::Element::F16}, 256, true}, {{Encoding::Element::BF16}, 100, true},
      {{Encoding::Element::F32}, 38, true},  {{Encoding::Element::F16}, 40},
      {{Encoding::Element::BF16}, 34},       {{Encoding::Element::F32}, 640}};
  for (Encoding::Element element : {Encoding::Element::I8, Encoding::Element::I4})
    for (bool zeroPoint : {false, true}) {
      tables.push_back(
          {{element, 32, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None}, 96});
      tables.push_back(
          {{element, 128, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None}, 1152});
      tables.push_back({{element, Encoding::channel,
                         zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None},
                        74});
    }
  for (const char *name : {"q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
                           "iq4_xs", "mxfp4", "nvfp4"})
    tables.push_back({*Encoding::fromName(name), 512});
  // Groups and a super-block that are shorter.
  for (const char *name :
       {"int5-g64", "int4-g32-n8", "iq4-g16-n8", "fp8-g64", "fp8-channel-f32", "iq1-g16-n8",
        "iq2-g32-n8", "iq3xxs-g32-n8", "iq3s-g32-n8", "int8-g256-f32"})
    tables.push_back({*Encoding::fromName(name), 296});
  constexpr int64_t rows = 9, count = 5;
  std::string text;
  for (auto [number, table] : llvm::enumerate(tables)) {
    std::string columns = std::to_string(table.columns), out = "tensor<5x" + columns + "xf32>",
                type = table.builtin ? "tensor<9x" + columns + "x" + table.format.name() + ">"
                                     : tensorType(table.format, rows, table.columns, "rows");
    // One block a token, or two.
    text += "func.func @f" + std::to_string(number) + "(%t: tensor<5xi32>, %w: " + type + ") -> " +
            out + " {\n  %y = fused.embedding %t, %w " +
            gpuSchedule(count * (1 + number % 2), 4, 1, 1, 1024, 1, "none") + " : tensor<5xi32>, " +
            type + " -> " + out + "\n  return %y : " + out + "\n}\n";
  }
  std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(text, "h200");
  ASSERT_TRUE(kernels);
  Random random(1);
  for (auto [number, table] : llvm::enumerate(tables)) {
    SCOPED_TRACE(table.format.name() + " of " + std::to_string(table.columns));
    Weight weight(table.format, rows, table.columns, random);
    // The last two are outside and taken for the nearest inside.
    const std::vector<int32_t> ids = {0, 8, 3, -1, 100};
    const int64_t used[] = {0, 8, 3, 0, 8};
    Buffer tokens(ids), packed = pack(weight, naturalRows(rows), formats::Layout::Kind::Rows),
                        output(count * table.columns * 4);
    kernels->run(number, {&tokens, &packed, &output}, number);
    formats::PackedShape shape = llvm::cantFail(formats::PackedShape::get(
        table.format, {formats::Layout::Kind::Rows}, rows, table.columns));
    for (int64_t token = 0; token < count; ++token) {
      std::vector<float> expected(table.columns),
          found(output.as<float>() + token * table.columns,
                output.as<float>() + (token + 1) * table.columns);
      formats::unpackRow(shape, {packed.as<uint8_t>(), packed.size()}, used[token], expected);
      EXPECT_EQ(found, expected) << "token " << token;
    }
  }
}

// Whatever verifies copies the same.
TEST(GpuEmbedding, EverySchedule) {
  constexpr int64_t rows = 5, count = 3, columns = 1000;
  Random random(2);
  Weight weight({Encoding::Element::F16}, rows, columns, random);
  std::vector<float> expected(count * columns);
  const std::vector<int32_t> ids = {4, 0, 2};
  for (auto [token, id] : llvm::enumerate(ids))
    formats::f16ToFloat(llvm::ArrayRef(weight.halves).slice(id * columns, columns),
                        llvm::MutableArrayRef(expected).slice(token * columns, columns));
  for (int64_t warps = 1; warps <= 31; warps += 3)
    for (int64_t parts : {int64_t(1), int64_t(2), int64_t(7), int64_t(600000000)}) {
      SCOPED_TRACE(std::to_string(warps) + " warps, " + std::to_string(parts) + " blocks a token");
      std::unique_ptr<GpuKernels> kernels = GpuKernels::compile(
          "func.func @f(%t: tensor<3xi32>, %w: tensor<5x1000xf16>) -> tensor<3x1000xf32> {\n  %y = "
          "fused.embedding %t, %w " +
              gpuSchedule(count * parts, warps, 1, 1, 1024, 1, "none") +
              " : tensor<3xi32>, tensor<5x1000xf16> -> tensor<3x1000xf32>\n  return %y : "
              "tensor<3x1000xf32>\n}\n",
          "h200");
      ASSERT_TRUE(kernels);
      Buffer tokens(ids), table(weight.halves), output(count * columns * 4);
      kernels->run(0, {&tokens, &table, &output}, warps);
      EXPECT_EQ(output.copy<float>(), expected);
    }
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "HostKernels.h"

#include "sluice/Formats/Quantizer.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

namespace {
class HostEmbedding : public testing::TestWithParam<host::Isa> {};
} // namespace

TEST_P(HostEmbedding, RowsOfAllFormats) {
  struct Table {
    Encoding format;
    int64_t columns;
    bool builtin = false;
  };
  std::vector<Table> tables = {
      {{Encoding::Element::F16}, 256, true}, {{Encoding::Element::BF16}, 100, true},
      {{Encoding::Element::F32}, 37, true},  {{Encoding::Element::F16}, 40},
      {{Encoding::Element::BF16}, 33},       {{Encoding::Element::F32}, 64}};
  for (Encoding::Element element : {Encoding::Element::I8, Encoding::Element::I4})
    for (bool zeroPoint : {false, true}) {
      tables.push_back(
          {{element, 32, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None}, 96});
      tables.push_back(
          {{element, 128, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None}, 256});
      tables.push_back({{element, Encoding::channel,
                         zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None},
                        75});
    }
  for (const char *name : {"q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
                           "iq4_xs", "mxfp4", "nvfp4"})
    tables.push_back({*Encoding::fromName(name), 512});
  // Groups and a super-block that are shorter.
  for (const char *name :
       {"int5-g64", "int4-g32-n8", "iq4-g16-n8", "fp8-g64", "fp8-channel-f32", "iq1-g16-n8",
        "iq2-g32-n8", "iq3xxs-g32-n8", "iq3s-g32-n8", "int8-g256-f32"})
    tables.push_back({*Encoding::fromName(name), 296});
  constexpr int64_t rows = 9;
  std::string text;
  for (auto [number, table] : llvm::enumerate(tables)) {
    std::string columns = std::to_string(table.columns), out = "tensor<5x" + columns + "xf32>",
                type = table.builtin ? "tensor<9x" + columns + "x" + table.format.name() + ">"
                                     : tensorType(table.format, rows, table.columns, "rows");
    text += "func.func @f" + std::to_string(number) + "(%t: tensor<5xi32>, %w: " + type + ") -> " +
            out + " {\n  %y = fused.embedding %t, %w " + schedule(GetParam(), 1, 0) +
            " : tensor<5xi32>, " + type + " -> " + out + "\n  return %y : " + out + "\n}\n";
  }
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(text);
  ASSERT_TRUE(kernels);
  Random random(1);
  for (auto [number, table] : llvm::enumerate(tables)) {
    SCOPED_TRACE(table.format.name() + " of " + std::to_string(table.columns));
    EXPECT_EQ(kernels->dispatches[number].grid, 5);
    Weight weight(table.format, rows, table.columns, random);
    // The last two are outside and taken for the nearest inside.
    const std::vector<int32_t> ids = {0, 8, 3, -1, 100};
    const int64_t used[] = {0, 8, 3, 0, 8};
    Buffer tokens(ids), packed = pack(weight, naturalRows(rows), formats::Layout::Kind::Rows),
                        output(5 * table.columns * 4);
    kernels->run(number, {&tokens, &packed, &output});
    formats::PackedShape shape = llvm::cantFail(formats::PackedShape::get(
        table.format, {formats::Layout::Kind::Rows}, rows, table.columns));
    for (int64_t token = 0; token < 5; ++token) {
      std::vector<float> expected(table.columns),
          found(output.as<float>() + token * table.columns,
                output.as<float>() + (token + 1) * table.columns);
      formats::unpackRow(shape, {packed.as<uint8_t>(), packed.size()}, used[token], expected);
      EXPECT_EQ(found, expected) << "token " << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostEmbedding, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiled products of many tokens against the definitions in sluice/Formats, and against compiled
// products of one token, whose numbers they must be.

#include "HostKernels.h"

#include "dialects/Fused/PreparedInput.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/RowOrder.h"

#include "mlir/AsmParser/AsmParser.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

namespace {

constexpr int64_t kTokens = 64;
/// Of the tokens that a step is made for, those that are there.
constexpr int64_t kCounts[] = {1, 2, 31, 64};

/// `!fused.prepared<...>` for a weight's format.
std::string preparedType(Encoding format, int64_t columns) {
  std::string weight = tensorType(format, 16, columns, "rows"), prefix = "!quantized.tensor<";
  prefix += "16x" + std::to_string(columns) + "x";
  return "!fused.prepared<" + std::to_string(kTokens) + ", " + std::to_string(columns) +
         ", for = [#quantized.encoding<" + weight.substr(prefix.size()) + "]>";
}

Buffer preparedBuffer(const std::string &type) {
  static mlir::MLIRContext *context = [] {
    auto *context = new mlir::MLIRContext(mlir::MLIRContext::Threading::DISABLED);
    context->loadDialect<quantized::QuantizedDialect, fused::FusedDialect>();
    return context;
  }();
  return Buffer(fused::preparedBytes(cast<fused::PreparedType>(mlir::parseType(type, context))));
}

std::string activation(int64_t tokens, int64_t width, const std::string &element) {
  return "tensor<" + std::to_string(tokens) + "x" + std::to_string(width) + "x" + element + ">";
}

/// A product of an input of type f32 with a packed weight, as a function of the number of tokens:
/// decoding's for one, else prepare and matmul.
struct Product {
  Encoding format;
  std::vector<int64_t> segments;
  int64_t columns = 0;
  /// Further arguments of the function, with a comma before each.
  std::string arguments;
  std::string order, prologue;
  std::string results; ///< types, for TOKENS tokens
  std::string epilogue;
  std::string caches;

  std::string text(host::Isa isa, const std::string &name, int64_t tokens) const;
  int64_t rows() const { return std::accumulate(segments.begin(), segments.end(), int64_t(0)); }
};

std::string Product::text(host::Isa isa, const std::string &name, int64_t tokens) const {
  std::string in = activation(tokens, columns, "f32"), scheduled = schedule(isa, 4, 0);
  int64_t packedRows = rows();
  std::string weight = tensorType(format, packedRows, columns, "lanes"),
              prepared = preparedType(format, columns);
  std::string list;
  for (int64_t segment : segments)
    list += (list.empty() ? "" : ", ") + std::to_string(segment);
  std::string product = " weights(%w) segments [" + list + "] " + order + " " + scheduled + " : ";
  std::string before = prologue.empty() ? ""
                                        : "\n  prologue {\n  ^bb0(%in: " + in + "):\n" + prologue +
                                              "    fused.yield %p : " + in + "\n  }";
  std::string after = epilogue.empty() ? "" : "\n  epilogue {\n" + epilogue + "  }";
  bool isOne = results.find(',') == std::string::npos;
  std::string many = results.empty() ? "" : isOne ? results : "(" + results + ")";
  std::string body = "func.func @" + name + "(%x: " + in + ", %w: " + weight + arguments +
                     ", %n: tensor<1xi32>) -> " + many + " {\n";
  if (tokens == 1)
    body += "  %y = fused.matvec %x" + product + in + ", " + weight + " -> " + results + before +
            (before.empty() ? "" : "") + after;
  else
    body += "  %r = fused.prepare %x active(%n) " + scheduled + " : " + in + " -> " + prepared +
            before + "\n  %y = fused.matmul %r active(%n)" + product + prepared + ", " + weight +
            " -> " + results + after;
  body += "\n  return %y : " + results + "\n}\n";
  for (size_t at; (at = body.find("TOKENS")) != std::string::npos;)
    body.replace(at, 6, std::to_string(tokens));
  return body;
}

std::vector<Encoding> allFormats() {
  std::vector<Encoding> result = {
      {Encoding::Element::F16}, {Encoding::Element::BF16}, {Encoding::Element::F32}};
  for (const char *name :
       {"int8-g32",       "int8-g64-zp", "int8-g128",    "int8-g256",    "int8-channel-zp",
        "int4-g32-zp",    "int4-g64",    "int4-g128-zp", "int4-channel", "q4_1",
        "q5_0",           "q5_1",        "q2_k",         "q3_k",         "q4_k",
        "q5_k",           "q6_k",        "iq4_nl",       "iq4_xs",       "mxfp4",
        "nvfp4",          "int3-g64",    "int6-channel", "int8-g16",     "int5-g64-n8",
        "iq4-g16-n8",     "fp8-g32",     "fp8-g64-f32",  "fp8-g128",     "fp8-g256",
        "fp8-channel-f32"})
    result.push_back(*Encoding::fromName(name));
  return result;
}

/// No multiple of 128, of the group or of anything, where the format allows.
int64_t columnsOf(Encoding format) {
  if (!format.fitsColumns(1))
    return 768;
  return format.isScaled() && format.group != Encoding::channel ? 3 * format.group + 24 : 300;
}

class HostMatmul : public testing::TestWithParam<host::Isa> {};

} // namespace

TEST_P(HostMatmul, ProductsOfAllFormats) {
  constexpr int64_t rows = 37; // three tiles
  std::vector<Product> products;
  std::string text;
  for (auto [number, format] : llvm::enumerate(allFormats())) {
    Product &product = products.emplace_back();
    product.format = format;
    product.segments = {rows};
    product.columns = columnsOf(format);
    product.results = "tensor<TOKENSx37xf32>";
    text += product.text(GetParam(), "one" + std::to_string(number), 1);
    text += product.text(GetParam(), "many" + std::to_string(number), kTokens);
  }
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(text);
  ASSERT_TRUE(kernels);
  ASSERT_EQ(kernels->dispatches.size(), 3 * products.size());

  Random random(1);
  for (auto [number, product] : llvm::enumerate(products)) {
    SCOPED_TRACE(product.format.name() + " of " + std::to_string(product.columns) + " columns");
    Weight weight(product.format, rows, product.columns, random);
    std::vector<float> x = random.normal(kTokens * product.columns);
    Buffer packed = pack(weight, naturalRows(rows), formats::Layout::Kind::Lanes);
    std::vector<float> ones;
    std::vector<double> expected;
    for (int64_t token = 0; token < kTokens; ++token) {
      std::vector<float> row(x.begin() + token * product.columns,
                             x.begin() + (token + 1) * product.columns);
      Buffer input(row), output(rows * sizeof(float));
      kernels->run(3 * number, {&input, &packed, &output});
      llvm::append_range(ones, output.copy<float>());
      if (token < 31)
        for (int64_t i = 0; i < rows; ++i)
          expected.push_back(weight.product(i, row));
    }
    for (int64_t count : kCounts) {
      SCOPED_TRACE(std::to_string(count) + " tokens");
      std::vector<float> there = x;
      std::fill(there.begin() + count * product.columns, there.end(), NAN);
      Buffer input(there), active(std::vector<int32_t>{static_cast<int32_t>(count)}),
          prepared = preparedBuffer(preparedType(product.format, product.columns)),
          output(std::vector<float>(kTokens * rows, -1.5f));
      kernels->run(3 * number + 1, {&input, &active, &prepared});
      kernels->run(3 * number + 2, {&prepared, &active, &packed, &output});
      std::vector<float> y = output.copy<float>();
      EXPECT_TRUE(std::all_of(y.begin() + count * rows, y.end(), [](float z) {
        return z == -1.5f;
      })) << "wrote rows that are not there";
      y.resize(count * rows);
      EXPECT_TRUE(std::equal(y.begin(), y.end(), ones.begin())) << "differs from one token's";
      if (count == 31)
        EXPECT_LE(relativeError(y, expected), 1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostMatmul, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });

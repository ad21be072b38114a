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
/// decoding's for one, else prepare and matmul. In the texts, TOKENS stands for that number.
struct Product {
  Encoding format;
  std::vector<int64_t> segments;
  int64_t columns = 0;
  /// Further arguments of the function, with a comma before each.
  std::string arguments;
  std::string order, prologue;
  std::string results; ///< its type
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
  std::string body = "func.func @" + name + "(%x: " + in + ", %w: " + weight + arguments +
                     ", %n: tensor<1xi32>) -> " + results + " {\n";
  if (tokens == 1)
    body +=
        "  %y = fused.matvec %x" + product + in + ", " + weight + " -> " + results + before + after;
  else
    body += "  %prepared = fused.prepare %x active(%n) " + scheduled + " : " + in + " -> " +
            prepared + before + "\n  %y = fused.matmul %prepared active(%n)" + product + prepared +
            ", " + weight + " -> " + results + after;
  body += "\n  return %y : " + results + "\n}\n";
  for (size_t at; (at = body.find("TOKENS")) != std::string::npos;)
    body.replace(at, 6, std::to_string(tokens));
  return body;
}

std::vector<Encoding> allFormats() {
  std::vector<Encoding> result = {
      {Encoding::Element::F16}, {Encoding::Element::BF16}, {Encoding::Element::F32}};
  for (const char *name : {"int8-g32",
                           "int8-g64-zp",
                           "int8-g128",
                           "int8-g256",
                           "int8-channel-zp",
                           "int4-g32-zp",
                           "int4-g64",
                           "int4-g128-zp",
                           "int4-channel",
                           "q4_1",
                           "q5_0",
                           "q5_1",
                           "q2_k",
                           "q3_k",
                           "q4_k",
                           "q5_k",
                           "q6_k",
                           "iq4_nl",
                           "iq4_xs",
                           "mxfp4",
                           "nvfp4",
                           "int3-g64",
                           "int6-channel",
                           "int8-g16",
                           "int5-g64-n8",
                           "iq4-g16-n8",
                           "fp8-g32",
                           "fp8-g64-f32",
                           "fp8-g128",
                           "fp8-g256",
                           "fp8-channel-f32",
                           "iq2-g16-n8",
                           "int8-g256-f32"})
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
    // Without VNNI only the multiplication differs.
    if (GetParam() == host::Isa::Avx512 && number % 4)
      continue;
    Product &product = products.emplace_back();
    product.format = format;
    product.segments = {rows};
    product.columns = columnsOf(format);
    product.results = "tensor<TOKENSx37xf32>";
    text += product.text(GetParam(), "one" + std::to_string(products.size()), 1) +
            product.text(GetParam(), "many" + std::to_string(products.size()), kTokens);
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

namespace {
/// Values of all tokens, or of a shared argument.
struct Values {
  std::vector<uint8_t> bytes;
  int64_t perToken = 0; ///< bytes; 0: shared

  template <typename T>
  explicit Values(const std::vector<T> &values, bool isShared = false)
      : bytes(values.size() * sizeof(T)), perToken(isShared ? 0 : bytes.size() / kTokens) {
    memcpy(bytes.data(), values.data(), bytes.size());
  }
  /// Of tokens [first, first + count).
  Buffer of(int64_t first, int64_t count) const {
    if (!perToken)
      return Buffer(bytes);
    return Buffer(std::vector<uint8_t>(bytes.begin() + first * perToken,
                                       bytes.begin() + (first + count) * perToken));
  }
};

/// Runs a product for one token at a time, and for the first `count` of many at once, and compares
/// the results of `width` f16 numbers and what is in the caches.
void compareWithDecode(host::Isa isa, const Product &product, const Values &x, Buffer &packed,
                       const std::vector<Values> &before, const std::vector<Values> &after,
                       const std::vector<Values> &caches, int64_t width) {
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      product.caches + product.text(isa, "one", 1) + product.text(isa, "many", kTokens));
  ASSERT_TRUE(kernels);
  for (int64_t count : kCounts) {
    SCOPED_TRACE(std::to_string(count) + " tokens");
    auto run = [&](std::vector<Buffer> &mutableCaches, int64_t first, int64_t tokens,
                   Buffer &output) {
      std::vector<Buffer> prologue, epilogue;
      for (const Values &values : before)
        prologue.push_back(values.of(first, tokens));
      for (const Values &values : after)
        epilogue.push_back(values.of(first, tokens));
      Buffer input = x.of(first, tokens);
      auto add = [](std::vector<Buffer *> &arguments, std::vector<Buffer> &more) {
        for (Buffer &buffer : more)
          arguments.push_back(&buffer);
      };
      std::vector<Buffer *> arguments = {&input};
      Buffer active(std::vector<int32_t>{static_cast<int32_t>(count)}),
          prepared = preparedBuffer(preparedType(product.format, product.columns));
      if (tokens == 1) {
        arguments.push_back(&packed);
        add(arguments, prologue);
      } else {
        arguments.push_back(&active);
        add(arguments, prologue);
        arguments.push_back(&prepared);
        kernels->run(1, arguments);
        arguments = {&prepared, &active, &packed};
      }
      add(arguments, epilogue);
      add(arguments, mutableCaches);
      arguments.push_back(&output);
      kernels->run(tokens == 1 ? 0 : 2, arguments);
    };
    std::vector<Buffer> onesCaches, manyCaches;
    for (const Values &cache : caches) {
      onesCaches.push_back(cache.of(0, 0));
      manyCaches.push_back(cache.of(0, 0));
    }
    std::vector<uint16_t> ones;
    for (int64_t token = 0; token < count; ++token) {
      Buffer output(width * 2);
      run(onesCaches, token, 1, output);
      llvm::append_range(ones, output.copy<uint16_t>());
    }
    ones.resize(kTokens * width, 0x1234);
    Buffer output(std::vector<uint16_t>(kTokens * width, 0x1234));
    run(manyCaches, 0, kTokens, output);
    EXPECT_EQ(output.copy<uint16_t>(), ones);
    for (auto [one, many] : llvm::zip_equal(onesCaches, manyCaches))
      EXPECT_EQ(one.copy<uint16_t>(), many.copy<uint16_t>());
  }
}
} // namespace

TEST_P(HostMatmul, GatedMlpWithResidual) {
  using Segment = formats::RowSegment;
  Product product;
  product.format = *Encoding::fromName("int4-g32");
  product.segments = {20, 20};
  product.columns = 160;
  product.arguments = ", %gain: tensor<160xf32>, %r: tensor<TOKENSx20xf16>";
  product.order = "order [zip(0, 1)]";
  product.prologue = "    %p = model.rms_norm %in, %gain epsilon 1.0e-5 : "
                     "tensor<TOKENSx160xf32>, tensor<160xf32>\n";
  product.results = "tensor<TOKENSx20xf16>";
  product.epilogue = "  ^bb0(%g: tensor<TOKENSx20xf32>, %u: tensor<TOKENSx20xf32>):\n"
                     "    %s = model.silu %g : tensor<TOKENSx20xf32>\n"
                     "    %m = arith.mulf %s, %u : tensor<TOKENSx20xf32>\n"
                     "    %e = arith.extf %r : tensor<TOKENSx20xf16> to tensor<TOKENSx20xf32>\n"
                     "    %a = arith.addf %e, %m : tensor<TOKENSx20xf32>\n"
                     "    %t = arith.truncf %a : tensor<TOKENSx20xf32> to tensor<TOKENSx20xf16>\n"
                     "    fused.yield %t : tensor<TOKENSx20xf16>\n";
  Random random(2);
  Weight weight(product.format, 40, product.columns, random);
  Buffer packed = packOrdered(weight, {{Segment::Kind::Zip, 0, 1}}, {20, 20});
  compareWithDecode(GetParam(), product, Values(random.normal(kTokens * product.columns)), packed,
                    {Values(random.normal(product.columns), /*isShared=*/true)},
                    {Values(random.normalF16(kTokens * 20))}, {}, 20);
}

TEST_P(HostMatmul, QueriesKeysAndValues) {
  using Segment = formats::RowSegment;
  constexpr int64_t head = 20, q = 3 * head, kv = 2 * head, context = 128;
  Product product;
  product.format = *Encoding::fromName("int8-g32-zp");
  product.segments = {q, kv, kv};
  product.columns = 96;
  product.arguments = ", %b: tensor<60xbf16>, %at: tensor<TOKENSxi32>, %t: tensor<128x20xf32>";
  product.order = "order [pairs(0, 20), pairs(1, 20), natural(2)]";
  product.results = "tensor<TOKENSx60xf16>";
  product.caches = "model.cache @k : !quantized.cache<1x128x2x20xf16, layout = lanes_keys>\n"
                   "model.cache @v : !quantized.cache<1x128x2x20xf16, layout = lanes_values>\n";
  auto rotary = [&](const std::string &name, const std::string &type) {
    return "    %" + name + "r = model.rotary %" + name +
           " at %at head_dim 20 <theta = 10000.0> table %t : " + type +
           ", tensor<TOKENSxi32>, tensor<128x20xf32>\n";
  };
  std::string queries = "tensor<TOKENSx60xf32>", keys = "tensor<TOKENSx40xf32>";
  product.epilogue = "  ^bb0(%q0: " + queries + ", %k: " + keys + ", %v: " + keys +
                     "):\n    %q = model.add_bias %q0, %b : " + queries + ", tensor<60xbf16>\n" +
                     rotary("q", queries) + rotary("k", keys) +
                     "    model.cache_append @k, %kr at %at : " + keys +
                     ", tensor<TOKENSxi32>\n    model.cache_append @v, %v at %at : " + keys +
                     ", tensor<TOKENSxi32>\n    %y = arith.truncf %qr : " + queries +
                     " to tensor<TOKENSx60xf16>\n    fused.yield %y : tensor<TOKENSx60xf16>\n";
  Random random(3);
  Weight weight(product.format, q + 2 * kv, product.columns, random);
  Buffer packed = packOrdered(weight,
                              {{Segment::Kind::Pairs, 0, head},
                               {Segment::Kind::Pairs, 1, head},
                               {Segment::Kind::Natural, 2, 0}},
                              {q, kv, kv});
  std::vector<int32_t> positions(kTokens);
  std::iota(positions.begin(), positions.end(), 39);
  using formats::CacheOrder;
  formats::CacheShape cache{1, context, 2, head, {}, CacheOrder::LanesKeys};
  Values empty(std::vector<uint16_t>(cache.bytes() / 2, 0x1234), /*isShared=*/true);
  compareWithDecode(GetParam(), product, Values(random.normal(kTokens * product.columns)), packed,
                    {},
                    {Values(random.normalF16(q), true), Values(positions),
                     Values(random.normal(context * head), true)},
                    {empty, empty}, q);
}

INSTANTIATE_TEST_SUITE_P(Isas, HostMatmul, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiled products against the definitions in sluice/Formats, and their regions against plain
// arithmetic.

#include "HostKernels.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/RowOrder.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

namespace {

std::vector<Encoding> allFormats() {
  std::vector<Encoding> result = {
      {Encoding::Element::F16}, {Encoding::Element::BF16}, {Encoding::Element::F32}};
  for (Encoding::Element element : {Encoding::Element::I8, Encoding::Element::I4})
    for (int64_t group : {int64_t(32), int64_t(64), int64_t(128), int64_t(256), Encoding::channel})
      for (bool zeroPoint : {false, true})
        result.push_back(
            {element, group, zeroPoint ? Encoding::Offset::ZeroPoint : Encoding::Offset::None});
  for (const char *name : {"q4_1",          "q5_0",
                           "q5_1",          "q2_k",
                           "q3_k",          "q4_k",
                           "q5_k",          "q6_k",
                           "iq4_nl",        "iq4_xs",
                           "mxfp4",         "nvfp4",
                           "int3-g64",      "int6-channel",
                           "int8-g16",      "int5-g64-n8",
                           "iq4-g16-n8",    "fp8-g32",
                           "fp8-g64-f32",   "fp8-g128",
                           "fp8-g256",      "fp8-channel-f32",
                           "int8-g256-f32", "int4-channel-f32",
                           "iq1-g16-n8",    "iq1-g32-n8",
                           "iq2-g16-n8",    "iq2-g32-n8",
                           "iq3xxs-g32-n8", "iq3s-g32-n8"})
    result.push_back(*Encoding::fromName(name));
  return result;
}

struct Product {
  Encoding format;
  int64_t rows, columns, tokens;
};

/// Few rows and many, and columns that are no multiple of 128, of the group or of anything: a row's
/// last group is shorter, or its only one.
std::vector<Product> productsOf(Encoding format, size_t number) {
  std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 32}, {17, 100}, {40, 1024}};
  if (!format.fitsColumns(1))
    shapes = {{1, 256}, {17, 768}, {40, 1024}};
  else if (format.isScaled() && format.group != Encoding::channel)
    shapes.push_back({20, 3 * format.group + 24});
  std::vector<Product> products;
  for (auto [i, shape] : llvm::enumerate(shapes))
    products.push_back({format, shape.first, shape.second, 1});
  // One with several tokens: 2, 3 or 8.
  const int64_t tokens[] = {2, 3, 8};
  products.push_back({format, 23, shapes[1].second, tokens[number % 3]});
  return products;
}

std::string activation(int64_t tokens, int64_t width, const std::string &element) {
  return "tensor<" + std::to_string(tokens) + "x" + std::to_string(width) + "x" + element + ">";
}

class HostMatvec : public testing::TestWithParam<host::Isa> {};

} // namespace

TEST_P(HostMatvec, ProductsOfAllFormats) {
  std::vector<Product> products;
  for (auto [number, format] : llvm::enumerate(allFormats()))
    llvm::append_range(products, productsOf(format, number));
  std::string text;
  for (auto [number, product] : llvm::enumerate(products)) {
    std::string weight = tensorType(product.format, product.rows, product.columns, "lanes");
    std::string input = activation(product.tokens, product.columns, "f32"),
                output = activation(product.tokens, product.rows, "f32");
    // Every number of accumulators gets its turn.
    text += "func.func @f" + std::to_string(number) + "(%x: " + input + ", %w: " + weight +
            ") -> " + output + " {\n  %y = fused.matvec %x weights(%w) segments [" +
            std::to_string(product.rows) + "] " + schedule(GetParam(), number % 8 + 1, 0) + " : " +
            input + ", " + weight + " -> " + output + "\n  return %y : " + output + "\n}\n";
  }
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(text);
  ASSERT_TRUE(kernels);
  ASSERT_EQ(kernels->dispatches.size(), products.size());

  Random random(1);
  for (auto [number, product] : llvm::enumerate(products)) {
    SCOPED_TRACE(product.format.name() + " " + std::to_string(product.rows) + "x" +
                 std::to_string(product.columns) + " x" + std::to_string(product.tokens));
    Weight weight(product.format, product.rows, product.columns, random);
    std::vector<float> x = random.normal(product.tokens * product.columns);
    Buffer input(x), packed = pack(weight, naturalRows(product.rows), formats::Layout::Kind::Lanes),
                     output(product.tokens * product.rows * sizeof(float));
    kernels->run(number, {&input, &packed, &output});
    std::vector<double> expected;
    for (int64_t token = 0; token < product.tokens; ++token) {
      std::vector<float> row(x.begin() + token * product.columns,
                             x.begin() + (token + 1) * product.columns);
      for (int64_t i = 0; i < product.rows; ++i)
        expected.push_back(weight.product(i, row));
    }
    EXPECT_LE(relativeError(output.copy<float>(), expected), 1e-6);
  }
}

TEST_P(HostMatvec, SpecialInputs) {
  // Zeros, tiny values, infinity and NaN, each in a group of its own.
  constexpr int64_t columns = 640, rows = 16;
  Encoding format{Encoding::Element::I8, 128, Encoding::Offset::ZeroPoint};
  std::string weightType = tensorType(format, rows, columns, "lanes");
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      "func.func @f(%x: tensor<3x640xf32>, %w: " + weightType +
      ") -> tensor<3x16xf32> {\n  %y = fused.matvec %x weights(%w) segments [16] " +
      schedule(GetParam(), 4, 0) + " : tensor<3x640xf32>, " + weightType +
      " -> tensor<3x16xf32>\n  return %y : tensor<3x16xf32>\n}\n");
  ASSERT_TRUE(kernels);
  Random random(2);
  Weight weight(format, rows, columns, random);
  std::vector<float> x = random.normal(3 * columns);
  std::fill(x.begin(), x.begin() + 128, 0.0f);
  std::fill(x.begin() + 128, x.begin() + 256, 1e-38f);
  x[columns + 300] = INFINITY;
  x[2 * columns + 300] = NAN;
  Buffer input(x), packed = pack(weight, naturalRows(rows), formats::Layout::Kind::Lanes),
                   output(3 * rows * 4);
  kernels->run(0, {&input, &packed, &output});
  std::vector<float> y = output.copy<float>();
  std::vector<double> expected;
  for (int64_t row = 0; row < rows; ++row) {
    expected.push_back(weight.product(row, {x.begin(), x.begin() + columns}));
    EXPECT_TRUE(std::isnan(y[rows + row]));
    EXPECT_TRUE(std::isnan(y[2 * rows + row]));
  }
  y.resize(rows);
  EXPECT_LE(relativeError(y, expected), 1e-6);
}

TEST_P(HostMatvec, SiluIsAccurate) {
  // With the identity for a weight the sums are the inputs.
  constexpr int64_t width = 4096 * 16;
  Encoding format{Encoding::Element::F32};
  std::string weightType = tensorType(format, 16, 32, "lanes");
  constexpr int64_t inputs = 8;
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      "func.func @f(%x: tensor<8x32xf32>, %w: " + weightType +
      ") -> tensor<8x16xf32> {\n  %y = fused.matvec %x weights(%w) segments [16] " +
      schedule(GetParam(), 1, 0) + " : tensor<8x32xf32>, " + weightType +
      " -> tensor<8x16xf32>\n  epilogue {\n  ^bb0(%s: tensor<8x16xf32>):\n    %a = model.silu %s : "
      "tensor<8x16xf32>\n    fused.yield %a : tensor<8x16xf32>\n  }\n  return %y : "
      "tensor<8x16xf32>\n}\n");
  ASSERT_TRUE(kernels);
  Random random(3);
  Weight weight(format, 16, 32, random);
  for (int64_t row = 0; row < 16; ++row)
    for (int64_t column = 0; column < 32; ++column)
      weight.floats[row * 32 + column] = row == column;
  Buffer packed = pack(weight, naturalRows(16), formats::Layout::Kind::Lanes),
         input(inputs * 32 * 4), output(inputs * 16 * 4);
  double worst = 0;
  for (int64_t start = 0; start < width; start += inputs * 16) {
    for (int64_t i = 0; i < inputs * 32; ++i)
      input.as<float>()[i] =
          i % 32 < 16 ? -80.0f + 160.0f * (start + i / 32 * 16 + i % 32) / width : 0.0f;
    kernels->run(0, {&input, &packed, &output});
    for (int64_t i = 0; i < inputs * 16; ++i) {
      double x = input.as<float>()[i / 16 * 32 + i % 16], expected = x / (1 + std::exp(-x));
      if (x != 0)
        worst = std::max(worst, std::abs(output.as<float>()[i] - expected) / std::abs(expected));
    }
  }
  // exp within 2e-7, the sum and the quotient round once each.
  EXPECT_LE(worst, 2e-7 + 2 * 6e-8);
  for (int64_t i = 0; i < inputs * 32; ++i)
    input.as<float>()[i] = i % 2 ? -1000.0f : 1000.0f;
  kernels->run(0, {&input, &packed, &output});
  EXPECT_EQ(output.as<float>()[0], 1000.0f);
  EXPECT_EQ(output.as<float>()[1], 0.0f);
}

namespace {
std::vector<float> rmsNorm(const float *x, const std::vector<float> &gain, double epsilon) {
  double sum = 0;
  for (size_t i = 0; i < gain.size(); ++i)
    sum += double(x[i]) * x[i];
  double factor = 1 / std::sqrt(sum / gain.size() + epsilon);
  std::vector<float> result;
  for (size_t i = 0; i < gain.size(); ++i)
    result.push_back(static_cast<float>(x[i] * factor * gain[i]));
  return result;
}

std::vector<float> fromF16(const std::vector<uint16_t> &halves) {
  std::vector<float> values(halves.size());
  formats::f16ToFloat(halves, values);
  return values;
}
} // namespace

TEST_P(HostMatvec, GatedMlp) {
  using Segment = formats::RowSegment;
  for (int64_t rows : {24, 20}) {
    for (int64_t tokens : {1, 2}) {
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(tokens) + " tokens");
      Encoding format{Encoding::Element::I4, 32};
      constexpr int64_t columns = 160;
      std::string weightType = tensorType(format, 2 * rows, columns, "lanes");
      std::string in = activation(tokens, columns, "f32"), sum = activation(tokens, rows, "f32"),
                  out = activation(tokens, rows, "f16"), count = std::to_string(rows);
      std::unique_ptr<HostKernels> kernels = HostKernels::compile(
          "func.func @f(%x: " + in + ", %w: " + weightType + ", %gain: tensor<160xf32>) -> " + out +
          " {\n  %y = fused.matvec %x weights(%w) segments [" + count + ", " + count +
          "] order [zip(0, 1)] " + schedule(GetParam(), 2, 0) + " : " + in + ", " + weightType +
          " -> " + out + "\n  prologue {\n  ^bb0(%in: " + in +
          "):\n    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : " + in +
          ", tensor<160xf32>\n    fused.yield %n : " + in + "\n  } epilogue {\n  ^bb0(%g: " + sum +
          ", %u: " + sum + "):\n    %s = model.silu %g : " + sum +
          "\n    %m = arith.mulf %s, %u : " + sum + "\n    %r = arith.truncf %m : " + sum + " to " +
          out + "\n    fused.yield %r : " + out + "\n  }\n  return %y : " + out + "\n}\n");
      ASSERT_TRUE(kernels);
      Random random(4);
      Weight weight(format, 2 * rows, columns, random);
      std::vector<float> x = random.normal(tokens * columns), gain = random.normal(columns);
      Buffer input(x), gains(gain),
          packed = packOrdered(weight, {{Segment::Kind::Zip, 0, 1}}, {rows, rows}),
          output(tokens * rows * 2);
      kernels->run(0, {&input, &packed, &gains, &output});
      std::vector<double> expected;
      for (int64_t token = 0; token < tokens; ++token) {
        std::vector<float> n = rmsNorm(&x[token * columns], gain, 1e-5);
        for (int64_t row = 0; row < rows; ++row) {
          double g = weight.product(row, n), u = weight.product(rows + row, n);
          expected.push_back(g / (1 + std::exp(-g)) * u);
        }
      }
      // The result is rounded to f16; an element of x16 may round the other way.
      EXPECT_LE(relativeError(fromF16(output.copy<uint16_t>()), expected), 3e-4);
    }
  }
}

// Columns that are sorted by group: a norm of the residual stream, and what is stored as f16.
TEST_P(HostMatvec, InputsInAnotherOrder) {
  constexpr int64_t rows = 20, columns = 300, tokens = 2;
  for (bool isNorm : {true, false}) {
    SCOPED_TRACE(isNorm);
    Encoding format{Encoding::Element::I4, 128};
    std::string type = tensorType(format, rows, columns, "lanes"),
                in = activation(tokens, columns, isNorm ? "f32" : "f16"),
                wide = activation(tokens, columns, "f32"), out = activation(tokens, rows, "f32");
    std::unique_ptr<HostKernels> kernels = HostKernels::compile(
        "func.func @f(%x: " + in + ", %w: " + type +
        ", %gain: tensor<300xf32>, %order: tensor<300xf32>) -> " + out +
        " {\n  %y = fused.matvec %x weights(%w) segments [20] " + schedule(GetParam(), 2, 0) +
        " : " + in + ", " + type + " -> " + out + "\n  prologue {\n  ^bb0(%in: " + in +
        "):\n    %n = " +
        (isNorm ? "model.rms_norm %in, %gain epsilon 1.0e-5 : " + in + ", tensor<300xf32>"
                : "arith.extf %in : " + in + " to " + wide) +
        "\n    %r = model.reorder %n by %order : " + wide +
        ", tensor<300xf32>\n    fused.yield %r : " + wide + "\n  }\n  return %y : " + out +
        "\n}\n");
    ASSERT_TRUE(kernels);
    Random random(8);
    Weight weight(format, rows, columns, random);
    std::vector<float> x = random.normal(tokens * columns), gain = random.normal(columns), order;
    for (int64_t column = 0; column < columns; ++column)
      order.push_back(static_cast<float>(column * 7 % columns));
    std::vector<uint16_t> halves(x.size());
    formats::floatToF16(x, halves);
    if (!isNorm)
      x = fromF16(halves);
    Buffer input = isNorm ? Buffer(x) : Buffer(halves);
    Buffer gains(gain), orders(order), packed = packOrdered(weight, {}, {rows}),
                                       output(tokens * rows * 4);
    std::vector<Buffer *> arguments = {&input, &packed, &gains, &orders, &output};
    if (!isNorm)
      arguments.erase(arguments.begin() + 2);
    kernels->run(0, arguments);
    std::vector<double> expected;
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<float> row(&x[token * columns], &x[(token + 1) * columns]), sorted;
      if (isNorm)
        row = rmsNorm(row.data(), gain, 1e-5);
      for (float column : order)
        sorted.push_back(row[static_cast<size_t>(column)]);
      for (int64_t r = 0; r < rows; ++r)
        expected.push_back(weight.product(r, sorted));
    }
    EXPECT_LE(relativeError(output.copy<float>(), expected), 1e-5);
  }
}

TEST_P(HostMatvec, QueriesKeysAndValues) {
  using Segment = formats::RowSegment;
  for (int64_t head : {16, 64, 80, 20}) {
    SCOPED_TRACE("head of " + std::to_string(head));
    constexpr int64_t tokens = 2, columns = 96, context = 64, queryHeads = 3, keyHeads = 2;
    int64_t q = queryHeads * head, kv = keyHeads * head;
    Encoding format{Encoding::Element::I8, 32, Encoding::Offset::ZeroPoint};
    std::string weightType = tensorType(format, q + 2 * kv, columns, "lanes"),
                in = activation(tokens, columns, "f32"), qs = activation(tokens, q, "f32"),
                kvs = activation(tokens, kv, "f32"), out = activation(tokens, q, "f16"),
                d = std::to_string(head),
                cache = "!quantized.cache<1x64x2x" + d + "xf16, layout = lanes_",
                table = "tensor<64x" + d + "xf32>";
    auto rotary = [&](const std::string &name, const std::string &type) {
      return "    %" + name + "r = model.rotary %" + name + " at %p head_dim " + d +
             " <theta = 10000.0> table %t : " + type + ", tensor<2xi32>, " + table + "\n";
    };
    std::unique_ptr<HostKernels> kernels = HostKernels::compile(
        "model.cache @k : " + cache + "keys>\nmodel.cache @v : " + cache +
        "values>\nfunc.func @f(%x: " + in + ", %w: " + weightType +
        ", %p: tensor<2xi32>, %t: " + table + ", %b: tensor<" + std::to_string(q) + "xbf16>) -> " +
        out + " {\n  %y = fused.matvec %x weights(%w) segments [" + std::to_string(q) + ", " +
        std::to_string(kv) + ", " + std::to_string(kv) + "] order [pairs(0, " + d + "), pairs(1, " +
        d + "), natural(2)] " + schedule(GetParam(), 4, 0) + " : " + in + ", " + weightType +
        " -> " + out + "\n  epilogue {\n  ^bb0(%q0: " + qs + ", %k: " + kvs + ", %v: " + kvs +
        "):\n    %q = model.add_bias %q0, %b : " + qs + ", tensor<" + std::to_string(q) +
        "xbf16>\n" + rotary("q", qs) + rotary("k", kvs) +
        "    model.cache_append @k, %kr at %p : " + kvs +
        ", tensor<2xi32>\n    model.cache_append @v, %v at %p : " + kvs +
        ", tensor<2xi32>\n    %r = arith.truncf %qr : " + qs + " to " + out +
        "\n    fused.yield %r : " + out + "\n  }\n  return %y : " + out + "\n}\n");
    ASSERT_TRUE(kernels);

    Random random(5);
    Weight weight(format, q + 2 * kv, columns, random);
    std::vector<float> x = random.normal(tokens * columns), turns(context * head);
    for (int64_t position = 0; position < context; ++position)
      for (int64_t i = 0; i < head / 2; ++i) {
        double angle = position * std::pow(10000.0, -2.0 * i / head);
        turns[position * head + i] = static_cast<float>(std::cos(angle));
        turns[position * head + head / 2 + i] = static_cast<float>(std::sin(angle));
      }
    std::vector<float> biasValues = random.normal(q);
    std::vector<uint16_t> bias(q);
    formats::floatToBf16(biasValues, bias);
    const std::vector<int32_t> at = {39, 7};
    using formats::CacheOrder;
    formats::CacheShape keyShape{1, context, keyHeads, head, {}, CacheOrder::LanesKeys};
    formats::CacheShape valueShape{1, context, keyHeads, head, {}, CacheOrder::LanesValues};
    std::vector<uint16_t> empty(keyShape.bytes() / 2, 0x1234);
    ASSERT_EQ(valueShape.bytes(), keyShape.bytes());
    Buffer input(x), positions(at), tables(turns), biases(bias), keys(empty), values(empty),
        output(tokens * q * 2),
        packed = packOrdered(weight,
                             {{Segment::Kind::Pairs, 0, head},
                              {Segment::Kind::Pairs, 1, head},
                              {Segment::Kind::Natural, 2, 0}},
                             {q, kv, kv});
    // Captured values in order of first use: the bias, the positions, the table.
    kernels->run(0, {&input, &packed, &biases, &positions, &tables, &keys, &values, &output});

    std::vector<double> expectedQ;
    std::vector<float> keyRows, valueRows;
    std::vector<double> expectedK, expectedV;
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<float> row(x.begin() + token * columns, x.begin() + (token + 1) * columns);
      auto turned = [&](int64_t first, int64_t count, bool withBias, std::vector<double> &result) {
        std::vector<double> y;
        for (int64_t i = 0; i < count; ++i)
          y.push_back(weight.product(first + i, row) +
                      (withBias ? formats::bf16ToFloat(bias[i]) : 0.0f));
        for (int64_t i = 0; i < count; ++i) {
          int64_t inHead = i % head, pair = inHead % (head / 2);
          double c = turns[at[token] * head + pair], s = turns[at[token] * head + head / 2 + pair];
          result.push_back(inHead < head / 2 ? y[i] * c - y[i + head / 2] * s
                                             : y[i] * c + y[i - head / 2] * s);
        }
      };
      turned(0, q, true, expectedQ);
      turned(q, kv, false, expectedK);
      for (int64_t i = 0; i < kv; ++i) {
        expectedV.push_back(weight.product(q + kv + i, row));
      }
      for (int64_t h = 0; h < keyHeads; ++h) {
        auto stored = [&](const formats::CacheShape &shape, Buffer &cache) {
          std::vector<float> vector(head);
          llvm::ArrayRef<uint8_t> bytes(cache.as<uint8_t>() + h * shape.headBytes(),
                                        shape.headBytes());
          formats::loadCacheVector(shape, bytes, at[token], vector);
          return vector;
        };
        llvm::append_range(keyRows, stored(keyShape, keys));
        llvm::append_range(valueRows, stored(valueShape, values));
      }
    }
    EXPECT_LE(relativeError(fromF16(output.copy<uint16_t>()), expectedQ), 3e-4);
    EXPECT_LE(relativeError(keyRows, expectedK), 3e-4);
    EXPECT_LE(relativeError(valueRows, expectedV), 3e-4);
    // Other positions are as they were.
    for (auto [shape, cache] : {std::pair(&keyShape, &keys), {&valueShape, &values}}) {
      std::vector<uint16_t> bytes = cache->copy<uint16_t>();
      EXPECT_EQ(llvm::count_if(bytes, [](uint16_t x) { return x != 0x1234; }), tokens * kv)
          << "of " << shape->bytes() / 2;
    }
  }
}

TEST_P(HostMatvec, ResidualsAndSeveralResults) {
  constexpr int64_t rows = 21, columns = 64, tokens = 2;
  Encoding format{Encoding::Element::F16};
  std::string weightType = tensorType(format, 2 * rows, columns, "lanes");
  std::unique_ptr<HostKernels> kernels = HostKernels::compile(
      "func.func @f(%x: tensor<2x64xf16>, %w: " + weightType +
      ", %r: tensor<2x21xf32>, %h: tensor<2x21xf16>) -> (tensor<2x21xf32>, tensor<2x21xf16>) {\n"
      "  %y:2 = fused.matvec %x weights(%w) segments [21, 21] " +
      schedule(GetParam(), 4, 0) + " : tensor<2x64xf16>, " + weightType +
      " -> tensor<2x21xf32>, tensor<2x21xf16>\n  epilogue {\n  ^bb0(%a: tensor<2x21xf32>, %b: "
      "tensor<2x21xf32>):\n"
      "    %s = arith.addf %r, %a : tensor<2x21xf32>\n"
      "    %e = arith.extf %h : tensor<2x21xf16> to tensor<2x21xf32>\n"
      "    %t = arith.subf %b, %e : tensor<2x21xf32>\n"
      "    %u = arith.truncf %t : tensor<2x21xf32> to tensor<2x21xf16>\n"
      "    fused.yield %s, %u : tensor<2x21xf32>, tensor<2x21xf16>\n  }\n"
      "  return %y#0, %y#1 : tensor<2x21xf32>, tensor<2x21xf16>\n}\n");
  ASSERT_TRUE(kernels);
  Random random(6);
  Weight weight(format, 2 * rows, columns, random);
  std::vector<uint16_t> x = random.normalF16(tokens * columns), h = random.normalF16(tokens * rows);
  std::vector<float> r = random.normal(tokens * rows);
  Buffer input(x), residual(r), half(h), first(tokens * rows * 4), second(tokens * rows * 2),
      packed = packOrdered(weight, {}, {rows, rows});
  kernels->run(0, {&input, &packed, &residual, &half, &first, &second});
  std::vector<double> expectedFirst, expectedSecond;
  std::vector<float> wide = fromF16(x);
  for (int64_t token = 0; token < tokens; ++token) {
    std::vector<float> row(wide.begin() + token * columns, wide.begin() + (token + 1) * columns);
    for (int64_t i = 0; i < rows; ++i) {
      expectedFirst.push_back(weight.product(i, row) + r[token * rows + i]);
      expectedSecond.push_back(weight.product(rows + i, row) -
                               formats::f16ToFloat(h[token * rows + i]));
    }
  }
  EXPECT_LE(relativeError(first.copy<float>(), expectedFirst), 1e-6);
  EXPECT_LE(relativeError(fromF16(second.copy<uint16_t>()), expectedSecond), 3e-4);
}

TEST_P(HostMatvec, ElementwiseOperations) {
  Random random(7);
  Weight weight({Encoding::Element::I8, 32}, 20, 160, random);
  for (auto [element, tolerance] : {std::pair("f32", 1e-6), {"f16", 3e-4}, {"bf16", 3e-3}}) {
    SCOPED_TRACE(element);
    ElementwiseProduct product(weight, 2, element, random);
    std::unique_ptr<HostKernels> kernels = HostKernels::compile(
        product.text(tensorType(weight.format, 20, 160, "lanes"), schedule(GetParam(), 2, 0)));
    ASSERT_TRUE(kernels);
    Buffer packed = pack(weight, naturalRows(20), formats::Layout::Kind::Lanes);
    kernels->run(0, product.arguments(packed));
    EXPECT_LE(product.error(), tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HostMatvec, testing::ValuesIn(runnableIsas()),
                         [](const auto &info) { return host::isaName(info.param).str(); });

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Generated GPU products, run by the emulator, against the definitions in sluice/Formats and
// against the host's; and what ptxas says of the same kernels.

#include "GpuKernels.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/RowOrder.h"
#include "test/unit/formats/GgmlRules.h"

#include <cmath>
#include <deque>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;

namespace {
/// Of a block of 17 warps.
constexpr int64_t kMostRegisters = 120;

struct Product {
  Encoding format;
  int64_t rows, columns, chunk, tokens, blocks, stages, inFlight;
};

formats::CacheShape cacheShape(int64_t positions, int64_t heads, int64_t head, bool keys) {
  return {1,
          positions,
          heads,
          head,
          {formats::CacheEncoding::Element::F16},
          keys ? formats::CacheOrder::MmaKeys : formats::CacheOrder::MmaValues};
}

std::string cacheText(const formats::CacheShape &shape) {
  bool keys = shape.areKeys();
  return std::string("model.cache @") + (keys ? "k" : "v") + " : !quantized.cache<1x" +
         std::to_string(shape.positions) + "x" + std::to_string(shape.heads) + "x" +
         std::to_string(shape.dim) + "xf16, layout = mma_" + (keys ? "keys" : "values") + ">\n";
}

std::string mmaType(Encoding format, int64_t rows, int64_t columns, int64_t chunk) {
  return packedType(format, rows, columns, gpuLayout(format, chunk));
}

std::string gpuSchedule(int64_t blocks, int64_t stages, int64_t inFlight, int64_t chunk,
                        int64_t warps = 16, int64_t held = 0) {
  return "schedule(#fused.gpu_schedule<blocks = " + std::to_string(blocks) +
         ", warps = " + std::to_string(warps) + ", stages = " + std::to_string(stages) +
         ", in_flight = " + std::to_string(inFlight) + ", columns = " + std::to_string(chunk) +
         ", splits = 1, early = \"weights\"" +
         (held ? ", held = " + std::to_string(held) : std::string()) + ">)";
}

/// A function of one product.
std::string productText(size_t number, int64_t tokens, int64_t rows, int64_t columns,
                        const std::string &weight, const std::string &schedule) {
  std::string input = activation(tokens, columns, "f32"), output = activation(tokens, rows, "f32");
  return "func.func @f" + std::to_string(number) + "(%x: " + input + ", %w: " + weight + ") -> " +
         output + " {\n  %y = fused.matvec %x weights(%w) segments [" + std::to_string(rows) +
         "] " + schedule + " : " + input + ", " + weight + " -> " + output +
         "\n  return %y : " + output + "\n}\n";
}

Buffer packMma(const Weight &weight, const std::vector<int64_t> &rows, int64_t chunk) {
  return packGpu(weight, rows, gpuLayout(weight.format, chunk));
}

Buffer packOrdered(const Weight &weight, const std::vector<formats::RowSegment> &order,
                   const std::vector<int64_t> &sources, int64_t chunk) {
  return packMma(weight, orderedRows(order, sources), chunk);
}

std::vector<Product> productsOf(Encoding format, size_t number) {
  bool free = !format.isScaled() || format.group == Encoding::channel;
  int64_t group = free ? 8 : format.group;
  int64_t most = format.isInteger() ? 4 : 8;
  std::vector<Product> products = {
      // One tile, partly empty; a row that ends inside a fragment.
      {format, 1, group, std::max<int64_t>(group, 128), 1, 1, 1, 1},
      // A row that has less than a group, or ends inside one.
      {format, 20, 104, std::max<int64_t>(group, 128), 1, 1, 1, 1},
      // Rows that are not aligned.
      {format, 20, 101, std::max<int64_t>(group, 128), number % 2 ? 1 : 3, 1, 1, 1},
      // A ring that is used again, by several warp groups, with a short last chunk and a short last
      // group.
      {format, 70, 3 * std::max<int64_t>(group, 128) + 40, std::max<int64_t>(group, 128), 1, 2, 4,
       2},
      // Chunks of many slices, fewer tiles than rows of blocks would divide.
      {format, 40, 2048, 1024, 1, 2, 3, 3}};
  int64_t tokens = number % 3 == 0 ? 2 : number % 3 == 1 ? 3 : most;
  products.push_back({format, 23, 2 * std::max<int64_t>(group, 128), std::max<int64_t>(group, 128),
                      tokens, 2, 1, 1});
  return products;
}

/// "h200" copies in bulk, "a100" by 16 bytes.
class GpuMatvec : public testing::TestWithParam<const char *> {};

std::vector<float> fromF16(const std::vector<uint16_t> &halves) {
  std::vector<float> values(halves.size());
  formats::f16ToFloat(halves, values);
  return values;
}

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
} // namespace

TEST_P(GpuMatvec, ProductsOfAllFormats) {
  std::vector<Product> products;
  for (auto [number, format] : llvm::enumerate(allFormats()))
    llvm::append_range(products, productsOf(format, number));
  // More tiles than a block holds the sums of.
  products.push_back({{Encoding::Element::I8, 128}, 16 * 31, 128, 128, 1, 1, 10, 3});
  std::string text;
  for (auto [number, product] : llvm::enumerate(products)) {
    int64_t blocks = std::min<int64_t>(product.blocks, llvm::divideCeil(product.rows, 16));
    text += productText(number, product.tokens, product.rows, product.columns,
                        mmaType(product.format, product.rows, product.columns, product.chunk),
                        gpuSchedule(blocks, product.stages, product.inFlight, product.chunk,
                                    /*warps=*/16, /*held=*/product.rows > 100 ? 14 : 0));
  }
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), products.size());
  Random random(1);
  for (auto [number, product] : llvm::enumerate(products)) {
    SCOPED_TRACE(product.format.name() + " " + std::to_string(product.rows) + "x" +
                 std::to_string(product.columns) + " x" + std::to_string(product.tokens));
    Weight weight(product.format, product.rows, product.columns, random);
    std::vector<float> x = random.normal(product.tokens * product.columns);
    Buffer input(x), packed = packMma(weight, naturalRows(product.rows), product.chunk),
                     output(product.tokens * product.rows * sizeof(float));
    kernels.run(number, {&input, &packed, &output});
    std::vector<double> expected;
    for (int64_t token = 0; token < product.tokens; ++token) {
      std::vector<float> row(x.begin() + token * product.columns,
                             x.begin() + (token + 1) * product.columns);
      for (int64_t i = 0; i < product.rows; ++i)
        expected.push_back(weight.product(i, row));
    }
    EXPECT_LE(relativeError(output.copy<float>(), expected), 1e-6);
  }
  kernels.checkResources(kMostRegisters);
}

TEST_P(GpuMatvec, Records) {
  struct Case {
    Encoding format;
    int64_t rows, columns, chunk, tokens, blocks, stages, inFlight, warps;
  };
  std::vector<Case> cases;
  for (auto [number, format] : llvm::enumerate(recordFormats())) {
    int64_t tokens = format.code() == Encoding::Code::Table ? 1 : 1 + number % 2;
    bool super = !format.fitsColumns(1);
    // One tile, partly empty.
    cases.push_back({format, 3, super ? 256 : 40, 256, 1, 1, 1, 1, 16});
    // Warps that always have the same columns, a ring that is used again.
    cases.push_back({format, 70, 1024, 512, 1, 2, 4, 3, 4});
    // Several tokens, a last chunk that is shorter and, but for super-blocks, a record that is.
    cases.push_back({format, 40, super ? 1280 : 1300, 512, tokens, 2, 3, 2, 16});
  }
  std::string text;
  for (auto [number, c] : llvm::enumerate(cases))
    text += productText(
        number, c.tokens, c.rows, c.columns,
        packedType(c.format, c.rows, c.columns, {formats::Layout::Kind::Records, c.chunk}),
        gpuSchedule(c.blocks, c.stages, c.inFlight, c.chunk, c.warps));
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), cases.size());
  Random random(11);
  for (auto [number, c] : llvm::enumerate(cases)) {
    SCOPED_TRACE(c.format.name() + " " + std::to_string(c.rows) + "x" + std::to_string(c.columns) +
                 " x" + std::to_string(c.tokens));
    Weight weight(c.format, c.rows, c.columns, random);
    std::vector<float> x = random.normal(c.tokens * c.columns);
    Buffer input(x),
        packed = packGpu(weight, naturalRows(c.rows), {formats::Layout::Kind::Records, c.chunk}),
        output(c.tokens * c.rows * sizeof(float));
    kernels.run(number, {&input, &packed, &output});
    if (HasFailure())
      return;
    std::vector<double> expected;
    for (int64_t token = 0; token < c.tokens; ++token) {
      std::vector<float> row(x.begin() + token * c.columns, x.begin() + (token + 1) * c.columns);
      for (int64_t i = 0; i < c.rows; ++i)
        expected.push_back(weight.product(i, row));
    }
    EXPECT_LE(relativeError(output.copy<float>(), expected), 1e-6);
  }
  kernels.checkResources(kMostRegisters);
}

TEST_P(GpuMatvec, WeightsOfSeveralEncodings) {
  // Tiles of one weight follow those of the other; a block has some of both. The first has no sums
  // of inputs, the second those of 32 columns, the third those of 16.
  struct Part {
    const char *format;
    int64_t rows;
  };
  const std::vector<std::vector<Part>> cases = {{{"q4_k", 40}, {"q6_k", 16}},
                                                {{"q6_k", 24}, {"q4_k", 33}, {"q2_k", 20}},
                                                {{"q4_1", 16}, {"int8-g32", 50}},
                                                {{"iq4_nl", 20}, {"q5_k", 20}}};
  constexpr int64_t columns = 1280, chunk = 512;
  std::string text;
  for (auto [number, parts] : llvm::enumerate(cases)) {
    std::string arguments, operands, types, results, segments, values;
    for (auto [i, part] : llvm::enumerate(parts)) {
      std::string n = std::to_string(i), separator = i ? ", " : "";
      std::string type = packedType(*Encoding::fromName(part.format), part.rows, columns,
                                    {formats::Layout::Kind::Records, chunk});
      arguments += ", %w" + n + ": " + type;
      operands += separator + "%w" + n;
      types += ", " + type;
      results += separator + activation(1, part.rows, "f32");
      segments += separator + std::to_string(part.rows);
      values += separator + "%y#" + n;
    }
    text += "func.func @f" + std::to_string(number) + "(%x: tensor<1x1280xf32>" + arguments +
            ") -> (" + results + ") {\n  %y:" + std::to_string(parts.size()) +
            " = fused.matvec %x weights(" + operands + ") segments [" + segments + "] " +
            gpuSchedule(2, 4, 3, chunk) + " : tensor<1x1280xf32>" + types + " -> " + results +
            "\n  return " + values + " : " + results + "\n}\n";
  }
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), cases.size());
  Random random(17);
  for (auto [number, parts] : llvm::enumerate(cases)) {
    SCOPED_TRACE(parts.front().format);
    std::vector<float> x = random.normal(columns);
    Buffer input(x);
    std::deque<Buffer> packed, outputs;
    std::vector<double> expected;
    for (const Part &part : parts) {
      Weight weight(*Encoding::fromName(part.format), part.rows, columns, random);
      packed.push_back(
          packGpu(weight, naturalRows(part.rows), {formats::Layout::Kind::Records, chunk}));
      outputs.emplace_back(part.rows * sizeof(float));
      for (int64_t row = 0; row < part.rows; ++row)
        expected.push_back(weight.product(row, x));
    }
    std::vector<Buffer *> arguments = {&input};
    for (Buffer &buffer : packed)
      arguments.push_back(&buffer);
    for (Buffer &buffer : outputs)
      arguments.push_back(&buffer);
    kernels.run(number, arguments);
    if (HasFailure())
      return;
    std::vector<float> found;
    for (Buffer &buffer : outputs)
      llvm::append_range(found, buffer.copy<float>());
    EXPECT_LE(relativeError(found, expected), 1e-6);
  }
  kernels.checkResources(kMostRegisters);
}

TEST_P(GpuMatvec, EverySchedule) {
  // Whatever verifies computes the same: any number of warps, rings that are used again or not, any
  // number of blocks, sums that are added up in one go or in several.
  constexpr int64_t rows = 70, columns = 640;
  struct Case {
    Encoding format;
    int64_t chunk, tokens, warps;
  };
  std::vector<Case> cases;
  for (int64_t warps = 1; warps <= 31; ++warps) {
    cases.push_back({{Encoding::Element::I8, 128, Encoding::Offset::ZeroPoint}, 128, 1, warps});
    if (warps >= 2)
      cases.push_back({{Encoding::Element::I4, 32}, 256, 1 + warps % 2, warps});
    if (warps >= 4)
      cases.push_back({{Encoding::Element::F16}, 256, 1 + warps % 3, warps});
  }
  std::string text;
  std::vector<std::string> schedules;
  for (auto [number, c] : llvm::enumerate(cases)) {
    const int64_t stages[] = {1, 2, 3, 5, 7, 11, 13}, blocks[] = {1, 2, 3, 5};
    int64_t ring = stages[number % 7], inFlight = 1 + number * 3 % ring;
    std::string in = activation(c.tokens, columns, "f32"), out = activation(c.tokens, rows, "f32"),
                type = mmaType(c.format, rows, columns, c.chunk);
    schedules.push_back(
        gpuSchedule(blocks[number % 4], ring, inFlight, c.chunk, c.warps, number % 5));
    text += "func.func @f" + std::to_string(number) + "(%x: " + in + ", %w: " + type +
            ", %gain: tensor<640xf32>) -> " + out +
            " {\n  %y = fused.matvec %x weights(%w) segments [70] " + schedules.back() + " : " +
            in + ", " + type + " -> " + out + "\n  prologue {\n  ^bb0(%in: " + in +
            "):\n    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : " + in +
            ", tensor<640xf32>\n    fused.yield %n : " + in + "\n  }\n  return %y : " + out +
            "\n}\n";
  }
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), cases.size());
  for (auto [number, c] : llvm::enumerate(cases)) {
    SCOPED_TRACE(c.format.name() + ", " + std::to_string(c.tokens) + " tokens, " +
                 schedules[number]);
    Random random(3 + number);
    Weight weight(c.format, rows, columns, random);
    std::vector<float> x = random.normal(c.tokens * columns), gain = random.normal(columns);
    Buffer input(x), gains(gain), packed = packMma(weight, naturalRows(rows), c.chunk),
                                  output(c.tokens * rows * sizeof(float));
    kernels.run(number, {&input, &packed, &gains, &output});
    if (HasFailure())
      return;
    std::vector<double> expected;
    for (int64_t token = 0; token < c.tokens; ++token) {
      std::vector<float> n = rmsNorm(&x[token * columns], gain, 1e-5);
      for (int64_t row = 0; row < rows; ++row)
        expected.push_back(weight.product(row, n));
    }
    // A norm's sum may end in another last bit, after which inputs round the other way here and
    // there: to 16 bits, or to f16.
    EXPECT_LE(relativeError(output.copy<float>(), expected), c.format.isInteger() ? 1e-5 : 1e-4);
  }
}

TEST_P(GpuMatvec, InputsInAnotherOrder) {
  // Of whole vectors of eight columns and not; what is normed, and what is stored as f16.
  constexpr int64_t rows = 20, tokens = 2;
  struct Case {
    Encoding format;
    int64_t columns;
    bool isNorm;
  };
  std::vector<Case> cases;
  for (int64_t columns : {320, 300})
    for (bool isNorm : {true, false}) {
      cases.push_back({{Encoding::Element::I4, 128}, columns, isNorm});
      cases.push_back({{Encoding::Element::F16}, columns, isNorm});
    }
  std::string text;
  for (auto [number, c] : llvm::enumerate(cases)) {
    std::string in = activation(tokens, c.columns, c.isNorm ? "f32" : "f16"),
                wide = activation(tokens, c.columns, "f32"), out = activation(tokens, rows, "f32"),
                type = mmaType(c.format, rows, c.columns, 128),
                vector = "tensor<" + std::to_string(c.columns) + "xf32>";
    text += "func.func @f" + std::to_string(number) + "(%x: " + in + ", %w: " + type +
            ", %gain: " + vector + ", %order: " + vector + ") -> " + out +
            " {\n  %y = fused.matvec %x weights(%w) segments [20] " + gpuSchedule(2, 4, 2, 128) +
            " : " + in + ", " + type + " -> " + out + "\n  prologue {\n  ^bb0(%in: " + in +
            "):\n    %n = " +
            (c.isNorm ? "model.rms_norm %in, %gain epsilon 1.0e-5 : " + in + ", " + vector
                      : "arith.extf %in : " + in + " to " + wide) +
            "\n    %r = model.reorder %n by %order : " + wide + ", " + vector +
            "\n    fused.yield %r : " + wide + "\n  }\n  return %y : " + out + "\n}\n";
  }
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), cases.size());
  for (auto [number, c] : llvm::enumerate(cases)) {
    SCOPED_TRACE(c.format.name() + ", " + std::to_string(c.columns) +
                 (c.isNorm ? " normed" : " stored as f16"));
    Random random(3 + number);
    Weight weight(c.format, rows, c.columns, random);
    std::vector<float> x = random.normal(tokens * c.columns), gain = random.normal(c.columns),
                       order;
    for (int64_t column = 0; column < c.columns; ++column)
      order.push_back(static_cast<float>(column * 7 % c.columns));
    std::vector<uint16_t> halves(x.size());
    formats::floatToF16(x, halves);
    if (!c.isNorm)
      formats::f16ToFloat(halves, x);
    Buffer input = c.isNorm ? Buffer(x) : Buffer(halves);
    Buffer gains(gain), orders(order), packed = packMma(weight, naturalRows(rows), 128),
                                       output(tokens * rows * sizeof(float));
    std::vector<Buffer *> arguments = {&input, &packed, &gains, &orders, &output};
    if (!c.isNorm)
      arguments.erase(arguments.begin() + 2);
    kernels.run(number, arguments);
    if (HasFailure())
      return;
    std::vector<double> expected;
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<float> row(&x[token * c.columns], &x[(token + 1) * c.columns]), sorted;
      if (c.isNorm)
        row = rmsNorm(row.data(), gain, 1e-5);
      for (float column : order)
        sorted.push_back(row[static_cast<size_t>(column)]);
      for (int64_t r = 0; r < rows; ++r)
        expected.push_back(weight.product(r, sorted));
    }
    EXPECT_LE(relativeError(output.copy<float>(), expected), c.format.isInteger() ? 1e-5 : 1e-4);
  }
}

TEST_P(GpuMatvec, IntegerProductsAreTheHosts) {
  constexpr int64_t rows = 70, columns = 1024, chunk = 512;
  // The last two as GGUF files have them, scales and integers by ggml's rules: those of Q4_0 have
  // either sign.
  using QuantizeRow = decltype(&formats::ggml::quantizeRowQ8_0);
  const std::pair<Encoding, QuantizeRow> kinds[] = {
      {{Encoding::Element::I8, 128}, nullptr},
      {{Encoding::Element::I8, 128, Encoding::Offset::ZeroPoint}, nullptr},
      {{Encoding::Element::I4, 64}, nullptr},
      {{Encoding::Element::I4, 64, Encoding::Offset::ZeroPoint}, nullptr},
      {{Encoding::Element::I8, 32}, formats::ggml::quantizeRowQ8_0},
      {{Encoding::Element::I4, 32}, formats::ggml::quantizeRowQ4_0}};
  std::string gpuText, hostText;
  for (auto [number, kind] : llvm::enumerate(kinds)) {
    gpuText += productText(number, 1, rows, columns, mmaType(kind.first, rows, columns, chunk),
                           gpuSchedule(2, 4, 2, chunk));
    hostText +=
        productText(number, 1, rows, columns, tensorType(kind.first, rows, columns, "lanes"),
                    schedule(runnableIsas().back(), 4, 0));
  }
  GpuKernels gpu(gpuText, GetParam());
  std::unique_ptr<HostKernels> host = HostKernels::compile(hostText);
  ASSERT_TRUE(gpu.emulator && host);
  Random random(7);
  for (auto [number, kind] : llvm::enumerate(kinds)) {
    auto [format, quantizeRow] = kind;
    SCOPED_TRACE(format.name() + (quantizeRow ? ", ggml's" : ""));
    Weight weight(format, rows, columns, random);
    for (int64_t row = 0, groups = format.groupsPerRow(columns); quantizeRow && row < rows; ++row)
      quantizeRow(
          random.normal(columns, 0.05f),
          llvm::MutableArrayRef<int8_t>(weight.numbers.q).slice(row * columns, columns),
          llvm::MutableArrayRef<uint32_t>(weight.numbers.scales).slice(row * groups, groups));
    std::vector<float> x = random.normal(columns);
    Buffer input(x), mma = packMma(weight, naturalRows(rows), chunk),
                     lanes = pack(weight, naturalRows(rows), formats::Layout::Kind::Lanes),
                     found(rows * sizeof(float)), expected(rows * sizeof(float));
    gpu.run(number, {&input, &mma, &found});
    host->run(number, {&input, &lanes, &expected});
    std::vector<float> hosts = expected.copy<float>();
    EXPECT_LE(relativeError(found.copy<float>(), {hosts.begin(), hosts.end()}), 3e-7);
  }
}

TEST_P(GpuMatvec, SpecialInputs) {
  // Zeros, tiny values, infinity and NaN, each in a group of its own.
  constexpr int64_t columns = 640, rows = 16;
  Encoding format{Encoding::Element::I8, 128, Encoding::Offset::ZeroPoint};
  std::string type = mmaType(format, rows, columns, 640);
  GpuKernels kernels("func.func @f(%x: tensor<3x640xf32>, %w: " + type +
                         ") -> tensor<3x16xf32> {\n  %y = fused.matvec %x weights(%w) segments "
                         "[16] " +
                         gpuSchedule(1, 1, 1, 640) + " : tensor<3x640xf32>, " + type +
                         " -> tensor<3x16xf32>\n  return %y : tensor<3x16xf32>\n}\n",
                     GetParam());
  ASSERT_TRUE(kernels.emulator);
  Random random(2);
  Weight weight(format, rows, columns, random);
  std::vector<float> x = random.normal(3 * columns);
  std::fill(x.begin(), x.begin() + 128, 0.0f);
  std::fill(x.begin() + 128, x.begin() + 256, 1e-38f);
  x[columns + 300] = INFINITY;
  x[2 * columns + 300] = NAN;
  Buffer input(x), packed = packMma(weight, naturalRows(rows), 640), output(3 * rows * 4);
  kernels.run(0, {&input, &packed, &output});
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

TEST_P(GpuMatvec, GatedMlp) {
  using Segment = formats::RowSegment;
  for (int64_t rows : {24, 20}) {
    for (int64_t tokens : {1, 2}) {
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(tokens) + " tokens");
      Encoding format{Encoding::Element::I4, 32};
      constexpr int64_t columns = 160, chunk = 128;
      std::string type = mmaType(format, 2 * rows, columns, chunk);
      std::string in = activation(tokens, columns, "f32"), sum = activation(tokens, rows, "f32"),
                  out = activation(tokens, rows, "f16"), count = std::to_string(rows);
      GpuKernels kernels(
          "func.func @f(%x: " + in + ", %w: " + type + ", %gain: tensor<160xf32>) -> " + out +
              " {\n  %y = fused.matvec %x weights(%w) segments [" + count + ", " + count +
              "] order [zip(0, 1)] " + gpuSchedule(2, 4, 3, chunk) + " : " + in + ", " + type +
              " -> " + out + "\n  prologue {\n  ^bb0(%in: " + in +
              "):\n    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : " + in +
              ", tensor<160xf32>\n    fused.yield %n : " + in +
              "\n  } epilogue {\n  ^bb0(%g: " + sum + ", %u: " + sum +
              "):\n    %s = model.silu %g : " + sum + "\n    %m = arith.mulf %s, %u : " + sum +
              "\n    %r = arith.truncf %m : " + sum + " to " + out +
              "\n    fused.yield %r : " + out + "\n  }\n  return %y : " + out + "\n}\n",
          GetParam());
      ASSERT_TRUE(kernels.emulator);
      Random random(4);
      Weight weight(format, 2 * rows, columns, random);
      std::vector<float> x = random.normal(tokens * columns), gain = random.normal(columns);
      Buffer input(x), gains(gain),
          packed = packOrdered(weight, {{Segment::Kind::Zip, 0, 1}}, {rows, rows}, chunk),
          output(tokens * rows * 2);
      kernels.run(0, {&input, &packed, &gains, &output});
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

TEST_P(GpuMatvec, QueriesKeysAndValues) {
  using Segment = formats::RowSegment;
  // Heads of 20 and 24 elements are padded in the cache.
  for (int64_t head : {16, 64, 80, 20, 24}) {
    SCOPED_TRACE("head of " + std::to_string(head));
    constexpr int64_t tokens = 2, columns = 96, chunk = 128, context = 64, queryHeads = 3,
                      keyHeads = 1;
    int64_t q = queryHeads * head, kv = keyHeads * head;
    Encoding format{Encoding::Element::I8, 32, Encoding::Offset::ZeroPoint};
    formats::CacheShape keyShape = cacheShape(context, keyHeads, head, true),
                        valueShape = cacheShape(context, keyHeads, head, false);
    std::string type = mmaType(format, q + 2 * kv, columns, chunk),
                in = activation(tokens, columns, "f32"), qs = activation(tokens, q, "f32"),
                kvs = activation(tokens, kv, "f32"), out = activation(tokens, q, "f16"),
                d = std::to_string(head), table = "tensor<64x" + d + "xf32>";
    auto rotary = [&](const std::string &name, const std::string &values) {
      return "    %" + name + "r = model.rotary %" + name + " at %p head_dim " + d +
             " <theta = 10000.0> table %t : " + values + ", tensor<2xi32>, " + table + "\n";
    };
    GpuKernels kernels(
        cacheText(keyShape) + cacheText(valueShape) + "func.func @f(%x: " + in + ", %w: " + type +
            ", %p: tensor<2xi32>, %t: " + table + ", %b: tensor<" + std::to_string(q) +
            "xbf16>) -> " + out + " {\n  %y = fused.matvec %x weights(%w) segments [" +
            std::to_string(q) + ", " + std::to_string(kv) + ", " + std::to_string(kv) +
            "] order [pairs(0, " + d + "), pairs(1, " + d + "), natural(2)] " +
            gpuSchedule(3, 2, 2, chunk) + " : " + in + ", " + type + " -> " + out +
            "\n  epilogue {\n  ^bb0(%q0: " + qs + ", %k: " + kvs + ", %v: " + kvs +
            "):\n    %q = model.add_bias %q0, %b : " + qs + ", tensor<" + std::to_string(q) +
            "xbf16>\n" + rotary("q", qs) + rotary("k", kvs) +
            "    model.cache_append @k, %kr at %p : " + kvs +
            ", tensor<2xi32>\n    model.cache_append @v, %v at %p : " + kvs +
            ", tensor<2xi32>\n    %r = arith.truncf %qr : " + qs + " to " + out +
            "\n    fused.yield %r : " + out +
            "\n  }\n  %a = fused.attention %y, @k, @v at %p scale 0.25 "
            "schedule(#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, "
            "columns = 64, splits = 1, early = \"cache\">) : " +
            out + ", tensor<2xi32> -> " + out + "\n  return %a : " + out + "\n}\n",
        GetParam());
    ASSERT_TRUE(kernels.emulator);

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
    std::vector<uint16_t> empty(keyShape.bytes() / 2, 0x1234);
    Buffer input(x), positions(at), tables(turns), biases(bias), keys(empty), values(empty),
        output(tokens * q * 2),
        packed = packOrdered(weight,
                             {{Segment::Kind::Pairs, 0, head},
                              {Segment::Kind::Pairs, 1, head},
                              {Segment::Kind::Natural, 2, 0}},
                             {q, kv, kv}, chunk);
    // Captured values in order of first use: the bias, the positions, the table.
    kernels.run(0, {&input, &packed, &biases, &positions, &tables, &keys, &values, &output});

    std::vector<double> expectedQ, expectedK, expectedV;
    std::vector<float> keyRows, valueRows;
    int64_t untouched = 2 * static_cast<int64_t>(empty.size());
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
        auto tokenByte = [](const formats::CacheShape &shape, int64_t position, int64_t d) {
          return position / formats::cacheTile * shape.tileBytes() +
                 formats::cacheCodeByte(shape, position % formats::cacheTile, d);
        };
        auto element = [&](Buffer &cache, int64_t byte) {
          uint16_t &half = cache.as<uint16_t>()[byte / 2];
          float value = formats::f16ToFloat(half);
          half = 0x1234;
          return value;
        };
        keyRows.push_back(element(keys, tokenByte(keyShape, at[token], i)));
        valueRows.push_back(element(values, tokenByte(valueShape, at[token], i)));
      }
    }
    EXPECT_LE(relativeError(fromF16(output.copy<uint16_t>()), expectedQ), 3e-4);
    EXPECT_LE(relativeError(keyRows, expectedK), 3e-4);
    EXPECT_LE(relativeError(valueRows, expectedV), 3e-4);
    // Nothing else in the caches was written.
    for (Buffer *cache : {&keys, &values})
      for (uint16_t half : cache->copy<uint16_t>())
        untouched -= half == 0x1234;
    EXPECT_EQ(untouched, 0);
  }
}

TEST_P(GpuMatvec, ResidualsAndHalfInputs) {
  for (Encoding format : {Encoding{Encoding::Element::I8, 64}, Encoding{Encoding::Element::BF16}}) {
    constexpr int64_t rows = 40, columns = 328, chunk = 128;
    if (format.isInteger() && columns % format.group)
      format.group = Encoding::channel;
    SCOPED_TRACE(format.name());
    std::string type = mmaType(format, rows, columns, chunk);
    GpuKernels kernels(
        "func.func @f(%x: tensor<1x328xf16>, %w: " + type +
            ", %h: tensor<1x40xf32>) -> tensor<1x40xf32> {\n  %y = fused.matvec %x weights(%w) "
            "segments [40] order [natural(0)] " +
            gpuSchedule(3, 3, 1, chunk) + " : tensor<1x328xf16>, " + type +
            " -> tensor<1x40xf32>\n  epilogue {\n  ^bb0(%s: tensor<1x40xf32>):\n    %r = "
            "arith.addf %h, %s : tensor<1x40xf32>\n    fused.yield %r : tensor<1x40xf32>\n  }\n  "
            "return %y : tensor<1x40xf32>\n}\n",
        GetParam());
    ASSERT_TRUE(kernels.emulator);
    Random random(6);
    Weight weight(format, rows, columns, random);
    std::vector<uint16_t> x = random.normalF16(columns);
    std::vector<float> residual = random.normal(rows), wide = fromF16(x);
    Buffer input(x), before(residual), output(rows * 4),
        packed = packMma(weight, naturalRows(rows), chunk);
    kernels.run(0, {&input, &packed, &before, &output});
    std::vector<double> expected;
    for (int64_t row = 0; row < rows; ++row)
      expected.push_back(residual[row] + double(weight.product(row, wide)));
    EXPECT_LE(relativeError(output.copy<float>(), expected), 1e-6);
  }
}

TEST_P(GpuMatvec, ElementwiseOperations) {
  Random random(7);
  Weight weight({Encoding::Element::I8, 32}, 20, 160, random);
  for (auto [element, tolerance] : {std::pair("f32", 1e-6), {"f16", 3e-4}, {"bf16", 3e-3}}) {
    SCOPED_TRACE(element);
    ElementwiseProduct product(weight, 2, element, random);
    GpuKernels kernels(
        product.text(mmaType(weight.format, 20, 160, 128), gpuSchedule(2, 4, 3, 128)), GetParam());
    ASSERT_TRUE(kernels.emulator);
    Buffer packed = packMma(weight, naturalRows(20), 128);
    kernels.run(0, product.arguments(packed));
    EXPECT_LE(product.error(), tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, GpuMatvec, testing::Values("h200", "a100"),
                         [](const auto &info) { return std::string(info.param); });

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Generated GPU products of many tokens, and what prepares their input, run by the emulator against
// the definitions in sluice/Formats; and what ptxas says of the same kernels.

#include "GpuKernels.h"

#include "dialects/Fused/PreparedInput.h"
#include "sluice/Formats/RowOrder.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>
#include <deque>
#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using formats::Encoding;
using formats::Layout;

namespace {
/// What ptxas gives a thread at most.
constexpr int64_t kMostRegisters = 255;

struct Schedule {
  int64_t blocks, warps, stages, columns, rows, tokens, warpgroups = 0, splits = 1;

  std::string text() const {
    return "schedule(#fused.gpu_schedule<blocks = " + std::to_string(blocks) +
           ", warps = " + std::to_string(warps) + ", stages = " + std::to_string(stages) +
           ", in_flight = " + std::to_string(stages) + ", columns = " + std::to_string(columns) +
           ", splits = " + std::to_string(splits) +
           ", early = \"weights\", rows = " + std::to_string(rows) +
           ", tokens = " + std::to_string(tokens) +
           (warpgroups ? ", warpgroups = " + std::to_string(warpgroups) : "") + ">)";
  }
};

struct Part {
  Encoding format;
  int64_t rows;
};

/// A product of `tokens` tokens at most.
struct Product {
  std::vector<Part> parts;
  Layout layout;
  int64_t columns, tokens;
  Schedule schedule;
  std::vector<int64_t> active;

  bool hasRecords() const { return layout.kind == Layout::Kind::Records; }
  std::string text(size_t number) const;
};

std::string preparedType(int64_t tokens, int64_t columns, const std::vector<Part> &parts,
                         const Layout &layout) {
  std::string text =
      "!fused.prepared<" + std::to_string(tokens) + ", " + std::to_string(columns) + ", for = [";
  for (auto [n, part] : llvm::enumerate(parts)) {
    // "!quantized.tensor<1x1xBODY>"
    std::string tensor = tensorType(part.format, 1, 1, "rows");
    text += (n ? ", " : "") + ("#quantized.encoding<" + tensor.substr(tensor.find("1x1x") + 4));
  }
  return text + (layout.kind == Layout::Kind::Records ? "], image, records>" : "], image>");
}

std::string prepareSchedule(int64_t tokens, int64_t warps) {
  return "schedule(#fused.gpu_schedule<blocks = " + std::to_string(tokens) +
         ", warps = " + std::to_string(warps) +
         ", stages = 1, in_flight = 1, columns = 64, splits = 1, early = \"none\">)";
}

std::string Product::text(size_t number) const {
  std::string arguments, operands, types, results, segments, values;
  for (auto [i, part] : llvm::enumerate(parts)) {
    std::string n = std::to_string(i), separator = i ? ", " : "";
    std::string type = packedType(part.format, part.rows, columns, layout);
    arguments += ", %w" + n + ": " + type;
    operands += separator + "%w" + n;
    types += ", " + type;
    results += separator + activation(tokens, part.rows, "f32");
    segments += separator + std::to_string(part.rows);
    values += separator + "%y#" + n;
  }
  std::string input = activation(tokens, columns, "f32");
  std::string prepared = preparedType(tokens, columns, parts, layout);
  return "func.func @f" + std::to_string(number) + "(%x: " + input + ", %n: tensor<1xi32>" +
         arguments + ") -> (" + results + ") {\n  %p = fused.prepare %x active(%n) " +
         prepareSchedule(tokens, 1 + number % 4) + " : " + input + " -> " + prepared +
         "\n  %y:" + std::to_string(parts.size()) + " = fused.matmul %p active(%n) weights(" +
         operands + ") segments [" + segments + "] " + schedule.text() + " : " + prepared + types +
         " -> " + results + "\n  return " + values + " : " + results + "\n}\n";
}

/// Bytes that nothing computes.
constexpr uint8_t kUntouched = 0xA5;

class GpuMatmul : public testing::TestWithParam<const char *> {
protected:
  /// Runs the two launches from number `first` on as one step: `prepare` reads `x`, `n` and
  /// `captured` and `matmul` reads `n` and `operands` and writes `outputs`.
  void run(GpuKernels &kernels, size_t first, std::vector<Buffer *> x, Buffer &n,
           const std::vector<Buffer *> &captured, const std::vector<Buffer *> &operands,
           const std::vector<Buffer *> &outputs, int64_t preparedBytes) {
    using emulator::MemoryKind;
    ASSERT_TRUE(kernels.emulator);
    ASSERT_LT(first + 1, kernels.launches.size());
    auto buffer = [&](Buffer *memory, MemoryKind kind) {
      std::string name = "buffer " + std::to_string(count++);
      uint32_t index = kernels.emulator->addMemory(name, memory->as<void>(), memory->size(), kind);
      return kernels.emulator->addBuffer(name, index, 0, memory->size());
    };
    emulator::Launch prepare = kernels.launches[first], matmul = kernels.launches[first + 1];
    for (Buffer *memory : x)
      prepare.buffers.push_back(buffer(memory, MemoryKind::Persistent));
    uint32_t active = buffer(&n, MemoryKind::Persistent);
    prepare.buffers.push_back(active);
    for (Buffer *memory : captured)
      prepare.buffers.push_back(buffer(memory, MemoryKind::Constant));
    Buffer &prepared = keep(Buffer(preparedBytes));
    uint32_t image = buffer(&prepared, MemoryKind::Scratch);
    prepare.buffers.push_back(image);
    matmul.buffers = {image, active};
    for (Buffer *memory : operands)
      matmul.buffers.push_back(buffer(memory, MemoryKind::Constant));
    for (Buffer *memory : outputs)
      matmul.buffers.push_back(buffer(memory, MemoryKind::Scratch));
    emulator::Launch step[] = {prepare, matmul};
    llvm::Error error = kernels.emulator->run(step);
    EXPECT_FALSE(static_cast<bool>(error)) << llvm::toString(std::move(error));
  }

  /// Memory must outlive the emulator.
  Buffer &keep(Buffer buffer) {
    memories.push_back(std::move(buffer));
    return memories.back();
  }

  void check(const std::vector<Product> &products, uint32_t seed);

  /// Targets differ in their copies alone.
  bool isThorough() const { return GetParam() == llvm::StringRef("h200"); }

private:
  std::deque<Buffer> memories;
  size_t count = 0;
};

int64_t bytesOf(const Product &product) {
  mlir::MLIRContext context(mlir::MLIRContext::Threading::DISABLED);
  context.loadDialect<quantized::QuantizedDialect, fused::FusedDialect>();
  std::vector<quantized::EncodingAttr> encodings;
  for (const Part &part : product.parts)
    encodings.push_back(quantized::EncodingAttr::get(&context, part.format));
  return fused::preparedBytes(fused::PreparedType::get(
      &context, product.tokens, product.columns, encodings, /*image=*/true, product.hasRecords()));
}

void GpuMatmul::check(const std::vector<Product> &products, uint32_t seed) {
  std::string text;
  for (auto [number, product] : llvm::enumerate(products))
    text += product.text(number);
  GpuKernels kernels(text, GetParam());
  ASSERT_TRUE(kernels.emulator);
  ASSERT_EQ(kernels.launches.size(), 2 * products.size());
  Random random(seed);
  for (auto [number, product] : llvm::enumerate(products)) {
    int64_t tokens = product.tokens, columns = product.columns;
    std::vector<float> x = random.normal(tokens * columns);
    std::vector<Buffer *> weights;
    // [part][token][row]
    std::vector<std::vector<double>> expected;
    std::string name;
    for (const Part &part : product.parts) {
      Weight weight(part.format, part.rows, columns, random);
      weights.push_back(&keep(packGpu(weight, naturalRows(part.rows), product.layout)));
      expected.emplace_back();
      for (int64_t token = 0; token < *llvm::max_element(product.active); ++token)
        for (int64_t row = 0; row < part.rows; ++row)
          expected.back().push_back(weight.product(
              row, {x.begin() + token * columns, x.begin() + (token + 1) * columns}));
      name += part.format.name() + " " + std::to_string(part.rows) + "x" + std::to_string(columns) +
              " ";
    }
    for (int64_t active : product.active) {
      SCOPED_TRACE(name + std::to_string(active) + " of " + std::to_string(tokens) + " tokens");
      std::vector<float> given = x;
      std::fill(given.begin() + active * columns, given.end(), NAN);
      std::vector<Buffer *> outputs;
      for (const Part &part : product.parts) {
        outputs.push_back(&keep(Buffer(tokens * part.rows * 4)));
        memset(outputs.back()->as<void>(), kUntouched, outputs.back()->size());
      }
      run(kernels, 2 * number, {&keep(Buffer(given))},
          keep(Buffer(std::vector<int32_t>{int32_t(active)})), {}, weights, outputs,
          bytesOf(product));
      if (HasFailure())
        return;
      for (auto [n, part] : llvm::enumerate(product.parts)) {
        std::vector<float> found = outputs[n]->copy<float>();
        size_t written = active * part.rows;
        auto *rest = outputs[n]->as<uint8_t>();
        EXPECT_TRUE(std::all_of(rest + written * 4, rest + outputs[n]->size(),
                                [](uint8_t byte) { return byte == kUntouched; }));
        found.resize(written);
        EXPECT_LE(relativeError(found, {expected[n].begin(), expected[n].begin() + written}),
                  product.hasRecords() ? 4e-4 : 1e-6);
      }
    }
  }
  if (isThorough())
    kernels.checkResources(kMostRegisters);
}
} // namespace

TEST_P(GpuMatmul, AllFormats) {
  std::vector<Product> products;
  for (auto [number, format] : llvm::enumerate(allFormats())) {
    if (!isThorough() && number % 5)
      continue;
    bool free = !format.isScaled() || format.group == Encoding::channel;
    int64_t group = free ? 8 : format.group, chunk = std::max<int64_t>(group, 128);
    int64_t step = format.isScaled() ? 128 : 64;
    Layout layout = gpuLayout(format, chunk), wide = gpuLayout(format, 2 * chunk);
    // Less than a group; rows and columns that do not fill tiles.
    if (number % 2 == 0)
      products.push_back({{{format, 20}}, layout, 104, 16, {1, 2, 2, step, 32, 16}, {16}});
    // A ring that is used again, chunks of several stages, a short last group, two row tiles a
    // warp.
    products.push_back({{{format, 70}}, wide, 3 * chunk + 40, 16, {2, 1, 3, step, 32, 16}, {7}});
    // Warps that divide a stage's columns.
    if (number % 3 == 0)
      products.push_back(
          {{{format, 40}}, wide, 4 * chunk, 64, {2, 4, 2, 2 * step, 32, 64}, {31, 64}});
    // Tiles of tokens.
    if (number % 3 == 1)
      products.push_back({{{format, 23}}, layout, 256, 64, {3, 2, 4, step, 32, 32}, {33}});
  }
  check(products, 1);
}

TEST_P(GpuMatmul, Records) {
  std::vector<Product> products;
  for (auto [number, format] : llvm::enumerate(recordFormats())) {
    // Layout mma's formats come last; they differ in their units alone.
    bool isMma = format.isPlainInteger();
    if ((isMma && number % 3) || (!isThorough() && number % 5))
      continue;
    bool super = !format.fitsColumns(1);
    Layout layout{Layout::Kind::Records, 512};
    products.push_back(
        {{{format, 40}}, layout, super ? 1280 : 1300, 16, {2, 2, 2, 512, 32, 16}, {11}});
    if (number % 4 == 0)
      products.push_back({{{format, 24}}, layout, 512, 64, {1, 4, 1, 512, 32, 64}, {33}});
  }
  check(products, 2);
}

TEST_P(GpuMatmul, WeightsOfSeveralEncodings) {
  auto named = [](const char *name) { return *Encoding::fromName(name); };
  const std::vector<std::vector<Part>> cases = {
      {{named("q4_k"), 40}, {named("q6_k"), 16}},
      {{named("q6_k"), 24}, {named("q4_k"), 33}, {named("q2_k"), 20}},
      {{named("q4_1"), 16}, {named("int8-g32"), 50}},
      {{named("iq4_nl"), 20}, {named("q5_k"), 20}}};
  std::vector<Product> products;
  for (const std::vector<Part> &parts : cases)
    products.push_back(
        {parts, {Layout::Kind::Records, 512}, 1280, 32, {2, 4, 2, 256, 64, 32}, {9, 32}});
  check(products, 3);
}

TEST_P(GpuMatmul, ManyTokens) {
  // Warps that divide a tile's tokens.
  Encoding format{Encoding::Element::I8, 128};
  check(
      {{{{format, 50}}, gpuLayout(format, 256), 640, 192, {2, 4, 3, 128, 32, 128}, {1, 100, 192}}},
      4);
}

TEST_P(GpuMatmul, Warpgroups) {
  if (!isThorough())
    GTEST_SKIP() << "no warpgroups";
  auto named = [](const char *name) { return *Encoding::fromName(name); };
  auto product = [&](const char *name, int64_t rows, int64_t columns, int64_t chunk, int64_t tokens,
                     Schedule schedule, std::vector<int64_t> active) {
    Encoding format = named(name);
    return Product{{{format, rows}}, gpuLayout(format, chunk), columns, tokens, schedule, active};
  };
  check(
      {// Two row groups, of which the second has few rows; two steps a stage, two chunks.
       product("int8-g128", 150, 768, 512, 64, {2, 8, 2, 256, 128, 64, 2}, {31, 64}),
       // Tiles of tokens, an odd number of steps, a ring that is used again.
       product("int4-g128", 128, 640, 128, 96, {2, 8, 2, 128, 128, 32, 2}, {70}),
       product("int8-channel", 100, 256, 256, 128, {1, 8, 2, 128, 128, 128, 2}, {100}),
       product("int4-g32-zp", 128, 512, 256, 64, {1, 8, 3, 128, 128, 64, 2}, {64}),
       product("int8-g64", 128, 256, 256, 16, {1, 8, 1, 256, 128, 16, 2}, {9}),
       product("f16", 200, 384, 128, 128, {3, 8, 3, 64, 128, 64, 2}, {128}),
       // The widest tile, of which the second has few tokens; those behind it are not there.
       product("f16", 128, 256, 128, 768, {2, 8, 3, 64, 128, 256, 2}, {290}),
       product("bf16", 128, 256, 256, 256, {2, 8, 2, 64, 128, 256, 2, 2}, {180}),
       // Clusters that share a tile's columns.
       product("int8-g128", 100, 1024, 512, 64, {4, 8, 2, 128, 128, 64, 2, 4}, {64}),
       product("f16", 200, 512, 256, 64, {4, 8, 2, 64, 128, 64, 2, 2}, {33}),
       product("bf16", 128, 128, 128, 32, {1, 8, 2, 64, 128, 32, 2}, {20})},
      5);
}

TEST_P(GpuMatmul, RecordsByWarpgroups) {
  if (!isThorough())
    GTEST_SKIP() << "no warpgroups";
  auto named = [](const char *name) { return *Encoding::fromName(name); };
  auto product = [&](std::vector<Part> parts, int64_t columns, int64_t tokens, Schedule schedule,
                     std::vector<int64_t> active) {
    return Product{parts, {Layout::Kind::Records, 512}, columns, tokens, schedule, active};
  };
  check(
      {// Two row groups, of which the second has few rows.
       product({{named("q4_k"), 150}}, 1280, 64, {2, 8, 3, 128, 128, 64, 2}, {31, 64}),
       // Several encodings, tiles of tokens, one record a row.
       product({{named("q6_k"), 128}, {named("q2_k"), 40}}, 256, 96, {2, 8, 4, 128, 128, 32, 2},
               {70}),
       // Blocks that divide the columns.
       product({{named("iq4_nl"), 100}}, 1024, 32, {2, 8, 5, 128, 128, 32, 2, 2}, {20})},
      6);
}

TEST_P(GpuMatmul, NormGateAndResidual) {
  using Segment = formats::RowSegment;
  // Prologue and epilogue of a gated MLP, and a residual; rows that do not fill tiles.
  constexpr int64_t tokens = 16, columns = 160, rows = 20, active = 11;
  Encoding format{Encoding::Element::I4, 32};
  Layout layout = gpuLayout(format, 128);
  std::string in = activation(tokens, columns, "f32"), sum = activation(tokens, rows, "f32"),
              out = activation(tokens, rows, "f16"),
              prepared = preparedType(tokens, columns, {{format, 1}}, layout),
              gate = packedType(format, 2 * rows, columns, layout);
  Schedule schedule{1, 2, 2, 128, 32, 16};
  GpuKernels kernels(
      "func.func @f(%x: " + in + ", %n: tensor<1xi32>, %w: " + gate +
          ", %gain: tensor<160xf32>, %h: " + sum + ") -> " + out +
          " {\n  %p = fused.prepare %x active(%n) " + prepareSchedule(tokens, 2) + " : " + in +
          " -> " + prepared + "\n  prologue {\n  ^bb0(%in: " + in +
          "):\n    %m = model.rms_norm %in, %gain epsilon 1.0e-5 : " + in +
          ", tensor<160xf32>\n    fused.yield %m : " + in +
          "\n  }\n  %y = fused.matmul %p active(%n) weights(%w) segments [20, 20] order [zip(0, "
          "1)] " +
          schedule.text() + " : " + prepared + ", " + gate + " -> " + out +
          "\n  epilogue {\n  ^bb0(%g: " + sum + ", %u: " + sum +
          "):\n    %s = model.silu %g : " + sum + "\n    %a = arith.mulf %s, %u : " + sum +
          "\n    %b = arith.addf %a, %h : " + sum + "\n    %r = arith.truncf %b : " + sum + " to " +
          out + "\n    fused.yield %r : " + out + "\n  }\n  return %y : " + out + "\n}\n",
      GetParam());
  ASSERT_TRUE(kernels.emulator);
  Random random(4);
  Weight weight(format, 2 * rows, columns, random);
  std::vector<float> x = random.normal(tokens * columns), gain = random.normal(columns),
                     h = random.normal(tokens * rows);
  std::fill(x.begin() + active * columns, x.end(), NAN);
  formats::RowOrder order =
      llvm::cantFail(formats::RowOrder::get({{Segment::Kind::Zip, 0, 1}}, {rows, rows}));
  std::vector<int64_t> places;
  for (formats::RowPlace place : order.places())
    places.push_back(place.empty() ? -1 : place.source * rows + place.row);
  Buffer &output = keep(Buffer(tokens * rows * 2));
  run(kernels, 0, {&keep(Buffer(x))}, keep(Buffer(std::vector<int32_t>{active})),
      {&keep(Buffer(gain))}, {&keep(packGpu(weight, places, layout)), &keep(Buffer(h))}, {&output},
      bytesOf({{{format, 2 * rows}}, layout, columns, tokens, schedule, {}}));
  std::vector<double> expected;
  for (int64_t token = 0; token < active; ++token) {
    double squares = 0;
    for (int64_t i = 0; i < columns; ++i)
      squares += double(x[token * columns + i]) * x[token * columns + i];
    std::vector<float> normed;
    for (int64_t i = 0; i < columns; ++i)
      normed.push_back(
          float(x[token * columns + i] / std::sqrt(squares / columns + 1e-5) * gain[i]));
    for (int64_t row = 0; row < rows; ++row) {
      double g = weight.product(row, normed), u = weight.product(rows + row, normed);
      expected.push_back(g / (1 + std::exp(-g)) * u + h[token * rows + row]);
    }
  }
  std::vector<uint16_t> halves = output.copy<uint16_t>();
  halves.resize(active * rows);
  std::vector<float> found(halves.size());
  formats::f16ToFloat(halves, found);
  EXPECT_LE(relativeError(found, expected), 3e-4);
}

INSTANTIATE_TEST_SUITE_P(Targets, GpuMatmul, testing::Values("h200", "a100"),
                         [](const auto &info) { return std::string(info.param); });

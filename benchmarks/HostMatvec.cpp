// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A quantized matrix-vector product of 4096 x 14336 as the compiler generates it, against what the
// machine's memory gives to a loop that only reads: `of_read` is the share.
//
//   host_matvec [--benchmark_filter=int8] [--isa=avx2|avx512|avx512_vnni] [--accumulators=N]

#include "HostBenchmark.h"

#include "sluice/Formats/Packing.h"

using namespace sluice;

static constexpr int64_t kRows = 4096, kColumns = 14336;
static int64_t accumulators = 4;

static void product(benchmark::State &state, formats::Encoding format, const std::string &weight,
                    int threads) {
  bench::KernelFunction kernel =
      bench::compileKernels(
          "func.func @f(%x: tensor<1x14336xf32>, %w: " + weight + ") -> tensor<1x4096xf32> {\n" +
          "  %y = fused.matvec %x weights(%w) segments [4096] schedule(#fused.host_schedule<isa = "
          "\"" +
          host::isaName(bench::isa).str() + "\", accumulators = " + std::to_string(accumulators) +
          ", positions = 0>) : tensor<1x14336xf32>, " + weight +
          " -> tensor<1x4096xf32>\n  return %y : tensor<1x4096xf32>\n}\n")[0]
          .run;
  formats::PackedShape shape = llvm::cantFail(
      formats::PackedShape::get(format, {formats::Layout::Kind::Lanes}, kRows, kColumns));
  std::vector<float> x(kColumns), y(kRows);
  for (int64_t i = 0; i < kColumns; ++i)
    x[i] = static_cast<float>(i % 17) - 8.0f;
  bench::Launch launch = {shape.tiles(), shape.tileBytes(),
                          [&](uint8_t *packed, int64_t begin, int64_t end) {
                            void *arguments[] = {x.data(), packed, y.data()};
                            kernel(arguments, begin, end);
                          }};
  bench::measure(state, launch, shape.bytes(), threads);
  benchmark::DoNotOptimize(y.data());
}

int main(int argc, char **argv) {
  bench::initialize(argc, argv, [](llvm::StringRef argument) {
    if (!argument.consume_front("--accumulators="))
      return false;
    if (argument.getAsInteger(10, accumulators) || accumulators < 1 || accumulators > 8)
      bench::fail("--accumulators must be 1 to 8, found '" + argument + "'");
    return true;
  });

  using Element = formats::Encoding::Element;
  struct Case {
    const char *name;
    formats::Encoding format;
    const char *element;
  };
  const Case cases[] = {
      {"int8-g128", {Element::I8, 128}, "i8, group = 128"},
      {"int8-g32", {Element::I8, 32}, "i8, group = 32"},
      {"int4-g64", {Element::I4, 64}, "i4, group = 64"},
      {"int4-g32", {Element::I4, 32}, "i4, group = 32"},
      {"int4-g128-zp",
       {Element::I4, 128, formats::Encoding::Offset::ZeroPoint},
       "i4, group = 128, zero_point"},
      {"q4_k", *formats::Encoding::fromName("q4_k"), "ui4, group = 32, scale = u6, offset = field"},
      {"q6_k", *formats::Encoding::fromName("q6_k"), "i6, group = 16, scale = i8"},
      {"iq4_nl", *formats::Encoding::fromName("iq4_nl"), "i4, table = iq4_nl, group = 32"},
      {"f16", {Element::F16}, "f16"},
      {"bf16", {Element::BF16}, "bf16"}};
  for (const Case &c : cases)
    for (int threads : bench::threadCounts()) {
      std::string weight =
          std::string("!quantized.tensor<4096x14336x") + c.element + ", layout = lanes>";
      std::string name = std::string(c.name) + "/threads:" + std::to_string(threads);
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State &state) { product(state, c.format, weight, threads); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  benchmark::RunSpecifiedBenchmarks();
}

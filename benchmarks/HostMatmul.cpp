// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Products of many tokens with a quantized matrix as the compiler generates them: `MAC/s` are
// multiply-adds of the tokens that are there.
//
//   host_matmul [--benchmark_filter=int8] [--isa=avx2|avx512|avx512_vnni] [--active=N]

#include "HostBenchmark.h"

#include "dialects/Fused/PreparedInput.h"

#include "sluice/Formats/Packing.h"

#include "mlir/AsmParser/AsmParser.h"
#include "llvm/Support/FormatVariadic.h"

#include <chrono>

using namespace sluice;

static constexpr int64_t kTokens = 64;
static int64_t active = kTokens;

/// The product of 64 tokens, of which `active` are there.
static void product(benchmark::State &state, formats::Encoding format, const std::string &encoding,
                    int64_t rows, int64_t columns, int threads) {
  std::string schedule = ("schedule(#fused.host_schedule<isa = \"" + host::isaName(bench::isa) +
                          "\", accumulators = 4, positions = 0>)")
                             .str();
  std::string size = std::to_string(columns), rowCount = std::to_string(rows),
              x = "tensor<64x" + size + "xf32>", y = "tensor<64x" + rowCount + "xf32>",
              prepared = "!fused.prepared<64, " + size + ", for = [#quantized.encoding<" +
                         encoding + ">]>",
              weight = "!quantized.tensor<" + rowCount + "x" + size + "x" + encoding +
                       ", layout = lanes>";
  std::vector<bench::Kernel> kernels = bench::compileKernels(
      "func.func @f(%x: " + x + ", %n: tensor<1xi32>, %w: " + weight + ") -> " + y +
      " {\n  %p = fused.prepare %x active(%n) " + schedule + " : " + x + " -> " + prepared +
      "\n  %y = fused.matmul %p active(%n) weights(%w) segments [" + rowCount + "] " + schedule +
      " : " + prepared + ", " + weight + " -> " + y + "\n  return %y : " + y + "\n}\n");
  const bench::Kernel &prepare = kernels[0], &matmul = kernels[1];

  mlir::MLIRContext context;
  context.loadDialect<quantized::QuantizedDialect, fused::FusedDialect>();
  int64_t preparedBytes =
      fused::preparedBytes(cast<fused::PreparedType>(mlir::parseType(prepared, &context)));
  formats::PackedShape shape = llvm::cantFail(
      formats::PackedShape::get(format, {formats::Layout::Kind::Lanes}, rows, columns));
  std::vector<float> input(kTokens * columns), output(kTokens * rows);
  for (auto [i, number] : llvm::enumerate(input))
    number = static_cast<float>(i % 17) - 8.0f;
  auto count = static_cast<int32_t>(active);
  std::unique_ptr<void, decltype(&free)> numbers(
      std::aligned_alloc(64, llvm::alignTo(preparedBytes, 64)), &free);

  constexpr int repeats = 10;
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) {
    void *arguments[] = {input.data(), &count, numbers.get()};
    prepare.run(arguments, 0, prepare.items);
  }
  std::chrono::duration<double> prepareTime = std::chrono::steady_clock::now() - start;
  bench::Launch launch = {matmul.items, shape.bytes() / matmul.items,
                          [&](uint8_t *packed, int64_t begin, int64_t end) {
                            void *arguments[] = {numbers.get(), &count, packed, output.data()};
                            matmul.run(arguments, begin, end);
                          }};
  bench::measure(state, launch, shape.bytes(), threads);
  benchmark::DoNotOptimize(output.data());
  state.counters["GMAC/s"] = state.counters["GB/s"] / static_cast<double>(shape.bytes()) *
                             static_cast<double>(active * rows * columns);
  state.counters["prepare_us"] = prepareTime.count() / repeats * 1e6;
}

int main(int argc, char **argv) {
  bench::initialize(argc, argv, [](llvm::StringRef argument) {
    if (!argument.consume_front("--active="))
      return false;
    if (argument.getAsInteger(10, active) || active < 1 || active > kTokens)
      bench::fail("--active must be 1 to 64, found '" + argument + "'");
    return true;
  });

  struct Case {
    const char *format, *encoding;
  };
  const Case cases[] = {{"int8-g128", "i8, group = 128"},
                        {"int8-g32", "i8, group = 32"},
                        {"int4-g128", "i4, group = 128"},
                        {"int4-g32", "i4, group = 32"},
                        {"int4-g128-zp", "i4, group = 128, zero_point"},
                        {"q4_k", "ui4, group = 32, scale = u6, offset = field"},
                        {"q6_k", "i6, group = 16, scale = i8"},
                        {"iq4_nl", "i4, table = iq4_nl, group = 32"},
                        {"fp8-g128", "f8E4M3FN, group = 128, scale = bf16"},
                        {"f16", "f16"},
                        {"bf16", "bf16"},
                        {"f32", "f32"}};
  const std::pair<int64_t, int64_t> shapes[] = {{2048, 2048}, {16384, 2048}, {2048, 8192}};
  for (const Case &c : cases)
    for (auto [rows, columns] : shapes)
      for (int threads : bench::threadCounts()) {
        std::string name =
            llvm::formatv("{0}/{1}x{2}/threads:{3}", c.format, rows, columns, threads);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State &state) {
                                       product(state, *formats::Encoding::fromName(c.format),
                                               c.encoding, rows, columns, threads);
                                     })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
  benchmark::RunSpecifiedBenchmarks();
}

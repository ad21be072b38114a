// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of one layer as the compiler generates it, over caches of every format, against what
// the machine's memory gives to a loop that only reads: `of_read` is the share. What counts are the
// codes and scales of the positions up to the newest.
//
//   host_attention [--benchmark_filter=int8] [--isa=avx2|avx512|avx512_vnni] [--context=8192]
//                  [--heads=8] [--group=4] [--dim=128] [--cached]

#include "HostBenchmark.h"

#include "sluice/Formats/CacheLayout.h"

#include "dialects/Quantized/Quantized.h"

using namespace sluice;
using formats::CacheShape;

static int64_t context = 8192, heads = 8, group = 4, dim = 128;

static void attention(benchmark::State &state, const std::string &format, int threads) {
  formats::CacheEncoding encoding = *formats::CacheEncoding::fromName(format);
  // Whole blocks; the newest position is in the last one.
  int64_t positions = llvm::alignTo(context, formats::cacheBlock);
  CacheShape keys = {1, positions, heads, dim, encoding, formats::CacheOrder::LanesKeys};
  CacheShape values = {1, positions, heads, dim, encoding, formats::CacheOrder::LanesValues};
  std::string width = std::to_string(heads * group * dim), caches;
  mlir::MLIRContext types;
  types.loadDialect<quantized::QuantizedDialect>();
  using quantized::CacheLayout;
  for (auto [name, layout] :
       {std::pair("k", CacheLayout::LanesKeys), {"v", CacheLayout::LanesValues}}) {
    caches += std::string("model.cache @") + name + " : ";
    llvm::raw_string_ostream(caches)
        << quantized::CacheType::get(&types, {1, positions, heads, dim}, encoding, layout) << '\n';
  }
  bench::KernelFunction kernel =
      bench::compileKernels(
          caches + "func.func @f(%q: tensor<1x" + width + "xf32>, %p: tensor<1xi32>) -> tensor<1x" +
          width +
          "xf16> {\n  %y = fused.attention %q, @k, @v at %p scale 0.0883 schedule("
          "#fused.host_schedule<isa = \"" +
          host::isaName(bench::isa).str() + "\", accumulators = 4, positions = 64>) : tensor<1x" +
          width + "xf32>, tensor<1xi32> -> tensor<1x" + width + "xf16>\n  return %y : tensor<1x" +
          width + "xf16>\n}\n")[0]
          .run;
  std::vector<float> query(heads * group * dim);
  for (size_t i = 0; i < query.size(); ++i)
    query[i] = static_cast<float>(i % 17) * 0.01f - 0.08f;
  auto position = static_cast<int32_t>(context - 1);
  std::vector<uint16_t> result(query.size());
  // The kernel takes all keys, then all values; an item of the launch is both of one head.
  bench::Launch launch = {heads, keys.headBytes() + values.headBytes(),
                          [&](uint8_t *memory, int64_t begin, int64_t end) {
                            void *arguments[] = {query.data(), &position, memory,
                                                 memory + keys.bytes(), result.data()};
                            kernel(arguments, begin, end);
                          }};
  bench::measure(state, launch, 2 * heads * context * encoding.bytesPerVector(dim), threads);
  benchmark::DoNotOptimize(result.data());
}

int main(int argc, char **argv) {
  bench::initialize(argc, argv, [](llvm::StringRef argument) {
    for (auto [name, number] : {std::pair("--context=", &context),
                                {"--heads=", &heads},
                                {"--group=", &group},
                                {"--dim=", &dim}})
      if (llvm::StringRef value = argument; value.consume_front(name)) {
        if (value.getAsInteger(10, *number) || *number < 1)
          bench::fail(llvm::Twine(name) + " must be 1 or more, found '" + value + "'");
        return true;
      }
    return false;
  });
  for (std::string format :
       {"f16", "bf16", "fp8", "int8", "int8-h64", "int8-h32", "int4", "int4-h64", "int4-h32"})
    for (int threads : bench::threadCounts())
      benchmark::RegisterBenchmark(
          (format + "/threads:" + std::to_string(threads)).c_str(),
          [=](benchmark::State &state) { attention(state, format, threads); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
}

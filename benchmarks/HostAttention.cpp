// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of one layer as the compiler generates it, over caches of every format, against what
// the machine's memory gives to a loop that only reads: `of_read` is the share. What counts are the
// codes and scales of the positions up to the newest.
//
//   host_attention [--benchmark_filter=int8] [--isa=avx2|avx512|avx512_vnni] [--context=8192]
//                  [--heads=8] [--group=4] [--dim=128] [--tokens=64] [--cached]
//
// With `--tokens`, so many tokens of a prompt, of which the last is the newest position, attend to
// the caches; `tokens/s` are of one layer.

#include "HostBenchmark.h"

#include "sluice/Formats/CacheLayout.h"

#include "dialects/Quantized/Quantized.h"

#include <numeric>

using namespace sluice;
using formats::CacheShape;

static int64_t context = 8192, heads = 8, group = 4, dim = 128, tokens = 0;

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
  int64_t count = std::max<int64_t>(tokens, 1);
  if (count > context)
    bench::fail("there are more tokens than positions");
  std::string rows = "tensor<" + std::to_string(count) + "x", at = rows + "i32>",
              query = rows + width + "xf32>", result = rows + width + "xf16>";
  bench::KernelFunction kernel =
      bench::compileKernels(
          caches + "func.func @f(%q: " + query + ", %p: " + at + ", %n: tensor<1xi32>) -> " +
          result + " {\n  %y = fused.attention %q, @k, @v at %p scale 0.0883 " +
          (tokens ? "active(%n) " : "") + "schedule(#fused.host_schedule<isa = \"" +
          host::isaName(bench::isa).str() + "\", accumulators = 4, positions = 64>) : " + query +
          ", " + at + " -> " + result + "\n  return %y : " + result + "\n}\n")[0]
          .run;
  std::vector<float> queries(count * heads * group * dim);
  for (size_t i = 0; i < queries.size(); ++i)
    queries[i] = static_cast<float>(i % 17) * 0.01f - 0.08f;
  std::vector<int32_t> newest(count);
  std::iota(newest.begin(), newest.end(), context - count);
  auto active = static_cast<int32_t>(count);
  std::vector<uint16_t> mixed(queries.size());
  // The kernel takes all keys, then all values; an item of the launch is both of one head.
  int64_t items = count * heads, bytes = keys.bytes() + values.bytes();
  bench::Launch launch = {
      items, static_cast<int64_t>(llvm::alignTo(llvm::divideCeil(bytes, items), 64)),
      [&](uint8_t *memory, int64_t begin, int64_t end) {
        std::vector<void *> arguments = {queries.data(), newest.data()};
        if (tokens)
          arguments.push_back(&active);
        arguments.insert(arguments.end(), {memory, memory + keys.bytes(), mixed.data()});
        kernel(arguments.data(), begin, end);
      }};
  bench::measure(state, launch, 2 * heads * context * encoding.bytesPerVector(dim), threads);
  benchmark::DoNotOptimize(mixed.data());
  if (tokens)
    state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                    benchmark::Counter::kIsIterationInvariantRate);
}

int main(int argc, char **argv) {
  bench::initialize(argc, argv, [](llvm::StringRef argument) {
    for (auto [name, number] : {std::pair("--context=", &context),
                                {"--heads=", &heads},
                                {"--group=", &group},
                                {"--dim=", &dim},
                                {"--tokens=", &tokens}})
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

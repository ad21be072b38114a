// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A quantized matrix-vector product of 4096 x 14336 as the compiler generates it, against what the
// machine's memory gives to a loop that only reads: `of_read` is the share, both measured in this
// run on the same buffer and threads. Each product takes the next of several copies of the weight,
// so that none is found in a cache.
//
//   host_matvec [--benchmark_filter=int8] [--isa=avx2|avx512|avx512_vnni] [--accumulators=N]

#include "sluice/Conversion/Passes.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Target/HostTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"

#include <barrier>
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <immintrin.h>
#include <random>
#include <sys/mman.h>
#include <thread>

using namespace sluice;

namespace {

constexpr int64_t kRows = 4096, kColumns = 14336;
/// More than any cache holds.
constexpr int64_t kBufferBytes = int64_t(1) << 30;

host::Isa isa;
int64_t accumulators = 4;

using KernelFunction = void (*)(void *const *, int64_t, int64_t);

[[noreturn]] void fail(const llvm::Twine &message) {
  llvm::errs() << "host_matvec: " << message << '\n';
  exit(1);
}

/// Compiles a product with a weight of this format; it stays loaded until the process ends.
KernelFunction compileProduct(const std::string &weight) {
  mlir::MLIRContext context;
  context.loadDialect<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                      plan::PlanDialect, mlir::func::FuncDialect>();
  std::string text =
      "func.func @f(%x: tensor<1x14336xf32>, %w: " + weight + ") -> tensor<1x4096xf32> {\n" +
      "  %y = fused.matvec %x weights(%w) segments [4096] schedule(#fused.host_schedule<isa = \"" +
      host::isaName(isa).str() + "\", accumulators = " + std::to_string(accumulators) +
      ", positions = 0>) : tensor<1x14336xf32>, " + weight +
      " -> tensor<1x4096xf32>\n  return %y : tensor<1x4096xf32>\n}\n";
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  mlir::PassManager pm(&context);
  buildHostCodePipeline(pm);
  if (!module || failed(pm.run(*module)))
    fail("cannot generate the kernel");
  llvm::Expected<std::string> object =
      host::compileKernels(module->lookupSymbol<mlir::ModuleOp>(kKernelsModule));
  if (!object)
    fail(llvm::toString(object.takeError()));
  llvm::SmallString<64> path;
  int descriptor;
  if (std::error_code code =
          llvm::sys::fs::createTemporaryFile("host-matvec", "so", descriptor, path))
    fail("cannot make a temporary file: " + code.message());
  llvm::FileRemover remover(path);
  llvm::raw_fd_ostream(descriptor, /*shouldClose=*/true) << *object;
  void *library = dlopen(path.c_str(), RTLD_NOW);
  if (!library)
    fail(dlerror());
  return reinterpret_cast<KernelFunction>(dlsym(library, "matvec_0"));
}

/// Memory for the weights, filled with bytes that are valid in every format.
uint8_t *buffer() {
  static uint8_t *memory = [] {
    void *mapping =
        mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
      fail("cannot allocate 1 GiB");
    madvise(mapping, kBufferBytes, MADV_HUGEPAGE);
    // As 16-bit floats these are below 2, whichever byte comes first.
    std::mt19937_64 random(1);
    auto *words = static_cast<uint64_t *>(mapping);
    for (int64_t i = 0; i < kBufferBytes / 8; ++i)
      words[i] = random() & 0x3F3F3F3F3F3F3F3Full;
    return static_cast<uint8_t *>(mapping);
  }();
  return memory;
}

/// Threads that carry out a job together with the caller, spinning in between.
class Crew {
public:
  explicit Crew(int count) : start(count), end(count), count(count) {
    for (int i = 1; i < count; ++i)
      threads.emplace_back([this, i] {
        while (true) {
          start.arrive_and_wait();
          if (!job)
            return;
          (*job)(i);
          end.arrive_and_wait();
        }
      });
  }
  ~Crew() {
    job = nullptr;
    start.arrive_and_wait();
    for (std::thread &thread : threads)
      thread.join();
  }
  void run(const std::function<void(int)> &work) {
    job = &work;
    start.arrive_and_wait();
    work(0);
    end.arrive_and_wait();
  }
  int size() const { return count; }

private:
  std::barrier<> start, end;
  int count;
  const std::function<void(int)> *job = nullptr;
  std::vector<std::thread> threads;
};

/// Sums the bytes' vectors: nothing but loads and one addition for each.
__attribute__((target("avx512f"))) int64_t readAvx512(const uint8_t *first, const uint8_t *last) {
  __m512i sums[4] = {};
  for (; first + 256 <= last; first += 256)
    for (int i = 0; i < 4; ++i)
      sums[i] = _mm512_add_epi64(sums[i], _mm512_load_si512(first + 64 * i));
  return _mm512_reduce_add_epi64(
      _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
}
__attribute__((target("avx2"))) int64_t readAvx2(const uint8_t *first, const uint8_t *last) {
  __m256i sums[8] = {};
  for (; first + 256 <= last; first += 256)
    for (int i = 0; i < 8; ++i)
      sums[i] = _mm256_add_epi64(
          sums[i], _mm256_load_si256(reinterpret_cast<const __m256i *>(first + 32 * i)));
  for (int i = 1; i < 8; ++i)
    sums[0] = _mm256_add_epi64(sums[0], sums[i]);
  return _mm256_extract_epi64(sums[0], 0) + _mm256_extract_epi64(sums[0], 1) +
         _mm256_extract_epi64(sums[0], 2) + _mm256_extract_epi64(sums[0], 3);
}
void read(const uint8_t *first, const uint8_t *last) {
  int64_t sum = isa == host::Isa::Avx2 ? readAvx2(first, last) : readAvx512(first, last);
  benchmark::DoNotOptimize(sum);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void product(benchmark::State &state, formats::Encoding format, const std::string &weight,
             int threads) {
  KernelFunction kernel = compileProduct(weight);
  formats::PackedShape shape = llvm::cantFail(
      formats::PackedShape::get(format, {formats::Layout::Kind::Lanes}, kRows, kColumns));
  int64_t bytes = shape.bytes(), copies = kBufferBytes / bytes;
  std::vector<float> x(kColumns), y(kRows);
  for (int64_t i = 0; i < kColumns; ++i)
    x[i] = static_cast<float>(i % 17) - 8.0f;
  Crew crew(threads);
  uint8_t *memory = buffer();
  auto part = [&](int64_t total, int thread) { return total * thread / crew.size(); };

  std::vector<double> kernelSeconds, readSeconds;
  int64_t copy = 0;
  for (auto _ : state) {
    uint8_t *packed = memory + copy * bytes;
    copy = (copy + 1) % copies;
    // A reader takes the same bytes of the next copy, turn about, so that both meet the machine in
    // the same state.
    uint8_t *others = memory + copy * bytes;
    copy = (copy + 1) % copies;
    double start = seconds();
    crew.run([&](int thread) {
      void *arguments[] = {x.data(), packed, y.data()};
      kernel(arguments, part(shape.tiles(), thread), part(shape.tiles(), thread + 1));
    });
    double middle = seconds();
    crew.run([&](int thread) {
      read(others + part(shape.tiles(), thread) * shape.tileBytes(),
           others + part(shape.tiles(), thread + 1) * shape.tileBytes());
    });
    double end = seconds();
    kernelSeconds.push_back(middle - start);
    readSeconds.push_back(end - middle);
    state.SetIterationTime(middle - start);
  }
  benchmark::DoNotOptimize(y.data());
  auto fast = [](std::vector<double> times) {
    auto tenth = times.begin() + times.size() / 10;
    std::nth_element(times.begin(), tenth, times.end());
    return *tenth;
  };
  double kernelTime = fast(kernelSeconds), readTime = fast(readSeconds);
  state.counters["GB/s"] = bytes / kernelTime * 1e-9;
  state.counters["read_GB/s"] = bytes / readTime * 1e-9;
  state.counters["of_read"] = readTime / kernelTime;
}

} // namespace

int main(int argc, char **argv) {
  std::optional<host::Isa> best = host::detectIsa();
  if (!best)
    fail("this machine has no AVX2");
  isa = *best;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    llvm::StringRef argument = argv[i];
    if (argument.consume_front("--isa=")) {
      std::optional<host::Isa> chosen = host::isaFromName(argument);
      if (!chosen || *chosen > *best)
        fail("--isa must be one of avx2, avx512, avx512_vnni that this machine has, found '" +
             argument + "'");
      isa = *chosen;
    } else if (argument.consume_front("--accumulators=")) {
      if (argument.getAsInteger(10, accumulators) || accumulators < 1 || accumulators > 8)
        fail("--accumulators must be 1 to 8, found '" + argument + "'");
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv))
    return 1;

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
  std::vector<int> threadCounts = {1};
  if (int all = std::thread::hardware_concurrency(); all > 1)
    threadCounts.push_back(all);
  for (const Case &c : cases)
    for (int threads : threadCounts) {
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

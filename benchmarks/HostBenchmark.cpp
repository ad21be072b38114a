// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "HostBenchmark.h"

#include "sluice/Conversion/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"
#include "llvm/Support/Path.h"

#include <barrier>
#include <dlfcn.h>
#include <immintrin.h>
#include <random>
#include <sys/mman.h>
#include <thread>

using namespace sluice;
using namespace sluice::bench;

host::Isa bench::isa;

static std::string program;
static bool cached = false;

void bench::fail(const llvm::Twine &message) {
  llvm::errs() << program << ": " << message << '\n';
  exit(1);
}

void bench::initialize(int argc, char **argv, llvm::function_ref<bool(llvm::StringRef)> option) {
  program = llvm::sys::path::filename(argv[0]);
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
    } else if (argument == "--cached") {
      cached = true;
    } else if (!option(argument)) {
      argv[kept++] = argv[i];
    }
  }
  benchmark::Initialize(&kept, argv);
  if (benchmark::ReportUnrecognizedArguments(kept, argv))
    exit(1);
}

std::vector<Kernel> bench::compileKernels(const std::string &text) {
  mlir::MLIRContext context;
  context.loadDialect<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                      plan::PlanDialect, mlir::func::FuncDialect>();
  mlir::OwningOpRef<mlir::ModuleOp> module =
      mlir::parseSourceString<mlir::ModuleOp>(text, &context);
  mlir::PassManager pm(&context);
  buildHostCodePipeline(pm);
  if (!module || failed(pm.run(*module)))
    fail("cannot generate the kernels");
  llvm::Expected<std::string> object =
      host::compileKernels(module->lookupSymbol<mlir::ModuleOp>(kKernelsModule));
  if (!object)
    fail(llvm::toString(object.takeError()));
  llvm::SmallString<64> path;
  int descriptor;
  if (std::error_code code =
          llvm::sys::fs::createTemporaryFile("host-benchmark", "so", descriptor, path))
    fail("cannot make a temporary file: " + code.message());
  llvm::FileRemover remover(path);
  llvm::raw_fd_ostream(descriptor, /*shouldClose=*/true) << *object;
  void *library = dlopen(path.c_str(), RTLD_NOW);
  if (!library)
    fail(dlerror());
  std::vector<Kernel> kernels;
  module->walk([&](plan::DispatchOp dispatch) {
    std::string name = dispatch.getKernel().getLeafReference().str();
    kernels.push_back({reinterpret_cast<KernelFunction>(dlsym(library, name.c_str())),
                       dispatch.getLaunch().getGrid()});
  });
  return kernels;
}

std::vector<int> bench::threadCounts() {
  int all = static_cast<int>(std::thread::hardware_concurrency());
  return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
}

namespace {

/// More than any cache holds.
constexpr int64_t kBufferBytes = int64_t(1) << 30;

/// Memory of weights and caches, filled with bytes that are valid in every format.
uint8_t *buffer() {
  static uint8_t *memory = [] {
    void *mapping =
        mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
      fail("cannot allocate 1 GiB");
    madvise(mapping, kBufferBytes, MADV_HUGEPAGE);
    // As 16-bit floats these are below 2, whichever byte comes first, and none is so small that
    // float32 has it without a leading one, which some CPUs multiply a hundred times slower.
    std::mt19937_64 random(1);
    auto *words = static_cast<uint64_t *>(mapping);
    for (int64_t i = 0; i < kBufferBytes / 8; ++i)
      words[i] = (random() & 0x3F3F3F3F3F3F3F3Full) | 0x2020202020202020ull;
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

} // namespace

void bench::measure(benchmark::State &state, const Launch &launch, int64_t bytes, int threads) {
  int64_t size = launch.items * launch.itemBytes, copies = kBufferBytes / size, copy = 0;
  if (copies < 2)
    fail("a launch reads " + llvm::Twine(size) + " bytes, more than half of the buffer");
  Crew crew(threads);
  auto part = [&](int thread) { return launch.items * thread / crew.size(); };
  auto next = [&] {
    uint8_t *memory = buffer() + copy * size;
    copy = cached ? 0 : (copy + 1) % copies;
    return memory;
  };
  std::vector<double> kernelSeconds, readSeconds;
  for (auto _ : state) {
    // Turn about, so that both meet the machine in the same state.
    uint8_t *memory = next(), *others = next();
    double start = seconds();
    crew.run([&](int thread) { launch.run(memory, part(thread), part(thread + 1)); });
    double middle = seconds();
    crew.run([&](int thread) {
      read(others + part(thread) * launch.itemBytes, others + part(thread + 1) * launch.itemBytes);
    });
    double end = seconds();
    kernelSeconds.push_back(middle - start);
    readSeconds.push_back(end - middle);
    state.SetIterationTime(middle - start);
  }
  auto fast = [](std::vector<double> times) {
    auto tenth = times.begin() + times.size() / 10;
    std::nth_element(times.begin(), tenth, times.end());
    return *tenth;
  };
  double kernelTime = fast(kernelSeconds), readTime = fast(readSeconds);
  state.counters["GB/s"] = bytes / kernelTime * 1e-9;
  state.counters["read_GB/s"] = size / readTime * 1e-9;
  state.counters["of_read"] = bytes * readTime / size / kernelTime;
}

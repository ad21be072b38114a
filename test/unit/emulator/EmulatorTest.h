// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Small kernels as MLIR text, run with a few buffers.

#ifndef SLUICE_TEST_UNIT_EMULATOR_EMULATORTEST_H
#define SLUICE_TEST_UNIT_EMULATOR_EMULATORTEST_H

#include "sluice/Emulator/Emulator.h"

#include "gtest/gtest.h"

#include <cstring>
#include <string>
#include <vector>

namespace sluice::emulator {

/// Kernels around `functions`, which may use @shared.
inline std::string moduleOf(const std::string &functions) {
  return "module { gpu.module @kernels {\n"
         "llvm.mlir.global external @shared() {addr_space = 3 : i32, alignment = 128 : i64} : "
         "!llvm.array<0 x i8>\n" +
         functions + "\n} }\n";
}

/// A kernel of that body; its arguments are %a0, %a1, ... and %tid, %lane, %block, %s (shared
/// memory) and some constants are there.
inline std::string kernel(const std::string &name, int arguments, const std::string &body,
                          const std::string &attributes = "") {
  std::string text = "llvm.func @" + name + "(";
  for (int i = 0; i < arguments; ++i)
    text += (i ? ", %a" : "%a") + std::to_string(i) + ": !llvm.ptr<1>";
  text += ") attributes {gpu.kernel, nvvm.kernel" + (attributes.empty() ? "" : ", " + attributes) +
          "} {\n"
          "  %s = llvm.mlir.addressof @shared : !llvm.ptr<3>\n"
          "  %tid = nvvm.read.ptx.sreg.tid.x : i32\n"
          "  %lane = nvvm.read.ptx.sreg.laneid : i32\n"
          "  %block = nvvm.read.ptx.sreg.ctaid.x : i32\n"
          "  %full = llvm.mlir.constant(-1 : i32) : i32\n";
  for (int value : {0, 1, 2, 3, 4, 5, 8, 16, 31, 32, 64, 128})
    text += "  %c" + std::to_string(value) + " = llvm.mlir.constant(" + std::to_string(value) +
            " : i32) : i32\n";
  return text + body + "\n}\n";
}

/// Buffers and launches of one test.
class Bench {
public:
  explicit Bench(const std::string &functions, uint64_t seed = 1) {
    Options options;
    options.seed = seed;
    auto created = Emulator::create(moduleOf(functions), "test.mlir", options);
    if (created)
      emulator = std::move(*created);
    else
      error = toString(created.takeError());
  }

  template <typename T>
  uint32_t buffer(const std::string &name, std::vector<T> values,
                  MemoryKind kind = MemoryKind::Persistent) {
    auto &bytes = storage.emplace_back(
        new (std::align_val_t(256)) std::byte[values.size() * sizeof(T)], Free());
    std::memcpy(bytes.get(), values.data(), values.size() * sizeof(T));
    uint32_t memory = emulator->addMemory(name, bytes.get(), values.size() * sizeof(T), kind);
    return emulator->addBuffer(name, memory, 0, values.size() * sizeof(T));
  }
  template <typename T> const T *at(uint32_t buffer) const {
    return reinterpret_cast<const T *>(storage[buffer].get());
  }

  void launch(const std::string &name, uint32_t grid, uint32_t block, uint32_t shared,
              std::vector<uint32_t> buffers, bool overlap = false, uint32_t cluster = 1,
              bool cooperative = false) {
    step.push_back(
        {name, "", grid, block, shared, cluster, overlap, std::move(buffers), cooperative});
  }
  /// Nothing, or the fault.
  std::string run() {
    if (!error.empty())
      return error;
    llvm::Error result = emulator->run(step);
    step.clear();
    return result ? toString(std::move(result)) : "";
  }

  std::unique_ptr<Emulator> emulator;
  std::string error;

private:
  struct Free {
    void operator()(std::byte *p) const { ::operator delete[](p, std::align_val_t(256)); }
  };
  std::vector<std::unique_ptr<std::byte[], Free>> storage;
  std::vector<Launch> step;
};

inline bool contains(const std::string &text, const std::string &part) {
  return text.find(part) != std::string::npos;
}

#define EXPECT_FAULT(TEXT, PART)                                                                   \
  do {                                                                                             \
    const std::string foundFault = (TEXT);                                                         \
    EXPECT_TRUE(contains(foundFault, PART)) << "found: " << foundFault;                            \
  } while (false)

} // namespace sluice::emulator

#endif // SLUICE_TEST_UNIT_EMULATOR_EMULATORTEST_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Executes GPU kernels on the host, every thread of every block, and checks what they do. What is
// executed is the kernels' module of the llvm and nvvm dialects, the one that PTX is made from.
// docs/emulator.md says what is checked and how.

#ifndef SLUICE_EMULATOR_EMULATOR_H
#define SLUICE_EMULATOR_EMULATOR_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sluice::emulator {

struct Options {
  /// Chooses the order in which threads run and copies complete: the same seed is the same run.
  uint64_t seed = 1;
  /// Blocks of a launch that live at the same time; a cluster always lives as a whole.
  unsigned residentBlocks = 4;
  /// Copies and stores to other blocks arrive as late as they can: when no thread can go on without
  /// one, and then the newest of them first. Finds threads that take a later copy for a sign that
  /// an earlier one has arrived.
  bool lateCopies = false;
};

/// Who writes a memory, and how long its contents stay.
enum class MemoryKind : uint8_t {
  /// Filled by the host; a kernel that writes it is wrong.
  Constant,
  /// Filled by the host, kept from step to step; kernels may write it.
  Persistent,
  /// Holds nothing at the start of a step: what is read must have been written in the step, through
  /// the same buffer.
  Scratch,
};

/// One kernel launch of a step.
struct Launch {
  std::string kernel;
  /// For messages; may be empty.
  std::string label;
  uint32_t grid = 1, block = 1;
  /// Bytes of dynamic shared memory.
  uint32_t shared = 0;
  /// Blocks of a cluster.
  uint32_t cluster = 1;
  /// Programmatic dependent launch: may start before the launch before it has ended.
  bool overlap = false;
  /// The kernel's pointers, as addBuffer() returned them.
  std::vector<uint32_t> buffers;
  /// Cooperative launch: all blocks live at the same time, whatever Options::residentBlocks says,
  /// so that they may wait for each other.
  bool cooperative = false;
};

/// Compiled kernels, the memory they use, and what was observed about it. Used by one thread at a
/// time.
class Emulator {
public:
  /// Compiles the gpu.module in `text` (MLIR's textual form). `name` stands for the file in
  /// messages. An operation without semantics is an error that names it.
  static llvm::Expected<std::unique_ptr<Emulator>>
  create(llvm::StringRef text, llvm::StringRef name, const Options &options = {});
  ~Emulator();

  /// Registers memory and returns its index. The memory must outlive the emulator and not overlap
  /// other memory.
  uint32_t addMemory(std::string name, void *data, uint64_t bytes, MemoryKind kind);
  /// Declares a buffer of a memory, as a plan does: the bytes that a launch may access.
  uint32_t addBuffer(std::string name, uint32_t memory, uint64_t offset, uint64_t bytes);

  /// Runs the launches of a step to their end. A fault in a kernel is an Error of one line that
  /// names kernel, launch, block, thread and operation; afterwards the memory's contents are
  /// undefined. `seconds`, if given, becomes the time of each launch; nothing overlaps then.
  llvm::Error run(llvm::ArrayRef<Launch> step, std::vector<double> *seconds = nullptr);

  /// Kernels that the module defines.
  std::vector<std::string> kernels() const;

private:
  struct Impl;
  explicit Emulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl;
};

/// Registers the runtime's device "emulator", which runs the kernels of artifacts that carry them
/// as MLIR: the file of role "module".
void registerEmulatorDevice(const Options &options = {});

} // namespace sluice::emulator

#endif // SLUICE_EMULATOR_EMULATOR_H

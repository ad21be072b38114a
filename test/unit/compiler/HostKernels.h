// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiles fused operations to host kernels and runs them in this process.

#ifndef SLUICE_TEST_UNIT_COMPILER_HOSTKERNELS_H
#define SLUICE_TEST_UNIT_COMPILER_HOSTKERNELS_H

#include "sluice/Formats/Packing.h"
#include "sluice/Formats/RowOrder.h"
#include "sluice/Target/HostTarget.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

namespace sluice::test {

/// Memory that ends at a page that cannot be touched, so that a kernel that reads or writes beyond
/// it is caught. Starts at a multiple of 64 bytes; the bytes between `size` and the page's end must
/// keep their value.
class Buffer {
public:
  explicit Buffer(size_t size);
  template <typename T>
  explicit Buffer(const std::vector<T> &contents) : Buffer(contents.size() * sizeof(T)) {
    if (!contents.empty())
      memcpy(start, contents.data(), bytes);
  }
  Buffer(Buffer &&other) noexcept;
  ~Buffer();

  size_t size() const { return bytes; }
  template <typename T> T *as() { return reinterpret_cast<T *>(start); }
  template <typename T> std::vector<T> copy() {
    return std::vector<T>(as<T>(), as<T>() + bytes / sizeof(T));
  }
  /// Whether nothing was written beyond the end.
  bool intact() const { return untouchedFrom(bytes); }
  /// Whether nothing was written to a fresh buffer from byte `first` on.
  bool untouchedFrom(size_t first) const;

private:
  void *mapping = nullptr;
  size_t mapped = 0, bytes = 0;
  uint8_t *start = nullptr;
};

/// The instruction sets that this machine can run.
std::vector<host::Isa> runnableIsas();

/// `#fused.host_schedule<...>` in `schedule(...)`.
std::string schedule(host::Isa isa, int64_t accumulators, int64_t positions);

/// The kernels of a module's fused operations, compiled and loaded.
class HostKernels {
public:
  /// Compiles and loads; a failure is a failure of the test, and null.
  static std::unique_ptr<HostKernels> compile(const std::string &text);
  ~HostKernels();

  struct Dispatch {
    std::string kernel;
    int64_t grid;
  };
  /// The dispatches in the module, in order.
  std::vector<Dispatch> dispatches;

  /// Runs a dispatch on its buffers in two parts of its grid, the later one first, as threads may.
  void run(size_t dispatch, const std::vector<Buffer *> &arguments);
  /// Whether the last run computed with denormal float32 numbers, which the stack was full of
  /// before: each takes more than a hundred cycles.
  bool metDenormals = false;

private:
  void *library = nullptr;
};

/// Repeatable numbers.
class Random {
public:
  explicit Random(uint32_t seed) : engine(seed) {}
  std::vector<float> normal(size_t count, float scale = 1.0f);
  std::vector<uint16_t> normalF16(size_t count, float scale = 1.0f);
  int64_t integer(int64_t low, int64_t high) { return low + engine() % (high - low + 1); }

private:
  std::mt19937 engine;
};

/// A weight as rows: what the references compute with.
struct Weight {
  Weight(formats::Encoding format, int64_t rows, int64_t columns, Random &random);

  formats::Encoding format;
  int64_t rows, columns;
  formats::EncodedRows numbers; ///< of integer formats
  std::vector<uint16_t> halves; ///< f16 or bf16
  std::vector<float> floats;

  formats::PackRow row(int64_t index) const;
  /// The product's definition, one row with one input.
  float product(int64_t row, const std::vector<float> &x) const;
};

/// `!quantized.tensor<...>` of a format.
std::string tensorType(formats::Encoding format, int64_t rows, int64_t columns,
                       const std::string &layout);
/// Packs rows, -1 for an empty place, in the given layout.
Buffer pack(const Weight &weight, const std::vector<int64_t> &rows, formats::Layout::Kind layout);
/// The rows of a weight, whose sources follow each other in it, in an order: -1 for an empty place.
std::vector<int64_t> orderedRows(const std::vector<formats::RowSegment> &order,
                                 const std::vector<int64_t> &sources);
/// Packs sources by an order, as rows of one weight, for the host.
Buffer packOrdered(const Weight &weight, const std::vector<formats::RowSegment> &order,
                   const std::vector<int64_t> &sources);
/// 0, 1, 2, ...
std::vector<int64_t> naturalRows(int64_t rows);

/// A product of `weight` whose prologue and epilogue have every elementwise operation. Values that
/// it reads and writes are of type `element`: f16, bf16 or f32.
class ElementwiseProduct {
public:
  ElementwiseProduct(const Weight &weight, int64_t tokens, std::string element, Random &random);

  /// A function of it. `weightType` and `schedule` are the target's.
  std::string text(const std::string &weightType, const std::string &schedule) const;
  /// Arguments of the kernel; `packed` is the weight.
  std::vector<Buffer *> arguments(Buffer &packed) { return {&x, &packed, &d, &g, &y}; }
  /// |result - definition| / |definition|.
  double error();

private:
  /// `count` numbers of type `element`, and their values.
  Buffer numbers(size_t count, Random &random, std::vector<float> &values) const;

  const Weight &weight;
  int64_t tokens;
  std::string element;
  std::vector<float> xValues, dValues, gValues;
  Buffer x, d, g, y;
};

/// |x - y| / |y|, Euclidean.
double relativeError(const std::vector<float> &x, const std::vector<double> &y);

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILER_HOSTKERNELS_H

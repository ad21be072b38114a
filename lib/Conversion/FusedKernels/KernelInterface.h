// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a fused operation's kernel takes: the pointers of a dispatch, in their order.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_KERNELINTERFACE_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_KERNELINTERFACE_H

#include "sluice/Conversion/Passes.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

namespace sluice::kernels {

class KernelInterface {
public:
  /// Collects operands and caches of a fused operation. Fails, with a message, if it names an
  /// unknown cache. `prefetched`, if not null, is one more operand: the weight whose bytes the
  /// kernel prefetches. Its type does not matter to the kernel.
  static mlir::FailureOr<KernelInterface> get(mlir::Operation *op,
                                              mlir::Value prefetched = mlir::Value());

  /// The operation's input and weight (or query, tokens, ...), then the values that its regions
  /// capture, then what it prefetches.
  mlir::ValueRange operands() const { return values.getArrayRef(); }
  /// The caches that it reads or appends to, in order of first use.
  llvm::SmallVector<mlir::Attribute> caches() const;
  int64_t results() const { return numResults; }

  /// A text that two operations share if and only if the same kernel serves both.
  std::string key() const;

  /// The number of pointers that a kernel takes.
  int64_t pointerCount() const { return values.size() + cacheTypes.size() + numResults; }
  /// Sets the pointers, in their order.
  void setPointers(mlir::ValueRange all) { pointers.assign(all.begin(), all.end()); }
  mlir::Value prefetchedPointer() const { return prefetched ? pointer(prefetched) : mlir::Value(); }
  /// Null for a value that is no operand.
  mlir::Value pointer(mlir::Value operand) const;
  mlir::Value cachePointer(mlir::FlatSymbolRefAttr cache) const;
  quantized::CacheType cacheType(mlir::FlatSymbolRefAttr cache) const {
    return cacheTypes.lookup(cache);
  }
  mlir::Value resultPointer(unsigned result) const {
    return pointers[values.size() + cacheTypes.size() + result];
  }

private:
  mlir::Operation *op = nullptr;
  mlir::Value prefetched;
  llvm::SetVector<mlir::Value> values;
  llvm::MapVector<mlir::Attribute, quantized::CacheType> cacheTypes;
  int64_t numResults = 0;
  llvm::SmallVector<mlir::Value> pointers;
};

/// Whether nothing in a step writes the value, so that a kernel may read it before the previous one
/// has ended.
bool isConstant(mlir::Value value);

/// Whether kernels can read the value as floats: a vector for all tokens or a row for each, of f16,
/// bf16 or f32.
bool isFloatTensor(mlir::Value value);

using quantized::encodingOf;

/// Replaces the uses of `op` by those of a dispatch of the kernel `name`, whose label says what it
/// computes. `op` itself stays.
void dispatchKernel(fused::KernelOp op, const KernelInterface &interface, llvm::StringRef name,
                    plan::LaunchAttr launch);

/// Fails, with a message, if the module has a symbol of the name that the kernels' module gets.
mlir::LogicalResult checkKernelsModule(mlir::ModuleOp module);

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_KERNELINTERFACE_H

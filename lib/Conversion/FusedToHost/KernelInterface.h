// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a fused operation's kernel takes: the pointers of a dispatch, in their order.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELINTERFACE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELINTERFACE_H

#include "KernelBuilder.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

namespace sluice::host {

class KernelInterface {
public:
  /// Collects operands and caches of a fused operation. Fails, with a message, if it names an
  /// unknown cache.
  static mlir::FailureOr<KernelInterface> get(mlir::Operation *op);

  /// The operation's input and weight (or query, tokens, ...), then the values that its regions
  /// capture.
  mlir::ValueRange operands() const { return values.getArrayRef(); }
  /// The caches that it reads or appends to, in order of first use.
  llvm::SmallVector<mlir::Attribute> caches() const;
  int64_t results() const { return numResults; }

  /// A text that is the same for two operations exactly if the same kernel serves both.
  std::string key() const;

  /// Loads the pointers; `arguments` is the kernel's array of them.
  void loadPointers(KernelBuilder &k, mlir::Value arguments);
  /// Takes the pointers, where they are the kernel's arguments.
  void usePointers(mlir::ValueRange arguments) {
    pointers.assign(arguments.begin(), arguments.end());
  }
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
  llvm::SetVector<mlir::Value> values;
  llvm::MapVector<mlir::Attribute, quantized::CacheType> cacheTypes;
  int64_t numResults = 0;
  llvm::SmallVector<mlir::Value> pointers;
};

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELINTERFACE_H

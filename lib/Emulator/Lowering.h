// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// From a gpu.module to a module for the host: every operation that is not the same there becomes a
// call of the emulator. Operations of the nvvm dialect are lowered in LowerNvvm.cpp, all others in
// Lower.cpp.

#ifndef SLUICE_LIB_EMULATOR_LOWERING_H
#define SLUICE_LIB_EMULATOR_LOWERING_H

#include "Compile.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/IR/Builders.h"
#include "mlir/Interfaces/DataLayoutInterfaces.h"

namespace sluice::emulator {

/// Name of an operation, and file, line and column if they are known.
std::string describe(mlir::Operation *op);

constexpr unsigned kGlobal = 1, kShared = 3, kConstant = 4, kSharedCluster = 7;

class Lowering {
public:
  Lowering(mlir::gpu::GPUModuleOp source)
      : source(source), builder(source.getContext()),
        owned(mlir::ModuleOp::create(builder.getUnknownLoc())), target(*owned), layout(target) {}

  llvm::Expected<Lowered> run();

private:
  llvm::Error lowerFunction(mlir::LLVM::LLVMFuncOp function);
  llvm::Error lowerOperation(mlir::Operation *op);
  llvm::Error lowerNvvm(mlir::Operation *op);
  llvm::Error lowerIntrinsic(mlir::LLVM::CallIntrinsicOp op);
  llvm::Error lowerInlinePtx(mlir::NVVM::InlinePtxOp op);
  llvm::Error lowerInlineAsm(mlir::LLVM::InlineAsmOp op);
  llvm::Error lowerMma(mlir::NVVM::MmaOp op);
  llvm::Error lowerLdMatrix(mlir::NVVM::LdMatrixOp op);
  llvm::Error checkRecursion();
  void addEntry(mlir::LLVM::LLVMFuncOp function);

  llvm::Error unsupported(mlir::Operation *op, const llvm::Twine &detail = "") {
    return llvm::createStringError("kernel '" + current + "': " + describe(op) +
                                   ": has no semantics in the emulator" +
                                   (detail.isTriviallyEmpty() ? "" : ": " + detail));
  }

  mlir::Type i32() { return builder.getI32Type(); }
  mlir::Type i64() { return builder.getI64Type(); }
  mlir::Type pointer() { return mlir::LLVM::LLVMPointerType::get(builder.getContext()); }
  mlir::Value constant(int64_t value) {
    return mlir::LLVM::ConstantOp::create(builder, location, i32(),
                                          builder.getI32IntegerAttr(value));
  }
  mlir::Value constant64(int64_t value) {
    return mlir::LLVM::ConstantOp::create(builder, location, i64(),
                                          builder.getI64IntegerAttr(value));
  }
  /// Calls an operation of the emulator with the thread, the id of `op`, and `arguments`.
  mlir::Value call(llvm::StringRef name, mlir::Type result, llvm::ArrayRef<mlir::Value> arguments,
                   mlir::Operation *op = nullptr, bool thread = true);
  mlir::Value generic(mlir::Value address) {
    return address.getType() == pointer()
               ? address
               : mlir::LLVM::AddrSpaceCastOp::create(builder, location, pointer(), address);
  }
  mlir::Value toI32(mlir::Value value) {
    mlir::Type type = value.getType();
    if (type.isInteger(32))
      return value;
    if (type.isInteger())
      return type.getIntOrFloatBitWidth() < 32
                 ? mlir::Value(mlir::LLVM::ZExtOp::create(builder, location, i32(), value))
                 : mlir::Value(mlir::LLVM::TruncOp::create(builder, location, i32(), value));
    return mlir::LLVM::BitcastOp::create(builder, location, i32(), value);
  }
  mlir::Value fromI32(mlir::Value value, mlir::Type type) {
    if (type.isInteger(32))
      return value;
    if (type.isInteger(1))
      return mlir::LLVM::TruncOp::create(builder, location, type, value);
    return mlir::LLVM::BitcastOp::create(builder, location, type, value);
  }
  /// Memory of the function's own for `words` registers.
  mlir::Value registers(int64_t words) {
    mlir::OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToStart(&function.getBody().front());
    return mlir::LLVM::AllocaOp::create(builder, location, pointer(), i32(), constant(words), 4);
  }
  /// The registers at `registers` as a struct of that type.
  mlir::Value structOf(mlir::Value registers, mlir::LLVM::LLVMStructType type);
  uint32_t idOf(mlir::Operation *op) {
    locations.push_back(describe(op));
    return locations.size() - 1;
  }
  void replace(mlir::Operation *op, mlir::ValueRange values) {
    op->replaceAllUsesWith(values);
    op->erase();
  }
  void checkAccess(mlir::Operation *op, mlir::Value address, mlir::Type type, uint64_t alignment,
                   uint32_t flags);

  mlir::gpu::GPUModuleOp source;
  mlir::OpBuilder builder;
  mlir::OwningOpRef<mlir::ModuleOp> owned;
  mlir::ModuleOp target;
  mlir::DataLayout layout;
  mlir::Location location = mlir::UnknownLoc::get(builder.getContext());
  mlir::Value thread;
  mlir::LLVM::LLVMFuncOp function;
  std::string current;
  std::vector<std::string> locations;
  std::vector<Kernel> kernels;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_LOWERING_H

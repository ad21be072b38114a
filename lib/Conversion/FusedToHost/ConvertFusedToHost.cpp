// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Products.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/TypeSwitch.h"

namespace sluice {
#define GEN_PASS_DEF_CONVERTFUSEDTOHOST
#include "lib/Conversion/Passes.h.inc"
} // namespace sluice

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

namespace {
struct Kernel {
  std::string name;
  int64_t grid = 0;
};

class ConvertFusedToHost : public sluice::impl::ConvertFusedToHostBase<ConvertFusedToHost> {
public:
  void runOnOperation() override;

private:
  LogicalResult convert(fused::KernelOp op, ModuleOp module);
  FailureOr<Kernel> generate(Operation *op, KernelInterface &interface, Isa isa, ModuleOp module);

  llvm::StringMap<Kernel> generated;
  llvm::StringMap<unsigned> counts;
};
} // namespace

FailureOr<Kernel> ConvertFusedToHost::generate(Operation *op, KernelInterface &interface, Isa isa,
                                               ModuleOp module) {
  StringRef kind = op->getName().stripDialect();
  Kernel kernel{(kind + "_" + Twine(counts[kind]++)).str()};

  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  MLIRContext *context = op->getContext();
  Type pointer = LLVM::LLVMPointerType::get(context);
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(context),
                                          {pointer, b.getI64Type(), b.getI64Type()});
  auto function = LLVM::LLVMFuncOp::create(b, op->getLoc(), kernel.name, type);
  function.setTargetCpu(isaCpu(isa));
  SmallVector<StringRef> features;
  SmallVector<std::string> enabled;
  for (StringRef feature : isaFeatures(isa))
    enabled.push_back(("+" + feature).str());
  // No feature of the machine but a preference: else LLVM takes dot products apart again, to
  // shorten a chain that is not the limit.
  if (isa == Isa::Avx512Vnni)
    enabled.push_back("+fast-dpwssd");
  features.assign(enabled.begin(), enabled.end());
  function.setTargetFeaturesAttr(LLVM::TargetFeaturesAttr::get(context, features));
  if (isa != Isa::Avx2)
    function.setPreferVectorWidth("512");
  // A loop that looks like memset must not become a call: the shared object depends on no library.
  function.setPassthroughAttr(b.getStrArrayAttr({"no-builtins"}));
  function.setNoUnwind(true);

  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  auto end = LLVM::ReturnOp::create(b, op->getLoc(), ValueRange{});
  b.setInsertionPoint(end);
  KernelBuilder builder(b, op->getLoc(), isa);
  SmallVector<Value> pointers;
  for (int64_t i = 0; i < interface.pointerCount(); ++i)
    pointers.push_back(
        builder.load(builder.ptr(), builder.offset(entry->getArgument(0), 8 * i), 8));
  interface.setPointers(pointers);
  Value first = entry->getArgument(1), last = entry->getArgument(2);
  FailureOr<int64_t> grid =
      llvm::TypeSwitch<Operation *, FailureOr<int64_t>>(op)
          .Case<fused::MatvecOp>(
              [&](auto matvec) { return emitMatvec(builder, matvec, interface, first, last); })
          .Case<fused::PrepareOp>(
              [&](auto prepare) { return emitPrepare(builder, prepare, interface, first, last); })
          .Case<fused::MatmulOp>(
              [&](auto matmul) { return emitMatmul(builder, matmul, interface, first, last); })
          .Case<fused::AttentionOp>([&](auto attention) {
            return emitAttention(builder, attention, interface, first, last);
          })
          .Case<fused::AppendOp>(
              [&](auto append) { return emitAppend(builder, append, interface, first, last); })
          .Case<fused::LastRowOp>(
              [&](auto row) { return emitLastRow(builder, row, interface, first, last); })
          .Case<fused::EmbeddingOp>([&](auto embedding) {
            return emitEmbedding(builder, embedding, interface, first, last);
          })
          .Case<fused::RowsOp>(
              [&](auto rows) { return emitRows(builder, rows, interface, first, last); })
          .Default([](Operation *op) { return op->emitOpError() << "has no kernel for the host"; });
  if (failed(grid))
    return failure();
  kernel.grid = *grid;
  return kernel;
}

LogicalResult ConvertFusedToHost::convert(fused::KernelOp op, ModuleOp module) {
  auto schedule =
      dyn_cast_if_present<fused::HostScheduleAttr>(op.getSchedule().value_or(Attribute()));
  if (!schedule)
    return op.emitOpError() << "has no host schedule (fused-assign-schedules gives it one)";
  Isa isa = *isaFromName(schedule.getIsa());
  FailureOr<KernelInterface> interface = KernelInterface::get(op);
  if (failed(interface))
    return failure();
  auto [entry, isNew] = generated.try_emplace(interface->key());
  if (isNew) {
    FailureOr<Kernel> made = generate(op, *interface, isa, module);
    if (failed(made))
      return failure();
    entry->second = *made;
  }
  const Kernel &kernel = entry->second;
  kernels::dispatchKernel(
      op, *interface, kernel.name,
      plan::LaunchAttr::get(op->getContext(), kernel.grid, 0, 0, 1, false, false));
  op->erase();
  return success();
}

void ConvertFusedToHost::runOnOperation() {
  ModuleOp module = getOperation();
  generated.clear();
  counts.clear();
  SmallVector<fused::KernelOp> fusedOps;
  module.walk([&](fused::KernelOp op) { fusedOps.push_back(op); });
  if (fusedOps.empty())
    return;
  if (failed(kernels::checkKernelsModule(module)))
    return signalPassFailure();
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  auto kernelModule = ModuleOp::create(b, module.getLoc(), kKernelsModule);
  for (fused::KernelOp op : fusedOps)
    if (failed(convert(op, kernelModule)))
      return signalPassFailure();
}

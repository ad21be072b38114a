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

  llvm::StringMap<Kernel> kernels;
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
  interface.loadPointers(builder, entry->getArgument(0));
  Value first = entry->getArgument(1), last = entry->getArgument(2);
  FailureOr<int64_t> grid =
      llvm::TypeSwitch<Operation *, FailureOr<int64_t>>(op)
          .Case<fused::MatvecOp>(
              [&](auto matvec) { return emitMatvec(builder, matvec, interface, first, last); })
          .Case<fused::AttentionOp>([&](auto attention) {
            return emitAttention(builder, attention, interface, first, last);
          })
          .Case<fused::EmbeddingOp>([&](auto embedding) {
            return emitEmbedding(builder, embedding, interface, first, last);
          })
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
  auto [entry, isNew] = kernels.try_emplace(interface->key());
  if (isNew) {
    FailureOr<Kernel> generated = generate(op, *interface, isa, module);
    if (failed(generated))
      return failure();
    entry->second = *generated;
  }
  const Kernel &kernel = entry->second;
  OpBuilder b(op);
  auto symbol = SymbolRefAttr::get(b.getStringAttr(kKernelsModule),
                                   {FlatSymbolRefAttr::get(op->getContext(), kernel.name)});
  std::string label = op.getLabel();
  auto launch = plan::LaunchAttr::get(op->getContext(), kernel.grid, 0, 0, 1, false);
  auto dispatch =
      plan::DispatchOp::create(b, op->getLoc(), op->getResultTypes(), symbol, interface->operands(),
                               b.getArrayAttr(interface->caches()), launch,
                               b.getStringAttr(label.empty() ? kernel.name : label),
                               op.getTraffic().value_or(fused::TrafficAttr()));
  op->replaceAllUsesWith(dispatch);
  op->erase();
  return success();
}

void ConvertFusedToHost::runOnOperation() {
  ModuleOp module = getOperation();
  kernels.clear();
  counts.clear();
  SmallVector<fused::KernelOp> fusedOps;
  module.walk([&](fused::KernelOp op) { fusedOps.push_back(op); });
  if (fusedOps.empty())
    return;
  if (Operation *taken = module.lookupSymbol(kKernelsModule)) {
    taken->emitError() << "symbol '" << kKernelsModule
                       << "' is taken, kernels are generated under it";
    return signalPassFailure();
  }
  for (auto cache : module.getOps<model::CacheOp>())
    if (cache.headDim() != cache.getTensorType().getDimSize(2)) {
      cache.emitOpError() << "has padded heads, as GPU kernels read them; host kernels do not";
      return signalPassFailure();
    }
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  auto kernelModule = ModuleOp::create(b, module.getLoc(), kKernelsModule);
  for (fused::KernelOp op : fusedOps)
    if (failed(convert(op, kernelModule)))
      return signalPassFailure();
}

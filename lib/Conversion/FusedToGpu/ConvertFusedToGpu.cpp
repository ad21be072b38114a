// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "sluice/Target/GpuDevice.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/TypeSwitch.h"

namespace sluice {
#define GEN_PASS_DEF_CONVERTFUSEDTOGPU
#include "lib/Conversion/Passes.h.inc"
} // namespace sluice

using namespace mlir;
using namespace sluice;
using sluice::device::DeviceBuilder;
using sluice::kernels::KernelInterface;

namespace {
struct GeneratedKernel {
  std::string name;
  fused::GpuLaunch launch;
};

class ConvertFusedToGpu : public sluice::impl::ConvertFusedToGpuBase<ConvertFusedToGpu> {
public:
  using ConvertFusedToGpuBase::ConvertFusedToGpuBase;
  void runOnOperation() override;

private:
  LogicalResult convert(fused::KernelOp op, mlir::gpu::GPUModuleOp module);
  FailureOr<GeneratedKernel> generate(fused::KernelOp op, KernelInterface &interface,
                                      fused::GpuScheduleAttr schedule,
                                      mlir::gpu::GPUModuleOp module);

  int arch = 0;
  fused::GpuDevice device;
  llvm::StringMap<GeneratedKernel> generated;
  llvm::StringMap<unsigned> counts;
};
} // namespace

/// The name of the block's dynamic shared memory.
static constexpr llvm::StringLiteral kShared = "shared";

/// A text that is the same for two operations exactly if one kernel serves both. Beyond what the
/// interface tells apart: which operands earlier kernels write.
static std::string keyOf(const KernelInterface &interface) {
  std::string key = interface.key();
  for (Value operand : interface.operands())
    key += device::isConstant(operand) ? 'c' : 'v';
  return key;
}

FailureOr<GeneratedKernel> ConvertFusedToGpu::generate(fused::KernelOp op,
                                                       KernelInterface &interface,
                                                       fused::GpuScheduleAttr schedule,
                                                       mlir::gpu::GPUModuleOp module) {
  FailureOr<fused::GpuLaunch> launch = op.planGpuLaunch(schedule, device);
  if (failed(launch))
    return failure();
  StringRef kind = op->getName().stripDialect();
  GeneratedKernel kernel{(kind + "_" + Twine(counts[kind]++)).str(), *launch};

  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  MLIRContext *context = op->getContext();
  SmallVector<Type> types(interface.pointerCount(), LLVM::LLVMPointerType::get(context, 1));
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(context), types);
  auto function = LLVM::LLVMFuncOp::create(b, op->getLoc(), kernel.name, type);
  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  auto end = LLVM::ReturnOp::create(b, op->getLoc(), ValueRange{});
  b.setInsertionPoint(end);

  interface.setPointers(entry->getArguments());
  DeviceBuilder builder(b, op->getLoc(), arch, racecheck);
  Value shared = LLVM::AddressOfOp::create(
      b, op->getLoc(),
      LLVM::LLVMPointerType::get(context, static_cast<unsigned>(NVVM::NVVMMemorySpace::Shared)),
      kShared);
  device::Kernel body{builder, interface, shared, schedule, device};
  LogicalResult emitted =
      llvm::TypeSwitch<Operation *, LogicalResult>(op)
          .Case<fused::MatvecOp>([&](auto matvec) { return emitMatvec(body, matvec); })
          .Case<fused::PrepareOp>([&](auto prepare) { return emitPrepare(body, prepare); })
          .Case<fused::MatmulOp>([&](auto matmul) { return emitMatmul(body, matmul); })
          .Case<fused::AttentionOp>([&](auto attention) {
            return attention.getActive() ? emitPrefillAttention(body, attention)
                                         : emitAttention(body, attention);
          })
          .Case<fused::AppendOp>([&](auto append) { return emitAppend(body, append); })
          .Case<fused::LastRowOp>([&](auto lastRow) { return emitLastRow(body, lastRow); })
          .Case<fused::EmbeddingOp>([&](auto embedding) { return emitEmbedding(body, embedding); })
          .Case<fused::RowsOp>([&](auto rows) { return emitRows(body, rows); })
          .Case<fused::SampleOp>([&](auto sample) { return emitSample(body, sample); })
          .Default([](Operation *op) { return op->emitOpError() << "has no kernel for GPUs"; });
  if (failed(emitted))
    return failure();

  auto dimension = [&](int64_t extent) {
    return b.getDenseI32ArrayAttr({static_cast<int32_t>(extent)});
  };
  function->setAttr(mlir::gpu::GPUDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getMaxntidAttrName(), dimension(launch->block));
  if (launch->resident)
    function->setAttr(NVVM::NVVMDialect::getMinctasmAttrName(),
                      b.getI32IntegerAttr(launch->resident));
  if (launch->cluster > 1)
    function->setAttr(NVVM::NVVMDialect::getClusterDimAttrName(), dimension(launch->cluster));
  return kernel;
}

LogicalResult ConvertFusedToGpu::convert(fused::KernelOp op, mlir::gpu::GPUModuleOp module) {
  auto schedule =
      dyn_cast_if_present<fused::GpuScheduleAttr>(op.getSchedule().value_or(Attribute()));
  if (!schedule)
    return op.emitOpError() << "has no GPU schedule (fused-assign-schedules gives it one)";
  Value prefetched;
  auto matvec = dyn_cast<fused::MatvecOp>(op.getOperation());
  if (matvec && matvec.getPrefetch() && device.bulkCopies) {
    // The weight's own product, and with it the parameter that it reads, may come later.
    FlatSymbolRefAttr weight = matvec.getPrefetch()->getWeight();
    Operation *symbol = SymbolTable::lookupNearestSymbolFrom(op, weight);
    OpBuilder b(op);
    prefetched = model::ParameterOp::create(
        b, op->getLoc(), symbol->getAttrOfType<TypeAttr>("type").getValue(), weight);
  }
  FailureOr<KernelInterface> interface = KernelInterface::get(op, prefetched);
  if (failed(interface))
    return failure();
  auto [entry, isNew] = generated.try_emplace(keyOf(*interface));
  if (isNew) {
    FailureOr<GeneratedKernel> made = generate(op, *interface, schedule, module);
    if (failed(made))
      return failure();
    entry->second = *made;
  }
  const GeneratedKernel &kernel = entry->second;
  const fused::GpuLaunch &launch = kernel.launch;
  auto config = plan::LaunchAttr::get(op->getContext(), launch.grid, launch.block, launch.shared,
                                      launch.cluster, launch.overlap, launch.cooperative);
  kernels::dispatchKernel(op, *interface, kernel.name, config);
  op->erase();
  return success();
}

void ConvertFusedToGpu::runOnOperation() {
  ModuleOp module = getOperation();
  generated.clear();
  counts.clear();
  SmallVector<fused::KernelOp> fusedOps;
  module.walk([&](fused::KernelOp op) { fusedOps.push_back(op); });
  if (fusedOps.empty())
    return;
  FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
  if (failed(description))
    return signalPassFailure();
  arch = description->computeCapability();
  if (arch < 80) {
    emitError(module.getLoc()) << "GPU kernels need a target of sm_80 or newer, "
                               << description->name << " is "
                               << (description->isGpu() ? description->arch : "a CPU");
    return signalPassFailure();
  }
  device = gpuDevice(*description);
  if (failed(kernels::checkKernelsModule(module)))
    return signalPassFailure();
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  // PTX 8.3 is the first that has all of sm_90's instructions that kernels use; sm_80's are older.
  auto nvvmTarget = NVVM::NVVMTargetAttr::get(&getContext(), /*optLevel=*/3, "nvptx64-nvidia-cuda",
                                              description->arch, "+ptx83");
  auto kernelModule = mlir::gpu::GPUModuleOp::create(b, module.getLoc(), kKernelsModule,
                                                     b.getArrayAttr({nvvmTarget}));
  b.setInsertionPointToStart(kernelModule.getBody());
  // Its size is the launch's. The operands of warpgroups begin at multiples of 1024.
  LLVM::GlobalOp::create(b, module.getLoc(), LLVM::LLVMArrayType::get(b.getI8Type(), 0),
                         /*isConstant=*/false, LLVM::Linkage::External, kShared, Attribute(),
                         /*alignment=*/device.warpgroups ? 1024 : 128, /*addrSpace=*/3);
  for (fused::KernelOp op : fusedOps)
    if (failed(convert(op, kernelModule)))
      return signalPassFailure();
  device::addUtilityKernels(kernelModule, arch, device.sharedBytes, kShared);
}

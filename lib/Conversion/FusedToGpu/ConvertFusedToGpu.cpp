// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "StepKernel.h"

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
  /// Converts the layers of a step that is planned as one kernel, and its embedding, and leaves
  /// the step as it was beside it. What cannot be converted loses its plan.
  LogicalResult convertStep(func::FuncOp decode, mlir::gpu::GPUModuleOp module);
  LogicalResult convertEmbedding(device::StepInterface &step, Value &sums,
                                 mlir::gpu::GPUModuleOp module);
  /// Adds a kernel. `emit` fills its body.
  LogicalResult
  addKernel(Location loc, StringRef name, int64_t pointers, const fused::GpuLaunch &launch,
            mlir::gpu::GPUModuleOp module,
            llvm::function_ref<LogicalResult(DeviceBuilder &, Value shared, Block &entry)> emit);
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
  auto emit = [&](DeviceBuilder &builder, Value shared, Block &entry) {
    interface.setPointers(entry.getArguments());
    device::Kernel body{builder, interface, shared, schedule, device};
    return llvm::TypeSwitch<Operation *, LogicalResult>(op)
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
  };
  if (failed(addKernel(op->getLoc(), kernel.name, interface.pointerCount(), *launch, module, emit)))
    return failure();
  return kernel;
}

LogicalResult ConvertFusedToGpu::addKernel(
    Location loc, StringRef name, int64_t pointers, const fused::GpuLaunch &launch,
    mlir::gpu::GPUModuleOp module,
    llvm::function_ref<LogicalResult(DeviceBuilder &, Value, Block &)> emit) {
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  MLIRContext *context = module.getContext();
  SmallVector<Type> types(pointers, LLVM::LLVMPointerType::get(context, 1));
  auto type = LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(context), types);
  auto function = LLVM::LLVMFuncOp::create(b, loc, name, type);
  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  auto end = LLVM::ReturnOp::create(b, loc, ValueRange{});
  b.setInsertionPoint(end);

  DeviceBuilder builder(b, loc, arch, racecheck);
  Value shared = LLVM::AddressOfOp::create(
      b, loc,
      LLVM::LLVMPointerType::get(context, static_cast<unsigned>(NVVM::NVVMMemorySpace::Shared)),
      kShared);
  if (failed(emit(builder, shared, *entry)))
    return failure();

  auto dimension = [&](int64_t extent) {
    return b.getDenseI32ArrayAttr({static_cast<int32_t>(extent)});
  };
  function->setAttr(mlir::gpu::GPUDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getMaxntidAttrName(), dimension(launch.block));
  if (launch.resident)
    function->setAttr(NVVM::NVVMDialect::getMinctasmAttrName(),
                      b.getI32IntegerAttr(launch.resident));
  if (launch.cluster > 1)
    function->setAttr(NVVM::NVVMDialect::getClusterDimAttrName(), dimension(launch.cluster));
  return success();
}

static plan::LaunchAttr launchAttr(MLIRContext *context, const fused::GpuLaunch &launch) {
  return plan::LaunchAttr::get(context, launch.grid, launch.block, launch.shared, launch.cluster,
                               launch.overlap, launch.cooperative);
}

static plan::DispatchOp dispatch(Operation *before, StringRef kernel, TypeRange results,
                                 ValueRange operands, ArrayRef<Attribute> caches,
                                 const fused::GpuLaunch &launch, StringRef label,
                                 fused::TrafficAttr traffic) {
  OpBuilder b(before);
  auto symbol = SymbolRefAttr::get(b.getStringAttr(kKernelsModule),
                                   {FlatSymbolRefAttr::get(b.getContext(), kernel)});
  return plan::DispatchOp::create(b, before->getLoc(), results, symbol, operands,
                                  b.getArrayAttr(caches), launchAttr(b.getContext(), launch),
                                  b.getStringAttr(label), traffic);
}

LogicalResult ConvertFusedToGpu::convertEmbedding(device::StepInterface &step, Value &sums,
                                                  mlir::gpu::GPUModuleOp module) {
  fused::EmbeddingOp op = step.step.embedding;
  auto schedule =
      dyn_cast_if_present<fused::GpuScheduleAttr>(op.getSchedule().value_or(Attribute()));
  if (!schedule)
    return op.emitOpError() << "has no GPU schedule (fused-assign-schedules gives it one)";
  FailureOr<fused::GpuLaunch> launch = op.planGpuLaunch(schedule, device);
  FailureOr<KernelInterface> interface = KernelInterface::get(op);
  if (failed(launch) || failed(interface))
    return failure();
  constexpr llvm::StringLiteral name = "embedding_of_step";
  auto emit = [&](DeviceBuilder &k, Value shared, Block &entry) -> LogicalResult {
    interface->setPointers(entry.getArguments().drop_back());
    device::Kernel body{k, *interface, shared, schedule, device};
    if (failed(emitEmbedding(body, op)))
      return failure();
    Value first = k.add(k.mul(k.block(), launch->block), k.thread());
    k.loop(first, k.constI32(step.sumWords()), launch->grid * launch->block, [&](Value word) {
      k.store(k.integer(k.i64(), 0), k.at(entry.getArguments().back(), k.toI64(word), 8), 8);
    });
    return success();
  };
  if (failed(addKernel(op->getLoc(), name, interface->pointerCount() + 1, *launch, module, emit)))
    return failure();
  Builder b(op);
  auto words = RankedTensorType::get({step.sumWords()}, b.getI64Type());
  std::string label = op.getLabel();
  auto made =
      dispatch(op, name, {op.getResult().getType(), words}, interface->operands(),
               interface->caches(), *launch, label.empty() ? StringRef(name) : StringRef(label),
               op.getTraffic().value_or(fused::TrafficAttr()));
  op.getResult().replaceAllUsesWith(made.getResult(0));
  op.erase();
  step.step.embedding = {};
  sums = made.getResult(1);
  return success();
}

/// What all operations of the layers move.
static fused::TrafficAttr trafficOf(fused::DecoderStep &step) {
  int64_t weights = 0, scales = 0, activations = 0, keys = 0, values = 0, written = 0,
          operations = 0, perPosition = 0, window = 0;
  for (fused::DecoderStep::Layer &layer : step.layers)
    for (Operation *op : layer.operations()) {
      std::optional<fused::TrafficAttr> traffic = cast<fused::KernelOp>(op).getTraffic();
      if (!traffic)
        return {};
      weights += traffic->getWeights();
      scales += traffic->getScales();
      activations += traffic->getActivations();
      keys += traffic->getKeys();
      values += traffic->getValues();
      written += traffic->getWritten();
      operations += traffic->getOperations();
      perPosition += traffic->getOperationsPerPosition();
      window = std::max(window, traffic->getWindow());
    }
  return fused::TrafficAttr::get(step.head.getContext(), weights, scales, activations, keys, values,
                                 written, operations, perPosition, window);
}

LogicalResult ConvertFusedToGpu::convertStep(func::FuncOp decode, mlir::gpu::GPUModuleOp module) {
  auto schedule = decode->getAttrOfType<fused::PersistentScheduleAttr>(fused::kPersistentAttr);
  OpBuilder b(decode);
  b.setInsertionPointAfter(decode);
  auto graph = cast<func::FuncOp>(b.clone(*decode));
  graph->removeAttr(fused::kPersistentAttr);
  graph->removeAttr(fused::kPersistentReasonAttr);
  graph->removeAttr(fused::kPersistentTimesAttr);
  auto found = [&]() -> llvm::Expected<device::StepInterface> {
    llvm::Expected<fused::DecoderStep> step = fused::DecoderStep::match(decode.getBody().front());
    if (!step)
      return step.takeError();
    return device::StepInterface::get(std::move(*step), fused::PersistentSchedule::get(schedule),
                                      device);
  }();
  if (!found) {
    graph->setAttr(fused::kPersistentReasonAttr,
                   b.getStringAttr(llvm::toString(found.takeError())));
    decode.erase();
    return success();
  }
  graph.setName(fused::kGraphStep);
  device::StepInterface &step = *found;
  Value sums;
  fused::TrafficAttr traffic = trafficOf(step.step);
  if (failed(convertEmbedding(step, sums, module)))
    return failure();
  constexpr llvm::StringLiteral name = "layers";
  fused::GpuLaunch launch = step.plan.launch();
  auto emit = [&](DeviceBuilder &k, Value shared, Block &entry) {
    return emitStep(k, step, shared, device, entry.getArguments());
  };
  if (failed(addKernel(decode.getLoc(), name, step.pointerCount(), launch, module, emit)))
    return failure();
  fused::DecoderStep::Layer &last = step.step.layers.back();
  Value stream = last.down.getResult(0);
  SmallVector<Value> operands = {step.step.layers.front().projections.getInput(), sums,
                                 step.positions()};
  operands.append(step.constants.begin(), step.constants.end());
  auto made = dispatch(step.step.head, name, stream.getType(), operands, step.caches, launch, name,
                       traffic);
  if (auto times = decode->getAttrOfType<DictionaryAttr>(fused::kPersistentTimesAttr))
    made->setDiscardableAttr(fused::kTimeAttr, times.get("layers"));
  stream.replaceAllUsesWith(made.getResult(0));
  for (fused::DecoderStep::Layer &layer : llvm::reverse(step.step.layers)) {
    SmallVector<Operation *> operations(layer.operations());
    for (Operation *op : llvm::reverse(operations))
      op->erase();
  }
  return success();
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
  kernels::dispatchKernel(op, *interface, kernel.name, launchAttr(op->getContext(), kernel.launch));
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
  auto decode = module.lookupSymbol<func::FuncOp>("decode");
  if (decode && decode->hasAttr(fused::kPersistentAttr)) {
    if (failed(convertStep(decode, kernelModule)))
      return signalPassFailure();
    fusedOps.clear();
    module.walk([&](fused::KernelOp op) { fusedOps.push_back(op); });
  }
  for (fused::KernelOp op : fusedOps)
    if (failed(convert(op, kernelModule)))
      return signalPassFailure();
  device::addUtilityKernels(kernelModule, arch, device.sharedBytes, kShared);
}

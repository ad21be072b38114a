// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Kernels that no step launches but the runtime itself: one that measures how fast the GPU reads
// memory, one that generates synthetic weights. What they do and get is defined beside their
// callers, in sluice-runtime/SyntheticWords.h and runtime/device/cuda/Kernels.h.

#include "Kernels.h"
#include "StageRing.h"

#include "sluice/Target/Artifact.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using Values = DeviceBuilder::Values;

namespace {
struct Extents {
  int64_t block = 0, shared = 0, blocksPerMultiprocessor = 1;
};
} // namespace

static constexpr int64_t kSynthesizeBlock = 256, kSynthesizeBlocks = 8;
/// 32 KB a copy and about 190 KB under way on a multiprocessor reach the most that was measured
/// (docs/kernels.md); without bulk copies it is four loads of 16 bytes per thread.
static constexpr int64_t kPiece = 32768, kMaxStages = 6, kLoadBlock = 512, kLoadBlocks = 4;

/// Adds a kernel `name` of `arguments` pointers; `emit` fills it and says how it is launched.
static void addKernel(mlir::gpu::GPUModuleOp module, int arch, StringRef name, unsigned arguments,
                      function_ref<Extents(DeviceBuilder &, ValueRange)> emit) {
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  MLIRContext *context = module.getContext();
  Location loc = module.getLoc();
  SmallVector<Type> types(arguments, LLVM::LLVMPointerType::get(context, 1));
  auto function = LLVM::LLVMFuncOp::create(
      b, loc, name, LLVM::LLVMFunctionType::get(LLVM::LLVMVoidType::get(context), types));
  Block *entry = function.addEntryBlock(b);
  b.setInsertionPointToStart(entry);
  auto end = LLVM::ReturnOp::create(b, loc, ValueRange{});
  b.setInsertionPoint(end);
  DeviceBuilder k(b, loc, arch);
  Extents extents = emit(k, entry->getArguments());
  function->setAttr(mlir::gpu::GPUDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getKernelFuncAttrName(), b.getUnitAttr());
  function->setAttr(NVVM::NVVMDialect::getMaxntidAttrName(),
                    b.getDenseI32ArrayAttr({static_cast<int32_t>(extents.block)}));
  function->setAttr(
      kUtilityAttr,
      b.getDictionaryAttr({b.getNamedAttr("block", b.getI64IntegerAttr(extents.block)),
                           b.getNamedAttr("shared", b.getI64IntegerAttr(extents.shared)),
                           b.getNamedAttr("blocks_per_multiprocessor",
                                          b.getI64IntegerAttr(extents.blocksPerMultiprocessor))}));
}

static Value gridBlocks(DeviceBuilder &k) { return NVVM::GridDimXOp::create(k.b, k.loc, k.i32()); }

/// The u64 at place `index` of an array.
static Value word(DeviceBuilder &k, Value array, int64_t index) {
  return k.load(k.i64(), k.offset(array, 8 * index), 8);
}

/// parameters {bytes, seed, period, regions, then of each region end, keep, set}, buffer
static Extents emitSynthesize(DeviceBuilder &k, ValueRange arguments) {
  Value parameters = arguments[0], buffer = arguments[1];
  Value bytes = word(k, parameters, 0), seed = word(k, parameters, 1),
        period = word(k, parameters, 2), regions = word(k, parameters, 3);
  auto wide = [&](Value x) { return k.extendUnsigned(x, k.i64()); };
  Value first = k.add(k.mul(wide(k.block()), kSynthesizeBlock), wide(k.thread()));
  Value stride = k.mul(wide(gridBlocks(k)), kSynthesizeBlock);
  k.loop(first, k.div(bytes, 8), stride, [&](Value half) {
    // splitmix64's finaliser.
    Value z = k.add(seed, k.mul(k.add(half, 1), static_cast<int64_t>(0x9E3779B97F4A7C15u)));
    z = k.mul(k.bitXor(z, k.shr(z, 30)), static_cast<int64_t>(0xBF58476D1CE4E5B9u));
    z = k.mul(k.bitXor(z, k.shr(z, 27)), static_cast<int64_t>(0x94D049BB133111EBu));
    z = k.bitXor(z, k.shr(z, 31));
    Value at = k.shl(half, 3);
    Value place = arith::RemUIOp::create(k.b, k.loc, at, period);
    // From the last region to the first: the last one found is the first that ends behind it.
    Value none = k.integer(k.i64(), 0);
    Values masks = k.loop(
        none, regions, k.integer(k.i64(), 1), {none, none}, [&](Value i, ValueRange carried) {
          Value region = k.offset(parameters, k.add(k.mul(k.sub(k.sub(regions, 1), i), 24), 32));
          Value inside = k.less(place, word(k, region, 0));
          return Values{k.select(inside, word(k, region, 1), carried[0]),
                        k.select(inside, word(k, region, 2), carried[1])};
        });
    k.store(k.bitOr(k.bitAnd(z, masks[0]), masks[1]), k.offset(buffer, at), 8);
  });
  return {kSynthesizeBlock, 0, kSynthesizeBlocks};
}

/// buffer, parameters {bytes}, out: a thread of each block keeps a ring of copies full.
static Extents emitBulkReads(DeviceBuilder &k, ValueRange arguments, Value shared, int64_t stages) {
  Value buffer = arguments[0], out = arguments[2];
  Value barriers = k.offset(shared, stages * kPiece);
  k.ifThen(k.equal(k.thread(), k.constI32(0)), [&] {
    for (int64_t stage = 0; stage < stages; ++stage)
      k.initBarrier(k.offset(barriers, 8 * stage), 1);
    k.fenceBarrierInit();
    Value zero = k.constI32(0), parity = k.constI32(1);
    Value pieces = k.truncate(k.div(word(k, arguments[1], 0), kPiece), k.i32());
    // Parity 1 of a fresh barrier is over: nothing was in that stage.
    StageRing ring{k, stages, barriers};
    Values last = k.loop(
        k.block(), pieces, gridBlocks(k), {zero, parity}, [&](Value piece, ValueRange carried) {
          Value stage = carried[0], parity = carried[1];
          Value barrier = ring.fullBarrier(stage);
          k.wait(barrier, parity);
          k.expectBytes(barrier, k.constI32(kPiece));
          k.bulkCopy(k.offset(shared, k.mul(stage, kPiece)),
                     k.offset(buffer, k.mul(k.extendUnsigned(piece, k.i64()), kPiece)),
                     k.constI32(kPiece), barrier);
          ring.advance(stage, parity, 1);
          return Values{stage, parity};
        });
    // Nothing may be under way when the block ends.
    k.loop(zero, k.constI32(stages), k.constI32(1), last, [&](Value, ValueRange carried) {
      Value stage = carried[0], parity = carried[1];
      k.wait(ring.fullBarrier(stage), parity);
      ring.advance(stage, parity, 1);
      return Values{stage, parity};
    });
    k.ifThen(k.less(k.block(), pieces), [&] {
      k.store(k.load(k.i64(), shared, 8),
              k.offset(out, k.shl(k.extendUnsigned(k.block(), k.i64()), 3)), 8);
    });
  });
  return {kWarp, stages * (kPiece + 8), 1};
}

/// The same with loads, four of 16 bytes per thread.
static Extents emitLoads(DeviceBuilder &k, ValueRange arguments) {
  Value buffer = arguments[0], out = arguments[2];
  Value pieces = k.truncate(k.div(word(k, arguments[1], 0), kPiece), k.i32());
  Value thread = k.extendUnsigned(k.thread(), k.i64());
  Value sum = k.loop(
      k.block(), pieces, gridBlocks(k), {k.constI32(0)}, [&](Value piece, ValueRange carried) {
        Value base = k.offset(
            buffer, k.add(k.mul(k.extendUnsigned(piece, k.i64()), kPiece), k.shl(thread, 4)));
        Value sum = carried[0];
        for (int64_t at = 0; at < kPiece; at += 16 * kLoadBlock)
          for (Value lane : k.lanes(k.load(k.vec(4, k.i32()), k.offset(base, at), 16)))
            sum = k.bitXor(sum, lane);
        return Values{sum};
      })[0];
  // All of it has to be known to know that nothing is to be written.
  k.ifThen(k.equal(sum, k.constI32(0x5EA1C0DE)), [&] {
    k.store(k.extendUnsigned(sum, k.i64()),
            k.offset(out, k.shl(k.extendUnsigned(k.block(), k.i64()), 3)), 8);
  });
  return {kLoadBlock, 0, kLoadBlocks};
}

void sluice::device::addUtilityKernels(mlir::gpu::GPUModuleOp module, int arch, int64_t sharedLimit,
                                       StringRef shared) {
  addKernel(module, arch, "sluice_synthesize", 2, emitSynthesize);
  int64_t stages = std::min(kMaxStages, sharedLimit / (kPiece + 8));
  addKernel(module, arch, "sluice_read_ceiling", 3, [&](DeviceBuilder &k, ValueRange arguments) {
    if (!k.hasBulkCopies() || stages < 2)
      return emitLoads(k, arguments);
    Value base = LLVM::AddressOfOp::create(
        k.b, k.loc,
        LLVM::LLVMPointerType::get(module.getContext(),
                                   static_cast<unsigned>(NVVM::NVVMMemorySpace::Shared)),
        shared);
    return emitBulkReads(k, arguments, base, stages);
  });
}

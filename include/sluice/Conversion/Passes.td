// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_CONVERSION_PASSES
#define SLUICE_CONVERSION_PASSES

include "mlir/Pass/PassBase.td"

def ConvertFusedToHost : Pass<"convert-fused-to-host", "::mlir::ModuleOp"> {
  let summary = "Generate a host kernel for every fused operation";
  let description = [{
    Every `fused` operation with a `#fused.host_schedule` becomes a `plan.dispatch` of a kernel in the nested module `@kernels`. Operations that differ only in
    the values and caches that they name share a kernel, so that all layers of a model run the same code.

    A kernel is `void(ptr arguments, i64 begin, i64 end)`. `arguments` holds one pointer for each operand, cache and result of the
    dispatch; operands are the operation's input and weight, then what its regions capture, in the order of first use. The kernel carries out the work
    items [begin, end) of the launch's grid, a work item being 16 packed rows of a product (of many tokens: two such tiles), a token of a prologue of its own, one key/value head of a token of attention,
    or one row of an embedding.
    Operations with `active` have a grid for all tokens; the items carry out even shares of what the active ones need.

    Kernels are written in `vector`, `arith`, `math`, `scf` and `llvm` operations; the pipeline `host-lower-kernels` takes them to `llvm` alone.

    - Products want one weight in layout `lanes`; the prologue runs once a call into stack memory (for integer weights it ends in 16-bit fixed point, see
      docs/numerics.md), and the epilogue on the sums of 16 rows. Integer sums inside an accumulation block are exact; the sums over blocks are float32, in order.
      Products of many tokens add in the same order; their prologue is a kernel of its own.
    - A norm's sum of squares is 16 partial sums, element i in sum i mod 16, added in halves (8, 4, 2, 1).
    - Attention updates a running maximum after every `positions` positions; a weight is exp(score - maximum so far), rounded to f16 before it is multiplied by V.

    ```mlir
    %y = fused.matvec %x weights(%w) segments [64] schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
        : tensor<1x256xf32>, !quantized.tensor<64x256xi8, group = 128, layout = lanes> -> tensor<1x64xf32>
    ```
    ==>
    ```mlir
    %y = plan.dispatch @kernels::@matvec_0(%x, %w) launch <grid = 4, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_q"
        : (tensor<1x256xf32>, !quantized.tensor<64x256xi8, group = 128, layout = lanes>) -> tensor<1x64xf32>
    // ...
    module @kernels {
      llvm.func @matvec_0(%arguments: !llvm.ptr, %begin: i64, %end: i64) attributes {target_cpu = "x86-64-v3"} {
        // ...
        llvm.return
      }
    }
    ```
  }];
  let dependentDialects = ["::sluice::plan::PlanDialect", "::mlir::arith::ArithDialect", "::mlir::math::MathDialect", "::mlir::scf::SCFDialect",
                           "::mlir::vector::VectorDialect", "::mlir::LLVM::LLVMDialect"];
}

def ConvertFusedToGpu : Pass<"convert-fused-to-gpu", "::mlir::ModuleOp"> {
  let summary = "Generate a GPU kernel for every fused operation";
  let description = [{
    Every `fused` operation with a `#fused.gpu_schedule` becomes a `plan.dispatch` of a kernel in the `gpu.module` `@kernels`. Operations that differ only in
    the values and caches that they name share a kernel, so that all layers of a model run the same code.

    A kernel has one global pointer for each operand, cache and result of the dispatch; operands are the operation's input and weight, then what its regions
    capture, in the order of first use. Shapes are constants of the code. Shared memory is one dynamic array, `@shared`.

    Kernels are written in `arith`, `scf`, `llvm` and `nvvm` operations; the pipeline `gpu-lower-kernels` takes them to `llvm` and `nvvm`. That module is
    the kernel: PTX is made from it, and the emulator runs it.

    - Products want one weight in layout `mma`. Warps multiply on the tensor cores, one more fills a ring of stages in shared memory by bulk copies
      (before sm_90 by `cp.async`). Weights, norm gains, positions and tables are read before the previous kernel has ended, all else after
      `griddepcontrol.wait`. Integer sums inside an accumulation block are exact, as on the host; the sums over blocks are float32.
    - Attention gives a key/value head to a cluster of `splits` blocks, which divide its pieces of 32 positions among them and bring
      their parts together in each other's shared memory (before sm_90 to one block). Pieces that hold only earlier steps' tokens are
      read before the previous kernel has ended. A weight is exp(score - the maximum that its warp has seen so far), rounded to f16 before it
      is multiplied by V; one launch serves every position.
    - Caches are in the order of include/sluice/Formats/CacheLayout.h.

    ```mlir
    %y = fused.matvec %x weights(%w) segments [64] schedule(#fused.gpu_schedule<blocks = 4, warps = 16, stages = 1, in_flight = 1, columns = 256, splits = 1, early = "weights">)
        : tensor<1x256xf32>, !quantized.tensor<64x256xi8, group = 128, layout = mma, columns = 256> -> tensor<1x64xf32>
    ```
    ==>
    ```mlir
    %y = plan.dispatch @kernels::@matvec_0(%x, %w) launch <grid = 4, block = 544, shared = 5968, cluster = 1, overlap = true> label "blk.0.attn_q"
        : (tensor<1x256xf32>, !quantized.tensor<64x256xi8, group = 128, layout = mma, columns = 256>) -> tensor<1x64xf32>
    // ...
    gpu.module @kernels [#nvvm.target<O = 3, chip = "sm_90a", features = "+ptx83">] {
      llvm.mlir.global external @shared() {addr_space = 3 : i32, alignment = 1024 : i64} : !llvm.array<0 x i8>
      llvm.func @matvec_0(%x: !llvm.ptr<1>, %w: !llvm.ptr<1>, %y: !llvm.ptr<1>) attributes {gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: 544>} {
        // ...
        llvm.return
      }
    }
    ```
  }];
  let options = [Option<"target", "target", "std::string", /*default=*/"\"h200\"", "name or path of a target description">,
                 Option<"racecheck", "racecheck", "bool", /*default=*/"false", "every lane arrives at the barriers of its warp, for compute-sanitizer's racecheck">];
  let dependentDialects = ["::sluice::plan::PlanDialect", "::mlir::arith::ArithDialect", "::mlir::gpu::GPUDialect", "::mlir::scf::SCFDialect",
                           "::mlir::LLVM::LLVMDialect", "::mlir::NVVM::NVVMDialect"];
}

#endif // SLUICE_CONVERSION_PASSES

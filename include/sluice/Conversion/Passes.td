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
    items [begin, end) of the launch's grid, a work item being 16 packed rows of a product, one key/value head of a sequence of attention,
    or one row of an embedding.

    Kernels are written in `vector`, `arith`, `math`, `scf` and `llvm` operations; the pipeline `host-lower-kernels` takes them to `llvm` alone.

    - Products want one weight in layout `lanes`; the prologue runs once a call into stack memory (for integer weights it ends in 16-bit fixed point, see
      docs/numerics.md), and the epilogue on the sums of 16 rows. Sums of integer units are exact; the sums over units are float32, in order.
    - A norm's sum of squares is 16 partial sums, element i in sum i mod 16, added in halves (8, 4, 2, 1).
    - Attention keeps a running maximum a block of `positions`; a weight is exp(score - maximum so far), rounded to f16 before it meets V.

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

#endif // SLUICE_CONVERSION_PASSES

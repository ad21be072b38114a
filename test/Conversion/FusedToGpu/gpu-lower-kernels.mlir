// RUN: sluice-opt %s --convert-fused-to-gpu --gpu-lower-kernels | FileCheck %s
// What is left is what PTX is made from and the emulator runs; its text can be read back with its locations.
// RUN: sluice-opt %s --convert-fused-to-gpu --gpu-lower-kernels --mlir-print-debuginfo | sluice-opt | FileCheck %s

// CHECK-LABEL: llvm.func @matvec_0
// CHECK-NOT: {{scf|arith|cf|builtin}}.
// CHECK: nvvm.mma.sync {{.*}}shape = #nvvm.shape<m = 16, n = 8, k = 16>
// CHECK-NOT: {{scf|arith|cf|builtin}}.
// CHECK: llvm.return
func.func @decode(%x: tensor<1x96xf32>, %gain: tensor<96xf32>, %w: !quantized.tensor<24x96xf16, layout = mma, columns = 128>) -> tensor<1x24xf32> {
  %y = fused.matvec %x weights(%w) segments [24] schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 1, in_flight = 1, columns = 128, splits = 1, early = "weights">)
      : tensor<1x96xf32>, !quantized.tensor<24x96xf16, layout = mma, columns = 128> -> tensor<1x24xf32>
  prologue {
  ^bb0(%in: tensor<1x96xf32>):
    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x96xf32>, tensor<96xf32>
    fused.yield %n : tensor<1x96xf32>
  }
  return %y : tensor<1x24xf32>
}

// RUN: sluice-opt %s --convert-fused-to-gpu="target=h100" | FileCheck %s
// RUN: sluice-opt %s --convert-fused-to-gpu="target=h100 racecheck=true" | FileCheck --check-prefix=RACECHECK %s

// Two warps read a stage before it is filled again: the first lane of each arrives, or for racecheck all 64.
// CHECK-LABEL: llvm.func @matvec_0
// CHECK: nvvm.mbarrier.init %{{[0-9]+}}, %c2_i32 :
// CHECK: nvvm.bar.warp.sync
// CHECK: %[[FIRST:.*]] = arith.cmpi eq, %{{.*}}, %c0_i32{{.*}} : i32
// CHECK-NEXT: scf.if %[[FIRST]] {
// CHECK-NEXT: nvvm.mbarrier.arrive %
// RACECHECK-LABEL: llvm.func @matvec_0
// RACECHECK: nvvm.mbarrier.init %{{[0-9]+}}, %c64_i32{{.*}} :
// RACECHECK: nvvm.bar.warp.sync
// RACECHECK-NOT: scf.if
// RACECHECK: nvvm.mbarrier.arrive %
func.func @reused(%x: tensor<1x1024xf32>, %w: !quantized.tensor<64x1024xi8, group = 128, layout = mma, columns = 256>) -> tensor<1x64xf32> {
  %y = fused.matvec %x weights(%w) segments [64] schedule(#fused.gpu_schedule<blocks = 4, warps = 2, stages = 2, in_flight = 2, columns = 256, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<64x1024xi8, group = 128, layout = mma, columns = 256> -> tensor<1x64xf32>
  return %y : tensor<1x64xf32>
}

// RUN: sluice-opt %s --convert-fused-to-gpu=target=a100 --gpu-lower-kernels | FileCheck %s
// Before sm_90 there are no bulk copies and no dependent launch: all lanes of the copying warp copy 16 bytes at a time, and their arrivals count when
// the copies have ended.

// CHECK: launch <grid = 2, block = 544, shared = {{[0-9]+}}, cluster = 1, overlap = false>
// CHECK: gpu.module @kernels [#nvvm.target<O = 3, chip = "sm_80", features = "+ptx83">]
// CHECK-LABEL: llvm.func @matvec_0
// CHECK-NOT: griddepcontrol
// CHECK: nvvm.mbarrier.test.wait
// CHECK-COUNT-4: nvvm.mma.sync {{.*}}shape = #nvvm.shape<m = 16, n = 8, k = 32>
// CHECK-NOT: bulk
// CHECK: nvvm.cp.async.shared.global %{{.*}}, %{{.*}}, 16, cache =  cg
// CHECK: nvvm.cp.async.mbarrier.arrive %{{.*}} {noinc = true}
// CHECK-NOT: griddepcontrol
func.func @decode(%x: tensor<1x1024xf32>, %w: !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512>) -> tensor<1x96xf32> {
  %y = fused.matvec %x weights(%w) segments [96] schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 2, in_flight = 1, columns = 512, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512> -> tensor<1x96xf32>
  return %y : tensor<1x96xf32>
}

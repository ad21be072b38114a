// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 | FileCheck %s
// RUN: not sluice-opt %s --convert-fused-to-gpu=target=host-avx2 2>&1 | FileCheck %s --check-prefix=CPU
// CPU: error: GPU kernels need a target of sm_80 or newer, host-avx2 is a CPU

model.cache @k : !quantized.cache<1x64x1x32xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x1x32xf16, layout = mma_values>
model.cache @k.1 : !quantized.cache<1x64x1x32xf16, layout = mma_keys>
model.cache @v.1 : !quantized.cache<1x64x1x32xf16, layout = mma_values>

// CHECK-LABEL: func.func @decode
// 6 tiles of 2 chunks on 2 blocks, through a ring of 2 stages.
// CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}) caches [@k, @v] launch <grid = 2, block = 544, shared = {{[0-9]+}}, cluster = 1, overlap = true>
// CHECK-SAME: label "matvec_0"
// CHECK: plan.dispatch @kernels::@attention_0(%{{.*}}) caches [@k, @v] launch <grid = 2, block = 288, shared = {{[0-9]+}}, cluster = 2, overlap = true> label "attention over k, v"
// Layers share their kernels.
// CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}) caches [@k.1, @v.1]
// CHECK: plan.dispatch @kernels::@attention_0(%{{.*}}) caches [@k.1, @v.1]
func.func @decode(%x: tensor<1x1024xf32>, %w: !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512>, %position: tensor<1xi32>) -> (tensor<1x32xf16>, tensor<1x32xf16>) {
  %q = fused.matvec %x weights(%w) segments [32, 32, 32] order [natural(0), natural(1), natural(2)]
      schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 2, in_flight = 1, columns = 512, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512> -> tensor<1x32xf16>
  epilogue {
  ^bb0(%a: tensor<1x32xf32>, %b: tensor<1x32xf32>, %c: tensor<1x32xf32>):
    model.cache_append @k, %b at %position : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v, %c at %position : tensor<1x32xf32>, tensor<1xi32>
    %r = arith.truncf %a : tensor<1x32xf32> to tensor<1x32xf16>
    fused.yield %r : tensor<1x32xf16>
  }
  %y = fused.attention %q, @k, @v at %position scale 0.25 schedule(#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 2, early = "cache">)
      : tensor<1x32xf16>, tensor<1xi32> -> tensor<1x32xf16>
  %q1 = fused.matvec %x weights(%w) segments [32, 32, 32] order [natural(0), natural(1), natural(2)]
      schedule(#fused.gpu_schedule<blocks = 2, warps = 16, stages = 2, in_flight = 1, columns = 512, splits = 1, early = "weights">)
      : tensor<1x1024xf32>, !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512> -> tensor<1x32xf16>
  epilogue {
  ^bb0(%a: tensor<1x32xf32>, %b: tensor<1x32xf32>, %c: tensor<1x32xf32>):
    model.cache_append @k.1, %b at %position : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v.1, %c at %position : tensor<1x32xf32>, tensor<1xi32>
    %r = arith.truncf %a : tensor<1x32xf32> to tensor<1x32xf16>
    fused.yield %r : tensor<1x32xf16>
  }
  %y1 = fused.attention %q1, @k.1, @v.1 at %position scale 0.25 schedule(#fused.gpu_schedule<blocks = 2, warps = 8, stages = 2, in_flight = 2, columns = 64, splits = 2, early = "cache">)
      : tensor<1x32xf16>, tensor<1xi32> -> tensor<1x32xf16>
  return %y, %y1 : tensor<1x32xf16>, tensor<1x32xf16>
}

// CHECK: gpu.module @kernels [#nvvm.target<O = 3, chip = "sm_90a", features = "+ptx83">]
// CHECK: llvm.mlir.global external @shared() {addr_space = 3 : i32, alignment = 1024 : i64} : !llvm.array<0 x i8>
// CHECK-LABEL: llvm.func @matvec_0
// CHECK: nvvm.mbarrier.init
// CHECK: nvvm.fence.mbarrier.init
// CHECK: nvvm.barrier0
// CHECK: nvvm.griddepcontrol launch_dependents
// The input is read after the previous kernel has ended, past the caches that nothing invalidates.
// CHECK: nvvm.griddepcontrol wait
// CHECK: llvm.load volatile %{{.*}} {alignment = 16 : i64} : !llvm.ptr<1> -> vector<4xi32>
// CHECK: nvvm.shfl.sync bfly
// CHECK: llvm.call_intrinsic "llvm.nvvm.barrier.cta.sync.aligned.count"
// Operands of the input while the weights are on their way, then 16 bytes of weights a thread.
// CHECK-COUNT-4: llvm.load %{{.*}} {alignment = 8 : i64} : !llvm.ptr<3> -> vector<2xi32>
// CHECK: nvvm.mbarrier.try_wait.parity
// CHECK-COUNT-4: llvm.load %{{.*}} {alignment = 16 : i64} : !llvm.ptr<3> -> vector<4xi32>
// CHECK-COUNT-4: nvvm.mma.sync {{.*}}multiplicandAPtxType = #nvvm.mma_type<s8>{{.*}}shape = #nvvm.shape<m = 16, n = 8, k = 32>
// CHECK: nvvm.bar.warp.sync
// CHECK: nvvm.mbarrier.arrive
// The copying thread neither waits for the previous kernel nor has more than one copy under way.
// CHECK-NOT: griddepcontrol
// CHECK: nvvm.mbarrier.try_wait.parity
// CHECK: nvvm.mbarrier.arrive.expect_tx
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK-LABEL: llvm.func @attention_0
// CHECK-SAME: nvvm.cluster_dim = array<i32: 2>

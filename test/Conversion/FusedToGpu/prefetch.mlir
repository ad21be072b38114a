// RUN: sluice-opt %s --convert-fused-to-gpu=target=h100 | FileCheck %s
// RUN: sluice-opt %s --convert-fused-to-gpu=target=a100 | FileCheck %s --check-prefix=NONE --implicit-check-not=prefetch
// The next product's weight is one more argument. Two products that prefetch as much of weights of different extents share a kernel; before sm_90 no argument
// and nothing is added.

model.weight @source : tensor<64x1024xf16>
model.weight @larger : tensor<96x1024xf16>
quantized.packed @packed of [@source] : !quantized.tensor<64x1024xi8, group = 128, layout = mma, columns = 512>
quantized.packed @packed.1 of [@larger] : !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512>

// CHECK-LABEL: func.func @decode
// CHECK: %[[NEXT:.*]] = model.parameter @packed :
// CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}, %{{.*}}, %[[NEXT]])
// CHECK: %[[NEXT1:.*]] = model.parameter @packed.1 :
// CHECK: plan.dispatch @kernels::@matvec_0(%{{.*}}, %{{.*}}, %[[NEXT1]])
// NONE: plan.dispatch @kernels::@matvec_0(%{{[^,]*}}, %{{[^,]*}}) launch
func.func @decode(%x: tensor<1x1024xf32>, %w: !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512>) -> (tensor<1x96xf32>, tensor<1x96xf32>) {
  %y = fused.matvec %x weights(%w) segments [96] schedule(#fused.gpu_schedule<blocks = 3, warps = 16, stages = 3, in_flight = 2, columns = 512, splits = 1, early = "weights">)
      prefetch(#fused.prefetch<@packed, blocks = 2, stride = 16640, bytes = 16640>)
      : tensor<1x1024xf32>, !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512> -> tensor<1x96xf32>
  %z = fused.matvec %x weights(%w) segments [96] schedule(#fused.gpu_schedule<blocks = 3, warps = 16, stages = 3, in_flight = 2, columns = 512, splits = 1, early = "weights">)
      prefetch(#fused.prefetch<@packed.1, blocks = 2, stride = 16640, bytes = 16640>)
      : tensor<1x1024xf32>, !quantized.tensor<96x1024xi8, group = 128, layout = mma, columns = 512> -> tensor<1x96xf32>
  return %y, %z : tensor<1x96xf32>, tensor<1x96xf32>
}

// After the last copy: all own stages have arrived, and block 2 has nothing to prefetch.
// CHECK-LABEL: llvm.func @matvec_0
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.mbarrier.try_wait.parity
// CHECK: scf.if
// CHECK-COUNT-2: nvvm.cp.async.bulk.prefetch
// CHECK-NOT: nvvm.cp.async.bulk
// CHECK: llvm.return

// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 --canonicalize --cse --split-input-file --verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --split-input-file --convert-fused-to-gpu=target=h200 --gpu-lower-kernels --verify-diagnostics | FileCheck %s --check-prefix=NVVM

// A cluster of four blocks; logits stay in shared memory.

// CHECK-LABEL: func.func @cluster
// CHECK: plan.dispatch @kernels::@sample_0({{.*}}) launch <grid = 4, block = 512, shared = {{[0-9]+}}, cluster = 4, overlap = true> label "sampling"
// CHECK: llvm.func @sample_0(%{{.*}}: !llvm.ptr<1>, %{{.*}}: !llvm.ptr<1>, %{{.*}}: !llvm.ptr<1>)
// CHECK-SAME: nvvm.cluster_dim = array<i32: 4>
// CHECK: nvvm.griddepcontrol wait
// Not from a cache that the head's kernel did not write to.
// CHECK: llvm.load volatile {{.*}} : !llvm.ptr<1> -> f32
// CHECK: llvm.store {{.*}} : f32, !llvm.ptr<3>
// The largest key.
// CHECK: nvvm.shfl.sync bfly
// CHECK: nvvm.mapa
// CHECK: nvvm.cluster.arrive
// CHECK: nvvm.cluster.wait
// Greedy or not.
// CHECK: scf.if
// Top-k, top-p and the draw, 8 bits of a key at a time.
// CHECK: scf.for
// CHECK: scf.while
// CHECK-COUNT-3: llvm.atomicrmw add {{.*}} : !llvm.ptr<3>, i32
// CHECK-COUNT-4: nvvm.mapa
// CHECK: scf.condition
// CHECK: llvm.store {{.*}} : i32, !llvm.ptr<1>

// NVVM-LABEL: llvm.func @sample_0
// NVVM-NOT: llvm.alloca
// NVVM: nvvm.cluster.arrive
// NVVM: llvm.atomicrmw add {{.*}} : !llvm.ptr<3>, i32
func.func @cluster(%logits: tensor<1x8192xf32>, %options: tensor<1x8xi32>) -> tensor<1xi32> {
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 4, warps = 16, stages = 1, in_flight = 1, columns = 2048, splits = 4, early = "none">)
      : tensor<1x8192xf32>, tensor<1x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// -----

func.func @warps(%logits: tensor<1x8192xf32>, %options: tensor<1x8xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{warps = 4, stages = 1, in_flight = 1, columns = 2048, splits = 4, early = "none">: warps must be at least 8}}
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 4, warps = 4, stages = 1, in_flight = 1, columns = 2048, splits = 4, early = "none">)
      : tensor<1x8192xf32>, tensor<1x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// -----

func.func @splits(%logits: tensor<1x8192xf32>, %options: tensor<1x8xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{splits = 16, early = "none">: a cluster has 1 to 8 blocks}}
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 16, warps = 16, stages = 1, in_flight = 1, columns = 512, splits = 16, early = "none">)
      : tensor<1x8192xf32>, tensor<1x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// -----

func.func @blocks(%logits: tensor<2x8192xf32>, %options: tensor<2x8xi32>) -> tensor<2xi32> {
  // expected-error @+1 {{splits = 4, early = "none">: 2 rows need 8 blocks}}
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 4, warps = 16, stages = 1, in_flight = 1, columns = 2048, splits = 4, early = "none">)
      : tensor<2x8192xf32>, tensor<2x8xi32> -> tensor<2xi32>
  return %next : tensor<2xi32>
}

// -----

func.func @many(%logits: tensor<1x300000xf32>, %options: tensor<1x8xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{a block has 300000 tokens, at most 262144 can be added up}}
  %next = fused.sample %logits, %options schedule(#fused.gpu_schedule<blocks = 1, warps = 16, stages = 1, in_flight = 1, columns = 300000, splits = 1, early = "none">)
      : tensor<1x300000xf32>, tensor<1x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// RUN: sluice-opt %s --convert-fused-to-gpu=target=h200 --canonicalize --cse --split-input-file | FileCheck %s
// RUN: not sluice-opt %s --convert-fused-to-gpu=target=a100 --canonicalize --cse --split-input-file 2>&1 | FileCheck %s --check-prefix=SM80

// A cluster of two blocks per head; 6 stages of 64 positions per block, a ring of 3 of which 2 groups of 2 warps use 2.

model.cache @cache.k.0 : !quantized.cache<1x768x2x48xf16, layout = mma_keys>
model.cache @cache.v.0 : !quantized.cache<1x768x2x48xf16, layout = mma_values>

// CHECK-LABEL: func.func @clusters
// CHECK: plan.dispatch @kernels::@attention_0(%{{.*}}, %{{.*}}) caches [@cache.k.0, @cache.v.0]
// CHECK-SAME: launch <grid = 4, block = 160, shared = 34696, cluster = 2, overlap = true> label "attention over cache.k.0, cache.v.0"
// SM80: splits = 2, early = "cache">: sm_80 has no clusters, splits must be 1
func.func @clusters(%q: tensor<1x288xf16>, %p: tensor<1xi32>) -> tensor<1x288xf16> {
  %y = fused.attention %q, @cache.k.0, @cache.v.0 at %p scale 0.125
      schedule (#fused.gpu_schedule<blocks = 4, warps = 4, stages = 3, in_flight = 1, columns = 64, splits = 2, early = "cache">)
      : tensor<1x288xf16>, tensor<1xi32> -> tensor<1x288xf16>
  return %y : tensor<1x288xf16>
}

// CHECK: llvm.func @attention_0(%[[Q:.*]]: !llvm.ptr<1>, %[[P:.*]]: !llvm.ptr<1>, %[[K:.*]]: !llvm.ptr<1>, %[[V:.*]]: !llvm.ptr<1>, %[[Y:.*]]: !llvm.ptr<1>)
// CHECK-SAME: nvvm.cluster_dim = array<i32: 2>
// CHECK-SAME: nvvm.maxntid = array<i32: 160>
// CHECK-SAME: nvvm.minctasm = 2

// A full and an empty barrier a stage, which two warps empty.
// CHECK-DAG: %[[ONE:.*]] = arith.constant 1 : i32
// CHECK-DAG: %[[TWO:.*]] = arith.constant 2 : i32
// CHECK: nvvm.mbarrier.init %{{.*}}, %[[ONE]]
// CHECK: nvvm.mbarrier.init %{{.*}}, %[[TWO]]
// CHECK: nvvm.mbarrier.init %{{.*}}, %[[ONE]]
// CHECK: nvvm.mbarrier.init %{{.*}}, %[[TWO]]
// CHECK-NOT: nvvm.mbarrier.init
// CHECK: nvvm.fence.mbarrier.init
// The position is read before the previous kernel has ended, the query after.
// CHECK: llvm.load %[[P]]
// CHECK: nvvm.barrier0
// CHECK-NEXT: nvvm.griddepcontrol launch_dependents
// CHECK-NEXT: nvvm.cluster.arrive {aligned}
// CHECK: nvvm.griddepcontrol wait
// Each warp makes the operands of a query head, all warps read all of them.
// CHECK: llvm.load volatile {{.*}} : !llvm.ptr<1> -> f16
// CHECK: llvm.store {{.*}} : f16, !llvm.ptr<3>
// CHECK: llvm.nvvm.barrier.cta.sync.aligned.count

// A warp's tile: keys of 48 elements are padded to 64, which are 4 operands for 16 positions each; values are 4 operands
// of 16 elements for 16 positions each.
// CHECK: scf.for
// CHECK: nvvm.mbarrier.try_wait.parity
// Values of positions that do not exist are zeroed, in the last tile only.
// CHECK: scf.if
// CHECK: llvm.store {{.*}} : vector<4xi32>, !llvm.ptr<3>
// CHECK-COUNT-8: nvvm.mma.sync
// CHECK-COUNT-3: nvvm.shfl.sync bfly
// CHECK: llvm.intr.exp2
// CHECK-COUNT-2: nvvm.inline_ptx "movmatrix.sync.aligned.m8n8.trans.b16 {$w0}, {$r0};"
// CHECK-COUNT-4: nvvm.mma.sync
// CHECK-COUNT-2: nvvm.inline_ptx "movmatrix.sync.aligned.m8n8.trans.b16 {$w0}, {$r0};"
// CHECK-COUNT-4: nvvm.mma.sync
// CHECK-NOT: nvvm.mma.sync
// CHECK: nvvm.bar.warp.sync
// CHECK: nvvm.mbarrier.arrive

// Stages of earlier steps do not wait for the previous kernel, the last one does.
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.griddepcontrol wait
// CHECK: nvvm.fence.proxy {kind = #nvvm.proxy_kind<async.global>}
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.cp.async.bulk.shared.cluster.global

// The blocks' parts are combined once.
// CHECK: nvvm.barrier0
// CHECK: nvvm.barrier0
// CHECK: nvvm.cluster.wait
// CHECK: nvvm.mapa
// CHECK: llvm.store {{.*}} : f32, !llvm.ptr<7>
// CHECK: nvvm.cluster.arrive
// CHECK-NEXT: nvvm.cluster.wait
// CHECK: arith.divf
// CHECK: llvm.store {{.*}} : f16, !llvm.ptr<1>

// -----

// One block a head and no stage used twice: no barriers for empty stages, no cluster. Two tokens: the oldest position
// of both says which pieces are old.

model.cache @cache.k.0 : !quantized.cache<1x128x2x16xf16, layout = mma_keys>
model.cache @cache.v.0 : !quantized.cache<1x128x2x16xf16, layout = mma_values>

// CHECK-LABEL: func.func @single
// CHECK: launch <grid = 4, block = 160, shared = 16992, cluster = 1, overlap = true>
// CHECK: llvm.func @attention_0
// CHECK-NOT: nvvm.cluster
// CHECK-COUNT-2: nvvm.mbarrier.init
// CHECK-NOT: nvvm.mbarrier.init
// CHECK-COUNT-3: llvm.load {{.*}} : !llvm.ptr<1> -> i32
// CHECK-NOT: nvvm.mbarrier.arrive %
// CHECK-NOT: nvvm.mapa
// CHECK-NOT: nvvm.cluster

// SM80-LABEL: func.func @single
// SM80: launch <grid = 4, block = 160, shared = 16992, cluster = 1, overlap = false>
// SM80: llvm.func @attention_0
// SM80-NOT: griddepcontrol
// SM80: nvvm.mbarrier.test.wait
// SM80: nvvm.cp.async.shared.global
// SM80: nvvm.cp.async.mbarrier.arrive
// SM80-NOT: griddepcontrol
func.func @single(%q: tensor<2x64xf16>, %p: tensor<2xi32>) -> tensor<2x64xf16> {
  %y = fused.attention %q, @cache.k.0, @cache.v.0 at %p scale 0.25
      schedule (#fused.gpu_schedule<blocks = 4, warps = 4, stages = 2, in_flight = 2, columns = 64, splits = 1, early = "cache">)
      : tensor<2x64xf16>, tensor<2xi32> -> tensor<2x64xf16>
  return %y : tensor<2x64xf16>
}

// -----

// Attention appends: all stages are asked for before the previous kernel has ended. Then the copying warp rotates and
// rounds the step's key, rounds its value, and puts both into the newest tile and into the cache.

model.cache @cache.k.0 : !quantized.cache<1x512x2x64xi4, group = head, layout = mma_keys>
model.cache @cache.v.0 : !quantized.cache<1x512x2x64xi8, group = 32, layout = mma_values>

// CHECK-LABEL: func.func @appends
// CHECK: llvm.func @attention_0(%[[Q:.*]]: !llvm.ptr<1>, %[[NEWK:.*]]: !llvm.ptr<1>, %[[NEWV:.*]]: !llvm.ptr<1>, %{{.*}}: !llvm.ptr<1>, %[[K:.*]]: !llvm.ptr<1>, %[[V:.*]]: !llvm.ptr<1>, %{{.*}}: !llvm.ptr<1>)
// The queries are rotated (6 steps for 2 elements a lane, of which one needs no shuffle) and rounded to 16 bits.
// CHECK: nvvm.griddepcontrol wait
// CHECK-COUNT-10: nvvm.shfl.sync bfly
// CHECK: nvvm.redux.sync max
// CHECK: llvm.store {{.*}} : i8, !llvm.ptr<3>
// CHECK: llvm.nvvm.barrier.cta.sync.aligned.count
// Products of nibbles, of bytes of a group of 32, all exact.
// CHECK-COUNT-8: nvvm.mma.sync {{.*}}s8
// CHECK-COUNT-8: nvvm.mma.sync {{.*}}s8
// CHECK-NOT: nvvm.mma.sync
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK-NOT: nvvm.cp.async.bulk
// CHECK: nvvm.griddepcontrol wait
// CHECK: llvm.load volatile
// CHECK: nvvm.redux.sync max
// CHECK: nvvm.redux.sync max
// CHECK: nvvm.redux.sync max
// CHECK: nvvm.mbarrier.try_wait.parity
// CHECK: llvm.store {{.*}} : i8, !llvm.ptr<3>
// CHECK: llvm.store {{.*}} : f16, !llvm.ptr<3>
// CHECK: nvvm.mbarrier.arrive
// CHECK: llvm.store {{.*}} : i8, !llvm.ptr<1>
// CHECK: llvm.store {{.*}} : f16, !llvm.ptr<1>
// SM80-LABEL: func.func @appends
func.func @appends(%q: tensor<1x256xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %p: tensor<1xi32>) -> tensor<1x256xf16> {
  %y = fused.attention %q new(%k, %v), @cache.k.0, @cache.v.0 at %p scale 0.125
      schedule (#fused.gpu_schedule<blocks = 2, warps = 4, stages = 4, in_flight = 4, columns = 64, splits = 1, early = "cache">)
      : tensor<1x256xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x256xf16>
  prologue {
  ^bb0(%q0: tensor<1x256xf32>, %k0: tensor<1x128xf32>, %v0: tensor<1x128xf32>):
    %q1 = model.hadamard %q0 head_dim 64 : tensor<1x256xf32>
    %k1 = model.hadamard %k0 head_dim 64 : tensor<1x128xf32>
    model.cache_append @cache.k.0, %k1 at %p : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v.0, %v0 at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %q1 : tensor<1x256xf32>
  }
  return %y : tensor<1x256xf16>
}

// -----

// Norms of q and k, then rotary embedding. Gains, cosines and sines are loaded before the previous kernel has ended; a lane has both
// elements of a pair, so only the sum of squares goes over the warp.

model.cache @cache.k.0 : !quantized.cache<1x512x2x64xf16, layout = mma_keys>
model.cache @cache.v.0 : !quantized.cache<1x512x2x64xf16, layout = mma_values>
model.weight @q_norm : tensor<64xf32>
model.weight @k_norm : tensor<64xf32>
model.rope_table @rope <theta = 10000.0> : tensor<512x64xf32>

// CHECK-LABEL: func.func @norms
// CHECK: llvm.func @attention_0
// The queries: 2 elements of the gain, a cosine and a sine.
// CHECK: nvvm.griddepcontrol launch_dependents
// CHECK-COUNT-4: llvm.load %{{.*}} : !llvm.ptr<1> -> f32
// CHECK-NOT: llvm.load
// CHECK: nvvm.griddepcontrol wait
// CHECK-COUNT-2: llvm.load volatile
// CHECK-COUNT-5: nvvm.shfl.sync bfly
// CHECK-NOT: nvvm.shfl
// CHECK: llvm.store {{.*}} : f16, !llvm.ptr<3>
// CHECK: llvm.nvvm.barrier.cta.sync.aligned.count
// The copying warp: the key's, then key and value.
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: nvvm.cp.async.bulk.shared.cluster.global
// CHECK: llvm.load %{{.*}} : !llvm.ptr<1> -> f32
// CHECK: nvvm.griddepcontrol wait
// CHECK-COUNT-4: llvm.load volatile
// CHECK-COUNT-5: nvvm.shfl.sync bfly
// CHECK-NOT: nvvm.shfl
// CHECK: nvvm.mbarrier.try_wait.parity
// CHECK: llvm.store {{.*}} : i16, !llvm.ptr<3>
// CHECK: nvvm.mbarrier.arrive
// CHECK: llvm.store {{.*}} : i16, !llvm.ptr<1>
func.func @norms(%q: tensor<1x256xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %p: tensor<1xi32>) -> tensor<1x256xf16> {
  %qg = model.parameter @q_norm : tensor<64xf32>
  %kg = model.parameter @k_norm : tensor<64xf32>
  %t = model.parameter @rope : tensor<512x64xf32>
  %y = fused.attention %q new(%k, %v), @cache.k.0, @cache.v.0 at %p scale 0.125
      schedule (#fused.gpu_schedule<blocks = 2, warps = 4, stages = 4, in_flight = 4, columns = 64, splits = 1, early = "cache">)
      : tensor<1x256xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x256xf16>
  prologue {
  ^bb0(%q0: tensor<1x256xf32>, %k0: tensor<1x128xf32>, %v0: tensor<1x128xf32>):
    %q1 = model.rms_norm %q0, %qg epsilon 1.0e-6 head_dim 64 : tensor<1x256xf32>, tensor<64xf32>
    %q2 = model.rotary %q1 at %p head_dim 64 <theta = 10000.0> table %t : tensor<1x256xf32>, tensor<1xi32>, tensor<512x64xf32>
    %k1 = model.rms_norm %k0, %kg epsilon 1.0e-6 head_dim 64 : tensor<1x128xf32>, tensor<64xf32>
    %k2 = model.rotary %k1 at %p head_dim 64 <theta = 10000.0> table %t : tensor<1x128xf32>, tensor<1xi32>, tensor<512x64xf32>
    model.cache_append @cache.k.0, %k2 at %p : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v.0, %v0 at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %q2 : tensor<1x256xf32>
  }
  return %y : tensor<1x256xf16>
}

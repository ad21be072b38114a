// Schedules of what a prompt's tokens go through on a GPU, apart from products.
// RUN: sluice-opt %s --fused-assign-schedules=target=h200 | FileCheck %s
// RUN: sluice-opt %s --fused-assign-schedules=target=h200 --convert-fused-to-gpu=target=h200 | FileCheck %s --check-prefix=LAUNCH
// RUN: sluice-opt %s --fused-assign-schedules=target=a100 | FileCheck %s --check-prefix=SM80

model.cache @k : !quantized.cache<1x8192x8x128xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x8192x8x128xf16, layout = mma_values>
model.cache @ki : !quantized.cache<1x8192x2x64xi8, group = head, layout = mma_keys>
model.cache @vi : !quantized.cache<1x8192x2x64xi4, group = head, layout = mma_values>

// Few tokens: positions are divided until there is a block for most multiprocessors.
// CHECK-LABEL: func.func @few
// SM80-LABEL: func.func @few
func.func @few(%q: tensor<16x4096xf32>, %p: tensor<16xi32>, %n: tensor<1xi32>) -> tensor<16x4096xf16> {
  // CHECK: fused.attention {{.*}}schedule(#fused.gpu_schedule<blocks = 64, warps = 4, stages = 4, in_flight = 4, columns = 32, splits = 8, early = "cache">) {sluice.schedule_reason = "16 tokens a block of 4 query heads, positions in 8 parts; a ring of 4 x 16384 bytes"
  // LAUNCH: plan.dispatch @kernels::@attention_0{{.*}}grid = 64, block = 128, shared = {{[0-9]+}}, cluster = 8, overlap = true
  // SM80: fused.attention {{.*}}<blocks = 8, warps = 4, stages = 4, in_flight = 4, columns = 32, splits = 1
  %y = fused.attention %q, @k, @v at %p scale 0.125 active(%n) : tensor<16x4096xf32>, tensor<16xi32> -> tensor<16x4096xf16>
  return %y : tensor<16x4096xf16>
}

// CHECK-LABEL: func.func @many
func.func @many(%q: tensor<512x4096xf32>, %p: tensor<512xi32>, %n: tensor<1xi32>) -> tensor<512x4096xf16> {
  // CHECK: fused.attention {{.*}}<blocks = 256, warps = 4, stages = 4, in_flight = 4, columns = 32, splits = 1
  %y = fused.attention %q, @k, @v at %p scale 0.125 active(%n) : tensor<512x4096xf32>, tensor<512xi32> -> tensor<512x4096xf16>
  return %y : tensor<512x4096xf16>
}

// A query head a key/value head: four tiles of 16 tokens a block. Integer values need blocks of 64 positions.
// CHECK-LABEL: func.func @append
func.func @append(%q: tensor<64x128xf32>, %k: tensor<64x128xf32>, %v: tensor<64x128xf32>, %p: tensor<64xi32>, %n: tensor<1xi32>) -> tensor<1x128xf16> {
  // CHECK: fused.append {{.*}}schedule(#fused.gpu_schedule<blocks = 128, warps = 3, stages = 1, in_flight = 1, columns = 64, splits = 1, early = "none">) {sluice.schedule_reason = "3 heads of a token in a block"
  // LAUNCH: plan.dispatch @kernels::@append_0{{.*}}grid = 128, block = 96
  %q1 = fused.append %q new(%k, %v), @ki, @vi at %p active(%n)
      : tensor<64x128xf32> new(tensor<64x128xf32>, tensor<64x128xf32>), tensor<64xi32> -> tensor<64x128xf32>
  prologue {
  ^bb0(%q0: tensor<64x128xf32>, %k0: tensor<64x128xf32>, %v0: tensor<64x128xf32>):
    model.cache_append @ki, %k0 at %p : tensor<64x128xf32>, tensor<64xi32>
    model.cache_append @vi, %v0 at %p : tensor<64x128xf32>, tensor<64xi32>
    fused.yield %q0 : tensor<64x128xf32>
  }
  // CHECK: fused.attention {{.*}}<blocks = 16, warps = 4, stages = 4, in_flight = 4, columns = 64, splits = 8{{.*}}64 tokens a block of 1 query heads
  %y = fused.attention %q1, @ki, @vi at %p scale 0.125 active(%n) : tensor<64x128xf32>, tensor<64xi32> -> tensor<64x128xf16>
  // CHECK: fused.last_row {{.*}}<blocks = 1, warps = 8,
  // LAUNCH: plan.dispatch @kernels::@last_row_0
  %z = fused.last_row %y active(%n) : tensor<64x128xf16> -> tensor<1x128xf16>
  return %z : tensor<1x128xf16>
}

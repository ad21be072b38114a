// RUN: sluice-opt %s --fused-fuse-attention-prologues | FileCheck %s

model.cache @k : !quantized.cache<1x64x2x64xi8, group = head>
model.cache @v : !quantized.cache<1x64x2x64xi4, group = 32>

// Rotations and roundings of the new rows, and both appends, become the prologue.
// CHECK-LABEL: @append
// CHECK-NEXT: %[[Y:.*]] = fused.attention %arg0 new(%arg1, %arg2), @k, @v at %arg3 scale 1.250000e-01 window 32
// CHECK-SAME: prologue {
// CHECK-NEXT: ^bb0(%[[Q:.*]]: tensor<1x128xf32>, %[[K:.*]]: tensor<1x128xf32>, %[[V:.*]]: tensor<1x128xf32>):
// CHECK-NEXT: %[[Q1:.*]] = model.hadamard %[[Q]] head_dim 64
// CHECK-NEXT: %[[K1:.*]] = model.hadamard %[[K]] head_dim 64
// CHECK-NEXT: model.cache_append @k, %[[K1]] at %arg3
// CHECK-NEXT: model.cache_append @v, %[[V]] at %arg3
// CHECK-NEXT: fused.yield %[[Q1]]
// CHECK: return %[[Y]]
func.func @append(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %position: tensor<1xi32>) -> tensor<1x128xf16> {
  %k1 = model.hadamard %k head_dim 64 : tensor<1x128xf32>
  model.cache_append @k, %k1 at %position : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v, %v at %position : tensor<1x128xf32>, tensor<1xi32>
  %q1 = model.hadamard %q head_dim 64 : tensor<1x128xf32>
  %y = fused.attention %q1, @k, @v at %position scale 0.125 window 32 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  return %y : tensor<1x128xf16>
}

// What something else reads is computed outside.
// CHECK-LABEL: @shared
// CHECK: %[[Q1:.*]] = model.hadamard
// CHECK-NEXT: fused.attention %[[Q1]] new(%arg1, %arg2)
func.func @shared(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %position: tensor<1xi32>) -> (tensor<1x128xf16>, tensor<1x128xf32>) {
  model.cache_append @k, %k at %position : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v, %v at %position : tensor<1x128xf32>, tensor<1xi32>
  %q1 = model.hadamard %q head_dim 64 : tensor<1x128xf32>
  %y = fused.attention %q1, @k, @v at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  return %y, %q1 : tensor<1x128xf16>, tensor<1x128xf32>
}

// Appended elsewhere, as in a product's epilogue, or only one of the two: left alone.
// CHECK-LABEL: @elsewhere
// CHECK-NOT: new
// CHECK: return
func.func @elsewhere(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %position: tensor<1xi32>) -> (tensor<1x128xf16>, tensor<1x128xf16>) {
  %x = fused.attention %q, @k, @v at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  model.cache_append @k, %k at %position : tensor<1x128xf32>, tensor<1xi32>
  %y = fused.attention %q, @k, @v at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32> -> tensor<1x128xf16>
  return %x, %y : tensor<1x128xf16>, tensor<1x128xf16>
}

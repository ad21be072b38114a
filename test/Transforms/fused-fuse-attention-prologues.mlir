// RUN: sluice-opt %s --fused-fuse-attention-prologues | FileCheck %s

model.cache @k : !quantized.cache<1x64x2x64xi8, group = head>
model.cache @v : !quantized.cache<1x64x2x64xi4, group = 32>
model.cache @kf : !quantized.cache<1x64x2x64xf16>
model.cache @vf : !quantized.cache<1x64x2x64xf16>

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

// Norms of heads with a gain from outside, rotary embedding and the query's rounding go in; a norm of whole rows does not.
// CHECK-LABEL: @norms
// CHECK-NEXT: %[[V1:.*]] = model.rms_norm %arg2
// CHECK-NEXT: fused.attention %arg0 new(%arg1, %[[V1]]), @kf, @vf
// CHECK-SAME: {test.kept = "yes"}
// CHECK-SAME: tensor<1x128xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x128xf16> prologue {
// CHECK-NEXT: ^bb0(%[[Q:.*]]: tensor<1x128xf32>, %[[K:.*]]: tensor<1x128xf32>, %[[V:.*]]: tensor<1x128xf32>):
// CHECK-NEXT: %[[Q1:.*]] = model.rms_norm %[[Q]], %arg4 epsilon 1.000000e-05 head_dim 64
// CHECK-NEXT: %[[Q2:.*]] = model.rotary %[[Q1]] at %arg3 head_dim 64
// CHECK-NEXT: %[[Q3:.*]] = arith.truncf %[[Q2]]
// CHECK-NEXT: %[[K1:.*]] = model.rms_norm %[[K]], %arg4 epsilon 1.000000e-05 head_dim 64
// CHECK-NEXT: %[[K2:.*]] = model.rotary %[[K1]] at %arg3 head_dim 64 interleaved
// CHECK-NEXT: model.cache_append @kf, %[[K2]] at %arg3
// CHECK-NEXT: model.cache_append @vf, %[[V]] at %arg3
// CHECK-NEXT: fused.yield %[[Q3]] : tensor<1x128xf16>
func.func @norms(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %position: tensor<1xi32>, %g: tensor<64xf16>, %rows: tensor<128xf16>) -> tensor<1x128xf16> {
  %q1 = model.rms_norm %q, %g epsilon 1.0e-5 head_dim 64 : tensor<1x128xf32>, tensor<64xf16>
  %k1 = model.rms_norm %k, %g epsilon 1.0e-5 head_dim 64 : tensor<1x128xf32>, tensor<64xf16>
  %v1 = model.rms_norm %v, %rows epsilon 1.0e-5 : tensor<1x128xf32>, tensor<128xf16>
  %q2 = model.rotary %q1 at %position head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  %k2 = model.rotary %k1 at %position head_dim 64 interleaved <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @kf, %k2 at %position : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @vf, %v1 at %position : tensor<1x128xf32>, tensor<1xi32>
  %q3 = arith.truncf %q2 : tensor<1x128xf32> to tensor<1x128xf16>
  %y = fused.attention %q3, @kf, @vf at %position scale 0.125 {test.kept = "yes"} : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
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

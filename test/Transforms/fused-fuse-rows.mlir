// RUN: sluice-opt %s --fused-fuse-rows | FileCheck %s
// RUN: sluice-opt %s --fused-fuse-rows --fused-fuse-rows | FileCheck %s

model.cache @k : !quantized.cache<1x64x2x64xf16>
model.cache @k8 : !quantized.cache<1x64x2x64xi8, group = head>

// A norm of a result, and the residual that it becomes a part of.
// CHECK-LABEL: @post_norm
// CHECK-NEXT: %[[H:.*]] = fused.rows -> tensor<1x256xf32> body {
// CHECK-NEXT: %[[N:.*]] = model.rms_norm %arg1, %arg2
// CHECK-NEXT: %[[S:.*]] = arith.addf %arg0, %[[N]]
// CHECK-NEXT: fused.yield %[[S]]
// CHECK-NEXT: }
// CHECK-NEXT: return %[[H]]
func.func @post_norm(%x: tensor<1x256xf32>, %o: tensor<1x256xf32>, %gain: tensor<256xf32>) -> tensor<1x256xf32> {
  %n = model.rms_norm %o, %gain epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf32>
  %s = arith.addf %x, %n : tensor<1x256xf32>
  return %s : tensor<1x256xf32>
}

// A query and a key that are normalised as whole rows are rotated, rounded and stored on the way.
// CHECK-LABEL: @query_and_key
// CHECK: %[[Q:.*]] = fused.rows -> tensor<1x128xf16> body {
// CHECK-NEXT: model.rms_norm %arg0
// CHECK-NEXT: model.rotary
// CHECK-NEXT: arith.truncf
// CHECK: fused.rows body {
// CHECK-NEXT: model.rms_norm %arg1
// CHECK-NEXT: model.rotary
// CHECK-NEXT: model.cache_append @k
// CHECK-NEXT: fused.yield{{$}}
// CHECK: return %[[Q]]
func.func @query_and_key(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %gain: tensor<128xf32>, %p: tensor<1xi32>) -> tensor<1x128xf16> {
  %a = model.rms_norm %q, %gain epsilon 1.0e-6 : tensor<1x128xf32>, tensor<128xf32>
  %b = model.rms_norm %k, %gain epsilon 1.0e-6 : tensor<1x128xf32>, tensor<128xf32>
  %c = model.rotary %a at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  %d = model.rotary %b at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @k, %d at %p : tensor<1x128xf32>, tensor<1xi32>
  %e = arith.truncf %c : tensor<1x128xf32> to tensor<1x128xf16>
  return %e : tensor<1x128xf16>
}

// A cache of integers is appended by attention, and a rotation alone belongs to it, too.
// CHECK-LABEL: @left
// CHECK-NEXT: %[[N:.*]] = fused.rows -> tensor<1x128xf32> body {
// CHECK: }
// CHECK-NEXT: model.cache_append @k8, %[[N]]
// CHECK-NEXT: %[[R:.*]] = model.rotary %arg0
// CHECK-NEXT: return %[[R]]
func.func @left(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %gain: tensor<128xf32>, %p: tensor<1xi32>) -> tensor<1x128xf32> {
  %n = model.layer_norm %k, %gain epsilon 1.0e-6 : tensor<1x128xf32>, tensor<128xf32>
  model.cache_append @k8, %n at %p : tensor<1x128xf32>, tensor<1xi32>
  %r = model.rotary %q at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  return %r : tensor<1x128xf32>
}

// What comes after another operand of its own begins a kernel of its own.
// CHECK-LABEL: @two
// CHECK: %[[A:.*]] = fused.rows -> tensor<1x256xf32> body {
// CHECK-NEXT: model.scale
// CHECK: %[[M:.*]] = fused.matvec %[[A]]
// CHECK: %[[B:.*]] = fused.rows -> tensor<1x256xf32> body {
// CHECK-NEXT: arith.addf %[[A]], %[[M]]
// CHECK: return %[[B]]
func.func @two(%x: tensor<1x256xf32>, %w: tensor<256x256xf16>) -> tensor<1x256xf32> {
  %a = model.scale %x by 16.0 : tensor<1x256xf32>
  %m = fused.matvec %a weights(%w) segments [256] : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %b = arith.addf %a, %m : tensor<1x256xf32>
  return %b : tensor<1x256xf32>
}

// RUN: sluice-opt %s --fused-fuse-epilogues --remarks-filter=fused-fuse-epilogues -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-fuse-epilogues --fused-fuse-epilogues | FileCheck %s

model.cache @k : !quantized.cache<1x16x2x64xf16>
model.cache @v : !quantized.cache<1x16x2x64xf16>
model.cache @k8 : !quantized.cache<1x16x2x64xi8, group = head>
model.cache @v16 : !quantized.cache<1x16x2x64xf16>
model.cache @kr : !quantized.cache<1x16x2x64xf16>
model.cache @vr : !quantized.cache<1x16x2x64xf16>
model.weight @bias : tensor<256xf16>

// Only q leaves the kernel; the bias is named after the product, but is a weight.
// CHECK-LABEL: func.func @qkv
func.func @qkv(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %q: tensor<256x256xf16>, %kv: tensor<128x256xf16>) -> tensor<1x256xf16> {
  // CHECK-NEXT: %[[B:.*]] = model.parameter @bias
  // CHECK-NEXT: %[[Y:.*]] = fused.matvec {{.*}} segments [256, 128, 128] {{.*}} -> tensor<1x256xf16> epilogue {
  // CHECK-NEXT: ^bb0(%[[Q:.*]]: tensor<1x256xf32>, %[[K:.*]]: tensor<1x128xf32>, %[[V:.*]]: tensor<1x128xf32>):
  // CHECK-NEXT: %[[Q1:.*]] = model.add_bias %[[Q]], %[[B]]
  // CHECK-NEXT: %[[Q2:.*]] = model.rotary %[[Q1]] at %arg1
  // CHECK-NEXT: %[[K1:.*]] = model.rotary %[[K]] at %arg1
  // CHECK-NEXT: model.cache_append @k, %[[K1]] at %arg1
  // CHECK-NEXT: model.cache_append @v, %[[V]] at %arg1
  // CHECK-NEXT: %[[Q3:.*]] = arith.truncf %[[Q2]]
  // CHECK-NEXT: fused.yield %[[Q3]] : tensor<1x256xf16>
  // CHECK-NEXT: }
  // CHECK-NEXT: fused.attention %[[Y]]
  %a:3 = fused.matvec %x weights(%q, %kv, %kv) segments [256, 128, 128]
      : tensor<1x256xf32>, tensor<256x256xf16>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  %bias = model.parameter @bias : tensor<256xf16>
  %b = model.add_bias %a#0, %bias : tensor<1x256xf32>, tensor<256xf16>
  %c = model.rotary %b at %p head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  %d = model.rotary %a#1 at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @k, %d at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v, %a#2 at %p : tensor<1x128xf32>, tensor<1xi32>
  %e = arith.truncf %c : tensor<1x256xf32> to tensor<1x256xf16>
  %f = fused.attention %e, @k, @v at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %f : tensor<1x256xf16>
}

// Keys that are rounded by heads are appended in attention's prologue, and so their values are.
// CHECK-LABEL: func.func @quantized_keys
// CHECK: %[[Y:.*]]:2 = fused.matvec
// CHECK-NOT: epilogue
// CHECK: model.cache_append @k8, %[[Y]]#0
// CHECK: model.cache_append @v16, %[[Y]]#1
func.func @quantized_keys(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %q: tensor<1x256xf16>, %kv: tensor<128x256xf16>) -> tensor<1x256xf16> {
  %a:2 = fused.matvec %x weights(%kv, %kv) segments [128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>
  model.cache_append @k8, %a#0 at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v16, %a#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  %f = fused.attention %q, @k8, @v16 at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %f : tensor<1x256xf16>
}

// The same of keys that are rotated.
// CHECK-LABEL: func.func @rotated_keys
// CHECK: %[[Y:.*]]:2 = fused.matvec
// CHECK-NOT: epilogue
// CHECK: model.cache_append @kr
// CHECK: model.cache_append @vr, %[[Y]]#1
func.func @rotated_keys(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %q: tensor<1x256xf16>, %kv: tensor<128x256xf16>) -> tensor<1x256xf16> {
  %a:2 = fused.matvec %x weights(%kv, %kv) segments [128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>
  %r = model.hadamard %a#0 head_dim 64 : tensor<1x128xf32>
  model.cache_append @kr, %r at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @vr, %a#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  %f = fused.attention %q, @kr, @vr at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %f : tensor<1x256xf16>
}

// Values that others read leave the kernel too; nothing has to leave it.
// CHECK-LABEL: func.func @yields
func.func @yields(%x: tensor<2x256xf32>, %p: tensor<2xi32>, %w: tensor<128x256xf16>) -> (tensor<2x128xf32>, tensor<2x128xf32>) {
  // CHECK: %[[Y:.*]]:2 = fused.matvec {{.*}} -> tensor<2x128xf32>, tensor<2x128xf32> epilogue
  // CHECK: fused.yield %[[S:.*]], %{{.*}} : tensor<2x128xf32>, tensor<2x128xf32>
  // CHECK: fused.matvec {{.*}} : tensor<2x256xf32>, tensor<128x256xf16> epilogue
  // CHECK: fused.yield{{$}}
  // CHECK: return %[[Y]]#1, %[[Y]]#0
  %y = fused.matvec %x weights(%w) segments [128] : tensor<2x256xf32>, tensor<128x256xf16> -> tensor<2x128xf32>
  %s = model.silu %y : tensor<2x128xf32>
  %k = fused.matvec %x weights(%w) segments [128] : tensor<2x256xf32>, tensor<128x256xf16> -> tensor<2x128xf32>
  model.cache_append @k, %k at %p : tensor<2x128xf32>, tensor<2xi32>
  return %s, %y : tensor<2x128xf32>, tensor<2x128xf32>
}

// A sum of two products belongs to the later one, which knows the other.
// CHECK-LABEL: func.func @later
func.func @later(%x: tensor<1x256xf32>, %w: tensor<256x256xf16>) -> tensor<1x256xf32> {
  // CHECK-NEXT: %[[Y:.*]] = fused.matvec {{.*}} -> tensor<1x256xf32>{{$}}
  // CHECK-NEXT: %[[Z:.*]] = fused.matvec {{.*}} epilogue
  // CHECK-NEXT: ^bb0(%[[A:.*]]: tensor<1x256xf32>):
  // CHECK-NEXT: arith.addf %[[Y]], %[[A]]
  // CHECK: return %[[Z]]
  %y = fused.matvec %x weights(%w) segments [256] : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %z = fused.matvec %x weights(%w) segments [256] : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  // expected-remark @+1 {{another operand is computed after the product}}
  %s = arith.addf %y, %z : tensor<1x256xf32>
  return %s : tensor<1x256xf32>
}

// The store may not overtake attention over the same cache; one to another cache may.
// CHECK-LABEL: func.func @order
func.func @order(%x: tensor<1x256xf32>, %q: tensor<1x256xf16>, %p: tensor<1xi32>, %w: tensor<128x256xf16>) -> tensor<1x256xf16> {
  // CHECK: %[[Y:.*]] = fused.matvec {{.*}} -> tensor<1x128xf32> epilogue
  // CHECK: model.cache_append @v
  // CHECK: %[[A:.*]] = fused.attention
  // CHECK: model.cache_append @k, %[[Y]]
  %y:2 = fused.matvec %x weights(%w, %w) segments [128, 128]
      : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128x256xf16> -> tensor<1x128xf32>, tensor<1x128xf32>
  %a = fused.attention %q, @k, @k at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  // expected-remark @+1 {{something between the product and the store may use the same cache}}
  model.cache_append @k, %y#0 at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @v, %y#1 at %p : tensor<1x128xf32>, tensor<1xi32>
  return %a : tensor<1x256xf16>
}

// An unknown call may use any cache; a norm needs the whole row.
// CHECK-LABEL: func.func @kept
func.func @kept(%x: tensor<1x256xf32>, %p: tensor<1xi32>, %g: tensor<128xf16>, %w: tensor<128x256xf16>) -> (tensor<1x128xf32>, tensor<1x128xbf16>) {
  // CHECK-NEXT: fused.matvec {{.*}} -> tensor<1x128xf32>, tensor<1x128xbf16> epilogue
  // CHECK: call @unknown
  // CHECK-NEXT: model.cache_append
  // CHECK-NEXT: model.rms_norm
  // CHECK-NEXT: return
  %y = fused.matvec %x weights(%w) segments [128] : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  call @unknown() : () -> ()
  // expected-remark @+1 {{something between the product and the store may use the same cache}}
  model.cache_append @k, %y at %p : tensor<1x128xf32>, tensor<1xi32>
  %n = model.rms_norm %y, %g epsilon 1.0e-5 : tensor<1x128xf32>, tensor<128xf16>
  %b = arith.truncf %y : tensor<1x128xf32> to tensor<1x128xbf16>
  return %n, %b : tensor<1x128xf32>, tensor<1x128xbf16>
}
func.func private @unknown()

// Arithmetic in half precision is not an epilogue's.
// CHECK-LABEL: func.func @half
func.func @half(%x: tensor<1x256xf32>, %h: tensor<1x128xf16>, %w: tensor<128x256xf16>) -> tensor<1x128xf16> {
  // CHECK: fused.matvec {{.*}} -> tensor<1x128xf16> epilogue
  // CHECK: }
  // CHECK-NEXT: arith.addf
  %y = fused.matvec %x weights(%w) segments [128] : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  %t = arith.truncf %y : tensor<1x128xf32> to tensor<1x128xf16>
  %s = arith.addf %t, %h : tensor<1x128xf16>
  return %s : tensor<1x128xf16>
}

// Activations, multipliers and caps of other families.
// CHECK-LABEL: func.func @element_operations
// CHECK: epilogue {
// CHECK: model.gelu {{.*}} tanh
// CHECK: model.scale {{.*}} by
// CHECK: model.soft_cap {{.*}} at
// CHECK: fused.yield
func.func @element_operations(%x: tensor<1x256xf32>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  %y = fused.matvec %x weights(%w) segments [8] : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  %a = model.gelu %y tanh : tensor<1x8xf32>
  %b = model.scale %a by 0.5 : tensor<1x8xf32>
  %c = model.soft_cap %b at 30.0 : tensor<1x8xf32>
  return %c : tensor<1x8xf32>
}

// RUN: sluice-opt %s --fused-fuse-dequantize --remarks-filter=fused-fuse-dequantize -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --fused-fuse-dequantize --fused-fuse-dequantize | FileCheck %s

model.cache @k : !quantized.cache<1x16x2x64xf16>
model.cache @v : !quantized.cache<1x16x2x64xf16>

// CHECK-LABEL: func.func @layers
func.func @layers(%t: tensor<2xi32>, %q: !quantized.tensor<256x256xi8, group = 32, layout = blocks>, %b: tensor<256xf16>) -> tensor<2x256xf32> {
  // CHECK-NEXT: %[[X:.*]] = fused.embedding %{{.*}}, %[[Q:arg1]] : tensor<2xi32>, !quantized.tensor<256x256xi8, group = 32, layout = blocks> -> tensor<2x256xf32>
  // CHECK-NEXT: %[[Y:.*]] = fused.matvec %[[X]] weights(%[[Q]]) segments [256] : tensor<2x256xf32>, !quantized.tensor<256x256xi8, group = 32, layout = blocks> -> tensor<2x256xf32>
  // CHECK-NEXT: model.add_bias %[[Y]], %{{.*}} : tensor<2x256xf32>, tensor<256xf16>
  // CHECK-NEXT: return
  %w = quantized.dequantize %q : !quantized.tensor<256x256xi8, group = 32, layout = blocks> to tensor<256x256xf32>
  %x = model.embedding %t, %w : tensor<2xi32>, tensor<256x256xf32> -> tensor<2x256xf32>
  %y = model.linear %x, %w bias %b : tensor<2x256xf32>, tensor<256x256xf32>, tensor<256xf16> -> tensor<2x256xf32>
  return %y : tensor<2x256xf32>
}

// Layers read attention's f16 result; others its value in float32.
// CHECK-LABEL: func.func @attention
func.func @attention(%q: tensor<1x256xf32>, %p: tensor<1xi32>, %w: tensor<256x256xf16>) -> (tensor<1x256xf32>, tensor<1x256xf32>) {
  // CHECK-NEXT: %[[H:.*]] = arith.truncf %{{.*}} : tensor<1x256xf32> to tensor<1x256xf16>
  // CHECK-NEXT: %[[A:.*]] = fused.attention %[[H]], @k, @v at %{{.*}} scale 1.250000e-01 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  // CHECK-NEXT: %[[E:.*]] = arith.extf %[[A]]
  // CHECK-NEXT: %[[Y:.*]] = fused.matvec %[[A]] weights(%{{.*}}) segments [256] : tensor<1x256xf16>, tensor<256x256xf16> -> tensor<1x256xf32>
  // CHECK-NEXT: return %[[E]], %[[Y]]
  %a = model.attention %q, @k, @v at %p scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  %y = model.linear %a, %w : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  return %a, %y : tensor<1x256xf32>, tensor<1x256xf32>
}

// What products alone read is stored as they read it, whatever computes it, once for all of them.
// CHECK-LABEL: func.func @stored
func.func @stored(%g: tensor<1x256xf32>, %w: tensor<8x256xf16>, %b: tensor<8x256xbf16>) -> (tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK: %[[M:.*]] = arith.mulf
  // CHECK-NEXT: %[[H:.*]] = arith.truncf %[[M]] : tensor<1x256xf32> to tensor<1x256xf16>
  // CHECK-NEXT: fused.matvec %[[H]]
  // CHECK-NEXT: fused.matvec %[[H]]
  // CHECK-NEXT: %[[S:.*]] = model.silu
  // CHECK-NEXT: %[[B:.*]] = arith.truncf %[[S]] : tensor<1x256xf32> to tensor<1x256xbf16>
  // CHECK-NEXT: fused.matvec %[[B]]
  %m = arith.mulf %g, %g : tensor<1x256xf32>
  %x = model.linear %m, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  %y = model.linear %m, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  %s = model.silu %g : tensor<1x256xf32>
  %z = model.linear %s, %b : tensor<1x256xf32>, tensor<8x256xbf16> -> tensor<1x8xf32>
  return %x, %y, %z : tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>
}

// Integer weights of a file do not say what they were made of and read float32, which f16 could not hold; so do float32 weights, readers that differ, and others than products.
// CHECK-LABEL: func.func @wide
// CHECK-NOT: arith.truncf
// CHECK: return
func.func @wide(%g: tensor<1x256xf32>, %w: tensor<8x256xf16>, %b: tensor<8x256xbf16>, %f: tensor<8x256xf32>, %q: !quantized.tensor<8x256xi8, group = 32>)
    -> (tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x256xf32>, tensor<1x8xf32>) {
  %d = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32> to tensor<8x256xf32>
  %i = arith.mulf %g, %g : tensor<1x256xf32>
  %r = model.linear %i, %d : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  %j = arith.mulf %i, %g : tensor<1x256xf32>
  %s = model.linear %j, %f : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  %k = arith.mulf %j, %g : tensor<1x256xf32>
  %t = model.linear %k, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  %u = model.linear %k, %b : tensor<1x256xf32>, tensor<8x256xbf16> -> tensor<1x8xf32>
  %l = arith.addf %k, %g : tensor<1x256xf32>
  %v = model.linear %l, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %r, %s, %t, %u, %l, %v : tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1x256xf32>, tensor<1x8xf32>
}

// Of weights that the compiler makes integers the file's type counts: that is what the model ran in.
// CHECK-LABEL: func.func @quantized
func.func @quantized(%g: tensor<1x256xf32>, %w: tensor<8x256xbf16>) -> tensor<1x8xf32> {
  // CHECK: %[[M:.*]] = arith.mulf
  // CHECK-NEXT: %[[B:.*]] = arith.truncf %[[M]] : tensor<1x256xf32> to tensor<1x256xbf16>
  // CHECK: fused.matvec %[[B]]
  %q = quantized.quantize %w : tensor<8x256xbf16> to !quantized.tensor<8x256xi8, group = 32>
  %d = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32> to tensor<8x256xf32>
  %m = arith.mulf %g, %g : tensor<1x256xf32>
  %y = model.linear %m, %d : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// A norm is computed by each of its readers and stored nowhere.
// CHECK-LABEL: func.func @norm
// CHECK-NOT: arith.truncf
// CHECK: return
func.func @norm(%x: tensor<1x256xf32>, %w: tensor<8x256xf16>, %gain: tensor<256xf16>) -> tensor<1x8xf32> {
  %n = model.rms_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %y = model.linear %n, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// CHECK-LABEL: func.func @left
func.func @left(%x: tensor<1x256xf32>, %q: !quantized.tensor<8x256xi8, group = 32>) -> (tensor<1x8xf32>, tensor<8x256xf32>, tensor<1x8xf32>) {
  // CHECK: %[[D:.*]] = quantized.dequantize
  // CHECK: fused.matvec %{{.*}} weights(%arg1)
  // Rounding the weights to f16 is not what the kernel would compute.
  // CHECK: %[[H:.*]] = quantized.dequantize
  // CHECK: fused.matvec %{{.*}} weights(%[[H]])
  // CHECK: return %{{.*}}, %[[D]]
  // expected-remark @+1 {{'func.return' reads the dequantized weight}}
  %w = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32> to tensor<8x256xf32>
  %y = model.linear %x, %w : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  // expected-remark @+1 {{'fused.matvec' reads the dequantized weight}}
  %h = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32> to tensor<8x256xf16>
  %z = model.linear %x, %h : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y, %w, %z : tensor<1x8xf32>, tensor<8x256xf32>, tensor<1x8xf32>
}

// What is quantized anew is no kernel's work, and no remark's.
// CHECK-LABEL: func.func @anew
func.func @anew(%x: tensor<1x256xf32>, %q: !quantized.tensor<8x256xi8, group = 32>) -> tensor<1x8xf32> {
  // CHECK: %[[D:.*]] = quantized.dequantize
  // CHECK: %[[R:.*]] = quantized.quantize %[[D]]
  // CHECK: fused.matvec %{{.*}} weights(%[[R]])
  %d = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32> to tensor<8x256xf32>
  %r = quantized.quantize %d : tensor<8x256xf32> to !quantized.tensor<8x256xi4, group = 64>
  %w = quantized.dequantize %r : !quantized.tensor<8x256xi4, group = 64> to tensor<8x256xf32>
  %y = model.linear %x, %w : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// A window stays.
// CHECK-LABEL: func.func @window
func.func @window(%q: tensor<1x256xf32>, %p: tensor<1xi32>) -> tensor<1x256xf32> {
  // CHECK: fused.attention %{{.*}}, @k, @v at %{{.*}} scale 1.250000e-01 window 9 : tensor<1x256xf16>
  %a = model.attention %q, @k, @v at %p scale 0.125 window 9 : tensor<1x256xf32>, tensor<1xi32>
  return %a : tensor<1x256xf32>
}

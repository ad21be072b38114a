// RUN: sluice-opt %s --split-input-file --verify-diagnostics --fused-pack-weights=target=h100 | FileCheck %s

// Weights of different encodings in one product: one is packed after the other, in chunks of as many columns; the rows that rotary
// embedding turns lie side by side.
model.weight @blk.0.attn_q : !quantized.tensor<256x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
model.weight @blk.0.attn_k : !quantized.tensor<128x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
model.weight @blk.0.attn_v : !quantized.tensor<128x4096xi6, group = 16, scale = i8, layout = blocks>
model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
// CHECK: quantized.packed @blk.0.attn_qk of [@blk.0.attn_q, @blk.0.attn_k] order [pairs(0, 64), pairs(1, 64)]
// CHECK-SAME: !quantized.tensor<384x4096xui4, group = 32, scale = u6, offset = field, layout = records, columns = 1024>
// CHECK: quantized.packed @blk.0.attn_v.packed of [@blk.0.attn_v] order [natural(0)]
// CHECK-SAME: !quantized.tensor<128x4096xi6, group = 16, scale = i8, layout = records, columns = 1024>
// CHECK-LABEL: func.func @decode
func.func @decode(%x: tensor<1x4096xf32>, %position: tensor<1xi32>) -> (tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>) {
  %rope = model.parameter @rope : tensor<2048x64xf32>
  %q = model.parameter @blk.0.attn_q : !quantized.tensor<256x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
  %k = model.parameter @blk.0.attn_k : !quantized.tensor<128x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
  %v = model.parameter @blk.0.attn_v : !quantized.tensor<128x4096xi6, group = 16, scale = i8, layout = blocks>
  // CHECK: %[[QK:.*]] = model.parameter @blk.0.attn_qk :
  // CHECK: %[[V:.*]] = model.parameter @blk.0.attn_v.packed :
  // CHECK: fused.matvec %{{.*}} weights(%[[QK]], %[[V]]) segments [256, 128, 128] order [pairs(0, 64), pairs(1, 64), natural(2)]
  %a, %b, %c = fused.matvec %x weights(%q, %k, %v) segments [256, 128, 128]
      : tensor<1x4096xf32>, !quantized.tensor<256x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>, !quantized.tensor<128x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>, !quantized.tensor<128x4096xi6, group = 16, scale = i8, layout = blocks>
      -> tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  epilogue {
  ^bb0(%p: tensor<1x256xf32>, %r: tensor<1x128xf32>, %s: tensor<1x128xf32>):
    %t = model.rotary %p at %position head_dim 64 <theta = 10000.0> table %rope : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
    %u = model.rotary %r at %position head_dim 64 <theta = 10000.0> table %rope : tensor<1x128xf32>, tensor<1xi32>, tensor<2048x64xf32>
    fused.yield %t, %u, %s : tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  }
  return %a, %b, %c : tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>
}

// -----

model.weight @gate : !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
model.weight @up : !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks>
func.func @combined(%x: tensor<1x256xf32>) -> tensor<1x32xf32> {
  %g = model.parameter @gate : !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks>
  %u = model.parameter @up : !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks>
  // expected-error @+1 {{combines rows of weights of different formats, q4_k and q6_k}}
  %y = fused.matvec %x weights(%g, %u) segments [32, 32] : tensor<1x256xf32>, !quantized.tensor<32x256xui4, group = 32, scale = u6, offset = field, layout = blocks>, !quantized.tensor<32x256xi6, group = 16, scale = i8, layout = blocks> -> tensor<1x32xf32>
  epilogue {
  ^bb0(%a: tensor<1x32xf32>, %b: tensor<1x32xf32>):
    %s = model.silu %a : tensor<1x32xf32>
    %m = arith.mulf %s, %b : tensor<1x32xf32>
    fused.yield %m : tensor<1x32xf32>
  }
  return %y : tensor<1x32xf32>
}

// -----

// Several tokens, zero points and rows that records would pad keep layout mma.
model.weight @w : tensor<16x640xf16>
// CHECK: quantized.packed @w.packed {{.*}}xi8, group = 32, layout = mma
// CHECK: quantized.packed @{{.*}} {{.*}}xi8, group = 32, zero_point, layout = mma
// CHECK: quantized.packed @{{.*}} {{.*}}xi4, group = 128, layout = mma
func.func @plain(%x: tensor<1x640xf32>) -> (tensor<1x16xf32>, tensor<1x16xf32>, tensor<1x16xf32>) {
  %w = model.parameter @w : tensor<16x640xf16>
  %a = quantized.quantize %w : tensor<16x640xf16> to !quantized.tensor<16x640xi8, group = 32>
  %b = quantized.quantize %w : tensor<16x640xf16> to !quantized.tensor<16x640xi8, group = 32, zero_point>
  %c = quantized.quantize %w : tensor<16x640xf16> to !quantized.tensor<16x640xi4, group = 128>
  %p = fused.matvec %x weights(%a) segments [16] : tensor<1x640xf32>, !quantized.tensor<16x640xi8, group = 32> -> tensor<1x16xf32>
  %q = fused.matvec %x weights(%b) segments [16] : tensor<1x640xf32>, !quantized.tensor<16x640xi8, group = 32, zero_point> -> tensor<1x16xf32>
  %r = fused.matvec %x weights(%c) segments [16] : tensor<1x640xf32>, !quantized.tensor<16x640xi4, group = 128> -> tensor<1x16xf32>
  return %p, %q, %r : tensor<1x16xf32>, tensor<1x16xf32>, tensor<1x16xf32>
}

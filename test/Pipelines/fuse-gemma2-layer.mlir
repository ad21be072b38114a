// RUN: sluice-opt %s --fused-fuse-dequantize --fused-merge-matvecs --fused-fuse-prologues --fused-fuse-epilogues --fused-fuse-rows --fused-fuse-attention-prologues | FileCheck %s

// A layer with norms before and after is seven kernels: the norms after, with the residuals, have one each.
// CHECK-LABEL: func.func @layer
// CHECK-SAME: %[[X:.*]]: tensor<1x256xf32>, %[[P:.*]]: tensor<1xi32>
// CHECK: %[[Q:.*]] = fused.matvec %[[X]] {{.*}} segments [256, 128, 128]
// CHECK: model.rms_norm {{.*}} plus_one
// CHECK: } epilogue {
// CHECK-COUNT-2: model.cache_append
// CHECK: %[[A:.*]] = fused.attention %[[Q]], @cache.k.0, @cache.v.0 at %[[P]] scale 1.250000e-01 soft_cap 5.000000e+01
// CHECK: %[[O:.*]] = fused.matvec %[[A]]
// CHECK: %[[R:.*]] = fused.rows -> tensor<1x256xf32> body {
// CHECK-NEXT: model.rms_norm %[[O]]
// CHECK-NEXT: arith.addf %[[X]],
// CHECK: %[[H:.*]] = fused.matvec %[[R]] {{.*}} segments [512, 512] {{.*}} -> tensor<1x512xf16> prologue {
// CHECK: model.gelu {{.*}} tanh
// CHECK: %[[D:.*]] = fused.matvec %[[H]]
// CHECK: %[[Y:.*]] = fused.rows -> tensor<1x256xf32> body {
// CHECK-NEXT: model.rms_norm %[[D]]
// CHECK-NEXT: arith.addf %[[R]],
// CHECK: return %[[Y]]

model.weight @gain : tensor<256xf16>
model.weight @q : tensor<256x256xf16>
model.weight @k : tensor<128x256xf16>
model.weight @v : tensor<128x256xf16>
model.weight @o : tensor<256x256xf16>
model.weight @gate : tensor<512x256xf16>
model.weight @up : tensor<512x256xf16>
model.weight @down : tensor<256x512xf16>
model.cache @cache.k.0 : !quantized.cache<1x64x2x64xf16>
model.cache @cache.v.0 : !quantized.cache<1x64x2x64xf16>

func.func @layer(%x: tensor<1x256xf32>, %p: tensor<1xi32>) -> tensor<1x256xf32> {
  %gain = model.parameter @gain : tensor<256xf16>
  %wq = model.parameter @q : tensor<256x256xf16>
  %wk = model.parameter @k : tensor<128x256xf16>
  %wv = model.parameter @v : tensor<128x256xf16>
  %wo = model.parameter @o : tensor<256x256xf16>
  %wg = model.parameter @gate : tensor<512x256xf16>
  %wu = model.parameter @up : tensor<512x256xf16>
  %wd = model.parameter @down : tensor<256x512xf16>
  %n = model.rms_norm %x, %gain plus_one epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %q = model.linear %n, %wq : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %k = model.linear %n, %wk : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  %v = model.linear %n, %wv : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  %qr = model.rotary %q at %p head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  %kr = model.rotary %k at %p head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @cache.k.0, %kr at %p : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @cache.v.0, %v at %p : tensor<1x128xf32>, tensor<1xi32>
  %a = model.attention %qr, @cache.k.0, @cache.v.0 at %p scale 0.125 soft_cap 50.0 : tensor<1x256xf32>, tensor<1xi32>
  %o = model.linear %a, %wo : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %on = model.rms_norm %o, %gain plus_one epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %r = arith.addf %x, %on : tensor<1x256xf32>
  %m = model.rms_norm %r, %gain plus_one epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %g = model.linear %m, %wg : tensor<1x256xf32>, tensor<512x256xf16> -> tensor<1x512xf32>
  %u = model.linear %m, %wu : tensor<1x256xf32>, tensor<512x256xf16> -> tensor<1x512xf32>
  %s = model.gelu %g tanh : tensor<1x512xf32>
  %h = arith.mulf %s, %u : tensor<1x512xf32>
  %d = model.linear %h, %wd : tensor<1x512xf32>, tensor<256x512xf16> -> tensor<1x256xf32>
  %dn = model.rms_norm %d, %gain plus_one epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %y = arith.addf %r, %dn : tensor<1x256xf32>
  return %y : tensor<1x256xf32>
}

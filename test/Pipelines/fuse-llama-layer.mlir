// RUN: sluice-opt %s --quantized-quantize-weights=scheme=int8-g128 --fused-fuse-dequantize --fused-merge-matvecs --fused-fuse-prologues --fused-fuse-epilogues --fused-tabulate-rotary | FileCheck %s

// A layer of Llama is five kernels, and nothing between them.
// CHECK-LABEL: func.func @layer
// CHECK-SAME: %[[X:.*]]: tensor<1x256xf32>, %[[P:.*]]: tensor<1xi32>
// CHECK: %[[Q:.*]] = fused.matvec %[[X]] {{.*}} segments [256, 128, 128] {{.*}} -> tensor<1x256xf16> prologue {
// CHECK: model.rms_norm
// CHECK: } epilogue {
// CHECK-COUNT-3: model.add_bias
// CHECK-COUNT-2: model.rotary
// CHECK-COUNT-2: model.cache_append
// CHECK: arith.truncf
// CHECK: %[[A:.*]] = fused.attention %[[Q]], @cache.k.0, @cache.v.0
// CHECK: %[[R:.*]] = fused.matvec %[[A]] {{.*}} segments [256] : tensor<1x256xf16>, {{.*}} -> tensor<1x256xf32> epilogue {
// CHECK: arith.addf %[[X]],
// CHECK: %[[H:.*]] = fused.matvec %[[R]] {{.*}} segments [768, 768] {{.*}} -> tensor<1x768xf16> prologue {
// CHECK: model.rms_norm
// CHECK: } epilogue {
// CHECK: model.silu
// CHECK: arith.mulf
// CHECK: arith.truncf
// CHECK: %[[Y:.*]] = fused.matvec %[[H]] {{.*}} segments [256] : tensor<1x768xf16>, {{.*}} -> tensor<1x256xf32> epilogue {
// CHECK: arith.addf %[[R]],
// CHECK: return %[[Y]]

model.weight @attn_norm : tensor<256xf16>
model.weight @q : tensor<256x256xf16>
model.weight @k : tensor<128x256xf16>
model.weight @v : tensor<128x256xf16>
model.weight @q.bias : tensor<256xf16>
model.weight @k.bias : tensor<128xf16>
model.weight @v.bias : tensor<128xf16>
model.weight @o : tensor<256x256xf16>
model.weight @ffn_norm : tensor<256xf16>
model.weight @gate : tensor<768x256xf16>
model.weight @up : tensor<768x256xf16>
model.weight @down : tensor<256x768xf16>
model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
model.cache @cache.v.0 : !quantized.cache<1x2048x2x64xf16>

func.func @layer(%x: tensor<1x256xf32>, %position: tensor<1xi32>) -> tensor<1x256xf32> {
  %0 = model.parameter @attn_norm : tensor<256xf16>
  %1 = model.rms_norm %x, %0 epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %2 = model.parameter @q : tensor<256x256xf16>
  %3 = model.parameter @q.bias : tensor<256xf16>
  %4 = model.linear %1, %2 bias %3 : tensor<1x256xf32>, tensor<256x256xf16>, tensor<256xf16> -> tensor<1x256xf32>
  %5 = model.parameter @k : tensor<128x256xf16>
  %6 = model.parameter @k.bias : tensor<128xf16>
  %7 = model.linear %1, %5 bias %6 : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128xf16> -> tensor<1x128xf32>
  %8 = model.parameter @v : tensor<128x256xf16>
  %9 = model.parameter @v.bias : tensor<128xf16>
  %10 = model.linear %1, %8 bias %9 : tensor<1x256xf32>, tensor<128x256xf16>, tensor<128xf16> -> tensor<1x128xf32>
  %11 = model.rotary %4 at %position head_dim 64 <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  %12 = model.rotary %7 at %position head_dim 64 <theta = 10000.0> : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @cache.k.0, %12 at %position : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @cache.v.0, %10 at %position : tensor<1x128xf32>, tensor<1xi32>
  %13 = model.attention %11, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  %14 = model.parameter @o : tensor<256x256xf16>
  %15 = model.linear %13, %14 : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %16 = arith.addf %x, %15 : tensor<1x256xf32>
  %17 = model.parameter @ffn_norm : tensor<256xf16>
  %18 = model.rms_norm %16, %17 epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
  %19 = model.parameter @gate : tensor<768x256xf16>
  %20 = model.linear %18, %19 : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
  %21 = model.parameter @up : tensor<768x256xf16>
  %22 = model.linear %18, %21 : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
  %23 = model.silu %20 : tensor<1x768xf32>
  %24 = arith.mulf %23, %22 : tensor<1x768xf32>
  %25 = model.parameter @down : tensor<256x768xf16>
  %26 = model.linear %24, %25 : tensor<1x768xf32>, tensor<256x768xf16> -> tensor<1x256xf32>
  %27 = arith.addf %16, %26 : tensor<1x256xf32>
  return %27 : tensor<1x256xf32>
}

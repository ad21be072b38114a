// RUN: sluice-opt %s --sluice-to-fused --fused-tabulate-rotary | FileCheck %s

// Attention of Qwen3 is three kernels: the norms of q and k, which need whole heads, and all that follows them are attention's.
// CHECK-LABEL: func.func @layer
// CHECK-SAME: %[[X:.*]]: tensor<1x256xf32>, %[[P:.*]]: tensor<1xi32>
// CHECK: %[[Q:.*]]:3 = fused.matvec %[[X]] {{.*}} segments [512, 256, 256] {{.*}} -> tensor<1x512xf32>, tensor<1x256xf32>, tensor<1x256xf32> prologue {
// CHECK: model.rms_norm
// CHECK-NOT: epilogue
// CHECK: %[[A:.*]] = fused.attention %[[Q]]#0 new(%[[Q]]#1, %[[Q]]#2), @cache.k.0, @cache.v.0
// CHECK-SAME: sluice.reason = "a norm needs whole heads"
// CHECK-NEXT: ^bb0(%[[Q0:.*]]: tensor<1x512xf32>, %[[K0:.*]]: tensor<1x256xf32>, %[[V0:.*]]: tensor<1x256xf32>):
// CHECK-NEXT: %[[Q1:.*]] = model.rms_norm %[[Q0]], %{{.*}} head_dim 128
// CHECK-NEXT: %[[Q2:.*]] = model.rotary %[[Q1]] at %[[P]] head_dim 128 {{.*}} table
// CHECK-NEXT: %[[Q3:.*]] = arith.truncf %[[Q2]]
// CHECK-NEXT: %[[K1:.*]] = model.rms_norm %[[K0]], %{{.*}} head_dim 128
// CHECK-NEXT: %[[K2:.*]] = model.rotary %[[K1]] at %[[P]] head_dim 128 {{.*}} table
// CHECK-NEXT: model.cache_append @cache.k.0, %[[K2]] at %[[P]]
// CHECK-NEXT: model.cache_append @cache.v.0, %[[V0]] at %[[P]]
// CHECK-NEXT: fused.yield %[[Q3]]
// CHECK: %[[Y:.*]] = fused.matvec %[[A]] {{.*}} epilogue {
// CHECK: arith.addf %[[X]],
// CHECK: return %[[Y]]

model.weight @attn_norm : tensor<256xf16>
model.weight @q : tensor<512x256xf16>
model.weight @k : tensor<256x256xf16>
model.weight @v : tensor<256x256xf16>
model.weight @q_norm : tensor<128xf16>
model.weight @k_norm : tensor<128xf16>
model.weight @o : tensor<256x512xf16>
model.cache @cache.k.0 : !quantized.cache<1x64x2x128xf16>
model.cache @cache.v.0 : !quantized.cache<1x64x2x128xf16>

func.func @layer(%x: tensor<1x256xf32>, %p: tensor<1xi32>) -> tensor<1x256xf32> {
  %0 = model.parameter @attn_norm : tensor<256xf16>
  %1 = model.rms_norm %x, %0 epsilon 1.0e-6 : tensor<1x256xf32>, tensor<256xf16>
  %2 = model.parameter @q : tensor<512x256xf16>
  %3 = model.linear %1, %2 : tensor<1x256xf32>, tensor<512x256xf16> -> tensor<1x512xf32>
  %4 = model.parameter @k : tensor<256x256xf16>
  %5 = model.linear %1, %4 : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %6 = model.parameter @v : tensor<256x256xf16>
  %7 = model.linear %1, %6 : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %8 = model.parameter @q_norm : tensor<128xf16>
  %9 = model.rms_norm %3, %8 epsilon 1.0e-6 head_dim 128 : tensor<1x512xf32>, tensor<128xf16>
  %10 = model.parameter @k_norm : tensor<128xf16>
  %11 = model.rms_norm %5, %10 epsilon 1.0e-6 head_dim 128 : tensor<1x256xf32>, tensor<128xf16>
  %12 = model.rotary %9 at %p head_dim 128 <theta = 1000000.0> : tensor<1x512xf32>, tensor<1xi32>
  %13 = model.rotary %11 at %p head_dim 128 <theta = 1000000.0> : tensor<1x256xf32>, tensor<1xi32>
  model.cache_append @cache.k.0, %13 at %p : tensor<1x256xf32>, tensor<1xi32>
  model.cache_append @cache.v.0, %7 at %p : tensor<1x256xf32>, tensor<1xi32>
  %14 = model.attention %12, @cache.k.0, @cache.v.0 at %p scale 0.08838834764831845 : tensor<1x512xf32>, tensor<1xi32>
  %15 = model.parameter @o : tensor<256x512xf16>
  %16 = model.linear %14, %15 : tensor<1x512xf32>, tensor<256x512xf16> -> tensor<1x256xf32>
  %17 = arith.addf %x, %16 : tensor<1x256xf32>
  return %17 : tensor<1x256xf32>
}

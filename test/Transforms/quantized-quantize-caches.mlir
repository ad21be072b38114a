// RUN: sluice-opt %s --quantized-quantize-caches="k-cache=0=int4-h32-rot,1=int8 v-cache=1=fp8" | FileCheck %s
// RUN: sluice-opt %s --quantized-quantize-caches="k-cache=0=int4-h32-rot,1=int8 v-cache=1=fp8" --quantized-quantize-caches="k-cache=bf16 v-cache=bf16" | FileCheck %s
// RUN: sluice-opt %s --quantized-quantize-caches | FileCheck --check-prefix=AUTO %s

// RUN: not sluice-opt %s --quantized-quantize-caches=k-cache=int3 2>&1 | FileCheck --check-prefix=FORMAT %s
// FORMAT: error: --k-cache int3: unknown format 'int3': expected auto, f16, bf16, fp8, int8 or int4, the last two with -h64 or -h32 for finer scales, and -rot to rotate keys
// RUN: not sluice-opt %s --quantized-quantize-caches=v-cache=int4-rot 2>&1 | FileCheck --check-prefix=VALUES %s
// VALUES: error: --v-cache int4-rot: 'int4-rot': only keys are rotated
// RUN: not sluice-opt %s --quantized-quantize-caches=k-cache=1-3=int8 2>&1 | FileCheck --check-prefix=LAYER %s
// LAYER: error: --k-cache 1-3=int8: there is no layer 3, the model has 0 to 2
// RUN: not sluice-opt %s --quantized-quantize-caches=k-cache=2=int8-rot 2>&1 | FileCheck --check-prefix=ODD %s
// ODD: error: --k-cache 2=int8-rot: heads cannot be rotated, as their size 5 is odd

// The first layer's keys are rotated, and its queries with them. What was decided stays.
// CHECK: @k0 : !quantized.cache<1x64x2x64xi4, group = 32> {sluice.decision = "int4-h32-rot", sluice.reason = "asked for"}
// CHECK: @v0 : !quantized.cache<1x64x2x64xf16> {sluice.decision = "f16", sluice.reason = "auto is f16"}
// CHECK: @k1 : !quantized.cache<1x64x2x64xi8, group = head> {sluice.decision = "int8", sluice.reason = "asked for"}
// CHECK: @v1 : !quantized.cache<1x64x2x64xf8E4M3FN> {sluice.decision = "fp8", sluice.reason = "asked for"}
// CHECK: @k2 : !quantized.cache<1x64x2x5xf16> {sluice.decision = "f16"
// AUTO: @k0 : !quantized.cache<1x64x2x64xf16> {sluice.decision = "f16", sluice.reason = "auto is f16"}
model.cache @k0 : !quantized.cache<1x64x2x64xf16>
model.cache @v0 : !quantized.cache<1x64x2x64xf16>
model.cache @k1 : !quantized.cache<1x64x2x64xf16>
model.cache @v1 : !quantized.cache<1x64x2x64xf16>
model.cache @k2 : !quantized.cache<1x64x2x5xf16>
model.cache @v2 : !quantized.cache<1x64x2x5xf16>

// CHECK-LABEL: @decode
// AUTO-NOT: hadamard
func.func @decode(%q: tensor<1x128xf32>, %k: tensor<1x128xf32>, %r: tensor<1x10xf32>, %position: tensor<1xi32>) -> (tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x10xf32>) {
  // CHECK: %[[K:.*]] = model.hadamard %arg1 head_dim 64
  // CHECK: model.cache_append @k0, %[[K]]
  model.cache_append @k0, %k at %position : tensor<1x128xf32>, tensor<1xi32>
  // CHECK: model.cache_append @v0, %arg1
  model.cache_append @v0, %k at %position : tensor<1x128xf32>, tensor<1xi32>
  // CHECK: %[[Q:.*]] = model.hadamard %arg0 head_dim 64
  // CHECK: model.attention %[[Q]], @k0, @v0
  %x = model.attention %q, @k0, @v0 at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32>
  // CHECK: model.attention %arg0, @k1, @v1
  %y = model.attention %q, @k1, @v1 at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32>
  %z = model.attention %r, @k2, @v2 at %position scale 0.125 : tensor<1x10xf32>, tensor<1xi32>
  return %x, %y, %z : tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x10xf32>
}

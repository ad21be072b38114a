// RUN: sluice-opt --canonicalize --cse %s | FileCheck %s

model.weight @w : tensor<256x256xf16>
model.cache @cache.k : !quantized.cache<1x16x2x64xf16>
model.cache @cache.v : !quantized.cache<1x16x2x64xf16>

// What nobody reads is dropped, and a parameter is named once.
// CHECK-LABEL: func.func @unread
func.func @unread(%x: tensor<1x256xf32>, %p: tensor<1xi32>) -> (tensor<1x256xf32>, tensor<1x256xf32>) {
  // CHECK-NEXT: %[[W:.*]] = model.parameter @w
  // CHECK-NEXT: %[[A:.*]] = model.linear %{{.*}}, %[[W]]
  // CHECK-NEXT: return %[[A]], %[[A]]
  %v = model.parameter @w : tensor<256x256xf16>
  %a = model.linear %x, %v : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %w = model.parameter @w : tensor<256x256xf16>
  %b = model.linear %x, %w : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %c = model.silu %a : tensor<1x256xf32>
  %d = model.attention %a, @cache.k, @cache.v at %p scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  return %a, %b : tensor<1x256xf32>, tensor<1x256xf32>
}

// A store stays, and attention before it is not attention after it.
// CHECK-LABEL: func.func @stores
func.func @stores(%q: tensor<1x256xf32>, %k: tensor<1x128xf32>, %p: tensor<1xi32>) -> (tensor<1x256xf32>, tensor<1x256xf32>) {
  // CHECK-NEXT: %[[A:.*]] = model.attention
  // CHECK-NEXT: model.cache_append
  // CHECK-NEXT: %[[B:.*]] = model.attention
  // CHECK-NEXT: return %[[A]], %[[B]]
  %a = model.attention %q, @cache.k, @cache.v at %p scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  model.cache_append @cache.k, %k at %p : tensor<1x128xf32>, tensor<1xi32>
  %b = model.attention %q, @cache.k, @cache.v at %p scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  return %a, %b : tensor<1x256xf32>, tensor<1x256xf32>
}

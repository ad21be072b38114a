// RUN: sluice-opt %s -split-input-file -verify-diagnostics --fused-page-caches | FileCheck %s
// RUN: sluice-opt %s -split-input-file -verify-diagnostics --fused-page-caches --fused-page-caches | FileCheck %s

// A page of its own for each of three sequences, and 12 to hand out: all that they need. Every cache has as many.
// CHECK-LABEL: module @all
// CHECK: model.cache @k : !quantized.cache<15x32x2x64xf16, layout = mma_keys>
// CHECK: model.cache @v : !quantized.cache<15x32x2x64xi8, group = head, layout = mma_values>
// CHECK: model.cache @k1 : !quantized.cache<15x32x1x64xf16, layout = mma_keys>
// CHECK: model.cache @v1 : !quantized.cache<15x32x1x64xf16, layout = mma_values>
// CHECK: func.func @decode(%{{.*}}: tensor<3xi32>, %[[POSITION:.*]]: tensor<3xi32>, %[[PAGES:.*]]: tensor<3x4xui32>, %[[Q:.*]]: tensor<3x256xf32>, %[[K:.*]]: tensor<3x128xf32>, %[[Q1:.*]]: tensor<3x64xf16>)
// CHECK: fused.attention %[[Q]] new(%[[K]], %[[K]]), @k, @v at %[[POSITION]] pages %[[PAGES]] scale
// CHECK-SAME: tensor<3xi32>, tensor<3x4xui32> -> tensor<3x256xf16> prologue
// CHECK: model.cache_append @k, %{{.*}} at %[[POSITION]] pages %[[PAGES]] : tensor<3x128xf32>, tensor<3xi32>, tensor<3x4xui32>
// CHECK: model.cache_append @v, %{{.*}} at %[[POSITION]] pages %[[PAGES]]
// CHECK: fused.attention %[[Q1]], @k1, @v1 at %[[POSITION]] pages %[[PAGES]] scale
module @all {
  model.cache @k : !quantized.cache<3x128x2x64xf16, layout = mma_keys>
  model.cache @v : !quantized.cache<3x128x2x64xi8, group = head, layout = mma_values>
  model.cache @k1 : !quantized.cache<3x128x1x64xf16, layout = mma_keys>
  model.cache @v1 : !quantized.cache<3x128x1x64xf16, layout = mma_values>
  func.func @decode(%token: tensor<3xi32>, %position: tensor<3xi32>, %q: tensor<3x256xf32>, %k: tensor<3x128xf32>, %q1: tensor<3x64xf16>) -> (tensor<3x256xf16>, tensor<3x64xf16>) {
    %a = fused.attention %q new(%k, %k), @k, @v at %position scale 0.125 : tensor<3x256xf32> new(tensor<3x128xf32>, tensor<3x128xf32>), tensor<3xi32> -> tensor<3x256xf16>
    prologue {
    ^bb0(%q0: tensor<3x256xf32>, %k0: tensor<3x128xf32>, %v0: tensor<3x128xf32>):
      model.cache_append @k, %k0 at %position : tensor<3x128xf32>, tensor<3xi32>
      model.cache_append @v, %v0 at %position : tensor<3x128xf32>, tensor<3xi32>
      fused.yield %q0 : tensor<3x256xf32>
    }
    %b = fused.attention %q1, @k1, @v1 at %position scale 0.125 : tensor<3x64xf16>, tensor<3xi32> -> tensor<3x64xf16>
    return %a, %b : tensor<3x256xf16>, tensor<3x64xf16>
  }
}

// -----

// One sequence's caches stay as they are.
// CHECK-LABEL: module @one
// CHECK: model.cache @k : !quantized.cache<1x128x2x64xf16, layout = mma_keys>
// CHECK: func.func @decode(%{{.*}}: tensor<1xi32>, %{{.*}}: tensor<1xi32>, %{{.*}}: tensor<1x256xf16>)
// CHECK-NOT: pages
module @one {
  model.cache @k : !quantized.cache<1x128x2x64xf16, layout = mma_keys>
  model.cache @v : !quantized.cache<1x128x2x64xf16, layout = mma_values>
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %q: tensor<1x256xf16>) -> tensor<1x256xf16> {
    %a = fused.attention %q, @k, @v at %position scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
    return %a : tensor<1x256xf16>
  }
}

// -----

module {
  model.cache @k : !quantized.cache<2x100x2x64xf16>
  model.cache @v : !quantized.cache<2x100x2x64xf16>
  func.func @decode(%token: tensor<2xi32>, %position: tensor<2xi32>, %q: tensor<2x256xf16>) -> tensor<2x256xf16> {
    // expected-error @+1 {{reads cache @k of type '!quantized.cache<2x100x2x64xf16>', pages are made of tiles (fused-tile-caches makes them)}}
    %a = fused.attention %q, @k, @v at %position scale 0.125 : tensor<2x256xf16>, tensor<2xi32> -> tensor<2x256xf16>
    return %a : tensor<2x256xf16>
  }
}

// -----

module {
  model.cache @k : !quantized.cache<2x64x2x64xf16, layout = mma_keys>
  model.cache @v : !quantized.cache<2x64x2x64xf16, layout = mma_values>
  model.cache @k1 : !quantized.cache<2x128x2x64xf16, layout = mma_keys>
  model.cache @v1 : !quantized.cache<2x128x2x64xf16, layout = mma_values>
  func.func @decode(%token: tensor<2xi32>, %position: tensor<2xi32>, %q: tensor<2x256xf16>) -> (tensor<2x256xf16>, tensor<2x256xf16>) {
    %a = fused.attention %q, @k, @v at %position scale 0.125 : tensor<2x256xf16>, tensor<2xi32> -> tensor<2x256xf16>
    // expected-error @+1 {{reads a cache of 2 sequences of 128 positions, others have 2 of 64: one page table is for all}}
    %b = fused.attention %q, @k1, @v1 at %position scale 0.125 : tensor<2x256xf16>, tensor<2xi32> -> tensor<2x256xf16>
    return %a, %b : tensor<2x256xf16>, tensor<2x256xf16>
  }
}

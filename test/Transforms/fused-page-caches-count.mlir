// RUN: sluice-opt %s --fused-page-caches=pages=3 | FileCheck %s
// RUN: not sluice-opt %s --fused-page-caches=pages=5 2>&1 | FileCheck %s --check-prefix=MANY
// RUN: sed "s/cache<2x/cache<1x/; s/2xi32/1xi32/g; s/2x256/1x256/g" %s | not sluice-opt --fused-page-caches=pages=3 2>&1 | FileCheck %s --check-prefix=ONE

// CHECK: model.cache @k : !quantized.cache<5x32x2x64xf16, layout = lanes_keys>
// MANY: has caches of at most 4 pages, found pages = 5
// ONE: decodes one sequence, whose caches are not in pages; found pages = 3
module {
  model.cache @k : !quantized.cache<2x64x2x64xf16, layout = lanes_keys>
  model.cache @v : !quantized.cache<2x64x2x64xf16, layout = lanes_values>
  func.func @decode(%token: tensor<2xi32>, %position: tensor<2xi32>, %q: tensor<2x256xf16>) -> tensor<2x256xf16> {
    %a = fused.attention %q, @k, @v at %position scale 0.125 : tensor<2x256xf16>, tensor<2xi32> -> tensor<2x256xf16>
    return %a : tensor<2x256xf16>
  }
}

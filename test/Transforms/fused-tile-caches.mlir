// RUN: sluice-opt %s --fused-tile-caches=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-tile-caches=target=h200 --fused-tile-caches=target=a100 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-tile-caches=target=host-avx2 | FileCheck %s --check-prefix=HOST
// RUN: sluice-opt %s --fused-tile-caches | FileCheck %s --check-prefix=HOST
// RUN: not sluice-opt %s --fused-tile-caches=target=%s 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: fused-tile-caches.mlir: not valid JSON

// What the runtime enforces stays what was asked for.
// GPU: module attributes {model.config = {context_length = 100 : i64}}
module attributes {model.config = {context_length = 100 : i64}} {
  // Whole blocks of 64 positions, keys in one order and values in the other.
  // GPU: model.cache @k : !quantized.cache<1x128x2x64xf16, layout = mma_keys>
  // HOST: model.cache @k : !quantized.cache<1x128x2x64xf16, layout = lanes_keys>
  model.cache @k : !quantized.cache<1x100x2x64xf16>
  // GPU: model.cache @v : !quantized.cache<1x128x2x64xi4, group = 32, layout = mma_values>
  // HOST: model.cache @v : !quantized.cache<1x128x2x64xi4, group = 32, layout = lanes_values>
  model.cache @v : !quantized.cache<1x100x2x64xi4, group = 32>
  // GPU: model.cache @one : !quantized.cache<1x64x1x64xf16, layout = mma_keys>
  // HOST: model.cache @one : !quantized.cache<1x32x1x64xf16, layout = lanes_keys>
  model.cache @one : !quantized.cache<1x1x1x64xf16>
  // GPU: model.cache @other : !quantized.cache<1x64x1x64xf16, layout = mma_values>
  // HOST: model.cache @other : !quantized.cache<1x32x1x64xf16, layout = lanes_values>
  model.cache @other : !quantized.cache<1x1x1x64xf16>
  // GPU: model.cache @halves : !quantized.cache<2x64x2x64xbf16, layout = mma_keys>
  // HOST: model.cache @halves : !quantized.cache<2x64x2x64xbf16, layout = lanes_keys>
  model.cache @halves : !quantized.cache<2x64x2x64xbf16>
  // GPU: model.cache @whole : !quantized.cache<2x64x2x64xi8, group = head, layout = mma_values>
  // HOST: model.cache @whole : !quantized.cache<2x64x2x64xi8, group = head, layout = lanes_values>
  model.cache @whole : !quantized.cache<2x64x2x64xi8, group = head>
  // What no attention reads is left alone.
  // GPU: model.cache @unread : !quantized.cache<1x100x2x64xf16>
  // HOST: model.cache @unread : !quantized.cache<1x100x2x64xf16>
  model.cache @unread : !quantized.cache<1x100x2x64xf16>
  // A table has the rows that positions need.
  // GPU: model.rope_table @rope {{.*}} : tensor<100x64xf32>
  // HOST: model.rope_table @rope {{.*}} : tensor<100x64xf32>
  model.rope_table @rope <theta = 10000.0> : tensor<100x64xf32>

  // GPU: fused.attention %{{.*}}, @k, @v at %{{.*}} scale
  func.func @attention(%q: tensor<1x256xf16>, %p: tensor<1xi32>, %q2: tensor<2x256xf32>, %p2: tensor<2xi32>, %q1: tensor<1x64xf16>)
      -> (tensor<1x256xf16>, tensor<2x256xf16>, tensor<1x64xf16>) {
    %a = fused.attention %q, @k, @v at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
    %b = fused.attention %q2, @halves, @whole at %p2 scale 0.125 : tensor<2x256xf32>, tensor<2xi32> -> tensor<2x256xf16>
    %c = fused.attention %q1, @one, @other at %p scale 0.125 : tensor<1x64xf16>, tensor<1xi32> -> tensor<1x64xf16>
    return %a, %b, %c : tensor<1x256xf16>, tensor<2x256xf16>, tensor<1x64xf16>
  }
}

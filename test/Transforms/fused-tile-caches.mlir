// RUN: sluice-opt %s --fused-tile-caches=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-tile-caches=target=a100 --fused-tile-caches=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-tile-caches=target=host-avx2 | FileCheck %s --check-prefix=HOST
// RUN: sluice-opt %s --fused-tile-caches | FileCheck %s --check-prefix=HOST
// RUN: not sluice-opt %s --fused-tile-caches=target=%s 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: fused-tile-caches.mlir: not valid JSON

// What the runtime enforces stays what was asked for.
// GPU: module attributes {model.config = {context_length = 100 : i64}}
module attributes {model.config = {context_length = 100 : i64}} {
  // GPU: model.cache @one : !quantized.cache<1x32x2x64xf16>
  // HOST: model.cache @one : !quantized.cache<1x1x2x64xf16>
  model.cache @one : !quantized.cache<1x1x2x64xf16>
  // GPU: model.cache @k : !quantized.cache<1x128x2x64xf16>
  // HOST: model.cache @k : !quantized.cache<1x100x2x64xf16>
  model.cache @k : !quantized.cache<1x100x2x64xf16>
  // GPU: model.cache @v : !quantized.cache<1x128x2x64xf16>
  // HOST: model.cache @v : !quantized.cache<1x100x2x64xf16>
  model.cache @v : !quantized.cache<1x100x2x64xf16>
  // Whole pieces are left alone.
  // GPU: model.cache @whole : !quantized.cache<1x64x1x16xf16>
  // HOST: model.cache @whole : !quantized.cache<1x64x1x16xf16>
  model.cache @whole : !quantized.cache<1x64x1x16xf16>
  // A table has the rows that positions need.
  // GPU: model.rope_table @rope {{.*}} : tensor<100x64xf32>
  // HOST: model.rope_table @rope {{.*}} : tensor<100x64xf32>
  model.rope_table @rope <theta = 10000.0> : tensor<100x64xf32>

  // GPU: fused.attention %{{.*}}, @k, @v at %{{.*}} scale
  func.func @attention(%q: tensor<1x256xf16>, %p: tensor<1xi32>) -> tensor<1x256xf16> {
    %a = fused.attention %q, @k, @v at %p scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
    return %a : tensor<1x256xf16>
  }
}

// RUN: sluice-opt %s --fused-pad-caches=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-pad-caches=target=a100 --fused-pad-caches=target=h200 | FileCheck %s --check-prefix=GPU
// RUN: sluice-opt %s --fused-pad-caches=target=host-avx2 | FileCheck %s --check-prefix=HOST
// RUN: sluice-opt %s --fused-pad-caches | FileCheck %s --check-prefix=HOST
// RUN: not sluice-opt %s --fused-pad-caches=target=%s 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: fused-pad-caches.mlir: not valid JSON

// What the runtime enforces stays what was asked for.
// GPU: module attributes {model.config = {context_length = 100 : i64}}
module attributes {model.config = {context_length = 100 : i64}} {
  // GPU: model.cache @one : tensor<32x2x64xf16>
  // HOST: model.cache @one : tensor<1x2x64xf16>
  model.cache @one : tensor<1x2x64xf16>
  // GPU: model.cache @k : tensor<128x2x64xf16>
  // HOST: model.cache @k : tensor<100x2x64xf16>
  model.cache @k : tensor<100x2x64xf16>
  // GPU: model.cache @v : tensor<128x2x64xf16>
  // HOST: model.cache @v : tensor<100x2x64xf16>
  model.cache @v : tensor<100x2x64xf16>
  // Whole pieces are left alone.
  // GPU: model.cache @whole : tensor<64x1x16xf16>
  // HOST: model.cache @whole : tensor<64x1x16xf16>
  model.cache @whole : tensor<64x1x16xf16>
  // Heads are whole operands of 16 elements; what is padding is told, once.
  // GPU: model.cache @narrow head_dim 20 : tensor<64x2x32xf16>
  // HOST: model.cache @narrow : tensor<40x2x20xf16>
  model.cache @narrow : tensor<40x2x20xf16>
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

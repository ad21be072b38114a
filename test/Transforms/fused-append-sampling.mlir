// RUN: sluice-opt %s --split-input-file --fused-append-sampling=target=h200 | FileCheck %s --check-prefixes=CHECK,GPU
// RUN: sluice-opt %s --split-input-file --fused-append-sampling=target=h200 --fused-append-sampling=target=h200 | FileCheck %s --check-prefixes=CHECK,GPU
// RUN: sluice-opt %s --split-input-file --fused-append-sampling=target=host-avx2 | FileCheck %s --check-prefixes=CHECK,HOST
// RUN: not sluice-opt %s --split-input-file --fused-append-sampling=target=nothing 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: error: {{.*}}nothing

// GPU-LABEL: func.func @decode
// GPU-SAME: (%[[TOKEN:.*]]: tensor<2xi32>, %{{.*}}: tensor<2xi32>, %[[OPTIONS:.*]]: tensor<2x8xi32>) -> (tensor<2x64xf32>, tensor<2xi32>)
// GPU: %[[LOGITS:.*]] = fused.embedding %[[TOKEN]]
// GPU: %[[NEXT:.*]] = fused.sample %[[LOGITS]], %[[OPTIONS]] : tensor<2x64xf32>, tensor<2x8xi32> -> tensor<2xi32>
// GPU-NOT: fused.sample
// GPU: return %[[LOGITS]], %[[NEXT]] : tensor<2x64xf32>, tensor<2xi32>

// HOST-LABEL: func.func @decode(%{{.*}}: tensor<2xi32>, %{{.*}}: tensor<2xi32>) -> tensor<2x64xf32>
// HOST-NOT: fused.sample
func.func @decode(%token: tensor<2xi32>, %position: tensor<2xi32>) -> tensor<2x64xf32> {
  %t = model.parameter @table : tensor<9x64xf16>
  %logits = fused.embedding %token, %t : tensor<2xi32>, tensor<9x64xf16> -> tensor<2x64xf32>
  return %logits : tensor<2x64xf32>
}
model.weight @table : tensor<9x64xf16>

// -----

// What is no step is left alone.
// CHECK-LABEL: func.func @decode(%{{.*}}: tensor<2xi32>) -> (tensor<2xi32>, tensor<2xi32>)
func.func @decode(%token: tensor<2xi32>) -> (tensor<2xi32>, tensor<2xi32>) {
  return %token, %token : tensor<2xi32>, tensor<2xi32>
}

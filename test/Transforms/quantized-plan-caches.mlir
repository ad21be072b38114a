// RUN: sluice-opt %s --quantized-plan-caches | FileCheck %s
// RUN: sluice-opt %s "--quantized-plan-caches=k-cache=int8" "--quantized-quantize-caches=k-cache=int8" | FileCheck %s --check-prefix=ASKED
// RUN: not sluice-opt %s --quantized-plan-caches=k-cache=int3 2>&1 | FileCheck %s --check-prefix=FORMAT
// FORMAT: error: --k-cache int3: unknown format 'int3'

// How much rounded keys cost differs a hundredfold between models: nothing is guessed.
// CHECK: model.cache @k : !quantized.cache<1x64x2x64xf16> {sluice.decision = "f16", sluice.reason = "planned: without statistics caches stay as they are"}
// What is asked for is left to quantized-quantize-caches.
// ASKED: model.cache @k : !quantized.cache<1x64x2x64xi8, group = head> {sluice.decision = "int8", sluice.reason = "asked for"}
// ASKED: model.cache @v : !quantized.cache<1x64x2x64xf16> {sluice.decision = "f16", sluice.reason = "planned: without statistics caches stay as they are"}
model.cache @k : !quantized.cache<1x64x2x64xf16>
model.cache @v : !quantized.cache<1x64x2x64xf16>

func.func @decode(%q: tensor<1x128xf32>, %position: tensor<1xi32>) -> tensor<1x128xf32> {
  %y = model.attention %q, @k, @v at %position scale 0.125 : tensor<1x128xf32>, tensor<1xi32>
  return %y : tensor<1x128xf32>
}

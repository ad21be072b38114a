// RUN: sluice-opt %s --quantized-plan-weights=goal=max-bits=5.3 | FileCheck %s
// RUN: sluice-opt %s --quantized-plan-weights=goal=max-bits=5.3 --quantized-plan-weights=goal=max-bits=8 --quantized-quantize-weights=scheme=keep,gate=int4-g32 | FileCheck %s
// RUN: sluice-opt %s --quantized-plan-weights=goal=error-budget=1e-9 | FileCheck %s --check-prefix=EXACT
// RUN: sluice-opt %s --quantized-plan-weights=scheme=keep | FileCheck %s --check-prefix=KEEP
// RUN: sluice-opt %s "--quantized-plan-weights=scheme=auto,down=q4_k goal=max-bits=5.3" "--quantized-quantize-weights=scheme=auto,down=q4_k" | FileCheck %s --check-prefix=PINNED

// RUN: not sluice-opt %s --quantized-plan-weights=goal=max-bits=1 2>&1 | FileCheck %s --check-prefix=LEAST
// LEAST: error: --max-bits 1{{.*}}: cannot be met, the least that the formats can have is {{[0-9.]+}}
// RUN: not sluice-opt %s --quantized-plan-weights=goal=max-bits=-1 2>&1 | FileCheck %s --check-prefix=NUMBER
// NUMBER: error: --max-bits -1: expected a number above 0
// RUN: not sluice-opt %s --quantized-plan-weights=goal=speed=1 2>&1 | FileCheck %s --check-prefix=GOAL
// GOAL: error: unknown goal 'speed=1': expected error-budget, max-bits, max-bytes or max-time, then =NUMBER
// RUN: not sluice-opt %s --quantized-plan-weights=stats=%t.none 2>&1 | FileCheck %s --check-prefix=FILE
// FILE: error: {{.*}}.none{{.*}}No such file or directory
// RUN: not sluice-opt %s --quantized-plan-weights=context=4096 2>&1 | FileCheck %s --check-prefix=CONTEXT
// CONTEXT: error: --plan-context 4096: caches have 2048 positions

// KEEP-NOT: sluice.plan
// CHECK: module attributes {sluice.plan = {basis = "the weights alone", bits_per_weight = {{.*}}, goal = "max-bits=5.30", price = {{.*}}, weights = [{chosen = {bytes = {{.*}}, divergence = {{.*}}, format = "{{.*}}", seconds = {{.*}}}, name = "gate", next = {
module {
model.weight @gate : tensor<768x256xf16>
model.weight @up : tensor<768x256xf16>
model.weight @down : tensor<256x768xf16>
model.weight @blocks : !quantized.tensor<256x256xi8, group = 32, layout = blocks>
model.cache @k : !quantized.cache<1x2048x2x64xf16>
model.cache @v : !quantized.cache<1x2048x2x64xf16>

// CHECK-LABEL: func.func @decode
// EXACT-LABEL: func.func @decode
// KEEP-LABEL: func.func @decode
// PINNED-LABEL: func.func @decode
func.func @decode(%x: tensor<1x256xf32>, %position: tensor<1xi32>) -> (tensor<1x256xf32>, tensor<1x256xf32>, tensor<1x256xf32>) {
  // Rows of gate and up are combined: they have one format, whatever it is.
  // CHECK: quantized.quantize {{.*}} {sluice.decision = "[[FORMAT:[a-z0-9-]+]]", sluice.reason = "planned: error {{[0-9.e+-]+}}e-3 nats, {{[0-9.]+}} us; next {{[a-z0-9_-]+}}: {{[0-9.e+-]+}}e-3 nats, {{[0-9.]+}} us"}
  // CHECK: quantized.quantize {{.*}} {sluice.decision = "[[FORMAT]]"
  // Nothing is exact but what is there; its parameter says so.
  // EXACT: model.parameter @gate {sluice.decision = "f16", sluice.reason = "planned: error 0e-3 nats
  // EXACT-NOT: quantized.quantize
  // KEEP-NOT: quantized.quantize
  // PINNED: quantized.quantize {{.*}} {sluice.decision = "{{.*}}", sluice.reason = "planned
  // PINNED: quantized.quantize {{.*}} {sluice.decision = "{{.*}}", sluice.reason = "planned
  // PINNED: quantized.quantize {{.*}} {sluice.decision = "q4_k", sluice.reason = "asked for"}
  %gate = model.parameter @gate : tensor<768x256xf16>
  %g = model.linear %x, %gate : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
  %up = model.parameter @up : tensor<768x256xf16>
  %u = model.linear %x, %up : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf32>
  %s = model.silu %g : tensor<1x768xf32>
  %m = arith.mulf %s, %u : tensor<1x768xf32>
  %down = model.parameter @down : tensor<256x768xf16>
  %y = model.linear %m, %down : tensor<1x768xf32>, tensor<256x768xf16> -> tensor<1x256xf32>
  // Without statistics, what a file's maker quantized stays.
  // CHECK: quantized.dequantize {{.*}} layout = blocks>
  // CHECK-NOT: quantized.quantize
  // CHECK: return
  %b = model.parameter @blocks : !quantized.tensor<256x256xi8, group = 32, layout = blocks>
  %w = quantized.dequantize %b : !quantized.tensor<256x256xi8, group = 32, layout = blocks> to tensor<256x256xf32>
  %q = model.linear %y, %w : tensor<1x256xf32>, tensor<256x256xf32> -> tensor<1x256xf32>
  %z = model.attention %q, @k, @v at %position scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  return %y, %q, %z : tensor<1x256xf32>, tensor<1x256xf32>, tensor<1x256xf32>
}
}

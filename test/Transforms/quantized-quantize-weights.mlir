// RUN: sluice-opt %s --quantized-quantize-weights=scheme=int8-g128 --remarks-filter=quantized-quantize-weights -verify-diagnostics | FileCheck %s
// RUN: sluice-opt %s --quantized-quantize-weights=scheme=int8-g128 --quantized-quantize-weights=scheme=int4-g32 | FileCheck %s
// RUN: sluice-opt %s --quantized-quantize-weights=scheme=f16 | FileCheck %s --check-prefix=F16
// RUN: sluice-opt %s --quantized-quantize-weights=scheme=int8-g32 | FileCheck %s --check-prefix=G32
// RUN: sluice-opt %s --quantized-quantize-weights=scheme=keep | FileCheck %s --check-prefix=KEEP
// RUN: not sluice-opt %s --quantized-quantize-weights=scheme=int8-g48 2>&1 | FileCheck %s --check-prefix=ERROR

// RUN: sluice-opt %s --quantized-quantize-weights="scheme=keep,w=q4_k,odd*=int8-g32,narrow=q4_k" 2>%t.err | FileCheck %s --check-prefix=SINGLE
// RUN: FileCheck %s --check-prefix=LEFT --input-file=%t.err
// RUN: not sluice-opt %s --quantized-quantize-weights="scheme=keep,q4_k" 2>&1 | FileCheck %s --check-prefix=ENTRY
// RUN: not sluice-opt %s --quantized-quantize-weights="scheme=keep,[=q4_k" 2>&1 | FileCheck %s --check-prefix=GLOB

// RUN: %python %S/Inputs/statistics.py %t.stats w=256h narrow=96
// RUN: sluice-opt %s --quantized-quantize-weights="scheme=int4-g32,odd_half=f16 stats=%t.stats" 2>&1 | FileCheck %s --check-prefix=STATS
// RUN: %python %S/Inputs/statistics.py %t.short w=64
// RUN: not sluice-opt %s --quantized-quantize-weights="scheme=int4-g32 stats=%t.short" 2>&1 | FileCheck %s --check-prefix=SHORT
// RUN: %python %S/Inputs/statistics.py %t.others x=64
// RUN: not sluice-opt %s --quantized-quantize-weights="scheme=int4-g32 stats=%t.others" 2>&1 | FileCheck %s --check-prefix=OTHERS
// RUN: not sluice-opt %s --quantized-quantize-weights="scheme=int4-g32 stats=%t.none" 2>&1 | FileCheck %s --check-prefix=NONE

// STATS-DAG: sluice.reason = "asked for, rounded by its input's Hessian"} : tensor<8x256xf16>
// STATS-DAG: sluice.reason = "asked for, rounded by its input's moments"} : tensor<8x96xbf16>
// STATS-DAG: sluice.reason = "asked for, rounded without statistics"} : tensor<8x100xf32>
// SHORT: error: {{.*}}.short: weight w has 256 columns, its statistics have 64: they are of another model
// OTHERS: error: {{.*}}.others: has statistics of none of the weights: they are of another model
// NONE: error: {{.*}}.none: {{.+}}

// The last pattern that matches a weight's name counts.
// SINGLE: quantized.quantize {{.*}} {sluice.decision = "q4_k", sluice.reason = "asked for"} : tensor<8x256xf16> to !quantized.tensor<8x256xui4, group = 32, scale = u6, offset = field>
// SINGLE: quantized.quantize {{.*}} {sluice.decision = "int8-g32"
// LEFT: narrow is bf16, because its rows are no multiple of 256 columns
// ENTRY: error: scheme: expected WEIGHT=FORMAT after the format of all weights, found 'q4_k'
// GLOB: error: scheme: bad pattern of weights '[': {{.+}}
// KEEP-NOT: quantized.quantize
// ERROR: error: scheme: unknown number format 'int8-g48': expected auto, keep, f16, bf16, f32, int3, int4, int5, int6, int8 or iq4 with -g16, -g32, -g64, -g128, -g256 or -channel and optionally -zp or -f32 (scales; int4 and int8) or -n8 (nested scales, up to -g64), fp8 with -g32 to -channel and optionally -f32 (scales; else bf16), q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4, iq1-g16-n8, iq1-g32-n8, iq2-g16-n8, iq2-g32-n8, iq3xxs-g32-n8 or iq3s-g32-n8

model.weight @w : tensor<8x256xf16>
model.weight @b : tensor<8xf16>
model.weight @q8 : !quantized.tensor<8x256xi8, group = 32, layout = blocks>
model.weight @narrow : tensor<8x96xbf16>
model.weight @odd : tensor<8x100xf32>
model.weight @odd_half : tensor<8x100xf16>

// A weight shared with the embedding is quantized for the layers only, and once for all of them.
// CHECK-LABEL: func.func @shared
// F16-LABEL: func.func @shared
func.func @shared(%t: tensor<1xi32>) -> (tensor<1x8xf32>, tensor<1x8xf32>) {
  // CHECK: %[[W:.*]] = model.parameter @w
  // CHECK: %[[Q:.*]] = quantized.quantize %[[W]] {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<8x256xf16> to !quantized.tensor<8x256xi8, group = 128>
  // CHECK: %[[D:.*]] = quantized.dequantize %[[Q]] : !quantized.tensor<8x256xi8, group = 128> to tensor<8x256xf32>
  // CHECK: model.embedding %{{.*}}, %[[W]]
  // CHECK: model.linear %{{.*}}, %[[D]] bias
  // CHECK: model.linear %{{.*}}, %[[D]] :
  // F16-NOT: quantize
  %w = model.parameter @w : tensor<8x256xf16>
  %b = model.parameter @b : tensor<8xf16>
  %x = model.embedding %t, %w : tensor<1xi32>, tensor<8x256xf16> -> tensor<1x256xf32>
  %y = model.linear %x, %w bias %b : tensor<1x256xf32>, tensor<8x256xf16>, tensor<8xf16> -> tensor<1x8xf32>
  %z = model.linear %x, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y, %z : tensor<1x8xf32>, tensor<1x8xf32>
}

// CHECK-LABEL: func.func @blocks
// F16-LABEL: func.func @blocks
// G32-LABEL: func.func @blocks
func.func @blocks(%x: tensor<1x256xf32>) -> tensor<1x8xf32> {
  // CHECK: %[[D:.*]] = quantized.dequantize
  // CHECK: quantized.quantize %[[D]] {{.*}} to !quantized.tensor<8x256xi8, group = 128>
  // F16: quantized.quantize {{.*}} : tensor<8x256xf32> to !quantized.tensor<8x256xf16>
  // Blocks that are what was asked for are taken over.
  // G32-NOT: quantized.quantize
  // G32: return
  %q = model.parameter @q8 : !quantized.tensor<8x256xi8, group = 32, layout = blocks>
  %w = quantized.dequantize %q : !quantized.tensor<8x256xi8, group = 32, layout = blocks> to tensor<8x256xf32>
  %y = model.linear %x, %w : tensor<1x256xf32>, tensor<8x256xf32> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// Where a group does not divide the row, the last one is shorter.
// CHECK-LABEL: func.func @columns
func.func @columns(%x: tensor<2x96xf32>, %z: tensor<1x100xf32>) -> (tensor<2x8xf32>, tensor<1x8xf32>) {
  // CHECK: {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<8x96xbf16> to !quantized.tensor<8x96xi8, group = 128>
  // CHECK: {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<8x100xf32> to !quantized.tensor<8x100xi8, group = 128>
  %a = model.parameter @narrow : tensor<8x96xbf16>
  %b = model.parameter @odd : tensor<8x100xf32>
  %c = model.linear %x, %a : tensor<2x96xf32>, tensor<8x96xbf16> -> tensor<2x8xf32>
  %d = model.linear %z, %b : tensor<1x100xf32>, tensor<8x100xf32> -> tensor<1x8xf32>
  return %c, %d : tensor<2x8xf32>, tensor<1x8xf32>
}

// What was decided by hand stays, and is told.
// CHECK-LABEL: func.func @by_hand
func.func @by_hand(%x: tensor<1x100xf32>) -> tensor<1x8xf32> {
  // CHECK-NOT: quantized.quantize
  // CHECK: return
  // expected-warning @+2 {{int8-g128 was asked for, but odd_half is f16, as decided before (and 1 more)}}
  // expected-remark @+1 {{f16 instead of int8-g128: as decided before}}
  %w = model.parameter @odd_half {sluice.decision = "f16", sluice.reason = "sensitive"} : tensor<8x100xf16>
  %y = model.linear %x, %w : tensor<1x100xf32>, tensor<8x100xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// CHECK-LABEL: func.func @not_a_parameter
// expected-remark @+1 {{f16 instead of int8-g128: because a weight that is computed cannot be quantized}}
func.func @not_a_parameter(%x: tensor<1x256xf32>, %w: tensor<8x256xf16>) -> tensor<1x8xf32> {
  // CHECK-NOT: quantize
  // CHECK: return
  %y = model.linear %x, %w : tensor<1x256xf32>, tensor<8x256xf16> -> tensor<1x8xf32>
  return %y : tensor<1x8xf32>
}

// RUN: sluice-opt %s --fused-annotate-traffic | FileCheck %s

model.weight @table : tensor<2048x256xf16>
model.weight @empty : tensor<0x256xf16>
model.weight @huge : tensor<16x4611686018427387904xf32>
model.weight @packed_table : !quantized.tensor<2048x256xi8, group = 64, zero_point>
model.weight @w : !quantized.tensor<512x256xi4, group = 64, zero_point>
model.weight @u : tensor<256x256xf16>
model.weight @gain : tensor<256xf32>
model.weight @bias : tensor<256xf16>
model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
model.cache @cache.v.0 : !quantized.cache<1x2048x2x64xf16>
model.cache @cache.k.1 : !quantized.cache<1x2048x2x64xi8, group = head>
model.cache @cache.v.1 : !quantized.cache<1x2048x2x64xi4, group = 32>

// A row of the table and the token; a row of 256 bytes, 4 scales and 4 zero points.
// CHECK-LABEL: @embedding
func.func @embedding(%token: tensor<1xi32>) -> (tensor<1x256xf32>, tensor<1x256xf32>) {
  %t = model.parameter @table : tensor<2048x256xf16>
  %p = model.parameter @packed_table : !quantized.tensor<2048x256xi8, group = 64, zero_point>
  // CHECK: traffic(#fused.traffic<weights = 0, scales = 0, activations = 516, keys = 0, values = 0, written = 1024, operations = 0, operations_per_position = 0>)
  %x = fused.embedding %token, %t : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  // CHECK: traffic(#fused.traffic<weights = 0, scales = 12, activations = 260, keys = 0, values = 0, written = 1024, operations = 0, operations_per_position = 0>)
  %y = fused.embedding %token, %p : tensor<1xi32>, !quantized.tensor<2048x256xi8, group = 64, zero_point> -> tensor<1x256xf32>
  return %x, %y : tensor<1x256xf32>, tensor<1x256xf32>
}

// Elements 512 * 256 / 2, scales and zero points 512 * 4 * 3; input 1024, gain 1024, a row of the table 256, the position 4; a result
// of 512 and two cached vectors of 256 written. Wrong traffic is corrected.
// CHECK-LABEL: @projections
func.func @projections(%x: tensor<1x256xf32>, %position: tensor<1xi32>) -> tensor<1x256xf16> {
  %w = model.parameter @w : !quantized.tensor<512x256xi4, group = 64, zero_point>
  %g = model.parameter @gain : tensor<256xf32>
  %t = model.parameter @rope : tensor<2048x64xf32>
  // CHECK: fused.matvec
  // CHECK-SAME: traffic(#fused.traffic<weights = 65536, scales = 6144, activations = 2308, keys = 0, values = 0, written = 1024, operations = 262144, operations_per_position = 0>)
  %q = fused.matvec %x weights(%w) segments [256, 128, 128]
      traffic(#fused.traffic<weights = 1, scales = 1, activations = 1, keys = 1, values = 1, written = 1, operations = 1, operations_per_position = 1>)
      : tensor<1x256xf32>, !quantized.tensor<512x256xi4, group = 64, zero_point> -> tensor<1x256xf16>
  prologue {
  ^bb0(%in: tensor<1x256xf32>):
    %n = model.rms_norm %in, %g epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%a: tensor<1x256xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>):
    %r = model.rotary %a at %position head_dim 64 <theta = 10000.0> table %t : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
    %s = model.rotary %k at %position head_dim 64 <theta = 10000.0> table %t : tensor<1x128xf32>, tensor<1xi32>, tensor<2048x64xf32>
    model.cache_append @cache.k.0, %s at %position : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v.0, %v at %position : tensor<1x128xf32>, tensor<1xi32>
    %h = arith.truncf %r : tensor<1x256xf32> to tensor<1x256xf16>
    fused.yield %h : tensor<1x256xf16>
  }
  return %q : tensor<1x256xf16>
}

// Four tokens read the weights once; the residual is the input and counts once; the bias is there once.
// CHECK-LABEL: @tokens
func.func @tokens(%x: tensor<4x256xf32>) -> tensor<4x256xf32> {
  %u = model.parameter @u : tensor<256x256xf16>
  %b = model.parameter @bias : tensor<256xf16>
  // CHECK: traffic(#fused.traffic<weights = 131072, scales = 0, activations = 4608, keys = 0, values = 0, written = 4096, operations = 524288, operations_per_position = 0>)
  %y = fused.matvec %x weights(%u) segments [256] : tensor<4x256xf32>, tensor<256x256xf16> -> tensor<4x256xf32>
  epilogue {
  ^bb0(%a: tensor<4x256xf32>):
    %c = model.add_bias %a, %b : tensor<4x256xf32>, tensor<256xf16>
    %d = arith.addf %c, %x : tensor<4x256xf32>
    fused.yield %d : tensor<4x256xf32>
  }
  return %y : tensor<4x256xf32>
}

// A position of keys: 2 heads of 64 f16; each of 256 query elements is multiplied and added twice a position.
// CHECK-LABEL: @attention
func.func @attention(%q: tensor<1x256xf16>, %position: tensor<1xi32>) -> tensor<1x256xf16> {
  // CHECK: traffic(#fused.traffic<weights = 0, scales = 0, activations = 516, keys = 256, values = 256, written = 512, operations = 0, operations_per_position = 1024>)
  %y = fused.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %y : tensor<1x256xf16>
}

// Many tokens of one sequence read keys and values once.
// CHECK-LABEL: @prompt
func.func @prompt(%q: tensor<64x256xf16>, %positions: tensor<64xi32>, %n: tensor<1xi32>) -> tensor<64x256xf16> {
  // CHECK: keys = 256, values = 256, written = 32768, operations = 0, operations_per_position = 65536>)
  %y = fused.attention %q, @cache.k.0, @cache.v.0 at %positions scale 0.125 active(%n) : tensor<64x256xf16>, tensor<64xi32> -> tensor<64x256xf16>
  return %y : tensor<64x256xf16>
}

// Shapes that no model has still count without overflow.
// CHECK-LABEL: @degenerate
func.func @degenerate(%token: tensor<1xi32>, %x: tensor<1x4611686018427387904xf32>) -> tensor<1x256xf32> {
  %e = model.parameter @empty : tensor<0x256xf16>
  // CHECK: activations = 4,
  %y = fused.embedding %token, %e : tensor<1xi32>, tensor<0x256xf16> -> tensor<1x256xf32>
  %w = model.parameter @huge : tensor<16x4611686018427387904xf32>
  // CHECK: operations = 140737488355328,
  %z = fused.matvec %x weights(%w) segments [16] : tensor<1x4611686018427387904xf32>, tensor<16x4611686018427387904xf32> -> tensor<1x16xf32>
  return %y : tensor<1x256xf32>
}

// Of a window at most 512 positions are read, however long the context.
// CHECK-LABEL: @window
func.func @window(%q: tensor<1x256xf16>, %position: tensor<1xi32>) -> tensor<1x256xf16> {
  // CHECK: window 512
  // CHECK-SAME: keys = 256, values = 256, written = 512, operations = 0, operations_per_position = 1024, window = 512>)
  %y = fused.attention %q, @cache.k.0, @cache.v.0 at %position scale 0.125 window 512 : tensor<1x256xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return %y : tensor<1x256xf16>
}

// Codes and scales of 2 heads: keys 2 * (64 + 2), values 2 * (32 + 4). The prologue reads a query of 1024 bytes, new rows of 512 each, the position (once) and
// a row of the table, 256; a result of 512 and a key and a value are written.
// CHECK-LABEL: @appending_attention
func.func @appending_attention(%q: tensor<1x256xf32>, %k: tensor<1x128xf32>, %v: tensor<1x128xf32>, %position: tensor<1xi32>) -> tensor<1x256xf16> {
  %t = model.parameter @rope : tensor<2048x64xf32>
  // CHECK: fused.attention
  // CHECK-SAME: traffic(#fused.traffic<weights = 0, scales = 0, activations = 2308, keys = 132, values = 72, written = 716, operations = 0, operations_per_position = 1024>)
  %y = fused.attention %q new(%k, %v), @cache.k.1, @cache.v.1 at %position scale 0.125
      : tensor<1x256xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x256xf16>
  prologue {
  ^bb0(%q0: tensor<1x256xf32>, %k0: tensor<1x128xf32>, %v0: tensor<1x128xf32>):
    %q1 = model.hadamard %q0 head_dim 64 : tensor<1x256xf32>
    %k1 = model.rotary %k0 at %position head_dim 64 <theta = 10000.0> table %t : tensor<1x128xf32>, tensor<1xi32>, tensor<2048x64xf32>
    model.cache_append @cache.k.1, %k1 at %position : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v.1, %v0 at %position : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %q1 : tensor<1x256xf32>
  }
  return %y : tensor<1x256xf16>
}

// RUN: sluice-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{isa must be avx2, avx512 or avx512_vnni, found 'sse'}}
func.func private @f() attributes {sluice.s = #fused.host_schedule<isa = "sse", accumulators = 1, positions = 0>}

// -----

// expected-error @+1 {{accumulators must be 1 to 8, found 9}}
func.func private @f() attributes {sluice.s = #fused.host_schedule<isa = "avx2", accumulators = 9, positions = 0>}

// -----

// expected-error @+1 {{positions must be 0 to 1024, found 4096}}
func.func private @f() attributes {sluice.s = #fused.host_schedule<isa = "avx2", accumulators = 1, positions = 4096>}

// -----

// expected-error @+1 {{blocks, warps (at most 31), stages, columns and splits must be positive}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 1, warps = 32, stages = 1, in_flight = 1, columns = 1, splits = 1, early = "none">}

// -----

// expected-error @+1 {{in_flight must be 1 to stages (2), found 3}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 1, warps = 1, stages = 2, in_flight = 3, columns = 1, splits = 1, early = "none">}

// -----

// expected-error @+1 {{early must be none, weights or cache, found 'all'}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 1, warps = 1, stages = 2, in_flight = 1, columns = 1, splits = 1, early = "all">}

// -----

// expected-error @+1 {{held must not be negative, found -1}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 1, warps = 1, stages = 2, in_flight = 1, columns = 1, splits = 1, early = "none", held = -1>}

// -----

// expected-error @+1 {{blocks, columns and splits must be at most 2147483647, stages at most 65536}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 3000000000, warps = 1, stages = 2, in_flight = 1, columns = 1, splits = 1, early = "none">}

// -----

// expected-error @+1 {{blocks, columns and splits must be at most 2147483647, stages at most 65536}}
func.func private @f() attributes {sluice.s = #fused.gpu_schedule<blocks = 1, warps = 1, stages = 70000, in_flight = 1, columns = 1, splits = 1, early = "none">}

// -----

func.func @f(%t: tensor<1xi32>, %w: tensor<8x4xf16>) {
  // expected-error @+1 {{schedule must be a host_schedule or a gpu_schedule, found 1 : i32}}
  %x = fused.embedding %t, %w schedule (1 : i32) : tensor<1xi32>, tensor<8x4xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%t: tensor<1xi32>, %w: tensor<8x4xf16>) {
  // expected-error @+1 {{result must be [tokens, table's width], found 'tensor<1x8xf32>'}}
  %x = fused.embedding %t, %w : tensor<1xi32>, tensor<8x4xf16> -> tensor<1x8xf32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x128xf16>, %p: tensor<1xi32>) {
  // expected-error @+1 {{query and result differ in shape}}
  %y = fused.attention %q, @c, @c at %p scale 1.0 : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x256xf16>
  return
}

// -----

func.func @f(%q: tensor<1x128xf16>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'fused.attention' op names an unknown cache @c}}
  %y = fused.attention %q, @c, @c at %p scale 1.0 : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{needs at least one weight}}
  "fused.matvec"(%x) <{segments = array<i64>}> ({}, {}) : (tensor<1x8xf32>) -> ()
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x16xf16>) {
  // expected-error @+1 {{input is 8 wide, a weight has 16 columns}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x16xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<?x8xf16>) {
  // expected-error @+1 {{weights must have a static shape}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<?x8xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{segments must be positive}}
  %y:2 = fused.matvec %x weights(%w) segments [4, 0] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32>, tensor<1x0xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{segments must sum to the 4 rows of the weights, found array<i64: 9223372036854775807, 9223372036854775807, 6>}}
  %y = fused.matvec %x weights(%w) segments [9223372036854775807, 9223372036854775807, 6] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{order names a segment that does not exist (there are 1)}}
  %y = fused.matvec %x weights(%w) segments [4] order [zip(0, 1)] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{order zips segments of different lengths: 1 and 3}}
  %y:2 = fused.matvec %x weights(%w) segments [1, 3] order [zip(0, 1)] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x1xf32>, tensor<1x3xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{order has heads of 16 rows, but segment 0 has 4}}
  %y = fused.matvec %x weights(%w) segments [4] order [pairs(0, 16)] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{order must name every segment once}}
  %y:2 = fused.matvec %x weights(%w) segments [1, 3] order [natural(1)] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x1xf32>, tensor<1x3xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{prologue must take ('tensor<1x8xf32>'), found ('tensor<1x4xf32>')}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32> prologue {
  ^bb0(%in: tensor<1x4xf32>):
    fused.yield %in : tensor<1x4xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{epilogue must end in fused.yield}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32> epilogue {
  ^bb0(%s: tensor<1x4xf32>):
    func.return %s : tensor<1x4xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{epilogue must yield ('tensor<1x4xf32>'), found ()}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32> epilogue {
  ^bb0(%s: tensor<1x4xf32>):
    fused.yield
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{expects a non-empty block}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf32> epilogue {
  ^bb0(%s: tensor<1x4xf32>):
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{without an epilogue must return ('tensor<1x4xf32>'), found ('tensor<1x4xf16>')}}
  %y = fused.matvec %x weights(%w) segments [4] : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x4xf16>
  return
}

// -----

func.func @f(%logits: tensor<2x16xf32>, %options: tensor<1x8xi32>) -> tensor<2xi32> {
  // expected-error @+1 {{options must be [2, 8], found 'tensor<1x8xi32>'}}
  %next = fused.sample %logits, %options : tensor<2x16xf32>, tensor<1x8xi32> -> tensor<2xi32>
  return %next : tensor<2xi32>
}

// -----

func.func @f(%logits: tensor<2x16xf32>, %options: tensor<2x8xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{result must have a token for each of 2 rows of logits, found 'tensor<1xi32>'}}
  %next = fused.sample %logits, %options : tensor<2x16xf32>, tensor<2x8xi32> -> tensor<1xi32>
  return %next : tensor<1xi32>
}

// -----

// expected-error @+1 {{stride and bytes must be multiples of 16, found 40 and 16}}
func.func private @f() attributes {sluice.p = #fused.prefetch<@w, blocks = 1, stride = 40, bytes = 16>}

// -----

// expected-error @+1 {{bytes at most stride}}
func.func private @f() attributes {sluice.p = #fused.prefetch<@w, blocks = 1, stride = 16, bytes = 32>}

// -----

model.weight @source : tensor<64x256xf16>
func.func @f(%x: tensor<1x256xf32>, %w: tensor<128x256xf16>) {
  // expected-error @+1 {{prefetches @source, which is no packed weight}}
  %y = fused.matvec %x weights(%w) segments [128] prefetch(#fused.prefetch<@source, blocks = 1, stride = 16, bytes = 16>)
      : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  return
}

// -----

model.weight @source : tensor<64x256xf16>
quantized.packed @packed of [@source] : !quantized.tensor<64x256xi8, group = 128, layout = lanes>
func.func @f(%x: tensor<1x256xf32>, %w: tensor<128x256xf16>) {
  // expected-error @+1 {{prefetches @packed, expected a weight of layout mma}}
  %y = fused.matvec %x weights(%w) segments [128] prefetch(#fused.prefetch<@packed, blocks = 1, stride = 16, bytes = 16>)
      : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  return
}

// -----

model.weight @source : tensor<64x256xf16>
quantized.packed @packed of [@source] : !quantized.tensor<64x256xi8, group = 128, layout = mma, columns = 256>
func.func @f(%x: tensor<1x256xf32>, %w: tensor<128x256xf16>) {
  // expected-error @+1 {{prefetches @packed up to byte 20800, it has 16640}}
  %y = fused.matvec %x weights(%w) segments [128] prefetch(#fused.prefetch<@packed, blocks = 5, stride = 4160, bytes = 4160>)
      : tensor<1x256xf32>, tensor<128x256xf16> -> tensor<1x128xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{'fused.rows' op must end in fused.yield}}
  %y = "fused.rows"() ({
    %s = model.silu %x : tensor<1x8xf32>
    func.return
  }) : () -> tensor<1x8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{must yield ('tensor<1x8xf16>'), found ('tensor<1x8xf32>')}}
  %y = fused.rows -> tensor<1x8xf16> body {
    %s = model.silu %x : tensor<1x8xf32>
    fused.yield %s : tensor<1x8xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{'fused.rows' op takes no arguments}}
  %y = "fused.rows"() ({
  ^bb0(%in: tensor<1x8xf32>):
    %s = model.silu %in : tensor<1x8xf32>
    fused.yield %s : tensor<1x8xf32>
  }) : () -> tensor<1x8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{'fused.rows' op computes nothing}}
  %y = fused.rows -> tensor<1x8xf32> body {
    fused.yield %x : tensor<1x8xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{cannot compute 'model.hadamard'}}
  %y = fused.rows -> tensor<1x8xf32> body {
    %h = model.hadamard %x head_dim 4 : tensor<1x8xf32>
    fused.yield %h : tensor<1x8xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{rotates heads of 4 and of 8 elements}}
  %y = fused.rows -> tensor<1x8xf32> body {
    %a = model.rotary %x at %p head_dim 4 <theta = 1.0> : tensor<1x8xf32>, tensor<1xi32>
    %b = model.rotary %a at %p head_dim 8 <theta = 1.0> : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %b : tensor<1x8xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %z: tensor<1x16xf32>) {
  // expected-error @+1 {{has matrices of different shapes, found 'tensor<1x16xf32>'}}
  %y, %w = fused.rows -> tensor<1x8xf32>, tensor<1x16xf32> body {
    %a = model.silu %x : tensor<1x8xf32>
    %b = model.silu %z : tensor<1x16xf32>
    fused.yield %a, %b : tensor<1x8xf32>, tensor<1x16xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<1x4x2x64xf16>
model.cache @v : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x128xf16>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'fused.attention' op soft cap must be positive}}
  %a = fused.attention %q, @k, @v at %p scale 0.125 soft_cap 0.0 : tensor<1x128xf16>, tensor<1xi32> -> tensor<1x128xf16>
  return
}


// -----

model.cache @k : !quantized.cache<1x16x2x4xf16>
model.cache @v : !quantized.cache<1x16x2x4xf16>
func.func @f(%q: tensor<1x8xf32>, %n: tensor<1x8xf32>, %p: tensor<1xi32>, %g: tensor<8xf32>, %h: tensor<2xf32>) {
  // expected-error @+1 {{prologue works on heads of 4 elements, 'model.rms_norm' on whole rows}}
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.5 : tensor<1x8xf32> new(tensor<1x8xf32>, tensor<1x8xf32>), tensor<1xi32> -> tensor<1x8xf16>
  prologue {
  ^bb0(%q0: tensor<1x8xf32>, %k0: tensor<1x8xf32>, %v0: tensor<1x8xf32>):
    %k1 = model.rms_norm %k0, %g epsilon 1.0e-6 : tensor<1x8xf32>, tensor<8xf32>
    model.cache_append @k, %k1 at %p : tensor<1x8xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<1x16x2x4xf16>
model.cache @v : !quantized.cache<1x16x2x4xf16>
func.func @f(%q: tensor<1x8xf32>, %n: tensor<1x8xf32>, %p: tensor<1xi32>, %g: tensor<8xf32>, %h: tensor<2xf32>) {
  // expected-error @+1 {{prologue works on heads of 4 elements, 'model.rms_norm' on heads of 2}}
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.5 : tensor<1x8xf32> new(tensor<1x8xf32>, tensor<1x8xf32>), tensor<1xi32> -> tensor<1x8xf16>
  prologue {
  ^bb0(%q0: tensor<1x8xf32>, %k0: tensor<1x8xf32>, %v0: tensor<1x8xf32>):
    %k1 = model.rms_norm %k0, %h epsilon 1.0e-6 head_dim 2 : tensor<1x8xf32>, tensor<2xf32>
    model.cache_append @k, %k1 at %p : tensor<1x8xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<1x16x2x4xf16>
model.cache @v : !quantized.cache<1x16x2x4xf16>
func.func @f(%q: tensor<1x8xf32>, %n: tensor<1x8xf32>, %p: tensor<1xi32>, %g: tensor<8xf32>, %h: tensor<2xf32>) {
  // expected-error @+1 {{prologue works on heads of 4 elements, 'model.rotary' on heads of 8}}
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.5 : tensor<1x8xf32> new(tensor<1x8xf32>, tensor<1x8xf32>), tensor<1xi32> -> tensor<1x8xf16>
  prologue {
  ^bb0(%q0: tensor<1x8xf32>, %k0: tensor<1x8xf32>, %v0: tensor<1x8xf32>):
    %k1 = model.rotary %k0 at %p head_dim 8 <theta = 10000.0> : tensor<1x8xf32>, tensor<1xi32>
    model.cache_append @k, %k1 at %p : tensor<1x8xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<1x16x2x4xf16>
model.cache @v : !quantized.cache<1x16x2x4xf16>
func.func @f(%q: tensor<1x8xf32>, %n: tensor<1x8xf32>, %p: tensor<1xi32>, %g: tensor<8xf32>, %h: tensor<2xf32>) {
  // expected-error @+1 {{prologue works on heads of 4 elements, 'model.hadamard' on heads of 8}}
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.5 : tensor<1x8xf32> new(tensor<1x8xf32>, tensor<1x8xf32>), tensor<1xi32> -> tensor<1x8xf16>
  prologue {
  ^bb0(%q0: tensor<1x8xf32>, %k0: tensor<1x8xf32>, %v0: tensor<1x8xf32>):
    %k1 = model.hadamard %k0 head_dim 8 : tensor<1x8xf32>
    model.cache_append @k, %k1 at %p : tensor<1x8xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<2x8xf32>, %n: tensor<2x8xf32>, %p: tensor<2xi32>, %t: tensor<2x2xui32>, %u: tensor<2x2xui32>) {
  // expected-error @+1 {{prologue appends to @v through another page table}}
  %y = fused.attention %q new(%n, %n), @k, @v at %p pages %t scale 0.5 : tensor<2x8xf32> new(tensor<2x8xf32>, tensor<2x8xf32>), tensor<2xi32>, tensor<2x2xui32> -> tensor<2x8xf16>
  prologue {
  ^bb0(%q0: tensor<2x8xf32>, %k0: tensor<2x8xf32>, %v0: tensor<2x8xf32>):
    model.cache_append @k, %k0 at %p pages %t : tensor<2x8xf32>, tensor<2xi32>, tensor<2x2xui32>
    model.cache_append @v, %v0 at %p pages %u : tensor<2x8xf32>, tensor<2xi32>, tensor<2x2xui32>
    fused.yield %q0 : tensor<2x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<2x8xf32>, %n: tensor<2x8xf32>, %p: tensor<2xi32>, %c: tensor<1xi32>, %t: tensor<1x2xui32>) {
  // expected-error @+1 {{prologue appends to @k through another page table}}
  %y = fused.append %q new(%n, %n), @k, @v at %p pages %t active(%c) : tensor<2x8xf32> new(tensor<2x8xf32>, tensor<2x8xf32>), tensor<2xi32>, tensor<1x2xui32> -> tensor<2x8xf32> prologue {
  ^bb0(%q0: tensor<2x8xf32>, %k0: tensor<2x8xf32>, %v0: tensor<2x8xf32>):
    model.cache_append @k, %k0 at %p : tensor<2x8xf32>, tensor<2xi32>
    model.cache_append @v, %v0 at %p pages %t : tensor<2x8xf32>, tensor<2xi32>, tensor<1x2xui32>
    fused.yield %q0 : tensor<2x8xf32>
  }
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<2x8xf16>, %p: tensor<2xi32>, %t: tensor<3x2xui32>) {
  // expected-error @+1 {{has 2 rows for a page table of 3 sequences}}
  %y = fused.attention %q, @k, @v at %p pages %t scale 0.5 : tensor<2x8xf16>, tensor<2xi32>, tensor<3x2xui32> -> tensor<2x8xf16>
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<16x8xf16>, %p: tensor<16xi32>, %t: tensor<3x2xui32>, %s: tensor<4xi32>) {
  // expected-error @+1 {{of packed sequences needs active and pages}}
  %y = fused.attention %q, @k, @v at %p pages %t starts %s scale 0.5 : tensor<16x8xf16>, tensor<16xi32>, tensor<3x2xui32> starts tensor<4xi32> -> tensor<16x8xf16>
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<16x8xf16>, %p: tensor<16xi32>, %n: tensor<1xi32>, %t: tensor<3x2xui32>, %s: tensor<3xi32>) {
  // expected-error @+1 {{of 3 packed sequences needs as many starts and an end, found 'tensor<3xi32>'}}
  %y = fused.attention %q, @k, @v at %p pages %t starts %s scale 0.5 active(%n) : tensor<16x8xf16>, tensor<16xi32>, tensor<3x2xui32> starts tensor<3xi32> -> tensor<16x8xf16>
  return
}

// -----

model.cache @k : !quantized.cache<6x32x2x4xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<6x32x2x4xf16, layout = lanes_values>
func.func @f(%q: tensor<16x8xf32>, %n: tensor<16x8xf32>, %p: tensor<16xi32>, %c: tensor<1xi32>, %t: tensor<3x2xui32>, %s: tensor<16xi32>) {
  // expected-error @+1 {{prologue appends to @v for other sequences}}
  %y = fused.append %q new(%n, %n), @k, @v at %p pages %t sequences %s active(%c) : tensor<16x8xf32> new(tensor<16x8xf32>, tensor<16x8xf32>), tensor<16xi32>, tensor<3x2xui32> sequences tensor<16xi32> -> tensor<16x8xf32> prologue {
  ^bb0(%q0: tensor<16x8xf32>, %k0: tensor<16x8xf32>, %v0: tensor<16x8xf32>):
    model.cache_append @k, %k0 at %p pages %t sequences %s : tensor<16x8xf32>, tensor<16xi32>, tensor<3x2xui32> sequences tensor<16xi32>
    model.cache_append @v, %v0 at %p pages %t sequences %p : tensor<16x8xf32>, tensor<16xi32>, tensor<3x2xui32> sequences tensor<16xi32>
    fused.yield %q0 : tensor<16x8xf32>
  }
  return
}

// -----

func.func @f(%x: tensor<16x8xf32>, %n: tensor<1xi32>, %s: tensor<4xi32>) {
  // expected-error @+1 {{result must be a row of the input for each of 3 sequences, found 'tensor<1x8xf32>'}}
  %y = fused.last_row %x active(%n) starts %s : tensor<16x8xf32> starts tensor<4xi32> -> tensor<1x8xf32>
  return
}

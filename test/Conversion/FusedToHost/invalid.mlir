// RUN: sluice-opt %s --convert-fused-to-host --split-input-file --verify-diagnostics

func.func @f(%x: tensor<1x32xf32>, %w: !quantized.tensor<32x32xf16, layout = lanes>) -> tensor<1x32xf32> {
  // expected-error @+1 {{'fused.matvec' op has no host schedule (fused-assign-schedules gives it one)}}
  %y = fused.matvec %x weights(%w) segments [32] : tensor<1x32xf32>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<1x32xf32>
  return %y : tensor<1x32xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %w: tensor<32x32xf16>) -> tensor<1x32xf32> {
  // expected-error @+1 {{weight must be packed in layout lanes, found 'tensor<32x32xf16>'}}
  %y = fused.matvec %x weights(%w) segments [32] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, tensor<32x32xf16> -> tensor<1x32xf32>
  return %y : tensor<1x32xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> (tensor<1x16xf32>, tensor<1x16xf32>) {
  // expected-error @+1 {{has 2 weights, expected one packed weight}}
  %y:2 = fused.matvec %x weights(%w, %w) segments [16, 16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>, tensor<1x16xf32>
  return %y#0, %y#1 : tensor<1x16xf32>, tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<9x32xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<9x16xf32> {
  // expected-error @+1 {{has 9 tokens, host kernels take at most 8}}
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<9x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<9x16xf32>
  return %y : tensor<9x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %w: !quantized.tensor<32x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16, 16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>, %b: tensor<1x16xf32>):
    %m = arith.mulf %a, %b : tensor<1x16xf32>
    // expected-error @+1 {{combines rows of segments 0 and 1, which the row order keeps in different tiles (zip would join them)}}
    fused.yield %m : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %r: tensor<1x16xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error @+1 {{in an epilogue reads a value that does not depend on the product}}
    fused.yield %r : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %p: tensor<1xi32>, %t: tensor<64x16xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error @+1 {{needs its rows in the order pairs(0, 16), found #quantized.row_order<natural(0)>}}
    %r = model.rotary %a at %p head_dim 16 <theta = 10000.0> table %t : tensor<1x16xf32>, tensor<1xi32>, tensor<64x16xf32>
    fused.yield %r : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %p: tensor<1xi32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] order [pairs(0, 16)] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error @+1 {{needs a table (fused-tabulate-rotary makes one)}}
    %r = model.rotary %a at %p head_dim 16 <theta = 10000.0> : tensor<1x16xf32>, tensor<1xi32>
    fused.yield %r : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %gain: tensor<16xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error @+1 {{'model.rms_norm' op in an epilogue cannot be converted to host code}}
    %r = model.rms_norm %a, %gain epsilon 1.0e-5 : tensor<1x16xf32>, tensor<16xf32>
    fused.yield %r : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %p: tensor<1xi32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  prologue {
  ^bb0(%a: tensor<1x32xf32>):
    // expected-error @+1 {{'math.absf' op in a prologue cannot be converted to host code}}
    %r = math.absf %a : tensor<1x32xf32>
    fused.yield %r : tensor<1x32xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%t: tensor<1xi32>, %w: !quantized.tensor<64x32xf16, layout = lanes>) -> tensor<1x32xf32> {
  // expected-error @+1 {{table must have layout rows, found '!quantized.tensor<64x32xf16, layout = lanes>'}}
  %x = fused.embedding %t, %w schedule (#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>)
      : tensor<1xi32>, !quantized.tensor<64x32xf16, layout = lanes> -> tensor<1x32xf32>
  return %x : tensor<1x32xf32>
}

// -----

// expected-error @+1 {{symbol 'kernels' is taken, kernels are generated under it}}
module @kernels {
}
func.func @f(%x: tensor<1x32xf32>, %w: !quantized.tensor<32x32xf16, layout = lanes>) -> tensor<1x32xf32> {
  %y = fused.matvec %x weights(%w) segments [32] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<1x32xf32>
  return %y : tensor<1x32xf32>
}

// -----

model.cache @k : !quantized.cache<1x64x1x20xf16, layout = mma_keys>
model.cache @v : !quantized.cache<1x64x1x20xf16, layout = mma_values>
func.func @f(%q: tensor<1x20xf16>, %p: tensor<1xi32>) -> tensor<1x20xf16> {
  // expected-error @+1 {{reads cache @k as lanes_keys, but it is '!quantized.cache<1x64x1x20xf16, layout = mma_keys>'}}
  %y = fused.attention %q, @k, @v at %p scale 0.25 schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 64>)
      : tensor<1x20xf16>, tensor<1xi32> -> tensor<1x20xf16>
  return %y : tensor<1x20xf16>
}

// -----

func.func @rounding(%x: tensor<1x256xf32>, %w: !quantized.tensor<16x256xi8, group = 128, layout = lanes>) -> tensor<1x16xf16> {
  %y = fused.matvec %x weights(%w) segments [16] schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x256xf32>, !quantized.tensor<16x256xi8, group = 128, layout = lanes> -> tensor<1x16xf16>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error@+1 {{'arith.truncf' op in an epilogue cannot be converted to host code}}
    %r = arith.truncf %a downward : tensor<1x16xf32> to tensor<1x16xf16>
    fused.yield %r : tensor<1x16xf16>
  }
  return %y : tensor<1x16xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x1x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x1x16xf16, layout = lanes_values>
func.func @f(%q: tensor<1x16xf32>, %r: tensor<1x16xf32>, %p: tensor<1xi32>) -> tensor<1x16xf16> {
  %y = fused.attention %q new(%r, %r), @k, @v at %p scale 0.25 schedule(#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 64>)
      : tensor<1x16xf32> new(tensor<1x16xf32>, tensor<1x16xf32>), tensor<1xi32> -> tensor<1x16xf16>
  prologue {
  ^bb0(%a: tensor<1x16xf32>, %b: tensor<1x16xf32>, %c: tensor<1x16xf32>):
    // expected-error @+1 {{'math.absf' op in a prologue cannot be converted to host code}}
    %d = math.absf %b : tensor<1x16xf32>
    model.cache_append @k, %d at %p : tensor<1x16xf32>, tensor<1xi32>
    model.cache_append @v, %c at %p : tensor<1x16xf32>, tensor<1xi32>
    fused.yield %a : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = lanes_values>
func.func @f(%q: tensor<1x64xf32>, %n: tensor<1x32xf32>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.25
      schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x64xf32> new(tensor<1x32xf32>, tensor<1x32xf32>), tensor<1xi32> -> tensor<1x64xf16>
  prologue {
  ^bb0(%q0: tensor<1x64xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
    // expected-error @+1 {{'model.rotary' op needs a table (fused-tabulate-rotary makes one)}}
    %k1 = model.rotary %k0 at %p head_dim 16 <theta = 10000.0> : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @k, %k1 at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x32xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x64xf32>
  }
  return %y : tensor<1x64xf16>
}

// -----

model.cache @k : !quantized.cache<1x64x2x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x2x16xf16, layout = lanes_values>
func.func @f(%q: tensor<1x64xf32>, %n: tensor<1x32xf32>, %p: tensor<1xi32>) -> tensor<1x64xf16> {
  %y = fused.attention %q new(%n, %n), @k, @v at %p scale 0.25
      schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x64xf32> new(tensor<1x32xf32>, tensor<1x32xf32>), tensor<1xi32> -> tensor<1x64xf16>
  prologue {
  ^bb0(%q0: tensor<1x64xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
    // expected-error @+1 {{'math.absf' op in a prologue cannot be converted to host code}}
    %k1 = math.absf %k0 : tensor<1x32xf32>
    model.cache_append @k, %k1 at %p : tensor<1x32xf32>, tensor<1xi32>
    model.cache_append @v, %v0 at %p : tensor<1x32xf32>, tensor<1xi32>
    fused.yield %q0 : tensor<1x64xf32>
  }
  return %y : tensor<1x64xf16>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %p: tensor<1xi32>, %t: tensor<64x16xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] order [pairs(0, 16)] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  epilogue {
  ^bb0(%a: tensor<1x16xf32>):
    // expected-error @+1 {{'model.rotary' op of interleaved pairs in an epilogue cannot be converted to host code}}
    %r = model.rotary %a at %p head_dim 16 interleaved <theta = 10000.0> table %t : tensor<1x16xf32>, tensor<1xi32>, tensor<64x16xf32>
    fused.yield %r : tensor<1x16xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %gain: tensor<16xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  prologue {
  ^bb0(%a: tensor<1x32xf32>):
    // expected-error @+1 {{'model.rms_norm' op of heads in a prologue of rows cannot be converted to host code}}
    %r = model.rms_norm %a, %gain epsilon 1.0e-5 head_dim 16 : tensor<1x32xf32>, tensor<16xf32>
    fused.yield %r : tensor<1x32xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x32xf32>, %p: tensor<1xi32>, %t: tensor<64x32xf32>, %w: !quantized.tensor<16x32xf16, layout = lanes>) -> tensor<1x16xf32> {
  %y = fused.matvec %x weights(%w) segments [16] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<1x32xf32>, !quantized.tensor<16x32xf16, layout = lanes> -> tensor<1x16xf32>
  prologue {
  ^bb0(%a: tensor<1x32xf32>):
    // expected-error @+1 {{'model.rotary' op in a prologue cannot be converted to host code}}
    %r = model.rotary %a at %p head_dim 32 <theta = 10000.0> table %t : tensor<1x32xf32>, tensor<1xi32>, tensor<64x32xf32>
    fused.yield %r : tensor<1x32xf32>
  }
  return %y : tensor<1x16xf32>
}

// -----

func.func @f(%x: tensor<1x8xf32>, %p: tensor<1xi32>) -> tensor<1x8xf32> {
  %y = fused.rows schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>) -> tensor<1x8xf32> body {
    // expected-error @+1 {{'model.rotary' op needs a table (fused-tabulate-rotary makes one)}}
    %t = model.rotary %x at %p head_dim 4 <theta = 1.0> : tensor<1x8xf32>, tensor<1xi32>
    fused.yield %t : tensor<1x8xf32>
  }
  return %y : tensor<1x8xf32>
}

// -----

model.cache @k : !quantized.cache<1x64x2x64xf16>
func.func @f(%x: tensor<1x128xf32>, %p: tensor<1xi32>) {
  fused.rows schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>) body {
    %s = model.silu %x : tensor<1x128xf32>
    // expected-error @+1 {{a kernel of rows on a host stores f16 or bf16 in layout}}
    model.cache_append @k, %s at %p : tensor<1x128xf32>, tensor<1xi32>
    fused.yield
  }
  return
}

// -----

func.func @f(%x: tensor<64x32xf32>, %n: tensor<1xi32>) -> !fused.prepared<64, 32, for = [#quantized.encoding<f16>], image> {
  // expected-error @+1 {{makes an image of a GPU block's shared memory, which no host kernel reads}}
  %p = fused.prepare %x active(%n) schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<64x32xf32> -> !fused.prepared<64, 32, for = [#quantized.encoding<f16>], image>
  return %p : !fused.prepared<64, 32, for = [#quantized.encoding<f16>], image>
}

// -----

model.cache @k : !quantized.cache<2x64x1x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<2x64x1x16xf16, layout = lanes_values>
func.func @f(%q: tensor<2x16xf16>, %p: tensor<2xi32>, %n: tensor<1xi32>) -> tensor<2x16xf16> {
  // expected-error @+1 {{attends to tokens of one sequence in caches of 2}}
  %y = fused.attention %q, @k, @v at %p scale 0.25 active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 64>)
      : tensor<2x16xf16>, tensor<2xi32> -> tensor<2x16xf16>
  return %y : tensor<2x16xf16>
}

// -----

func.func @f(%x: tensor<64x32xf32>, %n: tensor<1xi32>) -> !fused.prepared<64, 32, for = [#quantized.encoding<f16>, #quantized.encoding<i8, group = 32>]> {
  // expected-error @+1 {{is for weights of different encodings, host kernels take one}}
  %p = fused.prepare %x active(%n) schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : tensor<64x32xf32> -> !fused.prepared<64, 32, for = [#quantized.encoding<f16>, #quantized.encoding<i8, group = 32>]>
  return %p : !fused.prepared<64, 32, for = [#quantized.encoding<f16>, #quantized.encoding<i8, group = 32>]>
}

// -----

model.cache @k : !quantized.cache<1x64x1x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x1x16xf16>
func.func @f(%q: tensor<2x16xf16>, %x: tensor<2x16xf32>, %p: tensor<2xi32>, %n: tensor<1xi32>) -> tensor<2x16xf16> {
  // expected-error @+1 {{reads cache @v as lanes_values, but it is}}
  %y = fused.append %q new(%x, %x), @k, @v at %p active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>)
      : tensor<2x16xf16> new(tensor<2x16xf32>, tensor<2x16xf32>), tensor<2xi32> -> tensor<2x16xf16>
  prologue {
  ^bb0(%q0: tensor<2x16xf16>, %k0: tensor<2x16xf32>, %v0: tensor<2x16xf32>):
    fused.yield %q0 : tensor<2x16xf16>
  }
  return %y : tensor<2x16xf16>
}

// -----

func.func @f(%p: !fused.prepared<64, 32, for = [#quantized.encoding<i8, group = 32>]>, %n: tensor<1xi32>, %w: !quantized.tensor<32x32xf16, layout = lanes>) -> tensor<64x32xf32> {
  // expected-error @+1 {{expected one for its weight's encoding on a host}}
  %y = fused.matmul %p active(%n) weights(%w) segments [32] schedule (#fused.host_schedule<isa = "avx2", accumulators = 4, positions = 0>)
      : !fused.prepared<64, 32, for = [#quantized.encoding<i8, group = 32>]>, !quantized.tensor<32x32xf16, layout = lanes> -> tensor<64x32xf32>
  return %y : tensor<64x32xf32>
}

// -----

model.cache @k : !quantized.cache<1x64x1x16xf16, layout = lanes_keys>
model.cache @v : !quantized.cache<1x64x1x16xf16, layout = lanes_values>
model.cache @other : !quantized.cache<1x64x1x16xf16, layout = lanes_values>
func.func @f(%q: tensor<2x16xf16>, %x: tensor<2x16xf32>, %p: tensor<2xi32>, %n: tensor<1xi32>) -> tensor<2x16xf16> {
  %y = fused.append %q new(%x, %x), @k, @v at %p active(%n) schedule(#fused.host_schedule<isa = "avx2", accumulators = 1, positions = 0>)
      : tensor<2x16xf16> new(tensor<2x16xf32>, tensor<2x16xf32>), tensor<2xi32> -> tensor<2x16xf16>
  prologue {
  ^bb0(%q0: tensor<2x16xf16>, %k0: tensor<2x16xf32>, %v0: tensor<2x16xf32>):
    // expected-error @+1 {{in a prologue appends to a cache that attention does not read}}
    model.cache_append @other, %v0 at %p : tensor<2x16xf32>, tensor<2xi32>
    fused.yield %q0 : tensor<2x16xf16>
  }
  return %y : tensor<2x16xf16>
}

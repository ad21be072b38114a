// RUN: sluice-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{theta must be positive}}
func.func private @f() attributes {sluice.rope = #model.rope<theta = 0.0>}

// -----

// expected-error @+1 {{scaling must be linear, llama3, factors or yarn, found 'ntk'}}
func.func private @f() attributes {sluice.rope = #model.rope<theta = 1.0, ntk = [1.0]>}

// -----

// expected-error @+1 {{scaling llama3 has 4 values, found 1}}
func.func private @f() attributes {sluice.rope = #model.rope<theta = 1.0, llama3 = [8.0]>}

// -----

// expected-error @+1 {{values of a scaling must be positive}}
func.func private @f() attributes {sluice.rope = #model.rope<theta = 1.0, linear = [-2.0]>}

// -----

// expected-error @+1 {{scaling llama3 needs its second value (low) below its third (high)}}
func.func private @f() attributes {sluice.rope = #model.rope<theta = 1.0, llama3 = [8.0, 4.0, 4.0, 8192.0]>}

// -----

// expected-error @+1 {{type must be a builtin tensor of static shape or a quantized tensor, found 'tensor<?x4xf16>'}}
model.weight @w : tensor<?x4xf16>

// -----

// expected-error @+1 {{file, tensor, offset and length come together}}
"model.weight"() {sym_name = "w", type = tensor<4xf16>, file = "a"} : () -> ()

// -----

// expected-error @+1 {{offset and length must not be negative}}
model.weight @w : tensor<4xf16> from "a" tensor "b" at -1 size 8

// -----

// expected-error @+1 {{scheme and parts come together}}
"model.weight"() {sym_name = "w", type = tensor<4x4xf32>, file = "a", tensor = "b", offset = 0 : i64, length = 8 : i64, scheme = "gptq"} : () -> ()

// -----

// expected-error @+1 {{a scheme needs a file}}
"model.weight"() {sym_name = "w", type = tensor<4x4xf32>, scheme = "gptq", parts = []} : () -> ()

// -----

// expected-error @+1 {{a scheme has a quantized tensor, or a float32 matrix or vector, found 'tensor<4x4xf16>'}}
model.weight @w : tensor<4x4xf16> from "a" tensor "b" at 0 size 8 as "gptq" []

// -----

// expected-error @+1 {{a scheme's view is of rows of the matrix, found #model.view<block = 2, stride = 4> for 4 rows}}
model.weight @w : tensor<4x4xf32> from "a" tensor "b" at 0 size 8 as "fp8" [] view <block = 2, stride = 4>

// -----

// expected-error @+1 {{a scheme's view is of rows of the matrix, found #model.view<first = 5 of 8> for 4 rows}}
model.weight @w : tensor<4x4xf32> from "a" tensor "b" at 0 size 8 as "fp8" [] view <first = 5 of 8>

// -----

// expected-error @+1 {{only a scheme's matrix has rows of other weights in front}}
model.weight @w : tensor<4x4xf32> from "a" tensor "b" at 0 size 8 view <first = 4 of 8>

// -----

// expected-error @+1 {{first must be one of the matrix's rows, found 8 of 8}}
model.weight @w : tensor<4x4xf32> view <first = 8 of 8>

// -----

// expected-error @+1 {{shape, offset and size of a part must not be negative}}
func.func private @f() attributes {sluice.part = #model.part<"scales" from "a" tensor "b" : "F16" [4] at 0 size -1>}

// -----

// expected-error @+1 {{interleaved needs an even head size that divides the rows (4), found 3}}
model.weight @w : tensor<4x4xf16> interleaved 3

// -----

// expected-error @+1 {{type must be a float32 matrix [positions, head size], found 'tensor<4x4xf16>'}}
model.rope_table @t <theta = 1.0> : tensor<4x4xf16>

// -----

// expected-error @+1 {{needs 2 factors, found 1}}
model.rope_table @t <theta = 1.0, factors = [1.0]> : tensor<4x4xf32>

// -----

// expected-error @+1 {{a cache has four positive dimensions: sequences, positions, heads, head size}}
model.cache @c : !quantized.cache<1x4x0x64xf16>

// -----

func.func @f() {
  // expected-error @+1 {{names an unknown weight @w}}
  %w = model.parameter @w : tensor<4xf16>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f() {
  // expected-error @+1 {{@c is not a weight}}
  %w = model.parameter @c : tensor<4x2x64xf16>
  return
}

// -----

model.weight @w : tensor<4xf16>
func.func @f() {
  // expected-error @+1 {{has type 'tensor<8xf16>' but @w is 'tensor<4xf16>'}}
  %w = model.parameter @w : tensor<8xf16>
  return
}

// -----

func.func @f(%x: tensor<1x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{names an unknown cache @c}}
  model.cache_append @c, %x at %p : tensor<1x128xf32>, tensor<1xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%x: tensor<1x64xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{stores 64 numbers but a position of @c has 128}}
  model.cache_append @c, %x at %p : tensor<1x64xf32>, tensor<1xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'model.cache_append' op needs one position per row}}
  model.cache_append @c, %x at %p : tensor<2x128xf32>, tensor<1xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x128xf32>, %p: tensor<2xi32>) {
  // expected-error @+1 {{'model.attention' op attribute 'window' failed to satisfy constraint: 64-bit signless integer attribute whose value is positive}}
  %z = model.attention %q, @c, @c at %p scale 1.0 window 0 : tensor<1x128xf32>, tensor<2xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x128xf32>, %p: tensor<2xi32>) {
  // expected-error @+1 {{'model.attention' op needs one position per row}}
  %y = model.attention %q, @c, @c at %p scale 1.0 : tensor<1x128xf32>, tensor<2xi32>
  return
}

// -----

model.cache @k : !quantized.cache<1x4x2x64xf16>
model.cache @v : !quantized.cache<1x8x2x64xf16>
func.func @f(%q: tensor<1x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{keys and values differ in shape: '!quantized.cache<1x4x2x64xf16>' and '!quantized.cache<1x8x2x64xf16>'}}
  %y = model.attention %q, @k, @v at %p scale 1.0 : tensor<1x128xf32>, tensor<1xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x192xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{query width 192 must be a multiple of the keys' width 128}}
  %y = model.attention %q, @c, @c at %p scale 1.0 : tensor<1x192xf32>, tensor<1xi32>
  return
}

// -----

func.func @f(%t: tensor<1xi32>, %w: tensor<8x4xf16>) {
  // expected-error @+1 {{result must be [tokens, table's width], found 'tensor<1x8xf32>'}}
  %y = model.embedding %t, %w : tensor<1xi32>, tensor<8x4xf16> -> tensor<1x8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<4xf32>) {
  // expected-error @+1 {{gain has 4 elements, input is 8 wide}}
  %y = model.rms_norm %x, %g epsilon 1.0e-5 : tensor<1x8xf32>, tensor<4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<3xf32>) {
  // expected-error @+1 {{'model.rms_norm' op head_dim must divide the width 8, found 3}}
  %y = model.rms_norm %x, %g epsilon 1.0e-5 head_dim 3 : tensor<1x8xf32>, tensor<3xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<4xf32>) {
  // expected-error @+1 {{'model.rms_norm' op head_dim must divide the width 8, found -4}}
  %y = model.rms_norm %x, %g epsilon 1.0e-5 head_dim -4 : tensor<1x8xf32>, tensor<4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<8xf32>) {
  // expected-error @+1 {{gain has 8 elements, a head has 4}}
  %y = model.rms_norm %x, %g epsilon 1.0e-5 head_dim 4 : tensor<1x8xf32>, tensor<8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<8xf32>) {
  // expected-error @+1 {{epsilon must not be negative}}
  %y = model.rms_norm %x, %g epsilon -1.0 : tensor<1x8xf32>, tensor<8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x16xf16>) {
  // expected-error @+1 {{input is 8 wide, weight has 16 columns}}
  %y = model.linear %x, %w : tensor<1x8xf32>, tensor<4x16xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>) {
  // expected-error @+1 {{result must be [1, 4], found 'tensor<1x8xf32>'}}
  %y = model.linear %x, %w : tensor<1x8xf32>, tensor<4x8xf16> -> tensor<1x8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %w: tensor<4x8xf16>, %b: tensor<8xf16>) {
  // expected-error @+1 {{bias has 8 elements, weight has 4 rows}}
  %y = model.linear %x, %w bias %b : tensor<1x8xf32>, tensor<4x8xf16>, tensor<8xf16> -> tensor<1x4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %b: tensor<4xf16>) {
  // expected-error @+1 {{bias has 4 elements, input is 8 wide}}
  %y = model.add_bias %x, %b : tensor<1x8xf32>, tensor<4xf16>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %b: tensor<4xf32>) {
  // expected-error @+1 {{factor has 4 elements, input is 8 wide}}
  %y = model.scale_channels %x, %b : tensor<1x8xf32>, tensor<4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %b: tensor<4xf32>) {
  // expected-error @+1 {{order has 4 elements, input is 8 wide}}
  %y = model.reorder %x by %b : tensor<1x8xf32>, tensor<4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{head_dim must be even and divide the width 128, found 96}}
  %y = model.rotary %x at %p head_dim 96 <theta = 1.0> : tensor<1x128xf32>, tensor<1xi32>
  return
}

// -----

func.func @f(%x: tensor<2x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'model.rotary' op needs one position per row}}
  %y = model.rotary %x at %p head_dim 64 <theta = 1.0> : tensor<2x128xf32>, tensor<1xi32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'model.rotary' op needs 2 factors, found 1}}
  %y = model.rotary %x at %p head_dim 4 <theta = 1.0, factors = [1.0]> : tensor<1x8xf32>, tensor<1xi32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %p: tensor<1xi32>, %t: tensor<16x8xf32>) {
  // expected-error @+1 {{table is 8 wide, expected 4}}
  %y = model.rotary %x at %p head_dim 4 <theta = 1.0> table %t : tensor<1x8xf32>, tensor<1xi32>, tensor<16x8xf32>
  return
}

// -----

model.cache @k : !quantized.cache<1x4x2x60xf16>
model.cache @v : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x120xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{keys and values differ in shape}}
  %a = model.attention %q, @k, @v at %p scale 0.125 : tensor<1x120xf32>, tensor<1xi32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<4xf32>) {
  // expected-error @+1 {{'model.layer_norm' op gain has 4 elements, input is 8 wide}}
  %y = model.layer_norm %x, %g epsilon 1.0e-5 : tensor<1x8xf32>, tensor<4xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<8xf32>, %b: tensor<9xf32>) {
  // expected-error @+1 {{'model.layer_norm' op bias has 9 elements, input is 8 wide}}
  %y = model.layer_norm %x, %g bias %b epsilon 1.0e-5 : tensor<1x8xf32>, tensor<8xf32>, tensor<9xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>, %g: tensor<8xf32>) {
  // expected-error @+1 {{'model.layer_norm' op epsilon must not be negative}}
  %y = model.layer_norm %x, %g epsilon -1.0 : tensor<1x8xf32>, tensor<8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{'model.scale' op factor must be finite}}
  %y = model.scale %x by 0x7FF0000000000000 : tensor<1x8xf32>
  return
}

// -----

func.func @f(%x: tensor<1x8xf32>) {
  // expected-error @+1 {{'model.soft_cap' op soft cap must be positive}}
  %y = model.soft_cap %x at 0.0 : tensor<1x8xf32>
  return
}

// -----

model.cache @k : !quantized.cache<1x4x2x64xf16>
model.cache @v : !quantized.cache<1x4x2x64xf16>
func.func @f(%q: tensor<1x128xf32>, %p: tensor<1xi32>) {
  // expected-error @+1 {{'model.attention' op soft cap must be positive}}
  %a = model.attention %q, @k, @v at %p scale 0.125 soft_cap -1.0 : tensor<1x128xf32>, tensor<1xi32>
  return
}

// -----

// expected-error @+1 {{scaling yarn needs its third value (slow) below its second (fast)}}
model.rope_table @t <theta = 1.0, yarn = [2.0, 1.0, 1.0, 64.0]> : tensor<4x8xf32>

// -----

// expected-error @+1 {{dims must be even and not negative, found 3}}
model.rope_table @t <theta = 1.0, dims = 3> : tensor<4x8xf32>

// -----

// expected-error @+1 {{magnitude must be positive}}
model.rope_table @t <theta = 1.0, magnitude = -1.0> : tensor<4x8xf32>

// -----

// expected-error @+1 {{rotates 16 elements of a head of 8}}
model.rope_table @t <theta = 1.0, dims = 16> : tensor<4x8xf32>

// -----

// expected-error @+1 {{'model.rope_table' op needs 2 factors, found 1}}
model.rope_table @t <theta = 1.0, dims = 4, factors = [1.0]> : tensor<4x8xf32>

// -----

// expected-error @+1 {{expected block, stride, rotary, pitch or first}}
model.weight @w : tensor<8x8xf16> view <width = 3>

// -----

// expected-error @+1 {{stride must be at least block, found 2 and 4}}
model.weight @w : tensor<8x8xf16> view <block = 4, stride = 2>

// -----

// expected-error @+1 {{rotary must be even and at most the head's even size, found 6 of 4}}
model.weight @w : tensor<8x8xf16> view <rotary = 6 of 4>

// -----

// expected-error @+1 {{pitch must not be negative, found -8}}
model.weight @w : tensor<8x8xf16> view <pitch = -8>

// -----

// expected-error @+1 {{interleaved and view exclude each other}}
model.weight @w : tensor<8x8xf16> interleaved 4 view <pitch = 8>

// -----

// expected-error @+1 {{view has blocks of 3 and heads of 0 rows, which must divide the rows (8)}}
model.weight @w : tensor<8x8xf16> view <block = 3, stride = 9>

// -----

// expected-error @+1 {{pitch needs a matrix of floats with at most so many rows, found 'tensor<8x8xf16>' and 4}}
model.weight @w : tensor<8x8xf16> view <pitch = 4>

// -----

model.cache @c : !quantized.cache<4x32x2x64xf16>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>, %t: tensor<2x4xui32>) {
  // expected-error @+1 {{with a page table needs a cache of tiled pages of 32 positions, found '!quantized.cache<4x32x2x64xf16>'}}
  model.cache_append @c, %x at %p pages %t : tensor<2x128xf32>, tensor<2xi32>, tensor<2x4xui32>
  return
}

// -----

model.cache @c : !quantized.cache<4x64x2x64xf16, layout = mma_keys>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>, %t: tensor<2x4xui32>) {
  // expected-error @+1 {{with a page table needs a cache of tiled pages of 32 positions, found '!quantized.cache<4x64x2x64xf16, layout = mma_keys>'}}
  model.cache_append @c, %x at %p pages %t : tensor<2x128xf32>, tensor<2xi32>, tensor<2x4xui32>
  return
}

// -----

model.cache @c : !quantized.cache<4x32x2x64xf16, layout = mma_keys>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>, %t: tensor<3x4xui32>) {
  // expected-error @+1 {{has 2 rows for a page table of 3 sequences}}
  model.cache_append @c, %x at %p pages %t : tensor<2x128xf32>, tensor<2xi32>, tensor<3x4xui32>
  return
}

// -----

model.cache @c : !quantized.cache<4x32x2x64xf16, layout = mma_keys>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>, %t: tensor<?x4xui32>) {
  // expected-error @+1 {{needs a page table of static shape, found 'tensor<?x4xui32>'}}
  model.cache_append @c, %x at %p pages %t : tensor<2x128xf32>, tensor<2xi32>, tensor<?x4xui32>
  return
}

// -----

model.cache @c : !quantized.cache<4x32x2x64xf16, layout = mma_keys>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>, %t: tensor<2x4xi32>) {
  // expected-error @+1 {{operand #2 must be 2D tensor of 32-bit unsigned integer values, but got 'tensor<2x4xi32>'}}
  "model.cache_append"(%x, %p, %t) {cache = @c, operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<2x128xf32>, tensor<2xi32>, tensor<2x4xi32>) -> ()
  return
}

// -----

model.cache @c : !quantized.cache<4x8x2x64xf16>
func.func @f(%x: tensor<2x128xf32>, %p: tensor<2xi32>) {
  // expected-error @+1 {{has 2 rows for a cache of 4 sequences}}
  model.cache_append @c, %x at %p : tensor<2x128xf32>, tensor<2xi32>
  return
}

// -----

model.cache @c : !quantized.cache<4x32x2x64xf16, layout = mma_keys>
func.func @f(%x: tensor<8x128xf32>, %p: tensor<8xi32>, %t: tensor<2x4xui32>, %s: tensor<7xi32>) {
  // expected-error @+1 {{needs one sequence per row, found 'tensor<7xi32>' for 8}}
  model.cache_append @c, %x at %p pages %t sequences %s : tensor<8x128xf32>, tensor<8xi32>, tensor<2x4xui32> sequences tensor<7xi32>
  return
}

// -----

model.cache @c : !quantized.cache<1x128x2x64xf16>
func.func @f(%x: tensor<8x128xf32>, %p: tensor<8xi32>, %s: tensor<8xi32>) {
  // expected-error @+1 {{has rows of several sequences, whose caches must be in pages}}
  model.cache_append @c, %x at %p sequences %s : tensor<8x128xf32>, tensor<8xi32> sequences tensor<8xi32>
  return
}

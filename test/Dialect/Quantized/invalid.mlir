// RUN: sluice-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{unknown keyword 'groups'}}
func.func private @f(!quantized.tensor<4x256xi8, groups = 32>)

// -----

// expected-error @+1 {{a float format has neither groups nor zero points}}
func.func private @f(!quantized.tensor<4x256xf16, group = 32>)

// -----

// expected-error @+1 {{element type must be i3, i4, i5, i6, i8, ui2, ui4, ui5, f8E4M3FN, f16, bf16 or f32, found 'i7'}}
func.func private @f(!quantized.tensor<4x256xi7, group = 32>)

// -----

// expected-error @+1 {{an index into a table has element type i4, found 'ui4'}}
func.func private @f(!quantized.tensor<4x256xui4, table = e2m1, group = 32>)

// -----

// expected-error @+1 {{unknown table 'nf4': expected iq4_nl, e2m1, iq1, iq2, iq3_xxs or iq3_s}}
func.func private @f(!quantized.tensor<4x256xi4, table = nf4, group = 32>)

// -----

// expected-error @+1 {{unknown scale 'f64': expected f16, bf16, f32, i8, u6, u4, e8m0 or e4m3}}
func.func private @f(!quantized.tensor<4x256xi4, group = 32, scale = f64>)

// -----

// expected-error @+1 {{fp8 has scales of bf16 or f32}}
func.func private @f(!quantized.tensor<4x256xf8E4M3FN, group = 128>)

// -----

// expected-error @+1 {{scales of bf16 belong to fp8, of f32 to fp8, int8 and int4 in groups of 32 or more}}
func.func private @f(!quantized.tensor<4x256xi6, group = 128, scale = f32>)

// -----

// expected-error @+1 {{elements of this table have scales of a byte and a super-block}}
func.func private @f(!quantized.tensor<4x256xi4, table = iq2, group = 32>)

// -----

// expected-error @+1 {{unknown offset 'i8': expected f16 or field}}
func.func private @f(!quantized.tensor<4x256xi4, group = 32, offset = i8>)

// -----

// expected-error @+1 {{only signed elements have zero points}}
func.func private @f(!quantized.tensor<4x256xui4, group = 32, zero_point>)

// -----

// expected-error @+1 {{scales that are fields come with offsets that are fields}}
func.func private @f(!quantized.tensor<4x256xui4, group = 32, scale = u6>)

// -----

// expected-error @+1 {{scales that are fields belong to groups of 16 or 32}}
func.func private @f(!quantized.tensor<4x256xui4, group = 64, scale = u6, offset = field>)

// -----

// expected-error @+1 {{scales of a super-block belong to groups of 256 or fewer}}
func.func private @f(!quantized.tensor<4x256xi6, group = channel, scale = i8>)

// -----

// expected-error @+1 {{q4_k needs columns in whole super-blocks of 256, found 128}}
func.func private @f(!quantized.tensor<4x128xui4, group = 32, scale = u6, offset = field>)

// -----

// expected-error @+1 {{group is 48, expected 16, 32, 64, 128, 256 or channel}}
func.func private @f(!quantized.tensor<4x256xi8, group = 48>)

// -----

// expected-error @+1 {{unknown layout 'columns': expected rows, blocks, lanes, mma or records}}
func.func private @f(!quantized.tensor<4x256xi8, group = 32, layout = columns>)

// -----

// expected-error @+1 {{layout records needs columns, a positive multiple of 256, found 128}}
func.func private @f(!quantized.tensor<4x256xi8, group = 32, layout = records, columns = 128>)

// -----

// expected-error @+1 {{layout mma needs columns, a positive multiple of 128, found 0}}
func.func private @f(!quantized.tensor<4x256xi8, group = 32, layout = mma>)

// -----

// expected-error @+1 {{layout lanes has no columns}}
func.func private @f(!quantized.tensor<4x256xi8, group = 32, layout = lanes, columns = 128>)

// -----

// expected-error @+1 {{a quantized tensor has two positive dimensions}}
func.func private @f(!quantized.tensor<256xi8, group = 32>)

// -----

// expected-error @+1 {{a quantized tensor has at most 2^46 elements}}
func.func private @f(!quantized.tensor<1000000000000x256xi8, group = 32>)

// -----

// expected-error @+1 {{layout blocks needs columns in whole blocks of 32, found 100}}
func.func private @f(!quantized.tensor<4x100xi8, group = 32, layout = blocks>)

// -----

// expected-error @+1 {{layout blocks holds what GGUF has blocks of, found #quantized.encoding<i8, group = 64>}}
func.func private @f(!quantized.tensor<4x256xi8, group = 64, layout = blocks>)

// -----

// expected-error @+1 {{row order must be natural, pairs or zip, found 'reverse'}}
func.func private @f() attributes {sluice.order = #quantized.row_order<reverse(0, 1)>}

// -----

// expected-error @+1 {{row order has a negative operand}}
func.func private @f() attributes {sluice.order = #quantized.row_order<natural(-1)>}

// -----

// expected-error @+1 {{pairs needs an even, positive head size, found 3}}
func.func private @f() attributes {sluice.order = #quantized.row_order<pairs(0, 3)>}

// -----

// expected-error @+1 {{zip needs two different sources}}
func.func private @f() attributes {sluice.order = #quantized.row_order<zip(1, 1)>}

// -----

func.func @f(%w: tensor<4x256xf16>) {
  // expected-error @+1 {{result must have layout rows, found '!quantized.tensor<4x256xi8, group = 32, layout = lanes>'}}
  %q = quantized.quantize %w : tensor<4x256xf16> to !quantized.tensor<4x256xi8, group = 32, layout = lanes>
  return
}

// -----

func.func @f(%w: tensor<4x256xf16>) {
  // expected-error @+1 {{shapes differ: 'tensor<4x256xf16>' and '!quantized.tensor<8x256xi8, group = 32>'}}
  %q = quantized.quantize %w : tensor<4x256xf16> to !quantized.tensor<8x256xi8, group = 32>
  return
}

// -----

func.func @f(%q: !quantized.tensor<4x256xi8, group = 32>) {
  // expected-error @+1 {{shapes differ: 'tensor<8x256xf32>' and '!quantized.tensor<4x256xi8, group = 32>'}}
  %w = quantized.dequantize %q : !quantized.tensor<4x256xi8, group = 32> to tensor<8x256xf32>
  return
}

// -----

// expected-error @+1 {{needs at least one source}}
quantized.packed @p of [] : tensor<4xf32>

// -----

// expected-error @+1 {{type must be a quantized or builtin tensor, found 'f32'}}
quantized.packed @p of [@a] : f32

// -----

// expected-error @+1 {{a builtin tensor is made of one source in its own order}}
quantized.packed @p of [@a, @b] : tensor<4xf32>

// -----

// expected-error @+1 {{row order names a source that does not exist (there are 2)}}
quantized.packed @p of [@a, @b] order [zip(0, 2)] : !quantized.tensor<4x256xi8, group = 32, layout = lanes>

// -----

// expected-error @+1 {{row order must name every source once}}
quantized.packed @p of [@a, @b] order [natural(0)] : !quantized.tensor<4x256xi8, group = 32, layout = lanes>

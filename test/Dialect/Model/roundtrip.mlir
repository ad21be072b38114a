// RUN: sluice-opt --verify-roundtrip %s | FileCheck %s

// CHECK: model.weight @transposed : tensor<256x256xf16> from "m.safetensors" tensor "c_attn" at 512 size 392192 view <pitch = 768>
model.weight @transposed : tensor<256x256xf16> from "m.safetensors" tensor "c_attn" at 512 size 392192 view <pitch = 768>
// CHECK: model.weight @part : !quantized.tensor<64x256xi4, group = 128> from "m.safetensors" tensor "qkv" at 512 size 16384 as "gptq" [] view <first = 64 of 128>
model.weight @part : !quantized.tensor<64x256xi4, group = 128> from "m.safetensors" tensor "qkv" at 512 size 16384 as "gptq" [] view <first = 64 of 128>
// CHECK: model.weight @by_head : tensor<128x256xf16> view <block = 64, stride = 192, rotary = 16 of 64>
model.weight @by_head : tensor<128x256xf16> view <block = 64, stride = 192, rotary = 16 of 64>
// CHECK: model.weight @q : tensor<256x256xf16> from "model.safetensors" tensor "q_proj.weight" at 2425856 size 131072
model.weight @q : tensor<256x256xf16> from "model.safetensors" tensor "q_proj.weight" at 2425856 size 131072
// CHECK: model.weight @k : !quantized.tensor<128x256xi8, group = 32, layout = blocks> from "m.gguf" tensor "k" at 4096 size 34816 interleaved 64
model.weight @k : !quantized.tensor<128x256xi8, group = 32, layout = blocks> from "m.gguf" tensor "k" at 4096 size 34816 interleaved 64
// CHECK: model.weight @parts : !quantized.tensor<128x256xi4, group = 128> from "m.safetensors" tensor "v.qweight" at 128 size 16384 as "gptq" [#model.part<"scales" from "m.safetensors" tensor "v.scales" : "F16" [2, 128] at 16512 size 512>]
model.weight @parts : !quantized.tensor<128x256xi4, group = 128> from "m.safetensors" tensor "v.qweight" at 128 size 16384 as "gptq" [#model.part<"scales" from "m.safetensors" tensor "v.scales" : "F16" [2, 128] at 16512 size 512>]
// CHECK: model.weight @factor : tensor<256xf32> from "m.safetensors" tensor "v.global" at 8 size 4 as "inverse-factor" []
model.weight @factor : tensor<256xf32> from "m.safetensors" tensor "v.global" at 8 size 4 as "inverse-factor" []
// CHECK: model.weight @synthetic : tensor<2048x256xf16>{{$}}
model.weight @synthetic : tensor<2048x256xf16>
model.weight @gain : tensor<256xf32>
model.weight @shared : tensor<64xf32>
model.weight @bias : tensor<256xbf16>
// CHECK: model.rope_table @rope <theta = 1.000000e+04> : tensor<2048x64xf32>
model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
// CHECK: model.rope_table @rope.factors <theta = 1.000000e+04, factors = [1.000000e+00, 2.000000e+00]> : tensor<8x4xf32>
model.rope_table @rope.factors <theta = 10000.0, factors = [1.0, 2.0]> : tensor<8x4xf32>
// CHECK: model.cache @cache.k : !quantized.cache<1x2048x2x64xf16>
model.cache @cache.k : !quantized.cache<1x2048x2x64xf16>
model.cache @cache.v : !quantized.cache<1x2048x2x64xf16>

// CHECK-LABEL: func.func @every_operation
func.func @every_operation(%token: tensor<1xi32>, %position: tensor<1xi32>, %k: tensor<1x128xf32>) -> tensor<1x256xf32> {
  // CHECK: model.parameter @synthetic : tensor<2048x256xf16>
  %table = model.parameter @synthetic : tensor<2048x256xf16>
  %w = model.parameter @q : tensor<256x256xf16>
  %gain = model.parameter @gain : tensor<256xf32>
  %shared = model.parameter @shared : tensor<64xf32>
  %bias = model.parameter @bias : tensor<256xbf16>
  %rope = model.parameter @rope : tensor<2048x64xf32>
  // CHECK: model.embedding %{{.*}}, %{{.*}} : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  %x = model.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  // CHECK: model.rms_norm %{{.*}}, %{{.*}} epsilon 1.000000e-05 : tensor<1x256xf32>, tensor<256xf32>
  %n = model.rms_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
  // CHECK: model.rms_norm %{{.*}}, %{{.*}} epsilon 1.000000e-05 head_dim 64 : tensor<1x256xf32>, tensor<64xf32>
  %heads = model.rms_norm %x, %shared epsilon 1.0e-5 head_dim 64 : tensor<1x256xf32>, tensor<64xf32>
  // CHECK: model.linear %{{.*}}, %{{.*}} : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  %a = model.linear %n, %w : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>
  // CHECK: model.linear %{{.*}}, %{{.*}} bias %{{.*}} : tensor<1x256xf32>, tensor<256x256xf16>, tensor<256xbf16> -> tensor<1x256xf32>
  %b = model.linear %n, %w bias %bias : tensor<1x256xf32>, tensor<256x256xf16>, tensor<256xbf16> -> tensor<1x256xf32>
  // CHECK: model.add_bias %{{.*}}, %{{.*}} : tensor<1x256xf32>, tensor<256xbf16>
  %c = model.add_bias %a, %bias : tensor<1x256xf32>, tensor<256xbf16>
  // CHECK: model.scale_channels %{{.*}}, %{{.*}} : tensor<1x256xf32>, tensor<256xf32>
  %channels = model.scale_channels %a, %gain : tensor<1x256xf32>, tensor<256xf32>
  // CHECK: model.reorder %{{.*}} by %{{.*}} : tensor<1x256xf32>, tensor<256xf32>
  %sorted = model.reorder %a by %gain : tensor<1x256xf32>, tensor<256xf32>
  // CHECK: model.rotary %{{.*}} at %{{.*}} head_dim 64 <theta = 5.000000e+05, llama3 = [8.000000e+00, 1.000000e+00, 4.000000e+00, 8.192000e+03]> : tensor<1x256xf32>, tensor<1xi32>
  %d = model.rotary %c at %position head_dim 64 <theta = 500000.0, llama3 = [8.0, 1.0, 4.0, 8192.0]> : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.rotary %{{.*}} at %{{.*}} head_dim 64 <theta = 1.000000e+04, linear = [2.000000e+00]> table %{{.*}} : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
  %e = model.rotary %b at %position head_dim 64 <theta = 10000.0, linear = [2.0]> table %rope : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
  // CHECK: model.rotary %{{.*}} at %{{.*}} head_dim 64 interleaved <theta = 1.000000e+04> : tensor<1x256xf32>, tensor<1xi32>
  %interleaved = model.rotary %heads at %position head_dim 64 interleaved <theta = 10000.0> : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.cache_append @cache.k, %{{.*}} at %{{.*}} : tensor<1x128xf32>, tensor<1xi32>
  model.cache_append @cache.k, %k at %position : tensor<1x128xf32>, tensor<1xi32>
  // CHECK: model.attention %{{.*}}, @cache.k, @cache.v at %{{.*}} scale 1.250000e-01 : tensor<1x256xf32>, tensor<1xi32>
  %f = model.attention %d, @cache.k, @cache.v at %position scale 0.125 : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.attention %{{.*}}, @cache.k, @cache.v at %{{.*}} scale 1.250000e-01 window 64 : tensor<1x256xf32>, tensor<1xi32>
  %windowed = model.attention %d, @cache.k, @cache.v at %position scale 0.125 window 64 : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.silu %{{.*}} : tensor<1x256xf32>
  %g = model.silu %f : tensor<1x256xf32>
  // CHECK: model.rms_norm %{{.*}}, %{{.*}} plus_one epsilon 1.000000e-05 : tensor<1x256xf32>, tensor<256xf32>
  %gemma = model.rms_norm %x, %gain plus_one epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
  // CHECK: model.layer_norm %{{.*}}, %{{.*}} epsilon 1.000000e-05 : tensor<1x256xf32>, tensor<256xf32>
  %centred = model.layer_norm %x, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
  // CHECK: model.layer_norm %{{.*}}, %{{.*}} bias %{{.*}} epsilon 1.000000e-05 : tensor<1x256xf32>, tensor<256xf32>, tensor<256xbf16>
  %biased = model.layer_norm %x, %gain bias %bias epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>, tensor<256xbf16>
  // CHECK: model.gelu %{{.*}} : tensor<1x256xf32>
  %gelu = model.gelu %f : tensor<1x256xf32>
  // CHECK: model.gelu %{{.*}} tanh : tensor<1x256xf32>
  %approximate = model.gelu %f tanh : tensor<1x256xf32>
  // CHECK: model.scale %{{.*}} by 2.500000e-01 : tensor<1x256xf32>
  %scaled = model.scale %f by 0.25 : tensor<1x256xf32>
  // CHECK: model.soft_cap %{{.*}} at 3.000000e+01 : tensor<1x256xf32>
  %bounded = model.soft_cap %f at 30.0 : tensor<1x256xf32>
  // CHECK: model.attention %{{.*}}, @cache.k, @cache.v at %{{.*}} scale 1.250000e-01 window 64 soft_cap 5.000000e+01 : tensor<1x256xf32>, tensor<1xi32>
  %capped = model.attention %d, @cache.k, @cache.v at %position scale 0.125 window 64 soft_cap 50.0 : tensor<1x256xf32>, tensor<1xi32>
  // CHECK: model.rotary %{{.*}} at %{{.*}} head_dim 64 <theta = 1.000000e+04, dims = 16, yarn = [4.000000e+00, 3.200000e+01, 1.000000e+00, 2.048000e+03], magnitude = 1.250000e+00>
  %partial = model.rotary %a at %position head_dim 64 <theta = 10000.0, dims = 16, yarn = [4.0, 32.0, 1.0, 2048.0], magnitude = 1.25> : tensor<1x256xf32>, tensor<1xi32>
  %h = arith.addf %e, %g : tensor<1x256xf32>
  return %h : tensor<1x256xf32>
}

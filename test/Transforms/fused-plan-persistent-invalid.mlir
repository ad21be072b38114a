// RUN: sluice-opt %s --fused-plan-persistent=target=h100 --verify-diagnostics
// RUN: not sluice-opt %s --fused-plan-persistent=target=a100 2>&1 | FileCheck %s
// CHECK: error: sluice.persistent does not suit the step: a step as one kernel needs clusters and bulk copies, which sm_80 does not have

// expected-error @+1 {{sluice.persistent does not suit the step: 2 key/value heads on 3 clusters}}
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> attributes {sluice.persistent = #fused.persistent_schedule<clusters = 3, cluster_blocks = 2, attention_clusters = 3, warps = 4, stages = 6, attention_in_flight = 2, mlp_in_flight = 2>} {
  %table = model.parameter @table : tensor<2048x256xf16>
  %gain = model.parameter @gain : tensor<256xf32>
  %wqkv.f16 = model.parameter @wqkv : tensor<512x256xf16>
  %wqkv = quantized.quantize %wqkv.f16 : tensor<512x256xf16> to !quantized.tensor<512x256xi8, group = 128>
  %wo.f16 = model.parameter @wo : tensor<256x256xf16>
  %wo = quantized.quantize %wo.f16 : tensor<256x256xf16> to !quantized.tensor<256x256xi8, group = 128>
  %wgu.f16 = model.parameter @wgu : tensor<1536x256xf16>
  %wgu = quantized.quantize %wgu.f16 : tensor<1536x256xf16> to !quantized.tensor<1536x256xi8, group = 128>
  %wd.f16 = model.parameter @wd : tensor<256x768xf16>
  %wd = quantized.quantize %wd.f16 : tensor<256x768xf16> to !quantized.tensor<256x768xi8, group = 128>
  %wh.f16 = model.parameter @wh : tensor<2048x256xf16>
  %wh = quantized.quantize %wh.f16 : tensor<2048x256xf16> to !quantized.tensor<2048x256xi8, group = 128>
  %x = fused.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  %q, %k, %v = fused.matvec %x weights(%wqkv) segments [256, 128, 128] : tensor<1x256xf32>, !quantized.tensor<512x256xi8, group = 128> -> tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32> prologue {
  ^bb0(%i: tensor<1x256xf32>):
    %n = model.rms_norm %i, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%a: tensor<1x256xf32>, %b: tensor<1x128xf32>, %c: tensor<1x128xf32>):
    fused.yield %a, %b, %c : tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32>
  }
  %y = fused.attention %q new(%k, %v), @cache.k, @cache.v at %position scale 0.125 : tensor<1x256xf32> new(tensor<1x128xf32>, tensor<1x128xf32>), tensor<1xi32> -> tensor<1x256xf16> prologue {
  ^bb0(%a: tensor<1x256xf32>, %b: tensor<1x128xf32>, %c: tensor<1x128xf32>):
    model.cache_append @cache.k, %b at %position : tensor<1x128xf32>, tensor<1xi32>
    model.cache_append @cache.v, %c at %position : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %a : tensor<1x256xf32>
  }
  %z = fused.matvec %y weights(%wo) segments [256] : tensor<1x256xf16>, !quantized.tensor<256x256xi8, group = 128> -> tensor<1x256xf32> epilogue {
  ^bb0(%o: tensor<1x256xf32>):
    %s = arith.addf %x, %o : tensor<1x256xf32>
    fused.yield %s : tensor<1x256xf32>
  }
  %h = fused.matvec %z weights(%wgu) segments [768, 768] : tensor<1x256xf32>, !quantized.tensor<1536x256xi8, group = 128> -> tensor<1x768xf16> prologue {
  ^bb0(%i: tensor<1x256xf32>):
    %n = model.rms_norm %i, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%g: tensor<1x768xf32>, %u: tensor<1x768xf32>):
    %s = model.silu %g : tensor<1x768xf32>
    %m = arith.mulf %s, %u : tensor<1x768xf32>
    %r = arith.truncf %m : tensor<1x768xf32> to tensor<1x768xf16>
    fused.yield %r : tensor<1x768xf16>
  }
  %w = fused.matvec %h weights(%wd) segments [256] : tensor<1x768xf16>, !quantized.tensor<256x768xi8, group = 128> -> tensor<1x256xf32> epilogue {
  ^bb0(%d: tensor<1x256xf32>):
    %s = arith.addf %z, %d : tensor<1x256xf32>
    fused.yield %s : tensor<1x256xf32>
  }
  %l = fused.matvec %w weights(%wh) segments [2048] : tensor<1x256xf32>, !quantized.tensor<2048x256xi8, group = 128> -> tensor<1x2048xf32> prologue {
  ^bb0(%i: tensor<1x256xf32>):
    %n = model.rms_norm %i, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  }
  return %l : tensor<1x2048xf32>
}
model.weight @table : tensor<2048x256xf16>
model.weight @gain : tensor<256xf32>
model.weight @wqkv : tensor<512x256xf16>
model.weight @wo : tensor<256x256xf16>
model.weight @wgu : tensor<1536x256xf16>
model.weight @wd : tensor<256x768xf16>
model.weight @wh : tensor<2048x256xf16>
model.cache @cache.k : !quantized.cache<1x2048x2x64xi8>
model.cache @cache.v : !quantized.cache<1x2048x2x64xi8>

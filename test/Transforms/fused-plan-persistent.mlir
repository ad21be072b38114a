// RUN: sluice-opt %s --split-input-file --fused-plan-persistent=target=h100 | FileCheck %s
// RUN: not sluice-opt %s --split-input-file --fused-plan-persistent=target=nothing 2>&1 | FileCheck %s --check-prefix=BAD
// BAD: error: {{.*}}nothing
// RUN: sluice-opt %s --split-input-file --fused-plan-persistent="target=h100 where-faster context=100" | FileCheck %s --check-prefix=FASTER
// RUN: sluice-opt %s --split-input-file --fused-plan-persistent="target=h200 where-faster" | FileCheck %s --check-prefix=UNTOLD
// A model so small is all waits.
// FASTER-LABEL: func.func @decode
// FASTER-SAME: attributes {sluice.persistent_reason = "predicted at 100 positions: {{[0-9.]+}} us as one kernel, {{[0-9.]+}} us as a graph, the graph is faster", sluice.persistent_times = {graph = {{.*}}, layers = {{{.*}}}, persistent = {{.*}}, positions = 100 : i64}}
// UNTOLD-LABEL: func.func @decode
// UNTOLD-NOT: sluice.persistent_
// UNTOLD: return

// CHECK-LABEL: func.func @decode
// CHECK-SAME: sluice.persistent = #fused.persistent_schedule<clusters = 6, cluster_blocks = 8, attention_clusters = 2, warps = 16, stages = 12, attention_in_flight = 3, mlp_in_flight = 3>
// CHECK-SAME: sluice.persistent_reason = "6 clusters of 8 blocks, 2 of them with 1 key/value head each; in a layer a block multiplies at most 2 tiles of query, key and value by 256 columns, 2 tiles of the residual stream by 128 columns of attention's output, the gate and up rows of 128 of the MLP's inner values, and 2 tiles by 128 of these; a row gets 2 additions from attention and 6 from the MLP; a ring of 12 x 16640 bytes
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
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

// -----

// A schedule that somebody has chosen is kept.
// CHECK-LABEL: func.func @decode
// CHECK-SAME: sluice.persistent = #fused.persistent_schedule<clusters = 3, cluster_blocks = 2, attention_clusters = 1, warps = 4, stages = 6, attention_in_flight = 2, mlp_in_flight = 2>
// CHECK-SAME: sluice.persistent_reason = "3 clusters of 2 blocks, 1 of them with 2 key/value heads each
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> attributes {sluice.persistent = #fused.persistent_schedule<clusters = 3, cluster_blocks = 2, attention_clusters = 1, warps = 4, stages = 6, attention_in_flight = 2, mlp_in_flight = 2>} {
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

// -----

// A norm that subtracts a mean cannot be applied to the sums alone.
// CHECK-LABEL: func.func @decode
// CHECK-NOT: sluice.persistent =
// CHECK-SAME: sluice.persistent_reason = "layer 0: fused.matvec: its prologue is more than a norm by the root mean square, which alone can be applied to the sums"
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
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
    %n = model.layer_norm %i, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
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

// -----

// A bias would be added by every cluster.
// CHECK-LABEL: func.func @decode
// CHECK-NOT: sluice.persistent =
// CHECK-SAME: sluice.persistent_reason = "layer 0: fused.matvec: more happens to its sums than that they are added to the residual stream"
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
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
    %p = arith.addf %o, %o : tensor<1x256xf32>
    %s = arith.addf %x, %p : tensor<1x256xf32>
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

// -----

// Other formats are not divided into units of 128 columns.
// CHECK-LABEL: func.func @decode
// CHECK-NOT: sluice.persistent =
// CHECK-SAME: sluice.persistent_reason = "fused.matvec: weights of int8-g64, expected f16, bf16, int8-g128, int4-g128 or a layout of records"
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
  %table = model.parameter @table : tensor<2048x256xf16>
  %gain = model.parameter @gain : tensor<256xf32>
  %wqkv.f16 = model.parameter @wqkv : tensor<512x256xf16>
  %wqkv = quantized.quantize %wqkv.f16 : tensor<512x256xf16> to !quantized.tensor<512x256xi8, group = 64>
  %wo.f16 = model.parameter @wo : tensor<256x256xf16>
  %wo = quantized.quantize %wo.f16 : tensor<256x256xf16> to !quantized.tensor<256x256xi8, group = 64>
  %wgu.f16 = model.parameter @wgu : tensor<1536x256xf16>
  %wgu = quantized.quantize %wgu.f16 : tensor<1536x256xf16> to !quantized.tensor<1536x256xi8, group = 64>
  %wd.f16 = model.parameter @wd : tensor<256x768xf16>
  %wd = quantized.quantize %wd.f16 : tensor<256x768xf16> to !quantized.tensor<256x768xi8, group = 64>
  %wh.f16 = model.parameter @wh : tensor<2048x256xf16>
  %wh = quantized.quantize %wh.f16 : tensor<2048x256xf16> to !quantized.tensor<2048x256xi8, group = 64>
  %x = fused.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  %q, %k, %v = fused.matvec %x weights(%wqkv) segments [256, 128, 128] : tensor<1x256xf32>, !quantized.tensor<512x256xi8, group = 64> -> tensor<1x256xf32>, tensor<1x128xf32>, tensor<1x128xf32> prologue {
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
  %z = fused.matvec %y weights(%wo) segments [256] : tensor<1x256xf16>, !quantized.tensor<256x256xi8, group = 64> -> tensor<1x256xf32> epilogue {
  ^bb0(%o: tensor<1x256xf32>):
    %s = arith.addf %x, %o : tensor<1x256xf32>
    fused.yield %s : tensor<1x256xf32>
  }
  %h = fused.matvec %z weights(%wgu) segments [768, 768] : tensor<1x256xf32>, !quantized.tensor<1536x256xi8, group = 64> -> tensor<1x768xf16> prologue {
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
  %w = fused.matvec %h weights(%wd) segments [256] : tensor<1x768xf16>, !quantized.tensor<256x768xi8, group = 64> -> tensor<1x256xf32> epilogue {
  ^bb0(%d: tensor<1x256xf32>):
    %s = arith.addf %z, %d : tensor<1x256xf32>
    fused.yield %s : tensor<1x256xf32>
  }
  %l = fused.matvec %w weights(%wh) segments [2048] : tensor<1x256xf32>, !quantized.tensor<2048x256xi8, group = 64> -> tensor<1x2048xf32> prologue {
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

// -----

// CHECK-LABEL: func.func @decode
// CHECK-NOT: sluice.persistent =
// CHECK-SAME: sluice.persistent_reason = "an MLP of 704 inner values is not in whole groups of 128"
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
  %table = model.parameter @table : tensor<2048x256xf16>
  %gain = model.parameter @gain : tensor<256xf32>
  %wqkv.f16 = model.parameter @wqkv : tensor<512x256xf16>
  %wqkv = quantized.quantize %wqkv.f16 : tensor<512x256xf16> to !quantized.tensor<512x256xi8, group = 128>
  %wo.f16 = model.parameter @wo : tensor<256x256xf16>
  %wo = quantized.quantize %wo.f16 : tensor<256x256xf16> to !quantized.tensor<256x256xi8, group = 128>
  %wgu.f16 = model.parameter @wgu : tensor<1408x256xf16>
  %wgu = quantized.quantize %wgu.f16 : tensor<1408x256xf16> to !quantized.tensor<1408x256xi8, group = 128>
  %wd.f16 = model.parameter @wd : tensor<256x704xf16>
  %wd = quantized.quantize %wd.f16 : tensor<256x704xf16> to !quantized.tensor<256x704xi8, group = 128>
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
  %h = fused.matvec %z weights(%wgu) segments [704, 704] : tensor<1x256xf32>, !quantized.tensor<1408x256xi8, group = 128> -> tensor<1x704xf16> prologue {
  ^bb0(%i: tensor<1x256xf32>):
    %n = model.rms_norm %i, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf32>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%g: tensor<1x704xf32>, %u: tensor<1x704xf32>):
    %s = model.silu %g : tensor<1x704xf32>
    %m = arith.mulf %s, %u : tensor<1x704xf32>
    %r = arith.truncf %m : tensor<1x704xf32> to tensor<1x704xf16>
    fused.yield %r : tensor<1x704xf16>
  }
  %w = fused.matvec %h weights(%wd) segments [256] : tensor<1x704xf16>, !quantized.tensor<256x704xi8, group = 128> -> tensor<1x256xf32> epilogue {
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
model.weight @wgu : tensor<1408x256xf16>
model.weight @wd : tensor<256x704xf16>
model.weight @wh : tensor<2048x256xf16>
model.cache @cache.k : !quantized.cache<1x2048x2x64xi8>
model.cache @cache.v : !quantized.cache<1x2048x2x64xi8>

// -----

// CHECK-LABEL: func.func @decode
// CHECK-SAME: sluice.persistent_reason = "the step has no layers of a projection, attention and an MLP"
func.func @decode(%token: tensor<1xi32>) -> tensor<1x256xf32> {
  %table = model.parameter @table : tensor<2048x256xf16>
  %x = fused.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  return %x : tensor<1x256xf32>
}
model.weight @table : tensor<2048x256xf16>

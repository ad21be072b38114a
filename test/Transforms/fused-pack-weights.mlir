// RUN: sluice-opt %s --split-input-file --verify-diagnostics --fused-pack-weights=target=host-avx2 | FileCheck %s
// RUN: sluice-opt %s --split-input-file --verify-diagnostics --fused-pack-weights=target=h200 | FileCheck %s --check-prefix=MMA
// RUN: sluice-opt %s --split-input-file --verify-diagnostics --fused-pack-weights=target=h200 --fused-pack-weights=target=h200 | FileCheck %s --check-prefix=MMA
// RUN: not sluice-opt %s --split-input-file --fused-pack-weights=target=h2000 2>&1 | FileCheck %s --check-prefix=UNKNOWN
// RUN: not sluice-opt %s --split-input-file --fused-pack-weights="target=host-avx2 columns=128" 2>&1 | FileCheck %s --check-prefix=COLUMNS
// UNKNOWN: error: unknown target 'h2000', expected host, a100,
// COLUMNS: error: columns must be 0 or, for a GPU, positive; found 128 for target host-avx2

model.weight @blk.0.attn_norm : tensor<256xf16>
model.weight @blk.0.attn_q : tensor<256x256xf16>
model.weight @blk.0.attn_k : tensor<128x256xf16>
model.weight @blk.0.attn_v : tensor<128x256xf16>
model.weight @blk.0.attn_output : !quantized.tensor<256x256xi8, group = 32, layout = blocks>
model.weight @blk.0.ffn_gate : tensor<768x256xbf16>
model.weight @blk.0.ffn_up : tensor<768x256xbf16>
model.weight @blk.0.ffn_down : !quantized.tensor<256x14336xi4, group = 32, layout = blocks>
model.weight @token_embd : tensor<2048x256xf16>
model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>

// CHECK: quantized.packed @token_embd.rows of [@token_embd] : tensor<2048x256xf16>
// CHECK: quantized.packed @blk.0.attn_qkv of [@blk.0.attn_q, @blk.0.attn_k, @blk.0.attn_v] order [pairs(0, 64), pairs(1, 64), natural(2)]
// CHECK-SAME: {sluice.decision = "int8-g128", sluice.reason = "asked for"} : !quantized.tensor<512x256xi8, group = 128, layout = lanes>
// CHECK: quantized.packed @blk.0.attn_output.packed of [@blk.0.attn_output] order [natural(0)]
// CHECK-SAME: {sluice.decision = "int8-g32", sluice.reason = "as the model's file has it"} : !quantized.tensor<256x256xi8, group = 32, layout = lanes>
// CHECK: quantized.packed @blk.0.ffn_gate_up of [@blk.0.ffn_gate, @blk.0.ffn_up] order [zip(0, 1)]
// CHECK-SAME: {sluice.decision = "bf16", sluice.reason = "as the model's file has it"} : !quantized.tensor<1536x256xbf16, layout = lanes>
// CHECK: quantized.packed @blk.0.ffn_down.packed of [@blk.0.ffn_down] order [natural(0)]
// CHECK-SAME: !quantized.tensor<256x14336xi4, group = 32, layout = lanes>
// The tied head is packed apart from the embedding's rows.
// CHECK: quantized.packed @token_embd.packed of [@token_embd] order [natural(0)]
// CHECK-SAME: {sluice.decision = "int4-g64", sluice.reason = "one; two"} : !quantized.tensor<2048x256xi4, group = 64, layout = lanes>
// CHECK: quantized.packed @blk.0.attn_norm.f32 of [@blk.0.attn_norm] : tensor<256xf32>

// Chunks of 16 KB for wide matrices, all columns for narrow ones.
// MMA: quantized.packed @blk.0.attn_qkv {{.*}}!quantized.tensor<512x256xi8, group = 128, layout = mma, columns = 256>
// MMA: quantized.packed @blk.0.attn_output.packed {{.*}}!quantized.tensor<256x256xi8, group = 32, layout = records, columns = 256>
// MMA: quantized.packed @blk.0.ffn_gate_up {{.*}}!quantized.tensor<1536x256xbf16, layout = mma, columns = 256>
// MMA: quantized.packed @blk.0.ffn_down.packed {{.*}}!quantized.tensor<256x14336xi4, group = 32, layout = records, columns = 2048>

// CHECK-LABEL: func.func @decode
// CHECK-NOT: quantized.quantize
// CHECK-NOT: model.parameter @blk.0.attn_q :
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
  %table = model.parameter @token_embd : tensor<2048x256xf16>
  // CHECK: fused.embedding %{{.*}}, %{{.*}} : tensor<1xi32>, tensor<2048x256xf16>
  %x = fused.embedding %token, %table : tensor<1xi32>, tensor<2048x256xf16> -> tensor<1x256xf32>
  %gain = model.parameter @blk.0.attn_norm : tensor<256xf16>
  %rope = model.parameter @rope : tensor<2048x64xf32>
  %pq = model.parameter @blk.0.attn_q : tensor<256x256xf16>
  %pk = model.parameter @blk.0.attn_k : tensor<128x256xf16>
  %pv = model.parameter @blk.0.attn_v : tensor<128x256xf16>
  %wq = quantized.quantize %pq {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<256x256xf16> to !quantized.tensor<256x256xi8, group = 128>
  %wk = quantized.quantize %pk {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<128x256xf16> to !quantized.tensor<128x256xi8, group = 128>
  %wv = quantized.quantize %pv {sluice.decision = "int8-g128", sluice.reason = "asked for"} : tensor<128x256xf16> to !quantized.tensor<128x256xi8, group = 128>
  // CHECK: %[[QKV:.*]] = model.parameter @blk.0.attn_qkv
  // CHECK: fused.matvec %{{.*}} weights(%[[QKV]]) segments [256, 128, 128] order [pairs(0, 64), pairs(1, 64), natural(2)]
  %q, %v = fused.matvec %x weights(%wq, %wk, %wv) segments [256, 128, 128]
      : tensor<1x256xf32>, !quantized.tensor<256x256xi8, group = 128>, !quantized.tensor<128x256xi8, group = 128>, !quantized.tensor<128x256xi8, group = 128>
      -> tensor<1x256xf32>, tensor<1x128xf32>
  prologue {
  ^bb0(%in: tensor<1x256xf32>):
    // CHECK: model.rms_norm {{.*}} : tensor<1x256xf32>, tensor<256xf32>
    %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x256xf32>, tensor<256xf16>
    fused.yield %n : tensor<1x256xf32>
  } epilogue {
  ^bb0(%a: tensor<1x256xf32>, %b: tensor<1x128xf32>, %c: tensor<1x128xf32>):
    %r = model.rotary %a at %position head_dim 64 <theta = 10000.0> table %rope : tensor<1x256xf32>, tensor<1xi32>, tensor<2048x64xf32>
    %s = model.rotary %b at %position head_dim 64 <theta = 10000.0> table %rope : tensor<1x128xf32>, tensor<1xi32>, tensor<2048x64xf32>
    model.cache_append @cache.k.0, %s at %position : tensor<1x128xf32>, tensor<1xi32>
    fused.yield %r, %c : tensor<1x256xf32>, tensor<1x128xf32>
  }
  %wo = model.parameter @blk.0.attn_output : !quantized.tensor<256x256xi8, group = 32, layout = blocks>
  %y = fused.matvec %q weights(%wo) segments [256] : tensor<1x256xf32>, !quantized.tensor<256x256xi8, group = 32, layout = blocks> -> tensor<1x256xf32>
  %wg = model.parameter @blk.0.ffn_gate : tensor<768x256xbf16>
  %wu = model.parameter @blk.0.ffn_up : tensor<768x256xbf16>
  // CHECK: segments [768, 768] order [zip(0, 1)]
  %h = fused.matvec %y weights(%wg, %wu) segments [768, 768] : tensor<1x256xf32>, tensor<768x256xbf16>, tensor<768x256xbf16> -> tensor<1x768xf32>
  epilogue {
  ^bb0(%a: tensor<1x768xf32>, %b: tensor<1x768xf32>):
    %s = model.silu %a : tensor<1x768xf32>
    %m = arith.mulf %s, %b : tensor<1x768xf32>
    fused.yield %m : tensor<1x768xf32>
  }
  %wide = tensor.empty() : tensor<1x14336xf32>
  %wd = model.parameter @blk.0.ffn_down : !quantized.tensor<256x14336xi4, group = 32, layout = blocks>
  %z = fused.matvec %wide weights(%wd) segments [256] : tensor<1x14336xf32>, !quantized.tensor<256x14336xi4, group = 32, layout = blocks> -> tensor<1x256xf32>
  %half = quantized.quantize %table {sluice.decision = "int4-g64", sluice.reason = "one; two"} : tensor<2048x256xf16> to !quantized.tensor<2048x256xi4, group = 64>
  %logits = fused.matvec %z weights(%half) segments [2048] : tensor<1x256xf32>, !quantized.tensor<2048x256xi4, group = 64> -> tensor<1x2048xf32>
  return %logits : tensor<1x2048xf32>
}

// -----

// A weight that serves two products is packed once; one that is requantized is made from the file's blocks.
// CHECK: quantized.packed @w.packed of [@w] {{.*}} : !quantized.tensor<64x128xi4, group = 128, zero_point, layout = lanes>
// CHECK-NOT: quantized.packed
model.weight @w : !quantized.tensor<64x128xi8, group = 32, layout = blocks>
func.func @decode(%x: tensor<1x128xf32>) -> (tensor<1x64xf32>, tensor<1x64xf32>) {
  %w = model.parameter @w : !quantized.tensor<64x128xi8, group = 32, layout = blocks>
  %d = quantized.dequantize %w : !quantized.tensor<64x128xi8, group = 32, layout = blocks> to tensor<64x128xf32>
  %q = quantized.quantize %d : tensor<64x128xf32> to !quantized.tensor<64x128xi4, group = 128, zero_point>
  %a = fused.matvec %x weights(%q) segments [64] : tensor<1x128xf32>, !quantized.tensor<64x128xi4, group = 128, zero_point> -> tensor<1x64xf32>
  %b = fused.matvec %x weights(%q) segments [64] : tensor<1x128xf32>, !quantized.tensor<64x128xi4, group = 128, zero_point> -> tensor<1x64xf32>
  return %a, %b : tensor<1x64xf32>, tensor<1x64xf32>
}

// -----

model.weight @w : tensor<64x128xf16>
func.func @computed(%x: tensor<1x128xf32>, %w: tensor<64x128xf16>) -> tensor<1x64xf32> {
  // expected-error @+1 {{reads a weight that is computed, which cannot be packed}}
  %y = fused.matvec %x weights(%w) segments [64] : tensor<1x128xf32>, tensor<64x128xf16> -> tensor<1x64xf32>
  return %y : tensor<1x64xf32>
}

// -----

model.weight @w : tensor<64x128xf16>
func.func @twice(%x: tensor<1x128xf32>) -> tensor<1x64xf32> {
  %w = model.parameter @w : tensor<64x128xf16>
  %q = quantized.quantize %w : tensor<64x128xf16> to !quantized.tensor<64x128xi8, group = 32>
  %d = quantized.dequantize %q : !quantized.tensor<64x128xi8, group = 32> to tensor<64x128xf32>
  %r = quantized.quantize %d : tensor<64x128xf32> to !quantized.tensor<64x128xi4, group = 32>
  // expected-error @+1 {{reads a weight that is rounded twice, which cannot be packed}}
  %y = fused.matvec %x weights(%r) segments [64] : tensor<1x128xf32>, !quantized.tensor<64x128xi4, group = 32> -> tensor<1x64xf32>
  return %y : tensor<1x64xf32>
}

// -----

model.weight @a : tensor<64x128xf16>
model.weight @b : tensor<64x128xbf16>
func.func @formats(%x: tensor<1x128xf32>) -> (tensor<1x64xf32>, tensor<1x64xf32>) {
  %a = model.parameter @a : tensor<64x128xf16>
  %b = model.parameter @b : tensor<64x128xbf16>
  // expected-error-re @+1 {{reads weights of different formats, {{which only kernels for GPUs do|one of them f16, which needs its own kernel: records are of integers}}}}
  %y, %z = fused.matvec %x weights(%a, %b) segments [64, 64] : tensor<1x128xf32>, tensor<64x128xf16>, tensor<64x128xbf16> -> tensor<1x64xf32>, tensor<1x64xf32>
  return %y, %z : tensor<1x64xf32>, tensor<1x64xf32>
}

// -----

model.weight @w : tensor<40x128xf16>
func.func @segments(%x: tensor<1x128xf32>) -> (tensor<1x20xf32>, tensor<1x20xf32>) {
  %w = model.parameter @w : tensor<40x128xf16>
  // expected-error @+1 {{has a weight of several segments, of which one has 20 rows, not a multiple of 16}}
  %y, %z = fused.matvec %x weights(%w) segments [20, 20] : tensor<1x128xf32>, tensor<40x128xf16> -> tensor<1x20xf32>, tensor<1x20xf32>
  return %y, %z : tensor<1x20xf32>, tensor<1x20xf32>
}

// -----

model.weight @w : tensor<64x128xf16>
func.func @unfused(%x: tensor<1x128xf32>) -> tensor<1x64xf32> {
  // expected-error @+1 {{loads @w for 'model.linear', which reads no packed weight}}
  %w = model.parameter @w : tensor<64x128xf16>
  %y = model.linear %x, %w : tensor<1x128xf32>, tensor<64x128xf16> -> tensor<1x64xf32>
  return %y : tensor<1x64xf32>
}

// -----

model.weight @w : tensor<16x0xf16>
func.func @empty(%x: tensor<1x0xf32>) -> tensor<1x16xf32> {
  %w = model.parameter @w : tensor<16x0xf16>
  // expected-error @+1 {{has an input of type 'tensor<1x0xf32>', expected a positive width}}
  %y = fused.matvec %x weights(%w) segments [16] : tensor<1x0xf32>, tensor<16x0xf16> -> tensor<1x16xf32>
  return %y : tensor<1x16xf32>
}

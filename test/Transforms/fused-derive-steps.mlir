// RUN: sluice-opt %s -split-input-file -fused-derive-steps="prefill=16" | FileCheck %s
// RUN: sluice-opt %s -split-input-file -fused-derive-steps="prefill=0" | FileCheck %s --check-prefix=NONE
// RUN: sluice-opt %s -split-input-file -fused-derive-steps="target=host" | FileCheck %s --check-prefix=TARGET

// NONE-NOT: func.func @prefill
// A step has no more tokens than the context has positions.
// TARGET: func.func @prefill_40(
// TARGET: func.func @prefill_64(

// The product before attention reads a prepared input; attention's prologue appends in a kernel of its own; behind attention there
// is one row.
// CHECK-LABEL: func.func @decode(
// CHECK-SAME: tensor<1xi32>
// CHECK-LABEL: func.func @prefill_16(
// CHECK-SAME: %[[TOKENS:.*]]: tensor<16xi32>, %[[POSITIONS:.*]]: tensor<16xi32>, %[[COUNT:.*]]: tensor<1xi32>) -> tensor<1x128xf32>
// CHECK: %[[X:.*]] = fused.embedding %[[TOKENS]], %{{.*}} active(%[[COUNT]]) : tensor<16xi32>, tensor<128x64xf16> -> tensor<16x64xf32>
// CHECK: %[[P:.*]] = fused.prepare %[[X]] active(%[[COUNT]]) : tensor<16x64xf32> -> !fused.prepared<16, 64, for = [#quantized.encoding<i8, group = 32>]> prologue {
// CHECK: ^bb0(%[[IN:.*]]: tensor<16x64xf32>):
// CHECK: model.rms_norm %[[IN]]
// CHECK: %[[QKV:.*]]:3 = fused.matmul %[[P]] active(%[[COUNT]]) weights(%{{.*}}) segments [64, 32, 32]
// CHECK-NOT: prefetch
// CHECK-SAME: -> tensor<16x64xf32>, tensor<16x32xf32>, tensor<16x32xf32>
// CHECK: %[[Q:.*]] = fused.append %[[QKV]]#0 new(%[[QKV]]#1, %[[QKV]]#2), @k, @v at %[[POSITIONS]] active(%[[COUNT]])
// CHECK-SAME: tensor<16xi32> -> tensor<16x64xf32> prologue {
// CHECK: ^bb0(%[[Q0:.*]]: tensor<16x64xf32>, %[[K0:.*]]: tensor<16x32xf32>, %[[V0:.*]]: tensor<16x32xf32>):
// CHECK: model.rotary %[[Q0]] at %[[POSITIONS]]
// CHECK: model.cache_append @k, %{{.*}} at %[[POSITIONS]] : tensor<16x32xf32>, tensor<16xi32>
// CHECK: %[[A:.*]] = fused.attention %[[Q]], @k, @v at %[[POSITIONS]] scale 2.500000e-01 active(%[[COUNT]]) : tensor<16x64xf32>, tensor<16xi32> -> tensor<16x64xf16>
// CHECK-DAG: %[[LASTA:.*]] = fused.last_row %[[A]] active(%[[COUNT]]) : tensor<16x64xf16> -> tensor<1x64xf16>
// CHECK-DAG: %[[LASTX:.*]] = fused.last_row %[[X]] active(%[[COUNT]]) : tensor<16x64xf32> -> tensor<1x64xf32>
// CHECK: fused.matvec %[[LASTA]]
// CHECK: arith.addf %[[LASTX]], %{{.*}} : tensor<1x64xf32>
// CHECK: %[[LOGITS:.*]] = fused.matvec {{.*}} -> tensor<1x128xf32>
// CHECK: return %[[LOGITS]] : tensor<1x128xf32>
module attributes {model.config = {context_length = 40 : i64}} {
  model.weight @embd : tensor<128x64xf16>
  model.weight @gain : tensor<64xf32>
  model.weight @qkv : !quantized.tensor<128x64xi8, group = 32, layout = lanes>
  model.weight @o : !quantized.tensor<64x64xi8, group = 32, layout = lanes>
  model.weight @head : !quantized.tensor<128x64xi8, group = 32, layout = lanes>
  model.rope_table @rope <theta = 10000.0> : tensor<40x16xf32>
  model.cache @k : !quantized.cache<1x64x2x16xi8, group = head, layout = lanes_keys>
  model.cache @v : !quantized.cache<1x64x2x16xi8, group = head, layout = lanes_values>
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x128xf32> {
    %table = model.parameter @embd : tensor<128x64xf16>
    %gain = model.parameter @gain : tensor<64xf32>
    %rope = model.parameter @rope : tensor<40x16xf32>
    %w = model.parameter @qkv : !quantized.tensor<128x64xi8, group = 32, layout = lanes>
    %wo = model.parameter @o : !quantized.tensor<64x64xi8, group = 32, layout = lanes>
    %wh = model.parameter @head : !quantized.tensor<128x64xi8, group = 32, layout = lanes>
    %x = fused.embedding %token, %table : tensor<1xi32>, tensor<128x64xf16> -> tensor<1x64xf32>
    %qkv:3 = fused.matvec %x weights(%w) segments [64, 32, 32] : tensor<1x64xf32>, !quantized.tensor<128x64xi8, group = 32, layout = lanes> -> tensor<1x64xf32>, tensor<1x32xf32>, tensor<1x32xf32>
    prologue {
    ^bb0(%in: tensor<1x64xf32>):
      %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x64xf32>, tensor<64xf32>
      fused.yield %n : tensor<1x64xf32>
    }
    %a = fused.attention %qkv#0 new(%qkv#1, %qkv#2), @k, @v at %position scale 0.25
        : tensor<1x64xf32> new(tensor<1x32xf32>, tensor<1x32xf32>), tensor<1xi32> -> tensor<1x64xf16>
    prologue {
    ^bb0(%q0: tensor<1x64xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
      %q1 = model.rotary %q0 at %position head_dim 16 <theta = 10000.0> table %rope : tensor<1x64xf32>, tensor<1xi32>, tensor<40x16xf32>
      %k1 = model.rotary %k0 at %position head_dim 16 <theta = 10000.0> table %rope : tensor<1x32xf32>, tensor<1xi32>, tensor<40x16xf32>
      model.cache_append @k, %k1 at %position : tensor<1x32xf32>, tensor<1xi32>
      model.cache_append @v, %v0 at %position : tensor<1x32xf32>, tensor<1xi32>
      fused.yield %q1 : tensor<1x64xf32>
    }
    %y = fused.matvec %a weights(%wo) segments [64] : tensor<1x64xf16>, !quantized.tensor<64x64xi8, group = 32, layout = lanes> -> tensor<1x64xf32>
    epilogue {
    ^bb0(%s: tensor<1x64xf32>):
      %r = arith.addf %x, %s : tensor<1x64xf32>
      fused.yield %r : tensor<1x64xf32>
    }
    %logits = fused.matvec %y weights(%wh) segments [128] : tensor<1x64xf32>, !quantized.tensor<128x64xi8, group = 32, layout = lanes> -> tensor<1x128xf32>
    prologue {
    ^bb0(%in: tensor<1x64xf32>):
      %n = model.rms_norm %in, %gain epsilon 1.0e-5 : tensor<1x64xf32>, tensor<64xf32>
      fused.yield %n : tensor<1x64xf32>
    }
    return %logits : tensor<1x128xf32>
  }
}

// -----

// Where a step chooses the token, this one chooses the one behind the last row.
// CHECK-LABEL: func.func @prefill_16(
// CHECK-SAME: %{{.*}}: tensor<16xi32>, %{{.*}}: tensor<16xi32>, %{{.*}}: tensor<1xi32>, %[[OPTIONS:.*]]: tensor<1x8xi32>) -> (tensor<1x128xf32>, tensor<1xi32>)
// CHECK: fused.prepare {{.*}} -> !fused.prepared<16, 32, for = [#quantized.encoding<f16>], image>
// CHECK: fused.attention {{.*}} window 8 {{.*}} : tensor<16x32xf16>
// CHECK: fused.sample %{{.*}}, %[[OPTIONS]] : tensor<1x128xf32>, tensor<1x8xi32> -> tensor<1xi32>
module attributes {model.config = {context_length = 128 : i64}} {
  model.weight @embd : tensor<128x32xf16>
  model.weight @head : !quantized.tensor<128x32xf16, layout = mma, columns = 128>
  model.weight @w : !quantized.tensor<96x32xf16, layout = mma, columns = 128>
  model.cache @k : !quantized.cache<1x128x2x16xf16, layout = mma_keys>
  model.cache @v : !quantized.cache<1x128x2x16xf16, layout = mma_values>
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x8xi32>) -> (tensor<1x128xf32>, tensor<1xi32>) {
    %table = model.parameter @embd : tensor<128x32xf16>
    %w = model.parameter @w : !quantized.tensor<96x32xf16, layout = mma, columns = 128>
    %wh = model.parameter @head : !quantized.tensor<128x32xf16, layout = mma, columns = 128>
    %x = fused.embedding %token, %table : tensor<1xi32>, tensor<128x32xf16> -> tensor<1x32xf32>
    %q = fused.matvec %x weights(%w) segments [32, 32, 32] : tensor<1x32xf32>, !quantized.tensor<96x32xf16, layout = mma, columns = 128> -> tensor<1x32xf16>
    epilogue {
    ^bb0(%q0: tensor<1x32xf32>, %k0: tensor<1x32xf32>, %v0: tensor<1x32xf32>):
      model.cache_append @k, %k0 at %position : tensor<1x32xf32>, tensor<1xi32>
      model.cache_append @v, %v0 at %position : tensor<1x32xf32>, tensor<1xi32>
      %h = arith.truncf %q0 : tensor<1x32xf32> to tensor<1x32xf16>
      fused.yield %h : tensor<1x32xf16>
    }
    %a = fused.attention %q, @k, @v at %position scale 0.25 window 8 : tensor<1x32xf16>, tensor<1xi32> -> tensor<1x32xf16>
    %logits = fused.matvec %a weights(%wh) segments [128] : tensor<1x32xf16>, !quantized.tensor<128x32xf16, layout = mma, columns = 128> -> tensor<1x128xf32>
    %next = fused.sample %logits, %options : tensor<1x128xf32>, tensor<1x8xi32> -> tensor<1xi32>
    return %logits, %next : tensor<1x128xf32>, tensor<1xi32>
  }
}

// -----

// Of a step of several sequences, whose caches are in pages, a prompts' step takes packed tokens of several of them; behind the last
// attention a row of each goes on. The step itself gets products of many tokens.
// CHECK-LABEL: module @batch
// CHECK: func.func @decode(%{{.*}}: tensor<3xi32>, %{{.*}}: tensor<3xi32>, %[[TABLE:.*]]: tensor<3x2xui32>, %{{.*}}: tensor<3x8xi32>) -> (tensor<3x128xf32>, tensor<3xi32>)
// CHECK: fused.prepare %{{[0-9]*}} : tensor<3x32xf32>
// CHECK: model.cache_append @k, %{{.*}} pages %[[TABLE]] : tensor<3x32xf32>, tensor<3xi32>, tensor<3x2xui32>
// CHECK: fused.attention {{.*}} pages %[[TABLE]] scale
// CHECK-LABEL: func.func @prefill_16(
// CHECK-SAME: %{{.*}}: tensor<16xi32>, %[[POSITIONS:.*]]: tensor<16xi32>, %[[COUNT:.*]]: tensor<1xi32>, %[[OWNERS:.*]]: tensor<16xi32>, %[[STARTS:.*]]: tensor<4xi32>, %[[PAGES:.*]]: tensor<3x2xui32>, %[[OPTIONS:.*]]: tensor<3x8xi32>) -> (tensor<3x128xf32>, tensor<3xi32>)
// CHECK: fused.embedding {{.*}} active(%[[COUNT]])
// CHECK: model.cache_append @k, %{{.*}} at %[[POSITIONS]] pages %[[PAGES]] sequences %[[OWNERS]] : tensor<16x32xf32>, tensor<16xi32>, tensor<3x2xui32> sequences tensor<16xi32>
// CHECK: %[[A:.*]] = fused.attention {{.*}} pages %[[PAGES]] starts %[[STARTS]] scale {{.*}} active(%[[COUNT]]) : tensor<16x32xf16>, tensor<16xi32>, tensor<3x2xui32> starts tensor<4xi32>
// CHECK: %[[LAST:.*]] = fused.last_row %[[A]] active(%[[COUNT]]) starts %[[STARTS]] : tensor<16x32xf16> starts tensor<4xi32> -> tensor<3x32xf16>
// CHECK: %[[P:.*]] = fused.prepare %[[LAST]] : tensor<3x32xf16>
// CHECK: fused.matmul %[[P]] weights({{.*}} -> tensor<3x128xf32>
// CHECK: fused.sample %{{.*}}, %[[OPTIONS]] : tensor<3x128xf32>, tensor<3x8xi32> -> tensor<3xi32>
module @batch attributes {model.config = {batch = 3 : i64, context_length = 40 : i64}} {
  model.weight @embd : tensor<128x32xf16>
  model.weight @head : !quantized.tensor<128x32xf16, layout = mma, columns = 128>
  model.weight @w : !quantized.tensor<96x32xf16, layout = mma, columns = 128>
  model.cache @k : !quantized.cache<9x32x2x16xf16, layout = mma_keys>
  model.cache @v : !quantized.cache<9x32x2x16xf16, layout = mma_values>
  func.func @decode(%token: tensor<3xi32>, %position: tensor<3xi32>, %pages: tensor<3x2xui32>, %options: tensor<3x8xi32>) -> (tensor<3x128xf32>, tensor<3xi32>) {
    %table = model.parameter @embd : tensor<128x32xf16>
    %w = model.parameter @w : !quantized.tensor<96x32xf16, layout = mma, columns = 128>
    %wh = model.parameter @head : !quantized.tensor<128x32xf16, layout = mma, columns = 128>
    %x = fused.embedding %token, %table : tensor<3xi32>, tensor<128x32xf16> -> tensor<3x32xf32>
    %q = fused.matvec %x weights(%w) segments [32, 32, 32] : tensor<3x32xf32>, !quantized.tensor<96x32xf16, layout = mma, columns = 128> -> tensor<3x32xf16>
    epilogue {
    ^bb0(%q0: tensor<3x32xf32>, %k0: tensor<3x32xf32>, %v0: tensor<3x32xf32>):
      model.cache_append @k, %k0 at %position pages %pages : tensor<3x32xf32>, tensor<3xi32>, tensor<3x2xui32>
      model.cache_append @v, %v0 at %position pages %pages : tensor<3x32xf32>, tensor<3xi32>, tensor<3x2xui32>
      %h = arith.truncf %q0 : tensor<3x32xf32> to tensor<3x32xf16>
      fused.yield %h : tensor<3x32xf16>
    }
    %a = fused.attention %q, @k, @v at %position pages %pages scale 0.25 : tensor<3x32xf16>, tensor<3xi32>, tensor<3x2xui32> -> tensor<3x32xf16>
    %logits = fused.matvec %a weights(%wh) segments [128] : tensor<3x32xf16>, !quantized.tensor<128x32xf16, layout = mma, columns = 128> -> tensor<3x128xf32>
    %next = fused.sample %logits, %options : tensor<3x128xf32>, tensor<3x8xi32> -> tensor<3xi32>
    return %logits, %next : tensor<3x128xf32>, tensor<3xi32>
  }
}

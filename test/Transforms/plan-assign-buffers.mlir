// RUN: sluice-opt %s --split-input-file --verify-diagnostics --plan-assign-buffers | FileCheck %s
// RUN: sluice-opt %s --split-input-file --verify-diagnostics --plan-assign-buffers --plan-assign-buffers | FileCheck %s

// CHECK: module @chain
module @chain {
  model.weight @token_embd : tensor<2048x256xf16>
  model.weight @q : tensor<36x256xf16>
  model.weight @k : tensor<20x256xf16>
  // CHECK: quantized.packed @token_embd.rows.recipe
  quantized.packed @token_embd.rows of [@token_embd] : tensor<2048x256xf16>
  // CHECK: quantized.packed @qk.recipe
  quantized.packed @qk of [@q, @k] : !quantized.tensor<56x256xf16, layout = lanes>
  // CHECK: model.rope_table @rope.recipe
  model.rope_table @rope <theta = 10000.0> : tensor<2048x64xf32>
  // CHECK-NOT: model.cache
  model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>
  module @kernels {
    llvm.func @embedding_0()
    llvm.func @matvec_0()
    llvm.func @step_0()
  }
  // CHECK: plan.buffer @token input : tensor<1xi32> bytes 4
  // CHECK: plan.buffer @position input : tensor<1xi32> bytes 4
  // CHECK: plan.buffer @token_embd.rows weights : tensor<2048x256xf16> bytes 1048576 {source = @token_embd.rows.recipe}
  // Segments start on tiles: 48 + 32 rows of 256 f16.
  // CHECK: plan.buffer @qk weights : !quantized.tensor<56x256xf16, layout = lanes> bytes 40960 {source = @qk.recipe}
  // CHECK: plan.buffer @rope weights : tensor<2048x64xf32> bytes 524288 {source = @rope.recipe}
  // CHECK: plan.buffer @cache.k.0 cache : !quantized.cache<1x2048x2x64xf16> bytes 524288
  // CHECK: plan.buffer @logits output : tensor<1x2048xf32> bytes 8192
  // CHECK: plan.buffer @embed.out arena : tensor<1x256xf32> bytes 1024 offset 1280 alive 0 to 2
  // CHECK: plan.buffer @qk.out.0 arena : tensor<1x20xf32> bytes 80 offset 2304 alive 1 to 2
  // Never read, but the kernel writes it; its place is free again a launch later.
  // CHECK: plan.buffer @qk.out.1 arena : tensor<1x36xf32> bytes 144 offset 0 alive 1 to 1
  // CHECK: plan.buffer @mix.out arena : tensor<1x300xf32> bytes 1200 offset 0 alive 2 to 3
  // Takes the place of @embed.out, which has died.
  // CHECK: plan.buffer @attention_over_k_v.out arena : tensor<1x256xf32> bytes 1024 offset 1280 alive 3 to 4
  // CHECK: plan.step @decode arena 2560 {
  // CHECK: plan.launch @kernels::@embedding_0 [@token, @token_embd.rows, @embed.out] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "embed.rows" traffic(#fused.traffic<weights = 1,
  // CHECK: plan.launch @kernels::@matvec_0 [@embed.out, @qk, @rope, @position, @cache.k.0, @qk.out.0, @qk.out.1]
  // CHECK: plan.launch @kernels::@step_0 [@embed.out, @qk.out.0, @mix.out]
  // CHECK: plan.launch @kernels::@step_0 [@mix.out, @attention_over_k_v.out]
  // CHECK: plan.launch @kernels::@step_0 [@attention_over_k_v.out, @logits]
  // CHECK-NOT: func.func
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x2048xf32> {
    %t = model.parameter @token_embd.rows : tensor<2048x256xf16>
    %w = model.parameter @qk : !quantized.tensor<56x256xf16, layout = lanes>
    %r = model.parameter @rope : tensor<2048x64xf32>
    %x = plan.dispatch @kernels::@embedding_0(%token, %t) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "embed.rows"
        traffic(#fused.traffic<weights = 1, scales = 2, activations = 3, keys = 4, values = 5, written = 6, operations = 7, operations_per_position = 8>)
        : (tensor<1xi32>, tensor<2048x256xf16>) -> tensor<1x256xf32>
    %a, %b = plan.dispatch @kernels::@matvec_0(%x, %w, %r, %position) caches [@cache.k.0] launch <grid = 4, block = 0, shared = 0, cluster = 1, overlap = false> label "qk"
        : (tensor<1x256xf32>, !quantized.tensor<56x256xf16, layout = lanes>, tensor<2048x64xf32>, tensor<1xi32>) -> (tensor<1x20xf32>, tensor<1x36xf32>)
    %c = plan.dispatch @kernels::@step_0(%x, %a) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "mix.packed"
        : (tensor<1x256xf32>, tensor<1x20xf32>) -> tensor<1x300xf32>
    %d = plan.dispatch @kernels::@step_0(%c) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "attention over @k, v" : (tensor<1x300xf32>) -> tensor<1x256xf32>
    %e = plan.dispatch @kernels::@step_0(%d) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "head" : (tensor<1x256xf32>) -> tensor<1x2048xf32>
    return %e : tensor<1x2048xf32>
  }
}

// -----

// expected-error @+1 {{has no function @decode}}
module {
  func.func private @other()
}

// -----

// expected-error @+1 {{must take tokens and positions, two int32 vectors}}
func.func @decode(%token: tensor<1xi32>) -> tensor<1xi32> {
  return %token : tensor<1xi32>
}

// -----

func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{must return the logits, one value that a plan.dispatch computes}}
  return %token : tensor<1xi32>
}

// -----

func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1xi32> {
  // expected-error @+1 {{is not compiled to a kernel: @decode may hold plan.dispatch and model.parameter only}}
  %x = arith.addi %token, %position : tensor<1xi32>
  return %x : tensor<1xi32>
}

// -----

module @kernels {
  llvm.func @a()
}
model.weight @w : tensor<16x32xf16>
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x16xf32> {
  // expected-error @+1 {{loads @w, which is neither packed nor a rotary table}}
  %w = model.parameter @w : tensor<16x32xf16>
  %x = plan.dispatch @kernels::@a(%w) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a" : (tensor<16x32xf16>) -> tensor<1x16xf32>
  return %x : tensor<1x16xf32>
}

// -----

module @kernels {
  llvm.func @a()
}
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x?xf32> {
  // expected-error @+1 {{needs a buffer of type 'tensor<1x?xf32>', expected a tensor of static shape}}
  %x = plan.dispatch @kernels::@a(%token) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a" : (tensor<1xi32>) -> tensor<1x?xf32>
  return %x : tensor<1x?xf32>
}

// -----

module @kernels {
  llvm.func @a()
}
// expected-error @+1 {{cannot be part of a plan, whose steps are @decode, @decode_graph, @prefill_N and @verify_N}}
func.func private @prefill()
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x16xf32> {
  %x = plan.dispatch @kernels::@a(%token) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a" : (tensor<1xi32>) -> tensor<1x16xf32>
  return %x : tensor<1x16xf32>
}

// -----

// A step that samples: one input and one output more, which is the next step's token.
// CHECK: module @samples
module @samples {
  module @kernels {
    llvm.func @head_0()
    llvm.func @sample_0()
  }
  // CHECK: plan.buffer @token input : tensor<1xi32> bytes 4 fed_by @next
  // CHECK: plan.buffer @position input : tensor<1xi32> bytes 4{{$}}
  // CHECK: plan.buffer @sampling input : tensor<1x8xi32> bytes 32{{$}}
  // CHECK: plan.buffer @logits output : tensor<1x64xf32> bytes 256
  // CHECK: plan.buffer @next output : tensor<1xi32> bytes 4
  // CHECK: plan.launch @kernels::@sample_0 [@logits, @sampling, @next]
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x8xi32>) -> (tensor<1x64xf32>, tensor<1xi32>) {
    %l = plan.dispatch @kernels::@head_0(%token) launch <grid = 1, block = 32, shared = 0, cluster = 1, overlap = false> label "head" : (tensor<1xi32>) -> tensor<1x64xf32>
    %n = plan.dispatch @kernels::@sample_0(%l, %options) launch <grid = 1, block = 512, shared = 0, cluster = 1, overlap = false> label "sampling"
        : (tensor<1x64xf32>, tensor<1x8xi32>) -> tensor<1xi32>
    return %l, %n : tensor<1x64xf32>, tensor<1xi32>
  }
}

// -----

// expected-error @+1 {{and where it samples 8 int32 words per token, found ('tensor<1xi32>', 'tensor<1xi32>', 'tensor<1x4xi32>')}}
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x4xi32>) {
  return
}

// -----

module {
  module @kernels {
    llvm.func @head_0()
  }
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x8xi32>) -> tensor<1x64xf32> {
    %l = plan.dispatch @kernels::@head_0(%token) launch <grid = 1, block = 32, shared = 0, cluster = 1, overlap = false> label "head" : (tensor<1xi32>) -> tensor<1x64xf32>
    // expected-error @+1 {{must return the logits and the next tokens, two values that a plan.dispatch computes}}
    return %l : tensor<1x64xf32>
  }
}

// -----

module {
  module @kernels {
    llvm.func @head_0()
  }
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x8xi32>) -> (tensor<1x64xf32>, tensor<1x64xf32>) {
    %l = plan.dispatch @kernels::@head_0(%token) launch <grid = 1, block = 32, shared = 0, cluster = 1, overlap = false> label "head" : (tensor<1xi32>) -> tensor<1x64xf32>
    // expected-error @+1 {{must return two different values}}
    return %l, %l : tensor<1x64xf32>, tensor<1x64xf32>
  }
}

// -----

module {
  module @kernels {
    llvm.func @head_0()
  }
  // expected-error @+1 {{chooses tokens of type 'tensor<2xi32>', but takes 'tensor<1xi32>'}}
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>, %options: tensor<1x8xi32>) -> (tensor<1x64xf32>, tensor<2xi32>) {
    %l, %n = plan.dispatch @kernels::@head_0(%token) launch <grid = 1, block = 32, shared = 0, cluster = 1, overlap = false> label "head" : (tensor<1xi32>) -> (tensor<1x64xf32>, tensor<2xi32>)
    return %l, %n : tensor<1x64xf32>, tensor<2xi32>
  }
}

// -----

// Steps share weights, caches, inputs and outputs; what they compute on the way is their own. Inputs have the size of the largest step.
// CHECK-LABEL: module @steps
module @steps {
  model.cache @k : !quantized.cache<1x64x2x16xf16>
  module @kernels {
    llvm.func @one()
    llvm.func @many()
    llvm.func @last()
  }
  // CHECK: plan.buffer @token input : tensor<1xi32> bytes 4
  // CHECK: plan.buffer @position input : tensor<1xi32> bytes 4
  // CHECK: plan.buffer @tokens input : tensor<64xi32> bytes 256
  // CHECK: plan.buffer @positions input : tensor<64xi32> bytes 256
  // CHECK: plan.buffer @count input : tensor<1xi32> bytes 4
  // CHECK: plan.buffer @k cache
  // CHECK-NOT: cache :
  // CHECK: plan.buffer @logits output : tensor<1x32xf32> bytes 128
  // CHECK-NOT: output
  // CHECK: plan.buffer @x.out arena : tensor<1x8xf32> bytes 32 offset 0 alive 0 to 1
  // CHECK: plan.step @decode arena 256 {
  // CHECK:   plan.launch @kernels::@one [@token, @k, @x.out]
  // CHECK:   plan.launch @kernels::@last [@x.out, @logits]
  func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x32xf32> {
    %x = plan.dispatch @kernels::@one(%token) caches [@k] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "x" : (tensor<1xi32>) -> tensor<1x8xf32>
    %y = plan.dispatch @kernels::@last(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "y" : (tensor<1x8xf32>) -> tensor<1x32xf32>
    return %y : tensor<1x32xf32>
  }
  // CHECK: plan.buffer @prefill_16.x.out arena : tensor<16x8xf32> bytes 512 offset 0 alive 0 to 1
  // CHECK: plan.step @prefill_16 arena 512 tokens 16 {
  // CHECK:   plan.launch @kernels::@many [@tokens, @positions, @count, @k, @prefill_16.x.out]
  // CHECK:   plan.launch @kernels::@last [@prefill_16.x.out, @logits]
  func.func @prefill_16(%token: tensor<16xi32>, %position: tensor<16xi32>, %count: tensor<1xi32>) -> tensor<1x32xf32> {
    %x = plan.dispatch @kernels::@many(%token, %position, %count) caches [@k] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "x" : (tensor<16xi32>, tensor<16xi32>, tensor<1xi32>) -> tensor<16x8xf32>
    %y = plan.dispatch @kernels::@last(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "y" : (tensor<16x8xf32>) -> tensor<1x32xf32>
    return %y : tensor<1x32xf32>
  }
  // CHECK: plan.buffer @prefill_64.x.out arena
  // CHECK: plan.step @prefill_64 arena 2048 tokens 64 {
  func.func @prefill_64(%token: tensor<64xi32>, %position: tensor<64xi32>, %count: tensor<1xi32>) -> tensor<1x32xf32> {
    %x = plan.dispatch @kernels::@many(%token, %position, %count) caches [@k] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "x" : (tensor<64xi32>, tensor<64xi32>, tensor<1xi32>) -> tensor<64x8xf32>
    %y = plan.dispatch @kernels::@last(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "y" : (tensor<64x8xf32>) -> tensor<1x32xf32>
    return %y : tensor<1x32xf32>
  }
}

// -----

module @kernels {
  llvm.func @a()
}
func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> tensor<1x16xf32> {
  %x = plan.dispatch @kernels::@a(%token) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a" : (tensor<1xi32>) -> tensor<1x16xf32>
  return %x : tensor<1x16xf32>
}
// expected-error @+1 {{must take tokens and positions, two int32 vectors, their number, of several sequences' whose each is and where those of each begin, the page table if caches are in pages, and where it samples}}
func.func @prefill_16(%token: tensor<16xi32>, %position: tensor<16xi32>) -> tensor<1x16xf32> {
  %x = plan.dispatch @kernels::@a(%token) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "a" : (tensor<16xi32>) -> tensor<1x16xf32>
  return %x : tensor<1x16xf32>
}

// -----

// Steps of prompts of several sequences find the pages of all in the same input, and whose their tokens are in others. A table of 8
// pages is no options of sampling.
// CHECK-LABEL: module @pages
// CHECK: plan.buffer @token input : tensor<2xi32> bytes 8
// CHECK: plan.buffer @pages input : tensor<2x8xui32> bytes 64
// CHECK: plan.buffer @sequences input : tensor<16xi32> bytes 64
// CHECK: plan.buffer @starts input : tensor<3xi32> bytes 12
// CHECK: plan.step @decode
// CHECK: plan.launch @kernels::@one [@token, @pages, @k, @logits]
// CHECK: plan.step @prefill_16
// CHECK: plan.launch @kernels::@many [@tokens, @count, @sequences, @starts, @pages, @k, @logits]
module @pages {
  model.cache @k : !quantized.cache<6x32x2x64xf16, layout = lanes_keys>
  module @kernels {
    llvm.func @one()
    llvm.func @many()
  }
  func.func @decode(%token: tensor<2xi32>, %position: tensor<2xi32>, %pages: tensor<2x8xui32>) -> tensor<2x32xf32> {
    %x = plan.dispatch @kernels::@one(%token, %pages) caches [@k] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "x" : (tensor<2xi32>, tensor<2x8xui32>) -> tensor<2x32xf32>
    return %x : tensor<2x32xf32>
  }
  func.func @prefill_16(%token: tensor<16xi32>, %position: tensor<16xi32>, %count: tensor<1xi32>, %sequences: tensor<16xi32>, %starts: tensor<3xi32>, %pages: tensor<2x8xui32>) -> tensor<2x32xf32> {
    %x = plan.dispatch @kernels::@many(%token, %count, %sequences, %starts, %pages) caches [@k] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "x" : (tensor<16xi32>, tensor<1xi32>, tensor<16xi32>, tensor<3xi32>, tensor<2x8xui32>) -> tensor<2x32xf32>
    return %x : tensor<2x32xf32>
  }
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_PLAN_OPS
#define SLUICE_PLAN_OPS

include "dialects/Plan/PlanAttrs.td"
include "dialects/Fused/FusedAttrs.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"

class Plan_Op<string mnemonic, list<Trait> traits = []> : Op<PlanDialect, mnemonic, traits>;

def Plan_DispatchOp : Plan_Op<"dispatch", [DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Launches a compiled kernel on values";
  let description = [{
    The kernel's pointer arguments are, in this order: operands, caches, results. `label` says in words what is computed.

    Example:

    ```mlir
    %q = plan.dispatch @kernels::@matvec_0(%x, %w, %position) caches [@cache.k.0, @cache.v.0]
        launch <grid = 16, block = 0, shared = 0, cluster = 1, overlap = false> label "blk.0.attn_qkv"
        : (tensor<1x256xf32>, !quantized.tensor<512x256xi8, group = 128, layout = lanes>, tensor<1xi32>) -> tensor<1x256xf16>
    ```
  }];
  let arguments = (ins SymbolRefAttr:$kernel, Variadic<AnyType>:$arguments, DefaultValuedAttr<TypedArrayAttrBase<FlatSymbolRefAttr, "cache symbols">, "{}">:$caches,
                       Plan_LaunchAttr:$launch, StrAttr:$label, OptionalAttr<Fused_TrafficAttr>:$traffic);
  let results = (outs Variadic<AnyType>:$results);
  let assemblyFormat = [{
    $kernel `(` $arguments `)` (`caches` $caches^)? `launch` $launch `label` $label (`traffic` `(` qualified($traffic)^ `)`)? attr-dict `:` functional-type($arguments, $results)
  }];
}

def Plan_BufferOp : Plan_Op<"buffer", [Symbol, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "Memory that launches read or write";
  let description = [{
    - `arena`: `bytes` at `offset` of one allocation; alive from launch `first` to launch `last` of the step, both included.
    - `weights`: the tensor `symbol` of weights.safetensors.
    - `cache`: zeroed when the runtime starts, kept from step to step.
    - `input`, `output`: what the runtime writes before a step and reads after it.

    An input with `fed_by` can be had from the step before: a device that runs one step right after another passes it that output of the first, of the same type, so
    that the host need not know it.

    Example:

    ```mlir
    plan.buffer @x.0 arena : tensor<1x256xf32> bytes 1024 offset 0 alive 0 to 3
    plan.buffer @blk.0.attn_qkv weights : !quantized.tensor<512x256xi8, group = 128, layout = lanes> bytes 135168
    plan.buffer @token input : tensor<1xi32> bytes 4 fed_by @next
    plan.buffer @next output : tensor<1xi32> bytes 4
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Plan_BufferKindAttr:$kind, TypeAttr:$type, I64Attr:$bytes,
                       OptionalAttr<I64Attr>:$offset, OptionalAttr<I64Attr>:$first, OptionalAttr<I64Attr>:$last, OptionalAttr<FlatSymbolRefAttr>:$fed_by);
  let assemblyFormat = "$sym_name $kind `:` $type `bytes` $bytes (`offset` $offset^ `alive` $first `to` $last)? (`fed_by` $fed_by^)? attr-dict";
  let hasVerifier = 1;
}

def Plan_StepOp : Plan_Op<"step", [Symbol, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "The launches of a step, in order";
  let description = [{
    `decode` computes one token of every sequence. A step with `tokens` computes 1 to so many tokens of one sequence; the input `count` says how many. It gives the logits of the last one,
    or with `all_logits` those of all.

    Example:

    ```mlir
    plan.step @decode arena 4096 {
      plan.launch @kernels::@embedding_0 [@token, @token_embd, @x.0]
          launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "token_embd"
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, I64Attr:$arena_bytes, OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$tokens, UnitAttr:$all_logits);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `arena` $arena_bytes (`tokens` $tokens^ (`all_logits` $all_logits^)?)? attr-dict-with-keyword $body";
  let hasVerifier = 1;
}

def Plan_LaunchOp : Plan_Op<"launch", [HasParent<"StepOp">, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "One kernel launch on buffers";
  let description = [{
    Example: see `plan.step`.
  }];
  let arguments = (ins SymbolRefAttr:$kernel, FlatSymbolRefArrayAttr:$arguments, Plan_LaunchAttr:$launch, StrAttr:$label,
                       OptionalAttr<Fused_TrafficAttr>:$traffic);
  let assemblyFormat = "$kernel $arguments `launch` $launch `label` $label (`traffic` `(` qualified($traffic)^ `)`)? attr-dict";
}

#endif

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_FUSED_ATTRS
#define SLUICE_FUSED_ATTRS

include "dialects/Fused/FusedDialect.td"

def Fused_TrafficAttr : AttrDef<FusedDialect, "Traffic"> {
  let mnemonic = "traffic";
  let summary = "Bytes that one execution moves, by class, and its operations";
  let description = [{
    Bytes read of weights, of scales (zero points included), of activations (norm gains, biases and tables included) and bytes written; `keys` and `values` are
    bytes read for each position of context, or of the last `window` positions where there is one. Operations count a multiplication and an addition as two; `operations_per_position` are those of attention.

    ```mlir
    #fused.traffic<weights = 131072, scales = 2048, activations = 1024, keys = 0, values = 0, written = 512, operations = 262144, operations_per_position = 0>
    ```
  }];
  let parameters = (ins "int64_t":$weights, "int64_t":$scales, "int64_t":$activations, "int64_t":$keys, "int64_t":$values,
                        "int64_t":$written, "int64_t":$operations, "int64_t":$operationsPerPosition, DefaultValuedParameter<"int64_t", "0">:$window);
  let assemblyFormat = [{
    `<` `weights` `=` $weights `,` `scales` `=` $scales `,` `activations` `=` $activations `,` `keys` `=` $keys `,` `values` `=` $values `,`
    `written` `=` $written `,` `operations` `=` $operations `,` `operations_per_position` `=` $operationsPerPosition (`,` `window` `=` $window^)? `>`
  }];
}

def Fused_HostScheduleAttr : AttrDef<FusedDialect, "HostSchedule"> {
  let mnemonic = "host_schedule";
  let summary = "How a kernel runs on the host CPU";
  let description = [{
    - `isa`: avx2, avx512 or avx512_vnni, the instructions used for products.
    - `accumulators`: independent sums per tile, to hide the latency of a multiply-add.
    - `positions`: positions of the cache that attention handles between two updates of the running maximum (0 for products).

    ```mlir
    #fused.host_schedule<isa = "avx512_vnni", accumulators = 4, positions = 0>
    ```
  }];
  let parameters = (ins StringRefParameter<"avx2, avx512 or avx512_vnni">:$isa, "int64_t":$accumulators, "int64_t":$positions);
  let assemblyFormat = "`<` `isa` `=` $isa `,` `accumulators` `=` $accumulators `,` `positions` `=` $positions `>`";
  let genVerifyDecl = 1;
}

def Fused_GpuScheduleAttr : AttrDef<FusedDialect, "GpuSchedule"> {
  let mnemonic = "gpu_schedule";
  let summary = "How a kernel runs on a GPU";
  let description = [{
    - `blocks`: thread blocks of the launch.
    - `warps`: consuming warps per block (one more warp copies).
    - `stages`: stages of the ring of bulk copies in shared memory.
    - `in_flight`: stages whose copy may be under way at once.
    - `columns`: columns of 16 rows in a stage (positions of the cache, for attention).
    - `splits`: blocks that share the rows of one output (of one key/value head, for attention).
    - `early`: loads that may run before the previous kernel has ended: none, weights or cache.
    - `held`: row tiles of a product whose partial sums wait in shared memory to be added. Without it, or with 0: all tiles that a block has.
    - `resident`: blocks of a product for which a multiprocessor's registers have to suffice, 1 or 2: with 2 the assembler uses so few that a block of attention finds room
      beside one of the product, and each of them starts while the other one still runs.
    - `rows`, `tokens`: of a product of many tokens, what a block computes at a time; 0 for others.
    - `warpgroups`: of a product of many tokens, the groups of four consuming warps that multiply with `wgmma` (four more warps copy); 0: the warps multiply alone, with `mma`.

    Sampling reads `splits`, `blocks` and `warps` only, an embedding `blocks` and `warps`. What a schedule means in detail, shared memory included, is
    dialects/Fused/GpuPlan.h.

    ```mlir
    #fused.gpu_schedule<blocks = 132, warps = 16, stages = 10, in_flight = 3, columns = 1024, splits = 1, early = "weights", held = 14>
    ```
  }];
  let parameters = (ins "int64_t":$blocks, "int64_t":$warps, "int64_t":$stages, "int64_t":$inFlight, "int64_t":$columns, "int64_t":$splits,
                        StringRefParameter<"none, weights or cache">:$early, DefaultValuedParameter<"int64_t", "0">:$held, DefaultValuedParameter<"int64_t", "1">:$resident,
                        DefaultValuedParameter<"int64_t", "0">:$rows, DefaultValuedParameter<"int64_t", "0">:$tokens,
                        DefaultValuedParameter<"int64_t", "0">:$warpgroups);
  let assemblyFormat = [{
    `<` `blocks` `=` $blocks `,` `warps` `=` $warps `,` `stages` `=` $stages `,` `in_flight` `=` $inFlight `,` `columns` `=` $columns `,`
    `splits` `=` $splits `,` `early` `=` $early `` custom<GpuScheduleOptions>($held, $resident, $rows, $tokens, $warpgroups) `>`
  }];
  let genVerifyDecl = 1;
}

def Fused_PersistentScheduleAttr : AttrDef<FusedDialect, "PersistentSchedule"> {
  let mnemonic = "persistent_schedule";
  let summary = "How a decode step runs as one kernel on a GPU";
  let description = [{
    - `clusters`, `cluster_blocks`: clusters of the grid, and blocks of each. All live at the same time.
    - `attention_clusters`: the clusters, the first ones, that divide the key/value heads among themselves. All divide the MLP and the head.
    - `warps`: computing warps per block (one more warp copies).
    - `stages`: stages of the ring in shared memory that weights, keys and values pass through.
    - `attention_in_flight`, `mlp_in_flight`: stages whose copy may be under way at once, around attention and in the MLP.

    What a schedule means in detail is dialects/Fused/PersistentPlan.h.

    ```mlir
    #fused.persistent_schedule<clusters = 14, cluster_blocks = 8, attention_clusters = 8, warps = 16, stages = 11, attention_in_flight = 3, mlp_in_flight = 4>
    ```
  }];
  let parameters = (ins "int64_t":$clusters, "int64_t":$clusterBlocks, "int64_t":$attentionClusters, "int64_t":$warps, "int64_t":$stages,
                        "int64_t":$attentionInFlight, "int64_t":$mlpInFlight);
  let assemblyFormat = [{
    `<` `clusters` `=` $clusters `,` `cluster_blocks` `=` $clusterBlocks `,` `attention_clusters` `=` $attentionClusters `,` `warps` `=` $warps `,`
    `stages` `=` $stages `,` `attention_in_flight` `=` $attentionInFlight `,` `mlp_in_flight` `=` $mlpInFlight `>`
  }];
}

def Fused_PrefetchAttr : AttrDef<FusedDialect, "Prefetch"> {
  let mnemonic = "prefetch";
  let summary = "What a kernel brings into a GPU's L2 cache for a later one";
  let description = [{
    Block b of the kernel that has this attribute, if b is less than `blocks`, prefetches `bytes` bytes of the packed weight from byte b * `stride` on: the beginning
    of the first tile that block b of the weight's own product reads. `bytes` and `stride` are multiples of 16, and no byte lies behind the weight's end.

    ```mlir
    #fused.prefetch<@attn_output.0, blocks = 132, stride = 33792, bytes = 32768>
    ```
  }];
  let parameters = (ins "::mlir::FlatSymbolRefAttr":$weight, "int64_t":$blocks, "int64_t":$stride, "int64_t":$bytes);
  let assemblyFormat = "`<` $weight `,` `blocks` `=` $blocks `,` `stride` `=` $stride `,` `bytes` `=` $bytes `>`";
  let genVerifyDecl = 1;
}

#endif

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_PLAN_ATTRS
#define SLUICE_PLAN_ATTRS

include "dialects/Plan/PlanDialect.td"

def Plan_BufferKind : I32EnumAttr<"BufferKind", "where a buffer lives", [
    I32EnumAttrCase<"Arena", 0, "arena">,
    I32EnumAttrCase<"Weights", 1, "weights">,
    I32EnumAttrCase<"Cache", 2, "cache">,
    I32EnumAttrCase<"Input", 3, "input">,
    I32EnumAttrCase<"Output", 4, "output">]> {
  let cppNamespace = "::sluice::plan";
  let genSpecializedAttr = 0;
}
def Plan_BufferKindAttr : EnumAttr<PlanDialect, Plan_BufferKind, "buffer_kind"> { let assemblyFormat = "$value"; }

def Plan_LaunchAttr : AttrDef<PlanDialect, "Launch"> {
  let mnemonic = "launch_config";
  let summary = "Extent of a launch";
  let description = [{
    `grid`: blocks (work items on the host, divided among threads). `block`: threads per block, `shared`: dynamic shared memory in bytes, `cluster`: blocks
    per cluster (0 or 1 on the host). `overlap`: the kernel may start before its predecessor has ended (programmatic dependent launch).
    `cooperative`: all blocks must live at the same time, because they wait for each other.

    ```mlir
    #plan.launch_config<grid = 132, block = 544, shared = 170000, cluster = 1, overlap = true>
    ```
  }];
  let parameters = (ins "int64_t":$grid, "int64_t":$block, "int64_t":$shared, "int64_t":$cluster, "bool":$overlap,
                        DefaultValuedParameter<"bool", "false">:$cooperative);
  let assemblyFormat = [{
    `<` `grid` `=` $grid `,` `block` `=` $block `,` `shared` `=` $shared `,` `cluster` `=` $cluster `,` `overlap` `=` $overlap
    (`,` `cooperative` `=` $cooperative^)? `>`
  }];
  let genVerifyDecl = 1;
}

#endif

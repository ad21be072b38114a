// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_FUSED_INTERFACES
#define SLUICE_FUSED_INTERFACES

include "mlir/IR/OpBase.td"

def Fused_KernelOpInterface : OpInterface<"KernelOp"> {
  let cppNamespace = "::sluice::fused";
  let description = [{
    An operation that becomes one kernel launch: what it moves, how it runs, what people call it. Passes that treat all kernels alike ask this interface and
    know no list of operations.
  }];
  let methods = [
    InterfaceMethod<"What fused-annotate-traffic wrote.", "std::optional<::sluice::fused::TrafficAttr>", "getTraffic">,
    InterfaceMethod<"", "void", "setTrafficAttr", (ins "::sluice::fused::TrafficAttr":$traffic)>,
    InterfaceMethod<"How the kernel runs: a host_schedule or a gpu_schedule.", "std::optional<::mlir::Attribute>", "getSchedule">,
    InterfaceMethod<"", "void", "setScheduleAttr", (ins "::mlir::Attribute":$schedule)>,
    InterfaceMethod<"How many of the rows are there, one i32; null where all are.", "::mlir::Value", "activeRows", (ins), "", "return ::sluice::fused::activeRows($_op);">,
    InterfaceMethod<"What one execution moves and computes.", "::sluice::Traffic", "computeTraffic">,
    InterfaceMethod<"What the kernel works on, for people: its weight's symbol, or the caches'. Empty if it has no name.", "std::string", "getLabel">,
    InterfaceMethod<[{
      What a launch on a GPU takes with this schedule (GpuPlan.h has the details). Fails, with an error at the operation, if the schedule does not suit the
      operation or needs more shared memory than a block has.
    }], "::mlir::FailureOr<::sluice::fused::GpuLaunch>", "planGpuLaunch",
        (ins "::sluice::fused::GpuScheduleAttr":$schedule, "const ::sluice::fused::GpuDevice &":$device)>,
  ];
  let verify = [{ return ::sluice::fused::verifySchedule($_op); }];
}

def Fused_ProductOpInterface : OpInterface<"ProductOp"> {
  let cppNamespace = "::sluice::fused";
  let description = [{
    A product with packed weights, of one token's input (matvec) or of many (matmul): what weights, their rows and the epilogue have in common.
  }];
  let methods = [
    InterfaceMethod<"", "::mlir::OperandRange", "getWeights">,
    InterfaceMethod<"Numbers of rows of the epilogue's arguments.", "::llvm::ArrayRef<int64_t>", "getSegments">,
    InterfaceMethod<"The packed weights' row order.", "std::optional<::mlir::ArrayAttr>", "getOrder">,
    InterfaceMethod<"Empty if the sums are the results.", "::mlir::Region &", "getEpilogue">,
    InterfaceMethod<"Columns of the weights.", "int64_t", "getColumns">,
    InterfaceMethod<"Rows of the input.", "int64_t", "getTokens">,
  ];
}

#endif

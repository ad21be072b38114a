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

#endif

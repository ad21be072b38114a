// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Pipelines/Pipelines.h"

#include "dialects/Fused/Fused.h"
#include "dialects/Model/Model.h"
#include "dialects/Plan/Plan.h"
#include "dialects/Quantized/Quantized.h"
#include "sluice/Conversion/Passes.h"
#include "sluice/Target/GpuTarget.h"
#include "sluice/Target/HostTarget.h"
#include "sluice/Target/TargetDescription.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Transforms/Passes.h"

using namespace mlir;
using namespace sluice;

StringRef sluice::stageName(Stage stage) {
  switch (stage) {
  case Stage::Model:
    return "model";
  case Stage::Quantized:
    return "quantized";
  case Stage::Fused:
    return "fused";
  case Stage::Scheduled:
    return "scheduled";
  case Stage::Device:
    return "device";
  case Stage::Plan:
    return "plan";
  }
  llvm_unreachable("unknown stage");
}

std::optional<Stage> sluice::stageFromName(StringRef name) {
  for (Stage stage : kStages)
    if (stageName(stage) == name)
      return stage;
  return std::nullopt;
}

static void buildQuantizedPipeline(OpPassManager &pm, const PipelineOptions &options,
                                   const PassProgress &progress) {
  // Weights first: they are planned together with the caches.
  std::function<void(double)> planned;
  if (progress)
    planned = [progress](double done) { progress("trying formats of weights", done); };
  pm.addPass(createQuantizedPlanWeights({options.target, options.weights, options.keyCache,
                                         options.valueCache, options.goal, options.planContext,
                                         options.stats},
                                        planned));
  // Without statistics there is nothing to plan caches by.
  if (!options.stats.empty())
    pm.addPass(createQuantizedPlanCaches({options.target, options.weights, options.keyCache,
                                          options.valueCache, options.goal, options.planContext,
                                          options.stats}));
  pm.addPass(createQuantizedQuantizeWeights({options.weights, options.stats}));
  pm.addPass(createQuantizedQuantizeCaches({options.keyCache, options.valueCache}));
  pm.addPass(createCanonicalizerPass());
  pm.addPass(createCSEPass());
}

static void buildFusedPipeline(OpPassManager &pm, const PipelineOptions &options) {
  pm.addPass(createFusedFuseDequantize());
  pm.addPass(createFusedMergeMatvecs({options.target}));
  pm.addPass(createFusedFusePrologues());
  pm.addPass(createFusedFuseEpilogues({options.target, options.placement}));
  pm.addPass(createFusedFuseRows());
  pm.addPass(createFusedFuseAttentionPrologues());
  pm.addPass(createCSEPass());
  pm.addPass(createFusedAnnotateTraffic());
}

static void buildScheduledPipeline(OpPassManager &pm, const PipelineOptions &options) {
  pm.addPass(createFusedTabulateRotary());
  pm.addPass(createFusedPackWeights({options.target}));
  pm.addPass(createFusedAppendSampling({options.target}));
  pm.addPass(createFusedTileCaches({options.target}));
  pm.addPass(createFusedPageCaches({options.cachePages}));
  FusedDeriveStepsOptions steps;
  steps.target = options.target;
  steps.prefill = llvm::to_vector(options.prefill);
  // Without steps for prompts there are none of many tokens at all.
  if (llvm::equal(steps.prefill, ArrayRef<int64_t>(0)))
    steps.verify = 0;
  pm.addPass(createFusedDeriveSteps(steps));
  pm.addPass(createFusedAssignSchedules({options.target, options.planContext}));
  pm.addPass(createFusedAnnotateTraffic());
  pm.addPass(createCSEPass());
  // What racecheck can follow is the graph.
  if (options.launch == "persistent" || (options.launch == "auto" && !options.racecheck))
    pm.addPass(createFusedPlanPersistent(
        {options.target, options.planContext, /*whereFaster=*/options.launch == "auto"}));
}

static void buildDevicePipeline(OpPassManager &pm, const PipelineOptions &options) {
  llvm::Expected<TargetDescription> target = loadTarget(options.target);
  if (!target) {
    // The schedules' pass has reported it already.
    llvm::consumeError(target.takeError());
    return;
  }
  if (target->isGpu())
    buildGpuCodePipeline(pm, options.target, options.racecheck);
  else
    buildHostCodePipeline(pm);
}

void sluice::buildStagePipeline(OpPassManager &pm, Stage stage, const PipelineOptions &options,
                                const PassProgress &progress) {
  switch (stage) {
  case Stage::Model:
    return;
  case Stage::Quantized:
    return buildQuantizedPipeline(pm, options, progress);
  case Stage::Fused:
    return buildFusedPipeline(pm, options);
  case Stage::Scheduled:
    return buildScheduledPipeline(pm, options);
  case Stage::Device:
    return buildDevicePipeline(pm, options);
  case Stage::Plan:
    pm.addPass(createPlanAssignBuffers());
    return;
  }
}

void sluice::registerPipelines() {
  static SmallVector<std::unique_ptr<PassPipelineRegistration<PipelineOptions>>> registrations;
  for (Stage stage : ArrayRef(kStages).drop_front())
    registrations.push_back(std::make_unique<PassPipelineRegistration<PipelineOptions>>(
        ("sluice-to-" + stageName(stage)).str(),
        ("From the stage before it to stage " + stageName(stage)).str(),
        [stage](OpPassManager &pm, const PipelineOptions &options) {
          buildStagePipeline(pm, stage, options);
        }));
  registrations.push_back(std::make_unique<PassPipelineRegistration<PipelineOptions>>(
      "sluice-compile", "From stage model to stage plan",
      [](OpPassManager &pm, const PipelineOptions &options) {
        for (Stage stage : kStages)
          buildStagePipeline(pm, stage, options);
      }));
}

void sluice::registerDialects(DialectRegistry &registry) {
  registry.insert<arith::ArithDialect, func::FuncDialect, gpu::GPUDialect, LLVM::LLVMDialect,
                  NVVM::NVVMDialect, math::MathDialect, scf::SCFDialect, vector::VectorDialect,
                  model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                  plan::PlanDialect>();
  host::registerHostTranslations(registry);
  nvidia::registerGpuTranslations(registry);
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/PersistentPlan.h"
#include "dialects/Plan/Plan.h"
#include "sluice-support/Text.h"
#include "sluice/Import/FileSet.h"
#include "sluice/Target/Artifact.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/xxhash.h"

using namespace llvm;
using namespace mlir;
using namespace sluice;
using nlohmann::json;

static std::string checksum(ArrayRef<uint8_t> bytes) {
  return sluice::support::hexDigits(xxh3_64bits(bytes));
}

json sluice::attributeJson(mlir::Attribute attribute) {
  return llvm::TypeSwitch<mlir::Attribute, json>(attribute)
      .Case<BoolAttr>([](BoolAttr a) { return a.getValue(); })
      .Case<IntegerAttr>([](IntegerAttr a) { return a.getInt(); })
      .Case<FloatAttr>([](FloatAttr a) { return a.getValueAsDouble(); })
      .Case<StringAttr>([](StringAttr a) { return a.getValue().str(); })
      .Case<DenseI64ArrayAttr>([](DenseI64ArrayAttr a) { return json(a.asArrayRef().vec()); })
      .Case<ArrayAttr>([](ArrayAttr a) {
        json list = json::array();
        for (mlir::Attribute element : a)
          list.push_back(attributeJson(element));
        return list;
      })
      .Case<DictionaryAttr>([](DictionaryAttr a) {
        json object = json::object();
        for (NamedAttribute entry : a)
          object[entry.getName().str()] = attributeJson(entry.getValue());
        return object;
      })
      .Default([](mlir::Attribute a) {
        std::string text;
        raw_string_ostream(text) << a;
        return text;
      });
}

static json typeJson(mlir::Type type, json &shape) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(type)) {
    shape = quantized.getShape().vec();
    return quantized.getEncoding().getName();
  }
  if (auto cache = dyn_cast<quantized::CacheType>(type)) {
    shape = cache.getShape().vec();
    return cache.getEncoding().name();
  }
  if (auto prepared = dyn_cast<fused::PreparedType>(type)) {
    shape = {prepared.getTokens(), prepared.getColumns()};
    return "prepared";
  }
  auto tensor = cast<RankedTensorType>(type);
  shape = tensor.getShape().vec();
  mlir::Type element = tensor.getElementType();
  std::string name;
  raw_string_ostream os(name);
  // MLIR's ui32.
  if (element.isUnsignedInteger())
    os << "u" << element.getIntOrFloatBitWidth();
  else
    os << element;
  return name;
}

static json bufferJson(plan::BufferOp buffer) {
  json shape, object = {{"name", buffer.getSymName().str()},
                        {"kind", plan::stringifyBufferKind(buffer.getKind()).str()},
                        {"bytes", buffer.getBytes()}};
  object["type"] = typeJson(buffer.getType(), shape);
  object["shape"] = shape;
  if (buffer.getOffset())
    object["offset"] = *buffer.getOffset();
  if (buffer.getFedBy())
    object["fed_by"] = buffer.getFedBy()->str();
  if (buffer.getKind() == plan::BufferKind::Weights)
    object["tensor"] = buffer.getSymName().str();
  return object;
}

static json patternJson(const synthetic::SyntheticPattern &pattern) {
  using sluice::support::hexDigits;
  json regions = json::array();
  uint64_t begin = 0;
  for (const synthetic::SyntheticRegion &region : pattern.regions) {
    regions.push_back({{"bytes", region.end - begin},
                       {"keep", hexDigits(region.masks.keep)},
                       {"set", hexDigits(region.masks.set)}});
    begin = region.end;
  }
  return {{"seed", hexDigits(pattern.seed)}, {"regions", regions}};
}

static json launchJson(plan::LaunchOp launch) {
  plan::LaunchAttr extent = launch.getLaunch();
  json arguments = json::array();
  for (auto argument : launch.getArguments().getAsRange<FlatSymbolRefAttr>())
    arguments.push_back(argument.getValue().str());
  json object = {{"kernel", launch.getKernel().getLeafReference().str()},
                 {"label", launch.getLabel().str()},
                 {"grid", extent.getGrid()},
                 {"block", extent.getBlock()},
                 {"shared", extent.getShared()},
                 {"cluster", extent.getCluster()},
                 {"overlap", extent.getOverlap()},
                 {"arguments", arguments}};
  if (extent.getCooperative())
    object["cooperative"] = true;
  if (std::optional<fused::TrafficAttr> traffic = launch.getTraffic())
    object["traffic"] = {{"weights", traffic->getWeights()},
                         {"scales", traffic->getScales()},
                         {"activations", traffic->getActivations()},
                         {"keys", traffic->getKeys()},
                         {"values", traffic->getValues()},
                         {"written", traffic->getWritten()},
                         {"operations", traffic->getOperations()},
                         {"operations_per_position", traffic->getOperationsPerPosition()}};
  if (auto traffic = launch.getTraffic(); traffic && traffic->getWindow())
    object["traffic"]["window"] = traffic->getWindow();
  if (mlir::Attribute time = launch->getDiscardableAttr(fused::kTimeAttr))
    object["time"] = attributeJson(time);
  return object;
}

Expected<std::string> sluice::planJson(ModuleOp module, const json &target, const json &kernels,
                                       ArrayRef<ArtifactFile> files,
                                       const ArtifactDirectory &directory) {
  auto config = module->getAttrOfType<DictionaryAttr>("model.config");
  if (!config)
    return createStringError("the module has no model.config attribute");
  json model = attributeJson(config);
  model["name"] = module.getSymName().value_or("model").str();

  json plan = {{"format", "sluice-plan"},
               {"version", 1},
               {"producer", "sluice " SLUICE_VERSION},
               {"target", target},
               {"files", json::object()},
               {"buffers", json::array()},
               {"steps", json::object()},
               {"decisions", json::array()},
               {"arena_bytes", 0}};
  auto options = module->getAttrOfType<DictionaryAttr>("sluice.options");
  auto option = [&](StringRef name, StringRef otherwise) -> json {
    auto text = options ? options.getAs<StringAttr>(name) : StringAttr();
    return (text ? text.getValue() : otherwise).str();
  };
  model["weights"] = option("weights", "keep");
  model["k_cache"] = option("k-cache", "auto");
  model["v_cache"] = option("v-cache", "auto");
  model["synthetic"] = false;
  if (auto formats = module->getAttrOfType<DictionaryAttr>("sluice.plan"))
    plan["plan"] = attributeJson(formats);
  for (const ArtifactFile &file : files) {
    auto contents = mapFile(directory.pathOf(file.name));
    if (!contents)
      return contents.takeError();
    StringRef bytes = (*contents)->text();
    plan["files"][file.role] = {{"name", file.name},
                                {"bytes", bytes.size()},
                                {"xxh3", checksum(arrayRefFromStringRef(bytes))}};
  }
  SymbolTable symbols(module);
  Error failed = Error::success();
  auto table = symbols.lookup<plan::BufferOp>("pages");
  const bool inPages = table && table.getKind() == plan::BufferKind::Input;
  int64_t pages = 0;
  // What was decided of `source`, if anything was, is an attribute of `op`; its reason may be one
  // of several.
  auto addDecision = [&](Operation *op, StringRef source, size_t index) {
    auto decision = op->getAttrOfType<StringAttr>("sluice.decision");
    mlir::Attribute reason = op->getAttr("sluice.reason");
    if (auto several = dyn_cast_if_present<ArrayAttr>(reason))
      reason = index < several.size() ? several[index] : mlir::Attribute();
    auto text = dyn_cast_if_present<StringAttr>(reason);
    if (decision)
      plan["decisions"].push_back({{"what", source.str()},
                                   {"decision", decision.getValue().str()},
                                   {"reason", text ? text.getValue().str() : ""}});
  };
  module.walk([&](Operation *op) {
    if (auto buffer = dyn_cast<plan::BufferOp>(op)) {
      json object = bufferJson(buffer);
      if (buffer.getKind() == plan::BufferKind::Weights) {
        Expected<std::optional<synthetic::SyntheticPattern>> pattern =
            syntheticPattern(buffer, symbols);
        if (!pattern) {
          failed = joinErrors(std::move(failed), pattern.takeError());
          return WalkResult::interrupt();
        }
        if (*pattern)
          object["synthetic"] = patternJson(**pattern);
      }
      plan["buffers"].push_back(std::move(object));
      if (auto cache = dyn_cast<quantized::CacheType>(buffer.getType()); cache && inPages)
        pages = cache.getSequences();
      if (buffer.getKind() == plan::BufferKind::Cache)
        addDecision(buffer, buffer.getSymName(), 0);
    } else if (auto utility = op->getAttrOfType<DictionaryAttr>(kUtilityAttr)) {
      plan["utilities"][SymbolTable::getSymbolName(op).str()] = attributeJson(utility);
    } else if (auto step = dyn_cast<plan::StepOp>(op)) {
      json launches = json::array();
      for (auto launch : step.getBody().getOps<plan::LaunchOp>())
        launches.push_back(launchJson(launch));
      json &object = plan["steps"][step.getSymName().str()] = {{"launches", launches}};
      if (std::optional<uint64_t> tokens = step.getTokens())
        object["tokens"] = *tokens;
      if (step.getAllLogits())
        object["all_logits"] = true;
      if (mlir::Attribute time = step->getDiscardableAttr(fused::kTimeAttr))
        object["time"] = attributeJson(time);
      // Of a step that was to be one kernel, or might be: whether it is, and what it does, or why
      // not; and what both ways are predicted to take.
      if (mlir::Attribute reason = step->getDiscardableAttr(fused::kPersistentReasonAttr)) {
        json &mode = object["launch"] = {
            {"mode", step->hasAttr(fused::kPersistentAttr) ? "persistent" : "graph"},
            {"reason", attributeJson(reason)}};
        if (auto times = step->getAttrOfType<DictionaryAttr>(fused::kPersistentTimesAttr))
          mode["predicted"] = {{"positions", attributeJson(times.get("positions"))},
                               {"graph", attributeJson(times.get("graph"))},
                               {"persistent", attributeJson(times.get("persistent"))}};
      }
      plan["arena_bytes"] =
          std::max<int64_t>(plan["arena_bytes"].get<int64_t>(), step.getArenaBytes());
    } else if (auto packed = dyn_cast<quantized::PackedOp>(op)) {
      // Of each weight of the model, whatever it was packed together with.
      for (auto [index, source] : enumerate(packed.getSources().getAsRange<FlatSymbolRefAttr>()))
        addDecision(packed, source.getValue(), index);
    } else if (auto weight = dyn_cast<model::WeightOp>(op)) {
      if (weight.isSynthetic())
        model["synthetic"] = true;
    }
    return WalkResult::advance();
  });
  if (failed)
    return std::move(failed);
  // What is not there to be handed out is for places without a sequence.
  if (pages)
    model["cache_pages"] = pages - model.value("batch", int64_t(1));
  plan["model"] = model;
  if (!kernels.empty())
    plan["kernels"] = kernels;
  std::string compact = plan.dump();
  plan["checksum"] = checksum(arrayRefFromStringRef(compact));
  return plan.dump(1) + "\n";
}

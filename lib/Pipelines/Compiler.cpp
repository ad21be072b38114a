// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Pipelines/Compiler.h"
#include "KernelLoads.h"
#include "TokenizerSource.h"

#include "dialects/Plan/Plan.h"
#include "sluice-runtime/Plan.h"
#include "sluice/Analysis/Explain.h"

#include "sluice/Conversion/Passes.h"
#include "sluice/Formats/CacheScheme.h"
#include "sluice/Formats/Encoding.h"
#include "sluice/Formats/WeightScheme.h"
#include "sluice/Import/Expected.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/ModelFiles.h"
#include "sluice/Pipelines/Pipelines.h"
#include "sluice/Target/Artifact.h"
#include "sluice/Target/GpuTarget.h"
#include "sluice/Target/HostTarget.h"
#include "sluice/Target/TargetDescription.h"

#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/ToolOutputFile.h"

using namespace llvm;
using namespace mlir;
using namespace sluice;

namespace {

/// Collects the first error that MLIR reports, as one line, and passes warnings on, one line each.
class DiagnosticCollector {
public:
  DiagnosticCollector(MLIRContext &context, const std::function<void(StringRef)> &warn)
      : handler(&context, [this, &warn](Diagnostic &diagnostic) {
          if (diagnostic.getSeverity() == mlir::DiagnosticSeverity::Warning && warn)
            warn(lineOf(diagnostic));
          if (diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error && first.empty())
            first = lineOf(diagnostic);
          return success();
        }) {}

  Error take(const Twine &otherwise) {
    return createStringError(first.empty() ? otherwise : Twine(first));
  }

private:
  static std::string lineOf(Diagnostic &diagnostic) {
    std::string line;
    raw_string_ostream os(line);
    Location location = diagnostic.getLocation();
    if (auto file = location->findInstanceOf<FileLineColLoc>())
      os << file.getFilename().getValue() << ":" << file.getLine() << ":" << file.getColumn()
         << ": ";
    // Stages carry the weights' names as locations.
    else if (auto name = location->findInstanceOf<NameLoc>())
      os << name.getName().getValue() << ": ";
    os << diagnostic.str();
    // Whoever prints it shows a line end that it quotes as something else.
    return StringRef(line).rtrim().str();
  }

  std::string first;
  ScopedDiagnosticHandler handler;
};

struct CacheOption {
  StringLiteral name;
  std::string CompileOptions::*text;
  bool rotates;
};
constexpr CacheOption kCacheOptions[] = {{"k-cache", &CompileOptions::keyCache, true},
                                         {"v-cache", &CompileOptions::valueCache, false}};

/// The formats that the option's value stands for; "auto" and "f16" are the same.
Expected<std::string> cacheFormats(const CacheOption &option, StringRef text) {
  Expected<formats::CacheScheme> scheme =
      formats::CacheScheme::parse(text.empty() ? "auto" : text, option.rotates);
  if (!scheme)
    return createStringError("--" + option.name + " " + text + ": " + toString(scheme.takeError()));
  return scheme->name();
}

class Compilation {
public:
  explicit Compilation(const CompileOptions &options)
      : options(options), context(makeRegistry(), MLIRContext::Threading::DISABLED),
        diagnostics(context, options.warn) {
    context.loadAllAvailableDialects();
  }

  Error run();
  Expected<std::string> explain(bool json);
  Expected<std::vector<KernelLoad>> loads();

private:
  static DialectRegistry makeRegistry() {
    DialectRegistry registry;
    registerDialects(registry);
    return registry;
  }

  Error importModelFile();
  Error parseStageFile();
  /// Errors for options that a module which is past the import cannot honour.
  Error checkStageOptions();
  /// An error unless the weights of options.model lie where the module expects them.
  Error checkSameModel();
  /// Sets the option "weights" of a module at stage model to what `name` means for it.
  Error chooseWeights(StringRef name);
  /// Sets the options "k-cache" and "v-cache" of a module at stage model, if they are given.
  void chooseCaches();
  Error runStages();
  Error runStage(Stage next);
  Error emitStage(Stage stage);
  Error writeArtifact();
  Error writeKernels(std::vector<ArtifactFile> &files, nlohmann::json &resources);
  Error writeTokenizer(ArtifactDirectory &directory, std::vector<ArtifactFile> &files);
  StringRef option(StringRef name);
  void setOption(StringRef name, StringRef value);
  void warnOf(const ModelFiles &files) {
    if (options.warn)
      llvm::for_each(files.warnings, options.warn);
  }
  void report(StringRef what, double done) {
    if (options.progress)
      options.progress(what, done);
  }

  const CompileOptions &options;
  MLIRContext context;
  DiagnosticCollector diagnostics;
  OwningOpRef<ModuleOp> module;
  Stage stage = Stage::Model;
  /// The artifact, if one is wanted, from the start: a place that cannot be written is known before
  /// the work is done.
  std::optional<ArtifactDirectory> directory;
};

} // namespace

StringRef Compilation::option(StringRef name) {
  auto dictionary = (*module)->getAttrOfType<DictionaryAttr>(kOptionsAttr);
  auto value = dictionary ? dictionary.getAs<StringAttr>(name) : StringAttr();
  return value ? value.getValue() : StringRef();
}

void Compilation::setOption(StringRef name, StringRef value) {
  auto dictionary = (*module)->getAttrOfType<DictionaryAttr>(kOptionsAttr);
  NamedAttrList list(dictionary);
  list.set(name, StringAttr::get(&context, value));
  (*module)->setAttr(kOptionsAttr, list.getDictionary(&context));
}

/// What `auto` means, from what measurements say of accuracy and bytes: a quantized file keeps the
/// blocks that its maker chose; 8 bits in groups of 128 cost no measurable perplexity
/// (docs/numerics.md).
static StringRef automaticFormat(ModuleOp module) {
  bool isQuantized = false;
  module.walk([&](model::LinearOp linear) {
    isQuantized = linear.getWeight().getDefiningOp<quantized::DequantizeOp>() != nullptr;
    return WalkResult::interrupt(); // The first one stands for all.
  });
  return isQuantized ? "keep" : "int8-g128";
}

Error Compilation::chooseWeights(StringRef name) {
  if (name.empty() || name == "auto")
    name = automaticFormat(*module);
  else if (Expected<formats::WeightScheme> scheme = formats::WeightScheme::parse(name); !scheme)
    return createStringError("--weights: " + toString(scheme.takeError()));
  setOption("weights", name);
  return Error::success();
}

void Compilation::chooseCaches() {
  for (const CacheOption &cache : kCacheOptions)
    if (const std::string &given = options.*cache.text; !given.empty())
      setOption(cache.name, given);
}

Error Compilation::importModelFile() {
  report("reading " + options.model, 0);
  Expected<ModelFiles> files = openModel(options.model);
  if (!files)
    return files.takeError();
  if (files->weightsPresent && options.syntheticWeights)
    return createStringError("--synthetic-weights: " + options.model +
                             " has weights; give its config.json alone to compile without them");
  if (!files->weightsPresent && !options.syntheticWeights && !options.output.empty())
    return createStringError(files->weightsAbsentReason +
                             "; --synthetic-weights compiles without them");
  warnOf(*files);
  ImportOptions importOptions;
  if (options.context)
    importOptions.context = options.context;
  importOptions.tokens = options.batch;
  Expected<OwningOpRef<ModuleOp>> imported = importModel(context, *files, importOptions);
  if (!imported)
    return imported.takeError();
  module = std::move(*imported);
  stage = Stage::Model;
  chooseCaches();
  return chooseWeights(options.weights);
}

Error Compilation::parseStageFile() {
  report("reading " + options.fromIr, 0);
  sys::fs::file_status status;
  if (std::error_code code = sys::fs::status(options.fromIr, status))
    return createStringError(code, options.fromIr + ": " + code.message());
  // A device may have no end.
  if (status.type() != sys::fs::file_type::regular_file &&
      status.type() != sys::fs::file_type::fifo_file)
    return createStringError(options.fromIr + ": is not a regular file, expected a stage's file");
  ParserConfig config(&context);
  module = parseSourceFile<ModuleOp>(options.fromIr, config);
  if (!module) {
    std::string message = toString(diagnostics.take("is not a valid module"));
    if (!StringRef(message).starts_with(options.fromIr + ":"))
      message = options.fromIr + ": " + message;
    return createStringError(message);
  }
  auto name = (*module)->getAttrOfType<StringAttr>(kStageAttr);
  std::optional<Stage> parsed = name ? stageFromName(name.getValue()) : std::nullopt;
  if (!parsed)
    return createStringError(options.fromIr + ": the module needs an attribute " + kStageAttr +
                             " that is model, quantized, fused, scheduled, device or plan");
  stage = *parsed;
  if (Error error = checkStageOptions())
    return error;
  if (stage != Stage::Model)
    return Error::success();
  chooseCaches();
  return chooseWeights(options.weights.empty() ? option("weights") : options.weights);
}

Error Compilation::checkStageOptions() {
  auto refuse = [&](const Twine &given, const Twine &why) {
    return createStringError(given + ": " + options.fromIr + " " + why);
  };
  if (options.context) {
    auto config = (*module)->getAttrOfType<DictionaryAttr>("model.config");
    auto length = config ? config.getAs<IntegerAttr>("context_length") : IntegerAttr();
    if (!length || length.getInt() != options.context)
      return refuse("--context " + Twine(options.context),
                    "is past the import, which chooses the context" +
                        (length ? " (it has " + Twine(length.getInt()) + " positions)" : Twine()));
  }
  if (options.syntheticWeights)
    for (auto weight : module->getOps<model::WeightOp>())
      if (!weight.isSynthetic())
        return refuse("--synthetic-weights", "names weights of a file (" + weight.getSymName() +
                                                 " of " + *weight.getFile() + ")");
  if (!options.weights.empty() && stage != Stage::Model && options.weights != option("weights"))
    return refuse("--weights " + options.weights,
                  "is past the stage that chooses formats (it was made for " + option("weights") +
                      ")");
  for (const CacheOption &cache : kCacheOptions) {
    StringRef given = options.*cache.text;
    if (given.empty() || stage == Stage::Model)
      continue;
    Expected<std::string> asked = cacheFormats(cache, given),
                          decided = cacheFormats(cache, option(cache.name));
    if (Error error = joinErrors(asked.takeError(), decided.takeError()))
      return error;
    if (*asked != *decided)
      return refuse("--" + cache.name + " " + given,
                    "is past the stage that chooses formats (it was made for " + *decided + ")");
  }
  if (!options.target.empty() && stage >= Stage::Scheduled && options.target != option("target"))
    return refuse("--target " + options.target, "is already scheduled for " + option("target"));
  return options.model.empty() ? Error::success() : checkSameModel();
}

Error Compilation::checkSameModel() {
  Expected<ModelFiles> files = openModel(options.model);
  if (!files)
    return files.takeError();
  Expected<OwningOpRef<ModuleOp>> imported = importModel(context, *files, {});
  if (!imported)
    return imported.takeError();
  SymbolTable symbols(**imported);
  for (auto weight : module->getOps<model::WeightOp>()) {
    auto found = symbols.lookup<model::WeightOp>(weight.getSymName());
    // File, tensor, place and type.
    if (!found || found->getAttrDictionary() != weight->getAttrDictionary())
      return createStringError(options.model + ": is not the model that " + options.fromIr +
                               " was made for: weight " + weight.getSymName() +
                               (found ? " lies elsewhere in it" : " is not in it"));
  }
  (*module)->setAttr("model.source", StringAttr::get(&context, options.model));
  return Error::success();
}

Error Compilation::emitStage(Stage emitted) {
  if (options.emitIr.empty())
    return Error::success();
  std::string folder = options.emitIr;
  if (directory)
    if (std::optional<std::string> inside = directory->pathInside(folder))
      folder = *inside;
  if (std::error_code code = sys::fs::create_directories(folder))
    return createStringError(code, options.emitIr + ": " + code.message());
  StringRef name = stageName(emitted);
  if (emitted == Stage::Device)
    name = module->lookupSymbol<gpu::GPUModuleOp>(kKernelsModule) ? "gpu" : "host";
  std::string path =
      (Twine(folder) + "/" + Twine(static_cast<int>(emitted) + 1) + "-" + name + ".mlir").str();
  std::error_code code;
  ToolOutputFile file(path, code, sys::fs::OF_Text);
  if (code)
    return createStringError(code, path + ": " + code.message());
  // Locations carry the weights' names, which label kernels, so they are part of a stage.
  (*module)->print(file.os(), OpPrintingFlags().enableDebugInfo());
  file.os() << "\n";
  file.os().close();
  if ((code = file.os().error())) {
    file.os().clear_error();
    return createStringError(code, path + ": " + code.message());
  }
  file.keep();
  return Error::success();
}

Error Compilation::runStage(Stage next) {
  PipelineOptions pipeline;
  pipeline.weights = option("weights").str();
  if (StringRef keys = option("k-cache"); !keys.empty())
    pipeline.keyCache = keys.str();
  if (StringRef values = option("v-cache"); !values.empty())
    pipeline.valueCache = values.str();
  pipeline.target = option("target").str();
  report(("to stage " + stageName(next)).str(), 0);
  PassManager pm(&context);
  buildStagePipeline(pm, next, pipeline);
  if (failed(pm.run(*module)))
    return diagnostics.take("the passes to stage " + stageName(next) + " failed");
  stage = next;
  (*module)->setAttr(kStageAttr, StringAttr::get(&context, stageName(next)));
  return emitStage(next);
}

Error Compilation::runStages() {
  (*module)->setAttr(kStageAttr, StringAttr::get(&context, stageName(stage)));
  if (Error error = emitStage(stage))
    return error;
  for (Stage next : kStages)
    if (next > stage)
      if (Error error = runStage(next))
        return error;
  return Error::success();
}

Error Compilation::writeTokenizer(ArtifactDirectory &directory, std::vector<ArtifactFile> &files) {
  auto source = (*module)->getAttrOfType<StringAttr>("model.source");
  if (!source)
    return createStringError("the module has no model.source attribute");
  // Says that it is the module's source that cannot be opened.
  if (Expected<std::string> root = weightRoot(*module); !root)
    return root.takeError();
  Expected<ModelFiles> model = openModel(source.getValue());
  if (!model)
    return model.takeError();
  if (!options.fromIr.empty()) // else the import has told them
    warnOf(*model);
  if (model->tokenizer.empty()) // a model without a tokenizer still runs on ids
    return Error::success();
  Expected<runtime::Tokenizer> tokenizer = readTokenizer(*model);
  if (!tokenizer)
    return tokenizer.takeError();
  if (options.warn)
    llvm::for_each(tokenizer->warnings(), options.warn);
  if (Error error = directory.write("tokenizer.json", tokenizer->toJson()))
    return error;
  files.push_back({"tokenizer", "tokenizer.json"});
  return Error::success();
}

static Error checkPlan(const std::string &text) {
  return toExpected([&] { (void)runtime::Plan::parse(text, "plan.json"); });
}

/// Compiles the kernels for the device and writes them; `resources` gets what is known of each.
Error Compilation::writeKernels(std::vector<ArtifactFile> &files, nlohmann::json &resources) {
  report("compiling kernels", 0);
  Operation *kernels = module->lookupSymbol(kKernelsModule);
  if (auto host = dyn_cast_or_null<ModuleOp>(kernels)) {
    Expected<std::string> object = host::compileKernels(host);
    if (!object)
      return object.takeError();
    files.push_back({"kernels", ("kernels." + host::triple + ".so").str()});
    return directory->write(files.back().name, *object);
  }
  auto gpu = dyn_cast_or_null<gpu::GPUModuleOp>(kernels);
  if (!gpu)
    return createStringError("the module has no kernels: expected a module @" + kKernelsModule);
  Expected<nvidia::GpuCode> code = nvidia::compileKernels(gpu);
  if (!code)
    return code.takeError();
  // The emulator runs the very module that the PTX was made from, and names places in this text.
  std::string text;
  raw_string_ostream(text) << *gpu << "\n";
  files.push_back({"module", "kernels.mlir"});
  if (Error error = directory->write("kernels.mlir", text))
    return error;
  files.push_back({"ptx", "kernels.ptx"});
  if (Error error = directory->write("kernels.ptx", code->ptx))
    return error;
  for (const nvidia::KernelResources &kernel : code->resources)
    resources[kernel.name] = {{"registers", kernel.registers},
                              {"stack_bytes", kernel.stackBytes},
                              {"spill_store_bytes", kernel.spillStoreBytes},
                              {"spill_load_bytes", kernel.spillLoadBytes},
                              {"static_shared_bytes", kernel.staticSharedBytes}};
  if (code->cubin.empty())
    return Error::success();
  files.push_back({"cubin." + code->arch, "kernels." + code->arch + ".cubin"});
  return directory->write(files.back().name, code->cubin);
}

Error Compilation::writeArtifact() {
  Expected<TargetDescription> target = loadTarget(option("target"));
  if (!target)
    return target.takeError();
  std::vector<ArtifactFile> files;

  // First, as it takes no time: a tokenizer that is wrong is known before the work.
  if (Error error = writeTokenizer(*directory, files))
    return error;
  nlohmann::json kernels = nlohmann::json::object();
  if (Error error = writeKernels(files, kernels))
    return error;

  report("packing weights", 0);
  if (Error error = writeWeights(*module, directory->pathOf("weights.safetensors"),
                                 [&](double done) { report("packing weights", done); }))
    return error;
  files.push_back({"weights", "weights.safetensors"});
  Expected<std::string> plan = planJson(*module, planTarget(*target), kernels, files, *directory);
  if (!plan)
    return plan.takeError();
  // What no runtime would take is no artifact: stages may have been edited.
  if (Error error = checkPlan(*plan))
    return error;
  if (Error error = directory->write("plan.json", *plan))
    return error;
  return directory->commit();
}

/// Runs the stages up to fused, and sets the traffic of the model with its quantized weights,
/// operation by operation, beside that of the kernels.
Expected<std::string> Compilation::explain(bool json) {
  if (Error error = options.fromIr.empty() ? importModelFile() : parseStageFile())
    return error;
  Expected<TargetDescription> target = loadTarget(options.target);
  if (!target)
    return target.takeError();
  // Which products share a kernel depends on it.
  setOption("target", options.target);
  if (Error error = runStage(Stage::Quantized))
    return error;
  OwningOpRef<ModuleOp> unfused = module->clone();
  if (Error error = runStage(Stage::Fused))
    return error;
  int64_t context = options.context;
  if (context == 0) {
    auto config = (*module)->getAttrOfType<DictionaryAttr>("model.config");
    auto length = config ? config.getAs<IntegerAttr>("context_length") : IntegerAttr();
    context = length ? std::min<int64_t>(length.getInt(), 512) : 512;
  }
  Expected<Explanation> explanation =
      sluice::explain(*unfused, *module, *target, context, options.batch);
  if (!explanation)
    return explanation.takeError();
  std::string text;
  raw_string_ostream os(text);
  if (json)
    os << explanationJson(*explanation).dump(2) << "\n";
  else
    printExplanation(*explanation, os);
  return text;
}

Expected<std::vector<KernelLoad>> Compilation::loads() {
  if (Error error = importModelFile())
    return std::move(error);
  setOption("target", options.target);
  for (Stage next : {Stage::Quantized, Stage::Fused, Stage::Scheduled})
    if (Error error = runStage(next))
      return std::move(error);
  std::vector<KernelLoad> loads;
  module->walk([&](fused::KernelOp op) { loads.push_back(kernelLoad(op)); });
  return loads;
}

Error Compilation::run() {
  if (!options.output.empty()) {
    Expected<ArtifactDirectory> made = ArtifactDirectory::create(options.output);
    if (!made)
      return made.takeError();
    directory = std::move(*made);
  }
  if (Error error = options.fromIr.empty() ? importModelFile() : parseStageFile())
    return error;
  if (!options.target.empty())
    setOption("target", options.target);
  else if (option("target").empty())
    setOption("target", "host");
  if (Error error = runStages())
    return error;
  return options.output.empty() ? Error::success() : writeArtifact();
}

Expected<std::string> sluice::explainModel(const CompileOptions &options, bool json) {
  Compilation compilation(options);
  return compilation.explain(json);
}

Expected<std::vector<KernelLoad>> sluice::kernelLoads(const CompileOptions &options) {
  return Compilation(options).loads();
}

Error sluice::compile(const CompileOptions &options) { return Compilation(options).run(); }

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Pipelines/Compiler.h"
#include "KernelLoads.h"
#include "TokenizerSource.h"

#include "dialects/Plan/Plan.h"
#include "sluice-runtime/Plan.h"
#include "sluice/Analysis/Explain.h"

#include "sluice/Conversion/Passes.h"
#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/CacheScheme.h"
#include "sluice/Formats/Encoding.h"
#include "sluice/Formats/WeightScheme.h"
#include "sluice/Import/Expected.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/ModelFiles.h"
#include "sluice/Pipelines/Pipelines.h"
#include "sluice/Planner/ModelPlan.h"
#include "sluice/Report/Report.h"
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

/// What a message quotes need not be UTF-8.
constexpr auto kReplace = nlohmann::json::error_handler_t::replace;

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
  Expected<std::string> explain(const ExplainOptions &how);
  Expected<std::string> recommend(bool json);
  Expected<std::vector<report::StageText>> readStages(ArrayRef<std::string> files, int64_t layer);
  Expected<std::vector<KernelLoad>> loads(StringRef step);

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
  /// Sets the options of a module at stage model that say how numbers are stored.
  Error chooseFormats(StringRef weights);
  Error chooseWeights(StringRef name);
  /// Adds the decisions of the file that the option "plan" names to those that are asked for.
  Error readPlan(PipelineOptions &pipeline);
  /// Sets the options "k-cache" and "v-cache" of a module at stage model, if they are given.
  void chooseCaches();
  Error runStages();
  Error runStage(Stage next);
  Error emitStage(Stage stage);
  /// The module's stage as files and people call it: "model", ..., "gpu" or "host" for device.
  StringRef shownName(Stage of);
  Error writeArtifact();
  Error writeKernels(std::vector<ArtifactFile> &files, nlohmann::json &resources);
  Error writeTokenizer(ArtifactDirectory &directory, std::vector<ArtifactFile> &files);
  StringRef option(StringRef name);
  void setOption(StringRef name, StringRef value);
  /// Checks and keeps --cache-pages.
  Error takeCachePages();
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
  /// The layer whose text is kept at every stage, if there is one.
  std::optional<int64_t> keptLayer;
  std::vector<report::StageText> keptStages;
};

} // namespace

StringRef Compilation::option(StringRef name) {
  auto dictionary = (*module)->getAttrOfType<DictionaryAttr>(kOptionsAttr);
  auto value = dictionary ? dictionary.getAs<StringAttr>(name) : StringAttr();
  return value ? value.getValue() : StringRef();
}

Error Compilation::takeCachePages() {
  if (!options.cachePages)
    return Error::success();
  auto config = (*module)->getAttrOfType<DictionaryAttr>("model.config");
  auto number = [&](StringRef name) {
    auto value = config ? config.getAs<IntegerAttr>(name) : IntegerAttr();
    return value ? value.getInt() : 1;
  };
  int64_t batch = number("batch"), context = number("context_length");
  std::string given = "--cache-pages " + std::to_string(options.cachePages);
  if (batch == 1)
    return createStringError(given + ": is for several sequences (--batch)");
  int64_t most = batch * llvm::divideCeil(context, formats::cacheTile);
  if (options.cachePages > most)
    return createStringError(given + ": " + Twine(batch) + " sequences of " + Twine(context) +
                             " positions need at most " + Twine(most) + " pages of " +
                             Twine(formats::cacheTile));
  setOption("cache-pages", std::to_string(options.cachePages));
  return Error::success();
}

void Compilation::setOption(StringRef name, StringRef value) {
  auto dictionary = (*module)->getAttrOfType<DictionaryAttr>(kOptionsAttr);
  NamedAttrList list(dictionary);
  list.set(name, StringAttr::get(&context, value));
  (*module)->setAttr(kOptionsAttr, list.getDictionary(&context));
}

Error Compilation::chooseWeights(StringRef name) {
  if (name.empty())
    name = options.plan.empty() ? "auto" : "keep";
  if (Expected<formats::WeightScheme> scheme = formats::WeightScheme::parse(name); !scheme)
    return createStringError("--weights: " + toString(scheme.takeError()));
  setOption("weights", name);
  return Error::success();
}

void Compilation::chooseCaches() {
  for (const CacheOption &cache : kCacheOptions)
    if (const std::string &given = options.*cache.text; !given.empty())
      setOption(cache.name, given);
}

Error Compilation::chooseFormats(StringRef weights) {
  chooseCaches();
  if (Error error = chooseWeights(weights))
    return error;
  if (!options.goal.empty()) {
    if (Expected<planner::Goal> goal = planner::Goal::parse(options.goal); !goal)
      return goal.takeError();
    setOption("goal", options.goal);
  }
  if (!options.stats.empty())
    setOption("stats", options.stats);
  if (options.planContext)
    setOption("plan-context", std::to_string(options.planContext));
  if (!options.plan.empty())
    setOption("plan", options.plan);
  return Error::success();
}

/// The numbers of --prefill, ascending; a single 0 for none.
static Expected<SmallVector<int64_t>> parsePrefill(StringRef text) {
  SmallVector<int64_t> tokens;
  if (text == "none")
    return SmallVector<int64_t>{0};
  for (StringRef number : split(text, ',')) {
    int64_t value = 0;
    if (number.getAsInteger(10, value) || value < 2 || value > (1 << 16) ||
        (!tokens.empty() && value <= tokens.back()))
      return createStringError("--prefill " + text +
                               ": expected none, or numbers from 2 to 65536, each greater than "
                               "the one before it, separated by commas");
    tokens.push_back(value);
  }
  return tokens;
}

Error Compilation::readPlan(PipelineOptions &pipeline) {
  std::string path = option("plan").str();
  auto wrong = [&](const Twine &what) { return createStringError(path + ": " + what); };
  auto file = mapFile(path);
  if (!file)
    return file.takeError();
  nlohmann::json plan = nlohmann::json::parse((*file)->text().begin(), (*file)->text().end(),
                                              nullptr, /*allow_exceptions=*/false);
  if (!plan.is_object() || !plan.contains("decisions") || !plan["decisions"].is_array())
    return wrong("is no plan: expected a JSON object with a list \"decisions\" of objects with "
                 "\"what\" and \"decision\"");
  llvm::StringMap<std::string> layerOf; // of a cache, with the option that it belongs to
  int64_t layer = 0;
  module->walk([&](model::AttentionOp attention) {
    std::string number = std::to_string(layer++);
    layerOf["k-cache " + attention.getKeys().str()] = number;
    layerOf["v-cache " + attention.getValues().str()] = number;
  });
  llvm::StringMap<std::string> caches;
  for (const nlohmann::json &decision : plan["decisions"]) {
    if (!decision.is_object() || !decision.contains("what") || !decision["what"].is_string() ||
        !decision.contains("decision") || !decision["decision"].is_string())
      return wrong("a decision is " + decision.dump(-1, ' ', false, kReplace) +
                   ", expected an object with strings \"what\" and \"decision\"");
    auto what = decision["what"].get<std::string>(),
         format = decision["decision"].get<std::string>();
    if (module->lookupSymbol<model::WeightOp>(what)) {
      pipeline.weights = pipeline.weights.getValue() + "," + what + "=" + format;
      continue;
    }
    bool found = false;
    for (const CacheOption &cache : kCacheOptions)
      if (auto known = layerOf.find((cache.name + " " + what).str()); known != layerOf.end()) {
        caches[cache.name] += "," + known->second + "=" + format;
        found = true;
      }
    if (!found)
      return wrong("decides about " + what + ", which is no weight or cache of this model");
  }
  if (auto scheme = formats::WeightScheme::parse(pipeline.weights); !scheme)
    return wrong(toString(scheme.takeError()));
  for (const CacheOption &cache : kCacheOptions) {
    auto &asked = cache.rotates ? pipeline.keyCache : pipeline.valueCache;
    // What nobody asks for is not planned once more.
    asked = (option(cache.name).empty() ? "f16" : asked.getValue()) + caches[cache.name];
    if (Expected<std::string> formats = cacheFormats(cache, asked); !formats)
      return wrong(toString(formats.takeError()));
  }
  return Error::success();
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
  importOptions.sequences = options.batch;
  Expected<OwningOpRef<ModuleOp>> imported = importModel(context, *files, importOptions);
  if (!imported)
    return imported.takeError();
  module = std::move(*imported);
  stage = Stage::Model;
  return chooseFormats(options.weights);
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
  return chooseFormats(options.weights.empty() ? option("weights") : options.weights);
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
  if (!options.stats.empty() && stage != Stage::Model && options.stats != option("stats"))
    return refuse(
        "--stats " + options.stats,
        "is past the stage that reads statistics (it was made " +
            (option("stats").empty() ? Twine("without any)") : "with " + option("stats") + ")"));
  if (!options.plan.empty() && stage != Stage::Model && options.plan != option("plan"))
    return refuse("--plan " + options.plan, "is past the stage that chooses formats");
  if (!options.goal.empty() && stage != Stage::Model && options.goal != option("goal"))
    return refuse("--" + StringRef(options.goal).split('=').first + " " +
                      StringRef(options.goal).split('=').second,
                  "is past the stage that chooses formats");
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
  if (!options.prefill.empty() && stage >= Stage::Scheduled && options.prefill != option("prefill"))
    return refuse(
        "--prefill " + options.prefill,
        "is past the stage that makes steps (it was made for " +
            (option("prefill").empty() ? Twine("what the target says") : Twine(option("prefill"))) +
            ")");
  if (options.cachePages && stage >= Stage::Scheduled &&
      std::to_string(options.cachePages) != option("cache-pages"))
    return refuse("--cache-pages " + Twine(options.cachePages),
                  "is past the stage that puts caches into pages (it was made for " +
                      (option("cache-pages").empty() ? Twine("all that its sequences need")
                                                     : Twine(option("cache-pages"))) +
                      ")");
  if (!options.launch.empty() && stage >= Stage::Scheduled && options.launch != option("launch"))
    return refuse("--launch " + options.launch,
                  "is past the stage that plans launches (it was made for " +
                      (option("launch").empty() ? "auto" : option("launch")) + ")");
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

StringRef Compilation::shownName(Stage of) {
  if (of != Stage::Device)
    return stageName(of);
  return module->lookupSymbol<gpu::GPUModuleOp>(kKernelsModule) ? "gpu" : "host";
}

Error Compilation::emitStage(Stage emitted) {
  if (keptLayer)
    keptStages.push_back(report::stageText(*module, shownName(emitted), *keptLayer));
  if (options.emitIr.empty())
    return Error::success();
  std::string folder = options.emitIr;
  if (directory)
    if (std::optional<std::string> inside = directory->pathInside(folder))
      folder = *inside;
  if (std::error_code code = sys::fs::create_directories(folder))
    return createStringError(code, options.emitIr + ": " + code.message());
  std::string path = (Twine(folder) + "/" + Twine(static_cast<int>(emitted) + 1) + "-" +
                      shownName(emitted) + ".mlir")
                         .str();
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
  pipeline.stats = option("stats").str();
  if (StringRef goal = option("goal"); !goal.empty())
    pipeline.goal = goal.str();
  if (StringRef context = option("plan-context"); !context.empty())
    pipeline.planContext = std::stoll(context.str());
  if (StringRef prefill = option("prefill"); !prefill.empty()) {
    Expected<SmallVector<int64_t>> tokens = parsePrefill(prefill);
    if (!tokens)
      return tokens.takeError();
    for (int64_t count : *tokens)
      pipeline.prefill.push_back(count);
  }
  if (StringRef pages = option("cache-pages"); !pages.empty())
    pipeline.cachePages = std::stoll(pages.str());
  if (StringRef launch = option("launch"); !launch.empty())
    pipeline.launch = launch.str();
  pipeline.target = option("target").str();
  pipeline.racecheck = options.racecheck;
  if (next == Stage::Quantized && !option("plan").empty())
    if (Error error = readPlan(pipeline))
      return error;
  report(("to stage " + stageName(next)).str(), 0);
  PassManager pm(&context);
  buildStagePipeline(pm, next, pipeline, options.progress);
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
/// operation by operation, beside that of the kernels. A page shows the later stages, too.
Expected<std::string> Compilation::explain(const ExplainOptions &how) {
  if (Error error = options.fromIr.empty() ? importModelFile() : parseStageFile())
    return error;
  Expected<TargetDescription> target = loadTarget(options.target);
  if (!target)
    return target.takeError();
  int64_t layers = 0;
  module->walk([&](model::AttentionOp) { ++layers; });
  if (how.layer >= layers)
    return createStringError("--layer " + Twine(how.layer) + ": the model has " + Twine(layers) +
                             " layers, counted from 0");
  if (!how.html.empty())
    keptLayer = how.layer;
  // Which products share a kernel depends on it.
  setOption("target", options.target);
  if (Error error = takeCachePages())
    return error;
  if (Error error = emitStage(stage))
    return error;
  if (Error error = runStage(Stage::Quantized))
    return error;
  OwningOpRef<ModuleOp> unfused = module->clone();
  if (Error error = runStage(Stage::Fused))
    return error;
  report::Report report;
  auto config = (*module)->getAttrOfType<DictionaryAttr>("model.config");
  auto length = config ? config.getAs<IntegerAttr>("context_length") : IntegerAttr();
  report.longest = length ? length.getInt() : 0;
  report.context = options.context;
  if (report.context == 0)
    report.context = length ? std::min<int64_t>(length.getInt(), 512) : 512;
  Expected<Explanation> explanation =
      sluice::explain(*unfused, *module, *target, report.context, options.batch);
  if (!explanation)
    return explanation.takeError();

  report.model = explanation->model;
  report.weights = join(map_range(explanation->formats, [](auto &f) { return f.first; }), ", ");
  report.longest = std::max(report.longest, report.context);
  report.batch = options.batch;
  report.target = *target;
  report.layer = how.layer;
  if (mlir::Attribute plan = (*unfused)->getAttr(planner::kPlanAttr))
    report.plan = attributeJson(plan);
  report.choices = report::choicesOf(*unfused, report.plan);
  // Kernels are last changed on the way to stage scheduled. Beyond it there is one sequence.
  if (keptLayer && options.batch == 1)
    if (Error error = runStage(Stage::Scheduled))
      return error;
  TimeModel time(*target, report.context, options.batch / explanation->stepTokens);
  report.kernels = report::kernelsOf(*module, time);
  report.stepSeconds = time.stepSeconds();
  report::shareTimes(report);
  // Steps for prompts are made there, and several sequences get other kernels.
  if (stage == Stage::Fused)
    if (Error error = runStage(Stage::Scheduled))
      return error;
  addScheduled(*explanation, *module);
  report.explanation = explanationJson(*explanation);
  if (keptLayer) {
    if (options.batch == 1)
      for (Stage next : {Stage::Device, Stage::Plan})
        if (Error error = runStage(next))
          return error;
    report.stages = std::move(keptStages);
    if (Error error = writeTextFile(how.html, report::page(report)))
      return error;
  }

  std::string text;
  raw_string_ostream os(text);
  if (how.json) {
    report.explanation.update(report::choicesJson(report));
    os << report.explanation.dump(2, ' ', false, kReplace) << "\n";
  } else {
    printExplanation(*explanation, os);
    report::printChoices(report, how.decisions, os);
  }
  return text;
}

Expected<std::string> Compilation::recommend(bool json) {
  if (Error error = importModelFile())
    return std::move(error);
  planner::Request request;
  if (Error error = loadTarget(options.target).moveInto(request.target))
    return std::move(error);
  Expected<planner::Goal> goal = planner::Goal::parse(
      options.goal.empty() ? StringRef(planner::kDefaultGoal) : StringRef(options.goal));
  if (!goal)
    return goal.takeError();
  request.context = options.planContext;
  request.statistics = options.stats;
  Expected<planner::Recommendation> result = planner::recommend(
      *module, request, *goal, [&](double done) { report("predicting errors of formats", done); });
  if (!result)
    return result.takeError();
  // What a step takes beside products and attention does not depend on formats.
  setOption("target", options.target);
  setOption("weights", "keep");
  setOption("k-cache", "f16");
  setOption("v-cache", "f16");
  for (Stage next : {Stage::Quantized, Stage::Fused})
    if (Error error = runStage(next))
      return std::move(error);
  TimeModel time(request.target, result->context);
  double others = time.stepSeconds();
  for (const report::Kernel &kernel : report::kernelsOf(*module, time))
    if (!kernel.traffic.weights && !kernel.traffic.keys)
      others += kernel.time.at(result->context).seconds();
  std::string text;
  raw_string_ostream os(text);
  report::printRecommendation(module->getSymName().value_or("model"), *result, *goal,
                              request.target, others, json, os);
  return text;
}

Expected<std::vector<report::StageText>> Compilation::readStages(ArrayRef<std::string> files,
                                                                 int64_t layer) {
  std::vector<report::StageText> stages;
  for (const std::string &file : files) {
    module = parseSourceFile<ModuleOp>(file, ParserConfig(&context));
    if (!module)
      return diagnostics.take(file + ": is not a valid module");
    auto name = (*module)->getAttrOfType<StringAttr>(kStageAttr);
    std::optional<Stage> parsed = name ? stageFromName(name.getValue()) : std::nullopt;
    if (!parsed)
      return createStringError(file + ": the module has no attribute " + kStageAttr);
    stages.push_back(report::stageText(*module, shownName(*parsed), layer));
  }
  return stages;
}

Error sluice::writeTextFile(const std::string &path, StringRef text) {
  return handleErrors(writeToOutput(path,
                                    [&](raw_ostream &os) {
                                      os << text;
                                      return Error::success();
                                    }),
                      [&](std::unique_ptr<ErrorInfoBase> error) {
                        return createStringError(path + ": " + error->message());
                      });
}

Expected<std::vector<KernelLoad>> Compilation::loads(StringRef step) {
  if (Error error = importModelFile())
    return std::move(error);
  setOption("target", options.target);
  setOption("prefill", options.prefill);
  for (Stage next : {Stage::Quantized, Stage::Fused, Stage::Scheduled})
    if (Error error = runStage(next))
      return std::move(error);
  std::vector<KernelLoad> loads;
  auto function = module->lookupSymbol<func::FuncOp>(step);
  if (!function)
    return createStringError("no step " + step + ", this compiler divides prompts in another way");
  function.walk([&](fused::KernelOp op) { loads.push_back(kernelLoad(op)); });
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
  if (Error error = takeCachePages())
    return error;
  if (!options.prefill.empty()) {
    if (Expected<SmallVector<int64_t>> tokens = parsePrefill(options.prefill); !tokens)
      return tokens.takeError();
    setOption("prefill", options.prefill);
  }
  if (!options.launch.empty())
    setOption("launch", options.launch);
  if (options.racecheck || options.launch == "persistent") {
    Expected<TargetDescription> target = loadTarget(option("target"));
    if (!target)
      return target.takeError();
    if (!target->isGpu())
      return createStringError((options.racecheck ? "--racecheck" : "--launch persistent") +
                               Twine(" is for GPUs, target ") + target->name + " is a CPU");
  }
  if (Error error = runStages())
    return error;
  return options.output.empty() ? Error::success() : writeArtifact();
}

Expected<std::string> sluice::explainModel(const CompileOptions &options,
                                           const ExplainOptions &explain) {
  return Compilation(options).explain(explain);
}

Expected<std::string> sluice::recommendFormats(const CompileOptions &options, bool json) {
  return Compilation(options).recommend(json);
}

Expected<std::vector<report::StageText>> sluice::stageTexts(const std::string &directory,
                                                            int64_t layer) {
  std::vector<std::string> files;
  std::error_code code;
  for (sys::fs::directory_iterator entry(directory, code), end; entry != end && !code;
       entry.increment(code))
    if (StringRef(entry->path()).ends_with(".mlir"))
      files.push_back(entry->path());
  sort(files);
  CompileOptions options;
  return Compilation(options).readStages(files, layer);
}

Expected<std::vector<KernelLoad>> sluice::kernelLoads(const CompileOptions &options,
                                                      StringRef step) {
  return Compilation(options).loads(step);
}

Error sluice::compile(const CompileOptions &options) { return Compilation(options).run(); }

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The driver: the compiler's commands, and the runtime's commands on models as well as artifacts.

#include "Commands.h"

#include "sluice-runtime/Commands.h"
#include "sluice/Emulator/Emulator.h"
#include "sluice/Target/ScratchDirectory.h"
#include "sluice/Target/TargetDescription.h"

using namespace sluice;
using namespace sluice::driver;

namespace {

/// Artifacts of models that were given where an artifact could be: compiled when asked for, removed
/// at the end, whatever ends the process.
class TemporaryArtifacts {
public:
  std::string compile(CompileOptions options) {
    llvm::Expected<ScratchDirectory> folder = ScratchDirectory::createTemporary("sluice");
    if (!folder)
      throw Failure(folder.takeError());
    options.output = (folder->path() + "/artifact").str();
    folders.push_back(std::move(*folder));
    models.emplace_back(options.output, options.model);
    compileWithProgress(options);
    return options.output;
  }

  /// Names the model in a message about its artifact, whose place says nothing to the user.
  std::string rename(std::string message) const {
    for (const auto &[artifact, model] : models)
      for (size_t at = 0; (at = message.find(artifact, at)) != std::string::npos;
           at += model.size())
        message.replace(at, artifact.size(), model + " (compiled)");
    return message;
  }

private:
  std::vector<ScratchDirectory> folders;
  /// Artifacts, and what they were compiled from.
  std::vector<std::pair<std::string, std::string>> models;
};

} // namespace

/// An artifact is what it was compiled to be.
static void refuseCompileOptions(const CLI::App &command, const std::string &artifact) {
  for (const char *name : {"--weights", "--stats", "--target", "--k-cache", "--v-cache"})
    if (command.count(name))
      throw Failure(std::string(name) + " " + command.get_option(name)->results().front() + ": " +
                    artifact +
                    " is an artifact, which is compiled already; give the model instead");
}

static runtime::Tokenizer tokenizerOf(const std::string &model) {
  llvm::Expected<runtime::Tokenizer> tokenizer = modelTokenizer(model);
  if (!tokenizer)
    throw Failure(tokenizer.takeError());
  return *tokenizer;
}

/// Kernels that are compiled for one kind of device do not run on another.
static void checkDevice(const std::string &device, const std::string &targetName) {
  if (device.empty())
    return;
  llvm::Expected<TargetDescription> target = loadTarget(targetName);
  if (!target)
    throw Failure(target.takeError());
  if (target->isGpu() == (device == "cpu"))
    throw Failure("--device " + device + ": target " + target->name + " is a " +
                  (target->isGpu() ? "GPU" : "CPU") + "; give a --target that is a " +
                  (target->isGpu() ? "CPU" : "GPU"));
}

static runtime::CommandHooks modelHooks(const CLI::App &app, TemporaryArtifacts &artifacts,
                                        CompileOptions &options) {
  runtime::CommandHooks hooks;
  hooks.modelHelp =
      "An artifact, or a model (compiled first): a GGUF file or a Hugging Face directory";
  hooks.referenceHelp = "an artifact, or a model (compiled first, for the same target, with "
                        "--weights keep and cached keys and values in f16)";
  hooks.resolve = [&](const std::string &model,
                      const runtime::CompileHints &hints) -> std::filesystem::path {
    if (runtime::Artifact::isArtifact(model)) {
      if (!hints.isReference)
        refuseCompileOptions(*app.get_subcommands().front(), model);
      return model;
    }
    // Known before the work: without one there is no text.
    if (hints.needsTokenizer)
      tokenizerOf(model);
    CompileOptions compile = options;
    if (hints.isReference) {
      compile = {};
      compile.target = options.target;
      compile.weights = "keep";
    }
    checkDevice(hints.device, compile.target.empty() ? "host" : compile.target);
    compile.model = model;
    if (hints.context > 0 && compile.context == 0)
      compile.context = hints.context;
    return artifacts.compile(compile);
  };
  hooks.loadTokenizer = [](const std::string &model) {
    if (runtime::Artifact::isArtifact(model))
      return runtime::openTokenizer(model);
    return tokenizerOf(model);
  };
  return hooks;
}

int main(int argc, char **argv) {
  CLI::App app("Sluice compiles language models for decoding at the speed of the memory.",
               "sluice");
  app.set_version_flag("--version", "sluice " SLUICE_VERSION);
  app.require_subcommand(1);
  emulator::registerEmulatorDevice();

  TemporaryArtifacts artifacts;
  CompileOptions options;
  runtime::CommandHooks hooks = modelHooks(app, artifacts, options);
  addCompileCommand(app);
  addFormatOptions(*runtime::addRunCommand(app, hooks), options);
  addFormatOptions(*runtime::addChatCommand(app, hooks), options);
  addFormatOptions(*runtime::addPerplexityCommand(app, hooks), options);
  runtime::addTokenizeCommand(app, hooks);
  addFormatOptions(*runtime::addBenchCommand(app, hooks), options);
  addMeasureCommand(app);
  addExplainCommand(app);
  addCalibrateCommand(app);
  addInspectCommand(app);
  return runtime::runCommandLine(
      app, argc, argv, [&](std::string message) { return artifacts.rename(std::move(message)); });
}

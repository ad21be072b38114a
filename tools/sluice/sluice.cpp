// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The driver: the compiler's commands, and the runtime's commands on models as well as artifacts.

#include "Commands.h"

#include "sluice-runtime/Commands.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace sluice;
using namespace sluice::driver;

namespace {

/// Artifacts of models that were given where an artifact could be: compiled when asked for, removed at
/// the end.
class TemporaryArtifacts {
public:
  ~TemporaryArtifacts() {
    for (const std::string &path : paths)
      llvm::sys::fs::remove_directories(path);
  }

  std::string compile(CompileOptions options) {
    llvm::SmallString<128> root;
    if (std::error_code code = llvm::sys::fs::createUniqueDirectory("sluice", root))
      throw Failure("temporary directory: " + code.message());
    paths.push_back(root.str().str());
    options.output = (root + "/artifact").str();
    compileWithProgress(options);
    return options.output;
  }

private:
  std::vector<std::string> paths;
};

} // namespace

static runtime::CommandHooks modelHooks(TemporaryArtifacts &artifacts, CompileOptions &options) {
  runtime::CommandHooks hooks;
  hooks.modelHelp = "An artifact, or a model (compiled first): a GGUF file or a Hugging Face directory";
  hooks.resolve = [&](const std::string &model,
                      const runtime::CompileHints &hints) -> std::filesystem::path {
    if (runtime::Artifact::isArtifact(model))
      return model;
    CompileOptions compile = options;
    compile.model = model;
    if (hints.context > 0 && compile.context == 0)
      compile.context = hints.context;
    return artifacts.compile(compile);
  };
  hooks.loadTokenizer = [](const std::string &model) {
    if (runtime::Artifact::isArtifact(model))
      return runtime::openArtifact(model)->tokenizer();
    llvm::Expected<std::string> json = modelTokenizer(model);
    if (!json)
      throw Failure(json.takeError());
    return runtime::Tokenizer::fromJson(*json, model);
  };
  return hooks;
}

int main(int argc, char **argv) {
  CLI::App app("Sluice compiles language models for decoding at the speed of the memory.", "sluice");
  app.set_version_flag("--version", "sluice " SLUICE_VERSION);
  app.require_subcommand(1);

  TemporaryArtifacts artifacts;
  CompileOptions options;
  runtime::CommandHooks hooks = modelHooks(artifacts, options);
  addCompileCommand(app);
  addFormatOptions(*runtime::addRunCommand(app, hooks), options);
  addFormatOptions(*runtime::addPerplexityCommand(app, hooks), options);
  runtime::addTokenizeCommand(app, hooks);
  runtime::addBenchCommand(app, hooks);
  addExplainCommand(app);
  addInspectCommand(app);
  return runtime::runCommandLine(app, argc, argv);
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Commands.h"

#include "sluice-runtime/Commands.h"
#include "sluice-support/Text.h"
#include "sluice/Calibration/Measure.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/xxhash.h"

using namespace sluice;
using namespace sluice::driver;

namespace {
struct MeasureCommand {
  std::string model, text, output;
  int64_t tokens = calibration::MeasureOptions().statisticsTokens,
          sensitivityTokens = calibration::MeasureOptions().sensitivityTokens;
  bool withoutHessians = false;
  uint64_t seed = 0;

  void run() const;
};
} // namespace

void MeasureCommand::run() const {
  // Another file of that name may be anything, and the user's only copy of it.
  if (llvm::sys::fs::exists(output) && !calibration::Statistics::isStatistics(output))
    throw Failure(output + ": exists and is no file of statistics; choose another name");
  llvm::Expected<ModelFiles> files = openModel(model);
  if (!files)
    throw Failure(files.takeError());
  llvm::for_each(files->warnings, printWarning);
  llvm::Expected<runtime::Tokenizer> tokenizer = modelTokenizer(model);
  if (!tokenizer)
    throw Failure(tokenizer.takeError());
  std::string content = runtime::readTextFile(text);
  std::vector<int32_t> ids = tokenizer->encodeWhole(content);

  calibration::MeasureOptions options;
  options.tokens = ids;
  options.bosId = tokenizer->addsBos() ? tokenizer->bosId() : -1;
  options.statisticsTokens = tokens;
  options.sensitivityTokens = sensitivityTokens;
  options.hessians = !withoutHessians;
  options.seed = seed;
  options.textChecksum = support::hexDigits(llvm::xxh3_64bits(content));
  ProgressLine line;
  options.progress = [&](llvm::StringRef what, double done) { line.show(what, done); };
  llvm::Expected<calibration::MeasureSummary> summary =
      calibration::measure(*files, output, options);
  line.clear();
  if (!summary)
    throw Failure(summary.takeError());

  std::string kept = llvm::formatv("{0} of {1} inputs of {2} weights from {3} tokens",
                                   summary->hessians ? "Hessians" : "moments", summary->inputs,
                                   summary->weights, summary->source.tokens);
  if (summary->source.sensitivityTokens)
    kept += llvm::formatv(", sensitivities of weights and caches of {0} layers from {1}",
                          summary->layers, summary->source.sensitivityTokens);
  printResult(
      llvm::formatv("{0}: {1}; {2:f1} MB\n", output, kept, summary->fileBytes * 1e-6).str());
}

void driver::addMeasureCommand(CLI::App &app) {
  auto options = std::make_shared<MeasureCommand>();
  CLI::App *command = app.add_subcommand(
      "measure", "Run a model over text and keep what rounding and the choice of formats go by");
  command->footer("Examples:\n"
                  "  sluice measure models/llama-4m -f calibration.txt -o llama-4m.stats\n"
                  "  sluice measure model.gguf -f calibration.txt -o model.stats -n 16384");
  command
      ->add_option("MODEL", options->model,
                   "A GGUF file or a Hugging Face directory (config.json, safetensors, tokenizer)")
      ->required();
  command->add_option("-f,--file", options->text, "The text, - for standard input")
      ->required()
      ->type_name("TEXT");
  command->add_option("-o,--output", options->output, "The file of statistics to write")
      ->required()
      ->type_name("STATS");
  command
      ->add_option("-n,--tokens", options->tokens,
                   "Tokens of the text to take statistics of, in whole windows of 512 (default: "
                   "16384)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 32))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command
      ->add_option("--sensitivity-tokens", options->sensitivityTokens,
                   "How many of them to measure losses of weights and caches on, 0 for none "
                   "(default: 1024)")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 32))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command->add_flag("--no-hessians", options->withoutHessians,
                    "Keep moments alone: a small file, but rounding cannot compensate errors");
  command->add_option("--seed", options->seed, "Of the noise that weights get (default: 0)")
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command->callback([options] { options->run(); });
}

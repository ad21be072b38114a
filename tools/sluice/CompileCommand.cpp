// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Commands.h"

#include "sluice-runtime/Commands.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unistd.h>

using namespace sluice;
using namespace sluice::driver;

/// What the planner is to reach where formats are auto, and a plan that takes its place.
static void addPlanOptions(CLI::App &command, CompileOptions &options) {
  struct GoalOption {
    const char *name, *description, *type;
  };
  static constexpr GoalOption kGoals[] = {
      {"error-budget",
       "Plan for the least time of a token, with a predicted divergence from the unquantized "
       "model of at most X, in 1e-3 nats a token (default: 1)",
       "X"},
      {"max-bits",
       "Plan for the least error with at most B bits a weight on average, scales included", "B"},
      {"max-bytes", "Plan for the least error with at most N bytes of weights and caches", "N"},
      {"max-time", "Plan for the least error with a predicted time of at most T ms a token", "T"}};
  CLI::Option_group *goals = command.add_option_group("Planning");
  goals->require_option(0, 1);
  for (const GoalOption &goal : kGoals)
    goals
        ->add_option_function<std::string>(
            std::string("--") + goal.name,
            [&options, name = std::string(goal.name)](const std::string &value) {
              options.goal = name + "=" + value;
            },
            goal.description)
        ->type_name(goal.type);
  command
      .add_option("--plan-context", options.planContext,
                  "Positions that a plan takes attention to read (default: half of the cache)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command
      .add_option(
          "--plan", options.plan,
          "Take the decisions of this file: the plan.json of an artifact, or one like it. "
          "What it does not name is kept, unless --weights or a cache option says otherwise")
      ->type_name("FILE");
}

void driver::addFormatOptions(CLI::App &command, CompileOptions &options) {
  command
      .add_option(
          "--target", options.target,
          "What to compile for: the name of a target description (host, h100, h200, ...) or "
          "the path of one (default: host)")
      ->type_name("NAME");
  command
      .add_option(
          "--weights", options.weights,
          "Number format of the weights: auto, keep (as in the file), f16, bf16, f32, int3, int4, "
          "int5, int6, int8 or iq4 (16 fixed values) with -g16, -g32, -g64, -g128, -g256 or "
          "-channel, then -zp for zero points (int4-g64-zp) or -n8 for nested scales "
          "(iq4-g32-n8), or a GGUF type (q4_k). auto lets the planner choose. "
          "WEIGHT=FORMAT is for those whose names match: auto,blk.*.attn_v=int8-g64,output=keep "
          "(default: auto)")
      ->type_name("FORMAT");
  command
      .add_option("--stats", options.stats,
                  "File of statistics, written by sluice measure, or an importance matrix of "
                  "llama.cpp (GGUF): weights are rounded so that outputs change least")
      ->type_name("FILE");
  command
      .add_option(
          "--k-cache", options.keyCache,
          "Number format of cached keys: auto, f16, bf16, fp8, or int8 or int4 with -h64 or "
          "-h32 for a scale for every 64 or 32 elements instead of one a head; -rot rotates "
          "keys and queries by a Hadamard matrix. LAYERS=FORMAT is for single layers: "
          "int4-rot,0-1=int8 (default: auto)")
      ->type_name("FORMAT");
  command
      .add_option("--v-cache", options.valueCache,
                  "Number format of cached values: as of keys, but without -rot (default: auto)")
      ->type_name("FORMAT");
  addPlanOptions(command, options);
}

void driver::addSizeOptions(CLI::App &command, CompileOptions &options) {
  command
      .add_option("--context", options.context,
                  "Positions that the cache holds (default: the model's, at most 4096)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command
      .add_option("--prefill", options.prefill,
                  "Tokens of the steps that read a prompt: none, or numbers such as 16,64,512; "
                  "each makes a step for up to so many tokens (default: what the target says)")
      ->type_name("N,...");
  command.add_option("--batch", options.batch, "Sequences decoded together (default: 1)")
      ->check(CLI::Range(1, 64))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
  command
      .add_option("--cache-pages", options.cachePages,
                  "With --batch: pages of 32 positions that the sequences' caches share (default: "
                  "as many as all need that are as long as the context)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24))
      ->transform(runtime::wholeNumber())
      ->type_name("N");
}

void driver::printResult(llvm::StringRef text) {
  if (fwrite(text.data(), 1, text.size(), stdout) == text.size() && fflush(stdout) == 0)
    return;
  if (errno == EPIPE)
    throw runtime::CommandExit{128 + SIGPIPE};
  throw Failure(std::string("cannot write the output: ") + strerror(errno));
}

void driver::printWarning(llvm::StringRef line) { runtime::printWarning(line.str()); }

ProgressLine::ProgressLine()
    : isTerminal(isatty(STDERR_FILENO)), start(std::chrono::steady_clock::now()), shown(start) {}

void ProgressLine::show(llvm::StringRef what, double done) {
  auto now = std::chrono::steady_clock::now();
  if (!isTerminal || now - start < std::chrono::seconds(2) ||
      now - shown < std::chrono::milliseconds(100))
    return;
  shown = now;
  visible = true;
  fprintf(stderr, "\r\033[K%.*s %3.0f%%", static_cast<int>(what.size()), what.data(), 100 * done);
}

void ProgressLine::clear() {
  if (visible)
    fputs("\r\033[K", stderr);
  visible = false;
}

void driver::compileWithProgress(CompileOptions options) {
  ProgressLine line;
  options.progress = [&](llvm::StringRef what, double done) { line.show(what, done); };
  options.warn = [&](llvm::StringRef text) {
    line.clear();
    printWarning(text);
  };
  llvm::Error error = compile(options);
  line.clear();
  if (error)
    throw Failure(std::move(error));
}

void driver::addCompileCommand(CLI::App &app) {
  auto options = std::make_shared<CompileOptions>();
  CLI::App *command =
      app.add_subcommand("compile", "Compile a model file to an artifact directory");
  command->footer(
      "Examples:\n"
      "  sluice compile models/llama-4m -o llama-4m.sluice --weights int8-g128\n"
      "  sluice compile models/llama-4m -o llama-4m.sluice --k-cache int8 --v-cache int4\n"
      "  sluice compile model.gguf -o model.sluice --emit-ir stages\n"
      "  sluice compile --from-ir stages/3-fused.mlir -o model.sluice");
  command->add_option(
      "MODEL", options->model,
      "A GGUF file or a Hugging Face directory (config.json, safetensors, tokenizer)");
  command->add_option("-o,--output", options->output, "The artifact directory to write")
      ->type_name("DIR");
  command
      ->add_option("--emit-ir", options->emitIr, "Write the IR of every stage into this directory")
      ->type_name("DIR");
  command
      ->add_option("--from-ir", options->fromIr,
                   "Go on from a stage's file instead of importing the model")
      ->type_name("FILE");
  command->add_flag("--racecheck", options->racecheck,
                    "GPU kernels that compute-sanitizer's racecheck can follow; they are slower");
  command
      ->add_option("--launch", options->launch,
                   "How a token's step runs on a GPU: graph (of kernels), persistent (its layers "
                   "are one kernel; where that is impossible, a graph), or auto (default; what is "
                   "predicted to be faster)")
      ->check(CLI::IsMember({"auto", "graph", "persistent"}))
      ->type_name("MODE");
  command->add_flag("--synthetic-weights", options->syntheticWeights,
                    "Compile from a config.json alone; the runtime generates weights");
  addFormatOptions(*command, *options);
  addSizeOptions(*command, *options);
  command->callback([options] {
    if (options->model.empty() && options->fromIr.empty())
      throw Failure("compile: needs a MODEL or --from-ir FILE");
    if (options->output.empty() && options->emitIr.empty())
      throw Failure("compile: needs -o DIR, or --emit-ir DIR to see the stages only");
    compileWithProgress(*options);
  });
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The commands that execute artifacts, for every program that has them: sluice-run, which has
// nothing else, and the compiler's driver, which can make an artifact of a model first.

#ifndef SLUICE_RUNTIME_COMMANDS_H
#define SLUICE_RUNTIME_COMMANDS_H

#include "sluice-runtime/Batch.h"
#include "sluice-runtime/Chat.h"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace sluice::runtime {

// ---- The commands as functions ----
// They write results to `out` and, when standard error is a terminal, progress there. They throw
// Error, or CommandExit when the command is to end without a message.

/// Thrown to end the program with this status: 130 after Ctrl-C, 141 after its output was closed.
struct CommandExit {
  int status;
};

/// What guesses tokens for a session to verify (Drafts.h).
struct DraftOptions {
  enum class Kind : uint8_t { None, Lookup, Model } kind = Kind::None;
  /// The artifact of a model that guesses, and how it runs.
  std::filesystem::path model;
  SessionOptions session;
};

struct RunOptions {
  SessionOptions session;
  GenerateOptions generate;
  DraftOptions draft;
  /// A file that keeps the session's state from run to run; may be empty. What the prompt has in
  /// common with it is not computed again.
  std::filesystem::path promptCache;
  /// At least one. Several are continued together, if the artifact is for several sequences; their
  /// texts are written in this order, with an empty line between them.
  std::vector<std::string> prompts;
  /// Prompt and continuation as ids on one line for each prompt, and nothing else.
  bool tokenIds = false;
  /// The prompt starts with the beginning-of-text token, if the model's texts do.
  bool addBos = true;
  /// Names of control tokens in the prompt mean these tokens.
  bool parseSpecial = false;
  /// The prompt's text comes before the new text.
  bool echo = true;
  /// The prompt is what a user says: it is rendered by this template, after `system` if that is not
  /// empty, and only the answer is printed.
  std::optional<ChatTemplate> chatTemplate;
  std::string system;
};
void runModel(const std::filesystem::path &artifact, const RunOptions &options,
              std::FILE *out = stdout);

struct ChatOptions {
  SessionOptions session;
  GenerateOptions generate;
  DraftOptions draft;
  ChatTemplate chatTemplate;
  /// What conversations start with; empty for nothing.
  std::string system;
};
/// Reads lines from `in`, each of which is a turn or a command, and writes the answers, until the
/// input ends. Ctrl-C ends an answer, and SIGTERM the command. What a turn fails with is told on
/// standard error; then the conversation goes on, and in the end CommandExit has status 1.
void chat(const std::filesystem::path &artifact, const ChatOptions &options, std::FILE *in = stdin,
          std::FILE *out = stdout);

struct PerplexityCommandOptions {
  SessionOptions session;
  PerplexityOptions perplexity;
  std::string text;
  /// The artifact whose predictions are the reference; empty for none.
  std::filesystem::path reference;
  SessionOptions referenceSession;
};
/// The last line is "perplexity: 50.6458". With a reference there are the lines
/// "kl divergence: 0.01234 +- 0.00018 nats" and "same first choice: 97.31%" before it, and it is an
/// Error if vocabulary or tokenizer of the two differ.
void measurePerplexity(const std::filesystem::path &artifact,
                       const PerplexityCommandOptions &options, std::FILE *out = stdout);

struct TokenizeOptions {
  std::string text;
  /// Ids on one line, and nothing else; otherwise a line for each token with its id and its text.
  bool ids = false;
  bool addBos = true;
  /// The token that stands after the model's whole texts, if any, stands after this one.
  bool addEos = true;
  bool parseSpecial = false;
};
void tokenizeText(const Tokenizer &tokenizer, const TokenizeOptions &options,
                  std::FILE *out = stdout);

struct BenchOptions {
  SessionOptions session;
  /// How tokens are chosen, which counts as part of their time. No token counts as recent.
  SamplingOptions sampling = {.temperature = 0};
  /// Positions in the cache, the measured token's own included; 0 takes 512 or what the artifact
  /// has.
  int64_t context = 0;
  /// Tokens of one measurement; 0 takes what lasts about half a second.
  int64_t tokens = 0;
  int64_t repetitions = 5;
  /// Tokens of a prompt to measure, too; 0 for none.
  int64_t prompt = 0;
  bool perKernel = false;
  bool json = false;
  /// Every step is one of a model that is larger than the hardware's caches: a buffer is read
  /// before. What counts of times is their lower quartile, since other programs only add to them.
  bool cold = false;
};

struct BenchKernel {
  std::string label, kernel;
  /// Median over all repetitions.
  double seconds = 0;
  /// 0 if the plan does not say.
  uint64_t bytes = 0;
  /// What the plan predicts for the launch by itself, and in a step.
  std::optional<double> predicted, predictedInStep;
};

/// Launches of one kernel, whose bytes are alike: one line of a comparison.
struct BenchClass {
  /// Of the first launch.
  std::string label;
  int64_t launches = 0;
  /// Medians.
  double seconds = 0, predicted = 0;
  double error() const { return predicted / seconds - 1; }
};

/// How fast a prompt was read, its last token's choice of the next one included.
struct PromptSpeed {
  int64_t tokens = 0;
  double tokensPerSecond = 0, slowest = 0, fastest = 0;
  /// Seconds that its steps were predicted to take; nothing if the plan does not say.
  std::optional<double> predicted;
  /// Of the step that reads its first tokens, `stepTokens` of them; empty unless asked for.
  int64_t stepTokens = 0;
  std::vector<BenchKernel> kernels;
};

/// Medians over the repetitions; speed and bandwidth were measured in turns.
struct BenchResult {
  int64_t context = 0;
  int64_t tokensEach = 0, repetitions = 0;
  /// "greedy", or "temperature 0.8, top-k 40, ..." with what does not keep all tokens.
  std::string sampling;
  /// Whether the step chose the tokens; otherwise the runtime did, from the step's logits.
  bool sampledInStep = false;
  /// Whether a step started before the token of the one before was known (Session::startsAhead).
  bool startsAhead = false;
  double tokensPerSecond = 0, slowest = 0, fastest = 0;
  /// From the plan's traffic at this context; 0 if it says nothing.
  uint64_t bytesPerToken = 0;
  double bytesPerSecond() const { return static_cast<double>(bytesPerToken) * tokensPerSecond; }
  Bandwidth bandwidth;
  /// A step by the device's own clock, without inputs, outputs and waiting (Device::measureStep).
  std::optional<double> stepSeconds;
  /// Device::profileRemark().
  std::string profileRemark;
  /// Empty unless asked for.
  std::vector<BenchKernel> kernels;
  std::optional<PromptSpeed> prompt;
  /// Predicted seconds of a step; nothing if the plan has none for some launch.
  std::optional<double> predictedStep;
  /// Measured seconds of a step: its own clock's, or a token's if there is none.
  double measuredStep() const { return stepSeconds ? *stepSeconds : 1 / tokensPerSecond; }
  /// Classes of the kernels that have a prediction, in the order of their first launches.
  std::vector<BenchClass> classes() const;
};
BenchResult measureSpeed(Session &session, const BenchOptions &options);
void bench(const std::filesystem::path &artifact, const BenchOptions &options,
           std::FILE *out = stdout);

/// Measures the models that probes.json of a directory names (what `sluice calibrate --pack`
/// wrote), kernel by kernel, and returns the results as JSON, which `sluice calibrate` reads.
std::string measureProbes(const std::filesystem::path &directory, const BenchOptions &options);

// ---- The same on a command line ----

/// What a command needs of MODEL, if that has to be compiled for it.
struct CompileHints {
  /// The device that was asked for, or empty.
  std::string device;
  /// Positions that the context must have, or 0 if any will do.
  int64_t context = 0;
  /// The model is a reference that another is compared with: its weights keep the formats of its
  /// file, whatever the command line says for the other.
  bool isReference = false;
  /// The command reads or writes text.
  bool needsTokenizer = false;
};

struct CommandHooks {
  /// Turns MODEL into an artifact's directory; throws Error. Empty: MODEL must be one.
  std::function<std::filesystem::path(const std::string &model, const CompileHints &hints)> resolve;
  /// The tokenizer of MODEL. Empty: MODEL must be an artifact or a file that Tokenizer::fromFile
  /// reads.
  std::function<Tokenizer(const std::string &model)> loadTokenizer;
  /// What MODEL may be, for --help.
  std::string modelHelp = "directory that sluice compile wrote";
  /// The same of the model that another is compared with.
  std::string referenceHelp = "a directory that sluice compile wrote";
};

// Each adds a subcommand and returns it, so that more options can be added; parsing the command
// line runs it.
CLI::App *addRunCommand(CLI::App &app, const CommandHooks &hooks = {});
CLI::App *addChatCommand(CLI::App &app, const CommandHooks &hooks = {});
CLI::App *addPerplexityCommand(CLI::App &app, const CommandHooks &hooks = {});
CLI::App *addTokenizeCommand(CLI::App &app, const CommandHooks &hooks = {});
CLI::App *addBenchCommand(CLI::App &app, const CommandHooks &hooks = {});
/// measureProbes(); the compiler has a command of this name that does more.
CLI::App *addCalibrateCommand(CLI::App &app);

/// Checks that an option's text is a whole number that fits in an int64_t, or in a uint64_t if
/// `isUnsigned`. Use it with CLI::Option::transform, so that it runs before other checks.
CLI::Validator wholeNumber(bool isUnsigned = false);
/// Checks that an option's text is a real number, which must be finite and fit in a float.
CLI::Validator realNumber();

/// "sluice: warning: ..." and "sluice: error: ..." on standard error.
void printWarning(const std::string &line);
void printError(const std::string &line);

/// Parses the command line, and so runs its command. Without any arguments it prints the help.
/// Returns the exit status: 0 only on success, 1 after an error and 2 after a wrong command line,
/// both with one line "sluice: error: ..." on standard error; a CommandExit's own. `rename`
/// may replace names in an error's message, such as that of a temporary artifact by the model's.
int runCommandLine(CLI::App &app, int argc, const char *const *argv,
                   const std::function<std::string(std::string message)> &rename = {});

/// Opens an artifact and shows progress on a terminal.
std::shared_ptr<const Artifact> openArtifact(const std::filesystem::path &directory);

/// The tokenizer of an artifact, whose weights and kernels may be missing.
Tokenizer openTokenizer(const std::filesystem::path &directory);

/// What a session of the plan takes: "weights 3.73 MB, keys and values of 2048 positions 4.19 MB,
/// intermediate results 3.58 kB".
std::string memoryText(const Plan &plan);

/// Opens a session, or a batch, and shows on a terminal what it takes, before it is allocated, and
/// progress.
Session openSession(std::shared_ptr<const Artifact> artifact, SessionOptions options);
Batch openBatch(std::shared_ptr<const Artifact> artifact, SessionOptions options);

/// Reads a whole file, or standard input if the path is "-"; throws Error.
std::string readTextFile(const std::filesystem::path &path);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_COMMANDS_H

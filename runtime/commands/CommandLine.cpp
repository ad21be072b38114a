// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Commands.h"

#include "runtime/commands/Console.h"
#include "sluice-support/Text.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <new>
#include <sstream>

using namespace sluice::runtime;
using sluice::support::printable;
namespace fs = std::filesystem;

std::shared_ptr<const Artifact> sluice::runtime::openArtifact(const fs::path &directory) {
  Progress progress;
  ArtifactOptions options;
  options.onProgress = [&](uint64_t done, uint64_t total) {
    progress.show("checking " + directory.string() + ": " + formatBytes(static_cast<double>(done)) +
                  " of " + formatBytes(static_cast<double>(total)));
  };
  return Artifact::open(directory, options);
}

static void checkThreads(const SessionOptions &options, const std::string &device) {
  if (options.deviceOptions.threads != 0 && device != "cpu")
    throw Error("--threads " + std::to_string(options.deviceOptions.threads) + ": device " +
                device + " has no number of threads to choose");
}

Tokenizer sluice::runtime::openTokenizer(const fs::path &directory) {
  ArtifactOptions options;
  options.tokenizerOnly = true;
  return Artifact::open(directory, options)->tokenizer();
}

std::string sluice::runtime::memoryText(const Plan &plan) {
  auto text = [&](BufferKind kind) { return formatBytes(static_cast<double>(plan.bytes(kind))); };
  const ModelInfo &model = plan.model;
  // Each sequence has a page that none is handed out as.
  const std::string room = model.cachePages
                               ? std::to_string(model.cachePages) + " + " +
                                     std::to_string(model.batch) + " pages of " +
                                     std::to_string(ModelInfo::kPagePositions) + " positions "
                               : std::to_string(model.contextLength) + " positions ";
  return "weights " + text(BufferKind::Weights) + ", keys and values of " + room +
         text(BufferKind::Cache) + ", intermediate results " + text(BufferKind::Arena);
}

/// Makes a T of an artifact on a device: a person sees what memory it needs, and how far it is.
template <typename T>
static T openOnDevice(std::shared_ptr<const Artifact> artifact, SessionOptions options) {
  checkThreads(options, options.device.empty() ? defaultDevice(artifact->plan()) : options.device);
  if (isTerminal())
    std::fprintf(stderr, "[memory: %s]\n", memoryText(artifact->plan()).c_str());
  Progress progress;
  if (!options.deviceOptions.onProgress)
    options.deviceOptions.onProgress = [&](uint64_t done, uint64_t total) {
      progress.show("loading weights: " + formatBytes(static_cast<double>(done)) + " of " +
                    formatBytes(static_cast<double>(total)));
    };
  if (!options.deviceOptions.onWarning)
    options.deviceOptions.onWarning = [&](const std::string &line) {
      progress.clear();
      printWarning(line);
    };
  return T(std::move(artifact), options);
}

Session sluice::runtime::openSession(std::shared_ptr<const Artifact> artifact,
                                     SessionOptions options) {
  return openOnDevice<Session>(std::move(artifact), std::move(options));
}

Batch sluice::runtime::openBatch(std::shared_ptr<const Artifact> artifact, SessionOptions options) {
  return openOnDevice<Batch>(std::move(artifact), std::move(options));
}

std::string sluice::runtime::readTextFile(const fs::path &path) {
  bool isInput = path == "-";
  std::string name = isInput ? "standard input" : path.string();
  auto fail = [&] { throw Error(name + ": cannot be read: " + std::strerror(errno)); };
  struct Closer {
    void operator()(std::FILE *file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Closer> opened;
  std::FILE *file = stdin;
  if (!isInput) {
    opened.reset(std::fopen(path.c_str(), "rb"));
    file = opened.get();
    if (!file)
      fail();
  }
  std::string text;
  char part[1 << 16];
  while (size_t length = std::fread(part, 1, sizeof(part), file)) {
    text.append(part, length);
    if (text.size() > size_t(1) << 30)
      throw Error(name + ": has more than 1 GiB of text");
  }
  if (std::ferror(file))
    fail();
  return text;
}

CLI::Validator sluice::runtime::wholeNumber(bool isUnsigned) {
  return {[isUnsigned](std::string &text) -> std::string {
            const char *begin = text.data() + text.starts_with('+'),
                       *end = text.data() + text.size();
            int64_t number = 0;
            uint64_t natural = 0;
            auto [rest, error] = isUnsigned ? std::from_chars(begin, end, natural)
                                            : std::from_chars(begin, end, number);
            if (error == std::errc::result_out_of_range)
              return text + " does not fit in 64 bits";
            if (error != std::errc() || rest != end)
              return '"' + text + "\" is not a whole number" + (isUnsigned ? " of at least 0" : "");
            // CLI11 takes a leading 0 for octal.
            text = isUnsigned ? std::to_string(natural) : std::to_string(number);
            return {};
          },
          ""};
}

CLI::Validator sluice::runtime::realNumber() {
  return {[](std::string &text) -> std::string {
            const char *begin = text.data() + text.starts_with('+'),
                       *end = text.data() + text.size();
            float number = 0;
            auto [rest, error] = std::from_chars(begin, end, number);
            if (error == std::errc::result_out_of_range)
              return text + " does not fit in a float";
            if (error != std::errc() || rest != end || !std::isfinite(number))
              return '"' + text + "\" is not a finite number";
            return {};
          },
          ""};
}

/// What can be known to be wrong before a model is compiled or a text is read.
static void checkInputs(const CommandHooks &hooks, const std::string &model,
                        const SessionOptions &session, const char *option = "") {
  std::error_code ignored;
  if (!fs::exists(model, ignored))
    throw Error(option + model + ": there is no such " +
                (hooks.resolve ? "file or directory" : "directory"));
  if (session.device.empty())
    return;
  createDevice(session.device); // throws if there is none of this name
  checkThreads(session, session.device);
}

static fs::path resolveModel(const CommandHooks &hooks, const std::string &model,
                             const CompileHints &hints) {
  return hooks.resolve ? hooks.resolve(model, hints) : fs::path(model);
}

static Tokenizer resolveTokenizer(const CommandHooks &hooks, const std::string &model) {
  if (hooks.loadTokenizer)
    return hooks.loadTokenizer(model);
  if (Artifact::isArtifact(model))
    return openTokenizer(model);
  return Tokenizer::fromFile(model);
}

static CLI::App *addCommand(CLI::App &app, const std::string &name, const std::string &description,
                            const std::string &examples) {
  CLI::App *command = app.add_subcommand(name, description);
  command->footer("Examples:\n" + examples);
  return command;
}

static void addModel(CLI::App &command, std::string &model, const CommandHooks &hooks) {
  command.add_option("MODEL", model, hooks.modelHelp)->required();
}

static void addSession(CLI::App &command, SessionOptions &options) {
  command.add_option(
      "--device", options.device,
      "where to run: cpu, cuda or emulator (default: what the artifact was compiled for)");
  command
      .add_option("--threads", options.deviceOptions.threads,
                  "threads of the cpu device (default: one for each CPU)")
      ->check(CLI::Range(1, 1024))
      ->transform(wholeNumber());
  command.add_flag("--graph", options.deviceOptions.graph,
                   "decode by a graph of kernels even where the artifact has a step as one kernel");
}

static void addSampling(CLI::App &command, SamplingOptions &options) {
  command
      .add_option("--temp", options.temperature,
                  "temperature: 0 always takes the most likely token, more is more varied")
      ->capture_default_str()
      ->transform(realNumber());
  command.add_option("--top-k", options.topK, "choose among the k most likely tokens, 0 among all")
      ->capture_default_str()
      ->transform(wholeNumber());
  command
      .add_option("--top-p", options.topP,
                  "choose among the likeliest tokens that reach p together")
      ->capture_default_str()
      ->transform(realNumber());
  command
      .add_option("--min-p", options.minP,
                  "leave out tokens less likely than this share of the likeliest")
      ->capture_default_str()
      ->transform(realNumber());
  command
      .add_option("--repeat-penalty", options.repetitionPenalty,
                  "over 1 makes recent tokens less likely")
      ->capture_default_str()
      ->transform(realNumber());
  command
      .add_option("--repeat-window", options.repetitionWindow, "how many tokens are recent, -1 all")
      ->capture_default_str()
      ->transform(wholeNumber());
  command.add_option("--seed", options.seed, "the same seed gives the same tokens")
      ->capture_default_str()
      ->transform(wholeNumber(/*isUnsigned=*/true));
}

static void addStop(CLI::App &command, GenerateOptions &options) {
  command.add_option("--stop", options.stops, "end before this text; may be given several times")
      ->allow_extra_args(false);
}

/// What a chat is made of, for run and chat.
struct ChatArguments {
  std::string templateFile, system;
};

static void addChatArguments(CLI::App &command, ChatArguments &arguments) {
  command.add_option("--system", arguments.system, "what the conversation starts with: who speaks");
  command.add_option("--chat-template", arguments.templateFile,
                     "file with a Jinja template (default: the model's own)");
}

/// Known to be right before a model is compiled.
static ChatTemplate makeChatTemplate(const CommandHooks &hooks, const std::string &model,
                                     const ChatArguments &arguments) {
  Tokenizer tokenizer = resolveTokenizer(hooks, model);
  if (arguments.templateFile.empty())
    return ChatTemplate::ofModel(tokenizer, model);
  return {readTextFile(arguments.templateFile), arguments.templateFile, tokenizer};
}

/// Adds --draft and --draft-tokens.
static void addDraft(CLI::App &command, std::string &draft, GenerateOptions &generate) {
  CLI::Option *option = command.add_option(
      "--draft", draft,
      "what guesses tokens, several of which one step verifies: lookup (what followed the same "
      "tokens before), or a smaller model of the same vocabulary, as MODEL. The text stays the "
      "same");
  command.add_option("--draft-tokens", generate.draftTokens, "tokens guessed at a time, at most")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(1), int64_t(1024)))
      ->transform(wholeNumber())
      ->needs(option);
}

static DraftOptions draftOptions(const CommandHooks &hooks, const std::string &draft,
                                 const SessionOptions &session) {
  DraftOptions options;
  options.session = session;
  if (draft.empty())
    return options;
  options.kind = draft == "lookup" ? DraftOptions::Kind::Lookup : DraftOptions::Kind::Model;
  if (options.kind == DraftOptions::Kind::Model) {
    checkInputs(hooks, draft, session, "--draft ");
    options.model = resolveModel(hooks, draft, {.device = session.device, .isReference = true});
  }
  return options;
}

CLI::App *sluice::runtime::addRunCommand(CLI::App &app, const CommandHooks &hooks) {
  struct State {
    RunOptions options;
    ChatArguments chat;
    std::string model, file, draft, promptCache;
    bool isChat = false, noBos = false, noEcho = false;
  };
  auto state = std::make_shared<State>();
  CLI::App *command =
      addCommand(app, "run", "Generate text with a model",
                 "  run llama-4m.sluice -p \"Once upon a time\"\n"
                 "  run llama-4m.sluice -p \"Alice was\" -n 60 --temp 0 --token-ids\n"
                 "  echo \"The White Rabbit\" | run llama-4m.sluice -p - --seed 7 --stop \".\"\n"
                 "  run llama-3-8b.sluice --chat -p \"What is a sluice?\"\n"
                 "  run llama-4m-batch.sluice -p \"Once upon a time\" -p \"Alice was\"");
  addModel(*command, state->model, hooks);
  RunOptions &options = state->options;
  auto *prompt =
      command
          ->add_option("-p,--prompt", options.prompts,
                       "text to continue; - reads standard input. May be given several "
                       "times: an artifact compiled with --batch continues them together")
          ->allow_extra_args(false);
  command->add_option("-f,--file", state->file, "file with the text to continue")->excludes(prompt);
  command
      ->add_option("-n,--tokens", options.generate.maxTokens,
                   "new tokens at most, -1 for no limit, which --chat has if not told otherwise")
      ->capture_default_str()
      ->transform(wholeNumber());
  addSampling(*command, options.generate.sampling);
  addStop(*command, options.generate);
  addDraft(*command, state->draft, options.generate);
  auto *isChat =
      command->add_flag("--chat", state->isChat,
                        "answer the prompt as a user's message, by the model's chat template");
  addChatArguments(*command, state->chat);
  for (const char *option : {"--system", "--chat-template"})
    command->get_option(option)->needs(isChat);
  command->add_flag("--ignore-eos", options.generate.ignoreEos,
                    "go on after the token that ends a text");
  command->add_flag(
      "--token-ids", options.tokenIds,
      "print the ids of prompt and new tokens on one line (for each prompt) and nothing else");
  command->add_flag("--no-bos", state->noBos, "do not begin with the beginning-of-text token")
      ->excludes(isChat);
  command
      ->add_flag("--special", options.parseSpecial,
                 "names such as <|im_end|> in the prompt are control tokens")
      ->excludes(isChat);
  command
      ->add_option(
          "--prompt-cache", state->promptCache,
          "file that keeps the session from run to run: what the prompt has in common with "
          "what is there is not computed again")
      ->excludes(isChat);
  command->add_flag("--no-echo", state->noEcho, "print the new text (or ids) without the prompt");
  addSession(*command, options.session);
  command->callback([state, hooks, command] {
    RunOptions &options = state->options;
    checkInputs(hooks, state->model, options.session);
    options.generate.validate();
    if (command->count("--prompt") + command->count("--file") == 0)
      throw Error("run needs a text to continue: give --prompt or --file");
    if (command->count("--file"))
      options.prompts = {state->file};
    if (std::count(options.prompts.begin(), options.prompts.end(), "-") > 1)
      throw Error("--prompt -: standard input can be read once");
    for (std::string &text : options.prompts)
      if (command->count("--file") || text == "-") {
        text = readTextFile(text);
        // Editors and echo end a text with a line end that is not meant.
        if (text.ends_with('\n'))
          text.erase(text.size() - (text.ends_with("\r\n") ? 2 : 1));
      }
    options.promptCache = state->promptCache;
    options.addBos = !state->noBos;
    options.echo = !state->noEcho;
    if (state->isChat) {
      options.chatTemplate = makeChatTemplate(hooks, state->model, state->chat);
      options.system = state->chat.system;
      if (!command->count("--tokens"))
        options.generate.maxTokens = -1;
    }
    fs::path artifact = resolveModel(hooks, state->model,
                                     {.device = options.session.device, .needsTokenizer = true});
    options.draft = draftOptions(hooks, state->draft, options.session);
    runModel(artifact, options);
  });
  return command;
}

CLI::App *sluice::runtime::addChatCommand(CLI::App &app, const CommandHooks &hooks) {
  struct State {
    SessionOptions session;
    GenerateOptions generate;
    ChatArguments chat;
    std::string model, draft;
  };
  auto state = std::make_shared<State>();
  state->generate.maxTokens = -1;
  CLI::App *command =
      addCommand(app, "chat", "Talk with a model, line by line",
                 "  chat llama-3-8b.sluice\n"
                 "  chat llama-3-8b.sluice --system \"Answer in one sentence.\" --temp 0.6\n"
                 "/reset starts a new conversation, /quit or the end of the input ends it, Ctrl-C "
                 "ends an answer");
  addModel(*command, state->model, hooks);
  addChatArguments(*command, state->chat);
  command
      ->add_option("-n,--tokens", state->generate.maxTokens,
                   "tokens of an answer at most, -1 for no limit")
      ->capture_default_str()
      ->transform(wholeNumber());
  addSampling(*command, state->generate.sampling);
  addStop(*command, state->generate);
  addDraft(*command, state->draft, state->generate);
  addSession(*command, state->session);
  command->callback([state, hooks] {
    checkInputs(hooks, state->model, state->session);
    state->generate.validate();
    ChatTemplate chatTemplate = makeChatTemplate(hooks, state->model, state->chat);
    fs::path artifact = resolveModel(hooks, state->model,
                                     {.device = state->session.device, .needsTokenizer = true});
    chat(artifact,
         {state->session, state->generate, draftOptions(hooks, state->draft, state->session),
          std::move(chatTemplate), state->chat.system});
  });
  return command;
}

CLI::App *sluice::runtime::addPerplexityCommand(CLI::App &app, const CommandHooks &hooks) {
  struct State {
    PerplexityCommandOptions options;
    std::string model, file, reference, referenceDevice;
  };
  auto state = std::make_shared<State>();
  CLI::App *command =
      addCommand(app, "perplexity", "How well a model predicts a text: lower is better",
                 "  perplexity llama-4m.sluice -f alice.txt\n"
                 "  perplexity llama-4m.sluice -f alice.txt -c 256 --windows 10\n"
                 "  perplexity llama-4m-int4.sluice --against llama-4m-f16.sluice -f alice.txt");
  addModel(*command, state->model, hooks);
  command->add_option("-f,--file", state->file, "the text; - reads standard input")->required();
  CLI::Option *against = command->add_option(
      "--against", state->reference,
      "also print how far the predictions are from this reference's, as KL(reference || MODEL), "
      "and how often both have the same first choice: " +
          hooks.referenceHelp);
  command
      ->add_option("--against-device", state->referenceDevice,
                   "where the reference runs (default: as --device)")
      ->needs(against);
  command
      ->add_option("-c,--context", state->options.perplexity.window,
                   "tokens a window; the second half of each is scored")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(4), int64_t(1) << 24))
      ->transform(wholeNumber());
  command
      ->add_option("--windows", state->options.perplexity.maxWindows,
                   "how many windows to score, from the first on (default: all)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 40))
      ->transform(wholeNumber());
  addSession(*command, state->options.session);
  command->callback([state, hooks, against] {
    PerplexityCommandOptions &options = state->options;
    options.referenceSession = options.session;
    if (!state->referenceDevice.empty()) {
      options.referenceSession.device = state->referenceDevice;
      // Of two devices, the number of threads is for the one that has threads.
      const std::string &device = options.session.device;
      if (state->referenceDevice != "cpu")
        options.referenceSession.deviceOptions.threads = 0;
      else if (!device.empty() && device != "cpu")
        options.session.deviceOptions.threads = 0;
    }
    checkInputs(hooks, state->model, options.session);
    if (against->count())
      checkInputs(hooks, state->reference, options.referenceSession, "--against ");
    options.text = readTextFile(state->file);
    int64_t window = options.perplexity.window;
    fs::path artifact =
        resolveModel(hooks, state->model,
                     {.device = options.session.device, .context = window, .needsTokenizer = true});
    if (against->count()) {
      options.reference = resolveModel(hooks, state->reference,
                                       {.device = options.referenceSession.device,
                                        .context = window,
                                        .isReference = true,
                                        .needsTokenizer = true});
    }
    measurePerplexity(artifact, options);
  });
  return command;
}

CLI::App *sluice::runtime::addTokenizeCommand(CLI::App &app, const CommandHooks &hooks) {
  struct State {
    TokenizeOptions options;
    std::string model;
    bool noBos = false, noEos = false;
  };
  auto state = std::make_shared<State>();
  CLI::App *command = addCommand(app, "tokenize", "Show the tokens of a text",
                                 "  tokenize llama-4m.sluice \"Alice was beginning\"\n"
                                 "  tokenize llama-4m.sluice --ids < alice.txt");
  addModel(*command, state->model, hooks);
  command->add_option("TEXT", state->options.text, "the text (default: standard input)");
  command->add_flag("--ids", state->options.ids, "print the ids on one line and nothing else");
  command->add_flag("--no-bos", state->noBos, "do not begin with the beginning-of-text token");
  command->add_flag("--no-eos", state->noEos,
                    "do not end with the token that some models have after each text");
  command->add_flag("--special", state->options.parseSpecial,
                    "names such as <|im_end|> are control tokens");
  command->callback([state, hooks, command] {
    checkInputs(hooks, state->model, {});
    if (command->count("TEXT") == 0)
      state->options.text = readTextFile("-");
    state->options.addBos = !state->noBos;
    state->options.addEos = !state->noEos;
    Tokenizer tokenizer = resolveTokenizer(hooks, state->model);
    for (const std::string &line : tokenizer.warnings())
      printWarning(line);
    tokenizeText(tokenizer, state->options);
  });
  return command;
}

CLI::App *sluice::runtime::addCalibrateCommand(CLI::App &app) {
  struct State {
    BenchOptions options;
    std::string directory;
  };
  auto state = std::make_shared<State>();
  state->options.repetitions = 2;
  CLI::App *command =
      addCommand(app, "calibrate", "Measure what sluice calibrate --pack compiled; prints JSON",
                 "  calibrate probes > results.json\n"
                 "and where the compiler is:\n"
                 "  sluice calibrate --from results.json -o mine.json");
  command->add_option("DIR", state->directory, "directory that sluice calibrate --pack wrote")
      ->required();
  addSession(*command, state->options.session);
  command->callback([state] {
    std::string results = measureProbes(state->directory, state->options);
    writeText(stdout, results);
    flush(stdout);
  });
  return command;
}

CLI::App *sluice::runtime::addBenchCommand(CLI::App &app, const CommandHooks &hooks) {
  struct State {
    BenchOptions options;
    std::string model;
  };
  auto state = std::make_shared<State>();
  CLI::App *command = addCommand(app, "bench", "Measure tokens a second against the memory's speed",
                                 "  bench llama-4m.sluice --context 512\n"
                                 "  bench llama-4m.sluice --per-kernel --temp 0.8\n"
                                 "  bench llama-4m.sluice --json > speed.json");
  addModel(*command, state->model, hooks);
  BenchOptions &options = state->options;
  command
      ->add_option("--context", options.context,
                   "positions in the cache (default: 512, or all if there are fewer)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 40))
      ->transform(wholeNumber());
  command
      ->add_option("-n,--tokens", options.tokens,
                   "tokens of one measurement (default: half a second of them)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 40))
      ->transform(wholeNumber());
  command
      ->add_option("--prompt", options.prompt,
                   "also measure how fast a prompt of so many tokens is read")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24))
      ->transform(wholeNumber());
  command->add_option("--repeat", options.repetitions, "measurements, of which the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->transform(wholeNumber());
  addSampling(*command, options.sampling);
  command->add_flag("--per-kernel", options.perKernel, "time, bytes and speed of each kernel");
  command->add_flag("--json", options.json, "print JSON");
  addSession(*command, options.session);
  command->callback([state, hooks] {
    const BenchOptions &options = state->options;
    checkInputs(hooks, state->model, options.session);
    options.sampling.validate();
    bench(resolveModel(hooks, state->model, {options.session.device, options.context}), options);
  });
  return command;
}

/// One line, whatever a message quotes.
static void printMessage(const char *kind, const std::string &message) {
  std::fprintf(stderr, "sluice: %s: %s\n", kind, printable(message, 4000).c_str());
}

void sluice::runtime::printWarning(const std::string &line) { printMessage("warning", line); }
void sluice::runtime::printError(const std::string &line) { printMessage("error", line); }

/// An option that is given has a value, except for texts, which may be empty.
static void requireValues(CLI::App &app) {
  for (CLI::App *command : app.get_subcommands([](CLI::App *) { return true; }))
    for (CLI::Option *option : command->get_options())
      if (option->get_expected_max() > 0 && !option->check_name("--prompt") &&
          !option->check_name("--system") && !option->check_name("TEXT"))
        option->transform(CLI::Validator(
            [](std::string &text) { return text.empty() ? std::string("must not be empty") : ""; },
            ""));
}

int sluice::runtime::runCommandLine(CLI::App &app, int argc, const char *const *argv,
                                    const std::function<std::string(std::string message)> &rename) {
  // Writing to a closed pipe is noticed where it happens instead of ending the process there.
  std::signal(SIGPIPE, SIG_IGN);
  auto fail = [&](const std::string &message, int status) {
    printMessage("error", rename ? rename(message) : message);
    return status;
  };
  requireValues(app);
  try {
    if (argc < 2) {
      writeText(stdout, app.help());
      flush(stdout);
      return 0;
    }
    app.parse(argc, argv);
    flush(stdout);
    return 0;
  } catch (const CommandExit &exit) {
    return exit.status;
  } catch (const CLI::ParseError &e) {
    // Help is not an error to CLI11 either: it has status 0.
    if (e.get_exit_code() == 0) {
      app.exit(e, std::cout, std::cerr);
      std::cout.flush();
      return std::cout ? 0 : 1;
    }
    // CLI11 only says that a subcommand is required when it does not know the one given.
    if (argc > 1 && argv[1][0] != '-' &&
        app.get_subcommands([&](CLI::App *sub) { return sub->check_name(argv[1]); }).empty())
      return fail(std::string("there is no command \"") + argv[1] + "\" (see " + app.get_name() +
                      " --help)",
                  2);
    const CLI::App *command = &app;
    while (!command->get_subcommands().empty())
      command = command->get_subcommands().front();
    return fail(std::string(e.what()) + " (see " + app.get_name() +
                    (command == &app ? "" : " " + command->get_name()) + " --help)",
                2);
  } catch (const Error &e) {
    return fail(e.what(), 1);
  } catch (const std::bad_alloc &) {
    return fail("memory ran out", 1);
  } catch (const std::exception &e) {
    return fail(e.what(), 1);
  }
}

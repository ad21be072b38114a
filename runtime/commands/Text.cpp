// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Commands.h"

#include "runtime/commands/Console.h"
#include "runtime/commands/Guesses.h"

#include <nlohmann/json.hpp>

using namespace sluice::runtime;

static std::string joinIds(std::span<const int32_t> ids) {
  std::string line;
  for (int32_t id : ids)
    line += (line.empty() ? "" : " ") + std::to_string(id);
  return line;
}

const char *sluice::runtime::finishNote(FinishReason reason) {
  switch (reason) {
  case FinishReason::Length:
    return "";
  case FinishReason::Eos:
    return ", the model ended the text";
  case FinishReason::Stop:
    return ", ended before a stop text";
  case FinishReason::Context:
    return ", the context is full";
  case FinishReason::Cancelled:
    return ", interrupted";
  }
  return "";
}

static std::vector<int32_t> encodePrompt(const std::string &prompt, const RunOptions &options,
                                         const Tokenizer &tokenizer) {
  if (!options.chatTemplate)
    return tokenizer.encode(prompt, options.addBos && tokenizer.addsBos(), options.parseSpecial);
  std::vector<ChatMessage> messages;
  if (!options.system.empty())
    messages.push_back({"system", options.system});
  messages.push_back({"user", prompt});
  return encodeChat(tokenizer, options.chatTemplate->render(messages, true));
}

/// Whether a prompt is written, as text, before what follows it.
static bool echoesText(const RunOptions &options) {
  return options.echo && !options.tokenIds && !options.chatTemplate;
}

/// Without the prompt before it, the space between them is not the text's; that of an answer is
/// gone already.
static std::string_view withoutSpace(std::string_view text, const RunOptions &options) {
  if (!options.chatTemplate && text.starts_with(' '))
    text.remove_prefix(1);
  return text;
}

static void writeIds(std::FILE *out, std::span<const int32_t> prompt, const GenerateResult &result,
                     const RunOptions &options) {
  std::vector<int32_t> ids;
  if (options.echo)
    ids.assign(prompt.begin(), prompt.end());
  ids.insert(ids.end(), result.ids.begin(), result.ids.end());
  writeText(out, joinIds(ids));
}

static double rate(size_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

/// Several prompts, or an artifact that is for several sequences.
static void runTogether(std::shared_ptr<const Artifact> artifact, const RunOptions &options,
                        std::FILE *out) {
  if (options.draft.kind != DraftOptions::Kind::None || !options.promptCache.empty())
    throw Error(std::string(options.promptCache.empty() ? "--draft" : "--prompt-cache") +
                ": is for one text, and an artifact of one sequence");
  const Tokenizer &tokenizer = artifact->tokenizer();
  std::vector<std::vector<int32_t>> prompts;
  size_t read = 0;
  for (const std::string &prompt : options.prompts) {
    prompts.push_back(encodePrompt(prompt, options, tokenizer));
    read += prompts.back().size();
  }
  Batch batch = openBatch(artifact, options.session);
  InterruptGuard guard;
  Progress progress;
  size_t made = 0, ended = 0, written = 0;
  std::vector<std::optional<GenerateResult>> results(prompts.size());
  // A text is written when those before it are.
  auto write = [&](size_t place) {
    const GenerateResult &result = *results[place];
    if (options.tokenIds) {
      writeIds(out, prompts[place], result, options);
    } else {
      if (place > 0)
        writeText(out, "\n");
      const std::string &prompt = options.prompts[place];
      if (echoesText(options))
        writeText(out, prompt);
      bool goesOn = echoesText(options) && !prompt.empty();
      writeText(out, goesOn ? result.text : withoutSpace(result.text, options));
    }
    writeText(out, "\n");
    flush(out);
  };
  BatchCallbacks callbacks;
  callbacks.onStep = [&](size_t tokens) {
    made += tokens;
    progress.show(format("%zu of %zu texts, %zu tokens", ended, prompts.size(), made));
    return !InterruptGuard::interrupted();
  };
  callbacks.onEnd = [&](size_t prompt, const GenerateResult &result) {
    results[prompt] = result;
    ++ended;
    for (; written < results.size() && results[written]; ++written) {
      progress.clear();
      write(written);
    }
  };
  std::vector<GenerateResult> all = generate(batch, prompts, options.generate, callbacks);
  progress.clear();
  if (isTerminal()) {
    size_t tokens = 0;
    double seconds = 0;
    for (const GenerateResult &result : all) {
      tokens += result.ids.size();
      seconds = std::max(seconds, result.seconds);
    }
    std::fprintf(stderr,
                 "[%zu texts, prompts: %zu tokens; new: %zu tokens, %.1f tokens/s in all]\n",
                 all.size(), read, tokens, rate(tokens, seconds));
  }
  InterruptGuard::check();
}

void sluice::runtime::runModel(const std::filesystem::path &path, const RunOptions &options,
                               std::FILE *out) {
  std::shared_ptr<const Artifact> artifact = openArtifact(path);
  if (options.prompts.size() > 1 || artifact->model().batch > 1)
    return runTogether(std::move(artifact), options, out);
  const std::string &text = options.prompts.front();
  std::vector<int32_t> prompt = encodePrompt(text, options, artifact->tokenizer());
  Session session = openSession(artifact, options.session);

  std::span<const int32_t> unread = prompt;
  if (!options.promptCache.empty() && std::filesystem::exists(options.promptCache)) {
    session.load(options.promptCache);
    unread = unread.subspan(static_cast<size_t>(session.rewind(prompt)));
  }
  InterruptGuard guard;
  bool echo = echoesText(options);
  bool started = !text.empty() && echo;
  Progress progress;
  int64_t done = 0;
  GenerateCallbacks callbacks;
  callbacks.onToken = [&](int32_t, bool isPrompt) {
    // Not before the prompt was accepted.
    if (done++ == 0 && echo) {
      writeText(out, text);
      flush(out);
    }
    // New text itself shows that there is progress.
    if (isPrompt ? !echo : options.tokenIds)
      progress.show(format("token %lld", static_cast<long long>(done)));
    return !InterruptGuard::interrupted();
  };
  if (!options.tokenIds)
    callbacks.onText = [&](std::string_view part) {
      writeText(out, started ? part : withoutSpace(part, options));
      started = true;
      flush(out);
      return true;
    };
  Guesses guesses(options.draft, *artifact);
  GenerateOptions generating = options.generate;
  generating.drafter = guesses.drafter();
  generating.startsText = options.chatTemplate.has_value();
  GenerateResult result = generate(session, unread, generating, callbacks);
  if (!options.promptCache.empty())
    session.save(options.promptCache);

  if (options.tokenIds)
    writeIds(out, prompt, result, options);
  writeText(out, "\n");
  flush(out);
  if (isTerminal()) {
    std::fprintf(stderr,
                 "[prompt: %zu tokens, %.1f tokens/s; new: %zu tokens, %.1f tokens/s%s%s]\n",
                 unread.size(), rate(unread.size(), result.promptSeconds), result.ids.size(),
                 rate(result.ids.size(), result.seconds), guessNote(result).c_str(),
                 finishNote(result.reason));
  }
  InterruptGuard::check();
}

void sluice::runtime::tokenizeText(const Tokenizer &tokenizer, const TokenizeOptions &options,
                                   std::FILE *out) {
  std::vector<int32_t> ids =
      tokenizer.encode(options.text, options.addBos && tokenizer.addsBos(), options.parseSpecial);
  if (options.addEos && tokenizer.closingId() >= 0)
    ids.push_back(tokenizer.closingId());
  if (options.ids) {
    writeText(out, joinIds(ids) + "\n");
  } else {
    for (int32_t id : ids) {
      // Quoted, so that spaces and line ends can be seen.
      nlohmann::json quoted = tokenizer.tokenText(id);
      writeText(out, format("%7d  ", id) +
                         quoted.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                         "\n");
    }
  }
  flush(out);
}

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

static std::vector<int32_t> encodeConversation(const RunOptions &options,
                                               const Tokenizer &tokenizer) {
  std::vector<ChatMessage> messages;
  if (!options.system.empty())
    messages.push_back({"system", options.system});
  messages.push_back({"user", options.prompt});
  return encodeChat(tokenizer, options.chatTemplate->render(messages, true));
}

void sluice::runtime::runModel(const std::filesystem::path &path, const RunOptions &options,
                               std::FILE *out) {
  std::shared_ptr<const Artifact> artifact = openArtifact(path);
  const Tokenizer &tokenizer = artifact->tokenizer();
  std::vector<int32_t> prompt =
      options.chatTemplate ? encodeConversation(options, tokenizer)
                           : tokenizer.encode(options.prompt, options.addBos && tokenizer.addsBos(),
                                              options.parseSpecial);
  Session session = openSession(artifact, options.session);

  std::span<const int32_t> unread = prompt;
  if (!options.promptCache.empty() && std::filesystem::exists(options.promptCache)) {
    session.load(options.promptCache);
    unread = unread.subspan(static_cast<size_t>(session.rewind(prompt)));
  }
  InterruptGuard guard;
  bool echo = options.echo && !options.tokenIds && !options.chatTemplate;
  bool started = !options.prompt.empty() && echo;
  Progress progress;
  int64_t done = 0;
  GenerateCallbacks callbacks;
  callbacks.onToken = [&](int32_t, bool isPrompt) {
    // Not before the prompt was accepted.
    if (done++ == 0 && echo) {
      writeText(out, options.prompt);
      flush(out);
    }
    // New text itself shows that there is progress.
    if (isPrompt ? !echo : options.tokenIds)
      progress.show(format("token %lld", static_cast<long long>(done)));
    return !InterruptGuard::interrupted();
  };
  if (!options.tokenIds)
    callbacks.onText = [&](std::string_view text) {
      // Without the prompt before it, the space between them is not the text's; that of an answer
      // is gone already.
      if (!started && !options.chatTemplate && text.front() == ' ')
        text.remove_prefix(1);
      started = true;
      writeText(out, text);
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

  if (options.tokenIds) {
    std::vector<int32_t> ids;
    if (options.echo)
      ids = prompt;
    ids.insert(ids.end(), result.ids.begin(), result.ids.end());
    writeText(out, joinIds(ids));
  }
  writeText(out, "\n");
  flush(out);
  if (isTerminal()) {
    auto rate = [](double tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0.0; };
    std::fprintf(stderr,
                 "[prompt: %zu tokens, %.1f tokens/s; new: %zu tokens, %.1f tokens/s%s%s]\n",
                 unread.size(), rate(static_cast<double>(unread.size()), result.promptSeconds),
                 result.ids.size(), rate(static_cast<double>(result.ids.size()), result.seconds),
                 guessNote(result).c_str(), finishNote(result.reason));
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

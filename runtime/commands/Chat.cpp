// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Chat.h"

#include "sluice-runtime/Commands.h"

#include "runtime/commands/Console.h"
#include "runtime/commands/Guesses.h"

#include <cerrno>
#include <cstring>
#include <unistd.h>

using namespace sluice::runtime;

/// The next line without its end; nothing when there is none.
static std::optional<std::string> readLine(std::FILE *in) {
  constexpr size_t limit = size_t(16) << 20;
  std::string line;
  int c;
  while ((c = std::getc(in)) != EOF && c != '\n') {
    line += static_cast<char>(c);
    if (line.size() > limit)
      throw Error("standard input: a line has more than " + std::to_string(limit >> 20) + " MiB");
  }
  if (std::ferror(in))
    throw Error(std::string("standard input: cannot be read: ") + std::strerror(errno));
  if (c == EOF && line.empty())
    return std::nullopt;
  if (line.ends_with('\r'))
    line.pop_back();
  return line;
}

namespace {

class Conversation {
public:
  Conversation(Session &session, const ChatOptions &options, std::FILE *out)
      : chat(session, options.chatTemplate, options.system), session(session), options(options),
        guesses(options.draft, session.artifact()), out(out) {}

  void reset() { chat.reset(); }

  /// Says a line and prints the answer. Throws Error.
  void turn(const std::string &line) {
    // Only while there is an answer to end.
    InterruptGuard guard;
    bool anyText = false;
    int64_t evaluated = 0;
    Progress progress;
    GenerateCallbacks callbacks;
    callbacks.onToken = [&](int32_t, bool isPrompt) {
      if (isPrompt)
        progress.show(format("token %lld", static_cast<long long>(++evaluated)));
      return !InterruptGuard::interrupted();
    };
    callbacks.onText = [&](std::string_view text) {
      if (!std::exchange(anyText, true))
        progress.clear();
      writeText(out, text);
      flush(out);
      return true;
    };
    GenerateOptions generating = options.generate;
    generating.drafter = guesses.drafter();
    ChatResult result = chat.say(line, generating, callbacks);
    progress.clear();
    writeText(out, "\n");
    flush(out);
    if (InterruptGuard::terminated())
      InterruptGuard::check();
    int64_t context = session.artifact().model().contextLength;
    if (isTerminal())
      std::fprintf(stderr, "[position %lld of %lld; new: %zu tokens, %.1f tokens/s%s%s]\n",
                   static_cast<long long>(session.position()), static_cast<long long>(context),
                   result.ids.size(),
                   result.seconds > 0 ? static_cast<double>(result.ids.size()) / result.seconds
                                      : 0.0,
                   guessNote(result).c_str(), finishNote(result.reason));
    if (result.reason == FinishReason::Context)
      throw Error("the context of " + std::to_string(context) +
                  " tokens is full, which ended the answer; /reset starts a new conversation");
  }

private:
  Chat chat;
  Session &session;
  const ChatOptions &options;
  Guesses guesses;
  std::FILE *out;
};

} // namespace

void sluice::runtime::chat(const std::filesystem::path &path, const ChatOptions &options,
                           std::FILE *in, std::FILE *out) {
  std::shared_ptr<const Artifact> artifact = openArtifact(path);
  Session session = openSession(artifact, options.session);
  Conversation conversation(session, options, out);
  bool isTyped = isatty(fileno(in)), anyFailed = false;
  while (true) {
    if (isTyped) {
      writeText(out, "> ");
      flush(out);
    }
    std::optional<std::string> line = readLine(in);
    if (!line && isTyped)
      writeText(out, "\n");
    if (!line || *line == "/quit")
      break;
    if (line->empty())
      continue;
    if (*line == "/reset") {
      conversation.reset();
      continue;
    }
    try {
      conversation.turn(*line);
    } catch (const Error &error) {
      anyFailed = true;
      printError(error.what());
    }
  }
  flush(out);
  if (anyFailed)
    throw CommandExit{1};
}

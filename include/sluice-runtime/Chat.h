// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Talks with a model: renders a conversation by the model's own template and keeps it in the cache.

#ifndef SLUICE_RUNTIME_CHAT_H
#define SLUICE_RUNTIME_CHAT_H

#include "sluice-runtime/Session.h"

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime {

namespace jinja {
class Template;
} // namespace jinja

/// "system", "user" and "assistant" are the roles that every template knows.
struct ChatMessage {
  std::string role, content;
};

/// A model's template of chats: the part of Jinja that runtime/chat/README.md describes. Immutable;
/// copies share what was parsed.
class ChatTemplate {
public:
  /// Parses the tokenizer's own template. An Error if it has none, which starts with `model`, or if
  /// the template can not be parsed; that one names the line and what was found there.
  static ChatTemplate ofModel(const Tokenizer &tokenizer, const std::string &model);

  /// Parses `source`, whose messages of errors start with `name`, for a tokenizer's tokens.
  ChatTemplate(std::string_view source, const std::string &name, const Tokenizer &tokenizer);

  /// The text of a conversation; with `addGenerationPrompt` it ends with what an answer begins
  /// after. An Error if the template refuses the conversation (raise_exception), fails, or takes
  /// more time or memory than any conversation needs.
  std::string render(std::span<const ChatMessage> messages, bool addGenerationPrompt) const;

private:
  std::shared_ptr<const jinja::Template> parsed;
  std::map<std::string, std::string> namedTokens;
};

/// A rendered conversation's tokens. Names of control tokens mean these tokens wherever they stand,
/// also in what a user wrote, and nothing is put before what the template wrote, as transformers
/// has it.
std::vector<int32_t> encodeChat(const Tokenizer &tokenizer, std::string_view rendered);

struct ChatResult : GenerateResult {
  /// Tokens of the conversation that were there already, and that were evaluated for this answer.
  int64_t reusedTokens = 0, promptTokens = 0;
};

/// A conversation in a session, which the chat uses alone and which outlives it. What the session
/// holds of the conversation already is not evaluated again.
class Chat {
public:
  /// `system` is what the conversation starts with; empty for nothing.
  Chat(Session &session, ChatTemplate chatTemplate, std::string system = {});

  /// Adds what the user says and generates an answer, which is added in turn. After an Error (the
  /// template's, generate's, or a conversation that the context has no place for), and if the
  /// generation was cancelled before the first token, the conversation is what it was before. Each
  /// answer of a conversation has a seed of its own, counted from that of the options, whose
  /// `startsText` is taken to be true.
  ChatResult say(std::string_view text, GenerateOptions options,
                 const GenerateCallbacks &callbacks = {});

  /// Starts a new conversation, with the same system text.
  void reset();

  /// All of the conversation.
  const std::vector<ChatMessage> &messages() const { return conversation; }

private:
  Session &session;
  ChatTemplate chatTemplate;
  std::string system;
  std::vector<ChatMessage> conversation;
  uint64_t answers = 0;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_CHAT_H

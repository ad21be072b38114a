// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Chat.h"

#include "jinja/Template.h"

#include <utility>

using namespace sluice::runtime;
using nlohmann::ordered_json;

ChatTemplate ChatTemplate::ofModel(const Tokenizer &tokenizer, const std::string &model) {
  if (tokenizer.chatTemplate().empty())
    throw Error(model +
                ": the model has no chat template; give one (--chat-template), or a text to "
                "continue (run -p)");
  return {tokenizer.chatTemplate(), model + ": chat template", tokenizer};
}

ChatTemplate::ChatTemplate(std::string_view source, const std::string &name,
                           const Tokenizer &tokenizer)
    : parsed(std::make_shared<const jinja::Template>(source, name)),
      namedTokens(tokenizer.namedTokens()) {}

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 bool addGenerationPrompt) const {
  ordered_json variables(namedTokens);
  ordered_json &list = variables["messages"] = ordered_json::array();
  for (const ChatMessage &message : messages)
    list.push_back({{"role", message.role}, {"content", message.content}});
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = addGenerationPrompt;
  return parsed->render(variables);
}

std::vector<int32_t> sluice::runtime::encodeChat(const Tokenizer &tokenizer,
                                                 std::string_view rendered) {
  return tokenizer.encode(rendered, /*addBos=*/false, /*parseSpecial=*/true);
}

Chat::Chat(Session &session, ChatTemplate chatTemplate, std::string system)
    : session(session), chatTemplate(std::move(chatTemplate)), system(std::move(system)) {
  reset();
}

void Chat::reset() {
  conversation.clear();
  answers = 0;
  if (!system.empty())
    conversation.push_back({"system", system});
}

ChatResult Chat::say(std::string_view text, GenerateOptions options,
                     const GenerateCallbacks &callbacks) {
  std::vector<ChatMessage> next = conversation;
  next.push_back({"user", std::string(text)});
  std::vector<int32_t> ids = encodeChat(session.artifact().tokenizer(),
                                        chatTemplate.render(next, /*addGenerationPrompt=*/true));
  if (ids.empty())
    throw Error("the chat template made no text of the conversation");
  int64_t context = session.artifact().model().contextLength,
          count = static_cast<int64_t>(ids.size());
  if (count > context)
    throw Error("the conversation has " + std::to_string(count) +
                " tokens, which is more than the context of " + std::to_string(context) +
                "; start a new one, or compile the model with a longer context (--context)");
  options.startsText = true;
  options.sampling.seed += answers;
  ChatResult result;
  result.reusedTokens = session.rewind(ids);
  result.promptTokens = count - result.reusedTokens;
  static_cast<GenerateResult &>(result) =
      generate(session, std::span(ids).subspan(static_cast<size_t>(result.reusedTokens)), options,
               callbacks);
  if (result.reason == FinishReason::Cancelled && result.ids.empty())
    return result;
  next.push_back({"assistant", result.text});
  conversation = std::move(next);
  ++answers;
  return result;
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Chat.h"
#include "sluice-runtime/sluice.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;

namespace {

/// A user's turn begins with "u", the answer with what the user said last.
constexpr const char *plainTemplate =
    "{% for m in messages %}{% if m.role == 'user' %}u{% elif m.role == 'system' %}s{% endif %}"
    "{{ m.content }}{% endfor %}";

class ChatTest : public testing::Test {
protected:
  ChatTest() { open(TestArtifact()); }

  void open(TestArtifact files) {
    // A folder of its own: files that are mapped must not change.
    folder = directory.path() / std::to_string(++opened);
    std::filesystem::create_directory(folder);
    files.write(folder);
    artifact = Artifact::open(folder);
    session = std::make_unique<Session>(artifact, SessionOptions{"cpu", {2}});
    options.sampling.temperature = 0;
  }
  ChatTemplate make(const char *source) { return {source, "t", artifact->tokenizer()}; }
  template <typename F> std::string messageOf(F &&body) {
    try {
      body();
    } catch (const Error &error) {
      return error.what();
    }
    return "no error";
  }

  TemporaryDirectory directory;
  std::filesystem::path folder;
  int opened = 0;
  std::shared_ptr<const Artifact> artifact;
  std::unique_ptr<Session> session;
  GenerateOptions options;
};

TEST_F(ChatTest, EvaluatesOnlyWhatIsNew) {
  Chat chat(*session, make(plainTemplate), "q");
  ChatResult first = chat.say("v", options);
  EXPECT_EQ(first.text, "wxyz");
  EXPECT_EQ(first.reason, FinishReason::Eos);
  EXPECT_EQ(first.reusedTokens, 0);
  EXPECT_EQ(first.promptTokens, 4);
  EXPECT_EQ(session->position(), 8);
  // "squvwxyz" is there.
  ChatResult second = chat.say("w", options);
  EXPECT_EQ(second.text, "xyz");
  EXPECT_EQ(second.reusedTokens, 8);
  EXPECT_EQ(second.promptTokens, 2);
  std::vector<std::string> all;
  for (const ChatMessage &message : chat.messages())
    all.push_back(message.role + ":" + message.content);
  EXPECT_EQ(all, (std::vector<std::string>{"system:q", "user:v", "assistant:wxyz", "user:w",
                                           "assistant:xyz"}));

  // A session that has never seen another text holds the same.
  Session fresh(artifact, SessionOptions{"cpu", {2}});
  for (int32_t token : session->tokens())
    fresh.append(token);
  EXPECT_EQ(fresh.readBuffer("cache"), session->readBuffer("cache"));
  EXPECT_EQ(fresh.position(), 13);
}

TEST_F(ChatTest, ATemplateMayChangeWhatWasSaid) {
  // Answers before the last question are cut to their last letter, as reasoning is elsewhere.
  Chat chat(*session, make("{% for m in messages %}{{ m.content[-1:] if m.role == 'assistant' else "
                           "'u' ~ m.content }}{% endfor %}"));
  EXPECT_EQ(chat.say("v", options).text, "wxyz");
  ChatResult second = chat.say("w", options);
  EXPECT_EQ(second.text, "xyz");
  // Of "uvwxyz" only "uv" goes on to "uvzuw".
  EXPECT_EQ(second.reusedTokens, 2);
  EXPECT_EQ(second.promptTokens, 3);
  const Tokenizer &tokenizer = artifact->tokenizer();
  std::vector<int32_t> expected = tokenizer.encode("uvzuwxyz", false);
  EXPECT_EQ(std::vector<int32_t>(session->tokens().begin(), session->tokens().end()), expected);
}

TEST_F(ChatTest, ResetKeepsTheSystemText) {
  Chat chat(*session, make(plainTemplate), "q");
  chat.say("v", options);
  chat.reset();
  ASSERT_EQ(chat.messages().size(), 1u);
  ChatResult again = chat.say("v", options);
  EXPECT_EQ(again.text, "wxyz");
  // The last token is evaluated for its logits.
  EXPECT_EQ(again.reusedTokens, 3);
  EXPECT_EQ(again.promptTokens, 1);
}

TEST_F(ChatTest, AFailedTurnChangesNothing) {
  Chat chat(*session, make("{% for m in messages %}{% if 'x' in m.content and m.role == 'user' %}"
                           "{{ raise_exception('no x') }}{% endif %}{{ m.content }}{% endfor %}"));
  EXPECT_EQ(messageOf([&] { chat.say("ax", options); }),
            "t: line 1: the template refuses the conversation: no x");
  EXPECT_EQ(messageOf([&] { chat.say("", options); }),
            "the chat template made no text of the conversation");
  EXPECT_EQ(messageOf([&] { chat.say(std::string(49, 'a'), options); }),
            "the conversation has 49 tokens, which is more than the context of 48; start a new "
            "one, or compile the model with a longer context (--context)");
  GenerateOptions wrong = options;
  wrong.sampling.topP = 7;
  EXPECT_NE(messageOf([&] { chat.say("a", wrong); }).find("top-p"), std::string::npos);
  EXPECT_TRUE(chat.messages().empty());
  EXPECT_EQ(chat.say("y", options).text, "z");
}

TEST_F(ChatTest, ACancelledAnswerStaysAsFarAsItCame) {
  Chat chat(*session, make(plainTemplate));
  GenerateCallbacks callbacks;
  callbacks.onText = [](std::string_view text) { return text != "e"; };
  ChatResult cut = chat.say("c", options, callbacks);
  EXPECT_EQ(cut.reason, FinishReason::Cancelled);
  EXPECT_EQ(cut.text, "de");
  EXPECT_EQ(chat.messages().back().content, "de");
  EXPECT_EQ(chat.say("y", options).text, "z");

  // Before the first token there is no answer, so there was no turn.
  callbacks.onToken = [](int32_t, bool) { return false; };
  EXPECT_EQ(chat.say("c", options, callbacks).reason, FinishReason::Cancelled);
  EXPECT_EQ(chat.messages().size(), 4u);
  EXPECT_EQ(chat.say("x", options).text, "yz");
}

TEST_F(ChatTest, TheContextEndsAnAnswer) {
  TestArtifact files;
  files.setNext(TestArtifact::letterA + 25, TestArtifact::letterA);
  open(files);
  Chat chat(*session, make(plainTemplate));
  options.maxTokens = -1;
  EXPECT_EQ(chat.say("a", options).reason, FinishReason::Context);
  EXPECT_EQ(session->position(), TestArtifact::context);
  EXPECT_NE(messageOf([&] { chat.say("a", options); }).find("more than the context of 48"),
            std::string::npos);
  chat.reset();
  options.maxTokens = 2;
  EXPECT_EQ(chat.say("k", options).text, "lm");
}

TEST_F(ChatTest, AnswersOfAConversationHaveSeedsOfTheirOwn) {
  // What is sampled depends on the seed, and here on nothing else.
  options.sampling = {.temperature = 1e6F, .topK = 0, .topP = 1, .minP = 0, .seed = 5};
  options.maxTokens = 12;
  options.ignoreEos = true;
  auto idsOf = [&](uint64_t seed) {
    options.sampling.seed = seed;
    session->reset();
    return generate(*session, artifact->tokenizer().encode("u", false), options).ids;
  };
  std::vector<int32_t> five = idsOf(5), six = idsOf(6);
  ASSERT_NE(five, six);
  options.sampling.seed = 5;
  session->reset();
  Chat chat(*session, make("u"));
  EXPECT_EQ(chat.say("a", options).ids, five);
  EXPECT_EQ(chat.say("a", options).ids, six);
  chat.reset();
  EXPECT_EQ(chat.say("a", options).ids, five);
}

TEST_F(ChatTest, NamesOfControlTokensAreThoseTokens) {
  ChatTemplate chatTemplate =
      make("{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
           "{{ unk_token }}{{ pad_token }}|{{ add_generation_prompt }}{{ tools }}{{ documents }}");
  std::vector<ChatMessage> messages = {{"user", "ab"}};
  std::string text = chatTemplate.render(messages, true);
  EXPECT_EQ(text, "<s>ab</s><unk>|TrueNoneNone");
  EXPECT_EQ(encodeChat(artifact->tokenizer(), text.substr(0, text.find("<unk>"))),
            (std::vector<int32_t>{1, 4, 5, 2}));
}

TEST_F(ChatTest, TheModelsOwnTemplateTravelsWithTheTokenizer) {
  EXPECT_EQ(messageOf([&] { ChatTemplate::ofModel(artifact->tokenizer(), "m.gguf"); }),
            "m.gguf: the model has no chat template; give one (--chat-template), or a text to "
            "continue (run -p)");
  TestArtifact files;
  json tokenizer = json::parse(files.tokenizer);
  EXPECT_FALSE(tokenizer.contains("chat_template"));
  tokenizer["chat_template"] = plainTemplate;
  files.tokenizer = tokenizer.dump();
  open(files);
  std::vector<ChatMessage> messages = {{"system", "a"}, {"user", "b"}};
  EXPECT_EQ(ChatTemplate::ofModel(artifact->tokenizer(), "m").render(messages, true), "saub");

  tokenizer["chat_template"] = "\n{% if %}";
  files.tokenizer = tokenizer.dump();
  open(files);
  EXPECT_EQ(messageOf([&] { ChatTemplate::ofModel(artifact->tokenizer(), "m"); }),
            "m: chat template: line 2: found '%}', expected an expression");
}

// ---- Session ----

TEST_F(ChatTest, ASessionGoesBackToWhereTextsPart) {
  auto tokens = [&] {
    return std::vector<int32_t>(session->tokens().begin(), session->tokens().end());
  };
  using Ids = std::vector<int32_t>;
  for (int32_t token : {4, 5, 6, 7})
    session->append(token);
  EXPECT_EQ(tokens(), (Ids{4, 5, 6, 7}));
  EXPECT_EQ(session->rewind(Ids{4, 5, 9, 7, 8}), 2);
  EXPECT_EQ(tokens(), (Ids{4, 5}));
  EXPECT_EQ(session->rewind(Ids{4, 5, 6}), 2);
  EXPECT_EQ(session->rewind(Ids{4, 5}), 1);
  EXPECT_EQ(session->rewind(Ids{9}), 0);
  EXPECT_TRUE(tokens().empty());
  EXPECT_EQ(messageOf([&] { session->rewind({}); }),
            "there are no tokens to go back to, expected at least one");
  // Nobody knows what is at a place that was skipped.
  session->seek(2);
  session->append(5);
  EXPECT_EQ(tokens(), (Ids{-1, -1, 5}));
  EXPECT_EQ(session->rewind(Ids{4, 4, 5}), 0);
  session->append(4);
  session->reset();
  EXPECT_TRUE(tokens().empty());
}

TEST_F(ChatTest, ThePenaltyKnowsTheWholeConversation) {
  // After "k" comes "l" unless that is recent; a prompt alone does not have it.
  options.sampling.repetitionPenalty = 1000;
  options.maxTokens = 1;
  auto after = [&](std::string_view before) {
    session->reset();
    for (int32_t id : artifact->tokenizer().encode(before, false))
      session->append(id);
    return generate(*session, artifact->tokenizer().encode("k", false), options).text;
  };
  EXPECT_EQ(after("a"), "l");
  EXPECT_NE(after("l"), "l");
}

// ---- C ----

TEST_F(ChatTest, FromC) {
  sluice_artifact *cArtifact = nullptr;
  sluice_session *cSession = nullptr;
  sluice_session_options sessionOptions = {"cpu", 2};
  ASSERT_EQ(sluice_artifact_open(folder.c_str(), &cArtifact), SLUICE_OK);
  ASSERT_EQ(sluice_session_create(cArtifact, &sessionOptions, &cSession), SLUICE_OK);

  const sluice_message messages[] = {{"system", "a"}, {"user", "b"}};
  char text[16];
  size_t bytes = 0;
  ASSERT_EQ(
      sluice_chat_render(cArtifact, plainTemplate, messages, 2, 1, text, sizeof(text), &bytes),
      SLUICE_OK)
      << sluice_last_error();
  EXPECT_STREQ(text, "saub");
  EXPECT_EQ(bytes, 4u);
  ASSERT_EQ(sluice_chat_render(cArtifact, plainTemplate, messages, 2, 1, text, 3, &bytes),
            SLUICE_OK);
  EXPECT_STREQ(text, "sa");
  EXPECT_EQ(bytes, 4u);
  ASSERT_EQ(sluice_chat_render(cArtifact, "x", nullptr, 0, 0, nullptr, 0, &bytes), SLUICE_OK);
  EXPECT_EQ(bytes, 1u);
  EXPECT_EQ(sluice_chat_render(cArtifact, nullptr, messages, 2, 1, text, sizeof(text), &bytes),
            SLUICE_ERROR);
  EXPECT_NE(std::string(sluice_last_error()).find("has no chat template"), std::string::npos);
  EXPECT_EQ(sluice_chat_render(cArtifact, "{{ 1 +", messages, 2, 1, text, sizeof(text), &bytes),
            SLUICE_ERROR);
  EXPECT_EQ(std::string(sluice_last_error()).find("chat template: line 1: "), 0u);
  EXPECT_EQ(sluice_chat_render(cArtifact, "x", nullptr, 1, 1, text, sizeof(text), &bytes),
            SLUICE_ERROR);

  int32_t ids[4];
  size_t count = 0;
  ASSERT_EQ(sluice_tokenize_special(cArtifact, "<s>ab</s>", 9, ids, 4, &count), SLUICE_OK);
  ASSERT_EQ(count, 4u);
  EXPECT_EQ(std::vector<int32_t>(ids, ids + 4), (std::vector<int32_t>{1, 4, 5, 2}));
  EXPECT_EQ(sluice_tokenize_special(cArtifact, nullptr, 9, ids, 4, &count), SLUICE_ERROR);

  sluice_chat *chat = nullptr;
  EXPECT_EQ(sluice_chat_create(cSession, nullptr, nullptr, &chat), SLUICE_ERROR);
  ASSERT_EQ(sluice_chat_create(cSession, plainTemplate, "q", &chat), SLUICE_OK);
  sluice_generate_options generation;
  sluice_generate_options_init(&generation);
  generation.temperature = 0;
  std::string streamed;
  auto append = [](const char *part, size_t length, void *user) {
    static_cast<std::string *>(user)->append(part, length);
    return 0;
  };
  sluice_generate_result result;
  ASSERT_EQ(sluice_chat_say(chat, "v", &generation, append, &streamed, &result), SLUICE_OK);
  EXPECT_EQ(streamed, "wxyz");
  EXPECT_EQ(result.prompt_tokens, 4);
  EXPECT_EQ(result.reason, SLUICE_FINISH_EOS);
  ASSERT_EQ(sluice_chat_say(chat, "w", &generation, nullptr, nullptr, &result), SLUICE_OK);
  EXPECT_EQ(result.prompt_tokens, 2);
  EXPECT_EQ(sluice_chat_say(chat, nullptr, &generation, nullptr, nullptr, &result), SLUICE_ERROR);
  ASSERT_EQ(sluice_chat_reset(chat), SLUICE_OK);
  ASSERT_EQ(sluice_chat_say(chat, "v", &generation, nullptr, nullptr, &result), SLUICE_OK);
  EXPECT_EQ(result.prompt_tokens, 1);
  sluice_chat_free(chat);
  sluice_chat_free(nullptr);

  EXPECT_EQ(sluice_session_position(cSession), 8);
  ASSERT_EQ(sluice_session_truncate(cSession, 8), SLUICE_OK);
  ASSERT_EQ(sluice_session_truncate(cSession, 3), SLUICE_OK);
  EXPECT_EQ(sluice_session_position(cSession), 3);
  EXPECT_EQ(sluice_session_truncate(cSession, 4), SLUICE_ERROR);
  EXPECT_STREQ(sluice_last_error(), "position 4 is not in the sequence of 3 tokens");
  EXPECT_EQ(sluice_session_truncate(cSession, -1), SLUICE_ERROR);
  EXPECT_EQ(sluice_session_truncate(nullptr, 0), SLUICE_ERROR);
  sluice_session_free(cSession);
  sluice_artifact_free(cArtifact);
}

} // namespace

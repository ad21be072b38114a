// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/sluice.h"

#include "sluice-runtime/Batch.h"
#include "sluice-runtime/Chat.h"

#include <algorithm>
#include <cstring>
#include <new>

using namespace sluice::runtime;

struct sluice_artifact {
  std::shared_ptr<const Artifact> artifact;
};

struct sluice_session {
  Session session;
};

struct sluice_chat {
  Chat chat;
};

static thread_local std::string lastError;

/// Runs the body of a C function: nothing is thrown across its boundary.
template <typename F> static sluice_status guarded(F &&body) noexcept {
  auto fail = [](sluice_status status, const char *text) noexcept {
    try {
      lastError = text;
    } catch (...) {
      lastError.clear();
    }
    return status;
  };
  try {
    body();
    return SLUICE_OK;
  } catch (const CachesFull &e) {
    return fail(SLUICE_ERROR_FULL, e.what());
  } catch (const Error &e) {
    return fail(SLUICE_ERROR, e.what());
  } catch (const std::bad_alloc &) {
    return fail(SLUICE_ERROR_MEMORY, "memory ran out");
  } catch (const std::exception &e) {
    return fail(SLUICE_ERROR_INTERNAL, e.what());
  } catch (...) {
    return fail(SLUICE_ERROR_INTERNAL, "unknown failure");
  }
}

static void requirePointer(const void *pointer, const char *what) {
  if (!pointer)
    throw Error(std::string("argument ") + what + " is NULL");
}

const char *sluice_last_error(void) { return lastError.c_str(); }

const char *sluice_version(void) { return SLUICE_VERSION; }

sluice_status sluice_artifact_open(const char *directory, sluice_artifact **artifact) {
  return guarded([&] {
    requirePointer(directory, "directory");
    requirePointer(artifact, "artifact");
    *artifact = new sluice_artifact{Artifact::open(directory)};
  });
}

void sluice_artifact_free(sluice_artifact *artifact) { delete artifact; }

sluice_status sluice_artifact_model_info(const sluice_artifact *artifact, sluice_model_info *info) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    requirePointer(info, "info");
    const ModelInfo &model = artifact->artifact->model();
    *info = {model.name.c_str(),    model.architecture.c_str(),
             model.weights.c_str(), artifact->artifact->plan().target.name.c_str(),
             model.vocabSize,       model.contextLength,
             model.hiddenSize,      model.layers,
             model.heads,           model.kvHeads,
             model.headDim,         model.bosId,
             model.eosIds.data(),   model.eosIds.size()};
  });
}

sluice_status sluice_tokenize(const sluice_artifact *artifact, const char *text, size_t bytes,
                              int add_bos, int32_t *ids, size_t capacity, size_t *count) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    requirePointer(text, "text");
    requirePointer(count, "count");
    if (capacity)
      requirePointer(ids, "ids");
    const Tokenizer &tokenizer = artifact->artifact->tokenizer();
    std::vector<int32_t> result = tokenizer.encode({text, bytes}, add_bos && tokenizer.addsBos());
    std::copy_n(result.begin(), std::min(capacity, result.size()), ids);
    *count = result.size();
  });
}

sluice_status sluice_tokenize_special(const sluice_artifact *artifact, const char *text,
                                      size_t bytes, int32_t *ids, size_t capacity, size_t *count) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    requirePointer(text, "text");
    requirePointer(count, "count");
    if (capacity)
      requirePointer(ids, "ids");
    std::vector<int32_t> result = encodeChat(artifact->artifact->tokenizer(), {text, bytes});
    std::copy_n(result.begin(), std::min(capacity, result.size()), ids);
    *count = result.size();
  });
}

/// Copies a text and a zero as far as there is room.
static void copyText(std::string_view from, char *text, size_t capacity, size_t *bytes) {
  if (capacity) {
    size_t length = std::min(capacity - 1, from.size());
    std::memcpy(text, from.data(), length);
    text[length] = 0;
  }
  if (bytes)
    *bytes = from.size();
}

sluice_status sluice_detokenize(const sluice_artifact *artifact, const int32_t *ids, size_t count,
                                char *text, size_t capacity, size_t *bytes) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    if (count)
      requirePointer(ids, "ids");
    if (capacity)
      requirePointer(text, "text");
    copyText(artifact->artifact->tokenizer().decode({ids, count}), text, capacity, bytes);
  });
}

static SessionOptions makeSessionOptions(const sluice_session_options *options) {
  SessionOptions chosen;
  if (options) {
    chosen.device = options->device ? options->device : "";
    chosen.deviceOptions.threads = options->threads;
  }
  return chosen;
}

sluice_status sluice_session_create(const sluice_artifact *artifact,
                                    const sluice_session_options *options,
                                    sluice_session **session) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    requirePointer(session, "session");
    *session = new sluice_session{Session(artifact->artifact, makeSessionOptions(options))};
  });
}

void sluice_session_free(sluice_session *session) { delete session; }

sluice_status sluice_session_reset(sluice_session *session) {
  return guarded([&] {
    requirePointer(session, "session");
    session->session.reset();
  });
}

int64_t sluice_session_position(const sluice_session *session) {
  return session ? session->session.position() : 0;
}

sluice_status sluice_session_truncate(sluice_session *session, int64_t position) {
  return guarded([&] {
    requirePointer(session, "session");
    int64_t most = session->session.position();
    if (position < 0 || position > most)
      throw Error("position " + std::to_string(position) + " is not in the sequence of " +
                  std::to_string(most) + " tokens");
    // Not even a full context, in which there is nothing to seek, changes.
    if (position < most)
      session->session.seek(position);
  });
}

sluice_status sluice_session_rewind(sluice_session *session, const int32_t *ids, size_t count,
                                    size_t *kept) {
  return guarded([&] {
    requirePointer(session, "session");
    if (count)
      requirePointer(ids, "ids");
    int64_t position = session->session.rewind({ids, count});
    if (kept)
      *kept = static_cast<size_t>(position);
  });
}

sluice_status sluice_session_save(sluice_session *session, const char *path) {
  return guarded([&] {
    requirePointer(session, "session");
    requirePointer(path, "path");
    session->session.save(path);
  });
}

sluice_status sluice_session_load(sluice_session *session, const char *path) {
  return guarded([&] {
    requirePointer(session, "session");
    requirePointer(path, "path");
    session->session.load(path);
  });
}

sluice_status sluice_session_append(sluice_session *session, const int32_t *ids, size_t count) {
  return guarded([&] {
    requirePointer(session, "session");
    requirePointer(ids, "ids");
    session->session.append(std::span(ids, count));
  });
}

sluice_status sluice_session_decode(sluice_session *session, int32_t token, const float **logits) {
  return guarded([&] {
    requirePointer(session, "session");
    const float *result = session->session.decode(token).data();
    if (logits)
      *logits = result;
  });
}

void sluice_generate_options_init(sluice_generate_options *options) {
  if (!options)
    return;
  GenerateOptions defaults;
  *options = {defaults.maxTokens,
              defaults.sampling.temperature,
              defaults.sampling.topK,
              defaults.sampling.topP,
              defaults.sampling.minP,
              defaults.sampling.repetitionPenalty,
              defaults.sampling.seed,
              nullptr,
              0,
              0};
}

static GenerateOptions makeOptions(const sluice_generate_options *options) {
  GenerateOptions chosen;
  if (!options)
    return chosen;
  chosen.maxTokens = options->max_tokens;
  chosen.sampling.temperature = options->temperature;
  chosen.sampling.topK = options->top_k;
  chosen.sampling.topP = options->top_p;
  chosen.sampling.minP = options->min_p;
  chosen.sampling.repetitionPenalty = options->repetition_penalty;
  chosen.sampling.seed = options->seed;
  chosen.ignoreEos = options->ignore_eos != 0;
  if (options->stop_count)
    requirePointer(options->stops, "options->stops");
  for (size_t i = 0; i < options->stop_count; ++i) {
    requirePointer(options->stops[i], "options->stops[i]");
    chosen.stops.emplace_back(options->stops[i]);
  }
  return chosen;
}

static GenerateCallbacks makeCallbacks(sluice_text_callback callback, void *user) {
  GenerateCallbacks callbacks;
  if (callback)
    callbacks.onText = [=](std::string_view text) {
      return callback(text.data(), text.size(), user) == 0;
    };
  return callbacks;
}

static sluice_generate_result makeResult(const GenerateResult &generated, int64_t promptTokens) {
  return {static_cast<int64_t>(generated.ids.size()), promptTokens,
          static_cast<sluice_finish_reason>(generated.reason), generated.promptSeconds,
          generated.seconds};
}

sluice_status sluice_generate(sluice_session *session, const int32_t *prompt, size_t count,
                              const sluice_generate_options *options, sluice_text_callback callback,
                              void *user, sluice_generate_result *result) {
  return guarded([&] {
    requirePointer(session, "session");
    if (count)
      requirePointer(prompt, "prompt");
    GenerateResult generated = generate(session->session, {prompt, count}, makeOptions(options),
                                        makeCallbacks(callback, user));
    if (result)
      *result = makeResult(generated, static_cast<int64_t>(count));
  });
}

sluice_status sluice_generate_text(sluice_session *session, const char *prompt,
                                   const sluice_generate_options *options,
                                   sluice_text_callback callback, void *user,
                                   sluice_generate_result *result) {
  std::vector<int32_t> ids;
  sluice_status status = guarded([&] {
    requirePointer(session, "session");
    requirePointer(prompt, "prompt");
    const Tokenizer &tokenizer = session->session.artifact().tokenizer();
    ids = tokenizer.encode(prompt, session->session.position() == 0 && tokenizer.addsBos());
  });
  return status != SLUICE_OK
             ? status
             : sluice_generate(session, ids.data(), ids.size(), options, callback, user, result);
}

static ChatTemplate makeTemplate(const Artifact &artifact, const char *source) {
  if (source)
    return {source, "chat template", artifact.tokenizer()};
  return ChatTemplate::ofModel(artifact.tokenizer(), artifact.directory().string());
}

struct sluice_batch {
  Batch batch;
};

sluice_status sluice_batch_create(const sluice_artifact *artifact,
                                  const sluice_session_options *options, sluice_batch **batch) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    requirePointer(batch, "batch");
    *batch = new sluice_batch{Batch(artifact->artifact, makeSessionOptions(options))};
  });
}

void sluice_batch_free(sluice_batch *batch) { delete batch; }

int64_t sluice_batch_capacity(const sluice_batch *batch) {
  return batch ? batch->batch.capacity() : 0;
}

int64_t sluice_batch_free_pages(const sluice_batch *batch) {
  return batch ? batch->batch.freePages() : 0;
}

int64_t sluice_batch_shared_tokens(const sluice_batch *batch) {
  return batch ? batch->batch.sharedTokens() : 0;
}

sluice_status sluice_batch_add(sluice_batch *batch, const int32_t *ids, size_t count,
                               const sluice_generate_options *options, int64_t *sequence) {
  return guarded([&] {
    requirePointer(batch, "batch");
    requirePointer(sequence, "sequence");
    if (count)
      requirePointer(ids, "ids");
    *sequence = batch->batch.add({ids, count}, makeOptions(options).sampling);
  });
}

sluice_status sluice_batch_step(sluice_batch *batch, int64_t *sequences, int32_t *tokens,
                                size_t *count) {
  return guarded([&] {
    requirePointer(batch, "batch");
    requirePointer(sequences, "sequences");
    requirePointer(tokens, "tokens");
    requirePointer(count, "count");
    std::span<const Batch::Choice> choices = batch->batch.step();
    for (size_t i = 0; i < choices.size(); ++i) {
      sequences[i] = choices[i].sequence;
      tokens[i] = choices[i].token;
    }
    *count = choices.size();
  });
}

sluice_status sluice_batch_remove(sluice_batch *batch, int64_t sequence) {
  return guarded([&] {
    requirePointer(batch, "batch");
    batch->batch.remove(sequence);
  });
}

sluice_status sluice_chat_render(const sluice_artifact *artifact, const char *chat_template,
                                 const sluice_message *messages, size_t count,
                                 int add_generation_prompt, char *text, size_t capacity,
                                 size_t *bytes) {
  return guarded([&] {
    requirePointer(artifact, "artifact");
    if (count)
      requirePointer(messages, "messages");
    if (capacity)
      requirePointer(text, "text");
    std::vector<ChatMessage> conversation;
    for (size_t i = 0; i < count; ++i) {
      requirePointer(messages[i].role, "messages[i].role");
      requirePointer(messages[i].content, "messages[i].content");
      conversation.push_back({messages[i].role, messages[i].content});
    }
    copyText(makeTemplate(*artifact->artifact, chat_template)
                 .render(conversation, add_generation_prompt != 0),
             text, capacity, bytes);
  });
}

sluice_status sluice_chat_create(sluice_session *session, const char *chat_template,
                                 const char *system, sluice_chat **chat) {
  return guarded([&] {
    requirePointer(session, "session");
    requirePointer(chat, "chat");
    *chat = new sluice_chat{Chat(session->session,
                                 makeTemplate(session->session.artifact(), chat_template),
                                 system ? system : "")};
  });
}

void sluice_chat_free(sluice_chat *chat) { delete chat; }

sluice_status sluice_chat_reset(sluice_chat *chat) {
  return guarded([&] {
    requirePointer(chat, "chat");
    chat->chat.reset();
  });
}

sluice_status sluice_chat_say(sluice_chat *chat, const char *text,
                              const sluice_generate_options *options, sluice_text_callback callback,
                              void *user, sluice_generate_result *result) {
  return guarded([&] {
    requirePointer(chat, "chat");
    requirePointer(text, "text");
    ChatResult answer = chat->chat.say(text, makeOptions(options), makeCallbacks(callback, user));
    if (result)
      *result = makeResult(answer, answer.promptTokens);
  });
}

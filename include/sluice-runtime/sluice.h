// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/* Sluice's runtime as a C library: opens an artifact that the compiler wrote and generates text
 * with it. No part of the compiler is needed.
 *
 *   sluice_artifact *artifact;
 *   sluice_session *session;
 *   if (sluice_artifact_open("llama-4m.sluice", &artifact) ||
 *       sluice_session_create(artifact, NULL, &session))
 *     return fprintf(stderr, "%s\n", sluice_last_error()), 1;
 *   sluice_generate_text(session, "Once upon a time", NULL, print_text, NULL, NULL);
 *   sluice_session_free(session);
 *   sluice_artifact_free(artifact);
 *
 * Every function that can fail returns a sluice_status and, when that is not SLUICE_OK, leaves its
 * outputs untouched and one line of explanation in sluice_last_error(). Strings are UTF-8.
 *
 * Threads: an artifact may be used by any number of threads at once; a session by one at a time.
 * Objects are freed by their own function; an artifact may be freed before its sessions. */

#ifndef SLUICE_RUNTIME_SLUICE_H
#define SLUICE_RUNTIME_SLUICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SLUICE_API __attribute__((visibility("default")))
#else
#define SLUICE_API
#endif

typedef struct sluice_artifact sluice_artifact;
typedef struct sluice_session sluice_session;

typedef enum sluice_status {
  SLUICE_OK = 0,
  /* Input that cannot be used: an option, a token, a file, an artifact, a device that is not there.
   */
  SLUICE_ERROR = 1,
  /* Memory ran out. */
  SLUICE_ERROR_MEMORY = 2,
  /* A defect of the library. */
  SLUICE_ERROR_INTERNAL = 3,
  /* No page of a batch's caches is free. Nothing has changed: it goes on when a sequence has left.
   */
  SLUICE_ERROR_FULL = 4
} sluice_status;

/* Why the last call on this thread failed; valid until the next one on this thread. Never NULL. */
SLUICE_API const char *sluice_last_error(void);

/* "0.1.0" */
SLUICE_API const char *sluice_version(void);

/* ---- Artifacts ---- */

/* Opens a directory that `sluice compile` wrote: checks the plan and all files' sizes and
 * checksums, maps the weights. */
SLUICE_API sluice_status sluice_artifact_open(const char *directory, sluice_artifact **artifact);
/* NULL is fine. */
SLUICE_API void sluice_artifact_free(sluice_artifact *artifact);

typedef struct sluice_model_info {
  /* Valid as long as the artifact. */
  const char *name;
  const char *architecture;
  const char *weights;
  const char *target;
  int64_t vocab_size;
  int64_t context_length;
  int64_t hidden_size;
  int64_t layers;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  /* -1 if the model has none. */
  int32_t bos_id;
  const int32_t *eos_ids;
  size_t eos_count;
} sluice_model_info;

SLUICE_API sluice_status sluice_artifact_model_info(const sluice_artifact *artifact,
                                                    sluice_model_info *info);

/* ---- Text and tokens ---- */

/* Writes the ids of `bytes` bytes of text to `ids`, at most `capacity` of them, and how many there
 * are to `count` (more than capacity: call again with that much room). With `add_bos` they begin
 * with the token that begins a text, if the model's texts do. */
SLUICE_API sluice_status sluice_tokenize(const sluice_artifact *artifact, const char *text,
                                         size_t bytes, int add_bos, int32_t *ids, size_t capacity,
                                         size_t *count);

/* Writes the text of ids to `text`, at most `capacity` bytes with the zero byte at its end (a text
 * that is too long is cut), and the whole text's length without it to `bytes`. */
SLUICE_API sluice_status sluice_detokenize(const sluice_artifact *artifact, const int32_t *ids,
                                           size_t count, char *text, size_t capacity,
                                           size_t *bytes);

/* The same for a text in which names of control tokens, such as <|im_end|>, mean these tokens: what
 * sluice_chat_render gives. Nothing is put before it. */
SLUICE_API sluice_status sluice_tokenize_special(const sluice_artifact *artifact, const char *text,
                                                 size_t bytes, int32_t *ids, size_t capacity,
                                                 size_t *count);

/* ---- Sessions ---- */

typedef struct sluice_session_options {
  /* "cpu", ...; NULL takes what the artifact was compiled for. */
  const char *device;
  /* 0 takes all CPUs. */
  int threads;
} sluice_session_options;

/* Loads the artifact's kernels on a device, with caches of its own. `options` may be NULL. */
SLUICE_API sluice_status sluice_session_create(const sluice_artifact *artifact,
                                               const sluice_session_options *options,
                                               sluice_session **session);
/* NULL is fine. */
SLUICE_API void sluice_session_free(sluice_session *session);

/* Starts a new sequence of tokens. */
SLUICE_API sluice_status sluice_session_reset(sluice_session *session);

/* How many tokens the sequence has. */
SLUICE_API int64_t sluice_session_position(const sluice_session *session);

/* Goes back in the sequence, of which the first `position` tokens stay. An error, and no change, if
 * it has fewer. */
SLUICE_API sluice_status sluice_session_truncate(sluice_session *session, int64_t position);

/* Goes back to where the sequence and the `count` tokens of `ids` part, or to before the last of
 * them, whose logits are wanted; `kept`, which may be NULL, is how many of `ids` the sequence then
 * has. So what two prompts have in common is computed once. */
SLUICE_API sluice_status sluice_session_rewind(sluice_session *session, const int32_t *ids,
                                               size_t count, size_t *kept);

/* Writes the sequence and what the caches hold of it to a file, and takes it over from one that a
 * session of the same artifact wrote; it goes on bit for bit as that one would. */
SLUICE_API sluice_status sluice_session_save(sluice_session *session, const char *path);
SLUICE_API sluice_status sluice_session_load(sluice_session *session, const char *path);

/* Appends `count` tokens, at least one, as a prompt is read: as many at a time as the artifact's
 * steps take. An error, and no change, if one is not in the vocabulary or they do not fit into the
 * context. */
SLUICE_API sluice_status sluice_session_append(sluice_session *session, const int32_t *ids,
                                               size_t count);

/* Appends a token to the sequence and points `logits` to the vocab_size numbers that predict the
 * next one, valid until the next call with this session. An error, and no change, when the
 * sequence has context_length tokens already. */
SLUICE_API sluice_status sluice_session_decode(sluice_session *session, int32_t token,
                                               const float **logits);

/* ---- Generation ---- */

typedef struct sluice_generate_options {
  /* New tokens at most; -1 until something else ends the text. */
  int64_t max_tokens;
  /* 0 always takes the most likely token. */
  float temperature;
  /* Filters; 0, 1 and 0 keep all tokens. */
  int top_k;
  float top_p;
  float min_p;
  /* 1 does nothing. */
  float repetition_penalty;
  uint64_t seed;
  /* The text ends before the first of these. */
  const char *const *stops;
  size_t stop_count;
  /* Not 0: go on after a token that ends a text. */
  int ignore_eos;
} sluice_generate_options;

/* Fills in the defaults: 128 tokens, temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalty,
 * seed 0. */
SLUICE_API void sluice_generate_options_init(sluice_generate_options *options);

typedef enum sluice_finish_reason {
  SLUICE_FINISH_LENGTH = 0,
  SLUICE_FINISH_EOS = 1,
  SLUICE_FINISH_STOP = 2,
  SLUICE_FINISH_CONTEXT = 3,
  SLUICE_FINISH_CANCELLED = 4
} sluice_finish_reason;

typedef struct sluice_generate_result {
  /* New tokens, and the prompt's. */
  int64_t tokens;
  int64_t prompt_tokens;
  sluice_finish_reason reason;
  double prompt_seconds;
  double seconds;
} sluice_generate_result;

/* Gets text as it is generated: whole characters, `bytes` of them, not zero-terminated. Returning
 * something else than 0 ends the generation. */
typedef int (*sluice_text_callback)(const char *text, size_t bytes, void *user);

/* Appends a prompt to the session's sequence and generates from there. `options` (NULL: defaults),
 * `callback` and `result` may be NULL. */
SLUICE_API sluice_status sluice_generate(sluice_session *session, const int32_t *prompt,
                                         size_t count, const sluice_generate_options *options,
                                         sluice_text_callback callback, void *user,
                                         sluice_generate_result *result);

/* The same for a text, which gets the beginning-of-text token if the sequence is empty. */
SLUICE_API sluice_status sluice_generate_text(sluice_session *session, const char *prompt,
                                              const sluice_generate_options *options,
                                              sluice_text_callback callback, void *user,
                                              sluice_generate_result *result);

/* ---- Chat ---- */

/* "system", "user" and "assistant" are the roles that every template knows. */
typedef struct sluice_message {
  const char *role;
  const char *content;
} sluice_message;

/* Writes the text of a conversation to `text`, at most `capacity` bytes with the zero at its end,
 * and its length to `bytes`. `chat_template` is Jinja; NULL takes the model's own. With
 * `add_generation_prompt` the text ends with what an answer begins after. `text` may be NULL if
 * `capacity` is 0, and `bytes` may be NULL. An error if there is no template, if it can not be
 * parsed, or if it refuses the conversation. */
SLUICE_API sluice_status sluice_chat_render(const sluice_artifact *artifact,
                                            const char *chat_template,
                                            const sluice_message *messages, size_t count,
                                            int add_generation_prompt, char *text, size_t capacity,
                                            size_t *bytes);

/* A conversation in a session. */
typedef struct sluice_chat sluice_chat;

/* Begins a conversation, which uses the session alone; that has to outlive it. `chat_template` as
 * above; `system` is what it starts with, and may be NULL. */
SLUICE_API sluice_status sluice_chat_create(sluice_session *session, const char *chat_template,
                                            const char *system, sluice_chat **chat);
/* NULL is fine. */
SLUICE_API void sluice_chat_free(sluice_chat *chat);

/* Begins a new conversation with the same `system`. */
SLUICE_API sluice_status sluice_chat_reset(sluice_chat *chat);

/* Adds what the user says and generates the answer, which is added as well. Only what the session
 * does not hold yet is evaluated; `result` counts that as the prompt's tokens. `options` (NULL:
 * defaults), `callback` and `result` may be NULL. After an error (among others if the context has
 * no place for the conversation) it is what it was before. */
SLUICE_API sluice_status sluice_chat_say(sluice_chat *chat, const char *text,
                                         const sluice_generate_options *options,
                                         sluice_text_callback callback, void *user,
                                         sluice_generate_result *result);

/* ---- Several sequences together ---- */

/* An artifact that was compiled for several sequences (--batch), on a device: sequences join and
 * leave between steps, each with its own position and sampling. Their keys and values are in pages
 * of 32 positions: a sequence takes those of its prompt when it joins, another one whenever it has
 * filled them, and gives all back when it leaves. There may be fewer than all sequences need that
 * are as long as the context (sluice compile --cache-pages). Where a prompt begins as the tokens of
 * a sequence that is there, full pages of these are shared and not computed again; such a page is
 * free when the last sequence that has it leaves. */
typedef struct sluice_batch sluice_batch;

SLUICE_API sluice_status sluice_batch_create(const sluice_artifact *artifact,
                                             const sluice_session_options *options,
                                             sluice_batch **batch);
/* NULL is fine. */
SLUICE_API void sluice_batch_free(sluice_batch *batch);
/* The most sequences that there can be, 0 for NULL. */
SLUICE_API int64_t sluice_batch_capacity(const sluice_batch *batch);
/* Pages that no sequence has, 0 for NULL. */
SLUICE_API int64_t sluice_batch_free_pages(const sluice_batch *batch);
/* Tokens of prompts that were not computed, because another sequence had their pages; of all
 * sequences that there have been. 0 for NULL. */
SLUICE_API int64_t sluice_batch_shared_tokens(const sluice_batch *batch);
/* Adds a sequence that begins with `count` tokens, at least one; `sequence` is its number. Of
 * `options`, which may be NULL, the sampling counts. SLUICE_ERROR_FULL if there are not pages for
 * all tokens that it does not share. */
SLUICE_API sluice_status sluice_batch_add(sluice_batch *batch, const int32_t *ids, size_t count,
                                          const sluice_generate_options *options,
                                          int64_t *sequence);
/* Takes every sequence one token on, but for those whose prompts are still being read: many tokens
 * at a time, of several sequences together, in one step before that of all others, and in as many
 * as it takes where none would choose a token. Sequences that have read their prompts choose their
 * next token: `sequences` and `tokens`, each with room for as many as there can be, get them,
 * `count` their number. SLUICE_ERROR_FULL if there are fewer free pages than sequences that need
 * one. */
SLUICE_API sluice_status sluice_batch_step(sluice_batch *batch, int64_t *sequences, int32_t *tokens,
                                           size_t *count);
SLUICE_API sluice_status sluice_batch_remove(sluice_batch *batch, int64_t sequence);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SLUICE_RUNTIME_SLUICE_H */

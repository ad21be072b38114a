// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/* The kernels of the tests' artifact, as the compiler's would be: exported functions that do the
 * work items [begin, end) of a launch. */

#include <stdint.h>

enum { hidden = 32 };

/* As the compiler's kernels do: a token that is none reads the nearest row. */
static int32_t row(const void *token) {
  const int32_t value = *(const int32_t *)token;
  return value < 0 ? 0 : value;
}

/* token, position, table f32[vocab][hidden], x f32[hidden], cache f32[context][hidden] */
void embed(void *const *args, int64_t begin, int64_t end) {
  const int32_t token = row(args[0]), position = *(const int32_t *)args[1];
  const float *table = (const float *)args[2];
  float *x = (float *)args[3], *cache = (float *)args[4];
  for (int64_t i = begin; i < end; ++i)
    cache[position * hidden + i] = x[i] = table[token * hidden + i];
}

/* position, cache, sums f32[hidden]: adds up the cache's rows so far. */
void attend(void *const *args, int64_t begin, int64_t end) {
  const int32_t position = *(const int32_t *)args[0];
  const float *cache = (const float *)args[1];
  float *sums = (float *)args[2];
  for (int64_t i = begin; i < end; ++i) {
    float sum = 0;
    for (int32_t p = 0; p <= position; ++p)
      sum += cache[p * hidden + i];
    sums[i] = sum;
  }
}

/* in f32[hidden], out f32[hidden]: each item reads what another thread wrote. */
void rotate(void *const *args, int64_t begin, int64_t end) {
  const float *in = (const float *)args[0];
  float *out = (float *)args[1];
  for (int64_t i = begin; i < end; ++i)
    out[i] = in[(i + hidden / 2 + 1) % hidden] + 1;
}

/* token, next i32[vocab], bias u8[vocab], logits f32[vocab] */
void head(void *const *args, int64_t begin, int64_t end) {
  const int32_t token = row(args[0]);
  const int32_t *next = (const int32_t *)args[1];
  const uint8_t *bias = (const uint8_t *)args[2];
  float *logits = (float *)args[3];
  for (int64_t v = begin; v < end; ++v)
    logits[v] = (next[token] == v ? 10.0f : 0.0f) + (float)bias[v] / 256;
}

/* logits f32[vocab], sampling i32[8], next i32[1]: takes the token whose id is top-k, which no host
 * would, or none if the first logit is NaN. */
void choose(void *const *args, int64_t begin, int64_t end) {
  const float *logits = (const float *)args[0];
  const int32_t *sampling = (const int32_t *)args[1];
  int32_t *next = (int32_t *)args[2];
  if (begin < end)
    *next = logits[0] != logits[0] ? -1 : sampling[1];
}

/* The same, but takes the largest of the first 286 logits or, with a sharpness, one that the random
 * number names. */
void draw(void *const *args, int64_t begin, int64_t end) {
  const float *logits = (const float *)args[0];
  const int32_t *sampling = (const int32_t *)args[1];
  int32_t *next = (int32_t *)args[2];
  if (begin >= end)
    return;
  *next = 0;
  if (logits[0] != logits[0])
    *next = -1;
  else if (sampling[0])
    *next = (int32_t)((uint32_t)sampling[5] % 286);
  else
    for (int32_t v = 1; v < 286; ++v)
      if (logits[v] > logits[*next])
        *next = v;
}

/* position, logits f32[vocab]: makes the first one NaN from position 4 on. */
void spoil_late(void *const *args, int64_t begin, int64_t end) {
  if (begin < end && *(const int32_t *)args[0] >= 4)
    *(uint32_t *)args[1] = 0x7FC00000;
}

/* logits f32[vocab]: makes the first one NaN. */
void spoil(void *const *args, int64_t begin, int64_t end) {
  if (begin < end)
    *(uint32_t *)args[0] = 0x7FC00000;
}

/* Nothing, to measure a launch. */
void nothing(void *const *args, int64_t begin, int64_t end) {
  (void)args;
  (void)begin;
  (void)end;
}

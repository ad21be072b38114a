// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a step on a device chooses the next token: its options, and the rule. A plan with
// an input "sampling" (8 words per row of logits) has an output "next" (an i32 per row),
// which a step leaves there after it has computed the logits.
//
// Tokens stand in order of their logits l, the largest first, ties by the lower id. With M the
// largest logit, in float32,
//
//   weight(s) of a token = min(2^28 - 1, floor(2^28 * 2^((l - M) * s) + 0.5))
//
// and sums of weights are exact integers, so that they do not depend on their order:
//
//   top-k    keeps the first k tokens
//   top-p    then keeps the fewest first tokens whose weights(log2(e)) sum to at least p times
//            those of all that are left
//   min-p    then keeps tokens with l >= M + log(min-p)
//   draw     then takes the first token where the running sum of weights(log2(e) / temperature)
//            exceeds floor(point * total / 2^64)
//
// A logit that is NaN or +infinity, or no finite one at all, gives -1. Logits of -infinity are
// never chosen.
//
// This is what sluice::runtime::Sampler does in double precision. Weights differ by some 2^-23 of
// themselves, so both take the same token unless p or the draw falls on the border of two: where
// thousands of tokens are about as likely, now and then the neighbour.

#ifndef SLUICE_RUNTIME_SAMPLINGWORDS_H
#define SLUICE_RUNTIME_SAMPLINGWORDS_H

#include <cstddef>
#include <cstdint>

namespace sluice::sampling {

/// The input "sampling" of one row of logits, little endian. Zeros take the largest logit.
struct SamplingWords {
  /// log2(e) / temperature, finite; 0 takes the largest logit, whatever the rest says.
  float sharpness = 0;
  /// 0 keeps all.
  int32_t topK = 0;
  /// 1 or more keeps all.
  float topP = 0;
  /// log(min-p); minus infinity keeps all.
  float logMinP = 0;
  /// Uniform in [0, 2^64).
  uint64_t point = 0;
  uint64_t unused = 0;
};
static_assert(sizeof(SamplingWords) == 32 && offsetof(SamplingWords, point) == 16);

/// 32-bit words of a row.
inline constexpr int64_t kWords = sizeof(SamplingWords) / 4;
/// Bits of a weight.
inline constexpr int kWeightBits = 28;

} // namespace sluice::sampling

#endif // SLUICE_RUNTIME_SAMPLINGWORDS_H

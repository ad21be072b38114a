// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelConfig.h"

#include "Diagnostics.h"
#include "Families.h"
#include "ModelConfigChecks.h"

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using namespace sluice::detail::limits;

StringRef sluice::familyName(ModelFamily family) { return sluice::detail::familyOf(family).name; }

StringRef RopeScaling::name() const {
  switch (kind) {
  case Kind::None:
    return "none";
  case Kind::Linear:
    return "linear";
  case Kind::Llama3:
    return "llama3";
  case Kind::Factors:
  case Kind::LongRope:
    return "factors";
  case Kind::Yarn:
    return "yarn";
  }
  llvm_unreachable("all kinds are named");
}

SmallVector<double> RopeScaling::values(int64_t context) const {
  switch (kind) {
  case Kind::None:
    return {};
  case Kind::Linear:
    return {factor};
  case Kind::Llama3:
    return {factor, lowFreqFactor, highFreqFactor, static_cast<double>(originalContext)};
  case Kind::Factors:
    return {factors.begin(), factors.end()};
  case Kind::LongRope: {
    const std::vector<float> &chosen = context > originalContext ? longFactors : factors;
    return {chosen.begin(), chosen.end()};
  }
  case Kind::Yarn:
    return {factor, betaFast, betaSlow, static_cast<double>(originalContext)};
  }
  llvm_unreachable("all kinds have values");
}

Error sluice::detail::checkRelations(const ModelConfig &config, StringRef path, StringRef headsKey,
                                     StringRef kvHeadsKey) {
  if (config.kvHeads > config.heads || config.heads % config.kvHeads != 0)
    return fail(path, headsKey + " is " + Twine(config.heads) + " and " + kvHeadsKey + " is " +
                          Twine(config.kvHeads) + ", expected a divisor of the former");
  if (config.headDim % 2 != 0)
    return fail(path, "the head size is " + Twine(config.headDim) +
                          ", expected an even number for the rotary embedding");
  if (config.rotaryDims < 0 || config.rotaryDims % 2 || config.rotaryDims > config.headDim)
    return fail(path, "the rotary embedding covers " + Twine(config.rotaryDims) +
                          " elements of a head, expected an even number up to the head size " +
                          Twine(config.headDim));
  if (config.heads * config.headDim > 4 * maxWidth)
    return fail(path, headsKey + " " + Twine(config.heads) + " times the head size " +
                          Twine(config.headDim) + " is above " + Twine(4 * maxWidth));
  return Error::success();
}

Error sluice::detail::checkTokenId(int64_t id, int64_t vocabSize, StringRef path, StringRef key) {
  if (id >= 0 && id < vocabSize)
    return Error::success();
  return fail(path, key + " is " + Twine(id) + ", expected a token of the vocabulary of " +
                        Twine(vocabSize));
}

std::string sluice::detail::rangeText(int64_t low, int64_t high) {
  return "an integer from " + std::to_string(low) + " to " + std::to_string(high);
}

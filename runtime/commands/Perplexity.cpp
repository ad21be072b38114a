// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Commands.h"

#include "runtime/commands/Console.h"

#include <algorithm>
#include <cmath>

using namespace sluice::runtime;

/// Probabilities can only be compared where an id is the same token in both models, and the text is
/// the same ids.
static void requireSameTokens(const Artifact &artifact, const Artifact &reference,
                              const std::string &text, const std::vector<int32_t> &ids) {
  auto fail = [](const std::string &what) { throw Error("--against: " + what); };
  int64_t found = reference.model().vocabSize, expected = artifact.model().vocabSize;
  if (found != expected)
    fail("the vocabulary has " + std::to_string(found) + " tokens, expected the model's " +
         std::to_string(expected));
  const Tokenizer &tokenizer = artifact.tokenizer(), &other = reference.tokenizer();
  std::vector<int32_t> otherIds = other.encodeWhole(text);
  auto [own, others] = std::mismatch(ids.begin(), ids.end(), otherIds.begin(), otherIds.end());
  if (own != ids.end() && others != otherIds.end())
    fail("the tokenizer is another: token " + std::to_string(own - ids.begin()) +
         " of the text is " + std::to_string(*others) + " \"" + other.tokenText(*others) +
         "\", expected the model's " + std::to_string(*own) + " \"" + tokenizer.tokenText(*own) +
         "\"");
  if (ids.size() != otherIds.size())
    fail("the tokenizer is another: the text has " + std::to_string(otherIds.size()) +
         " tokens, expected the model's " + std::to_string(ids.size()));
}

/// Two digits of the error, as 0.01234 +- 0.00018, but at least five decimals.
static int decimalsFor(double standardError) {
  if (!(standardError > 0) || std::isinf(standardError))
    return 5;
  return std::clamp(1 - static_cast<int>(std::floor(std::log10(standardError))), 5, 15);
}

void sluice::runtime::measurePerplexity(const std::filesystem::path &path,
                                        const PerplexityCommandOptions &options, std::FILE *out) {
  std::shared_ptr<const Artifact> artifact = openArtifact(path);
  const Tokenizer &tokenizer = artifact->tokenizer();
  std::vector<int32_t> ids = tokenizer.encodeWhole(options.text);
  std::shared_ptr<const Artifact> referenceArtifact;
  if (!options.reference.empty()) {
    referenceArtifact = openArtifact(options.reference);
    requireSameTokens(*artifact, *referenceArtifact, options.text, ids);
  }
  Session session = openSession(artifact, options.session);
  std::optional<Session> reference;
  if (referenceArtifact)
    reference.emplace(openSession(referenceArtifact, options.referenceSession));

  InterruptGuard guard;
  PerplexityResult result;
  {
    Progress progress;
    auto onToken = [&](const PerplexityResult &soFar, double done) {
      std::string line = format("%.0f%%", 100 * done);
      if (soFar.windows)
        line += format(", perplexity %.4f", soFar.perplexity);
      if (soFar.divergence)
        line += format(", kl divergence %.5f", soFar.divergence->mean);
      progress.show(line);
      return !InterruptGuard::interrupted();
    };
    result = perplexity(session, ids, tokenizer.addsBos() ? tokenizer.bosId() : -1,
                        options.perplexity, onToken, reference ? &*reference : nullptr);
  }
  InterruptGuard::check();
  writeText(out, format("%lld windows of %lld tokens, %lld tokens scored\n",
                        static_cast<long long>(result.windows),
                        static_cast<long long>(options.perplexity.window),
                        static_cast<long long>(result.tokens)));
  if (const std::optional<Divergence> &divergence = result.divergence) {
    int decimals = decimalsFor(divergence->standardError);
    writeText(out, format("kl divergence: %.*f +- %.*f nats\nsame first choice: %.2f%%\n", decimals,
                          divergence->mean, decimals, divergence->standardError,
                          100 * divergence->sameFirstChoice));
  }
  writeText(out, format("mean negative log likelihood: %.6f nats\nperplexity: %.4f\n",
                        result.meanNegativeLogLikelihood, result.perplexity));
  flush(out);
}

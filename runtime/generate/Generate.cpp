// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Batch.h"
#include "sluice-runtime/Drafts.h"

#include "runtime/generate/Checks.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <utility>

using namespace sluice::runtime;

using Clock = std::chrono::steady_clock;

static double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

namespace {

/// The text of new tokens, on its way to the caller.
class TextStream {
public:
  TextStream(const Artifact &artifact, const GenerateOptions &options,
             const GenerateCallbacks &callbacks, std::string &text)
      : callbacks(callbacks), text(text), matcher(options.stops) {
    if (artifact.hasTokenizer()) {
      vocabSize = artifact.tokenizer().vocabSize();
      decoder.emplace(artifact.tokenizer(), /*continuation=*/!options.startsText);
    } else if (!options.stops.empty()) {
      throw Error(artifact.planName() +
                  ": the artifact has no tokenizer, so that stop strings cannot be found");
    }
  }

  /// False if the caller wants no more.
  bool add(int32_t id) {
    // A model may have more logits than there are tokens; such a token has no text.
    if (!decoder || id >= vocabSize)
      return true;
    return emit(matcher.add(decoder->add(id)));
  }
  bool finish() {
    if (!decoder)
      return true;
    bool more = emit(matcher.add(decoder->finish()));
    return emit(matcher.finish()) && more;
  }
  bool stopped() const { return matcher.stopped(); }

private:
  bool emit(const std::string &part) {
    if (part.empty())
      return true;
    text += part;
    return !callbacks.onText || callbacks.onText(part);
  }

  const GenerateCallbacks &callbacks;
  std::string &text;
  StopMatcher matcher;
  std::optional<StreamDecoder> decoder;
  int32_t vocabSize = 0;
};

/// New tokens behind a prompt, and what ends them.
class Continuation {
public:
  Continuation(const Artifact &artifact, const GenerateOptions &options,
               const GenerateCallbacks &callbacks, GenerateResult &result)
      : options(options), callbacks(callbacks), result(result),
        text(artifact, options, callbacks, result.text), eosIds(artifact.model().eosIds) {
    if (artifact.hasTokenizer())
      eosIds.insert(eosIds.end(), artifact.tokenizer().eosIds().begin(),
                    artifact.tokenizer().eosIds().end());
  }

  /// Whether there are as many as were asked for.
  bool isLong() const {
    return options.maxTokens >= 0 && static_cast<int64_t>(result.ids.size()) >= options.maxTokens;
  }
  /// Why the token is the last one, if it is; not that there are enough.
  std::optional<FinishReason> add(int32_t id) {
    result.ids.push_back(id);
    bool more = !callbacks.onToken || callbacks.onToken(id, /*isPrompt=*/false);
    if (!options.ignoreEos && std::find(eosIds.begin(), eosIds.end(), id) != eosIds.end())
      return FinishReason::Eos;
    more &= text.add(id);
    if (text.stopped())
      return FinishReason::Stop;
    if (!more)
      return FinishReason::Cancelled;
    return std::nullopt;
  }
  void finish(FinishReason reason) {
    result.reason = reason;
    if (reason != FinishReason::Cancelled)
      text.finish();
  }

private:
  const GenerateOptions &options;
  const GenerateCallbacks &callbacks;
  GenerateResult &result;
  TextStream text;
  std::vector<int32_t> eosIds;
};

} // namespace

void GenerateOptions::validate() const {
  if (maxTokens < -1)
    throw Error("the number of new tokens is " + std::to_string(maxTokens) +
                ", expected at least 0, or -1 for no limit");
  sampling.validate();
}

GenerateResult sluice::runtime::generate(Session &session, std::span<const int32_t> prompt,
                                         const GenerateOptions &options,
                                         const GenerateCallbacks &callbacks) {
  const Artifact &artifact = session.artifact();
  int64_t room = artifact.model().contextLength - session.position();
  if (prompt.empty())
    throw Error("the prompt has no tokens, expected at least one");
  if (static_cast<int64_t>(prompt.size()) > room)
    throw Error(
        "the prompt has " + std::to_string(prompt.size()) + " tokens, but only " +
        std::to_string(room) +
        " positions of the context are left; compile the model with a longer one (--context)");
  options.validate();
  checkTokens(artifact.model(), prompt, " of the prompt");

  GenerateResult result;
  Sampler sampler(options.sampling);
  Continuation text(artifact, options, callbacks, result);
  std::vector<int32_t> history(session.tokens().begin(), session.tokens().end());
  history.insert(history.end(), prompt.begin(), prompt.end());

  // With one that guesses, the session keeps what it has computed for right guesses ahead.
  const int64_t mostGuesses =
      options.drafter ? std::min(options.draftTokens, session.verifyChunk() - 1) : 0;
  DraftPolicy policy(mostGuesses);

  // The step of a token also chooses the next one. The step of that one can start before it is
  // known, unless it is the last of the text, has no place any more or is to have guesses.
  auto next = [&](std::span<const int32_t> tokens) {
    int64_t count = static_cast<int64_t>(result.ids.size()) + 1;
    bool goesOn = mostGuesses == 0 && (options.maxTokens < 0 || count < options.maxTokens);
    int64_t following = session.position() + static_cast<int64_t>(tokens.size());
    return session.next(tokens, sampler, history, goesOn ? std::optional(following) : std::nullopt);
  };

  auto start = Clock::now();
  std::optional<int32_t> chosen;
  const size_t most = static_cast<size_t>(session.chunk());
  for (std::span<const int32_t> rest = prompt; !rest.empty();) {
    std::span<const int32_t> part = rest.first(std::min(rest.size(), most));
    rest = rest.subspan(part.size());
    if (!rest.empty() || options.maxTokens == 0)
      session.append(part);
    else
      chosen = next(part);
    bool more = true;
    for (int32_t id : part)
      more &= !callbacks.onToken || callbacks.onToken(id, /*isPrompt=*/true);
    if (!more) {
      result.promptSeconds = secondsSince(start);
      result.reason = FinishReason::Cancelled;
      return result;
    }
  }
  session.wait();
  result.promptSeconds = secondsSince(start);

  start = Clock::now();
  // Of a step with guesses: the tokens that follow the last text token, as far as guesses were
  // right, and then the sampler's own. Their logits are known, so choosing needs no step.
  std::vector<int32_t> guesses;
  size_t taken = 0;
  double stepSeconds = 0;
  auto choose = [&] {
    chosen = session.choose(static_cast<int64_t>(taken), sampler, history);
    bool isRight = taken < guesses.size() && guesses[taken] == *chosen;
    if (isRight) {
      ++taken;
      return;
    }
    // What was computed behind the first wrong guess does not count.
    result.accepted += static_cast<int64_t>(taken);
    policy.verified(stepSeconds, static_cast<int64_t>(taken));
    session.seek(session.position() - static_cast<int64_t>(guesses.size() - taken));
    guesses.clear();
    taken = 0;
  };
  // Whether the next token could be chosen by guesses, made now or before.
  auto guess = [&] {
    if (!guesses.empty()) {
      choose();
      return true;
    }
    int64_t room = artifact.model().contextLength - session.position() - 1;
    if (options.maxTokens >= 0)
      room = std::min(room, options.maxTokens - static_cast<int64_t>(result.ids.size()) - 1);
    int64_t wanted = mostGuesses > 0 ? std::min(policy.wanted(), room) : 0;
    if (wanted < 1)
      return false;
    auto begin = Clock::now();
    guesses = options.drafter->propose(history, wanted);
    if (guesses.empty()) {
      policy.nothing();
      return false;
    }
    std::vector<int32_t> tokens = {result.ids.back()};
    tokens.insert(tokens.end(), guesses.begin(), guesses.end());
    (void)session.verify(tokens);
    stepSeconds = secondsSince(begin);
    result.guessed += static_cast<int64_t>(guesses.size());
    choose();
    return true;
  };
  auto step = [&]() -> std::optional<FinishReason> {
    if (text.isLong())
      return FinishReason::Length;
    // The last token's step has chosen the next one, also when it has no place any more.
    if (!chosen && !guess()) {
      if (session.position() >= artifact.model().contextLength)
        return FinishReason::Context;
      auto begin = Clock::now();
      chosen = next(std::span(&result.ids.back(), 1));
      policy.decoded(secondsSince(begin));
    }
    int32_t id = *std::exchange(chosen, std::nullopt);
    history.push_back(id);
    return text.add(id);
  };
  std::optional<FinishReason> reason;
  while (!(reason = step()))
    ;
  if (!guesses.empty()) {
    // The text ended among right guesses: the last token is in no step, as it would be without.
    result.accepted += static_cast<int64_t>(taken);
    session.seek(session.position() - static_cast<int64_t>(guesses.size() + 1 - taken));
  }
  result.seconds = secondsSince(start);
  text.finish(*reason);
  return result;
}

std::vector<GenerateResult> sluice::runtime::generate(Batch &batch,
                                                      std::span<const std::vector<int32_t>> prompts,
                                                      const GenerateOptions &options,
                                                      const BatchCallbacks &callbacks) {
  options.validate();
  if (options.drafter)
    throw Error("guesses are verified for a single sequence");
  std::vector<GenerateResult> results(prompts.size());
  // Emptied when a text has ended; a text that had to leave begins again.
  std::vector<std::optional<Continuation>> texts(prompts.size());
  std::deque<size_t> waiting;
  for (size_t i = 0; i < prompts.size(); ++i)
    waiting.push_back(i);
  // In the order in which they joined.
  std::vector<std::pair<int64_t, size_t>> present;
  // Since one had to leave, no other one has ended: what joined now would have to leave, too.
  bool isCrowded = false;
  const GenerateCallbacks none;
  auto start = Clock::now();
  auto end = [&](size_t prompt, FinishReason reason) {
    isCrowded = false;
    texts[prompt]->finish(reason);
    texts[prompt].reset();
    results[prompt].seconds = secondsSince(start);
    if (callbacks.onEnd)
      callbacks.onEnd(prompt, results[prompt]);
  };
  // False if the free pages are too few for the next one while others have theirs.
  auto join = [&] {
    size_t prompt = waiting.front();
    try {
      present.emplace_back(batch.add(prompts[prompt], options.sampling), prompt);
    } catch (const CachesFull &) {
      if (present.empty())
        throw;
      return false;
    }
    waiting.pop_front();
    results[prompt] = {};
    texts[prompt].emplace(batch.artifact(), options, none, results[prompt]);
    if (texts[prompt]->isLong()) {
      batch.remove(present.back().first);
      present.pop_back();
      end(prompt, FinishReason::Length);
    }
    return true;
  };
  // The pages of the one that joined last are for the others; later it chooses the same again.
  auto leave = [&] {
    auto [sequence, prompt] = present.back();
    batch.remove(sequence);
    present.pop_back();
    waiting.push_front(prompt);
    isCrowded = true;
  };
  while (!waiting.empty() || !present.empty()) {
    while (!waiting.empty() && !isCrowded && batch.size() < batch.capacity() && join())
      ;
    if (present.empty())
      continue;
    std::span<const Batch::Choice> choices;
    try {
      choices = batch.step();
    } catch (const CachesFull &) {
      if (present.size() == 1)
        throw;
      leave();
      continue;
    }
    bool more = !callbacks.onStep || callbacks.onStep(choices.size());
    for (auto [sequence, token] : choices) {
      auto place =
          std::find_if(present.begin(), present.end(),
                       [&, number = sequence](const auto &one) { return one.first == number; });
      const size_t prompt = place->second;
      std::optional<FinishReason> reason = texts[prompt]->add(token);
      if (!reason && texts[prompt]->isLong())
        reason = FinishReason::Length;
      if (!reason && batch.position(sequence) >= batch.artifact().model().contextLength)
        reason = FinishReason::Context;
      if (!reason)
        continue;
      batch.remove(sequence);
      present.erase(place);
      end(prompt, *reason);
    }
    if (more)
      continue;
    for (auto [sequence, prompt] : present) {
      batch.remove(sequence);
      end(prompt, FinishReason::Cancelled);
    }
    for (size_t prompt : waiting)
      results[prompt].reason = FinishReason::Cancelled;
    break;
  }
  return results;
}

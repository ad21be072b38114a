// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Decodes one sequence of tokens; generates text and measures perplexity with it.

#ifndef SLUICE_RUNTIME_SESSION_H
#define SLUICE_RUNTIME_SESSION_H

#include "sluice-runtime/Device.h"
#include "sluice-runtime/Sampling.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sluice::runtime {

struct SessionOptions {
  /// Empty takes the artifact's own (see defaultDevice).
  std::string device;
  DeviceOptions deviceOptions;
};

/// An artifact on a device with one sequence of tokens. Used by one thread at a time.
class Session {
public:
  explicit Session(std::shared_ptr<const Artifact> artifact, const SessionOptions &options = {});

  const Artifact &artifact() const { return *theArtifact; }
  Device &device() { return *theDevice; }

  /// Position of the next token: how many tokens the sequence has.
  int64_t position() const { return nextPosition; }

  /// The sequence: position() tokens. -1 stands for those that seek() has skipped.
  std::span<const int32_t> tokens() const { return sequence; }

  /// Appends a token to the sequence. Returns the logits that predict the next one (vocabSize of
  /// them, valid until the next call). An Error, and no change, if the token is not in
  /// [0, vocabSize) or the sequence has contextLength tokens already.
  std::span<const float> decode(int32_t token);

  /// The same for tokens, at least one, of which nobody reads logits: for all of a prompt but the
  /// last ones. They go through the artifact's steps of many tokens, as many at a time as these
  /// take. Steps may still run on return; what fails in one is an Error of a later call. After an
  /// Error the sequence has those tokens whose step was started.
  void append(std::span<const int32_t> tokens);
  void append(int32_t token) { append(std::span(&token, 1)); }

  /// The most tokens that one step takes.
  int64_t chunk() const { return theArtifact->plan().mostTokens(); }

  /// Appends tokens, at least one and at most verifyChunk(), and returns the logits that follow
  /// each of them: tokens x vocabSize, valid until the next call.
  std::span<const float> verify(std::span<const int32_t> tokens);
  /// Row `row` of what the last verify() or score() computed.
  std::span<const float> verified(int64_t row);
  /// Chooses the token that follows row `row` of it; as next(), without appending anything.
  int32_t choose(int64_t row, Sampler &sampler, std::span<const int32_t> history);
  /// The most tokens of verify(): those of the artifact's step that gives all logits, else 1.
  int64_t verifyChunk() const;

  /// Appends tokens, at least one and at most chunk(), and chooses the token that comes next
  /// (without appending it): on the device, if the artifact's step does so and the choice depends
  /// on logits alone, else from the logits here. `history` is what Sampler::sample takes, `tokens`
  /// included. Errors are decode's and sample's; where logits are not finite, the message names the
  /// first kernel of the step whose result is not, and so does score's.
  ///
  /// `followAt` says that the next call is expected to be next() with the chosen token at that
  /// position. A device that works beside the host starts that step at once and takes the token
  /// from this one, so that it does not wait for the host. Whatever is called instead discards that
  /// step, of which nothing stays but what it wrote to the caches at its position, and perhaps to
  /// intermediate results.
  int32_t next(std::span<const int32_t> tokens, Sampler &sampler, std::span<const int32_t> history,
               std::optional<int64_t> followAt = std::nullopt);
  int32_t next(int32_t token, Sampler &sampler, std::span<const int32_t> history,
               std::optional<int64_t> followAt = std::nullopt) {
    return next(std::span(&token, 1), sampler, history, followAt);
  }

  /// Waits until the steps of all appended tokens have ended.
  void wait();

  /// Whether next() can start the following step before it has chosen the token.
  bool startsAhead(const Sampler &sampler) const {
    return queue && feedsToken && !sampler.needsHistory();
  }

  /// Appends tokens as verify() does and returns for each -ln of the probability that the one after
  /// it is its target. Errors are decode's and negativeLogLikelihood's.
  std::vector<double> score(std::span<const int32_t> tokens, std::span<const int32_t> targets);

  /// The logits of the last step: vocabSize of them, valid until the next one.
  std::span<const float> logits();

  /// Starts a new sequence; caches are zero again.
  void reset();

  /// Makes `position` the next one without touching the caches, in [0, contextLength): to go back
  /// in a sequence, or to measure a step as it is after so many tokens.
  void seek(int64_t position);

  /// Goes back to where the sequence and `ids` part, or to before the last of `ids`, whose logits
  /// are wanted. Returns how many of `ids`, of which there is at least one, the sequence then has.
  int64_t rewind(std::span<const int32_t> ids);

  /// Runs the step of these tokens, at least one and at most chunk(), at the present position
  /// without appending them; returns each launch's time in seconds.
  std::vector<double> profile(std::span<const int32_t> tokens);
  std::vector<double> profile(int32_t token) { return profile(std::span(&token, 1)); }

  /// Writes the sequence, and of the caches what it has filled, to a safetensors file, which is
  /// complete when it has its name. An Error if the sequence has tokens that seek() skipped.
  void save(const std::filesystem::path &path);
  /// Takes over a sequence that a session of the same artifact saved: it goes on as that one would,
  /// bit for bit. An Error, after which the session is as reset() leaves it, if the file is damaged
  /// or of another artifact.
  void load(const std::filesystem::path &path);

  /// A copy of a buffer's bytes as the last step left them; an Error if there is none so named.
  std::vector<std::byte> readBuffer(std::string_view name);
  /// The same as float32, for buffers of type f32 and f16.
  std::vector<float> readBufferAsFloat(std::string_view name);

private:
  /// What a step depends on, besides what the caches hold.
  struct Inputs {
    std::vector<int32_t> tokens;
    /// Of the first.
    int64_t position = 0;
    /// Where the step chooses the next token.
    sampling::SamplingWords sampling;
    bool allLogits = false;
    bool operator==(const Inputs &other) const;
  };

  /// An Error if the tokens cannot be appended.
  Inputs checkedInputs(std::span<const int32_t> tokens) const;
  void write(const Inputs &inputs);
  uint32_t stepOf(const Inputs &inputs) const {
    const Plan &plan = theArtifact->plan();
    if (inputs.allLogits)
      return *plan.verifyStep();
    return inputs.tokens.size() == 1 ? theDevice->decodeStep()
                                     : *plan.stepFor(static_cast<int64_t>(inputs.tokens.size()));
  }
  /// The tokens have their place in the sequence.
  void advance(std::span<const int32_t> tokens);
  /// Starts the step, unless it is the one that was started ahead, and ends all before it.
  void start(const Inputs &inputs);
  /// Ends the step that was started ahead, whatever comes of it.
  void discardAhead();
  /// The message about logits that are not finite, those of the last step or `scores`: what, and
  /// where it began.
  Error explained(const Error &error, std::span<const float> scores = {});
  /// Runs the last step again: which kernel's result is the first that is not finite, and where.
  std::string firstNonFinite();
  /// The first element of a buffer that is infinite or NaN.
  std::optional<std::string> nonFiniteElement(uint32_t buffer);

  std::shared_ptr<const Artifact> theArtifact;
  std::unique_ptr<Device> theDevice;
  /// The device's; null if it runs one step after the other.
  StepQueue *queue = nullptr;
  int64_t nextPosition = 0;
  std::vector<int32_t> sequence;
  /// Of the last step, and whether wait() has to wait for it.
  Inputs last;
  bool unfinished = false;
  /// Of the step in flight that nobody has asked for yet.
  std::optional<Inputs> ahead;
  uint32_t tokenBuffer, positionBuffer, logitsBuffer;
  /// Buffers of steps of many tokens.
  std::optional<uint32_t> tokensBuffer, positionsBuffer, countBuffer, allLogitsBuffer;
  /// Buffers of a step that chooses the next token.
  std::optional<uint32_t> samplingBuffer, nextBuffer;
  /// Whether the step can have its token from the step before.
  bool feedsToken = false;
};

class Drafter;

struct GenerateOptions {
  SamplingOptions sampling;
  /// Guesses tokens, which the session verifies several at a time; may be null. The tokens are the
  /// same as without, but for the order of float additions. At most draftTokens are guessed, and
  /// no more than Session::verifyChunk() - 1.
  Drafter *drafter = nullptr;
  int64_t draftTokens = 7;
  /// The greatest number of new tokens; -1 until something else ends the text.
  int64_t maxTokens = 128;
  /// The text ends before the first of these.
  std::vector<std::string> stops;
  /// Go on after a token that ends a text.
  bool ignoreEos = false;
  /// The new text is one of its own, so that a space which tokenizers put before a first word is
  /// not a part of it; otherwise it goes on from the prompt's.
  bool startsText = false;

  /// Throws an Error that names the first option out of its range.
  void validate() const;
};

enum class FinishReason : uint8_t {
  /// maxTokens were generated.
  Length,
  /// The model ended the text.
  Eos,
  /// A stop string.
  Stop,
  /// contextLength tokens.
  Context,
  /// A callback returned false.
  Cancelled
};

/// How a generation went.
struct GenerateResult {
  /// New tokens; a token that ends the text is the last one of them.
  std::vector<int32_t> ids;
  /// Their text, without stop strings. Empty if the artifact has no tokenizer.
  std::string text;
  FinishReason reason = FinishReason::Length;
  double promptSeconds = 0, seconds = 0;
  /// Tokens that were guessed, and how many of them were right.
  int64_t guessed = 0, accepted = 0;
};

/// Appends `prompt` (at least one token) to the session's sequence and generates from there.
/// `onText` gets the text as it becomes certain (never a part of a character or of a stop string),
/// `onToken` each token of the prompt (with `isPrompt`; those of a step one after the other when it
/// was started) and each new one; both may be empty; returning false ends the generation after this
/// step. Stop strings need a tokenizer.
struct GenerateCallbacks {
  std::function<bool(std::string_view text)> onText;
  std::function<bool(int32_t token, bool isPrompt)> onToken;
};
GenerateResult generate(Session &session, std::span<const int32_t> prompt,
                        const GenerateOptions &options, const GenerateCallbacks &callbacks = {});

struct PerplexityOptions {
  /// Tokens per window: at least 4, at most contextLength.
  int64_t window = 512;
  /// The greatest number of windows; 0 takes all.
  int64_t maxWindows = 0;
};

/// How far a model's predictions are from a reference's, over the tokens that were predicted.
struct Divergence {
  /// Mean of KL(reference || model), in nats, and the standard error of that mean (NaN for a single
  /// token).
  double mean = 0, standardError = 0;
  /// The share, in [0, 1], of tokens for which both have the same most likely one.
  double sameFirstChoice = 0;
};

struct PerplexityResult {
  int64_t windows = 0;
  /// Tokens that were predicted.
  int64_t tokens = 0;
  /// Mean of -ln(probability), in nats, and its exponential.
  double meanNegativeLogLikelihood = 0, perplexity = 0;
  /// From the first complete window on, if there is a reference.
  std::optional<Divergence> divergence;
};

/// Perplexity of a text as llama.cpp's perplexity tool defines it. The text's ids, starting with
/// `bosId` if the model's texts do (else it is -1), are cut into windows that do not overlap; an
/// incomplete last one is dropped; the first token of each is replaced by `bosId`. A window
/// is decoded from an empty sequence, and of its c tokens those from c/2 + 1 on are predicted.
/// `onToken` is called after each token with the result of the windows so far and the share done,
/// in [0, 1]; false ends it with that result. An Error if there is not one full window.
///
/// A `reference`, which is another session, is taken through the same tokens in lock step, so that
/// the logits of one position are all that is held. An Error if its vocabulary has another size or
/// the window does not fit into its context.
PerplexityResult
perplexity(Session &session, std::span<const int32_t> ids, int32_t bosId,
           const PerplexityOptions &options,
           const std::function<bool(const PerplexityResult &, double done)> &onToken = {},
           Session *reference = nullptr);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_SESSION_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The plan of an artifact: what plan.json says, checked field by field. docs/artifact.md is the
// format's definition.

#ifndef SLUICE_RUNTIME_PLAN_H
#define SLUICE_RUNTIME_PLAN_H

#include "sluice-runtime/Error.h"
#include "sluice-runtime/SyntheticWords.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime {

/// The model that an artifact was compiled from. Ids are -1 or absent where the model has none.
struct ModelInfo {
  std::string name;
  std::string architecture;
  int64_t vocabSize = 0;
  /// Positions that the caches have room for: a step's position is in [0, contextLength).
  int64_t contextLength = 0;
  /// Sequences of which a step has one token each, every one with caches of its own: 1 to 64.
  int64_t batch = 1;
  /// Pages of `kPagePositions` positions that the caches of several sequences have to hand out; 0:
  /// caches are not in pages.
  int64_t cachePages = 0;
  static constexpr int64_t kPagePositions = 32;
  int64_t hiddenSize = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kvHeads = 0;
  int64_t headDim = 0;
  int32_t bosId = -1;
  std::vector<int32_t> eosIds;
  /// The weights' format in words, such as "f16" or "int8-g128".
  std::string weights;
  /// Weights do not exist: a device fills the buffers that have a pattern with generated numbers.
  bool synthetic = false;
};

/// The machine that an artifact was compiled for.
struct TargetInfo {
  std::string name;
  /// "cpu", "gpu", or the name of another device.
  std::string kind;
  std::string triple;
  std::string isa;
  /// The architecture of the GPU kernels, as PTX names it: "sm_90", "sm_90a"; kind "gpu" only.
  std::string arch;
  /// CPU features that the kernels use, as LLVM names them: "avx2", "avx512vnni".
  std::vector<std::string> features;
};

/// A file of the artifact's directory.
struct FileInfo {
  std::string name;
  uint64_t bytes = 0;
  /// XXH3 (64 bits, no seed) of the whole file.
  uint64_t xxh3 = 0;
};

enum class BufferKind : uint8_t {
  /// A part of the step's scratch memory, at `offset` of it.
  Arena,
  /// The tensor `tensor` of the weights file; read only.
  Weights,
  /// Zero at first, kept from step to step.
  Cache,
  /// Written before a step.
  Input,
  /// Read after a step.
  Output
};

/// "arena", "weights", ... as plan.json has it.
std::string_view bufferKindName(BufferKind kind);

struct Buffer {
  std::string name;
  BufferKind kind = BufferKind::Arena;
  /// "f32", "f16", "i8-g128", ...: f64, f32, f16, bf16 and i8 to i64 (u8 to u64) are plain
  /// elements in row-major order; other names have a meaning for kernels and weights only.
  std::string type;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  /// Arena only: a multiple of 64.
  uint64_t offset = 0;
  /// Weights only.
  std::string tensor;
  /// Inputs only: the output, of the same type, size and shape, from which a step that follows
  /// another one can have it instead of from the host (StepQueue::start).
  std::optional<uint32_t> fedBy;
  /// Weights of synthetic models only: the bytes are generated, and `tensor` need not exist.
  std::optional<synthetic::SyntheticPattern> synthetic;
};

/// Bytes that a launch moves and its operations, per token.
struct Traffic {
  uint64_t weights = 0, scales = 0, activations = 0;
  /// Bytes read for each position of context.
  uint64_t keys = 0, values = 0;
  uint64_t written = 0;
  uint64_t operations = 0, operationsPerPosition = 0;
  /// Positions of context, the latest ones, that are read at most; 0: all.
  uint64_t window = 0;

  /// Bytes read and written with `context` positions in the cache, the token's own included.
  uint64_t bytes(uint64_t context) const;
};

/// Seconds that the compiler predicted for a launch, or for what a step takes beside its launches.
struct PredictedTime {
  /// Reading memory, arithmetic that goes on after it, and the boundary to the launch before.
  /// Arithmetic may be less than 0; with its part for the context it counts at least 0.
  double memory = 0, arithmetic = 0, boundary = 0;
  /// For each position of context.
  double memoryPerPosition = 0, arithmeticPerPosition = 0;
  /// Positions of context, the latest ones, that count at most; 0: all.
  uint64_t window = 0;
  /// What is added where the launch runs by itself, as in Device::profile().
  double alone = 0;

  double seconds(uint64_t context) const;
};

/// A kernel launch on buffers.
struct Launch {
  std::string kernel;
  /// What it computes, in words; shown by bench.
  std::string label;
  /// Work items (on the host) or thread blocks; at least 1.
  int64_t grid = 1;
  /// Threads of a block, bytes of dynamic shared memory, and blocks of a cluster; 0 on the host.
  int64_t block = 0, shared = 0, cluster = 0;
  /// May start before the launch before it has ended.
  bool overlap = false;
  /// All blocks must live at the same time: they wait for each other.
  bool cooperative = false;
  /// Indices into Plan::buffers, in the order of the kernel's pointers.
  std::vector<uint32_t> arguments;
  std::optional<Traffic> traffic;
  std::optional<PredictedTime> time;
};

/// A kernel that no step launches but the device itself. Its name determines its arguments
/// (docs/artifact.md).
struct Utility {
  /// Threads of a block, bytes of dynamic shared memory, blocks per multiprocessor.
  int64_t block = 0, shared = 0, blocksPerMultiprocessor = 1;
};

/// Launches that run in order.
struct Step {
  std::string name;
  /// The most tokens that the step takes, of all sequences; 0: it takes one token of each and no
  /// `count`.
  int64_t tokens = 0;
  /// Whether it gives the logits of all its tokens, and chooses none; else those of the last one.
  bool allLogits = false;
  std::vector<Launch> launches;
  /// Beside the launches.
  std::optional<PredictedTime> time;

  /// Seconds of the whole step; nothing if a launch has no prediction.
  std::optional<double> predictedSeconds(uint64_t context) const;
};

/// plan.json. A Plan that parse() returned satisfies:
/// - buffers have distinct names; arena buffers lie in [0, arenaBytes); two that overlap are never
///   both in use across the end of a launch; plain elements fit into their buffer's bytes;
/// - there is a step "decode", inputs "token" and "position" (an i32 for each of `batch` sequences)
///   and an output "logits" (batch x vocabSize f32); where the step chooses the next token too,
///   also an input "sampling" and an output "next" (SamplingWords.h);
/// - where there are several sequences, every cache is [batch + cachePages, 32, ...], pages, and
///   there is an input "pages" (batch x tiles u32): the page of every 32 positions of each
///   sequence; where a step has `tokens`, there are inputs "sequences", whose each token is (as
///   many i32 as "tokens"), and "starts", where those of each begin (batch + 1 i32);
/// - where a step has `tokens`, there are inputs "tokens" and "positions" of at least so many i32,
///   and "count" of one; where one gives all logits, there is an output "all_logits" of
///   `tokens` times vocabSize f32, and no other such step;
/// - launches name buffers that exist; no sum or product of sizes overflows 63 bits.
struct Plan {
  /// The step that does the same as "decode" in other kernels, for devices that cannot run one of
  /// that step's, if an artifact has it.
  static constexpr std::string_view graphStep = "decode_graph";
  /// Version of the format that this library reads.
  static constexpr int64_t formatVersion = 1;

  /// Parses and checks the whole text; throws Error. `name` starts each error message.
  static Plan parse(std::string_view text, const std::string &name);

  /// The digest that belongs under the key "checksum" of the plan `text`, 16 hexadecimal digits:
  /// XXH3 of the JSON without that key, dumped compactly with sorted keys.
  static std::string checksum(std::string_view text, const std::string &name);

  /// The digest of the whole plan, 16 hexadecimal digits: of all that decides what a session holds,
  /// as it has the checksums of weights and kernels in it.
  std::string digest;
  std::string producer;
  ModelInfo model;
  TargetInfo target;
  /// By role: "kernels" (a CPU's), "ptx", "cubin.sm_90", "weights", "tokenizer", ...
  std::map<std::string, FileInfo> files;
  uint64_t arenaBytes = 0;
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  /// By the kernel's name.
  std::map<std::string, Utility> utilities;

  /// Index of a buffer.
  std::optional<uint32_t> findBuffer(std::string_view name) const;
  /// The same, but an Error that names it if there is none.
  uint32_t bufferIndex(std::string_view name) const;
  /// The buffer, checked to have `bytes` bytes at `offset`; an Error if it has not.
  const Buffer &bufferPart(uint32_t index, uint64_t offset, uint64_t bytes) const;
  /// The same for a buffer to write to, whose kind may not be Weights.
  const Buffer &writableBufferPart(uint32_t index, uint64_t offset, uint64_t bytes) const;
  std::optional<uint32_t> findStep(std::string_view name) const;
  /// The index of "decode", or with `graph` of graphStep, if there is one.
  uint32_t decodeStep(bool graph) const;

  /// The step that gives the last one's logits of `tokens` tokens of a sequence, at least one:
  /// "decode" for one, else the smallest that takes so many, or nothing.
  std::optional<uint32_t> stepFor(int64_t tokens) const;
  /// Seconds that the steps for a prompt of so many tokens were predicted to take, the first of
  /// them at position 0; nothing if one has no prediction.
  std::optional<double> predictedPrompt(int64_t tokens) const;
  /// The most tokens that such a step takes, 1 without steps of many.
  int64_t mostTokens() const;
  /// The step that gives all logits, if there is one.
  std::optional<uint32_t> verifyStep() const;

  /// Whether the step chooses the next token: it has an input "sampling".
  bool samples() const;

  /// Bytes that the step's launches read and write with `context` positions in the cache.
  uint64_t bytes(const Step &step, uint64_t context) const;

  /// Bytes of all buffers of a kind; of those in the arena, which share bytes, arenaBytes.
  uint64_t bytes(BufferKind kind) const;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_PLAN_H

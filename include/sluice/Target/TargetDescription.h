// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the compiler knows of a device: targets/*.json, one file per device, every number with its
// source.

#ifndef SLUICE_TARGET_TARGETDESCRIPTION_H
#define SLUICE_TARGET_TARGETDESCRIPTION_H

#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace sluice {

/// A number of a target description and where it comes from.
template <typename T> struct Sourced {
  T value{};
  std::string source;
};

/// How kernels of a GPU are scheduled where a model does not ask for less.
struct GpuTuning {
  /// Products: warps that multiply, stages of the ring of copies, stages under way at once, row
  /// tiles whose sums wait to be added.
  Sourced<int64_t> productWarps, productStages, productInFlight, productHeldTiles;
  /// The most bytes of the next product's weight that a block brings into L2 at its end.
  Sourced<int64_t> productPrefetchBytes;
  /// Products of many tokens: single warps that multiply; the most stages of the ring of copies and
  /// bytes of weights in a stage; the most tokens of a tile of single warps; columns of an
  /// instruction from which on warpgroups multiply.
  Sourced<int64_t> matmulWarps, matmulStages, matmulWeightBytes, matmulTokens, warpgroupColumns;
  /// Attention: warps that read, for up to 16 query heads per key/value head; the most blocks that
  /// share one key/value head; bytes up to which a stage grows; the most bytes of a ring of stages,
  /// and of one that leaves room for a product. Of a prompt's tokens: the most stages, and the
  /// bytes from which a stage is long enough.
  Sourced<int64_t> attentionWarps, attentionSplits, attentionStageBytes, shortRingBytes,
      longRingBytes;
  Sourced<int64_t> promptStages, promptStageBytes;
  /// Sampling: warps; the most blocks that share a row of logits; logits that make a block worth
  /// its barriers.
  Sourced<int64_t> sampleWarps, sampleSplits, sampleLogits;
  /// Embedding: warps; columns of a block.
  Sourced<int64_t> embeddingWarps, embeddingColumns;
};

/// What the time of a step as one kernel depends on (Analysis/TimeModel.h).
struct PersistentTime {
  /// Bytes a second of weights, and of keys and values.
  Sourced<double> bandwidth, cacheBandwidth;
  /// Seconds of a layer that reads nothing, and what a layer takes more where a cache is of
  /// integers.
  Sourced<double> wait, integerWait;
  /// Elements of such caches, for each query head, that a block multiplies in a second.
  Sourced<double> integers;
  /// Bytes a second of weights in records, and the part of their arithmetic, as products have it,
  /// that reading does not hide.
  Sourced<double> recordBandwidth, recordArithmetic;
};

/// How a decode step runs as one persistent kernel (Fused/PersistentPlan.h).
struct PersistentTuning {
  /// Clusters of 1, 2, 4 and 8 blocks that live at the same time, each block with a multiprocessor
  /// of its own; larger ones are not known where there are fewer numbers.
  Sourced<std::vector<int64_t>> residentClusters;
  /// Warps that compute; stages under way at once around attention, and in the MLP.
  Sourced<int64_t> warps, attentionInFlight, mlpInFlight;
  /// Nothing where it was not measured: then such a step is never chosen, only asked for.
  std::optional<PersistentTime> time;
};

/// The same of a CPU.
struct CpuTuning {
  /// Independent sums of a product; positions that attention handles between two updates of the
  /// running maximum.
  Sourced<int64_t> accumulators, positions;
};

/// What the time of kernels on a GPU is computed from (Analysis/TimeModel.h has the formulas).
/// Times are seconds, bandwidths bytes a second.
struct GpuTime {
  /// What long products read weights with, and attention keys and values; what one block alone
  /// reads with at most.
  Sourced<double> productBandwidth, cacheBandwidth, blockBandwidth;
  /// Products: the time in which the memory is idle between one and the next; from the end of the
  /// kernel before to the first multiplication, and what every column of the input adds to it.
  Sourced<double> productGap, productWait, productColumn;
  /// What a product loses for each stage that its ring lacks, for each time that it adds up its
  /// warps' sums before the last, and where a ring like its own fits beside it on a multiprocessor.
  Sourced<double> productStage, productSum, productRival;
  /// What attention takes beside reading the cache, while the next product's weights may stream, if
  /// a key/value head has as many parts as it may; what each part fewer saves of it.
  Sourced<double> attentionWait, attentionPart;
  /// A product next to attention whose registers leave room for it: seconds that it saves, and the
  /// share by which it reads longer; what it saves of them only where attention's ring leaves room,
  /// too, of each attention.
  Sourced<double> besideSaving, besideSlowdown, roomSaving;
  /// What appending keys and values in attention's prologue adds to doing it in an epilogue.
  Sourced<double> append;
  /// Products of many tokens: what they take beside copying and multiplying, and what each stage of
  /// a tile adds; weights that are multiplied with a token, a second, by single warps and by
  /// warpgroups (where there are none, the rates of single warps): integers exactly in two
  /// products, floats as they are, records after unpacking; weights that become operands, a second,
  /// whatever the number of the tile's tokens.
  Sourced<double> matmulWait, matmulStage;
  Sourced<double> unpackIntegers, unpackFloats, unpackRecords;
  Sourced<double> warpIntegers, warpFloats, warpRecords;
  Sourced<double> warpgroupIntegers, warpgroupFloats, warpgroupRecords;
  /// What all blocks copy from L2 with, and one alone.
  Sourced<double> l2Bandwidth, l2BlockBandwidth;
  /// What kernels that go through the rows of many tokens read and write with.
  Sourced<double> rowsBandwidth;
  /// Any other kernel; what every logit adds where a token is chosen; a step, beside its kernels.
  Sourced<double> smallKernel, samplingLogit, step;
  /// What a kernel takes longer that is measured alone, between two events.
  Sourced<double> alone;
};

/// The same of a CPU.
struct CpuTime {
  /// What products read weights with, attention keys and values, and other kernels whatever they
  /// read and write.
  Sourced<double> productBandwidth, cacheBandwidth, rowsBandwidth;
  /// What a kernel takes beside its work: launching it and waiting for the last thread; of a
  /// product, what each column of its input adds.
  Sourced<double> launch, productColumn;
  /// What appending keys and values in attention's prologue adds.
  Sourced<double> append;
  /// What a step takes beside its kernels: inputs, choosing the token, starting the threads.
  Sourced<double> step;
};

/// Elements per second by a format's name, of the whole device.
using FormatRates = std::map<std::string, Sourced<double>>;

struct TargetDescription {
  /// The greatest numbers of a prompt's tokens that steps are made for, ascending; none where
  /// prompts are read token by token.
  Sourced<std::vector<int64_t>> prefillTokens;
  /// The same of the step that gives the logits of all its tokens; 0 where there is none.
  Sourced<int64_t> verifyTokens;
  enum class Kind { Cpu, Gpu };

  /// "h100"; "host" if it was resolved by looking at this machine's CPU.
  std::string name;
  /// For people: "NVIDIA H100 SXM5 80 GB".
  std::string description;
  Kind kind = Kind::Cpu;

  /// Gpu: "sm_90".
  std::string arch;
  /// Cpu: "x86_64-linux-gnu"; avx2, avx512 or avx512_vnni; the features that kernels may use, as
  /// LLVM names them.
  std::string triple, isa;
  std::vector<std::string> features;

  /// Bytes per second that the vendor names, and that a read of a large buffer was seen to reach.
  /// At least one is there; a GPU always has the first.
  std::optional<Sourced<double>> peakBandwidth, readCeiling;
  /// Operations per second (a multiplication and an addition are two) by type: f32, f16, bf16, fp8,
  /// int8. A GPU has f16.
  std::map<std::string, Sourced<double>> operations;
  std::optional<Sourced<int64_t>> memoryBytes;

  /// Gpu only; sizes are bytes.
  Sourced<int64_t> multiprocessors, l2Bytes, sharedBytesPerBlock;

  /// Only the one of `kind` is set.
  GpuTuning gpuTuning;
  CpuTuning cpuTuning;
  /// Gpu; nothing where steps are not tried as one kernel.
  std::optional<PersistentTuning> persistent;
  GpuTime gpuTime;
  CpuTime cpuTime;
  /// Weights that products multiply with one input, by Encoding::name(); cached numbers that
  /// attention multiplies with one query head, by CacheEncoding::name(). Neither is empty.
  FormatRates productRates, attentionRates;
  /// Cpu only: weights of a format multiplied with a token, where there are many; cached numbers
  /// that become operands, once for all query heads of their key/value head. Neither is empty.
  FormatRates matmulRates, attentionOperandRates;

  bool isGpu() const { return kind == Kind::Gpu; }
  /// 90 for "sm_90" and "sm_90a"; 0 for a CPU.
  int computeCapability() const;
  /// Whether kernels may start before their predecessor has ended, blocks share memory in clusters,
  /// and single threads copy whole stages: since sm_90.
  bool hasBulkCopies() const { return computeCapability() >= 90; }
  /// Whether warpgroups multiply: instructions of sm_90a alone (PTX ISA, "wgmma").
  bool hasWarpgroups() const { return arch == "sm_90a"; }
  /// Bytes per second that a floor is computed with: the measured ceiling, or the vendor's number
  /// where there is none.
  double bandwidth() const { return (readCeiling ? readCeiling : peakBandwidth)->value; }
  /// f16 operations for each byte at which a kernel stops being bound by memory: vendor's
  /// operations over vendor's bandwidth. Nothing where one of them is unknown.
  std::optional<double> ridge() const;
};

/// Parses a description; `path` is what errors call it. Every key is checked: unknown and missing
/// ones, types, ranges.
llvm::Expected<TargetDescription> parseTarget(llvm::StringRef text, llvm::StringRef path);

/// Finds a description: "host" (this machine's CPU), a name from the directory of targets, or a
/// path (anything with a slash or that ends in ".json").
llvm::Expected<TargetDescription> loadTarget(llvm::StringRef nameOrPath);

/// The text of the description `nameOrPath` with name, description, read ceiling and times of
/// `calibrated`, which was made from it.
llvm::Expected<std::string> calibratedText(llvm::StringRef nameOrPath,
                                           const TargetDescription &calibrated);

/// Where targets/*.json are: ../share/sluice/targets beside the running executable, else the folder
/// of the source tree that it was built from. Empty if neither exists.
std::string targetDirectory();
/// Names of the descriptions in the directory, sorted; without "host".
std::vector<std::string> targetNames();

/// The widest isa that host kernels exist for, from CPU features as llvm::sys::getHostCPUFeatures()
/// gives them.
llvm::Expected<std::string> isaOfFeatures(const llvm::StringMap<bool> &features);

/// "target" of plan.json: name, kind, and arch or triple, isa and features.
nlohmann::json planTarget(const TargetDescription &target);

} // namespace sluice

#endif // SLUICE_TARGET_TARGETDESCRIPTION_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where what happens to a step's queries, keys and values between their product and attention is
// computed: in the product's epilogue, or in attention's prologue.

#ifndef SLUICE_LIB_TRANSFORMS_ATTENTIONPLACEMENT_H
#define SLUICE_LIB_TRANSFORMS_ATTENTIONPLACEMENT_H

#include "sluice/Analysis/TimeModel.h"

#include "llvm/ADT/SmallPtrSet.h"

#include <array>
#include <optional>
#include <string>

namespace sluice {

/// What to do where both places can compute a layer's rotary embeddings and appends.
enum class PlacementOption { Auto, Epilogue, Prologue };

struct AttentionPlacement {
  /// Whether the prologue appends; then `kept` has the appends of keys and values, and the rotary
  /// embeddings that no epilogue may compute.
  bool prologue = false;
  /// For people.
  std::string reason;
  llvm::SmallPtrSet<mlir::Operation *, 4> kept;
};

/// Follows `value` back through operations that work on single heads and that nothing else reads;
/// `chain` gets them, the last first. Returns what they start from.
mlir::Value followHeads(mlir::Value value, llvm::SmallVectorImpl<mlir::Operation *> &chain);

/// The step's appends of keys and of values, which stand before `attention` in its block; null
/// where an epilogue has them, or nothing.
std::array<model::CacheAppendOp, 2> findAppends(fused::AttentionOp attention);

/// Decides for one attention: where both places can do all, the one that takes less time. Nothing
/// if its function appends nothing to its caches.
std::optional<AttentionPlacement> placeAttention(fused::AttentionOp attention,
                                                 PlacementOption option, const TimeModel &model);

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_ATTENTIONPLACEMENT_H

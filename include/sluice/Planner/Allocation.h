// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Chooses one alternative of every group, so that the costs are least and what they use of a
// limited good fits: the multiple-choice knapsack problem. No MLIR.
//
// Lagrangian relaxation (H. Everett, Generalized Lagrange Multiplier Method, Operations Research
// 11, 1963): for a price p of the good, every group by itself takes the alternative of least
// cost + p * use. The least price at which the sum of the uses is within the limit is found among
// the prices at which some group changes its mind. What is left of the good then is spent by
// exchanging alternatives of one group, or (where there are few) of two, as long as that helps.

#ifndef SLUICE_PLANNER_ALLOCATION_H
#define SLUICE_PLANNER_ALLOCATION_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"

#include <optional>

namespace sluice::planner {

/// One choice that a group has. Both numbers are finite and in whatever units the caller counts.
struct Alternative {
  double cost = 0, use = 0;
};

struct Group {
  llvm::SmallVector<Alternative> alternatives; ///< at least one
  /// Takes what the price says and no part in the exchanges: so that it can be decided apart from
  /// the others, by the price alone.
  bool byPrice = false;
};

struct Allocation {
  llvm::SmallVector<unsigned> choices; ///< of every group, an index into its alternatives
  double cost = 0, use = 0;            ///< the sums
  /// What a unit of the good is worth, in units of cost; 0 where the limit does not bind.
  double price = 0;
};

/// The alternative of least cost + price * use; of equal ones, that of least use, then the first.
unsigned bestAt(const Group &group, double price);

/// The allocation of least cost that was found with a use of at most `limit`; nothing if the
/// smallest uses of all groups exceed it.
std::optional<Allocation> allocate(llvm::ArrayRef<Group> groups, double limit);

/// The least that the groups can use.
double leastUse(llvm::ArrayRef<Group> groups);

} // namespace sluice::planner

#endif // SLUICE_PLANNER_ALLOCATION_H

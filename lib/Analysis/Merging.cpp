// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Merging.h"

#include "dialects/Model/Semantics.h"
#include "sluice/Formats/Records.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallPtrSet.h"

using namespace mlir;
using namespace sluice;

/// What elementwise operations make of a product's results.
static llvm::SmallPtrSet<Value, 16> derivedFrom(Operation *product) {
  llvm::SmallPtrSet<Value, 16> derived(llvm::from_range, product->getResults());
  SmallVector<Value> open(product->getResults());
  while (!open.empty())
    for (Operation *user : open.pop_back_val().getUsers())
      if (model::isElementwise(user))
        for (Value result : user->getResults())
          if (derived.insert(result).second)
            open.push_back(result);
  return derived;
}

bool sluice::areCombined(Operation *product, Operation *other) {
  llvm::SmallPtrSet<Value, 16> first = derivedFrom(product);
  return llvm::any_of(derivedFrom(other), [&](Value value) { return first.contains(value); });
}

bool sluice::mergesWithOtherFormats(const formats::Encoding &encoding) {
  return encoding.isInteger() && formats::RecordShape::problem(encoding).empty();
}

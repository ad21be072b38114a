// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Planner/Allocation.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <tuple>

using namespace llvm;
using namespace sluice::planner;

unsigned sluice::planner::bestAt(const Group &group, double price) {
  assert(!group.alternatives.empty() && "a group without alternatives");
  auto key = [&](const Alternative &a) { return std::tuple(a.cost + price * a.use, a.use); };
  auto best = min_element(group.alternatives, [&](const Alternative &a, const Alternative &b) {
    return key(a) < key(b);
  });
  return best - group.alternatives.begin();
}

double sluice::planner::leastUse(ArrayRef<Group> groups) {
  double sum = 0;
  for (const Group &group : groups)
    sum += min_element(group.alternatives, [](const Alternative &a, const Alternative &b) {
             return a.use < b.use;
           })->use;
  return sum;
}

/// Adds the prices at which `group` goes from one alternative to another: the slopes of the lower
/// convex hull of its points (use, cost), from least use to least cost.
static void addPrices(const Group &group, SmallVectorImpl<double> &prices) {
  SmallVector<Alternative> points(group.alternatives), hull;
  sort(points, [](const Alternative &a, const Alternative &b) {
    return std::tuple(a.use, a.cost) < std::tuple(b.use, b.cost);
  });
  auto slope = [](const Alternative &a, const Alternative &b) {
    return (a.cost - b.cost) / (b.use - a.use);
  };
  for (const Alternative &point : points) {
    if (!hull.empty() && point.cost >= hull.back().cost)
      continue; // Costs no less and uses no less.
    while (hull.size() > 1 &&
           slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), point))
      hull.pop_back();
    hull.push_back(point);
  }
  for (size_t i = 1; i < hull.size(); ++i)
    prices.push_back(slope(hull[i - 1], hull[i]));
}

/// With more groups than this, what the price leaves of the good is too little to look for pairs.
static constexpr size_t kFewGroups = 64;

namespace {
/// An allocation that is being improved.
class Exchanges {
public:
  Exchanges(ArrayRef<Group> groups, double limit, Allocation &allocation)
      : groups(groups), limit(limit), allocation(allocation) {}

  /// Exchanges alternatives until no single one, and of few groups no pair, lowers the costs.
  void run() {
    // Every exchange lowers the costs, so this ends; the bound is for very large problems.
    for (int round = 0; round < 64; ++round)
      if (!improveOne() && !(groups.size() <= kFewGroups && improveTwo()))
        return;
  }

private:
  const Alternative &chosen(size_t group) const {
    return groups[group].alternatives[allocation.choices[group]];
  }
  double slack() const { return limit - allocation.use; }
  void change(size_t group, unsigned alternative) {
    const Alternative &to = groups[group].alternatives[alternative], from = chosen(group);
    allocation.cost += to.cost - from.cost;
    allocation.use += to.use - from.use;
    allocation.choices[group] = alternative;
  }
  /// What has to be gained for an exchange: more than what is lost by rounding.
  double least() const { return 1e-12 * std::abs(allocation.cost); }

  bool improveOne();
  bool improveTwo();

  ArrayRef<Group> groups;
  double limit;
  Allocation &allocation;
};
} // namespace

bool Exchanges::improveOne() {
  bool improved = false;
  while (true) {
    double best = least();
    std::optional<std::pair<size_t, unsigned>> exchange;
    for (auto [index, group] : enumerate(groups)) {
      if (group.byPrice)
        continue;
      for (auto [number, alternative] : enumerate(group.alternatives)) {
        double gain = chosen(index).cost - alternative.cost;
        if (gain > best && alternative.use - chosen(index).use <= slack()) {
          best = gain;
          exchange = {index, number};
        }
      }
    }
    if (!exchange)
      return improved;
    change(exchange->first, exchange->second);
    improved = true;
  }
}

bool Exchanges::improveTwo() {
  bool improved = false;
  for (size_t giver = 0; giver < groups.size(); ++giver) {
    if (groups[giver].byPrice)
      continue;
    // What the giver may free, for what loss; only the least loss for each amount matters.
    double best = least();
    std::optional<std::tuple<unsigned, size_t, unsigned>> exchange;
    for (auto [gives, less] : enumerate(groups[giver].alternatives)) {
      double freed = chosen(giver).use - less.use, loss = less.cost - chosen(giver).cost;
      if (freed <= 0)
        continue;
      for (size_t taker = 0; taker < groups.size(); ++taker) {
        if (taker == giver || groups[taker].byPrice)
          continue;
        for (auto [takes, more] : enumerate(groups[taker].alternatives)) {
          double gain = chosen(taker).cost - more.cost - loss;
          if (gain > best && more.use - chosen(taker).use <= slack() + freed) {
            best = gain;
            exchange = {gives, taker, takes};
          }
        }
      }
    }
    if (!exchange)
      continue;
    auto [gives, taker, takes] = *exchange;
    change(giver, gives);
    change(taker, takes);
    improved = true;
  }
  return improved;
}

std::optional<Allocation> sluice::planner::allocate(ArrayRef<Group> groups, double limit) {
  auto at = [&](double price) {
    Allocation allocation;
    allocation.price = price;
    for (const Group &group : groups) {
      allocation.choices.push_back(bestAt(group, price));
      const Alternative &best = group.alternatives[allocation.choices.back()];
      allocation.cost += best.cost;
      allocation.use += best.use;
    }
    return allocation;
  };
  if (leastUse(groups) > limit)
    return std::nullopt;
  SmallVector<double> prices = {0};
  for (const Group &group : groups)
    addPrices(group, prices);
  sort(prices);
  // At the greatest price all groups use least: ties go to the smaller use. Rounding of
  // cost + price * use may break such a tie the other way, so prices are a little higher.
  auto raised = [](double price) { return price * (1 + 1e-9); };
  size_t low = 0, high = prices.size() - 1;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (at(raised(prices[middle])).use <= limit)
      high = middle;
    else
      low = middle + 1;
  }
  // Exchanges may end in a worse place from this price than from a little above it: with few
  // groups, what is left of the good is much.
  size_t starts = groups.size() <= kFewGroups ? 32 : 1;
  std::optional<Allocation> best;
  for (size_t i = high; i < std::min(prices.size(), high + starts); ++i) {
    Allocation allocation = at(raised(prices[i]));
    if (allocation.use > limit) // by rounding
      continue;
    Exchanges(groups, limit, allocation).run();
    if (!best || allocation.cost < best->cost)
      best = std::move(allocation);
  }
  return best;
}

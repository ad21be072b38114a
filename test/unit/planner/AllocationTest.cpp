// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Planner/Allocation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

using namespace sluice::planner;

namespace {

/// The least cost within the limit, by trying everything.
double exhaustive(llvm::ArrayRef<Group> groups, double limit) {
  if (groups.empty())
    return limit >= 0 ? 0 : std::numeric_limits<double>::infinity();
  double best = std::numeric_limits<double>::infinity();
  for (const Alternative &alternative : groups.front().alternatives)
    best =
        std::min(best, alternative.cost + exhaustive(groups.drop_front(), limit - alternative.use));
  return best;
}

/// Alternatives as formats are: each bit fewer saves time and multiplies the error by about four.
Group formatsOf(std::mt19937 &random) {
  std::uniform_real_distribution<double> unit(0, 1);
  double size = std::exp(4 * unit(random)), error = std::exp(6 * unit(random));
  Group group;
  for (double bits : {16.0, 8.1, 6.2, 5.2, 4.5, 4.1, 3.2})
    group.alternatives.push_back({size * bits * (1 + 0.05 * unit(random)),
                                  error * std::exp2(-2 * bits) * (1 + unit(random))});
  return group;
}

TEST(Allocation, IsWithinOnePercentOfTheBest) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 60; ++trial) {
    llvm::SmallVector<Group> groups;
    double least = 0, most = 0;
    for (int i = 0; i < 6; ++i) {
      groups.push_back(formatsOf(random));
      least += groups.back().alternatives.front().use;
      most += groups.back().alternatives.back().use;
    }
    double limit = std::exp(std::log(least * 1.5) + (std::log(most) - std::log(least * 1.5)) *
                                                        std::uniform_real_distribution()(random));
    std::optional<Allocation> found = allocate(groups, limit);
    ASSERT_TRUE(found);
    EXPECT_LE(found->use, limit);
    EXPECT_LE(found->cost, 1.01 * exhaustive(groups, limit)) << "trial " << trial;
  }
}

TEST(Allocation, SumsAreThoseOfTheChoices) {
  std::mt19937 random(2);
  llvm::SmallVector<Group> groups;
  for (int i = 0; i < 40; ++i)
    groups.push_back(formatsOf(random));
  std::optional<Allocation> found = allocate(groups, 3 * leastUse(groups));
  ASSERT_TRUE(found);
  ASSERT_EQ(found->choices.size(), groups.size());
  double cost = 0, use = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    cost += groups[i].alternatives[found->choices[i]].cost;
    use += groups[i].alternatives[found->choices[i]].use;
  }
  EXPECT_NEAR(cost, found->cost, 1e-9 * cost);
  EXPECT_NEAR(use, found->use, 1e-9 * use);
}

TEST(Allocation, TakesTheCheapestWhereTheLimitDoesNotBind) {
  llvm::SmallVector<Group> groups(3);
  for (Group &group : groups)
    group.alternatives = {{3, 0}, {1, 2}, {2, 1}};
  std::optional<Allocation> found = allocate(groups, 6);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->cost, 3);
  EXPECT_EQ(found->price, 0);
}

TEST(Allocation, SpendsWhatThePriceLeaves) {
  // The price alone takes (10, 0) for both: between its alternatives the limit falls.
  llvm::SmallVector<Group> groups(2);
  groups[0].alternatives = {{10, 0}, {0, 10}};
  groups[1].alternatives = {{10, 0}, {6, 5}, {0, 10}};
  std::optional<Allocation> found = allocate(groups, 5);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->cost, 16);
  EXPECT_EQ(found->choices[1], 1u);
}

TEST(Allocation, GroupsByPriceFollowThePriceAlone) {
  std::mt19937 random(3);
  llvm::SmallVector<Group> groups;
  for (int i = 0; i < 20; ++i) {
    groups.push_back(formatsOf(random));
    groups.back().byPrice = i % 3 == 0;
  }
  std::optional<Allocation> found = allocate(groups, 10 * leastUse(groups));
  ASSERT_TRUE(found);
  for (size_t i = 0; i < groups.size(); i += 3)
    EXPECT_EQ(found->choices[i], bestAt(groups[i], found->price));
}

TEST(Allocation, SaysWhenNothingFits) {
  Group group;
  group.alternatives = {{1, 2}, {5, 1}};
  EXPECT_FALSE(allocate({group, group}, 1.9));
  EXPECT_TRUE(allocate({group, group}, 2));
  EXPECT_EQ(leastUse({group, group}), 2);
}

TEST(Allocation, NothingToChoose) {
  std::optional<Allocation> found = allocate({}, 0);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->cost, 0);
}
} // namespace

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Protocols that work, and the same with one thing wrong.

#include "dialects/Fused/Protocol.h"

#include "llvm/ADT/STLExtras.h"

#include "gtest/gtest.h"

using namespace sluice::fused;
using Kind = ProtocolEvent::Kind;

namespace {

std::string check(const Protocol &protocol) { return llvm::toString(checkProtocol(protocol)); }

ProtocolEvent add(int64_t exchange, int64_t round, int64_t begin, int64_t end) {
  return {Kind::Add, exchange, round, begin, end, 0, 0, 0};
}
ProtocolEvent waitSum(int64_t exchange, int64_t round, int64_t begin, int64_t end, int64_t count) {
  return {Kind::WaitSum, exchange, round, begin, end, count, 0, 0};
}
ProtocolEvent send(int64_t exchange, int64_t round, int64_t begin, int64_t end, int64_t first,
                   int64_t last) {
  return {Kind::Send, exchange, round, begin, end, 0, first, last};
}
ProtocolEvent wait(int64_t exchange, int64_t round, int64_t count) {
  return {Kind::WaitGather, exchange, round, 0, 0, count, 0, 0};
}
ProtocolEvent done(int64_t exchange, int64_t round) {
  return {Kind::Done, exchange, round, 0, 0, 0, 0, 0};
}

/// Two clusters of two blocks. In each of four rounds every block sends half of 'a' to its cluster
/// and then half of 'b', and adds to its half of 'even' or 'odd', which it reads.
Protocol sample() {
  Protocol protocol;
  protocol.clusterBlocks = 2;
  protocol.exchanges = {{"even", Exchange::Kind::Sum, 32},
                        {"a", Exchange::Kind::Gather, 64},
                        {"b", Exchange::Kind::Gather, 64},
                        {"odd", Exchange::Kind::Sum, 32}};
  for (int64_t block = 0; block < 4; ++block) {
    std::vector<ProtocolEvent> &events = protocol.blocks.emplace_back();
    int64_t rank = block % 2, first = block - rank;
    for (int64_t round = 0; round < 4; ++round) {
      events.push_back(send(1, round, rank * 32, rank * 32 + 32, first, first + 2));
      events.push_back(wait(1, round, 64));
      events.push_back(done(1, round));
      events.push_back(send(2, round, rank * 32, rank * 32 + 32, first, first + 2));
      events.push_back(wait(2, round, 64));
      events.push_back(done(2, round));
      int64_t sum = round % 2 ? 3 : 0;
      events.push_back(add(sum, round / 2, rank * 16, rank * 16 + 16));
      events.push_back(waitSum(sum, round / 2, rank * 16, rank * 16 + 16, 2 * (round / 2 + 1)));
    }
  }
  return protocol;
}

/// The n-th event of a kind of a block.
ProtocolEvent &find(Protocol &protocol, int64_t block, Kind kind, int64_t n = 0) {
  for (ProtocolEvent &event : protocol.blocks[block])
    if (event.kind == kind && n-- == 0)
      return event;
  abort();
}

void erase(Protocol &protocol, int64_t block, Kind kind, int64_t n = 0) {
  std::vector<ProtocolEvent> &events = protocol.blocks[block];
  events.erase(events.begin() + (&find(protocol, block, kind, n) - events.data()));
}

} // namespace

TEST(Protocol, Works) { EXPECT_EQ(check(sample()), ""); }

TEST(Protocol, AdditionsAreCounted) {
  Protocol missing = sample();
  erase(missing, 3, Kind::Add, 2);
  EXPECT_EQ(check(missing),
            "block 1 waits for 4 additions to word 16 of 'even' (round 1), 3 are made");
  Protocol twice = sample();
  twice.blocks[2].push_back(add(3, 1, 3, 4));
  EXPECT_EQ(check(twice), "block 0 waits for 4 additions to word 3 of 'odd' (round 1), 5 are made");
  Protocol early = sample();
  find(early, 2, Kind::WaitSum, 2).count = 3;
  EXPECT_EQ(check(early),
            "block 2 waits for 3 additions to word 0 of 'even' (round 1), 4 are made");
}

TEST(Protocol, CountersHaveEightBits) {
  auto many = [](int64_t blocks) {
    Protocol protocol;
    protocol.exchanges = {{"sum", Exchange::Kind::Sum, 1}};
    for (int64_t block = 0; block < blocks; ++block)
      protocol.blocks.push_back({add(0, 0, 0, 1)});
    protocol.blocks[0].push_back(waitSum(0, 0, 0, 1, blocks));
    return check(protocol);
  };
  EXPECT_EQ(many(255), "");
  EXPECT_EQ(many(256), "block 0 waits for 256 additions to 'sum' (round 0) behind 0: a word counts "
                       "1 to 255");
}

TEST(Protocol, BytesAreCounted) {
  Protocol missing = sample();
  erase(missing, 0, Kind::Send, 0);
  EXPECT_EQ(check(missing), "block 0 waits for 64 bytes of 'a' (round 0), 32 are sent");
  Protocol twice = sample();
  find(twice, 1, Kind::Send, 1).begin = 24;
  EXPECT_EQ(check(twice), "byte 24 of 'b' (round 0) of block 0 is sent by block 0 and by block 1");
  Protocol unread = sample();
  unread.blocks[3].push_back(send(1, 4, 0, 8, 2, 3));
  EXPECT_EQ(check(unread), "block 3 sends 'a' (round 4) to block 2, which does not wait for it");
  Protocol skipped = sample();
  erase(skipped, 2, Kind::WaitGather, 2);
  EXPECT_EQ(check(skipped), "block 2 has read 'a' (round 1), but waited for round 0");
  Protocol silent = sample();
  erase(silent, 2, Kind::Done, 7);
  EXPECT_EQ(check(silent), "block 2 does not say when it has read 'b' (round 3)");
}

TEST(Protocol, WhatDoesNotExist) {
  Protocol far = sample();
  find(far, 1, Kind::Send).endTarget = 3;
  EXPECT_EQ(check(far), "block 1 sends 'a' (round 0) to block 2, which is not of its cluster");
  Protocol wide = sample();
  find(wide, 1, Kind::Add).end = 33;
  EXPECT_EQ(check(wide), "block 1: 'even' (round 0) has no 16 to 33: its size is 32");
  Protocol kind = sample();
  find(kind, 1, Kind::Add).exchange = 1;
  EXPECT_EQ(check(kind), "block 1: 'a' (round 0) is used as another kind of exchange");
  Protocol index = sample();
  find(index, 1, Kind::Add).exchange = 4;
  EXPECT_EQ(check(index), "block 1: exchange 4 does not exist");
}

TEST(Protocol, Circles) {
  // Each block of the second cluster reads the sum before it adds to it.
  Protocol circle = sample();
  for (int64_t block : {2, 3}) {
    std::vector<ProtocolEvent> &events = circle.blocks[block];
    std::swap(events[6], events[7]);
  }
  EXPECT_EQ(check(circle),
            "deadlock: block 0 waits for 'even' (round 0); block 1 waits for 'even' (round 0); "
            "block 2 waits for 'even' (round 0); block 3 waits for 'even' (round 0)");
}

TEST(Protocol, BuffersUsedTooEarly) {
  // Without the second exchange, nobody knows whether its peer has read the first one.
  Protocol buffer = sample();
  for (std::vector<ProtocolEvent> &events : buffer.blocks)
    llvm::erase_if(events, [](const ProtocolEvent &event) { return event.exchange == 2; });
  EXPECT_EQ(check(buffer), "block 1 may send 'a' (round 1) before block 0 has read round 0");
  // Block 0 reads on while it already sends what its peer goes on with.
  Protocol late = sample();
  std::swap(late.blocks[0][2], late.blocks[0][3]);
  EXPECT_EQ(check(late), "block 1 may send 'a' (round 1) before block 0 has read round 0");
}

TEST(Protocol, SumsAddedToTooEarly) {
  // One array for all rounds: the second cluster may be a round ahead of the first one's readers.
  Protocol sums = sample();
  for (std::vector<ProtocolEvent> &events : sums.blocks)
    for (ProtocolEvent &event : events)
      if (event.exchange == 0 || event.exchange == 3) {
        event.round = event.round * 2 + (event.exchange == 3);
        event.exchange = 0;
        if (event.kind == Kind::WaitSum)
          event.count = 2 * (event.round + 1);
      }
  EXPECT_EQ(check(sums), "block 2 may add to 'even' (round 1) before block 0 has read round 0");
}

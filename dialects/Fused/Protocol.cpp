// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Protocol.h"

#include "llvm/ADT/STLExtras.h"

#include <map>

using namespace sluice::fused;
using llvm::createStringError;
using llvm::Error;
using llvm::Twine;
using Kind = ProtocolEvent::Kind;

namespace {

/// An event's block and its index there.
struct Place {
  int64_t block, index;
};

/// Adds or sends of a round of one exchange (of one block's buffer).
struct Production {
  Place place;
  int64_t round, begin, end;
};

class Checker {
public:
  explicit Checker(const Protocol &protocol) : protocol(protocol) {}

  Error check() {
    if (Error error = collect())
      return error;
    if (Error error = checkCounts())
      return error;
    if (Error error = order())
      return error;
    return checkReuse();
  }

private:
  const ProtocolEvent &at(Place place) const { return protocol.blocks[place.block][place.index]; }
  std::string nameOf(const ProtocolEvent &event) const {
    return ("'" + protocol.exchanges[event.exchange].name + "' (round " + Twine(event.round) + ")")
        .str();
  }
  /// What is produced for a wait of `block`, all rounds.
  const std::vector<Production> &productionsFor(const ProtocolEvent &wait, int64_t block) {
    bool shared = protocol.exchanges[wait.exchange].kind == Exchange::Kind::Sum;
    return productions[{wait.exchange, shared ? 0 : block}];
  }

  Error collect() {
    for (int64_t block = 0, e = protocol.blocks.size(); block < e; ++block) {
      std::vector<int64_t> latest(protocol.exchanges.size(), -1);
      for (int64_t index = 0, n = protocol.blocks[block].size(); index < n; ++index)
        if (Error error = collect({block, index}, latest))
          return error;
    }
    return Error::success();
  }

  /// `latest`: of each exchange, the round that the block waited for last.
  Error collect(Place place, std::vector<int64_t> &latest) {
    const ProtocolEvent &event = at(place);
    int64_t block = place.block, blocks = protocol.blocks.size();
    if (event.exchange < 0 || event.exchange >= int64_t(protocol.exchanges.size()))
      return createStringError("block " + Twine(block) + ": exchange " + Twine(event.exchange) +
                               " does not exist");
    const Exchange &exchange = protocol.exchanges[event.exchange];
    bool ofSums = event.kind == Kind::Add || event.kind == Kind::WaitSum;
    if (ofSums != (exchange.kind == Exchange::Kind::Sum))
      return createStringError("block " + Twine(block) + ": " + nameOf(event) +
                               " is used as another kind of exchange");
    bool ranged = ofSums || event.kind == Kind::Send;
    if (ranged && (event.begin < 0 || event.begin >= event.end || event.end > exchange.size))
      return createStringError("block " + Twine(block) + ": " + nameOf(event) + " has no " +
                               Twine(event.begin) + " to " + Twine(event.end) + ": its size is " +
                               Twine(exchange.size));
    int64_t &last = latest[event.exchange];
    switch (event.kind) {
    case Kind::Add:
      productions[{event.exchange, 0}].push_back({place, event.round, event.begin, event.end});
      break;
    case Kind::Send:
      for (int64_t target = event.firstTarget; target < event.endTarget; ++target) {
        if (target < 0 || target >= blocks ||
            target / protocol.clusterBlocks != block / protocol.clusterBlocks)
          return createStringError("block " + Twine(block) + " sends " + nameOf(event) +
                                   " to block " + Twine(target) + ", which is not of its cluster");
        productions[{event.exchange, target}].push_back(
            {place, event.round, event.begin, event.end});
      }
      break;
    case Kind::WaitSum:
    case Kind::WaitGather:
      if (event.kind == Kind::WaitGather && event.round != last + 1)
        return createStringError("block " + Twine(block) + " waits for " + nameOf(event) +
                                 " behind round " + Twine(last));
      if (event.kind == Kind::WaitGather)
        last = event.round;
      waits.push_back(place);
      break;
    case Kind::Done:
      if (event.round != last)
        return createStringError("block " + Twine(block) + " has read " + nameOf(event) +
                                 ", but waited for round " + Twine(last));
      done[{event.exchange, block, event.round}] = place.index;
      break;
    }
    return Error::success();
  }

  Error checkCounts() {
    std::map<std::pair<int64_t, int64_t>, int64_t> waited, counted;
    for (Place place : waits) {
      const ProtocolEvent &wait = at(place);
      if (wait.kind == Kind::WaitSum) {
        int64_t &before = counted[{wait.exchange, place.block}];
        if (wait.count <= before || wait.count - before > kMostAdditions)
          return createStringError("block " + Twine(place.block) + " waits for " +
                                   Twine(wait.count) + " additions to " + nameOf(wait) +
                                   " behind " + Twine(before) + ": a word counts 1 to " +
                                   Twine(kMostAdditions));
        before = wait.count;
      }
      const std::vector<Production> &made = productionsFor(wait, place.block);
      if (wait.kind == Kind::WaitSum) {
        // Additions change at ends of ranges only.
        std::map<int64_t, int64_t> changes = {{wait.begin, 0}};
        for (const Production &add : made)
          if (add.round <= wait.round && add.begin < wait.end && wait.begin < add.end) {
            ++changes[std::max(add.begin, wait.begin)];
            --changes[std::min(add.end, wait.end)];
          }
        int64_t count = 0;
        for (auto [word, change] : changes) {
          count += change;
          if (word < wait.end && count != wait.count)
            return createStringError("block " + Twine(place.block) + " waits for " +
                                     Twine(wait.count) + " additions to word " + Twine(word) +
                                     " of " + nameOf(wait) + ", " + Twine(count) + " are made");
        }
        continue;
      }
      waited[{wait.exchange, place.block}] = wait.round + 1;
      std::vector<Production> sends;
      int64_t bytes = 0;
      for (const Production &send : made)
        if (send.round == wait.round) {
          sends.push_back(send);
          bytes += send.end - send.begin;
        }
      llvm::sort(sends, [](const Production &a, const Production &b) { return a.begin < b.begin; });
      for (size_t i = 1; i < sends.size(); ++i)
        if (sends[i].begin < sends[i - 1].end)
          return createStringError("byte " + Twine(sends[i].begin) + " of " + nameOf(wait) +
                                   " of block " + Twine(place.block) + " is sent by block " +
                                   Twine(sends[i - 1].place.block) + " and by block " +
                                   Twine(sends[i].place.block));
      if (bytes != wait.count)
        return createStringError("block " + Twine(place.block) + " waits for " + Twine(wait.count) +
                                 " bytes of " + nameOf(wait) + ", " + Twine(bytes) + " are sent");
      if (!done.count({wait.exchange, place.block, wait.round}))
        return createStringError("block " + Twine(place.block) + " does not say when it has read " +
                                 nameOf(wait));
    }
    for (const auto &[key, made] : productions)
      if (protocol.exchanges[key.first].kind == Exchange::Kind::Gather)
        for (const Production &send : made)
          if (send.round >= waited[key])
            return createStringError("block " + Twine(send.place.block) + " sends " +
                                     nameOf(at(send.place)) + " to block " + Twine(key.second) +
                                     ", which does not wait for it");
    return Error::success();
  }

  /// Finds an order of all events, and by block how many of its events each event comes after.
  Error order() {
    size_t blocks = protocol.blocks.size();
    seen.resize(blocks);
    std::vector<int64_t> next(blocks, 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t block = 0; block < blocks; ++block)
        while (next[block] < int64_t(protocol.blocks[block].size())) {
          Place place{int64_t(block), next[block]};
          const ProtocolEvent &event = at(place);
          std::vector<int64_t> after =
              place.index ? seen[block].back() : std::vector<int64_t>(blocks, 0);
          bool ready = true;
          if (event.kind == Kind::WaitSum || event.kind == Kind::WaitGather)
            for (const Production &made : productionsFor(event, block)) {
              bool wanted = event.kind == Kind::WaitSum
                                ? made.round <= event.round && made.begin < event.end &&
                                      event.begin < made.end
                                : made.round == event.round;
              if (!wanted)
                continue;
              if (made.place.index >= next[made.place.block]) {
                ready = false;
                break;
              }
              const std::vector<int64_t> &theirs = seen[made.place.block][made.place.index];
              for (size_t i = 0; i < blocks; ++i)
                after[i] = std::max(after[i], theirs[i]);
            }
          if (!ready)
            break;
          after[block] = place.index + 1;
          seen[block].push_back(std::move(after));
          ++next[block];
          moved = true;
        }
    }
    std::string stuck;
    unsigned count = 0;
    for (size_t block = 0; block < blocks; ++block)
      if (next[block] < int64_t(protocol.blocks[block].size()) && count++ < 4)
        stuck += (count > 1 ? "; block " : "block ") + std::to_string(block) + " waits for " +
                 nameOf(at({int64_t(block), next[block]}));
    if (!count)
      return Error::success();
    return createStringError("deadlock: " + stuck +
                             (count > 4 ? "; and " + Twine(count - 4) + " more" : Twine("")));
  }

  /// Whether `first` has happened whenever `second` does.
  bool isBefore(Place first, Place second) const {
    return seen[second.block][second.index][first.block] > first.index;
  }

  Error checkReuse() {
    for (Place place : waits) {
      const ProtocolEvent &wait = at(place);
      Place read = place;
      if (wait.kind == Kind::WaitGather)
        read.index = done.at({wait.exchange, place.block, wait.round});
      for (const Production &made : productionsFor(wait, place.block)) {
        if (made.round <= wait.round ||
            (wait.kind == Kind::WaitSum && (made.begin >= wait.end || wait.begin >= made.end)) ||
            isBefore(read, made.place))
          continue;
        return createStringError("block " + Twine(made.place.block) + " may " +
                                 (wait.kind == Kind::WaitSum ? "add to " : "send ") +
                                 nameOf(at(made.place)) + " before block " + Twine(place.block) +
                                 " has read round " + Twine(wait.round));
      }
    }
    return Error::success();
  }

  const Protocol &protocol;
  /// By exchange and, of a gather, block.
  std::map<std::pair<int64_t, int64_t>, std::vector<Production>> productions;
  std::vector<Place> waits;
  /// By exchange, block and round, the index of the event.
  std::map<std::tuple<int64_t, int64_t, int64_t>, int64_t> done;
  /// By block and event: of each block, how many of its events have happened before or are the
  /// event itself.
  std::vector<std::vector<std::vector<int64_t>>> seen;
};

} // namespace

Error sluice::fused::checkProtocol(const Protocol &protocol) { return Checker(protocol).check(); }

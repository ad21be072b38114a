// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "SharedShadow.h"

#include <algorithm>

using namespace sluice::emulator;

/// Up to so many readers, searching a list is fast enough.
static constexpr size_t shortList = 12;

void SharedShadow::clear(Readers &readers) {
  if (!readers.places.empty())
    for (const Reader &reader : readers.list)
      readers.places[reader.actor] = 0;
  readers.list.clear();
}

void SharedShadow::addReader(Readers &readers, const Access &access) {
  Reader mine = {access.actor, access.clock, access.location};
  if (readers.list.size() <= shortList) {
    for (Reader &reader : readers.list)
      if (reader.actor == access.actor) {
        reader = mine;
        return;
      }
    // A write that is ordered after this read is ordered after those that this one is ordered
    // after.
    std::erase_if(readers.list,
                  [&](const Reader &reader) { return access.seen[reader.actor] >= reader.clock; });
    readers.list.push_back(mine);
    if (readers.list.size() <= shortList)
      return;
    readers.places.resize(actors);
    for (size_t i = 0; i < readers.list.size(); ++i)
      readers.places[readers.list[i].actor] = i + 1;
    return;
  }
  uint16_t &place = readers.places[access.actor];
  if (place) {
    readers.list[place - 1] = mine;
    return;
  }
  readers.list.push_back(mine);
  place = readers.list.size();
}

void SharedShadow::reset(uint32_t bytes, uint32_t newActors) {
  if (newActors != actors)
    lists.clear();
  actors = newActors;
  cells.assign((bytes + 3) / 4, Cell());
  quads.clear();
  freeLists.clear();
  for (uint32_t i = 0; i < lists.size(); ++i) {
    clear(lists[i]);
    freeLists.push_back(i);
  }
}

uint32_t SharedShadow::newList() {
  if (freeLists.empty()) {
    lists.emplace_back();
    return lists.size() - 1;
  }
  uint32_t index = freeLists.back();
  freeLists.pop_back();
  return index;
}

void SharedShadow::forgetReaders(Cell &cell) {
  if ((cell.reader & TagMask) == Several) {
    uint32_t index = cell.reader & ~TagMask;
    clear(lists[index]);
    freeLists.push_back(index);
  }
  cell.reader = Nobody;
}

void SharedShadow::split(Cell &cell) {
  std::array<Cell, 4> parts;
  for (int i = 0; i < 4; ++i) {
    parts[i] = cell;
    if (i > 0 && (cell.reader & TagMask) == Several) {
      uint32_t copy = newList();
      lists[copy] = lists[cell.reader & ~TagMask];
      parts[i].reader = Several | copy;
    }
  }
  quads.push_back(parts);
  cell.writer = Split | uint32_t(quads.size() - 1);
}

template <typename Visit>
Conflict SharedShadow::visit(uint32_t offset, uint32_t bytes, Visit visitCell) {
  Conflict conflict;
  uint32_t end = offset + bytes;
  while (offset < end) {
    Cell &cell = cells[offset / 4];
    uint32_t inCell = std::min(end, offset / 4 * 4 + 4) - offset;
    if ((cell.writer & TagMask) != Split) {
      if (inCell == 4) {
        if ((conflict.kind = visitCell(cell, conflict)) != Conflict::None) {
          conflict.offset = offset;
          return conflict;
        }
        offset += 4;
        continue;
      }
      split(cell);
    }
    uint32_t quad = cell.writer & ~TagMask;
    for (uint32_t i = 0; i < inCell; ++i, ++offset)
      if ((conflict.kind = visitCell(quads[quad][offset % 4], conflict)) != Conflict::None) {
        conflict.offset = offset;
        return conflict;
      }
  }
  return conflict;
}

Conflict::Kind SharedShadow::readCell(Cell &cell, const Access &access, Conflict &conflict) {
  uint32_t tag = cell.writer & TagMask, writer = cell.writer & ~TagMask;
  conflict.actor = writer, conflict.location = cell.writeLocation;
  switch (tag) {
  case Nobody:
    return Conflict::Uninitialised;
  case Copy:
    return Conflict::InFlight;
  case Object:
    return Conflict::Barrier;
  default:
    if (writer != access.actor && access.seen[writer] < cell.writeClock &&
        !(tag == Atomic && access.atomic))
      return Conflict::AfterWrite;
  }
  if ((cell.reader & TagMask) == Several) {
    addReader(lists[cell.reader & ~TagMask], access);
    return Conflict::None;
  }
  if (cell.reader != Nobody && cell.reader != access.actor &&
      access.seen[cell.reader] < cell.readClock) {
    uint32_t index = newList();
    lists[index].list = {{cell.reader, cell.readClock, cell.readLocation},
                         {access.actor, access.clock, access.location}};
    cell.reader = Several | index;
    return Conflict::None;
  }
  cell.reader = access.actor;
  cell.readClock = access.clock;
  cell.readLocation = access.location;
  return Conflict::None;
}

Conflict::Kind SharedShadow::writeCell(Cell &cell, const Access &access, uint32_t newTag,
                                       Conflict &conflict) {
  uint32_t tag = cell.writer & TagMask, writer = cell.writer & ~TagMask;
  conflict.actor = writer, conflict.location = cell.writeLocation;
  switch (tag) {
  case Nobody:
    break;
  case Copy:
    return Conflict::InFlight;
  case Object:
    return Conflict::Barrier;
  default:
    if (writer != access.actor && access.seen[writer] < cell.writeClock &&
        !(tag == Atomic && access.atomic))
      return Conflict::AfterWrite;
  }
  auto ordered = [&](uint32_t actor, uint32_t clock, uint32_t location) {
    if (actor == access.actor || access.seen[actor] >= clock)
      return true;
    conflict.actor = actor, conflict.location = location;
    return false;
  };
  if ((cell.reader & TagMask) == Several) {
    for (const Reader &reader : lists[cell.reader & ~TagMask].list)
      if (!ordered(reader.actor, reader.clock, reader.location))
        return Conflict::AfterRead;
  } else if (cell.reader != Nobody && !ordered(cell.reader, cell.readClock, cell.readLocation)) {
    return Conflict::AfterRead;
  }
  forgetReaders(cell);
  cell.writer = newTag | access.actor;
  cell.writeClock = access.clock;
  cell.writeLocation = access.location;
  return Conflict::None;
}

Conflict SharedShadow::read(uint32_t offset, uint32_t bytes, const Access &access) {
  return visit(offset, bytes,
               [&](Cell &cell, Conflict &conflict) { return readCell(cell, access, conflict); });
}

Conflict SharedShadow::write(uint32_t offset, uint32_t bytes, const Access &access) {
  uint32_t tag = access.atomic ? Atomic : Plain;
  return visit(offset, bytes, [&](Cell &cell, Conflict &conflict) {
    return writeCell(cell, access, tag, conflict);
  });
}

Conflict SharedShadow::startCopy(uint32_t offset, uint32_t bytes, const Access &access) {
  return visit(offset, bytes, [&](Cell &cell, Conflict &conflict) {
    return writeCell(cell, access, Copy, conflict);
  });
}

void SharedShadow::finishCopy(uint32_t offset, uint32_t bytes, uint32_t actor, uint32_t clock) {
  visit(offset, bytes, [&](Cell &cell, Conflict &) {
    cell.writer = actor;
    cell.writeClock = clock;
    return Conflict::None;
  });
}

Conflict SharedShadow::makeBarrier(uint32_t offset, const Access &access) {
  return visit(offset, 8, [&](Cell &cell, Conflict &conflict) {
    return writeCell(cell, access, Object, conflict);
  });
}

void SharedShadow::dropBarrier(uint32_t offset) {
  visit(offset, 8, [&](Cell &cell, Conflict &) {
    cell = Cell();
    return Conflict::None;
  });
}

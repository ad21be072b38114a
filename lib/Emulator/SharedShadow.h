// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Who last wrote and read each byte of a block's shared memory, and whether an access is ordered
// after them. The method is FastTrack (Flanagan, Freund: "FastTrack: Efficient and Precise Dynamic
// Race Detection", PLDI 2009): exact for the schedule that ran.

#ifndef SLUICE_LIB_EMULATOR_SHAREDSHADOW_H
#define SLUICE_LIB_EMULATOR_SHAREDSHADOW_H

#include <array>
#include <cstdint>
#include <vector>

namespace sluice::emulator {

/// An access, and the clock of the thread that makes it.
struct Access {
  uint32_t actor = 0;
  uint32_t clock = 0;
  /// The thread's clock: by actor, how far the thread has seen it.
  const uint32_t *seen = nullptr;
  /// Location id of the operation, for messages.
  uint32_t location = 0;
  bool atomic = false;
};

struct Conflict {
  enum Kind : uint8_t {
    None,
    Uninitialised, ///< read of a byte that nobody wrote
    InFlight,      ///< the byte is the destination of a copy that has not completed
    Barrier,       ///< the byte belongs to an mbarrier object
    AfterWrite,    ///< not ordered after the write by `actor`
    AfterRead,     ///< a write that is not ordered after the read by `actor`
  };
  Kind kind = None;
  /// Byte of shared memory.
  uint32_t offset = 0;
  uint32_t actor = 0;
  uint32_t location = 0;
};

class SharedShadow {
public:
  /// All bytes become uninitialised. Actors are below `actors`.
  void reset(uint32_t bytes, uint32_t actors);

  Conflict read(uint32_t offset, uint32_t bytes, const Access &access);
  Conflict write(uint32_t offset, uint32_t bytes, const Access &access);
  /// The bytes become the destination of an asynchronous copy; checked like a write.
  Conflict startCopy(uint32_t offset, uint32_t bytes, const Access &access);
  /// The copy has written the bytes, as `actor` at `clock`.
  void finishCopy(uint32_t offset, uint32_t bytes, uint32_t actor, uint32_t clock);
  /// The eight bytes become (cease to be) an mbarrier object.
  Conflict makeBarrier(uint32_t offset, const Access &access);
  void dropBarrier(uint32_t offset);

private:
  /// The top bits of `writer` say what the rest is.
  enum Tag : uint32_t {
    Plain = 0u << 29,
    Atomic = 1u << 29,
    Copy = 2u << 29,
    Object = 3u << 29,
    /// `writer` is an index into `quads`: the four bytes have different histories.
    Split = 4u << 29,
    /// `reader` is an index into `lists`.
    Several = 5u << 29,
    Nobody = 7u << 29,
    TagMask = 7u << 29
  };
  struct Cell {
    uint32_t writer = Nobody, writeClock = 0, writeLocation = 0;
    uint32_t reader = Nobody, readClock = 0, readLocation = 0;
  };
  struct Reader {
    uint32_t actor, clock, location;
  };

  /// The reads that a write must be ordered after; many readers are found by their actor.
  struct Readers {
    std::vector<Reader> list;
    /// Index in `list` plus 1, by actor; unused while the list is short.
    std::vector<uint16_t> places;
  };

  template <typename Visit> Conflict visit(uint32_t offset, uint32_t bytes, Visit visitCell);
  Conflict::Kind readCell(Cell &cell, const Access &access, Conflict &conflict);
  Conflict::Kind writeCell(Cell &cell, const Access &access, uint32_t tag, Conflict &conflict);
  void split(Cell &cell);
  void forgetReaders(Cell &cell);
  void addReader(Readers &readers, const Access &access);
  void clear(Readers &readers);
  uint32_t newList();

  std::vector<Cell> cells;
  std::vector<std::array<Cell, 4>> quads;
  std::vector<Readers> lists;
  uint32_t actors = 0;
  std::vector<uint32_t> freeLists;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_SHAREDSHADOW_H

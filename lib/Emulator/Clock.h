// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Vector clocks: what a thread knows of the others' progress. Immutable once shared, so that the
// threads of a warp or block share one after a barrier that all of them arrived at.

#ifndef SLUICE_LIB_EMULATOR_CLOCK_H
#define SLUICE_LIB_EMULATOR_CLOCK_H

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sluice::emulator {

/// A counted reference to one counter per actor (threads, then barriers in shared memory, then the
/// dependency wait). Not safe across OS threads.
class Clock {
public:
  Clock() = default;
  explicit Clock(uint32_t size) : body(allocate(size)) {
    std::memset(values(), 0, size * sizeof(uint32_t));
  }
  Clock(const Clock &other) : body(other.body) {
    if (body)
      ++body->references;
  }
  Clock(Clock &&other) noexcept : body(std::exchange(other.body, nullptr)) {}
  Clock &operator=(Clock other) noexcept {
    std::swap(body, other.body);
    return *this;
  }
  ~Clock() {
    if (body && --body->references == 0)
      std::free(body);
  }

  Clock clone() const {
    Clock copy;
    copy.body = allocate(body->size);
    std::memcpy(copy.values(), values(), body->size * sizeof(uint32_t));
    return copy;
  }
  void join(const Clock &other) {
    uint32_t *mine = values();
    const uint32_t *theirs = other.values();
    for (uint32_t i = 0; i < body->size; ++i)
      mine[i] = std::max(mine[i], theirs[i]);
  }
  uint32_t *values() { return reinterpret_cast<uint32_t *>(body + 1); }
  const uint32_t *values() const { return reinterpret_cast<const uint32_t *>(body + 1); }
  uint32_t operator[](uint32_t actor) const { return values()[actor]; }
  explicit operator bool() const { return body; }
  bool operator==(const Clock &other) const { return body == other.body; }

private:
  struct Body {
    uint32_t references, size;
  };
  static Body *allocate(uint32_t size) {
    void *memory = std::malloc(sizeof(Body) + size * sizeof(uint32_t));
    if (!memory)
      throw std::bad_alloc();
    return new (memory) Body{1, size};
  }
  Body *body = nullptr;
};

/// The join of the clocks of the threads that have arrived at a barrier. Most of them are the same.
struct Gathering {
  Clock clock;
  Clock last;

  void add(const Clock &other) {
    if (!clock)
      clock = other.clone();
    else if (!(other == last))
      clock.join(other);
    last = other;
  }
  Clock take() {
    last = Clock();
    return std::exchange(clock, Clock());
  }
};

/// join() of two clocks with its last result kept: the threads of a warp ask for the same one, one
/// after another.
class ClockJoin {
public:
  Clock operator()(const Clock &a, const Clock &b) {
    if (a == b || !b)
      return a;
    if (!(left == a && right == b)) {
      left = a, right = b;
      result = a.clone();
      result.join(b);
    }
    return result;
  }

private:
  Clock left, right, result;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_CLOCK_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How kernels read the elements and scales of a tile in layout lanes (sluice/Formats/Packing.h).

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_LANEELEMENTS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_LANEELEMENTS_H

#include "../FusedKernels/GroupNumbers.h"
#include "KernelBuilder.h"

namespace sluice::host {

/// Whether the operand that is read for pair `pair` of 16 columns (columns 2 pair and 2 pair + 1)
/// is q + 2^(bits - 1) instead of q. A signed element is taken so unless it ends with its byte and
/// one arithmetic shift gives it.
inline bool isBiased(const formats::Encoding &format, int64_t pair) {
  if (format.code() != formats::Encoding::Code::Signed)
    return false;
  llvm::ArrayRef<formats::Encoding::Plane> planes = format.planes();
  return planes.size() > 1 || (pair + 1) * planes[0].width % 8 != 0;
}
/// Whether any pair is.
inline bool hasBiases(const formats::Encoding &format) { return isBiased(format, 0); }

/// Emits the words that integer products multiply. A vector of 32 words (two columns of 16 rows) is
/// one register with AVX-512; with AVX2 it is two, its parts.
class IntegerElements {
public:
  IntegerElements(KernelBuilder &k, const formats::Encoding &format) : k(k), format(format) {}

  int64_t parts() const { return k.isa == Isa::Avx2 ? 2 : 1; }
  int64_t partLanes() const { return kLanes / parts(); }
  /// Columns of which 32 bytes have the first plane.
  int64_t columnsOfLoad() const { return 16 / format.planes()[0].width; }
  int64_t bytesOfColumns(int64_t columns) const { return columns * 2 * format.bits(); }

  /// Goes to the elements of a tile's columns from a multiple of 16 on. Each byte is loaded once
  /// until the next call.
  void moveTo(mlir::Value newElements) {
    elements = newElements;
    loaded.clear();
  }
  /// The words of pair `pair` of the columns: q, or what isBiased says.
  mlir::Value operand(int64_t pair, int64_t part);

private:
  /// Whether bytes of elements are extended to words as signed numbers.
  bool isSignExtended() const {
    return format.code() == formats::Encoding::Code::Signed && format.planes().size() == 1;
  }
  /// 32 bytes (or this part of them) of elements, as bytes or extended to words.
  mlir::Value load(int64_t byte, int64_t part);

  KernelBuilder &k;
  const formats::Encoding format;
  mlir::Value elements;
  llvm::DenseMap<std::pair<int64_t, int64_t>, mlir::Value> loaded;
};

/// How far ahead of its use a weight is asked for. The hardware's own prefetchers stop at the end
/// of a page.
inline constexpr int64_t kPrefetchBytes = 4096;
inline constexpr int64_t kLineBytes = 64;

/// Asks for `bytes` bytes of elements that will be needed kPrefetchBytes after those at byte
/// `place` of the tile, in this tile or in the one `tiles` tiles behind it.
void prefetchElements(KernelBuilder &k, const formats::PackedShape &shape, mlir::Value tile,
                      mlir::Value place, int64_t bytes, int64_t tiles, unsigned locality);

/// A group's numbers of a tile's 16 rows. Those of the same group `prefetchedTiles` tiles behind it
/// are asked for, unless it is 0.
kernels::GroupNumbers loadGroupNumbers(KernelBuilder &k, const formats::PackedShape &shape,
                                       mlir::Value tile, mlir::Value group, mlir::Value super,
                                       std::optional<bool> isOdd, int64_t prefetchedTiles);

/// The elements of `column` (16 rows at `pointer`) of a float format or E4M3, as float32; E4M3
/// divided by KernelBuilder::e4m3Divisor.
mlir::Value loadFloatElements(KernelBuilder &k, const formats::Encoding &format,
                              mlir::Value pointer);
/// Bytes of a column of such elements.
int64_t floatColumnBytes(const formats::Encoding &format);

/// How many sums a product with float weights (or E4M3) has for each token: that of chain c adds
/// columns c, c + chains, ...
int64_t floatChains(Isa isa, int64_t accumulators, int64_t tokens);

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_LANEELEMENTS_H

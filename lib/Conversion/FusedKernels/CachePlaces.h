// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The formulas of CacheLayout.h in a kernel.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H

#include "ComputeBuilder.h"
#include "KernelInterface.h"

#include "sluice/Formats/CacheLayout.h"

namespace sluice::kernels {

/// The arithmetic of CacheLayout.h on a kernel's integers.
inline formats::CacheArithmetic<mlir::Value> cacheArithmetic(ComputeBuilder &k) {
  using mlir::Value;
  return {[&k](Value x, Value y) { return k.add(x, y); },
          [&k](Value x, int64_t y) { return k.mul(x, y); },
          [&k](Value x, int64_t y) { return k.div(x, y); },
          [&k](Value x, int64_t y) { return k.rem(x, y); }};
}

/// The sequence that row `row` of a step belongs to, between 0 and `count` - 1, an index of the
/// builder. `sequences` says whose each row is (null: row r is sequence r, or the only one's).
mlir::Value sequenceOf(ComputeBuilder &k, const KernelInterface &interface, int64_t count,
                       mlir::Value sequences, mlir::Value row);

/// Neighbouring tokens of one of several sequences that are packed in a step. Indices of the
/// builder.
struct PackedTile {
  mlir::Value sequence;
  mlir::Value begin, end; ///< the sequence's rows
  mlir::Value first;      ///< the tile's first one; there is none if it is `end`, or behind it
};
/// Tile `number` of those of up to `tile` tokens (fused::packedTiles). `starts` has `sequences` + 1
/// entries; wrong ones do not lead to rows outside [0, `rows`).
PackedTile packedTile(ComputeBuilder &k, const KernelInterface &interface, mlir::Value starts,
                      int64_t sequences, int64_t rows, int64_t tile, mlir::Value number);

/// The row that fused.last_row takes for sequence `sequence`, an index of the builder; likewise.
mlir::Value lastRowOf(ComputeBuilder &k, const KernelInterface &interface, mlir::Value starts,
                      int64_t rows, mlir::Value sequence);

/// The tiles of a head of a sequence.
class HeadTiles {
public:
  /// `shape` is model::cacheShape's. Sequence, head and tiles are indices of the builder, or i64.
  HeadTiles(ComputeBuilder &k, const KernelInterface &interface, const formats::CacheShape &shape,
            mlir::FlatSymbolRefAttr cache, mlir::Value pages, mlir::Value sequence,
            mlir::Value head);
  /// The address of tile `tile`. A wrong entry of the page table does not lead out of the cache.
  mlir::Value at(ComputeBuilder &k, mlir::Value tile) const;
  /// The same in two parts, where tiles are in pages: what the table has, loaded, and where that
  /// is.
  mlir::Value pageOf(ComputeBuilder &k, mlir::Value tile) const;
  mlir::Value atPage(ComputeBuilder &k, mlir::Value page) const;
  bool areInPages() const { return row != nullptr; }

private:
  formats::CacheShape shape;
  mlir::Value base, row; ///< row: of the page table, if there is one
};

/// Where numbers of 16 bits go that are appended to a cache, by their number in the row.
class AppendPlace {
public:
  /// Checks that the cache holds numbers of 16 bits in the layout `keys` or `values`; else emits an
  /// error that says what `where` ("an epilogue on a GPU") stores.
  static mlir::FailureOr<AppendPlace> get(ComputeBuilder &k, const KernelInterface &interface,
                                          model::CacheAppendOp append, quantized::CacheLayout keys,
                                          quantized::CacheLayout values, llvm::StringRef where);
  /// Goes to the position of token `token`, an index or i64 of the builder, clamped to the cache.
  void moveTo(ComputeBuilder &k, const KernelInterface &interface, mlir::Value token);
  /// The address of number `index` (of the builder's index type) of the row.
  mlir::Value of(ComputeBuilder &k, mlir::Value index) const;
  mlir::Type element() const { return cache.getElement(); }

private:
  AppendPlace(model::CacheAppendOp append, quantized::CacheType cache)
      : append(append), cache(cache), shape(model::cacheShape(cache, append.getPages())) {}

  model::CacheAppendOp append;
  quantized::CacheType cache;
  formats::CacheShape shape;
  mlir::Value base, inTile;
};

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_CACHEPLACES_H

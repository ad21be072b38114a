// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_DIALECTS_MODEL_H
#define SLUICE_DIALECTS_MODEL_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "dialects/Quantized/Quantized.h"

#include "dialects/Model/ModelDialect.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Model/ModelAttrs.h.inc"

namespace sluice::model {
/// Assembly of an f64 attribute without its type: the `Double` directive of assembly formats.
mlir::ParseResult parseDouble(mlir::AsmParser &parser, mlir::FloatAttr &value);
void printDouble(mlir::AsmPrinter &printer, mlir::Operation *op, mlir::FloatAttr value);
/// Checks that `op` has a position for every row of its query and names two caches that fit each
/// other, the query and the page table, which may be null. `packed`: rows are tokens of any of its
/// sequences.
mlir::LogicalResult verifyAttention(mlir::Operation *op, mlir::RankedTensorType query,
                                    mlir::RankedTensorType positions, mlir::FlatSymbolRefAttr keys,
                                    mlir::FlatSymbolRefAttr values, mlir::Value pages, bool packed,
                                    mlir::SymbolTableCollection &symbols);
/// Checks that `sequences`, if not null, has one for each of `rows` rows and comes with a page
/// table.
mlir::LogicalResult verifyOwners(mlir::Operation *op, int64_t rows, mlir::Value pages,
                                 mlir::Value sequences);
/// A cache as those see it that find their pages in a table; without one as its type says.
formats::CacheShape cacheShape(quantized::CacheType type, mlir::Value pages);
/// The page table among a step's arguments; null if its caches are not in pages.
mlir::BlockArgument pageTable(mlir::Block &step);
/// Checks that a soft cap, if there is one, is positive.
mlir::LogicalResult verifySoftCap(mlir::Operation *op, std::optional<llvm::APFloat> cap);
} // namespace sluice::model

#define GET_OP_CLASSES
#include "dialects/Model/ModelOps.h.inc"

#endif // SLUICE_DIALECTS_MODEL_H

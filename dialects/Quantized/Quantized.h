// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_DIALECTS_QUANTIZED_H
#define SLUICE_DIALECTS_QUANTIZED_H

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
#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/Encoding.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Formats/RowOrder.h"

#include "dialects/Quantized/QuantizedDialect.h.inc"
#include "dialects/Quantized/QuantizedEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Quantized/QuantizedAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialects/Quantized/QuantizedTypes.h.inc"

namespace sluice::quantized {
/// The format of a quantized tensor or of a builtin tensor of floats.
formats::Encoding encodingOf(mlir::Type weight);
/// The row order of a packed matrix whose sources have `sourceRows` rows. Empty `orders` put the
/// sources one after the other. Errors are those of formats::RowOrder::get.
llvm::Expected<formats::RowOrder> expandRowOrder(mlir::ArrayAttr orders,
                                                 llvm::ArrayRef<int64_t> sourceRows);
/// How many rows that matrix has; the same errors.
llvm::Expected<int64_t> countPackedRows(mlir::ArrayAttr orders, llvm::ArrayRef<int64_t> sourceRows);
/// Parse and print a list of row orders, `[pairs(0, 64), natural(1)]`: the `RowOrders` directive of
/// assembly formats.
mlir::ParseResult parseRowOrders(mlir::AsmParser &parser, mlir::ArrayAttr &orders);
void printRowOrders(mlir::AsmPrinter &printer, mlir::Operation *op, mlir::ArrayAttr orders);
} // namespace sluice::quantized

#define GET_OP_CLASSES
#include "dialects/Quantized/QuantizedOps.h.inc"

#endif // SLUICE_DIALECTS_QUANTIZED_H

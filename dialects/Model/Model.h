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
/// other and the query.
mlir::LogicalResult verifyAttention(mlir::Operation *op, mlir::RankedTensorType query,
                                    mlir::RankedTensorType positions, mlir::FlatSymbolRefAttr keys,
                                    mlir::FlatSymbolRefAttr values,
                                    mlir::SymbolTableCollection &symbols);
/// Checks that a soft cap, if there is one, is positive.
mlir::LogicalResult verifySoftCap(mlir::Operation *op, std::optional<llvm::APFloat> cap);
} // namespace sluice::model

#define GET_OP_CLASSES
#include "dialects/Model/ModelOps.h.inc"

#endif // SLUICE_DIALECTS_MODEL_H

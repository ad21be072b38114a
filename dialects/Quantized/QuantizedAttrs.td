// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_ATTRS
#define SLUICE_QUANTIZED_ATTRS

include "dialects/Quantized/QuantizedDialect.td"

def Quantized_FormatAttr : AttrDef<QuantizedDialect, "Format"> {
  let mnemonic = "format";
  let summary = "How a number is stored: element type, group of a scale, zero point";
  let description = [{
    With an integer element type, `value = (q - zero) * scale`: `q` is a signed integer of the element
    type's width, `scale` an f16 for every `group` consecutive elements of a row (`group = channel`: one
    per row), and `zero` a signed integer of the element type's range for every group, or 0 if the
    format is symmetric. With a float element type there are no groups and `value = q`.

    ```mlir
    #quantized.format<i8, group = 128>
    #quantized.format<i4, group = 64, zero_point>
    #quantized.format<i8, group = channel>
    #quantized.format<f16>
    ```
  }];
  let parameters = (ins "::mlir::Type":$element, "int64_t":$group, "bool":$zeroPoint);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The group of a scale that spans a whole row.
    static constexpr int64_t kChannel = 0;
    bool isInteger() const { return getElement().isInteger(); }
    unsigned getBits() const { return getElement().getIntOrFloatBitWidth(); }
    /// The name used on the command line: "int8-g128", "int4-g64-zp", "int8-channel", "f16".
    std::string getName() const;
    /// Parses such a name; null if it is not one.
    static FormatAttr fromName(::mlir::MLIRContext *context, ::llvm::StringRef name);
    /// The definition that packing, kernels and the reference evaluator share.
    ::sluice::formats::Format toFormat() const;
    /// Body of the assembly, shared with the tensor type: `i8, group = 128, zero_point`.
    void printBody(::mlir::AsmPrinter &printer) const;
  }];
}

def Quantized_LayoutKind : I32EnumAttr<"LayoutKind", "order of a matrix's bytes", [
    I32EnumAttrCase<"Rows", 0, "rows">,
    I32EnumAttrCase<"BlocksQ8_0", 1, "q8_0">,
    I32EnumAttrCase<"BlocksQ4_0", 2, "q4_0">,
    I32EnumAttrCase<"Lanes", 3, "lanes">,
    I32EnumAttrCase<"Mma", 4, "mma">]> {
  let cppNamespace = "::sluice::quantized";
  let genSpecializedAttr = 0;
}

def Quantized_LayoutAttr : AttrDef<QuantizedDialect, "Layout"> {
  let mnemonic = "layout";
  let summary = "The physical order of a quantized matrix's elements, scales and zero points";
  let description = [{
    - `rows`: row after row; a row is its elements, then its scales, then its zero points.
    - `q8_0`, `q4_0`: GGUF's blocks of 32 elements, each an f16 scale and the integers.
    - `lanes`: tiles of 16 rows, whose elements alternate so that a vector register holds one or two
      columns of all 16 rows; a tile's scales and zero points follow its elements. For the host.
    - `mma`: tiles of 16 rows cut into chunks of `columns` columns; a chunk is its elements in the operand order of
      the tensor cores' 16-row operand, its scales and its zero points. For GPUs.

    `columns` is 0 where the layout has no chunks. The exact position of every element is defined once,
    in `include/sluice/Formats/Packing.h`.
  }];
  let parameters = (ins "LayoutKind":$kind, "int64_t":$columns);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// Rows of a tile of the tiled layouts.
    static constexpr int64_t kTileRows = 16;
    bool isTiled() const { return getKind() == LayoutKind::Lanes || getKind() == LayoutKind::Mma; }
    ::sluice::formats::Layout toLayout() const;
  }];
}

def Quantized_RowOrderAttr : AttrDef<QuantizedDialect, "RowOrder"> {
  let mnemonic = "row_order";
  let summary = "Which rows of a packed matrix's sources lie side by side in its tiles";
  let description = [{
    A segment of a packed matrix:
    - `natural(i)`: the rows of source `i` in their order.
    - `pairs(i, d)`: source `i` is heads of `d` rows; every tile of 16 holds 8 rows r of a head and
      the 8 rows r + d/2 that rotary embedding pairs them with. A head whose d/2 is not a multiple of 8 ends in a partly empty tile.
    - `zip(i, j)`: every tile holds 8 rows of source `i` and the same 8 rows of source `j` (gate and up).

    Empty places of a tile hold zeros.
  }];
  let parameters = (ins StringRefParameter<"natural, pairs or zip">:$kind, "int64_t":$first, "int64_t":$second);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    bool isNatural() const { return getKind() == "natural"; }
    bool isPairs() const { return getKind() == "pairs"; }
    bool isZip() const { return getKind() == "zip"; }
    ::sluice::formats::RowSegment toSegment() const;
  }];
}

#endif

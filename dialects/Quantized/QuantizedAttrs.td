// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_ATTRS
#define SLUICE_QUANTIZED_ATTRS

include "dialects/Quantized/QuantizedDialect.td"

def Quantized_EncodingAttr : AttrDef<QuantizedDialect, "Encoding"> {
  let mnemonic = "encoding";
  let summary = "How a matrix's numbers are stored: elements, groups of a scale, scales, offsets";
  let description = [{
    With element type f32, f16 or bf16, `value = q`. Otherwise, for every `group` consecutive elements of a row
    (`group = channel`: the whole row), `value = (number - zero) * scale + offset`:

    - the element type is `iN` (signed), `uiN` (unsigned), `f8E4M3FN` or, with `table = iq4_nl` (or `e2m1`, `iq1`, `iq2`,
      `iq3_xxs`, `iq3_s`), an index of 4 bits into a table of 16 integers;
    - `scale = f16` (not printed), `e8m0` or `e4m3` (a byte), or `i8`, `u6` or `u4`: a byte or field times an f16 that
      256 columns share; `bf16` or `f32` for `f8E4M3FN`, `f32` also for `i8` and `i4`;
    - `zero_point`: a signed integer of the element type's range; `offset = f16`; `offset = field`: minus an unsigned
      field, as wide as the scale, times another f16 of the 256 columns.

    ```mlir
    #quantized.encoding<i8, group = 128>
    #quantized.encoding<i4, group = 64, zero_point>
    #quantized.encoding<i8, group = channel>
    #quantized.encoding<ui4, group = 32, scale = u6, offset = field>
    #quantized.encoding<i4, table = iq4_nl, group = 32>
    #quantized.encoding<f8E4M3FN, group = 128, scale = bf16>
    #quantized.encoding<f16>
    ```

    The definition is `sluice::formats::Encoding` (`include/sluice/Formats/Encoding.h`).
  }];
  let parameters = (ins "::sluice::formats::Encoding":$value);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// A float format of this element type, or plain integers: symmetric, or with zero points.
    static EncodingAttr of(::mlir::Type element, int64_t group = ::sluice::formats::Encoding::channel,
                           bool zeroPoint = false);
    /// The element type: a float, or a signless (signed, index) or unsigned integer.
    ::mlir::Type getElement() const;
    int64_t getGroup() const { return getValue().group; }
    bool isInteger() const { return getValue().isInteger(); }
    bool isScaled() const { return getValue().isScaled(); }
    unsigned getBits() const { return getValue().bits(); }
    /// The name used on the command line: "int8-g128", "int4-g64-zp", "int8-channel", "f16", "q4_k".
    std::string getName() const { return getValue().name(); }
    /// Parses such a name; null if it is not one.
    static EncodingAttr fromName(::mlir::MLIRContext *context, ::llvm::StringRef name);
    /// Body of the assembly, shared with the tensor type: `i8, group = 128, zero_point`.
    void printBody(::mlir::AsmPrinter &printer) const;
  }];
}

def Quantized_LayoutKind : I32EnumAttr<"LayoutKind", "order of a matrix's bytes", [
    I32EnumAttrCase<"Rows", 0, "rows">,
    I32EnumAttrCase<"Blocks", 1, "blocks">,
    I32EnumAttrCase<"Lanes", 2, "lanes">,
    I32EnumAttrCase<"Mma", 3, "mma">,
    I32EnumAttrCase<"Records", 4, "records">]> {
  let cppNamespace = "::sluice::quantized";
  let genSpecializedAttr = 0;
}

def Quantized_LayoutAttr : AttrDef<QuantizedDialect, "Layout"> {
  let mnemonic = "layout";
  let summary = "The physical order of a quantized matrix's elements, scales and zero points";
  let description = [{
    - `rows`: row after row; a row is its elements, then its scales, then its offsets.
    - `blocks`: the blocks of the GGUF type that the encoding is (`include/sluice/Formats/GgufBlocks.h`).
    - `lanes`: tiles of 16 rows, whose elements alternate so that a vector register holds one or two
      columns of all 16 rows; a tile's scales and zero points follow its elements. For the host.
    - `mma`: tiles of 16 rows cut into chunks of `columns` columns; a chunk is its elements in the operand order of
      the tensor cores' 16-row operand, its scales and its zero points. For GPUs.
    - `records`: tiles of 16 rows cut into records of 256 columns, for every encoding of integers without zero points
      (`include/sluice/Formats/Records.h`). For GPUs, whose kernels copy `columns` columns at a time.

    `columns` is 0 where the layout has no chunks. The exact position of every element is defined once,
    in `include/sluice/Formats/Packing.h`.
  }];
  let parameters = (ins "LayoutKind":$kind, "int64_t":$columns);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// Rows of a tile of the tiled layouts.
    static constexpr int64_t kTileRows = 16;
    bool isTiled() const { return getKind() == LayoutKind::Lanes || isForGpu(); }
    /// Whether products on GPUs read it.
    bool isForGpu() const { return getKind() == LayoutKind::Mma || getKind() == LayoutKind::Records; }
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

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_QUANTIZED_TYPES
#define SLUICE_QUANTIZED_TYPES

include "dialects/Quantized/QuantizedAttrs.td"

def Quantized_TensorType : TypeDef<QuantizedDialect, "QuantizedTensor"> {
  let mnemonic = "tensor";
  let summary = "A matrix of weights in a number format and a physical layout";
  let description = [{
    ```mlir
    !quantized.tensor<4096x14336xi8, group = 128>
    !quantized.tensor<4096x14336xi4, group = 64, zero_point, layout = mma, columns = 2048>
    !quantized.tensor<4096x4096xf16, layout = lanes>
    !quantized.tensor<4096x4096xui4, group = 32, scale = u6, offset = field, layout = blocks>
    ```
    The shape is logical, [rows, columns]: [outputs, inputs] of a linear layer. Without `layout` the
    layout is `rows`.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$shape, "EncodingAttr":$encoding, "LayoutAttr":$layout);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getRows() const { return getShape()[0]; }
    int64_t getColumns() const { return getShape()[1]; }
    /// Elements that share a scale.
    int64_t getGroup() const { return getEncoding().getValue().groupColumns(getColumns()); }
    QuantizedTensorType withLayout(LayoutAttr layout) const { return get(getContext(), getShape(), getEncoding(), layout); }
  }];
}

def Quantized_CacheLayout : I32EnumAttr<"CacheLayout", "order of a cache's bytes", [
    I32EnumAttrCase<"Rows", 0, "rows">,
    I32EnumAttrCase<"LanesKeys", 1, "lanes_keys">,
    I32EnumAttrCase<"LanesValues", 2, "lanes_values">,
    I32EnumAttrCase<"MmaKeys", 3, "mma_keys">,
    I32EnumAttrCase<"MmaValues", 4, "mma_values">]> {
  let cppNamespace = "::sluice::quantized";
  let genSpecializedAttr = 0;
}

def Quantized_CacheType : TypeDef<QuantizedDialect, "Cache"> {
  let mnemonic = "cache";
  let summary = "Keys or values of all positions of one layer, in a number format and a physical layout";
  let description = [{
    ```mlir
    !quantized.cache<1x2048x2x64xf16>
    !quantized.cache<1x2048x8x128xi8, group = head, layout = mma_keys>
    !quantized.cache<1x2048x8x128xi4, group = 32, layout = lanes_values>
    !quantized.cache<1x2048x8x128xf8E4M3FN>
    ```
    The shape is [sequences, positions, heads, head size]. Elements are f16, bf16, f8E4M3FN, or i8 and i4 with an f16 scale for
    every `group` elements of a head (`head`: one a head): `value = code * scale`.
    `include/sluice/Formats/CacheEncoding.h` defines how a vector is rounded.

    Layouts (`include/sluice/Formats/CacheLayout.h` has the place of every byte):
    - `rows`: position after position, head after head; what a cache is before a target is chosen.
    - `lanes_keys`, `lanes_values`: tiles of 32 positions of a head in the order of a host's vector registers.
    - `mma_keys`, `mma_values`: tiles of 32 positions of a head in the operand order of the tensor cores. Keys and values are
      different operands.

    Tiles are whole: in a tiled layout positions are a multiple of 32.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$shape, "::mlir::Type":$element, "int64_t":$group, "CacheLayout":$layout);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// The group of a scale that spans a head.
    static constexpr int64_t kHead = 0;
    /// Positions of a tile.
    static constexpr int64_t kTilePositions = 32;
    static CacheType get(::mlir::MLIRContext *context, ::llvm::ArrayRef<int64_t> shape, ::sluice::formats::CacheEncoding encoding, CacheLayout layout);
    int64_t getSequences() const { return getShape()[0]; }
    int64_t getPositions() const { return getShape()[1]; }
    int64_t getHeads() const { return getShape()[2]; }
    int64_t getHeadDim() const { return getShape()[3]; }
    /// Numbers of a position: heads times head size.
    int64_t getWidth() const { return getHeads() * getHeadDim(); }
    bool isTiled() const { return getLayout() != CacheLayout::Rows; }
    ::sluice::formats::CacheEncoding getEncoding() const;
    /// Everything that says where bytes lie.
    ::sluice::formats::CacheShape getShapeInfo() const;
    /// Bytes of the whole cache, padding included.
    int64_t getBytes() const { return getShapeInfo().bytes(); }
    CacheType withEncoding(::sluice::formats::CacheEncoding encoding) const { return get(getContext(), getShape(), encoding, getLayout()); }
    CacheType withLayout(CacheLayout layout, int64_t positions) const {
      return get(getContext(), {getSequences(), positions, getHeads(), getHeadDim()}, getElement(), getGroup(), layout);
    }
  }];
}

#endif

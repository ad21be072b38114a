// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a warp does with a record of weights (Formats/Records.h): 256 columns of 16 rows, of any
// encoding. The encoding is asked three things: the words of an operand, the scale of a unit and
// the offset of a unit.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_RECORDPRODUCT_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_RECORDPRODUCT_H

#include "Kernels.h"

#include "sluice/Formats/Records.h"

namespace sluice::device {

class RecordProduct {
public:
  using Value = mlir::Value;
  using Values = DeviceBuilder::Values;
  static constexpr unsigned kOperands = formats::RecordShape::operands;

  /// A lane's inputs of one record and token.
  struct Input {
    /// For each operand of the weights the two words of the other one.
    Values operands;
    /// As InputPlan has them: steps of groups 0 and 1, sums.
    Values units;
  };

  RecordProduct(DeviceBuilder &k, const formats::Encoding &encoding, Value lane)
      : k(k), shape(encoding), lane(lane) {}

  /// The inputs of record `number` for every token.
  llvm::SmallVector<Input> loadInput(const PreparedInput &input, Value number);
  /// Where in the block's shared memory the lane's operands of a record are, whose inputs are
  /// `inputs` bytes in: there, or where there are zeros (fused::InputPlan).
  Value operandPlace(Value inputs, int64_t zeros);
  /// These operands, from their address on.
  Values loadOperands(Value from);

  /// Adds a record's products to `sums`: of rows lane / 4 and lane / 4 + 8 for each token, each
  /// lane those of its sub-block. `release` is called when nothing more is read of the record.
  Values multiply(const fused::InputPlan &plan, llvm::ArrayRef<Input> inputs, Value record,
                  Values sums, llvm::function_ref<void()> release);

  /// Adds the sub-blocks of a token's two rows. The result is row lane / 4's in lanes with an even
  /// number, row lane / 4 + 8's in the others.
  Value addSubBlocks(Value low, Value high);

  /// For products of many tokens: a quarter of a record's weights times `halfFactor`, rounded to
  /// f16, as the first operands of four m16n8k16 products, four words each. Of product p of group
  /// `quarter` / 2, numbered from 4 (`quarter` % 2), the pairs of columns 2t and 8 + 2t are columns
  /// 32 t + 4 p and 32 t + 4 p + 2 of the group, t being the number of a lane in its row
  /// (fused::PreparedImage).
  llvm::SmallVector<Values> loadHalves(Value record, unsigned quarter);
  /// Makes scales of small weights normal numbers, so that weights may be as great as 1023. NVFP4's
  /// are relative to a factor of the whole tensor, and as great as 2688.
  static double halfFactor(const formats::Encoding &encoding) {
    return encoding.scale == formats::Encoding::Scale::E4M3 ? 1 : 64;
  }

private:
  /// [group][unit of 16][row]; where units are longer, only the first of a group.
  struct Units {
    Value scale[2][2][2], offset[2][2][2];
  };
  /// What the integers of operands of group `group` are multiplied by to be elements.
  double factor(unsigned group) const;
  /// Units of a sub-block.
  unsigned halves() const { return shape.unit() == 16 ? 2 : 1; }
  /// What a lane has of scales and offsets: words as they lie there.
  struct Numbers {
    Values units, supers;
  };

  bool twice() const { return shape.encoding().code() == formats::Encoding::Code::Table; }
  llvm::SmallVector<Values> loadPlanes(Value record);
  Values loadWords(Value from, int64_t words);
  Numbers loadNumbers(Value record);
  /// The words of an operand from those of the planes, [plane][register]; with a table, those to be
  /// added to them.
  std::pair<Values, Values> operand(unsigned number, llvm::ArrayRef<Values> planes);
  void scalesOf(const Numbers &numbers, Units &units);
  /// Byte `number` of a word of unsigned bytes times d, and d times `bias` less: exact.
  Value byteTimes(Value word, unsigned number, Value d, double bias);

  DeviceBuilder &k;
  formats::RecordShape shape;
  Value lane;
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_RECORDPRODUCT_H

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Instructions that kernels use and that have no nvvm operation: the exact text of their
// `nvvm.inline_ptx` or `llvm.inline_asm`, which the emulator recognises.

#ifndef SLUICE_TARGET_INLINEPTX_H
#define SLUICE_TARGET_INLINEPTX_H

#include <cstdint>
#include <string>

namespace sluice::ptx {

/// Transposes an 8 x 8 matrix of 16-bit elements that a warp holds: lane l has elements
/// (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) in an i32, before and after (PTX ISA,
/// "movmatrix"). One read-only operand, one result, i32; all lanes take part.
inline constexpr char moveMatrixTransposed[] =
    "movmatrix.sync.aligned.m8n8.trans.b16 {$w0}, {$r0};";

/// Products of a warpgroup, as one group that can be waited for (PTX ISA, "Asynchronous
/// Warpgroup Level Matrix Multiply-Accumulate Instructions"): 64 x 32 bytes of the first operand,
/// four registers a thread, by 32 bytes x `columns` of the second one, which is in shared memory,
/// `products` of them 32 bytes apart. It has no nvvm operation with a first operand in registers.
///
/// Results: columns / 2 registers a thread, which hold the sums only after a wait for the group,
/// from `takeSums` on. Operands: the first operands' registers, i32; the descriptor of the second
/// operand, i64; with `accumulates` an i32, 0 where the sums begin anew; the sums of an earlier
/// group, or without `accumulates` anything: their registers are used again.
struct WarpgroupProducts {
  enum class Kind : uint8_t { S8, F16, BF16 };
  Kind kind = Kind::S8;
  int64_t columns = 0, products = 0;
  bool accumulates = false;

  int64_t sums() const { return columns / 2; }
  int64_t operands() const { return 4 * products; }
  bool isInteger() const { return kind == Kind::S8; }

  std::string text() const {
    auto name = [](int64_t n) { return "$" + std::to_string(n); };
    auto list = [&](int64_t first, int64_t count) {
      std::string all = "{";
      for (int64_t n = first; n < first + count; ++n)
        all += (n == first ? "" : ", ") + name(n);
      return all + "}";
    };
    std::string descriptor = name(sums() + operands());
    std::string text = "{ .reg .pred p, q; .reg .b64 d; setp.ne.b32 p, " +
                       (accumulates ? name(sums() + operands() + 1) : "0") +
                       ", 0; setp.ne.b32 q, 1, 0; wgmma.fence.sync.aligned;";
    std::string type = kind == Kind::S8 ? "s8" : kind == Kind::F16 ? "f16" : "bf16";
    for (int64_t n = 0; n < products; ++n) {
      if (n)
        text += " add.s64 d, " + descriptor + ", " + std::to_string(2 * n) + ";";
      text += " wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns) + "k" +
              (isInteger() ? "32.s32." : "16.f32.") + type + "." + type + " " + list(0, sums()) +
              ", " + list(sums() + 4 * n, 4) + ", " + (n ? "d" : descriptor) + ", " +
              (n ? "q" : "p") + (isInteger() ? ";" : ", 1, 1, 0;");
    }
    return text + " wgmma.commit_group.sync.aligned; }";
  }

  std::string constraints() const {
    std::string all;
    for (int64_t n = 0; n < sums(); ++n)
      all += isInteger() ? "=&r," : "=&f,";
    for (int64_t n = 0; n < operands(); ++n)
      all += "r,";
    all += "l";
    if (accumulates)
      all += ",r";
    for (int64_t n = 0; n < sums(); ++n)
      all += "," + std::to_string(n);
    return all + ",~{memory}";
  }
};

/// After a wait for their group: results that are the sums. Text and constraints of so many
/// registers.
inline constexpr char takeSums[] = "";
inline std::string takeSumsConstraints(int64_t sums, bool isInteger) {
  std::string all;
  for (int64_t n = 0; n < sums; ++n)
    all += isInteger ? "=r," : "=f,";
  for (int64_t n = 0; n < sums; ++n)
    all += std::to_string(n) + ",";
  return all + "~{memory}";
}

/// Stores 1, 2 or 4 words to the shared memory of a block of the cluster, without waiting; their
/// bytes complete at an mbarrier of that block (PTX ISA, "st.async"). Operands, i32: the address
/// in the cluster's shared memory, a multiple of the words' bytes; the words; the mbarrier's
/// address there.
inline std::string remoteStore(int words) {
  std::string vector = words == 1 ? "" : ".v" + std::to_string(words), list = "$1";
  for (int i = 1; i < words; ++i)
    list += ", $" + std::to_string(1 + i);
  return "st.async.shared::cluster.mbarrier::complete_tx::bytes" + vector + ".b32 [$0], " +
         (words == 1 ? list : "{" + list + "}") + ", [$" + std::to_string(1 + words) + "];";
}
inline std::string remoteStoreConstraints(int words) {
  std::string all;
  for (int i = 0; i < words + 2; ++i)
    all += "r,";
  return all + "~{memory}";
}

/// An i32 as it is, of which an optimizer knows nothing: what is computed from it stays behind it.
inline constexpr char opaqueCopy[] = "mov.b32 $0, $1;";
inline constexpr char opaqueCopyConstraints[] = "=r,r";

/// The descriptor of a second operand at an address of shared memory, a multiple of 1024 bytes
/// plus one of 32 below 128: rows of 128 bytes in the 128-byte swizzle, eight of them 1024 bytes
/// apart (PTX ISA, "Matrix Descriptor Format"). Its low bits are (address % 2^18) / 16.
inline constexpr uint64_t kOperandDescriptor =
    uint64_t(1) << 16 | uint64_t(1024 / 16) << 32 | uint64_t(1) << 62;
inline constexpr uint64_t kDescriptorAddress = (uint64_t(1) << 18) - 1;

} // namespace sluice::ptx

#endif // SLUICE_TARGET_INLINEPTX_H

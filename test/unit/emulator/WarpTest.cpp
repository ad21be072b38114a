// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the threads of a warp do together: shuffles, votes, matrix products.

#include "EmulatorTest.h"

#include <cmath>
#include <random>

using namespace sluice::emulator;

/// Stores the i32 `value` of each thread to argument `buffer`.
static std::string store(const std::string &value, int buffer = 0) {
  return "  %to_" + value.substr(1) + " = llvm.getelementptr %a" + std::to_string(buffer) +
         "[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32\n  llvm.store " + value + ", %to_" +
         value.substr(1) + " : i32, !llvm.ptr<1>\n";
}

static std::string runWarp(const std::string &body, std::vector<int> &result, unsigned threads = 32,
                           uint32_t shared = 0) {
  Bench bench(kernel("k", 1, body + "  llvm.return"));
  if (!bench.error.empty())
    return bench.error;
  uint32_t out = bench.buffer("y", std::vector<int>(threads));
  bench.launch("k", 1, threads, shared, {out});
  std::string fault = bench.run();
  result.assign(bench.at<int>(out), bench.at<int>(out) + threads);
  return fault;
}

TEST(Warp, Shuffles) {
  std::vector<int> y;
  auto shuffle = [&](const std::string &kind, const std::string &offset, const std::string &clamp) {
    EXPECT_EQ(runWarp("  %v = llvm.mul %tid, %c3 : i32\n  %w = nvvm.shfl.sync " + kind +
                          " %full, %v, " + offset + ", " + clamp + " : i32 -> i32\n" + store("%w"),
                      y),
              "");
  };
  shuffle("bfly", "%c5", "%c31");
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(y[i], 3 * (i ^ 5));
  shuffle("idx", "%c8", "%c31");
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(y[i], 24);
  shuffle("down", "%c4", "%c31");
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(y[i], 3 * (i + 4 < 32 ? i + 4 : i));
  shuffle("up", "%c4", "%c0");
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(y[i], 3 * (i >= 4 ? i - 4 : i));
  // Segments of eight lanes: 32 - 8 in the upper field.
  EXPECT_EQ(runWarp("  %segments = llvm.mlir.constant(6175 : i32) : i32\n"
                    "  %both = nvvm.shfl.sync idx %full, %tid, %c2, %segments "
                    "{return_value_and_is_valid} : i32 -> !llvm.struct<(i32, i1)>\n"
                    "  %w = llvm.extractvalue %both[0] : !llvm.struct<(i32, i1)>\n" +
                        store("%w"),
                    y),
            "");
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(y[i], i / 8 * 8 + 2);
}

TEST(Warp, VotesAndReductions) {
  std::vector<int> y;
  EXPECT_EQ(runWarp("  %p = llvm.icmp \"ult\" %lane, %c5 : i32\n"
                    "  %b = nvvm.vote.sync ballot %full, %p -> i32\n" +
                        store("%b"),
                    y),
            "");
  EXPECT_EQ(y[7], 31);
  EXPECT_EQ(runWarp("  %p = llvm.icmp \"ult\" %lane, %c5 : i32\n"
                    "  %b = nvvm.vote.sync any %full, %p -> i1\n"
                    "  %w = llvm.zext %b : i1 to i32\n" +
                        store("%w"),
                    y),
            "");
  EXPECT_EQ(y[7], 1);
  EXPECT_EQ(runWarp("  %b = nvvm.redux.sync add %lane, %full : i32 -> i32\n" + store("%b"), y), "");
  EXPECT_EQ(y[9], 496);
  EXPECT_EQ(runWarp("  %p = llvm.sub %lane, %c31 : i32\n"
                    "  %b = nvvm.redux.sync min %p, %full : i32 -> i32\n" +
                        store("%b"),
                    y),
            "");
  EXPECT_EQ(y[0], -31);
}

TEST(Warp, DivergentShuffle) {
  // Half of the warp takes part with the mask of all.
  std::vector<int> y;
  std::string fault = runWarp(R"(
    %low = llvm.icmp "ult" %lane, %c16 : i32
    llvm.cond_br %low, ^some, ^all
  ^some:
    %w = nvvm.shfl.sync bfly %full, %tid, %c1, %c31 : i32 -> i32
    llvm.br ^all
  ^all:
)",
                              y);
  EXPECT_FAULT(fault, "divergent");
  EXPECT_FAULT(fault, "nvvm.shfl.sync at test.mlir:");
  // The same with the right mask is fine.
  EXPECT_EQ(runWarp(R"(
    %mask = llvm.mlir.constant(65535 : i32) : i32
    %low = llvm.icmp "ult" %lane, %c16 : i32
    llvm.cond_br %low, ^some, ^all
  ^some:
    %w = nvvm.shfl.sync bfly %mask, %tid, %c1, %c31 : i32 -> i32
    llvm.br ^all
  ^all:
)",
                    y),
            "");
  // A lane that is not in its own mask; a source that does not take part.
  EXPECT_FAULT(runWarp("  %w = nvvm.shfl.sync bfly %c1, %tid, %c1, %c31 : i32 -> i32\n", y),
               "is not in the mask 0x00000001");
  EXPECT_FAULT(runWarp(R"(
    %low = llvm.icmp "ult" %lane, %c1 : i32
    llvm.cond_br %low, ^some, ^all
  ^some:
    %w = nvvm.shfl.sync bfly %c1, %tid, %c1, %c31 : i32 -> i32
    llvm.br ^all
  ^all:
)",
                       y),
               "divergent shuffle: reads lane 1, which does not take part");
}

TEST(Warp, DifferentShufflesDoNotMeet) {
  std::vector<int> y;
  EXPECT_FAULT(runWarp(R"(
    %low = llvm.icmp "ult" %lane, %c16 : i32
    llvm.cond_br %low, ^some, ^others
  ^some:
    %w = nvvm.shfl.sync bfly %full, %tid, %c1, %c31 : i32 -> i32
    llvm.br ^all
  ^others:
    %v = nvvm.shfl.sync bfly %full, %tid, %c2, %c31 : i32 -> i32
    llvm.br ^all
  ^all:
)",
                       y),
               "divergent shuffle: lanes");
}

TEST(Warp, Movmatrix) {
  std::vector<int> y;
  // Element (r, c) is 8 r + c.
  ASSERT_EQ(runWarp(R"(
    %v0 = llvm.mul %lane, %c2 : i32
    %v1 = llvm.add %v0, %c1 : i32
    %v2 = llvm.shl %v1, %c16 : i32
    %v = llvm.or %v0, %v2 : i32
    %w = nvvm.inline_ptx "movmatrix.sync.aligned.m8n8.trans.b16 {$w0}, {$r0};" ro(%v : i32) -> i32
)" + store("%w"),
                    y),
            "");
  for (int lane = 0; lane < 32; ++lane) {
    int row = lane / 4, column = lane % 4 * 2;
    EXPECT_EQ(y[lane] & 0xffff, 8 * column + row);
    EXPECT_EQ(y[lane] >> 16, 8 * (column + 1) + row);
  }
}

/// Each lane writes four words, 4 lane to 4 lane + 3, and names the row that lane ^ 5 wrote, at
/// `rowBytes` bytes a row; word `matrix` of what it gets is stored.
static std::string loadMatrices(const std::string &between, int matrix, int rowBytes = 16) {
  std::string body;
  for (int i = 0; i < 4; ++i) {
    std::string n = std::to_string(i);
    body += "  %m" + n + " = llvm.mul %lane, %c4 : i32\n  %v" + n + " = llvm.add %m" + n + ", %c" +
            n + " : i32\n  %p" + n + " = llvm.getelementptr %s[%v" + n +
            "] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i32\n  llvm.store %v" + n + ", %p" + n +
            " {alignment = 4 : i64} : i32, !llvm.ptr<3>\n";
  }
  std::string four = "!llvm.struct<(i32, i32, i32, i32)>";
  return body + between + "  %other = llvm.xor %lane, %c5 : i32\n  %bytes = llvm.mlir.constant(" +
         std::to_string(rowBytes) +
         " : i32) : i32\n  %at = llvm.mul %other, %bytes : i32\n"
         "  %row = llvm.getelementptr %s[%at] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8\n"
         "  %x = nvvm.ldmatrix %row {num = 4 : i32, layout = #nvvm.mma_layout<row>, shape = "
         "#nvvm.ld_st_matrix_shape<m = 8, n = 8>, eltType = #nvvm.ld_st_matrix_elt_type<b16>} : "
         "(!llvm.ptr<3>) -> " +
         four + "\n  %w = llvm.extractvalue %x[" + std::to_string(matrix) + "] : " + four + "\n" +
         store("%w");
}

TEST(Warp, Ldmatrix) {
  std::vector<int> y;
  const std::string sync = "  nvvm.bar.warp.sync %full : i32\n";
  for (int matrix = 0; matrix < 4; ++matrix) {
    ASSERT_EQ(runWarp(loadMatrices(sync, matrix), y, 32, 512), "");
    for (int lane = 0; lane < 32; ++lane)
      EXPECT_EQ(y[lane], ((8 * matrix + lane / 4) ^ 5) * 4 + lane % 4);
  }
  EXPECT_FAULT(runWarp(loadMatrices("", 0), y, 32, 512), "was never written (uninitialised)");
  EXPECT_FAULT(runWarp(loadMatrices(sync, 0, 8), y, 32, 512),
               "of shared memory, but must be a multiple of 16");
}

/// Loads the operands of an mma from argument 0 (A: four registers a lane, as the instruction has
/// them) and 1 (B: two), and stores the four sums to argument 2.
static std::string mmaKernel(bool integers) {
  std::string body;
  auto load = [&](int argument, int count, const std::string &name) {
    for (int i = 0; i < count; ++i) {
      std::string n = name + std::to_string(i);
      body += "  %" + n + "m = llvm.mul %lane, %c" + std::to_string(count) + " : i32\n  %" + n +
              "i = llvm.add %" + n + "m, %c" + std::to_string(i) + " : i32\n  %" + n +
              "p = llvm.getelementptr %a" + std::to_string(argument) + "[%" + n +
              "i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32\n  %" + n + (integers ? "" : "w") +
              " = llvm.load %" + n + "p : !llvm.ptr<1> -> i32\n";
      if (!integers)
        body += "  %" + n + " = llvm.bitcast %" + n + "w : i32 to vector<2xf16>\n";
    }
  };
  load(0, 4, "x");
  load(1, 2, "z");
  std::string sum = integers ? "i32" : "f32";
  std::string four = "!llvm.struct<(" + sum + ", " + sum + ", " + sum + ", " + sum + ")>";
  if (integers)
    body +=
        "  %d = nvvm.mma.sync A[%x0, %x1, %x2, %x3] B[%z0, %z1] C[%c1, %c1, %c1, %c1] "
        "{layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, "
        "shape = #nvvm.shape<m = 16, n = 8, k = 32>, multiplicandAPtxType = #nvvm.mma_type<s8>, "
        "multiplicandBPtxType = #nvvm.mma_type<s8>, "
        "intOverflowBehavior = #nvvm.mma_int_overflow<wrapped>} : (i32, i32, i32) -> " +
        four + "\n";
  else
    body +=
        "  %one = llvm.mlir.constant(1.0 : f32) : f32\n"
        "  %d = nvvm.mma.sync A[%x0, %x1, %x2, %x3] B[%z0, %z1] C[%one, %one, %one, %one] "
        "{layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, "
        "shape = #nvvm.shape<m = 16, n = 8, k = 16>} : (vector<2xf16>, vector<2xf16>, f32) -> " +
        four + "\n";
  for (int i = 0; i < 4; ++i) {
    std::string n = std::to_string(i);
    body += "  %e" + n + " = llvm.extractvalue %d[" + n + "] : " + four + "\n  %o" + n +
            "m = llvm.mul %lane, %c4 : i32\n  %o" + n + "i = llvm.add %o" + n + "m, %c" + n +
            " : i32\n  %o" + n + "p = llvm.getelementptr %a2[%o" + n +
            "i] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, i32\n  llvm.store %e" + n + ", %o" + n +
            "p : " + sum + ", !llvm.ptr<1>\n";
  }
  return kernel("k", 3, body + "  llvm.return");
}

// Where the PTX ISA puts element (row, column) of each operand of a 16 x 8 x K product: lane,
// register and place in it; `width` elements a register.
struct Place {
  int lane, slot, element;
};
static Place placeA(int row, int k, int width) {
  int half = 4 * width;
  return {row % 8 * 4 + k % half / width, row / 8 + k / half * 2, k % width};
}
static Place placeB(int k, int column, int width) {
  int half = 4 * width;
  return {column * 4 + k % half / width, k / half, k % width};
}
static Place placeC(int row, int column) {
  return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2, 0};
}

TEST(Warp, IntegerMatrixProduct) {
  std::mt19937 random(1);
  int8_t a[16][32], b[32][8];
  std::vector<uint32_t> fragmentA(128), fragmentB(64);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 32; ++k) {
      a[row][k] = int8_t(random());
      Place place = placeA(row, k, 4);
      fragmentA[place.lane * 4 + place.slot] |= uint32_t(uint8_t(a[row][k])) << 8 * place.element;
    }
  for (int k = 0; k < 32; ++k)
    for (int column = 0; column < 8; ++column) {
      b[k][column] = int8_t(random());
      Place place = placeB(k, column, 4);
      fragmentB[place.lane * 2 + place.slot] |= uint32_t(uint8_t(b[k][column]))
                                                << 8 * place.element;
    }
  Bench bench(mmaKernel(true));
  ASSERT_EQ(bench.error, "");
  uint32_t inA = bench.buffer("a", fragmentA), inB = bench.buffer("b", fragmentB),
           out = bench.buffer("d", std::vector<int>(128));
  bench.launch("k", 1, 32, 0, {inA, inB, out});
  ASSERT_EQ(bench.run(), "");
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int sum = 1;
      for (int k = 0; k < 32; ++k)
        sum += a[row][k] * b[k][column];
      Place place = placeC(row, column);
      EXPECT_EQ(bench.at<int>(out)[place.lane * 4 + place.slot], sum);
    }
}

TEST(Warp, HalfMatrixProduct) {
  // Eighths from -4 to 4 are exact in f16: sign, exponent and fraction by hand.
  auto half = [](float value) -> uint16_t {
    if (value == 0)
      return 0;
    int exponent;
    float fraction = std::frexp(std::fabs(value), &exponent);
    return (value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | (int(fraction * 2048) & 1023);
  };
  std::mt19937 random(2);
  float a[16][16], b[16][8];
  std::vector<uint32_t> fragmentA(128), fragmentB(64);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) {
      a[row][k] = float(int(random() % 65) - 32) / 8;
      Place place = placeA(row, k, 2);
      fragmentA[place.lane * 4 + place.slot] |= uint32_t(half(a[row][k])) << 16 * place.element;
    }
  for (int k = 0; k < 16; ++k)
    for (int column = 0; column < 8; ++column) {
      b[k][column] = float(int(random() % 65) - 32) / 8;
      Place place = placeB(k, column, 2);
      fragmentB[place.lane * 2 + place.slot] |= uint32_t(half(b[k][column])) << 16 * place.element;
    }
  Bench bench(mmaKernel(false));
  ASSERT_EQ(bench.error, "");
  uint32_t inA = bench.buffer("a", fragmentA), inB = bench.buffer("b", fragmentB),
           out = bench.buffer("d", std::vector<float>(128));
  bench.launch("k", 1, 32, 0, {inA, inB, out});
  ASSERT_EQ(bench.run(), "");
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 1;
      for (int k = 0; k < 16; ++k)
        sum += a[row][k] * b[k][column];
      Place place = placeC(row, column);
      EXPECT_EQ(bench.at<float>(out)[place.lane * 4 + place.slot], sum);
    }
}

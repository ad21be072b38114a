// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/StorageType.h"

#include "sluice-support/Safetensors.h"

#include <gtest/gtest.h>

using namespace sluice;

TEST(StorageType, BytesOfBlocksAndNumbers) {
  EXPECT_EQ(storageBytes(StorageType::F16, {4, 512}), 4096u);
  EXPECT_EQ(storageBytes(StorageType::Q8_0, {4, 512}), 4u * 512 / 32 * 34);
  EXPECT_EQ(storageBytes(StorageType::Q4_0, {4, 512}), 4u * 512 / 32 * 18);
  EXPECT_EQ(storageBytes(StorageType::Q6_K, {4, 512}), 4u * 512 / 256 * 210);
  EXPECT_EQ(storageBytes(StorageType::F32, {}), 4u);
  EXPECT_EQ(storageBytes(StorageType::F32, {0, 7}), 0u);
}

TEST(StorageType, RefusesWhatCannotBe) {
  EXPECT_FALSE(storageBytes(StorageType::Q8_0, {4, 33}));
  EXPECT_FALSE(storageBytes(StorageType::F32, {-1}));
  EXPECT_FALSE(storageBytes(StorageType::F32, {INT64_MAX, 2}));
  EXPECT_FALSE(storageBytes(StorageType::F32, {int64_t(1) << 31, int64_t(1) << 32}));
  EXPECT_FALSE(storageBytes(StorageType::F64, {int64_t(1) << 62}));
  // Without regard to the order, a zero does not excuse the rest.
  EXPECT_FALSE(storageBytes(StorageType::F32, {INT64_MAX, INT64_MAX, 0}));
  EXPECT_FALSE(storageBytes(StorageType::F32, {0, INT64_MAX, INT64_MAX}));
}

TEST(StorageType, NamesAndNumbersGoBothWays) {
  for (int i = 0; i <= static_cast<int>(StorageType::Q1_0); ++i) {
    auto type = static_cast<StorageType>(i);
    const StorageInfo &info = storageInfo(type);
    EXPECT_EQ(storageFromName(info.name), type) << info.name.str();
    if (info.ggmlId >= 0)
      EXPECT_EQ(storageFromGGML(info.ggmlId), type) << info.name.str();
    EXPECT_EQ(storageFromSafetensors(info.name).has_value(), isInSafetensors(info.type))
        << info.name.str();
    if (std::optional<uint32_t> bits = support::safetensorsElementBits(info.name)) {
      EXPECT_EQ(*bits, 8 * info.blockBytes) << info.name.str();
      EXPECT_EQ(info.blockElements, 1u) << info.name.str();
    }
  }
  EXPECT_FALSE(storageFromGGML(4));  // Q4_2, withdrawn
  EXPECT_FALSE(storageFromGGML(31)); // Q4_0_4_4, withdrawn
  EXPECT_FALSE(storageFromGGML(UINT32_MAX));
  EXPECT_FALSE(storageFromSafetensors("F4"));
}

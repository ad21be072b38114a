// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Reference/Tensor.h"

#include <cassert>
#include <functional>
#include <numeric>

using namespace sluice::reference;

static int64_t product(llvm::ArrayRef<int64_t> shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>());
}

Tensor Tensor::zeros(llvm::ArrayRef<int64_t> shape) {
  return floats(shape, std::vector<float>(product(shape)));
}

Tensor Tensor::floats(llvm::ArrayRef<int64_t> shape, std::vector<float> values) {
  assert(product(shape) == static_cast<int64_t>(values.size()));
  return {{shape.begin(), shape.end()}, std::move(values), {}};
}

Tensor Tensor::ints(llvm::ArrayRef<int64_t> shape, std::vector<int32_t> integers) {
  assert(product(shape) == static_cast<int64_t>(integers.size()));
  return {{shape.begin(), shape.end()}, {}, std::move(integers)};
}

int64_t Tensor::width() const {
  return shape.empty() ? 1 : product(llvm::ArrayRef(shape).drop_front());
}

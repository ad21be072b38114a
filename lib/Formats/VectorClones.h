// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loops over vectors of 16 floats whose results do not depend on the machine's vector unit.

#ifndef SLUICE_LIB_FORMATS_VECTORCLONES_H
#define SLUICE_LIB_FORMATS_VECTORCLONES_H

// Where the loader can choose, a function is compiled for three generations of x86-64. None may
// contract products and sums, or their results would differ.
#if defined(__x86_64__) && defined(__linux__) && defined(__clang__) &&                             \
    !__has_feature(address_sanitizer)
#define SLUICE_VECTOR_CLONES                                                                       \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SLUICE_VECTOR_CLONES
#endif

namespace sluice::formats {

constexpr int lanes = 16;
typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));

} // namespace sluice::formats

#endif // SLUICE_LIB_FORMATS_VECTORCLONES_H

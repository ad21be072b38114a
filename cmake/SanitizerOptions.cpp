// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the sanitizers' runtimes are told. It is compiled into every executable of a build with
// SLUICE_SANITIZE, so that ctest, lit and a program started by hand behave alike. ASAN_OPTIONS and
// UBSAN_OPTIONS of the environment override it.

extern "C" __attribute__((visibility("default"), used)) const char *__asan_default_options() {
  // allow_user_poisoning=0: LLVM's allocators poison the memory that they hold free, in headers
  // that are compiled here, with the sanitizer. libLLVM and libMLIR are compiled without it; they
  // take memory from the same allocators and do not unpoison it. detect_leaks=1: also libLLVM's
  // allocations are seen, because malloc is the sanitizer's, and what LLVM keeps until a process
  // ends is reachable from its globals. A program has to end by exit or by returning from main; one
  // that a signal ends is not searched.
  return "allow_user_poisoning=0:detect_leaks=1:strict_string_checks=1:"
         "check_initialization_order=1";
}

extern "C" __attribute__((visibility("default"), used)) const char *__ubsan_default_options() {
  return "print_stacktrace=1";
}

// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/GpuTarget.h"
#include "sluice/Target/ScratchDirectory.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/Regex.h"

#include <algorithm>

using namespace mlir;
using namespace sluice;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;
using llvm::SmallString;

/// `nvidia/*/bin/ptxas` in the packages of any Python of the user, the newest package first.
static std::vector<std::string> ptxasOfPackages() {
  std::vector<std::string> found;
  SmallString<128> root;
  if (!llvm::sys::path::home_directory(root))
    return found;
  llvm::sys::path::append(root, ".local", "lib");
  auto forEntries = [](const llvm::Twine &folder, auto visit) {
    std::error_code code;
    for (llvm::sys::fs::directory_iterator it(folder, code), end; !code && it != end;
         it.increment(code))
      visit(it->path());
  };
  forEntries(root, [&](StringRef python) {
    if (llvm::sys::path::filename(python).starts_with("python3"))
      forEntries(python + "/site-packages/nvidia", [&](StringRef package) {
        std::string path = (package + "/bin/ptxas").str();
        if (llvm::sys::fs::can_execute(path))
          found.push_back(path);
      });
  });
  llvm::sort(found, std::greater<>());
  return found;
}

Expected<std::string> nvidia::findPtxas() {
  if (std::optional<std::string> named = llvm::sys::Process::GetEnv("SLUICE_PTXAS")) {
    if (llvm::sys::fs::can_execute(*named))
      return *named;
    return createStringError("SLUICE_PTXAS names '" + *named + "', which is no program");
  }
  if (llvm::ErrorOr<std::string> path = llvm::sys::findProgramByName("ptxas"))
    return *path;
  std::vector<std::string> places;
  for (const char *variable : {"CUDA_HOME", "CUDA_PATH"})
    if (std::optional<std::string> root = llvm::sys::Process::GetEnv(variable))
      places.push_back(*root + "/bin/ptxas");
  places.push_back("/usr/local/cuda/bin/ptxas");
  llvm::append_range(places, ptxasOfPackages());
  if (StringRef configured = SLUICE_CONFIGURED_PTXAS; !configured.empty())
    places.push_back(configured.str());
  for (const std::string &path : places)
    if (llvm::sys::fs::can_execute(path))
      return path;
  return createStringError("no ptxas found: looked on the PATH, for " + llvm::join(places, ", ") +
                           " and in the user's Python packages (nvidia-cuda-nvcc)");
}

Expected<std::vector<nvidia::KernelResources>> nvidia::parseResources(StringRef log) {
  std::vector<KernelResources> kernels;
  llvm::Regex entry("Compiling entry function '([^']+)' for '");
  llvm::Regex frame("([0-9]+) bytes stack frame, ([0-9]+) bytes spill stores, ([0-9]+) bytes spill "
                    "loads");
  llvm::Regex used("Used ([0-9]+) registers");
  llvm::Regex shared("([0-9]+) bytes smem"), barriers("used ([0-9]+) barriers");
  SmallVector<StringRef> lines, match;
  log.split(lines, '\n');
  auto number = [](StringRef text) {
    int64_t value = 0;
    text.getAsInteger(10, value);
    return value;
  };
  for (StringRef line : lines) {
    if (entry.match(line, &match)) {
      kernels.push_back({match[1].str()});
    } else if (kernels.empty()) {
      continue;
    } else if (frame.match(line, &match)) {
      KernelResources &kernel = kernels.back();
      kernel.stackBytes = number(match[1]);
      kernel.spillStoreBytes = number(match[2]);
      kernel.spillLoadBytes = number(match[3]);
    } else if (used.match(line, &match)) {
      kernels.back().registers = number(match[1]);
      if (shared.match(line, &match))
        kernels.back().staticSharedBytes = number(match[1]);
      if (barriers.match(line, &match))
        kernels.back().barriers = number(match[1]);
    }
  }
  for (const KernelResources &kernel : kernels)
    if (!kernel.registers)
      return createStringError("ptxas does not say how many registers kernel " + kernel.name +
                               " uses");
  llvm::sort(kernels,
             [](const KernelResources &x, const KernelResources &y) { return x.name < y.name; });
  return kernels;
}

Error nvidia::assemble(GpuCode &code, StringRef ptxas) {
  Expected<ScratchDirectory> scratch = ScratchDirectory::createTemporary("sluice-kernels");
  if (!scratch)
    return scratch.takeError();
  std::string input = (scratch->path() + "/kernels.ptx").str();
  std::string output = (scratch->path() + "/kernels.cubin").str();
  std::string log = (scratch->path() + "/log").str();
  if (std::error_code error = writeFile(input, code.ptx))
    return createStringError(error, input + ": cannot write GPU kernels: " + error.message());
  std::string arch = "-arch=" + code.arch;
  StringRef arguments[] = {ptxas, "-v", "-O3", arch, input, "-o", output};
  std::optional<StringRef> redirects[] = {StringRef(), StringRef(log), StringRef(log)};
  std::string message;
  int status = llvm::sys::ExecuteAndWait(ptxas, arguments, std::nullopt, redirects,
                                         /*SecondsToWait=*/600, /*MemoryLimit=*/0, &message);
  std::string text;
  // Without a log where the program could not be started.
  if (Expected<std::string> said = readFile(log))
    text = std::move(*said);
  else
    llvm::consumeError(said.takeError());
  if (status != 0) {
    StringRef reason = message;
    SmallVector<StringRef> lines;
    StringRef(text).split(lines, '\n');
    for (StringRef line : llvm::reverse(lines))
      if (line.contains("error") || line.contains("fatal"))
        reason = line.trim();
    return createStringError(
        ptxas + ": cannot assemble GPU kernels for " + code.arch +
        (reason.empty() ? ", status " + std::to_string(status) : ": " + reason.str()));
  }
  Expected<std::vector<KernelResources>> resources = parseResources(text);
  if (!resources)
    return resources.takeError();
  Expected<std::string> cubin = readFile(output);
  if (!cubin)
    return cubin.takeError();
  code.cubin = std::move(*cubin);
  code.resources = std::move(*resources);
  return Error::success();
}

Expected<nvidia::GpuCode> nvidia::compileKernels(mlir::gpu::GPUModuleOp kernels,
                                                 std::string *remark) {
  GpuCode code;
  Expected<std::string> arch = archOf(kernels);
  if (!arch)
    return arch.takeError();
  code.arch = *arch;
  Expected<std::string> ptx = emitPtx(kernels);
  if (!ptx)
    return ptx.takeError();
  code.ptx = std::move(*ptx);
  Expected<std::string> ptxas = findPtxas();
  if (!ptxas) {
    std::string why = llvm::toString(ptxas.takeError());
    if (remark)
      *remark = why;
    return code;
  }
  if (Error error = assemble(code, *ptxas))
    return error;
  return code;
}

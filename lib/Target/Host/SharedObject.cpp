// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/HostTarget.h"
#include "sluice/Target/LlvmTarget.h"
#include "sluice/Target/ScratchDirectory.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Program.h"

using namespace mlir;
using namespace sluice;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;

void host::registerHostTranslations(DialectRegistry &registry) {
  registerLlvmTranslations(registry);
}

Expected<std::string> host::findLinker() {
  for (StringRef name : {"ld.lld-22", "ld.lld", "ld"})
    if (llvm::ErrorOr<std::string> path = llvm::sys::findProgramByName(name))
      return *path;
  StringRef configured = SLUICE_HOST_LINKER;
  if (llvm::sys::fs::can_execute(configured))
    return configured.str();
  return createStringError(
      "no linker found for host kernels: looked for ld.lld-22, ld.lld and ld on the PATH" +
      (configured.empty() ? "" : " and for " + configured));
}

/// Links an object to a shared object.
static Expected<std::string> link(StringRef object) {
  Expected<std::string> linker = host::findLinker();
  if (!linker)
    return linker.takeError();
  Expected<ScratchDirectory> scratch = ScratchDirectory::createTemporary("sluice-kernels");
  if (!scratch)
    return scratch.takeError();
  std::string input = (scratch->path() + "/kernels.o").str();
  std::string output = (scratch->path() + "/kernels.so").str();
  std::string log = (scratch->path() + "/log").str();
  if (std::error_code code = writeFile(input, object))
    return createStringError(code, input + ": cannot write host kernels: " + code.message());

  // Nothing of the input's path gets into the output; an undefined symbol is an error, since
  // nothing is linked against.
  std::vector<StringRef> arguments = {*linker,
                                      "-shared",
                                      "-o",
                                      output,
                                      input,
                                      "--build-id=none",
                                      "-z",
                                      "defs",
                                      "-z",
                                      "noexecstack",
                                      "--hash-style=gnu",
                                      "-soname",
                                      "kernels.so",
                                      "-s"};
  std::string message;
  std::optional<StringRef> redirects[] = {StringRef(), StringRef(log), StringRef(log)};
  int status =
      llvm::sys::ExecuteAndWait(*linker, arguments, std::nullopt, redirects, 0, 0, &message);
  if (status != 0) {
    if (Expected<std::string> said = readFile(log); !said)
      llvm::consumeError(said.takeError());
    else if (message.empty())
      message = StringRef(*said).trim().split('\n').first.str();
    return createStringError(*linker + ": linking host kernels failed with status " +
                             std::to_string(status) + ": " + message);
  }
  return readFile(output);
}

Expected<std::string> host::compileKernels(ModuleOp kernels, std::string *llvmIr) {
  Expected<Isa> isa = kernelsIsa(kernels);
  if (!isa)
    return isa.takeError();
  // CPU and features of each function are its attributes.
  Expected<std::unique_ptr<llvm::TargetMachine>> machine =
      createTargetMachine("x86_64-unknown-linux-gnu", "x86-64", "", llvm::Reloc::PIC_);
  if (!machine)
    return machine.takeError();

  DialectRegistry registry;
  registerHostTranslations(registry);
  kernels.getContext()->appendDialectRegistry(registry);
  llvm::LLVMContext context; // outlives its module
  Expected<std::unique_ptr<llvm::Module>> module = translateKernels(kernels, context);
  if (!module)
    return createStringError("host " + llvm::toString(module.takeError()));
  optimiseKernels(**module, **machine, llvm::OptimizationLevel::O3);
  if (llvmIr) {
    llvm::raw_string_ostream os(*llvmIr);
    (*module)->print(os, nullptr);
  }
  Expected<llvm::SmallString<0>> object =
      emitKernels(**module, **machine, llvm::CodeGenFileType::ObjectFile);
  if (!object)
    return object.takeError();
  return link(object->str());
}

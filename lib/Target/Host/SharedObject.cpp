// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Target/HostTarget.h"
#include "sluice/Target/ScratchDirectory.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"

using namespace mlir;
using namespace sluice;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;

void host::registerHostTranslations(DialectRegistry &registry) {
  registerBuiltinDialectTranslation(registry);
  registerLLVMDialectTranslation(registry);
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

static Expected<std::unique_ptr<llvm::TargetMachine>> createTargetMachine() {
  static std::once_flag initialised;
  std::call_once(initialised, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
  });
  std::string message;
  llvm::Triple triple("x86_64-unknown-linux-gnu");
  const llvm::Target *target = llvm::TargetRegistry::lookupTarget(triple, message);
  if (!target)
    return createStringError("LLVM cannot compile for " + triple.str() + ": " + message);
  // CPU and features of each function are its attributes.
  std::unique_ptr<llvm::TargetMachine> machine(
      target->createTargetMachine(triple, "x86-64", "", llvm::TargetOptions(), llvm::Reloc::PIC_,
                                  std::nullopt, llvm::CodeGenOptLevel::Aggressive));
  if (!machine)
    return createStringError("LLVM cannot make a target machine for " + triple.str());
  return machine;
}

static void optimise(llvm::Module &module, llvm::TargetMachine &machine) {
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager components;
  llvm::ModuleAnalysisManager modules;
  llvm::PipelineTuningOptions tuning;
  // The generators have vectorised and unrolled already.
  tuning.LoopVectorization = false;
  tuning.SLPVectorization = false;
  llvm::PassBuilder builder(&machine, tuning);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(components);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, components, modules);
  builder.buildPerModuleDefaultPipeline(llvm::OptimizationLevel::O3).run(module, modules);
}

static Error writeFile(StringRef path, StringRef contents) {
  std::error_code code;
  llvm::raw_fd_ostream os(path, code);
  if (!code) {
    os << contents;
    os.close();
    code = os.error();
    os.clear_error();
  }
  if (code)
    return createStringError(code, path + ": cannot write host kernels: " + code.message());
  return Error::success();
}

static Expected<std::string> readFile(StringRef path) {
  auto buffer =
      llvm::MemoryBuffer::getFile(path, /*IsText=*/false, /*RequiresNullTerminator=*/false);
  if (!buffer)
    return createStringError(buffer.getError(),
                             path + ": cannot read: " + buffer.getError().message());
  return (*buffer)->getBuffer().str();
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
  if (Error error = writeFile(input, object))
    return std::move(error);

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
  Expected<std::unique_ptr<llvm::TargetMachine>> machine = createTargetMachine();
  if (!machine)
    return machine.takeError();

  DialectRegistry registry;
  registerHostTranslations(registry);
  kernels.getContext()->appendDialectRegistry(registry);
  std::string diagnostics;
  llvm::LLVMContext context; // outlives its module
  std::unique_ptr<llvm::Module> module;
  {
    ScopedDiagnosticHandler handler(kernels.getContext(), [&](Diagnostic &diagnostic) {
      if (diagnostics.empty())
        diagnostics = diagnostic.str();
      return success();
    });
    module = translateModuleToLLVMIR(kernels, context, "kernels");
  }
  if (!module)
    return createStringError("host kernels cannot be translated to LLVM IR: " + diagnostics);
  module->setTargetTriple((*machine)->getTargetTriple());
  module->setDataLayout((*machine)->createDataLayout());
  optimise(*module, **machine);
  if (llvmIr) {
    llvm::raw_string_ostream os(*llvmIr);
    module->print(os, nullptr);
  }

  llvm::SmallString<0> object;
  llvm::raw_svector_ostream os(object);
  llvm::legacy::PassManager emitter;
  if ((*machine)->addPassesToEmitFile(emitter, os, nullptr, llvm::CodeGenFileType::ObjectFile))
    return createStringError("LLVM cannot write an object file for " +
                             (*machine)->getTargetTriple().str());
  emitter.run(*module);
  return link(object.str());
}

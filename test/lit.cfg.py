# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

import os
import shutil

import lit.formats
from lit.llvm import llvm_config
from lit.llvm.subst import ToolSubst

config.name = "Sluice"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs", "unit"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.sluice_obj_root, "test")

llvm_config.with_system_environment(["HOME", "TMP", "TEMP"])
llvm_config.use_default_substitutions()
llvm_config.with_environment("PATH", config.llvm_tools_dir, append_path=True)
config.substitutions.append(("%sluice_src", config.sluice_src_root))
config.substitutions.append(("%build", config.sluice_obj_root))
config.substitutions.append(("%models", os.path.join(config.sluice_src_root, "models")))
config.substitutions.append(("%data", os.path.join(config.test_source_root, "data")))
if config.sluice_sanitize:
    config.available_features.add("sanitize")
if shutil.which("chromium"):
    config.available_features.add("chromium")
# With SLUICE_VERIFY_ROUNDTRIP=1 every test also proves that its IR survives printing and parsing.
extra_args = ["--verify-roundtrip"] if os.environ.get("SLUICE_VERIFY_ROUNDTRIP") else []
llvm_config.add_tool_substitutions(
    [ToolSubst("sluice-opt", extra_args=extra_args), "sluice"],
    [config.sluice_tools_dir, config.llvm_tools_dir],
)

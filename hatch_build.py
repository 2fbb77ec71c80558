"""Compile the kernels into the wheel where there is a compiler; without one the wheel is the same in pure Python."""

import importlib.util
import os
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "src/transformers_walloc/native"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if self.target_name != "wheel" or os.environ.get("WALLOC_NO_NATIVE", "0") not in ("", "0"):
            return
        spec = importlib.util.spec_from_file_location("walloc_build", Path(self.root, FOLDER, "build.py"))
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            libraries = build.compile_libraries()
        except (build.BuildError, OSError) as error:
            self.app.display_warning(f"pure Python, without compiled kernels: {error}")
            return
        build_data["artifacts"] += [f"/{FOLDER}/{library.name}" for library in libraries]
        build_data["pure_python"] = False
        # The library is loaded with ctypes: one wheel serves every Python of the platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

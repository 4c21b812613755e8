"""Compiles the kernels of `alarm_models.modeling.kernels` when the package is built or installed.

The compiler is zig's clang, a wheel that the build requires; users need none. There is a library
for each instruction set, and the one that fits the processor is loaded. On other systems the
package has no kernels, and torch's operators are used.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("alarm_models/modeling/kernels")

#: Instruction sets by torch's names, and the processor features that torch requires for them.
AVX2 = ("avx2", "fma")
AVX512 = (*AVX2, "avx512f", "avx512vl", "avx512bw", "avx512dq")
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": (*AVX512, "avx512bf16")}

#: The kernels use no library, so they run with any version of the C library.
TARGET, TAG = "x86_64-linux-gnu.2.17", "py3-none-manylinux_2_17_x86_64"

OPTIONS = (
    "-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-sanitize=all",
    "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fPIC", "-shared", "-nostdlib", "-s",
    "-Wall", "-Wextra", "-Werror",
)  # fmt: skip


class CompileKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled kernels to a wheel, or to the source tree of an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels, and tag the wheel with the system that they are for."""
        if sys.platform == "linux" and platform.machine() == "x86_64":
            if importlib.util.find_spec("ziglang") is None:
                self.app.display_warning("without ziglang, alarm-models has no compiled kernels")
                return
            compile_kernels(Path(self.root) / KERNELS)
            build_data["artifacts"].append(f"{KERNELS}/*.so")
            build_data.update(pure_python=False, tag=TAG)


def compile_kernels(folder: Path) -> None:
    """Compile a library for each instruction set from the sources in the folder."""
    sources = sorted(map(str, folder.glob("*.cpp")))
    checksum = 0
    for source in sorted(folder.glob("*.[ch]*")):
        checksum = zlib.crc32(source.read_bytes(), checksum)
    # The server does not load libraries that were compiled from other sources.
    definition = f"-DCHECKSUM={checksum & 0x7FFFFFFF}"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        for name, features in INSTRUCTION_SETS.items():
            compiler = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET]
            processor = f"-mcpu={'+'.join(('x86_64', *features))}"
            library = folder / f"kernels_{name}.so"
            subprocess.run(
                [*compiler, processor, definition, *OPTIONS, *sources, "-o", str(library)],
                check=True,
                env=environment,
            )

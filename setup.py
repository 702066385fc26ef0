"""Compiles the native engine's kernels (kernels/cpu) into the package, if there is a C++ compiler.

Everything else about the package is in pyproject.toml. Without a compiler, or where compiling fails, the package
installs without the native engine and says so.
"""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path(__file__).parent / "kernels" / "cpu"
COMMON = ["-std=c++17", "-O3", "-fPIC", "-Wall", "-fno-exceptions", "-Wno-psabi"]
# Each instruction set is a file of its own with its own flags; which of them runs is decided when it runs.
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mprefer-vector-width=512"
# GCC 12 warns of its own intrinsics' deliberately undefined operands.
QUIET = "-Wno-uninitialized -Wno-maybe-uninitialized"
SOURCES = {
    "x86_64": {"avx512": f"{AVX512} {QUIET}", "avxvnni": "-mavx2 -mavxvnni", "avx2": "-mavx2", "plain": ""},
    "aarch64": {"neon": "-march=armv8.2-a+dotprod", "plain": ""},
}


def compile_library(target: Path, machine: str, compiler: str, include: str, extra: str = "") -> None:
    """Compile and link the library. Raises CalledProcessError or OSError where that fails."""
    sources = {"amd64": SOURCES["x86_64"], "arm64": SOURCES["aarch64"], **SOURCES}.get(machine.lower(), {"plain": ""})
    with tempfile.TemporaryDirectory() as directory:

        def compile_one(name: str, flags: str) -> str:
            made = str(Path(directory) / f"{name}.o")
            command = [*shlex.split(compiler), *COMMON, *shlex.split(flags), *shlex.split(extra)]
            subprocess.run([*command, "-c", str(KERNELS / f"{name}.cc"), "-o", made], check=True)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sources = {**sources, "runtime": "", "ffi": f"-isystem {include}"}
            objects = list(pool.map(compile_one, sources, sources.values()))
        link = [*shlex.split(compiler), "-shared", *shlex.split(extra), *objects, "-o", str(target), "-pthread"]
        subprocess.run(link, check=True)


class BuildKernels(build_ext):
    """Builds intlm/population/libintlm.so, or goes on without it."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # an earlier build's, of other sources
        try:
            import jax.ffi

            compile_library(target, platform.machine(), os.environ.get("CXX", "c++"), jax.ffi.include_dir())
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            print(f"intlm: the native engine was not compiled ({error}); training will use XLA", file=sys.stderr)


class Wheel(bdist_wheel):
    """The kernels are called through ctypes and XLA: one wheel serves every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("intlm.population.libintlm", sources=[], optional=True)],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    )

"""Compiles the native engine's kernels (kernels/cpu) into the package, if there is a C++ compiler.

Everything else about the package is in pyproject.toml. Without a compiler, or where compiling fails, the package
installs without the native engine and says so.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "kernels"))


class BuildKernels(build_ext):
    """Builds intlm/population/libintlm.so; if that fails, the package is installed without it."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # an earlier build's, of other sources
        try:
            import jax.ffi
            from targets import compile_kernels, targets_of

            include = {"ffi": f"-isystem {jax.ffi.include_dir()}"}
            with tempfile.TemporaryDirectory() as directory:
                made, compiler = Path(directory, target.name), os.environ.get("CXX", "c++")
                compile_kernels(made, targets_of(platform.machine()), compiler, "-O3", include, "-shared")
                shutil.move(made, target)
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

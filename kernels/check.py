"""Compare the kernels' digests (cpu/check.cc) across builds, without JAX.

The builds: one with the address and undefined-behaviour sanitizers, in which plain C++ replaces AVX-VNNI's instruction
on an x86-64 processor without it; and one for 64-bit Arm under an emulator, if its compiler is installed (Debian:
g++-aarch64-linux-gnu, qemu-user). tests/conformance compares the installed kernels with JAX.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from targets import TARGETS, compile_kernels, targets_of

SANITIZED = "-O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


def main() -> int:
    """Print every build's digests; return 1 if they differ."""
    here, processor = targets_of(platform.machine()), Path("/proc/cpuinfo")
    if "avxvnni" in here and not (processor.exists() and "avx_vnni" in processor.read_text("utf-8")):
        here["avxvnni"] = "-mavx2 -DINTLM_EMULATED"
    builds: dict[str, tuple[dict[str, str], str, str, list[str]]] = {  # targets, compiler, flags, command that runs it
        "sanitized": (here, os.environ.get("CXX", "c++"), SANITIZED, [])
    }
    if "neon" not in here and shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64"):
        emulator = ["qemu-aarch64", "-cpu", "max"]
        builds["on 64-bit Arm, emulated"] = (TARGETS["aarch64"], "aarch64-linux-gnu-g++ -static", "-O1", emulator)
    digests = set()
    with tempfile.TemporaryDirectory() as directory:
        for build, (targets, compiler, flags, emulator) in builds.items():
            program = Path(directory, build.split()[0])
            compile_kernels(program, targets, compiler, flags, {"check": ""})
            lines = subprocess.run([*emulator, program], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
            print("".join(f"{line} {build}\n" for line in lines.splitlines()), end="")
            digests |= {line.split()[0] for line in lines.splitlines()}
    return len(digests) != 1


if __name__ == "__main__":
    sys.exit(main())

"""The instruction sets that the kernels are compiled for, with their flags, and how a library is built."""

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "cpu"
COMMON = "-std=c++17 -fPIC -Wall -fno-exceptions -Wno-psabi"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mprefer-vector-width=512"
# GCC 12 warns about the deliberately undefined operands of its own intrinsics.
QUIET = "-Wno-uninitialized -Wno-maybe-uninitialized"
# For each machine, best first; cpu/NAME.h has a target's operations. The target is chosen at run time.
TARGETS = {
    "x86_64": {"avx512": f"{AVX512} {QUIET}", "avxvnni": "-mavx2 -mavxvnni", "avx2": "-mavx2", "plain": ""},
    "aarch64": {"neon": "-march=armv8.2-a+dotprod", "plain": ""},
}


def targets_of(machine: str) -> dict[str, str]:
    """Flags by target, for a machine as `platform.machine` names it."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    return TARGETS.get(machine, {"plain": ""})


def compile_kernels(
    made: Path, targets: dict[str, str], compiler: str, flags: str, sources: dict[str, str], link: str = ""
) -> None:
    """Compile and link every target's engine and further sources, which are given by name with their flags.

    made: the library to write; object files are left beside it. Raises CalledProcessError or OSError if that fails.
    """
    listed = "-DINTLM_TARGETS(X)=" + " ".join(f"X({name})" for name in targets)

    def compile_one(name: str) -> str:
        source, own = name, sources.get(name, "")
        if name in targets:
            source, own = "engine", f"-DINTLM_TARGET={name} {targets[name]}"
        command = [*shlex.split(f"{compiler} {COMMON} {flags} {own}"), listed, "-c", str(SOURCES / f"{source}.cc")]
        subprocess.run([*command, "-o", f"{made}-{name}.o"], check=True)
        return f"{made}-{name}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*targets, "runtime", *sources]))
    subprocess.run([*shlex.split(f"{compiler} {flags} {link}"), *objects, "-o", str(made), "-pthread"], check=True)

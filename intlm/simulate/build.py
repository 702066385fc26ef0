"""Compiles an exported model for a machine, with no library, so that a call of floating point would not link."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from intlm.errors import ConfigError, IntlmError, MissingPackage

CALLED = ("intlm_step", "intlm_loss", "intlm_draw", "intlm_text_loss")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


class BuildError(IntlmError):
    """The compiler failed, or its output contains floating point (`elf`, `wasm`)."""


def host(work: Path) -> Path:
    """A shared library by the system's C compiler, $CC first."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise ConfigError(f"the environment: CC = {os.environ['CC']}: {error}") from None
    compiler = named or [c for c in ("cc", "gcc", "clang") if shutil.which(c)][:1]
    if not compiler or not shutil.which(compiler[0]):
        raise MissingPackage("a C compiler", "the target host", "apt-get install gcc, or your system's equivalent")
    made = work / "model.so"
    _compile([*compiler, "-O3", "-march=native", "-shared", "-fPIC"], work, made)
    return made


def cross(work: Path, target: str, processor: str) -> Path:
    """An ELF file of the model's functions alone, by Zig's C compiler."""
    made = work / "model.elf"
    wanted = [f"-Wl,-u,{name}" for name in CALLED]
    flags = ["-target", target, f"-mcpu={processor}", "-O2", "-ffreestanding", "-nostdlib", "-static"]
    _compile([*_zig(target), *flags, f"-Wl,-e,{CALLED[0]}", *wanted], work, made)
    return made


def wasm(work: Path) -> Path:
    """A WebAssembly module of the model's functions."""
    made = work / "model.wasm"
    wanted = [f"-Wl,--export={name}" for name in (*CALLED, "__heap_base")]
    flags = ["-target", "wasm32-freestanding", "-O2", "-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all"]
    _compile([*_zig("wasm"), *flags, *wanted], work, made)
    return made


def _zig(target: str) -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        raise MissingPackage("ziglang", f"compiling for {target}")
    return [sys.executable, "-P", "-m", "ziglang", "cc"]


def _compile(command: list[str], work: Path, made: Path) -> None:
    files = [str(work / name) for name in ("intlm.c", "weights.c", "layout.c")]
    done = subprocess.run(
        [*command, *WARNINGS, *files, "-o", str(made)], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command[:4])} …: {done.stderr.strip()[-600:]}")

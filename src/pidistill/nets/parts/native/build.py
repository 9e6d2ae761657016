"""The kernels as a shared library: compiled on first use, kept for this processor, and called.

`kernels.c` is compiled once for this machine, in a second, with the C compiler that is there; without one PyTorch's own
operators are used, which take about twice as long. Off with PIDISTILL_NATIVE=0; PIDISTILL_NATIVE_ISA=avx2 leaves AVX-512
alone where it is there, for a folder of figures that compares processors, or to test both.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pidistill.core.errors import PidistillError
from pidistill.files.folders import find_cache_folder

SOURCE = Path(__file__).with_name("kernels.c")


# OpenMP's own functions are those that PyTorch has loaded: a second copy of the library would fight over the cores.
COMPILE = ["-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-nostartfiles", "-nodefaultlibs"]


TARGETS = {None: "-march=native", "avx2": "-march=x86-64-v3"}  # by PIDISTILL_NATIVE_ISA


def list_options() -> list[str]:
    """Give the compiler's options. Raises PidistillError for a set of instructions that is not known here."""
    isa = os.environ.get("PIDISTILL_NATIVE_ISA") or None
    if isa not in TARGETS or (isa and platform.machine() != "x86_64"):
        raise PidistillError(f"PIDISTILL_NATIVE_ISA must be avx2, on an x86-64 processor, or not set, got {isa}")
    return [*COMPILE, TARGETS[isa]]


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are switched off or cannot be had (said once)."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("PIDISTILL_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        if not compiler:
            raise OSError("no C compiler was found")
        options = list_options()
        path = find_cache_folder() / "native" / f"{library_key(compiler, options)}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            subprocess.run([*compiler.split(), *options, "-o", str(temporary), str(SOURCE)], check=True, capture_output=True,
                           text=True, timeout=120)
            temporary.replace(path)  # whole or not at all: several processes may do this
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        from pidistill.core.console import console  # its imports are for those who need them

        console.print(f"the CPU's own kernels cannot be compiled ({reason}); PyTorch's are used, which are slower",
                      soft_wrap=True)
        return None


def describe_processor() -> list[str]:
    """Give the lines in which Linux names the processor and its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})


def library_key(compiler: str, options: Sequence[str]) -> str:
    """What a compiled file depends on: source, options, compiler, processor.

    Two kinds of machine that share a home folder have a file each: one with AVX-512 would end a program that has none.
    """
    version = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, timeout=60).stdout
    text = "\n".join([SOURCE.read_text(), *options, version, platform.machine(), *describe_processor()])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def is_fake(x: Any) -> bool:
    """A tensor without values, with which a step's memory is predicted: nothing is computed, but storages are made."""
    return hasattr(x, "fake_mode")


def run_kernel(name: str, *arguments: Any) -> None:
    """A kernel with tensors as their addresses, None as none, numbers as long, float or (bool) int; threads come last."""
    kinds: dict[type, Any] = {int: ctypes.c_long, float: ctypes.c_float, bool: ctypes.c_int}
    if any(map(is_fake, arguments)):
        return
    values = [kinds[type(x)](x) if type(x) in kinds else ctypes.c_void_p(None if x is None else x.data_ptr())
              for x in arguments]
    getattr(load_library(), name)(*values, ctypes.c_int(torch.get_num_threads()))

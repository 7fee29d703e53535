"""Build the two native parts: the cffi module ``_host`` (API mode, abi3) and the freestanding program ``init``.

Used by ``setup.py``.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cffi import FFI

PACKAGE = Path(__file__).resolve().parents[1] / "ociruntime"
SOURCES = PACKAGE / "_native"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
UNITS = ("init", "sockets", "paths", "files", "mounts", "process", "hooks", "serve", "console")
INIT_UNITS = [SOURCES / f"{name}.c" for name in UNITS]
INIT_FLAGS = [
    *["-std=gnu11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-no-pie"],
    *["-fno-asynchronous-unwind-tables", "-fno-ident", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,norelro", "-s"],
]
SANITIZED_FLAGS = [
    *["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
]
"""Flags for an ordinary program with sanitizers, which tests use as the init."""


def _ops() -> ModuleType:
    """Load the op table by its path, because the package cannot be imported before it is built."""
    spec = importlib.util.spec_from_file_location("_ociruntime_ops", PACKAGE / "plan" / "ops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_header(directory: Path) -> Path:
    """Generate op_table.h, the op table for the C sources, and return its path. A header that is up to date keeps its time."""
    directory.mkdir(parents=True, exist_ok=True)
    header, text = directory / "op_table.h", _ops().c_header()
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    return header


def build_init(target: Path, temporary: Path, flags: Sequence[str] = INIT_FLAGS) -> None:
    """Compile the init to `target`.

    Args:
        target: the program.
        temporary: the directory for the generated header.
        flags: how it is compiled. Default: a static program without a C library.
    """
    header = write_header(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    include = ["-I", str(SOURCES), "-I", str(header.parent)]
    subprocess.run([*compiler, *flags, *WARNINGS, *include, "-o", str(target), *map(str, INIT_UNITS)], check=True)
    target.chmod(0o644)


def make_ffi() -> FFI:
    """Describe the extension; setup.py adds the directory of the generated header."""
    ffi = FFI()
    header = (SOURCES / "host.h").read_text()
    ffi.cdef(header.split("/* cdef begins */")[1].split("/* cdef ends */")[0])
    ffi.set_source(
        "ociruntime._native._host",
        '#include "host.h"',
        sources=["ociruntime/_native/host.c"],
        include_dirs=[str(SOURCES)],
        depends=[str(SOURCES / name) for name in ("host.h", "sys.h")],
        extra_compile_args=["-O2", "-Wall", "-Wextra"],
        py_limited_api=True,
    )
    return ffi


ffi = make_ffi()

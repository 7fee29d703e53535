"""An image with a Python that has ipykernel, made of the interpreter that runs the tests and of its packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import ociruntime as oci

_LEFT_OUT = (
    "config-*",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
)
_NOT_NEEDED = {"debugpy"}
PACKAGES = "/opt/packages"


def _closure(*names: str) -> set[str]:
    """Return the names of installed distributions and of what they need."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name in found or name in _NOT_NEEDED:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform or version
        found.add(name)
        for requirement in requirements:
            if "extra ==" not in requirement and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
                pending.append(re.sub(r"[-_.]+", "-", match[0]).lower())
    return found


def _link(source: str | Path, target: str | Path) -> None:
    """Link a file, or copy it with its time, by which Python knows whether the compiled form of a module is up to date."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _copy_packages(target: Path) -> None:
    for name in _closure("ipykernel"):
        for file in distribution(name).files or ():
            if {"..", "tests", "third_party"}.isdisjoint(file.parts) and (source := Path(str(file.locate()))).exists():
                place = target / file
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(source, place)


def _copy_libraries(root: Path) -> None:
    """Copy the shared libraries of the host that programs and modules in a directory need."""
    objects = [path for path in root.rglob("*") if path.is_file() and (".so" in path.name or os.access(path, os.X_OK))]
    output = subprocess.run(["ldd", *map(str, objects)], capture_output=True, text=True, check=False).stdout
    for library in set(re.findall(r"(/(?:usr/)?lib\S*)", output)):
        place = root / library.rstrip(":").lstrip("/")
        if not place.exists() and os.path.exists(library):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)


def build_kernel_image(target: Path, directory: Path) -> None:
    """Write a SIF file with ``python3`` and ipykernel.

    Args:
        target: the file.
        directory: a new one, for the root filesystem. It is removed.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    root = directory / "rootfs"
    prefix = root / "usr"
    for name in ("usr/bin", "usr/lib", "etc", "tmp", "run", "root", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(os.path.realpath(sys.executable), prefix / "bin/python3")
    (prefix / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (prefix / "bin/sh").chmod(0o755)
    (prefix / "bin/sleep").symlink_to("sh")
    (root / "bin").symlink_to("usr/bin")
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(sysconfig.get_path("stdlib"), prefix / "lib" / version, ignore=ignore, symlinks=True, copy_function=_link)
    shared = sysconfig.get_config_var("LDLIBRARY")
    library = Path(sysconfig.get_config_var("LIBDIR"), shared or "none")
    if library.exists() and ".so" in library.name:
        shutil.copy(library, prefix / "lib" / library.name)
        for link in library.parent.glob(f"{library.name}.*"):
            shutil.copy(link, prefix / "lib" / link.name)
    _copy_packages(root / PACKAGES.lstrip("/"))
    _copy_libraries(root)
    env: list[Any] = [
        "PATH=/usr/bin",
        f"PYTHONPATH={PACKAGES}",
        "PYTHONHOME=/usr",
        "LD_LIBRARY_PATH=/usr/lib",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    oci.build(root, target, config={"Env": env, "Cmd": ["python3"]}, compression="lz4", mksquashfs="mksquashfs")
    shutil.rmtree(directory)

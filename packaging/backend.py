"""PEP 517 build backend that runs setuptools in a temporary copy of the tree.

A build writes nothing to the tree, so the tree can be read-only, and files of earlier builds are not included. Editable
installations are the exception: they use the tree itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_editable, get_requires_for_build_editable, prepare_metadata_for_build_editable

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None
GENERATED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "*.o", "*.egg-info")
HIDDEN = {".ci", ".clang-format", ".github", ".gitignore", ".pre-commit-config.yaml"}  # of the project


def _ignored(directory: str, names: list[str]) -> set[str]:
    """Return the names that are not copied: build products, caches and virtual environments."""
    ignored = GENERATED(directory, names)
    ignored.update(name for name in names if os.path.exists(os.path.join(directory, name, "pyvenv.cfg")))
    if os.path.samefile(directory, "."):
        ignored.update(name for name in names if name in ("build", "dist") or (name.startswith(".") and name not in HIDDEN))
    elif os.path.basename(directory) == "_native":
        ignored.update({"init", "_host.c", "ops.h"}.intersection(names))
    return ignored


@contextmanager
def _copy() -> Iterator[None]:
    """Change the working directory from the tree, which it is by PEP 517, to a writable copy."""
    tree = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="ociruntime-build-") as temporary:
        copy = Path(temporary, "tree")
        shutil.copytree(tree, copy, symlinks=True, ignore=_ignored)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
        os.chdir(copy)
        try:
            yield
        finally:
            os.chdir(tree)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build a wheel in `wheel_directory` and return its name."""
    target, metadata = os.path.abspath(wheel_directory), metadata_directory and os.path.abspath(metadata_directory)
    with _copy():
        return build_meta.build_wheel(target, config_settings, metadata)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build a source distribution in `sdist_directory` and return its name."""
    target = os.path.abspath(sdist_directory)
    with _copy():
        return build_meta.build_sdist(target, config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """Write the .dist-info directory to `metadata_directory` and return its name."""
    target = os.path.abspath(metadata_directory)
    with _copy():
        return build_meta.prepare_metadata_for_build_wheel(target, config_settings)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return the requirements of building a wheel in addition to build-system.requires."""
    with _copy():
        return build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Return the requirements of building a source distribution in addition to build-system.requires."""
    with _copy():
        return build_meta.get_requires_for_build_sdist(config_settings)

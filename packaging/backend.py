"""PEP 517 build backend that runs setuptools in a temporary copy of the tree.

A build writes nothing to the tree, so the tree can be read-only, and files of earlier builds are not included. The version is
found in the tree, by setuptools-scm: in its git repository, in .git_archival.txt of an archive of a commit, or in the metadata of a
source distribution. Editable installations are the exception: they use the tree itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import setuptools_scm
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
HIDDEN = {".ci", ".clang-format", ".gitattributes", ".github", ".gitignore", ".pre-commit-config.yaml"}
"""The hidden files of the project."""
VERSION = "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_OCIRUNTIME"
"""The variable in which setuptools-scm expects a version that it should not look for."""


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
    tree, given = os.getcwd(), os.environ.get(VERSION)
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools_scm"]
    version = given or setuptools_scm.get_version(**settings)
    with tempfile.TemporaryDirectory(prefix="ociruntime-build-") as temporary:
        copy = Path(temporary, "tree")
        shutil.copytree(tree, copy, symlinks=True, ignore=_ignored)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
        os.chdir(copy)
        os.environ[VERSION] = version
        try:
            yield
        finally:
            os.chdir(tree)
            os.environ.pop(VERSION)
            if given is not None:
                os.environ[VERSION] = given


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

"""Sessions for development; ``./run SESSION`` installs what they need and runs one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["unit", "lint", "typing"]
nox.options.default_venv_backend = "venv"
ROOT = Path(__file__).parent


@nox.session
def tests(session: nox.Session) -> None:
    """Every test; those that need root or a kernel feature say why they are skipped where it is missing."""
    session.install(".[test]")
    session.chdir("tests")  # so that the installed package is tested, not the tree
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """The tests that need neither root nor the kernel: seconds."""
    session.install(".[test]")
    session.chdir("tests")
    session.run("pytest", "-n", "2", "unit", "plan", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, and the C code with every warning an error."""
    session.install("ruff", "cffi")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    native = "ociruntime/_native"
    session.run("python", "-c", f"import sys; sys.path.insert(0, {native!r}); import build; build.write_header()")
    warnings = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    session.run("cc", *warnings, "-ffreestanding", f"{native}/init.c", external=True)
    session.run("cc", *warnings, "-O2", f"{native}/host.c", external=True)


@nox.session
def typing(session: nox.Session) -> None:
    """mypy --strict."""
    session.install(".", "mypy")
    session.run("mypy", "--strict", "ociruntime")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error."""
    session.install(".[docs]")
    with tempfile.TemporaryDirectory() as out:
        session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", out)


@nox.session
def demo(session: nox.Session) -> None:
    """The walk-through: a SIF file from its making to its unmounting, told step by step."""
    session.install(".")
    for tool in ("mksquashfs",):
        if shutil.which(tool) is None:
            session.error(f"{tool} is missing: apt-get install squashfs-tools")
    session.run("python", "examples/walkthrough.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Side by side with runc and crun, where they are installed."""
    session.install(".")
    session.run("python", "benchmarks/bench_lifecycle.py", *session.posargs)

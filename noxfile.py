"""Sessions for development; ``./run SESSION`` installs what they need and runs one."""

from __future__ import annotations

import os
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


VM_TESTS = (  # options of run-in-vm, and of pytest in it
    ((), ("-n", "2", "-m", "vm", "kernel")),
    (("--user",), ("-m", "vm and not root", "kernel")),
    (("--cgroups", "hybrid"), ("-n", "2", "kernel/test_systemd.py")),
    # AppArmor is active in the machine as it is; a kernel has one of them.
    (("--kernel-args", "security=selinux selinux=1"), ("kernel/test_selinux.py",)),
)
VM_TESTS_ALL = (
    (("--timeout", "10800"), ("-n", "2", "kernel")),
    (("--timeout", "10800", "--user"), ("-m", "not root", "kernel")),
    (("--cgroups", "v1"), ("-n", "2", "-m", "vm", "kernel")),
    (("--cgroups", "hybrid"), ("-n", "2", "-m", "vm", "kernel")),
    VM_TESTS[-1],
)


@nox.session
def vm(session: nox.Session) -> None:
    """Kernel tests in a machine with systemd: those marked ``vm`` on cgroup v2, as root and as a user, and a few on others; with
    ``--all`` every one that runs there, which takes hours."""
    arguments = [word for word in session.posargs if word != "--all"]
    with tempfile.TemporaryDirectory() as package:
        Path(package).chmod(0o755)  # the user in the machine reads it too
        session.install("--no-deps", "--target", package, ".")  # alone: the machine has the dependencies for its own Python
        for machine, tests in VM_TESTS if arguments == session.posargs else VM_TESTS_ALL:
            command = ("tests/vm/run-in-vm", "--verbose", *machine, "--package", package, "pytest", *tests, *arguments)
            session.run("python", *command, success_codes=[0, 5] if arguments else [0])  # 5: of this file none was asked for


@nox.session
def unit(session: nox.Session) -> None:
    """The tests that need neither root nor the kernel: seconds."""
    session.install(".[test]")
    session.chdir("tests")
    session.run("pytest", "-n", "2", "unit", "plan", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff; the C code by clang-format, and by gcc's analyzer with every warning an error."""
    session.install("ruff", "cffi", "clang-format==23.1.5")  # another version can format otherwise
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    native = "ociruntime/_native"
    generate = f"import sys; sys.path.insert(0, {native!r}); import build; build.write_header(build.Path(sys.argv[1]))"
    sources = [path for pattern in ("*.c", "*.h") for path in sorted(Path(native).glob(pattern)) if path.name != "_host.c"]
    session.run("clang-format", "--dry-run", "--Werror", *map(str, sources))
    warnings = ["-Wall", "-Wextra", "-Werror", "-fanalyzer", "-O2", "-c", "-o", "/dev/null"]
    with tempfile.TemporaryDirectory() as generated:
        session.run("python", "-c", generate, generated)
        for path in sources:
            if path.suffix == ".c":
                kind = [] if path.name == "host.c" else ["-ffreestanding"]
                session.run("gcc", *warnings, *kind, "-I", generated, str(path), external=True)


READ_ONLY = 'mount --bind -o ro "$1" "$1" && cd "$1" && shift && exec "$@"'


@nox.session
def packages(session: nox.Session) -> None:
    """The wheel and the source distribution: built from a read-only tree, each installed in an environment of its own, and used."""
    session.install("build")
    with tempfile.TemporaryDirectory() as temporary:
        tree, out = Path(temporary, "tree"), Path(temporary, "out")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".*_cache"))
        session.run("git", "init", "-q", str(tree), external=True)
        listing = session.run("git", "-C", str(tree), "ls-files", "-z", "-o", "--exclude-standard", silent=True, external=True)
        namespaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
        build = [f"{session.bin}/python", "-m", "build", "--sdist", "--wheel", "--outdir", str(out)]
        session.run("unshare", *namespaces, "sh", "-ec", READ_ONLY, "sh", str(tree), *build, external=True)
        ((wheel,), (sdist,)) = (tuple(out.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        if "-cp311-abi3-" not in wheel.name:
            session.error(f"{wheel.name} is not for every CPython from 3.11 on (cp311-abi3)")
        session.run("tar", "-C", temporary, "-xf", str(sdist), external=True)
        (unpacked,) = Path(temporary).glob("ociruntime-*")
        absent = [name for name in str(listing).split("\0") if not (unpacked / name).exists()]
        if absent:
            session.error(f"{sdist.name} lacks {', '.join(absent)}")
        pythons = {package: Path(temporary, f"environment-{package.suffix[1:]}", "bin/python") for package in (wheel, sdist)}
        for package, python in pythons.items():
            session.run("python", "-m", "venv", str(python.parent.parent))
            session.run(str(python), "-m", "pip", "install", "-q", f"{package}[test]", external=True)
        with session.chdir(unpacked / "tests"):
            session.run(str(pythons[wheel]), "-m", "pytest", "-q", "unit/test_import.py", external=True)
            session.run(str(pythons[sdist]), "-m", "pytest", "-q", "-n", "2", "unit", external=True)
        if os.geteuid() == 0:
            session.run(str(pythons[wheel]), str(unpacked / "examples/walkthrough.py"), external=True)


@nox.session
def typing(session: nox.Session) -> None:
    """mypy --strict, and pyright, of the package and of what its users write."""
    session.install(".[test]")
    session.install("mypy", "pyright[nodejs]")  # with a node from the package index, or pyright downloads one from elsewhere
    session.run("mypy", "--strict", "ociruntime")
    where = "import ociruntime as o, os; print(os.path.dirname(o.__file__))"
    package = str(session.run("python", "-P", "-c", where, silent=True)).strip()
    with tempfile.TemporaryDirectory() as copy:  # of what is installed: pyright looks for the extension, which the tree lacks
        shutil.copytree(package, Path(copy, "ociruntime"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        session.run("pyright", "-p", copy, "--pythonpath", f"{session.bin}/python")
    session.chdir("tests")  # so that the installed package is tested, not the tree
    session.run("pytest", "typing")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with every warning an error."""
    session.install(".[docs]")
    with tempfile.TemporaryDirectory() as out:
        session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", out)


@nox.session
def demo(session: nox.Session) -> None:
    """The walk-through: a SIF file from its making to its unmounting, told step by step. Then the other examples."""
    session.install(".")
    session.run("python", "examples/walkthrough.py")
    for name in ("live_output", "timeouts", "many_at_once", "with_asyncio", "supervised", "terminal"):
        session.run("python", f"examples/{name}.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Side by side with runc and crun, where they are installed, and the object model against json and msgspec."""
    session.install(".")
    session.install("msgspec")
    session.run("python", "benchmarks/bench_spec.py")
    session.run("python", "benchmarks/bench_lifecycle.py", *session.posargs)

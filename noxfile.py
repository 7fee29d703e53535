"""nox sessions for development. ``./run SESSION`` installs the requirements of a session and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["unit", "lint", "typing"]
nox.options.default_venv_backend = "venv"
ROOT = Path(__file__).parent


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests. Tests that need root or a missing kernel feature are skipped with the reason.

    So are those of the integrations, whose libraries only the session ``integrations`` installs.
    """
    session.install(".[test]")
    session.chdir("tests")  # so that the installed package is tested, not the tree
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def integrations(session: nox.Session) -> None:
    """Run the tests of the integrations, with the libraries that they are for. Tests that need root are skipped for a user."""
    session.install(".[dask,inspect,notebook,otel,test]", "joblib", "nbclient>=0.10", "opentelemetry-sdk")
    session.chdir("tests")  # so that the installed package is tested, not the tree
    session.run("pytest", "integrations", *session.posargs)


VM_TESTS = (  # options of run-in-vm, options of pytest
    ((), ("-n", "2", "-m", "vm", "kernel")),
    (("--user",), ("-m", "vm and not root", "kernel")),
    (("--cgroups", "hybrid"), ("-n", "2", "kernel/test_systemd.py")),
    # By default AppArmor is active in the virtual machine. The kernel has only one of the two.
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
    """Run kernel tests in a virtual machine with systemd.

    These are the tests marked ``vm``, as root and as a user on cgroup v2, and a few with hybrid cgroups and SELinux. With
    ``--all``, run all kernel tests that can run there, which takes hours.
    """
    arguments = [word for word in session.posargs if word != "--all"]
    with tempfile.TemporaryDirectory() as package:
        Path(package).chmod(0o755)  # readable for the user in the virtual machine
        session.install("--no-deps", "--target", package, ".")  # the virtual machine has the dependencies for its own Python
        for machine, tests in VM_TESTS if arguments == session.posargs else VM_TESTS_ALL:
            command = ("tests/vm/run-in-vm", "--verbose", *machine, "--package", package, "pytest", *tests, *arguments)
            session.run("python", *command, success_codes=[0, 5] if arguments else [0])  # 5: no test was selected


@nox.session
def unit(session: nox.Session) -> None:
    """Run the tests that need neither root nor containers. They take seconds."""
    session.install(".[test]")
    session.chdir("tests")
    session.run("pytest", "-n", "2", "unit", "plan", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, and check the C code with clang-format and the analyzer of gcc, and the workflows with zizmor.

    Warnings are errors.
    """
    session.install("ruff", "cffi", "clang-format==23.1.5", "zizmor==1.32.0")  # versions differ in their format and rules
    session.run("zizmor", "--offline", "--quiet", ".github/workflows")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    native = "ociruntime/_native"
    generate = "import sys; sys.path.insert(0, 'packaging'); import native; native.write_header(native.Path(sys.argv[1]))"
    sources = [path for pattern in ("*.c", "*.h") for path in sorted(Path(native).glob(pattern)) if path.name != "_host.c"]
    session.run("clang-format", "--dry-run", "--Werror", *map(str, sources))
    warnings = ["-Wall", "-Wextra", "-Werror", "-fanalyzer", "-O2", "-c", "-o", "/dev/null"]
    with tempfile.TemporaryDirectory() as generated:
        session.run("python", "-c", generate, generated)
        for path in sources:
            if path.suffix == ".c":
                kind = [] if path.name == "host.c" else ["-ffreestanding"]
                session.run("gcc", *warnings, *kind, "-I", generated, str(path), external=True)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Fuzz the init process, built with the address and undefined behaviour sanitizers. Needs root.

    The first argument is the time in seconds (default: 60).
    """
    session.install(".", "cffi")
    build = "import native; native.build_init(native.Path(sys.argv[1], 'init'), native.Path(sys.argv[1]), native.SANITIZED_FLAGS)"
    with tempfile.TemporaryDirectory() as temporary:
        session.run("python", "-c", f"import sys; sys.path.insert(0, 'packaging'); {build}", temporary)
        with session.chdir("tests"):  # so that the installed package is tested, not the tree
            session.run("python", "fuzz/fuzz_init.py", *(session.posargs or ["60"]), "--init", f"{temporary}/init")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz a reader of untrusted input: NAME SECONDS [--seed N]. Without arguments, each of them for a minute.

    The input of a finding is written to the current directory.
    """
    session.install(".[test]")
    code = "import sys; sys.path.append(sys.argv.pop(1)); from tests.fuzz.{}"
    main = code.format("driver import main; sys.exit(main())")
    names = str(
        session.run("python", "-P", "-c", code.format("targets import TARGETS; print(*TARGETS)"), str(ROOT), silent=True)
    ).split()
    for arguments in [session.posargs] if session.posargs else [[name] for name in names]:
        session.run("python", "-P", "-c", main, str(ROOT), *arguments)


@nox.session
def mutants(session: nox.Session) -> None:
    """Remove each defence of tests/mutants/table.py, and require that its tests fail. Needs root. Arguments: names of mutants."""
    session.install(".[test]", "cffi")
    session.run("python", "tests/mutants/run.py", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Try operations with killed processes, full disks and missing system calls. Needs root. Arguments: see ``-- --help``.

    Without arguments, all are tried, and the tables of docs/reliability.md are written.
    """
    session.install(".[test]")
    code = "import sys; sys.path.append(sys.argv.pop(1)); from tests.faults.driver import main; sys.exit(main(sys.argv[1:]))"
    session.run("python", "-P", "-c", code, str(ROOT), *(session.posargs or ["--page", str(ROOT / "docs/reliability.md")]))


VERSION = "1.2.3"
"""The tag of the tree from which the session `packages` builds."""
SDIST_TESTS = ("unit/test_import.py", "unit/test_reference.py", "unit/test_spec_roundtrip.py", "unit/test_surfaces.py")
NEWER_TESTS = ("unit/test_command_line.py", "unit/test_images.py", "unit/test_import.py", "unit/test_spec_codec.py")
READ_ONLY = 'mount --bind -o ro "$1" "$1" && cd "$1" && shift && exec "$@"'


def newer_pythons() -> dict[str, str]:
    """Version -> interpreter, of each CPython after this one that is on PATH or installed by pyenv."""
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    path = os.pathsep.join([os.environ["PATH"], *map(str, installed)])
    own = sys.version_info.minor
    code = "import ssl, sys, venv; sys.exit(sys.implementation.name != 'cpython')"
    found = {}
    for directory in path.split(os.pathsep):
        for python in sorted(Path(directory).glob("python3.[0-9]*")):
            version = python.name.removeprefix("python")
            minor = version.removeprefix("3.")
            if version in found or not minor.isdigit() or int(minor) <= own:
                continue
            if not subprocess.run([python, "-I", "-c", code], stderr=subprocess.DEVNULL, check=False).returncode:
                found[version] = str(python)  # a shim of pyenv for a version that is not selected fails
    return found


@nox.session
def packages(session: nox.Session) -> None:
    """Build the wheel and the source distribution from a read-only tree, and test each in its own virtual environment.

    The wheel is tested with each newer CPython too that is on PATH or installed by pyenv.
    """
    session.install("abi3audit", "auditwheel", "build")
    with tempfile.TemporaryDirectory() as temporary:
        tree, out = Path(temporary, "tree"), Path(temporary, "out")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".*_cache"))
        git = ("git", "-C", str(tree), "-c", "user.name=packages", "-c", "user.email=packages@localhost")
        session.run(*git, "init", "-q", external=True)
        listing = session.run(*git, "ls-files", "-z", "-o", "--exclude-standard", silent=True, external=True)
        for arguments in (("add", "--all"), ("commit", "-q", "-m", "all files"), ("tag", f"v{VERSION}")):
            session.run(*git, *arguments, external=True)
        namespaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
        build = [f"{session.bin}/python", "-m", "build", "--sdist", "--wheel", "--outdir", str(out)]
        session.run("unshare", *namespaces, "sh", "-ec", READ_ONLY, "sh", str(tree), *build, external=True)
        ((wheel,), (sdist,)) = (tuple(out.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        if {wheel.name.split("-")[1], sdist.name} != {VERSION, f"ociruntime-{VERSION}.tar.gz"}:
            session.error(f"{wheel.name}, {sdist.name}: the version is not that of the tag, {VERSION}")
        if "-cp311-abi3-" not in wheel.name:
            session.error(f"{wheel.name}: not tagged cp311-abi3, for every CPython from 3.11 on")
        if 'platform tag: "manylinux_' not in " ".join(str(session.run("auditwheel", "show", str(wheel), silent=True)).split()):
            session.error(f"{wheel.name}: not a manylinux wheel; auditwheel show tells which libraries it needs")
        session.run("abi3audit", "--strict", str(wheel))
        session.run("tar", "-C", temporary, "-xf", str(sdist), external=True)
        (unpacked,) = Path(temporary).glob("ociruntime-*")
        listed = set(str(listing).split("\0")) - {".git_archival.txt"}  # the metadata has the version
        absent = sorted(name for name in listed if not (unpacked / name).exists())
        if absent:
            session.error(f"{sdist.name}: files are missing: {', '.join(absent)}")
        pythons = {package: Path(temporary, f"environment-{package.suffix[1:]}", "bin/python") for package in (wheel, sdist)}
        for package, python in pythons.items():
            session.run("python", "-m", "venv", str(python.parent.parent))
            session.run(str(python), "-m", "pip", "install", "-q", f"{package}[test]", external=True)
            if not (python.parents[1] / "share/man/man1/ociruntime.1").exists():
                session.error(f"{package.name}: the man page is not installed")
            printed = str(session.run(str(python), "-P", "-m", "ociruntime", "--version", silent=True, external=True))
            if not printed.startswith(f"ociruntime version {VERSION}\n"):
                session.error(f"{package.name}: --version prints {printed!r}")
        with session.chdir(unpacked / "tests"):
            session.run(str(pythons[wheel]), "-m", "pytest", "-q", "unit/test_import.py", external=True)
            session.run(str(pythons[sdist]), "-m", "pytest", "-q", "-n", "2", *SDIST_TESTS, external=True)
        walkthrough = [str(unpacked / "examples/walkthrough.py")] if os.geteuid() == 0 else ["-P", "-m", "ociruntime", "--version"]
        session.run(str(pythons[wheel]), *walkthrough, external=True)
        for version, base in newer_pythons().items():
            environment = Path(temporary, f"environment-{version}")
            session.run(base, "-m", "venv", str(environment), external=True)
            newer = str(environment / "bin/python")
            session.run(newer, "-m", "pip", "install", "-q", f"{wheel}[test]", external=True)
            with session.chdir(unpacked / "tests"):
                session.run(newer, "-m", "pytest", "-q", "-n", "2", *NEWER_TESTS, external=True)
            session.run(newer, *walkthrough, external=True)


@nox.session
def typing(session: nox.Session) -> None:
    """Run mypy --strict and pyright on the package and on examples of code that uses it, and mypy on a part of the tests."""
    session.install(".[test]")
    session.install(
        "jupyter_client", "mypy", "pyright[nodejs]"
    )  # node from the package index; otherwise pyright downloads it from another place
    session.run("mypy", "--strict", "ociruntime")
    session.run(
        "mypy", "--strict", "--explicit-package-bases", "tests/support", "tests/unit", "tests/plan", "tests/fuzz", "tests/faults"
    )
    where = "import ociruntime as o, os; print(os.path.dirname(o.__file__))"
    package = str(session.run("python", "-P", "-c", where, silent=True)).strip()
    with tempfile.TemporaryDirectory() as copy:  # of the installed package: pyright needs the extension, which the tree lacks
        shutil.copytree(package, Path(copy, "ociruntime"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        session.run("pyright", "-p", copy, "--pythonpath", f"{session.bin}/python")
    session.chdir("tests")  # so that the installed package is tested, not the tree
    session.run("pytest", "typing")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, with warnings as errors."""
    session.install(".[docs]")
    with tempfile.TemporaryDirectory() as out:
        session.run("sphinx-build", "-W", "-q", "-b", "html", "docs", out)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the walk-through, from building a SIF image to unmounting it, and then the other examples."""
    session.install(".")
    session.run("python", "examples/walkthrough.py")
    for example in sorted(Path("examples").glob("*.py")):
        if example.stem not in ("common", "evaluation", "walkthrough"):  # the session integrations runs the evaluation
            session.run("python", str(example))


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks: the object model beside json and msgspec, containers beside runc and crun, images beside podman."""
    session.install(".")
    session.install("msgspec")
    session.run("python", "benchmarks/bench_spec.py")
    session.run("python", "benchmarks/bench_lifecycle.py", *session.posargs)
    session.run("python", "benchmarks/bench_growth.py")
    session.run("python", "benchmarks/bench_build.py")
    session.run("python", "benchmarks/bench_images.py")

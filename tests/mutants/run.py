"""Remove each defence of `table.py` in a copy of the tree, and run the tests that must fail then: ``python mutants/run.py [NAME...]``.

The tests must pass before anything is removed. Exit status: 0 if every mutant is killed, 1 if one survives, 2 for a mistake in the
table or tests that fail without a removal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from table import MUTANTS, Mutant

REPO = Path(__file__).resolve().parents[2]
LONGEST = 600
"""Seconds for the tests of a mutant; one that hangs is killed by that."""
NO_TESTS_FAILED, TESTS_FAILED, NO_TESTS = 0, 1, 5
"""Exit statuses of pytest."""
OWN_NULL: Final = (
    'mount -t tmpfs null /mnt; mknod -m 666 /mnt/null c 1 3; mount --bind /mnt/null /dev/null; umount --lazy /mnt; exec "$@"'
)
"""Without a defence, a test may change the owner of the null device: it gets another one than that of the machine."""


@contextmanager
def removed(tree: Path, mutant: Mutant) -> Iterator[None]:
    """Remove a defence for the block. Raises ValueError: its fragment does not occur exactly once."""
    file = tree / "ociruntime" / mutant.file
    text = file.read_text()
    if text.count(mutant.fragment) != 1:
        raise ValueError(f"{mutant.name}: the fragment occurs {text.count(mutant.fragment)} times in {mutant.file}")
    file.write_text(text.replace(mutant.fragment, mutant.replacement))
    try:
        yield
    finally:
        file.write_text(text)


def installed() -> Path:
    """Return the directory of the installed package."""
    spec = find_spec("ociruntime")
    assert spec is not None, "the package is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(tree: Path) -> None:
    """Build the init. Warnings are not errors: a removal can leave something unused."""
    text = "import native, pathlib; native.WARNINGS[:] = []; native.build_init(native.SOURCES / 'init', pathlib.Path('build'))"
    subprocess.run([sys.executable, "-c", text], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "packaging")}, check=True)


class Outcome(NamedTuple):
    """What a run of tests has shown."""

    status: int | None
    """The exit status of pytest; None if the tests did not end."""
    failed: str = ""
    """The test that failed. A test whose set-up fails shows nothing."""
    output: str = ""

    def __str__(self) -> str:
        if self.status is None:
            return "killed    it hangs"
        if self.failed:
            return f"killed    {self.failed}"
        return "SURVIVED" if self.status == NO_TESTS_FAILED else f"pytest: {self.status}\n{self.output}"

    @property
    def killed(self) -> bool:
        return self.status is None or bool(self.failed)


def test(tree: Path, tests: Iterable[str], *, limit: float | None) -> Outcome:
    """Run tests until one fails, or the limit in seconds is reached."""
    command = ["unshare", "--mount", "sh", "-ec", OWN_NULL, "sh"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree / "tests", env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Outcome(None)
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    status = done.returncode
    if status == NO_TESTS_FAILED and " skipped" in done.stdout and " passed" not in done.stdout:
        status = NO_TESTS
    return Outcome(status, failed[1] if failed and status == TESTS_FAILED else "", done.stdout + done.stderr)


def main(names: list[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"no such mutants: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    survived = []
    with tempfile.TemporaryDirectory(prefix="ociruntime-mutants-", dir="/var/tmp") as temporary:
        os.chmod(temporary, 0o755)  # for tests as an unprivileged user
        tree = Path(temporary, "tree")
        shutil.copytree(
            REPO, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".*_cache", "__pycache__")
        )
        for extension in installed().glob("_native/_host*.so"):
            shutil.copy(extension, tree / "ociruntime/_native")
        build(tree)
        chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
        whole = test(tree, dict.fromkeys(name for mutant in chosen for name in mutant.tests), limit=None)
        if whole.status != NO_TESTS_FAILED:
            print(f"the tests fail without a removal: {whole.failed}\n{whole.output}", file=sys.stderr)
            return 2
        for mutant in chosen:
            began, native = time.monotonic(), mutant.file.startswith("_native/")
            with removed(tree, mutant):
                if native:
                    build(tree)
                outcome = test(tree, mutant.tests, limit=LONGEST)
            if native:
                build(tree)
            if not outcome.killed:
                survived.append(mutant.name)
            print(f"{mutant.row:2} {time.monotonic() - began:4.0f} s  {mutant.name:40} {outcome}", flush=True)
    print(f"{len(survived)} survived" + (f": {', '.join(survived)}" if survived else ""))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Remove each defence of `table.py` in a copy of the tree, and run the tests that must fail then: ``python mutants/run.py [NAME...]``.

Exit status: 0 if every mutant is killed, 1 if one survives, 2 for a mistake in the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from table import MUTANTS, Mutant

REPO = Path(__file__).resolve().parents[2]
LONGEST = 600
"""Seconds for the tests of a mutant; one that hangs is killed by that."""
NO_TESTS_FAILED, TESTS_FAILED = 0, 1
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


def build(tree: Path) -> None:
    """Build the init. Warnings are not errors: a removal can leave something unused."""
    text = "import native, pathlib; native.WARNINGS[:] = []; native.build_init(native.SOURCES / 'init', pathlib.Path('build'))"
    subprocess.run([sys.executable, "-c", text], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "packaging")}, check=True)


def test(tree: Path, mutant: Mutant) -> int | None:
    """Run the tests of a mutant until one fails. Return the exit status of pytest; None if they did not end."""
    command = ["unshare", "--mount", "sh", "-ec", OWN_NULL, "sh"]
    command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *mutant.tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree / "tests", env=environment, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in (NO_TESTS_FAILED, TESTS_FAILED) or (" skipped" in done.stdout and "passed" not in done.stdout):
        print(done.stdout + done.stderr)
    return done.returncode


def main(names: list[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"no such mutants: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    survived = []
    with tempfile.TemporaryDirectory(prefix="ociruntime-mutants-", dir="/var/tmp") as temporary:
        tree = Path(temporary, "tree")
        shutil.copytree(
            REPO, tree, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".*_cache", "__pycache__")
        )
        if not list(tree.glob("ociruntime/_native/_host*.so")):  # otherwise the one that the tree has is used, as by other tests
            subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)
        build(tree)
        for mutant in MUTANTS:
            if names and mutant.name not in names:
                continue
            began, native = time.monotonic(), mutant.file.startswith("_native/")
            with removed(tree, mutant):
                if native:
                    build(tree)
                status = test(tree, mutant)
            if native:
                build(tree)
            result = {None: "killed (it hangs)", TESTS_FAILED: "killed", NO_TESTS_FAILED: "SURVIVED"}.get(
                status, f"pytest: {status}"
            )
            if "killed" not in result:
                survived.append(mutant.name)
            print(f"{mutant.row:2}  {result:10}  {time.monotonic() - began:5.0f} s  {mutant.name}", flush=True)
    print(f"{len(survived)} survived" + (f": {', '.join(survived)}" if survived else ""))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

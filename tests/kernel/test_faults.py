"""A few places of the faults of tests/faults, which `./run faults` tries everywhere."""

from __future__ import annotations

import subprocess

import pytest

from ..support.places import REPO
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
QUICK = {
    "root": (("run", "supervise", "delete"), ("SIGKILL", "ENFILE", "read-only cgroups")),
    "user": (("run a SIF", "exec"), ("SIGKILL", "EPERM")),
}


@pytest.mark.parametrize("caller", QUICK)
def test_a_few_places(caller: str, user_python: str) -> None:
    operations, faults = QUICK[caller]
    code = "import sys; sys.path.append(sys.argv.pop(1)); from tests.faults.driver import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "--points=1",
        f"--caller={caller}",
        *(f"--operation={name}" for name in operations),
        *(f"--fault={name}" for name in faults),
    ]
    done = subprocess.run(
        [user_python, "-P", "-c", code, REPO, *words], cwd="/", capture_output=True, text=True, timeout=3 * TIME_LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.startswith(f"{caller}: ") for line in done.stdout.splitlines()) == len(operations) * len(faults)

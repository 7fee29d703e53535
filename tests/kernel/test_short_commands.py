"""What the commands of a container's life import: most of the time that one takes is spent on that (docs/architecture.md)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = pytest.mark.root
Script = Callable[..., "subprocess.CompletedProcess[str]"]

OURS = set(
    "_lazy cli cli.common cli.lifecycle cli.options cli.parser container engine engine.cgroup errors execs files lifecycle lifecycle.status "
    "locks state supervised typed".split()
)
"""Modules of ours that all of them need."""
_KILL = {"engine.processes", "engine.cgroup.files", "engine.cgroup.freezer"}
FURTHER: dict[str, set[str]] = {
    "state": set(),
    "start": {
        "_native",
        "_native._host",
        "_native._host.lib",
        "engine.gate",
        "engine.native",
        "engine.reports",
        "lifecycle.start",
        "plan",
        "plan.ops",
    },
    "kill": {*_KILL, "lifecycle.kill"},
    "delete": {
        *_KILL,
        *"engine.cgroup.tasks engine.children engine.rdt engine.undo lifecycle.delete lifecycle.supervise".split(),
        "engine.cgroup.account",
        "mountinfo",
    },
}
"""And what each needs beside them."""
HEAVY = set(
    "typing pathlib socket subprocess threading queue argparse shutil inspect dataclasses attr attrs cattrs jsonschema".split()
)
TEXT = """
import sys
before = set(sys.modules)
from ociruntime.cli import main
code = main()
print(*(set(sys.modules) - before), file=sys.stderr)
raise SystemExit(code)
"""


def test_what_is_imported(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    script(TEXT, "--root", state_root, "create", "--bundle", bundle.path, prefix)
    for verb, *words in (["state"], ["start"], ["kill", "--signal", "KILL"], ["delete", "--force"]):
        done = script(TEXT, "--root", state_root, verb, *words, prefix)
        loaded = set(done.stderr.split())
        ours = {name.removeprefix("ociruntime.") for name in loaded if name.startswith("ociruntime.")}
        assert ours - OURS - FURTHER[verb] == set(), verb
        assert loaded & HEAVY == set(), verb

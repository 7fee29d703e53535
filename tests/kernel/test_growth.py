"""What a container costs does not grow with the number of other containers. Calls are counted, not time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

import ociruntime as oci

from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root

MAX_CALLS = 2200
"""Calls of functions, in Python or in C, by Python code. A host with all hierarchies of v1 takes the most."""
COUNT = """if True:
    import sys
    import ociruntime as oci

    bundle, root, prefix = oci.Bundle.load(sys.argv[1]), sys.argv[2], sys.argv[3]
    seen, counting = [], False

    def hook(event, args):
        if counting and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rmdir", "os.rename", "os.remove"):
            seen.append((event, str(args[0])))

    sys.addaudithook(hook)
    def create(name):
        return oci.Container.create(prefix + name, bundle, state_root=root, stdin=-3, stdout=-3, stderr=-3)

    def live(name):
        container = create(name)
        container.start()
        container.wait(60)
        container.delete()

    def count(function, *args):
        global counting
        seen.clear()
        counting = True
        function(*args)
        counting = False
        assert len(seen) > 10, seen
        for event, path in seen:
            assert path not in (root, root + "/") and "mountinfo" not in path, (event, path)
        return len(seen)

    def run(name):
        oci.run(bundle, state_root=root, container_id=prefix + name)

    live("first")
    run("first")
    alone = count(live, "x"), count(run, "x")
    others = [create(f"other{number}") for number in range(8)]
    try:
        print(alone, (count(live, "x"), count(run, "x")))
    finally:
        for other in others:
            other.delete(force=True)
"""


def test_no_call_depends_on_the_other_containers(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    bundle.spec.with_args(["true"]).save(bundle.path / "config.json")
    words = [sys.executable, "-P", "-c", COUNT, bundle.path, state_root, prefix]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    alone, beside = done.stdout.strip()[1:-1].split(") (")
    assert alone == beside


def test_a_run_makes_few_calls_of_python(bundle: oci.Bundle, state_root: Path) -> None:
    """They are the part of a run in which the threads of a program wait for each other."""
    bundle.spec.with_args(["true"]).save(bundle.path / "config.json")
    loaded = oci.Bundle.load(bundle.path)
    for _ in range(2):  # the plan, the filter and the program of the init process are kept
        oci.run(loaded, state_root=state_root, check=True)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        oci.run(loaded, state_root=state_root, check=True)
    finally:
        sys.setprofile(None)
    assert calls <= MAX_CALLS

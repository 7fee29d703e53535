"""Programs whose processes cannot act on a signal, or hold much of the kernel: deadlines and deletion end them all the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.spec import Mount

from ..support.cgroups import needs
from ..support.fixture_types import MakeBundle
from ..support.leftovers import assert_nothing_left
from ..support.waiting import TIME_LIMIT, wait_until, within

pytestmark = [pytest.mark.root, needs["pids"]]
KINDS = {"stopped": 10, "traced": 10, "zombie": 20, "vfork": 5, "namespace": 5, "key": 50, "watch": 500}
"""What ``attack`` of tests/support takes, and how much of it."""


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (Debian: gcc libc6-dev)")
    directory = tmp_path_factory.mktemp("attack")
    source = Path(__file__).parents[1] / "support/attack.c"
    subprocess.run([compiler, "-O1", "-static", "-o", directory / "attack", source], check=True)
    return directory


@pytest.fixture
def stubborn(make_bundle: MakeBundle, attack: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[oci.Bundle, Path]:
    """A bundle that takes what the parameter says, writes how much it got, and goes on; and the file that it writes."""
    kind = request.param
    out = tmp_path / "out"
    out.mkdir()
    line = f"mkdir /tmp/x; /attack/attack {kind} {KINDS[kind]} /tmp/x > /out/new && mv /out/new /out/taken; sleep 1000"
    spec = oci.RuntimeSpec.default().with_args(["sh", "-c", f"({line}) & wait"])
    spec = spec.at.linux.seccomp.set(None)  # the default profile denies some of it
    spec = spec.with_mount(Mount(destination="/tmp", type="tmpfs", source="tmpfs"))
    for source, destination in (attack, "/attack"), (out, "/out"):
        spec = spec.with_mount(Mount(destination=destination, type="bind", source=str(source), options=("bind",)))
    return make_bundle(spec), out / "taken"


@pytest.mark.parametrize("stubborn", KINDS, indirect=True)
@pytest.mark.parametrize("how", ["run", "exec", "delete"])
def test_it_ends(stubborn: tuple[oci.Bundle, Path], state_root: Path, prefix: str, how: str) -> None:
    bundle, taken = stubborn
    assert bundle.spec.process is not None
    args = bundle.spec.process.args or ()
    with within(TIME_LIMIT):
        if how == "run":
            with pytest.raises(oci.ProcessTimeout):
                oci.run(bundle, pids=100, timeout=2, state_root=state_root, container_id=prefix)
        else:
            main = args if how == "delete" else ["sleep", "1000"]
            with oci.Container.create(prefix, bundle.with_args(list(main)), state_root=state_root) as container:
                container.start()
                container.update(pids=100)
                if how == "exec":
                    with pytest.raises(oci.ProcessTimeout):
                        container.exec(args, timeout=2)
                    assert len(container.processes()) == 1
                wait_until(taken.exists, "the program to have it")
                container.delete(force=True)
    number, _, reason = taken.read_text().strip().partition(" ")
    assert (int(number) > 0, reason) == (True, "enough")
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize("how", ["run", "exec", "delete"])
def test_floods_of_output_end(make_bundle: MakeBundle, state_root: Path, prefix: str, how: str) -> None:
    """By several processes on both streams; kept by the caller up to a limit, or by a supervisor in a log."""
    line = "for i in 1 2 3; do (trap '' TERM PIPE; while :; do echo line; echo line >&2; done) & done; wait"
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sh", "-c", line]))
    with within(TIME_LIMIT):
        if how == "run":
            with pytest.raises(oci.ProcessTimeout) as caught:
                oci.run(bundle, timeout=2, capture_output=True, max_output=1000, state_root=state_root, container_id=prefix)
        else:
            main = bundle if how == "delete" else bundle.with_args(["sleep", "1000"])
            with oci.Container.create(prefix, main, state_root=state_root, supervise=how == "delete") as container:
                container.start()
                if how == "exec":
                    with pytest.raises(oci.ProcessTimeout) as caught:
                        container.exec(["sh", "-c", line], timeout=2, capture_output=True, max_output=1000)
                    assert len(container.processes()) == 1
                else:
                    wait_until(lambda: next(iter(container.logs(tail=1)), None), "output in the log")
                container.delete(force=True)
    if how != "delete":
        assert isinstance(caught.value.result, oci.Result)
        assert (len(caught.value.result.stdout), caught.value.result.truncated) == (1000, True)
    assert_nothing_left(state_root, prefix)

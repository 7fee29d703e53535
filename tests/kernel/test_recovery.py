"""`delete --force` and `prune` of containers whose state.json is damaged: nothing is abandoned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.store import RECOVERY, Recovery, read_recovery

from ..support.fixture_types import MakeBundle, Script
from ..support.leftovers import assert_nothing_left
from ..support.places import REPO
from ..support.processes import is_running, parent_process
from ..support.waiting import TIME_LIMIT, wait_until
from .test_hooks import hooks, sh

pytestmark = pytest.mark.root
DAMAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\0\xff{"),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "of another": lambda path: path.write_text(json.dumps({"id": "another", "status": "running"})),
    "missing": lambda path: path.unlink(),
}


@pytest.fixture(params=DAMAGE)
def damage(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return DAMAGE[request.param]


@pytest.mark.parametrize("status", ["created", "running", "paused", "stopped"])
def test_delete_by_force(
    bundle: oci.Bundle, state_root: Path, prefix: str, status: str, damage: Callable[[Path], object], script: Script
) -> None:
    container = oci.Container.create(prefix, bundle, state_root=state_root)
    pid = container.pid
    if status != "created":
        container.start()
    if status == "paused":
        container.pause()
    elif status == "stopped":
        container.kill("KILL")
        container.wait(TIME_LIMIT)
    damage(state_root / prefix / "state.json")
    with pytest.raises(oci.StateError, match=r"state\.json is damaged: .*; 'delete --force' removes the container"):
        oci.Container.load(prefix, state_root=state_root).delete()
    text = "import sys\nfrom ociruntime.cli import main\nsys.exit(main(sys.argv[1:]))"
    script(text, "--root", state_root, "delete", "--force", prefix)
    assert not is_running(pid)
    assert_nothing_left(state_root, prefix)


def test_a_supervised_one(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root, supervise=True) as container:
        container.start()
        pid, supervisor = container.pid, parent_process(container.pid)
        (state_root / prefix / "state.json").write_text("{")
        assert oci.prune(state_root=state_root) == ()
        assert is_running(pid)
        container.delete(force=True)
        assert not is_running(pid)
        assert not is_running(supervisor)
    assert_nothing_left(state_root, prefix)


def commands_of(state_root: Path) -> list[str]:
    """The names of the programs of the containers that run."""
    pids = [container.pid for container in oci.Container.list(state_root=state_root)]
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if pid]


@pytest.mark.parametrize("dies", [False, True])
def test_the_bundle_of_an_image(busybox_sif: Path, state_root: Path, prefix: str, tmp_path: Path, *, dies: bool) -> None:
    """Its creator was killed; its upper layer was made for it. If it should die with its creator, `prune` removes it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    text = f"""import sys, ociruntime as oci
oci.run(sys.argv[1], ['sleep', '1000'], container_id=sys.argv[2], state_root=sys.argv[3], die_with_parent={dies})"""
    creator = subprocess.Popen(
        [sys.executable, "-P", "-c", text, busybox_sif, prefix, state_root],
        env={**os.environ, "TMPDIR": str(scratch)},
        cwd=REPO,
    )
    try:
        # The init process would end with its creator, unless it is the program by then.
        wait_until(lambda: "sleep" in commands_of(state_root), "the start")
    finally:
        creator.kill()
        creator.wait()
    assert os.listdir(scratch) != []
    (state_root / prefix / "state.json").write_text("{")
    if dies:
        assert oci.prune(state_root=state_root) == (prefix,)
    else:
        assert oci.prune(state_root=state_root) == ()
        oci.Container.load(prefix, state_root=state_root).delete(force=True)
    assert os.listdir(scratch) == []
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()
    assert_nothing_left(state_root, prefix)


def test_poststop_hooks_run(make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    spec = oci.RuntimeSpec.default().with_args(["sleep", "100"]).with_annotations({"com.example": "x"})
    bundle = make_bundle(spec.evolve(hooks=hooks(poststop=[sh(f"cat >{tmp_path}/after")])))
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        container.start()
        (state_root / prefix / "state.json").write_text("{")
        container.delete(force=True)
    report = json.loads((tmp_path / "after").read_bytes())
    assert (report["id"], report["status"], report["bundle"]) == (prefix, "stopped", str(bundle.path))
    assert report["annotations"] == {"com.example": "x"}


def test_prune_leaves_one_that_runs(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        (state_root / prefix / "state.json").write_text("{")
        assert oci.prune(state_root=state_root) == ()
        pidfd = container.fileno()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert oci.prune(state_root=state_root) == (prefix,)
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize("rest", [b"", b"\0" * 100, b'{"pid": 1', b"[]\n", b"{\n"])
def test_both_records_are_damaged(bundle: oci.Bundle, state_root: Path, prefix: str, rest: bytes) -> None:
    """Nothing is abandoned: the container stays, and the error says so."""
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        paths = (state_root / prefix / "state.json", state_root / prefix / RECOVERY)
        before = [path.read_bytes() for path in paths]
        paths[0].write_text("{")
        paths[1].write_bytes(rest)
        for call in (lambda: container.delete(force=True), lambda: oci.prune(state_root=state_root)):
            with pytest.raises(
                oci.StateError, match=f"{paths[1]} is damaged, and so is state.json: .*; end the container's processes"
            ):
                call()
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content)
        assert container.status is oci.Status.CREATED
    assert_nothing_left(state_root, prefix)


def test_a_container_that_is_being_created(make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """Its recovery record is its state until the init process waits for the start."""
    text = f"import ociruntime as oci; print(oci.Container.load('{prefix}', state_root='{state_root}').state.to_json())"
    look = f'ls {state_root / prefix} >{tmp_path / "files"}; cd {REPO}; {sys.executable} -P -c "{text}" >{tmp_path / "seen"}'
    spec = oci.RuntimeSpec.default().with_args(["true"]).with_annotations({"com.example": "x"})
    bundle = make_bundle(spec.evolve(hooks=hooks(create_runtime=[sh(look)])))
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        files, state = (tmp_path / "files").read_text().split(), json.loads((tmp_path / "seen").read_bytes())
        assert {RECOVERY, "lock"} <= {*files}
        assert "state.json" not in files
        assert (state["id"], state["status"], state["bundle"]) == (prefix, "creating", str(bundle.path))
        assert (state["annotations"], state["rootfs"]) == ({"com.example": "x"}, str(bundle.rootfs))
        created = json.loads((state_root / prefix / "state.json").read_bytes())
        assert state["createdAt"] == created["created_at"]
        recorded = read_recovery(str(state_root / prefix))
        assert recorded is not None
        assert recorded["pid"] == created["pid"] == container.pid


def test_a_line_counts_when_it_is_complete(tmp_path: Path) -> None:
    assert read_recovery(str(tmp_path)) is None
    recovery = Recovery(str(tmp_path))
    recovery.add({"undo": [["cgroup", "/a"]], "status": "creating"})
    recovery.add({"undo": [["cgroup", "/b"]], "pid": 3})
    recovery.add({"pid": 3})
    content = (tmp_path / RECOVERY).read_bytes()
    first = content.index(b"\n") + 1
    whole = content.rindex(b"\n") + 1
    for end in range(whole + 1):
        (tmp_path / RECOVERY).write_bytes(content[:end] + bytes(8))
        complete = {"undo": [["cgroup", "/b"]], "pid": 3} if end >= whole else {"undo": [["cgroup", "/a"]]} if end >= first else {}
        assert read_recovery(str(tmp_path)) == complete

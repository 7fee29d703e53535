"""Hooks on a real kernel: when and where each runs, what it gets, and what its failure does (config.md#posix-platform-hooks)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.spec import Hook, Hooks, Mount

from ..support.fixture_types import MakeBundle, Script
from ..support.processes import find_processes
from ..support.users import with_user_namespace
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
ORDER = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
SH = "/bin/busybox"


def sh(script: str, *env: str, timeout: int | None = None) -> Hook:
    return Hook(path=SH, args=("sh", "-c", script), env=env or None, timeout=timeout)


def hooks(**kinds: list[Hook]) -> Hooks:
    names = {"createRuntime": "create_runtime", "createContainer": "create_container", "startContainer": "start_container"}
    return Hooks(**{names.get(kind, kind): tuple(programs) for kind, programs in kinds.items()})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A directory that is at the same path in the container."""
    path = tmp_path / "log"
    path.mkdir()
    return path


@pytest.fixture
def hooked(make_bundle: MakeBundle, log: Path) -> Callable[..., oci.Bundle]:
    """Makes a bundle with hooks, in which the log is mounted."""

    def make(given: Hooks, args: tuple[str, ...] = ("sleep", "100"), *, user: bool = False, **members: object) -> oci.Bundle:
        spec = (
            oci.RuntimeSpec.default()
            .with_args(args)
            .with_mount(Mount(destination=str(log), type="bind", source=str(log), options=("bind",)))
        )
        if user:
            spec = with_user_namespace(spec, 0, 70000)
        return make_bundle(spec.evolve(hooks=given, **members))

    return make


def note(log: Path, name: str) -> Hook:
    """Writes down the state that it gets, and where and as whom it runs."""
    facts = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid; pwd; id -u; ls /"
    return sh(f"cat > {log}/{name}.state; ({facts}) > {log}/{name}.facts 2>&1; echo {name} >> {log}/order")


def state_in(log: Path, name: str) -> dict[str, object]:
    document = json.loads((log / f"{name}.state").read_text())
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("gate", [True, False])
def test_each_at_its_moment_in_its_place(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, gate: bool, user: bool
) -> None:
    given = hooks(**{kind: [note(log, f"{kind}-{n}") for n in range(2)] for kind in ORDER})
    bundle = hooked(given, ("sh", "-c", f"echo process >> {log}/order; exec sleep 100"), user=user, annotations={"a.b": "c"})
    created = [f"{kind}-{n}" for kind in ORDER[:3] for n in range(2)]
    if gate:
        container = oci.Container.create(prefix, bundle, state_root=state_root)
        assert (log / "order").read_text().split() == created
        pid = container.pid
        container.start()
    else:
        container = oci.Container.run(prefix, bundle, state_root=state_root)
        pid = container.pid
    mine, theirs = (tuple(os.readlink(f"/proc/{p}/ns/{n}") for n in ("mnt", "pid")) for p in ("self", pid))
    container.kill("KILL")
    container.wait(TIME_LIMIT)
    assert not (log / "poststop-0.state").exists()
    container.delete()
    # The process and poststart run at the same time.
    order = (log / "order").read_text().split()
    assert [name for name in order if name != "process"] == [f"{kind}-{n}" for kind in ORDER for n in range(2)]
    assert order.index("process") > order.index("startContainer-1")

    expected = {"ociVersion": "1.3.0", "id": prefix, "bundle": str(bundle.path), "annotations": {"a.b": "c"}}
    for kind in ORDER:
        state = state_in(log, f"{kind}-0")
        assert expected.items() <= state.items()
        inside = kind in ("createContainer", "startContainer")
        assert state.get("pid") == (None if kind == "poststop" else 1 if inside else pid)
        assert state["status"] == {"poststart": "running", "poststop": "stopped"}.get(kind, "created")
        mnt, pidns, cwd, uid, *root = (log / f"{kind}-0.facts").read_text().split()
        assert (mnt, pidns) == (theirs if inside else mine)
        assert uid == "0"
        assert cwd == ("/" if kind == "startContainer" else str(bundle.path / "rootfs") if inside else str(bundle.path))
        assert ("boot" in root or "home" in root) is (kind != "startContainer")  # the host's tree, or the image's


def test_what_create_hooks_find_and_what_they_change_stays(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str
) -> None:
    """All is mounted below the path of the rootfs in the container's mount namespace; a mount made there is in the container."""
    given = hooks(
        createRuntime=[
            sh(
                "P=$(grep -o '\"pid\": [0-9]*' | grep -o '[0-9]*'); nsenter -t $P -m mkdir $ROOT/dev/made || exit 1",
                "PATH=/usr/bin:/bin",
            )
        ],
        createContainer=[
            sh(
                "mkdir $ROOT/mnt && mount -t tmpfs x $ROOT/mnt && echo hi > $ROOT/mnt/file && ls $ROOT/proc/1 > /dev/null",
                "PATH=/bin",
            )
        ],
    )
    bundle = hooked(given)
    root = f"ROOT={bundle.path}/rootfs"
    spec = bundle.spec
    assert spec.hooks is not None
    with_root = {
        name: tuple(h.evolve(env=(*(h.env or ()), root)) for h in getattr(spec.hooks, name))
        for name in ("create_runtime", "create_container")
    }
    bundle.spec = spec.evolve(hooks=spec.hooks.evolve(**with_root))
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        shown = container.exec(
            ["sh", "-c", "cat /mnt/file; ls -d /dev/made /dev/null"], capture_output=True, text=True, check=True
        ).stdout
        assert shown == "hi\n/dev/made\n/dev/null\n"
    assert not (bundle.path / "rootfs/dev/made").exists()
    assert os.listdir(bundle.path / "rootfs/mnt") == []


@pytest.mark.parametrize("kind", ORDER)
def test_exactly_its_own_arguments_environment_and_descriptors(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_CALLER", "1")
    script = f"tr '\\0' '\\n' < /proc/self/environ > {log}/environ; printf '%s\\n' \"$0\" \"$@\" > {log}/argv; ls /proc/self/fd > {log}/fds"
    seen = Hook(path=SH, args=("sh", "-c", script, "x y", ""), env=("ONE=1=2", "TWO="))
    bare = Hook(path="/bin/env" if kind == "startContainer" else _env_copy(log), timeout=5)
    bundle = hooked(hooks(**{kind: [seen, bare]}))
    fd = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        with oci.Container.run(prefix, bundle, state_root=state_root):
            pass
    finally:
        os.close(fd)
    assert (log / "environ").read_text().split() == ["ONE=1=2", "TWO="]
    assert (log / "argv").read_text().split("\n") == ["x y", "", ""]
    assert (log / "fds").read_text().split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.parametrize("env", [None, ()])
def test_a_start_hook_without_an_environment_gets_that_of_the_process(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, env: tuple[str, ...] | None
) -> None:
    script = f'echo "$ONE $HOME" > {log}/environ'
    bundle = hooked(hooks(startContainer=[Hook(path=SH, args=("sh", "-c", script), env=env)]), ("true",))
    bundle = bundle.with_process(env=("PATH=/bin", "ONE=two"))
    oci.Container.run(prefix, bundle, state_root=state_root).delete(force=True)
    assert (log / "environ").read_text() == ("two /root\n" if env is None else " \n")


def _env_copy(log: Path) -> str:
    """A program of its own on the host, which without arguments is env."""
    (log / "env").symlink_to(SH)
    return str(log / "env")


BROKEN = {
    "exit code": (sh("echo first; echo because >&2; exit 3"), r"ended with exit code 3: first\nbecause", 3),
    "signal": (sh("kill -TERM $$"), "killed by signal 15", -15),
    "not there": (Hook(path="/no/such/hook"), "cannot be run: No such file", None),
    "not a program": (Hook(path="/etc/passwd"), "cannot be run: (Permission denied|Exec format)", None),
    "too long": (sh("echo working; sleep 1000 & sleep 1000", timeout=1), "took more than 1 s: working", -9),
}


def begin(make: Callable[..., oci.Container], name: str, bundle: oci.Bundle, root: Path) -> None:
    """Create and start, or run."""
    container = make(name, bundle, state_root=root)
    assert make == oci.Container.create, "run would have failed"
    container.start()


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", ORDER)
def test_one_that_fails(hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, kind: str, how: str) -> None:
    hook, words, returncode = BROKEN[how]
    if how == "not a program":
        hook = hook.evolve(path=str(log / "passwd"))
        (log / "passwd").write_text("root:x\n")
    hook = hook.evolve(env=(f"MARK={prefix}", "PATH=/bin"))
    later = {kind: [sh("exit 0"), hook, note(log, "later")]} | ({} if kind == "poststop" else {"poststop": [note(log, "after")]})
    bundle = hooked(hooks(**later), ("sh", "-c", f"touch {log}/ran; exec sleep 100"))
    if kind == "poststop":
        container = oci.Container.run(prefix, bundle, state_root=state_root)
        with pytest.warns(oci.OCIRuntimeWarning, match=f"error running poststop hook #1: .*{words}"):
            container.delete(force=True)
        assert state_in(log, "later")["status"] == "stopped"
    else:
        for make in (oci.Container.create, oci.Container.run):
            (log / "ran").unlink(missing_ok=True)
            (log / "after.state").unlink(missing_ok=True)
            with pytest.raises(oci.HookError, match=f"error running {kind} hook #1: .*{words}") as caught:
                begin(make, prefix, bundle, state_root)
            assert caught.value.index == 1
            assert (caught.value.kind, caught.value.path, caught.value.returncode) == (kind, hook.path, returncode)
            assert not (log / "later.state").exists()
            assert state_in(log, "after")["status"] == "stopped"
            assert kind == "poststart" or not (log / "ran").exists()
            assert oci.Container.list(state_root=state_root) == []
    assert find_processes(f"MARK={prefix}", "environ") == []


def test_a_step_that_fails_behind_hooks_runs_poststop(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str
) -> None:
    given = hooks(createRuntime=[note(log, "before")], poststop=[note(log, "after")])
    with pytest.raises(oci.StepError):
        oci.Container.create(prefix, hooked(given, ("no-such-program",)), state_root=state_root)
    assert (log / "order").read_text().split() == ["before", "after"]
    with pytest.raises(oci.StepError):  # and one before them does not: there is nothing to clean up after
        oci.Container.create(prefix, hooked(given, root=oci.spec.Root(path="nowhere")), state_root=state_root)
    assert (log / "order").read_text().split() == ["before", "after"]


def test_start_and_delete_by_others_without_the_bundle(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, script: Script
) -> None:
    bundle = hooked(hooks(startContainer=[note(log, "one")], poststart=[note(log, "two")], poststop=[note(log, "three")]))
    text = "import sys, ociruntime as oci\ncontainer = oci.Container.{}\n"
    script(text.format("create(sys.argv[1], sys.argv[3], state_root=sys.argv[2])"), prefix, state_root, bundle.path)
    bundle.spec = bundle.spec.evolve(hooks=None)
    (bundle.path / "config.json").unlink()
    script(text.format("load(sys.argv[1], state_root=sys.argv[2]).start()"), prefix, state_root)
    script(text.format("load(sys.argv[1], state_root=sys.argv[2]).delete(force=True)"), prefix, state_root)
    assert (log / "order").read_text().split() == ["one", "two", "three"]


def test_a_start_hook_has_no_more_rights_than_the_process(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str
) -> None:
    given = hooks(startContainer=[sh(f"grep -E '^(Uid|Cap|NoNew|Seccomp:)' /proc/self/status > {log}/hook")])
    log.chmod(0o777)
    bundle = hooked(given, ("sh", "-c", f"grep -E '^(Uid|Cap|NoNew|Seccomp:)' /proc/self/status > {log}/process"))
    assert bundle.spec.process is not None
    bundle.spec = bundle.spec.evolve(process=bundle.spec.process.evolve(user=oci.spec.User(uid=7, gid=7)))
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        container.start()
        container.wait(TIME_LIMIT)
    assert (log / "hook").read_text() == (log / "process").read_text() != ""


def test_files_of_a_hook_have_the_mode_that_the_umask_says(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str
) -> None:
    """The caller's umask, and in startContainer the process's."""
    bundle = hooked(hooks(**{kind: [sh(f"umask > {log}/{kind}")] for kind in ORDER}))
    bundle.spec = bundle.spec.at.process.user.set(oci.spec.User(uid=0, gid=0, umask=0o77))
    before = os.umask(0o27)
    try:
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            container.start()
    finally:
        os.umask(before)
    masks = {kind: (log / kind).read_text().strip() for kind in ORDER}
    assert masks == dict.fromkeys(ORDER, "0027") | {"startContainer": "0077"}


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer", "startContainer"])
def test_of_a_long_output_the_end_is_told_and_kept(
    hooked: Callable[..., oci.Bundle], state_root: Path, prefix: str, kind: str
) -> None:
    """It neither fails nor waits nor takes memory: the old part of the memfd is released."""
    ours = "/proc/self/fd/1"
    script = f"yes | head -c 30000000; sleep 0.5; stat -Lc 'size %s blocks %b' {ours}; yes | head -c 3000; echo the end; exit 1"
    with pytest.raises(oci.HookError) as caught:
        with oci.Container.create(prefix, hooked(hooks(**{kind: [sh(script)]})), state_root=state_root) as container:
            container.start()
    assert caught.value.output.endswith("y\nthe end")
    assert len(caught.value.output) <= 2000
    assert caught.value.returncode == 1


def test_hooks_on_the_command_line(
    hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str, script: Script
) -> None:
    bundle = hooked(hooks(poststart=[note(log, "one")], poststop=[sh("echo sorry; exit 9")]), ("true",))
    done = script(
        "import sys; from ociruntime.cli import main; sys.exit(main(sys.argv[1:]))",
        "--root", state_root, "run", "-b", bundle.path, prefix,
    )  # fmt: skip
    assert (log / "one.state").exists()
    assert done.stderr == f"ociruntime: warning: error running poststop hook #0: {SH} ended with exit code 9: sorry\n"


def test_no_warning_without_failure(hooked: Callable[..., oci.Bundle], log: Path, state_root: Path, prefix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oci.Container.run(prefix, hooked(hooks(poststop=[note(log, "after")])), state_root=state_root).delete(force=True)
    assert state_in(log, "after")["id"] == prefix

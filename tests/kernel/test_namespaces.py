"""Namespaces on a real kernel: new ones, joined ones, maps of ids, clocks, and users without privileges (config-linux.md#namespaces)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.engine.execution import Execution
from ociruntime.files import MountInfo, read_mounts
from ociruntime.lifecycle.status import first_process
from ociruntime.plan import compile_exec
from ociruntime.spec import Capabilities, Hook, Hooks, IDMapping, Mount, Namespace, TimeOffset

from ..support.fixture_types import MakeBundle, Script, UserBundle
from ..support.users import FIRST_ID, UID, VARIANTS, give
from ..support.waiting import wait_until

pytestmark = pytest.mark.root
FILES = {
    "pid": "pid",
    "network": "net",
    "ipc": "ipc",
    "uts": "uts",
    "mount": "mnt",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}
WIDE = (IDMapping(container_id=0, host_id=FIRST_ID, size=65536),)


def with_namespaces(
    kinds: dict[str, str | None], *, uids: tuple[IDMapping, ...] = WIDE, gids: tuple[IDMapping, ...] = WIDE, **linux: object
) -> oci.RuntimeSpec:
    """The default config with these namespaces, new (None) or by path, and ids where a user namespace is new."""
    spec = oci.RuntimeSpec.default().with_args(["sleep", "100"])
    assert spec.linux is not None
    all_kinds = dict.fromkeys(("pid", "network", "ipc", "uts", "mount")) | kinds
    if "user" in kinds and kinds["user"] is None:
        linux |= {"uid_mappings": uids, "gid_mappings": gids}
    namespaces = tuple(Namespace(type=kind, path=path) for kind, path in all_kinds.items())
    return spec.evolve(linux=spec.linux.evolve(namespaces=namespaces, **linux))


def inodes(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{name}") for kind, name in FILES.items()}


def say(container: oci.Container, *args: str, **more: object) -> str:
    result = container.exec(args, capture_output=True, text=True, check=True, **more)  # type: ignore[arg-type]
    assert isinstance(result.stdout, str)
    return result.stdout


def test_a_namespace_of_every_type(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = give(make_bundle(with_namespaces({"user": None, "cgroup": None, "time": None})), FIRST_ID)
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        container.start()
        ours, theirs = inodes(os.getpid()), inodes(container.pid)
        assert {kind for kind in FILES if ours[kind] == theirs[kind]} == set()
        script = "for n in /proc/self/ns/*; do readlink $n; done | sort -u"
        assert set(say(container, "sh", "-c", script).split()) == set(theirs.values())
        assert say(container, "cat", "/proc/self/uid_map").split() == ["0", "100000", "65536"]
        assert {line.partition(":")[2].partition(":")[2] for line in say(container, "cat", "/proc/1/cgroup").split()} == {"/"}
        status = Path(f"/proc/{container.pid}/status").read_text()
        assert "\nUid:\t100000\t100000\t100000\t100000\n" in status
        assert "\nGroups:\t \n" in status


def test_what_is_not_listed_is_the_callers(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = with_namespaces({}).evolve(hostname=None)
    for kind in ("pid", "network", "ipc", "uts"):
        spec = spec.without_namespace(oci.spec.NamespaceType(kind))
    mounts = tuple(m for m in spec.mounts or () if m.type not in ("sysfs", "proc"))
    bundle = make_bundle(spec.evolve(mounts=mounts, linux=spec.linux.evolve(masked_paths=None, readonly_paths=None)))  # type: ignore[union-attr]
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        ours, theirs = inodes(os.getpid()), inodes(container.pid)
        assert {kind for kind in FILES if ours[kind] != theirs[kind]} == {"mount"}


@pytest.mark.skipif(oci.Host.probe().kernel < (6, 15), reason="needs Linux 6.15")
@pytest.mark.parametrize("where", ["inherited", "joined", "inherited-hooks"])
def test_a_mount_namespace_that_is_not_its_own(
    make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path, where: str
) -> None:
    """What it mounts shows in no mount namespace, and goes with it."""
    spec = with_namespaces({}).without_namespace(oci.spec.NamespaceType.MOUNT)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("bound\n")
    spec = spec.with_mount(oci.spec.Mount(destination="/bound", type="bind", source=str(source), options=("rbind", "ro")))
    if where == "inherited-hooks":
        hook = oci.spec.Hook(path="/bin/busybox", args=("sh", "-c", "cat dev/null && ls proc/self > seen"))
        spec = spec.evolve(hooks=oci.spec.Hooks(create_container=(hook,)))
    with contextlib.ExitStack() as stack:
        other = os.getpid()
        if where == "joined":
            command = ["unshare", "--mount", "--kill-child", "--fork", "sleep", "1000"]
            holder = stack.enter_context(subprocess.Popen(command))
            stack.callback(holder.kill)
            wait_until(lambda: _child_in_new(holder.pid, "mount"), "the start of unshare")
            other = _child_in_new(holder.pid, "mount")
            spec = spec.with_namespace(oci.spec.NamespaceType.MOUNT, f"/proc/{other}/ns/mnt")
        bundle = make_bundle(spec)
        points = {"/", *(mount.destination for mount in spec.mounts or ())}

        def own() -> list[MountInfo]:
            """The mounts there that can be the container's; other programs mount elsewhere."""
            return [mount for mount in read_mounts(other) if mount.point in points or mount.point.startswith(f"{tmp_path}/")]

        before = own()
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            container.start()
            assert inodes(container.pid)["mount"] == inodes(other)["mount"]
            script = "cat /bound/file; touch /bound/x 2>&1; ls -d /dev/null /proc/1; cat /proc/1/comm; cat /proc/keys 2>&1 | wc -c; pwd; ls /"
            shown = say(container, "sh", "-c", script).split()
            assert shown[:1] == ["bound"]
            assert {"Read-only", "/dev/null", "/proc/1", "sleep"} <= set(shown)
            assert "boot" not in shown  # the host's tree
            assert ("seen" in shown) is (where == "inherited-hooks")
            assert own() == before
        assert own() == before


def _child_in_new(parent: int, kind: str) -> int:
    """The child of a process if it has another namespace than this process, or 0."""
    try:
        child = int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
        return child if inodes(child)[kind] != inodes(os.getpid())[kind] else 0
    except (IndexError, FileNotFoundError):
        return 0


@pytest.mark.parametrize(
    "ids",
    [
        ((0, 200000, 1), (1, 100000, 999), (1000, 300000, 1)),
        ((1000, 300000, 1),),
        ((5, 0, 1), (0, 100000, 5)),
    ],
    ids=["several", "no root", "the host's root inside"],
)
def test_any_mapping(make_bundle: MakeBundle, state_root: Path, prefix: str, ids: tuple[tuple[int, int, int], ...]) -> None:
    maps = tuple(IDMapping(container_id=inside, host_id=outside, size=size) for inside, outside, size in ids)
    spec = with_namespaces({"user": None}, uids=maps, gids=maps)
    assert spec.process is not None
    user = max(inside for inside, _, _ in ids)
    outside = next(host for inside, host, _ in ids if inside == user)
    spec = spec.evolve(
        process=spec.process.evolve(user=oci.spec.User(uid=user, gid=user)),
        mounts=tuple(m.evolve(options=tuple(o for o in m.options or () if o != "gid=5")) for m in spec.mounts or ()),
    )
    owner = next((host for inside, host, _ in ids if inside == 0), outside)
    with oci.Container.create(prefix, give(make_bundle(spec), owner), state_root=state_root) as container:
        container.start()
        assert [tuple(map(int, line.split())) for line in say(container, "cat", "/proc/self/uid_map").splitlines()] == list(ids)
        assert say(container, "id", "-u") == f"{user}\n"
        assert f"\nUid:\t{outside}\t" in Path(f"/proc/{container.pid}/status").read_text()


@pytest.mark.parametrize("user", [0, 1000])
def test_maps_that_the_config_leaves_to_us(make_bundle: MakeBundle, state_root: Path, prefix: str, user: int) -> None:
    """The caller is the user of the process. In a container of a user without subordinate ids, no other user is mapped."""
    spec = with_namespaces({"user": None}, uids=(), gids=())
    assert spec.process is not None
    spec = spec.evolve(
        process=spec.process.evolve(user=oci.spec.User(uid=user, gid=user)),
        mounts=tuple(m.evolve(options=tuple(o for o in m.options or () if o != "gid=5")) for m in spec.mounts or ()),
    )
    if oci.Host.probe().subuids:
        pytest.skip("root has further ids on this host")
    with oci.Container.create(prefix, make_bundle(spec), state_root=state_root) as container:
        container.start()
        ids = say(container, "sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u /bin").split()
        assert ids == [*[str(user), "0", "1"] * 2, str(user), str(user)]
        assert inodes(container.pid)["user"] != inodes(os.getpid())["user"]


def test_clocks(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    offsets = {"boottime": TimeOffset(secs=1_000_000, nanosecs=5), "monotonic": TimeOffset(secs=-3)}
    bundle = make_bundle(with_namespaces({"time": None}, time_offsets=offsets))
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        assert float(say(container, "cat", "/proc/uptime").split()[0]) > 1_000_000
        expected = [["monotonic", "-3", "0"], ["boottime", "1000000", "5"]]
        assert [line.split() for line in say(container, "cat", "/proc/self/timens_offsets").splitlines()] == expected
        first = Path(f"/proc/{container.pid}/ns")
        assert os.path.samefile(first / "time", first / "time_for_children")


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(
    ("pod", "joined", "fresh"),
    [
        ({"cgroup": None, "time": None}, "network ipc uts pid cgroup time", {}),
        ({}, "network", {}),
        ({}, "pid", {"time": None}),
        ({}, "network ipc", {"user": None, "cgroup": None, "time": None}),
        ({"user": None}, "user", {"time": None, "cgroup": None}),
        ({"user": None, "cgroup": None, "time": None}, "user network ipc uts pid cgroup time", {}),
        ({"user": None}, "user pid", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_joining_what_another_container_has(
    make_bundle: MakeBundle,
    state_root: Path,
    prefix: str,
    pod: dict[str, None],
    joined: str,
    fresh: dict[str, str | None],
    gate: bool,
) -> None:
    first = give(make_bundle(with_namespaces(dict(pod))), FIRST_ID if "user" in pod else 0)
    with oci.Container.run(f"{prefix}-pod", first, state_root=state_root) as holder:
        paths = {kind: f"/proc/{holder.pid}/ns/{FILES[kind]}" for kind in joined.split()}
        spec = with_namespaces({**fresh, **paths})
        if "user" in fresh:  # their owner is not this user namespace: no sysfs, no mqueue
            spec = spec.without_mount("/sys").without_mount("/dev/mqueue")
        second = give(make_bundle(spec), FIRST_ID if "user" in paths or "user" in fresh else 0)
        make = oci.Container.create if gate else oci.Container.run
        with make(prefix, second, state_root=state_root) as container:
            if gate:
                container.start()
            theirs, pods, ours = inodes(container.pid), inodes(holder.pid), inodes(os.getpid())
            assert {kind for kind in FILES if theirs[kind] == pods[kind] and kind in paths} == set(paths)
            new = ({"pid", "network", "ipc", "uts", "mount"} | set(fresh)) - set(paths)
            assert {kind for kind in FILES if theirs[kind] not in (pods[kind], ours[kind])} == new
            script = "for n in /proc/self/ns/*; do readlink $n; done | sort -u"
            assert set(say(container, "sh", "-c", script).split()) == set(theirs.values())
            container.kill("KILL")
            assert container.wait() == -9  # it is our child, whatever forked on the way


def test_the_user_namespace_that_we_are_in(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(with_namespaces({"user": "/proc/self/ns/user"}))
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        assert inodes(container.pid)["user"] == inodes(os.getpid())["user"]
        assert say(container, "id", "-u") == "0\n"


def _fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("network", "/proc/self/ns/uts", "is a uts namespace; give a network namespace"),
        ("user", "/proc/self/ns/pid", "is a pid namespace; give a user namespace"),
        ("ipc", "/etc/passwd", "is not a namespace"),
        ("pid", "/no/such", "No such file"),
        ("uts", _fifo, "is not a namespace"),
    ],
)
def test_a_path_that_is_not_that_namespace(
    make_bundle: MakeBundle,
    state_root: Path,
    prefix: str,
    tmp_path: Path,
    kind: str,
    path: str | Callable[[Path], str],
    message: str,
) -> None:
    given = path if isinstance(path, str) else path(tmp_path / "fifo")
    bundle = make_bundle(with_namespaces({kind: given}))
    index = [str(n.type) for n in bundle.spec.linux.namespaces or ()].index(kind)  # type: ignore[union-attr]
    with pytest.raises(oci.SpecError, match=message) as caught:
        oci.Container.create(prefix, bundle, state_root=state_root)
    assert caught.value.problems[0].path == f"$.linux.namespaces[{index}].path"
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("uts", lambda spec: spec),
        ("network", lambda spec: spec.evolve(linux=spec.linux.evolve(sysctl={"net.core.somaxconn": "4096"}))),
        ("ipc", lambda spec: spec.evolve(linux=spec.linux.evolve(sysctl={"kernel.shmmni": "4096"}))),
    ],
)
def test_the_callers_own_namespace_is_not_changed(
    make_bundle: MakeBundle, state_root: Path, prefix: str, kind: str, change: Callable[[oci.RuntimeSpec], oci.RuntimeSpec]
) -> None:
    spec = with_namespaces({kind: f"/proc/{os.getpid()}/ns/{FILES[kind]}"})
    with pytest.raises(oci.SpecError, match="is the caller's own namespace, which"):
        oci.Container.create(prefix, make_bundle(change(spec)), state_root=state_root)
    with oci.Container.run(prefix, make_bundle(spec.evolve(hostname=None)), state_root=state_root) as container:  # joined it may be
        assert inodes(container.pid)[kind] == inodes(os.getpid())[kind]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"uids": (*WIDE, IDMapping(container_id=5, host_id=5, size=1))},
            r"\$\.linux\.uidMappings\[\d\]: ids in the container overlap",
        ),
        ({"uids": (IDMapping(container_id=7, host_id=0, size=1),)}, r"\$\.process\.user\.uid: 0 has no mapping"),
    ],
)
def test_maps_that_do_not_fit(
    make_bundle: MakeBundle, state_root: Path, prefix: str, change: dict[str, tuple[IDMapping, ...]], words: str
) -> None:
    with pytest.raises(oci.SpecError, match=words):
        oci.Container.run(prefix, make_bundle(with_namespaces({"user": None}, **change)), state_root=state_root)  # type: ignore[arg-type]
    assert oci.Container.list(state_root=state_root) == []


def test_an_init_that_joins_cannot_be_inspected(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """Even the container's root, with CAP_SYS_PTRACE, cannot read a process that has joined and is not the program yet."""
    spec = with_namespaces({"user": None}).with_caps("CAP_SYS_PTRACE")
    with oci.Container.run(prefix, give(make_bundle(spec), FIRST_ID), state_root=state_root) as container:
        document = container._entry.read()  # the launch below stops where the public API does not
        assert spec.process is not None
        plan = compile_exec(
            spec.process, spec, oci.Host.probe(), namespaces=document["namespaces"], cgroups=tuple(document["cgroups"])
        )
        pidfd = first_process(document)
        assert pidfd is not None
        waiting = Execution(plan, stdio=[0, 1, 2], pidfd=pidfd)
        waiting.begin()
        try:
            script = "for p in /proc/[0-9]*; do echo $(cat $p/comm) $(ls $p/fd 2>/dev/null | wc -l) $(head -c1 $p/mem 2>&1); done"
            shown = [line.split(maxsplit=2) for line in say(container, "sh", "-c", script).splitlines()]
        finally:
            waiting.abort()
            os.close(pidfd)
        seen = {name: (int(fds), words) for name, fds, words in shown if name in ("sleep", "oci-init")}
        assert seen["oci-init"][0] == 0
        assert "Permission denied" in seen["oci-init"][1]
        assert seen["sleep"][0] == 3  # the positive control
        assert "Permission denied" not in seen["sleep"][1]


GROUPS = """
import os, subprocess, sys, time
import ociruntime as oci
path, root, prefix = sys.argv[1:]
os.setgroups([4, 20])
other = subprocess.Popen(["unshare", "--user", "--map-root-user", "--setgroups", "deny", "sh", "-c", "echo; exec sleep 100"], stdout=subprocess.PIPE)
other.stdout.read(1)
bundle = oci.Bundle.load(path)
namespaces = (*bundle.spec.linux.namespaces, oci.spec.Namespace(type="user", path=f"/proc/{other.pid}/ns/user"))
bundle.spec = bundle.spec.evolve(linux=bundle.spec.linux.evolve(namespaces=namespaces))
with oci.Container.create(prefix, bundle, state_root=root) as container:
    container.start()
    print(container.exec(["grep", "Groups", "/proc/1/status", "/proc/self/status"], capture_output=True, text=True, check=True).stdout)
other.kill()
other.communicate()
"""


def test_no_group_of_the_caller_comes_along(make_bundle: MakeBundle, state_root: Path, prefix: str, script: Script) -> None:
    """Into a user namespace that denies setgroups."""
    spec = with_namespaces({})
    spec = spec.evolve(mounts=tuple(m.evolve(options=tuple(o for o in m.options or () if o != "gid=5")) for m in spec.mounts or ()))
    shown = script(GROUPS, make_bundle(spec).path, state_root, prefix).stdout
    assert [line.split() for line in shown.splitlines() if line] == [["/proc/1/status:Groups:"], ["/proc/self/status:Groups:"]]


# ---- users without privileges ----

ROOTLESS = """
import ctypes, os, subprocess, sys
import ociruntime as oci
path, uid, root, prefix, subids, layer = sys.argv[1], int(sys.argv[2]), *sys.argv[3:7]
def life(bundle, root, prefix):
    shown = {}
    args = ["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep Groups /proc/self/status; touch /tmp/x; cat /proc/self/oom_score_adj"]
    shown["run"] = oci.run(bundle, args, capture_output=True, text=True, state_root=root, container_id=prefix, check=True).stdout
    container = oci.Container.create(prefix, bundle.with_args(["sleep", "100"]), state_root=root)
    container.start()
    shown["exec"] = container.exec(args, capture_output=True, text=True, check=True).stdout
    container.kill("KILL", all=True)
    assert container.wait() == -9
    container.delete()
    assert [name for name in os.listdir(root) if not name.startswith(".")] == []
    return shown
if subids:
    assert ctypes.CDLL(None).unshare(0x20000) == 0
    for command in (["mount", "--make-rprivate", "/"],
                    ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/etc,upperdir={layer}/upper,workdir={layer}/work", "/etc"]):
        subprocess.run(command, check=True)
    with open("/etc/passwd", "a") as passwd:
        passwd.write(f"{prefix}:x:{uid}:{uid}::/:/bin/sh\\n")
    for name in ("subuid", "subgid"):
        open(f"/etc/{name}", "w").write(f"{uid}:{subids}\\n")
become(uid, [uid + 1])
bundle = oci.Bundle.load(path)
given = bundle.spec
shown = life(bundle, root, prefix)
assert shown["run"] == shown["exec"], shown
print(shown["run"])
bundle.spec = given.evolve(linux=given.linux.evolve(uid_mappings=None, gid_mappings=None))
assert life(bundle, root, prefix) == shown   # the maps are the same when the config leaves them to us
clock = given.with_namespace("time").at.linux.time_offsets.set({"monotonic": oci.spec.TimeOffset(secs=100000)})
bundle.spec = given
pod = oci.Container.create(prefix + "-pod", bundle.with_args(["sleep", "100"]), state_root=root + "-pods")
pod.start()
for joined in ((), ("user",), ("user", "pid", "ipc")):
    namespaces = [n.evolve(path=f"/proc/{pod.pid}/ns/{n.type}") if n.type in joined else n for n in clock.linux.namespaces]
    maps = {"uid_mappings": None, "gid_mappings": None} if joined else {}
    bundle.spec = clock.evolve(linux=clock.linux.evolve(namespaces=tuple(namespaces), **maps))
    shown = oci.run(bundle, ["cat", "/proc/self/timens_offsets"], capture_output=True, text=True, state_root=root, container_id=prefix, check=True)
    assert shown.stdout.split()[:2] == ["monotonic", "100000"], (joined, shown)
pod.delete(force=True)
bundle.spec = given
groups = bundle.spec.process.evolve(user=oci.spec.User(uid=0, gid=0, additional_gids=(0, 7)))
for change, kind, place in (
    (bundle.spec.evolve(process=groups), oci.SpecError, "additionalGids"),
    (bundle.spec.evolve(linux=bundle.spec.linux.evolve(uid_mappings=(oci.spec.IDMapping(container_id=0, host_id=0, size=1),))),
     oci.UnsupportedError, "uidMappings"),
    (bundle.spec.evolve(linux=bundle.spec.linux.evolve(resources=oci.spec.Resources(pids=oci.spec.Pids(limit=5)))),
     oci.UnsupportedError, "resources"),
    (bundle.spec.without_namespace("user").at.linux.uid_mappings.set(None).at.linux.gid_mappings.set(None),
     oci.StepError, "namespaces"),
):
    if subids and place == "additionalGids": continue   # newgidmap allows them
    bundle.spec = change
    try:
        oci.Container.create(prefix, bundle, state_root=root)
    except kind as error:
        assert place in str(error), error
    else:
        raise AssertionError(place)
    assert [name for name in os.listdir(root) if not name.startswith(".")] == []
"""


@pytest.mark.parametrize("helpers", [False, True])
def test_a_user_without_privileges(
    user_bundle: UserBundle, prefix: str, tmp_path: Path, user_script: Script, helpers: bool
) -> None:
    if helpers and not os.path.exists("/usr/bin/newuidmap"):
        pytest.skip("no newuidmap (Debian: uidmap)")
    spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID)
    spec = spec.at.process.oom_score_adj.set(654)  # a user may only make it higher
    if helpers:
        maps = (IDMapping(container_id=0, host_id=UID, size=1), IDMapping(container_id=1, host_id=700000, size=1000))
        spec = spec.at.linux.uid_mappings.set(maps).at.linux.gid_mappings.set(maps)
    bundle, state = user_bundle(spec)
    for name in ("upper", "work"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    done = user_script(ROOTLESS, bundle, UID, state, prefix, "700000:1000" if helpers else "", tmp_path / "etc")
    shown = [line.split() for line in done.stdout.splitlines() if line]
    each = [["0", str(UID), "1"], *([["1", "700000", "1000"]] if helpers else [])]
    assert shown[: 2 * len(each)] == each * 2
    # Without newgidmap the groups of the user stay: a group may forbid something, so it cannot be dropped.
    assert shown[2 * len(each) :] == ([["allow"], ["Groups:"], ["654"]] if helpers else [["deny"], ["Groups:", "65534"], ["654"]])


def test_values_that_the_kernel_refuses_are_named(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = oci.RuntimeSpec.default()
    for bad, start in (
        (
            spec.at.linux.sysctl.set({"net.core.somaxconn": "abc"}),
            "$.linux.sysctl['net.core.somaxconn']: sysctl net.core.somaxconn = abc: ",
        ),
        (
            spec.with_namespace("time").at.linux.time_offsets.set({"boottime": TimeOffset(secs=-(10**9))}),
            "$.linux.timeOffsets: boottime -1000000000 0 > /proc/self/timens_offsets: ",
        ),
    ):
        with pytest.raises(oci.StepError) as caught:
            oci.run(make_bundle(bad), state_root=state_root, container_id=prefix)
        assert str(caught.value).startswith(start)


# ---- the root without pivot_root(2) ----

LOOK_AROUND = """
ls /
unshare -Urpfm sh -c 'echo entered; mount -t proc none /proc && echo mounted'
"""
"""The host has a whole procfs, which would let the kernel mount another one in a new user namespace."""


def looking_around(spec: oci.RuntimeSpec) -> oci.RuntimeSpec:
    """Let the process make namespaces, and map root in them."""
    held = ("CAP_SETFCAP",)
    return spec.at.linux.seccomp.set(None).at.process.capabilities.set(Capabilities(bounding=held, effective=held, permitted=held))


@pytest.mark.parametrize("variant", ["plain", "user namespace"])
@pytest.mark.parametrize("kind", ["hook", "tmpfs on /", ""])
def test_the_root_is_mounted_over_the_hosts(
    make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path, variant: str, kind: str
) -> None:
    spec = VARIANTS[variant](looking_around(oci.RuntimeSpec.default().with_args(["sleep", "1000"])))
    if kind == "hook":
        report = Hook(
            path="/bin/sh", args=("sh", "-c", f"test -d /proc/self && ls {tmp_path} > /dev/null && echo ran > {tmp_path}/ran")
        )
        spec = spec.evolve(hooks=Hooks(create_runtime=(report,)))
    bundle = give(make_bundle(spec), 0)
    if kind == "tmpfs on /":
        bare = Mount(destination="/", type="tmpfs", source="tmpfs")
        shutil.copytree(bundle.rootfs / "bin", tmp_path / "bin", symlinks=True)
        programs = Mount(destination="/bin", type="bind", source=str(tmp_path / "bin"), options=("bind",))
        bundle.spec = spec.evolve(mounts=(bare, programs, *(spec.mounts or ())))
    with oci.Container.create(prefix, bundle, state_root=state_root, pivot_root=False) as container:
        container.start()
        expected = ["bin", "dev", "proc", "sys"] if kind == "tmpfs on /" else os.listdir(bundle.rootfs)
        printed = container.exec(["sh", "-c", LOOK_AROUND], capture_output=True, text=True, check=False)
        assert sorted(printed.stdout.split()) == sorted([*expected, "entered"]), printed.stderr
        assert (tmp_path / "ran").exists() == (kind == "hook")


NO_PIVOT = """
import sys
from ociruntime.cli import main
bundle, state, name, uid = sys.argv[1:]
become(int(uid))
sys.exit(main(["--root", state, "run", "--no-pivot", "--bundle", bundle, name]))
"""


def test_the_root_is_mounted_over_the_hosts_by_a_user(user_bundle: UserBundle, prefix: str, user_script: Script) -> None:
    spec = looking_around(oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).with_args(["sh", "-c", LOOK_AROUND]))
    bundle, state = user_bundle(spec)
    done = user_script(NO_PIVOT, bundle, state, prefix, UID, check=False)
    assert sorted(done.stdout.split()) == sorted([*os.listdir(bundle / "rootfs"), "entered"]), done.stderr

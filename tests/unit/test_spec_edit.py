"""Making and changing values: what is held, what is refused, and what stays as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ociruntime.errors import SpecError
from ociruntime.spec import (
    UNLIMITED,
    Capabilities,
    Capability,
    Change,
    Features,
    FrozenMap,
    Hook,
    Hooks,
    IDMapping,
    Linux,
    Memory,
    Mount,
    Namespace,
    NamespaceType,
    ProcessSpec,
    Rdma,
    Resources,
    Rlimit,
    RlimitType,
    Root,
    RuntimeSpec,
    Seccomp,
    SeccompAction,
    Syscall,
    TimeOffset,
    User,
    diff,
)

SPEC = RuntimeSpec.default(seccomp=False)
BARE = RuntimeSpec(oci_version="1.3.0")


# ---- values ----


def test_values_are_equal_and_hashable_by_what_they_hold() -> None:
    one, other = Memory(limit=1, swap=2), Memory(swap=2, limit=1)
    assert one == other
    assert len({one, other, Memory(limit=1)}) == 2
    assert one != Memory(limit=1, swap=2, extensions={"x": 1})
    assert Memory() != Rdma()
    assert hash(RuntimeSpec.default()) == hash(RuntimeSpec.load(RuntimeSpec.default().to_json()))
    assert FrozenMap({"a": 1, "b": 2}) == {"b": 2, "a": 1}
    assert hash(FrozenMap({"a": 1, "b": 2})) == hash(FrozenMap({"b": 2, "a": 1}))


def test_what_is_given_becomes_immutable() -> None:
    options: Any = ["ro"]
    extensions: Any = {"x": {"y": [1, {"z": None}]}}
    mount = Mount(destination="/x", options=options, extensions=extensions)
    options.append("rw")
    assert mount.options == ("ro",)
    assert mount.extensions == {"x": {"y": (1, {"z": None})}}
    assert isinstance(mount.extensions["x"], FrozenMap)
    hash(mount)
    annotations = {"a": "b"}
    spec = BARE.evolve(annotations=annotations)
    annotations["a"] = "c"
    assert spec.annotations == {"a": "b"}
    kind: Any = "pid"
    assert Namespace(type=kind).type is NamespaceType.PID


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Memory(limit="1"), "Memory.limit takes int, not '1'"),  # type: ignore[arg-type]
        (lambda: Memory(limit=True), "Memory.limit takes int, not True"),
        (lambda: ProcessSpec(), "missing 1 required keyword-only argument: 'cwd'"),  # type: ignore[call-arg]
        (lambda: ProcessSpec(cwd=None), "ProcessSpec needs cwd"),  # type: ignore[arg-type]
        (lambda: ProcessSpec(cwd="/", args="sh"), "ProcessSpec.args takes a tuple, not 'sh'"),  # type: ignore[arg-type]
        (lambda: ProcessSpec(cwd="/", args=("sh", 1)), "ProcessSpec.args takes str, not 1"),  # type: ignore[arg-type]
        (lambda: Mount(destinaton="/"), "no member 'destinaton'; did you mean 'destination'"),  # type: ignore[call-arg]
        (lambda: Mount(uidMappings=()), "did you mean 'uid_mappings'"),  # type: ignore[call-arg]
        (lambda: Linux(sysctl=()), "Linux.sysctl takes a mapping"),  # type: ignore[arg-type]
        (lambda: Linux(namespaces=("pid",)), "Linux.namespaces takes Namespace"),  # type: ignore[arg-type]
        (lambda: SPEC.evolve(oci_version=None), "RuntimeSpec needs oci_version"),  # type: ignore[arg-type]
        (lambda: SPEC.evolve(process={"cwd": "/"}), "RuntimeSpec.process takes ProcessSpec"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_held_is_a_type_error(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        wrong()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: setattr(SPEC, "hostname", "x"),
        lambda: delattr(SPEC, "hostname"),
        lambda: setattr(SPEC, "anything", 1),
        lambda: setattr(FrozenMap(), "_items", {}),
    ],
)
def test_nothing_can_be_set(attempt: Callable[[], object]) -> None:
    with pytest.raises(AttributeError, match=r"can't set attribute|cannot change"):
        attempt()


def test_a_class_of_one_s_own_stays_itself() -> None:
    class Ours(RuntimeSpec):
        """With helpers of our own."""

        def quiet(self) -> Ours:
            return self.with_env(QUIET="1")

    created = Ours.default().quiet().with_args(["x"]).at.hostname.set("y")
    assert type(created) is Ours
    assert type(created.merge({"hostname": "z"})) is Ours
    assert type(Ours.loads(created.to_json())) is Ours
    assert created != RuntimeSpec.loads(created.to_json())


# ---- helpers ----


def test_args_are_one_sequence() -> None:
    wrong: tuple[tuple[Any, ...], ...] = (("sh", "-c", "true"), ("sh",), (["sh"], "-c"))
    for words in wrong:
        with pytest.raises(TypeError, match=r"args is (one|a) sequence of str.*write .*\['sh', '-c', \.\.\.\]"):
            BARE.with_args(*words)
    with pytest.raises(TypeError, match=r"args\[1\] is 1: a str or a path is needed"):
        BARE.with_args(["sh", 1])  # type: ignore[list-item]
    process = BARE.with_args(["sh", Path("/x")]).process
    assert process is not None
    assert process.args == ("sh", "/x")


def test_mounts() -> None:
    bind = Mount(destination="/data", type="bind", source="/d", options=("rbind",))
    spec = SPEC.with_mount(bind)
    assert spec.mounts is not None
    assert spec.mounts[-1] == bind == spec.mount("/data")
    assert bind.is_bind
    assert not Mount(destination="/x").is_bind
    other = bind.evolve(source="/e")
    assert spec.with_mount(other).mounts == (*spec.mounts[:-1], other)
    assert spec.without_mount("/data") == SPEC
    assert SPEC.mount("/nowhere") is None
    with pytest.raises(KeyError, match="/nowhere"):
        SPEC.without_mount("/nowhere")
    twice = BARE.evolve(mounts=(bind, other))
    assert twice.mount("/data") == other
    assert twice.with_mount(bind).mounts == (bind, bind)
    assert twice.without_mount("/data").mounts == ()


def test_environment() -> None:
    process = ProcessSpec(cwd="/", env=("A=1", "B=2", "A=3", "odd"))
    assert process.environ == {"A": "3", "B": "2", "odd": ""}
    assert process.with_env({"A": "4", "C": ""}, B=None).env == ("A=4", "odd", "C=")
    assert ProcessSpec(cwd="/").with_env(X="1").env == ("X=1",)
    for name in ("", "A=B", "A\0"):
        with pytest.raises(ValueError, match="not a valid name of an environment variable"):
            process.with_env({name: "x"})
    assert BARE.with_env(A="1").process == ProcessSpec(cwd="/", env=("A=1",))


def test_capabilities() -> None:
    caps = Capabilities(bounding=("CAP_KILL", "CAP_CHOWN"), effective=("CAP_KILL",), ambient=())
    added = caps.add("kill", "CAP_BPF")
    assert added.bounding == ("CAP_KILL", "CAP_CHOWN", "CAP_BPF")
    assert added.effective == added.permitted == ("CAP_KILL", "CAP_BPF")
    assert (added.inheritable, added.ambient) == (None, ())
    everywhere = Capabilities().add("kill", ambient=True)
    assert all(
        getattr(everywhere, name) == ("CAP_KILL",) for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    )
    assert caps.drop("chown") == Capabilities(bounding=("CAP_KILL",), effective=("CAP_KILL",), ambient=())
    assert caps.drop("ALL") == Capabilities(bounding=(), effective=(), ambient=())
    assert Capability.KILL.number == 5
    assert Capability.CHECKPOINT_RESTORE.number == 40
    with pytest.raises(ValueError, match="CAP_OF_THE_FUTURE"):
        _ = Capability("CAP_OF_THE_FUTURE").number


def test_namespaces_and_annotations() -> None:
    spec = BARE.with_namespace(NamespaceType.PID).with_namespace(NamespaceType.NETWORK, "/run/netns/a")
    joined = spec.with_namespace(NamespaceType.PID, "/proc/1/ns/pid")
    assert joined.linux == Linux(
        namespaces=(
            Namespace(type=NamespaceType.PID, path="/proc/1/ns/pid"),
            Namespace(type=NamespaceType.NETWORK, path="/run/netns/a"),
        )
    )
    assert joined.without_namespace(NamespaceType.PID).linux == Linux(
        namespaces=(Namespace(type=NamespaceType.NETWORK, path="/run/netns/a"),)
    )
    for empty in (BARE, spec.without_namespace(NamespaceType.PID)):
        with pytest.raises(KeyError, match="pid"):
            empty.without_namespace(NamespaceType.PID)
    assert spec.with_annotations({"a": "1", "b": "2"}).with_annotations({"a": None, "b": "3"}).annotations == {"b": "3"}


# ---- along a path ----


@pytest.mark.parametrize(
    ("changed", "members"),
    [
        (BARE.at.linux.resources.memory.limit.set(1), {"linux": Linux(resources=Resources(memory=Memory(limit=1)))}),
        (BARE.at.linux.sysctl["net.core.somaxconn"].set("1"), {"linux": Linux(sysctl={"net.core.somaxconn": "1"})}),
        (BARE.at.linux.time_offsets["boottime"].secs.set(5), {"linux": Linux(time_offsets={"boottime": TimeOffset(secs=5)})}),
        (BARE.at.process.evolve(cwd="/"), {"process": ProcessSpec(cwd="/")}),
        (BARE.at.root.set(Root(path="r")), {"root": Root(path="r")}),
        (BARE.at.hooks.poststop.append(Hook(path="/a"), Hook(path="/b")), {"hooks": Hooks(poststop=(Hook(path="/a"), Hook(path="/b")))}),
        (BARE.at.mounts.append(Mount(destination="/a")).at.mounts[-1].type.set("tmpfs"), {"mounts": (Mount(destination="/a", type="tmpfs"),)}),
        (BARE.at.hostname.update(lambda old: f"{old}-x"), {"hostname": "None-x"}),
        (BARE.at.linux.seccomp.set(None), {}),
        (BARE.at.linux.resources.memory.limit.set(None), {}),
        (BARE.at.process.user.uid.set(None), {}),
    ],
)  # fmt: skip
def test_at_changes_one_place(changed: RuntimeSpec, members: dict[str, Any]) -> None:
    assert changed == RuntimeSpec(oci_version="1.3.0", **members)
    assert RuntimeSpec(oci_version="1.3.0") == BARE


def test_at_takes_away() -> None:
    assert SPEC.at.mounts[0].set(None).mounts == (SPEC.mounts or ())[1:]
    assert SPEC.at.mounts[-1].set(None).mounts == (SPEC.mounts or ())[:-1]
    assert SPEC.at.mounts.remove((SPEC.mounts or ())[2]).mount("/dev/pts") is None
    shorter = SPEC.at.process.env[0].set(None).process
    assert shorter is not None
    assert shorter.env == ("TERM=xterm",)
    assert BARE.evolve(annotations={"a": "b", "c": "d"}).at.annotations["a"].set(None).annotations == {"c": "d"}
    assert BARE.evolve(annotations={"a": "b", "c": "d"}).at.annotations["a"].set("x").annotations == {"c": "d", "a": "x"}
    limited = BARE.at.linux.resources.memory.evolve(limit=1, swap=2)
    assert limited.at.linux.resources.memory.swap.set(None) == BARE.at.linux.resources.memory.limit.set(1)
    assert limited.at.linux.resources.memory.set(None).linux == Linux(resources=Resources())


def test_at_reads() -> None:
    at: Any = SPEC.at
    assert at.process.cwd.get() == "/"
    assert at.linux.seccomp.default_action.get() is None
    assert at.linux.namespaces[0].type.get() is NamespaceType.PID
    assert at.annotations["a"].get() is None
    assert repr(at.linux.namespaces[0].type) == "RuntimeSpec.linux.namespaces[0].type"
    assert repr(at.linux.sysctl["a.b"]) == "RuntimeSpec.linux.sysctl['a.b']"
    assert {"memory", "cpu", "set", "evolve"} <= set(dir(at.linux.resources))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda at: at.linux.memory, AttributeError, "RuntimeSpec.linux has no member 'memory'"),
        (lambda at: at.hostname.x, AttributeError, "no member 'x'"),
        (lambda at: at.mounts.destination, AttributeError, "no member 'destination'"),
        (lambda at: at.mounts["x"], TypeError, "not indexed by 'x'"),
        (lambda at: at.linux.sysctl[0], TypeError, "not indexed by 0"),
        (lambda at: at.linux[0], TypeError, "not indexed by 0"),
        (lambda at: at["linux"], TypeError, "not indexed by 'linux'"),
        (lambda at: at.mounts[99].type.set("x"), IndexError, None),
        (lambda at: at.mounts[99].get(), IndexError, None),
        (lambda at: at.mounts.evolve(type="x"), TypeError, "not an object with members"),
        (lambda at: at.hostname.append("x"), TypeError, "not an array"),
        (lambda at: at.linux.resources.memory.limit.set("x"), TypeError, "Memory.limit takes int"),
        (lambda at: at.linux.seccomp.flags.append("x"), TypeError, "missing 1 required keyword-only argument: 'default_action'"),
        (lambda at: at.mounts.remove("x"), ValueError, None),
        (lambda at: at.oci_version.set(None), TypeError, "needs oci_version"),
    ],
)
def test_at_refuses(wrong: Callable[[Any], object], error: type[Exception], words: str | None) -> None:
    with pytest.raises(error, match=words):
        wrong(SPEC.at)


# ---- one over another ----

MERGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # a document, what is laid over it, the outcome; without the version
    ({"hostname": "a"}, {"hostname": "b"}, {"hostname": "b"}),
    ({"hostname": "a", "domainname": "d"}, {"hostname": None}, {"domainname": "d"}),
    ({}, {"linux": {"resources": {"memory": {"limit": 1}}}}, {"linux": {"resources": {"memory": {"limit": 1}}}}),
    (
        {"linux": {"resources": {"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}}}},
        {"linux": {"resources": {"memory": {"limit": 9}, "pids": None}}},
        {"linux": {"resources": {"memory": {"limit": 9, "swap": 2}}}},
    ),
    (
        {"mounts": [{"destination": "/a", "type": "x"}, {"destination": "/b"}]},
        {"mounts": [{"destination": "/c"}, {"destination": "/a", "source": "s"}]},
        {"mounts": [{"destination": "/a", "source": "s"}, {"destination": "/b"}, {"destination": "/c"}]},
    ),
    (
        {"process": {"cwd": "/", "env": ["A=1", "B=2"], "args": ["x", "y"]}},
        {"process": {"cwd": "/", "env": ["B=3", "C=4"], "args": ["z"]}},
        {"process": {"cwd": "/", "env": ["A=1", "B=3", "C=4"], "args": ["z"]}},
    ),
    (
        {"linux": {"sysctl": {"a": "1", "b": "2"}, "namespaces": [{"type": "pid"}, {"type": "ipc"}]}},
        {"linux": {"sysctl": {"a": None, "c": "3"}, "namespaces": [{"type": "ipc", "path": "/i"}, {"type": "uts"}]}},
        {
            "linux": {
                "sysctl": {"b": "2", "c": "3"},
                "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/i"}, {"type": "uts"}],
            }
        },
    ),
    ({"x.y": {"a": [1], "b": 1}}, {"x.y": {"a": [2], "b": None, "c": {}}}, {"x.y": {"a": [2], "c": {}}}),
    ({"annotations": {"a": "b"}}, {}, {"annotations": {"a": "b"}}),
    ({"mounts": []}, {"mounts": [{"destination": "/a"}]}, {"mounts": [{"destination": "/a"}]}),
    ({"hooks": {"poststop": [{"path": "/a"}]}}, {"hooks": {"poststop": []}}, {"hooks": {"poststop": []}}),
]


@pytest.mark.parametrize(("base", "over", "outcome"), MERGES, ids=range(len(MERGES)))
def test_merge(base: dict[str, Any], over: dict[str, Any], outcome: dict[str, Any]) -> None:
    version = {"ociVersion": "1.3.0"}
    merged = RuntimeSpec.load(version | base).merge(over)
    assert merged.to_dict() == version | outcome
    if None not in _values(over):
        assert RuntimeSpec.load(version | base).merge(RuntimeSpec.load(version | over)) == merged


def _values(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value if not isinstance(value, dict | list) else "", *(found for item in inner for found in _values(item))]


def test_merge_of_nothing_and_of_itself_changes_nothing() -> None:
    assert SPEC.merge({}) == SPEC == SPEC.merge(SPEC)


def test_merge_refuses_what_is_no_document() -> None:
    with pytest.raises(SpecError, match=r"merge: \$\.process\.cwd: is missing"):
        BARE.merge({"process": {"args": ["sh"]}})
    over: Any = ["x"]
    with pytest.raises(TypeError, match=r"other is .* a mapping is needed"):
        BARE.merge(over)


# ---- what differs ----


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (SPEC, []),
        (SPEC.evolve(hostname="x"), ["~ $.hostname: \"ociruntime\" -> \"x\""]),
        (SPEC.evolve(hostname=None), ["- $.hostname: \"ociruntime\""]),
        (SPEC.evolve(domainname=""), ["+ $.domainname: \"\""]),
        (SPEC.at.process.env[0].set(None), ['- $.process.env[0]: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"']),
        (SPEC.at.process.args.append("a"), ['+ $.process.args[1]: "a"']),
        (SPEC.at.process.no_new_privileges.set(False), ["~ $.process.noNewPrivileges: true -> false"]),
        (SPEC.merge({"linux": {"sysctl": {"a.b": "1"}}}), ['+ $.linux.sysctl: {"a.b": "1"}']),
    ],
)  # fmt: skip
def test_diff(after: RuntimeSpec, changes: list[str]) -> None:
    assert [str(change) for change in diff(SPEC, after)] == changes
    assert len(diff(after, SPEC)) == len(changes)


def test_diff_tells_types_of_json_apart() -> None:
    one, two = BARE.evolve(extensions={"x": 1, "l": (1,)}), BARE.evolve(extensions={"x": True, "l": (1.0,)})
    assert diff(one, two) == (Change("changed", "$.x", 1, True), Change("changed", "$.l[0]", 1, 1.0))


# ---- where configs come from ----


def test_sources(tmp_path: Path) -> None:
    text = BARE.to_json()
    path = tmp_path / "config.json"
    BARE.save(path)
    for source in (text, f"\n {text}", text.encode(), BARE.to_dict(), path, str(path), FrozenMap(BARE.to_dict())):
        loaded: Any = RuntimeSpec.load(source)
        assert loaded == BARE
    with pytest.raises(FileNotFoundError):
        RuntimeSpec.load(tmp_path / "missing.json")
    BARE.evolve(hostname="x").save(path)
    assert RuntimeSpec.load(path).hostname == "x"
    with pytest.raises(FileNotFoundError):
        BARE.save(tmp_path / "missing" / "config.json")
    assert os.listdir(tmp_path) == ["config.json"]
    assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")).split()[1], 8)


def test_defaults() -> None:
    rootful, rootless = RuntimeSpec.default(), RuntimeSpec.default(rootless=True, uid=7, gid=8)
    assert rootful.linux is not None
    assert rootful.linux.seccomp is not None
    assert rootless.linux is not None
    assert rootless.linux.uid_mappings == (IDMapping(container_id=0, host_id=7, size=1),)
    assert rootless.linux.gid_mappings == (IDMapping(container_id=0, host_id=8, size=1),)
    assert rootless.linux.resources is None
    assert not [option for mount in rootless.mounts or () for option in mount.options or () if option.startswith("gid=")]
    here = RuntimeSpec.default(rootless=True).linux
    assert here is not None
    assert here.uid_mappings == (IDMapping(container_id=0, host_id=os.geteuid(), size=1),)
    with pytest.raises(TypeError, match="rootless=True"):
        RuntimeSpec.default(uid=5)
    assert Rlimit(type=RlimitType.CORE, soft=UNLIMITED, hard=UNLIMITED).to_dict()["soft"] == 2**64 - 1


IMAGE: dict[str, Any] = {
    "created": "2026-01-01T00:00:00Z", "author": "me", "architecture": "arm64", "os": "linux", "variant": "v8",
    "config": {
        "User": "1000:100", "Env": ["PATH=/bin", "LANG=C"], "Entrypoint": ["/init"], "Cmd": ["-x"], "WorkingDir": "/srv",
        "Volumes": {"/data": {}}, "Labels": {"org.example": "label", "org.opencontainers.image.author": "label"}, "StopSignal": "INT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
    },
    "rootfs": {"type": "layers", "diff_ids": []},
}  # fmt: skip


def test_an_image_s_config() -> None:
    spec = RuntimeSpec.from_image_config(IMAGE, volumes={"/data": "/host/data"})
    assert spec.process is not None
    assert spec.process.args == ("/init", "-x")
    assert spec.process.cwd == "/srv"
    assert spec.process.env == ("PATH=/bin", "TERM=xterm", "LANG=C")
    assert spec.process.user == User(uid=1000, gid=100, additional_gids=(100,))
    assert spec.mount("/data") == Mount(
        destination="/data", type="bind", source="/host/data", options=("rbind", "rw", "nosuid", "nodev")
    )
    prefix = "org.opencontainers.image."
    assert spec.annotations == {
        f"{prefix}os": "linux", f"{prefix}architecture": "arm64", f"{prefix}variant": "v8", f"{prefix}author": "label",
        f"{prefix}created": "2026-01-01T00:00:00Z", f"{prefix}stopSignal": "INT", f"{prefix}exposedPorts": "80/tcp,53/udp",
        "org.example": "label",
    }  # fmt: skip
    assert spec.validate() == ()


def test_an_image_s_config_on_a_base_and_with_names() -> None:
    base = SPEC.with_env(LANG="de").at.process.cwd.set("/home").with_annotations({"org.example": "ours"})
    named = IMAGE | {"config": IMAGE["config"] | {"User": "www-data"}}
    requested: list[str] = []

    def look(name: str) -> User:
        requested.append(name)
        return User(uid=33, gid=33)

    spec = RuntimeSpec.from_image_config(named, base, user=look)
    assert spec.process is not None
    assert requested == ["www-data"]
    assert spec.process.user == User(uid=33, gid=33)
    assert spec.process.cwd == "/home"
    assert spec.process.environ["LANG"] == "de"
    assert spec.annotations is not None
    assert spec.annotations["org.example"] == "ours"
    assert spec.mount("/data") is None
    inner = RuntimeSpec.from_image_config(IMAGE["config"]).process
    assert inner is not None
    assert inner.args == ("/init", "-x")


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"User": "www-data"}, "$.config.User"),
        ({"User": "1:2:3"}, "$.config.User"),
        ({"User": "-1"}, "$.config.User"),
        ({"User": str(2**32)}, "$.config.User"),
        ({"Env": "A=1"}, "$.config.Env"),
        ({"Env": [1]}, "$.config.Env"),
        ({"Cmd": {}}, "$.config.Cmd"),
        ({"Labels": {"a": 1}}, "$.config.Labels"),
        ({"WorkingDir": 1}, "$.config.WorkingDir"),
        ({"Volumes": []}, "$.config.Volumes"),
    ],
)
def test_an_image_s_config_that_is_none(config: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        RuntimeSpec.from_image_config({"config": config})
    assert [problem.path for problem in caught.value.problems] == [path]
    with pytest.raises(KeyError, match="/data"):
        RuntimeSpec.from_image_config(IMAGE, volumes={})
    with pytest.raises(SpecError):
        RuntimeSpec.from_image_config(b"[]")


# ---- how it looks ----


def test_repr_is_short_and_says_what_counts() -> None:
    assert repr(Memory(limit=5)) == "Memory(limit=5)"
    assert repr(Namespace(type=NamespaceType.PID)) == "Namespace(type=NamespaceType.PID)"
    assert repr(Namespace(type=NamespaceType("x"))) == "Namespace(type=NamespaceType('x'))"
    assert repr(Mount(destination="/", extensions={"a": (1,)})) == "Mount(destination='/', extensions={'a': (1,)})"
    assert repr(RuntimeSpec.default()) == (
        "RuntimeSpec(oci_version='1.3.0', process=ProcessSpec(…), root=Root(…), hostname='ociruntime', mounts=<6 items>, linux=Linux(…))"
    )
    many = Seccomp(
        default_action=SeccompAction.ALLOW,
        syscalls=(Syscall(names=tuple("abcdefghijklmnopqrstuvwxyz"), action=SeccompAction.LOG),) * 99,
    )
    assert len(repr(many)) < 200
    assert repr(ProcessSpec(cwd="/" + "x" * 300)) == f"ProcessSpec(cwd='/{'x' * 54}…')"


def test_the_tree_of_a_notebook() -> None:
    html = RuntimeSpec.default()._repr_html_()
    assert html.count("<details") == html.count("</details>") > 50
    assert "<script" not in html
    assert "<style" not in html
    assert 'title="hostname: Hostname in the container. Default: unchanged. (config.md#hostname)"' in html
    limited = BARE.at.linux.resources.memory.limit.set(5)._repr_html_()
    assert 'title="limit: Limit of memory. Unit: bytes. Default: unchanged. (config-linux.md#memory)"' in limited
    assert '<span style="opacity:.6">bytes</span>' in limited
    nasty = BARE.evolve(hostname="<b>&\"'", annotations={"<i>": "</div>"}, extensions={"<u>": (1, None, True, {})})._repr_html_()
    for tag in ("<b>", "<i>", "<u>"):
        assert tag not in nasty
    assert "&lt;b&gt;&amp;&quot;&#x27;" in nasty
    assert "not defined by the runtime spec" in nasty
    assert "4 items" in nasty
    assert "… 50 more" in BARE.evolve(mounts=(Mount(destination="/x"),) * 150)._repr_html_()
    assert ">[]</span>" in Features(oci_version_min="1.0.0", oci_version_max="1.3.0", hooks=())._repr_html_()

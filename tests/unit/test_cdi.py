"""CDI specs: reading them strictly, precedence, and what they change of a configuration; devices and GPUs as callers write them."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import cdi
from ociruntime.cdi import HostDevice, inject, parse_devices, parse_gpus
from ociruntime.overrides import Overrides
from ociruntime.spec import DeviceCgroup, Hook, IntelRdt, Mount, NetDevice

EDITS: dict[str, Any] = {"env": ["A=b"]}


def document(version: str = "1.1.0", *, kind: str = "vendor.com/class", name: str = "one", **edits: Any) -> dict[str, Any]:
    return {"cdiVersion": version, "kind": kind, "devices": [{"name": name, "containerEdits": edits or EDITS}]}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two directories of specs, the second of which takes precedence."""
    low, high = tmp_path / "low", tmp_path / "high"
    low.mkdir()
    high.mkdir()
    monkeypatch.setattr(cdi, "directories", lambda: (str(low), str(high), str(tmp_path / "missing")))
    return low, high


Write = Callable[..., Path]


@pytest.fixture
def write(places: tuple[Path, Path]) -> Write:
    """Writes a spec and returns its path."""

    def write(content: object, name: str = "a.json", place: int = 0) -> Path:
        path = places[place] / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def base(**linux: Any) -> oci.RuntimeSpec:
    spec = oci.RuntimeSpec.default()
    return spec.at.linux.evolve(**linux) if linux else spec


# ---- reading ----


def test_a_valid_spec(write: Write) -> None:
    node = {"path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "permissions": "rw"}
    path = write(document("0.5.0", name="0:1", deviceNodes=[node]))
    assert oci.devices() == (oci.CdiDevice("vendor.com/class=0:1", str(path), ("/dev/x",)),)
    assert oci.devices()[0].to_dict()["nodes"] == ["/dev/x"]


@pytest.mark.parametrize("version", cdi.VERSIONS)
def test_every_version(version: str, write: Write) -> None:
    write(document(version))
    assert len(oci.devices()) == 1


DEVICE = "$.devices[0]"
IN_EDITS = f"{DEVICE}.containerEdits"


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"cdiVersion": "0.2.0"}, "$.cdiVersion", "'0.2.0' is not a supported version: 0.3.0 to 1.1.0"),
        ({"cdiVersion": "2.0.0"}, "$.cdiVersion", "not a supported version"),
        ({"cdiVersion": 1.0}, "$.cdiVersion", "a string expected"),
        ({"kind": "vendor.com"}, "$.kind", "not a kind such as vendor.com/class"),
        ({"kind": "vendor.com/a/b"}, "$.kind", "not a kind"),
        ({"kind": "v/" + "c" * 64}, "$.kind", "not a kind"),
        ({"kind": "-v/c"}, "$.kind", "not a kind"),
        ({"kind": None}, "$.kind", "a string expected, not null"),
        ({"devices": []}, "$.devices", "at least one device"),
        ({"devices": {}}, "$.devices", "an array expected"),
        ({"more": 1}, "$.more", "CDI 1.1.0 has no such member"),
        ({"annotations": {"a": 1}}, "$.annotations.a", "a string expected"),
        ({"cdiVersion": "0.5.0", "annotations": {"a": "b"}}, "$.annotations", "needs cdiVersion 0.6.0"),
        ({"cdiVersion": "0.5.0", "kind": "v/a.b"}, "$.kind", "needs cdiVersion 0.6.0"),
        ({"containerEdits": {"env": ["=x"]}}, "$.containerEdits.env[0]", "'=x' is not NAME=value"),
    ],
)  # fmt: skip
def test_wrong_specs(change: dict[str, Any], path: str, words: str, write: Write) -> None:
    file = write({**document(), **change})
    with pytest.raises(oci.UnsupportedError) as error:
        inject(base(), ["vendor.com/class=one"])
    assert f"{file}: {path}: " in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"name": "-a"}, f"{DEVICE}.name", "not a name"),
        ({"name": "a/b"}, f"{DEVICE}.name", "not a name"),
        ({"containerEdits": {}}, IN_EDITS, "at least one edit"),
        ({"containerEdits": None}, IN_EDITS, "an object expected"),
        ({"other": 1}, f"{DEVICE}.other", "no such member"),
    ],
)  # fmt: skip
def test_wrong_devices(change: dict[str, Any], path: str, words: str, write: Write) -> None:
    whole = document()
    whole["devices"][0] |= change
    file = write(whole)
    with pytest.warns(oci.OCIRuntimeWarning) as warnings:
        assert oci.devices() == ()
    assert f"{file}: {path}: " in str(warnings[0].message)
    assert words in str(warnings[0].message)


@pytest.mark.parametrize(
    ("edits", "path", "words"),
    [
        ({"env": ["A"]}, ".env[0]", "not NAME=value"),
        ({"env": ["A=\0"]}, ".env[0]", "not NAME=value"),
        ({"env": "A=b"}, ".env", "an array expected"),
        ({"deviceNodes": [{}]}, ".deviceNodes[0].path", "missing and required"),
        ({"deviceNodes": [{"path": "dev/x"}]}, ".deviceNodes[0].path", "not an absolute path"),
        ({"deviceNodes": [{"path": "/dev/../etc/x"}]}, ".deviceNodes[0].path", "without '..'"),
        ({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/../x"}]}, ".deviceNodes[0].hostPath", "without '..'"),
        ({"deviceNodes": [{"path": "/dev/x", "type": "d"}]}, ".deviceNodes[0].type", "not one of b, c, u, p"),
        ({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]}, ".deviceNodes[0].permissions", "neither 'none' nor"),
        ({"deviceNodes": [{"path": "/dev/x", "major": 4096}]}, ".deviceNodes[0].major", "not 0 to 4095"),
        ({"deviceNodes": [{"path": "/dev/x", "minor": -1}]}, ".deviceNodes[0].minor", "not 0 to"),
        ({"deviceNodes": [{"path": "/dev/x", "uid": 1 << 32}]}, ".deviceNodes[0].uid", "not 0 to"),
        ({"deviceNodes": [{"path": "/dev/x", "fileMode": "0666"}]}, ".deviceNodes[0].fileMode", "an integer expected"),
        ({"deviceNodes": [{"path": "/dev/x", "name": "x"}]}, ".deviceNodes[0].name", "no such member"),
        ({"mounts": [{"hostPath": "a", "containerPath": "/b"}]}, ".mounts[0].hostPath", "not an absolute path"),
        ({"mounts": [{"hostPath": "/a/..", "containerPath": "/b"}]}, ".mounts[0].hostPath", "without '..'"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b/../c"}]}, ".mounts[0].containerPath", "without '..'"),
        ({"mounts": [{"hostPath": "/a"}]}, ".mounts[0].containerPath", "missing and required"),
        ({"hooks": [{"hookName": "prestop", "path": "/x"}]}, ".hooks[0].hookName", "not one of prestart, createRuntime"),
        ({"hooks": [{"hookName": "poststop", "path": "x"}]}, ".hooks[0].path", "not an absolute path"),
        ({"hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]}, ".hooks[0].timeout", "greater than 0"),
        ({"hooks": [{"hookName": "poststop", "path": "/x", "env": ["x"]}]}, ".hooks[0].env[0]", "not NAME=value"),
        ({"intelRdt": {"closID": "a/b"}}, ".intelRdt.closID", "not the name of a directory"),
        ({"intelRdt": {"enableCMT": True}}, ".intelRdt.enableCMT", "no such member"),
        ({"additionalGids": [-1]}, ".additionalGids[0]", "not 0 to"),
        ({"netDevices": [{"hostInterfaceName": "dummy9", "name": ""}]}, ".netDevices[0].name", "empty"),
        ({"netDevices": [{"hostInterfaceName": "dummy9", "name": n} for n in "ab"]}, ".netDevices[1].hostInterfaceName", "twice"),
    ],
)  # fmt: skip
def test_wrong_edits(edits: dict[str, Any], path: str, words: str, write: Write) -> None:
    file = write(document(**edits))
    with pytest.warns(oci.OCIRuntimeWarning) as warnings:
        assert oci.devices() == ()
    assert f"{file}: {IN_EDITS}{path}: " in str(warnings[0].message)
    assert words in str(warnings[0].message)


@pytest.mark.parametrize(
    ("older", "version", "edits"),
    [
        ("0.3.0", "0.4.0", {"mounts": [{"hostPath": "t", "containerPath": "/b", "type": "tmpfs"}]}),
        ("0.4.0", "0.5.0", {"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}]}),
        ("0.6.0", "0.7.0", {"additionalGids": [5]}),
        ("0.6.0", "0.7.0", {"intelRdt": {"closID": "a"}}),
        ("1.0.0", "1.1.0", {"intelRdt": {"schemata": ["MB:0=10"]}}),
        ("1.0.0", "1.1.0", {"netDevices": [{"hostInterfaceName": "dummy9", "name": "a"}]}),
    ],
)  # fmt: skip
def test_members_of_later_versions(older: str, version: str, edits: dict[str, Any], write: Write) -> None:
    write(document(version, **edits))
    assert len(oci.devices()) == 1
    write(document(older, **edits))
    with pytest.warns(oci.OCIRuntimeWarning, match=f"needs cdiVersion {version}, and the spec says {older}"):
        assert oci.devices() == ()


def test_two_devices_of_one_name(write: Write) -> None:
    whole = document()
    whole["devices"] *= 2
    write(whole)
    with pytest.warns(oci.OCIRuntimeWarning, match=r"devices\[1\].name: 'one' is the name of another device"):
        assert oci.devices() == ()


def test_precedence(write: Write) -> None:
    write(document(env=["FROM=low"]))
    high = write(document(env=["FROM=high"]), "z.json", place=1)
    assert [device.path for device in oci.devices()] == [str(high)]
    assert inject(base(), ["vendor.com/class=one"]).process.environ["FROM"] == "high"  # type: ignore[union-attr]


def test_two_specs_of_one_directory(write: Write) -> None:
    first, second = write(document(), "a.json", place=1), write(document(), "b.json", place=1)
    words = f"vendor.com/class=one is defined by both {first} and {second}: remove one of them"
    with pytest.warns(oci.OCIRuntimeWarning, match=words):
        assert oci.devices() == ()
    with pytest.raises(oci.UnsupportedError, match=words):
        inject(base(), ["vendor.com/class=one"])


def test_a_wrong_spec_beside_the_right_one(write: Write) -> None:
    write(document(env=["FROM=right"]))
    wrong = write("{", "b.json")
    with pytest.warns(oci.OCIRuntimeWarning, match=f"left out of the CDI devices: {wrong}: "):
        spec = inject(base(), ["vendor.com/class=one"])
    assert spec.process is not None
    assert spec.process.environ["FROM"] == "right"


def test_a_changed_spec_is_read_again(write: Write) -> None:
    write(document())
    assert oci.devices()[0].name == "vendor.com/class=one"
    write(document(name="another"))
    assert oci.devices()[0].name == "vendor.com/class=another"


def test_what_is_not_a_spec(places: tuple[Path, Path], write: Write) -> None:
    write("no spec", "README")
    (places[0] / "directory.json").mkdir()
    os.mkfifo(places[0] / "fifo.json")
    write(document("0.3.0") | {"devices": "x" * 5_000_000}, "large.json")
    right = write(document(), "right.json")
    (places[1] / "dangling.json").symlink_to("nowhere")
    with pytest.warns(oci.OCIRuntimeWarning) as warnings:
        assert [device.path for device in oci.devices()] == [str(right)]
    texts = " | ".join(str(one.message) for one in warnings)
    for words in ("directory.json: a directory", "fifo.json: a fifo", "large.json: more than 4 mib", "dangling.json: no such file"):
        assert words in texts.lower(), words


def test_a_spec_that_everybody_can_write(places: tuple[Path, Path], write: Write) -> None:
    path = write(document())
    path.chmod(0o666)
    with pytest.warns(oci.OCIRuntimeWarning, match="every user can write to the file"):
        assert oci.devices() == ()
    path.chmod(0o644)
    places[0].chmod(0o777)
    with pytest.warns(oci.OCIRuntimeWarning, match="every user can write to it"):
        assert oci.devices() == ()


def test_the_directories_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cdi.directories() == ("/etc/cdi", "/var/run/cdi", "/c/cdi")
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("HOME", "/home/u")
    assert cdi.directories() == ("/etc/cdi", "/var/run/cdi", "/home/u/.config/cdi", "/run/user/1000/cdi")


# ---- YAML ----

YAML = """---
# as nvidia-ctk writes it
cdiVersion: 0.5.0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - ../libfoo.so::/lib/libfoo.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/x
      hostPath: /dev/null
      fileMode: 0640
      permissions: rw
  name: "0"
kind: nvidia.com/gpu
"""


def test_yaml(write: Write) -> None:
    pytest.importorskip("yaml", reason="no PyYAML")
    write(YAML, "nvidia.yaml")
    spec = inject(base(), ["nvidia.com/gpu=0"])
    assert spec.hooks is not None
    args = ("nvidia-cdi-hook", "create-symlinks", "--link", "../libfoo.so::/lib/libfoo.so")
    assert spec.hooks.create_container == (Hook(path="/usr/bin/nvidia-cdi-hook", args=args),)
    mount = spec.mount("/usr/bin/nvidia-smi")
    assert mount is not None
    assert mount.options == ("ro", "nosuid", "nodev", "bind")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0640", 0o640), ("0o640", 0o640), ("0x1A", 26), ("438", 438), ("-3", -3), ("08", 8), ("1.5", 1.5), ("1e3", "1e3"),
        ("true", True), ("False", False), ("yes", "yes"), ("on", "on"), ("no", "no"), ("~", None), ("null", None), ("''", ""),
        ("'1'", "1"), ('"true"', "true"), ("0.5.0", "0.5.0"), ("9" * 5000, "9" * 5000), ("2020-01-01", "2020-01-01"),
        ("[a, 1]", ["a", 1]), ("{a: b}", {"a": "b"}), ("", None),
    ],
)  # fmt: skip
def test_values_of_yaml(text: str, value: object) -> None:
    pytest.importorskip("yaml", reason="no PyYAML")
    assert cdi._parse_yaml(f"value: {text}\n".encode(), "x") == {"value": value}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1: anchors and aliases are not allowed"),
        ("a: *b", "line 1: anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.system [true]", "tags are not allowed"),
        ("a: ! x", "tags are not allowed"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ("[" * 100_000, "not YAML"),
        ("a: " * 3 + "b", "not YAML"),
        ("a: 1\na: 2", "line 2: the member 'a' appears twice"),
        ("? [a]\n: b", "a key is not a string"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: \0", "not YAML"),
        ("\udcff", "not YAML"),
    ],
)  # fmt: skip
def test_hostile_yaml(text: str, words: str, write: Write) -> None:
    pytest.importorskip("yaml", reason="no PyYAML")
    with pytest.raises(oci.SpecError) as error:
        cdi._parse_yaml(text.encode(errors="surrogateescape"), "/x.yaml")
    assert str(error.value).startswith("/x.yaml: $: ")
    assert words in str(error.value)


def test_hostile_json(write: Write) -> None:
    write('{"cdiVersion":' + "[" * 100_000, "deep.json")
    write('{"a":' * 200 + "1" + "}" * 200, "members.json")
    write('{"kind": "a/b", "kind": "c/d"}', "twice.json")
    with pytest.warns(oci.OCIRuntimeWarning) as warnings:
        assert oci.devices() == ()
    texts = " | ".join(str(one.message) for one in warnings)
    assert "the member 'kind' appears twice" in texts
    assert texts.count("left out") == 3


def test_yaml_without_pyyaml(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(YAML, "nvidia.yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(oci.UnsupportedError) as error:
        inject(base(), [], ("all",))
    assert f"{path}: PyYAML is needed to read YAML; install ociruntime[cdi]" in str(error.value)


# ---- edits ----


def test_the_edits_of_the_spec_come_once_and_first(write: Write) -> None:
    hook = {"hookName": "poststart", "path": "/common"}
    whole = document(env=["A=one", "B=one"]) | {"containerEdits": {"env": ["A=common", "C=common"], "hooks": [hook]}}
    whole["devices"].append({"name": "two", "containerEdits": {"env": ["B=two"], "hooks": [{**hook, "path": "/two"}]}})
    write(whole)
    spec = inject(base(), ["vendor.com/class=one", "vendor.com/class=two", "vendor.com/class=one"])
    assert spec.process is not None
    assert {name: spec.process.environ[name] for name in "ABC"} == {"A": "one", "B": "two", "C": "common"}
    assert spec.hooks is not None
    assert [one.path for one in spec.hooks.poststart or ()] == ["/common", "/two"]


def test_hooks_of_every_name(write: Write) -> None:
    names = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    hooks = [{"hookName": name, "path": f"/{name}", "args": ["a"], "env": ["B=c"], "timeout": 3} for name in names]
    write(document(hooks=hooks))
    found = inject(base(), ["vendor.com/class=one"]).hooks
    assert found is not None
    assert found.to_dict() == {name: [{"path": f"/{name}", "args": ["a"], "env": ["B=c"], "timeout": 3}] for name in names}


def test_mounts(write: Write) -> None:
    write(
        document(
            mounts=[
                {"hostPath": "/a", "containerPath": "/dev"},
                {"hostPath": "/b", "containerPath": "/x/y", "options": ["ro", "bind"]},
                {"hostPath": "/c", "containerPath": "/x", "type": "none", "options": ["rbind"]},
                {"hostPath": "scratch", "containerPath": "/t", "type": "tmpfs", "options": ["size=1m"]},
            ]
        )
    )
    mounts = inject(base(), ["vendor.com/class=one"]).mounts or ()
    places = [mount.destination for mount in mounts]
    assert places.count("/dev") == 1
    assert places.index("/dev") < places.index("/dev/pts")
    assert places.index("/x") < places.index("/x/y"), "a mount does not hide one below it"
    assert Mount(destination="/dev", type="bind", source="/a", options=("rbind",)) in mounts
    assert Mount(destination="/x/y", type="bind", source="/b", options=("ro", "bind")) in mounts
    assert Mount(destination="/x", type="bind", source="/c", options=("rbind",)) in mounts
    assert Mount(destination="/t", type="tmpfs", source="scratch", options=("size=1m",)) in mounts


def test_groups_rdt_and_interfaces(write: Write) -> None:
    edits: dict[str, Any] = {
        "additionalGids": [0, 44, 44, 7],
        "intelRdt": {
            "closID": "c",
            "l3CacheSchema": "L3:0=f",
            "memBwSchema": "MB:0=20",
            "schemata": ["x"],
            "enableMonitoring": True,
        },
        "netDevices": [{"hostInterfaceName": "dummy9", "name": "fast0"}],
    }
    write(document(**edits))
    spec = inject(base().at.process.user.additional_gids.set((7,)), ["vendor.com/class=one"])
    assert spec.at.process.user.additional_gids.get() == (7, 44)
    assert spec.linux is not None
    assert spec.linux.intel_rdt == IntelRdt(
        clos_id="c", l3_cache_schema="L3:0=f", mem_bw_schema="MB:0=20", schemata=("x",), enable_monitoring=True
    )
    assert spec.linux.net_devices == {"dummy9": NetDevice(name="fast0")}


# ---- device nodes ----


@pytest.fixture(params=[True, False], ids=["created", "bound"])
def creates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the nodes of containers are created."""
    monkeypatch.setattr(cdi, "creates_nodes", lambda host, namespaces: request.param)
    return bool(request.param)


def test_missing_numbers_are_those_of_the_host(creates: bool, write: Write) -> None:
    write(document(deviceNodes=[{"path": "/dev/x", "hostPath": "/dev/full"}]))
    spec = inject(base(), ["vendor.com/class=one"])
    if not creates:
        assert spec.mount("/dev/x") == Mount(destination="/dev/x", type="bind", source="/dev/full", options=("bind", "nosuid"))
        assert spec.linux == base().linux
        return
    assert spec.linux is not None
    mode = stat.S_IMODE(os.stat("/dev/full").st_mode)
    assert [one.to_dict() for one in spec.linux.devices or ()] == [
        {"type": "c", "path": "/dev/x", "major": 1, "minor": 7, "fileMode": mode}
    ]
    rules = spec.at.linux.resources.devices.get() or ()
    assert rules[-1] == DeviceCgroup(allow=True, type="c", major=1, minor=7, access="rwm")


def test_a_whole_node_needs_no_host(creates: bool, write: Write) -> None:
    node = {
        "path": "/dev/x",
        "hostPath": "/dev/nowhere",
        "type": "b",
        "major": 8,
        "minor": 1,
        "fileMode": 0o100600,
        "uid": 5,
        "gid": 6,
    }
    write(document(deviceNodes=[{**node, "permissions": "r"}]))
    if not creates:
        with pytest.raises(oci.UnsupportedError, match=r"devices: vendor.com/class=one: /dev/nowhere: no such file or directory"):
            inject(base(), ["vendor.com/class=one"])
        return
    spec = inject(base(), ["vendor.com/class=one"])
    assert spec.linux is not None
    assert [one.to_dict() for one in spec.linux.devices or ()] == [
        {"type": "b", "path": "/dev/x", "major": 8, "minor": 1, "fileMode": 0o600, "uid": 5, "gid": 6}
    ]
    assert (spec.at.linux.resources.devices.get() or ())[-1] == DeviceCgroup(allow=True, type="b", major=8, minor=1, access="r")


def test_a_node_belongs_to_the_user_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdi, "creates_nodes", lambda host, namespaces: True)
    spec = inject(base().at.process.user.set(oci.spec.User(uid=3, gid=4)), parse_devices(["/dev/null"]))
    assert spec.linux is not None
    assert [(one.uid, one.gid) for one in spec.linux.devices or ()] == [(3, 4)]


def test_a_node_replaces_one_at_its_path(creates: bool) -> None:
    first = inject(base(), parse_devices(["/dev/null:/dev/x"]))
    second = inject(first, parse_devices(["/dev/zero:/dev/x"]))
    assert second.linux is not None
    if creates:
        assert [(one.path, one.minor) for one in second.linux.devices or ()] == [("/dev/x", 5)]
    else:
        assert [mount.source for mount in second.mounts or () if mount.destination == "/dev/x"] == ["/dev/zero"]


def test_the_type_of_the_host_must_be_the_same(write: Write) -> None:
    write(document(deviceNodes=[{"path": "/dev/null", "type": "b"}]))
    with pytest.raises(oci.UnsupportedError, match="/dev/null is a device of type c, not b"):
        inject(base(), ["vendor.com/class=one"])


def test_no_permissions_and_no_rules(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(cdi, "creates_nodes", lambda host, namespaces: True)
    write(document(deviceNodes=[{"path": "/dev/null", "permissions": "none"}]))
    before = base().at.linux.resources.devices.get()
    assert inject(base(), ["vendor.com/class=one"]).at.linux.resources.devices.get() == before
    assert inject(base(resources=None), parse_devices(["/dev/null"])).at.linux.resources.get() is None


def test_what_a_bound_node_cannot_have(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(cdi, "creates_nodes", lambda host, namespaces: False)
    mode = stat.S_IMODE(os.stat("/dev/null").st_mode)
    write(document(deviceNodes=[{"path": "/dev/null", "fileMode": mode, "uid": 0, "permissions": "rw"}]))
    inject(base(), ["vendor.com/class=one"])
    write(document(deviceNodes=[{"path": "/dev/null", "fileMode": 0o600, "gid": 9, "permissions": "r"}]))
    with pytest.warns(oci.OCIRuntimeWarning) as warnings:
        inject(base(), ["vendor.com/class=one"])
    assert [str(one.message) for one in warnings] == [
        "devices: vendor.com/class=one: /dev/null keeps mode and gid of the host's node, which this user cannot change",
        "devices: vendor.com/class=one: /dev/null is not limited to the permissions 'r', as device rules need root",
    ]


# ---- devices and GPUs as callers write them ----


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("/dev/fuse", HostDevice("/dev/fuse", "/dev/fuse", "rwm")),
        (Path("/dev/fuse"), HostDevice("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/ttyUSB0:/dev/tty:rw", HostDevice("/dev/ttyUSB0", "/dev/tty", "rw")),
        ("/dev/a:/dev/b", HostDevice("/dev/a", "/dev/b", "rwm")),
        ("/dev/a:r", HostDevice("/dev/a", "/dev/a", "r")),
        ("vendor.com/class=name", "vendor.com/class=name"),
        ("nvidia.com/gpu=0:1", "nvidia.com/gpu=0:1"),
    ],
)  # fmt: skip
def test_devices(value: str | Path, parsed: object) -> None:
    assert parse_devices([value]) == (parsed,)
    assert Overrides(devices=[value]).devices == (parsed,)


@pytest.mark.parametrize(
    "value", ["", "dev/fuse", "fuse", "vendor.com/class", "vendor.com/class=", "vendor.com=x", "/dev/a:b", "/dev/a:/dev/b:x", "/dev/a:/dev/../b", "/dev/a:/dev/b:r:w", "/dev/a:", "/dev/\0", "v/c=a/b"]
)  # fmt: skip
def test_wrong_device_names(value: str) -> None:
    with pytest.raises(ValueError, match=r"^devices "):
        Overrides(devices=[value])


@pytest.mark.parametrize("value", ["/dev/null", b"/dev/null", 3, {"/dev/null": 1}, [3], [None]])
def test_wrong_types_of_devices(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^devices is "):
        Overrides(devices=value)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [("all", ("all",)), ("0,1", ("0", "1")), ("2", ("2",)), ("device=0,GPU-1:0", ("0", "GPU-1:0")), ("count=2", 2), (2, 2), (0, 0)],
)  # fmt: skip
def test_gpus(value: str | int, parsed: object) -> None:
    assert parse_gpus(value) == parsed
    assert Overrides(gpus=value).gpus == parsed


@pytest.mark.parametrize("value", ["", "0,", "a b", "count=", "count=x", -1, "device="])
def test_wrong_gpus(value: str | int) -> None:
    with pytest.raises(ValueError, match=r"^gpus is "):
        Overrides(gpus=value)


@pytest.mark.parametrize("value", [True, 1.5, ["0"], b"all", ("0", 1)])
def test_wrong_types_of_gpus(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^gpus is "):
        Overrides(gpus=value)


def gpu_spec(kind: str, *names: str) -> dict[str, Any]:
    devices = [{"name": name, "containerEdits": {"env": [f"GPU_{name}=1"]}} for name in names]
    return {"cdiVersion": "1.0.0", "kind": kind, "devices": devices}


def gpus_of(value: str | int) -> set[str]:
    spec = inject(base(), [], parse_gpus(value))
    assert spec.process is not None
    return {name[4:] for name in spec.process.environ if name.startswith("GPU_")}


def test_which_gpus(write: Write) -> None:
    write(gpu_spec("nvidia.com/gpu", "10", "9", "0", "all", "GPU-x"))
    assert gpus_of("all") == {"all"}
    assert gpus_of("0,GPU-x") == {"0", "GPU-x"}
    assert gpus_of(2) == gpus_of("count=2") == {"0", "9"}
    assert gpus_of(0) == set()
    with pytest.raises(oci.UnsupportedError, match=r"gpus is 4: the specs of nvidia.com/gpu offer 3 numbered devices"):
        gpus_of(4)
    with pytest.raises(
        oci.UnsupportedError, match=r"gpus: no device nvidia.com/gpu=7: the specs of this host offer nvidia.com/gpu=0, "
    ):
        gpus_of("7")


def test_gpus_of_a_kind_without_all(write: Write) -> None:
    write(gpu_spec("intel.com/gpu", "card0", "card1"))
    assert gpus_of("all") == {"card0", "card1"}


def test_gpus_of_two_vendors(write: Write) -> None:
    write(gpu_spec("amd.com/gpu", "all"))
    assert gpus_of("all") == {"all"}
    write(gpu_spec("nvidia.com/gpu", "all"), "b.json")
    with pytest.raises(
        oci.UnsupportedError, match=r"this host has nvidia.com/gpu and amd.com/gpu; name the devices, as with devices=\['nvidia"
    ):
        gpus_of("all")


def test_no_gpus(places: tuple[Path, Path]) -> None:
    with pytest.raises(oci.UnsupportedError) as error:
        gpus_of("all")
    for words in (
        f"no CDI spec of a GPU in {places[0]}, {places[1]}",
        "'nvidia-ctk cdi generate --output=",
        "amd-ctk cdi generate",
    ):
        assert words in str(error.value)


def test_no_such_device(write: Write, places: tuple[Path, Path]) -> None:
    write(document())
    with pytest.raises(
        oci.UnsupportedError, match=r"no device vendor.com/class=x: the specs of this host offer vendor.com/class=one"
    ):
        inject(base(), ["vendor.com/class=x"])
    with pytest.raises(oci.UnsupportedError, match=f"no device v.com/c=x: no CDI spec of v.com/c in {places[0]}, "):
        inject(base(), ["v.com/c=x"])
    with pytest.raises(
        oci.UnsupportedError, match=r"no CDI spec of amd.com/gpu in .*; generate one with 'amd-ctk cdi generate --output=[^']*'$"
    ):
        inject(base(), ["amd.com/gpu=all"])
    with pytest.raises(oci.UnsupportedError, match="devices: /dev/nowhere: /dev/nowhere: no such file or directory"):
        inject(base(), parse_devices(["/dev/nowhere"]))
    with pytest.raises(oci.UnsupportedError, match="/etc/passwd: not a device node"):
        inject(base(), parse_devices(["/etc/passwd"]))

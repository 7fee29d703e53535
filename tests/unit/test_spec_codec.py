"""config.json to the object model and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ociruntime.errors import SpecError
from ociruntime.spec import RuntimeSpec
from ociruntime.spec.base import camel_case
from ociruntime.spec.codec import converter

GOOD = Path(__file__).parent / "runtime-spec/schema/test/config/good"

RICH: dict[str, Any] = {
    "org.example.before": [1, 2.5, None, {"deep": [True]}],
    "ociVersion": "1.3.0",
    "process": {
        "terminal": False,
        "consoleSize": {"height": 24, "width": 80, "depth": 3},
        "user": {"uid": 1000, "gid": 0, "umask": 18, "additionalGids": [5, 6], "org.example": "x"},
        "args": ["sh", "", "ü\n"],
        "env": [],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"], "ambient": []},
        "rlimits": [{"type": "RLIMIT_CORE", "hard": 18446744073709551615, "soft": 0}],
        "noNewPrivileges": False,
        "oomScoreAdj": -17,
        "unknownToUs": {"a": 1},
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "",
    "mounts": [{"destination": "/proc", "type": "proc", "options": []}, {"destination": "/x", "org": {}}],
    "hooks": {"prestart": [], "poststop": [{"path": "/bin/x", "args": ["x"], "timeout": 3}]},
    "annotations": {"a": "", "b.c": "d"},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "of-the-future", "path": "/p"}],
        "resources": {"memory": {"limit": -1}, "unified": {"memory.high": "max"}, "devices": [{"allow": False}]},
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "maskedPaths": [],
        "cgroupsPath": "/a",
    },
    "windows": {"layerFolders": ["c:"], "org.example": {"deep": [None]}},
}


def test_a_rich_document_round_trips_exactly() -> None:
    spec = RuntimeSpec.load(RICH)
    assert spec.to_dict() == RICH
    again = RuntimeSpec.load(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert json.loads(again.to_json(indent=2)) == RICH


def test_the_page_size_in_lower_case() -> None:
    def limits(**members: Any) -> RuntimeSpec:
        return RuntimeSpec.load({"ociVersion": "1.3.0", "linux": {"resources": {"hugepageLimits": [{**members, "limit": 1}]}}})

    assert limits(pagesize="2MB") == limits(pageSize="2MB")
    assert limits(pagesize="2MB").to_dict() == limits(pageSize="2MB").to_dict()
    both = limits(pageSize="2MB", pagesize="1GB").at.linux.resources.hugepage_limits[0].get()
    assert both is not None
    assert (both.page_size, both.extensions) == ("2MB", {"pagesize": "1GB"})
    with pytest.raises(SpecError, match=r"hugepageLimits\[0\].pageSize: a string expected, not the number 2"):
        limits(pagesize=2)
    with pytest.raises(SpecError, match=r"hugepageLimits\[0\].pageSize: is missing and required"):
        limits(Pagesize="2MB")


def test_a_memory_policy_without_a_mode() -> None:
    with pytest.raises(SpecError, match=r"\$\.linux\.memoryPolicy\.mode: invalid memory policy mode: it is missing and required"):
        RuntimeSpec.load({"ociVersion": "1.3.0", "linux": {"memoryPolicy": {"nodes": "0"}}})


def test_the_default_round_trips_through_a_file(tmp_path: Path) -> None:
    spec = RuntimeSpec.default()
    spec.save(tmp_path / "config.json")
    assert RuntimeSpec.load(tmp_path / "config.json") == spec
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    spec.validate()


@pytest.mark.parametrize("path", sorted(GOOD.glob("*.json")), ids=lambda path: path.name)
def test_the_examples_of_the_spec_round_trip(path: Path) -> None:
    assert RuntimeSpec.load(path).to_dict() == json.loads(path.read_text())


def test_absent_is_none_and_empty_is_empty() -> None:
    spec = RuntimeSpec.load(RICH)
    assert spec.domainname is None
    assert spec.hostname == ""
    assert spec.mounts is not None
    assert spec.mounts[0].options == ()
    assert spec.mounts[1].options is None
    assert spec.linux is not None
    assert spec.linux.masked_paths == ()
    assert spec.linux.readonly_paths is None
    assert spec.process is not None
    assert spec.process.capabilities is not None
    assert spec.process.capabilities.ambient == ()
    assert spec.process.capabilities.effective is None


def test_unknown_members_are_kept_and_told_apart() -> None:
    spec = RuntimeSpec.load(RICH)
    assert set(spec.extensions) == {"org.example.before"}
    assert spec.windows is not None
    assert spec.windows.extensions == {"org.example": {"deep": (None,)}}
    assert spec.linux is not None
    assert spec.linux.namespaces is not None
    assert [namespace.type.known for namespace in spec.linux.namespaces] == [True, False]


def test_every_problem_is_told_with_its_path() -> None:
    document: dict[str, Any] = {
        "process": {"cwd": 3, "args": ["a", 1], "terminal": 1, "user": [], "env": None, "rlimits": [{"type": "x", "soft": True}]},
        "root": {},
        "annotations": {"a": 1},
        "mounts": [{"destination": "/"}, "x"],
        "linux": {"sysctl": {"x": 2}, "namespaces": [{"type": 5}]},
    }
    with pytest.raises(SpecError) as caught:
        RuntimeSpec.load(document)
    assert {problem.path for problem in caught.value.problems} == {
        "$.ociVersion", "$.process.cwd", "$.process.args[1]", "$.process.terminal", "$.process.user", "$.process.env",
        "$.process.rlimits[0].hard", "$.process.rlimits[0].soft", "$.root.path", "$.annotations.a", "$.mounts[1]",
        "$.linux.sysctl.x", "$.linux.namespaces[0].type",
    }  # fmt: skip
    assert str(caught.value).count("\n") == len(caught.value.problems)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b'{"ociVersion": "1.0.0", "ociVersion": "1.0.0"}', b"\xff", b"[" * 100000]
)
def test_what_is_no_config_is_a_spec_error(text: bytes) -> None:
    with pytest.raises(SpecError):
        RuntimeSpec.load(text)


def test_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpecError, match=str(tmp_path)):
        RuntimeSpec.load(tmp_path / "config.json")


def test_rules_across_members() -> None:
    spec = RuntimeSpec.load(
        {
            "ociVersion": "2.0.0",
            "process": {"cwd": "rel", "args": [], "rlimits": [{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}] * 2},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}, {"type": "bogus"}]},
        }
    )
    with pytest.raises(SpecError) as caught:
        spec.validate()
    assert {"$.ociVersion", "$.root", "$.process.cwd", "$.process.args", "$.process.rlimits[0]", "$.process.rlimits[1]",
            "$.linux.namespaces[1]", "$.linux.namespaces[2].type"} == {p.path for p in caught.value.problems}  # fmt: skip


def test_cattrs_reads_and_writes_the_same() -> None:
    created = converter()
    spec = created.structure(RICH, RuntimeSpec)
    assert spec == RuntimeSpec.load(RICH)
    assert created.unstructure(spec) == RICH


@pytest.mark.parametrize(("name", "key"), [("cwd", "cwd"), ("no_new_privileges", "noNewPrivileges"), ("type_", "type")])
def test_names(name: str, key: str) -> None:
    assert camel_case(name) == key

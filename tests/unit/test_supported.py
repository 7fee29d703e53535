"""The features document describes what the code supports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import cli, diagnosis, seccomp
from ociruntime.errors import UnsupportedError
from ociruntime.plan.mount_options import KNOWN_OPTIONS, LINKS
from ociruntime.plan.process import CAPABILITIES
from ociruntime.spec import Capability, Features, SeccompAction, SeccompArch, SeccompFlag, SeccompOperator
from ociruntime.spec.linux import MOUNT_OPTIONS


def test_the_document_is_valid() -> None:
    created = oci.features()
    assert created.validate() == ()
    assert Features.check(created.to_json().encode()) == ()
    assert Features.loads(created.to_json()) == created == oci.features()
    for version in (created.oci_version_min, created.oci_version_max):
        assert oci.RuntimeSpec.default().evolve(oci_version=version).validate() == ()


def test_every_value_is_in_the_model() -> None:
    created = oci.features()
    assert created.linux is not None
    assert created.linux.seccomp is not None
    assert set(created.mount_options or ()) <= {*MOUNT_OPTIONS, *LINKS}
    assert set(created.linux.capabilities or ()) == set(CAPABILITIES) == {member.value for member in Capability}
    for values in (
        created.linux.namespaces,
        created.linux.seccomp.actions,
        created.linux.seccomp.archs,
        created.linux.seccomp.known_flags,
    ):
        assert values
        assert all(value.known for value in values)


def test_mount_options_are_those_of_the_table() -> None:
    assert set(oci.features().mount_options or ()) == set(KNOWN_OPTIONS)


def test_seccomp_tables_match_the_model() -> None:
    """A name that is missing in one of them would be refused, or missing in the document."""
    assert set(seccomp.ACTIONS) == {member.value for member in SeccompAction}
    assert set(seccomp.OPERATORS) == {member.value for member in SeccompOperator}
    assert set(seccomp.FLAGS) == {member.value for member in SeccompFlag}
    assert set(seccomp.ARCHITECTURES) == {member.value for member in SeccompArch}


def test_it_follows_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature is supported if and only if the compiler accepts it."""
    compiled = []

    def refuse(spec: oci.RuntimeSpec, *args: object, **more: object) -> object:
        compiled.append(spec)
        raise UnsupportedError("nothing at all is supported")

    monkeypatch.setattr(diagnosis, "compile_create", refuse)
    none = oci.features()
    assert len(compiled) > 90
    assert none.hooks == none.mount_options == none.potentially_unsafe_config_annotations == ()
    assert none.linux is not None
    assert none.linux.namespaces == ()
    switches = json.dumps(none.linux.evolve(capabilities=None).to_dict())
    assert "true" not in switches
    assert '"modes": [], "flags": []' in switches

    class Everything:
        steps = ()

    monkeypatch.setattr(diagnosis, "compile_create", lambda *args, **more: Everything)
    everything = oci.features()
    assert everything.hooks == ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    assert everything.mount_options == tuple(sorted((*MOUNT_OPTIONS, *LINKS)))
    assert everything.linux is not None
    assert len(everything.linux.namespaces or ()) == 8
    assert "false" not in everything.to_json()


@pytest.mark.parametrize("option", ["ro", "rbind", "rnoatime", "rslave", "tmpcopyup"])
def test_a_supported_option(option: str) -> None:
    assert option in (oci.features().mount_options or ())


def test_an_option_of_a_filesystem() -> None:
    assert "acl" not in (oci.features().mount_options or ())


# ---- the commands ----


def test_features_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["features"]) == 0
    assert Features.loads(capsys.readouterr().out) == oci.features()


def test_spec_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spec", "-b", str(tmp_path)]) == 0
    spec = oci.RuntimeSpec.load(tmp_path / "config.json")
    if not oci.Host.probe().privileged:
        assert spec == oci.RuntimeSpec.default(host=oci.Host.probe()).with_args(["sh"])
    assert spec.process is not None
    assert spec.process.args == ("sh",)
    assert cli.main(["spec", "-b", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
    (tmp_path / "user").mkdir()
    assert cli.main(["spec", "--bundle", str(tmp_path / "user"), "--rootless"]) == 0
    expected = oci.RuntimeSpec.default(rootless=True).with_args(["sh"]).at.process.terminal.set(True).at.root.readonly.set(True)
    assert oci.RuntimeSpec.load(tmp_path / "user/config.json") == expected


@pytest.mark.root
def test_spec_is_that_of_runc(tmp_path: Path) -> None:
    """Clients of runc change this configuration by jq and sed, and expect its members."""
    assert cli.main(["spec", "-b", str(tmp_path)]) == 0
    spec = json.loads((tmp_path / "config.json").read_text())
    held = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    assert spec["process"] == {
        "cwd": "/",
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "capabilities": {"bounding": held, "effective": held, "permitted": held},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
        "noNewPrivileges": True,
    }
    assert spec["root"] == {"path": "rootfs", "readonly": True}
    assert [(mount["destination"], mount["type"], mount["source"]) for mount in spec["mounts"]] == [
        ("/proc", "proc", "proc"), ("/dev", "tmpfs", "tmpfs"), ("/dev/pts", "devpts", "devpts"), ("/dev/shm", "tmpfs", "shm"),
        ("/dev/mqueue", "mqueue", "mqueue"), ("/sys", "sysfs", "sysfs"), ("/sys/fs/cgroup", "cgroup", "cgroup"),
    ]  # fmt: skip
    assert "options" not in spec["mounts"][0]
    assert spec["mounts"][-1]["options"] == ["nosuid", "noexec", "nodev", "relatime", "ro"]
    kinds = [space["type"] for space in spec["linux"]["namespaces"]]
    assert kinds[:5] == ["pid", "network", "ipc", "uts", "mount"]
    assert kinds[5:] in ([], ["cgroup"])
    assert spec["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert sorted(spec["linux"]["maskedPaths"]) == [
        "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
        "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
    ]  # fmt: skip
    assert spec["linux"]["readonlyPaths"] == ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    assert set(spec) == {"ociVersion", "process", "root", "hostname", "mounts", "linux"}
    assert set(spec["linux"]) == {"namespaces", "resources", "maskedPaths", "readonlyPaths"}


def test_validate_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    oci.RuntimeSpec.default().with_args(["sh"]).save(path)
    assert cli.main(["validate", "-b", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    path.write_text(json.dumps({"ociVersion": "1.3.0", "process": {"cwd": 1}, "hostname": "x", "mounts": [{"destination": "x"}]}))
    assert cli.main(["validate", "--bundle", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "error: $.process.cwd: a string expected, not the number 1 (config.md#process)\n"
    process = {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}, "selinuxLabel": "x"}
    document = {"ociVersion": "1.3.0", "linux": {"mountLabel": "x"}, "root": {"path": "rootfs"}, "solaris": {}, "process": process}
    path.write_text(json.dumps(document))
    assert cli.main(["validate", "--bundle", str(tmp_path)]) == 0
    if "selinux" not in oci.Host.probe().lsms:
        assert cli.main(["validate", "--host", "--bundle", str(tmp_path)]) == 1
        shown = capsys.readouterr().out
        assert "error: $.process.selinuxLabel: SELinux is not active" in shown
        assert "warning: $.linux.mountLabel: SELinux is not active" in shown
    path.write_text("{")
    assert cli.main(["validate", "--bundle", str(tmp_path)]) == 1
    assert "not JSON" in capsys.readouterr().out
    path.unlink()
    assert cli.main(["validate", "--bundle", str(tmp_path)]) == 1
    assert "config.json does not exist" in capsys.readouterr().err

"""The findings about a host, from probes of hosts that lack something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime import diagnosis
from ociruntime.diagnosis import Availability, Probes, diagnose
from ociruntime.engine.filesystems import Programs
from ociruntime.engine.networks import NetworkPrograms
from ociruntime.errors import UnsupportedError
from ociruntime.host import Hierarchy, Host, Systemd, _subids

V2 = Hierarchy("/sys/fs/cgroup", 2, frozenset({"cpu", "memory", "pids"}))
ROOT = Probes(
    host=Host((6, 18), "x86_64", 0, 40, (V2,), systemd=Systemd(False, V2), booted=True),
    programs=Programs(
        "/bin/squashfuse",
        "/bin/fusermount3",
        "/bin/unsquashfs",
        "/bin/fuse2fs",
        "/bin/erofsfuse",
        True,
        "",
        True,
        "/bin/fuse-overlayfs",
    ),
    networks=NetworkPrograms("/bin/pasta", "/bin/slirp4netns"),
    mksquashfs="/bin/mksquashfs",
    release="6.18.1",
    filesystems=frozenset({"overlay", "squashfs", "ext4", "erofs"}),
    loop=True,
    setting=None,
    filtered=False,
    user="root",
    free_id=100000,
    state_root="/run/ociruntime",
    state_problem="",
    seccomp_problem="",
    distribution="debian",
)
DELEGATED = attrs.evolve(V2, base="/user.slice/user-1000.slice/user@1000.service")
USER = attrs.evolve(
    ROOT,
    host=attrs.evolve(
        ROOT.host,
        euid=1000,
        capabilities=0,
        hierarchies=(DELEGATED,),
        systemd=Systemd(True, DELEGATED),
        idmap_helpers=("/usr/bin/newuidmap", "/usr/bin/newgidmap"),
        subuids=((100000, 65536),),
        subgids=((100000, 65536),),
    ),
    user="alice",
)


def on_host(probes: Probes, **changes: Any) -> Probes:
    return attrs.evolve(probes, host=attrs.evolve(probes.host, **changes))


@pytest.mark.parametrize("probes", [ROOT, USER])
def test_a_host_with_everything(probes: Probes) -> None:
    found = diagnose(probes)
    assert {finding.status for finding in found.findings} == {Availability.OK}
    assert not any(finding.remedy for finding in found.findings)
    assert found.usable
    assert found["SIF images"].detail.partition(":")[0] == ("kernel" if probes is ROOT else "fuse")


SUBIDS = "let root run 'echo alice:100000:65536 | tee -a /etc/subuid /etc/subgid'"
TOO_OLD = "use Linux 5.14 or later"
FUSE = "let root run 'apt install squashfuse'"
NO_FUSE = attrs.evolve(USER, programs=Programs("", "", "/bin/unsquashfs"))
NOTHING = attrs.evolve(USER, programs=Programs("", "", "", device="/dev/fuse: permission denied"), mksquashfs="")
CLOSED = attrs.evolve(USER, programs=USER.programs._replace(device="/dev/fuse: permission denied"))
ABSENT = attrs.evolve(USER, programs=USER.programs._replace(device="/dev/fuse: no such file or directory"))
WITHOUT_MTAB = attrs.evolve(USER, programs=USER.programs._replace(mtab=False))
WITHOUT_FUSERMOUNT = attrs.evolve(USER, programs=USER.programs._replace(fusermount="", overlayfs=""))
WITHOUT_OVERLAYFS = attrs.evolve(USER, programs=USER.programs._replace(overlayfs=""))
RULED_OUT = attrs.evolve(USER, programs=USER.programs._replace(device="/dev/fuse: operation not permitted"))
NO_CGROUPS = on_host(USER, hierarchies=(attrs.evolve(V2, base=None),), systemd=None)
DEBIAN_CLONE = attrs.evolve(USER, setting=("kernel.unprivileged_userns_clone", "0"))
LIMIT = ("user.max_user_namespaces", "0")
LIBRARY = "seccomp filters need libseccomp: not found; install libseccomp2 (Debian)"


@pytest.mark.parametrize(
    ("probes", "subject", "status", "detail", "remedy", "usable"),
    [
        (on_host(USER, kernel=(5, 10)), "kernel", "missing", "5.14 or later is needed", TOO_OLD, False),
        (on_host(USER, kernel=(6, 1)), "kernel", "limited", "exit codes", "use Linux 6.15 or later", True),
        (on_host(ROOT, capabilities=0), "privileges", "limited", "lacks CAP_SETUID", "", True),
        (DEBIAN_CLONE, "user namespaces", "missing", "unprivileged_userns_clone is 0",
         "let root run 'sysctl -w kernel.unprivileged_userns_clone=1'", False),
        (attrs.evolve(USER, setting=("kernel.apparmor_restrict_unprivileged_userns", "1")), "user namespaces", "missing",
         "apparmor_restrict_unprivileged_userns is 1", "let root run 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'",
         False),
        (attrs.evolve(USER, setting=LIMIT), "user namespaces", "missing", "max_user_namespaces is 0",
         "let root run 'sysctl -w user.max_user_namespaces=15000'", False),
        (attrs.evolve(ROOT, setting=LIMIT), "user namespaces", "limited", "max_user_namespaces is 0",
         "run 'sysctl -w user.max_user_namespaces=15000'", True),
        (attrs.evolve(ROOT, setting=DEBIAN_CLONE.setting), "user namespaces", "ok", "allowed", "", True),
        (attrs.evolve(USER, filtered=True), "user namespaces", "limited", "seccomp filter",
         "start the runtime outside of the container or service with the filter", True),
        (on_host(USER, subuids=(), subgids=()), "subordinate ids", "missing", "/etc/subuid and /etc/subgid", SUBIDS, True),
        (on_host(USER, subgids=()), "subordinate ids", "missing", "of this user in /etc/subgid:",
         "let root run 'echo alice:100000:65536 | tee -a /etc/subgid'", True),
        (on_host(USER, idmap_helpers=None), "subordinate ids", "missing", "no newuidmap",
         "let root run 'apt install uidmap'", True),
        (on_host(USER, idmap_helpers=None, subuids=(), subgids=()), "subordinate ids", "missing", "no newuidmap",
         f"let root run 'apt install uidmap'; {SUBIDS}", True),
        (attrs.evolve(on_host(USER, subuids=()), user=""), "subordinate ids", "missing", "/etc/subuid",
         "let root give uid 1000 a name in /etc/passwd, and ranges in /etc/subuid", True),
        (attrs.evolve(USER, filesystems=frozenset()), "overlay", "missing", "no overlay",
         "let root run 'modprobe overlay'", True),
        (on_host(USER, kernel=(5, 10)), "overlay", "missing", "since Linux 5.11", "use a newer kernel, or run as root", False),
        (NO_FUSE, "SIF images", "limited", "extraction: ", FUSE, True),
        (NO_FUSE, "FUSE", "missing", "no squashfuse in PATH", FUSE, True),
        (CLOSED, "SIF images", "limited", "/dev/fuse: permission denied", "let root run 'chmod 666 /dev/fuse'", True),
        (ABSENT, "FUSE", "missing", "/dev/fuse: no such file", "let root run 'modprobe fuse'", True),
        (WITHOUT_MTAB, "FUSE", "limited", "no /etc/mtab", "let root run 'ln -s ../proc/self/mounts /etc/mtab'", True),
        (WITHOUT_FUSERMOUNT, "FUSE", "limited", "no fusermount3 in PATH (Debian: fuse3): the rootfs of a mounted bundle stays empty",
         "let root run 'apt install fuse3 fuse-overlayfs'", True),
        (WITHOUT_FUSERMOUNT, "SIF images", "ok", "fuse: mounted by squashfuse", "", True),
        (WITHOUT_OVERLAYFS, "FUSE", "limited", "no fuse-overlayfs in PATH", "let root run 'apt install fuse-overlayfs'", True),
        (RULED_OUT, "FUSE", "missing", "/dev/fuse: operation", "allow the device /dev/fuse to the container in which the runtime runs",
         True),
        (NOTHING, "SIF images", "missing", "it cannot be extracted either",
         f"{FUSE}; let root run 'chmod 666 /dev/fuse'; or, for extraction: let root run 'apt install squashfs-tools'", True),
        (NOTHING, "OCI images", "limited", "several squashfs layers cannot be used: ",
         f"{FUSE}; let root run 'chmod 666 /dev/fuse'; or, for extraction: pip install 'ociruntime[images]'", True),
        (NO_FUSE, "OCI images", "limited", "merged by the extra 'images', which is not installed",
         f"{FUSE}; or, for extraction: pip install 'ociruntime[images]'", True),
        (NO_FUSE, "ext images", "limited", "extraction: extracted to a cache, because FUSE cannot be used: no fuse2fs", "let root run 'apt install fuse2fs'", True),
        (CLOSED, "erofs images", "limited", "/dev/fuse: permission denied", "let root run 'chmod 666 /dev/fuse'", True),
        (attrs.evolve(ROOT, filesystems=frozenset({"overlay"})), "erofs images", "missing", "no erofs",
         "run 'modprobe -a erofs'", True),
        (NOTHING, "squashfs-tools", "missing", "mksquashfs", "let root run 'apt install squashfs-tools'", True),
        (attrs.evolve(ROOT, filesystems=frozenset({"overlay"}), loop=False), "SIF images", "missing", "no squashfs and no loop",
         "run 'modprobe -a squashfs loop'", True),
        (attrs.evolve(ROOT, mksquashfs=""), "squashfs-tools", "missing", "mksquashfs", "run 'apt install squashfs-tools'", True),
        (attrs.evolve(NO_FUSE, distribution="alpine"), "FUSE", "missing", "", "let root run 'apk add squashfuse'", True),
        (attrs.evolve(NO_FUSE, distribution=""), "FUSE", "missing", "", "install squashfuse", True),
        (NO_CGROUPS, "cgroups", "missing", "user 1000 may not create cgroups",
         "let root run 'loginctl enable-linger 1000', and use --cgroup-manager systemd", True),
        (on_host(USER, hierarchies=(), systemd=None), "cgroups", "missing", "no cgroup filesystem", "mount it as root", True),
        (on_host(USER, hierarchies=(attrs.evolve(DELEGATED, controllers=frozenset({"memory", "pids"})),)), "cgroups", "limited",
         "without the controllers cpu",
         "use --cgroup-manager systemd, or run in 'systemd-run --user --scope -p Delegate=yes'", True),
        (NO_CGROUPS, "sandbox limits", "limited",
         "without a cgroup: pids for each of its users (RLIMIT_NPROC), memory for each process (RLIMIT_DATA), cpus not at all; disk",
         "let root run 'loginctl enable-linger 1000', and use --cgroup-manager systemd", True),
        (attrs.evolve(on_host(USER, hierarchies=(attrs.evolve(V2, base=None),)), systemd=True), "sandbox limits", "ok",
         "pids, memory, cpus of all processes together by cgroups of systemd, where they are given or limits='required'; disk", "", True),
        (on_host(ROOT, hierarchies=(attrs.evolve(V2, controllers=frozenset({"cpu"})),)), "sandbox limits", "limited",
         "cpus of all processes together by cgroups; without a cgroup: pids not at all, memory for each process (RLIMIT_DATA); disk",
         "boot a kernel that has them or, in a container, let its host delegate them", True),
        (NO_CGROUPS, "systemd", "limited", "not for this user", "let root run 'loginctl enable-linger 1000'", True),
        (on_host(USER, systemd=None, booted=False), "systemd", "missing", "not booted with systemd", "", True),
        (attrs.evolve(USER, networks=NetworkPrograms("", "")), "private network", "missing", "neither pasta nor slirp4netns",
         "let root run 'apt install passt'", True),
        (attrs.evolve(USER, networks=NetworkPrograms("/bin/pasta", "", routed=False)), "private network", "missing", "default route",
         "let root run 'apt install slirp4netns'", True),
        (attrs.evolve(USER, networks=NetworkPrograms("/bin/pasta", "/bin/s", routed=False)), "private network", "ok",
         "/bin/s is used, because pasta needs a default route", "", True),
        (attrs.evolve(ROOT, networks=NetworkPrograms("/bin/pasta", "", device="/dev/net/tun does not exist")), "private network",
         "missing", "/dev/net/tun does not exist", "run 'modprobe tun; chmod 666 /dev/net/tun'", True),
        (on_host(USER, seccomp=False), "seccomp", "missing", "kernel", "use a kernel with CONFIG_SECCOMP_FILTER", False),
        (attrs.evolve(USER, seccomp_problem=LIBRARY), "seccomp", "missing", "libseccomp", "install libseccomp2 (Debian)", False),
        (attrs.evolve(USER, state_problem="/x cannot be used; give another one"), "state directory", "missing",
         "/x cannot be used", "give another one", False),
    ],
)  # fmt: skip
def test_what_a_host_lacks(probes: Probes, subject: str, status: str, detail: str, remedy: str, usable: bool) -> None:
    diagnosed = diagnose(probes)
    finding = diagnosed[subject]
    assert (finding.status, finding.remedy) == (status, remedy)
    assert detail in finding.detail
    assert diagnosed.usable is usable


def test_root_of_a_user_namespace_uses_what_users_use() -> None:
    inside = on_host(ROOT, initial=False)
    assert diagnose(inside)["SIF images"].detail.startswith("fuse")
    assert diagnose(attrs.evolve(inside, mksquashfs=""))["squashfs-tools"].remedy == "let root run 'apt install squashfs-tools'"


def test_a_diagnosis_can_be_shown() -> None:
    broken = diagnose(attrs.evolve(USER, state_problem="<x> cannot be used; give <y>"))
    lines = str(broken).splitlines()
    assert lines[0].split() == ["SUBJECT", "STATUS", "DETAIL"]
    assert "state directory  missing  <x> cannot be used" in lines
    assert lines[-3].strip() == "-> give <y>"
    assert lines[-1] == "Containers cannot run here: state directory."
    assert str(diagnose(USER)).endswith("\n\nContainers can run here.")
    html = broken._repr_html_()
    assert "<td>&lt;x&gt; cannot be used</td><td>give &lt;y&gt;</td>" in html
    document = json.loads(json.dumps(broken.to_dict()))
    assert document["usable"] is False
    assert document["findings"][-1] == {
        "subject": "state directory", "status": "missing", "detail": "<x> cannot be used", "remedy": "give <y>",
    }  # fmt: skip
    with pytest.raises(KeyError):
        broken["nothing"]


# ---- the probes themselves ----


def test_a_state_directory_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    found = oci.doctor(state_root=tmp_path / "a/b")["state directory"]
    assert (found.status, found.detail) == ("ok", f"{tmp_path}/a/b")
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, why in ("file", "it is not a directory"), ("file/below", "not a directory"), ("open", "lets other users write"):
        found = oci.doctor(state_root=tmp_path / name)["state directory"]
        assert found.status == "missing"
        assert why in found.detail, name
        assert found.remedy.startswith("give ")


def test_a_missing_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise UnsupportedError("filters need libseccomp; install libseccomp2 (Debian)")

    monkeypatch.setattr(diagnosis, "load_library", load)
    found = oci.doctor()
    assert (found["seccomp"].status, found["seccomp"].remedy) == ("missing", "install libseccomp2 (Debian)")
    assert not found.usable


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "fedora"}, "fedora"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, ""),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, "suse"),
        ({"ID": "nixos"}, ""),
    ],
)
def test_the_family_of_a_distribution(fields: dict[str, str], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: fields)
    assert diagnosis._find_distribution() == family


def test_the_row_of_the_remedy_is_one_that_the_runtime_reads(tmp_path: Path) -> None:
    probes = attrs.evolve(on_host(USER, subuids=(), subgids=()), user="root")
    row = diagnose(probes)["subordinate ids"].remedy.split()[4]
    table = tmp_path / "subuid"
    table.write_text(f"{row}\n")
    assert _subids(str(table), 0) == ((100000, 65536),)


def test_the_first_free_id_is_after_all_ranges(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("a:100000:65536\nb:400000:65536\n# comment\n1000:165536:65536\n")
    assert diagnosis._end_of_ids(str(table)) == 465536
    assert diagnosis._end_of_ids(str(tmp_path / "none")) == 0

"""Plans of mounts, devices and the root against golden files, and the errors of configs that are not supported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.host import Hierarchy, Host
from ociruntime.plan import Plan, compile_create
from ociruntime.plan.mount_options import MountOptions, parse_options
from ociruntime.spec import RuntimeSpec

GOLDEN = Path(__file__).parent / "golden"
FS = "/sys/fs/cgroup"
NONE = Host((6, 1), "x86_64", 0, 40, ())
V1 = {"cpu": "cpu,cpuacct", "memory": "memory", "name=systemd": "systemd"}
HYBRID = Host(
    (6, 18), "x86_64", 0, 40,
    (*(Hierarchy(f"{FS}/{name}", 1, frozenset({*name.split(","), controller})) for controller, name in list(V1.items())[:2]),
     Hierarchy(f"{FS}/systemd", 1, frozenset({"name=systemd"})),
     Hierarchy(f"{FS}/unified", 2, frozenset())),
)  # fmt: skip
PURE_V2 = Host((6, 8), "x86_64", 0, 40, (Hierarchy(FS, 2, frozenset({"memory", "pids"})),))
SELINUX = attrs.evolve(NONE, lsms=frozenset({"selinux"}))
IDS = [{"containerID": 0, "hostID": 100000, "size": 1000}]
RBIND = {"destination": "/x", "source": "/y", "options": ["rbind"]}


def compiled(*mounts: dict[str, Any], host: Host = NONE, own: str = "", **linux: Any) -> Plan:
    """Return a plan with few steps besides the mounts."""
    document: dict[str, Any] = {
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs", "readonly": True},
        "process": {"cwd": "/", "args": ["/bin/x"], "user": {"uid": 0, "gid": 0}},
        "mounts": [*mounts],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", *own.split())], **linux},
    }
    return compile_create(RuntimeSpec.load(document), host, bundle="/bundle", container_id="c1")


def bind(*options: str, destination: str = "/x", source: str = "/y", **more: Any) -> dict[str, Any]:
    return {"destination": destination, "source": source, "options": [*options], **more}


def fs(kind: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "source": kind, "destination": destination, "options": [*options]}


def remount(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "options": ["remount", *options]}


LONG = "lowerdir=" + "x" * 256
LAYERS = "lowerdir=" + ":".join(["/one", "/" + "two" * 50, r"/th\:re\,e:/four" + "r" * 100]) + "::/data"

REMOUNTS = (
    fs("tmpfs", "/t", "ro"), remount("/link", "rw"), fs("tmpfs", "/t/in"), remount("/t", "rro", "nosymfollow"), fs("tmpfs", "/t/later"),
    fs("sysfs", "/sys"), remount("/sys", "ro", "noexec"), RBIND, remount("/x", "bind", "suid", "strictatime"),
)  # fmt: skip
CASES = {
    "mounts-long-options": lambda: compiled(fs("overlay", "/o", LAYERS, "ro,sync,nosuid", 'context="a:b:c:s0:c1,c2"')),
    "mounts-layers": lambda: compiled(fs("overlay", "/o", LAYERS, "upperdir=/u", "workdir=/w"), host=HYBRID),
    "mounts-binds": lambda: compiled(
        bind("bind", "ro", "nosuid"),
        bind("rbind", "rro", "rslave", destination="/r", source="relative"),
        bind("bind", destination="/in", source="rootfs/etc"),
        bind("rbind", "ridmap", destination="/ids", uidMappings=IDS, gidMappings=IDS),
        bind("bind", "idmap", destination="/same", uidMappings=IDS, gidMappings=IDS),
        {"destination": "/x", "options": ["remount", "bind", "nodev"]},
    ),
    "mounts-links": lambda: compiled(
        bind("bind", "copy-symlink", destination="/etc/link"),
        bind("bind", "src-nofollow", "dest-nofollow", destination="/in", source="rootfs/etc/link"),
        bind("bind", "dest-nofollow", destination="/etc/other"),
    ),
    "mounts-filesystems": lambda: compiled(
        fs("tmpfs", "/t", "ro", "tmpcopyup", "size=1m"), fs("proc", "/proc", "hidepid=2"), fs("sysfs", "/sys", "ro"),
        fs("mqueue", "/dev/mqueue"), {"destination": "/t", "options": ["remount", "rw", "size=2m"]},
        host=SELINUX, mountLabel="system_u:object_r:container_file_t:s0:c1,c2", rootfsPropagation="rshared",
        maskedPaths=["/proc/kcore"], readonlyPaths=["/proc/sys"],
    ),
    "mounts-remounts": lambda: compiled(*REMOUNTS),
    "mounts-remounts-detached": lambda: compiled(*REMOUNTS, host=HYBRID, namespaces=[]),
    "mounts-cgroup-hybrid": lambda: compiled(fs("cgroup", FS, "ro", "nosuid"), host=HYBRID),
    "mounts-cgroup-hybrid-own": lambda: compiled(fs("cgroup", FS), host=HYBRID, own="cgroup"),
    "mounts-cgroup-v2": lambda: compiled(fs("cgroup", FS, "rw"), host=PURE_V2),
    "mounts-cgroup-v2-own": lambda: compiled(fs("cgroup", FS, "nosuid"), host=PURE_V2, own="cgroup"),
    "devices": lambda: compiled(
        fs("tmpfs", "/dev", "mode=755"),
        devices=[
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 1, "gid": 2},
            {"path": "/srv/pipe", "type": "p"}, {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        ],
    ),
    "devices-of-the-host": lambda: compiled(
        bind("rbind", destination="/dev", source="/dev"), devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_explain_is_golden(name: str) -> None:
    text = CASES[name]().explain()
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("OCIRUNTIME_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "tmpfs on /proc": ([fs("tmpfs", "/proc")], {}, r"mounts\[0\]\.destination"),
    "tmpfs below /proc": ([fs("tmpfs", "/x/../proc/sys")], {}, r"mounts\[0\]\.destination"),
    "proc below /proc": ([fs("proc", "/proc/x")], {}, r"mounts\[0\]\.destination"),
    "bind of nothing": ([{"destination": "/x", "options": ["bind"]}], {}, r"mounts\[0\]\.source"),
    "no type": ([{"destination": "/x"}], {}, r"mounts\[0\]\.type"),
    "type none": ([{"destination": "/x", "type": "none", "options": ["ro"]}], {}, r"mounts\[0\]\.type"),
    "copy-up of a bind": ([bind("bind", "tmpcopyup")], {}, r"mounts\[0\]\.options"),
    "copy-up into a procfs": ([fs("proc", "/p", "tmpcopyup")], {}, r"mounts\[0\]\.options"),
    "links that are mounted and not": ([bind("bind", "copy-symlink", "src-nofollow")], {}, r"mounts\[0\]\.options: copy-symlink"),
    "links without a bind": ([fs("tmpfs", "/x", "dest-nofollow")], {}, r"mounts\[0\]\.options: dest-nofollow requires a bind"),
    "idmap with a value": ([bind("bind", "idmap=uids=0-1-10;gids=0-1-10")], {}, r"mounts\[0\]\.options: .*use uidMappings"),
    "idmap without maps": ([bind("rbind", "idmap")], {}, r"mounts\[0\]\.options"),
    "half a map": ([bind("rbind", "idmap", uidMappings=IDS)], {}, r"mounts\[0\]: .*gidMappings"),
    "propagation": ([], {"rootfsPropagation": "bogus"}, r"\$\.linux\.rootfsPropagation"),
    "device type": ([], {"devices": [{"path": "/dev/x", "type": "z"}]}, r"\$\.linux\.devices\[0\]\.type"),
    "device number": ([], {"devices": [{"path": "/dev/x", "type": "c", "major": 1}]}, r"\$\.linux\.devices\[0\]"),
    "device on the root": ([], {"devices": [{"path": "/dev/..", "type": "p"}]}, r"\$\.linux\.devices\[0\]\.path"),
}
UNSUPPORTED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "idmapped without root": ([bind("bind", "idmap", uidMappings=IDS, gidMappings=IDS)], {"host": attrs.evolve(NONE, euid=1000)}, "root"),
    "idmapped tmpfs": ([fs("tmpfs", "/x", "idmap") | {"uidMappings": IDS, "gidMappings": IDS}], {}, "bind mounts"),
    "cgroup without cgroups": ([fs("cgroup", FS)], {}, r"mounts\[0\].*no cgroup"),
    "cgroup2 without v2": ([fs("cgroup2", FS)], {"host": attrs.evolve(HYBRID, hierarchies=HYBRID.hierarchies[:1])}, r"mounts\[0\].*no cgroup2"),
    "cgroup with words": ([fs("cgroup", FS, "cpu")], {"host": HYBRID}, r"mounts\[0\]\.options.*'cpu'"),
    "long value in a shared tree": ([fs("tmpfs", "/o", LONG)], {"rootfsPropagation": "shared"}, r"mounts\[0\]\.options: .*lowerdir.*rootfsPropagation"),
    "long value in a foreign tree": (
        [fs("tmpfs", "/o", LONG)], {"host": HYBRID, "namespaces": []}, r"mounts\[0\]\.options: .*lowerdir.*new mount namespace"
    ),
    "long value of a remount": ([remount("/o", LONG)], {}, r"mounts\[0\]\.options: .*lowerdir"),
    "idmapped cgroup": ([fs("cgroup", FS, "idmap") | {"uidMappings": IDS, "gidMappings": IDS}], {"host": PURE_V2}, "bind mounts"),
    "idmapped remount": ([remount("/o", "idmap") | {"uidMappings": IDS, "gidMappings": IDS}], {}, "bind mounts"),
    "dirsync of a remount": ([fs("tmpfs", "/o"), remount("/o", "dirsync")], {}, r"mounts\[1\]\.options: dirsync cannot be set by a remount"),
    "remount of the root": ([remount("/", "ro")], {}, r"mounts\[0\]\.options: ro would change the filesystem of /, .*; add bind"),
    "remount of a bind mount": ([RBIND, remount("/x", "rw", "size=1m")], {}, r"mounts\[1\]\.options: rw, size would change .* /x, .*; add bind"),
    "remount of a shared filesystem": ([fs("sysfs", "/s"), remount("/s", "ro,sync")], {}, r"mounts\[1\]\.options: sync would change .*; add bind"),
    "long options": ([fs("tmpfs", "/o", *[LONG] * 20)], {}, r"mounts\[0\]\.options: \d+ bytes of options are more than the kernel\'s 4095"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_spec_errors_have_a_json_path(name: str) -> None:
    mounts, more, place = BAD[name]
    with pytest.raises(SpecError, match=place):
        compiled(*mounts, **more)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_configs(name: str) -> None:
    mounts, more, place = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=place):
        compiled(*mounts, **more)


def test_warnings() -> None:
    plan = compiled(
        bind("rbind", "ro", "sync", "nosync", "size=1m"),
        bind("bind", "rw", "async"),
        remount("/x", "bind", "sync"),
        mountLabel="a:b:c:s0",
    )
    assert plan.warnings == (
        "$.linux.mountLabel: has no effect: SELinux is not active on this host",
        "$.mounts[0].options: sync, nosync, size: no effect on a bind mount",
        "$.mounts[2].options: sync: no effect on a remount with bind, which changes no filesystem",
    )
    assert not any("a:b:c:s0" in step.text for step in plan.steps)
    host = attrs.evolve(NONE, may_mknod=False)
    devices = [{"path": "/x", "type": "c", "major": 1, "minor": 3, "uid": 1}, {"path": "/y", "type": "p", "uid": 1}]
    (warning,) = compiled(host=host, devices=devices).warnings
    assert warning.startswith("$.linux.devices[0]: mode and owner stay those of the host's /x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["size=1m,mode=700", "x"], {"data": (("size", "1m"), ("mode", "700"), ("x", None))}),
        (['context="a:b:c:s0:c1,c2"'], {"data": (("context", "a:b:c:s0:c1,c2"),)}),
        ([r"lowerdir=/a\,b:/c"], {"data": (("lowerdir", r"/a\,b:/c"),)}),
        (["x-systemd.automount", "nofail", "comment=x", "", ","], {}),
        (["ro=1"], {"data": (("ro", "1"),)}),
        (["rbind", "bind"], {"bind": True, "recursive_bind": True}),
        (["idmap", "ridmap"], {"idmap": "ridmap"}),
        (["sync", "async", "lazytime"], {"superblock": ("async", "lazytime")}),
    ],
)
def test_parse_options(given: list[str], expected: dict[str, Any]) -> None:
    assert parse_options(given) == MountOptions(**expected)

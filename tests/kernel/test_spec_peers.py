"""What we call valid, runc and crun run: configs that have one part of the model each, carried out by both."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import IDMapping, Mount, NamespaceType, Seccomp, User

from ..support.fixture_types import MakeBundle
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
UNIFIED = Path("/sys/fs/cgroup/unified")

BASE = oci.RuntimeSpec.default(seccomp=False).evolve(oci_version="1.0.2").with_args(["/bin/true"])  # crun 1.8 refuses 1.3.0
IDS = (IDMapping(container_id=0, host_id=100000, size=1000),)
FILTER: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"] if os.uname().machine == "x86_64" else [],
    "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_TRAP",
         "args": [{"index": 0, "value": 255, "valueTwo": 40, "op": "SCMP_CMP_MASKED_EQ"}, {"index": 1, "value": 3, "op": "SCMP_CMP_GE"}]},
        {"names": ["of_the_future"], "action": "SCMP_ACT_LOG"},
    ],
}  # fmt: skip
HOOK = {"path": "/bin/true", "args": ["true"], "env": ["A=1"]}  # crun 1.8 misses the end of a hook with a timeout now and then
SAMPLES: dict[str, oci.RuntimeSpec] = {
    "default": oci.RuntimeSpec.default().evolve(oci_version="1.0.2").with_args(["/bin/true"]),
    "minimal": oci.RuntimeSpec.load(
        {
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["/bin/true"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            # runc does not do without the one, nor crun without the other
            "mounts": [{"destination": f"/{name}", "type": kind, "source": kind} for name, kind in (("proc", "proc"), ("dev", "tmpfs"))],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        }
    ),
    "process": BASE.at.process.evolve(
        user=User(uid=5, gid=6, umask=0o27, additional_gids=(7, 8)),
        env=("PATH=/bin", "EMPTY=", "X=a=b"),
        oom_score_adj=100,
        no_new_privileges=False,
    ).merge({"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]}}),
    "capabilities": BASE.without_caps("all").with_caps("net_bind_service", "CAP_KILL", ambient=True),
    "mounts": BASE.with_mount(
        Mount(destination="/tmp", type="tmpfs", source="tmpfs", options=("noatime", "nosuid", "nodev", "mode=1777", "size=1m"))
    )
    .with_mount(Mount(destination="/mnt/etc", type="bind", source="/etc", options=("rbind", "ro", "noexec", "rprivate")))
    .with_mount(Mount(destination="relative", type="tmpfs", source="tmpfs"))
    .at.root.readonly.set(False),
    "resources": BASE.merge(
        {"linux": {"resources": {
            "memory": {"limit": 1 << 28, "reservation": 1 << 27},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 100},
        }}}
    ),
    "names": BASE.with_namespace(NamespaceType.CGROUP).merge(
        {"hostname": "peer", "linux": {"sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1048576", "fs.mqueue.msg_max": "20"}}}
    ),
    "user namespace": BASE.with_namespace(NamespaceType.USER).at.linux.evolve(uid_mappings=IDS, gid_mappings=IDS, resources=None),
    "rootless": oci.RuntimeSpec.default(rootless=True, uid=0, gid=0).evolve(oci_version="1.0.2").with_args(["/bin/true"]),
    "paths": BASE.merge({"linux": {"maskedPaths": ["/etc", "/nothing"], "readonlyPaths": ["/bin"], "rootfsPropagation": "slave"}}),
    "devices": BASE.merge(
        {"linux": {
            "devices": [{"type": "c", "path": "/dev/zero2", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1, "gid": 2},
                        {"type": "p", "path": "/run/fifo"}],
            "resources": {"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "access": "rwm"}]},
        }}
    ),
    "seccomp": BASE.at.linux.seccomp.set(Seccomp.load(FILTER)),
    "hooks": BASE.merge(
        {"hooks": {"prestart": [HOOK], "createRuntime": [HOOK], "createContainer": [HOOK], "poststart": [HOOK], "poststop": [HOOK]}}
    ),
    "annotations": BASE.with_annotations({"com.example.key": "", "com.example.other": "ü"}).merge({"com.example.unknown": [1, None]}),
    "image": oci.RuntimeSpec.from_image_config(
        {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/true"], "User": "3:4", "Env": ["A=b"], "WorkingDir": "/tmp"}},
        base=BASE.at.process.args.set(None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_peer_runs_what_is_valid(runtime: str, name: str, make_bundle: MakeBundle, tmp_path: Path, prefix: str) -> None:
    program = shutil.which(runtime)
    if program is None:
        pytest.skip(f"no {runtime}")
    spec = SAMPLES[name]
    assert all(problem.severity == "warning" for problem in spec.problems(oci.Host.probe()))
    bundle = make_bundle(spec)
    if name == "user namespace":  # whose root must get at its files, and make the places of mounts
        for path in (tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & stat.S_IXOTH:
                path.chmod(0o711)
        for directory, _, _ in os.walk(bundle.path / "rootfs"):
            os.chown(directory, IDS[0].host_id, IDS[0].host_id)
    command = [program, "--root", str(tmp_path / "peer"), "run", "--bundle", str(bundle.path), prefix]
    if runtime == "crun" and UNIFIED.is_mount():  # crun does without the hybrid mode
        command = ["unshare", "-m", "sh", "-c", f'umount {UNIFIED} && exec "$@"', "-", *command]
    # A pipe and not /dev/null: crun gives its standard streams to the root of the user namespace, the host's null device included.
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stderr

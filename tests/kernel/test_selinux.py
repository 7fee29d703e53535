"""SELinux in enforcing mode: labels of processes and of mounts (config.md#linux-process, config-linux.md#mount-label).

The policy is the one below, a few lines. It is loaded in the machine of tests/vm only, where a kernel with SELinux has booted without any.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.spec import Mount, RuntimeSpec

from ..support.fixture_types import MakeBundle
from ..support.users import VARIANTS

ACTIVE = "selinux" in oci.Host.probe().lsms and "VMTEST" in os.environ
pytestmark = [
    pytest.mark.root,
    pytest.mark.vm,
    pytest.mark.skipif(not ACTIVE, reason="for the machine of tests/vm when it boots with security=selinux"),
]
BOX, FILES, SECRET = "system_u:system_r:box_t:s0:c1", "system_u:object_r:box_file_t:s0:c0,c1", "system_u:object_r:secret_t:s0"
LABEL = "cat /proc/self/attr/current; echo"

SIDS = """
    kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet icmp_socket tcp_socket sysctl_modprobe
    sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod policy scmp_packet devnull
""".split()
POLICY = f"""
(handleunknown allow) (mls true)
(class process (transition dyntransition)) (class process2 (nnp_transition nosuid_transition)) (class file (write)) (class dir (relabelto))
(classorder (process process2 file dir))
(policycap nnp_nosuid_transition)
{" ".join(f"(sid {sid})" for sid in SIDS)} (sidorder ({" ".join(SIDS)}))
(category c0) (category c1) (categoryorder (c0 c1))
(sensitivity s0) (sensitivityorder (s0)) (sensitivitycategory s0 (range c0 c1))
(type host_t) (type box_t) (type box_file_t) (type secret_t)
(typeattribute domain) (typeattributeset domain (host_t box_t))
(typeattribute usual) (typeattributeset usual (host_t box_t box_file_t))
(role system_r) (roletype system_r domain)
(role object_r) (roletype object_r domain) (roletype object_r box_file_t) (roletype object_r secret_t)
(user system_u) (userrole system_u system_r) (userrole system_u object_r)
(userlevel system_u (s0)) (userrange system_u ((s0) (s0 (range c0 c1))))
(allow host_t domain (process (transition)))
(allow host_t box_t (process2 (nnp_transition nosuid_transition)))
(allow host_t usual (dir (relabelto))) (allow host_t secret_t (dir (relabelto)))
(allow domain usual (file (write))) (allow host_t secret_t (file (write)))
{
    " ".join(
        f"(sidcontext {sid} (system_u {'system_r' if sid in ('kernel', 'init') else 'object_r'} host_t ((s0) (s0))))"
        for sid in SIDS
    )
}
{
    " ".join(
        f"(fsuse {how} {fs} (system_u object_r host_t ((s0) (s0))))"
        for how, names in (("xattr", ("ext4", "overlay")), ("trans", ("tmpfs", "mqueue", "devpts")), ("task", ("pipefs", "sockfs")))
        for fs in names
    )
}
{" ".join(f'(genfscon {fs} "/" (system_u object_r host_t ((s0) (s0))))' for fs in ("proc", "sysfs", "cgroup2", "selinuxfs", "9p"))}
"""


@pytest.fixture(scope="module", autouse=True)
def enforcing(tmp_path_factory: pytest.TempPathFactory) -> None:
    where = tmp_path_factory.mktemp("policy")
    (where / "policy.cil").write_text(POLICY)
    subprocess.run(["secilc", "-c", "33", "-o", where / "policy", "-f", "/dev/null", where / "policy.cil"], check=True)
    Path("/sys/fs/selinux/load").write_bytes((where / "policy").read_bytes())
    Path("/sys/fs/selinux/enforce").write_text("1")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("files", "writes"), [(FILES, True), (SECRET, False)])
def test_the_process_and_the_mounts_have_their_labels(
    make_bundle: MakeBundle, state_root: Path, prefix: str, variant: str, files: str, writes: bool
) -> None:
    """What the process may write is decided by both, so both are what the kernel goes by."""
    spec = VARIANTS[variant](RuntimeSpec.default()).with_mount(Mount(destination="/t", type="tmpfs", options=("mode=1777",)))
    spec = spec.at.process.selinux_label.set(BOX).at.linux.mount_label.set(files)
    bundle = make_bundle(spec.with_args(["sh", "-c", f"{LABEL}; touch /t/file && echo x > /t/file && echo written"]))
    done = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix)
    label, *printed = str(done.stdout).replace("\0", "").split()
    assert label == BOX
    assert printed == (["written"] if writes else []), done.stderr
    assert ("Permission denied" in str(done.stderr)) is not writes


def test_every_mount_that_can_have_the_label_has_it(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = RuntimeSpec.default().at.linux.mount_label.set(FILES).with_args(["sleep", "100"])
    with oci.Container.run(prefix, make_bundle(spec), state_root=state_root) as container:
        for path in ("dev", "dev/shm", "dev/mqueue", "dev/pts/ptmx"):
            assert os.getxattr(f"/proc/{container.pid}/root/{path}", "security.selinux") == FILES.encode() + b"\0", path
        assert b"host_t" in os.getxattr(f"/proc/{container.pid}/root/bin", "security.selinux")


def test_further_processes_have_the_label_of_the_config_or_their_own(
    make_bundle: MakeBundle, state_root: Path, prefix: str
) -> None:
    spec = RuntimeSpec.default().at.process.selinux_label.set(BOX).with_args(["sleep", "100"])
    with oci.Container.create(prefix, make_bundle(spec), state_root=state_root) as container:
        container.start()
        assert Path(f"/proc/{container.pid}/attr/current").read_text().rstrip("\0") == BOX
        words = ["sh", "-c", LABEL]
        other = BOX.replace("c1", "c0")
        for given, expected in ((None, BOX), (other, other)):
            printed = container.exec(words, capture_output=True, text=True, selinux_label=given, check=True).stdout
            assert str(printed).replace("\0", "").strip() == expected
        with pytest.raises(oci.StepError, match=r"label .*the policy does not know this label"):
            container.exec(words, selinux_label="no:such:label:s0")
        assert container.status is oci.Status.RUNNING


@pytest.mark.parametrize("make", [oci.Container.create, oci.Container.run])
@pytest.mark.parametrize(("process", "mounts", "op"), [("no:such:label:s0", None, "label"), (None, "no:such:label:s0", "fsconfig")])
def test_a_label_that_the_policy_does_not_know_is_an_error_of_create(
    make_bundle: MakeBundle,
    state_root: Path,
    prefix: str,
    make: Callable[..., oci.Container],
    process: str | None,
    mounts: str | None,
    op: str,
) -> None:
    spec = RuntimeSpec.default().at.process.selinux_label.set(process).at.linux.mount_label.set(mounts).with_args(["true"])
    with pytest.raises(oci.StepError, match="no:such:label") as caught:
        make(prefix, make_bundle(spec), state_root=state_root)
    assert caught.value.op == op
    assert oci.Container.list(state_root=state_root) == []


def test_a_transition_that_the_policy_forbids_is_an_error_of_the_program(
    make_bundle: MakeBundle, state_root: Path, prefix: str
) -> None:
    bundle = make_bundle(RuntimeSpec.default().at.process.selinux_label.set(SECRET))
    with pytest.raises(oci.StepError):
        oci.run(bundle, ["true"], state_root=state_root, container_id=prefix)
    assert oci.Container.list(state_root=state_root) == []

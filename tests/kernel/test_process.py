"""What config.json says of the process and of its kernel state, seen from inside a container (config.md, Process)."""

from __future__ import annotations

import os
import resource
import subprocess
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import ExecCPUAffinity

from ..support.fixture_types import MakeBundle, Script
from ..support.users import User
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
Inside = Callable[..., str]


@pytest.fixture
def inside(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Inside:
    """Runs a shell command in a container of the default config with these members of ``process`` and ``linux``. Returns its output."""

    def run(command: str, process: Mapping[str, Any] | None = None, linux: Mapping[str, Any] | None = None) -> str:
        document = oci.RuntimeSpec.default(seccomp=False).to_dict()
        document["process"] |= {"args": ["sh", "-c", command], **(process or {})}  # type: ignore[operator]
        document["linux"] |= linux or {}  # type: ignore[operator]
        bundle = make_bundle(oci.RuntimeSpec.load(document))
        result = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix, check=True)
        assert isinstance(result.stdout, str)
        return result.stdout.strip()

    return run


def status(inside: Inside, **process: Any) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in inside("cat /proc/self/status", process).splitlines() if ":\t" in line)


def test_user_groups_and_umask(inside: Inside) -> None:
    user = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o27}
    seen = status(inside, user=user)
    assert seen["Uid"].split() == ["7"] * 4
    assert seen["Gid"].split() == ["8"] * 4
    assert seen["Groups"].split() == ["9", "10"]
    assert seen["Umask"] == "0027"
    assert status(inside, user={"uid": 0, "gid": 0})["Groups"].split() == []


@pytest.mark.parametrize("member", ["uid", "gid"])
def test_the_id_that_means_unchanged_is_not_the_callers(inside: Inside, member: str) -> None:
    with pytest.raises(oci.SpecError, match=rf"\$\.process\.user\.{member}"):
        inside("id", {"user": {"uid": 0, "gid": 0} | {member: 0xFFFFFFFF}})


@pytest.mark.parametrize("mask", [0o77, 0o22])
def test_the_umask_is_the_callers_and_not_used_on_the_way(inside: Inside, mask: int) -> None:
    before = os.umask(mask)
    try:
        printed = inside("umask; stat -c %a /made/here", {"cwd": "/made/here"})
    finally:
        os.umask(before)
    assert printed.split() == [f"{mask:04o}", "755"]


def test_capabilities_in_five_sets(inside: Inside) -> None:
    sets = {name: ["CAP_KILL", "CAP_CHOWN"] for name in ("bounding", "permitted", "effective", "inheritable")}
    seen = status(inside, user={"uid": 5, "gid": 5}, capabilities=sets | {"ambient": ["CAP_KILL"]})
    assert {name: int(seen[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": 0x21, "CapPrm": 0x20, "CapEff": 0x20, "CapBnd": 0x21, "CapAmb": 0x20,
    }  # fmt: skip
    assert int(status(inside, capabilities={})["CapBnd"], 16) == 0


def test_an_unknown_capability_is_a_warning(inside: Inside) -> None:
    with pytest.warns(oci.OCIRuntimeWarning, match="CAP_NO_SUCH_THING"):
        seen = status(inside, capabilities={"bounding": ["CAP_NO_SUCH_THING", "CAP_KILL"]})
    assert int(seen["CapBnd"], 16) == 0x20


@pytest.mark.parametrize("new_privileges", [False, True])
def test_no_new_privileges(inside: Inside, new_privileges: bool) -> None:
    assert status(inside, noNewPrivileges=new_privileges)["NoNewPrivs"] == str(int(new_privileges))


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_filter_gives_no_capability(make_bundle: MakeBundle, state_root: Path, prefix: str, no_new_privileges: bool) -> None:
    spec = oci.RuntimeSpec.default().at.process.no_new_privileges.set(no_new_privileges)
    bundle = make_bundle(spec).with_args(["cat", "/proc/self/status"])
    seen = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix, check=True).stdout
    assert isinstance(seen, str)
    values = dict(line.split(":\t", 1) for line in seen.splitlines() if ":\t" in line)
    assert values["Seccomp"] == "2"
    assert not int(values["CapEff"], 16) >> 21 & 1
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16)


def test_rlimits(inside: Inside) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 300, "hard": 400}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    assert inside("ulimit -Sn; ulimit -Hn; ulimit -c", {"rlimits": limits}).split() == ["300", "400", "0"]


def test_oom_score(inside: Inside) -> None:
    assert inside("cat /proc/self/oom_score_adj", {"oomScoreAdj": 321}) == "321"


def test_a_lower_oom_score_is_for_the_privileged(inside: Inside) -> None:
    lower = {"oomScoreAdj": int(Path("/proc/self/oom_score_adj").read_text()) - 1}
    if lower["oomScoreAdj"] < -1000:
        pytest.skip("there is none lower than ours")
    if oci.Host.probe().capabilities >> 24 & 1:  # CAP_SYS_RESOURCE
        assert inside("cat /proc/self/oom_score_adj", lower) == str(lower["oomScoreAdj"])
        return
    with pytest.raises(oci.StepError, match="only a privileged user may lower it"):
        inside("true", lower)


def test_a_further_process_is_held_to_the_same_rules(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        process = container.spec.process
        assert process is not None
        for bad, place in (
            (process.evolve(rlimits=(oci.spec.Rlimit(type="RLIMIT_CORE", soft=2, hard=1),)), r"\$\.process\.rlimits\[0\]"),
            (process.evolve(user=oci.spec.User(uid=0xFFFFFFFF, gid=0)), r"\$\.process\.user\.uid"),
            (process.evolve(exec_cpu_affinity=ExecCPUAffinity(initial="2-1")), r"\$\.process\.execCPUAffinity\.initial"),
            (process.evolve(cwd="relative"), r"\$\.process\.cwd"),
        ):
            with pytest.raises(oci.SpecError, match=place):
                container.exec(["true"], process=bad)
        assert container.exec(["true"]).returncode == 0


OWN = os.getpriority(os.PRIO_PROCESS, 0)
POLICIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "SCHED_BATCH": ({"policy": "SCHED_BATCH", "nice": 5}, 3, 5),
    "SCHED_IDLE": ({"policy": "SCHED_IDLE"}, 5, OWN),
    "SCHED_OTHER": ({"policy": "SCHED_OTHER", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, 0, -3),
    "SCHED_FIFO": ({"policy": "SCHED_FIFO", "priority": 2}, 1, OWN),
    "SCHED_RR": ({"policy": "SCHED_RR", "priority": 1}, 2, OWN),
    "SCHED_DEADLINE": ({"policy": "SCHED_DEADLINE", "runtime": 10**6, "deadline": 10**8, "period": 10**8}, 6, OWN),
}


def test_fewer_files_than_mounts(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The limit of open files is the program's: the init, which has a descriptor for each mount, needs that of the caller."""
    spec = oci.RuntimeSpec.default().with_args(["sh", "-c", "ulimit -Hn; cd /mnt/199"])
    for index in range(200):
        spec = spec.with_mount(oci.spec.Mount(destination=f"/mnt/{index}", type="bind", source="/", options=("bind",)))
    assert spec.process is not None
    limited = spec.evolve(process=spec.process.evolve(rlimits=(oci.spec.Rlimit(type="RLIMIT_NOFILE", soft=20, hard=20),)))
    bundle = make_bundle(limited)
    assert oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix, check=True).stdout == "20\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        with pytest.raises(
            oci.StepError, match=r"\$\.mounts\[\d+\]: .*: more files would be open than RLIMIT_NOFILE allows; use fewer"
        ):
            oci.run(bundle, state_root=state_root, container_id=prefix)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("policy", POLICIES)
def test_scheduler(inside: Inside, policy: str) -> None:
    """Only SCHED_OTHER and SCHED_BATCH have a nice value; the others keep that of the caller."""
    scheduler, number, nice = POLICIES[policy]
    limits: dict[str, Any] = {}
    if Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() and policy in ("SCHED_FIFO", "SCHED_RR"):
        limits = {"resources": {"cpu": {"realtimeRuntime": 10000}}}  # a v1 cgroup has no real time of its own
    # proc(5): fields 41 and 19 of stat are the policy and the nice value; the shell is the process itself.
    command = "read -r line </proc/$$/stat; set -- ${line##*) }; echo ${39} ${17}"
    assert inside(command, {"scheduler": scheduler}, limits) == f"{number} {nice}"


def test_a_deadline_that_cannot_be_kept_says_why(inside: Inside) -> None:
    scheduler = {"policy": "SCHED_DEADLINE", "runtime": 10**6, "deadline": 10**7, "period": 10**14}
    with pytest.raises(oci.StepError, match="the kernel's limits do not allow these values") as caught:
        inside("true", {"scheduler": scheduler})
    assert caught.value.op == "scheduler"


@pytest.mark.parametrize(
    ("kind", "level", "shown"), [("IOPRIO_CLASS_BE", 3, "best-effort: prio 3"), ("IOPRIO_CLASS_IDLE", 0, "idle")]
)
def test_io_priority(inside: Inside, kind: str, level: int, shown: str) -> None:
    assert shown in inside("ionice -p $$", {"ioPriority": {"class": kind, "priority": level}})


def test_personality(inside: Inside) -> None:
    assert inside("cat /proc/self/personality; uname -m", linux={"personality": {"domain": "LINUX32"}}).split()[0] == "00000008"
    assert inside("cat /proc/self/personality", linux={"personality": {"domain": "LINUX"}}) == "00000000"


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="this kernel has no NUMA policies")
def test_memory_policy(inside: Inside) -> None:
    policy = {"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    assert "interleave=static:0" in inside("cat /proc/self/numa_maps", linux={"memoryPolicy": policy})
    assert "bind" not in inside("cat /proc/self/numa_maps", linux={"memoryPolicy": {"mode": "MPOL_DEFAULT"}})


@pytest.mark.parametrize("new", [True, False])
def test_the_session_keyring(make_bundle: MakeBundle, state_root: Path, prefix: str, new: bool) -> None:
    if not oci.Host.probe().keyrings:
        pytest.skip("this kernel has no keyrings")

    def keyrings(lines: str) -> set[str]:
        return {line.split()[0] for line in lines.splitlines() if line.split()[8].startswith("_ses")}

    spec = oci.RuntimeSpec.default().at.linux.masked_paths.set(()).at.process.args.set(("sleep", "100"))
    before = keyrings(Path("/proc/keys").read_text())
    with oci.Container.run(prefix, make_bundle(spec), state_root=state_root, new_keyring=new) as container:
        # As another user, which sees no session keyring of root except the one that it possesses.
        done = container.exec(["cat", "/proc/keys"], user=(31337, 31337), capture_output=True, text=True, check=True)
        assert len(keyrings(str(done.stdout)) - before) == int(new)


def test_cwd_is_made_and_checked(inside: Inside) -> None:
    assert inside("pwd", {"cwd": "/a/b"}) == "/a/b"
    with pytest.raises(oci.StepError) as caught:
        inside("pwd", {"cwd": "/bin/busybox"})
    assert caught.value.op == "target"


def test_a_missing_cwd_of_a_read_only_root(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = oci.RuntimeSpec.default().at.root.readonly.set(True).at.process.cwd.set("/a/b")
    bundle = make_bundle(spec).with_args(["sh", "-c", "pwd; ! touch here 2>/dev/null"])
    done = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix, check=True)
    assert done.stdout == "/a/b\n"


def test_affinity_of_a_further_process(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")
    first = min(os.sched_getaffinity(0))
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        spec = container.spec.process
        assert spec is not None
        command = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"]
        kept = [{"initial": str(first)}] if oci.Host.probe().kernel >= (6, 2) else []  # older ones take a cgroup's CPUs instead
        for affinity in ({"final": str(first)}, {"initial": str(first), "final": str(first)}, *kept):
            expected = spec.evolve(exec_cpu_affinity=ExecCPUAffinity(**affinity))
            seen = container.exec(command, process=expected, capture_output=True, text=True, check=True).stdout
            assert isinstance(seen, str)
            assert seen.split()[1] == str(first)
        unset = container.exec(command, capture_output=True, text=True, check=True).stdout
        assert isinstance(unset, str)
        assert unset.split()[1] != str(first)


PINNED = """
import os, subprocess, sys
import ociruntime as oci
bundle, root, container_id = sys.argv[1:]
every = os.sched_getaffinity(0)
own = {min(every)}
os.sched_setaffinity(0, own)
show = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f2"]
loaded = oci.Bundle.load(bundle)
seen = {}
for manager in ("cgroupfs", "disabled"):
    more = {"state_root": root, "container_id": container_id, "cgroup_manager": manager}
    seen[manager] = oci.run(loaded, show, capture_output=True, text=True, check=True, **more).stdout
with oci.Container.run(container_id, loaded, state_root=root) as container:
    seen["first process"] = os.sched_getaffinity(container.pid)
    seen["exec"] = container.exec(show, capture_output=True, text=True, check=True).stdout
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", root, "exec", container_id, *show]
    seen["command"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with container.popen(show, stdout=-1, text=True) as process:
        seen["popen"] = process.stdout.read()
text = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in [(min(every), max(every))])
assert os.sched_getaffinity(0) == own
assert seen.pop("first process") == every
assert seen.pop("disabled") == f"{min(own)}\\n"
assert set(seen.values()) == {f"{text}\\n"}, seen
"""


@pytest.mark.parametrize("as_user", [False, True])
def test_the_affinity_of_the_caller(
    make_bundle: MakeBundle, state_root: Path, prefix: str, script: Script, user: User, as_user: bool
) -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2 or len(cpus) != max(cpus) - min(cpus) + 1:
        pytest.skip("there is one CPU only, or a gap between them")
    if as_user:
        user.script(PINNED, user.bundle, user.state, prefix)
    else:
        script(PINNED, make_bundle().path, state_root, prefix)


@pytest.mark.parametrize(("text", "code"), [("nothing-here", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_run(make_bundle: MakeBundle, state_root: Path, prefix: str, text: str, code: int) -> None:
    import sys

    bundle = make_bundle().with_args([text])
    bundle.spec = bundle.spec
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), "run", "-b", str(bundle.path), prefix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_is_warned_of_without_a_reason(inside: Inside) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inside("echo fine") == "fine"


def test_the_loopback_of_a_new_network_namespace_is_up(inside: Inside) -> None:
    flags, printed = inside("cat /sys/class/net/lo/flags; ping -c 1 -W 20 127.0.0.1 >&2 && echo reached").split()
    assert int(flags, 16) & 1
    assert printed == "reached"

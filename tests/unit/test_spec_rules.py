"""What is wrong with a config beyond its shape: every rule, by what it says about which place."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime.errors import SpecError
from ociruntime.host import Hierarchy, Host
from ociruntime.spec import ContainerProcessState, Features, Model, Problem, RuntimeSpec, StateDocument
from ociruntime.spec.rules import Findings

RULES_PACKAGE = Path(sys.modules[Findings.__module__].__file__ or "").parent
NEW_USER = {"namespaces": [{"type": "user"}, {"type": "mount"}], "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]}  # fmt: skip
ID = {"containerID": 0, "hostID": 0, "size": 1}
NOTIFY = {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}
BASE: dict[str, Any] = {
    "ociVersion": "1.3.0",
    "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
}


def config(**members: Any) -> dict[str, Any]:
    """A config with these members; ``process`` and ``linux`` are laid over those of the base."""
    created = BASE | members
    if isinstance(members.get("process"), dict):
        created["process"] = BASE["process"] | members["process"]
    return {key: item for key, item in created.items() if item is not None}


def linux(*kinds: str, **members: Any) -> dict[str, Any]:
    """A Linux config with these namespaces and members."""
    return config(linux={"namespaces": [{"type": kind} for kind in kinds or ("mount",)], **members})


def process(**members: Any) -> dict[str, Any]:
    return config(process=members)


def mount(**members: Any) -> dict[str, Any]:
    return config(mounts=[{"destination": "/x", "type": "tmpfs", **members}], linux={"namespaces": [{"type": "mount"}]})


def resources(**members: Any) -> dict[str, Any]:
    return linux(resources=members)


def seccomp(*syscalls: dict[str, Any], **members: Any) -> dict[str, Any]:
    return linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(syscalls), **members})


def argument(**members: Any) -> dict[str, Any]:
    arg = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ", **members}
    return seccomp({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [arg]})


def windows(**members: Any) -> dict[str, Any]:
    return config(windows={"layerFolders": ["c:\\layer"], **members}, root={"path": "\\\\?\\Volume{}\\"})


E, W = "error", "warning"
RULES: list[tuple[dict[str, Any], str, str, str]] = [
    # document, severity, place, words of the message
    (config(ociVersion="1.3"), E, "$.ociVersion", "not a version such as"),
    (config(ociVersion="01.0.0"), E, "$.ociVersion", "not a version such as"),
    (config(ociVersion="2.0.0"), E, "$.ociVersion", "not one of 1.x"),
    (config(ociVersion="1.4.0-rc.1"), W, "$.ociVersion", "newer than 1.3.0"),
    (config(root=None, linux={}), E, "$.root", "required on this platform"),
    (config(root={"path": ""}), E, "$.root.path", "empty"),
    (linux() | {"hostname": "a"}, E, "$.hostname", "uts namespace"),
    (linux() | {"domainname": "a"}, E, "$.domainname", "uts namespace"),
    (linux("uts") | {"hostname": "ä" * 33}, E, "$.hostname", "more than 64 bytes"),
    (config(domainname="a\0"), E, "$.domainname", "NUL"),
    (process(cwd="x"), E, "$.process.cwd", "not an absolute path"),
    (process(args=[]), E, "$.process.args", "program to run is required"),
    (process(args=[""]), E, "$.process.args[0]", "empty"),
    (process(args=["sh", "a\0"]), E, "$.process.args[1]", "NUL"),
    (process(cwd="/\0"), E, "$.process.cwd", "NUL"),
    (process(env=["A=\0"]), E, "$.process.env[0]", "NUL"),
    (process(env=["A"]), W, "$.process.env[0]", "not NAME=value"),
    (process(env=["A=1", "A=2"]), W, "$.process.env[1]", "appears twice"),
    (process(env=["A\x1b=1", "A\x1b=2"]), W, "$.process.env[1]", r"A\x1b appears twice"),
    (process(user={"uid": 0}), W, "$.process.user", "required"),
    (process(user={"uid": 0, "gid": 0, "umask": 512}), W, "$.process.user.umask", "permission bits"),
    (process(user={"uid": 0xFFFFFFFF, "gid": 0}), E, "$.process.user.uid", "is not a valid id"),
    (process(user={"uid": 0, "gid": 0xFFFFFFFF}), E, "$.process.user.gid", "is not a valid id"),
    (process(user={"uid": 0, "gid": 0, "additionalGids": [1, 0xFFFFFFFF]}), E, "$.process.user.additionalGids[1]", "is not a valid id"),
    (process(user={"uid": 0, "gid": 0, "additionalGids": [1] * 65537}), E, "$.process.user.additionalGids", "more than the 65536"),
    (process(consoleSize={"height": 1, "width": 65536}, terminal=True), E, "$.process.consoleSize.width", "not 0 to 65535"),
    (process(consoleSize={"height": 1, "width": 1}), W, "$.process.consoleSize", "without a terminal"),
    (process(rlimits=[{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2), E, "$.process.rlimits[1]", "appears twice"),
    (process(rlimits=[{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]), E, "$.process.rlimits[0]", "above the hard limit"),
    (process(rlimits=[{"type": "RLIMIT_NO", "soft": 1, "hard": 1}]) | {"linux": {}}, E, "$.process.rlimits[0].type", "of Linux"),
    (process(capabilities={"bounding": ["KILL"]}), W, "$.process.capabilities.bounding", "did you mean CAP_KILL"),
    (process(capabilities={"effective": ["CAP_KILL"]}), W, "$.process.capabilities.effective", "not permitted"),
    (process(capabilities={"ambient": ["CAP_KILL"], "inheritable": ["CAP_KILL"]}), W, "$.process.capabilities.ambient", "not permitted"),
    (process(capabilities={"ambient": ["CAP_KILL"], "permitted": ["CAP_KILL"], "bounding": ["CAP_KILL"]}), W, "$.process.capabilities.ambient", "not inheritable"),
    (process(apparmorProfile="a\0"), E, "$.process.apparmorProfile", "NUL"),
    (linux(cgroupsPath="/\ud800"), E, "$.linux.cgroupsPath", "half of a surrogate pair"),
    (process(selinuxLabel="\ud800"), E, "$.process.selinuxLabel", "half of a surrogate pair"),
    (process(capabilities={"permitted": ["CAP_KILL"]}), W, "$.process.capabilities.permitted", "not in the bounding set"),
    (process(oomScoreAdj=1001), E, "$.process.oomScoreAdj", "not -1000 to 1000"),
    (process(scheduler={"policy": "SCHED_OTHER", "nice": 20}), E, "$.process.scheduler.nice", "not -20 to 19"),
    (process(scheduler={"policy": "SCHED_IDLE", "nice": 1}), W, "$.process.scheduler.nice", "no effect"),
    (process(scheduler={"policy": "SCHED_FIFO"}), E, "$.process.scheduler.priority", "priority of 1 to 99"),
    (process(scheduler={"policy": "SCHED_OTHER", "priority": 1}), E, "$.process.scheduler.priority", "does not use a priority"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 1023, "deadline": 2000}), E, "$.process.scheduler.runtime", "at least 1024 ns"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "deadline": 2000}), E, "$.process.scheduler.runtime", "at least 1024 ns"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 1024}), E, "$.process.scheduler.deadline", "requires a deadline"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 1999}), E, "$.process.scheduler.deadline", "less than the runtime"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 2001, "period": 2000}), E, "$.process.scheduler.period", "less than the deadline"),
    (process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 1 << 63}), E, "$.process.scheduler.deadline", "exceeds the range"),
    (process(scheduler={"policy": "SCHED_RR", "priority": 1, "period": 1}), E, "$.process.scheduler.period", "requires SCHED_DEADLINE"),
    (process(ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 8}), E, "$.process.ioPriority.priority", "not 0 to 7"),
    (process(ioPriority={"class": "IOPRIO_CLASS_BE"}), W, "$.process.ioPriority.priority", "is required"),
    (process(execCPUAffinity={"initial": "3-1"}), E, "$.process.execCPUAffinity.initial", "not a list such as"),
    (process(execCPUAffinity={"final": "1,,2"}), E, "$.process.execCPUAffinity.final", "not a list such as"),
    (mount(destination=""), E, "$.mounts[0].destination", "empty"),
    (mount(destination="x"), W, "$.mounts[0].destination", "deprecated"),
    (config(mounts=[{"destination": "x", "type": "lofs"}], solaris={}), E, "$.mounts[0].destination", "not an absolute path"),
    (mount(source="\0"), E, "$.mounts[0].source", "NUL"),
    (mount(options=["a", "\0"]), E, "$.mounts[0].options[1]", "NUL"),
    (mount(options=["bind"]), E, "$.mounts[0].source", "bind mount requires"),
    (mount(type="bind", source="/y", options=["tmpcopyup"]), E, "$.mounts[0].options", "tmpcopyup requires a tmpfs"),
    (mount(type="tmpfs", options=["src-nofollow"]), E, "$.mounts[0].options", "src-nofollow requires a bind mount"),
    (mount(source="/y", options=["bind,copy-symlink", "dest-nofollow"]), E, "$.mounts[0].options", "copy-symlink conflicts with"),
    (mount(source="/y", options=["rbind", "idmap=uids=0-1-2"]), E, "$.mounts[0].options", "take no value"),
    (mount(type="tmpfs", destination="/x/../proc/sys"), E, "$.mounts[0].destination", "only single files"),
    (mount(type="tmpfs", destination="/proc"), E, "$.mounts[0].destination", "only procfs"),
    (config(mounts=[{"destination": "/x"}]), E, "$.mounts[0].type", "unless the mount is a bind mount"),
    (mount(uidMappings=[ID], options=["idmap"]), E, "$.mounts[0]", "require each other"),
    (mount(uidMappings=[ID], gidMappings=[ID]), W, "$.mounts[0].options", "idmap or ridmap"),
    (mount(options=["ridmap"]), E, "$.mounts[0].options", "or a user namespace"),
    (mount(uidMappings=[ID | {"size": 0}], gidMappings=[ID], options=["idmap"]), E, "$.mounts[0].uidMappings[0].size", "empty range"),
    (mount(uidMappings=[ID], gidMappings=[ID | {"hostID": 4294967295}], options=["idmap"]), E, "$.mounts[0].gidMappings[0].hostID", "exceeds the last id"),
    (mount(uidMappings=[ID, ID | {"hostID": 5}], gidMappings=[ID], options=["idmap"]), E, "$.mounts[0].uidMappings[1]", "in the container overlap"),
    (mount(uidMappings=[ID, ID | {"containerID": 5}], gidMappings=[ID], options=["idmap"]), E, "$.mounts[0].uidMappings[1]", "on the host overlap"),
    (mount(uidMappings=[ID] * 341, gidMappings=[ID], options=["idmap"]), E, "$.mounts[0].uidMappings", "340 ranges"),
    (config(hooks={"prestart": [{"path": "/x"}]}), W, "$.hooks.prestart", "deprecated"),
    (config(hooks={"poststop": [{"path": "x"}]}), E, "$.hooks.poststop[0].path", "not an absolute path"),
    (config(hooks={"poststart": [{"path": "/x", "args": ["\0"]}]}), E, "$.hooks.poststart[0].args[0]", "NUL"),
    (config(hooks={"startContainer": [{"path": "/x\0"}]}), E, "$.hooks.startContainer[0].path", "NUL"),
    (config(hooks={"createContainer": [{"path": "/x", "env": ["A=\0"]}]}), E, "$.hooks.createContainer[0].env[0]", "NUL"),
    (config(hooks={"createRuntime": [{"path": "/x", "env": ["A"]}]}), W, "$.hooks.createRuntime[0].env[0]", "not NAME=value"),
    (config(hooks={"poststart": [{"path": "/x", "timeout": 2147484}]}), E, "$.hooks.poststart[0].timeout", "1 to 2147483"),
    (config(annotations={"": "x"}), E, "$.annotations['']", "is empty"),
    (config(annotations={"org.opencontainers.x": ""}), W, "$.annotations['org.opencontainers.x']", "reserved"),
    # linux
    (linux("pid", "pid"), E, "$.linux.namespaces[1]", "appears twice"),
    (config(linux={"namespaces": [{"type": "pid", "path": "x"}]}), E, "$.linux.namespaces[0].path", "not an absolute path"),
    (linux("mount", uidMappings=[ID]), E, "$.linux.uidMappings", "requires a user namespace"),
    (config(linux=NEW_USER | {"namespaces": [{"type": "user", "path": "/n"}]}), W, "$.linux.uidMappings", "keeps its own"),
    (config(linux=NEW_USER, process={"user": {"uid": 10, "gid": 0}}), E, "$.process.user.uid", "no mapping"),
    (config(linux=NEW_USER, process={"user": {"uid": 9, "gid": 9, "additionalGids": [5, 10]}}), E, "$.process.user.additionalGids[1]", "no mapping"),
    (linux(timeOffsets={"monotonic": {"secs": 1}}), E, "$.linux.timeOffsets", "new time namespace"),
    (linux("time", timeOffsets={"realtime": {}}), E, "$.linux.timeOffsets.realtime", "not monotonic or boottime"),
    (linux("time", timeOffsets={"boottime": {"nanosecs": 10**9}}), E, "$.linux.timeOffsets.boottime.nanosecs", "a second or more"),
    (linux(devices=[{"type": "p", "path": "x"}]), E, "$.linux.devices[0].path", "not an absolute path"),
    (linux(devices=[{"type": "z", "path": "/x"}]), E, "$.linux.devices[0].type", "does not match"),
    (linux(devices=[{"type": "c", "path": "/x", "major": 1}]), E, "$.linux.devices[0].minor", "required by type c"),
    (linux(devices=[{"type": "b", "path": "/x", "major": -1, "minor": 1}]), E, "$.linux.devices[0].major", "not between 0 and 4095"),
    (linux(devices=[{"type": "p", "path": "/a/.."}]), E, "$.linux.devices[0].path", "is the root"),
    (linux(devices=[{"type": "p", "path": "/a\0"}]), E, "$.linux.devices[0].path", "NUL"),
    (config(linux=NEW_USER | {"devices": [{"type": "p", "path": "/a", "gid": 10}]}), E, "$.linux.devices[0].gid", "not mapped"),
    (linux("uts", sysctl={"kernel/domainname": "a"}) | {"domainname": "b"}, E, "$.domainname", "conflicts with"),
    (linux("bogus"), E, "$.linux.namespaces[0].type", "none of pid, network"),
    (linux(readonlyPaths=["/a\0"]), E, "$.linux.readonlyPaths[0]", "NUL"),
    (config(root={"path": "a\0"}), E, "$.root.path", "NUL"),
    (linux(devices=[{"type": "c", "path": "/x", "major": 1, "minor": n} for n in (1, 2)]), W, "$.linux.devices[1]", "/x appears twice"),
    (linux(devices=[{"type": t, "path": f"/{t}", "major": 1, "minor": 1} for t in "cu"]), W, "$.linux.devices[1]", "u 1:1 appears twice"),
    (linux(netDevices={"eth0": {}}), E, "$.linux.netDevices", "network namespace"),
    (linux("network", netDevices={"a/b": {}}), E, "$.linux.netDevices['a/b']", "cannot be the name"),
    (linux("network", netDevices={"a": {"name": "x" * 16}}), E, "$.linux.netDevices.a.name", "cannot be the name"),
    (linux("network", netDevices={"a": {"name": "x"}, "b": {"name": "x"}}), E, "$.linux.netDevices.b.name", "appears twice"),
    (linux(sysctl={"../x": "1"}), E, "$.linux.sysctl['../x']", "not the name of a sysctl"),
    (linux(sysctl={"kernel.domainname": "1"}), E, "$.linux.sysctl['kernel.domainname']", "namespace of type uts"),
    (linux("uts", sysctl={"kernel/hostname": "1"}), E, "$.linux.sysctl['kernel/hostname']", "is set by hostname"),
    (linux(sysctl={"fs.mqueue.msg_max": "1"}), E, "$.linux.sysctl['fs.mqueue.msg_max']", "namespace of type ipc"),
    (linux("ipc", sysctl={"kernel.msgmax": "1\n2"}), E, "$.linux.sysctl['kernel.msgmax']", "not the value of a sysctl"),
    (linux(sysctl={"net/ipv4/ip_forward": "1"}), E, "$.linux.sysctl['net/ipv4/ip_forward']", "namespace of type network"),
    (linux("network", "ipc", "uts", sysctl={"vm.swappiness": "1"}), E, "$.linux.sysctl['vm.swappiness']", "does not belong to a namespace"),
    (linux(readonlyPaths=["x"]), E, "$.linux.readonlyPaths[0]", "not an absolute path"),
    (linux(maskedPaths=["/a/.."]), E, "$.linux.maskedPaths[0]", "the whole container cannot be hidden"),
    (linux(maskedPaths=["/x", "/proc/net/tcp"]), E, "$.linux.maskedPaths[1]", "another file for each process"),
    (linux(readonlyPaths=["/proc//self"]), E, "$.linux.readonlyPaths[0]", "another file for each process"),
    (linux(cgroupsPath="/a/../b"), E, "$.linux.cgroupsPath", "leads out"),
    (linux(personality={"domain": "LINUX", "flags": ["X"]}), E, "$.linux.personality.flags", "does not define any flag"),
    (seccomp(defaultAction="SCMP_ACT_NOTIFY"), E, "$.linux.seccomp.defaultAction", "wait for an agent"),
    (seccomp(NOTIFY), E, "$.linux.seccomp.listenerPath", "required by SCMP_ACT_NOTIFY"),
    (seccomp(listenerPath="/x"), W, "$.linux.seccomp.listenerPath", "ignored"),
    (seccomp(listenerMetadata="x"), E, "$.linux.seccomp.listenerMetadata", "requires listenerPath"),
    (seccomp(flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), W, "$.linux.seccomp.flags", "ignored without SCMP_ACT_NOTIFY"),
    (seccomp(NOTIFY | {"names": ["write"]}, listenerPath="/x"), W, "$.linux.seccomp.syscalls[0].names", "other runtimes refuse"),
    (seccomp(NOTIFY | {"names": ["read"]}, listenerPath="/x"), E, "$.linux.seccomp.syscalls[0].names", "wait for an agent"),
    (seccomp(NOTIFY, listenerPath="/\0"), E, "$.linux.seccomp.listenerPath", "NUL"),
    (seccomp(NOTIFY | {"names": [""]}, listenerPath="/x"), E, "$.linux.seccomp.syscalls[0].names", "at least one"),
    (seccomp(defaultAction="SCMP_ACT_NO"), E, "$.linux.seccomp.defaultAction", "none of"),
    (seccomp(architectures=["SCMP_ARCH_VAX"]), E, "$.linux.seccomp.architectures[0]", "none of"),
    (seccomp(flags=["SECCOMP_FILTER_FLAG_NO"]), E, "$.linux.seccomp.flags[0]", "none of"),
    (argument(op="SCMP_CMP_SO"), E, "$.linux.seccomp.syscalls[0].args[0].op", "none of"),
    (seccomp(defaultErrnoRet=1), E, "$.linux.seccomp.defaultErrnoRet", "does not accept an errno"),
    (seccomp({"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095}), E, "$.linux.seccomp.syscalls[0].errnoRet", "not 0 to 4094"),
    (seccomp({"names": ["x"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536}), E, "$.linux.seccomp.syscalls[0].errnoRet", "not 0 to 65535"),
    (argument(index=6), E, "$.linux.seccomp.syscalls[0].args[0].index", "not 0 to 5"),
    (argument(valueTwo=6), W, "$.linux.seccomp.syscalls[0].args[0].valueTwo", "ignored by"),
    (linux(intelRdt={"closID": ".."}), E, "$.linux.intelRdt.closID", "cannot be the name"),
    (linux(intelRdt={"l3CacheSchema": "L3:\n"}), E, "$.linux.intelRdt.l3CacheSchema", "not one line"),
    (linux(intelRdt={"memBwSchema": "L3:"}), E, "$.linux.intelRdt.memBwSchema", "match"),
    (linux(mountLabel="\0"), E, "$.linux.mountLabel", "NUL"),
    (linux(intelRdt={"l3CacheSchema": "L2:"}), W, "$.linux.intelRdt.l3CacheSchema", "start with L3:"),
    (linux(intelRdt={"schemata": ["a\nb"]}), E, "$.linux.intelRdt.schemata[0]", "not one line"),
    (linux(memoryPolicy={"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_STATIC_NODES"]}), E, "$.linux.memoryPolicy.flags", "without nodes"),
    (linux(memoryPolicy={"mode": "MPOL_LOCAL", "nodes": "0"}), E, "$.linux.memoryPolicy.nodes", "MPOL_LOCAL mode requires 0 nodes but got 1"),
    (linux(memoryPolicy={"mode": "MPOL_LOCAL", "flags": ["MPOL_F_STATIC_NODES"]}), E, "$.linux.memoryPolicy.flags", "does not accept flags"),
    (linux(memoryPolicy={"mode": "MPOL_BIND"}), E, "$.linux.memoryPolicy.nodes", "at least one node"),
    (linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "x"}), E, "$.linux.memoryPolicy.nodes", "invalid memory policy nodes: 'x' is not a list such as"),
    (linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}), E, "$.linux.memoryPolicy.flags", "mutually exclusive"),
    (linux(memoryPolicy={"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}), E, "$.linux.memoryPolicy.flags", "does not accept"),
    # linux.resources
    (resources(devices=[{"allow": True, "type": "p"}]), E, "$.linux.resources.devices[0].type", "none of a, b, c"),
    (resources(devices=[{"allow": True, "access": "rx"}]), E, "$.linux.resources.devices[0].access", "not composed of r, w and m"),
    (resources(devices=[{"allow": False, "access": "a"}]), E, "$.linux.resources.devices[0].access", "not composed of r, w and m"),
    (resources(devices=[{"allow": False, "access": "rwa"}]), W, "$.linux.resources.devices[0].access", "the letter a is ignored"),
    (resources(devices=[{"allow": True, "major": -2}]), E, "$.linux.resources.devices[0].major", "negative"),
    (resources(memory={"limit": -2}), E, "$.linux.resources.memory.limit", "less than -1"),
    (resources(memory={"limit": 2, "swap": 1}), E, "$.linux.resources.memory.swap", "below the memory limit"),
    (resources(memory={"swap": 1}), E, "$.linux.resources.memory.swap", "requires a memory limit"),
    (resources(memory={"limit": 1, "reservation": 2}), W, "$.linux.resources.memory.reservation", "above the memory limit"),
    (resources(memory={"swappiness": 101}), E, "$.linux.resources.memory.swappiness", "not 0 to 100"),
    (resources(memory={"kernelTCP": 1}), W, "$.linux.resources.memory.kernelTCP", "not recommended"),
    (resources(cpu={"quota": -2}), E, "$.linux.resources.cpu.quota", "less than -1"),
    (resources(cpu={"quota": 999}), E, "$.linux.resources.cpu.quota", "the kernel's minimum"),
    (resources(cpu={"quota": 1000, "burst": 1001}), E, "$.linux.resources.cpu.burst", "more than the quota"),
    (resources(cpu={"period": 999}), E, "$.linux.resources.cpu.period", "not 1000 to 1000000"),
    (resources(cpu={"realtimeRuntime": 2, "realtimePeriod": 1}), E, "$.linux.resources.cpu.realtimeRuntime", "more than the period"),
    (resources(cpu={"shares": 1}), W, "$.linux.resources.cpu.shares", "minimum is 2"),
    (resources(cpu={"idle": 2}), E, "$.linux.resources.cpu.idle", "not 0 or 1"),
    (resources(cpu={"cpus": "a"}), E, "$.linux.resources.cpu.cpus", "not a list such as"),
    (resources(cpu={"mems": "0-"}), E, "$.linux.resources.cpu.mems", "not a list such as"),
    (resources(pids={"limit": -2}), E, "$.linux.resources.pids.limit", "less than -1"),
    (resources(blockIO={"weight": 9}), E, "$.linux.resources.blockIO.weight", "not 10 to 1000"),
    (resources(blockIO={"weightDevice": [{"major": 1, "minor": 1}]}), E, "$.linux.resources.blockIO.weightDevice[0]", "required"),
    (resources(hugepageLimits=[{"pageSize": "2MB", "limit": 1}] * 2), E, "$.linux.resources.hugepageLimits[1]", "appears twice"),
    (resources(network={"priorities": [{"name": "a", "priority": 1}] * 2}), E, "$.linux.resources.network.priorities[1]", "appears twice"),
    (resources(rdma={"mlx5_1": {}}), E, "$.linux.resources.rdma.mlx5_1", "required"),
    (resources(unified={"a/b.c": ""}), E, "$.linux.resources.unified['a/b.c']", "not a file of a controller"),
    (resources(unified={"memory.high": "\0"}), E, "$.linux.resources.unified['memory.high']", "NUL"),
    # other platforms
    (windows(hyperv={}), E, "$.root", "must not be set with Hyper-V"),
    (windows() | {"root": {"path": "c:", "readonly": True}}, E, "$.root.readonly", "not supported on Windows"),
    (windows() | {"process": {"cwd": "c:\\"}}, E, "$.process.commandLine", "required without args"),
    (windows() | {"mounts": [{"destination": "foo"}]}, E, "$.mounts[0].destination", "not an absolute path"),
    (windows() | {"mounts": [{"destination": "C:\\Foo\\bar"}, {"destination": "c:\\foo"}]}, E, "$.mounts[0].destination", "nested"),
    (windows(resources={"cpu": {"count": 1, "shares": 1}}), E, "$.windows.resources.cpu", "mutually exclusive"),
    (windows(resources={"cpu": {"maximum": 10001}}), E, "$.windows.resources.cpu.maximum", "not 0 to 10000"),
    (windows(network={"networkNamespace": "x", "endpointList": []}), E, "$.windows.network.networkNamespace", "excludes"),
    (config(zos={"namespaces": [{"type": "pid"}] * 2}), E, "$.zos.namespaces[1]", "appears twice"),
    (config(zos={"namespaces": [{"type": "pid", "path": "x"}]}), E, "$.zos.namespaces[0].path", "not an absolute path"),
    (config(vm={"kernel": {"path": "k", "initrd": "/i"}}), E, "$.vm.kernel.path", "not an absolute path"),
    (config(vm={"kernel": {"path": "/k", "initrd": "i"}}), E, "$.vm.kernel.initrd", "not an absolute path"),
    (config(vm={"kernel": {"path": "/k"}, "hypervisor": {"path": "h"}}), E, "$.vm.hypervisor.path", "not an absolute path"),
    (config(vm={"kernel": {"path": "/k"}, "image": {"path": "i", "format": "raw"}}), E, "$.vm.image.path", "not an absolute path"),
    (config(freebsd={"devices": [{"path": "/dev/x"}]}), E, "$.freebsd.devices[0].path", "not relative to /dev"),
    (config(freebsd={"jail": {"enforceStatfs": 3}}), E, "$.freebsd.jail.enforceStatfs", "not 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "severity", "path", "words"), RULES, ids=[f"{number}-{rule[2]}" for number, rule in enumerate(RULES)]
)
def test_rule(document: dict[str, Any], severity: str, path: str, words: str) -> None:
    spec = RuntimeSpec.load(document)
    found = [problem for problem in spec.problems() if problem.path == path and words in problem.message]
    assert [problem.severity for problem in found] == [severity], spec.problems()
    assert ".md#" in found[0].section
    assert found[0] in RuntimeSpec.check(document)
    if severity == E:
        with pytest.raises(SpecError) as caught:
            spec.validate()
        assert found[0] in caught.value.problems
        assert all(problem.severity == E for problem in caught.value.problems)
    else:
        assert [problem for problem in spec.problems() if problem.severity == E] == []
        assert found[0] in spec.validate()


FEATURES: dict[str, Any] = {"ociVersionMin": "1.0.0", "ociVersionMax": "1.3.0"}
STATE: dict[str, Any] = {"ociVersion": "1.3.0", "id": "c", "status": "running", "pid": 1, "bundle": "/b"}
DOCUMENTS: list[tuple[type[Model], dict[str, Any], str, str]] = [
    # class, document, place, words of the message
    (Features, FEATURES | {"ociVersionMin": "1"}, "$.ociVersionMin", "not a version such as"),
    (Features, FEATURES | {"ociVersionMin": "1.10.0"}, "$.ociVersionMax", "1.3.0 is less than 1.10.0"),
    (Features, FEATURES | {"linux": {"seccomp": {"knownFlags": [], "supportedFlags": ["SECCOMP_FILTER_FLAG_LOG"]}}},
     "$.linux.seccomp.supportedFlags", "not in knownFlags"),
    (Features, FEATURES | {"linux": {"capabilities": ["kill"]}}, "$.linux.capabilities[0]", "does not match"),
    (StateDocument, STATE | {"id": ""}, "$.id", "empty"),
    (StateDocument, STATE | {"bundle": "b"}, "$.bundle", "not an absolute path"),
    (StateDocument, STATE | {"status": "created", "pid": 0}, "$.pid", "required on Linux if the status is created"),
    (StateDocument, STATE | {"status": "paused"}, "$.status", "none of creating"),
    (ContainerProcessState, {"ociVersion": "1.3.0", "pid": 1, "state": STATE | {"bundle": "b"}}, "$.state.bundle", "not an absolute"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "document", "path", "words"), DOCUMENTS, ids=[f"{row[0].__name__}-{row[2]}" for row in DOCUMENTS])
def test_other_documents(cls: type[Model], document: dict[str, Any], path: str, words: str) -> None:
    found = cls.load(document).problems()
    assert [(problem.path, words in problem.message) for problem in found] == [(path, True)]
    assert cls.check(document) == found
    with pytest.raises(SpecError, match=words):
        cls.load(document).validate()


def test_good_documents_have_no_problem() -> None:
    assert Features.load(FEATURES).validate() == StateDocument.load(STATE).validate() == ()
    assert StateDocument.load(STATE | {"status": "stopped", "pid": 0}).validate() == ()


# ---- what one host can do ----

HOST = Host(
    kernel=(6, 12),
    machine="x86_64",
    euid=0,
    last_cap=40,
    hierarchies=(Hierarchy("/sys/fs/cgroup", 2, frozenset({"cpu", "memory", "pids"})),),
    lsms=frozenset({"capability"}),
    seccomp=True,
)
OLD = attrs.evolve(HOST, kernel=(4, 4), last_cap=37, seccomp=False, machine="riscv64", euid=1000, hierarchies=())
USER = attrs.evolve(HOST, euid=1, egid=1, capabilities=0, idmap_helpers=("u", "g"), subuids=((1000, 10),), subgids=((1000, 10),))
V1 = attrs.evolve(HOST, hierarchies=(Hierarchy("/sys/fs/cgroup/x", 1, frozenset({"memory", "net_cls"})),))
ON_HOST: list[tuple[dict[str, Any], Host, str, str, str]] = [
    # document, host, severity, place, words of the message
    (config(solaris={}), HOST, E, "$.solaris", "runs Linux"),
    (config(vm={"kernel": {"path": "/k"}}), HOST, E, "$.vm", "not supported"),
    (process(apparmorProfile="x"), HOST, E, "$.process.apparmorProfile", "not active"),
    (process(selinuxLabel="x"), HOST, E, "$.process.selinuxLabel", "not active"),
    (process(capabilities={"bounding": ["CAP_BPF", "CAP_KILL"]}), OLD, W, "$.process.capabilities.bounding", "does not have CAP_BPF"),
    (process(capabilities={"bounding": ["CAP_KILL"]}), attrs.evolve(HOST, capabilities=1), W, "$.process.capabilities.bounding", "does not have CAP_KILL"),
    (config(linux=NEW_USER, process={"capabilities": {"bounding": ["CAP_KILL"]}}), attrs.evolve(HOST, capabilities=1), "", "$.process.capabilities.bounding", ""),
    (linux(intelRdt={}), HOST, E, "$.linux.intelRdt", "resctrl"),
    (linux(intelRdt={}), attrs.evolve(HOST, resctrl="/sys/fs/resctrl"), "", "$.linux.intelRdt", ""),
    (mount(options=["rro"]), OLD, E, "$.mounts[0].options", "needs Linux 5.12, and this is 4.4"),
    (mount(options=["idmap", "rbind"], source="/", uidMappings=[ID], gidMappings=[ID]), OLD, E, "$.mounts[0].uidMappings", "5.12"),
    (linux("mount", "time"), OLD, E, "$.linux.namespaces[1]", "5.6"),
    (linux("mount"), OLD, E, "$.linux.namespaces", "user 1000"),
    (config(linux=NEW_USER), USER, "", "$.linux.uidMappings[0]", ""),
    (config(linux=NEW_USER), attrs.evolve(USER, subuids=()), E, "$.linux.uidMappings[0]", "1000 to 1009 of the host are not subordinate ids"),
    (config(linux=NEW_USER), attrs.evolve(USER, subgids=((1000, 9),)), E, "$.linux.gidMappings[0]", "not subordinate ids"),
    (config(linux=NEW_USER), attrs.evolve(USER, idmap_helpers=None), E, "$.linux.uidMappings", "newuidmap"),
    (linux(mountLabel="x"), HOST, W, "$.linux.mountLabel", "not active"),
    (seccomp(), OLD, E, "$.linux.seccomp", "does not support seccomp"),
    (seccomp(NOTIFY, listenerPath="/x", flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), OLD, E, "$.linux.seccomp.flags", "5.19"),
    (linux(memoryPolicy={"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}), OLD, E, "$.linux.memoryPolicy.mode", "6.9"),
    (linux(personality={"domain": "LINUX32"}), OLD, E, "$.linux.personality.domain", "no 32-bit"),
    (resources(blockIO={}), HOST, E, "$.linux.resources.blockIO", "not have the controller blkio"),
    (resources(devices=[]), HOST, "", "$.linux.resources.devices", ""),
    (resources(devices=[{"allow": True}]), HOST, "", "$.linux.resources.devices", ""),
    (resources(devices=[{"allow": True}]), V1, W, "$.linux.resources.devices", "require cgroups"),
    (resources(devices=[{"allow": True}]), attrs.evolve(HOST, initial=False), W, "$.linux.resources.devices", "CAP_SYS_ADMIN"),
    (resources(cpu={"cpus": "0"}), HOST, E, "$.linux.resources.cpu.cpus", "cpuset"),
    (resources(cpu={"shares": 2}), V1, E, "$.linux.resources.cpu", "not have the controller cpu"),
    (resources(network={"classID": 1}), HOST, E, "$.linux.resources.network.classID", "of cgroup v1"),
    (resources(network={"classID": 1}), V1, "", "$.linux.resources.network.classID", ""),
    (resources(memory={"swappiness": 1}), HOST, E, "$.linux.resources.memory.swappiness", "of cgroup v1"),
    (resources(unified={"memory.high": "1"}), V1, E, "$.linux.resources.unified", "not have cgroup v2"),
    (resources(unified={"io.max": "1"}), HOST, E, "$.linux.resources.unified['io.max']", "not have the controller io"),
    (resources(unified={"cgroup.max.depth": "1"}), HOST, "", "$.linux.resources.unified['cgroup.max.depth']", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "host", "severity", "path", "words"), ON_HOST, ids=[f"{number}-{rule[3]}" for number, rule in enumerate(ON_HOST)]
)
def test_host(document: dict[str, Any], host: Host, severity: str, path: str, words: str) -> None:
    spec = RuntimeSpec.load(document)
    assert not [problem for problem in spec.problems() if problem.path == path and problem.severity == severity]
    found = [problem for problem in spec.problems(host) if problem.path == path]
    if not severity:
        assert not found
        return
    assert [(problem.severity, words in problem.message) for problem in found] == [(severity, True)]
    if severity == E:
        with pytest.raises(SpecError, match=r"\.md#"):
            spec.validate(host)
    else:
        assert found[0] in spec.validate(host)


def test_the_default_config_fits_a_host_and_has_no_problem() -> None:
    assert RuntimeSpec.default().validate(HOST) == ()
    assert RuntimeSpec.default(rootless=True, uid=1000, gid=1000).validate(attrs.evolve(HOST, euid=1000)) == ()
    alone = attrs.evolve(HOST, euid=1000, egid=1000, capabilities=0)
    assert RuntimeSpec.default(rootless=True, uid=1000, gid=1000).validate(alone) == ()
    for option in ("rslave", "private"):
        assert RuntimeSpec.load(mount(type="", options=[option])).validate() == ()
    everything = Hierarchy("/", 1, frozenset({"memory", "pids", "devices", "cpu", "cpuset", "blkio"}))
    assert RuntimeSpec.default().validate(host=attrs.evolve(HOST, hierarchies=(everything,))) == ()


def test_all_problems_at_once_and_in_three_layers() -> None:
    document = linux("mount", "mount", seccomp={"defaultAction": "SCMP_ACT_NOPE"}, mountLabel="x") | {"hostname": "x"}
    found = RuntimeSpec.load(document).problems(HOST)
    assert {problem.path for problem in found} == {
        "$.linux.seccomp.defaultAction",  # the schema
        "$.linux.namespaces[1]", "$.hostname",  # the rules
        "$.linux.mountLabel",  # the host
    }  # fmt: skip


def test_check_tells_what_does_not_even_load() -> None:
    document = linux("mount", "mount") | {"hostname": 5, "process": {"args": [""]}}
    found = {problem.path: problem.message for problem in RuntimeSpec.check(document)}
    assert set(found) == {"$.hostname", "$.process.cwd"}
    assert RuntimeSpec.check(b"{") == (RuntimeSpec.check(b"{")[0],)
    assert RuntimeSpec.check(b"[]")


def test_every_rule_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases above make every place report where a problem is reported."""
    hit: set[tuple[str, int]] = set()

    class Watched(list[Problem]):
        def append(self, problem: Problem) -> None:
            frame = sys._getframe(1)
            while frame.f_back is not None and Path(frame.f_code.co_filename).parent == RULES_PACKAGE:
                hit.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
                frame = frame.f_back
            super().append(problem)

    monkeypatch.setattr(Findings, "__init__", lambda self: setattr(self, "problems", Watched()))
    for document, *_ in RULES:
        RuntimeSpec.load(document).problems()
    for document, host, *_ in ON_HOST:
        RuntimeSpec.load(document).problems(host)
    for cls, document, *_ in DOCUMENTS:
        cls.load(document).problems()
    missed = []
    for path in RULES_PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("findings", "self")
                and not any((path.name, line) in hit for line in range(node.lineno, (node.end_lineno or 0) + 1))
            ):
                missed.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not missed

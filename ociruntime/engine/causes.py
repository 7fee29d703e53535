"""Why a step failed and what helps, where that is known."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from ..errors import StepError, UnsupportedError

if TYPE_CHECKING:
    from ..spec import Seccomp

_KNOWN: Final[dict[tuple[str, int], tuple[str, str]]] = {
    ("netdev_move", errno.ENODEV): ("there is no such network device", "check the names in linux.netDevices with ip link"),
    ("netdev_move", errno.EEXIST): (
        "the container has a network device of this name",
        "choose another, or a template such as eth%d",
    ),
    ("netdev_move", errno.EINVAL): ("this network device cannot move to another namespace", ""),
    ("netdev_move", errno.EPERM): ("CAP_NET_ADMIN on the host is needed", "run as root"),
    ("rdt_make", errno.ENOSPC): ("the processor has no more classes of service or monitors", "delete a container that has one"),
    ("rdt_class", errno.ENOENT): ("the class of service does not exist", "make it, or give schemata to make it with"),
    ("rdt_class", errno.EEXIST): ("the class of service exists with other schemata", "choose another closID"),
    ("die_with", errno.ESRCH): ("the parent that the container is to die with has ended", ""),
    ("capset", errno.EPERM): ("more capabilities are asked for than we have", "drop them from process.capabilities"),
    ("scheduler", errno.EPERM): (
        "this user or this cgroup may not have it",
        "on cgroup v1 real-time policies need linux.resources.cpu.realtimeRuntime",
    ),
    ("scheduler", errno.EINVAL): ("the kernel's limits do not allow these values", "see /proc/sys/kernel/sched_*"),
    ("scheduler", errno.EBUSY): ("there is not enough of the CPUs' time left", "ask for less runtime, or a longer period"),
    ("scheduler", errno.EOPNOTSUPP): ("this kernel has no utilisation clamps", "leave the flags out"),
    ("ioprio", errno.EPERM): ("IOPRIO_CLASS_RT needs CAP_SYS_NICE or CAP_SYS_ADMIN on the host", "ask for IOPRIO_CLASS_BE"),
    ("label", errno.ENOENT): ("no profile of this name is loaded", "load it with apparmor_parser, or correct the name"),
    ("label", errno.EINVAL): ("the policy does not know this label", "correct it, or load the policy that has it"),
    ("label", errno.EACCES): ("the policy does not allow us to give it", ""),
    ("ambient", errno.EPERM): ("an ambient capability must be permitted and inheritable", ""),
    ("mempolicy", errno.EINVAL): ("the nodes do not exist or are none of the cgroup's", "check memoryPolicy.nodes"),
    ("proc_write", errno.EACCES): ("only a privileged user may lower it", ""),
    ("clone3", errno.EPERM): ("this user may not create these namespaces", "run as root, or ask for a user namespace"),
    ("clone3", errno.ENOSPC): ("the limit of namespaces is reached", "raise the limits in /proc/sys/user"),
    ("fork", errno.EPERM): ("this user may not create these namespaces", "run as root, or allow user namespaces for users"),
    ("fork", errno.ENOSPC): ("the limit of namespaces is reached", "raise the limits in /proc/sys/user"),
    ("fork_last", errno.EAGAIN): ("a limit of processes is reached", "raise pids.max of the cgroup, or RLIMIT_NPROC"),
    ("fork_last", errno.ENOMEM): ("the pid namespace that was joined has no first process any more", ""),
    ("fork", errno.ENOMEM): ("the pid namespace that was joined has no first process any more", ""),
    ("join", errno.EPERM): (
        "we have no privileges over this namespace",
        "join the user namespace that owns it too, or run as root",
    ),
    ("join", errno.EXDEV): ("the kernel took us somewhere else", ""),
    ("idmap", errno.EPERM): ("the kernel does not let us write this map", "map ids that are mapped where we are, without overlap"),
    ("idmap", errno.EINVAL): ("the kernel does not take the map: it is empty, too long or overlaps", ""),
    ("setgroups", errno.EPERM): ("the user namespace denies setgroups", "ask for no additionalGids"),
    ("setgroups", errno.EINVAL): ("a group is not mapped in the user namespace", "add it to linux.gidMappings"),
    ("setresuid", errno.EINVAL): ("the user is not mapped in the user namespace", "add it to linux.uidMappings"),
    ("setresgid", errno.EINVAL): ("the group is not mapped in the user namespace", "add it to linux.gidMappings"),
    ("open_tree", errno.ENOENT): ("the source does not exist on the host", "make it, or correct the mount's source"),
    ("open_tree", errno.EINVAL): ("something is mounted below it, which a user namespace may not take off", "use rbind"),
    ("open", errno.ENOENT): ("it does not exist", ""),
    ("fsopen", errno.EPERM): ("it is not for user namespaces", "let the host mount it, and bind it"),
    ("fsconfig", errno.EPERM): (
        "this user may not do it, or the device rules of the container forbid it",
        "allow the device in linux.resources.devices, or let the host mount it, and bind it",
    ),
    ("fsmount", errno.EPERM): (
        "the kernel gives this filesystem to the owner of its namespace only",
        "let the host mount it, and bind it",
    ),
    ("target", errno.ENOTDIR): ("something on the way is not a directory, or a directory is to be mounted on a file", ""),
    ("target", errno.EISDIR): ("a file is to be mounted on a directory", ""),
    ("target", errno.EROFS): ("the mount point is missing and the root is read-only", "add the mount point to the image"),
    ("target", errno.ELOOP): ("links lead in circles, or into /proc", ""),
    ("fsopen", errno.ENODEV): ("this kernel does not know the filesystem", ""),
    ("console", errno.ELOOP): ("the image has a link as /dev/console", "mount a tmpfs on /dev"),
    ("console", errno.EEXIST): ("the image has something else as /dev/console", "mount a tmpfs on /dev"),
    ("console", errno.ENOENT): ("there is no devpts on /dev/pts", "add one to the mounts, with newinstance and ptmxmode=0666"),
    ("console", errno.EXDEV): ("/dev/pts is not a devpts", "mount one there, with newinstance and ptmxmode=0666"),
    ("rlimit", errno.EPERM): ("a hard limit can be raised with CAP_SYS_RESOURCE only", "ask for a limit that is not above ours"),
    ("lookup", errno.ENOENT): ("executable file not found", "check process.args[0] and PATH in process.env"),
    ("lookup", errno.EACCES): ("permission denied: it is not an executable file", "check its mode"),
    ("exec", errno.ENOENT): ("executable file not found", "check process.args[0], PATH and the interpreter that a script names"),
    ("exec", errno.EACCES): ("permission denied", "check the file's mode, and that its mount is not noexec"),
    ("exec", errno.ENOEXEC): ("not a program for this machine, or a script without #!", ""),
    ("bounding", errno.EPERM): ("CAP_SETPCAP is missing", ""),
    ("seccomp", errno.EINVAL): ("this kernel does not take the filter", ""),
    ("chdir", errno.EACCES): ("permission denied", ""),
    ("chdir", errno.EMFILE): ("RLIMIT_NOFILE is less than the init needs on its way", "ask for more: it has one for each mount"),
    ("target", errno.EXDEV): ("a link of the image leads into /proc", "correct the image, or the mount's destination"),
    ("prove_dev", errno.ENODEV): ("something else has this name", "mount a tmpfs on /dev, or remove it from the image"),
    ("prove_proc", errno.EXDEV): ("it is something else, or only a part of a procfs", "bind the host's /proc itself"),
    ("mknod", errno.EEXIST): ("something else has this name", "mount a tmpfs on /dev, or remove it from the image"),
    ("mknod", errno.EROFS): ("it is missing and the filesystem is read-only", "mount a tmpfs on /dev"),
    ("symlink", errno.EROFS): ("it is missing and the filesystem is read-only", "mount a tmpfs on /dev"),
    ("copy_link", errno.EEXIST): ("something else, or another link, has this name", "remove it from the image"),
    ("mask", errno.EXDEV): ("it did not take effect", ""),
    ("readonly", errno.EXDEV): ("it did not take effect", ""),
    ("mount_setattr", errno.EPERM): (
        "the flags are locked: they come from outside of the user namespace",
        "leave them as they are",
    ),
    ("mount_setattr", errno.EINVAL): (
        "it is not a mount point, its ids cannot be mapped, or the kernel does not know one of the flags",
        "",
    ),
    ("pivot_root", errno.EINVAL): ("the host's root is the initial ramfs, which cannot be pivoted", "switch to another root first"),
    ("cgroup_mkdir", errno.EEXIST): ("the cgroup exists and is in use", "choose another linux.cgroupsPath"),
    ("cgroup_mkdir", errno.EACCES): ("this user may not make cgroups there", "see the page on cgroups about delegation"),
    ("cgroup_enable", errno.EBUSY): (
        "a cgroup on the way has processes of its own, which forbids limits below it",
        "choose a linux.cgroupsPath elsewhere, or move its processes into a cgroup below it",
    ),
    ("cgroup_enable", errno.ENOENT): ("a cgroup on the way does not have the controller", "enable it above"),
    ("cgroup_enable", errno.EACCES): (
        "the controller is not delegated to this user",
        "delegate it: Delegate=cpu cpuset io memory pids",
    ),
    ("cgroup_enable", errno.EOPNOTSUPP): ("a cgroup on the way is threaded", "choose a linux.cgroupsPath elsewhere"),
    ("cgroup_write", errno.EBUSY): ("more is in use than the limit allows", "ask for a higher limit"),
    ("cgroup_write_set", errno.EBUSY): ("more is in use than the limit allows", "ask for a higher limit"),
    ("cgroup_write", errno.ENODEV): ("there is no such device", "check the numbers with lsblk"),
    ("cgroup_write", errno.ENOSPC): ("processes are in it, which need a CPU and a memory node", ""),
    ("cgroup_check", errno.EBUSY): ("more is in use than the limit allows", "ask for a higher limit, or without checkBeforeUpdate"),
    ("cgroup_devices", errno.EPERM): ("CAP_BPF is missing", "leave linux.resources.devices out, or run as root"),
    ("clone3", errno.EAGAIN): ("a limit of processes is reached", "raise pids.max of the cgroups above, or RLIMIT_NPROC"),
    ("clone3", errno.EBUSY): (
        "the cgroup hands its controllers on to others, so no process may be in it",
        "choose a cgroup below it",
    ),
    ("cgroup_mkdir", errno.EROFS): ("the cgroup filesystem is read-only", ""),
}


_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "exec": ("execve", "mmap"),
    "handout": ("sendmsg", "read"),
    "reap": ("rt_sigtimedwait",),
}
"""The system calls of the operations that come behind a filter."""


def denied_by_filter(profile: Seccomp, op: str, code: int) -> str:
    """Return which system call of an operation a filter denies with an error, or an empty string when the filter is not the cause.

    Rules that look at arguments are not followed.
    """
    for call in _CALLS.get(op, ()):
        action, number = profile.default_action, profile.default_errno_ret
        for rule in profile.syscalls or ():
            if call in rule.names and not rule.args:
                action, number = rule.action, rule.errno_ret
        answers = {
            "SCMP_ACT_ERRNO": errno.EPERM if number is None else number or errno.EPROTO,
            "SCMP_ACT_TRACE": errno.ENOSYS,  # without a tracer
            "SCMP_ACT_NOTIFY": errno.ENOSYS,  # without an agent
        }
        if code == answers.get(action):
            return f"the seccomp filter denies {call}, which the init process needs: allow it in linux.seccomp"
    return ""


def how_it_died(killed_by: int | None) -> str:
    """Say how an init ended that did not report it; ``killed_by`` is the signal that killed it, where that is known."""
    import signal

    if killed_by is None:
        return "the init process was killed or ended"
    name = signal.Signals(killed_by).name if killed_by in set(signal.Signals) else f"signal {killed_by}"
    return f"the init process was killed by {name}"


def explain_errno(op: str, code: int) -> tuple[str, str]:
    """Cause and remedy; empty where the errno's own text says it all."""
    return _KNOWN.get((op, code), ("", ""))


def make_error(number: int, total: int, op: str, text: str, code: int, words: str, cause: str = "") -> StepError | UnsupportedError:
    """The error of a step; what the kernel does not have at all is no failure of this container.

    ``cause`` is for who knows better than the errno tells.
    """
    if code == errno.ENOSYS and not cause:
        return UnsupportedError(
            f"step {number}/{total} {op} {text}: this kernel does not have it, or a seccomp filter around us hides it; "
            "Linux 5.14 or later is needed"
        )
    cause, remedy = (cause, "") if cause else explain_errno(op, code)
    return StepError(code, step=number, total=total, op=op, text=text, cause=cause, remedy=remedy, detail=words)

"""The causes of failed steps, and their remedies, as far as they are known."""

from __future__ import annotations

import errno
import os
import signal
from itertools import product
from typing import TYPE_CHECKING, Final

from .._native import lib
from ..errors import MISSING_CALL, StepError, UnsupportedError
from ..files import in_user_namespace
from ..plan.rootfs import UPPER_STEPS

if TYPE_CHECKING:
    from ..spec import Seccomp

OLDEST_KERNEL: Final = (5, 14)
"""The oldest kernel on which containers run."""

_DEFAULT_PROGRAM: Final = "/.singularity.d/actions/run"
"""What a container runs if neither its config nor its image says more (`ociruntime.spec.defaults`)."""
_INTERPRETER: Final = "that its interpreter exists, which the first line of a script or the header of an ELF file names"

_DELEGATE: Final = "let root delegate it to the user (docs/cgroups.md)"
_MAP: Final = "use one that is mapped, or map it in linux.{0}Mappings to an id that root has given you in /etc/sub{0}"
_BIND: Final = "let root mount it on the host, and bind it"
_NOT_ALLOWED: Final = "the runtime does not have CAP_SYS_ADMIN, or a seccomp filter or security module around it denies the call"
_NOT_IN_USER_NAMESPACE: Final = "the kernel does not allow this filesystem in a user namespace"

_UPPER: Final = "choose a directory on a local filesystem such as ext4 or xfs by overlay= or TMPDIR, or overlay='tmpfs'"

_KNOWN: Final[dict[tuple[str, int], tuple[str, str]]] = {
    ("netdev_move", errno.ENODEV): ("no such network device", "check the names in linux.netDevices with ip link"),
    ("netdev_move", errno.EEXIST): (
        "the container already has a network device of this name",
        "use another name, or a template such as eth%d",
    ),
    ("netdev_move", errno.EINVAL): ("this network device cannot be moved to another namespace", ""),
    ("netdev_move", errno.EPERM): ("needs CAP_NET_ADMIN on the host", "run as root"),
    ("rdt_make", errno.ENOSPC): ("the processor has no more classes of service or monitors", "delete a container that has one"),
    ("rdt_class", errno.ENOENT): ("the class of service does not exist", "create it, or add schemata to create it with"),
    ("rdt_class", errno.EEXIST): ("the class of service exists with other schemata", "use another closID"),
    ("die_with", errno.ESRCH): ("the parent has ended already", ""),
    ("capset", errno.EPERM): ("the runtime does not have these capabilities", "remove them from process.capabilities"),
    ("scheduler", errno.EPERM): (
        "not allowed for this user or this cgroup",
        "if SCHED_DEADLINE: process scheduler can't be used together with AllowedCPUs (cpu.cpus); on v1 set cpu.realtimeRuntime",
    ),
    ("scheduler", errno.EINVAL): ("the kernel's limits do not allow these values", "see /proc/sys/kernel/sched_*"),
    ("scheduler", errno.EBUSY): ("not enough CPU time is left", "use a smaller runtime, or a longer period"),
    ("scheduler", errno.EOPNOTSUPP): ("this kernel does not support utilisation clamps", "remove the flags"),
    ("ioprio", errno.EPERM): ("IOPRIO_CLASS_RT needs CAP_SYS_NICE or CAP_SYS_ADMIN on the host", "use IOPRIO_CLASS_BE"),
    ("label", errno.ENOENT): ("no profile of this name is loaded", "load it with apparmor_parser, or correct the name"),
    ("label", errno.EINVAL): ("the policy does not know this label", "correct it, or load a policy that has it"),
    ("label", errno.EACCES): ("the policy does not allow this label", ""),
    ("ambient", errno.EPERM): ("an ambient capability must be permitted and inheritable", ""),
    ("mempolicy", errno.EINVAL): ("the nodes do not exist, or the cgroup does not have them", "check memoryPolicy.nodes"),
    ("proc_write", errno.EACCES): ("only a privileged user may lower it", "use a value that is not below the caller's"),
    ("rdt_make", errno.EACCES): ("only root may use resctrl", "remove linux.intelRdt, or run as root"),
    ("rdt_class", errno.EACCES): ("only root may use resctrl", "remove linux.intelRdt, or run as root"),
    ("rdt_schemata", errno.EACCES): ("only root may use resctrl", "run as root"),
    ("clone3", errno.EPERM): ("this user may not create these namespaces", "run as root, or add a user namespace"),
    ("clone3", errno.ENOSPC): ("the limit of namespaces is reached", "raise the limits in /proc/sys/user"),
    ("fork", errno.EPERM): (
        "this user may not create these namespaces",
        "run as root, or allow user namespaces for unprivileged users",
    ),
    ("fork", errno.ENOSPC): ("the limit of namespaces is reached", "raise the limits in /proc/sys/user"),
    ("fork_last", errno.EAGAIN): ("a limit of processes is reached", "raise pids.max of the cgroup, or RLIMIT_NPROC"),
    ("fork_last", errno.ENOMEM): ("the init process of the pid namespace has ended", ""),
    ("fork", errno.ENOMEM): ("the init process of the pid namespace has ended", ""),
    ("join", errno.EPERM): (
        "this user has no privileges over the namespace",
        "join the user namespace that owns it too, or run as root",
    ),
    ("join", errno.EXDEV): ("the namespace that was joined is not the one that was opened", ""),
    ("idmap", errno.EPERM): (
        "the kernel does not allow this map",
        "use ids that are mapped in the runtime's user namespace, without overlaps",
    ),
    ("idmap", errno.EINVAL): ("the map is empty, too long, or has overlaps", ""),
    ("setgroups", errno.EPERM): ("the user namespace denies setgroups", "remove additionalGids"),
    ("setgroups", errno.EINVAL): ("a group is not mapped in the user namespace", "add it to linux.gidMappings"),
    **dict.fromkeys(
        product(("setresuid", "own_stdio"), (errno.EINVAL,)),
        ("the user is not mapped in the user namespace", "add it to linux.uidMappings"),
    ),
    ("setresgid", errno.EINVAL): ("the group is not mapped in the user namespace", "add it to linux.gidMappings"),
    ("open_tree", errno.ENOENT): ("no such file or directory on the host", "create it, or correct the path in the config"),
    ("open_tree", errno.EINVAL): ("it has mounts below it, which a user namespace cannot omit", "use rbind"),
    ("open", errno.ENOENT): ("no such file or directory", ""),
    **dict.fromkeys(
        product(("open",), (errno.ENOTCONN, errno.ECONNABORTED)),
        ("the program that serves this filesystem by FUSE has ended", "try again"),
    ),
    ("fsconfig", errno.EPERM): (
        "denied by the container's device rules, or by the kernel",
        "allow the device in linux.resources.devices, or mount it on the host, and bind it",
    ),
    ("fsconfig", errno.ELOOP): ("layers overlap, or symbolic links are a loop", "use directories that are not in each other"),
    **dict.fromkeys(product(("fsopen", "fsmount", "mount_setattr"), (errno.EPERM,)), (_NOT_ALLOWED, "")),
    ("target", errno.ENOTDIR): ("a component of the path is not a directory, or a file is in the place of a directory", ""),
    ("target", errno.EISDIR): ("a file would be mounted on a directory", ""),
    ("target", errno.EROFS): (
        "it does not exist, and its filesystem is read-only",
        "create it in the image, or in the source of the mount that it is in",
    ),
    ("target", errno.ELOOP): ("its symbolic links are a loop, or lead into /proc", ""),
    ("fspick", errno.EINVAL): ("it is not a mount point", ""),
    ("fsopen", errno.ENODEV): ("this kernel does not support the filesystem", ""),
    ("console", errno.ELOOP): ("/dev/console is a symbolic link in the image", "mount a tmpfs on /dev"),
    ("console", errno.EEXIST): ("/dev/console is not a regular file in the image", "mount a tmpfs on /dev"),
    ("console", errno.ENOENT): ("no devpts is mounted on /dev/pts", "add one to the mounts, with newinstance and ptmxmode=0666"),
    ("console", errno.EXDEV): ("/dev/pts is not a devpts", "mount one there, with newinstance and ptmxmode=0666"),
    ("rlimit", errno.EPERM): ("raising a hard limit needs CAP_SYS_RESOURCE", "use a limit that is not above the runtime's"),
    ("lookup", errno.ENOENT): ("executable file not found in $PATH", "check process.args[0] and PATH in process.env"),
    ("lookup", errno.EACCES): ("permission denied: not an executable file", "check its mode"),
    ("lookup", errno.ENAMETOOLONG): ("file name too long", "check process.args[0]"),
    ("exec", errno.ENOENT): (
        "executable file not found in $PATH",
        f"check process.args[0], PATH in process.env, and {_INTERPRETER}",
    ),
    ("exec", errno.EACCES): (
        "permission denied",
        "check the modes of the file, of its interpreter and of their directories, and that no mount of them is noexec",
    ),
    ("exec", errno.ENOEXEC): ("exec format error: not a program for this machine, or a script without #!", ""),
    ("exec", errno.E2BIG): ("the arguments and the environment are too long", "shorten process.args or process.env"),
    ("exec", errno.ELOOP): (
        "too many symbolic links, or interpreters that are scripts",
        "check the file, and the first line of a script",
    ),
    **dict.fromkeys(
        product(("lookup", "exec", "chdir"), (errno.ENOTCONN, errno.ESTALE)),
        ("the program that serves this filesystem by FUSE has ended, or a server removed the file", "create the container again"),
    ),
    ("exec", errno.ETXTBSY): ("text file busy: the file is open for writing", "run it when no process writes to it"),
    ("bounding", errno.EPERM): ("needs CAP_SETPCAP", ""),
    ("seccomp", errno.EINVAL): ("this kernel does not accept the filter", ""),
    ("chdir", errno.EACCES): ("permission denied", ""),
    **dict.fromkeys(
        ((op, errno.EMFILE) for op in ("open_tree", "fsopen", "fsmount", "target")),
        (
            "more files would be open than RLIMIT_NOFILE allows",
            "use fewer mounts, or raise the limit as 'ulimit -n' does: the init process needs a descriptor for each mount",
        ),
    ),
    ("target", errno.EXDEV): ("a symbolic link in the image leads into /proc", "correct the image, or the mount's destination"),
    ("prove_dev", errno.ENODEV): ("another file has this name", "mount a tmpfs on /dev, or remove the file from the image"),
    ("prove_proc", errno.EXDEV): ("it is another filesystem, or only a part of a procfs", "bind the host's /proc itself"),
    ("mknod", errno.EEXIST): ("another file has this name", "mount a tmpfs on /dev, or remove the file from the image"),
    ("mknod", errno.EROFS): ("it does not exist, and the filesystem is read-only", "mount a tmpfs on /dev"),
    ("symlink", errno.EROFS): ("it does not exist, and the filesystem is read-only", "mount a tmpfs on /dev"),
    ("copy_link", errno.EEXIST): ("another file, or another link, has this name", "remove it from the image"),
    ("mask", errno.EBUSY): ("it leads to the container's root, which cannot be hidden", "name the paths below it"),
    ("mask", errno.ENOENT): ("the kernel allows no mount there", "name the directory that it is in"),
    ("mask", errno.ELOOP): ("its symbolic links are a loop, or lead through the links of /proc", "name the path without links"),
    ("mask", errno.EXDEV): ("the mount had no effect", ""),
    ("readonly", errno.ENOENT): ("the kernel allows no mount there", "name the directory that it is in"),
    ("readonly", errno.ELOOP): ("its symbolic links are a loop, or lead through the links of /proc", "name the path without links"),
    ("readonly", errno.EXDEV): ("the mount had no effect", ""),
    ("mount_setattr", errno.EBUSY): ("a process has a file open for writing there", ""),
    ("mount_setattr", errno.EINVAL): (
        "it is not a mount point, its ids cannot be mapped, or the kernel does not support an attribute",
        "",
    ),
    ("pivot_root", errno.EINVAL): (
        "the host's root is the initial ramfs, which cannot be pivoted",
        "pass pivot_root=False (--no-pivot), or switch the host to another root",
    ),
    ("cgroup_mkdir", errno.EEXIST): ("the container's cgroup is not empty", "use another linux.cgroupsPath"),
    ("cgroup_mkdir", errno.EACCES): ("this user may not create cgroups there", _DELEGATE),
    ("cgroup_enable", errno.EBUSY): (
        "a parent cgroup has processes of its own, which forbids limits below it",
        "use another linux.cgroupsPath, or move the processes into a cgroup below it",
    ),
    ("cgroup_enable", errno.ENOENT): ("a parent cgroup does not have the controller", "enable it in the parents"),
    ("cgroup_enable", errno.EACCES): ("the controller is not delegated to this user", _DELEGATE),
    ("cgroup_enable", errno.EOPNOTSUPP): ("a parent cgroup is threaded", "use another linux.cgroupsPath"),
    ("cgroup_write", errno.EBUSY): ("the current usage is above the limit", "use a higher limit"),
    ("cgroup_write_set", errno.EBUSY): ("the current usage is above the limit", "use a higher limit"),
    ("cgroup_write", errno.ENODEV): ("no such device", "check its name, or the numbers of a disk with lsblk"),
    ("cgroup_write_first", errno.ENODEV): ("no such device", "check its name, or the numbers of a disk with lsblk"),
    ("cgroup_write_first", errno.EOPNOTSUPP): (
        "the I/O scheduler of the device has no weights",
        "select bfq in /sys/block/DEVICE/queue/scheduler",
    ),
    ("cgroup_write", errno.ERANGE): (
        "the value is out of range on this host",
        "for a cpuset see /sys/devices/system/cpu/online and /sys/devices/system/node/online",
    ),
    ("cgroup_write", errno.ENOSPC): ("it has processes, which need a CPU and a memory node", ""),
    ("cgroup_check", errno.EBUSY): ("the current usage is above the limit", "use a higher limit, or remove checkBeforeUpdate"),
    ("cgroup_devices", errno.EPERM): ("needs CAP_BPF", "remove linux.resources.devices, or run as root"),
    ("clone3", errno.EAGAIN): ("a limit of processes is reached", "raise pids.max of the parent cgroups, or RLIMIT_NPROC"),
    ("clone3", errno.EBUSY): (
        "the cgroup enables controllers for its children, so it cannot have processes",
        "use a cgroup below it",
    ),
    ("cgroup_mkdir", errno.EROFS): ("the cgroup filesystem is read-only", ""),
}


_UNPRIVILEGED: Final[dict[tuple[str, int], tuple[str, str]]] = {
    ("scheduler", errno.EPERM): (
        "needs CAP_SYS_NICE on the host",
        "use a nice value that is not below the caller's and no real-time policy, or run as root",
    ),
    **dict.fromkeys(
        product(("setresuid", "own_stdio"), (errno.EINVAL,)),
        ("the user is not mapped in the user namespace", _MAP.format("uid")),
    ),
    ("setresgid", errno.EINVAL): ("the group is not mapped in the user namespace", _MAP.format("gid")),
    ("setgroups", errno.EINVAL): ("a group is not mapped in the user namespace", _MAP.format("gid")),
    ("fsopen", errno.EPERM): (_NOT_IN_USER_NAMESPACE, _BIND),
    ("fsconfig", errno.EPERM): (_NOT_IN_USER_NAMESPACE, _BIND),
    ("cgroup_write_first", errno.EOPNOTSUPP): (
        "the I/O scheduler of the device has no weights",
        "let root select bfq in /sys/block/DEVICE/queue/scheduler",
    ),
    ("fork", errno.ENOSPC): ("the limit of namespaces is reached", "let root raise the limits in /proc/sys/user"),
}
"""What differs for a user without privileges."""
_IN_USER_NAMESPACE: Final[dict[tuple[str, int], tuple[str, str]]] = {
    **dict.fromkeys(product(("fsopen", "fsconfig"), (errno.EPERM,)), (_NOT_IN_USER_NAMESPACE, "mount it on the host, and bind it")),
    ("fsmount", errno.EPERM): (
        "in a user namespace it can be mounted only as on the host: with its access times, and nothing mounted over parts of it",
        "remove options of access times, or bind the host's with rbind",
    ),
    ("mount_setattr", errno.EPERM): (
        "the attributes are locked: in a user namespace a mount of the host keeps ro, nosuid, nodev, noexec and its access times",
        "remove the options that change them",
    ),
}
"""What differs in a user namespace."""
_NO_USER_NAMESPACES: Final = {
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Settings, some of them of distributions, and the values that keep users from making user namespaces."""
_IN_FILESYSTEM: Final = {
    "target": "add the mount point to the image",
    "mknod": "mount a tmpfs on /dev",
    "symlink": "mount a tmpfs on /dev",
    "copy_link": "add the link to the image",
    "chdir": "add the working directory to the image",
    "console": "mount a tmpfs on /dev",
    **dict.fromkeys(("open", "write", "copyup", "mode_like", "setxattr", "mask", "readonly"), "use another filesystem"),
}
"""The operations that a filesystem carries out, and what helps where it does not."""


_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "exec": ("execve", "mmap"),
    "handout": ("sendmsg", "read"),
    "reap": ("rt_sigtimedwait",),
}
"""The system calls of the operations after the filter."""


def denied_by_filter(profile: Seccomp, op: str, code: int) -> str:
    """Return which system call of an operation the filter denies with an error, or an empty string if it is not the cause.

    Rules with conditions are ignored.
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
    """Return how an init ended without a report; ``killed_by`` is the signal that killed it, if it is known."""
    if killed_by is None:
        return "the init process was killed or ended"
    name = signal.Signals(killed_by).name if killed_by in set(signal.Signals) else f"signal {killed_by}"
    return f"the init process was killed by {name}"


def explain_errno(op: str, code: int, *, user_namespace: bool = False) -> tuple[str, str]:
    """Return cause and remedy; empty strings if the text of the errno is enough."""
    known = _UNPRIVILEGED.get((op, code)) if os.geteuid() else None
    if known is None and (user_namespace or ((op, code) in _IN_USER_NAMESPACE and in_user_namespace())):
        known = _IN_USER_NAMESPACE.get((op, code))
    return known or _KNOWN.get((op, code), ("", ""))


def explain_clone(code: int, user_namespace: bool) -> str:
    """Return why a user may not make namespaces, with a user namespace among them or without, by the errno of clone3(2)."""
    blocked = user_namespace_setting()
    if user_namespace and blocked:
        return f"user namespaces are not allowed: {blocked[0]} is {blocked[1]}; run as root, or let root change it"
    if code == errno.ENOSPC:
        return "the limit of namespaces is reached; let root raise the limits in /proc/sys/user"
    if not user_namespace:
        return f"this user may not create these namespaces; run as root{'' if blocked else ', or add a user namespace'}"
    return "this user may not create user namespaces here, as in a chroot or under a filter; run as root"


def user_namespace_setting() -> tuple[str, str] | None:
    """Return the sysctl that keeps users from making user namespaces, and its value."""
    for path, value in _NO_USER_NAMESPACES.items():
        try:
            with open(path, encoding="ascii") as setting:
                if setting.read().strip() == value:
                    return path.removeprefix("/proc/sys/").replace("/", "."), value
        except FileNotFoundError:
            continue
    return None


def make_error(
    number: int,
    total: int,
    op: str,
    text: str,
    code: int,
    words: str,
    cause: str = "",
    *,
    location: str = "",
    looked_up: bool = False,
    user_namespace: bool = False,
) -> StepError | UnsupportedError:
    """Return the error of a step, or UnsupportedError if the kernel does not have the system call.

    Args:
        words: the kernel's own message, or an empty string.
        cause: a cause that is known better than by the errno.
        location: the JSON path of what the step carries out, or an empty string.
        looked_up: whether a step before this one has found the program.
        user_namespace: whether the container has a user namespace.
    """
    remedy = ""
    if code == errno.ENOSYS and not cause and op in _IN_FILESYSTEM and lib.oci_has_openat2():
        cause, remedy = "its filesystem does not support this, as some FUSE filesystems do not", _IN_FILESYSTEM[op]
    if code == errno.ENOSYS and not cause:
        place = f"{location}: " if location else ""
        return UnsupportedError(
            f"{place}{text}: {MISSING_CALL}; "
            f"Linux {'.'.join(map(str, OLDEST_KERNEL))} or later is needed (step {number}/{total} {op}, ENOSYS)"
        )
    if code == errno.EINVAL and not cause and text.startswith(UPPER_STEPS):
        cause, remedy = "its filesystem cannot have an upper layer", _UPPER
        if user_namespace and text.endswith(" over /"):  # the one lower layer
            cause = "other filesystems are mounted in it, and a user cannot mount it without them"
            remedy = "use Sandbox.host, which shows the programs of the host, or run as root"
    if not cause:
        cause, remedy = explain_errno(op, code, user_namespace=user_namespace)
    problem = ""
    if op in ("lookup", "exec"):
        if code == errno.ENOENT and looked_up:
            cause, remedy = "no such file or directory", f"check {_INTERPRETER}"
        elif code == errno.ENOENT and "/" in (text if op == "lookup" else text.partition(" ")[0]):
            cause = "no such file or directory"
        if code == errno.ENOENT and text.partition(" ")[0].strip("'") == _DEFAULT_PROGRAM:
            remedy = "the image has nothing to run by default, or no /bin/sh, which its scripts need: name a program of the image"
        # "exec PATH: no such file or directory" is what clients of runc look for
        verb = "exec" if op == "exec" and cause == "no such file or directory" else "run"
        problem = f"cannot {verb} {text}: {cause or os.strerror(code)}"
    return StepError(
        code,
        step=number,
        total=total,
        op=op,
        text=text,
        cause=cause,
        remedy=remedy,
        detail="" if words == os.strerror(code) else words,
        problem=problem,
        location=location,
    )

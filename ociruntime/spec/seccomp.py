"""``linux.seccomp`` of config.json, and the default profile (config-linux.md#seccomp)."""

import errno
import functools
import os
import sys
from typing import TYPE_CHECKING, Final

import attrs

from .base import OpenEnum, Uint32, Uint64
from .model import Model

if TYPE_CHECKING:
    from . import places as places


class SeccompAction(OpenEnum):
    """Actions of a filter on a system call (config-linux.md#seccomp)."""

    KILL = "SCMP_ACT_KILL"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    TRAP = "SCMP_ACT_TRAP"
    ERRNO = "SCMP_ACT_ERRNO"
    TRACE = "SCMP_ACT_TRACE"
    ALLOW = "SCMP_ACT_ALLOW"
    LOG = "SCMP_ACT_LOG"
    NOTIFY = "SCMP_ACT_NOTIFY"


class SeccompArch(OpenEnum):
    """Architectures, by their names in libseccomp (config-linux.md#seccomp)."""

    X86 = "SCMP_ARCH_X86"
    X86_64 = "SCMP_ARCH_X86_64"
    X32 = "SCMP_ARCH_X32"
    ARM = "SCMP_ARCH_ARM"
    AARCH64 = "SCMP_ARCH_AARCH64"
    LOONGARCH64 = "SCMP_ARCH_LOONGARCH64"
    M68K = "SCMP_ARCH_M68K"
    MIPS = "SCMP_ARCH_MIPS"
    MIPS64 = "SCMP_ARCH_MIPS64"
    MIPS64N32 = "SCMP_ARCH_MIPS64N32"
    MIPSEL = "SCMP_ARCH_MIPSEL"
    MIPSEL64 = "SCMP_ARCH_MIPSEL64"
    MIPSEL64N32 = "SCMP_ARCH_MIPSEL64N32"
    PPC = "SCMP_ARCH_PPC"
    PPC64 = "SCMP_ARCH_PPC64"
    PPC64LE = "SCMP_ARCH_PPC64LE"
    S390 = "SCMP_ARCH_S390"
    S390X = "SCMP_ARCH_S390X"
    SH = "SCMP_ARCH_SH"
    SHEB = "SCMP_ARCH_SHEB"
    PARISC = "SCMP_ARCH_PARISC"
    PARISC64 = "SCMP_ARCH_PARISC64"
    RISCV64 = "SCMP_ARCH_RISCV64"


class SeccompFlag(OpenEnum):
    """Flags of seccomp(2) (config-linux.md#seccomp)."""

    TSYNC = "SECCOMP_FILTER_FLAG_TSYNC"
    LOG = "SECCOMP_FILTER_FLAG_LOG"
    SPEC_ALLOW = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
    WAIT_KILLABLE_RECV = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


class SeccompOperator(OpenEnum):
    """Comparisons of an argument (config-linux.md#seccomp)."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SyscallArg(Model["places.SyscallArgAt"]):
    """A condition on one argument of a system call (config-linux.md#seccomp)."""

    index: Uint32
    """Index of the argument, from 0 to 5."""
    value: Uint64
    """Value to compare with; the mask for ``SCMP_CMP_MASKED_EQ``."""
    value_two: Uint64 | None = None
    """Value of the masked argument, for ``SCMP_CMP_MASKED_EQ``. Default: 0."""
    op: SeccompOperator
    """Comparison."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Syscall(Model["places.SyscallAt"]):
    """A rule: the action on some system calls (config-linux.md#seccomp)."""

    names: tuple[str, ...]
    """Names of the system calls, at least one."""
    action: SeccompAction
    """Action on the system calls."""
    errno_ret: Uint32 | None = None
    """Error number of ``SCMP_ACT_ERRNO`` and ``SCMP_ACT_TRACE``. Default: EPERM."""
    args: tuple[SyscallArg, ...] | None = None
    """Conditions on the arguments, all of which must hold. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Seccomp(Model["places.SeccompAt"]):
    """A system call filter (config-linux.md#seccomp)."""

    default_action: SeccompAction
    """Action on a system call without a matching rule."""
    default_errno_ret: Uint32 | None = None
    """Error number of the default action, if that is ``SCMP_ACT_ERRNO`` or ``SCMP_ACT_TRACE``. Default: EPERM."""
    architectures: tuple[SeccompArch, ...] | None = None
    """Architectures in addition to the native one. Default: none."""
    flags: tuple[SeccompFlag, ...] | None = None
    """Flags of seccomp(2). Default: the runtime's choice."""
    listener_path: str | None = None
    """Path of the Unix socket of the agent that handles ``SCMP_ACT_NOTIFY``. Default: none."""
    listener_metadata: str | None = None
    """Opaque data for the agent. Default: none."""
    syscalls: tuple[Syscall, ...] | None = None
    """Rules of the filter. Default: none."""


# ---- the default profile, for a container that has no profile of its own ----
#
# It is an allow list; a system call that is not listed fails with EPERM. docs/seccomp.md says what is refused and why. The
# criteria are:
#
# * A call that acts only on the caller, and on what the caller can reach already, is allowed.
# * A call that requires a capability is allowed with this capability. So the profile never makes a capability useless, and kernel
#   code that the container cannot use is not reachable.
# * A call with a large attack surface that containers rarely use (io_uring, userfaultfd, keyrings, AF_ALG) is refused.
#
# A condition on an argument that the kernel truncates to 32 bits compares these 32 bits only (SCMP_CMP_MASKED_EQ). A comparison
# of all 64 bits could be evaded by a value that differs only in the half that the kernel ignores.

DEFAULT_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""Capabilities of a container by default, for which `default_profile` is made."""

_FILES: Final = """
    access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
    fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32
    lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat
    mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr
    setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2
    arm_sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice
    write writev fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch listmount statmount
"""
_MEMORY: Final = """
    brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
    process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node
"""
_PROCESSES: Final = """
    capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
    getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage
    getsid gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
    lsm_get_self_attr lsm_list_modules nice pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev
    ptrace restart_syscall rseq rseq_slice_yield sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
    sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
    setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
    setrlimit setsid setuid setuid32 set_tid_address ugetrlimit uname vfork wait4 waitid waitpid
"""
_SIGNALS: Final = """
    pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn
    sigsuspend tgkill tkill
"""
_TIME: Final = """
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times
"""
_WAITING: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 futex
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit _newselect pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select
    set_robust_list
"""
_COMMUNICATION: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send
    sendmmsg sendmsg sendto setsockopt shutdown ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
    mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64
    shmat shmctl shmdt shmget
"""
_SYSTEM: Final = "getrandom sysinfo"
_PROCESSORS: Final = """
    arch_prctl atomic_barrier atomic_cmpxchg_32 breakpoint cachectl cacheflush getpagesize get_thread_area get_tls modify_ldt
    riscv_flush_icache riscv_hwprobe s390_guarded_storage s390_runtime_instr set_thread_area set_tls swapcontext switch_endian
    sysmips uprobe uretprobe
"""
"""Calls of single architectures that act on the caller's own registers, caches and descriptor tables."""
_ALWAYS: Final = f"{_FILES} {_MEMORY} {_PROCESSES} {_SIGNALS} {_TIME} {_WAITING} {_COMMUNICATION} {_SYSTEM} {_PROCESSORS}"

_WITH_CAPABILITY: Final = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_MAC_ADMIN": "lsm_set_self_attr",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listns lookup_dcookie lsm_set_self_attr mount mount_setattr
        move_mount open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog
        umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "migrate_pages move_pages",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd",
    "CAP_SYS_RAWIO": "ioperm iopl s390_pci_mmio_read s390_pci_mmio_write",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

_LOW_32: Final = 0xFFFFFFFF
_ALL_64: Final = 0xFFFFFFFFFFFFFFFF
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME's bit is part of the exit signal in clone(2).
_CLONE_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_UNSHARE_HARMLESS: Final = 0x00000200 | 0x00000400 | 0x00040000  # CLONE_FS, CLONE_FILES, CLONE_SYSVSEM
# PER_LINUX, PER_LINUX32, both with UNAME26, and the query of the current value.
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# Every address family up to 45 (AF_MCTP) except AF_ALG (38) and AF_VSOCK (40), as (mask, value) of aligned blocks.
_FAMILIES: Final = (
    (0xFFFFFFE0, 0),  # 0-31
    (0xFFFFFFFC, 32),  # 32-35
    (0xFFFFFFFE, 36),  # 36, 37
    (_LOW_32, 39),
    (_LOW_32, 41),
    (0xFFFFFFFE, 42),  # 42, 43
    (0xFFFFFFFE, 44),  # 44, 45
)

_LITTLE: Final = sys.byteorder == "little"
_BY_MACHINE: Final = {
    "x86_64": "X86_64 X86 X32",
    "aarch64": "AARCH64 ARM",
    "aarch64_be": "AARCH64 ARM",
    "loongarch64": "LOONGARCH64",
    "m68k": "M68K",
    "mips": "MIPSEL" if _LITTLE else "MIPS",
    "mips64": "MIPSEL64 MIPSEL MIPSEL64N32" if _LITTLE else "MIPS64 MIPS MIPS64N32",
    "parisc": "PARISC",
    "parisc64": "PARISC64 PARISC",
    "ppc": "PPC",
    "ppc64": "PPC64 PPC",
    "ppc64le": "PPC64LE",
    "riscv64": "RISCV64",
    "s390": "S390",
    "s390x": "S390X S390",
}
_S390: Final = frozenset({SeccompArch.S390X, SeccompArch.S390})
_SOCKETCALL_MACHINES: Final = _S390 | {SeccompArch.X86, SeccompArch.M68K, SeccompArch.SH, SeccompArch.SHEB}


def architectures_of(machine: str) -> tuple[SeccompArch, ...]:
    """Return the architectures that a kernel on ``machine``, a name of uname(2), can run, the native one first.

    The result is empty for an unknown machine.
    """
    names = _BY_MACHINE.get(machine, "")
    if not names:
        if machine[:1] == "i" and machine[2:] == "86":
            names = "X86"
        elif machine.startswith("arm"):
            names = "ARM"
        elif machine.startswith("sh"):
            names = "SH" if _LITTLE else "SHEB"
    return tuple(SeccompArch(f"SCMP_ARCH_{name}") for name in names.split())


def default_profile(capabilities: frozenset[str] | None = None, arch: str | None = None) -> Seccomp:
    """Return the default profile. Equal arguments give the same object.

    Args:
        capabilities: the bounding set of the container. Default: `DEFAULT_CAPABILITIES`.
        arch: a machine name of uname(2). Default: this machine.
    """
    return _profile(frozenset(DEFAULT_CAPABILITIES) if capabilities is None else capabilities, arch or os.uname().machine)


@functools.lru_cache(maxsize=16)
def _profile(capabilities: frozenset[str], machine: str) -> Seccomp:
    architectures = architectures_of(machine)
    native = architectures[0] if architectures else None
    privileged = frozenset(" ".join(names for name, names in _WITH_CAPABILITY.items() if name in capabilities).split())
    calls = [_allow(*sorted(_ALWAYS.split()))]
    calls += [_allow("socket", "socketpair", mask=mask, value=value) for mask, value in _FAMILIES]
    calls += [_allow("personality", mask=_LOW_32, value=value) for value in _PERSONALITIES]
    if privileged:
        calls.append(_allow(*sorted(privileged)))
    if native in _SOCKETCALL_MACHINES:
        calls.append(_allow("socketcall"))  # the C libraries of these architectures use it for every socket operation
    if "clone" not in privileged:
        # On s390 the flags are the second argument.
        calls.append(_allow("clone", index=1 if native in _S390 else 0, mask=_CLONE_NAMESPACES, value=0))
        calls.append(_allow("unshare", mask=_ALL_64 & ~_UNSHARE_HARMLESS, value=0))
        # A filter cannot read the flags of clone3, which are in memory. ENOSYS makes the C library fall back to clone.
        calls.append(Syscall(names=("clone3",), action=SeccompAction.ERRNO, errno_ret=errno.ENOSYS))
    return Seccomp(
        default_action=SeccompAction.ERRNO,
        default_errno_ret=errno.EPERM,
        architectures=architectures,
        syscalls=tuple(calls),
    )


def _allow(*names: str, index: int = 0, mask: int = 0, value: int | None = None) -> Syscall:
    """Return a rule that allows ``names``; with ``value`` only if the argument, masked with ``mask``, equals it."""
    args = None
    if value is not None:
        args = (SyscallArg(index=index, value=mask, value_two=value, op=SeccompOperator.MASKED_EQ),)
    return Syscall(names=names, action=SeccompAction.ALLOW, args=args)

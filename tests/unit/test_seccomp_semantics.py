"""The compiled programs follow the profile, as an interpreter of classic BPF shows, without the kernel."""

from __future__ import annotations

import errno
import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ociruntime import seccomp
from ociruntime.seccomp import NEWER, compile_profile
from ociruntime.spec.seccomp import (
    Seccomp,
    SeccompAction,
    SeccompArch,
    SeccompOperator,
    Syscall,
    SyscallArg,
    architectures_of,
    default_profile,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

pyseccomp = pytest.importorskip("pyseccomp", reason="libseccomp is not installed")

ALLOW, LOG, TRACE, NOTIFY, ERRNO, TRAP = 0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x7FC00000, 0x00050000, 0x00030000
KILL_PROCESS, KILL_THREAD = 0x80000000, 0
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
X86_64, X86, X32_TOKEN, AARCH64, ARM, S390X = 0xC000003E, 0x40000003, 0x4000003E, 0xC00000B7, 0x40000028, 0x80000016
X32 = 0x40000000
LOW = 0xFFFFFFFF
NARROW = frozenset({X86, ARM})
"""ABIs whose arguments have 32 bits; on x32 the kernel takes whole registers."""


def run(program: bytes, arch: int, number: int, args: Sequence[int] = (), order: str = "<") -> int:
    """What the kernel's interpreter returns for one system call; any instruction that seccomp does not take fails the test."""
    data = struct.pack(f"{order}iIQ6Q", number - (1 << 32) if number >> 31 else number, arch, 0, *args, *([0] * (6 - len(args))))
    code = list(struct.iter_unpack(f"{order}HBBI", program))
    accumulator = 0
    at = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:  # ld [k]
            assert k % 4 == 0
            (accumulator,) = struct.unpack_from(f"{order}I", data, k)
        elif op == 0x06:  # ret k
            return int(k)
        elif op == 0x05:  # ja
            at += k
        elif op == 0x54:  # and
            accumulator &= k
        elif op in (0x15, 0x25, 0x35, 0x45):
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += jt if holds else jf
        else:
            raise AssertionError(f"instruction {op:#x} at {at - 1}")


class Call(NamedTuple):
    abi: str
    number: int
    args: tuple[int, ...] = ()


TOKENS = {
    "SCMP_ARCH_X86_64": X86_64,
    "SCMP_ARCH_X86": X86,
    "SCMP_ARCH_X32": X32_TOKEN,
    "SCMP_ARCH_AARCH64": AARCH64,
    "SCMP_ARCH_ARM": ARM,
    "SCMP_ARCH_S390X": S390X,
}


def number_of(abi: str, name: str) -> int:
    """Negative where the ABI has no such call. Newer calls are looked up in the module's table: libseccomp may not know them."""
    number = pyseccomp.resolve_syscall(TOKENS[abi], name)
    if number == -1 and name in NEWER:
        return NEWER[name] | (X32 if abi == "SCMP_ARCH_X32" else 0)
    if number == -1 and name in ("uretprobe", "uprobe"):
        return {"uretprobe": 335, "uprobe": 336}[name] if abi == "SCMP_ARCH_X86_64" else -1
    return int(number)


@functools.cache
def names_of(abi: str, number: int) -> frozenset[str]:
    """Names of the call; on x86 there is more than one way to some, and libseccomp gives no number for their names."""
    known = {name for name in (*NEWER, "uretprobe", "uprobe") if number_of(abi, name) == number}
    try:
        known.add(pyseccomp.resolve_syscall(TOKENS[abi], number).decode())
    except ValueError:
        pass
    return frozenset(known)


def action_of(action: str, errno_ret: int | None) -> int:
    base = {
        "KILL": KILL_THREAD,
        "KILL_THREAD": KILL_THREAD,
        "KILL_PROCESS": KILL_PROCESS,
        "TRAP": TRAP,
        "ERRNO": ERRNO,
        "TRACE": TRACE,
        "ALLOW": ALLOW,
        "LOG": LOG,
        "NOTIFY": NOTIFY,
    }[action.removeprefix("SCMP_ACT_")]
    return base | (errno.EPERM if errno_ret is None else errno_ret) if base in (ERRNO, TRACE) else base


def holds(arg: SyscallArg, value: int, narrow: bool) -> bool:
    mask = LOW if narrow else (1 << 64) - 1
    value, expected, second = value & mask, arg.value & mask, (arg.value_two or 0) & mask
    return {
        "SCMP_CMP_NE": value != expected,
        "SCMP_CMP_LT": value < expected,
        "SCMP_CMP_LE": value <= expected,
        "SCMP_CMP_EQ": value == expected,
        "SCMP_CMP_GE": value >= expected,
        "SCMP_CMP_GT": value > expected,
        "SCMP_CMP_MASKED_EQ": value & expected == second & expected,
    }[arg.op]


def matches(rule: Syscall, args: tuple[int, ...], narrow: bool) -> bool:
    conditions = rule.args or ()
    found = [holds(arg, args[arg.index], narrow) for arg in conditions]
    twice = len({arg.index for arg in conditions}) < len(conditions)
    return any(found) if twice else all(found)


def meaning(profile: Seccomp, call: Call) -> int:
    """A rule without conditions comes first, then the first that matches, then ENOSYS for what is newer, then the default."""
    default = action_of(profile.default_action, profile.default_errno_ret)
    refusing = default not in (ALLOW, LOG) and default & 0xFFFF0000 != TRACE
    args = call.args + (0,) * (6 - len(call.args))
    names = names_of(call.abi, call.number)
    rules = [rule for rule in profile.syscalls or () if names.intersection(rule.names)]
    actions = [(rule, action_of(rule.action, rule.errno_ret)) for rule in rules]
    for rule, action in actions:
        if not rule.args and action != default:
            return action
    for rule, action in actions:
        if rule.args and matches(rule, args, TOKENS[call.abi] in NARROW):
            return action
    largest = max((number_of(call.abi, name) for rule in profile.syscalls or () for name in rule.names), default=-1)
    return ENOSYS if refusing and 0 <= largest < call.number else default


def evaluate(program: bytes, call: Call) -> int:
    token = X86_64 if call.abi == "SCMP_ARCH_X32" else TOKENS[call.abi]
    return run(program, token, call.number, call.args)


# --- strategies ---------------------------------------------------------------------------------------------------------------

NAMES = ("read", "getcwd", "ioctl", "personality", "openat2", "waitpid", "mmap2", "clone", "arch_prctl", "futex_time64")
VALUES = (0, 1, 2, 3, 7, 8, 0x20000, LOW - 1, LOW, LOW + 1, LOW + 2, 0x7FFFFFFFFFFFFFFF, (1 << 64) - 2, (1 << 64) - 1)
DEFAULTS = ("ERRNO", "ALLOW", "KILL_PROCESS", "KILL", "TRAP", "LOG", "TRACE")
ABIS = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")

values = st.sampled_from(VALUES)
conditions = st.builds(
    SyscallArg, index=st.integers(0, 2), value=values, value_two=values | st.none(), op=st.sampled_from(list(SeccompOperator))
)


@st.composite
def actions(draw: st.DrawFn) -> tuple[SeccompAction, int | None]:
    action = SeccompAction(f"SCMP_ACT_{draw(st.sampled_from((*DEFAULTS, 'KILL_THREAD')))}")
    takes_errno = action in (SeccompAction.ERRNO, SeccompAction.TRACE)
    return action, draw(st.sampled_from((None, 0, 2, 38, 4094))) if takes_errno else None


@st.composite
def profiles(draw: st.DrawFn) -> Seccomp:
    default, default_errno = draw(actions())
    calls = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6)):
        for args in draw(st.lists(st.none() | st.lists(conditions, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)):
            action, ret = draw(actions())
            calls.append(Syscall(names=(name, "no_such_call"), action=action, errno_ret=ret, args=args))
    for name in draw(st.lists(st.sampled_from(("mseal", "cachestat", "read")), unique=True, max_size=2)):
        action, ret = draw(actions())
        args = draw(st.none() | conditions.map(lambda condition: (condition,)))
        calls.append(Syscall(names=(name,), action=action, errno_ret=ret, args=args))
    abis = draw(st.lists(st.sampled_from((*ABIS, "SCMP_ARCH_ARM")), unique=True))
    return Seccomp(
        default_action=default,
        default_errno_ret=default_errno,
        architectures=tuple(map(SeccompArch, abis)),
        syscalls=tuple(draw(st.permutations(calls))),
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(profiles(), st.data())
def test_the_program_follows_the_profile(profile: Seccomp, data: st.DataObject) -> None:
    program = compile_profile(profile, machine="x86_64").program
    abis = {"SCMP_ARCH_X86_64", *(profile.architectures or ())} & set(ABIS)
    names = {name for rule in profile.syscalls or () for name in rule.names} | {"close"}
    interesting = sorted({v + d for v in VALUES for d in (-1, 0, 1) if 0 <= v + d < 1 << 64})
    for abi in sorted(abis):
        numbers = {number for name in names if (number := number_of(abi, name)) >= 0}
        numbers |= {number + d for number in numbers for d in (-1, 1)} | {5000 | (X32 if abi == "SCMP_ARCH_X32" else 0)}
        for number in sorted(n for n in numbers if n >= 0 and bool(n & X32) == (abi == "SCMP_ARCH_X32")):
            for _ in range(4):
                call = Call(abi, number, tuple(data.draw(st.tuples(*[st.sampled_from(interesting)] * 3))))
                assert evaluate(program, call) == meaning(profile, call), (call, profile)
    if "SCMP_ARCH_X32" not in abis:
        assert run(program, X86_64, X32 | 1) == KILL_PROCESS
    if "SCMP_ARCH_X86" not in abis:
        assert run(program, X86, 3) == KILL_PROCESS
    assert run(program, ARM, 3) == KILL_PROCESS


def test_a_condition_does_not_hide_another_rule() -> None:
    """libseccomp's program for these two rules allows read(2, 0)."""
    first = SyscallArg(index=0, value=0, op=SeccompOperator.NE)
    second = (SyscallArg(index=0, value=1, op=SeccompOperator.NE), SyscallArg(index=1, value=0, op=SeccompOperator.NE))
    calls = tuple(Syscall(names=("read",), action=SeccompAction.KILL_PROCESS, args=args) for args in ((first,), second))
    program = compile_profile(simple(*calls, default=SeccompAction.ALLOW), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86_64", 0, (2, 0))) == KILL_PROCESS
    assert evaluate(program, Call("SCMP_ARCH_X86_64", 0, (0, 0))) == ALLOW


def test_the_first_rule_that_matches_holds_and_one_without_conditions_beats_all() -> None:
    refuse = Syscall(
        names=("ioctl",),
        action=SeccompAction.ERRNO,
        args=(SyscallArg(index=1, value=0x5412, op=SeccompOperator.EQ),),
    )
    some = Syscall(names=("ioctl",), action=SeccompAction.ALLOW, args=(SyscallArg(index=1, value=0x6000, op=SeccompOperator.LT),))
    ioctl = Call("SCMP_ARCH_X86_64", 16, (0, 0x5412))
    for calls, expected in (((refuse, some), EPERM), ((some, refuse), ALLOW), ((refuse, some, allow("ioctl")), ALLOW)):
        assert evaluate(compile_profile(simple(*calls), machine="x86_64").program, ioctl) == expected


# --- what libseccomp alone would not do ---------------------------------------------------------------------------------------


def simple(*calls: Syscall, default: SeccompAction = SeccompAction.ERRNO, **more: Any) -> Seccomp:
    profile = Seccomp(default_action=default, architectures=tuple(map(SeccompArch, ABIS)), syscalls=calls)
    return profile.evolve(**more) if more else profile


def allow(*names: str, **arg: Any) -> Syscall:
    args = (SyscallArg(op=SeccompOperator.EQ, **arg),) if arg else None
    return Syscall(names=names, action=SeccompAction.ALLOW, args=args)


def test_calls_newer_than_the_profile_get_enosys_on_every_abi() -> None:
    program = compile_profile(simple(allow("read", "openat2")), machine="x86_64").program
    for abi in ABIS:
        base = X32 if abi == "SCMP_ARCH_X32" else 0
        assert evaluate(program, Call(abi, base | NEWER["openat2"])) == ALLOW
        assert evaluate(program, Call(abi, base | NEWER["openat2"] - 1)) == EPERM
        assert evaluate(program, Call(abi, base | NEWER["openat2"] + 1)) == ENOSYS
        assert evaluate(program, Call(abi, base | 9999)) == ENOSYS


@pytest.mark.parametrize("default", ["ALLOW", "LOG", "TRACE"])
def test_a_permissive_default_stays_for_newer_calls(default: str) -> None:
    profile = simple(Syscall(names=("read",), action=SeccompAction.ERRNO), default=SeccompAction(f"SCMP_ACT_{default}"))
    program = compile_profile(profile, machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86_64", 9999)) == action_of(default, None)


@pytest.mark.parametrize("default", ["KILL", "KILL_PROCESS", "TRAP"])
def test_a_default_that_kills_does_not_kill_for_a_newer_call(default: str) -> None:
    program = compile_profile(simple(allow("read"), default=SeccompAction(f"SCMP_ACT_{default}")), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86_64", 9999)) == ENOSYS


def test_no_rule_at_all_is_the_default_for_everything() -> None:
    program = compile_profile(simple(), machine="x86_64").program
    assert {evaluate(program, Call(abi, X32 * (abi == "SCMP_ARCH_X32") | n)) for abi in ABIS for n in (0, 1, 450, 9999)} == {EPERM}


def test_newer_calls_obey_their_rules_though_libseccomp_may_not_know_them() -> None:
    newest = max(NEWER, key=lambda name: NEWER[name])
    permitted = compile_profile(simple(allow(newest)), machine="x86_64").program
    refusing = simple(Syscall(names=(newest,), action=SeccompAction.ERRNO, errno_ret=13), default=SeccompAction.ALLOW)
    refused = compile_profile(refusing, machine="x86_64").program
    for abi in ABIS:
        call = Call(abi, NEWER[newest] | (X32 if abi == "SCMP_ARCH_X32" else 0))
        assert evaluate(permitted, call) == ALLOW
        assert evaluate(refused, call) == ERRNO | 13
        assert evaluate(refused, call._replace(number=call.number - 1)) == ALLOW


def test_the_table_of_newer_calls_agrees_with_libseccomp() -> None:
    for name, number in NEWER.items():
        for token in (X86_64, X86, AARCH64):
            assert pyseccomp.resolve_syscall(token, name) in (-1, number) or pyseccomp.resolve_syscall(token, name) < -1, name


SOCKETCALL = 102


def test_a_condition_on_socket_is_not_lost_through_socketcall() -> None:
    program = compile_profile(simple(allow("socket", index=0, value=1), allow("bind")), machine="x86_64").program
    direct = 359
    assert evaluate(program, Call("SCMP_ARCH_X86", direct, (1,))) == ALLOW
    assert evaluate(program, Call("SCMP_ARCH_X86", direct, (38,))) == EPERM
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (1,))) == EPERM  # SYS_SOCKET
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (2,))) == ALLOW  # SYS_BIND has no condition
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (3,))) == EPERM


def test_the_same_holds_for_ipc_and_under_a_tracer() -> None:
    program = compile_profile(
        simple(allow("shmget", index=0, value=5), allow("semget"), default=SeccompAction.TRACE), machine="x86_64"
    ).program
    assert evaluate(program, Call("SCMP_ARCH_X86", 117, (23,))) == TRACE | errno.EPERM
    assert evaluate(program, Call("SCMP_ARCH_X86", 117, (2,))) == ALLOW


def test_a_refusal_with_a_condition_covers_socketcall_whole() -> None:
    alg = SyscallArg(index=0, value=38, op=SeccompOperator.EQ)
    refuse = Syscall(names=("socket",), action=SeccompAction.ERRNO, errno_ret=97, args=(alg,))
    program = compile_profile(simple(refuse, default=SeccompAction.ALLOW), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86", 359, (38,))) == ERRNO | 97
    assert evaluate(program, Call("SCMP_ARCH_X86", 359, (2,))) == ALLOW
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (1,))) == ERRNO | 97
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (2,))) == ALLOW


def test_socketcall_can_be_allowed_itself() -> None:
    program = compile_profile(simple(allow("socket", index=0, value=1), allow("socketcall")), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (1,))) == ALLOW


def test_a_socket_without_conditions_is_allowed_through_socketcall_too() -> None:
    program = compile_profile(simple(allow("socket")), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (1,))) == ALLOW
    assert evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (8,))) == EPERM


# --- the default profile ------------------------------------------------------------------------------------------------------

REFUSED = """
    add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register userfaultfd bpf perf_event_open mount umount2
    pivot_root setns open_tree move_mount fsopen fsmount fsconfig fspick mount_setattr open_tree_attr listns open_by_handle_at
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff settimeofday clock_settime acct
    quotactl quotactl_fd sethostname setdomainname syslog iopl ioperm lookup_dcookie vhangup kcmp pidfd_getfd move_pages
    migrate_pages nfsservctl uselib ustat sysfs _sysctl fanotify_init lsm_set_self_attr
"""
ALLOWED = """
    read write openat execve exit_group futex ptrace process_vm_readv process_vm_writev mseal statmount listmount cachestat
    fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue setxattrat getxattrat listxattrat removexattrat file_getattr
    file_setattr landlock_restrict_self seccomp memfd_secret chroot mknod prctl rseq close_range epoll_pwait2
"""


def default(machine: str, *more: str) -> tuple[Seccomp, bytes]:
    profile = default_profile(frozenset({"CAP_SYS_CHROOT", *more}), machine)
    return profile, compile_profile(profile, machine=machine).program


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "ppc64le"])
def test_the_default_profile_refuses_and_allows(machine: str) -> None:
    profile, program = default(machine)
    token = {"x86_64": X86_64, "aarch64": AARCH64, "riscv64": 0xC00000F3, "ppc64le": 0xC0000015}[machine]
    TOKENS.setdefault(str(architectures_of(machine)[0]), token)
    for name in REFUSED.split():
        number = number_of(str(architectures_of(machine)[0]), name)
        assert number < 0 or run(program, token, number) == EPERM, name
    for name in ALLOWED.split():
        number = number_of(str(architectures_of(machine)[0]), name)
        assert number < 0 or run(program, token, number) == ALLOW, name
    assert run(program, token, NEWER["clone3"]) == ENOSYS
    assert run(program, token, 5000) == ENOSYS
    assert profile.default_action == SeccompAction.ERRNO


@pytest.mark.parametrize("abi", ABIS)
def test_the_default_profile_by_every_number_and_abi(abi: str) -> None:
    """Check every number on every ABI, not only the known system calls."""
    profile, program = default("x86_64")
    base = X32 if abi == "SCMP_ARCH_X32" else 0
    multiplexers = {number_of(abi, name) for name in ("socketcall", "ipc")}
    for number in range(560):
        for args in ((0,), (1,), (38,), (LOW,), (0x10000000, 1)):
            call = Call(abi, base | number, args)
            if call.number not in multiplexers:
                assert evaluate(program, call) == meaning(profile, call), call


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_no_af_alg_and_no_af_vsock_on_any_abi(abi: str, name: str) -> None:
    _, program = default("x86_64", "CAP_SYS_ADMIN", "CAP_NET_ADMIN")
    number = {"socket": 359, "socketpair": 360}[name] if abi == "SCMP_ARCH_X86" else number_of(abi, name)
    assert number >= 0
    got = {family: evaluate(program, Call(abi, number, (family,))) for family in range(64)}
    assert {family for family, action in got.items() if action == ALLOW} == set(range(46)) - {38, 40}
    for family in (38, 40):  # the kernel looks at the low half only, so must the filter
        for high in (1, 0x80000000, LOW):
            assert evaluate(program, Call(abi, number, (high << 32 | family,))) == EPERM
    assert evaluate(program, Call(abi, number, (LOW << 32 | 2,))) == ALLOW


def test_socketcall_cannot_make_a_socket() -> None:
    _, program = default("x86_64")
    got = {call: evaluate(program, Call("SCMP_ARCH_X86", SOCKETCALL, (call,))) for call in range(22)}
    assert {call for call, action in got.items() if action == ALLOW} == set(range(2, 21)) - {8}


def test_machines_whose_c_library_needs_socketcall_keep_it() -> None:
    assert any("socketcall" in call.names for call in default_profile(arch="s390x").syscalls or ())
    assert not any("socketcall" in call.names for call in default_profile(arch="x86_64").syscalls or ())


def test_clone_and_unshare_make_no_namespaces() -> None:
    _, program = default("x86_64")
    clone, unshare = (number_of("SCMP_ARCH_X86_64", name) for name in ("clone", "unshare"))
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert evaluate(program, Call("SCMP_ARCH_X86_64", clone, (flag | 17,))) == EPERM
        assert evaluate(program, Call("SCMP_ARCH_X86_64", unshare, (flag,))) == EPERM
    assert evaluate(program, Call("SCMP_ARCH_X86_64", clone, (0x3D0F00,))) == ALLOW  # a thread
    assert evaluate(program, Call("SCMP_ARCH_X86_64", clone, (0x01200011,))) == ALLOW  # fork
    assert evaluate(program, Call("SCMP_ARCH_X86_64", unshare, (0x600,))) == ALLOW
    assert evaluate(program, Call("SCMP_ARCH_X86_64", unshare, (0x80,))) == EPERM  # a time namespace
    assert evaluate(program, Call("SCMP_ARCH_X86_64", unshare, (1 << 32,))) == EPERM


def test_personality_knows_five_values() -> None:
    _, program = default("x86_64")
    number = number_of("SCMP_ARCH_X86_64", "personality")
    for value in (0, 8, 0x20000, 0x20008, LOW, (1 << 64) - 1):
        assert evaluate(program, Call("SCMP_ARCH_X86_64", number, (value,))) == ALLOW
    for value in (1, 0x40000, 0x400000, 0x20009, LOW - 1):
        assert evaluate(program, Call("SCMP_ARCH_X86_64", number, (value,))) == EPERM


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        (
            "CAP_SYS_ADMIN",
            "mount umount2 setns unshare pivot_root fsopen open_tree_attr bpf perf_event_open clone clone3 listns syslog",
        ),
        ("CAP_SYS_PTRACE", "kcmp pidfd_getfd"),
        ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
        ("CAP_SYS_TIME", "settimeofday clock_settime"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_NICE", "move_pages migrate_pages"),
        ("CAP_SYS_RAWIO", "iopl ioperm"),
        ("CAP_SYS_PACCT", "acct"),
        ("CAP_SYS_TTY_CONFIG", "vhangup"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_MAC_ADMIN", "lsm_set_self_attr"),
    ],
)
def test_a_capability_brings_its_calls(capability: str, names: str) -> None:
    _, without = default("x86_64")
    _, program = default("x86_64", capability)
    for name in names.split():
        call = Call("SCMP_ARCH_X86_64", number_of("SCMP_ARCH_X86_64", name), (0x10000000,))
        assert evaluate(without, call) in (EPERM, ENOSYS), name
        assert evaluate(program, call) == ALLOW, name


def test_chroot_goes_with_its_capability() -> None:
    program = compile_profile(default_profile(frozenset(), "x86_64"), machine="x86_64").program
    assert evaluate(program, Call("SCMP_ARCH_X86_64", number_of("SCMP_ARCH_X86_64", "chroot"))) == EPERM


@pytest.mark.parametrize("capabilities", [frozenset(), frozenset({"CAP_SYS_ADMIN"})])
def test_io_uring_keyrings_and_userfaultfd_stay_refused(capabilities: frozenset[str]) -> None:
    program = compile_profile(default_profile(capabilities, "x86_64"), machine="x86_64").program
    for abi in ABIS:
        for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "userfaultfd"):
            assert evaluate(program, Call(abi, number_of(abi, name))) == EPERM, name


def test_the_flags_of_clone_come_second_on_s390() -> None:
    rule = next(call for call in default_profile(arch="s390x").syscalls or () if call.names == ("clone",))
    assert rule.args is not None
    assert rule.args[0].index == 1


def test_the_own_part_reads_the_right_halves_on_a_big_endian_machine() -> None:
    """libseccomp's part can only be made on such a machine: here it is one instruction that says it was reached."""
    reached = 0x1234
    profile = default_profile(arch="s390x")
    rules = seccomp._rules(profile, EPERM)
    program = seccomp._prologue(pyseccomp, profile, ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"), rules, EPERM)
    program += struct.pack(">HBBI", 0x06, 0, 0, reached)
    clone = number_of("SCMP_ARCH_S390X", "clone")
    for family in range(48):
        expected = ALLOW if family in set(range(46)) - {38, 40} else reached
        assert run(program, S390X, 359, (family,), ">") == expected
        assert run(program, S390X, 359, (7 << 32 | family,), ">") == expected
    assert run(program, S390X, clone, (0x10000000, 17), ">") == ALLOW
    assert run(program, S390X, clone, (0, 0x10000000 | 17), ">") == reached
    assert run(program, S390X, 0, (), ">") == ENOSYS
    assert run(program, S390X, 9999, (), ">") == ENOSYS
    assert run(program, X86_64, 9999, (), ">") == reached

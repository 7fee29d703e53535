"""Compilation of seccomp profiles to BPF programs (config-linux.md#seccomp).

`compile_profile` returns a `Filter`, ready for seccomp(2). libseccomp compiles the rules without conditions to a binary tree,
through pyseccomp. A prologue runs before it, with

* the rules with conditions. libseccomp merges those of one system call into a tree in which a condition of one rule can hide
  another rule (``a != 0``, or ``a != 1 and b != 0``: with a=2, b=0 neither applies). Here the first rule that matches applies;
* the rules for system calls that the installed libseccomp does not know, but this module does (`NEWER`);
* ``ENOSYS`` for system calls newer than all in a profile that refuses by default, so that a C library falls back to older ones.

Filters are cached by content, in the process and, if the caller gives a directory, on disk. `docs/seccomp.md` has the details.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import stat
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from .errors import SpecError, UnsupportedError
from .files import forking, other_writers, replace_file
from .spec.rules import Findings
from .spec.rules.linux import check_seccomp
from .spec.seccomp import SeccompOperator, SyscallArg, architectures_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from .spec.seccomp import Seccomp

__all__ = ["MAX_INSTRUCTIONS", "NEWER", "Filter", "compile_profile", "profile_key", "unknown_syscalls"]

MAX_INSTRUCTIONS: Final = 4096
"""The longest program that the kernel accepts (``BPF_MAXINSNS``)."""
FORMAT: Final = 1
"""Part of every cache key. Increase it whenever the same profile compiles to another program."""
MAX_CACHED: Final = 64
"""Filters cached in the process; the oldest is dropped first."""

_SECTION: Final = "config-linux.md#seccomp"
_PATH: Final = "$.linux.seccomp"

_ALLOW, _LOG, _TRACE, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x00050000, 0x80000000
ACTIONS: Final = {
    "SCMP_ACT_KILL": 0,  # alias of KILL_THREAD
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
}
_WITH_ERRNO: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
_ENOSYS: Final = _ERRNO | errno.ENOSYS
OPERATORS: Final = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_FLAG_BITS: Final = {"TSYNC": 1 << 0, "LOG": 1 << 1, "SPEC_ALLOW": 1 << 2, "WAIT_KILLABLE_RECV": 1 << 5}
FLAGS: Final = {f"SECCOMP_FILTER_FLAG_{name}": bit for name, bit in _FLAG_BITS.items()}
_TSYNC, _TSYNC_ESRCH, _WAIT_KILLABLE_RECV = 1 << 0, 1 << 4, 1 << 5

# AUDIT_ARCH_* of linux/audit.h, which are libseccomp's tokens too. x32 has a token of libseccomp alone; the kernel reports x86_64.
_TOKEN_TABLE: Final = """
    X86=40000003 X86_64=C000003E X32=4000003E ARM=40000028 AARCH64=C00000B7 LOONGARCH64=C0000102 M68K=4
    MIPS=8 MIPS64=80000008 MIPS64N32=A0000008 MIPSEL=40000008 MIPSEL64=C0000008 MIPSEL64N32=E0000008 PARISC=F PARISC64=8000000F
    PPC=14 PPC64=80000015 PPC64LE=C0000015 RISCV64=C00000F3 S390=16 S390X=80000016 SH=4000002A SHEB=2A
"""
ARCHITECTURES: Final = {
    f"SCMP_ARCH_{name}": int(token, 16) for name, _, token in (item.partition("=") for item in _TOKEN_TABLE.split())
}
_LITTLE_ENDIAN, _WIDE = 0x40000000, 0x80000000  # in a token
_LOW_32, _ALL_64, _ACTION = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0xFFFF0000
_X32_BIT: Final = 0x40000000
_MIPS_BASES: Final = (("", 4000), ("64", 5000), ("64N32", 6000))
_BASES: Final = {"X32": _X32_BIT} | {f"MIPS{order}{abi}": base for order in ("", "EL") for abi, base in _MIPS_BASES}

_NEWER_NAMES: Final = """
    pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick
    pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd
    landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
    set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
    lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr
    file_getattr file_setattr listns rseq_slice_yield
"""
NEWER: Final[dict[str, int]] = {name: number for number, name in enumerate(_NEWER_NAMES.split(), 424)}
"""Numbers of system calls that are the same on every architecture (plus the base of the ABI on x32 and MIPS)."""
_NEWER_HERE: Final = {"SCMP_ARCH_X86_64": {"uretprobe": 335, "uprobe": 336}, "SCMP_ARCH_RISCV64": {"riscv_hwprobe": 258}}
# The calls that socketcall(2) and ipc(2) multiplex, in the order of their numbers (linux/net.h, linux/ipc.h); - is unused.
_SOCKETCALLS: Final = """
    - socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown setsockopt getsockopt
    sendmsg recvmsg accept4 recvmmsg sendmmsg
"""
_IPCS: Final = "- semop semget semctl semtimedop - - - - - - msgsnd msgrcv msgget msgctl - - - - - - shmat shmdt shmget shmctl"
_MULTIPLEXED: Final = {
    multiplexer: {name: number for number, name in enumerate(names.split()) if name != "-"}
    for multiplexer, names in (("socketcall", _SOCKETCALLS), ("ipc", _IPCS))
}


class Filter(NamedTuple):
    """A compiled profile, as seccomp(2) accepts it."""

    program: bytes
    """``struct sock_filter[]`` in the byte order of the machine."""
    flags: int = 0
    """``SECCOMP_FILTER_FLAG_*`` of the profile, without ``NEW_LISTENER``."""
    needs_listener: bool = False
    """Whether the profile uses SCMP_ACT_NOTIFY: load it with ``SECCOMP_FILTER_FLAG_NEW_LISTENER`` and pass the descriptor on."""

    @property
    def instructions(self) -> int:
        """The number of BPF instructions."""
        return len(self.program) // 8


class _Rule(NamedTuple):
    """The action for one system call if all conditions hold."""

    path: str
    name: str
    action: int
    conditions: tuple[SyscallArg, ...]


_cache: dict[str, Filter] = {}


def compile_profile(
    profile: Seccomp, *, cache_dir: Path | None = None, key: str | None = None, machine: str | None = None
) -> Filter:
    """Compile a profile to a BPF program.

    Args:
        cache_dir: a directory for compiled filters, created with mode 0700 if it does not exist. The cache is optional: a directory
            or file that cannot be used, or that another user owns or can write to, is ignored. A damaged file is replaced.
        key: the `profile_key` of this profile and machine, for a caller that has it already.
        machine: the machine name of uname(2). Default: this machine.

    Raises:
        SpecError: the profile is not valid, or would hang the start of the container (config-linux.md#seccomp).
        UnsupportedError: libseccomp or pyseccomp is missing or too old, or the program is longer than the kernel accepts.
    """
    machine = machine or os.uname().machine
    key = key or profile_key(profile, machine)
    compiled = _cache.get(key)
    if compiled is not None:
        return compiled
    with forking:  # libseccomp keeps global state, which a child must not find half changed
        if (compiled := _cache.get(key)) is None:
            program = _read_cache(cache_dir, key) if cache_dir is not None else None
            if program is None:
                program = _compile(profile, machine)
                if cache_dir is not None:
                    _write_cache(cache_dir, key, program)
            compiled = Filter(program, *_flags(profile))
            while len(_cache) >= MAX_CACHED:
                del _cache[next(iter(_cache))]
            _cache[key] = compiled
    return compiled


def profile_key(profile: Seccomp, machine: str | None = None) -> str:
    """Return a key for the filter of a profile on a machine (default: this one): 64 hexadecimal digits."""
    content = json.dumps(
        [
            FORMAT,
            machine or os.uname().machine,
            sys.maxsize,
            profile.default_action,
            profile.default_errno_ret,
            profile.architectures,
            profile.flags,
            profile.listener_path is None,
            [
                (
                    call.names,
                    call.action,
                    call.errno_ret,
                    [(arg.index, arg.value, arg.value_two, arg.op) for arg in call.args] if call.args else None,
                )
                for call in profile.syscalls or ()
            ],
        ],
        separators=(",", ":"),
    ).encode()
    try:
        from _blake2 import blake2b  # hashlib loads OpenSSL, which takes longer than the rest of a cache hit
    except ImportError:
        from hashlib import blake2b
    return blake2b(content, digest_size=32).hexdigest()


def unknown_syscalls(profile: Seccomp) -> tuple[str, ...]:
    """Return the names in a profile that are not known system calls (misspelt, or too new); their rules have no effect.

    Raises:
        UnsupportedError: libseccomp or pyseccomp is missing.
    """
    lib = load_library()
    names = dict.fromkeys(name for call in profile.syscalls or () for name in call.names)
    elsewhere = {name for table in _NEWER_HERE.values() for name in table}
    return tuple(n for n in names if lib.resolve_syscall(0, n) == -1 and n not in NEWER and n not in elsewhere)


def _flags(profile: Seccomp) -> tuple[int, bool]:
    listener = any(call.action == "SCMP_ACT_NOTIFY" for call in profile.syscalls or ())
    flags = sum(FLAGS[name] for name in set(profile.flags or ()))
    if not listener:
        flags &= ~_WAIT_KILLABLE_RECV  # the kernel refuses it for a filter without notifications
    elif flags & _TSYNC:
        flags |= _TSYNC_ESRCH  # the return value is a descriptor, so it cannot be a thread id
    return flags, listener


def _action(action: str, errno_ret: int | None) -> int:
    value = ACTIONS[action]
    if action in _WITH_ERRNO:
        value |= errno.EPERM if errno_ret is None else errno_ret
    return value


def _check(profile: Seccomp) -> None:
    """Check a profile. Raises SpecError with every problem."""
    findings = Findings()
    check_seccomp(findings, profile)
    for i, call in enumerate(profile.syscalls or ()):
        for j, arg in enumerate(call.args or ()):
            for name, value in (("value", arg.value), ("valueTwo", arg.value_two or 0)):
                if not 0 <= value < 1 << 64:  # no document has it, but a `SyscallArg` made by the caller
                    where = f"{_PATH}.syscalls[{i}].args[{j}].{name}"
                    findings.error(where, f"{value} is not an unsigned 64-bit number", _SECTION)
    if errors := [problem for problem in findings.problems if problem.severity == "error"]:
        raise SpecError(errors)


def _rules(profile: Seccomp, default: int) -> list[_Rule]:
    """Return the rules that have an effect. As in libseccomp, one without conditions overrides all others for its system call."""
    rules = []
    for i, call in enumerate(profile.syscalls or ()):
        action, args = _action(call.action, call.errno_ret), call.args or ()
        # If an argument occurs twice, each condition is a rule of its own, as in other runtimes.
        twice = len({arg.index for arg in args}) < len(args)
        for conditions in [(arg,) for arg in args] if twice else [args]:
            if conditions or action != default:
                rules += [_Rule(f"{_PATH}.syscalls[{i}]", name, action, conditions) for name in call.names]
    unconditional: dict[str, _Rule] = {}
    for rule in rules:
        if not rule.conditions:
            unconditional.setdefault(rule.name, rule)
    return [rule for rule in rules if unconditional.get(rule.name, rule) is rule]


def load_library() -> ModuleType:
    """Return the module of libseccomp's binding. Raises UnsupportedError: one of them is not installed."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise UnsupportedError(
            f"seccomp filters need the pyseccomp package and libseccomp >= 2.5: {error}; "
            "install libseccomp2 (Debian), libseccomp (Fedora, Alpine, Arch) or leave linux.seccomp out of config.json"
        ) from error
    module: ModuleType = pyseccomp
    return module


def _abis(profile: Seccomp, machine: str, native: int) -> tuple[str, ...]:
    """Return the architectures of a profile that this kernel can run, and always those of the kernel and of this process.

    System calls of other architectures never reach a filter.
    """
    abis = architectures_of(machine)
    if not abis:
        raise UnsupportedError(f"seccomp filter for machine {machine!r}: unknown to libseccomp")
    if bool(ARCHITECTURES[abis[0]] & _LITTLE_ENDIAN) != (sys.byteorder == "little"):  # libseccomp would confuse the byte orders
        raise UnsupportedError(f"seccomp filter for machine {machine!r}: cannot be compiled on a machine of another byte order")
    requested = profile.architectures or ()
    return tuple(abi for i, abi in enumerate(abis) if i == 0 or abi in requested or ARCHITECTURES[abi] == native)


def _compile(profile: Seccomp, machine: str) -> bytes:
    _check(profile)
    lib = load_library()
    default = _action(profile.default_action, profile.default_errno_ret)
    abis = _abis(profile, machine, lib.system_arch())
    rules = _rules(profile, default)
    program = _prologue(lib, profile, abis, rules, default) + _export(lib, abis, rules, default)
    if len(program) > 8 * MAX_INSTRUCTIONS:
        count = len(program) // 8
        message = f"the profile compiles to {count} instructions, more than the kernel's {MAX_INSTRUCTIONS}; use fewer rules"
        raise UnsupportedError(f"{_PATH}: {message}")
    return program


def _export(lib: ModuleType, abis: tuple[str, ...], rules: list[_Rule], default: int) -> bytes:
    """Return libseccomp's program for the rules without conditions whose system call it knows."""
    operation = f"the default action {default:#x}"
    try:
        syscall_filter = lib.SyscallFilter(default)
        operation = "an action for foreign ABIs (libseccomp >= 2.4)"
        syscall_filter.set_attr(lib.Attr.ACT_BADARCH, _KILL_PROCESS)
        operation = "to leave no_new_privs unchanged"
        syscall_filter.set_attr(lib.Attr.CTL_NNP, 0)
        native = lib.system_arch()
        if native not in {ARCHITECTURES[abi] for abi in abis}:  # a filter for another machine
            syscall_filter.remove_arch(native)
        for abi in abis:
            if ARCHITECTURES[abi] != native:
                operation = abi
                syscall_filter.add_arch(ARCHITECTURES[abi])
        known = [(rule, number) for rule in rules if not rule.conditions and (number := lib.resolve_syscall(0, rule.name)) != -1]
        if all(any(lib.resolve_syscall(ARCHITECTURES[abi], rule.name) >= 0 for rule, _ in known) for abi in abis):
            operation = "the binary tree (libseccomp >= 2.5)"
            syscall_filter.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # 2.5 builds a wrong tree for an ABI without rules
        for rule, number in known:
            operation = f"{rule.path}: the rule for {rule.name}"
            syscall_filter.add_rule(rule.action, number)
        operation = "to export the program"
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "rb") as file:
            syscall_filter.export_bpf(file)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise UnsupportedError(
            f"{_PATH}: libseccomp refuses {operation}: {error.strerror}; use a newer libseccomp or kernel"
        ) from error


def _number(lib: ModuleType, abi: str, name: str) -> int:
    """Return the number of a system call, which is negative if the ABI does not have it."""
    if lib.resolve_syscall(0, name) == -1:
        return (
            NEWER[name] + _BASES.get(abi.removeprefix("SCMP_ARCH_"), 0) if name in NEWER else _NEWER_HERE.get(abi, {}).get(name, -1)
        )
    number: int = lib.resolve_syscall(ARCHITECTURES[abi], name)
    return _direct(abi).get(name, number) if number < 0 else number


@functools.cache
def _direct(abi: str) -> dict[str, int]:
    """Return the numbers of the multiplexed calls; if there is a multiplexer too, libseccomp resolves numbers to names only."""
    lib, numbers = load_library(), {}
    for number in range(512):
        with contextlib.suppress(ValueError):
            numbers[lib.resolve_syscall(ARCHITECTURES[abi], number).decode()] = number
    return {name: numbers[name] for calls in _MULTIPLEXED.values() for name in calls if name in numbers}


class _Assembler:
    """Assembles classic BPF with labels. A conditional jump reaches 255 instructions, JA any distance."""

    LOAD, AND, JA, JEQ, JGT, JGE, JSET, RET = 0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06

    def __init__(self) -> None:
        self.code: list[tuple[int, int | str, str, str]] = []
        self.labels: dict[str, int] = {"": 0}

    def emit(self, code: int, operand: int | str, true: str = "", false: str = "") -> None:
        """Add an instruction. A comparison without a label for an outcome continues with the next instruction."""
        self.code.append((code, operand, true, false))

    def label(self, name: str) -> None:
        """Set a label to the next instruction."""
        self.labels[name] = len(self.code)

    def fresh(self) -> str:
        """Return the name of a new label, which is set later."""
        self.labels[name := f".{len(self.labels)}"] = -1
        return name

    def compare(self, arg: SyscallArg, wide: bool, little: bool, fail: str) -> None:
        """Continue if the condition holds, else jump to ``fail``."""
        low, high = (16 + 8 * arg.index + offset for offset in ((0, 4) if little else (4, 0)))
        mask, value = (arg.value, arg.value_two or 0) if arg.op == "SCMP_CMP_MASKED_EQ" else (_ALL_64, arg.value)
        value &= mask
        hold, name = self.fresh(), arg.op.removeprefix("SCMP_CMP_")
        then, otherwise = (fail, hold) if name in ("NE", "LT", "LE") else (hold, fail)  # the negations of EQ, GE and GT
        code = self.JGE if name in ("LT", "GE") else self.JGT if name in ("LE", "GT") else self.JEQ
        if wide and mask >> 32:
            self._load(high, mask >> 32)
            if code != self.JEQ:
                self.emit(self.JGT, value >> 32, then)
            self.emit(self.JEQ, value >> 32, "", otherwise)
        if mask & _LOW_32:
            self._load(low, mask & _LOW_32)
            self.emit(code, value & _LOW_32, then, otherwise)
        self.label(hold)

    def _load(self, offset: int, mask: int) -> None:
        self.emit(self.LOAD, offset)
        if mask != _LOW_32:
            self.emit(self.AND, mask)

    def assemble(self, little: bool) -> bytes:
        """Return the program in little-endian or big-endian byte order."""
        out = bytearray()
        for at, (code, operand, true, false) in enumerate(self.code, 1):
            k = self.labels[operand] - at if isinstance(operand, str) else operand
            jumps = (self.labels[name] - at if name else 0 for name in (true, false))
            out += struct.pack("<HBBI" if little else ">HBBI", code, *jumps, k)
        return bytes(out)


def _prologue(lib: ModuleType, profile: Seccomp, abis: tuple[str, ...], rules: list[_Rule], default: int) -> bytes:
    """Return the program that runs before libseccomp's."""
    out = _Assembler()
    out.emit(out.LOAD, 4)  # seccomp_data.arch
    kernel_abis = [abi for abi in abis if abi != "SCMP_ARCH_X32"]
    for abi in kernel_abis:
        skip = out.fresh()
        out.emit(out.JEQ, ARCHITECTURES[abi], "", skip)
        out.emit(out.JA, abi)
        out.label(skip)
    out.emit(out.JA, "filter")
    for abi in kernel_abis:
        out.label(abi)
        out.emit(out.LOAD, 0)  # seccomp_data.nr
        if abi == "SCMP_ARCH_X86_64":  # x32 has the same AUDIT_ARCH, and a bit in the number
            normal = out.fresh()
            out.emit(out.JSET, _X32_BIT, "", normal)
            if "SCMP_ARCH_X32" in abis:
                _abi_prologue(out, lib, profile, "SCMP_ARCH_X32", rules, default)
            out.emit(out.JA, "filter")
            out.label(normal)
        _abi_prologue(out, lib, profile, abi, rules, default)
        out.emit(out.JA, "filter")
    out.label("filter")
    return out.assemble(bool(ARCHITECTURES[abis[0]] & _LITTLE_ENDIAN))


def _abi_prologue(out: _Assembler, lib: ModuleType, profile: Seccomp, abi: str, rules: list[_Rule], default: int) -> None:
    """Add the prologue for one ABI. It starts with the number of the system call loaded, and falls through to the filter."""
    token = ARCHITECTURES[abi]
    wide = bool(token & _WIDE) or abi == "SCMP_ARCH_X32"
    own = sorted(_own_rules(lib, abi, rules).items())
    done = out.fresh()
    for start in range(0, len(own), 4):  # skip four comparisons at once
        here, after, section = out.fresh(), out.fresh(), own[start : start + 4]
        out.emit(out.JGT, section[-1][0], "", here)
        out.emit(out.JA, after)
        out.label(here)
        for number, ordered in section:
            other, this = out.fresh(), out.fresh()
            out.emit(out.JEQ, number, this)
            out.emit(out.JA, other)
            out.label(this)
            for rule in ordered:
                fail = out.fresh()
                for condition in rule.conditions:
                    out.compare(condition, wide, bool(token & _LITTLE_ENDIAN), fail)
                out.emit(out.RET, rule.action)
                out.label(fail)
            if ordered[-1].conditions:
                out.emit(out.JA, "filter")
            out.label(other)
        out.emit(out.JA, done)
        out.label(after)
    out.label(done)
    largest = max((_number(lib, abi, name) for call in profile.syscalls or () for name in call.names), default=-1)
    if default in (_ALLOW, _LOG, _ENOSYS) or default & _ACTION == _TRACE or largest < 0:
        return  # a tracer handles new system calls itself
    known = out.fresh()
    out.emit(out.JGT, largest, "", known)
    out.emit(out.RET, _ENOSYS)
    out.label(known)
    if abi in ("SCMP_ARCH_S390", "SCMP_ARCH_S390X"):
        # Numbers too large for the instruction are passed in a register with number 0, and stay 0 if the kernel does not know them.
        known = out.fresh()
        out.emit(out.JEQ, 0, "", known)
        out.emit(out.RET, _ENOSYS)
        out.label(known)


def _own_rules(lib: ModuleType, abi: str, rules: list[_Rule]) -> dict[int, list[_Rule]]:
    """Return the rules that are not given to libseccomp, by system call number."""
    own: dict[int, list[_Rule]] = {}
    unconditional = {rule.name for rule in rules if not rule.conditions}
    for rule in rules:
        number = _number(lib, abi, rule.name)
        if rule.conditions or lib.resolve_syscall(0, rule.name) == -1:
            if number >= 0:
                own.setdefault(number, []).append(rule)
            for name, calls in _MULTIPLEXED.items() if rule.conditions and rule.action not in (_ALLOW, _LOG) else ():
                # The arguments of a multiplexed call are behind a pointer, so its conditions cannot be checked. They count as true
                # for a rule that refuses or asks, and as false for one that allows; otherwise socketcall would bypass the rule.
                if rule.name in calls and name not in unconditional and (multiplexer := _number(lib, abi, name)) >= 0:
                    condition = SyscallArg(index=0, value=_LOW_32, value_two=calls[rule.name], op=SeccompOperator.MASKED_EQ)
                    own.setdefault(multiplexer, []).append(rule._replace(conditions=(condition,)))
    return own


_MAGIC: Final = b"OCISECC\1"


def _head(key: str, program: bytes) -> bytes:
    # The checksum detects damage. Owner and mode protect the file from other users.
    return _MAGIC + struct.pack("<II", len(program), zlib.crc32(program, zlib.crc32(key.encode())))


def _open_directory(path: Path) -> int:
    """Open the cache directory. Return -1 if it is a symbolic link, or another user owns it or can write to it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    if not other_writers(os.fstat(fd)):
        return fd
    os.close(fd)
    return -1


def _read_cache(path: Path, key: str) -> bytes | None:
    directory = _open_directory(path)
    if directory < 0:
        return None
    try:
        fd = os.open(f"{key}.bpf", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return None
    finally:
        os.close(directory)
    try:
        info = os.fstat(fd)
        limit = len(_MAGIC) + 8 + 8 * MAX_INSTRUCTIONS
        if not stat.S_ISREG(info.st_mode) or other_writers(info) or info.st_size > limit:
            return None
        content = os.read(fd, limit)
    except OSError:
        return None
    finally:
        os.close(fd)
    program = content[16:]
    return program if program and len(program) % 8 == 0 and content[:16] == _head(key, program) else None


def _write_cache(path: Path, key: str, program: bytes) -> None:
    with contextlib.suppress(OSError):
        os.makedirs(path, 0o700, exist_ok=True)
    directory = _open_directory(path)
    if directory < 0:
        return
    try:
        replace_file(f"{key}.bpf", _head(key, program) + program, directory=directory)
    except OSError:
        return  # without space the next process compiles the profile again
    finally:
        os.close(directory)

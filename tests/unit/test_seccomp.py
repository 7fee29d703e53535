"""Compilation and caching of seccomp filters: errors, flags, keys, the cache in the process and on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from ociruntime import seccomp
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.seccomp import Filter, compile_profile, profile_key, unknown_syscalls
from ociruntime.spec.seccomp import (
    DEFAULT_CAPABILITIES,
    Seccomp,
    SeccompAction,
    SeccompArch,
    SeccompFlag,
    SeccompOperator,
    Syscall,
    SyscallArg,
    architectures_of,
    default_profile,
)

from ..support.waiting import SLOWER, TIME_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("pyseccomp", reason="libseccomp is not installed")


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_cache", {})


def profile(*calls: Syscall, default: str = "ERRNO", **more: Any) -> Seccomp:
    created = Seccomp(default_action=SeccompAction(f"SCMP_ACT_{default}"), syscalls=calls)
    return created.evolve(**more) if more else created


def call(action: str, *names: str, errno_ret: int | None = None, args: tuple[SyscallArg, ...] | None = None) -> Syscall:
    return Syscall(names=names, action=SeccompAction(f"SCMP_ACT_{action}"), errno_ret=errno_ret, args=args)


def arg(index: int = 0, value: int = 0, op: str = "SCMP_CMP_EQ", value_two: int | None = None) -> SyscallArg:
    return SyscallArg(index=index, value=value, value_two=value_two, op=SeccompOperator(op))


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each real compilation."""
    seen: list[str] = []
    original = seccomp._compile

    def counted(spec: Seccomp, machine: str) -> bytes:
        seen.append(machine)
        return original(spec, machine)

    monkeypatch.setattr(seccomp, "_compile", counted)
    return seen


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "path", "words"),
    [
        (profile(default="NOPE"), "defaultAction", "not an action of seccomp"),
        (profile(default="NOTIFY"), "defaultAction", "wait for an agent"),
        (profile(default="ALLOW", default_errno_ret=1), "defaultErrnoRet", "does not accept an errno"),
        (profile(default_errno_ret=4095), "defaultErrnoRet", "not 0 to 4094"),
        (profile(architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_VAX")), "architectures[1]", "not an architecture"),
        (profile(flags=("SECCOMP_FILTER_FLAG_NEW_LISTENER",)), "flags[0]", "not a flag"),
        (profile(call("ALLOW")), "syscalls[0].names", "at least one"),
        (profile(call("ALLOW", "read", "")), "syscalls[0].names", "at least one"),
        (profile(call("ALLOW", "read\0x")), "syscalls[0].names", "names of system calls"),
        (profile(call("ALLOW", "\ud800")), "syscalls[0].names", "names of system calls"),
        (profile(call("MAYBE", "read")), "syscalls[0].action", "not an action of seccomp"),
        (profile(call("ALLOW", "read"), call("KILL", "read", errno_ret=2)), "syscalls[1].errnoRet", "does not accept an errno"),
        (profile(call("TRACE", "read", errno_ret=1 << 16)), "syscalls[0].errnoRet", "not 0 to 65535"),
        (profile(call("ALLOW", "read", args=(arg(6),))), "syscalls[0].args[0].index", "six arguments"),
        (profile(call("ALLOW", "read", args=(arg(), arg(1, op="SCMP_CMP_SO")))), "syscalls[0].args[1].op", "not an operator"),
        (profile(call("ALLOW", "read", args=(arg(value=1 << 64),))), "syscalls[0].args[0].value", "64-bit"),
        (profile(call("ALLOW", "read", args=(arg(value_two=-1),))), "syscalls[0].args[0].valueTwo", "64-bit"),
        (profile(call("NOTIFY", "mkdir")), "listenerPath", "required by SCMP_ACT_NOTIFY"),
        (profile(call("NOTIFY", "mkdir", "sendmsg"), listener_path="/s"), "syscalls[0].names", "cannot be used for sendmsg"),
        (profile(call("NOTIFY", "read"), listener_path="/s"), "syscalls[0].names", "cannot be used for read"),
    ],
)
def test_invalid_profiles(bad: Seccomp, path: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_profile(bad)
    assert [problem.path for problem in caught.value.problems] == [f"$.linux.seccomp.{path}"]
    assert words in caught.value.problems[0].message


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        compile_profile(profile(call("MAYBE", "", args=(arg(9), arg(7)))))
    assert len(caught.value.problems) == 4


def test_a_missing_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(UnsupportedError, match=r"libseccomp >= 2\.5.*install"):
        compile_profile(profile(call("ALLOW", "read")))


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(UnsupportedError, match="'vax'"):
        compile_profile(profile(), machine="vax")


@pytest.mark.skipif(sys.byteorder != "little", reason="for a little-endian machine")
@pytest.mark.parametrize("machine", ["s390x", "ppc64"])
def test_a_machine_of_another_byte_order_is_refused(machine: str) -> None:
    with pytest.raises(UnsupportedError, match="byte order"):
        compile_profile(default_profile(arch=machine), machine=machine)


def test_a_program_too_long_for_the_kernel_is_refused() -> None:
    calls = [call("ALLOW", "ioctl", args=(arg(1, number, "SCMP_CMP_GT"),)) for number in range(900)]
    with pytest.raises(UnsupportedError, match=r"more than the kernel's 4096"):
        compile_profile(profile(*calls))


# --- what comes out -----------------------------------------------------------------------------------------------------------


def test_size_and_flags_of_a_filter() -> None:
    flags = ("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW")
    created = compile_profile(profile(call("ALLOW", "read"), flags=flags))
    assert created.flags == 7
    assert created.needs_listener is False
    assert created.instructions * 8 == len(created.program)
    assert compile_profile(profile(call("ALLOW", "read"))).flags == 0


def test_a_notification_needs_a_listener() -> None:
    flags = ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC")
    created = compile_profile(profile(call("NOTIFY", "mkdir"), default="ALLOW", listener_path="/run/agent", flags=flags))
    assert created.needs_listener
    assert created.flags == 1 | 1 << 4 | 1 << 5  # TSYNC with a listener needs TSYNC_ESRCH
    # Without a listener the kernel refuses the flag, which then means nothing.
    assert compile_profile(profile(call("ALLOW", "mkdir"), flags=flags)).flags == 1


def test_unknown_names() -> None:
    spec = profile(call("ALLOW", "read", "raed", "mseal", "uretprobe"))
    assert unknown_syscalls(spec) == ("raed",)
    assert compile_profile(spec).program == compile_profile(profile(call("ALLOW", "read", "mseal", "uretprobe"))).program


def test_every_name_of_the_default_profile_is_known() -> None:
    # These three are calls of m68k, which libseccomp has since 2.6.
    for capabilities in (
        frozenset[str](),
        frozenset(f"CAP_{name}" for name in ("SYS_ADMIN", "SYS_RAWIO", "SYS_TIME", "SYS_MODULE")),
    ):
        assert set(unknown_syscalls(default_profile(capabilities))) <= {"atomic_barrier", "atomic_cmpxchg_32", "getpagesize"}


def test_the_default_profile_is_complete_quick_and_the_same_object() -> None:
    created = default_profile()
    assert created is default_profile(frozenset(DEFAULT_CAPABILITIES))
    assert len({name for rule in created.syscalls or () for name in rule.names}) > 300
    for rule in created.syscalls or ():
        assert len(set(rule.names)) == len(rule.names)
    assert created.architectures == architectures_of(os.uname().machine)


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        ("x86_64", "X86_64 X86 X32"),
        ("i686", "X86"),
        ("aarch64", "AARCH64 ARM"),
        ("armv7l", "ARM"),
        ("ppc64le", "PPC64LE"),
        ("s390x", "S390X S390"),
        ("riscv64", "RISCV64"),
        ("loongarch64", "LOONGARCH64"),
        ("vax", ""),
    ],
)
def test_architectures_by_machine(machine: str, names: str) -> None:
    assert architectures_of(machine) == tuple(f"SCMP_ARCH_{name}" for name in names.split())


@pytest.mark.skipif(sys.byteorder != "little", reason="for a little-endian machine")
@pytest.mark.parametrize("machine", ["aarch64", "armv7l", "i686", "ppc64le", "riscv64", "mips64"])
def test_the_default_profile_compiles_for_other_machines(machine: str) -> None:
    created = compile_profile(default_profile(arch=machine), machine=machine)
    assert 300 < created.instructions < 4096


# --- the cache ----------------------------------------------------------------------------------------------------------------


def test_equal_content_is_compiled_once(compilations: list[str]) -> None:
    first = compile_profile(profile(call("ALLOW", "read")))
    assert compile_profile(profile(call("ALLOW", "read"))) is first
    assert compile_profile(profile(call("ALLOW", "read"), listener_metadata="does not matter")) is first
    assert len(compilations) == 1


def test_the_key_depends_on_the_program() -> None:
    base = profile(call("ALLOW", "read", args=(arg(),)))
    others = [
        profile(call("ALLOW", "read", args=(arg(),)), default="KILL"),
        base.evolve(default_errno_ret=1),
        base.evolve(flags=(SeccompFlag("SECCOMP_FILTER_FLAG_LOG"),)),
        base.evolve(architectures=(SeccompArch("SCMP_ARCH_X86"),)),
        base.evolve(listener_path="/s"),
        profile(call("ALLOW", "read")),
        profile(call("ALLOW", "write", args=(arg(),))),
        profile(call("ALLOW", "read", args=(arg(1),))),
        profile(call("ALLOW", "read", args=(arg(value=1),))),
        profile(call("ALLOW", "read", args=(arg(value_two=1),))),
        profile(call("ALLOW", "read", args=(arg(op="SCMP_CMP_NE"),))),
        profile(call("ERRNO", "read", errno_ret=3, args=(arg(),))),
        profile(call("ALLOW", "read", args=(arg(),)), call("ALLOW", "read", args=(arg(),))),
    ]
    keys = {profile_key(each) for each in (base, *others)} | {profile_key(base, "aarch64")}
    assert len(keys) == len(others) + (2 if os.uname().machine != "aarch64" else 1)
    assert all(len(key) == 64 and int(key, 16) >= 0 for key in keys)


def test_the_key_of_the_caller_is_used(compilations: list[str]) -> None:
    spec = profile(call("ALLOW", "read"))
    assert compile_profile(spec, key=profile_key(spec)) is compile_profile(spec)
    assert len(compilations) == 1


def test_threads_compile_once(compilations: list[str]) -> None:
    spec = default_profile()
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda _: compile_profile(spec), range(16)))
    assert all(each is created[0] for each in created)
    assert len(compilations) == 1


def test_the_cache_in_the_process_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "MAX_CACHED", 3)
    created = [compile_profile(profile(call("ERRNO", "read", errno_ret=number), default="ALLOW")) for number in range(2, 7)]
    assert list(seccomp._cache.values()) == created[-3:]


def stored(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def forget() -> None:
    seccomp._cache.clear()


def test_the_disk_keeps_filters_privately(tmp_path: Path, compilations: list[str]) -> None:
    directory = tmp_path / "deep" / "cache"
    first = compile_profile(default_profile(), cache_dir=directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert stored(directory).stat().st_mode & 0o777 == 0o600
    forget()
    second = compile_profile(default_profile(), cache_dir=directory)
    assert second == first
    assert second is not first
    assert len(compilations) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "huge", "head", "other"])
def test_a_damaged_file_is_replaced(tmp_path: Path, compilations: list[str], damage: str) -> None:
    first = compile_profile(profile(call("ALLOW", "read")), cache_dir=tmp_path)
    file = stored(tmp_path)
    good = file.read_bytes()
    bad = {
        "flip": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "cut": good[:-8],
        "grow": good + good[-8:],
        "empty": b"",
        "huge": good + b"\0" * 8 * 4096,
        "head": b"x" + good[1:],
        "other": good,
    }[damage]
    file.write_bytes(bad)
    forget()
    if damage == "other":  # the filter of another profile under this name
        other = compile_profile(profile(call("ALLOW", "write")), cache_dir=tmp_path)
        (foreign,) = (each for each in tmp_path.iterdir() if each != file)
        file.write_bytes(foreign.read_bytes())
        assert other != first
        forget()
    before = len(compilations)
    assert compile_profile(profile(call("ALLOW", "read")), cache_dir=tmp_path) == first
    assert len(compilations) == before + 1
    assert file.read_bytes() == good


def test_a_link_or_a_fifo_or_an_open_file_is_replaced(tmp_path: Path, compilations: list[str]) -> None:
    spec = profile(call("ALLOW", "read"))
    directory, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    compile_profile(spec, cache_dir=directory)
    file = stored(directory)
    good = file.read_bytes()
    for number, spoil in enumerate(("link", "fifo", "writable"), 2):
        if spoil == "writable":
            file.chmod(0o622)
        else:
            file.unlink()
            if spoil == "link":
                elsewhere.write_bytes(good)
                file.symlink_to(elsewhere)
            else:
                os.mkfifo(file)
        forget()
        compile_profile(spec, cache_dir=directory)
        assert len(compilations) == number, spoil
        assert stored(directory).read_bytes() == good
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o777 == 0o600
    assert elsewhere.read_bytes() == good


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_files_of_other_users_are_ignored(tmp_path: Path, compilations: list[str], what: str) -> None:
    spec = profile(call("ALLOW", "read"))
    directory = tmp_path / "cache"
    compile_profile(spec, cache_dir=directory)
    file = stored(directory)
    os.chown(file if what == "file" else directory, 65534, 65534)
    forget()
    compile_profile(spec, cache_dir=directory)
    assert len(compilations) == 2
    assert file.stat().st_uid == 0
    assert directory.stat().st_uid == (0 if what == "file" else 65534)


@pytest.mark.parametrize("what", ["symlink", "writable", "file", "absent parent is a file"])
def test_an_unsafe_directory_is_ignored(tmp_path: Path, compilations: list[str], what: str) -> None:
    directory = tmp_path / "cache"
    if what == "symlink":
        (tmp_path / "real").mkdir(0o700)
        directory.symlink_to(tmp_path / "real")
    elif what == "writable":
        directory.mkdir()
        directory.chmod(0o777)
    else:
        directory.write_text("")
        if what != "file":
            directory = directory / "below"
    compile_profile(profile(call("ALLOW", "read")), cache_dir=directory)
    assert len(compilations) == 1
    assert list(tmp_path.rglob("*.bpf")) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert compile_profile(profile(call("ALLOW", "read")), cache_dir=tmp_path).instructions > 0
    assert list(tmp_path.iterdir()) == []


def test_a_hit_on_disk_imports_no_pyseccomp(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from ociruntime.seccomp import compile_profile\n"
        "from ociruntime.spec.seccomp import default_profile\n"
        f"made = compile_profile(default_profile(), cache_dir=pathlib.Path({str(tmp_path)!r}))\n"
        "print('pyseccomp' in sys.modules, 'hashlib' in sys.modules, made.instructions)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(seccomp.__file__)))
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=TIME_LIMIT)
        for _ in "12"
    ]
    first, second = (each.stdout.split() for each in runs)
    assert first[0] == "True"
    assert second[0] == "False"
    assert first[2] == second[2]


def test_a_cache_hit_is_fast() -> None:
    spec = default_profile()
    compile_profile(spec)
    best = min(_timed(spec) for _ in range(20))
    assert best < 0.005 * SLOWER  # tens of microseconds on an idle machine


def _timed(spec: Seccomp) -> float:
    begin = time.perf_counter()
    compile_profile(spec)
    return time.perf_counter() - begin


def test_a_filter_is_a_frozen_value() -> None:
    created = Filter(b"\0" * 16)
    assert created == Filter(b"\0" * 16)
    assert created.instructions == 2
    with pytest.raises(AttributeError):
        created.flags = 1  # type: ignore[misc]

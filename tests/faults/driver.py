"""Operations with faults: ``python -m tests.faults.driver``; see ``--help``.

It needs root. Exit status: 0 if every outcome is one that is documented, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import os
import pkgutil
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import ociruntime as oci

from ..support.images import make_busybox_tree
from ..support.private_users import UID, private_files
from ..support.users import interpreter_for_users
from .injector import KILL, Call, role_of
from .operations import CALLERS, OPERATIONS, Operation, Place
from .page import Row, write_page
from .trials import Caller, Outcome, adopt_orphans, attempt

PROGRAMS: Final = frozenset({"sleep", "echo", "sh", "cat", "true", "busybox", "gone"})
"""The programs of the containers, to which nothing is done."""
INTERPRETER: Final = frozenset(
    "read write close mmap munmap mremap mprotect madvise brk futex rt_sigaction rt_sigprocmask rt_sigreturn exit exit_group".split()
)
"""Calls without which no Python program runs: they are answered with an errno in other processes only."""
DESCRIPTORS: Final = frozenset(
    "open openat openat2 socket socketpair accept4 pipe2 dup dup2 dup3 memfd_create epoll_create1 eventfd2 inotify_init1 pidfd_open"
    " open_tree fsopen fsmount fspick clone3 recvmsg".split()
)
MEMORY: Final = frozenset(
    "mmap clone clone3 fork vfork execve execveat unshare setns mount fsopen fsconfig fsmount open_tree move_mount mount_setattr"
    " pivot_root openat openat2 mkdir mkdirat mknodat symlinkat socket socketpair bind sendmsg memfd_create seccomp prctl".split()
)
SPACE: Final = frozenset(
    "write pwrite64 pwritev sendfile copy_file_range ftruncate fallocate openat openat2 mkdir mkdirat mknod mknodat symlink symlinkat"
    " link linkat rename renameat renameat2 bind setxattr fsetxattr".split()
)


class Case(NamedTuple):
    """One fault at one place."""

    what: str
    run: Callable[[], Outcome]


class Faults:
    """The faults of one operation of one caller."""

    def __init__(self, name: str, caller: Caller, points: int) -> None:
        self.operation: Operation = OPERATIONS[name]
        self.name, self.caller, self.points = name, caller, points
        self._calls: list[tuple[str, str]] = []

    def record(self) -> Outcome:
        """Carry the operation out without a fault, and keep its calls."""
        roles: dict[int, str] = {}
        pids: list[int] = []

        def note(call: Call) -> int:
            pids.append(call.pid)
            if call.pid not in roles or roles[call.pid] in ("init", "gone") or call.name.startswith("exec"):
                roles[call.pid] = role_of(call.pid, pids[0])
            self._calls.append((call.name, roles[call.pid]))
            return 0

        return attempt(self.operation, self.caller, note)

    def _choose(self, wanted: Iterable[int]) -> list[int]:
        """Return at most ``points`` of some numbers, evenly."""
        numbers = list(wanted)
        if not self.points or len(numbers) <= self.points:
            return numbers
        return [numbers[position * len(numbers) // self.points] for position in range(self.points)]

    def _once(self, index: int, answer: int) -> Outcome:
        """Answer one call: the one with this number, if it is of the same name as in the recording, or the next one that is."""
        name, role = self._calls[index]
        done: list[int] = []
        first: list[int] = []

        def decide(call: Call) -> int:
            if not first:
                first.append(call.pid)
            if done or call.position < index or call.name != name or role_of(call.pid, first[0]) != role:
                return 0
            done.append(call.position)
            return answer

        return attempt(self.operation, self.caller, decide)

    def _always(self, name: str, code: int) -> Outcome:
        first: list[int] = []

        def decide(call: Call) -> int:
            if not first:
                first.append(call.pid)
            if call.name != name:
                return 0
            role = role_of(call.pid, first[0])
            return 0 if role in PROGRAMS or (role == "caller" and name in INTERPRETER) else code

        return attempt(self.operation, self.caller, decide)

    def kill(self) -> Iterator[Case]:
        """SIGKILL of each process at each of its calls."""
        for role in sorted({role for _, role in self._calls} - PROGRAMS):
            of_role = [index for index, call in enumerate(self._calls) if call[1] == role]
            for index in self._choose(of_role):
                yield Case(f"{role} at {index} {self._calls[index][0]}", partial(self._once, index, KILL))

    def absent(self, code: int) -> Iterator[Case]:
        """Each call answered with an errno, always."""
        names = sorted({name for name, role in self._calls if role not in PROGRAMS} - {"exit", "exit_group", "rt_sigreturn"})
        for position in self._choose(range(len(names))):
            yield Case(names[position], partial(self._always, names[position], code))

    def exhausted(self, code: int, calls: frozenset[str]) -> Iterator[Case]:
        """One call after the other answered with an errno of exhaustion."""
        of_kind = [
            index
            for index, (name, role) in enumerate(self._calls)
            if name in calls and role not in PROGRAMS and not (role == "caller" and name in INTERPRETER)
        ]
        for index in self._choose(of_kind):
            name, role = self._calls[index]
            yield Case(f"{name} of {role} at {index}", partial(self._once, index, code))

    def _arranged(self, arrange: Callable[[], None]) -> Outcome:
        return attempt(self.operation, self.caller, arrange=arrange)

    def descriptors(self) -> Iterator[Case]:
        """RLIMIT_NOFILE with ever more free descriptors."""
        for free in self._choose(range(60)):
            yield Case(f"{free} descriptors", partial(self._arranged, partial(limit_descriptors, free)))

    def address_space(self) -> Iterator[Case]:
        """RLIMIT_AS with ever more memory than the process has."""
        for extra in self._choose(range(128)):
            yield Case(f"{extra * 256} KiB", partial(self._arranged, partial(limit_memory, extra << 18)))

    def memory_cgroup(self) -> Iterator[Case]:
        """A memory cgroup with ever more memory."""
        for size in self._choose(range(1, 64)):
            yield Case(f"{size * 512} KiB", partial(self._in_cgroup, size << 19))

    def _in_cgroup(self, size: int) -> Outcome:
        with memory_cgroup(size) as join:
            return self._arranged(join)

    def disk(self, place: str, inodes: bool) -> Iterator[Case]:
        """A filesystem with ever more free space, or files."""
        for free in self._choose(range(24)):
            yield Case(f"{free} free", partial(self._on_disk, place, inodes, free))

    def _on_disk(self, place: str, inodes: bool, free: int) -> Outcome:
        """Carry out with a full disk: it becomes full when the operation has been prepared, and has space again for the clean-up."""
        directory: Path = getattr(self.caller.place, place)
        with small_disk(directory, self.caller.uid) as filler:
            return self._arranged(partial(filler, free, inodes))

    def cgroups_read_only(self) -> Iterator[Case]:
        """The cgroup filesystems are read-only."""
        yield Case("all hierarchies", partial(self._arranged, cgroups_read_only))


def limit_descriptors(free: int) -> None:
    """Allow this process to open only so many more file descriptors."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(free + 1)]  # these are the lowest free numbers
    for fd in fds:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[-1], fds[-1]))


def limit_memory(extra: int) -> None:
    """Allow this process only so many more bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@contextlib.contextmanager
def memory_cgroup(size: int) -> Iterator[Callable[[], None]]:
    """Make a cgroup with a limit of memory. Yield what moves this process into it."""
    where = next((h.mountpoint for h in oci.Host.probe().hierarchies if "memory" in h.controllers), None)
    assert where is not None, "no hierarchy with a memory controller"
    path = Path(where, f"oci-faults-{os.getpid()}")
    path.mkdir()
    try:
        limit = path / "memory.limit_in_bytes"
        (limit if limit.exists() else path / "memory.max").write_text(str(size))

        def join() -> None:
            (path / "cgroup.procs").write_text("0")

        yield join
    finally:
        deadline = time.monotonic() + 5
        while True:
            try:
                path.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@contextlib.contextmanager
def small_disk(directory: Path, uid: int) -> Iterator[Callable[[int, bool], None]]:
    """Mount a filesystem of 1 MiB and 512 files on a directory. Yield what leaves only so many free pages, or files."""
    options = f"size=1m,nr_inodes=512,mode=700,uid={uid},gid={uid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    filler = directory / ".filler"

    def fill(free: int, inodes: bool) -> None:
        found = os.statvfs(directory)
        filler.mkdir()
        if inodes:
            for number in range(found.f_ffree - 1 - free):
                (filler / str(number)).touch()
        else:
            (filler / "pages").write_bytes(bytes((found.f_bavail - free) * found.f_bsize))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def cgroups_read_only() -> None:
    """Make all cgroup filesystems read-only for this process, in a mount namespace of its own."""
    if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
        raise OSError("unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for hierarchy in oci.Host.probe().hierarchies:
        subprocess.run(["mount", "-o", "remount,bind,ro", hierarchy.mountpoint], check=True)


DISKS: Final = {
    "state": frozenset(OPERATIONS) - {"build"},
    "scratch": frozenset({"run a SIF", "build"}),
    "out": frozenset({"supervise", "mount", "build"}),
}
"""The operations that write to a place."""


class Fault(NamedTuple):
    """A fault, and the operations that are tried with it."""

    cases: Callable[[Faults], Iterator[Case]]
    text: str
    """What is done, for the page."""
    of: frozenset[str] = frozenset(OPERATIONS)


FAULTS: Final = {
    "SIGKILL": Fault(
        Faults.kill,
        "The caller, the init process, the supervisor and each helper is killed at one of its system calls after another.",
    ),
    "ENOSYS": Fault(
        lambda faults: faults.absent(errno.ENOSYS),
        "Each system call that an operation makes fails in all its processes, from the beginning to the end.",
    ),
    "EPERM": Fault(lambda faults: faults.absent(errno.EPERM), "The same, as filters of containers and of services do."),
    "ENFILE": Fault(
        lambda faults: faults.exhausted(errno.ENFILE, DESCRIPTORS),
        "One call after another that makes a file descriptor fails: too many files are open in the system.",
    ),
    "ENOMEM": Fault(
        lambda faults: faults.exhausted(errno.ENOMEM, MEMORY),
        "One call after another for which the kernel needs memory fails.",
    ),
    "ENOSPC": Fault(
        lambda faults: faults.exhausted(errno.ENOSPC, SPACE), "One call after another that makes or writes a file fails."
    ),
    "few descriptors": Fault(Faults.descriptors, "RLIMIT_NOFILE leaves the caller 0 to 59 more file descriptors."),
    "little address space": Fault(Faults.address_space, "RLIMIT_AS leaves the caller 0 to 32 MiB more."),
    "tiny memory cgroup": Fault(Faults.memory_cgroup, "The caller is in a memory cgroup of 0.5 to 32 MiB, and may be killed."),
    "full state directory": Fault(
        lambda faults: faults.disk("state", False), "Its filesystem has 0 to 23 free pages.", DISKS["state"]
    ),
    "state directory without inodes": Fault(
        lambda faults: faults.disk("state", True), "Its filesystem takes 0 to 23 more files.", DISKS["state"]
    ),
    "full TMPDIR": Fault(
        lambda faults: faults.disk("scratch", False),
        "The filesystem of upper layers and temporary files has 0 to 23 free pages.",
        DISKS["scratch"],
    ),
    "full output": Fault(
        lambda faults: faults.disk("out", False),
        "The filesystem of the log, the mounted bundle or the image that is built has 0 to 23 free pages.",
        DISKS["out"],
    ),
    "read-only cgroups": Fault(Faults.cgroups_read_only, "All cgroup filesystems are read-only for the caller."),
}


SECTIONS: Final = {
    name: (fault.text, [operation for operation in OPERATIONS if operation in fault.of]) for name, fault in FAULTS.items()
}
"""The sections of the page."""


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tests.faults.driver", description="Try operations with faults.")
    parser.add_argument("--points", type=int, default=60, help="at most so many places for each fault (0: all; default: 60)")
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="this one alone; may be repeated")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="this one alone; may be repeated")
    parser.add_argument("--caller", action="append", choices=CALLERS, help="this one alone; may be repeated")
    parser.add_argument("--page", type=Path, help="write the outcomes into the tables of this page")
    parser.add_argument("--verbose", action="store_true", help="print each outcome")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def import_everything() -> None:
    """Import all modules of the package, so that children of this process import none while there is a fault."""
    for module in pkgutil.walk_packages(oci.__path__, "ociruntime."):
        if not module.name.startswith(("ociruntime.__main__", "ociruntime.integrations.")):
            importlib.import_module(module.name)


def try_all(arguments: argparse.Namespace, base: Path, uid: int) -> int:
    """Try everything that is asked for. Return the number of findings."""
    adopt_orphans()
    import_everything()
    rootfs, sif = base / "rootfs", base / "busybox.sif"
    if not make_busybox_tree(rootfs):
        raise SystemExit("no busybox (Debian: busybox-static)")
    oci.build_sif(sif, rootfs, singularity_layout=True)
    sif.chmod(0o644)
    callers = [Caller(name, 0 if name == "root" else uid, Place(base / name, rootfs, sif)) for name in arguments.caller or CALLERS]
    rows, findings = list[Row](), 0
    for caller in callers:
        caller.place.make(caller.uid)
    for caller in callers:
        for name in arguments.operation or OPERATIONS:
            if caller.name not in OPERATIONS[name].callers:
                continue
            faults = Faults(name, caller, arguments.points)
            outcome = faults.record()
            if outcome.finding or outcome.kind != "works":
                findings += 1
                print(f"{caller.name}: {name}: {outcome}", flush=True)
                continue
            for kind in arguments.fault or FAULTS:
                if name not in FAULTS[kind].of:
                    continue
                began, kinds, slowest, found = time.monotonic(), Counter[str](), 0.0, 0
                for case in FAULTS[kind].cases(faults):
                    outcome = case.run()
                    kinds[outcome.kind] += 1
                    slowest = max(slowest, outcome.seconds)
                    if outcome.finding or arguments.verbose:
                        print(f"{caller.name}: {name}: {kind}: {case.what}: {outcome.finding or outcome.kind}", flush=True)
                    found += bool(outcome.finding)
                rows.append(Row(caller.name, name, kind, dict(kinds), slowest))
                findings += found
                took = time.monotonic() - began
                print(f"{caller.name}: {name}: {kind}: {dict(kinds)}, {found} findings, {took:.0f} s", flush=True)
            if arguments.page and not findings:
                write_page(arguments.page, rows, SECTIONS)
    return findings


def open_tun(directory: Path) -> list[str]:
    """Make a tun device for every user, for private networks. Return the commands that mount it."""
    if not os.path.exists("/dev/net/tun"):
        return []
    os.mknod(directory / "tun", 0o20666, os.makedev(10, 200))
    os.chmod(directory / "tun", 0o666)
    return [f"mount --bind {directory}/tun /dev/net/tun"]


def main(words: list[str]) -> int:
    """Run the driver in a mount namespace of its own."""
    arguments = parse_arguments(words)
    if arguments.inside:
        findings = try_all(arguments, Path(arguments.inside[0]), int(arguments.inside[1]))
        print(f"{findings} findings")
        return 1 if findings else 0
    with interpreter_for_users() as python, tempfile.TemporaryDirectory(prefix="ociruntime-faults-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        os.makedirs("/run/ociruntime", mode=0o700, exist_ok=True)
        commands = private_files(Path(name), subordinate=True, fuse=True)
        commands += ["mount -t tmpfs -o mode=700 tmpfs /run/ociruntime", *open_tun(Path(name)), 'exec "$@"']
        path = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.append({path!r}); from tests.faults.driver import main; sys.exit(main(sys.argv[1:]))"
        command = ["unshare", "--mount", "sh", "-ec", "\n".join(commands), "sh", python, "-P", "-c", code, *words]
        return subprocess.run([*command, "--inside", name, str(UID)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measure the operations on containers, side by side with crun and runc.

    python benchmarks/bench_lifecycle.py [--rounds N] [--idle-ms 25] [--json FILE]

Needs root and a static busybox; uses crun, runc, bwrap, xargs and mksquashfs if they are installed. The cases alternate within a
round, so that a change of the machine's speed affects all of them, and each round has them in another order, because a case leaves
work for the kernel and the caches of the processor to the next one. Every case is measured back to back, as the second of two, and
after an idle gap. The tables have medians and mark figures that exceed their budget. The exit status is not that of a measurement.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ociruntime as oci

Times = dict[str, float]
Case = Callable[[], Times]

RUN = "run, in process"
RUN_SIF, RUN_SIF_TMPFS = "run of a SIF, in process", "run of a SIF with a tmpfs, in process"
SANDBOX, IN_SANDBOX = "sandbox of a SIF: create, run, close", "run in a sandbox"
POOL = "get of a sandbox from a pool"
CLONE_NEWNS, MS_REC, MS_SLAVE, MNT_DETACH = 0x20000, 0x4000, 0x80000, 2
UNIFIED = Path("/sys/fs/cgroup/unified")
ENVIRONMENT = dict(os.environ)
PYTHON = sys.executable
COMMAND = "from ociruntime.cli import script; script()"
"""The code of the console script."""
PARSE = "from ociruntime.cli import main; from ociruntime.cli.parser import parse_args; parse_args(['state', 'ID'])"
PLAN = f"{PARSE}; import sys, ociruntime; ociruntime.Bundle.load(sys.argv[1]).plan()"
"""What `create` and `run` do before the first system call of a container: import the rest of the package, and compile the plan."""
TIMEOUT = 60.0
CLI_RUN_BUDGET = 2.5
"""Budget of the command `run`, in times of runc."""
CLI_COMMANDS, CLI_BUDGET_MS = ("state", "start", "kill", "delete"), 25
"""Commands, and their budget above the time of the interpreter."""


class Failed(Exception):
    """A command of a case failed. The case is skipped, and a note has the reason."""


CASE_ERRORS = (Failed, oci.OCIRuntimeError, OSError, BrokenExecutor)


class Row(NamedTuple):
    """A row of the table of budgets: a figure and its limit. `figure` is None if it was not measured."""

    what: str
    figure: float | None
    budget: float
    unit: str
    at_least: bool = False

    @property
    def over(self) -> bool:
        return self.figure is not None and (self.figure < self.budget if self.at_least else self.figure > self.budget)


def call(args: Sequence[str]) -> float:
    """Run a command and return the time that it takes in seconds.

    The function waits with a pidfd, because `Popen.wait` with a timeout sleeps in increasing steps, which would distort the result.
    stderr is a file, because a pipe that a container's process inherits could delay the end.
    """
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen(args, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        pidfd = os.pidfd_open(child.pid)
        ended = select.select([pidfd], [], [], TIMEOUT)[0]
        took = time.perf_counter() - began
        os.close(pidfd)
        if not ended:
            child.kill()
        if child.wait():
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip().splitlines() or [""]
            raise Failed(f"{Path(args[0]).name}: exit status {child.returncode}: {text[-1]}")
    return took


def pss(pid: int) -> float:
    """Return the proportional set size of a process in KiB."""
    return float(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0])


def hide_unified() -> None:
    """Move this thread, and the processes that it starts, to a mount namespace without the cgroup2 mount of a hybrid host.

    crun up to 1.8 refuses every command on a hybrid host, also with `--cgroup-manager=disabled`. Without the mount it detects v1.
    The namespace belongs to the thread, so no further program runs between the clock and crun.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    slave = ctypes.c_ulong(MS_REC | MS_SLAVE)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, slave, None) or libc.umount2(os.fsencode(UNIFIED), MNT_DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(UNIFIED))


class CommandLine:
    """A runtime that is measured through its command line, with a config equivalent to the one for in-process calls."""

    def __init__(self, name: str, program: str, options: Sequence[str], place: Place) -> None:
        self.name, self.place = name, place
        self.root = place.state / name.replace(" ", "-")
        self.command = [program, *options, "--root", str(self.root)]
        refuses = "crun" in name and (UNIFIED / "cgroup.controllers").exists()
        self.note = "in a mount namespace without /sys/fs/cgroup/unified" if refuses else ""
        # one thread for all commands, because the mount namespace belongs to the thread
        self.thread = ThreadPoolExecutor(1, initializer=hide_unified if refuses else None)

    def call(self, *args: str) -> float:
        return self.thread.submit(call, [*self.command, *args]).result()

    def run(self) -> Times:
        return {f"run, {self.name}": self.call("run", "--bundle", str(self.place.other_bundle), self.place.new_id())}

    def steps(self) -> Times:
        name, bundle = self.place.new_id(), str(self.place.other_bundle)
        times = {f"create, {self.name}": self.call("create", "--bundle", bundle, name)}
        for command in (["state"], ["start"], ["delete", "--force"]):
            times[f"{command[0]}, {self.name}"] = self.call(*command, name)
        self.call("create", "--bundle", bundle, name)
        times[f"kill, {self.name}"] = self.call("kill", name, "KILL")
        self.call("delete", "--force", name)
        return times

    def memory(self) -> float:
        name, pid_file = self.place.new_id(), self.place.directory / "pid"
        self.call("create", "--bundle", str(self.place.other_bundle), "--pid-file", str(pid_file), name)
        try:
            return pss(int(pid_file.read_text()))
        finally:
            self.call("delete", "--force", name)

    def parallel(self, count: int, workers: int) -> float:
        """Return the number of containers per second that xargs runs in parallel."""
        ids = self.place.directory / "ids"
        ids.write_text("".join(f"{self.place.new_id()}\n" for _ in range(count)))
        command = [*self.command, "run", "--bundle", str(self.place.other_bundle), "ID"]
        return count / self.thread.submit(call, ["xargs", "-a", str(ids), f"-P{workers}", "-IID", *command]).result()

    def close(self) -> None:
        self.thread.submit(int).result()  # wait for a command that was interrupted, so that its container is found
        for entry in sorted(self.root.glob(f"{self.place.prefix}*")):
            try:
                self.call("delete", "--force", entry.name)
            except Failed as error:
                print(f"bench_lifecycle: cannot delete {entry.name} of {self.name}: {error}", file=sys.stderr)
        self.thread.shutdown()


class Place:
    """The files of the benchmark: a directory, a state directory, and the prefix of all container ids."""

    def __init__(self) -> None:
        self.prefix = f"bench-{os.getpid()}-"
        self._numbers = itertools.count()
        self.directory = Path(tempfile.mkdtemp(prefix="ociruntime-bench-"))
        # as in real use, where the state directory is in /run, usually a tmpfs
        self.state = Path(tempfile.mkdtemp(prefix="ociruntime-bench-", dir="/run"))
        self.root = self.state / "ociruntime"
        self.sif = self.directory / "image.sif"
        self.path, self.other_bundle = self.directory / "bundle", self.directory / "other"

    def fill(self, busybox: str) -> None:
        # use bytecode as an installed package does, whatever the environment says, and write none to the tree
        ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(self.directory / "pycache")
        ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
        path = self.path
        for directory in ("bin", "proc", "sys", "dev", "etc", "tmp"):
            (path / "rootfs" / directory).mkdir(parents=True)
        shutil.copy(busybox, path / "rootfs/bin/busybox")
        (path / "rootfs/bin/true").symlink_to("busybox")
        oci.Bundle.from_dir(path)
        config = json.loads((path / "config.json").read_bytes())
        config["process"] |= {"args": ["/bin/true"], "terminal": False}
        (path / "config.json").write_text(json.dumps(config))
        self.bundle = oci.Bundle.load(path)
        # the same config for the other runtimes, with an older version and an absolute rootfs path
        self.other_bundle.mkdir()
        config["ociVersion"] = "1.0.2"
        config["root"]["path"] = str(path / "rootfs")
        (self.other_bundle / "config.json").write_text(json.dumps(config))

    def new_id(self) -> str:
        return f"{self.prefix}{next(self._numbers)}"

    def close(self) -> None:
        for container in oci.Container.list(state_root=self.root):
            container.delete(force=True)
        mounted = self.directory / "mounted"
        if (mounted / "config.json").exists():
            oci.Bundle.load(mounted).umount()
        shutil.rmtree(self.state)
        shutil.rmtree(self.directory)


class InProcess:
    """This library, called in the benchmark's own process."""

    def __init__(self, place: Place, null: int) -> None:
        self.place, self.null = place, null

    def _create(self) -> oci.Container:
        place, null = self.place, self.null
        return oci.Container.create(place.new_id(), place.bundle, state_root=place.root, stdin=null, stdout=null, stderr=null)

    def run(self) -> Times:
        return {RUN: self._run(self.place.bundle, None)}

    def run_sif(self) -> Times:
        return {
            RUN_SIF: self._run(self.place.sif, None, ["/bin/true"]),
            RUN_SIF_TMPFS: self._run(self.place.sif, "tmpfs", ["/bin/true"]),
        }

    def _run(self, image: oci.Bundle | Path, overlay: str | None, args: Sequence[str] = ()) -> float:
        name, place, null = self.place.new_id(), self.place, self.null
        t0 = time.perf_counter()
        oci.run(
            image,
            args,
            stdin=null,
            stdout=null,
            stderr=null,
            overlay=overlay,
            container_id=name,
            state_root=place.root,
            check=True,
            timeout=TIMEOUT,
        )
        return time.perf_counter() - t0

    def steps(self) -> Times:
        t0 = time.perf_counter()
        container = self._create()
        t1 = time.perf_counter()
        container.start()
        t2 = time.perf_counter()
        container.wait(TIMEOUT)
        t3 = time.perf_counter()
        container.delete()
        t4 = time.perf_counter()
        return {"create, in process": t1 - t0, "start, in process": t2 - t1, "delete, in process": t4 - t3}

    def sif(self) -> Times:
        t0 = time.perf_counter()
        bundle = oci.Bundle.from_sif(self.place.sif, self.place.directory / "mounted")
        t1 = time.perf_counter()
        bundle.umount()
        return {"mount of a SIF": t1 - t0, "umount of a SIF": time.perf_counter() - t1}

    def sandbox(self) -> Times:
        place = self.place
        t0 = time.perf_counter()
        sandbox = oci.Sandbox(place.sif, name=place.new_id(), state_root=place.root, timeout=TIMEOUT)
        sandbox.run(["/bin/true"], check=True)
        t1 = time.perf_counter()
        sandbox.run(["/bin/true"], check=True)
        t2 = time.perf_counter()
        sandbox.close()
        return {SANDBOX: time.perf_counter() - t2 + t1 - t0, IN_SANDBOX: t2 - t1}

    def pool(self) -> Times:
        with oci.SandboxPool(self.place.sif, size=1, state_root=self.place.root) as pool:
            while not pool.ready:
                time.sleep(0.001)
            began = time.perf_counter()
            sandbox = pool.get()
            taken = time.perf_counter() - began
            sandbox.close()
        return {POOL: taken}

    def bwrap(self) -> Times:
        return {"run, bwrap": call(["bwrap", "--unshare-all", "--ro-bind", str(self.place.bundle.rootfs), "/", "/bin/true"])}

    def memory(self) -> float:
        with self._create() as container:
            return pss(container.pid)

    @staticmethod
    def parallel(work: Case, count: int, workers: int) -> float:
        """Return how often threads do a piece of work in a second."""
        with ThreadPoolExecutor(workers) as pool:
            began = time.perf_counter()
            list(pool.map(lambda _: work(), range(count)))
            return count / (time.perf_counter() - began)


def interpreter(bundle: Path) -> Times:
    codes = {"pass": "pass", "import ociruntime": "import ociruntime", "from ociruntime import run": "from ociruntime import run"}
    codes |= {"command line": PARSE, "plan": PLAN}
    return {f"interpreter, {label}": call([PYTHON, "-c", code, str(bundle)]) for label, code in codes.items()}


def try_out(cases: dict[str, Case], notes: list[str]) -> list[Case]:
    """Run each case once as a warm-up and return those that work; the others add a note."""
    good: list[Case] = []
    for name, case in cases.items():
        try:
            case()
            good.append(case)
        except CASE_ERRORS as error:
            notes.append(f"skipped: {name}: {error}")
    return good


def measure(cases: Sequence[Case], rounds: int, idle: float) -> Times:
    """Return the median seconds by label. The order of the cases is another one in each round, and the same in each measurement.

    Args:
        idle: seconds of sleep before each case; 0 to run it twice and measure the second time, so that each case follows itself.
    """
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for case in random.Random(number).sample(cases, len(cases)):
            if idle:
                time.sleep(idle)
            else:
                case()
            for label, seconds in case().items():
                times.setdefault(label, []).append(seconds)
    return {label: statistics.median(values) for label, values in times.items()}


def optional(figure: Callable[[], float], what: str, rounds: int, notes: list[str]) -> float | None:
    try:
        return statistics.median(figure() for _ in range(rounds))
    except CASE_ERRORS as error:
        notes.append(f"skipped: {what}: {error}")
        return None


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def budgets(times: Times, when: str) -> list[Row]:
    """Return the rows of the table of budgets."""
    rows = [Row(f"run in process / crun ({when})", ratio(times.get(RUN), times.get("run, crun")), 0.25, "x")]
    for name in RUN_SIF, RUN_SIF_TMPFS:
        rows.append(
            Row(f"{name.removesuffix(', in process')} / of a bundle ({when})", ratio(times.get(name), times.get(RUN)), 1.5, "x")
        )
    rows.append(Row(f"{SANDBOX} / run of a bundle ({when})", ratio(times.get(SANDBOX), times.get(RUN)), 1.5, "x"))
    for name, budget in ((IN_SANDBOX, 4), (POOL, 2)):
        rows.append(Row(f"{name} ({when})", times[name] * 1e3 if name in times else None, budget, "ms"))
    rows.append(Row(f"CLI run / runc ({when})", ratio(times.get("run, CLI"), times.get("run, runc")), CLI_RUN_BUDGET, "x"))
    bare = times["interpreter, pass"]
    for command in CLI_COMMANDS:
        own = times.get(f"{command}, CLI")
        rows.append(Row(f"CLI {command} - interpreter ({when})", None if own is None else (own - bare) * 1e3, CLI_BUDGET_MS, "ms"))
    rows.append(Row(f"import - interpreter ({when})", (times["interpreter, import ociruntime"] - bare) * 1e3, 5, "ms"))
    return rows


def show(times: Times, idle: Times, idle_ms: float) -> None:
    cold = f"{idle_ms:g} ms idle"
    print(f"{'medians':42} {'back to back':>14} {cold:>14} {'of crun':>9} {'of runc':>9}")
    for label in sorted(times):
        verb = label.split(",")[0]
        shares = [ratio(times[label], times.get(f"{verb}, {other}")) for other in ("crun", "runc")]
        columns = " ".join(f"{'-' if share is None else f'{share:.2f}':>9}" for share in shares)
        print(f"{label:42} {times[label] * 1e3:11.2f} ms {idle[label] * 1e3:11.2f} ms {columns}")


def show_parts(times: Times, when: str) -> None:
    """Print the parts of a command's time beside the whole time of crun and runc, and the budget of the whole.

    The parts are those of `parts_of`. `kernel` has all that remains: the state directory, and what the command waits for.
    """
    names = ("interpreter", "imports", "plan", "kernel", "total", "crun", "runc", "budget")
    print(f"\n{f'CLI, ms, {when}':24}" + "".join(f"{name:>13}" for name in names))
    for command in ("run", "create", "state", "start", "kill", "delete"):
        if (whole := times.get(f"{command}, CLI")) is None:
            continue
        others = [times.get(f"{command}, {name}") for name in ("crun", "runc")]
        limit = whole_budget(command, times)
        figures = [*parts_of(command, times), whole, *others, limit]
        cells = "".join(f"{'-':>13}" if figure is None else f"{figure * 1e3:13.2f}" for figure in figures)
        print(f"{command:24}{cells}{'  OVER BUDGET' if limit is not None and whole > limit else ''}")


def parts_of(command: str, times: Times) -> list[float | None]:
    """Return the time to start the interpreter, to import and parse, to compile the plan if the command has one, and the rest."""
    bare, parsed = times["interpreter, pass"], times["interpreter, command line"]
    planned = times["interpreter, plan"] if command in ("run", "create") else None
    rest = times[f"{command}, CLI"] - (planned or parsed)
    return [bare, parsed - bare, None if planned is None else planned - parsed, rest]


def whole_budget(command: str, times: Times) -> float | None:
    """Return the budget of a command's whole time; None if it has none, or if runc was not measured."""
    if command in CLI_COMMANDS:
        return times["interpreter, pass"] + CLI_BUDGET_MS / 1e3
    theirs = times.get("run, runc") if command == "run" else None
    return None if theirs is None else CLI_RUN_BUDGET * theirs


def show_budgets(rows: Sequence[Row]) -> None:
    print(f"\n{'budgets':56} {'figure':>12} {'budget':>12}")
    for row in rows:
        figure = "not measured" if row.figure is None else f"{row.figure:.2f} {row.unit}"
        limit = f"{'>=' if row.at_least else '<='} {row.budget:g} {row.unit}"
        print(f"{row.what:56} {figure:>12} {limit:>12}{'  OVER BUDGET' if row.over else ''}")


def find_others(place: Place) -> list[CommandLine]:
    # crun without cgroups has less work than the other runtimes, which favours crun in this comparison
    known: dict[str, list[str]] = {"crun": ["crun", "--cgroup-manager=disabled"]}
    known |= {"crun with cgroups": ["crun", "--cgroup-manager=cgroupfs"], "runc": ["runc"], "CLI": [PYTHON, "-c", COMMAND]}
    return [CommandLine(name, path, flags, place) for name, (program, *flags) in known.items() if (path := shutil.which(program))]


def bench(options: argparse.Namespace, place: Place, others: Sequence[CommandLine], null: int) -> None:
    rounds, library = int(options.rounds), InProcess(place, null)
    cases: dict[str, Case] = {
        "interpreter": partial(interpreter, place.path),
        RUN: library.run,
        "create, start, delete": library.steps,
    }
    notes = [f"{o.name}: {' '.join(o.command[1:-2]) or 'no options'}{f', {o.note}' if o.note else ''}" for o in others]
    cases["SIF"], cases[RUN_SIF] = library.sif, library.run_sif
    cases["sandbox"], cases["pool"] = library.sandbox, library.pool
    if shutil.which("bwrap"):
        cases["bwrap"] = library.bwrap
    if shutil.which("mksquashfs"):
        oci.build_sif(place.sif, place.bundle.rootfs)
    for other in others:
        cases[f"run, {other.name}"] = other.run
        cases[f"steps, {other.name}"] = other.steps
    good = try_out(cases, notes)
    if cases["interpreter"] not in good:
        raise Failed(f"{PYTHON}: cannot import ociruntime; install it first")
    times = measure(good, rounds, 0)
    idle = measure(good, rounds, options.idle_ms / 1e3)

    few = max(3, rounds // 6)
    memory = {"ociruntime": optional(library.memory, "memory", few, notes)}
    rates = {"ociruntime": optional(partial(library.parallel, library.run, options.containers, 4), "4 threads", few, notes)}
    for name, work in (("run of a bundle", library.run), (SANDBOX, library.sandbox)):
        label = f"{name}, 64 threads"
        rates[label] = optional(partial(library.parallel, work, 2 * options.containers, 64), label, few, notes)
    for other in others:
        memory[other.name] = optional(other.memory, f"memory, {other.name}", few, notes)
        if shutil.which("xargs"):
            rates[other.name] = optional(partial(other.parallel, options.containers, 4), f"xargs, {other.name}", few, notes)

    rows = budgets(times, "back to back") + budgets(idle, "idle gaps")
    rows.append(Row("containers/s, 4 threads / xargs -P4 crun", ratio(rates["ociruntime"], rates.get("crun")), 3, "x", True))
    rows.append(Row("PSS of a created container's init", memory["ociruntime"], 64, "KiB"))
    show(times, idle, options.idle_ms)
    print(f"\n{'':50} {'containers/s':>14} {'init PSS, KiB':>14}")
    for name in {**memory, **rates}:
        figures = (rates.get(name), memory.get(name))
        print(f"{name:50} " + " ".join(f"{'-' if figure is None else f'{figure:.0f}':>14}" for figure in figures))
    show_parts(times, "back to back")
    show_parts(idle, "idle gaps")
    show_budgets(rows)
    print(*notes, sep="\n")
    if options.json:
        record: dict[str, object] = {"rounds": rounds, "idle_ms": options.idle_ms, "notes": notes}
        record |= {"back_to_back_s": times, "idle_s": idle, "containers_per_second": rates, "pss_kib": memory}
        record["budgets"] = [{**row._asdict(), "over": row.over} for row in rows]
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the operations on containers, side by side with crun and runc.")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each case (default: 20)")
    parser.add_argument("--idle-ms", type=float, default=25, help="length of the idle gap in milliseconds (default: 25)")
    parser.add_argument("--containers", type=int, default=80, help="containers of a parallel measurement (default: 80)")
    parser.add_argument("--busybox", default=shutil.which("busybox"), help="a static busybox (default: the one in PATH)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    if min(options.rounds, options.containers, options.idle_ms) <= 0 or os.geteuid() or not options.busybox:
        parser.error("needs root, a static busybox and positive numbers")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the clean-up below runs
    place = Place()
    others: list[CommandLine] = []
    try:
        place.fill(options.busybox)
        others = find_others(place)
        with open(os.devnull, "r+b", buffering=0) as null:
            bench(options, place, others, null.fileno())
    except Failed as error:
        print(f"bench_lifecycle: {error}", file=sys.stderr)
        return 1
    finally:
        for other in others:
            other.close()
        place.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

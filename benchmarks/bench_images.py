#!/usr/bin/env python3
"""Measure containers of a SIF file, by root and by an unprivileged user, beside podman.

    python benchmarks/bench_images.py [--user NAME] [--rounds N] [--json FILE]

Needs root and a static busybox. The image is busybox: as a SIF file for this library, and in the storage of podman, from which it
has run before. Cases that cannot be measured are skipped with the reason; those of a user need `--user` with subordinate ids. The
cases alternate within a round, so that a change of the machine's speed affects all of them, and the table has medians.

All of it runs in a mount namespace of its own, where /dev/fuse can be opened by the user, and the cgroup2 hierarchy of a hybrid
host, with which crun does not run, is not mounted. The first process of its pid namespace reaps orphans, for which podman waits.
What podman leaves for its user namespace ends with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import ociruntime as oci

NAMESPACE = "OCIRUNTIME_BENCH_NAMESPACE"
UNIFIED = Path("/sys/fs/cgroup/unified")
IMAGE = "localhost/ociruntime-bench:1"
PODMAN = "podman run, user"
TIMEOUT = 120.0
BUDGET = 0.3
"""Largest ratio of a user's run to that of podman."""
PROGRAM = ["/bin/sh", "-c", "exit 0"]
WORKER = """
import sys, time
import ociruntime as oci

def run(image, place):
    oci.run(image, ["/bin/sh", "-c", "exit 0"], check=True)

def mount(image, place):
    global bundle
    bundle = oci.Bundle.from_image(image, place)

def umount(image, place):
    bundle.umount()

for line in sys.stdin:
    began = time.perf_counter()
    {"run": run, "mount": mount, "umount": umount}[line.strip()](*sys.argv[1:])
    print(time.perf_counter() - began, flush=True)
"""
"""Makes the calls of this library that its standard input names, in one process, and prints the seconds."""

Times = dict[str, float]
Case = Callable[[], Times]


class Failed(Exception):
    """A case cannot be measured."""


def enter_namespaces() -> None:
    """Continue in a mount namespace and a pid namespace of this program, whose first process is a shell that reaps orphans."""
    if os.environ.get(NAMESPACE) is None:
        shell = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, *sys.argv]
        options = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvpe("unshare", ["unshare", *options, *shell], {**os.environ, NAMESPACE: "1"})


def prepare_namespace(place: Path) -> None:
    if (UNIFIED / "cgroup.controllers").exists():
        subprocess.run(["umount", "--lazy", UNIFIED], check=True)
    if os.path.exists("/dev/fuse"):
        os.mknod(place / "fuse", 0o20666, os.stat("/dev/fuse").st_rdev)
        os.chmod(place / "fuse", 0o666)
        subprocess.run(["mount", "--bind", place / "fuse", "/dev/fuse"], check=True)


def write_archive(path: Path, busybox: str) -> None:
    """Write a docker archive with busybox."""
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        member = tarfile.TarInfo("bin/busybox")
        member.mode, member.size = 0o755, os.stat(busybox).st_size
        with open(busybox, "rb") as program:
            archive.addfile(member, program)
        for name in ("true", "sh"):
            member = tarfile.TarInfo(f"bin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(member)
    content = layer.getvalue()
    diff_ids = [f"sha256:{hashlib.sha256(content).hexdigest()}"]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    files = {
        "layer.tar": content,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))


class Account:
    """An account that runs the cases: root or an unprivileged user.

    Args:
        name: describes it in the table.
        place: a directory of its own.
        user: the name of the user; empty for root.
    """

    def __init__(self, name: str, place: Path, user: str = "") -> None:
        self.name, self.place = name, place
        place.mkdir()
        runtime = place / "runtime"
        runtime.mkdir(mode=0o700)
        self._become: list[str] = []
        if user:
            found = pwd.getpwnam(user)
            for path in (place, runtime):
                os.chown(path, found.pw_uid, found.pw_gid)
            self._become = ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--init-groups"]
        self._environment = {
            "HOME": str(place),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(place),
            "XDG_RUNTIME_DIR": str(runtime),
            "PYTHONPYCACHEPREFIX": str(place / "pycache"),
        }
        self._podman = ["podman", "--storage-driver=overlay", "--cgroup-manager=cgroupfs"]

    def call(self, *args: str) -> float:
        """Run a command; return the seconds that it took. Raises Failed."""
        with tempfile.TemporaryFile() as messages:
            command = [*self._become, *args]
            began = time.perf_counter()
            child = subprocess.Popen(
                command, cwd=self.place, env=self._environment, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
            )
            pidfd = os.pidfd_open(child.pid)  # Popen.wait with a timeout sleeps in increasing steps, which would distort the result
            ended = select.select([pidfd], [], [], TIMEOUT)[0]
            took = time.perf_counter() - began
            os.close(pidfd)
            if not ended:
                child.kill()
            child.wait()
            messages.seek(0)
            last = (messages.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        if child.returncode:
            raise Failed(f"{os.path.basename(args[0])}: exit status {child.returncode}: {last}")
        return took

    def podman(self, *args: str) -> float:
        if shutil.which("podman") is None:
            raise Failed("podman is not installed")
        return self.call(*self._podman, *args)

    def run_podman(self) -> float:
        return self.podman("run", "--rm", "--network=none", "--pull=never", IMAGE, *PROGRAM)

    def run(self, image: Path) -> float:
        code = "from ociruntime.cli import script; script()"
        return self.call(sys.executable, "-P", "-c", code, "run", str(image), *PROGRAM)

    @contextmanager
    def worker(self, image: Path) -> Iterator[Callable[[str], float]]:
        """Start a process that makes calls of this library, and give a function for them."""
        command = [*self._become, sys.executable, "-P", "-c", WORKER, str(image), str(self.place / "bundle")]
        with (
            tempfile.TemporaryFile("w+") as messages,
            subprocess.Popen(
                command,
                cwd=self.place,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
            ) as child,
        ):
            assert child.stdin is not None
            assert child.stdout is not None
            requests, answers = child.stdin, child.stdout

            def call(what: str) -> float:
                try:
                    requests.write(f"{what}\n")
                    requests.flush()
                    answer = answers.readline()
                except BrokenPipeError:
                    answer = ""
                if not answer:
                    child.wait()
                    messages.seek(0)
                    raise Failed((messages.read().strip().splitlines() or ["no message"])[-1])
                return float(answer)

            yield call


def try_out(cases: dict[str, Case], notes: list[str]) -> dict[str, Case]:
    """Run each case twice as a warm-up, and return those that work."""
    good: dict[str, Case] = {}
    for name, case in cases.items():
        try:
            for _ in range(2):
                case()
            good[name] = case
        except Failed as error:
            notes.append(f"skipped: {name}: {error}")
    return good


def measure(cases: dict[str, Case], rounds: int) -> Times:
    """Return the median seconds by label. Each round starts with another case."""
    times: dict[str, list[float]] = {}
    names = list(cases)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for label, seconds in cases[name]().items():
                times.setdefault(label, []).append(seconds)
    return {label: statistics.median(found) for label, found in times.items()}


def cases_of(account: Account, archive: Path, sif: Path, stack: ExitStack, notes: list[str]) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    name = account.name
    if name == "user":
        try:
            account.podman("load", "-i", str(archive))
            cases["podman"] = lambda: {PODMAN: account.run_podman()}
        except Failed as error:
            notes.append(f"skipped: {PODMAN}: {error}")
    call = stack.enter_context(account.worker(sif))
    return cases | {
        f"run in process, {name}": lambda: {f"run of a SIF, in process, {name}": call("run")},
        f"run, CLI, {name}": lambda: {f"run of a SIF, CLI, {name}": account.run(sif)},
        f"mount, {name}": lambda: {f"mount of a SIF, {name}": call("mount"), f"umount of a SIF, {name}": call("umount")},
    }


def bench(place: Path, options: argparse.Namespace, stack: ExitStack) -> tuple[Times, list[str]]:
    notes: list[str] = []
    archive, sif = place / "busybox.tar", place / "busybox.sif"
    write_archive(archive, options.busybox)
    oci.build(archive, sif)
    accounts = [Account("root", place / "root")]
    if options.user:
        accounts.append(Account("user", place / "user", options.user))
    else:
        notes.append("skipped: the cases of a user: no --user")
    cases: dict[str, Case] = {}
    for account in accounts:
        cases |= cases_of(account, archive, sif, stack, notes)
    return measure(try_out(cases, notes), options.rounds), notes


def show(times: Times, notes: Sequence[str]) -> None:
    print(f"{'medians':36} {'':>12} {'of podman':>10}")
    for label, seconds in times.items():
        other = times.get(PODMAN)
        share = f"{seconds / other:10.2f}" if other and label.startswith("run") else f"{'-':>10}"
        over = "  OVER BUDGET" if label == "run of a SIF, in process, user" and other and seconds / other > BUDGET else ""
        print(f"{label:36} {seconds * 1e3:9.1f} ms {share}{over}")
    print(f"budget: run in process by a user <= {BUDGET} of podman run", *notes, sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure containers of a SIF file beside podman.")
    parser.add_argument("--user", help="unprivileged user for the cases without root (default: these are skipped)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each case (default: 15)")
    parser.add_argument("--busybox", default=shutil.which("busybox"), help="a static busybox (default: the one in PATH)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to FILE")
    options = parser.parse_args()
    if options.rounds <= 0 or os.geteuid() or not options.busybox:
        parser.error("needs root, a static busybox and a positive number of rounds")
    enter_namespaces()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the clean-up below runs
    place = Path(tempfile.mkdtemp(prefix="oci-", dir="/var/tmp"))  # podman waits 20 s for each container where its paths are longer
    place.chmod(0o755)
    try:
        prepare_namespace(place)
        with ExitStack() as stack:
            times, notes = bench(place, options, stack)
    finally:
        shutil.rmtree(place)
    show(times, notes)
    if options.json:
        options.json.write_text(json.dumps({"rounds": options.rounds, "median_s": times, "notes": notes}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

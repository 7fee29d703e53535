"""Running a job in the virtual machine: QEMU with software emulation, the output of the job and its exit status."""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from image import Failure, log

TIMED_OUT = 124
PORTS = ("out", "err", "control")
"""Ports of the virtio console: stdout and stderr of the job, and messages about its begin and end."""
PR_SET_PDEATHSIG = 1

CMDLINE = """
    console=ttyS0 quiet loglevel=4 panic=-1 systemd.show_status=no
    psi=1 hugepagesz=2M hugepages=16
    mitigations=off nokaslr audit=0 no_timer_check init_on_alloc=0 tsc=reliable clocksource=tsc
"""

CGROUPS = {
    "v2": "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1",
    "hybrid": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0",
    "v1": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
}
"""Kernel parameters by which systemd mounts cgroups in each way."""


class Share(NamedTuple):
    """A directory of the host in the guest."""

    host: str
    guest: str
    mode: str
    """``ro``; ``cow``: writes stay in the guest; ``rw``: writes go to the host, by the user that runs QEMU."""


class Job(NamedTuple):
    """A command, and the machine that it runs in."""

    command: Sequence[str]
    shares: Sequence[Share]
    workdir: str
    env: Sequence[str] = ()
    user: bool = False
    cgroups: str = "v2"
    kernel_args: Sequence[str] = ()
    timeout: float = 1800
    boot_timeout: float = 240
    verbose: bool = False


def run(job: Job, image: Path) -> int:
    """Run a job. Return its exit status, 128+n if signal n ended it, 124 after the timeout.

    Raises:
        Failure: the machine failed, not the job.
    """
    if not shutil.which("qemu-system-x86_64"):
        raise Failure("cannot run the machine: qemu-system-x86_64 not found; run apt-get install qemu-system-x86")
    with tempfile.TemporaryDirectory(prefix="run-in-vm-") as directory:
        Path(directory, "share").mkdir()
        Path(directory, "share/job").write_text(_script(job))
        pipes = {name: os.pipe() for name in PORTS}
        write_ends = {name: pipe[1] for name, pipe in pipes.items()}
        with open(f"{directory}/errors", "wb") as errors:
            qemu = subprocess.Popen(
                _qemu(job, image, directory, write_ends),
                pass_fds=tuple(write_ends.values()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        for fd in write_ends.values():
            os.close(fd)  # so that the pipes end with QEMU
        try:
            return _follow(job, {name: pipe[0] for name, pipe in pipes.items()})
        except Failure:
            for name in ("errors", "console"):
                path = Path(directory, name)
                for line in path.read_text(errors="replace").splitlines()[-30:] if path.exists() else ():
                    log(f"{name}: {line}")
            raise
        finally:
            qemu.kill()  # nothing is lost: the disk is a snapshot, and the shares are synced
            qemu.wait()
            for read_end, _ in pipes.values():
                os.close(read_end)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _script(job: Job) -> str:
    """Return the shell script that the guest runs as root."""
    quote = shlex.quote
    command = shlex.join([*(["as-user"] if job.user else []), "env", *job.env, *job.command])
    lines = [
        "for port in /sys/class/virtio-ports/*; do",
        "    eval port_$(cat $port/name)=/dev/${port##*/}",
        "done",
        "exec >$port_out 2>$port_err 3>$port_control",
        *(line for number, share in enumerate(job.shares) for line in _mount(number, share)),
        "export HOME=/root LANG=C.UTF-8 TERM=dumb VMTEST=1",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"cd {quote(job.workdir)} || exit",
        "echo started >&3",
        f"{command} </dev/null 3>&-",
        "status=$?",
        *(f"sync -f {quote(share.guest)}" for share in job.shares if share.mode == "rw"),
        "echo $status >&3",
        "exec sleep 60",
    ]
    return "".join(f"{line}\n" for line in lines)


def _mount(number: int, share: Share) -> Iterator[str]:
    quote, options, tag = shlex.quote, "trans=virtio,version=9p2000.L,msize=512000,cache=loose", f"share{number}"
    yield f"mkdir -p {quote(share.guest)} || exit"
    if share.mode == "cow":
        over = f"/var/lib/vmtest/{tag}"
        yield f"mkdir -p {over}/lower {over}/upper {over}/work && mount -t 9p -o ro,{options} {tag} {over}/lower || exit"
        # The root of an overlay has the owner and mode of the upper directory.
        yield f"chown --reference={over}/lower {over}/upper && chmod --reference={over}/lower {over}/upper || exit"
        layers = f"lowerdir={over}/lower,upperdir={over}/upper,workdir={over}/work"
        yield f"mount -t overlay -o {layers} overlay {quote(share.guest)} || exit"
    else:
        yield f"mount -t 9p -o {share.mode},{options} {tag} {quote(share.guest)} || exit"


def _qemu(job: Job, image: Path, directory: str, ports: dict[str, int]) -> list[str]:
    model = "passthrough" if os.geteuid() == 0 else "none"

    def comma(path: str | Path) -> str:  # quotes a path for a list of options
        return str(path).replace(",", ",,")

    def share(tag: str, path: str, mode: str) -> tuple[str, ...]:
        readonly = "" if mode == "rw" else ",readonly=on"
        backend = f"local,id={tag},path={comma(path)},security_model={model},multidevs=remap{readonly}"
        return ("-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")

    def port(name: str, fd: int) -> tuple[str, ...]:
        return ("-chardev", f"file,id={name},path=/dev/fd/{fd}", "-device", f"virtserialport,chardev={name},name={name}")

    disk = f"if=none,id=root,format=raw,snapshot=on,file={comma(image / 'root.img')}"
    return [
        *("qemu-system-x86_64", "-name", "vmtest", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-nic", "none"),
        *("-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max,-erms"),  # an emulated "rep movsb" is slow
        *("-smp", "2", "-m", "2048"),
        *(
            "-kernel",
            str(image / "vmlinux"),
            "-initrd",
            str(image / "initrd"),
            "-append",
            " ".join([*CMDLINE.split(), CGROUPS[job.cgroups], *job.kernel_args]),
        ),
        *("-serial", f"file:{directory}/console"),
        *("-drive", disk, "-device", "virtio-blk-pci,drive=root"),
        *("-device", "virtio-serial-pci", *(word for name, fd in ports.items() for word in port(name, fd))),
        *share("vmtest", f"{directory}/share", "ro"),
        *(word for number, entry in enumerate(job.shares) for word in share(f"share{number}", entry.host, entry.mode)),
    ]


def _follow(job: Job, ports: dict[str, int]) -> int:
    """Copy the output of the job until it ends. Return its exit status.

    A write in the guest returns when QEMU has written the data to the pipe, so the output is there before the status.
    """
    outputs = {ports["out"]: 1, ports["err"]: 2}
    began, messages = time.monotonic(), b""
    with selectors.DefaultSelector() as selector:
        for fd in ports.values():
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        while messages.count(b"\n") != 2:
            allowed = job.timeout if messages else min(job.timeout, job.boot_timeout)
            ready = selector.select(max(0.0, began + allowed - time.monotonic()))
            if not ready and not messages and job.boot_timeout < job.timeout:
                raise Failure(f"the machine did not start the job within {job.boot_timeout:g} s")
            if not ready:
                log(f"the job did not end within {job.timeout:g} s")
                return TIMED_OUT
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    raise Failure("the machine ended before the job")
                if key.fd in outputs:
                    _emit(outputs[key.fd], data)
                else:
                    messages += data
                    if job.verbose:
                        log(f"{data.decode().strip()} after {time.monotonic() - began:.1f} s")
        for fd, output in outputs.items():
            try:
                while data := os.read(fd, 1 << 16):
                    _emit(output, data)
            except BlockingIOError:
                continue
    return int(messages.split()[1])


def _emit(output: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]

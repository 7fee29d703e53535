#!/usr/bin/env python3
"""The main job, step by step: a SIF file is built, mounted, and a container lives its whole life; then the same from Python.

Needs root and mksquashfs (squashfs-tools); a static busybox is fetched with apt-get when there is none. Everything happens in a
temporary directory, and the last step shows that nothing is left. The exit status is not 0 when anything goes other than told.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import ociruntime as oci

NAMES = (f"busybox1-{os.getpid()}", f"busybox2-{os.getpid()}")  # two of us may run at once, and cgroups are everybody's


def tell(text: str) -> None:
    print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def show(text: str, lines: int = 12) -> None:
    rows = text.rstrip().splitlines()
    print(textwrap.indent("\n".join(rows[:lines]), "    "))
    if len(rows) > lines:
        print(f"    ... {len(rows) - lines} more lines")


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        sys.exit(f"walkthrough: {what} is {found!r}, not {wanted!r}")


class Shell:
    """The command line, with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *args: str, status: int = 0) -> str:
        text, returncode = self.run(*args)
        expect(returncode, status, f"the exit status of {args[0]}")
        return text

    def run(self, *args: str) -> tuple[str, int]:
        print(f"$ ociruntime {' '.join(args)}", flush=True)
        command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(self.state), *args]
        # A created container keeps our stdout open, so its own output goes elsewhere than to a pipe that we read to its end.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False)
            out.seek(0)
            text = out.read()
        show(text)
        return text, done.returncode

    def status(self, name: str) -> str:
        return str(json.loads(self("state", name))["status"])


def static(path: Path) -> bool:
    """Whether an ELF file names no program interpreter (PT_INTERP), so that it runs in a root without libraries."""
    data = path.read_bytes()
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (offset,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}HH", data, 54 if wide else 42)
    return all(struct.unpack_from(f"{order}I", data, offset + i * size) != (3,) for i in range(count))


def find_busybox(directory: Path) -> Path:
    found = Path("/bin/busybox")
    if found.exists() and static(found):
        return found
    print("    there is no static /bin/busybox: Debian's package is unpacked, not installed", flush=True)
    directory.mkdir()
    for command in (["apt-get", "-q", "download", "busybox-static"], ["sh", "-c", "dpkg -x busybox-static_*.deb ."]):
        try:
            subprocess.run(command, cwd=directory, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"walkthrough: no static busybox, and none can be fetched ({error}): apt-get install busybox-static")
    for found in (directory / "usr/bin/busybox", directory / "bin/busybox"):
        if found.exists():
            return found
    sys.exit("walkthrough: the package busybox-static has no busybox in it")


def build(directory: Path) -> Path:
    if shutil.which("mksquashfs") is None:
        sys.exit("walkthrough: mksquashfs is missing: apt-get install squashfs-tools")
    busybox = find_busybox(directory / "package")
    rootfs = directory / "tree"
    for name in ("bin", "etc", "tmp", "root"):
        (rootfs / name).mkdir(parents=True)
    rootfs.chmod(0o755)
    shutil.copy(busybox, rootfs / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (rootfs / "bin" / applet).symlink_to("busybox")
    (rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    image = directory / "busybox_latest.sif"
    oci.build_sif(
        image,
        rootfs,
        oci_config={"Cmd": ["sleep", "1000"], "Env": ["GREETING=hello"]},
        labels={"org.example": "walkthrough"},
    )
    return image


def leftovers(directory: Path, processes: list[int]) -> list[str]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
    loops = [str(p) for p in Path("/sys/block").glob("loop*/loop/backing_file") if str(directory) in p.read_text()]
    cgroups = [str(path) for name in NAMES for path in Path("/sys/fs/cgroup").glob(f"**/ociruntime-{name}")]
    alive = [f"pidfd {pidfd}" for pidfd in processes if not select.select([pidfd], [], [], 0)[0]]  # readable: it has ended
    return mounts + loops + cgroups + alive


def wait_for(shell: Shell, name: str, status: str) -> None:
    for _ in range(100):
        if oci.Container.load(name, root=shell.state).state.status == status:
            break
        time.sleep(0.05)
    expect(shell.status(name), status, f"the status of {name}")


def clean(shell: Shell, bundle: Path) -> None:
    """After a failure: whatever there is goes, and what cannot go is shown."""
    tell("That failed; clean up")
    for name in NAMES:
        shell.run("delete", "--force", name)
    if bundle.exists():
        shell.run("umount", str(bundle))


def command_line(directory: Path, image: Path) -> list[int]:
    """Gives pidfds of the processes that ran."""
    shell = Shell(directory / "state")
    bundle = directory / "busybox"
    try:
        return steps(shell, bundle, image)
    except BaseException:
        clean(shell, bundle)
        raise


def steps(shell: Shell, bundle: Path, image: Path) -> list[int]:
    tell("What is in the image")
    shell("sif", str(image))
    tell("Mount it: a bundle with config.json, and a root filesystem that is an overlay over the image's squashfs")
    shell("mount", str(image), str(bundle))
    show("\n".join(sorted(path.name for path in bundle.iterdir())))
    expect(bundle.stat().st_mode & 0o777, 0o700, "the mode of the bundle")
    for command in (["findmnt", "--target"], ["df"]):
        show(subprocess.run([*command, str(bundle / "rootfs")], capture_output=True, text=True, check=True).stdout)
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(bundle / "rootfs")], capture_output=True, text=True, check=True).stdout
    expect(kind.strip(), "overlayfs", "the filesystem of the rootfs")
    tell("Its config: the default one, with what the image says")
    show((bundle / "config.json").read_text(), lines=20)
    tell("What will happen, before it happens")
    shell("plan", "-b", str(bundle))
    tell("Create a container; its process waits")
    shell("create", "-b", str(bundle), NAMES[0])
    expect(shell.status(NAMES[0]), "created", "the status")
    tell("Start it, and run programs in it")
    shell("start", NAMES[0])
    expect(shell.status(NAMES[0]), "running", "the status")
    expect("uid=0" in shell("exec", NAMES[0], "id"), True, "uid=0 in the output of id")
    expect(shell("exec", NAMES[0], "sh", "-c", "echo $GREETING").strip(), "hello", "the greeting from the image's environment")
    tell("A second container of the same bundle, beside it")
    shell("create", "-b", str(bundle), NAMES[1])
    shell("start", NAMES[1])
    expect(sorted(shell("list", "-q").split()), sorted(NAMES), "the list of containers")
    pidfds = [os.pidfd_open(json.loads(shell("state", name))["pid"]) for name in NAMES]
    tell("Kill and delete both")
    for name in NAMES:
        shell("kill", name, "KILL")
        wait_for(shell, name, "stopped")
        shell("delete", name)
    tell("A container that is gone is an error of one line")
    shell("state", NAMES[0], status=1)
    tell("Unmount")
    shell("umount", str(bundle))
    expect(bundle.exists(), False, "the existence of the bundle directory")
    return pidfds


def python(directory: Path, image: Path) -> None:
    tell("The same from Python")
    with oci.Bundle.from_sif(image, directory / "py") as bundle:
        print(f"    {bundle.plan()!r}")
        with oci.Container.create(NAMES[0], bundle, root=directory / "state") as container:
            print(f"    {container!r}")
            container.start()
            result = container.exec(["uname", "-n"], capture_output=True, text=True)
            print(f"    {container!r} says {result.stdout!r}")
            container.kill("KILL")
            expect(container.wait(), -9, "the exit code")
    tell("And in one line")
    result = oci.run(image, ["echo", "hi"], capture_output=True, text=True, root=directory / "state")
    print(f"    {result!r}")
    expect(result.stdout, "hi\n", "the output")


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("walkthrough: needs root, to mount images and to make namespaces")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that it cleans up
    with tempfile.TemporaryDirectory(prefix="ociruntime-walkthrough-") as name:
        directory = Path(name)
        tell("Build a SIF image of busybox")
        image = build(directory)
        print(f"    {image}: {image.stat().st_size} bytes")
        try:
            pidfds = command_line(directory, image)
            python(directory, image)
        except (oci.OCIRuntimeError, OSError, subprocess.SubprocessError) as error:
            sys.exit(f"walkthrough: {type(error).__name__}: {error}")
        tell("Nothing is left: no mount, loop device, cgroup or process")
        expect(leftovers(directory, pidfds), [], "what is left")
        print("    nothing")
    print("\nDone.")


if __name__ == "__main__":
    main()

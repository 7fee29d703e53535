#!/usr/bin/env python3
"""The main job, step by step: a SIF file is built, mounted, and a container lives its whole life; then the same from Python.

Needs root, mksquashfs (squashfs-tools) and a static busybox (busybox-static). Everything happens in a temporary directory, and
the last step shows that nothing is left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import ociruntime as oci

NAMES = ("busybox1", "busybox2")


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
        print(f"$ ociruntime {' '.join(args)}", flush=True)
        command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(self.state), *args]
        # A created container keeps our stdout open, so its own output goes elsewhere than to a pipe that we read to its end.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False)
            out.seek(0)
            text = out.read()
        show(text)
        expect(done.returncode, status, f"the exit status of {args[0]}")
        return text

    def status(self, name: str) -> str:
        return str(json.loads(self("state", name))["status"])


def build(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None or shutil.which("mksquashfs") is None:
        sys.exit("walkthrough: apt-get install busybox-static squashfs-tools")
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
    config = {"Cmd": ["sleep", "1000"], "Env": ["GREETING=hello"]}
    oci.build_sif(image, rootfs, oci_config=config, labels={"org.example": "walkthrough"})
    return image


def leftovers(directory: Path) -> list[str]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
    loops = [str(p) for p in Path("/sys/block").glob("loop*/loop/backing_file") if str(directory) in p.read_text()]
    cgroups = [str(path) for name in NAMES for path in Path("/sys/fs/cgroup").glob(f"**/ociruntime-{name}")]
    return mounts + loops + cgroups


def wait_for(shell: Shell, name: str, status: str) -> None:
    for _ in range(100):
        if oci.Container.load(name, root=shell.state).state.status == status:
            break
        time.sleep(0.05)
    expect(shell.status(name), status, f"the status of {name}")


def command_line(directory: Path, image: Path) -> None:
    shell = Shell(directory / "state")
    bundle = directory / "busybox"

    tell("What is in the image")
    shell("sif", str(image))
    tell("Mount it: a bundle with config.json, and a root filesystem that is an overlay over the image's squashfs")
    shell("mount", str(image), str(bundle))
    show("\n".join(sorted(path.name for path in bundle.iterdir())))
    expect(bundle.stat().st_mode & 0o777, 0o700, "the mode of the bundle")
    show(subprocess.run(["df", str(bundle / "rootfs")], capture_output=True, text=True, check=True).stdout)
    tell("What will happen, before it happens")
    shell("plan", "-b", str(bundle))
    try:
        tell("Create a container; its process waits")
        shell("create", "-b", str(bundle), NAMES[0])
        expect(shell.status(NAMES[0]), "created", "the status")
        tell("Start it, and run a program in it")
        shell("start", NAMES[0])
        expect(shell.status(NAMES[0]), "running", "the status")
        expect("uid=0" in shell("exec", NAMES[0], "id"), True, "uid=0 in the output of id")
        expect(shell("exec", NAMES[0], "sh", "-c", "echo $GREETING").strip(), "hello", "the greeting from the image's environment")
        tell("A second container of the same bundle, beside it")
        shell("create", "-b", str(bundle), NAMES[1])
        shell("start", NAMES[1])
        shell("list")
        tell("Kill and delete both")
        for name in NAMES:
            shell("kill", name, "KILL")
            wait_for(shell, name, "stopped")
            shell("delete", name)
        shell("state", NAMES[0], status=1)
    finally:
        for name in NAMES:
            shell("delete", "--force", name)
        tell("Unmount")
        shell("umount", str(bundle))
    expect(bundle.exists(), False, "the existence of the bundle directory")


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
    with tempfile.TemporaryDirectory(prefix="ociruntime-walkthrough-") as name:
        directory = Path(name)
        tell("Build a SIF image of busybox")
        image = build(directory)
        print(f"    {image}: {image.stat().st_size} bytes")
        command_line(directory, image)
        python(directory, image)
        tell("Nothing is left: no mount, loop device or cgroup")
        expect(leftovers(directory), [], "what is left")
    print("\nDone.")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Build a SIF image, mount it and run containers from it, on the command line and from Python.

Needs mksquashfs (squashfs-tools). Without a static busybox in /bin, it is downloaded with apt-get. For root the kernel mounts the
image; for an unprivileged user squashfuse does, or unsquashfs extracts it where FUSE cannot be used. All files are in a temporary
directory, and the last step checks that nothing is left behind. The exit status is 0 only if every step had the expected result.
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

NAMES = (f"busybox1-{os.getpid()}", f"busybox2-{os.getpid()}")  # unique, because several processes may run this script


def tell(text: str) -> None:
    print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def show(text: str, lines: int = 12) -> None:
    rows = text.rstrip().splitlines()
    print(textwrap.indent("\n".join(rows[:lines]), "    "))
    if len(rows) > lines:
        print(f"    ... {len(rows) - lines} more lines")


def expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        sys.exit(f"walkthrough: {what}: expected {expected!r}, found {found!r}")


class Shell:
    """Runs `ociruntime` with its own state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *args: str, status: int = 0) -> str:
        text, returncode = self.run(*args)
        expect(returncode, status, f"the exit status of {args[0]}")
        return text

    def run(self, *args: str) -> tuple[str, int]:
        print(f"$ ociruntime {' '.join(args)}", flush=True)
        command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(self.state), *args]
        # A created container keeps stdout open, so reading a pipe to its end would wait for the container.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False)
            out.seek(0)
            text = out.read()
        show(text)
        return text, done.returncode

    def status(self, name: str) -> str:
        return str(json.loads(self("state", name))["status"])


def static(path: Path) -> bool:
    """Return whether an ELF file has no program interpreter (PT_INTERP), so that it runs without libraries."""
    data = path.read_bytes()
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    (offset,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, 32 if wide else 28)
    size, count = struct.unpack_from(f"{order}HH", data, 54 if wide else 42)
    return all(struct.unpack_from(f"{order}I", data, offset + i * size) != (3,) for i in range(count))


def find_busybox(directory: Path) -> Path:
    found = Path("/bin/busybox")
    if found.exists() and static(found):
        return found
    print("    no static /bin/busybox: unpacking the package busybox-static", flush=True)
    directory.mkdir()
    for command in (["apt-get", "-q", "download", "busybox-static"], ["sh", "-c", "dpkg -x busybox-static_*.deb ."]):
        try:
            subprocess.run(command, cwd=directory, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"walkthrough: cannot download a static busybox: {error}; run apt-get install busybox-static")
    for found in (directory / "usr/bin/busybox", directory / "bin/busybox"):
        if found.exists():
            return found
    sys.exit("walkthrough: busybox-static: the package does not contain busybox")


def build(directory: Path) -> Path:
    if shutil.which("mksquashfs") is None:
        sys.exit("walkthrough: mksquashfs: not found; run apt-get install squashfs-tools")
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
    expected = {f"ociruntime-{name}" for name in NAMES}
    cgroups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(path) in expected]
    alive = [f"pidfd {pidfd}" for pidfd in processes if not select.select([pidfd], [], [], 0)[0]]  # readable: it has ended
    return mounts + loops + cgroups + alive + helpers(directory)


def helpers(directory: Path) -> list[str]:
    """Return the running processes that serve a filesystem in a directory. One ends soon after its filesystem is unmounted."""
    for _ in range(100):
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(directory).encode() in path.read_bytes() and b"squashfuse" in path.read_bytes():
                    found.append(f"process {path.parent.name}")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended
        if not found:
            break
        time.sleep(0.05)
    return found


def wait_for(shell: Shell, name: str, status: str) -> None:
    for _ in range(100):
        if oci.Container.load(name, state_root=shell.state).state.status == status:
            break
        time.sleep(0.05)
    expect(shell.status(name), status, f"the status of {name}")


def clean(shell: Shell, bundle: Path) -> None:
    """Remove containers and bundle after a failure, and print what cannot be removed."""
    tell("A step failed; clean up")
    for name in NAMES:
        shell.run("delete", "--force", name)
    if bundle.exists():
        shell.run("umount", str(bundle))


def command_line(directory: Path, image: Path) -> list[int]:
    """Run the steps on the command line and return pidfds of the containers' init processes."""
    shell = Shell(directory / "state")
    bundle = directory / "busybox"
    try:
        return steps(shell, bundle, image)
    except BaseException:
        clean(shell, bundle)
        raise


def steps(shell: Shell, bundle: Path, image: Path) -> list[int]:
    tell("List the content of the image")
    shell("sif", str(image))
    root = os.geteuid() == 0
    what = "is an overlay over the squashfs of the image" if root else "each container mounts with an upper layer of its own"
    tell(f"Mount it: a bundle with config.json and a rootfs, which {what}")
    shell("mount", str(image), str(bundle))
    show("\n".join(sorted(path.name for path in bundle.iterdir())))
    expect(bundle.stat().st_mode & 0o777, 0o700, "the mode of the bundle")
    for command in (["findmnt", "--target"], ["df"]):
        show(subprocess.run([*command, str(bundle / "rootfs")], capture_output=True, text=True, check=True).stdout)
    if root:
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(bundle / "rootfs")], capture_output=True, text=True, check=True).stdout
        expect(kind.strip(), "overlayfs", "the filesystem of the rootfs")
    tell("Its config.json: the default config with the settings of the image")
    show((bundle / "config.json").read_text(), lines=20)
    tell("Print the plan, without executing it")
    shell("plan", "-b", str(bundle))
    tell("Create a container; its init process waits for start")
    shell("create", "-b", str(bundle), NAMES[0])
    expect(shell.status(NAMES[0]), "created", "the status")
    tell("Start it, and run further programs in it")
    shell("start", NAMES[0])
    expect(shell.status(NAMES[0]), "running", "the status")
    expect("uid=0" in shell("exec", NAMES[0], "id"), True, "uid=0 in the output of id")
    expect(shell("exec", NAMES[0], "sh", "-c", "echo $GREETING").strip(), "hello", "the greeting from the image's environment")
    tell("Run a second container from the same bundle")
    shell("create", "-b", str(bundle), NAMES[1])
    shell("start", NAMES[1])
    expect(sorted(shell("list", "-q").split()), sorted(NAMES), "the list of containers")
    pidfds = [os.pidfd_open(json.loads(shell("state", name))["pid"]) for name in NAMES]
    tell("Kill and delete both")
    for name in NAMES:
        shell("kill", name, "KILL")
        wait_for(shell, name, "stopped")
        shell("delete", name)
    tell("An unknown container is an error of one line")
    shell("state", NAMES[0], status=1)
    tell("Unmount")
    shell("umount", str(bundle))
    expect(bundle.exists(), False, "the existence of the bundle directory")
    return pidfds


def python(directory: Path, image: Path) -> None:
    tell("The same from Python")
    with oci.Bundle.from_sif(image, directory / "py") as bundle:
        print(f"    {bundle.plan()!r}")
        with oci.Container.create(NAMES[0], bundle, state_root=directory / "state") as container:
            print(f"    {container!r}")
            container.start()
            result = container.exec(["uname", "-n"], capture_output=True, text=True)
            print(f"    {container!r} says {result.stdout!r}")
            container.kill("KILL")
            expect(container.wait(), -9, "the exit code")
    tell("And in one line")
    result = oci.run(image, ["echo", "hi"], capture_output=True, text=True, state_root=directory / "state")
    print(f"    {result!r}")
    expect(result.stdout, "hi\n", "the output")
    oci.close_images()  # run() keeps the last ones open for the next calls


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the clean-up runs
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
        tell("Check that no mount, loop device, cgroup or process is left behind")
        expect(leftovers(directory, pidfds), [], "the resources left behind")
        print("    nothing")
    print("\nDone.")


if __name__ == "__main__":
    main()

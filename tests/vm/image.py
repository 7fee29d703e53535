"""The image of the virtual machine: Debian with systemd, busybox and the Python dependencies of this project.

It consists of ``vmlinux``, ``initrd`` and ``root.img``, and is cached in a directory whose name is a hash of its inputs: a change of this
file, of ``guest/`` or of the dependencies in pyproject.toml makes a new image.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
GUEST = HERE / "guest"
"""Files that are added to Debian, or replace its files."""
EXTRAS = ("test", "systemd")
"""The optional dependencies in pyproject.toml that are installed. Those that they take from other ones are not: no test that runs
in the machine needs them."""

SUITE = "bookworm"
DISK_SIZE = "8G"
"""Size of the disk, which is a sparse file."""
KEPT_DAYS = 14
"""Days without use after which an image is removed when another one is built."""

PACKAGES = """
    systemd systemd-sysv dbus dbus-user-session libpam-systemd
    kmod procps e2fsprogs iproute2 uidmap fuse3 squashfuse squashfs-tools busybox-static
    python3 libseccomp2 criu podman conmon apparmor secilc
""".split()

KERNEL = "linux-image-amd64"  # the "cloud" flavour has no 9p

# The drivers that the machine can use, of 390 MB.
KEEP_DRIVERS = """
    block char/hw_random char/virtio_console.ko firmware md virtio
    net/bonding net/dummy.ko net/ifb.ko net/ipvlan net/macvlan.ko net/macvtap.ko net/net_failover.ko net/tap.ko net/tun.ko
    net/veth.ko net/virtio_net.ko net/vrf.ko net/vxlan net/wireguard
""".split()

# Modules that the initramfs loads in this order, with their dependencies. The kernel loads others on demand: there is no udev.
INITRD_MODULES = "virtio_pci virtio_blk crc32c_generic ext4 9pnet_virtio 9p virtio_console overlay fuse loop tun".split()

INITRD_INIT = """\
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
while read -r module; do busybox insmod "/modules/$module"; done < /modules/order
busybox mount -t ext4 -o nobarrier /dev/vda /root || exec busybox poweroff -f
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
"""

# Units that have no use in the machine, and take long under emulation.
MASKED_UNITS = """
    apparmor.service apt-daily-upgrade.timer apt-daily.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-tmpfiles-clean.timer getty.target console-getty.service serial-getty@ttyS0.service
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-firstboot.service systemd-journal-flush.service
    systemd-machine-id-commit.service systemd-pcrphase-sysinit.service systemd-pcrphase.service systemd-pstore.service
    systemd-random-seed.service systemd-repart.service systemd-sysusers.service systemd-update-utmp.service
    systemd-update-utmp-runlevel.service modprobe@.service systemd-modules-load.service systemd-remount-fs.service
    proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount systemd-binfmt.service
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
""".split()


class Failure(Exception):
    """The machine could not be built or run."""


def log(text: str) -> None:
    print("run-in-vm:", text, file=sys.stderr, flush=True)


def get_image(*, packages: Collection[str] = (), force: bool = False) -> Path:
    """Return the directory of the image. It is built if it does not exist, by one process at a time.

    Args:
        packages: additional Debian packages.
        force: build it anew.

    Raises:
        Failure: the image cannot be built.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ociruntime", "vm")
    requirements = _requirements()
    packages = sorted({*PACKAGES, *packages})
    image = cache / _key(requirements, packages)
    if force or not image.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if force or not image.is_dir():
                _build(image, requirements, packages)
    os.utime(image)
    return image


def _requirements() -> list[str]:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = (entry for extra in EXTRAS for entry in extras[extra] if not entry.startswith(f"{project['name']}["))
    return sorted({*project["dependencies"], *optional})


def _guest_files() -> Iterator[tuple[Path, Path]]:
    for path in sorted(GUEST.rglob("*")):
        if path.is_file():
            yield path, path.relative_to(GUEST)


def _key(requirements: list[str], packages: list[str]) -> str:
    seen = hashlib.sha256(repr((SUITE, requirements, packages)).encode())
    for path in (Path(__file__), *(path for path, _ in _guest_files())):
        seen.update(f"{path.relative_to(HERE)} {path.stat().st_mode & 0o100} {path.stat().st_size}\n".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def _build(image: Path, requirements: list[str], packages: list[str]) -> None:
    if os.geteuid() != 0:
        raise Failure("cannot build the image: this needs root")
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")):
        if not shutil.which(tool):
            raise Failure(f"cannot build the image: {tool} not found; run apt-get install {package}")
    for old in image.parent.glob("[0-9a-f]" * 16):
        if old == image or old.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            shutil.rmtree(old)
    logfile = image.parent / "build.log"
    log(f"building the image {image} (log: {logfile})")
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="build-", dir=image.parent))
    work.chmod(0o755)
    try:
        with open(logfile, "w") as output:
            _Builder(work, output).build(requirements, packages)
        work.rename(image)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        raise Failure(f"cannot build the image: {error}; see {logfile}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log(f"built the image in {time.monotonic() - began:.0f} s")


class _Builder:
    """Builds an image in an empty directory."""

    def __init__(self, work: Path, output: IO[str]) -> None:
        self.work = work
        self.root = work / "root"
        self.output = output

    def run(self, *argv: str | Path) -> None:
        print("+", shlex.join(map(str, argv)), file=self.output, flush=True)
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT)

    def build(self, requirements: list[str], packages: list[str]) -> None:
        self.debian(packages)
        self.kernel()
        self.python(requirements)
        self.units()
        disk, size = self.work / "root.img", DISK_SIZE
        options = "lazy_itable_init=0,root_owner=0:0"
        self.run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", options, "-d", self.root, disk, size)
        shutil.rmtree(self.root)

    def debian(self, packages: list[str]) -> None:
        # The kernel is only unpacked, because its installation needs initramfs-tools. "$1" in a hook of mmdebstrap is the new root.
        kernel = f'$(apt-cache depends {KERNEL} | sed -n "s/.*Depends: \\(linux-image-\\)/\\1/p")'
        fetch = f'mkdir "$1/kernel" && chroot "$1" sh -c \'cd /kernel && apt-get download {kernel}\''
        self.run(
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + ",".join(packages)),
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
            *("--customize-hook=" + fetch, SUITE, self.root),
        )

    def kernel(self) -> None:
        [package] = (self.root / "kernel").glob("*.deb")
        unpacked = self.work / "kernel"
        self.run("dpkg-deb", "-x", package, unpacked)
        shutil.rmtree(self.root / "kernel")
        [modules] = (unpacked / "lib/modules").iterdir()
        [bzimage] = (unpacked / "boot").glob("vmlinuz-*")
        (self.work / "vmlinux").write_bytes(_vmlinux(bzimage.read_bytes()))
        _prune(modules)
        home = self.root / "usr/lib/modules" / modules.name
        shutil.copytree(modules, home, symlinks=True)
        shutil.rmtree(unpacked)
        self.run("chroot", self.root, "depmod", modules.name)
        (self.work / "initrd").write_bytes(_initrd((self.root / "bin/busybox").read_bytes(), home))

    def python(self, requirements: list[str]) -> None:
        """Install the dependencies for the Python of the guest, and compile them, which takes long under emulation."""
        version = next((self.root / "usr/lib").glob("python3.[0-9]*")).name.removeprefix("python")
        target = f"usr/local/lib/python{version}/dist-packages"
        platforms = [f"--platform=manylinux{name}_x86_64" for name in ("_2_34", "_2_28", "2014")]
        wheels = ("--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *platforms)
        self.run(
            sys.executable, "-m", "pip", "install", "-q", "--no-compile", *wheels, "--target", self.root / target, *requirements
        )
        self.run("chroot", self.root, "python3", "-m", "compileall", "-q", f"/{target}")

    def units(self) -> None:
        for path, name in _guest_files():
            there = self.root / name
            there.parent.mkdir(parents=True, exist_ok=True)
            there.unlink(missing_ok=True)
            shutil.copy(path, there)
            there.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        for unit in MASKED_UNITS:
            link = self.root / "etc/systemd/system" / unit
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        # Generators take seconds under emulation, and generate nothing here.
        generators = self.root / "etc/systemd/system-generators"
        generators.mkdir(exist_ok=True)
        for generator in (self.root / "usr/lib/systemd/system-generators").iterdir():
            (generators / generator.name).symlink_to("/dev/null")
        self.run("chroot", self.root, "systemctl", "set-default", "multi-user.target")
        self.run("chroot", self.root, "systemctl", "enable", "vmtest.service")
        self.run("chroot", self.root, "useradd", "--create-home", "--shell", "/bin/bash", "tester")


def _vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF kernel in a bzImage (Documentation/arch/x86/boot.rst).

    QEMU boots it directly. To decompress it takes many seconds in the guest.
    """
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    offset += (setup_sectors + 1) * 512
    kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(bzimage[offset : offset + length])
    if kernel[:4] != b"\x7fELF":
        raise ValueError("the bzImage contains no ELF kernel")
    return kernel


def _prune(modules: Path) -> None:
    """Delete the drivers of hardware that the machine does not have."""
    drivers = modules / "kernel/drivers"
    keep = {drivers / name for name in KEEP_DRIVERS}
    parents = {parent for path in keep for parent in path.parents}
    shutil.rmtree(modules / "kernel/sound", ignore_errors=True)

    def prune(directory: Path) -> None:
        for path in directory.iterdir():
            if path in parents:
                prune(path)
            elif path.is_dir() and path not in keep:
                shutil.rmtree(path)
            elif path not in keep:
                path.unlink()

    prune(drivers)


def _initrd(busybox: bytes, modules: Path) -> bytes:
    """Return an initramfs with busybox and the modules that mount the root."""
    depends = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
    by_name = {Path(path).stem.replace("-", "_"): path for path in depends}
    order: list[str] = []
    for path in (by_name[name] for name in INITRD_MODULES):
        order += [p for p in (*reversed(depends[path]), path) if p not in order]  # modules.dep lists the first one to load last
    entries = [(directory, 0o40755, b"") for directory in ("bin", "dev", "root", "modules")]
    entries += [
        ("bin/busybox", 0o100755, busybox),
        ("init", 0o100755, INITRD_INIT.encode()),
        ("modules/order", 0o100644, "".join(f"{Path(path).name}\n" for path in order).encode()),
        *((f"modules/{Path(path).name}", 0o100644, (modules / path).read_bytes()) for path in order),
    ]
    return _cpio(entries)


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive ("newc") of names, modes and contents."""
    out = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)

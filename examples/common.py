"""What the examples share: a root filesystem of busybox in a temporary directory, and a state directory of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def place() -> Iterator[tuple[Path, Path]]:
    """A root filesystem with busybox's programs, and a state directory; both are gone at the end."""
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None:
        sys.exit("this example needs root and a static busybox (apt-get install busybox-static)")
    with tempfile.TemporaryDirectory(prefix="ociruntime-example-") as name:
        rootfs = Path(name, "rootfs")
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy(busybox, rootfs / "bin/busybox")
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                (rootfs / "bin" / applet).symlink_to("busybox")
        yield rootfs, Path(name, "state")


def expect(found: object, wanted: object) -> None:
    """End with an error when something is other than told."""
    if found != wanted:
        sys.exit(f"{sys.argv[0]}: {found!r} instead of {wanted!r}")

"""Functions that the examples share."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def place() -> Iterator[tuple[Path, Path]]:
    """Create a rootfs with busybox and a state directory, both in a temporary directory, and yield their paths."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("this example needs a static busybox (apt-get install busybox-static)")
    with tempfile.TemporaryDirectory(prefix="ociruntime-example-") as name:
        rootfs = Path(name, "rootfs")
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy(busybox, rootfs / "bin/busybox")
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                (rootfs / "bin" / applet).symlink_to("busybox")
        yield rootfs, Path(name, "state")


def expect(found: object, expected: object) -> None:
    """Exit with an error if `found` is not equal to `expected`."""
    if found != expected:
        sys.exit(f"{sys.argv[0]}: expected {expected!r}, found {found!r}")

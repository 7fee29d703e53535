#!/usr/bin/env python3
"""Build many packages at once from one image: the sources are shared and read-only, intermediate results are kept in a cache."""

from __future__ import annotations

import gzip
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import STDOUT
from typing import NamedTuple

from common import expect, place

import ociruntime as oci

PACKAGES = 24
BROKEN = "package-7"
AT_ONCE = 8
BUILD = """
set -e
library=/cache/$(cat /source/library | sha256sum | cut -c 1-16)
if [ -e $library ]; then
    echo library: cached
else
    sleep 0.2  # what takes its time
    tr a-z A-Z < /source/library > $library.$PACKAGE
    mv $library.$PACKAGE $library  # at once, so that no other build sees a part of it
    echo library: built
fi
mkdir /out
test -s /source/$PACKAGE || { echo "$PACKAGE has no source" >&2; exit 1; }
cat $library /source/$PACKAGE | gzip > /out/$PACKAGE.gz
"""


class Built(NamedTuple):
    """What became of a package."""

    package: str
    log: str
    ok: bool


def build(sandbox: oci.Sandbox, package: str, results: Path) -> Built:
    """Build a package in a sandbox that nothing has run in, and take the result out of it."""
    with sandbox:
        try:
            result = sandbox.shell(BUILD, env={"PACKAGE": package}, text=True, stderr=STDOUT, check=True)
        except oci.ProcessTimeout as error:
            return Built(package, str(error), ok=False)
        except oci.ProcessError as error:
            return Built(package, error.result.stdout, ok=False)
        sandbox.get(f"/out/{package}.gz", results / f"{package}.gz", max_size=16 << 20)
        return Built(package, result.stdout, ok=True)


def make_sources(source: Path) -> None:
    source.mkdir()
    (source / "library").write_text("a library for all packages\n")
    for number in range(PACKAGES):
        name = f"package-{number}"
        (source / name).write_text("" if name == BROKEN else f"this is {name}\n")


def main() -> None:
    warnings.simplefilter("ignore", oci.OCIRuntimeWarning)  # a user without cgroups has weaker limits
    with place() as (rootfs, state):
        source, cache, results = (rootfs.parent / name for name in ("source", "cache", "results"))
        make_sources(source)
        cache.mkdir()
        results.mkdir()
        began = time.monotonic()
        with (
            oci.SandboxPool(
                rootfs,
                size=AT_ONCE,
                mounts=[f"{source}:/source:ro", f"{cache}:/cache"],
                disk="64M",
                memory="256M",
                pids=64,
                timeout=60,
                limits="if possible",
                state_root=state,
            ) as pool,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):
            names = [f"package-{number}" for number in range(PACKAGES)]
            found = list(threads.map(lambda name: build(pool.get(), name, results), names))
        print(f"{PACKAGES} builds in {time.monotonic() - began:.1f} s")
        for built in found:
            if not built.ok:
                print(f"{built.package} failed:\n{built.log}", end="")
        print(f"the library was built {sum('built' in built.log for built in found)} times")
        expect([built.package for built in found if not built.ok], [BROKEN])
        expect(len(list(results.iterdir())), PACKAGES - 1)
        expect(gzip.decompress((results / "package-3.gz").read_bytes()), b"A LIBRARY FOR ALL PACKAGES\nthis is package-3\n")
        expect(len(list(cache.iterdir())), 1)
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()

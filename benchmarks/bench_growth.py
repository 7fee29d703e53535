"""Measure how the cost of a container grows: with other containers, mounts, environment variables, and the size of the image.

    python benchmarks/bench_growth.py [--rounds N] [--containers 1,10,100,1000] [--json FILE]

Needs root, a static busybox and mksquashfs. Medians in milliseconds. The images are squashfs files with a hole at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench_lifecycle import COMMAND, PYTHON, TIMEOUT, Place, call

import ociruntime as oci

Figures = dict[str, float | str]


def median(function: Callable[[], object], rounds: int) -> float:
    """Return the median of the milliseconds that a call takes, after one that is not counted."""
    times = []
    function()
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def run(place: Place, image: oci.Bundle | Path) -> None:
    args, null = () if isinstance(image, oci.Bundle) else ("/bin/true",), subprocess.DEVNULL
    oci.run(image, args, stdin=null, stdout=null, state_root=place.root, container_id=place.new_id(), check=True)


def containers(place: Place, counts: list[int], rounds: int) -> Figures:
    """Measure create, start and delete, `run`, and lists, beside other containers."""
    figures: Figures = {}
    null = subprocess.DEVNULL

    def create() -> oci.Container:
        return oci.Container.create(place.new_id(), place.bundle, state_root=place.root, stdin=null, stdout=null, stderr=null)

    def live() -> None:
        container = create()
        container.start()
        container.wait(TIMEOUT)
        container.delete()

    others: list[oci.Container] = []
    for count in counts:
        others += [create() for _ in range(count - len(others))]
        beside = f"beside {count} containers"
        figures[f"create, start and delete {beside}"] = median(live, rounds)
        figures[f"run of a bundle {beside}"] = median(lambda: run(place, place.bundle), rounds)
        figures[f"list, in process, {beside}"] = median(lambda: oci.Container.list(state_root=place.root), rounds)
        words = [PYTHON, "-c", COMMAND, "--root", str(place.root), "list"]
        figures[f"list, command, {beside}"] = statistics.median(call(words) for _ in range(rounds)) * 1e3
    for container in others:
        container.delete(force=True)
    return figures


def configs(place: Place, rounds: int) -> Figures:
    """Measure `run` with many mounts and many variables."""
    figures: Figures = {}
    for count in (10, 100, 300, 1000):
        mounts = [f"{place.directory}:/tmp/{number}:ro" for number in range(count)]
        figures[f"run with {count} mounts"] = attempt(place, place.bundle.with_overrides(mounts=mounts), rounds)
    for count in (10, 100, 1000, 10000):
        env = {f"VARIABLE_{number}": "value" for number in range(count)}
        figures[f"run with {count} variables"] = attempt(place, place.bundle.with_overrides(env=env), rounds)
    return figures


def attempt(place: Place, bundle: oci.Bundle, rounds: int) -> float | str:
    try:
        return median(lambda: run(place, bundle), rounds)
    except (oci.OCIRuntimeError, OSError) as error:
        return str(error)


def images(place: Place, rounds: int) -> Figures:
    """Measure `run`, and mount and umount, of images of different sizes."""
    figures: Figures = {}
    image, mounted = place.directory / "image.sqfs", place.directory / "mounted"
    subprocess.run(["mksquashfs", place.bundle.rootfs, image, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    for megabytes in (10, 100, 1000, 10000):
        os.truncate(image, megabytes * 10**6)
        figures[f"run of an image of {megabytes} MB"] = median(lambda: run(place, image), rounds)
        figures[f"mount and umount of an image of {megabytes} MB"] = median(
            lambda: oci.Bundle.from_image(image, mounted).umount(), rounds
        )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how the cost of a container grows.")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each case (default: 15)")
    parser.add_argument("--containers", default="1,10,100,1000", help="numbers of other containers (default: 1,10,100,1000)")
    parser.add_argument("--busybox", default=shutil.which("busybox"), help="a static busybox (default: the one in PATH)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    if options.rounds <= 0 or os.geteuid() or not options.busybox:
        parser.error("needs root, a static busybox and a positive number of rounds")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the clean-up below runs
    place = Place()
    try:
        place.fill(options.busybox)
        figures = containers(place, sorted(map(int, options.containers.split(","))), options.rounds)
        figures |= configs(place, options.rounds)
        figures |= images(place, options.rounds)
    finally:
        place.close()
    for label, figure in figures.items():
        print(f"{label:60} {figure if isinstance(figure, str) else f'{figure:10.2f} ms'}")
    if options.json:
        Path(options.json).write_text(json.dumps({"rounds": options.rounds, "growth_ms": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

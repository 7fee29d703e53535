"""Images, bundles and their configuration: mount, umount, sif, plan, spec, validate, features."""

from __future__ import annotations

import errno
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import ociruntime as oci


def mount(options: Namespace) -> None:
    oci.Bundle.from_sif(options.sif, options.bundle, writable=not options.read_only)


def umount(options: Namespace) -> None:
    bundle = oci.Bundle(options.bundle, config=None)  # its config.json may be absent or invalid
    bundle.umount(force=options.force, state_root=options.root)


def sif(options: Namespace) -> None:
    with oci.SifImage.open(options.file) as image:
        print(json.dumps(image.to_dict(), indent=2) if options.json else image.table())


def plan(options: Namespace) -> None:
    compiled = oci.Bundle.load(options.bundle).plan(cgroup_manager=options.cgroup_manager)
    sys.stdout.write(compiled.to_json(indent=2) + "\n" if options.json else compiled.explain())


def spec(options: Namespace) -> None:
    path = Path(options.bundle, "config.json")
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    host = None if options.for_user else oci.Host.probe()
    oci.RuntimeSpec.default(rootless=options.for_user, host=host).with_args("sh").save(path)


def validate(options: Namespace) -> int:
    path = Path(options.bundle, "config.json")
    problems = oci.RuntimeSpec.check(path, oci.Host.probe() if options.host else None)
    for problem in problems:
        print(f"{problem.severity}: {problem}")
    return int(any(problem.severity == "error" for problem in problems))


def features(options: Namespace) -> None:
    print(oci.features().to_json(indent=2))

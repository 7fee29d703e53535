"""Images and bundles, and what would be done with them: mount, umount, plan, sif."""

from __future__ import annotations

import json
import sys
from typing import Final

import ociruntime as oci

from .common import (
    Verb,
    bundle_argument,
)
from .options import Options, Parser


def _mount(sub: Parser) -> None:
    sub.add_argument("sif", metavar="SIF")
    sub.add_argument("bundle", metavar="BUNDLE")
    sub.add_argument("--read-only", action="store_true", help="no writable overlay over the image")


def _umount(sub: Parser) -> None:
    sub.add_argument("bundle", metavar="BUNDLE")
    sub.add_argument(
        "--force", "-f", action="store_true", help="kill the containers that use it, and unmount it under everything else"
    )


def _plan(sub: Parser) -> None:
    bundle_argument(sub)
    sub.add_argument("--json", action="store_true")


def _sif(sub: Parser) -> None:
    sub.add_argument("file", metavar="SIF")
    sub.add_argument("--json", action="store_true")


def mount(o: Options) -> None:
    oci.Bundle.from_sif(o.sif, o.bundle, writable=not o.read_only)


def umount(o: Options) -> None:
    oci.Bundle(o.bundle, config=None).umount(force=o.force, root=o.root)  # its config.json may be gone or a bad one


def plan(o: Options) -> None:
    made = oci.Bundle.load(o.bundle).plan(cgroup_manager=o.cgroup_manager)
    sys.stdout.write(made.to_json(indent=2) + "\n" if o.json else made.explain())


def sif(o: Options) -> None:
    with oci.SifImage.open(o.file) as image:
        print(json.dumps(image.to_dict(), indent=2) if o.json else image.table())


VERBS: Final = {
    "mount": Verb(mount, "make a bundle of a SIF image", _mount),
    "umount": Verb(umount, "undo mount: unmount the image and remove the bundle", _umount),
    "plan": Verb(plan, "print what creating and starting a container takes, without doing it", _plan),
    "sif": Verb(sif, "show what is in a SIF file", _sif),
}

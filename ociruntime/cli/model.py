"""The documents: spec, validate, features."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import ociruntime as oci

from .common import Verb, bundle_argument
from .options import Options, Parser


def _spec(sub: Parser) -> None:
    bundle_argument(sub)
    sub.add_argument("--rootless", action="store_true", dest="for_user", help="for a container of a user without privileges")


def _validate(sub: Parser) -> None:
    bundle_argument(sub)
    sub.add_argument("--host", action="store_true", help="also tell what this host cannot do")


def _features(sub: Parser) -> None:
    pass


def spec(o: Options) -> None:
    path = Path(o.bundle, "config.json")
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    oci.RuntimeSpec.default(rootless=o.for_user).with_args("sh").save(path)


def validate(o: Options) -> int:
    path = Path(o.bundle, "config.json")
    problems = oci.RuntimeSpec.check(path, oci.Host.probe() if o.host else None)
    for problem in problems:
        print(f"{problem.severity}: {problem}")
    return int(any(problem.severity == "error" for problem in problems))


def features(o: Options) -> None:
    print(oci.features().to_json(indent=2))


VERBS: Final = {
    "spec": Verb(spec, "write the default config.json", _spec),
    "validate": Verb(validate, "say everything that is wrong with the config.json of a bundle", _validate),
    "features": Verb(features, "print what this runtime supports", _features),
}

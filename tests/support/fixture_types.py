"""Types of the fixtures that are functions; the fixtures are in the conftest.py of tests and of tests/kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Protocol

import ociruntime as oci


class MakeBundle(Protocol):
    """Makes a bundle of busybox in a new directory of the test; the default process is ``sleep 1000``."""

    def __call__(self, spec: oci.RuntimeSpec | None = None, name: str = "") -> oci.Bundle: ...


class Script(Protocol):
    """Runs Python code in a new interpreter; ``args`` are its ``sys.argv[1:]``."""

    def __call__(self, text: str, *args: object, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]: ...


class UserBundle(Protocol):
    """Makes a bundle of the user `users.UID`, and names a state directory, where that user can reach and create them."""

    def __call__(self, spec: oci.RuntimeSpec) -> tuple[Path, Path]: ...


class Command(Protocol):
    """Returns the arguments that run an ``ociruntime`` command on the test's state directory."""

    def __call__(self, *args: object) -> list[str]: ...


class MakeSandbox(Protocol):
    """Makes a sandbox of busybox, or of another image, that is closed at the end of the test."""

    def __call__(self, image: Any = None, **options: Any) -> oci.Sandbox: ...

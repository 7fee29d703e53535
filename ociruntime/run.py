"""`run`: a program in a container of its own, from launch to clean-up in one call."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Bundle
from .container import Container
from .engine.processes import Exit
from .process import KILL_GRACE, Result, Streams

if TYPE_CHECKING:
    from .plan.cgroups import Manager

__all__ = ["run"]


def run(
    image: Bundle | str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    input: bytes | str | None = None,
    capture_output: bool = False,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
    container_id: str | None = None,
    root: str | os.PathLike[str] | None = None,
    cgroup_manager: Manager = "cgroupfs",
) -> Result:
    """Run a program in a new container and wait for it, as `subprocess.run` does; nothing of the container is left.

    Args:
        image: a `Bundle`, a bundle directory or a SIF file.
        args: the program and its arguments; what the config says by default.
        timeout: seconds; then everything in the container is killed, and the result keeps the output so far and ``timed_out``.
        cgroup_manager: who makes the cgroups, as for `Container.create`.

    Raises:
        TypeError: ``args`` is a string.
        SpecError, SifError, UnsupportedError, StepError: it could not be started.
        ProcessError: with ``check``, when the program does not end with 0.
    """
    if isinstance(args, str | bytes):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
    if not isinstance(image, Bundle) and not Path(image).is_dir():
        with tempfile.TemporaryDirectory(prefix="ociruntime-") as directory:
            with Bundle.from_sif(image, Path(directory, "bundle")) as bundle:
                return _run(
                    bundle,
                    args,
                    input,
                    capture_output,
                    (stdin, stdout, stderr),
                    text,
                    timeout,
                    check,
                    container_id,
                    root,
                    cgroup_manager,
                )
    bundle = image if isinstance(image, Bundle) else Bundle.load(image)
    return _run(
        bundle, args, input, capture_output, (stdin, stdout, stderr), text, timeout, check, container_id, root, cgroup_manager
    )


def _run(
    bundle: Bundle,
    args: Sequence[str],
    input: bytes | str | None,
    capture_output: bool,
    stdio: tuple[int | None, int | None, int | None],
    text: bool,
    timeout: float | None,
    check: bool,
    container_id: str | None,
    root: str | os.PathLike[str] | None,
    cgroup_manager: Manager,
) -> Result:
    if args:
        bundle = bundle.with_args(args)
    shown = tuple((bundle.spec.process.args if bundle.spec.process else None) or ())
    with Streams(input, capture_output, stdio) as streams:
        began = time.monotonic()
        container = Container.run(
            container_id or f"run-{secrets.token_hex(8)}",
            bundle,
            root=root,
            cgroup_manager=cgroup_manager,
            stdin=streams.child[0],
            stdout=streams.child[1],
            stderr=streams.child[2],
        )
        with container:
            ended = streams.communicate(container.fileno(), timeout)
            timed_out = ended is None
            if ended is None:
                container.kill("KILL", all=True)
                ended = streams.communicate(container.fileno(), KILL_GRACE) or Exit(None, 9)
        return streams.result(shown, ended, time.monotonic() - began, timed_out=timed_out, text=text, check=check)

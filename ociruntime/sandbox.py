"""`run`: a program in a container of its own, from launch to clean-up in one call."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from .bundle import Bundle
from .engine import cgroup
from .errors import ContainerNotFound, LaunchTimeout
from .interrupts import Held
from .lifecycle.orphans import CallerLock, clear_orphans
from .overrides import Args, Env, MountLike, Overrides, UserLike, listed, seconds, words
from .process import Child, Deadline, Result, Usage, finish
from .state import StateStore
from .streams import Codec, Stdio, Streams
from .temporary import Temporary

if TYPE_CHECKING:
    from .plan.cgroups import Manager

__all__ = ["run"]

Image = Bundle | str | os.PathLike[str]
Network = Literal["none", "host", False]


class RunOptions(TypedDict, total=False):
    """The further keywords of `run`, beside the text mode."""

    input: bytes | str | None
    capture_output: bool
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    timeout: float | None
    check: bool
    env: Env | None
    cwd: str | os.PathLike[str] | None
    user: UserLike | None
    mounts: Iterable[MountLike] | None
    memory: int | str | None
    cpus: float | None
    pids: int | None
    network: Network | None
    read_only: bool | None
    hostname: str | None
    container_id: str | None
    root: str | os.PathLike[str] | None
    die_with_parent: bool | None
    cgroup_manager: Manager


@overload
def run(image: Image, args: Args = ..., *, text: Literal[True], **options: Unpack[RunOptions]) -> Result[str]: ...
@overload
def run(
    image: Image, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[RunOptions]
) -> Result[str]: ...
@overload
def run(image: Image, args: Args = ..., *, errors: str, **options: Unpack[RunOptions]) -> Result[str]: ...
@overload
def run(image: Image, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[RunOptions]) -> Result[bytes]: ...
@overload
def run(image: Image, args: Args = ..., *, text: bool | None, **options: Unpack[RunOptions]) -> Result[Any]: ...


def run(
    image: Image,
    args: Args = (),
    *,
    input: bytes | str | None = None,
    capture_output: bool = False,
    stdin: Stdio = None,
    stdout: Stdio = None,
    stderr: Stdio = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: float | None = None,
    check: bool = False,
    env: Env | None = None,
    cwd: str | os.PathLike[str] | None = None,
    user: UserLike | None = None,
    mounts: Iterable[MountLike] | None = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    network: Network | None = None,
    read_only: bool | None = None,
    hostname: str | None = None,
    container_id: str | None = None,
    root: str | os.PathLike[str] | None = None,
    die_with_parent: bool | None = None,
    cgroup_manager: Manager = "cgroupfs",
) -> Result[Any]:
    """Run a program in a new container and wait for it, as `subprocess.run` does; nothing of the container is left.

    Args:
        image: a SIF file, a `Bundle`, a bundle directory, or a directory that is a root filesystem. What the program writes to the
            root filesystem of a SIF file or of a plain directory is gone at the end.
        args: the program and its arguments; what the config says by default.
        input: bytes for stdin, or text with ``text=True``.
        capture_output: keep stdout and stderr in the result.
        stdin, stdout, stderr: descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; our own by default.
        text: decode the output, as ``encoding`` and ``errors`` do; by default from UTF-8, what is invalid as surrogates.
        timeout: seconds; then everything in the container is killed, and the result has the output so far and ``timed_out``.
        check: raise ProcessError when the program does not end with 0.
        env: variables over the image's: a mapping, where None removes one, or ``NAME=value`` strings.
        cwd: the working directory in the container.
        user: ``"name"``, ``"name:group"``, ``"uid:gid"``, a uid or ``(uid, gid)``; names as in the image's passwd and group.
        mounts: ``"source:destination"``, with ``:ro`` behind it read-only, or `Mount` objects; in place of one at that destination.
        memory: the most memory, in bytes or as ``"512M"``; what needs more is killed.
        cpus: CPU time, in CPUs: 0.5 is half of one.
        pids: the most processes and threads.
        network: ``"none"`` or False for an empty network, ``"host"`` for the host's; by default as the config says: empty in an
            image.
        read_only: whether the root filesystem is read-only.
        hostname: the hostname in the container.
        container_id: by default a random one.
        root: the state directory; ``/run/ociruntime`` for root by default.
        die_with_parent: kill the container when this process ends, however it ends; what is left of it is removed by the next call
            of `run`, or by `prune`. By default, processes that the kernel does not kill run on until then. True refuses a config
            where some could: one without a new pid namespace, or with a program that gains capabilities. False: the container runs
            on.
        cgroup_manager: who makes the cgroups, as for `Container.create`.

    Raises:
        TypeError: ``args`` is a string.
        ValueError, BundleError: an argument cannot be carried out.
        SpecError, SifError, UnsupportedError, StepError: it could not be started.
        ProcessError: with ``check``, when the program does not end with 0.

    What interrupts the call, KeyboardInterrupt for example, kills the container too; the exception has the output so far in its
    attribute ``result``, a `Result`.
    """
    overrides = Overrides(words(args), env, cwd, user, listed(mounts), memory, cpus, pids, network, read_only, hostname).checked()
    limit = seconds(timeout)
    codec = Codec.of(text, encoding, errors)
    with Held() as held, Streams.of_run(input, capture_output, stdin, stdout, stderr, codec) as streams:
        clear_orphans(StateStore(root))
        made_of = source(image, overrides)
        name = new_id() if container_id is None else container_id
        deadline = Deadline(limit)
        try:
            sandbox = Sandbox(
                name,
                made_of,
                streams,
                root=root,
                die_with_parent=die_with_parent,
                cgroup_manager=cgroup_manager,
                deadline=deadline.at,
            )
        except LaunchTimeout as error:
            result = deadline.result(error, overrides.args or (), streams)
        else:
            try:
                result = sandbox.complete(finish(sandbox.child, held, limit, sandbox.kill, sandbox.on_end))
            finally:
                sandbox.discard()
    if check:
        result.check_returncode()
    return result


def new_id() -> str:
    """A container id that nobody has."""
    return f"run-{os.urandom(8).hex()}"


def source(image: Image, overrides: Overrides) -> Bundle | Temporary:
    """What a container is made of. Raises BundleError, SpecError."""
    if isinstance(image, Bundle):
        return image.with_overrides(overrides)
    if not isinstance(image, str | os.PathLike):
        raise TypeError(f"image is {image!r}: a path or a Bundle is needed")
    if not os.fspath(image):
        raise ValueError("image is empty: the path of a SIF file, a bundle or a root filesystem is needed")
    path = Path(image)
    if (path / "config.json").exists():
        return Bundle.load(path).with_overrides(overrides)
    return Temporary(path, overrides)


class Sandbox:
    """A container for one program, launched: whoever made it completes or kills it, and discards it in the end."""

    def __init__(
        self,
        container_id: str,
        made_of: Bundle | Temporary,
        streams: Streams,
        *,
        root: str | os.PathLike[str] | None,
        die_with_parent: bool | None,
        cgroup_manager: Manager,
        deadline: float | None = None,
    ) -> None:
        from .lifecycle.create import create

        began = time.monotonic()
        ephemeral = die_with_parent is not False
        self._lock = CallerLock(StateStore(root), container_id) if ephemeral else None
        try:
            self._made = made = create(
                container_id,
                made_of,
                root=root,
                stdio=streams.child,
                terminal=None,
                console_socket=None,
                pid_file=None,
                preserve_fds=0,
                cgroup_manager=cgroup_manager,
                new_keyring=True,
                die_with_parent=die_with_parent,
                ephemeral=ephemeral,
                gate=False,
                deadline=deadline,
            )
        except BaseException:
            self._release()
            raise
        streams.launched()
        cgroups = made.document.get("cgroups", [])
        pid = made.document["pid"]
        self.child = Child(made.args, pid, made.pidfd, streams, first=pid, began=began, cgroups=cgroups)
        # In a pid namespace of its own all else ends with the first process; otherwise it could hold the pipes open.
        self.on_end = None if made.own_pids else self.kill

    def kill(self) -> None:
        """Kill everything in it; no effect in a forked child of its maker."""
        if not self.child.owned:
            return
        self.child.kill()
        cgroup.kill(self.child.cgroups)

    def complete(self, result: Result[Any]) -> Result[Any]:
        """The result of the program with what the whole container used."""
        from .lifecycle.status import out_of_memory

        usage = Usage.of_cgroups(self.child.cgroups, result.usage)
        return result._replace(oom_killed=out_of_memory(self._made.document), usage=usage)

    def discard(self) -> None:
        """Kill what still runs, and remove all of it, unless another process has; no effect in a forked child of its maker."""
        if not self.child.owned:
            return
        from .lifecycle.delete import delete, discard

        try:
            if self.child.returncode is None:
                delete(self._made.entry, force=True)
            else:
                discard(self._made.entry, self._made.document)
        except ContainerNotFound:
            pass
        finally:
            self.child.close()
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

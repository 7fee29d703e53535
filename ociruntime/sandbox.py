"""`Sandbox`: a container for programs and agents, in which any number of programs run one after the other or at once."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, overload

from .arguments import check_str, parse_timeout
from .container import Container
from .engine.cgroup.tasks import open_pidfds, send, wait
from .ephemeral import OwnedContainer, find_bundle
from .errors import StateError, warn
from .files import Unpicklable
from .interrupts import DeferredSignals, complete
from .lifecycle.delete import end, processes, read
from .options import SandboxOptions, SandboxPopenKeywords, SandboxRunKeywords, check_keywords
from .streams import DEVNULL, PIPE, STDOUT, Streams

if TYPE_CHECKING:
    from .ephemeral import ImageLike
    from .lifecycle.files import ContainerFiles
    from .options import LimitPolicy, OutputFunction
    from .overrides import Args, Env, MountLike, Network, Ports, StrPath, UserLike
    from .plan.cgroups import Manager
    from .presets import Preset
    from .process import Process, Result
    from .stats import Event, Stats
    from .store import Entry
    from .streams import Stdio

__all__ = ["Sandbox"]

STREAMS: Final = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
"""The streams of a run, unless it says otherwise."""
POPEN_STREAMS: Final = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT}
"""Those of `Sandbox.popen`."""


def shell_args(line: str) -> tuple[str, ...]:
    """Return the command line that runs a line of shell. Raises TypeError, ValueError."""
    check_str("line", line)
    return "/bin/sh", "-c", line


class Sandbox(Unpicklable):
    """A container of this process, without a program of its own, in which programs run and files are kept until `close`.

    Its first process only reaps the others. It has private namespaces, and an upper layer of its own over the image, which is
    removed with it. When this process ends, however it ends, every process of the sandbox is killed; what is left of its records is
    removed by the next sandbox or call of `run`, or by `prune`.

    As a context manager it is closed at the end. Several threads can use it at the same time. A forked child leaves it alone.
    """

    _instead = "make a Sandbox in the process that uses it"

    def __init__(
        self,
        image: ImageLike,
        *,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        disk: int | str | None = None,
        shm: int | str | None = None,
        max_output: int | str | None = "16M",
        timeout: float | None = None,
        limits: LimitPolicy | None = None,
        network: Network | None = None,
        devices: Iterable[StrPath] | None = None,
        gpus: str | int | None = None,
        ports: Ports | None = None,
        mounts: Iterable[MountLike] | None = None,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        preset: Preset | str | None = None,
        read_only: bool | None = None,
        overlay: StrPath | None = None,
        hostname: str | None = None,
        name: str | None = None,
        state_root: StrPath | None = None,
        cgroup_manager: Manager = "cgroupfs",
        reference: str | None = None,
        platform: str | None = None,
        strategy: str | None = None,
    ) -> None:
        """Create and start a sandbox.

        Args:
            image: an image of any kind that `Bundle.from_image` takes, a `Bundle`, or a bundle directory. It does not change.
            memory: memory limit of all processes together, in bytes or as ``"512M"``. The kernel kills a program that needs more.
                What is written to a root filesystem in memory (``disk``) counts too.
            cpus: CPU time in CPUs: 0.5 is half of one.
            pids: limit of processes and threads. Default: 1024. -1 for no limit.
            disk: limit of what is written to the root filesystem, which is in memory then. Default: ``"1G"``. -1 for no limit, in a
                directory on the disk (``TMPDIR``).
            shm: size of ``/dev/shm``. Default: as the configuration says, which is 64 MiB for an image. -1 for half of the memory.
            max_output: bytes of each output stream of a run that are kept, unless the run says otherwise. -1 for all.
            timeout: seconds for each run that does not say otherwise. Default: no limit.
            limits: what happens where a limit cannot be enforced for all processes together, because this user has no cgroups.
                ``"required"``: that is an error. ``"if possible"``: a weaker limit is set, with a warning: memory for each process
                (RLIMIT_DATA), pids for each user of the sandbox (RLIMIT_NPROC), and none for CPUs. Default: the limits that are
                given are required, and the default of ``pids`` may be weaker. The attribute `limits` has what was chosen.
            network, ports, devices, gpus: as for `ociruntime.run`.
            mounts: ``"source:destination"``, with ``:ro`` read-only, or `Mount` objects. What is written there stays, and no limit
                counts it.
            env: variables of all programs, over the image's: a mapping, where None removes one, or ``NAME=value`` strings.
            cwd: the working directory of all programs.
            user: the user of all programs, as for `ociruntime.run`.
            preset: as for `ociruntime.run`.
            read_only: whether the root filesystem is read-only.
            overlay: where writes to the root filesystem go instead, as for `Bundle.fresh`. It conflicts with ``disk``.
            hostname: the hostname in the sandbox.
            name: the id of the container. Default: a random one.
            state_root: the state directory; by default ``/run/ociruntime`` for root.
            cgroup_manager: what makes the cgroups, as for `Container.create`.
            reference: which image of a layout or archive that holds several: one of its names, or the digest of its manifest.
            platform: the platform of which to take the image, such as ``linux/arm64``. Default: this machine's, or the only one.
            strategy: how the layers of the image become files, as for `Bundle.from_image`. Default: the first that can be used.

        Raises:
            ValueError, TypeError, BundleError: an argument cannot be carried out.
            UnsupportedError: this host cannot carry it out, or cannot enforce a limit that is required.
            SpecError, SifError, StepError: the sandbox cannot be started. In every case nothing of it is left.
        """
        options = SandboxOptions(
            memory=memory,
            cpus=cpus,
            pids=pids,
            disk=disk,
            shm=shm,
            max_output=max_output,
            timeout=timeout,
            limits=limits,
            network=network,
            devices=devices,
            gpus=gpus,
            ports=ports,
            mounts=mounts,
            env=env,
            cwd=cwd,
            user=user,
            preset=preset,
            read_only=read_only,
            overlay=overlay,
            hostname=hostname,
            name=name,
            state_root=state_root,
            cgroup_manager=cgroup_manager,
            reference=reference,
            platform=platform,
            strategy=strategy,
        )
        self._begin(image, options)

    def _begin(self, image: ImageLike, options: SandboxOptions) -> None:
        self._image = image
        self._options = options
        with DeferredSignals() as signals:
            self._make()
            signals.undo = self.close
        warn(options.enforcement.weak)

    @classmethod
    def _of(cls, image: ImageLike, options: SandboxOptions) -> Self:
        """Return a sandbox, given its options. Raises as the constructor."""
        sandbox = cls.__new__(cls)
        sandbox._begin(image, options)
        return sandbox

    def _make(self) -> None:
        """Make the container. Signals are deferred."""
        options = self._options
        bundle = find_bundle(self._image, options)
        name = f"sandbox-{os.urandom(8).hex()}" if options.name is None else options.name
        with Streams(DEVNULL, DEVNULL, DEVNULL) as streams:
            owned = OwnedContainer(bundle, name, options.create, streams.child)
        self._owned, self._container = owned, Container._of(owned.created)
        # Not as a method of this object, which could not be collected then. At the end of the interpreter it is closed too.
        self._finalizer = weakref.finalize(self, owned.discard)

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The id of its container, unique in the state directory."""
        return self._container.id

    @property
    def container(self) -> Container:
        """Its container, for what a sandbox has no method for: `Container.exec` with capabilities, `Container.pause` ..."""
        return self._container

    @property
    def files(self) -> ContainerFiles:
        """Its files, which can be read, written and copied. Raises StateError: the sandbox is closed."""
        return self._running().files

    @property
    def limits(self) -> Mapping[str, str]:
        """What enforces each of its limits: ``memory``, ``cpus``, ``pids`` if they are limited, and ``disk``.

        ``"cgroup"`` and ``"tmpfs"`` hold for all processes together, ``"rlimit"`` for each process or user; ``"none"``: nothing.
        """
        return MappingProxyType(self._options.enforcement.by)

    @property
    def owned(self) -> bool:
        """Whether it belongs to this process, instead of the parent that this process was forked from."""
        return self._owned.owned

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return not self._finalizer.alive

    def __repr__(self) -> str:
        return f"<Sandbox {self.name!r}: {'closed' if self.closed else self._container.status}>"

    def _running(self) -> Container:
        """Return the container. Raises StateError: the sandbox is closed."""
        if self.closed:
            raise StateError(f"sandbox {self.name!r} is closed")
        return self._container

    # ---- running programs ----

    @overload
    def run(self, args: Args, *, text: Literal[True], **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    def run(self, args: Args, *, encoding: str, errors: str | None = ..., **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    def run(self, args: Args, *, errors: str, **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    def run(self, args: Args, *, text: Literal[False] | None = ..., **options: Unpack[SandboxRunKeywords]) -> Result[bytes]: ...
    @overload
    def run(self, args: Args, *, text: bool | None, **options: Unpack[SandboxRunKeywords]) -> Result[Any]: ...

    def run(
        self,
        args: Args,
        *,
        input: bytes | str | None = None,
        stdin: Stdio = DEVNULL,
        stdout: Stdio = PIPE,
        stderr: Stdio = PIPE,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int | str | None = None,
        on_stdout: OutputFunction | None = None,
        on_stderr: OutputFunction | None = None,
        timeout: float | None = None,
        check: bool = False,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        terminal: bool = False,
    ) -> Result[Any]:
        """Run a program in the sandbox and wait for it. Its output is captured.

        What the program has left in the background runs on until the sandbox is closed, as with `subprocess`.

        Args:
            args: the program and its arguments.
            input: bytes for stdin, or text with ``text=True``.
            stdin, stdout, stderr: file descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; None for the caller's.
            text: decode the output, as ``encoding`` and ``errors`` do. Default: UTF-8, with surrogates for invalid bytes.
            max_output: bytes of each stream that are kept, or a size such as ``"16M"``; -1 for all. The rest is read and dropped,
                and the result is ``truncated``. Default: that of the sandbox.
            on_stdout, on_stderr: functions that get all output of that stream as it comes, in parts of any length: bytes or text.
                An exception of one kills the program and everything that it has started.
            timeout: seconds until the program and every process that it has started are killed, and ProcessTimeout is raised.
                Default: that of the sandbox.
            check: raise ProcessError if the program does not exit with 0.
            env: variables over those of the sandbox: a mapping, where None removes one, or ``NAME=value`` strings.
            cwd: the working directory in the sandbox.
            user: ``"name"``, ``"name:group"``, ``"uid:gid"``, a uid or ``(uid, gid)``.
            groups: supplementary groups instead of the user's own.
            terminal: give the program a terminal, whose output is the result's ``stdout``.

        Returns:
            The result. It tells a signal, an OOM kill and truncated output. ``result`` of a ProcessTimeout tells ``timed_out``.

        Raises:
            TypeError, ValueError: an argument is wrong.
            StateError: the sandbox is closed. WrongStatus: it has ended, by `stop`, `kill` or an OOM kill of its first process.
            StepError: the program cannot be executed; with errno ENOENT it does not exist.
            ProcessTimeout: the program did not end within ``timeout`` seconds.
            ProcessError: with ``check``, the program did not exit with 0.
        """
        given = {
            "input": input,
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "text": text,
            "encoding": encoding,
            "errors": errors,
            "max_output": max_output,
            "on_stdout": on_stdout,
            "on_stderr": on_stderr,
            "timeout": timeout,
            "check": check,
            "env": env,
            "cwd": cwd,
            "user": user,
            "groups": groups,
            "terminal": terminal,
        }
        return self._running()._exec(self._options.exec_options(args, given))

    @overload
    def shell(self, line: str, *, text: Literal[True], **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    def shell(
        self, line: str, *, encoding: str, errors: str | None = ..., **options: Unpack[SandboxRunKeywords]
    ) -> Result[str]: ...
    @overload
    def shell(self, line: str, *, errors: str, **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    def shell(self, line: str, *, text: Literal[False] | None = ..., **options: Unpack[SandboxRunKeywords]) -> Result[bytes]: ...
    @overload
    def shell(self, line: str, *, text: bool | None, **options: Unpack[SandboxRunKeywords]) -> Result[Any]: ...

    def shell(
        self,
        line: str,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxRunKeywords],
    ) -> Result[Any]:
        """Run a line of shell, by ``/bin/sh`` of the image. Keywords, result and errors are those of `run`."""
        check_keywords("shell", options, SandboxRunKeywords)
        given = {**STREAMS, **options, "text": text, "encoding": encoding, "errors": errors}
        return self._running()._exec(self._options.exec_options(shell_args(line), given))

    @overload
    def popen(
        self, args: Args, *, text: Literal[True], bufsize: int = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Process[str]: ...
    @overload
    def popen(
        self, args: Args, *, encoding: str, errors: str | None = ..., bufsize: int = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Process[str]: ...
    @overload
    def popen(self, args: Args, *, errors: str, bufsize: int = ..., **options: Unpack[SandboxPopenKeywords]) -> Process[str]: ...
    @overload
    def popen(
        self, args: Args, *, text: Literal[False] | None = ..., bufsize: int = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Process[bytes]: ...
    @overload
    def popen(
        self, args: Args, *, text: bool | None, bufsize: int = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Process[Any]: ...

    def popen(
        self,
        args: Args,
        *,
        stdin: Stdio = DEVNULL,
        stdout: Stdio = PIPE,
        stderr: Stdio = STDOUT,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        terminal: bool = False,
    ) -> Process[Any]:
        """Start a program in the sandbox and return its `Process`. Iterating over that yields the lines of its output.

        By default stderr goes where stdout goes. Other arguments and errors are those of `run`, and:

        Args:
            bufsize: of the streams: 1 for line buffering of text, 0 for none of bytes.
            terminal: give the program a terminal, whose master is `Process.terminal`.
        """
        given = {
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "text": text,
            "encoding": encoding,
            "errors": errors,
            "bufsize": bufsize,
            "env": env,
            "cwd": cwd,
            "user": user,
            "groups": groups,
            "terminal": terminal,
        }
        return self._running()._open_process(self._options.exec_options(args, given))

    # ---- watching and ending them ----

    def processes(self) -> tuple[int, ...]:
        """Return the pids of the processes of the sandbox, in the caller's pid namespace, without its first one."""
        container = self._running()
        return tuple(pid for pid in container.processes() if pid != container.pid)

    def stats(self) -> Stats:
        """Return what the sandbox uses, as `Container.stats` does."""
        return self._running().stats()

    def events(self, interval: float | None = None) -> Iterator[Event]:
        """Yield the events of the sandbox as they happen, such as OOM kills, until it ends. See `Container.events`."""
        return self._running().events(interval)

    def stop(self, timeout: float | None = 10.0) -> None:
        """End the sandbox: send SIGTERM to every process, wait, and kill what is left. No program can be run any more.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            UnsupportedError: the processes are not known: the sandbox has neither cgroups nor a pid namespace of its own.
        """
        _stop(self._running()._entry, parse_timeout(timeout))

    def kill(self) -> None:
        """Kill every process, the first one included. No program can be run any more."""
        entry = self._running()._entry
        with entry.locked():
            end(entry, *read(entry, force=True), -1)

    def reset(self) -> None:
        """Make the sandbox new: kill every process, and remove everything that was written to the root filesystem.

        What is in ``mounts`` or in an ``overlay`` that is kept stays. If this raises, the sandbox is closed.
        """
        self._running()
        with DeferredSignals() as signals:
            self.close()
            self._make()
            signals.undo = self.close

    def close(self) -> None:
        """Kill every process and remove the sandbox. A second call, or one in a forked child, has no effect."""
        complete(self._finalizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _stop(entry: Entry, timeout: float | None) -> None:
    """End a container, as `Sandbox.stop` does."""
    document = entry.read()
    deadline = time.monotonic() + (_LONGEST if timeout is None else timeout)

    def others() -> set[int]:
        return processes(document) - {document.get("pid", 0)}

    with open_pidfds(others, others()) as pidfds:
        send(pidfds, signal.SIGTERM)
        wait(pidfds, deadline)
    with entry.locked():
        end(entry, *read(entry, force=True), -1)


_LONGEST: Final = 1e9
"""Seconds of a wait without a limit: more than 30 years."""

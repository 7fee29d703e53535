"""`Sandbox`: a container for programs and agents, in which any number of programs run one after the other or at once."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, overload

import attrs
from typing_extensions import override

from ._lazy import HtmlRepr
from .arguments import Duration, check_int, check_str, parse_path, parse_timeout
from .bundle import Bundle, has_file, is_image
from .container import Container
from .engine.cgroup.tasks import signal_each, wait_each
from .engine.processes import ended_within
from .ephemeral import OwnedContainer, find_bundle, host_bundle
from .errors import StateError, WrongStatus, naming, warn
from .files import Unpicklable, absolute_path
from .image.model import identity_at
from .interrupts import complete, uninterruptible
from .lifecycle.delete import end, processes, read
from .lifecycle.execute import open_socket
from .lifecycle.files import FileOperations
from .lifecycle.snapshots import Origin, Snapshot
from .options import SandboxKeywords, SandboxOptions, SandboxPopenKeywords, SandboxRunKeywords, check_keywords
from .presets import HostFiles
from .rootfs.uppers import own_layer
from .rootfs.users import CALLER
from .store import StateStore, Status
from .streams import DEVNULL, PIPE, STDOUT, Streams

if TYPE_CHECKING:
    from .engine.cgroup.stats import Stats
    from .engine.fileserver import FileServer
    from .ephemeral import ImageLike
    from .image import Compression
    from .lifecycle.create import Launched
    from .lifecycle.files import AnyPath, ContainerFiles
    from .lifecycle.snapshots import Changes
    from .options import LimitPolicy, Misspelt, NoKeywords, OutputFunction
    from .overrides import Args, Env, Mounts, Network, Overlays, Ports, StrPath, UserLike
    from .plan.cgroups import Manager
    from .presets import Preset
    from .process import Process, Result
    from .stats import Event
    from .store import Entry
    from .streams import Stdio

__all__ = ["Sandbox", "SandboxPool"]


def host_options(options: SandboxKeywords) -> SandboxOptions:
    """Return the options of a sandbox for the programs of the host, given its keywords. Raises as `SandboxOptions`."""
    check_keywords("host", options, SandboxKeywords)
    given: SandboxKeywords = {"user": CALLER, **options}
    return SandboxOptions(**given)


STREAMS: Final = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
"""The streams of a run, unless it says otherwise."""
POPEN_STREAMS: Final = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT}
"""Those of `Sandbox.popen`."""


def shell_args(line: str) -> tuple[str, ...]:
    """Return the command line that runs a line of shell. Raises TypeError, ValueError."""
    check_str("line", line)
    return "/bin/sh", "-c", line


class Sandbox(HtmlRepr, FileOperations, Unpicklable):
    """A container of this process, without a program of its own, in which programs run and files are kept until `close`.

    Its first process only reaps the others. It has private namespaces, and an upper layer of its own over the image, which is
    removed with it. When this process ends, however it ends, every process of the sandbox is killed; what is left of its records is
    removed by the next sandbox or call of `run`, or by `prune`.

    As a context manager it is closed at the end. Several threads can use it at the same time. A forked child leaves it alone.
    """

    _instead = "make a Sandbox in the process that uses it"

    def __init__(
        self,
        image: ImageLike | Snapshot,
        *,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        disk: int | str | None = None,
        shm: int | str | None = None,
        max_output: int | str | None = "16M",
        timeout: Duration | None = None,
        limits: LimitPolicy | None = None,
        network: Network | None = None,
        devices: Iterable[StrPath] | None = None,
        gpus: str | int | None = None,
        ports: Ports | None = None,
        mounts: Mounts | None = None,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        preset: Preset | str | None = None,
        read_only: bool | None = None,
        overlay: Overlays | None = None,
        hostname: str | None = None,
        name: str | None = None,
        state_root: StrPath | None = None,
        cgroup_manager: Manager | None = None,
        reference: str | None = None,
        platform: str | None = None,
        strategy: str | None = None,
        **unknown: Unpack[NoKeywords],
    ) -> None:
        """Create and start a sandbox.

        Args:
            image: an image of any kind that `Bundle.from_image` takes, a `Bundle`, a bundle directory, or a `Snapshot`. It does not
                change.
            memory: memory limit of all processes together, in bytes or as ``"512M"``. The kernel kills a program that needs more.
                What is written to a root filesystem in memory (``disk``) counts too, and so does swap.
            cpus: CPU time in CPUs: 0.5 is half of one.
            pids: limit of processes and threads. Default: that of a bundle that has one, otherwise 1024. -1 for no limit.
            disk: limit of what is written to the root filesystem, which is in memory then. Default: ``"1G"``. -1 for no limit, in a
                directory on the disk (``TMPDIR``). It is also the size of each other tmpfs that has none.
            shm: size of ``/dev/shm``. Default: as the configuration says, which is 64 MiB for an image. -1 for half of the memory.
            max_output: bytes of each output stream of a run that are kept, unless the run says otherwise. -1 for all.
            timeout: seconds, or a time as for `ociruntime.run`, for each run that does not say otherwise. Default: no limit.
            limits: what happens where a limit cannot be enforced for all processes together, because this user has no cgroups.
                ``"required"``: that is an error. ``"if possible"``: a weaker limit is set, with a warning: memory for each process
                (RLIMIT_DATA), pids for each user of the sandbox (RLIMIT_NPROC), and none for CPUs. Default: the limits that are
                given are required, and the default of ``pids`` may be weaker. The attribute `limits` has what was chosen.
            network, ports, devices, gpus: as for `ociruntime.run`.
            mounts: as for `ociruntime.run`. What is written to the host stays, and no limit counts it.
            env: variables of all programs, over the image's: a mapping, where None removes one, or ``NAME=value`` strings.
            cwd: the working directory of all programs.
            user: the user of all programs, as for `ociruntime.run`.
            preset: as for `ociruntime.run`.
            read_only: whether the root filesystem is read-only.
            overlay: where writes to the root filesystem go instead, as for `Bundle.fresh`. It conflicts with ``disk``, which
                read-only layers alone do not.
            hostname: the hostname in the sandbox.
            name: the id of the container. Default: a random one.
            state_root: the state directory; by default ``/run/ociruntime`` for root.
            cgroup_manager: what makes the cgroups, as for `Container.create`. Default: this process, or systemd for limits that are
                given or required where only systemd can make cgroups for this user.
            reference: which image of a layout or archive that holds several: one of its names, or the digest of its manifest.
            platform: the platform of which to take the image, such as ``linux/arm64``. Default: this machine's, or the only one.
            strategy: how the layers of the image become files, as for `Bundle.from_image`. Default: the first that can be used.

        Raises:
            ValueError, TypeError, BundleError: an argument cannot be carried out.
            UnsupportedError: this host cannot carry it out, or cannot enforce a limit that is required.
            SpecError, SifError, StepError: the sandbox cannot be started. In every case nothing of it is left.
        """
        check_keywords("Sandbox", unknown, SandboxKeywords)
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

    @classmethod
    def host(
        cls,
        *,
        read: Iterable[StrPath] = (),
        write: Iterable[StrPath] = (),
        hide: Iterable[StrPath] = (),
        **options: Unpack[SandboxKeywords],
    ) -> Self:
        """Create a sandbox without an image: for the programs of the host, which it shows read-only.

        It shows ``/usr`` and what belongs to it, ``/etc`` and ``/opt``, and nothing else of the host. ``/tmp``, ``/var/tmp``,
        ``/run`` and the home directory are empty, and what is written there is removed with the sandbox. The user is the caller.

        Args:
            read: paths of the host that it shows too, read-only.
            write: paths that it shows too, and may change.
            hide: paths that it does not show, in what it shows. Of ``/etc``, what not every user can read is hidden anyway.
            options: the other arguments of `Sandbox`. ``user`` is the caller by default.

        Raises:
            BundleError: a path does not exist. And as `Sandbox`.
        """
        return cls._of(HostFiles.of(read, write, hide), host_options(options))

    def _begin(self, image: ImageLike | HostFiles | Snapshot, options: SandboxOptions) -> None:
        self._options = options
        self._begin_with(image)
        warn(options.enforcement.weak)

    @naming(lambda self, image: f"cannot make a sandbox of {getattr(image, 'path', image)}")
    @uninterruptible(undo=lambda sandbox: sandbox.close())
    def _begin_with(self, image: ImageLike | HostFiles | Snapshot) -> Self:
        """Make the container, and return this sandbox. Raises as the constructor."""
        self._origin = _origin_of(image, self._options)
        self._make(image.bundle if isinstance(image, Snapshot) else image)
        return self

    @classmethod
    def _of(cls, image: ImageLike | HostFiles | Snapshot, options: SandboxOptions) -> Self:
        """Return a sandbox, given its options. Raises as the constructor."""
        sandbox = cls.__new__(cls)
        sandbox._begin(image, options)
        return sandbox

    def _make(self, image: ImageLike | HostFiles) -> None:
        """Make the container. Signals are deferred."""
        options = self._options
        bundle = host_bundle(image, options) if isinstance(image, HostFiles) else find_bundle(image, options)
        name = f"sandbox-{os.urandom(8).hex()}" if options.name is None else options.name
        with Streams(DEVNULL, DEVNULL, DEVNULL) as streams:
            owned = OwnedContainer(bundle, name, options.create, streams.child)
        self._owned, self._container = owned, Container._of(owned.created)
        self._image: ImageLike | HostFiles | None = image
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

        ``"cgroup"``, ``"tmpfs"`` and ``"image"``, a filesystem in a file, hold for all processes together, ``"rlimit"`` for each
        process or user; ``"none"``: nothing.
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
    def run(
        self, args: Args, *, input: bytes | str | None = ..., stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ...,
        text: bool | None = ..., encoding: str | None = ..., errors: str | None = ..., max_output: int | str | None = ...,
        on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ..., timeout: Duration | None = ...,
        check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ..., user: UserLike | None = ...,
        groups: Sequence[int] | None = ..., terminal: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

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
        timeout: Duration | None = None,
        check: bool = False,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        terminal: bool = False,
        **unknown: Misspelt,
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
        check_keywords("run", unknown, SandboxRunKeywords)
        given = {
            "input": input,
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "codec": (text, encoding, errors),
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
    def shell(
        self, line: str, *, input: bytes | str | None = ..., stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ...,
        text: bool | None = ..., encoding: str | None = ..., errors: str | None = ..., max_output: int | str | None = ...,
        on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ..., timeout: Duration | None = ...,
        check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ..., user: UserLike | None = ...,
        groups: Sequence[int] | None = ..., terminal: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

    def shell(
        self,
        line: str,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Result[Any]:
        """Run a line of shell, by ``/bin/sh`` of the image. Keywords, result and errors are those of `run`."""
        check_keywords("shell", options, SandboxRunKeywords)
        given = {**STREAMS, **options, "codec": (text, encoding, errors)}
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
        self, args: Args, *, stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ...,
        encoding: str | None = ..., errors: str | None = ..., bufsize: int = ..., env: Env | None = ...,
        cwd: StrPath | None = ..., user: UserLike | None = ..., groups: Sequence[int] | None = ..., terminal: bool = ...,
        **unknown: Misspelt,
    ) -> Process[Any]: ...  # fmt: skip

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
        **unknown: Misspelt,
    ) -> Process[Any]:
        """Start a program in the sandbox and return its `Process`. Iterating over that yields the lines of its output.

        By default stderr goes where stdout goes. Other arguments and errors are those of `run`, and:

        Args:
            bufsize: of the streams: 1 for line buffering of text, 0 for none of bytes.
            terminal: give the program a terminal, whose master is `Process.terminal`.
        """
        check_keywords("popen", unknown, SandboxPopenKeywords)
        given = {
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "codec": (text, encoding, errors),
            "bufsize": bufsize,
            "env": env,
            "cwd": cwd,
            "user": user,
            "groups": groups,
            "terminal": terminal,
        }
        return self._running()._open_process(self._options.exec_options(args, given))

    # ---- files: the methods of `FileOperations` ----

    @override
    def _server(self, user: UserLike | None) -> AbstractContextManager[FileServer]:
        return self.files._server(user)

    @override
    def _path(self, path: AnyPath, name: str = "path") -> bytes:
        return self.files._path(path, name)

    # ---- changes ----

    def changes(self) -> Changes:
        """Return what was added, changed and removed in the root filesystem. See `Container.changes`."""
        return self._running().changes()

    def diff_text(self, path: str) -> str:
        """Return how a file differs from that of the image. See `Container.diff_text`."""
        return self._running().diff_text(path)

    def snapshot(self) -> Snapshot:
        """Copy the root filesystem as it is, without processes. New sandboxes start from the copy: ``Sandbox(snapshot)``.

        See `Container.snapshot`.
        """
        snapshot = self._running().snapshot()
        snapshot._origin = self._origin
        return snapshot

    def fork(self) -> Self:
        """Return a new sandbox with the same arguments and a copy of the root filesystem, without processes. See `snapshot`.

        It has a random name. What it writes does not go to an ``overlay`` that is kept.
        """
        overlay = own_layer(self._options.overlay)
        kept = overlay.startswith("/")
        options = attrs.evolve(
            self._options, name=None, overlay=None if kept else overlay or None, reference=None, platform=None, strategy=None
        )
        with self.snapshot() as snapshot:
            return self._of(snapshot, options)

    def commit(
        self,
        target: StrPath,
        *,
        image: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        compression: Compression = "gzip",
        overwrite: bool = False,
    ) -> None:
        """Make a SIF file of the image with the changes. See `Container.commit`.

        Default of ``image``: the one that the sandbox was made of, which must still be at its path. Raises ImageError: it is not.
        """
        with self.snapshot() as snapshot:
            snapshot.commit(target, image=image, labels=labels, compression=compression, overwrite=overwrite)

    # ---- watching and ending them ----

    def processes(self) -> tuple[int, ...]:
        """Return the pids of the processes of the sandbox, in the caller's pid namespace, without its first one."""
        container = self._running()
        return tuple(pid for pid in container.processes() if pid != container.pid)

    def stats(self) -> Stats:
        """Return what the sandbox uses, as `Container.stats` does."""
        return self._running().stats()

    def events(self, interval: Duration | None = None) -> Iterator[Event]:
        """Yield the events of the sandbox as they happen, such as OOM kills, until it ends. See `Container.events`."""
        return self._running().events(interval)

    def wait_for_port(self, port: int, timeout: Duration | None = 30.0) -> None:
        """Wait until a program in the sandbox listens on a TCP port, on any of its addresses. Nothing connects to it.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            TimeoutError: no program listens there in time.
            WrongStatus: the sandbox has ended.
        """
        wait = self._port_wait(port, timeout)
        while (left := wait.left()) is not None:
            ended_within(wait.fileno(), left)

    def _port_wait(self, port: int, timeout: Duration | None) -> PortWait:
        return PortWait(self._running(), self._owned.created.init, port, parse_timeout(timeout))

    def connect(self, port: int, timeout: Duration | None = None) -> socket.socket:
        """Return a TCP socket that is connected to a port of the sandbox, which need not be reachable from the host.

        The socket belongs to the network namespace of the sandbox; this process does not enter it.

        Args:
            timeout: seconds for the connection and for each later operation of the socket, as `socket.settimeout` has it.

        Raises:
            ConnectionRefusedError: no program listens there on the loopback address.
            WrongStatus: the sandbox has ended.
        """
        check_port(port)
        timeout = parse_timeout(timeout)
        container, failure = self._running(), None
        for family, address in LOOPBACKS.items():
            peer = socket.socket(fileno=open_socket(container._entry, family))
            try:
                peer.settimeout(None if timeout is None else max(timeout, 0.001))  # 0 would not wait for the connection at all
                peer.connect((address, port))
            except OSError as error:
                peer.close()
                failure = failure or error
                if not isinstance(error, ConnectionRefusedError):
                    break
            except BaseException:
                peer.close()
                raise
            else:
                return peer
        assert failure is not None
        raise type(failure)(failure.errno, f"port {port} of sandbox {self.name!r}: {os.strerror(failure.errno or 0).lower()}")

    def stop(self, timeout: Duration | None = 10.0) -> None:
        """End the sandbox: send SIGTERM to every process, wait, and kill what is left. No further program can be run.

        Args:
            timeout: seconds to wait; None for no limit.

        Raises:
            UnsupportedError: the processes are not known: the sandbox has neither cgroups nor a pid namespace of its own.
        """
        _stop(self._running()._entry, parse_timeout(timeout))

    def kill(self) -> None:
        """Kill every process, the first one included. No further program can be run."""
        entry = self._running()._entry
        with entry.locked():
            end(entry, *read(entry, force=True), -1)

    def reset(self) -> None:
        """Make the sandbox new: kill every process, and remove everything that was written to the root filesystem.

        What is in ``mounts`` or in an ``overlay`` that is kept stays. If this raises, the sandbox is closed.
        """
        self._running()
        image = self._image
        assert image is not None, "it is open"

        @uninterruptible(undo=lambda _: self.close())
        def renew() -> None:
            self.close()
            if not isinstance(image, Bundle):
                self._origin = _origin_of(image, self._options)
            self._make(image)

        renew()

    def close(self) -> None:
        """Kill every process and remove the sandbox. A second call, or one in a forked child, has no effect."""
        complete(self._finalizer)
        self._container._layers = self._image = None  # which can keep the files of a snapshot

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

    signal_each(others, signal.SIGTERM)
    wait_each(others, deadline)
    with entry.locked():
        end(entry, *read(entry, force=True), -1)


_LONGEST: Final = 1e9
"""Seconds of a wait without a limit: more than 30 years."""


# ---- ports ----

LOOPBACKS: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_MAX_PORT: Final = 65535
_LISTENS: Final = "0A"
"""The state of a listening socket in /proc/net/tcp (proc(5))."""


def check_port(port: object) -> None:
    """Raise TypeError or ValueError for a value that is not the number of a TCP port."""
    check_int("port", port, 1, _MAX_PORT)


class PortWait:
    """Waits for a TCP port of a container, by looking at the sockets of its network namespace again and again."""

    def __init__(self, container: Container, init: Launched, port: int, timeout: float | None) -> None:
        check_port(port)
        self._name, self._init, self._port, self._timeout = container.id, init, port, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = 0.002

    def fileno(self) -> int:
        """Return the pidfd of the first process of the container, which is readable when the container has ended."""
        return self._init.pidfd

    def left(self) -> float | None:
        """Return the seconds after which to call this again; None when a program listens. Raises TimeoutError, WrongStatus."""
        if ended_within(self._init.pidfd, 0):
            raise WrongStatus(self._name, "wait for a port in", Status.STOPPED, "running")
        if self._listens():
            return None
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            message = f"port {self._port} of sandbox {self._name!r}: no program listens there after {self._timeout} s"
            raise TimeoutError(errno.ETIMEDOUT, message)
        pause, self._pause = self._pause, min(2 * self._pause, 0.1)
        return pause if self._deadline is None else min(pause, self._deadline - now)

    def _listens(self) -> bool:
        for name in ("tcp", "tcp6"):
            try:
                with open(f"/proc/{self._init.pid}/net/{name}", encoding="ascii") as table:
                    rows = [line.split() for line in table]
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
                    raise
                continue  # it has ended, or the kernel has no IPv6
            if any(row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == self._port for row in rows[1:]):
                return True
        return False


# ---- a pool ----


class SandboxPool(Unpicklable):
    """Sandboxes of one image that are ready to be used: a thread makes new ones while they are taken.

    Each is used once, and closed by its user. As a context manager the pool is closed at the end, with the sandboxes that are
    ready. Several threads can use it at the same time.

    Args:
        image: the image, as for `Sandbox`.
        size: how many sandboxes are kept ready.
        options: the other arguments of `Sandbox`, without ``name``.

    Raises:
        TypeError, ValueError, UnsupportedError: an argument is wrong, or cannot be carried out. What else is wrong, `get` raises.
    """

    _instead = "make a SandboxPool in the process that uses it"

    def __init__(self, image: ImageLike, *, size: int = 4, **options: Unpack[SandboxKeywords]) -> None:
        check_int("size", size, 1, _MAX_POOL)
        check_keywords("SandboxPool", options, SandboxKeywords)
        if options.get("name") is not None:
            raise ValueError(f"name is {options['name']!r}: each sandbox of a pool has a name of its own; leave it out")
        given = SandboxOptions(**options)
        StateStore(given.state_root)  # raises here what the thread would only keep for `get`
        self._stock = _Stock(image, given, size)
        self._finalizer = weakref.finalize(self, self._stock.close)

    def get(self, timeout: Duration | None = None) -> Sandbox:
        """Return a sandbox that no program has used; it belongs to the caller, which closes it.

        Args:
            timeout: seconds to wait if none is ready.

        Raises:
            TimeoutError: none was ready in time.
            StateError: the pool is closed, or belongs to another process.
            Exception: the sandbox cannot be made, as the constructor of `Sandbox` says it.
        """
        found = self._stock.take(parse_timeout(timeout))
        if found is None:
            raise TimeoutError(errno.ETIMEDOUT, f"no sandbox was ready after {timeout} s")
        return found

    @property
    def ready(self) -> int:
        """How many sandboxes are ready at this moment."""
        return len(self._stock.ready)

    def close(self) -> None:
        """Close the sandboxes that are ready, but not those that were taken. No effect for a second time, or in a forked child."""
        complete(self._finalizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _origin_of(image: ImageLike | HostFiles | Snapshot, options: SandboxOptions) -> Origin | None:
    """Return the image that `commit` builds from; None where the bundle says it."""
    if isinstance(image, Snapshot):
        return image._origin
    if isinstance(image, HostFiles | Bundle):
        return None
    if is_image(image):
        return Origin(image.path, *image._arguments, None if image._opened is None else image._opened.identity)
    path = absolute_path(parse_path("image", image))
    if has_file(Path(path), "config.json"):
        return None
    try:
        return Origin(path, options.reference, options.platform, identity_at(path))
    except OSError:
        return None  # making the sandbox has the better error


_MAX_POOL: Final = 1000


class _Stock:
    """The sandboxes of a pool that are ready, and the thread that makes them. It does not keep the pool alive."""

    def __init__(self, image: ImageLike, options: SandboxOptions, size: int) -> None:
        self.ready: deque[Sandbox] = deque()
        self._owner = os.getpid()
        self._image, self._options, self._size = image, options, size
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="ociruntime-pool", daemon=True)
        self._thread.start()

    def take(self, timeout: float | None) -> Sandbox | None:
        """Return a sandbox that is ready; None if none is and ``timeout`` is 0. Errors are those of `SandboxPool.get`."""
        if os.getpid() != self._owner:
            raise StateError("the pool belongs to another process, which this one was forked from; make one here")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                while not (self.ready or self._closed or self._failure):
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        if timeout == 0:
                            return None
                        raise TimeoutError(errno.ETIMEDOUT, f"no sandbox was ready after {timeout} s")
                    self._changed.wait(_LONGEST_LOCK if left is None else min(left, _LONGEST_LOCK))
                if self._closed:
                    raise StateError("the pool is closed")
                if not self.ready:
                    failure, self._failure = self._failure, None
                    self._changed.notify_all()  # the thread tries again
                    assert failure is not None
                    raise failure
                found = self.ready.popleft()
                self._changed.notify_all()
            if not ended_within(found._owned.created.init.pidfd, 0):
                return found
            found.close()  # it was killed meanwhile

    def _fill(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (len(self.ready) >= self._size or self._failure):
                    self._changed.wait()
                if self._closed:
                    return
            try:
                sandbox = Sandbox._of(self._image, self._options)
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                continue
            with self._changed:
                if not self._closed:
                    self.ready.append(sandbox)
                    self._changed.notify_all()
                    continue
            sandbox.close()

    def close(self) -> None:
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        while self.ready:
            self.ready.popleft().close()


_LONGEST_LOCK: Final = 1e6
"""Seconds that one wait for a lock may take (`threading.TIMEOUT_MAX` is larger)."""


# ---- the signatures of what hands its keywords on, for inspect ----


def _with_keywords(function: Callable[..., object], source: Callable[..., object], *but: str) -> inspect.Signature:
    """Return the signature of a function, with those keywords of another one in the place of ``**options``."""
    own = [item for item in inspect.signature(function).parameters.values() if item.kind is not item.VAR_KEYWORD]
    names = {item.name for item in own} | set(but)
    more = [
        item for item in inspect.signature(source).parameters.values() if item.kind is item.KEYWORD_ONLY and item.name not in names
    ]
    return inspect.signature(function).replace(parameters=[*own, *more])


Sandbox.shell.__signature__ = _with_keywords(Sandbox.shell, Sandbox.run)  # type: ignore[attr-defined]
Sandbox.host.__func__.__signature__ = _with_keywords(Sandbox.host.__func__, Sandbox)  # type: ignore[attr-defined]
SandboxPool.__init__.__signature__ = _with_keywords(SandboxPool.__init__, Sandbox, "name")  # type: ignore[attr-defined]

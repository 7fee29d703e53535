"""The exceptions that the package raises on purpose.

.. code-block:: text

    OCIRuntimeError
    +-- SpecError           a document does not conform to the runtime spec
    +-- ImageError          an image is damaged or of an unknown kind [1]
    |   +-- SifError        a SIF file is not what the format says
    |   +-- SignatureError  a signature or a key is missing or wrong
    +-- BundleError         a bundle directory cannot be made or used
    +-- UnsupportedError    this host or build cannot do what was asked for
    +-- StateError          the state of the container does not allow the operation
    |   +-- ContainerNotFound  [2]
    |   +-- ContainerExists
    |   +-- WrongStatus
    +-- HostError           the host refuses a system call, or lacks a resource [3]
    +-- StepError           one step of a plan failed [3]
    |   +-- LaunchTimeout   a container or process took too long to start [4]
    +-- HookError           a hook failed or took too long
    +-- ProcessError        a process did not exit with 0, and check=True [5]
    +-- ProcessTimeout      a process did not end within its timeout [4] [5]

    OCIRuntimeWarning       a problem that does not end the operation [6]

    [1] ValueError    [2] LookupError    [3] OSError    [4] TimeoutError
    [5] subprocess.CalledProcessError, or subprocess.TimeoutExpired
    [6] UserWarning

The numbers are for classes of Python that an error is too, so that code which expects those works.

An argument of a wrong type raises ``TypeError``, as everywhere in Python. A system call that fails because of what the caller has
named, as a file that does not exist, raises ``OSError``.

Warnings and the log are here too, because every module has them.
"""

from __future__ import annotations

import errno as _errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from logging import Logger

    from .process import Result
    from .spec.base import Problem
    from .stats import Profile, Trace

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "BundleError",
    "ContainerExists",
    "ContainerNotFound",
    "HookError",
    "HostError",
    "ImageError",
    "LaunchTimeout",
    "OCIRuntimeError",
    "OCIRuntimeWarning",
    "ProcessError",
    "ProcessTimeout",
    "SifError",
    "SignatureError",
    "SpecError",
    "StateError",
    "StepError",
    "UnsupportedError",
    "WrongStatus",
]


class OCIRuntimeError(Exception):
    """Base of every error that the package raises on purpose. Errors can be pickled: they come through process pools."""

    profile: Profile | None = None
    """The times of the steps of a run with ``profile=True`` that failed. An error with a ``result`` has them there."""

    def __repr__(self) -> str:
        # The default one shows the arguments, which of an OSError are the errno and its words. Dask and asyncio print nothing else.
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[OCIRuntimeError], args: tuple[object, ...], fields: dict[str, object]) -> OCIRuntimeError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class OCIRuntimeWarning(UserWarning):
    """A problem that does not end the operation, as the runtime spec requires (runtime.md, Warnings)."""


def warn(texts: Iterable[str]) -> None:
    """Issue an `OCIRuntimeWarning` for each text, at the line that called the package."""
    own = (__name__.partition(".")[0], "contextlib")  # the package, and what is between its blocks
    for text in texts:
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in own:
            level, frame = level + 1, frame.f_back
        warnings.warn(text, OCIRuntimeWarning, stacklevel=level)


_configured = False
"""Whether `log_steps` was called, or the environment does not ask for that."""
_logger: Logger | None = None
"""The logger, in a process that uses `logging`."""


def environment_debugs() -> bool:
    """Return whether the environment asks for the log: ``OCIRUNTIME_DEBUG`` is set, and not empty or 0."""
    return os.environ.get("OCIRUNTIME_DEBUG", "") not in ("", "0")


def debugs() -> bool:
    """Return whether the logger ``ociruntime`` takes messages of the level DEBUG. A process without `logging` has no logger."""
    global _logger, _configured
    if not _configured:
        _configured = True
        if environment_debugs():
            log_steps()
    if _logger is None:
        if (logging := sys.modules.get("logging")) is None or not hasattr(logging, "NullHandler"):
            return False  # another thread may be importing it
        _logger = cast("Logger", logging.getLogger("ociruntime"))
        _logger.addHandler(logging.NullHandler())
    return _logger.isEnabledFor(10)


def debug(text: str, *values: object, **extra: object) -> None:
    """Log a message of the level DEBUG on the logger ``ociruntime``.

    Args:
        extra: attributes of the record.
    """
    if debugs() and _logger is not None:
        _logger.debug(text, *values, extra=extra)


def log_steps(emit: Callable[[str], object] | None = None) -> None:
    """Log from the level DEBUG on, whatever the environment and the configuration of `logging` say.

    Args:
        emit: takes each message in place of all handlers. Default: messages go to stderr, besides the handlers that there are.
    """
    global _configured
    _configured = True
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert emit is not None, "the handler is used with it alone"
            emit(record.getMessage())

    logger = logging.getLogger("ociruntime")
    logger.setLevel(logging.DEBUG)
    if emit is not None:
        logger.handlers, logger.propagate = [Handler()], False
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        logger.addHandler(handler)


_tracers: tuple[Callable[[Trace], object], ...] = ()


def traced() -> bool:
    """Return whether the times of steps are noted for the log or for a tracer."""
    return bool(_tracers) or debugs()


def add_tracer(tracer: Callable[[Trace], object]) -> None:
    """Call a function after each `run`, `create`, `start` and `exec` of this process, with the times of all of its steps.

    It is called in the thread of the operation, also if the operation fails. An exception of it becomes an `OCIRuntimeWarning`.
    A function that was added before is not added again.

    Args:
        tracer: takes a `Trace`.

    Raises:
        TypeError: it cannot be called.
    """
    global _tracers
    if not callable(tracer):
        raise TypeError(f"tracer: not a function, but {type(tracer).__name__}")
    if tracer not in _tracers:
        _tracers = (*_tracers, tracer)


def remove_tracer(tracer: Callable[[Trace], object]) -> None:
    """Call a function of `add_tracer` no more. No effect if it was not added."""
    global _tracers
    _tracers = tuple(other for other in _tracers if other != tracer)


def call_tracers(trace: Trace) -> None:
    """Give a trace to the functions of `add_tracer`."""
    for tracer in _tracers:
        try:
            tracer(trace)
        except Exception as error:
            warn([f"tracer {tracer!r}: {type(error).__name__}: {error}"])


class SpecError(OCIRuntimeError, ValueError):
    """A document does not conform to the runtime spec. ``problems`` holds all of its problems."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self.problems, source)

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        if len(self.problems) == 1:
            return f"{where}{self.problems[0]}"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        return f"{where}{len(self.problems)} problems:{lines}"


class ImageError(OCIRuntimeError, ValueError):
    """An image file or directory is damaged, unsafe or of an unknown kind, or does not hold what was asked for."""


class ImagePathError(ImageError, OSError):
    """A path in an image cannot be read.

    ``errno`` says why: ENOENT, ENOTDIR, EISDIR, ELOOP, EINVAL (a device, FIFO or socket) or EFBIG. ``filename`` is the path.
    """

    def __init__(self, errno: int, message: str, path: str) -> None:
        OSError.__init__(self, errno, message, path)  # not that of ValueError, which comes first

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errno, self.strerror, self.filename)


class ImagePathNotFound(ImagePathError, FileNotFoundError):
    """A path does not exist in an image."""


class SifError(ImageError):
    """A SIF file breaks the format: ``field`` names the place, ``descriptor`` the 0-based table entry where there is one."""

    def __init__(self, message: str, *, field: str = "", descriptor: int | None = None, path: str = "") -> None:
        self.field = field
        self.descriptor = descriptor
        self.path = path
        where = f"descriptor {descriptor}: " if descriptor is not None else ""
        what = f"{field}: " if field else ""
        super().__init__(f"{path + ': ' if path else ''}{where}{what}{message}")


class SignatureError(ImageError):
    """An image is not signed as demanded, or cannot be signed.

    Attributes:
        reason: what is wrong. ``unsigned``: no signature covers a group or an object. ``changed``: the header or an object is not
            what was signed. ``unknown-key``: the signature is not by a given key. ``legacy``: the signature is of an old form that
            does not protect the header and the descriptors. ``invalid``: the signature is damaged or breaks the rules.
            ``key``: a key cannot be read or must not be used.
        signature: id of the signature object in the SIF file.
        object_id: id of the object that was changed or is not signed; None for the header.
        group: number of the group that the signature is about.
        fingerprint: fingerprint of the key by which the signature claims to be; empty if it does not say.
        path: the image or the key file.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Literal["unsigned", "changed", "unknown-key", "legacy", "invalid", "key"],
        signature: int | None = None,
        object_id: int | None = None,
        group: int | None = None,
        fingerprint: str = "",
        path: str = "",
    ) -> None:
        self.reason = reason
        self.signature = signature
        self.object_id = object_id
        self.group = group
        self.fingerprint = fingerprint
        self.path = path
        where = f"signature {signature}: " if signature is not None else ""
        super().__init__(f"{path + ': ' if path else ''}{where}{message}")


class BundleError(OCIRuntimeError):
    """A bundle directory cannot be made or used (missing config.json or rootfs, already mounted, in use)."""


class UnsupportedError(OCIRuntimeError):
    """This host or build cannot do what was asked for. The message says why, and what would help."""


class StateError(OCIRuntimeError):
    """The state of the container, or its state directory, does not allow the operation."""


class ContainerNotFound(StateError, LookupError):
    """No container has this id."""

    def __init__(self, container_id: str, state_root: str) -> None:
        self.container_id = container_id
        self.state_root = state_root
        super().__init__(f"container {container_id!r} does not exist in {state_root}")


class ContainerExists(StateError):
    """A container with this id exists already."""

    def __init__(self, container_id: str, state_root: str) -> None:
        self.container_id = container_id
        self.state_root = state_root
        super().__init__(f"container {container_id!r} already exists in {state_root}")


class WrongStatus(StateError):
    """The container is not in a status in which the operation is possible (runtime.md, Operations)."""

    def __init__(self, container_id: str, operation: str, status: str, needed: str) -> None:
        self.container_id = container_id
        self.operation = operation
        self.status = status
        self.needed = needed
        # in words that clients of runc look for
        if status == "paused":
            super().__init__(f"cannot {operation} a paused container: {container_id!r} is not {needed}")
        elif status == "stopped":
            super().__init__(f"cannot {operation} container {container_id!r}: container not running: it is stopped, not {needed}")
        else:
            super().__init__(f"cannot {operation} container {container_id!r}: it is {status}, not {needed}")


class StepError(OCIRuntimeError, OSError):
    """A step of a plan failed.

    ``errno`` and ``strerror`` are those of any `OSError`; ``step`` counts from 1 as `Plan.explain()` prints it.
    """

    def __init__(
        self,
        errno: int,
        *,
        step: int,
        total: int,
        op: str,
        text: str,
        cause: str = "",
        remedy: str = "",
        detail: str = "",
        problem: str = "",
        location: str = "",
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.step = step
        self.total = total
        self.op = op
        self.text = text
        self.cause = cause
        self.remedy = remedy
        self.detail = detail
        self.problem = problem
        """What is wrong with the configuration, if that is known. The message begins with it."""
        self.location = location
        """JSON path of the member of the config that the step carries out, or an empty string."""
        self.code = _errno.errorcode.get(errno, str(errno))

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        message = self.problem or f"{place}{self.text}: {self.cause or self.strerror}"
        detail = f" [kernel: {self.detail}]" if self.detail else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{message}{detail}{remedy} (step {self.step}/{self.total} {self.op}, {self.code})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_step_error, (type(self), self.errno, dict(self.__dict__))


class LaunchTimeout(StepError, TimeoutError):
    """A container, or a process in one, took too long to start; it was killed. ``step`` is the step that did not end."""

    command: tuple[str, ...] = ()
    """The arguments of the program that should have started; empty if that is not known."""


def _rebuild_step_error(cls: type[StepError], errno: int, fields: dict[str, object]) -> StepError:
    error = cls(errno, step=0, total=0, op="", text="")
    error.__dict__.update(fields)
    return error


MISSING_CALL: Final = "this kernel does not have the system call, or a seccomp filter around the runtime hides it"
_SPACE: Final = "free space or inodes on its filesystem"
_SERVER: Final = "the program that serves its filesystem by FUSE has ended; try again"
_REMEDIES: Final = {
    _errno.EMFILE: "close files, or raise RLIMIT_NOFILE of this process",
    _errno.ENFILE: "close files of other processes, or raise fs.file-max",
    _errno.ENOMEM: "free memory, or raise RLIMIT_AS or the limit of the cgroup of this process",
    _errno.ENOSPC: _SPACE,
    _errno.EDQUOT: _SPACE,
    _errno.EROFS: "mount its filesystem writable, or use another one",
    _errno.ENOTCONN: _SERVER,
    _errno.ECONNABORTED: _SERVER,
    _errno.EIO: "see the log of the kernel",
    _errno.ENOLCK: "its filesystem has no locks, or their service does not answer; use another one (Lustre: mount it with flock)",
    _errno.ENOSYS: f"{MISSING_CALL}; Linux 5.14 or later is needed",
    _errno.EPERM: "this user, or a seccomp filter around the runtime, does not allow it",
}
"""The errors that are the host's, whatever was asked for, and what helps."""


class HostError(OCIRuntimeError, OSError):
    """The host refuses a system call of an operation, or lacks memory, disk space or file descriptors for it.

    ``errno``, ``strerror`` and ``filename`` are those of any `OSError`; ``subject`` says what the operation was. With EPERM it is a
    `PermissionError` too.
    """

    def __init__(self, subject: str, error: OSError) -> None:
        OSError.__init__(self, error.errno, error.strerror, error.filename)
        self.subject = subject
        self.__cause__ = error

    def __str__(self) -> str:
        assert self.errno is not None
        place = f": {os.fsdecode(self.filename)}" if isinstance(self.filename, (str, bytes)) else ""
        return f"{self.subject}: {os.strerror(self.errno).lower()}{place}; {_REMEDIES[self.errno]}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.subject, OSError(self.errno, self.strerror, self.filename))


class _HostPermissionError(HostError, PermissionError):
    """A `HostError` with EPERM."""


def naming(subject: Callable[..., str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a public call: what the host refuses becomes a `HostError` that names what the call is about.

    Args:
        subject: says that, given the arguments of the call.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            try:
                return function(*args, **options)
            except OSError as error:
                by_peer = type(error) is ConnectionAbortedError and error.filename is None
                if type(error) not in (OSError, PermissionError, ConnectionAbortedError) or error.errno not in _REMEDIES or by_peer:
                    raise
                kind = _HostPermissionError if isinstance(error, PermissionError) else HostError
                raise kind(subject(*args, **options), error) from error

        return call

    return decorate


class HookError(OCIRuntimeError):
    """A hook failed, could not be started or took longer than its timeout (config.md, POSIX-platform Hooks)."""

    def __init__(
        self, message: str, *, kind: str, path: str, index: int = 0, returncode: int | None = None, output: str = ""
    ) -> None:
        self.problem = message
        self.kind = kind
        self.index = index
        self.path = path
        self.returncode = returncode
        self.output = output
        super().__init__(f"error running {kind} hook #{index}: {path} {message}" + (f": {output}" if output else ""))


class ProcessError(OCIRuntimeError, subprocess.CalledProcessError):
    """A process did not exit with 0, and the call has ``check=True``.

    ``result`` is the complete result; ``returncode``, ``cmd``, ``stdout`` and ``stderr`` are parts of it. The message shows the
    last lines of stderr (or stdout).
    """

    def __init__(self, message: str, result: Result[Any] | subprocess.CompletedProcess[Any]) -> None:
        super().__init__(result.returncode, result.args, result.stdout, result.stderr)
        self.args = (message, result)
        self.result = result

    def __str__(self) -> str:
        return str(self.args[0])


class ProcessTimeout(OCIRuntimeError, TimeoutError, subprocess.TimeoutExpired):
    """A process did not end within ``timeout`` seconds.

    `run` and `exec` have killed the process: ``result`` is the result with the output so far, which ``stdout`` and ``stderr`` are
    too. After any other call the process keeps running, and ``result`` is None.
    """

    def __init__(self, cmd: Sequence[str] | str, timeout: float, result: Result[Any] | None = None) -> None:
        OSError.__init__(self, _errno.ETIMEDOUT, os.strerror(_errno.ETIMEDOUT))
        output, errors = (None, None) if result is None else (result.stdout, result.stderr)
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, output, errors)
        self.result = result

    def __str__(self) -> str:
        command = self.cmd if isinstance(self.cmd, str) else repr(" ".join(self.cmd))
        if self.result is None:
            return f"{command} still runs after {self.timeout} s"
        return f"{command} took longer than {self.timeout} s and was killed{self.result.last_output()}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.cmd, self.timeout, self.result)

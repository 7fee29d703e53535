"""The ``ociruntime`` command: the verbs of runc and of ``apptainer oci`` over the public API."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from ..errors import OCIRuntimeError, OCIRuntimeWarning, StepError, environment_debugs, log_steps
from ..files import absolute_path, write_all
from .common import Interrupted, one_line
from .parser import build_parser, parse_args

__all__ = ["build_parser", "main", "script"]

FAILED = 1
EXEC_FAILED = 255
NOT_EXECUTABLE = 126
NOT_FOUND = 127

_OF_THE_PROGRAM = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
        *(errno.EISDIR, errno.EINVAL, errno.ELIBBAD, errno.ETXTBSY),
    }
)
"""Errors of execve(2) that are about the program, not about the host."""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute one command and return its exit status.

    An error is reported as one line on stderr and in the file of ``--log``.

    Args:
        argv: the words of the command line; `sys.argv` by default.

    Raises:
        SystemExit: the command line is wrong, with status 1 or 3, or help or the version was printed.
    """
    options = Namespace(command="", log=None, log_format="text", debug=False)
    try:
        _parse(sys.argv[1:] if argv is None else argv, options)
        warnings.simplefilter("always", OCIRuntimeWarning)
        warnings.showwarning = lambda message, *_, **__: report(options, "warning", str(message))
        _check_log(options)
        if options.debug or environment_debugs():
            log_steps(partial(report, options, "debug"))
        status: int = options.run(options) or 0
        _flush()
    except Interrupted as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (OCIRuntimeError, OSError, ValueError, TypeError) as error:
        report(options, "error", describe(error))
        return status_of(error, options.command)
    return status


def script() -> NoReturn:
    """Execute `main` as a process of its own and exit at once, without the interpreter's finalization.

    When ``exec --detach`` has ended, containerd looks for the process that it started. It would miss the end of one that ends
    during the finalization.
    """
    _open_standard_streams()
    try:
        status = main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    with suppress(OSError, OCIRuntimeError):
        _flush()  # what was printed before an error; an error here was reported, or is that of a stream that cannot report it
    os._exit(status)


class StandardOutput(io.FileIO):
    """A standard stream. Its errors name it.

    Args:
        fd: its descriptor.
        name: its name for messages.
        absent: whether it was closed when the command was started. Its descriptor is one of /dev/null then.
    """

    def __init__(self, fd: int, name: str, absent: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self._label, self._absent = name, absent

    def write(self, data: Any) -> int:
        """Write bytes. Raises OCIRuntimeError, BrokenPipeError."""
        try:
            if self._absent:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO).lower()
            raise OCIRuntimeError(f"cannot write to {self._label}: {reason}") from error


def _open_standard_streams() -> None:
    """Open /dev/null for the standard streams that are closed, so that no other file gets their descriptors.

    Output is UTF-8 in every locale, and a file name with other bytes is printed as it is.
    """
    absent = set()
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
        absent.add(fd)
    os.close(fd)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    for fd, name in (1, "stdout"), (2, "stderr"):
        buffer = io.BufferedWriter(StandardOutput(fd, name, fd in absent))
        stream = io.TextIOWrapper(buffer, "utf-8", "surrogateescape", line_buffering=fd == 2 or os.isatty(fd))
        setattr(sys, name, stream)


def _flush() -> None:
    """Write what was printed. Raises OCIRuntimeError, BrokenPipeError."""
    sys.stdout.flush()
    sys.stderr.flush()


def _parse(words: Sequence[str], options: Namespace) -> None:
    """Parse a command line. Raises as `parse_args`, and OCIRuntimeError, BrokenPipeError: the help cannot be written."""
    try:
        vars(options).update(vars(parse_args(words)))
    except SystemExit as stop:
        if not stop.code:  # help, not an error that stderr may not take
            _flush()
        raise


def status_of(error: Exception, command: str) -> int:
    """Return the exit status of a command that fails.

    Every error of ``exec`` gives 255, as runc does: a lower number is often the exit code of the program. Otherwise a program that
    cannot be run gives 126 or 127, as in shells, and another error 1.
    """
    if command == "exec":
        return EXEC_FAILED
    if isinstance(error, StepError) and error.op in ("lookup", "exec"):
        if error.errno == errno.ENOENT:
            return NOT_FOUND
        if error.errno in _OF_THE_PROGRAM:
            return NOT_EXECUTABLE
    return FAILED


def _check_log(options: Namespace) -> None:
    """Fail before the command is executed if the log file cannot be written. Raises OCIRuntimeError, FileNotFoundError."""
    path, options.log = options.log, None
    if path is not None:
        path = absolute_path(path)
        os.close(_open_log(path))
        options.log = path


def _open_log(path: str) -> int:
    """Open the log file to append to it; return its descriptor.

    It does not block: a FIFO without a reader is an error, and one with a full pipe when it is written.

    Raises:
        OCIRuntimeError: it cannot be written.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_log(path, error) from error


def _cannot_log(path: str, error: OSError) -> OCIRuntimeError:
    number = error.errno or errno.EIO
    reason = "it is a FIFO without a reader, or a socket" if number == errno.ENXIO else os.strerror(number).lower()
    return OCIRuntimeError(f"cannot write to --log {path}: {reason}")


def _append_to_log(path: str, entry: str) -> None:
    """Write a line to the log file. Raises OCIRuntimeError."""
    fd = _open_log(path)
    try:
        write_all(fd, entry.encode() + b"\n")
    except OSError as error:
        raise _cannot_log(path, error) from error
    finally:
        os.close(fd)


def describe(error: Exception) -> str:
    """Return the message of an error. One of a system call begins with the file, as other messages do."""
    if isinstance(error, OSError) and not isinstance(error, OCIRuntimeError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename) or repr('')}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error) or type(error).__name__


def report(options: Namespace, level: str, text: str) -> None:
    """Write one line to stderr, and to the log file if there is one. One of the level debug goes to the log file alone."""
    text = one_line(text)
    line = f"ociruntime: {text}" if level == "error" else f"ociruntime: {level}: {text}"
    problems: list[str] = []
    if options.log_format == "json" or options.log or level == "debug":
        import json
        from datetime import UTC, datetime

        now = datetime.now(UTC).isoformat()
        record = json.dumps({"level": level, "msg": text, "time": now}, separators=(",", ":"))
        entry = record if options.log_format == "json" else f'time="{now}" level={level} msg={json.dumps(text)}'
        if options.log:
            try:
                _append_to_log(options.log, entry)
            except OCIRuntimeError as error:
                problems = [f"ociruntime: warning: {one_line(str(error))}"]
            if level == "debug" and not problems:
                return
        elif options.log_format == "json" or level == "debug":
            line = entry
    with suppress(OSError, OCIRuntimeError):  # nothing is left where this could be reported
        _print_error("\n".join([line, *problems]))


def _print_error(text: str) -> None:
    """Print to stderr. What cannot be written does not stay in the buffer, where it would fail a command that succeeds."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if raw is None:  # not a file
        print(text, file=sys.stderr)
        return
    sys.stderr.flush()
    raw.write(f"{text}\n".encode("utf-8", "surrogateescape"))

"""The ``ociruntime`` command: the verbs of runc and of ``apptainer oci`` over the public API."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from ..errors import OCIRuntimeError, OCIRuntimeWarning, StepError
from .common import Interrupted
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
        SystemExit: the command line is wrong, with status 2, or help or the version was printed.
    """
    _open_standard_streams()
    options = parse_args(sys.argv[1:] if argv is None else argv)
    warnings.simplefilter("always", OCIRuntimeWarning)
    warnings.showwarning = lambda message, *_, **__: report(options, "warning", str(message))
    try:
        _check_log(options)
        status: int = options.run(options) or 0
    except Interrupted as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (OCIRuntimeError, OSError, ValueError, TypeError) as error:
        report(options, "error", str(error) or type(error).__name__)
        return status_of(error, options.command)
    return status


def script() -> NoReturn:
    """Execute `main` as a process of its own and exit at once, without the interpreter's finalization.

    When ``exec --detach`` has ended, containerd looks for the process that it started. It would miss the end of one that ends
    during the finalization.
    """
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or 141
    os._exit(status)


def _open_standard_streams() -> None:
    """Open /dev/null for the standard streams that are closed, so that no other file gets their descriptors."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
        setattr(sys, ("stdin", "stdout", "stderr")[fd], os.fdopen(fd, "w" if fd else "r", encoding="utf-8", closefd=False))
    os.close(fd)


def status_of(error: Exception, command: str) -> int:
    """Return the exit status of a command that fails.

    A program that cannot be run gives 126 or 127, as in shells. Another error gives 1, or of ``exec`` 255, as runc does: 1 is
    often the exit code of the program.
    """
    if isinstance(error, StepError) and error.op in ("lookup", "exec"):
        if error.errno == errno.ENOENT:
            return NOT_FOUND
        if error.errno in _OF_THE_PROGRAM:
            return NOT_EXECUTABLE
    return EXEC_FAILED if command == "exec" else FAILED


def _check_log(options: Namespace) -> None:
    """Fail before the command is executed if the log file cannot be written. Raises OSError."""
    if options.log:
        try:
            open(options.log, "ab").close()
        except OSError:
            options.log = None
            raise


def report(options: Namespace, level: str, text: str) -> None:
    """Write one line to stderr, and to the log file if there is one."""
    text = " ".join(text.split("\n"))
    line = f"ociruntime: {text}" if level == "error" else f"ociruntime: {level}: {text}"
    if options.log_format == "json" or options.log:
        import json
        from datetime import UTC, datetime

        now = datetime.now(UTC).isoformat()
        record = json.dumps({"level": level, "msg": text, "time": now})
        if options.log:
            entry = record if options.log_format == "json" else f'time="{now}" level={level} msg={json.dumps(text)}'
            with open(options.log, "a", encoding="utf-8") as log:
                log.write(entry + "\n")
        elif options.log_format == "json":
            line = record
    print(line, file=sys.stderr)

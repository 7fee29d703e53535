"""The ``ociruntime`` command: the verbs of runc and of ``apptainer oci`` over the public API."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from ..errors import OCIRuntimeError, OCIRuntimeWarning, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .options import Options

__all__ = ["main", "script"]

NOT_FOUND = 127
NOT_EXECUTABLE = 126


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status. Errors go to stderr (and to ``--log``) as one line."""
    from .common import Interrupted
    from .parser import parse

    _open_standard_streams()
    words = sys.argv[1:] if argv is None else list(argv)
    options = parse(words)
    warnings.simplefilter("always", OCIRuntimeWarning)
    warnings.showwarning = lambda message, *_, **__: say(options, "warning", str(message))
    try:
        _try_log(options)
        status: int = options.run(options) or 0
    except Interrupted as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (OCIRuntimeError, OSError, ValueError, TypeError) as error:
        say(options, "error", str(error) or type(error).__name__)
        return status_of(error)
    return status


def script() -> NoReturn:
    """`main` as a process of its own, which ends at once: containerd looks for a process that ``exec --detach`` started when
    the command has ended, and misses the end of one that was quicker than the interpreter's tidying up."""
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or 141
    os._exit(status)


def _open_standard_streams() -> None:
    """Let nothing that we open take the number of a standard stream that we were started without."""
    import os

    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
        setattr(sys, ("stdin", "stdout", "stderr")[fd], os.fdopen(fd, "w" if fd else "r", encoding="utf-8", closefd=False))
    os.close(fd)


def status_of(error: Exception) -> int:
    """126 and 127 for a program that cannot be run, as shells have it; 1 for all else."""
    import errno

    if isinstance(error, StepError) and error.op in ("lookup", "exec"):
        return {errno.ENOENT: NOT_FOUND, errno.EACCES: NOT_EXECUTABLE}.get(error.errno or 0, 1)
    return 1


def _try_log(options: Options) -> None:
    """Fail at once, and not behind what was asked for, when the log file cannot be written. Raises OSError."""
    if options.log:
        try:
            open(options.log, "ab").close()
        except OSError:
            options.log = None
            raise


def say(options: object, level: str, text: str) -> None:
    """One line on stderr, and in the log file when there is one."""
    text = " ".join(text.split("\n"))
    path, style = getattr(options, "log", None), getattr(options, "log_format", "text")
    line = f"ociruntime: {text}" if level == "error" else f"ociruntime: {level}: {text}"
    if style == "json" or path:
        import json
        from datetime import UTC, datetime

        now = datetime.now(UTC).isoformat()
        record = json.dumps({"level": level, "msg": text, "time": now})
        entry = record if style == "json" else f'time="{now}" level={level} msg={json.dumps(text)}'
        if path:
            with open(path, "a", encoding="utf-8") as log:
                log.write(entry + "\n")
        elif style == "json":
            line = record
    print(line, file=sys.stderr)

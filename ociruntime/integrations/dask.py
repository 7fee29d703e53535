"""Dask tasks in containers on their workers (extra ``dask``).

::

    from ociruntime.integrations import dask as containers

    client.submit(containers.run, "/images/tool.sif", ["tool", "input"], capture_output=True)


    @containers.in_container("/images/python.sif", memory="1G")
    def square(number): ...


    client.map(square, range(100))

A worker needs this package and the image at the same path. The container of a task ends when the task is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, Unpack

import cloudpickle
from distributed import Reschedule, get_worker

from .. import aio
from ..errors import OCIRuntimeError, ProcessError
from ..overrides import parse_mounts

if TYPE_CHECKING:
    from ..ephemeral import ImageLike
    from ..options import RunKeywords
    from ..overrides import Args
    from ..process import Result

__all__ = ["in_container", "run"]

P = ParamSpec("P")
T = TypeVar("T")

_LIBRARY: Final = "/run/ociruntime-task"
_INTERVAL: Final = 0.2
"""Seconds between two looks at the state of the task."""
_PROGRAM: Final = f"""
import json, os, sys
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
own, (version, size) = list(sys.version_info[:2]), json.loads(sys.stdin.buffer.readline())
if own != version:
    sys.exit("Python %d.%d in the image, %d.%d of the worker: a function needs the same version" % (*own, *version))
sys.path.append({_LIBRARY!r})
import cloudpickle, traceback
try:
    function, args, options = cloudpickle.loads(sys.stdin.buffer.read(size))
    result = True, function(*args, **options)
    found = cloudpickle.dumps(result)
except Exception as error:
    found = cloudpickle.dumps((False, error, traceback.format_exc()))
answer.write(found)
answer.close()
"""
"""The program in the container. What the function prints to stdout goes to stderr: stdout has the result."""


def run(image: ImageLike, args: Args = (), **options: Unpack[RunKeywords]) -> Result[Any]:
    """Run a program in a new container, as `ociruntime.run`, and kill the container if the Dask task is cancelled.

    In a task, the call looks at the state of the task five times a second. Outside of tasks it is `ociruntime.run`.

    Args:
        image: the path of the image on the worker, or what else `ociruntime.run` takes.
        args: the program and its arguments. Default: those of the image.
        options: the keywords of `ociruntime.run`.

    Raises:
        Reschedule: the task was cancelled, or the worker is closing. Nothing of the container is left. Dask runs the task again if
            it is wanted again.
    """
    return asyncio.run(_run(image, args, options))


async def _run(image: ImageLike, args: Args, options: RunKeywords) -> Result[Any]:
    wanted = _task()
    running = asyncio.ensure_future(aio.run(image, args, **options))
    while not running.done():
        await asyncio.wait([running], timeout=_INTERVAL)
        if not running.done() and not wanted():
            running.cancel()
            await asyncio.wait([running])
            raise Reschedule
    return running.result()


def _task() -> Callable[[], bool]:
    """Return a function that tells whether the task of this thread is still wanted."""
    try:
        worker = get_worker()
        key = worker.get_current_task()
    except ValueError:  # in no worker, or in no task
        return lambda: True

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        closing = worker.status.name in ("closing", "closed", "failed")
        return not closing and task is not None and task.state not in ("cancelled", "released", "forgotten")

    return wanted


def in_container(
    image: str | os.PathLike[str], *, python: str = "python3", **options: Unpack[RunKeywords]
) -> Callable[[Callable[P, T]], ContainerFunction[P, T]]:
    """Decorate a function that runs in a container of its own at each call: a task that Dask sends to a worker.

    Function, arguments and result go through cloudpickle, so the image needs a Python of the same version as the worker, and the
    modules that the function imports. What the function prints goes to stderr of the worker. The worker unpickles the result, so
    function and image must be trusted. For others, `run` a program.

    Args:
        image: the path of the image on the worker.
        python: the Python of the image.
        options: the keywords of `ociruntime.run`, but for those of input, output and text.

    Raises:
        TypeError: an option is about input or output.
    """
    reserved = {"input", "capture_output", "stdin", "stdout", "text", "encoding", "errors", "check", "max_output", "on_stdout"}
    if refused := sorted(reserved & options.keys()):
        raise TypeError(f"in_container() got {refused[0]!r}: the function and its result take stdin and stdout")

    def decorate(function: Callable[P, T]) -> ContainerFunction[P, T]:
        return ContainerFunction(function, os.fspath(image), python, options)

    return decorate


def _to_stderr(output: bytes | str) -> None:
    sys.stderr.write(output if isinstance(output, str) else output.decode(errors="backslashreplace"))


class ContainerFunction(Generic[P, T]):
    """A function that runs in a container at each call (see `in_container`). It can be pickled, without its module."""

    def __init__(self, function: Callable[P, T], image: str, python: str, options: RunKeywords) -> None:
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__
        self._function, self._image, self._python, self._options = cloudpickle.dumps(function), image, python, options

    def __call__(self, *args: P.args, **options: P.kwargs) -> T:
        """Call the function in a new container.

        Raises:
            OCIRuntimeError: the container cannot run the function, or the program has ended without a result.
            Exception: what the function has raised, with its traceback as a note.
        """
        call = cloudpickle.dumps((cloudpickle.loads(self._function), args, options))
        header = json.dumps([sys.version_info[:2], len(call)]).encode() + b"\n"
        library = parse_mounts([(os.path.dirname(cloudpickle.__file__), f"{_LIBRARY}/cloudpickle", "ro")])
        mounts = [*(parse_mounts(self._options.get("mounts")) or ()), *(library or ())]
        given: RunKeywords = {**self._options, "mounts": mounts, "input": header + call, "capture_output": True}
        given.setdefault("on_stderr", _to_stderr)
        return self._take(run(self._image, [self._python, "-c", _PROGRAM], **given))

    def _take(self, result: Result[bytes]) -> T:
        try:
            result.check_returncode()
        except ProcessError as error:
            raise OCIRuntimeError(f"{self.__name__} in {self._image}: {error}") from error
        answer = pickle.loads(result.stdout)
        if answer[0]:
            found: T = answer[1]
            return found
        _, failure, trace = answer
        failure.add_note(f"in a container of {self._image}:\n{trace}")
        raise failure

    def __repr__(self) -> str:
        return f"<{self.__name__} in a container of {self._image}>"

"""`run` in the event loop."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from .. import sandbox as _sync
from ..errors import LaunchTimeout
from ..lifecycle.prune import prune as _prune
from ..options import RunKeywords, RunOptions, check_keywords
from ..overrides import Args, StrPath
from ..process import Deadline, Result
from ..sandbox import Image, Sandbox, find_bundle
from .waiting import finish, work


@overload
async def run(image: Image, args: Args = ..., *, text: Literal[True], **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
async def run(
    image: Image, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[RunKeywords]
) -> Result[str]: ...
@overload
async def run(image: Image, args: Args = ..., *, errors: str, **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
async def run(
    image: Image, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[RunKeywords]
) -> Result[bytes]: ...
@overload
async def run(image: Image, args: Args = ..., *, text: bool | None, **options: Unpack[RunKeywords]) -> Result[Any]: ...


async def run(
    image: Image,
    args: Args = (),
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[RunKeywords],
) -> Result[Any]:
    """`ociruntime.run` as a coroutine. Cancelling it kills every process of the container, and nothing is left.

    Arguments and errors are those of `ociruntime.run`.
    """
    check_keywords("run", options, RunKeywords)
    given = RunOptions(args=args, text=text, encoding=encoding, errors=errors, **options)
    with given.open_streams() as streams:
        bundle = find_bundle(image, given.overrides)
        deadline = Deadline(given.timeout)
        try:
            sandbox = await work(Sandbox, bundle, given, streams, deadline.at, undo=Sandbox.discard)
        except LaunchTimeout as error:
            raise deadline.expired(error, given.overrides.args, streams) from error
        try:
            result = await finish(sandbox.process, given.timeout, kill=sandbox.kill, result=sandbox.result, on_end=sandbox.on_end)
        finally:
            if sandbox.process.owned:  # a forked child has no threads to work in
                await work(sandbox.discard)
    if given.check:
        result.check_returncode()
    return result


async def prune(*, state_root: StrPath | None = None) -> tuple[str, ...]:
    """`ociruntime.prune` as a coroutine."""
    return await work(_prune, state_root=state_root)


run.__wrapped__ = _sync.run  # type: ignore[attr-defined]  # the signature for inspect

"""`run` in the event loop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, Unpack, overload

from .. import sandbox as _sync
from ..bundle import Bundle
from ..errors import LaunchTimeout
from ..lifecycle.orphans import clear_orphans
from ..lifecycle.prune import prune as _prune
from ..overrides import Args, Overrides, listed, seconds, words
from ..process import Deadline, Result
from ..sandbox import Image, RunOptions, Sandbox, new_id, source
from ..state import StateStore
from ..streams import Codec, Streams
from ..temporary import Temporary
from .waiting import finish, work


@overload
async def run(image: Image, args: Args = ..., *, text: Literal[True], **options: Unpack[RunOptions]) -> Result[str]: ...
@overload
async def run(
    image: Image, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[RunOptions]
) -> Result[str]: ...
@overload
async def run(image: Image, args: Args = ..., *, errors: str, **options: Unpack[RunOptions]) -> Result[str]: ...
@overload
async def run(
    image: Image, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[RunOptions]
) -> Result[bytes]: ...
@overload
async def run(image: Image, args: Args = ..., *, text: bool | None, **options: Unpack[RunOptions]) -> Result[Any]: ...


async def run(
    image: Image,
    args: Args = (),
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[RunOptions],
) -> Result[Any]:
    """`ociruntime.run` as a coroutine: cancelling it kills everything in the container, and nothing is left.

    Arguments and errors are those of `ociruntime.run`.
    """
    given = checked("run", options, RunOptions)
    given["mounts"] = listed(given.get("mounts"))
    overrides = Overrides(words(args), **{name: value for name, value in given.items() if name in Overrides._fields}).checked()
    check, timeout = given.get("check", False), seconds(given.get("timeout"))
    name = given.get("container_id")
    with streams_of(given, Codec.of(text, encoding, errors)) as streams:
        deadline = Deadline(timeout)
        try:
            sandbox = await work(
                _launch,
                new_id() if name is None else name,
                source(image, overrides),
                streams,
                root=given.get("root"),
                die_with_parent=given.get("die_with_parent"),
                cgroup_manager=given.get("cgroup_manager", "cgroupfs"),
                deadline=deadline.at,
                undo=Sandbox.discard,
            )
        except LaunchTimeout as error:
            result = deadline.result(error, overrides.args or (), streams)
        else:
            try:
                result = sandbox.complete(await finish(sandbox.child, timeout, sandbox.kill, sandbox.on_end))
            finally:
                if sandbox.child.owned:  # a forked child has no threads to work in
                    await work(sandbox.discard)
    if check:
        result.check_returncode()
    return result


def _launch(container_id: str, made_of: Bundle | Temporary, streams: Streams, **options: Any) -> Sandbox:
    """Remove orphans, then launch: one task for a thread."""
    clear_orphans(StateStore(options["root"]))
    return Sandbox(container_id, made_of, streams, **options)


async def prune(*, root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """`ociruntime.prune` as a coroutine."""
    return await work(_prune, root=root)


def checked(function: str, options: Mapping[str, Any], known: type) -> dict[str, Any]:
    """The keywords of a call. Raises TypeError for one that there is not."""
    for name in options:
        if name not in known.__optional_keys__:  # type: ignore[attr-defined]
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return dict(options)


def streams_of(given: Mapping[str, Any], codec: Codec | None) -> Streams:
    """The streams that the keywords of a call ask for. Raises as `Streams.of_run`."""
    return Streams.of_run(
        given.get("input"),
        given.get("capture_output", False),
        given.get("stdin"),
        given.get("stdout"),
        given.get("stderr"),
        codec,
        given.get("terminal", False),
    )


run.__wrapped__ = _sync.run  # type: ignore[attr-defined]  # for who asks for its signature

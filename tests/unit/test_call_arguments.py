"""Arguments of calls as people write them: keywords of other libraries, and mounts in several forms."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.overrides import Mounts, parse_mounts
from ociruntime.spec import Mount
from ociruntime.store import Entry

DATA = Mount(destination="/data", type="bind", source=f"{os.getcwd()}/data", options=("rbind",))
READ_ONLY = DATA.evolve(options=("rbind", "rro"))


@pytest.mark.parametrize(
    ("mounts", "parsed"),
    [
        (["data:/data"], DATA),
        ([("data", "/data")], DATA),
        ([(Path("data"), "/data", "ro")], READ_ONLY),
        (("data:/data:ro",), READ_ONLY),
        ({"data": "/data"}, DATA),
        ({"data": "/data:ro"}, READ_ONLY),
        ([DATA], DATA),
        ([DATA.to_dict()], DATA),
        ([{"source": "data", "destination": "/data"}], DATA),
        ([{"source": "data", "destination": "/data", "options": ["ro"]}], READ_ONLY),
        (
            [{"source": "data", "destination": "/data", "options": ["bind"]}],
            Mount(destination="/data", source=os.path.abspath("data"), options=("bind",)),
        ),
        (
            [{"type": "bind", "source": "data", "destination": "/data", "options": ["rbind", "rro"]}],
            READ_ONLY,
        ),
        ([READ_ONLY.evolve(source="data")], READ_ONLY),
        ([{"type": "tmpfs", "source": "data", "destination": "/data"}], Mount(destination="/data", type="tmpfs", source="data")),
    ],
)
def test_mounts_have_several_forms(mounts: Mounts, parsed: Mount) -> None:
    assert parse_mounts(mounts) == (parsed,)


@pytest.mark.parametrize(
    ("mounts", "error", "message"),
    [
        (
            "data:/data",
            TypeError,
            "^mounts is 'data:/data': a sequence of mounts, or a mapping of sources to destinations, is needed",
        ),
        ([("data",)], TypeError, r"^mounts contains \('data',\): 'source:/destination'"),
        ([("data", 1)], TypeError, "^mounts contains"),
        ([1], TypeError, "^mounts contains 1: "),
        (["data"], ValueError, "^mounts contains 'data': 'source:/destination'"),
        (("data", "/data"), ValueError, "^mounts contains 'data': "),
        ({"data": "data"}, ValueError, r"^mounts contains \('data', 'data'\): "),
        ([("data", "/data", "rw,colour")], ValueError, "'colour' is not an option of a bind mount"),
        ([{"source": "data"}], oci.SpecError, "destination"),
        ([{"source": "data", "target": "/data"}], ValueError, "a mount has no member 'target'; it has destination, type, source, "),
        ([{"source": "data", "destination": "/data", "readonly": True}], ValueError, "a mount has no member 'readonly'"),
    ],
)
def test_what_is_not_a_mount(mounts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_mounts(mounts)


CONTAINER = oci.Container(Entry("/nowhere", "c"))
CALLS: list[tuple[str, Callable[..., Any]]] = [
    ("run", lambda **options: oci.run("image.sif", ["true"], **options)),
    ("Sandbox", lambda **options: oci.Sandbox("image.sif", **options)),
    ("create", lambda **options: oci.Container.create("c", "bundle", **options)),
    ("run", lambda **options: oci.Container.run("c", "bundle", **options)),
    ("exec", lambda **options: CONTAINER.exec(["true"], **options)),
    ("popen", lambda **options: CONTAINER.popen(["true"], **options)),
    ("run", lambda **options: asyncio.run(aio.run("image.sif", ["true"], **options))),
    ("exec", lambda **options: asyncio.run(aio.Container(CONTAINER).exec(["true"], **options))),
]


@pytest.mark.parametrize(("function", "call"), CALLS)
@pytest.mark.parametrize("keyword", ["shell", "detach", "command"])
def test_every_call_says_what_to_do_instead(function: str, call: Callable[..., Any], keyword: str) -> None:
    with pytest.raises(TypeError, match=rf"^{function}\(\) got an unexpected keyword argument '{keyword}'; \w+"):
        call(**{keyword: True})


@pytest.mark.parametrize(
    ("keyword", "remedy"),
    [
        ("volumes", "use mounts=['source:/destination:ro']"),
        ("privileged", "use a Bundle whose process.capabilities has what the program needs"),
        ("environment", "use env={'NAME': 'value'}"),
        ("mem_limit", "use memory='512M'"),
        ("nano_cpus", "use cpus=0.5"),
        ("gpu", "use gpus='all', or the number of GPUs"),
        ("working_dir", "use cwd='/path'"),
        ("tty", "use terminal=True"),
        ("name", "use container_id='name'"),
        ("memroy", "did you mean 'memory'?"),
        ("time_out", "did you mean 'timeout'?"),
        ("txet", "did you mean 'text'?"),
    ],
)
def test_keywords_of_others_and_slips(keyword: str, remedy: str) -> None:
    with pytest.raises(TypeError) as caught:
        CALLS[0][1](**{keyword: 1})
    assert str(caught.value) == f"run() got an unexpected keyword argument '{keyword}'; {remedy}"


def test_a_call_names_no_keyword_that_it_lacks() -> None:
    with pytest.raises(TypeError, match=r"^exec\(\) got an unexpected keyword argument 'mem_limit'$"):
        CONTAINER.exec(["true"], mem_limit="1G")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^exec\(\) got an unexpected keyword argument 'colour'$"):
        CONTAINER.exec(["true"], colour=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("keyword", "change"), [("volumes", "mounts=['source:/destination:ro']"), ("memory", "memory=...")])
def test_a_call_without_the_configuration_says_where_it_is(keyword: str, change: str) -> None:
    for _, call in CALLS[2:4]:
        with pytest.raises(TypeError, match=re.escape(f"'{keyword}'; use bundle.with_overrides({change})")):
            call(**{keyword: 1})
    bundle: Any = oci.Bundle.__new__(oci.Bundle)
    with pytest.raises(TypeError, match=r"^with_overrides\(\) got an unexpected keyword argument 'volumes'; use mounts="):
        bundle.with_overrides(volumes=1)
    sandbox: Any = oci.Sandbox.__new__(oci.Sandbox)
    name = change.partition("=")[0]
    for program in (sandbox.run, sandbox.popen, sandbox.shell):
        with pytest.raises(TypeError, match=f"'{keyword}'; it is an argument of the Sandbox: {name}=...$"):
            program("true", **{keyword: 1})


def test_a_call_without_args_says_where_they_are() -> None:
    with pytest.raises(TypeError, match=r"^create\(\) got an unexpected keyword argument 'args'; use bundle\.with_args\("):
        oci.Container.create("x", "bundle", args=["true"])  # type: ignore[call-arg]


def test_what_a_keyword_says_to_use_exists() -> None:
    from ociruntime.options import _INSTEAD, RunKeywords, SandboxKeywords

    known = RunKeywords.__optional_keys__ | SandboxKeywords.__optional_keys__
    for theirs, ours, _ in _INSTEAD:
        assert not ours or ours in known
        assert not known & set(theirs.split()) - {"name"}, theirs

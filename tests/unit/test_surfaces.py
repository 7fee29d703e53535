"""`ociruntime.aio` has the names, keywords and types of the classes that it is the twin of, and what is written twice says the same."""

from __future__ import annotations

import asyncio
import inspect
import io
import subprocess
from collections.abc import Callable
from typing import Any, get_overloads

import attrs
import pytest

import ociruntime as oci
from ociruntime import aio, ephemeral
from ociruntime.aio import containers
from ociruntime.options import (
    CreateKeywords,
    CreateOptions,
    ExecKeywords,
    ExecOptions,
    PopenKeywords,
    RunKeywords,
    RunOptions,
    SandboxKeywords,
    SandboxOptions,
    SandboxPopenKeywords,
    SandboxRunKeywords,
)
from ociruntime.store import Entry

TEXT = {"text", "encoding", "errors"}
PAIRS = [
    (oci.Container, aio.Container),
    (oci.ContainerFiles, aio.ContainerFiles),
    (oci.Process, aio.Process),
    (oci.Attachment, aio.Attachment),
    (oci.Sandbox, aio.Sandbox),
    (oci.SandboxPool, aio.SandboxPool),
]


def keywords(function: Callable[..., Any]) -> dict[str, str]:
    """The keyword-only arguments with their types."""
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in TEXT}


@pytest.mark.parametrize(
    ("function", "declared", "options"),
    [
        (oci.run, RunKeywords, RunOptions),
        (oci.Container.create, CreateKeywords, CreateOptions),
        (oci.Container.exec, ExecKeywords, ExecOptions),
        (oci.Container.popen, PopenKeywords, ExecOptions),
        (oci.Sandbox, SandboxKeywords, SandboxOptions),
    ],
)
def test_options_are_the_keywords(function: Callable[..., Any], declared: Any, options: type) -> None:
    """A signature, its typed dictionary and its value have the same keywords, with the same types and defaults."""
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in declared.__annotations__.items()}
    assert keywords(function) == types
    parameters = inspect.signature(function).parameters
    fields = {field.name: field.default for field in attrs.fields(options) if field.init}
    assert {name: parameters[name].default for name in keywords(function)} == {name: fields[name] for name in keywords(function)}


@pytest.mark.parametrize(
    ("function", "declared"), [(oci.Sandbox.run, SandboxRunKeywords), (oci.Sandbox.popen, SandboxPopenKeywords)]
)
def test_runs_in_a_sandbox_have_keywords_of_exec(function: Callable[..., Any], declared: Any) -> None:
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in declared.__annotations__.items()}
    own = {name: kind for name, kind in keywords(function).items() if name != "bufsize"}
    assert own == types
    of_exec = keywords(oci.Container.exec)
    assert own == {name: of_exec[name] for name in own}


OVERLOADED = [
    *(oci.run, oci.Container.exec, oci.Container.popen, oci.Sandbox.run, oci.Sandbox.shell, oci.Sandbox.popen),
    *(aio.run, aio.Container.exec, aio.Container.popen, aio.Sandbox.run, aio.Sandbox.shell, aio.Sandbox.popen),
]


@pytest.mark.parametrize("function", OVERLOADED, ids=lambda function: f"{function.__module__}.{function.__qualname__}")
def test_the_last_overload_spells_the_signature_out(function: Callable[..., Any]) -> None:
    """Type checkers name a misspelt keyword by it."""
    shown = inspect.signature(get_overloads(function)[-1])
    known = {p.name: (p.kind, p.annotation, p.default is p.empty) for p in inspect.signature(function).parameters.values()}
    last = {p.name: (p.kind, p.annotation, p.default is p.empty) for p in shown.parameters.values()}
    assert last.pop("unknown") == (inspect.Parameter.VAR_KEYWORD, "Misspelt", True)
    assert last == {name: value for name, value in known.items() if name != "unknown"}


DROPPED = {"popen": {"bufsize"}}
"""Keywords that make no sense in an event loop, where streams are not files. The asyncio twin refuses them."""


def test_functions_that_hand_their_keywords_on_have_a_signature() -> None:
    for function in (oci.Container.run, aio.Container.run, aio.Container.create):
        assert keywords(oci.Container.create) == {
            p.name: p.annotation for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        }


def public(cls: type) -> dict[str, Any]:
    names = [name for name in dir(cls) if not name.startswith("_")]
    return {name: inspect.getattr_static(cls, name) for name in names}


@pytest.mark.parametrize(("sync", "twin"), PAIRS)
def test_the_twin_has_the_same_names_and_arguments(sync: type, twin: type) -> None:
    ours, theirs = public(sync), public(twin)
    assert set(ours) - set(theirs) <= set(dir(io.RawIOBase)), "a raw file of the one is a stream of the other"
    for name, member in theirs.items():
        one, other = (getattr(m, "__func__", m) for m in (ours.get(name), member))
        if not callable(one) or not callable(other) or name in dir(io.RawIOBase):
            continue
        parameters = {key: value for key, value in inspect.signature(one).parameters.items() if key not in DROPPED.get(name, ())}
        assert parameters == inspect.signature(other).parameters, name
        expected = {str(inspect.signature(one).return_annotation)}
        if not inspect.iscoroutinefunction(other):
            expected |= {f"Making[{kind}]" for kind in expected} | {f"Async{kind}" for kind in expected}
        assert str(inspect.signature(other, follow_wrapped=False).return_annotation) in expected, name


def test_the_modules_have_the_same_functions() -> None:
    twins = {name for name in aio.__all__ if hasattr(oci, name)}
    assert twins >= {"Container", "Process", "Attachment", "Result", "run", "prune"}
    for name in ("run", "prune"):
        assert inspect.signature(getattr(aio, name)) == inspect.signature(getattr(oci, name)), name


def values(declared: Any) -> dict[str, Any]:
    """Return a value that is not the default for each keyword."""
    special: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {"A": "b"}, "cwd": "/tmp",
        "user": 7, "groups": [8], "capabilities": ["CAP_KILL"], "process": {"cwd": "/", "args": ["id"]}, "preserve_fds": 2, "cgroup": "x",
        "bufsize": 0, "timeout": 5, "input": b"x", "memory": "1M", "cpus": 2.0, "pids": 3, "network": "none", "hostname": "h",
        "container_id": "c", "state_root": "/s", "mounts": ["/a:/b"], "devices": ["/dev/null"], "gpus": 1, "preset": "hpc", "cgroup_manager": "disabled", "own_cgroup": False,
        "console_socket": "/c", "pid_file": "/p", "apparmor_profile": "a", "selinux_label": "l", "die_with_parent": False,
        "listen_fds": 1, "notify_socket": "/n", "new_keyring": False, "pivot_root": False, "log_path": "/l", "log_format": "json", "sync_socket": "/y",
        "text": True, "encoding": "latin-1", "errors": "replace", "overlay": "tmpfs", "reference": "a:1", "platform": "linux/arm64",
        "strategy": "fuse",
        "ports": {8080: 80},
        "max_output": 7, "on_stdout": print, "on_stderr": print, "disk": "1M", "shm": "1M", "limits": "if possible", "name": "n",
    }  # fmt: skip
    return {name: special.get(name, True) for name in [*declared.__optional_keys__, *TEXT]}


class Reached(Exception):
    """The call has come to what both twins share."""


def record(calls: list[object]) -> Callable[..., Any]:
    def reached(*args: object, **options: object) -> None:
        calls.append((args, options))
        raise Reached

    return reached


@pytest.mark.parametrize("keyword", sorted(values(ExecKeywords)))
def test_exec_hands_on_every_keyword(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {keyword: values(ExecKeywords)[keyword]} | (
        {"capture_output": True} if keyword in ("terminal", "input") else {}
    )
    calls: list[Any] = []
    monkeypatch.setattr(oci.Container, "_execute", record(calls))
    container = oci.Container(Entry("/nowhere", "c"))
    with pytest.raises(Reached):
        container.exec(["true"], **options)
    with pytest.raises(Reached):
        asyncio.run(aio.Container(container).exec(["true"], **options))
    (one, _), (other, _) = calls
    assert one[0] == other[0] != ExecOptions(args=["true"])
    assert [type(item) for item in one] == [type(item) for item in other]


@pytest.mark.parametrize("keyword", sorted(values(PopenKeywords)))
def test_popen_hands_on_every_keyword(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {keyword: values(PopenKeywords)[keyword]}
    calls: list[Any] = []
    monkeypatch.setattr(oci.Container, "_popen", record(calls))
    container = oci.Container(Entry("/nowhere", "c"))

    async def popen() -> None:
        await aio.Container(container).popen(["true"], **options)

    with pytest.raises(Reached):
        container.popen(["true"], **options)
    if keyword in DROPPED["popen"]:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
            asyncio.run(popen())
        return
    with pytest.raises(Reached):
        asyncio.run(popen())
    assert calls[0] == calls[1]
    assert calls[0][0][0] != ExecOptions(args=["true"])


@pytest.mark.parametrize("keyword", sorted(values(RunKeywords)))
def test_run_hands_on_every_keyword(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {keyword: values(RunKeywords)[keyword]} | (
        {"capture_output": True} if keyword in ("terminal", "input") else {"network": "private"} if keyword == "ports" else {}
    )
    calls: list[Any] = []
    monkeypatch.setattr(ephemeral, "find_bundle", lambda image, options, deadline: (image, options))
    monkeypatch.setattr(containers, "find_bundle", lambda image, options, deadline: (image, options))
    monkeypatch.setattr(ephemeral, "EphemeralContainer", record(calls))
    reached = record(calls)
    reached.discard = None  # type: ignore[attr-defined]
    monkeypatch.setattr(containers, "EphemeralContainer", reached)
    with pytest.raises(Reached):
        oci.run("/image", ["true"], **options)
    with pytest.raises(Reached):
        asyncio.run(aio.run("/image", ["true"], **options))
    (one, _), (other, _) = calls
    assert one[:2] == other[:2]
    assert one[1] != RunOptions(args=["true"])


@pytest.mark.parametrize("name", ["create", "run"])
def test_create_hands_on_every_keyword(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {name: value for name, value in values(CreateKeywords).items() if name not in TEXT}
    calls: list[Any] = []
    monkeypatch.setattr(oci.Container, name, record(calls))

    async def make() -> None:
        await getattr(aio.Container, name)("c", "/bundle", **options)

    with pytest.raises(Reached):
        asyncio.run(make())
    assert calls == [(("c", "/bundle"), options)]

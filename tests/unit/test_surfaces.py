"""`ociruntime.aio` has the names, keywords and types of the classes that it is the twin of, and what is written twice says the same."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.options import CreateKeywords, CreateOptions, ExecKeywords, ExecOptions, PopenKeywords, RunKeywords, RunOptions

TEXT = {"text", "encoding", "errors"}
PAIRS = [(oci.Container, aio.Container), (oci.Process, aio.Process), (oci.Attachment, aio.Attachment)]


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
    ],
)
def test_options_are_the_keywords(function: Callable[..., Any], declared: Any, options: type) -> None:
    """A signature, its typed dictionary and its value have the same keywords, with the same types and defaults."""
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in declared.__annotations__.items()}
    assert keywords(function) == types
    parameters = inspect.signature(function).parameters
    fields = {field.name: field.default for field in attrs.fields(options) if field.init}
    assert {name: parameters[name].default for name in keywords(function)} == {name: fields[name] for name in keywords(function)}


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
        assert inspect.signature(one).parameters == inspect.signature(other).parameters, name
        wanted = {str(inspect.signature(one).return_annotation)}
        if not inspect.iscoroutinefunction(other):
            wanted |= {f"Making[{kind}]" for kind in wanted} | {f"Async{kind}" for kind in wanted}
        assert str(inspect.signature(other, follow_wrapped=False).return_annotation) in wanted, name


def test_the_modules_have_the_same_functions() -> None:
    twins = {name for name in aio.__all__ if hasattr(oci, name)}
    assert twins >= {"Container", "Process", "Attachment", "Result", "run", "prune"}
    for name in ("run", "prune"):
        assert inspect.signature(getattr(aio, name)) == inspect.signature(getattr(oci, name)), name

"""Whole documents, made up from the classes: what is loaded comes out as it went in, and is a value."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from ociruntime.errors import SpecError
from ociruntime.spec import ContainerProcessState, Features, Model, RuntimeSpec, StateDocument, diff
from ociruntime.spec.base import Member, members_of
from ociruntime.spec.codec import converter

from ..support.generate import models
from ..support.whole_documents import objects

ROOTS = [RuntimeSpec, Features, StateDocument, ContainerProcessState]
WHOLE = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("cls", ROOTS)
def test_whole_documents(cls: type[Model]) -> None:
    @WHOLE
    @given(objects(cls))
    def holds(document: dict[str, Any]) -> None:
        loaded = cls.load(document)
        text = loaded.to_json()
        # the same document: types of numbers too, which == does not tell apart
        assert json.dumps(loaded.to_dict(), sort_keys=True) == json.dumps(document, sort_keys=True)
        again = cls.load(json.dumps(document))
        assert again.to_json() == text
        assert again == loaded
        assert hash(again) == hash(loaded)
        assert cls.load(text.encode()) == loaded
        assert not diff(loaded, again)
        known = [key for key in document if key not in loaded.extensions]
        assert list(loaded.to_dict())[: len(known)] == known
        assert converter().unstructure(converter().structure(document, cls)) == loaded.to_dict()
        assert pickle.loads(pickle.dumps(loaded)) == copy.deepcopy(loaded) == loaded
        assert repr(loaded).startswith(f"{cls.__name__}(")
        assert loaded._repr_html_().count("<details") == loaded._repr_html_().count("</details>")

    holds()


@pytest.mark.parametrize("cls", models(), ids=lambda cls: cls.__name__)
def test_every_class_by_itself(cls: type[Model]) -> None:
    """Each class alone is read, written, made again from its members, and takes no others."""

    @settings(WHOLE, max_examples=10)
    @given(objects(cls))
    def holds(document: dict[str, Any]) -> None:
        loaded: Any = cls.load(document)
        assert loaded.to_dict() == document
        assert cls(**{member.name: getattr(loaded, member.name) for member in attrs.fields(cls)}) == loaded
        assert loaded.evolve() == attrs.evolve(loaded) == loaded
        assert set(attrs.asdict(loaded, recurse=False)) == {*members_of(cls), "extensions"}

    holds()
    assert attrs.has(cls)
    with pytest.raises(TypeError, match="no_such_member"):
        cls(no_such_member=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", models(), ids=lambda cls: cls.__name__)
def test_absent_empty_and_null(cls: type[Model]) -> None:
    """An absent member is None and is not written; an empty one is empty; null is for features alone."""
    for member in members_of(cls).values():
        if member.required:
            continue
        smallest = {other.key: example(other) for other in members_of(cls).values() if other.required}
        assert member.key not in cls.load(smallest).to_dict()
        document = smallest | {member.key: None}
        if cls.NULLABLE:
            loaded = cls.load(document)
            assert getattr(loaded, member.name) is None
            assert loaded.to_dict() == document
        else:
            with pytest.raises(SpecError, match="null"):
                cls.load(document)
        if member.kind.outer:
            empty = cls.load(smallest | {member.key: [] if member.kind.outer == "tuple" else {}})
            assert getattr(empty, member.name) is not None
            assert len(getattr(empty, member.name)) == 0
            assert empty != cls.load(smallest)
            assert member.key in empty.to_dict()


def example(member: Member) -> Any:
    """The smallest value of a member."""
    kind = member.kind
    if kind.outer:
        return [] if kind.outer == "tuple" else {}
    if kind.record is not None:
        return {other.key: example(other) for other in members_of(kind.record).values() if other.required}
    return {bool: False, int: 1}.get(kind.item, "x")

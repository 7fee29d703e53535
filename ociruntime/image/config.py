"""The JSON documents inside an image, read with bounds: the OCI image config, labels, inspect metadata."""

from __future__ import annotations

from typing import NoReturn, cast

import attrs

from ociruntime.errors import SifError
from ociruntime.image.sif.model import JsonObject, JsonValue

__all__ = ["MAX_DOCUMENT", "OciImageConfig", "parse_env", "parse_json_object", "string_map"]

MAX_DOCUMENT = 1 << 20
"""Bytes of a text or JSON object that is read whole. As Python objects, JSON can be thirty times its size."""


class Place:
    """Where a document is, for the errors about it."""

    __slots__ = ("descriptor", "name", "path")

    def __init__(self, name: str, descriptor: int | None, path: str) -> None:
        self.name = name
        self.descriptor = descriptor
        self.path = path

    def refuse(self, where: str, message: str, cause: Exception | None = None) -> NoReturn:
        field = f"{self.name}: {where}" if where else self.name
        raise SifError(message, field=field, descriptor=self.descriptor, path=self.path) from cause


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_json_object(data: bytes, place: Place) -> JsonObject:
    """Decode a JSON object; raises `SifError` for anything else, however deep or odd."""
    import json

    try:
        value = cast("JsonValue", json.loads(data.decode("utf-8"), parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        place.refuse("", f"not JSON: {error}", error)
    if not isinstance(value, dict):
        place.refuse("", f"a JSON {type(value).__name__}, not an object")
    return value


def _string(document: JsonObject, key: str, place: Place) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        place.refuse(key, f"{value!r:.80} is not a string")
    return value


def _strings(document: JsonObject, key: str, place: Place) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        place.refuse(key, f"{value!r:.80} is not a list of strings")
    found: list[str] = []
    for number, item in enumerate(value):
        if not isinstance(item, str):
            place.refuse(f"{key}[{number}]", f"{item!r:.80} is not a string")
        found.append(item)
    return tuple(found)


def _keys(document: JsonObject, key: str, place: Place) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, dict):
        place.refuse(key, f"{value!r:.80} is not an object")
    return tuple(value)


def string_map(value: JsonValue, where: str, place: Place) -> dict[str, str]:
    """``value`` as a mapping of strings, an empty one for null; raises `SifError`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        place.refuse(where, f"{value!r:.80} is not an object")
    found: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(item, str):
            place.refuse(f"{where}.{key}" if where else key, f"{item!r:.80} is not a string")
        found[key] = item
    return found


@attrs.frozen
class OciImageConfig:
    """The ``config`` object of an OCI image configuration: what an image says about how it wants to be run."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    """``NAME=value`` entries."""
    working_dir: str = ""
    user: str = ""
    """``user``, ``uid``, ``user:group``, ``uid:gid`` ... or empty."""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = attrs.field(factory=dict)
    stop_signal: str = ""

    @classmethod
    def from_json(cls, document: JsonObject, place: Place | None = None) -> OciImageConfig:
        """Read the object; raises `SifError` naming the key with a wrong type. Unknown keys are ignored."""
        place = place or Place("config", None, "")
        return cls(
            entrypoint=_strings(document, "Entrypoint", place),
            cmd=_strings(document, "Cmd", place),
            env=_strings(document, "Env", place),
            working_dir=_string(document, "WorkingDir", place),
            user=_string(document, "User", place),
            volumes=_keys(document, "Volumes", place),
            exposed_ports=_keys(document, "ExposedPorts", place),
            labels=string_map(document.get("Labels"), "Labels", place),
            stop_signal=_string(document, "StopSignal", place),
        )


def parse_env(text: str, place: Place) -> dict[str, str]:
    """``NAME=value`` lines (empty lines and ``#`` comments apart) as a mapping; raises `SifError` for another line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name:
            place.refuse(f"line {number}", f"{line!r:.80} is not NAME=value")
        found[name] = value
    return found

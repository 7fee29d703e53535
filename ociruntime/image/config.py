"""The JSON documents in an image: OCI image configuration, labels, inspect metadata. Their size is bounded."""

from __future__ import annotations

import re
from typing import Final, NoReturn, cast

import attrs

from ociruntime.arguments import check_mapping, check_type, optional, shown
from ociruntime.errors import SifError
from ociruntime.image.sif.model import JsonObject, JsonValue

__all__ = [
    "MAX_DOCUMENT",
    "ImageMetadata",
    "OciImageConfig",
    "check_oci_config",
    "parse_env",
    "parse_json_object",
    "string_map",
]

MAX_DOCUMENT = 1 << 20
"""Largest text or JSON object that is read, in bytes. As Python objects, JSON can take thirty times its size."""


class Location:
    """The location of a document, for error messages."""

    __slots__ = ("descriptor", "name", "path")

    def __init__(self, name: str, descriptor: int | None, path: str) -> None:
        self.name = name
        self.descriptor = descriptor
        self.path = path

    def refuse(self, where: str, message: str, cause: Exception | None = None) -> NoReturn:
        field = f"{self.name}: {where}" if where else self.name
        raise SifError(message, field=field, descriptor=self.descriptor, path=self.path) from cause


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def parse_json_object(data: bytes, location: Location) -> JsonObject:
    """Decode a JSON object. Raises SifError for anything else."""
    import json

    try:
        value = cast("JsonValue", json.loads(data.decode("utf-8"), parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        location.refuse("", f"not JSON: {error}", error)
    if not isinstance(value, dict):
        location.refuse("", f"a JSON {type(value).__name__}, not an object")
    return value


def _string(document: JsonObject, key: str, location: Location) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        location.refuse(key, f"{shown(value)} is not a string")
    return value


def _strings(document: JsonObject, key: str, location: Location) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        location.refuse(key, f"{shown(value)} is not a list of strings")
    found: list[str] = []
    for number, item in enumerate(value):
        if not isinstance(item, str):
            location.refuse(f"{key}[{number}]", f"{shown(item)} is not a string")
        found.append(item)
    return tuple(found)


def _keys(document: JsonObject, key: str, location: Location) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, dict):
        location.refuse(key, f"{shown(value)} is not an object")
    return tuple(value)


def string_map(value: JsonValue, where: str, location: Location) -> dict[str, str]:
    """Return ``value`` as a mapping of strings; null gives an empty one. Raises SifError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        location.refuse(where, f"{shown(value)} is not an object")
    found: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(item, str):
            location.refuse(f"{where}.{key}" if where else key, f"{shown(item)} is not a string")
        found[key] = item
    return found


@attrs.frozen
class OciImageConfig:
    """The ``config`` object of an OCI image configuration: the defaults for a container of the image."""

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
    def from_json(cls, document: JsonObject, location: Location | None = None) -> OciImageConfig:
        """Read the object, or the one in a whole image configuration. Unknown keys are ignored.

        Raises:
            SifError: a value has the wrong type; the error names the key.
        """
        from ociruntime.spec.defaults import is_whole

        check_mapping("document", document)
        optional(check_type, "location", location, Location, "a Location")
        location = location or Location("config", None, "")
        if is_whole(document):
            inner = document.get("config")
            if inner is not None and not isinstance(inner, dict):
                location.refuse("config", f"{shown(inner)} is not an object")
            document = inner or {}
        entrypoint = _strings(document, "Entrypoint", location)
        return cls(
            entrypoint=() if entrypoint == ("",) else entrypoint,
            cmd=_strings(document, "Cmd", location),
            env=_strings(document, "Env", location),
            working_dir=_string(document, "WorkingDir", location),
            user=_string(document, "User", location),
            volumes=_keys(document, "Volumes", location),
            exposed_ports=_keys(document, "ExposedPorts", location),
            labels=string_map(document.get("Labels"), "Labels", location),
            stop_signal=_string(document, "StopSignal", location),
        )


@attrs.frozen(kw_only=True)
class ImageMetadata:
    """What an image says of itself, with the terms of Apptainer's definition files. A text that the image lacks is empty."""

    labels: dict[str, str] = attrs.field(factory=dict)
    definition: str = ""
    """The definition file from which the image was built."""
    runscript: str = ""
    """The script of ``apptainer run``."""
    startscript: str = ""
    """The script of ``apptainer instance start``."""
    test: str = ""
    """The script of ``apptainer test``."""
    help: str = ""
    environment: dict[str, str] = attrs.field(factory=dict)
    """The scripts that set the environment, by their paths in the image."""
    apps: tuple[str, ...] = ()
    """The names of the applications in ``/scif/apps``."""

    @classmethod
    def from_json(cls, document: JsonObject, location: Location | None = None) -> ImageMetadata:
        """Read ``inspect-metadata.json``, which Apptainer writes into SIF files. Raises SifError: a value has the wrong type."""
        check_mapping("document", document)
        optional(check_type, "location", location, Location, "a Location")
        location = location or Location("inspect-metadata.json", None, "")
        for key in ("data", "attributes"):
            inner = document.get(key) or {}
            if not isinstance(inner, dict):
                location.refuse(key, f"{shown(inner)} is not an object")
            document = inner
        texts = {name: _string(document, key, location) for name, key in METADATA_TEXTS.items()}
        return cls(
            labels=string_map(document.get("labels"), "labels", location),
            environment=string_map(document.get("environment"), "environment", location),
            apps=tuple(sorted(_keys(document, "apps", location))),
            **texts,
        )


METADATA_TEXTS: Final = {
    "definition": "deffile",
    "runscript": "runscript",
    "startscript": "startscript",
    "test": "test",
    "help": "helpfile",
}
"""The texts of `ImageMetadata`, and what ``apptainer inspect`` calls them."""
METADATA_DIRECTORY: Final = "/.singularity.d"
METADATA_FILES: Final = {
    "definition": "Singularity",
    "runscript": "runscript",
    "startscript": "startscript",
    "test": "test",
    "help": "runscript.help",
}
"""The files of these texts in `METADATA_DIRECTORY`."""
ENVIRONMENT_FILE: Final = re.compile(r"/\.singularity\.d/env/(10-docker|9.*-environment).*\.sh")
"""The scripts that set the environment of this image; others are the same in all images."""


_KEYS: Final = (
    *("Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Volumes", "ExposedPorts", "Labels", "StopSignal"),
    *("ArgsEscaped", "Healthcheck", "Memory", "MemorySwap", "CpuShares", "OnBuild", "Shell"),
)
"""The keys of image-spec, Properties (with those reserved there), and those that engines add."""


def check_oci_config(document: JsonObject, location: Location) -> None:
    """Check a ``config`` object that is about to be stored.

    Raises:
        SifError: a value has the wrong type or cannot be used, a key is a known one in another case, or this is a whole image
            configuration.
    """
    from ociruntime.spec.defaults import is_whole

    spelling = {key.lower(): key for key in _KEYS}
    for key in document:
        right = spelling.get(key.lower(), key)
        if key != right:
            location.refuse(key, f"unknown key; the key of image configurations is {right!r}")
    if document and is_whole(document):
        location.refuse("", "a whole image configuration; pass the object under its key 'config'")
    config = OciImageConfig.from_json(document, location)
    for key, texts in (("Entrypoint", config.entrypoint), ("Cmd", config.cmd), ("Env", config.env)):
        for number, text in enumerate(texts):
            if "\0" in text:
                location.refuse(f"{key}[{number}]", f"{text!r:.80} has a NUL character")
            if key == "Env" and text.find("=") < 1:
                location.refuse(f"{key}[{number}]", f"{text!r:.80} is not NAME=value")


def parse_env(text: str, location: Location) -> dict[str, str]:
    """Parse lines of ``NAME=value``. Empty lines and ``#`` comments are skipped. Raises SifError for any other line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name:
            location.refuse(f"line {number}", f"{line!r:.80} is not NAME=value")
        found[name] = value
    return found

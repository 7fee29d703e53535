"""The schemas that are generated from the classes accept what the official ones accept.

The official schemas and the text of the runtime spec, version 1.3.0, are in the directory runtime-spec.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from ociruntime import spec
from ociruntime.errors import SpecError
from ociruntime.spec import Features, Model, OpenEnum, Problem, RuntimeSpec, StateDocument
from ociruntime.spec.base import Record, members_of
from ociruntime.spec.schema import describe, generate, section

from ..support.generate import files, models

RUNTIME_SPEC = Path(__file__).parent / "runtime-spec"
SCHEMAS = RUNTIME_SPEC / "schema"
VECTORS = SCHEMAS / "test"
BASE = "file:///official/"
CLASSES: dict[str, type[Model]] = {
    "config-schema.json": RuntimeSpec,
    "features-schema.json": Features,
    "state-schema.json": StateDocument,
}

Schema = dict[str, Any]
STRINGS = {"type": "array", "items": {"type": "string"}}
SWITCH = {"type": "boolean"}
MENDED: list[tuple[str, str, object, str]] = [
    # file, place, what belongs there, why
    ("defs.json", "definitions/ArrayOfUint32/items/$ref", "#/definitions/uint32", "the reference has no slash and leads nowhere"),
    ("config-vm.json", "vm/properties/hwConfig/properties/iomems/items", {"$ref": "defs-vm.json#/definitions/IOMemEntryFormat"},
     "a list of schemas checks the first item alone"),
    ("config-windows.json", "windows/properties/resources/properties/cpu/properties/affinity",
     {"type": "array", "items": {"type": "object", "required": ["mask", "group"], "properties": {
         "mask": {"$ref": "defs.json#/definitions/uint64"}, "group": {"$ref": "defs.json#/definitions/uint32"}}}},
     "an array of objects in config-windows.md and its example"),
    ("features-linux.json", "linux/properties/memoryPolicy", {"type": "object", "properties": {
        "modes": {"type": "array", "items": {"$ref": "defs-linux.json#/definitions/MemoryPolicyMode"}},
        "flags": {"type": "array", "items": {"$ref": "defs-linux.json#/definitions/MemoryPolicyFlag"}}}},
     "in features-linux.md only"),
    ("features-linux.json", "linux/properties/intelRdt/properties/schemata", SWITCH, "in features-linux.md only"),
    ("features-linux.json", "linux/properties/intelRdt/properties/monitoring", SWITCH, "in features-linux.md only"),
]  # fmt: skip
"""Where the official schema is not what the text of the runtime spec says."""


def read(name: str) -> Schema:
    """One official schema, mended."""
    document: Schema = json.loads((SCHEMAS / name).read_text())
    for file, place, value, _ in MENDED:
        if file == name:
            inside: Any = document
            *way, last = place.split("/")
            for step in way:
                inside = inside[step]
            inside[last] = value
    return document


class Resolver:
    """Schemas by their address, and references followed."""

    def __init__(self, documents: Mapping[str, Schema]) -> None:
        self.documents = documents

    def follow(self, reference: str, base: str) -> tuple[Schema, str]:
        """What a reference of the document ``base`` leads to, and the document that has it."""
        name, _, pointer = reference.partition("#")
        name = name or base
        found: Any = self.documents[name]
        for step in pointer.strip("/").split("/") if pointer.strip("/") else ():
            found = found[step]
        return found, name

    def plain(self, schema: Schema, base: str) -> Schema:
        """A schema without references, alternatives of one and words for people: equal for what gives equal verdicts."""
        if "$ref" in schema:
            return self.plain(*self.follow(schema["$ref"], base))
        created: Schema = {}
        for part in [*schema.get("allOf", ()), *(schema.get("anyOf", ()))]:
            assert len(schema.get("anyOf", ())) < 2
            for key, value in self.plain(part, base).items():
                if isinstance(value, dict):
                    created[key] = created.get(key, {}) | value
                elif isinstance(value, list):
                    created[key] = sorted({*created.get(key, ()), *value})
                else:
                    created[key] = value
        for key, value in schema.items():
            if key in ("properties", "patternProperties"):
                created[key] = created.get(key, {}) | {name: self.plain(inner, base) for name, inner in value.items()}
            elif key in ("items", "additionalProperties"):
                created[key] = self.plain(value, base)
            elif key in ("required", "enum"):
                created[key] = sorted(value)
            elif key in ("type", "minimum", "maximum", "pattern", "minItems"):
                created[key] = value
            else:
                assert key in ("$schema", "title", "description", "default", "definitions", "allOf", "anyOf") or key[:2] == "x-", (
                    key
                )
        return created


@pytest.fixture(scope="module")
def official() -> Resolver:
    """Every official schema."""
    return Resolver({path.name: read(path.name) for path in SCHEMAS.glob("*.json")})


def validators(official: Resolver, name: str) -> tuple[Any, Any]:
    """Return the official validator and that of the class."""
    registry = Registry().with_resources((BASE + file, DRAFT4.create_resource(text)) for file, text in official.documents.items())
    return Draft4Validator({"$ref": BASE + name}, registry=registry), Draft4Validator(CLASSES[name].json_schema())


def test_what_is_generated_is_up_to_date() -> None:
    """``python -m tests.support.generate`` writes the published schemas and the types of places."""
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name} is not what the classes say"


@pytest.mark.parametrize("cls", CLASSES.values())
def test_the_published_schema_is_a_schema_with_words_and_sections(cls: type[Model]) -> None:
    schema = cls.json_schema()
    assert schema == generate(cls)
    Draft4Validator.check_schema(schema)
    definitions: Any = schema["definitions"]
    objects = [schema, *(created for created in definitions.values() if created["type"] == "object")]
    assert len(objects) == 1 + len(definitions) - sum("enum" in created or "pattern" in created for created in definitions.values())
    for created in objects:
        for key, member in created["properties"].items():
            assert member["description"].endswith("."), key
            assert ".md#" in member["x-section"], key


def test_any_class_has_a_schema() -> None:
    for cls in models():
        assert issubclass(cls, Model)
        Draft4Validator.check_schema(cls.json_schema())


def test_every_member_says_what_holds_without_it() -> None:
    for cls in models():
        for field in members_of(cls).values():
            about = describe(cls, field.name)
            assert about.text, f"{cls.__name__}.{field.name}"
            # an absent member of a features document says nothing, and their classes say so
            assert field.required or about.default or "Required" in about.text or cls.NULLABLE, f"{cls.__name__}.{field.name}"


def test_every_class_and_enumeration_is_exported() -> None:
    names = {cls.__name__ for cls in models()}
    names |= {
        field.kind.item.__name__ for cls in models() for field in members_of(cls).values() if issubclass(field.kind.item, OpenEnum)
    }
    assert names <= set(spec.__all__)
    assert all(hasattr(spec, name) for name in spec.__all__)


# ---- against the text ----

PAGES = (
    "config config-linux config-vm config-windows config-solaris config-zos config-freebsd features features-linux runtime".split()
)
VALUES = set("private shared slave unbindable seccompFd time ipc uts raw qcow2 vdi vmdk vhd".split())
"""Words that the text sets as members are, and which are values."""


@pytest.mark.parametrize("page", PAGES)
def test_the_model_has_every_member_that_the_text_has(page: str) -> None:
    keys = {field.key for cls in models() for field in members_of(cls).values()}
    text = (RUNTIME_SPEC / f"{page}.md").read_text()
    bold = [
        word.strip()
        for part in re.findall(r"\*\*([^*]+)\*\*", text)
        for names in re.findall("`([^`]+)`", part)
        for word in names.split(",")
    ]
    assert len(bold) > (0 if page in ("config-zos", "features") else 4)
    assert set(bold) - VALUES <= keys


def test_every_section_that_is_named_exists() -> None:
    headings = {
        f"{path.name}#{re.sub(r'[^a-z0-9 _-]', '', re.sub('<[^>]*>', '', line).strip().lower()).replace(' ', '-')}"
        for path in RUNTIME_SPEC.glob("*.md")
        for line in re.findall("^#+ (.*)$", path.read_text(), re.MULTILINE)
    }
    named = {section(cls, member) for cls in models() for member in ("", *members_of(cls))}
    for path in Path(spec.__file__).parent.rglob("*.py"):
        named |= set(re.findall(r"[a-z-]+\.md#[\w-]+", path.read_text()))
    assert len(named) > 80
    assert named - headings == {"config.md#section"}  # an example in a docstring


@pytest.mark.parametrize("name", CLASSES)
def test_both_schemas_say_the_same(official: Resolver, name: str) -> None:
    """Every object, member, type, limit, pattern and value of the official schema is in that of the class, and nothing more."""
    ours = CLASSES[name].json_schema()
    assert Resolver({"": ours}).plain(ours, "") == official.plain(official.documents[name], name)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*/*/*.json")), ids=lambda path: "-".join(path.parts[-3:]))
def test_the_official_vectors(official: Resolver, path: Path) -> None:
    kind, verdict = path.parts[-3:-1]
    cls = CLASSES[f"{kind}-schema.json"]
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        with pytest.raises(SpecError):
            cls.load(path)
        assert verdict == "bad"
        return
    for validator in validators(official, f"{kind}-schema.json"):
        assert validator.is_valid(document) is (verdict == "good")
    if verdict == "good":
        assert cls.load(path).to_dict() == document
    else:
        assert any(problem.severity == "error" for problem in cls.check(path))


# ---- documents that have everything, and what becomes of them ----

SAMPLES = {
    "^[0-9, -]*$": "0-3,7",
    "^[1-9][0-9]*[KMG]B$": "2MB",
    "^MB:[^\\n]*$": "MB:0=70",
    "^RLIMIT_[A-Z]+$": "RLIMIT_CORE",
    "^[cbup]$": "c",
    "^CAP_[A-Z_]+$": "CAP_KILL",
}
JUNK: list[Any] = [
    None, True, False, -(1 << 63) - 1, -(1 << 31) - 1, -1, 0, 1, 511, 512, 1 << 16, 1 << 32, 1 << 63, 1 << 64, 1.5, "", "x", "4MB\n",
    "CAP_", "RLIMIT_NO", "MB:\n", [], [None], ["x"], [{}], {}, {"": 0}, {"x": "y"}, {"x": {}}, {"type": "pid", "path": 0},
]  # fmt: skip


def complete(schema: Schema) -> Any:
    """A document with every member of a plain schema."""
    match schema.get("type"):
        case "object":
            created = {key: complete(inner) for key, inner in schema.get("properties", {}).items()}
            inner = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
            return created | ({"some.key": complete(inner)} if inner else {})
        case "array":
            return [complete(schema["items"]), complete(schema["items"])]
        case "string":
            return schema["enum"][-1] if "enum" in schema else SAMPLES[schema["pattern"]] if "pattern" in schema else "/text"
        case "integer":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case other:
            raise AssertionError(other)


def places(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document but the top."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*way, key)
        yield from places(item, (*way, key))


def mutated(document: Any, way: tuple[str | int, ...], change: random.Random) -> Any:
    """The document reduced to what is on the way, its siblings and required members, and changed there."""
    created = json.loads(json.dumps(document))
    inside = created
    for depth, step in enumerate(way[:-1]):
        if depth < 2 and isinstance(inside, dict):  # small documents are checked fast
            for key in [key for key in inside if key not in (step, "ociVersion", "kernel", "layerFolders", "cwd", "ociVersionMin",
                                                             "ociVersionMax", "id", "status", "bundle", "defaultAction")]:  # fmt: skip
                del inside[key]
        inside = inside[step]
    last = way[-1]
    what = change.randrange(8)
    if what == 0:
        del inside[last]
    elif what == 1 and isinstance(inside, dict):
        inside["unknown"] = change.choice(JUNK)
    elif what == 2 and isinstance(inside[last], int | float):
        inside[last] += change.choice((-1, 1, 0.5, 1 << 8, 1 << 16, 1 << 31, -(1 << 31), 1 << 63, -(1 << 64)))
    elif what == 3 and isinstance(inside[last], str):
        inside[last] = change.choice(
            (inside[last].lower(), inside[last] + "_", inside[last] + "\n", inside[last][1:], [inside[last]])
        )
    else:
        inside[last] = change.choice(JUNK)
    return created


@pytest.mark.parametrize("name", CLASSES)
def test_both_schemas_judge_mutated_documents_alike(official: Resolver, name: str) -> None:
    theirs, ours = validators(official, name)
    cls = CLASSES[name]
    document = complete(official.plain(official.documents[name], name))
    assert theirs.is_valid(document)
    assert cls.load(document).to_dict() == document
    change = random.Random(name)
    everywhere = list(places(document))
    verdicts = {True: 0, False: 0}
    for way in everywhere * max(1, (4000 if cls is RuntimeSpec else 1000) // len(everywhere)):
        created = mutated(document, way, change)
        verdict = theirs.is_valid(created)
        assert ours.is_valid(created) is verdict, (way, created)
        # What the schema takes loads, but for what the text of the spec demands beyond: more members, a clock's offset that is an
        # object, an annotation's name.
        for problem in unloadable(cls, created) if verdict else ():
            demanded = "missing and required" in problem.message or "timeOffsets." in problem.path
            assert demanded or problem.path.endswith("['']"), (way, created, problem)
        verdicts[verdict] += 1
    assert sum(verdicts.values()) >= (3500 if cls is RuntimeSpec else 900)
    assert min(verdicts.values()) > sum(verdicts.values()) // 5


def unloadable(cls: type[Model], document: Any) -> tuple[Problem, ...]:
    """Why a document does not load. One that does comes out as it went in."""
    try:
        loaded = cls.load(document)
    except SpecError as error:
        return error.problems
    assert loaded.to_dict() == document
    return ()


def test_the_complete_document_reaches_every_class() -> None:
    reached = {cls for root in CLASSES.values() for cls in reachable(root)}
    assert reached | {cls for cls in models() if cls.__name__ == "ContainerProcessState"} == set(models())


def reachable(cls: type[Record]) -> set[type[Record]]:
    found: set[type[Record]] = {cls}
    for field in members_of(cls).values():
        if field.kind.record is not None:
            found |= reachable(field.kind.record)
    return found

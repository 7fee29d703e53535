"""What the document classes share: `Problem`, JSON values, immutable mappings, open enumerations, number ranges, values with a
syntax of their own, and `Record`, their base.

A record is an attrs class whose instances keep their members in ``__dict__`` in the order of the document, so that a document is
written as it was read. Comparison, hashing and checking of members are implemented once, here: generating them for each class would
double the time that a process needs for its first document.
"""

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Generic, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

import attrs

from .._lazy import HtmlRepr
from ..arguments import check_mapping, closest, printable, shown

V = TypeVar("V")
T = TypeVar("T", bound="Record")

# ---- problems ----


@attrs.frozen
class Problem:
    """Something wrong with a document."""

    path: str
    """Where, as a JSON path: ``$.linux.namespaces[2].type``."""
    message: str = attrs.field(converter=printable)
    """What is wrong there, and what would be right. What is not printable in a value of the document is escaped."""
    section: str = ""
    """The section of the runtime spec that says so, e.g. ``config-linux.md#namespaces``."""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        rule = f" ({self.section})" if self.section else ""
        return f"{self.path}: {self.message}{rule}"


class Problems(HtmlRepr, tuple[Problem, ...]):
    """The problems of a document, as a tuple that notebooks show as a table."""

    __slots__ = ()


# ---- JSON values ----

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
FrozenJson = None | bool | int | float | str | tuple["FrozenJson", ...] | Mapping[str, "FrozenJson"]
"""An immutable JSON value: arrays are tuples, objects are `FrozenMap`."""


class FrozenMap(Mapping[str, V], Generic[V]):
    """An immutable mapping, equal and hashable by value. Iteration follows the order of the document."""

    __slots__ = ("_items",)
    _items: dict[str, V]

    def __init__(self, items: Mapping[str, V] | Iterable[tuple[str, V]] = (), /) -> None:
        try:
            object.__setattr__(self, "_items", dict(items))
        except (TypeError, ValueError) as error:
            raise type(error)(f"items is {shown(items)}: a mapping or pairs are needed ({error})") from None

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot change {name}: a FrozenMap is immutable")

    def __or__(self, other: Mapping[str, V]) -> "FrozenMap[V]":
        return FrozenMap({**self._items, **other})

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> "tuple[type[FrozenMap[V]], tuple[dict[str, V]]]":
        return type(self), (self._items,)


EMPTY: Final[FrozenMap[FrozenJson]] = FrozenMap()


_MAX_DEPTH: Final = 100
"""Levels of a JSON value. What handles documents calls itself for each level."""


def freeze(value: object, depth: int = _MAX_DEPTH) -> object:
    """Return a value with every list as a tuple and every mapping as a `FrozenMap`, at all levels.

    Raises:
        RecursionError: it has more than ``depth`` levels.
    """
    if isinstance(value, list | tuple):
        if not depth:
            raise RecursionError
        return tuple([freeze(item, depth - 1) for item in value])
    if isinstance(value, Mapping):
        if not depth:
            raise RecursionError
        return FrozenMap({key: freeze(item, depth - 1) for key, item in value.items()})
    return value


def json_path(path: str, key: str) -> str:
    """Return the JSON path of a member: ``$.linux.sysctl['net.ipv4.ip_forward']``."""
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"


def json_text(value: object) -> str:
    """Return how a message names a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return f"the string {value[:60]!r}" if isinstance(value, str) else f"the number {str(value)[:60]}"


# ---- plain types ----


class OpenEnum(StrEnum):
    """An enumeration of strings that accepts values which it does not define, because a later spec may define them."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value
        member._value_ = value
        return member

    @property
    def known(self) -> bool:
        """Whether the runtime spec defines this value."""
        return self._value_ in type(self)._value2member_map_

    # An undefined value is a new object each time: it is copied and unpickled by value, not by its name in the enumeration.
    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[str]]:
        return type(self), (self._value_,)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self


class Constraint(NamedTuple):
    """Limits of a number or string. The codec enforces ``range``, `Model.validate` the others, as the JSON Schema does."""

    range: tuple[int, int] | None = None
    schema_minimum: int | None = None
    schema_maximum: int | None = None
    pattern: str | None = None


UNCONSTRAINED: Final = Constraint()
Uint8 = Annotated[int, Constraint(range=(0, 255))]
Uint16 = Annotated[int, Constraint(range=(0, 65535))]
Uint32 = Annotated[int, Constraint(range=(0, (1 << 32) - 1))]
Uint64 = Annotated[int, Constraint(range=(0, (1 << 64) - 1))]
Int32 = Annotated[int, Constraint(range=(-(1 << 31), (1 << 31) - 1))]
Int64 = Annotated[int, Constraint(range=(-(1 << 63), (1 << 63) - 1))]
FileMode = Annotated[int, Constraint(range=(0, (1 << 32) - 1), schema_maximum=0o777)]
"""Permission bits, decimal in JSON: 0o666 is 438. Only the schema refuses file type bits: engines set them, too."""
PositiveInt = Annotated[int, Constraint(schema_minimum=1)]
NonNegativeInt = Annotated[int, Constraint(schema_minimum=0)]
CPUList = Annotated[str, Constraint(pattern="^[0-9, -]*$")]
"""CPUs or memory nodes: ``0-3,7``."""
PageSize = Annotated[str, Constraint(pattern="^[1-9][0-9]*[KMG]B$")]
"""Size of a huge page: ``2MB``."""
MemoryBandwidth = Annotated[str, Constraint(pattern="^MB:[^\\n]*$")]
"""A line that starts with ``MB:``."""
CapabilityName = Annotated[str, Constraint(pattern="^CAP_[A-Z_]+$")]
"""Name of a capability: ``CAP_KILL``."""


# ---- members ----


class Kind(NamedTuple):
    """The type of a member: one value, or an array (``tuple``) or object (``Mapping``) of values."""

    outer: Literal["", "tuple", "Mapping"]
    item: type
    """Class of the value or of each item: str, int, bool, an `OpenEnum`, a `Record`, or object for any JSON value."""
    constraint: Constraint = UNCONSTRAINED

    @property
    def record(self) -> "type[Record] | None":
        """The class of the value or of each item, if it is a record."""
        return self.item if issubclass(self.item, Record) else None

    @property
    def inner(self) -> "Kind":
        """The type of one item."""
        return self._replace(outer="")


class Member:
    """One member of a record class."""

    __slots__ = ("_kind", "_owner", "alias", "annotation", "key", "name", "required")

    def __init__(self, owner: "type[Record]", attribute: "attrs.Attribute[object]") -> None:
        self.name: Final = attribute.name
        self.key: Final[str] = attribute.metadata.get("key") or camel_case(attribute.name)
        self.alias: Final[str] = attribute.metadata.get("alias") or self.key
        """Another name in JSON that is read like ``key``, if ``key`` is absent."""
        self.required: Final = attribute.default is attrs.NOTHING
        self.annotation: Final[object] = attribute.type
        self._owner = owner
        self._kind: Kind | None = None

    @property
    def kind(self) -> Kind:
        """The type. A class that is named in quotes is imported now, from the module of the class that has the member."""
        if self._kind is None:
            self._kind = _kind(self.value_type)
        return self._kind

    @property
    def value_type(self) -> object:
        """The type as annotated, without ``| None``."""
        if not isinstance(self.annotation, str):
            return _required_type(self.annotation)
        home = next(base for base in self._owner.__mro__ if self.name in getattr(base, "__annotations__", ()))  # its own alone
        return getattr(sys.modules[home.__module__], self.annotation.removesuffix(" | None"))


def _required_type(annotation: object) -> object:
    options = [option for option in get_args(annotation) if option is not type(None)]
    return options[0] if len(options) == 1 and type(None) in get_args(annotation) else annotation


def _kind(annotation: object) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return _kind(arguments[0])._replace(outer="tuple")
    if origin is Mapping:
        return _kind(arguments[1])._replace(outer="Mapping")
    if origin is Annotated:
        return Kind("", arguments[0], arguments[1])
    return Kind("", annotation if isinstance(annotation, type) else object)


def camel_case(name: str) -> str:
    """Return the JSON key of an attribute: ``no_new_privileges`` is ``noNewPrivileges``."""
    head, *rest = name.rstrip("_").split("_")
    return head + "".join([word.capitalize() for word in rest])


_MEMBERS: Final[dict[type, dict[str, Member]]] = {}


def members_of(cls: "type[Record]") -> Mapping[str, Member]:
    """Return the members of a class by attribute name, without ``extensions``."""
    found = _MEMBERS.get(cls)
    if found is None:
        attributes = [attribute for attribute in attrs.fields(cls) if attribute.name != "extensions"]
        found = _MEMBERS[cls] = {attribute.name: Member(cls, attribute) for attribute in attributes}
    return found


# ---- records ----


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Record:
    """Members of one JSON object. Immutable; equal and hashable by value.

    Members are given by name. A member that is absent in JSON is None; one that is present and empty is an empty tuple or mapping.
    Lists and dicts become tuples and `FrozenMap`, strings become members of an enumeration.

    Raises:
        TypeError: a member is unknown, missing or of another type.
    """

    __slots__ = ("__dict__", "__weakref__", "_hash")

    extensions: Mapping[str, FrozenJson] = EMPTY
    """Members that the runtime spec does not define, unchanged."""

    NULLABLE: ClassVar[bool] = False
    """Whether null means that an optional member is absent."""

    MISSING: ClassVar[str] = "is missing and required"
    """The problem of a document without a required member."""

    def __new__(cls, **members: object) -> Self:
        if members and not members.keys() <= members_of(cls).keys() | {"extensions"}:
            raise unknown_member(cls, members)
        return object.__new__(cls)

    def __attrs_post_init__(self) -> None:
        _check(self)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        try:
            value: int = object.__getattribute__(self, "_hash")
        except AttributeError:
            value = hash((type(self), frozenset(vars(self).items())))
            object.__setattr__(self, "_hash", value)
        return value

    def __getstate__(self) -> dict[str, object]:
        return vars(self)  # without the hash, which differs between processes

    def __repr__(self) -> str:
        whole = _repr(self)
        return whole if len(whole) <= _MAX_REPR else _outline(self, 1)


def present(value: Record) -> dict[str, object]:
    """Return the members of a record that are present, in their order, and ``extensions`` unless it is empty."""
    members = {name: member for name, member in vars(value).items() if member is not None}
    extensions = members.pop("extensions")
    if extensions:
        members["extensions"] = extensions  # last, as they are written
    return members


def evolved(value: T, changes: Mapping[str, object]) -> T:
    """Return a copy of a record with some members changed. See `Model.evolve`."""
    cls = type(value)
    if not changes.keys() <= vars(value).keys():
        raise unknown_member(cls, changes)
    record = object.__new__(cls)
    vars(record).update(vars(value), **changes)
    _check(record)
    return record


def unknown_member(cls: type[Record], members: Iterable[str]) -> TypeError:
    """Return the error for the first of these names that is not a member of a class."""
    known = members_of(cls)
    name = next(name for name in members if name not in known and name != "extensions")
    by_key = {member.key: member.name for member in known.values()}
    close = by_key.get(name) or closest(name, known)
    hint = f"; did you mean {close!r}?" if close else ""
    return TypeError(f"{cls.__name__} has no member {name!r}{hint}")


def _check(record: Record) -> None:
    """Check the members of a record that is being made, and replace mutable values by immutable ones."""
    cls, members = type(record), vars(record)
    for name, member in members_of(cls).items():
        value = members[name]
        if value is not None:
            members[name] = _checked(member, value, cls)
        elif member.required:
            raise TypeError(f"{cls.__name__} needs {name}")
    if members["extensions"] is not EMPTY:
        check_mapping(f"{cls.__name__}.extensions", members["extensions"])
        members["extensions"] = _frozen(f"{cls.__name__}.extensions", members["extensions"])


def _checked(member: Member, value: object, owner: type) -> object:
    kind = member.kind
    if kind.item is object:
        return _frozen(f"{owner.__name__}.{member.name}", value)
    if kind.outer == "tuple":
        # A str is also a sequence, and args="sh" is a common mistake.
        if not isinstance(value, list | tuple):
            raise TypeError(f"{owner.__name__}.{member.name} takes a tuple, not {shown(value)}")
        return tuple([_checked_item(member, kind.item, item, owner) for item in value])
    if kind.outer == "Mapping":
        if not isinstance(value, Mapping):
            raise TypeError(f"{owner.__name__}.{member.name} takes a mapping, not {shown(value)}")
        check_mapping(f"{owner.__name__}.{member.name}", value)
        return FrozenMap({key: _checked_item(member, kind.item, item, owner) for key, item in value.items()})
    return _checked_item(member, kind.item, value, owner)


def _frozen(name: str, value: object) -> object:
    try:
        return freeze(value)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply: at most {_MAX_DEPTH} levels are allowed") from None


def _checked_item(member: Member, item: type, value: object, owner: type) -> object:
    if isinstance(value, item) and not (item is int and isinstance(value, bool)):
        return value
    if type(value) is str and issubclass(item, OpenEnum):
        return item(value)
    raise TypeError(f"{owner.__name__}.{member.name} takes {item.__name__}, not {shown(value)}")


def section_of(cls: type[Record]) -> str:
    """Return the section of the runtime spec that describes a class: the last one that its docstring names."""
    named: list[str] = re.findall(r"\(([a-z-]+\.md#[\w-]+)\)", cls.__doc__ or "")
    return named[-1] if named else ""


# ---- representation ----

_MAX_REPR: Final = 160
"""Length up to which a representation is complete."""


def _repr(value: object) -> str:
    if isinstance(value, Record):
        return f"{type(value).__name__}({', '.join(f'{name}={_repr(member)}' for name, member in present(value).items())})"
    if isinstance(value, tuple):
        items = ", ".join(map(_repr, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_repr(item)}" for key, item in value.items()) + "}"
    if isinstance(value, OpenEnum):
        return f"{type(value).__name__}.{value.name}" if value.known else f"{type(value).__name__}({value.value!r})"
    return repr(value)


def _outline(value: object, depth: int) -> str:
    if isinstance(value, Record):
        members = present(value)
        if not depth and members:
            return f"{type(value).__name__}(…)"
        shown = ", ".join(f"{name}={_outline(member, depth - 1)}" for name, member in members.items())
        return f"{type(value).__name__}({shown})"
    whole = _repr(value)
    if len(whole) <= 60:
        return whole
    if isinstance(value, tuple | Mapping):
        return f"<{len(value)} {'items' if isinstance(value, tuple) else 'keys'}>"
    return f"{whole[:56]}…{whole[-1]}"


# ---- mounts ----


def destination_in_root(path: str) -> str:
    """Return a mount destination as an absolute path without dots. A relative one is relative to ``/`` (config.md, Mounts)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies below it, by components. Both are absolute and without dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def split_option(option: str) -> list[str]:
    """Split an option at its commas, as mount(2) does with its data. A quoted or escaped comma does not count."""
    parts, start, quoted = [], 0, False
    for index, char in enumerate(option):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted and option[index - 1 : index] != "\\":
            parts.append(option[start:index])
            start = index + 1
    return [part for part in (*parts, option[start:]) if part]


# ---- lists of CPUs and memory nodes ----

_MAX_NUMBER: Final = 1 << 16


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Return the first and last number of each range in a list such as ``0-3,7``.

    Raises:
        ValueError: the text is not such a list, or has a number of 65536 or above.
    """
    found = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        if not all(word.isascii() and word.isdigit() for word in (first, last)) or not int(first) <= int(last) < _MAX_NUMBER:
            raise ValueError(f"{shown(text)} is not a list such as 0-3,7")
        found.append((int(first), int(last)))
    return found


# ---- kernel parameters (config-linux.md#sysctl) ----

_IPC: Final = "msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced"
_BY_NAME: Final = {f"kernel.{name}": "ipc" for name in _IPC.split()} | {"kernel.domainname": "uts", "kernel.hostname": "uts"}
_BY_PREFIX: Final = {"net.": "network", "fs.mqueue.": "ipc"}
_SWAP: Final = str.maketrans("./", "/.")


def sysctl_path(key: str) -> str:
    """Return the path of a parameter below /proc/sys. Its name has dots as in sysctl(8), or is a path already."""
    return key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)


def sysctl_namespace(key: str) -> str | None:
    """Return the type of the namespace that a parameter belongs to, or None if it belongs to the whole host."""
    name = sysctl_path(key).translate(_SWAP)
    return _BY_NAME.get(name) or next((kind for prefix, kind in _BY_PREFIX.items() if name.startswith(prefix)), None)

"""One document laid over another.

Objects and mappings are merged member by member, and a null in a mapping of JSON values takes the member away, as in a JSON merge
patch (RFC 7386). Arrays whose items have a natural key are merged by it, the new item in the place of the old one and others at the
end; every other array is replaced whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from .base import Json, Model
from .codec import plain, structure, unstructure_object
from .fields import Kind, fields_of

M = TypeVar("M", bound=Model)


def _member(key: str) -> Callable[[Json], object]:
    return lambda item: item.get(key) if isinstance(item, dict) else None


def _env_name(item: Json) -> object:
    return item.partition("=")[0] if isinstance(item, str) else None


def _number(item: Json) -> object:
    return (item.get("major"), item.get("minor")) if isinstance(item, dict) else None


_NATURAL: Final[dict[tuple[str, str], Callable[[Json], object]]] = {
    ("RuntimeSpec", "mounts"): _member("destination"),
    ("Process", "env"): _env_name,
    ("Process", "rlimits"): _member("type"),
    ("Linux", "namespaces"): _member("type"),
    ("Linux", "devices"): _member("path"),
    ("Resources", "hugepage_limits"): _member("pageSize"),
    ("Network", "priorities"): _member("name"),
    ("BlockIO", "weight_device"): _number,
    ("BlockIO", "throttle_read_bps_device"): _number,
    ("BlockIO", "throttle_write_bps_device"): _number,
    ("BlockIO", "throttle_read_iops_device"): _number,
    ("BlockIO", "throttle_write_iops_device"): _number,
    ("ZOS", "namespaces"): _member("type"),
}


def merge(base: M, over: M | Mapping[str, Json]) -> M:
    """``base`` with ``over`` laid over it; ``over`` may be a part of a document.

    Raises:
        SpecError: what comes out is not a document of the class of ``base``.
    """
    patch = plain(over)
    if not isinstance(patch, dict):
        raise TypeError(f"an object of the model or a mapping expected, not {type(over).__name__}")
    return structure(type(base), _object(type(base), unstructure_object(base), patch), "merge")


def _object(cls: type[Model] | None, base: Json, over: dict[str, Json]) -> dict[str, Json]:
    made = dict(base) if isinstance(base, dict) else {}
    fields = {field.key: field for field in fields_of(cls).values()} if cls else {}
    for key, value in over.items():
        field = fields.get(key)
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict):
            kind = field.kind if field else Kind("", "FrozenJson")
            made[key] = (
                _mapping(kind, made.get(key), value) if kind.outer == "Mapping" else _object(kind.model, made.get(key), value)
            )
        else:
            natural = _NATURAL.get((cls.__name__, field.name)) if cls and field else None
            made[key] = _array(natural, made.get(key), value) if natural else value
    return made


def _mapping(kind: Kind, base: Json, over: dict[str, Json]) -> Json:
    made = dict(base) if isinstance(base, dict) else {}
    for key, value in over.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _object(kind.model, made.get(key), value) if isinstance(value, dict) else value
    return made


def _array(natural: Callable[[Json], object], base: Json, over: Json) -> Json:
    if not isinstance(base, list) or not isinstance(over, list):
        return over
    made = list(base)
    for item in over:
        key = natural(item)
        places = [index for index, old in enumerate(made) if key is not None and natural(old) == key]
        if places:
            made[places[-1]] = item
        else:
            made.append(item)
    return made

"""Display of an image: a line, a text table, an HTML table, JSON values. All text from the image is escaped."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from ociruntime.image.sif.model import (
    CryptoMessage,
    Descriptor,
    Header,
    JsonObject,
    JsonValue,
    Metadata,
    OciObject,
    Partition,
    Sbom,
    Signature,
    label,
    to_datetime,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS = ("id", "group", "link", "type", "offset", "size", "name", "details")


def printable(text: str) -> str:
    """Escape control characters, line ends, direction marks and undecodable bytes."""
    return "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else ascii(c)[1:-1] for c in text)


def size_text(size: int) -> str:
    """Return a number of bytes as text: ``1.9 MiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def link_text(item: Descriptor) -> str:
    """Return the link of an object: ``object 1``, ``group 1`` or an empty string."""
    if item.linked_group is not None:
        return f"group {item.linked_group}"
    return f"object {item.linked_object}" if item.linked_object is not None else ""


def details(metadata: Metadata | None) -> str:
    match metadata:
        case None:
            return ""
        case Partition():
            return f"{label(metadata.filesystem)}, {label(metadata.kind)}, {label(metadata.architecture)}"
        case Signature():
            signer = metadata.fingerprint
            return f"{label(metadata.hash)}, key {signer.hex()}" if signer else label(metadata.hash)
        case CryptoMessage():
            return f"{label(metadata.format)}, {label(metadata.kind)}"
        case Sbom():
            return label(metadata.format)
        case OciObject():
            return metadata.digest


def _row(item: Descriptor) -> tuple[str, ...]:
    return (
        str(item.id),
        "" if item.group is None else str(item.group),
        link_text(item),
        label(item.data_type),
        str(item.offset),
        str(item.size),
        printable(item.name),
        details(item.metadata),
    )


def summary(name: str, header: Header, count: int, primary: Descriptor | None, *, closed: bool) -> str:
    """Return the ``repr`` of an image."""
    parts = [label(header.architecture), f"{count} object{'' if count == 1 else 's'}"]
    if primary is not None and isinstance(primary.metadata, Partition):
        parts.append(f"{label(primary.metadata.filesystem)} root of {size_text(primary.size)}")
    if closed:
        parts.append("closed")
    return f"<SifImage {printable(name) or '(stream)'}: {', '.join(parts)}>"


def table(descriptors: Sequence[Descriptor]) -> str:
    """Return the objects as a plain text table."""
    rows = [_COLUMNS, *(_row(item) for item in descriptors)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def html(name: str, header: Header, descriptors: Sequence[Descriptor]) -> str:
    """Return the header's facts and the objects as an HTML table."""
    from html import escape

    facts = [
        ("architecture", label(header.architecture)),
        ("uuid", str(header.uuid or "")),
        ("created", _time(header.created_at) or ""),
        ("modified", _time(header.modified_at) or ""),
    ]
    known = ", ".join(f"{fact} {escape(value)}" for fact, value in facts if value)
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(item)) + "</tr>" for item in descriptors)
    caption = f"<caption>SIF image {escape(printable(name))}: {known}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _time(seconds: int) -> str | None:
    when = to_datetime(seconds)
    return when.isoformat().replace("+00:00", "Z") if when else None  # strftime does not pad years before 1000


def to_dict(name: str, header: Header, descriptors: Sequence[Descriptor]) -> JsonObject:
    """Return header and descriptors as JSON values."""
    objects: list[JsonValue] = [_descriptor_dict(item) for item in descriptors]
    return {"path": name, "header": _header_dict(header), "objects": objects}


def _header_dict(header: Header) -> JsonObject:
    return {
        "launchScript": header.launch_script,
        "version": header.version,
        "architecture": label(header.architecture),
        "uuid": str(header.uuid) if header.uuid else None,
        "created": _time(header.created_at),
        "modified": _time(header.modified_at),
        "descriptorsFree": header.descriptors_free,
        "descriptorsTotal": header.descriptors_total,
        "descriptorsOffset": header.descriptors_offset,
        "descriptorsSize": header.descriptors_size,
        "dataOffset": header.data_offset,
        "dataSize": header.data_size,
    }


def _descriptor_dict(item: Descriptor) -> JsonObject:
    return {
        "id": item.id,
        "type": label(item.data_type),
        "group": item.group,
        "linkedObject": item.linked_object,
        "linkedGroup": item.linked_group,
        "offset": item.offset,
        "size": item.size,
        "sizeWithPadding": item.size_with_padding,
        "created": _time(item.created_at),
        "modified": _time(item.modified_at),
        "name": item.name,
        "metadata": _metadata_dict(item.metadata),
    }


def _metadata_dict(metadata: Metadata | None) -> JsonObject | None:
    match metadata:
        case None:
            return None
        case Partition():
            return {
                "filesystem": label(metadata.filesystem),
                "kind": label(metadata.kind),
                "architecture": label(metadata.architecture),
            }
        case Signature():
            signer = metadata.fingerprint
            return {"hash": label(metadata.hash), "fingerprint": signer.hex() if signer else None}
        case CryptoMessage():
            return {"format": label(metadata.format), "kind": label(metadata.kind)}
        case Sbom():
            return {"format": label(metadata.format)}
        case OciObject():
            return {"digest": metadata.digest}

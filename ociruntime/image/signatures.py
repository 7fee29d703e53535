"""Signatures of SIF files: OpenPGP clear-signed messages, and DSSE envelopes with PEM keys. Verifying and making them.

The signed message is a JSON document with digests of the header, and of the descriptor and the data of each object of a group. The
libraries of the extra ``verify`` do the cryptography: pysequoia and cryptography, which are imported when a key needs them.
"""

import base64
import binascii
import enum
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar

import attrs

from ociruntime.arguments import check_str, check_type, optional, parse_path, printable
from ociruntime.errors import ImageError, SignatureError, SpecError, UnsupportedError
from ociruntime.image.blobs import MAX_DOCUMENT, hash_content, split_digest
from ociruntime.image.sif.model import DataType, Descriptor, HashKind, Signature
from ociruntime.image.sif.reader import SifImage
from ociruntime.image.sif.writer import SifBuilder, append_objects
from ociruntime.spec import codec
from ociruntime.spec.base import NonNegativeInt, Record

if TYPE_CHECKING:
    import datetime

    import pysequoia

    from .pem import PemKey, PemSigner

    Reason = Literal["unsigned", "changed", "unknown-key", "legacy", "invalid", "key"]

__all__ = ["Key", "SignatureFormat", "ValidSignature", "Verification", "sign", "verify_sif"]

R = TypeVar("R", bound=Record)

Key = str | os.PathLike[str] | bytes
"""A key: the path of its file, or the content of one."""

PAYLOAD_TYPE: Final = "application/vnd.sylabs.sif-metadata+json"
_BEGIN_MESSAGE: Final = b"-----BEGIN PGP SIGNED MESSAGE-----"
_BEGIN_SIGNATURE: Final = b"-----BEGIN PGP SIGNATURE-----"
_LEGACY: Final = b"SIFHASH:"
_HASHES: Final = {HashKind.SHA256: "SHA256", HashKind.SHA384: "SHA384", HashKind.SHA512: "SHA512"}
_MAX_SIGNATURES: Final = 64
"""Most signatures in one envelope."""
_FINGERPRINT: Final = 20
"""Bytes that a descriptor has for the fingerprint of an OpenPGP key."""


class SignatureFormat(enum.StrEnum):
    """How a message is signed."""

    PGP = "pgp"
    """An OpenPGP clear-signed message."""
    DSSE = "dsse"
    """A DSSE envelope, signed by an RSA, ECDSA or Ed25519 key."""


@attrs.frozen(kw_only=True)
class ValidSignature:
    """A signature that was found valid, over all objects of a group."""

    id: int
    """Id of the signature object in the file."""
    format: SignatureFormat
    fingerprint: str
    """Of the key: in hexadecimal for OpenPGP, as ``ssh-keygen -l`` prints it (``SHA256:...``) for another one."""
    signer: str
    """First user id of an OpenPGP key, or subject of a certificate; empty for a bare key."""
    key: str
    """The file of the key, as it was given; empty if its content was given."""
    group: int
    objects: tuple[int, ...]
    """Ids of the objects that it covers, which are all of the group."""

    def __str__(self) -> str:
        objects = f"object{'s' if len(self.objects) > 1 else ''} {', '.join(map(str, self.objects))}"
        by = f"{self.fingerprint} {printable(self.signer)}".rstrip()
        return f"signature {self.id} ({self.format}) by {by}: group {self.group}, {objects}"


@attrs.frozen(kw_only=True)
class Verification:
    """What `Image.verify` has found valid."""

    signatures: tuple[ValidSignature, ...] = ()
    """At least one for each group of a SIF file; none if no keys were given."""
    digests: tuple[str, ...] = ()
    """Digests of the layers of an OCI image or docker archive, which their content has."""


# ---- the signed message ----


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _SignedHeader(Record):
    digest: str


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _SignedObject(Record):
    relative_id: NonNegativeInt
    descriptor_digest: str
    object_digest: str


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _Message(Record):
    version: int
    header: _SignedHeader
    objects: tuple[_SignedObject, ...]


def _protected_header(sif: SifImage) -> bytes:
    """Return the launch script, magic, version and UUID."""
    raw = sif.header.raw
    return raw[:45] + raw[48:64]


def _protected_descriptor(item: Descriptor, relative_id: int) -> bytes:
    """Return the type, use, relative id, link, size, time of creation, uid, gid, name and extra of a descriptor."""
    raw = item.raw
    return raw[:5] + relative_id.to_bytes(4, "little") + raw[13:17] + raw[25:33] + raw[41:49] + raw[57:]


class _Digests:
    """Digests of an open image. Data is read once for each algorithm."""

    def __init__(self, sif: SifImage, count: Callable[[int], None] | None = None) -> None:
        self._sif = sif
        self._count = count
        self._data: dict[tuple[int, str], str] = {}

    def header(self, algorithm: str) -> str:
        return _digest(algorithm, _protected_header(self._sif))

    def descriptor(self, item: Descriptor, relative_id: int, algorithm: str) -> str:
        return _digest(algorithm, _protected_descriptor(item, relative_id))

    def data(self, item: Descriptor, algorithm: str) -> str:
        found = self._data.get((item.id, algorithm))
        if found is None:
            with self._sif.reader(item) as reader:
                found = f"{algorithm}:{hash_content(reader, algorithm, self._count)}"
            self._data[item.id, algorithm] = found
        return found


def _digest(algorithm: str, content: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


# ---- keys ----


@attrs.frozen
class _PgpKey:
    """An OpenPGP certificate."""

    certificate: "pysequoia.Cert"
    fingerprints: frozenset[str]
    """Fingerprints and key ids of its primary key and subkeys."""
    certified: float
    """Time of its oldest self-signature, in Unix seconds: nothing shows that the key was valid before."""
    name: str

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint

    @property
    def signer(self) -> str:
        return next((str(user) for user in self.certificate.user_ids), "")


@attrs.frozen
class _Keys:
    pgp: dict[str, _PgpKey]
    """By fingerprint."""
    pem: "dict[str, PemKey]"

    @classmethod
    def read(cls, keys: Iterable[Key]) -> "_Keys":
        """Read public keys. Raises SignatureError, UnsupportedError and OSError."""
        found = cls({}, {})
        for number, key in enumerate(keys):
            name, content = _read_key(f"keys[{number}]", key)
            if _is_pem(content):
                found.pem.update((one.fingerprint, one) for one in _load_pem().read_public_keys(content, name))
            else:
                found.pgp.update((one.fingerprint, one) for one in _pgp_keys(content, name))
        return found


def _read_key(argument: str, key: object) -> tuple[str, bytes]:
    """Return the name of a key's file, which is empty for a content, and the content."""
    if isinstance(key, bytes):
        return "", key
    check_type(argument, key, (str, os.PathLike), "the path of a key, or its content as bytes,")
    name = parse_path(argument, key)
    with open(name, "rb") as file:
        content = file.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise SignatureError(f"the file is larger than the limit of {MAX_DOCUMENT} bytes for a key", reason="key", path=name)
    return name, content


def _is_pem(content: bytes) -> bool:
    return b"-----BEGIN " in content and b"-----BEGIN PGP " not in content


def _refuse_key(name: str, message: str, cause: BaseException | None = None) -> NoReturn:
    raise SignatureError(message, reason="key", path=name or "key") from cause


def _missing(package: str, purpose: str, cause: ImportError) -> NoReturn:
    raise UnsupportedError(f"{purpose} need the package {package}: pip install 'ociruntime[verify]'") from cause


def _sequoia() -> Any:
    try:
        import pysequoia.packet
    except ImportError as error:
        _missing("pysequoia", "OpenPGP keys", error)
    return pysequoia


def _load_pem() -> "ModuleType":
    try:
        from . import pem
    except ImportError as error:
        _missing("cryptography", "PEM keys", error)
    return pem


def _pgp_keys(content: bytes, name: str) -> Iterator[_PgpKey]:
    sequoia = _sequoia()
    try:
        certificates: list[pysequoia.Cert] = sequoia.Cert.split_bytes(content)
        if not certificates:
            _refuse_key(name, "holds no key")
        for certificate in certificates:
            packets = list(sequoia.packet.PacketPile.from_bytes(bytes(certificate)))
            names = {item for packet in packets for item in (packet.fingerprint, packet.key_id) if item}
            primary = itertools.takewhile(lambda packet: packet.tag != sequoia.packet.Tag.PublicSubkey, packets)
            times = [packet.signature_created for packet in primary if packet.issuer_fingerprint == certificate.fingerprint]
            certified = min((time.timestamp() for time in times if time is not None), default=0.0)
            yield _PgpKey(certificate, frozenset(names), certified, name)
    except RuntimeError as error:
        _refuse_key(name, f"neither an OpenPGP key nor a PEM file: {_first_line(error)}", error)


def _first_line(error: BaseException) -> str:
    """Return the message of an error of pysequoia without its backtrace."""
    return str(error).partition("\n")[0].rstrip(".")


# ---- verifying ----


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _EnvelopeSignature(Record):
    sig: str
    keyid: str | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _Envelope(Record):
    payload_type: str
    payload: str
    signatures: tuple[_EnvelopeSignature, ...]


def verify_sif(sif: SifImage, keys: Iterable[Key], count: Callable[[int], None] | None = None) -> tuple[ValidSignature, ...]:
    """Verify the signatures of an open SIF file.

    Each object must be in a group, and each group must have a valid signature by one of the keys over the header and over the
    descriptors and data of all its objects. Signatures by other keys do not count, and do no harm.

    Args:
        sif: the file.
        keys: public keys that are trusted.
        count: called with the bytes of each piece that was read.

    Raises:
        SignatureError: that is not so, or a key cannot be used.
        UnsupportedError: a library is missing.
        OSError: a key or the image cannot be read.
    """
    return _Verifier(sif, _Keys.read(keys), count).verify()


class _Verifier:
    def __init__(self, sif: SifImage, keys: _Keys, count: Callable[[int], None] | None) -> None:
        self._sif = sif
        self._keys = keys
        self._digests = _Digests(sif, count)

    def verify(self) -> tuple[ValidSignature, ...]:
        check_grouped(self._sif)
        return tuple(valid for group in self._sif.groups for valid in self._verify_group(group))

    def _verify_group(self, group: int) -> list[ValidSignature]:
        objects = self._sif.find(group=group)
        ids = {item.id for item in objects}
        valid: list[ValidSignature] = []
        others: list[SignatureError] = []
        for item in self._sif.find(DataType.SIGNATURE):
            if item.linked_group != group and item.linked_object not in ids:
                continue
            try:
                valid += self._verify_signature(item, group, objects)
            except SignatureError as error:
                if error.reason not in ("unknown-key", "legacy"):
                    raise
                others.append(error)
        if not valid:
            if others:
                raise next((error for error in others if error.reason == "unknown-key"), others[0])
            raise SignatureError(f"group {group} is not signed", reason="unsigned", group=group, path=self._sif.name)
        return valid

    def _verify_signature(self, item: Descriptor, group: int, objects: Sequence[Descriptor]) -> Iterator[ValidSignature]:
        check = _SignatureCheck(self._sif, item, group)
        if item.linked_object is not None:
            check.refuse_legacy()
        content = check.read()
        signers: Sequence[PemKey | _PgpKey]
        if content.lstrip().startswith(b"{"):
            payload, signers = check.verify_dsse(content, self._keys)
            kind = SignatureFormat.DSSE
        else:
            payload, signers = check.verify_pgp(content, self._keys)
            kind = SignatureFormat.PGP
        check.compare(check.parse(_Message, payload), objects, self._digests)
        for key in signers:
            yield ValidSignature(
                id=item.id,
                format=kind,
                fingerprint=key.fingerprint,
                signer=key.signer,
                key=key.name,
                group=group,
                objects=tuple(item.id for item in objects),
            )


class _SignatureCheck:
    """The steps of verifying one signature object. Each raises SignatureError."""

    def __init__(self, sif: SifImage, item: Descriptor, group: int) -> None:
        self._sif = sif
        self._item = item
        self._group = group
        assert isinstance(item.metadata, Signature)  # the parser gives each signature its metadata
        self._metadata = item.metadata

    def refuse(self, reason: "Reason", message: str, *, object_id: int | None = None, fingerprint: str = "") -> NoReturn:
        raise SignatureError(
            message,
            reason=reason,
            signature=self._item.id,
            object_id=object_id,
            group=self._group,
            fingerprint=fingerprint,
            path=self._sif.name,
        )

    def refuse_legacy(self) -> NoReturn:
        self.refuse(
            "legacy",
            "a legacy signature, which protects the data but neither the header nor the descriptors; sign the image again",
            fingerprint=self._claimed,
        )

    @property
    def _claimed(self) -> str:
        """The fingerprint that the descriptor claims, which is not protected."""
        claimed = self._metadata.fingerprint
        return claimed.hex() if claimed is not None else ""

    def read(self) -> bytes:
        if self._metadata.hash not in _HASHES:
            self.refuse("invalid", f"the hash algorithm {self._metadata.hash!r} is not SHA-256, SHA-384 or SHA-512")
        if self._item.size > MAX_DOCUMENT:
            self.refuse("invalid", f"{self._item.size} bytes are more than the limit of {MAX_DOCUMENT}")
        return self._sif.read(self._item)

    def parse(self, cls: type[R], content: bytes) -> R:
        try:
            return codec.structure(cls, codec.parse(content))
        except SpecError as error:
            self.refuse("invalid", f"not a document as the format defines it: {error.problems[0]}")

    # ---- DSSE ----

    def verify_dsse(self, content: bytes, keys: _Keys) -> "tuple[bytes, list[PemKey]]":
        """Return the payload of an envelope and the keys by which it is signed."""
        envelope = self.parse(_Envelope, content)
        if envelope.payload_type != PAYLOAD_TYPE:
            self.refuse("invalid", f"the payload has the type {envelope.payload_type[:100]!r}, not {PAYLOAD_TYPE!r}")
        if len(envelope.signatures) > _MAX_SIGNATURES:
            self.refuse("invalid", f"more than {_MAX_SIGNATURES} signatures in one envelope")
        if any(self._metadata.entity):
            self.refuse("invalid", "the descriptor names an OpenPGP key, but the signature is a DSSE envelope")
        payload = self._decode(envelope.payload)
        signatures = [self._decode(item.sig) for item in envelope.signatures]
        message, algorithm = dsse_message(payload), _HASHES[HashKind(self._metadata.hash)]
        found = [key for key in keys.pem.values() if any(key.has_signed(message, item, algorithm) for item in signatures)]
        if not found:
            claimed = [item.keyid for item in envelope.signatures if item.keyid]
            if (known := next((item for item in claimed if item in keys.pem), None)) is not None:
                self.refuse("invalid", f"the signature by {known} is not valid", fingerprint=known)
            names = ", ".join(printable(item[:100]) for item in claimed) or "it does not say by which"
            self.refuse("unknown-key", f"not by a given key, but by: {names}", fingerprint=claimed[0][:100] if claimed else "")
        return payload, found

    def _decode(self, text: str) -> bytes:
        alternative = b"-_" if "-" in text or "_" in text else b"+/"
        try:
            content = base64.b64decode(text, altchars=alternative, validate=True)
        except (binascii.Error, ValueError) as error:
            self.refuse("invalid", f"not base64: {error}")
        if base64.b64encode(content, altchars=alternative).decode() != text:
            self.refuse("invalid", "base64 with stray bits at its end")
        return content

    # ---- OpenPGP ----

    def verify_pgp(self, content: bytes, keys: _Keys) -> tuple[bytes, list[_PgpKey]]:
        """Return the text of a clear-signed message and the key by which it is signed."""
        armored = self._armored_signature(content)
        text = content[: content.index(_BEGIN_SIGNATURE)].replace(b"\r\n", b"\n").partition(b"\n\n")[2]
        if text.startswith(_LEGACY):
            self.refuse_legacy()
        if not keys.pgp:
            self.refuse(
                "unknown-key", f"by the OpenPGP key {self._claimed}, and no OpenPGP key is given", fingerprint=self._claimed
            )
        sequoia = _sequoia()
        try:
            packets = list(sequoia.packet.PacketPile.from_bytes(armored))
            if len(packets) != 1 or packets[0].tag != sequoia.packet.Tag.Signature:
                self.refuse("invalid", "not one OpenPGP signature of one message")
            packet = packets[0]
            algorithm = packet.hash_algorithm
            issuer = packet.issuer_fingerprint or packet.issuer_key_id or self._claimed
            created = packet.signature_created
        except RuntimeError as error:
            self.refuse("invalid", f"damaged: {_first_line(error)}")
        if algorithm not in [getattr(sequoia.packet.HashAlgorithm, name) for name in _HASHES.values()]:
            self.refuse("invalid", f"the hash algorithm {algorithm} is not SHA-256, SHA-384 or SHA-512")
        try:
            result = sequoia.verify(bytes=content, store=lambda _: [key.certificate for key in keys.pgp.values()])
        except RuntimeError as error:
            self._refuse_pgp(created, issuer, keys, error)
        found = [keys.pgp[item.certificate] for item in result.valid_sigs if item.certificate in keys.pgp]
        if len(found) != 1 or result.bytes is None:
            self.refuse("invalid", "not one OpenPGP signature of one message", fingerprint=issuer)
        if bytes.fromhex(found[0].fingerprint) != self._metadata.entity.rstrip(b"\0").ljust(_FINGERPRINT, b"\0"):
            self.refuse(
                "invalid",
                f"by the key {found[0].fingerprint}, but the descriptor names {self._claimed or 'none'}",
                fingerprint=found[0].fingerprint,
            )
        return result.bytes, found

    def _armored_signature(self, content: bytes) -> bytes:
        """Return the armor of the signature. The object must be one clear-signed message and nothing else."""
        if not content.startswith(_BEGIN_MESSAGE):
            self.refuse("invalid", "neither an OpenPGP clear-signed message nor a DSSE envelope")
        begin = content.find(_BEGIN_SIGNATURE)
        rest = content[begin:].strip()
        if begin < 0 or content.count(b"-----BEGIN ") != 2 or not rest.endswith(b"-----END PGP SIGNATURE-----"):
            self.refuse("invalid", "not one OpenPGP clear-signed message")
        return rest

    def _refuse_pgp(self, created: "datetime.datetime | None", issuer: str, keys: _Keys, error: RuntimeError) -> NoReturn:
        """Say why pysequoia has refused a signature, which it does not."""
        known = next((key for key in keys.pgp.values() if issuer in key.fingerprints), None)
        if known is None:
            self.refuse("unknown-key", f"not by a given key, but by the OpenPGP key {issuer}", fingerprint=issuer)
        if created is not None and created.timestamp() < known.certified:
            self.refuse(
                "invalid",
                f"made on {created:%Y-%m-%d}, before the oldest self-signature in the given key {known.fingerprint}; "
                "get the key with its older self-signatures, or sign the image again",
                fingerprint=known.fingerprint,
            )
        self.refuse(
            "invalid",
            f"the signature by {known.fingerprint} is not valid, or the key was not valid then: {_first_line(error)}",
            fingerprint=known.fingerprint,
        )

    # ---- what is signed ----

    def compare(self, message: _Message, objects: Sequence[Descriptor], digests: _Digests) -> None:
        """Compare the image with the signed message."""
        if message.version != 1:
            self.refuse("invalid", f"the signed message has the version {message.version}; only 1 is known")
        first = min(item.id for item in objects)
        signed = {item.relative_id + first: item for item in message.objects}
        if len(signed) != len(message.objects):
            self.refuse("invalid", "the signed message lists an object twice")
        for item in objects:
            if item.id not in signed:
                self.refuse("unsigned", f"object {item.id} of group {self._group} is not signed", object_id=item.id)
        if gone := sorted(signed.keys() - {item.id for item in objects}):
            self.refuse("changed", f"object {gone[0]}, which was signed, is not in group {self._group}", object_id=gone[0])
        if digests.header(self._algorithm(message.header.digest)) != message.header.digest:
            self.refuse("changed", "the header has changed since it was signed")
        for item in objects:
            entry = signed[item.id]
            found = digests.descriptor(item, item.id - first, self._algorithm(entry.descriptor_digest))
            if found != entry.descriptor_digest:
                self.refuse("changed", f"the descriptor of object {item.id} has changed since it was signed", object_id=item.id)
            if digests.data(item, self._algorithm(entry.object_digest)) != entry.object_digest:
                self.refuse("changed", f"the data of object {item.id} has changed since it was signed", object_id=item.id)

    def _algorithm(self, digest: str) -> str:
        try:
            return split_digest(digest, "digest")[0]
        except ImageError as error:
            self.refuse("invalid", f"the signed message has a digest that is not SHA-2: {error}")


def check_grouped(sif: SifImage) -> None:
    """Refuse objects that no signature can cover, and an image without objects. Raises SignatureError."""
    loose = [item.id for item in sif.find() if item.group is None and item.data_type != DataType.SIGNATURE]
    if loose:
        message = f"object {loose[0]} is in no group, so no signature covers it"
        raise SignatureError(message, reason="unsigned", object_id=loose[0], path=sif.name)
    if not sif.groups:
        raise SignatureError("the image holds no objects that could be signed", reason="unsigned", path=sif.name)


def dsse_message(payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature covers (the pre-authentication encoding)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


# ---- signing ----


@attrs.frozen
class _Signer:
    """A private key with its certificate or public key."""

    pgp: "pysequoia.PySigner | None"
    pem: "PemSigner | None"
    fingerprint: str

    def sign(self, payload: bytes) -> tuple[bytes, HashKind]:
        """Return the content of a signature object, and the hash algorithm of the signature."""
        if self.pgp is not None:
            return self._sign_pgp(payload)
        assert self.pem is not None
        signature = base64.b64encode(self.pem.sign(dsse_message(payload))).decode()
        envelope = {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": self.fingerprint, "sig": signature}],
        }
        return json.dumps(envelope, separators=(",", ":")).encode(), HashKind.SHA256

    def _sign_pgp(self, payload: bytes) -> tuple[bytes, HashKind]:
        sequoia = _sequoia()
        signed: bytes = sequoia.sign(self.pgp, payload, mode=sequoia.SignatureMode.CLEAR)
        packet = next(iter(sequoia.packet.PacketPile.from_bytes(signed[signed.index(_BEGIN_SIGNATURE) :])))
        kinds = [kind for kind, name in _HASHES.items() if packet.hash_algorithm == getattr(sequoia.packet.HashAlgorithm, name)]
        if not kinds:
            raise SignatureError(f"the key signs with {packet.hash_algorithm}, not SHA-256, SHA-384 or SHA-512", reason="key")
        return signed, kinds[0]


def _read_signer(key: Key, password: str | None) -> _Signer:
    name, content = _read_key("key", key)
    if not _is_pem(content):
        return _pgp_signer(content, name, password)
    signer = _load_pem().read_private_key(content, name, password)
    return _Signer(None, signer, signer.fingerprint)


def _pgp_signer(content: bytes, name: str, password: str | None) -> _Signer:
    sequoia = _sequoia()
    try:
        secret = sequoia.Tsk.from_bytes(content)
        fingerprint: str = secret.extract_certificate().fingerprint
        signer = secret.signer(password)
    except RuntimeError as error:
        _refuse_key(name, f"not a private key that can be used: {_first_line(error)}", error)
    if len(fingerprint) != 2 * _FINGERPRINT:
        _refuse_key(name, f"the fingerprint {fingerprint} does not fit into a SIF file: use a key of OpenPGP version 4")
    return _Signer(signer, None, fingerprint)


def sign(path: str | os.PathLike[str], *, key: Key, password: str | None = None) -> tuple[int, ...]:
    """Sign a SIF file: add a signature of each of its groups.

    The signed file takes the place of the old one when it is complete and on disk; until then, and after an error or an
    interruption, the old one is unchanged.

    Args:
        path: the SIF or OCI-SIF file.
        key: the private key. An OpenPGP key makes a clear-signed message; an RSA, ECDSA or Ed25519 key in PEM a DSSE envelope.
        password: the password of the key.

    Returns:
        The ids of the new signature objects.

    Raises:
        SifError: the file is not a valid SIF file, or its table has no free entry.
        SignatureError: the key cannot be used, or an object of the image is in no group.
        UnsupportedError: a library is missing.
        OSError: a file cannot be read or written.
    """
    path = parse_path("path", path)
    optional(check_str, "password", password)
    signer = _read_signer(key, password)

    def signatures(sif: SifImage) -> SifBuilder:
        check_grouped(sif)
        builder, digests = SifBuilder(), _Digests(sif)
        for group in sif.groups:
            fingerprint = bytes.fromhex(signer.fingerprint) if signer.pgp is not None else b""
            content, kind = signer.sign(_message(sif, group, digests))
            builder.add_signature(content, hash_kind=kind, fingerprint=fingerprint, linked_group=group)
        return builder

    return append_objects(path, signatures)


def _message(sif: SifImage, group: int, digests: _Digests) -> bytes:
    """Return the message that a signature of a group signs."""
    objects = sorted(sif.find(group=group), key=lambda item: item.id)
    first = objects[0].id
    document = {
        "version": 1,
        "header": {"digest": digests.header("sha256")},
        "objects": [
            {
                "relativeId": item.id - first,
                "descriptorDigest": digests.descriptor(item, item.id - first, "sha256"),
                "objectDigest": digests.data(item, "sha256"),
            }
            for item in objects
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()

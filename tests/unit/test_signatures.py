"""Signatures of SIF files and digests of OCI images: what is valid verifies, and nothing else does."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli.parser import parse_args
from ociruntime.image import Image, SignatureFormat
from ociruntime.image.sif import DataType, Descriptor, Filesystem, HashKind, SifBuilder, SifImage
from ociruntime.image.sif import format as fmt

from ..support.images import SQUASHFS_TYPE, TAR_TYPE, OciImage, tar_of

sequoia = pytest.importorskip("pysequoia", reason="the extra 'verify' is not installed")
pytest.importorskip("cryptography", reason="the extra 'verify' is not installed")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

PAYLOAD_TYPE = "application/vnd.sylabs.sif-metadata+json"


def squashfs(size: int = 4096) -> bytes:
    head = bytearray(size)
    head[:4] = b"hsqs"
    struct.pack_into("<HHQQ", head, 28, 4, 0, 0, size)
    return bytes(head)


class Pair:
    """A private key and its public key, as files."""

    def __init__(self, directory: Path, name: str, private: bytes, public: bytes) -> None:
        self.private = directory / f"{name}.private"
        self.public = directory / f"{name}.public"
        self.private.write_bytes(private)
        self.public.write_bytes(public)


def pem_pair(directory: Path, name: str, private: Any, password: bytes | None = None) -> Pair:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return Pair(
        directory,
        name,
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def pgp_pair(directory: Path, name: str, **options: Any) -> Pair:
    options = {"profile": sequoia.Profile.RFC4880, **options}
    secret = sequoia.Tsk.generate(user_id=f"{name} <{name}@example.org>", **options)
    return Pair(directory, name, str(secret).encode(), str(secret.extract_certificate()).encode())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    directory = tmp_path_factory.mktemp("keys")
    return {
        "pgp": pgp_pair(directory, "alice"),
        "other-pgp": pgp_pair(directory, "mallory"),
        "pgp-rsa": pgp_pair(directory, "bob", cipher_suite=sequoia.CipherSuite.RSA2k),
        "rsa": pem_pair(directory, "rsa", rsa.generate_private_key(65537, 2048)),
        "ecdsa": pem_pair(directory, "ecdsa", ec.generate_private_key(ec.SECP256R1())),
        "p384": pem_pair(directory, "p384", ec.generate_private_key(ec.SECP384R1())),
        "ed25519": pem_pair(directory, "ed25519", ed25519.Ed25519PrivateKey.generate()),
    }


KINDS = ["pgp", "pgp-rsa", "rsa", "ecdsa", "p384", "ed25519"]
ONE_OF_EACH = ["pgp", "ed25519"]


def write_sif(path: Path, *, groups: int = 1, deterministic: bool = False) -> Path:
    builder = SifBuilder(deterministic=deterministic, capacity=8)
    builder.add_partition(squashfs(), filesystem=Filesystem.SQUASHFS, name="root")
    builder.add_labels({"a": "b"})
    if groups > 1:
        builder.add_generic(b"data of group 2", name="extra", group=2)
    builder.write(path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_sif(tmp_path / "image.sif")


def verify(path: Path, *trusted: Pair | Path | bytes) -> Any:
    with Image.open(path) as image:
        return image.verify([key.public if isinstance(key, Pair) else key for key in trusted])


def refused(path: Path, *trusted: Pair | Path | bytes, reason: str) -> oci.SignatureError:
    """Verify, and return the error of an image that is not valid."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(oci.SignatureError) as caught:
        verify(path, *trusted)
    assert caught.value.reason == reason, caught.value
    assert len(os.listdir("/proc/self/fd")) == before
    assert "\n" not in str(caught.value)
    return caught.value


def signature_of(path: Path) -> Descriptor:
    with SifImage.open(path) as sif:
        return sif.find(DataType.SIGNATURE)[-1]


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def entry(path: Path, index: int) -> int:
    """The offset of an entry of the table."""
    with SifImage.open(path) as sif:
        return sif.header.descriptors_offset + index * fmt.DESCRIPTOR.size


# ---- what is valid ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_image_verifies(kind: str, image: Path, keys: dict[str, Pair]) -> None:
    assert oci.sign(image, key=keys[kind].private) == (3,)
    found = verify(image, keys[kind])
    [valid] = found.signatures
    assert (valid.id, valid.group, valid.objects, valid.key) == (3, 1, (1, 2), str(keys[kind].public))
    assert valid.format is (SignatureFormat.PGP if kind.startswith("pgp") else SignatureFormat.DSSE)
    if kind == "pgp":
        assert valid.fingerprint == sequoia.Cert.from_file(str(keys[kind].public)).fingerprint
        assert valid.signer == "alice <alice@example.org>"
    assert "group 1, objects 1, 2" in str(valid)
    assert found.digests == ()
    assert pickle.loads(pickle.dumps(found)) == found


def test_keys_as_contents_and_several_in_a_file(image: Path, keys: dict[str, Pair]) -> None:
    oci.sign(image, key=keys["pgp"].private.read_bytes())
    oci.sign(image, key=keys["rsa"].private)
    pem = keys["ecdsa"].public.read_bytes() + keys["rsa"].public.read_bytes()
    pgp = keys["other-pgp"].public.read_bytes() + keys["pgp"].public.read_bytes()
    found = verify(image, pem, pgp)
    assert [(item.id, item.key) for item in found.signatures] == [(3, ""), (4, "")]
    assert [item.id for item in verify(image, keys["pgp"]).signatures] == [3], "signatures by other keys do no harm"
    binary = bytes(sequoia.Cert.from_file(str(keys["pgp"].public)))
    assert [item.id for item in verify(image, binary).signatures] == [3]


def test_certificates(image: Path, keys: dict[str, Pair], tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    oci.sign(image, key=pem_pair(tmp_path, "certified", private).private)
    now = datetime.datetime.now(datetime.UTC)

    def certificate(first: int, last: int, *, signs: bool = True) -> bytes:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "builder")])
        usage = x509.KeyUsage(signs, False, False, False, False, not signs, not signs, False, False)
        builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now + datetime.timedelta(days=first)).not_valid_after(
            now + datetime.timedelta(days=last)
        )
        return builder.add_extension(usage, critical=True).sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)

    [valid] = verify(image, certificate(-1, 1)).signatures
    assert valid.signer == "CN=builder"
    assert "pass its public key" in str(refused(image, certificate(-2, -1), reason="key"))
    refused(image, certificate(1, 2), reason="key")
    assert "digitalSignature" in str(refused(image, certificate(-1, 1, signs=False), reason="key"))


def test_password(image: Path, tmp_path: Path) -> None:
    pair = pem_pair(tmp_path, "secret", ed25519.Ed25519PrivateKey.generate(), b"letmein")
    for password in (None, "wrong"):
        with pytest.raises(oci.SignatureError) as caught:
            oci.sign(image, key=pair.private, password=password)
        assert caught.value.reason == "key"
        assert str(pair.private) in str(caught.value)
    oci.sign(image, key=pair.private, password="letmein")
    verify(image, pair)
    bare = pem_pair(tmp_path, "bare", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(oci.SignatureError, match="password is given, but the key is not encrypted"):
        oci.sign(image, key=bare.private, password="letmein")


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_every_group_is_signed_and_must_be(kind: str, tmp_path: Path, keys: dict[str, Pair]) -> None:
    path = write_sif(tmp_path / "groups.sif", groups=2)
    assert oci.sign(path, key=keys[kind].private) == (4, 5)
    assert [(item.group, item.objects) for item in verify(path, keys[kind]).signatures] == [(1, (1, 2)), (2, (3,))]
    patch(path, entry(path, 4) + 13, struct.pack("<I", fmt.GROUP_MASK | 1))  # the signature of group 2 says that it is of group 1
    error = refused(path, keys[kind], reason="unsigned")
    assert error.group == 1
    assert error.object_id == 1 or error.object_id == 2


def test_an_oci_sif_has_signatures_and_digests(tmp_path: Path, keys: dict[str, Pair]) -> None:
    oci_image = OciImage()
    oci_image.add([(squashfs(), SQUASHFS_TYPE)])
    path = oci_image.write_sif(tmp_path / "oci.sif")
    assert len(verify(path).digests) == 1
    refused(path, keys["pgp"], reason="unsigned")
    oci.sign(path, key=keys["pgp"].private)
    found = verify(path, keys["pgp"])
    assert (len(found.signatures), len(found.digests)) == (1, 1)


def test_the_signature_is_what_other_software_checks(image: Path, keys: dict[str, Pair]) -> None:
    """The message has the members of the format, with digests over the protected fields, computed here from the bytes of the file."""
    oci.sign(image, key=keys["rsa"].private)
    raw = image.read_bytes()
    with SifImage.open(image) as sif:
        item = sif.by_id(3)
        envelope = json.loads(sif.read(item))
        assert not any(item.metadata.entity)  # type: ignore[union-attr]
        assert (item.group, item.linked_group) == (None, 1)
        objects = [(raw[4096 + index * 585 :][:585], sif.read(sif.by_id(index + 1))) for index in range(2)]
    assert envelope["payloadType"] == PAYLOAD_TYPE
    payload = base64.b64decode(envelope["payload"])
    kind = PAYLOAD_TYPE.encode()
    message = b"DSSEv1 " + str(len(kind)).encode() + b" " + kind + b" " + str(len(payload)).encode() + b" " + payload
    public: Any = load_pem_public_key(keys["rsa"].public.read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message, padding.PKCS1v15(), hashes.SHA256())

    def digest(content: bytes) -> str:
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    launch, magic, version, _, uuid, *_ = struct.unpack_from("<32s10s3s3s16s", raw)
    entries = []
    for number, (descriptor, data) in enumerate(objects):
        kind_, used, _, _, link, _, size, _, created, _, uid, gid, name, extra = struct.unpack("<i?IIIqqqqqqq128s384s", descriptor)
        protected = struct.pack("<i?IIqqqq", kind_, used, number, link, size, created, uid, gid) + name + extra
        entries.append({"relativeId": number, "descriptorDigest": digest(protected), "objectDigest": digest(data)})
    expected = {"version": 1, "header": {"digest": digest(launch + magic + version + uuid)}, "objects": entries}
    assert json.loads(payload) == expected
    assert list(json.loads(payload)) == list(expected)


# ---- what is not ----


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_unknown_keys(kind: str, image: Path, keys: dict[str, Pair]) -> None:
    oci.sign(image, key=keys[kind].private)
    with Image.open(image) as opened:
        [valid] = opened.verify([keys[kind].public]).signatures
    for other in ("other-pgp", "rsa"):
        error = refused(image, keys[other], reason="unknown-key")
        assert error.signature == 3
        if kind != "pgp" or other == "rsa":
            assert error.fingerprint == valid.fingerprint
        assert error.fingerprint in str(error)


def test_not_signed(image: Path, keys: dict[str, Pair]) -> None:
    error = refused(image, keys["pgp"], reason="unsigned")
    assert (error.group, error.path) == (1, str(image))
    with Image.open(image) as opened, pytest.raises(ValueError, match="pass the public keys of the signers"):
        opened.verify()
    with Image.open(image) as opened, pytest.raises(TypeError, match=r"^keys is .*a list of keys is needed"):
        opened.verify(str(keys["pgp"].public))


def test_an_object_in_no_group(tmp_path: Path, keys: dict[str, Pair]) -> None:
    builder = SifBuilder()
    builder.add_partition(squashfs())
    builder.add_generic(b"loose", name="loose", group=None)
    builder.write(tmp_path / "loose.sif")
    assert refused(tmp_path / "loose.sif", keys["pgp"], reason="unsigned").object_id == 2
    with pytest.raises(oci.SignatureError, match="object 2 is in no group"):
        oci.sign(tmp_path / "loose.sif", key=keys["pgp"].private)


HEADER_BYTES = [*range(45), *range(48, 64)]
ENTRY_BYTES = [*range(5), *range(9, 17), *range(25, 33), *range(41, 49), *range(57, 585)]
"""What is protected: all but the id, which counts from the first object of its group, places, padding and the time of change."""


def mutations(path: Path) -> Iterator[tuple[str, int]]:
    """Every protected byte of the header, the entries and the signature's entry; bytes of all the data."""
    yield from (("header", offset) for offset in HEADER_BYTES)
    with SifImage.open(path) as sif:
        items = list(sif)
        table = sif.header.descriptors_offset
    for item in items:
        if item.data_type == DataType.SIGNATURE:
            yield from (("signature entry", table + item.index * 585 + place) for place in (*range(5), *range(9, 33)))
            yield from (("signature entry", table + item.index * 585 + 201 + place) for place in range(4, 260))
            continue
        yield from (("entry", table + item.index * 585 + place) for place in ENTRY_BYTES)
        yield from (("data", item.offset + place) for place in sorted({*range(0, item.size, 61), item.size - 1}))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_no_protected_byte_can_change(kind: str, tmp_path: Path, image: Path, keys: dict[str, Pair]) -> None:
    oci.sign(image, key=keys[kind].private)
    original = image.read_bytes()
    trusted = keys[kind].public.read_bytes()
    accepted = []
    changed = tmp_path / "changed.sif"
    changed.write_bytes(original)
    for what, offset in mutations(image):
        patch(changed, offset, bytes([original[offset] ^ 0x01]))
        try:
            with Image.open(changed) as opened:
                opened.verify([trusted])
            accepted.append((what, offset))
        except oci.ImageError:
            pass
        patch(changed, offset, original[offset : offset + 1])
    assert not accepted
    verify(changed, trusted)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_changed_signature_is_refused_or_says_the_same(kind: str, tmp_path: Path, image: Path, keys: dict[str, Pair]) -> None:
    """Each byte of the signature, with another bit changed each: armor has bytes without meaning, the message has none."""
    oci.sign(image, key=keys[kind].private)
    item = signature_of(image)
    original = image.read_bytes()
    content = original[item.offset : item.offset + item.size]
    trusted = keys[kind].public.read_bytes()
    expected = verify(image, trusted)
    changed = tmp_path / "changed.sif"
    changed.write_bytes(original)
    accepted = set()
    for place in range(item.size):
        patch(changed, item.offset + place, bytes([content[place] ^ (1 << place % 7)]))
        try:
            assert verify(changed, trusted) == expected
            accepted.add(place)
        except oci.ImageError:
            pass
        patch(changed, item.offset + place, content[place : place + 1])
    if kind == "pgp":
        begin, end = content.index(b"{"), content.index(b"\n-----BEGIN PGP SIGNATURE")
        armor = content.index(b"\n\n", end) + 2
        last = content.index(b"\n=", armor) - 1
        # The text, the hashed part and the numbers; between them lies the issuer, which is a hint, and behind them a checksum.
        signed = {*range(begin, end), *range(armor + 8, armor + 140), *range(last - 88, last)}
    else:
        envelope = json.loads(content)
        parts = [envelope["payload"].encode(), envelope["signatures"][0]["sig"].encode()]
        signed = {place for part in parts for place in range(content.index(part), content.index(part) + len(part))}
    damaged = accepted & {place for place in signed if content[place : place + 1] != b"\n"}
    assert not damaged


def test_what_changed_is_named(image: Path, keys: dict[str, Pair]) -> None:
    oci.sign(image, key=keys["pgp"].private)
    original = image.read_bytes()
    with SifImage.open(image) as sif:
        first, second = sif.by_id(1), sif.by_id(2)
    for offset, object_id, words in (
        (0, None, "the header has changed"),
        (entry(image, 1) + 73, 2, "the descriptor of object 2 has changed"),
        (first.offset + 200, 1, "the data of object 1 has changed"),
        (second.offset, 2, "the data of object 2 has changed"),
    ):
        patch(image, offset, bytes([original[offset] ^ 1]))
        error = refused(image, keys["pgp"], reason="changed")
        assert (error.object_id, error.signature) == (object_id, 3)
        assert words in str(error)
        image.write_bytes(original)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_objects_added_or_removed_after_signing(kind: str, tmp_path: Path, image: Path, keys: dict[str, Pair]) -> None:
    oci.sign(image, key=keys[kind].private)
    with SifImage.open(image) as sif:
        content, entity = sif.read(sif.by_id(3)), sif.by_id(3).metadata.entity[:20]  # type: ignore[union-attr]
    for extra in (True, False):
        builder = SifBuilder()
        builder.add_partition(squashfs(), name="root")
        if extra:
            builder.add_labels({"a": "b"})
            builder.add_generic(b"more", name="more")
        builder.add_signature(content, fingerprint=entity, linked_group=1)
        builder.write(tmp_path / "other.sif", overwrite=True)
        error = refused(tmp_path / "other.sif", keys[kind], reason="unsigned" if extra else "changed")
        assert error.object_id == (3 if extra else 2)


def clear_signed(pair: Pair, content: bytes) -> bytes:
    signed: bytes = sequoia.sign(sequoia.Tsk.from_file(str(pair.private)).signer(), content, mode=sequoia.SignatureMode.CLEAR)
    return signed


def with_signature(path: Path, content: bytes, pair: Pair | None = None, *, hash_kind: int = 1, **link: Any) -> Path:
    builder = SifBuilder()
    builder.add_partition(squashfs())
    fingerprint = bytes.fromhex(sequoia.Cert.from_file(str(pair.public)).fingerprint) if pair else b""
    builder.add_signature(content, hash_kind=hash_kind, fingerprint=fingerprint, **(link or {"linked_group": 1}))
    builder.write(path)
    return path


@pytest.mark.parametrize("link", [{"linked_group": 1}, {"linked_object": 1}])
def test_legacy_signatures(link: dict[str, int], tmp_path: Path, keys: dict[str, Pair]) -> None:
    text = b"SIFHASH:\n" + hashlib.sha384(squashfs()).hexdigest().encode()
    path = with_signature(tmp_path / "old.sif", clear_signed(keys["pgp"], text), keys["pgp"], **link)
    error = refused(path, keys["pgp"], reason="legacy")
    assert "neither the header nor the descriptors" in str(error)
    oci.sign(path, key=keys["pgp"].private)
    assert [item.id for item in verify(path, keys["pgp"]).signatures] == [3], "a new signature beside it is enough"


def message(**members: Any) -> bytes:
    digest = "sha256:" + 64 * "0"
    entry = {"relativeId": 0, "descriptorDigest": digest, "objectDigest": digest}
    return json.dumps({"version": 1, "header": {"digest": digest}, "objects": [entry], **members}).encode()


@pytest.mark.parametrize(
    ("payload", "reason", "words"),
    [
        (b"{}", "invalid", "not a document"),
        (b"[]", "invalid", "not a document"),
        (b'{"version":1,"version":1}', "invalid", "not a document"),
        (message(version=2), "invalid", "version 2"),
        (message(objects=[]), "unsigned", "object 1 of group 1"),
        (message(header={"digest": "sha1:" + 40 * "0"}), "invalid", "not SHA-2"),
        (message(header={"digest": "sha256:" + 64 * "g"}), "invalid", "not SHA-2"),
        (message(objects=2 * json.loads(message())["objects"]), "invalid", "twice"),
        (message(), "changed", "the header has changed"),
    ],
)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_messages_that_say_something_else(
    kind: str, payload: bytes, reason: Any, words: str, tmp_path: Path, keys: dict[str, Pair]
) -> None:
    if kind == "pgp":
        path = with_signature(tmp_path / "x.sif", clear_signed(keys["pgp"], payload), keys["pgp"])
    else:
        path = with_signature(tmp_path / "x.sif", enveloped(keys[kind], payload))
    assert words in str(refused(path, keys[kind], reason=reason))


def enveloped(pair: Pair, content: bytes, *, kind: str = PAYLOAD_TYPE, **members: Any) -> bytes:
    private: Any = load_pem_private_key(pair.private.read_bytes(), None)
    signature = private.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(content), content))
    envelope = {
        "payloadType": kind,
        "payload": base64.b64encode(content).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps({**envelope, **members}).encode()


def test_signatures_that_are_not_signatures(tmp_path: Path, keys: dict[str, Pair]) -> None:
    good = clear_signed(keys["pgp"], message())
    other = clear_signed(keys["other-pgp"], message(version=2))
    inline = sequoia.sign(sequoia.Tsk.from_file(str(keys["pgp"].private)).signer(), message())
    head, armor = good.split(b"-----BEGIN PGP SIGNATURE-----")
    both = sequoia.armor(
        bytes(sequoia.Sig.from_bytes(b"-----BEGIN PGP SIGNATURE-----" + armor))
        + bytes(sequoia.Sig.from_bytes(other[other.index(b"-----BEGIN PGP SIGNATURE-----") :])),
        sequoia.ArmorKind.Signature,
    ).encode()
    contents = {
        "nothing": b"",
        "text": b"hello",
        "binary": os.urandom(100),
        "cut": good[:-40],
        "no armor": head,
        "twice": good + good,
        "another behind": good + other,
        "another before": other + good,
        "text before": b"see below\n" + good,
        "text behind": good + b"and so on\n",
        "inline": inline,
        "two signatures": head + both,
        "empty object": b"{}",
        "deep": b"{" + b'"a":[' * 100_000,
        "other type": enveloped(keys["ed25519"], message(), kind="text/plain"),
        "no base64": enveloped(keys["ed25519"], message(), payload="***"),
        "many": enveloped(keys["ed25519"], message(), signatures=[{"sig": ""}] * 100),
        "envelope with a key": enveloped(keys["ed25519"], message()),
    }
    for name, content in contents.items():
        pair = keys["pgp"] if name != "other type" else None
        path = with_signature(tmp_path / f"{name}.sif", content, pair)
        error = refused(path, keys["pgp"], keys["ed25519"], reason="invalid")
        assert error.signature == 2, name


@pytest.mark.parametrize("number", [0, 2, 3, 11, 12, 97, 255])
def test_only_sha2_in_openpgp_signatures(number: int, tmp_path: Path, keys: dict[str, Pair]) -> None:
    good = clear_signed(keys["pgp"], message())
    begin = good.index(b"-----BEGIN PGP SIGNATURE-----")
    packet = bytearray(bytes(sequoia.Sig.from_bytes(good[begin:])))
    body = len(packet) - len(next(iter(sequoia.packet.PacketPile.from_bytes(bytes(packet)))).body)
    packet[body + 3] = number  # behind the version, the type and the algorithm of the key
    changed = good[:begin] + sequoia.armor(bytes(packet), sequoia.ArmorKind.Signature).encode()
    path = with_signature(tmp_path / "x.sif", changed, keys["pgp"])
    assert "hash algorithm" in str(refused(path, keys["pgp"], reason="invalid"))


def test_the_descriptor_names_the_key(tmp_path: Path, keys: dict[str, Pair]) -> None:
    path = with_signature(tmp_path / "x.sif", clear_signed(keys["pgp"], message()), keys["other-pgp"])
    assert "but the descriptor names" in str(refused(path, keys["pgp"], reason="invalid"))


@pytest.mark.parametrize("kind", [HashKind.BLAKE2B, HashKind.BLAKE2S, 77])
def test_only_sha2(kind: int, tmp_path: Path, keys: dict[str, Pair]) -> None:
    path = with_signature(tmp_path / "x.sif", clear_signed(keys["pgp"], message()), keys["pgp"], hash_kind=kind)
    assert "is not SHA-256" in str(refused(path, keys["pgp"], reason="invalid"))


def test_keys_that_cannot_be_used(image: Path, keys: dict[str, Pair], tmp_path: Path) -> None:
    weak = pem_pair(tmp_path, "weak", rsa.generate_private_key(65537, 1024))
    curve = pem_pair(tmp_path, "curve", ec.generate_private_key(ec.SECP256K1()))
    odd = pem_pair(tmp_path, "dsa", dsa.generate_private_key(2048))
    newer = pgp_pair(tmp_path, "newer", profile=sequoia.Profile.RFC9580)
    oci.sign(image, key=keys["pgp"].private)
    for key in (weak, curve, odd):
        refused(image, key, reason="key")
    for content in (
        b"",
        b"hello",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        keys["rsa"].private.read_bytes(),
    ):
        (tmp_path / "bad").write_bytes(content)
        assert str(tmp_path / "bad") in str(refused(image, tmp_path / "bad", reason="key"))
    for pair in (weak, curve, odd, newer):
        with pytest.raises(oci.SignatureError):
            oci.sign(image, key=pair.private)
    with pytest.raises(oci.SignatureError):
        oci.sign(image, key=keys["rsa"].public)
    with pytest.raises(oci.SignatureError):
        oci.sign(image, key=keys["pgp"].public)
    with pytest.raises(FileNotFoundError):
        verify(image, tmp_path / "missing")
    assert [item.id for item in verify(image, keys["pgp"]).signatures] == [3]


@pytest.mark.parametrize(("package", "key"), [("pysequoia", "pgp"), ("cryptography", "rsa")])
def test_without_the_library(package: str, key: str, image: Path, keys: dict[str, Pair]) -> None:
    script = (
        f"import sys\nsys.modules[{package!r}] = None\nimport ociruntime as oci\n"
        "with oci.Image.open(sys.argv[1]) as image:\n    try:\n        image.verify([sys.argv[2]])\n"
        "    except oci.UnsupportedError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script, image, keys[key].public], text=True, capture_output=True)
    assert f"need the package {package}: pip install 'ociruntime[verify]'" in done.stdout, done.stderr


def test_a_key_without_its_older_self_signatures(image: Path, tmp_path: Path) -> None:
    """A key that was renewed and exported without the older self-signatures does not show that it was valid; the error says so."""
    pair = pgp_pair(tmp_path, "renewed")
    secret = sequoia.Tsk.from_file(str(pair.private))
    oci.sign(image, key=pair.private)
    signed = datetime.datetime.now(datetime.UTC)
    time.sleep(1.1)
    later = signed + datetime.timedelta(days=1000)
    renewed = secret.extract_certificate().set_expiration(later, secret.certifier())
    verify(image, bytes(renewed))
    kept, primary = [], True
    for packet in sequoia.packet.PacketPile.from_bytes(bytes(renewed)):
        primary = primary and packet.tag != sequoia.packet.Tag.PublicSubkey
        if not primary or packet.tag != sequoia.packet.Tag.Signature or packet.signature_created > signed:
            kept.append(packet)
    error = refused(image, bytes(sequoia.Cert.from_packets(kept)), reason="invalid")
    assert "get the key with its older self-signatures" in str(error)


# ---- the open file ----


def test_verified_is_what_is_open(tmp_path: Path, image: Path, keys: dict[str, Pair]) -> None:
    """Another file in the place of an open image is neither verified nor read."""
    oci.sign(image, key=keys["pgp"].private)
    with Image.open(image) as opened:
        os.replace(write_sif(tmp_path / "evil.sif"), image)
        opened.verify([keys["pgp"].public])
        assert opened.reader(opened.layers[0]).read(4) == b"hsqs"
    refused(image, keys["pgp"], reason="unsigned")
    with pytest.raises(ValueError, match="closed"):
        opened.verify([keys["pgp"].public])


def test_progress(tmp_path: Path, keys: dict[str, Pair]) -> None:
    builder = SifBuilder()
    builder.add_partition(squashfs(3 << 20), filesystem=Filesystem.SQUASHFS)
    builder.add_generic(b"in another group", name="extra", group=2)
    builder.write(tmp_path / "image.sif")
    oci.sign(tmp_path / "image.sif", key=keys["pgp"].private)
    oci.sign(tmp_path / "image.sif", key=keys["ed25519"].private)
    calls: list[tuple[int, int]] = []
    with Image.open(tmp_path / "image.sif") as image:
        image.verify([keys["pgp"].public], progress=lambda done, total: calls.append((done, total)))
        total = (3 << 20) + len(b"in another group")
        assert calls == [(0, total), (1 << 20, total), (2 << 20, total), (3 << 20, total), (total, total)]

        def fail(done: int, total: int) -> None:
            if done:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            image.verify([keys["pgp"].public], progress=fail)
        with pytest.raises(TypeError, match="progress is 1: a function, or True for a progress bar, is needed"):
            image.verify([keys["pgp"].public], progress=1)  # type: ignore[arg-type]


def test_a_progress_bar(image: Path, keys: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    oci.sign(image, key=keys["pgp"].private)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with Image.open(image) as opened:
        opened.verify([keys["pgp"].public], progress=True)
    assert stream.getvalue().startswith(f"\rverifying {image.name} ")


def test_progress_of_an_oci_image(tmp_path: Path) -> None:
    image = OciImage()
    image.add([(tar_of({"a": bytes(3 << 20)}), TAR_TYPE), (tar_of({"b": b"b"}), TAR_TYPE)])
    calls: list[tuple[int, int]] = []
    for path in (image.write_layout(tmp_path / "layout"), image.write_docker_archive(tmp_path / "x.tar", "a:1")):
        with Image.open(path) as opened:
            opened.verify(progress=lambda done, total: calls.append((done, total)))
            assert calls[0][0] == 0
            assert calls == sorted(calls)
            assert calls[-1] == (sum(layer.size for layer in opened.layers),) * 2
        calls.clear()


def test_memory_is_bounded(tmp_path: Path, keys: dict[str, Pair]) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(200 << 20)
    builder = SifBuilder()
    builder.add_partition(squashfs())
    builder.add_generic(big, name="big")
    builder.write(tmp_path / "big.sif")
    tracemalloc.start()
    try:
        oci.sign(tmp_path / "big.sif", key=keys["pgp"].private)
        verify(tmp_path / "big.sif", keys["pgp"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


# ---- signing ----


def test_signing_keeps_what_is_there(tmp_path: Path, keys: dict[str, Pair]) -> None:
    path = write_sif(tmp_path / "image.sif", deterministic=True)
    path.chmod(0o640)
    os.setxattr(path, "user.note", b"mine")
    link = tmp_path / "link.sif"
    link.symlink_to(path.name)
    with SifImage.open(path) as sif:
        before = [(item.raw, sif.read(item)) for item in sif]
    oci.sign(link, key=keys["pgp"].private)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.getxattr(path, "user.note") == b"mine"
    with SifImage.open(path) as sif:
        assert [(item.raw, sif.read(item)) for item in sif][:2] == before
        added = sif.by_id(3)
        assert added.created is None, "no time in a deterministic image"
        assert sif.header.descriptors_free == 5
        assert sif.header.data_offset + sif.header.data_size == path.stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["image.sif", "link.sif"]


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user reaches and can write to; those of pytest are closed."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        yield Path(path)


@pytest.mark.root
def test_a_user_signs_own_files(public_path: Path, keys: dict[str, Pair]) -> None:
    """The owner stays; where it cannot, nothing changes."""
    mine, other = write_sif(public_path / "mine.sif"), write_sif(public_path / "other.sif")
    os.chown(mine, 61234, 61234)
    private = keys["ed25519"].private.read_bytes()
    before = other.read_bytes()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(61234, 61234, 61234)
            os.setresuid(61234, 61234, 61234)
            oci.sign(mine, key=private)
            try:
                oci.sign(other, key=private)
            except PermissionError as error:
                status = 0 if "cannot be kept; change a copy of it" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (mine.stat().st_uid, mine.stat().st_gid) == (61234, 61234)
    verify(mine, keys["ed25519"])
    assert other.read_bytes() == before
    assert sorted(os.listdir(public_path)) == ["mine.sif", "other.sif"]


def fail(*_: object, **__: object) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("function", ["os.pwrite", "os.fsync", "os.replace", "os.fchmod"])
def test_a_failure_leaves_the_old_file(function: str, image: Path, keys: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.read_bytes(), sorted(os.listdir(image.parent)), len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(function, fail)
        with pytest.raises(OSError, match="No space"):
            oci.sign(image, key=keys["pgp"].private)
    assert (image.read_bytes(), sorted(os.listdir(image.parent)), len(os.listdir("/proc/self/fd"))) == before


def test_a_file_that_changes_meanwhile(image: Path, keys: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = os.fchmod

    def touched(*arguments: Any) -> None:
        real(*arguments)
        os.utime(image, ns=(1, 1))

    monkeypatch.setattr("os.fchmod", touched)
    before = image.read_bytes()
    with pytest.raises(oci.SifError, match="replaced or changed"):
        oci.sign(image, key=keys["pgp"].private)
    assert image.read_bytes() == before


def test_a_full_table(tmp_path: Path, keys: dict[str, Pair]) -> None:
    builder = SifBuilder(capacity=1)
    builder.add_partition(squashfs())
    builder.write(tmp_path / "full.sif")
    before = (tmp_path / "full.sif").read_bytes()
    with pytest.raises(oci.SifError, match="0 free entries"):
        oci.sign(tmp_path / "full.sif", key=keys["pgp"].private)
    assert (tmp_path / "full.sif").read_bytes() == before
    assert os.listdir(tmp_path) == ["full.sif"]


# ---- other kinds ----


@pytest.mark.parametrize("write", [OciImage.write_layout, OciImage.write_archive, OciImage.write_sif])
def test_the_layers_of_oci_images(write: Callable[[OciImage, Path], Path], tmp_path: Path, keys: dict[str, Pair]) -> None:
    one, two = tar_of({"a": b"first layer"}), tar_of({"b": b"second layer"})
    oci_image = OciImage()
    oci_image.add([(one, TAR_TYPE), (two, TAR_TYPE)])
    path = write(oci_image, tmp_path / "image")
    assert verify(path).digests == tuple(f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in (one, two))
    file = path if path.is_file() else path / "blobs" / "sha256" / hashlib.sha256(two).hexdigest()
    content = file.read_bytes()
    file.write_bytes(content.replace(b"second layer", b"another one!"))
    with pytest.raises(oci.ImageError, match=f"sha256:{hashlib.sha256(two).hexdigest()}.*: the image is damaged"):
        verify(path)
    if path.is_dir():
        refused(path, keys["pgp"], reason="unsigned")


@pytest.mark.parametrize("packed", [False, True])
def test_the_layers_of_docker_archives(packed: bool, tmp_path: Path) -> None:
    import gzip

    layer = tar_of({"a": b"layer"})
    stored = gzip.compress(layer) if packed else layer
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [diff_id]}}
    manifest = [{"Config": "config.json", "Layers": ["layer.tar"]}]

    def write(content: bytes) -> Path:
        files = {"layer.tar": content, "config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
        (tmp_path / "docker.tar").write_bytes(tar_of(files))
        return tmp_path / "docker.tar"

    assert verify(write(stored)).digests == (diff_id,)
    other = tar_of({"a": b"other"})
    with pytest.raises(oci.ImageError, match="damaged"):
        verify(write(gzip.compress(other) if packed else other))
    if packed:
        with pytest.raises(oci.ImageError, match="the layer is damaged"):
            verify(write(stored[:-20]))


def test_what_has_nothing_to_verify(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    refused(tmp_path / "root", reason="unsigned")
    (tmp_path / "x.squashfs").write_bytes(squashfs())
    refused(tmp_path / "x.squashfs", reason="unsigned")


# ---- the command line ----


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "ociruntime", *map(str, words)], text=True, capture_output=True)


def test_commands(image: Path, keys: dict[str, Pair], tmp_path: Path) -> None:
    assert "group 1 is not signed" in command("verify", image, "--key", keys["pgp"].public).stderr
    done = command("sign", image, "--key", keys["pgp"].private)
    assert (done.returncode, done.stdout) == (0, "added signature 3\n"), done.stderr
    done = command("verify", image, "-k", keys["rsa"].public, "--key", keys["pgp"].public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid: signature 3 (pgp) by ")
    document = json.loads(command("verify", image, "--json", "--key", keys["pgp"].public).stdout)
    assert document["signatures"][0]["objects"] == [1, 2]
    done = command("verify", image, "--key", keys["rsa"].public)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ociruntime: ")
    secret = pem_pair(tmp_path, "secret", ed25519.Ed25519PrivateKey.generate(), b"letmein")
    (tmp_path / "password").write_text("letmein\n")
    assert command("sign", image, "--key", secret.private, "--password-file", tmp_path / "password").stdout == "added signature 4\n"
    assert parse_args(["verify", "x", "-k", "a", "-k", "b"]).keys == ["a", "b"]

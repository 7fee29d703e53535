"""RSA, ECDSA and Ed25519 keys in PEM files, which sign DSSE envelopes. Needs the package cryptography."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key

from ociruntime.errors import SignatureError

__all__ = ["PemKey", "PemSigner", "read_private_key", "read_public_keys"]

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_MIN_RSA: Final = 2048


@attrs.frozen
class PemKey:
    """A public key that verifies DSSE envelopes."""

    public: PublicKey
    fingerprint: str
    """As ``ssh-keygen -l`` prints it: ``SHA256:...``."""
    signer: str
    """Subject of a certificate; empty for a bare key."""
    name: str
    """The file of the key; empty if its content was given."""

    def has_signed(self, message: bytes, signature: bytes, algorithm: str) -> bool:
        """Return whether a signature of a message is by this key.

        Args:
            algorithm: ``SHA256``, ``SHA384`` or ``SHA512``; not used for an Ed25519 key.
        """
        hashing = getattr(hashes, algorithm)()
        try:
            if isinstance(self.public, rsa.RSAPublicKey):
                self.public.verify(signature, message, padding.PKCS1v15(), hashing)
            elif isinstance(self.public, ec.EllipticCurvePublicKey):
                self.public.verify(signature, message, ec.ECDSA(hashing))
            else:
                self.public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@attrs.frozen
class PemSigner:
    """A private key that signs DSSE envelopes."""

    private: PrivateKey
    fingerprint: str

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, with SHA-256 unless the key is an Ed25519 key."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return self.private.sign(message, ec.ECDSA(hashes.SHA256()))
        return self.private.sign(message)


def read_public_keys(content: bytes, name: str) -> Iterator[PemKey]:
    """Yield the keys in a PEM file: public keys and certificates. Raises SignatureError, which names the file."""
    for block in content.split(b"-----BEGIN ")[1:]:
        text = b"-----BEGIN " + block
        label = block.partition(b"-----")[0].decode("ascii", "replace")
        if "PRIVATE KEY" in label:
            _refuse(name, "a private key; pass the public key, as 'openssl pkey -pubout' prints it")
        try:
            if label == "CERTIFICATE":
                certificate = x509.load_pem_x509_certificate(text)
                _check_certificate(certificate, name)
                yield _public_key(certificate.public_key(), certificate.subject.rfc4514_string(), name)
            else:
                yield _public_key(load_pem_public_key(text), "", name)
        except SignatureError:
            raise
        except Exception as error:  # the parser of the library has no common base for what it raises
            _refuse(name, f"the PEM block {label!r} is not a public key or certificate: {error}", error)


def read_private_key(content: bytes, name: str, password: str | None) -> PemSigner:
    """Return the private key in a PEM file. Raises SignatureError, which names the file."""
    try:
        private: Any = load_pem_private_key(content, None if password is None else password.encode())
    except TypeError as error:  # of a password too many or too few
        message = (
            "the key is encrypted; pass its password" if password is None else "password is given, but the key is not encrypted"
        )
        _refuse(name, message, error)
    except Exception as error:  # the parser of the library has no common base for what it raises
        _refuse(name, f"not a private key that can be read: {error}", error)
    return PemSigner(private, _public_key(private.public_key(), "", name).fingerprint)


def _refuse(name: str, message: str, cause: BaseException | None = None) -> NoReturn:
    raise SignatureError(message, reason="key", path=name or "key") from cause


def _check_certificate(certificate: x509.Certificate, name: str) -> None:
    """Refuse a certificate that is not valid now, or whose key is not meant for signatures."""
    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        _refuse(name, f"the certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only; pass its public key to trust that")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.digital_signature:
        _refuse(name, "the certificate is not for signatures (its key usage has no digitalSignature)")


def _public_key(public: object, signer: str, name: str) -> PemKey:
    if not isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        _refuse(name, "not an RSA, ECDSA or Ed25519 key")
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < _MIN_RSA:
        _refuse(name, f"an RSA key of {public.key_size} bits; at least {_MIN_RSA} are needed")
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        _refuse(name, f"the curve {public.curve.name} is not one of P-256, P-384 and P-521")
    encoded = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(encoded)).digest()).decode().rstrip("=")
    return PemKey(public, f"SHA256:{digest}", signer, name)

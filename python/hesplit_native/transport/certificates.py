"""Certificates for mutual TLS: loading them, and saying which file is at fault before a handshake fails without a word."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hesplit_native.errors import DataError, ParameterError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_client_id(client_id: str) -> str:
    """The id itself; ParameterError for anything but 1 to 64 letters, digits and ``. _ -``: ids name files and stand in logs."""
    if not CLIENT_ID.fullmatch(client_id):
        raise ParameterError(
            f"a client id is 1 to 64 letters (a to z), digits and . _ - and begins with a letter or digit, got {client_id!r}"
        )
    return client_id


@dataclass(frozen=True)
class ServerTls:
    """What a server shows, and the CA whose clients it takes; all three are PEM. DataError: the key is not the certificate's."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    authority: bytes

    def __post_init__(self) -> None:
        _check_pair(self.certificate, self.private_key)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ServerTls:
        """``server.pem``, ``server.key`` and ``ca.pem`` of a folder.

        ``server.pem`` may go on with the certificates between it and the CA, and ``ca.pem`` may hold several CAs.

        Raises
        ------
        DataError
            Names the file that is missing, no PEM, encrypted, expired, for another purpose, or does not fit the others.
        """
        from cryptography.x509.oid import ExtendedKeyUsageOID

        return cls(*_load(Path(folder), "server", ExtendedKeyUsageOID.SERVER_AUTH))


@dataclass(frozen=True)
class ClientTls:
    """What a client shows, and the CA whose servers it trusts; all three are PEM. DataError: the key is not the certificate's."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    authority: bytes

    def __post_init__(self) -> None:
        _check_pair(self.certificate, self.private_key)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], client_id: str) -> ClientTls:
        """``client-<id>.pem``, ``client-<id>.key`` and ``ca.pem`` of a folder, as `ServerTls.load` does.

        The certificate's common name must be the id: it is what the server calls this client.
        """
        from cryptography.x509.oid import ExtendedKeyUsageOID

        name = f"client-{check_client_id(client_id)}"
        files = _load(Path(folder), name, ExtendedKeyUsageOID.CLIENT_AUTH)
        path = Path(folder) / f"{name}.pem"
        named = common_names(certificates_of(files[0], path)[0])
        if named != [client_id]:
            what = f"names the client {', '.join(map(repr, named))}" if named else "names no client"
            raise DataError(f"{path} {what}; its subject must have one common name, {client_id!r}")
        return cls(*files)


def common_names(certificate: x509.Certificate) -> list[str]:
    """The common names in a certificate's subject, as they stand there."""
    from cryptography.x509.oid import NameOID

    return [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def read_file(path: Path) -> bytes:
    """The bytes of a certificate or key; DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); `hesplit-native certs` makes certificates"
        ) from error


def certificates_of(data: bytes, path: Path | str) -> list[x509.Certificate]:
    """The certificates in PEM text, at least one. DataError says what `path` holds instead."""
    from cryptography import x509

    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise DataError(f"{path} is no certificate: {_held(data)}")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise DataError(f"{path} is no certificate: its text is damaged ({error})") from error


def private_key_of(data: bytes, path: Path | str) -> PrivateKeyTypes:
    """The private key in PEM text. DataError says what `path` holds instead, never the key itself."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"PRIVATE KEY-----" not in data:
        raise DataError(f"{path} is no private key: {_held(data)}")
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise DataError(
            f"{path} is a private key behind a passphrase, and nobody is asked for one: write it without "
            "(openssl pkey -in FILE -out NEW) and keep that file to its owner"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DataError(
            f"{path} is no private key that can be used: its text is damaged or of an unknown kind"
        ) from error
    curves = (ec.SECP256R1, ec.SECP384R1)
    if isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, curves)
    ):
        return key
    raise DataError(
        f"{path} is a private key of a kind that gRPC's TLS does not take; make one for ECDSA (P-256, P-384) or RSA"
    )


def check_fit(key: PrivateKeyTypes, certificate: x509.Certificate, key_path: Path | str, path: Path | str) -> None:
    """DataError unless the certificate is that of the key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    def public(of: PrivateKeyTypes | x509.Certificate) -> bytes:
        return of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    try:
        fits = public(key) == public(certificate)
    except (ValueError, UnsupportedAlgorithm):  # no kind of key that `private_key_of` lets through
        fits = False
    if not fits:
        raise DataError(
            f"{key_path} does not fit {path}: it is the key of another certificate; put the two that were made together there "
            "(in a chain the certificate of the key comes first)"
        )


def check_dates(certificate: x509.Certificate, path: Path | str) -> None:
    """DataError unless the certificate is valid now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    until, since = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if until < now:
        raise DataError(
            f"{path} was valid until {until:%Y-%m-%d}; renew it with your CA (one that `hesplit-native certs` made: "
            "see docs/operations.md)"
        )
    if since > now:
        raise DataError(f"{path} is valid only from {since:%Y-%m-%d %H:%M} UTC on; is this machine's clock right?")


def _held(data: bytes) -> str:
    """What a file holds that should hold something else, and what to do."""
    if not data.strip():
        return "it is empty"
    for mark, words in (
        (b"PRIVATE KEY-----", "it holds a private key; were .pem and .key swapped?"),
        (b"-----BEGIN CERTIFICATE REQUEST-----", "it holds a request, which a CA has yet to sign"),
        (b"-----BEGIN CERTIFICATE-----", "it holds a certificate; were .pem and .key swapped?"),
        (b"PUBLIC KEY-----", "it holds a public key"),
    ):
        if mark in data:
            return words
    if data.startswith(b"\x30"):
        return (
            "it is DER or PKCS #12, not PEM; convert it with openssl x509, openssl pkey (-inform DER) or openssl pkcs12"
        )
    return "it is not PEM text (-----BEGIN …)"


def _check_pair(certificate: bytes, key: bytes) -> None:
    name = "the certificate for TLS"
    check_fit(
        private_key_of(key, "the private key for TLS"),
        certificates_of(certificate, name)[0],
        "the private key for TLS",
        name,
    )


def _load(folder: Path, name: str, usage: x509.ObjectIdentifier) -> tuple[bytes, bytes, bytes]:
    """Certificate, key and CA, checked against each other and written anew as plain PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path, key_path, authority_path = (folder / file for file in (f"{name}.pem", f"{name}.key", "ca.pem"))
    texts = [read_file(each) for each in (path, key_path, authority_path)]
    chain, authorities = certificates_of(texts[0], path), certificates_of(texts[2], authority_path)
    key = private_key_of(texts[1], key_path)
    check_fit(key, chain[0], key_path, path)
    for certificate in chain:
        check_dates(certificate, path)
    _check_usage(chain[0], usage, path)
    check_signer(chain, authorities, path, authority_path)
    return (
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in authorities),
    )


def _check_usage(certificate: x509.Certificate, usage: x509.ObjectIdentifier, path: Path) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    side = "servers" if usage == ExtendedKeyUsageOID.SERVER_AUTH else "clients"
    try:
        usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = [usage]
    if usage not in usages and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages:
        raise DataError(f"{path} is not a certificate for {side}: its extended key usage does not say so")
    try:
        signs = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        signs = True
    if not signs:
        raise DataError(f"{path} cannot be used for TLS: its key usage leaves out digitalSignature")


def check_signer(
    chain: list[x509.Certificate], authorities: list[x509.Certificate], path: Path, authority_path: Path
) -> None:
    """DataError unless one of the authorities signed the certificate, directly or through the others of its chain."""
    at = chain[0]
    waiting = chain[1:]
    while True:
        for authority in authorities:
            if _issued(at, authority):
                check_dates(authority, authority_path)
                if authority != at and not _is_authority(authority):
                    raise DataError(f"{authority_path} is no CA's certificate: it may not sign others")
                return
        above = next((each for each in waiting if _issued(at, each)), None)
        if above is None:
            raise DataError(
                f"{path} is not signed by {authority_path}: take both from the same CA, and where others stand between them, "
                f"append their certificates to {path.name}"
            )
        waiting.remove(above)
        at = above


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True  # old CAs say nothing

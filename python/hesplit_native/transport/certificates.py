"""Certificates for mutual TLS: loading them, and making those of a test CA.

A real deployment has its own CA; what this makes is for trying things out on machines of one's own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hesplit_native.errors import DataError, ParameterError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

_DAYS = 365
_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ServerTls:
    """What a server shows, and the CA whose clients it takes."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    authority: bytes

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ServerTls:
        """``server.pem``, ``server.key`` and ``ca.pem`` of a folder. DataError names what is missing or unusable."""
        return cls(*_load(Path(folder), "server"))


@dataclass(frozen=True)
class ClientTls:
    """What a client shows, and the CA whose servers it trusts."""

    certificate: bytes
    private_key: bytes = field(repr=False)
    authority: bytes

    @classmethod
    def load(cls, folder: str | os.PathLike[str], client_id: str) -> ClientTls:
        """``client-<id>.pem``, ``client-<id>.key`` and ``ca.pem`` of a folder. DataError names what is missing or unusable."""
        return cls(*_load(Path(folder), f"client-{_checked(client_id)}"))


def make_authority(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """A CA that signs with ECDSA on P-256: ``ca.pem`` and ``ca.key``, which whoever signs keeps to himself."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("hesplit_native test CA")
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write(Path(folder), "ca", builder.sign(key, _sha256()), key, overwrite)


def make_server(folder: str | os.PathLike[str], hosts: list[str], *, overwrite: bool = False) -> None:
    """A certificate of the CA in that folder for a server of these names and addresses: ``server.pem`` and ``server.key``."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not hosts:
        raise ParameterError("a server's certificate needs at least one name or address")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    _make_leaf(Path(folder), "server", hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, names, overwrite)


def make_client(folder: str | os.PathLike[str], client_id: str, *, overwrite: bool = False) -> None:
    """A certificate of the CA in that folder for a client: ``client-<id>.pem`` and ``client-<id>.key``."""
    from cryptography.x509.oid import ExtendedKeyUsageOID

    name = _checked(client_id)
    _make_leaf(Path(folder), f"client-{name}", name, ExtendedKeyUsageOID.CLIENT_AUTH, [], overwrite)


def _checked(client_id: str) -> str:
    if not _CLIENT_ID.fullmatch(client_id):
        raise ParameterError(
            f"a client id is 1 to 64 letters, digits and . _ - and begins with a letter or digit, got {client_id!r}"
        )
    return client_id


def _make_leaf(
    folder: Path,
    name: str,
    common_name: str,
    usage: x509.ObjectIdentifier,
    names: list[x509.GeneralName],
    overwrite: bool,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority = x509.load_pem_x509_certificate(_read(folder / "ca.pem"))
    signer = serialization.load_pem_private_key(_read(folder / "ca.key"), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common_name), authority.subject, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(folder, name, builder.sign(signer, _sha256()), key, overwrite)


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _sha256() -> SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs_certificates, crl_sign=signs_certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    # Clocks differ by a little.
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=5))
    builder = builder.not_valid_after(now + datetime.timedelta(days=_DAYS))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey, overwrite: bool
) -> None:
    from cryptography.hazmat.primitives import serialization

    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for suffix, data in ((".key", private), (".pem", certificate.public_bytes(serialization.Encoding.PEM))):
        path = folder / (name + suffix)
        if path.exists() and not overwrite:
            raise ParameterError(f"{path} exists already; remove it, or replace it with --overwrite")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if suffix == ".key" else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); `hesplit-native certs` makes certificates"
        ) from error


def _load(folder: Path, name: str) -> tuple[bytes, bytes, bytes]:
    from cryptography import x509

    certificate, key, authority = (_read(folder / file) for file in (f"{name}.pem", f"{name}.key", "ca.pem"))
    for file, data in ((f"{name}.pem", certificate), ("ca.pem", authority)):
        try:
            until = x509.load_pem_x509_certificate(data).not_valid_after_utc
        except ValueError as error:
            raise DataError(f"{folder / file} is no certificate: {error}") from error
        if until < datetime.datetime.now(datetime.timezone.utc):
            raise DataError(f"{folder / file} was valid until {until:%Y-%m-%d}; make new certificates")
    return certificate, key, authority

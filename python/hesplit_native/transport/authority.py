"""A test CA in a folder, and the certificates that it signs.

A real deployment has its own CA; this one is for trying things out on machines of one's own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hesplit_native.errors import DataError, ParameterError
from hesplit_native.files import write_atomically
from hesplit_native.transport import certificates
from hesplit_native.transport.hosts import certificate_host

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

_DAYS = 365
_AUTHORITY_DAYS = 10 * 365  # so that servers and clients are renewed many times under one CA


def make_authority(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """A CA that signs with ECDSA on P-256: ``ca.pem`` and ``ca.key``, which whoever signs keeps to himself.

    Overwriting a CA takes all certificates that it has signed out of use.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("hesplit_native test CA")
    builder = _builder(name, name, key, _until(_AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write(Path(folder), "ca", builder.sign(key, _sha256()), key, overwrite)


def make_server(folder: str | os.PathLike[str], hosts: list[str], *, overwrite: bool = False) -> None:
    """A certificate of the CA in that folder for a server of these names and addresses: ``server.pem`` and ``server.key``.

    Raises
    ------
    ParameterError
        No hosts, one that no client can look up, or files that exist already.
    DataError
        ``ca.pem`` or ``ca.key`` is missing, unusable, or does not fit the other.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not hosts:
        raise ParameterError("a server's certificate needs at least one name or address")
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(map(certificate_host, hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    _make_leaf(Path(folder), "server", "hesplit_native server", ExtendedKeyUsageOID.SERVER_AUTH, names, overwrite)


def make_client(folder: str | os.PathLike[str], client_id: str, *, overwrite: bool = False) -> None:
    """A certificate of the CA in that folder for a client: ``client-<id>.pem`` and ``client-<id>.key``. Errors as `make_server`."""
    from cryptography.x509.oid import ExtendedKeyUsageOID

    name = certificates.check_client_id(client_id)
    _make_leaf(Path(folder), f"client-{name}", name, ExtendedKeyUsageOID.CLIENT_AUTH, [], overwrite)


def server_hosts(folder: Path) -> list[str]:
    """The names and addresses in ``server.pem``; none where there is no such file."""
    from cryptography import x509

    path = folder / "server.pem"
    if not path.exists():
        return []
    certificate = certificates.certificates_of(certificates.read_file(path), path)[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def client_ids(folder: Path) -> list[str]:
    """Whose certificates are in the folder."""
    names = (path.stem.removeprefix("client-") for path in folder.glob("client-*.pem"))
    return sorted(name for name in names if certificates.CLIENT_ID.fullmatch(name))


def valid_until(folder: Path, name: str) -> datetime.datetime:
    """The last moment of ``<name>.pem``; DataError where it is none or over."""
    path = folder / f"{name}.pem"
    certificate = certificates.certificates_of(certificates.read_file(path), path)[0]
    certificates.check_dates(certificate, path)
    return certificate.not_valid_after_utc


def check_signed(folder: Path, name: str) -> None:
    """DataError unless the CA of the folder signed ``<name>.pem``."""
    paths = folder / f"{name}.pem", folder / "ca.pem"
    chain, authorities = (certificates.certificates_of(certificates.read_file(path), path) for path in paths)
    certificates.check_signer(chain, authorities, *paths)


def load_authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey | RSAPrivateKey]:
    """The CA of a folder with the key that it signs with; DataError names the file that is missing or unusable."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    path, key_path = folder / "ca.pem", folder / "ca.key"
    certificate = certificates.certificates_of(certificates.read_file(path), path)[0]
    certificates.check_dates(certificate, path)
    if not key_path.exists():
        raise DataError(f"{key_path} is missing: certificates are signed where the CA's key is kept")
    key = certificates.private_key_of(certificates.read_file(key_path), key_path)
    certificates.check_fit(key, certificate, key_path, path)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return certificate, key


def _make_leaf(
    folder: Path,
    name: str,
    common_name: str,
    usage: x509.ObjectIdentifier,
    names: list[x509.GeneralName],
    overwrite: bool,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, signer = load_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(common_name), authority.subject, key, min(_until(_DAYS), authority.not_valid_after_utc))
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


def _until(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, until: datetime.datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    # Clocks differ by a little.
    builder = builder.not_valid_before(_until(0) - datetime.timedelta(minutes=5)).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey, overwrite: bool
) -> None:
    from cryptography.hazmat.primitives import serialization

    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {
        folder / f"{name}.key": (private, 0o600),
        folder / f"{name}.pem": (certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    }
    for path in files:  # before either is written: they must not be of two pairs
        if path.exists() and not overwrite:
            raise ParameterError(f"{path} exists already; remove it, or replace it with --overwrite")
    for path, (data, mode) in files.items():
        write_atomically(path, data, mode=mode)

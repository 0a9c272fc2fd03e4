from __future__ import annotations

import datetime
import shutil
import time
import warnings

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hesplit_native.errors import DataError, ParameterError, ProtocolError
from hesplit_native.transport import (
    ClientTls,
    GrpcServer,
    ServerTls,
    connect,
    make_authority,
    make_client,
    make_server,
)
from hesplit_native.transport.grpc import GrpcChannel

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PKCS8 = serialization.PrivateFormat.PKCS8
DAY = datetime.timedelta(days=1)


def pem(key, encoding=PEM, encryption=None):
    return key.private_bytes(encoding, PKCS8, encryption or serialization.NoEncryption())


def signed(folder, *, names=("alice",), key=None, since=-DAY, until=DAY, extensions=(), signer=None, issuer=None):
    """A certificate of the CA in the folder, unusual where it is told to be, and its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = issuer or x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signer = signer or serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.timezone.utc)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + since).not_valid_after(now + until)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def put(folder, name, certificate, key):
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(PEM))
    (folder / f"{name}.key").write_bytes(pem(key))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, other = tmp_path_factory.mktemp("ca"), tmp_path_factory.mktemp("other")
    for each in (folder, other):
        make_authority(each)
        make_server(each, ["localhost", "127.0.0.1"])
        make_client(each, "alice")
        make_client(each, "bob")
    return folder, other


@pytest.fixture
def ours(made, tmp_path):
    """A copy to spoil."""
    shutil.copytree(made[0], tmp_path / "tls")
    return tmp_path / "tls"


SIDES = [("server", ServerTls.load), ("client-alice", lambda folder: ClientTls.load(folder, "alice"))]


def spoil_key(kind, folder, name, other):
    path = folder / f"{name}.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"x")
    legacy = (PEM, serialization.PrivateFormat.TraditionalOpenSSL, secret)
    path.write_bytes(
        {
            "another's": lambda: (other / f"{name}.key").read_bytes(),
            "empty": lambda: b"",
            "blank": lambda: b"\n \n",
            "passphrase": lambda: pem(key, encryption=secret),
            "old passphrase": lambda: key.private_bytes(*legacy),
            "DER": lambda: pem(key, DER),
            "cut": lambda: path.read_bytes()[:120] + b"\n-----END PRIVATE KEY-----\n",
            "a certificate": lambda: (folder / f"{name}.pem").read_bytes(),
            "a public key": lambda: key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            "an unknown kind": lambda: pem(ed25519.Ed25519PrivateKey.generate()),
            "an unknown curve": lambda: pem(ec.generate_private_key(ec.SECP256K1())),
            "words": lambda: b"see the safe",
            "UTF-16": lambda: path.read_bytes().decode().encode("utf-16"),
        }[kind]()
    )


@pytest.mark.parametrize(("name", "load"), SIDES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another's", "does not fit"),
        ("empty", "it is empty"),
        ("blank", "it is empty"),
        ("passphrase", "openssl pkey"),
        ("old passphrase", "openssl pkey"),
        ("DER", "not PEM"),
        ("cut", "damaged"),
        ("a certificate", "swapped"),
        ("a public key", "public key"),
        ("an unknown kind", "ECDSA"),
        ("an unknown curve", "ECDSA"),
        ("words", "not PEM"),
        ("UTF-16", "not PEM"),
    ],
)
def test_keys_that_cannot_be_used_are_named(made, ours, name, load, kind, words):
    spoil_key(kind, ours, name, made[1])
    with pytest.raises(DataError, match=words) as raised:
        load(ours)
    assert str(ours / f"{name}.key") in str(raised.value)
    assert "-----BEGIN P" not in str(raised.value)


@pytest.mark.parametrize(("name", "load"), SIDES)
@pytest.mark.parametrize("file", ["{name}.pem", "ca.pem"])
def test_files_that_hold_something_else_are_named(ours, name, load, file):
    path = ours / file.format(name=name)
    good = path.read_bytes()
    der = x509.load_pem_x509_certificate(good).public_bytes(DER)
    for data, words in [
        (b"", "empty"),
        (der, "not PEM"),
        ((ours / f"{name}.key").read_bytes(), "swapped"),
        (good[:200] + b"\n-----END CERTIFICATE-----\n", "damaged"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", "a CA has yet to sign"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=words) as raised:
            load(ours)
        assert str(path) in str(raised.value)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load(ours)


@pytest.mark.parametrize(("name", "load"), SIDES)
def test_the_wrong_ca_is_named(made, ours, name, load):
    shutil.copy(made[1] / "ca.pem", ours / "ca.pem")  # of the same name, with another key
    with pytest.raises(DataError, match="is not signed by") as raised:
        load(ours)
    assert str(ours / "ca.pem") in str(raised.value)
    shutil.copy(ours / f"{name}.pem", ours / "ca.pem")
    with pytest.raises(DataError, match="is not signed by"):
        load(ours)


def test_a_signer_that_may_not_sign_is_named(ours):
    # The client's own certificate as CA of another's.
    issuer = x509.load_pem_x509_certificate((ours / "client-bob.pem").read_bytes())
    signer = serialization.load_pem_private_key((ours / "client-bob.key").read_bytes(), None)
    put(ours, "client-alice", *signed(ours, issuer=issuer, signer=signer))
    shutil.copy(ours / "client-bob.pem", ours / "ca.pem")
    with pytest.raises(DataError, match=r"ca\.pem is no CA's certificate"):
        ClientTls.load(ours, "alice")


@pytest.mark.parametrize(("name", "load"), SIDES)
def test_dates(ours, name, load):
    put(ours, name, *signed(ours, since=-3 * DAY, until=-DAY))
    with pytest.raises(DataError, match=rf"{name}\.pem was valid until"):
        load(ours)
    put(ours, name, *signed(ours, since=DAY, until=2 * DAY))
    with pytest.raises(DataError, match=rf"{name}\.pem is valid only from .* clock"):
        load(ours)


def test_an_expired_ca_neither_signs_nor_is_trusted(ours, monkeypatch):
    import hesplit_native.transport.authority as authority

    monkeypatch.setattr(authority, "_AUTHORITY_DAYS", 1)
    make_authority(ours, overwrite=True)
    make_client(ours, "alice", overwrite=True)
    mine = x509.load_pem_x509_certificate((ours / "client-alice.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((ours / "ca.pem").read_bytes())
    assert mine.not_valid_after_utc <= ca.not_valid_after_utc
    monkeypatch.setattr(authority, "_AUTHORITY_DAYS", -0.001)
    make_authority(ours, overwrite=True)
    with pytest.raises(DataError, match=r"ca\.pem was valid until"):
        make_client(ours, "alice", overwrite=True)


def test_purposes(ours):
    for name, load, wrong in (
        (*SIDES[0], ExtendedKeyUsageOID.CLIENT_AUTH),
        (*SIDES[1], ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        put(ours, name, *signed(ours, extensions=[x509.ExtendedKeyUsage([wrong])]))
        with pytest.raises(DataError, match=rf"{name}\.pem is not a certificate for"):
            load(ours)
        both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        put(ours, name, *signed(ours, extensions=[x509.ExtendedKeyUsage(both)]))
        load(ours)
        agreement = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
        put(ours, name, *signed(ours, extensions=[agreement]))
        with pytest.raises(DataError, match="digitalSignature"):
            load(ours)


@pytest.mark.parametrize(
    "names", [(), ("bob",), ("alice", "bob"), ("alice\nbob: done",), ("\x1b[31malice",), ("älice",), ("Alice",)]
)
def test_common_names_are_the_client_id(ours, names):
    put(ours, "client-alice", *signed(ours, names=names))
    with pytest.raises(DataError, match=r"client-alice\.pem names .*must have one common name") as raised:
        ClientTls.load(ours, "alice")
    assert str(raised.value).isprintable()


def test_what_others_make_is_taken(ours):
    """Chains, bundles of CAs, RSA, Windows' line ends, text around the PEM."""
    between_key = ec.generate_private_key(ec.SECP384R1())
    constraints = [x509.BasicConstraints(ca=True, path_length=None)]
    make_authority(ours, overwrite=True)
    # (the test CA itself allows no CA below it; whether chains are walked is what matters here)
    between, _ = signed(ours, names=("between",), key=between_key, extensions=constraints)
    leaf, key = signed(ours, key=rsa.generate_private_key(65537, 2048), issuer=between, signer=between_key)
    put(ours, "client-alice", leaf, key)
    with pytest.raises(DataError, match="append their certificates"):
        ClientTls.load(ours, "alice")
    chain = b"".join(each.public_bytes(PEM) for each in (leaf, between))
    (ours / "client-alice.pem").write_bytes(b"\xef\xbb\xbfsubject: alice\r\n" + chain.replace(b"\n", b"\r\n"))
    bundle = (ours / "client-bob.pem").read_bytes() + (ours / "ca.pem").read_bytes()
    (ours / "ca.pem").write_bytes(bundle)
    loaded = ClientTls.load(ours, "alice")
    assert loaded.certificate == chain
    backwards = b"".join(each.public_bytes(PEM) for each in (between, leaf))
    (ours / "client-alice.pem").write_bytes(backwards)
    with pytest.raises(DataError, match="comes first"):
        ClientTls.load(ours, "alice")


def test_pairs_made_by_hand_are_checked_too(made):
    good, other = ServerTls.load(made[0]), ServerTls.load(made[1])
    with pytest.raises(DataError, match="private key for TLS does not fit"):
        ServerTls(good.certificate, other.private_key, good.authority)
    with pytest.raises(DataError, match="private key for TLS is no private key"):
        ClientTls(good.certificate, b"", good.authority)


def test_a_pair_is_never_half_replaced(tmp_path):
    make_authority(tmp_path)
    make_client(tmp_path, "a")
    key = (tmp_path / "client-a.key").read_bytes()
    (tmp_path / "client-a.key").unlink()
    with pytest.raises(ParameterError, match="exists already"):
        make_client(tmp_path, "a")
    assert not (tmp_path / "client-a.key").exists()
    (tmp_path / "client-a.pem").unlink()
    (tmp_path / "client-a.key").write_bytes(key)
    with pytest.raises(ParameterError, match="exists already"):
        make_client(tmp_path, "a")
    assert not (tmp_path / "client-a.pem").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["no key", "another key", "passphrase"])
def test_a_ca_that_cannot_sign_is_named(made, ours, damage):
    path = ours / "ca.key"
    if damage == "no key":
        path.unlink()
    elif damage == "another key":
        shutil.copy(made[1] / "ca.key", path)
    else:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        path.write_bytes(pem(key, encryption=serialization.BestAvailableEncryption(b"x")))
    with pytest.raises(DataError, match=r"ca\.key"):
        make_client(ours, "carol")
    assert not (ours / "client-carol.pem").exists()


# Who connects


@pytest.fixture
def serving(made):
    lines = []

    def converse(client):
        message = yield b""
        while True:
            message = yield client.id.encode() + b":" + message

    def serve(**options):
        return GrpcServer("127.0.0.1:0", converse, on_event=lines.append, **options)

    return serve, lines


@pytest.mark.parametrize("name", ["Köln", "a b", "", "a\nb", "x" * 65, "名"])
def test_a_client_id_that_is_none_is_refused_before_anything_is_sent(name):
    with pytest.raises(ParameterError, match="client id"):
        connect("127.0.0.1:9", client_id=name)  # nobody listens there


@pytest.mark.parametrize("name", ["a b", "a:done", "-rf", "x" * 100])
def test_the_server_refuses_ids_by_the_same_rule(serving, name):
    serve, lines = serving
    with serve() as server:
        raw = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        channel = GrpcChannel(raw, name, "here", tls=False, timeout=5, max_message=1000)
        channel.send(b"x")
        with pytest.raises(ProtocolError, match="client id"):
            channel.receive()
        channel.close()
        assert any("refused" in line for line in lines)


@pytest.mark.parametrize("names", [(), ("",), ("a\nb: done",), ("\x1b[2Jx",), ("älice",), ("x" * 70,)])
def test_certificates_that_name_no_client_are_refused(made, ours, serving, names):
    serve, lines = serving
    certificate, key = signed(ours, names=names)
    tls = ClientTls(certificate.public_bytes(PEM), pem(key), (ours / "ca.pem").read_bytes())
    with serve(tls=ServerTls.load(ours)) as server:
        channel = connect(f"localhost:{server.port}", tls=tls)
        channel.send(b"x")
        with pytest.raises(ProtocolError, match="common name"):
            channel.receive()
        channel.close()
        for _ in range(200):
            if lines:
                break
            time.sleep(0.01)
        assert "refused" in lines[0]
        assert all(line.isprintable() for line in lines)
        good = connect(f"localhost:{server.port}", tls=ClientTls.load(ours, "alice"))
        good.send(b"x")
        assert good.receive() == b"alice:x"
        good.close()

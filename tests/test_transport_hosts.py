from __future__ import annotations

import pytest

from hesplit_native.errors import ParameterError
from hesplit_native.transport.grpc import join_address, parse_address
from hesplit_native.transport.hosts import certificate_host, normal_host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("server", "server"),
        ("Server.Clinic.Example.", "server.clinic.example"),
        ("  db-1.example\n", "db-1.example"),
        ("my_server", "my_server"),  # as containers are called
        ("klinik-köln.de", "xn--klinik-kln-lcb.de"),
        ("KÖLN.de", "xn--kln-sna.de"),
        ("ko\u0308ln.de", "xn--kln-sna.de"),
        ("病院.example", "xn--0rys90e.example"),
        ("xn--strae-oqa.de", "xn--strae-oqa.de"),
        ("[::1]", "::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("192.0.2.7", "192.0.2.7"),
        ("3com.example", "3com.example"),
    ],
)
def test_one_spelling(text, host):
    assert normal_host(text) == host
    assert certificate_host(text) == host
    assert normal_host(host) == host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (".", "parts of"),
        ("https://server", "without scheme"),
        ("server/path", "without scheme"),
        ("me@server", "without scheme"),
        ("server:7000", "without a port"),
        ("[::1]:7000", "without a port"),
        ("[server]", "without a port"),
        ("a b", "parts of"),
        ("a..b", "parts of"),
        ("-a.example", "parts of"),
        ("a-.example", "parts of"),
        ("x" * 64 + ".example", "parts of"),
        (".".join(["x" * 60] * 5), "more than 253"),
        ("a\x1b[31m", "without a port"),
        ("a\nb", "parts of"),
        ("xn--\x00", "parts of"),
        ("127.1", "looks like an address"),
        ("300.1.2.3", "looks like an address"),
        ("192.0.2.07", "looks like an address"),
        ("straße.de", "xn--"),
        ("ö" * 64 + ".de", "xn--"),
    ],
)
def test_what_no_client_can_look_up(text, words):
    for function in (normal_host, certificate_host):
        with pytest.raises(ParameterError, match=words) as raised:
            function(text)
        assert "\x1b" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_certificates_may_name_a_domain():
    assert certificate_host("*.Clinic.Example.") == "*.clinic.example"
    for text in ("*", "*.", "a.*.example", "*.192.0.2.1", "*.*.example", "*a.example"):
        with pytest.raises(ParameterError):
            certificate_host(text)
    with pytest.raises(ParameterError):
        normal_host("*.clinic.example")


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "[::]", "fe80::1%eth0"])
def test_certificates_name_what_clients_can_use(text):
    normal_host(text)  # a server listens there
    with pytest.raises(ParameterError, match="this machine only"):
        certificate_host(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("LOCALHOST.:7000", ("localhost", 7000)),
        ("köln.de:1", ("xn--kln-sna.de", 1)),
        ("[2001:DB8::1]:7000", ("2001:db8::1", 7000)),
    ],
)
def test_addresses_are_spelled_alike(text, address):
    assert parse_address(text) == address


def test_a_url_is_no_address():
    with pytest.raises(ParameterError, match="without scheme"):
        parse_address("https://server.example:7000")


@pytest.mark.parametrize("address", ["server.example:7000", "192.0.2.7:1", "[2001:db8::1]:65535"])
def test_addresses_are_joined_as_they_are_parsed(address):
    assert join_address(*parse_address(address)) == address

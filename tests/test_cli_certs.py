from __future__ import annotations

import pytest
from cryptography import x509
from typer.testing import CliRunner

from hesplit_native.cli import app
from hesplit_native.transport import ClientTls, ServerTls
from hesplit_native.transport.authority import client_ids, server_hosts


def run(*arguments):
    return CliRunner().invoke(app, ["certs", *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(before, folder):
    now = contents(folder)
    return {name for name in now if before.get(name) != now[name]}


def pair(name):
    return {f"{name}.pem", f"{name}.key"}


@pytest.fixture
def folder(tmp_path):
    """A CA with a server and two clients."""
    assert run(tmp_path / "tls", "--client", "a", "--client", "b").exit_code == 0
    return tmp_path / "tls"


def check_all(folder):
    ServerTls.load(folder)
    for name in client_ids(folder):
        ClientTls.load(folder, name)


def test_the_first_run_makes_everything(tmp_path):
    result = run(tmp_path / "x" / "y")
    assert result.exit_code == 0, result.output
    assert set(contents(tmp_path / "x" / "y")) == pair("ca") | pair("server") | pair("client-client")
    assert server_hosts(tmp_path / "x" / "y") == ["localhost", "127.0.0.1", "::1"]
    for line in ("ca: new", "server: new, for localhost, 127.0.0.1, ::1", "client-client: new"):
        assert line in result.output


def test_another_client_leaves_everything_else(folder):
    before = contents(folder)
    result = run(folder, "--client", "c")
    assert result.exit_code == 0, result.output
    assert changed(before, folder) == pair("client-c")
    assert "server:" not in result.output
    check_all(folder)


def test_renewing_a_client_leaves_everything_else(folder):
    before = contents(folder)
    result = run(folder, "--client", "a", "--overwrite")
    assert result.exit_code == 0, result.output
    assert changed(before, folder) == pair("client-a")
    check_all(folder)


def test_another_host_joins_those_that_were_there(folder):
    before = contents(folder)
    result = run(folder, "--host", "Server.Example.", "--host", "köln.example", "--host", "192.0.2.7")
    assert result.exit_code == 0, result.output
    assert changed(before, folder) == pair("server")
    wanted = {"localhost", "127.0.0.1", "::1", "server.example", "xn--kln-sna.example", "192.0.2.7"}
    assert set(server_hosts(folder)) == wanted
    for name in wanted:
        assert name in result.output
    assert "start the server again" in result.output
    check_all(folder)


def test_hosts_that_are_there_already_change_nothing(folder):
    before = contents(folder)
    result = run(folder, "--host", "LOCALHOST", "--host", "[::1]")
    assert result.exit_code == 0, result.output
    assert not changed(before, folder)
    assert "nothing to do" in result.output
    assert "new" not in result.output


def test_hosts_replace_those_that_were_there_when_asked(folder):
    before = contents(folder)
    assert run(folder, "--host", "*.clinic.example", "--overwrite").exit_code == 0
    assert changed(before, folder) == pair("server")
    assert server_hosts(folder) == ["*.clinic.example"]


def test_overwrite_alone_renews_all_under_the_same_ca(folder):
    run(folder, "--host", "server.example")
    hosts, before = server_hosts(folder), contents(folder)
    assert run(folder, "--overwrite").exit_code == 0
    assert changed(before, folder) == pair("server") | pair("client-a") | pair("client-b")
    assert server_hosts(folder) == hosts
    check_all(folder)


def test_a_new_ca_is_asked_for_by_its_name_and_leaves_nothing_of_the_old(folder):
    run(folder, "--host", "server.example")
    hosts, before = server_hosts(folder), contents(folder)
    result = run(folder, "--new-ca", "--client", "c")
    assert result.exit_code == 0, result.output
    assert changed(before, folder) == set(contents(folder)) == set(before) | pair("client-c")
    assert server_hosts(folder) == hosts
    assert "ca: new" in result.output
    check_all(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "https://server.example:7000"],
        ["--host", "good.example", "--host", "server:7000"],
        ["--host", ""],
        ["--host", "0.0.0.0"],
        ["--client", "c", "--client", "ä"],
        ["--client", "c", "--client", "a"],
        ["--client", "../x", "--overwrite"],
    ],
)
def test_a_refusal_writes_nothing(folder, arguments):
    before = contents(folder)
    result = run(folder, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert contents(folder) == before


def test_without_the_cas_key_nothing_is_signed(folder):
    (folder / "ca.key").unlink()
    before = contents(folder)
    for arguments in (["--client", "c"], ["--host", "x.example"], ["--overwrite"]):
        result = run(folder, *arguments)
        assert result.exit_code == 1
        assert "ca.key is missing" in result.stderr
    (folder / "ca.pem").unlink()
    result = run(folder, "--client", "c")
    assert "certificates of a CA that is not there" in result.stderr
    assert contents(folder).keys() == before.keys() - {"ca.pem"}


def test_a_server_of_another_ca_is_not_replaced_unasked(folder, tmp_path):
    assert run(tmp_path / "other").exit_code == 0
    for name in pair("server"):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    before = contents(folder)
    result = run(folder, "--host", "x.example")
    assert result.exit_code == 1
    assert "server.pem is not signed by" in result.stderr
    assert contents(folder) == before
    assert run(folder, "--host", "x.example", "--overwrite").exit_code == 0
    check_all(folder)


def test_certificates_say_until_when(folder):
    result = run(folder, "--overwrite")
    for name in ("server", "client-a"):
        until = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()).not_valid_after_utc
        assert f"{until:%Y-%m-%d}" in result.output

from __future__ import annotations

import copy
import os
import pickle
import stat
import subprocess
import sys

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.layer import keys


@pytest.fixture(scope="module")
def params():
    return hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_saved_key_decrypts_what_the_original_encrypted(tmp_path, params, passphrase):
    key = hn.SecretKey.generate(params)
    path = tmp_path / "key"
    key.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = hn.SecretKey.load(path, passphrase)
    assert loaded.id == key.id
    assert loaded.parameters == params
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 20)), rng.normal(size=(3, 20))
    server = hn.LinearServer(hn.LinearClient(key, 20, 3).public_material(), w)
    client = hn.LinearClient(loaded, 20, 3)
    np.testing.assert_allclose(client.decrypt(server.forward(client.encrypt(x))), x @ w.T, atol=params.error_bound)
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_passphrases(tmp_path, params):
    path = tmp_path / "key"
    hn.SecretKey.generate(params).save(path, "correct horse")
    with pytest.raises(hn.KeyMismatchError, match="wrong passphrase"):
        hn.SecretKey.load(path, "battery staple")
    with pytest.raises(hn.WireError, match="is encrypted"):
        hn.SecretKey.load(path)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_damaged_key_files(tmp_path, params, passphrase):
    path = tmp_path / "key"
    hn.SecretKey.generate(params).save(path, passphrase)
    data = path.read_bytes()
    damaged = [b"", b"x" * 100, data[:20], data[:-1], data + b"\0"]
    for at in (0, 5, 10, 60, 100, len(data) // 2, len(data) - 1):
        damaged.append(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for changed in damaged:
        path.write_bytes(changed)
        with pytest.raises((hn.WireError, hn.KeyMismatchError)):
            hn.SecretKey.load(path, passphrase)


def test_the_cost_of_guessing_passphrases_is_in_the_file(tmp_path, params, monkeypatch):
    key, path = hn.SecretKey.generate(params), tmp_path / "key"
    key.save(path, "correct horse")
    assert path.read_bytes()[5:8] == bytes([17, 8, 1])  # scrypt's log2 n, r, p
    with monkeypatch.context() as patch:  # as files of earlier versions are
        patch.setattr(keys, "_SCRYPT", (15, 8, 1))
        key.save(path, "correct horse")
    assert path.read_bytes()[5] == 15
    assert hn.SecretKey.load(path, "correct horse").id == key.id
    for cost in ((30, 8, 1), (17, 255, 1), (17, 8, 255), (1, 8, 1)):  # which could take any memory or time, or none
        path.write_bytes(path.read_bytes()[:5] + bytes(cost) + path.read_bytes()[8:])
        with pytest.raises(hn.WireError, match="another version or is damaged"):
            hn.SecretKey.load(path, "correct horse")


def test_a_key_cannot_be_pickled_or_copied(params):
    key = hn.SecretKey.generate(params)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            attempt(key)
        with pytest.raises(TypeError, match="cannot be pickled"):
            attempt(key._native)


def test_a_key_shows_no_secret(params):
    key = hn.SecretKey.generate(params)
    text = repr(key)
    assert key.id in text
    assert len(text) < 600


def test_keys_differ(params):
    keys = [hn.SecretKey.generate(params) for _ in range(3)]
    assert len({key.id for key in keys}) == 3
    assert len({bytes(key._native.to_bytearray()[200:]) for key in keys}) == 3


_PAGES = """
import resource, sys
import numpy as np
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
import hesplit_native as hn

def locked():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))

def not_dumped():
    return sum("dd" in line.split() for line in open("/proc/self/smaps") if line.startswith("VmFlags"))

before = not_dumped()
params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4, releases=1)
x, w = np.ones((4, 20)), np.ones((3, 20)) / 20
for fresh in (False, True):
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3, fresh_keys=fresh)
    server = hn.LinearServer(client.public_material(), w)
    assert np.abs(client.decrypt(server.forward(client.encrypt(x))) - 1).max() <= params.error_bound
keys = [hn.SecretKey.generate(params) for _ in range(1000)]
most, pages = locked(), not_dumped() - before
del keys, client
print(most, pages, locked())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("limit", [0, 1 << 16, 1 << 23])
def test_pages_of_keys_are_locked_as_far_as_the_system_allows(limit):
    run = subprocess.run([sys.executable, "-c", _PAGES, str(limit)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    most, pages, left = map(int, run.stdout.split())
    assert pages >= 1  # of which core dumps hold nothing
    if os.geteuid() != 0:
        assert most <= limit // 1024
    if limit == 1 << 23:
        assert most >= 4 * 1000  # kB: a page each
        assert left <= 1024 + 64  # what is kept for the next keys

"""A damaged cache is made anew, never believed."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.data.mitbih import Beats, _read_cache, _write_cache
from hesplit_native.data.npz import read_npz


def test_no_flipped_bit_passes_for_other_beats(tmp_path):
    generator = np.random.default_rng(0)
    beats = Beats(
        generator.normal(size=(20, 128)).astype(np.float32),
        generator.integers(0, 5, 20),
        generator.integers(100, 235, 20),
        generator.integers(0, 1 << 20, 20),
    )
    path = tmp_path / "c.npz"
    _write_cache(path, beats)
    whole = path.read_bytes()
    refused = 0
    for at in [*range(300), *range(300, len(whole), 37), *range(len(whole) - 200, len(whole))]:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        found = _read_cache(path)
        if found is None:
            refused += 1
            continue
        for name in ("signal", "label", "record", "sample"):
            np.testing.assert_array_equal(getattr(found, name), getattr(beats, name))
    assert refused > 300


def test_a_header_that_is_no_literal_with_the_right_checksum(tmp_path):
    path = tmp_path / "c.npz"
    header = b"\x93NUMPY\x01\x00" + (120).to_bytes(2, "little") + b"{'descr': '<f4', 'shape': (1".ljust(119) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header)
    with pytest.raises(hn.DataError, match=r"c\.npz cannot be read"):
        read_npz(path, ("a",))

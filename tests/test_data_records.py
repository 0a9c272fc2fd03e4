"""Records as people have them: leads in any order, gaps, segments, other formats, odd headers; and caches without a home."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.data.mitbih import load_mitbih, record_beats
from hesplit_native.data.records import MITBIH_RECORDS, cache_directory, find_mitbih, read_record, record_files
from hesplit_native.data.wfdb_files import read_leads, signal_files

SAMPLES = 7200
PEAKS = np.arange(300, 7000, 300)


def wave(frequency=1.2):
    return np.sin(2 * np.pi * frequency * np.arange(SAMPLES) / 360) ** 15


def write(folder: Path, name="r", *, leads=("MLII",), units="mV", fmt="212", fs=360, peaks=PEAKS, change=lambda x: x):
    """A record whose lead number i is a wave of its own, and the annotations N."""
    import wfdb

    signal = np.stack([wave(1.2 + i) for i in range(len(leads))], axis=1)
    signal = change(signal)
    wfdb.wrsamp(
        name, fs=fs, units=[units] * len(leads), sig_name=list(leads), p_signal=signal, fmt=[fmt] * len(leads), write_dir=str(folder)
    )  # fmt: skip
    wfdb.wrann(name, "atr", np.asarray(peaks), ["N"] * len(peaks), write_dir=str(folder))
    return signal


def edit(path: Path, change):
    path.write_text(change(path.read_text(encoding="utf-8")))


# Leads


@pytest.mark.parametrize("leads", [("V1", "MLII"), ("V5", "V2", "MLII"), ("mlii", "V1"), ("V1", "ML II")])
def test_the_lead_is_chosen_by_its_name(tmp_path, leads):
    signal = write(tmp_path, leads=[name.replace(" ", "_") for name in leads])
    edit(tmp_path / "r.hea", lambda text: text.replace("ML_II", "ML II"))
    at = [name.replace(" ", "").upper() for name in leads].index("MLII")
    np.testing.assert_allclose(read_record(tmp_path, "r").signal, signal[:, at], atol=0.01)


@pytest.mark.parametrize(
    ("leads", "words"),
    [
        (("V5", "V2"), "no lead MLII, its leads are V5, V2"),
        (("II",), "no lead MLII, its leads are II"),
        (("-MLII", "V1"), "no lead MLII"),
        (("MLII", "V1", "MLII"), "2 leads called MLII"),
    ],
)
def test_a_lead_that_is_not_there_or_twice_is_refused_and_the_others_named(tmp_path, leads, words):
    write(tmp_path, leads=["a" * (i + 1) for i in range(len(leads))])  # wfdb does not write a name twice
    lines = (tmp_path / "r.hea").read_text(encoding="utf-8").splitlines()
    for i, lead in enumerate(leads, 1):
        lines[i] = lines[i].rpartition(" ")[0] + f" {lead}"
    (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
    with pytest.raises(hn.DataError, match=r"r\.hea") as caught:
        read_record(tmp_path, "r")
    assert words in str(caught.value)


def test_an_unnamed_lead_is_refused(tmp_path):
    write(tmp_path)
    edit(tmp_path / "r.hea", lambda text: text.replace(" MLII", ""))
    with pytest.raises(hn.DataError, match=r"no lead MLII, its leads are \(unnamed\)"):
        read_record(tmp_path, "r")


def test_leads_of_real_records_by_name(mitdb):
    import wfdb

    second = wfdb.rdrecord(str(mitdb / "114"), channels=[1]).p_signal[:, 0]
    np.testing.assert_array_equal(read_record(mitdb, "114").signal, second)
    with pytest.raises(hn.DataError, match="its leads are V5, V2"):
        read_record(mitdb, "102")


@pytest.mark.parametrize(("units", "scale"), [("uV", 1000), ("V", 0.001), ("mV", 1)])
def test_voltages_become_millivolts(tmp_path, units, scale):
    signal = write(tmp_path, units=units, change=lambda x: x * scale)
    np.testing.assert_allclose(read_record(tmp_path, "r").signal, signal[:, 0] / scale, atol=0.002)


@pytest.mark.parametrize("units", ["mmHg", "adu"])
def test_what_is_no_voltage_is_refused(tmp_path, units):
    write(tmp_path, units=units)
    with pytest.raises(hn.DataError, match=f"MLII is in '{units}'"):
        read_record(tmp_path, "r")


@pytest.mark.parametrize("fs", [128, 250, 500])
def test_other_sampling_rates_are_named(tmp_path, fs):
    write(tmp_path, fs=fs)
    for any_storage in (False, True):
        with pytest.raises(hn.DataError, match=f"{fs} Hz, expected 360 Hz"):
            read_record(tmp_path, "r", any_storage=any_storage)


def test_a_lead_of_several_samples_a_frame_is_not_averaged_in_silence(tmp_path):
    write(tmp_path, fmt="16")
    edit(tmp_path / "r.hea", lambda text: text.replace(" 360 7200", " 360 3600").replace("r.dat 16", "r.dat 16x2"))
    with pytest.raises(hn.DataError, match="MLII is recorded at 720 Hz"):
        read_record(tmp_path, "r", any_storage=True)


# Invalid samples


@pytest.mark.parametrize("fmt", ["212", "16", "24"])
def test_invalid_samples_cost_the_beats_around_them(tmp_path, fmt):
    def gaps(signal):
        signal = signal.copy()
        signal[[1510, 3000, 3001], 0] = np.nan
        return signal

    write(tmp_path, "whole", fmt=fmt)
    write(tmp_path, "r", fmt=fmt, change=gaps)
    whole = record_beats(read_record(tmp_path, "whole", any_storage=True))
    with pytest.warns(UserWarning, match=f"record r: 2 of {len(whole.label)} beats are left out"):
        beats = record_beats(read_record(tmp_path, "r", any_storage=True))
    kept = ~np.isin(whole.sample, (1500, 3000))
    assert beats.sample.tolist() == whole.sample[kept].tolist()
    assert np.isfinite(beats.signal).all()
    np.testing.assert_allclose(beats.signal, whole.signal[kept], atol=0.02)


@pytest.mark.parametrize(
    "change", [lambda x: 0 * x + 0.5, lambda x: np.where(np.arange(SAMPLES)[:, None] > 50, np.nan, 0.5)]
)
def test_a_lead_without_a_signal_is_refused(tmp_path, change):
    write(tmp_path, change=change)
    with pytest.raises(hn.DataError, match="MLII holds no usable signal"):
        read_record(tmp_path, "r")


# Storage


@pytest.mark.parametrize("fmt", ["16", "24", "32", "80", "508", "516", "524"])
def test_what_wfdb_reads_is_read_on_request_only(tmp_path, fmt):
    signal = write(tmp_path, leads=("V1", "MLII"), fmt=fmt)
    record = read_record(tmp_path, "r", any_storage=True)
    np.testing.assert_allclose(record.signal, signal[:, 1], atol=0.02)
    with pytest.raises(hn.DataError, match=f"not an MIT-BIH record: 1 signal files in format {fmt}"):
        read_record(tmp_path, "r")


def pack_310(values):
    """Three samples of 10 bits in four bytes (WFDB's signal(5))."""
    out = bytearray()
    for a, b, c in np.asarray(values).reshape(-1, 3) & 0x3FF:
        first, second = (a << 1) | ((c & 0x1F) << 11), (b << 1) | ((c >> 5) << 11)
        out += int(first).to_bytes(2, "little") + int(second).to_bytes(2, "little")
    return bytes(out)


@pytest.mark.parametrize("fmt", ["61", "160", "310"])
def test_formats_that_wfdb_only_reads(tmp_path, fmt):
    signal = write(tmp_path, fmt="16")
    digital = np.round(signal[:, 0] * 200).astype(int)
    data = {
        "61": digital.astype(">i2").tobytes(),
        "160": (digital + (1 << 15)).astype("<u2").tobytes(),
        "310": pack_310(digital),
    }
    (tmp_path / "r.dat").write_bytes(data[fmt])
    (tmp_path / "r.hea").write_text(f"r 1 360 {SAMPLES}\nr.dat {fmt} 200/mV 12 0 {digital[0]} 0 0 MLII\n")
    np.testing.assert_allclose(read_record(tmp_path, "r", any_storage=True).signal, digital / 200, atol=1e-9)
    (tmp_path / "r.dat").write_bytes(data[fmt][:-20])
    with pytest.raises(hn.DataError, match=r"r\.dat is truncated"):
        read_record(tmp_path, "r", any_storage=True)


@pytest.mark.parametrize("fmt", ["16", "24", "32", "80", "508", "516", "524"])
def test_truncated_files_of_every_format_are_named(tmp_path, fmt):
    write(tmp_path, fmt=fmt)
    path = tmp_path / "r.dat"
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 5])
    with pytest.raises(hn.DataError, match=r"[/\\]r"):
        read_record(tmp_path, "r", any_storage=True)


def test_several_signal_files(tmp_path):
    one = write(tmp_path, "one", leads=("V1",), fmt="16")
    two = write(tmp_path, "two", leads=("MLII",), fmt="24", change=lambda x: 0.5 * x + 0.1)
    specifications = [(tmp_path / f"{name}.hea").read_text(encoding="utf-8").splitlines()[1] for name in ("one", "two")]
    (tmp_path / "r.hea").write_text("\n".join(["r 2 360 7200", *specifications, "# two devices"]) + "\n")
    shutil.copy(tmp_path / "one.atr", tmp_path / "r.atr")
    np.testing.assert_allclose(read_record(tmp_path, "r", any_storage=True).signal, two[:, 0], atol=0.001)
    np.testing.assert_allclose(
        read_leads(tmp_path / "r", signal_files(tmp_path / "r")[0], ("MLII", "V1"), 360), np.c_[two, one], atol=0.001
    )
    (tmp_path / "two.dat").unlink()
    with pytest.raises(hn.DataError, match=r"two\.dat is missing, though .*r\.hea names it"):
        read_record(tmp_path, "r", any_storage=True)


class TestSegments:
    def record(self, folder, header):
        (folder / "m.hea").write_text(header)
        import wfdb

        wfdb.wrann("m", "atr", PEAKS, ["N"] * len(PEAKS), write_dir=str(folder))
        return read_record(folder, "m", any_storage=True).signal

    def test_leads_are_searched_in_each(self, tmp_path):
        first = write(tmp_path, "s1", leads=("MLII", "V1"), fmt="16")
        second = write(tmp_path, "s2", leads=("V1", "MLII"))
        signal = self.record(tmp_path, "m/2 2 360 14400\ns1 7200\ns2 7200\n")
        np.testing.assert_allclose(signal, np.concatenate([first[:, 0], second[:, 1]]), atol=0.01)

    def test_gaps_and_segments_without_the_lead_are_invalid(self, tmp_path):
        first = write(tmp_path, "s1")
        write(tmp_path, "s2", leads=("V1",))
        signal = self.record(tmp_path, "m/4 1 360 21700\ns1 7200\n~ 100\ns2 7200\ns1 7200\n")
        assert np.isnan(signal[7200:14500]).all()
        np.testing.assert_allclose(signal[14500:], first[:, 0], atol=0.01)

    def test_a_layout_is_no_segment(self, tmp_path):
        first = write(tmp_path, "s1", leads=("V1", "MLII"))
        (tmp_path / "lay.hea").write_text("lay 2 360 0\n~ 0 200/mV 12 0 0 0 0 V1\n~ 0 200/mV 12 0 0 0 0 MLII\n")
        signal = self.record(tmp_path, "m/2 2 360 7200\nlay 0\ns1 7200\n")
        np.testing.assert_allclose(signal, first[:, 1], atol=0.01)

    @pytest.mark.parametrize(
        ("header", "words"),
        [
            ("m/2 1 360 14400\ns1 7200\ns2 7200\n", "s2.hea is missing"),
            ("m/2 1 360 14400\ns1 7200\ns1 7000\n", "7200 samples, but 7000"),
            ("m/2 1 360 15000\ns1 7200\ns1 7200\n", "announces 15000 samples"),
            ("m/2 1 360 14400\ns1 7200\nm 7200\n", "has segments itself"),
            ("m/2 1 360 14400\ns1 7200\nslow 7200\n", "slow.hea: recorded at 250 Hz"),
            ("m/1 1 360 7200\nother 7200\n", "no segment has the leads MLII"),
            ("m/1 1 360 9000000000000\n~ 9000000000000\n", "announces 9000000000000 samples"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, header, words):
        write(tmp_path, "s1")
        write(tmp_path, "slow", fs=250)
        write(tmp_path, "other", leads=("V1",))
        with pytest.raises(hn.DataError) as caught:
            self.record(tmp_path, header)
        assert words in str(caught.value)

    def test_they_are_no_record_of_mit_bih(self, tmp_path):
        write(tmp_path, "s1")
        self.record(tmp_path, "m/1 1 360 7200\ns1 7200\n")
        with pytest.raises(hn.DataError, match="not an MIT-BIH record: it has 1 segments"):
            read_record(tmp_path, "m")


# Headers and annotations


def test_no_sample_count(tmp_path):
    signal = write(tmp_path, leads=("V1", "MLII"))
    edit(tmp_path / "r.hea", lambda text: text.replace(" 360 7200", " 360"))
    np.testing.assert_allclose(read_record(tmp_path, "r").signal, signal[:, 1], atol=0.01)


@pytest.mark.parametrize("suffix", [".hea", ".dat", ".atr"])
def test_named_with_a_suffix(tmp_path, suffix):
    write(tmp_path, "100")
    assert read_record(tmp_path, f"100{suffix}").name == "100"


def test_a_name_with_a_dot_keeps_it(tmp_path):
    write(tmp_path, "100")
    for suffix in (".hea", ".dat", ".atr"):
        shutil.copy(tmp_path / f"100{suffix}", tmp_path / f"100.dat{suffix}")
    assert read_record(tmp_path, "100.dat").name == "100.dat"


def test_a_renamed_record_is_read_from_the_file_its_header_names(tmp_path):
    signal = write(tmp_path, "before")
    for suffix in (".hea", ".atr"):
        shutil.move(tmp_path / f"before{suffix}", tmp_path / f"after{suffix}")
    np.testing.assert_allclose(read_record(tmp_path, "after").signal, signal[:, 0], atol=0.01)
    assert [path.name for path in record_files(tmp_path, "after")] == ["after.hea", "after.atr", "before.dat"]


@pytest.mark.parametrize("peaks", [[], [500], [500, 900], [500, 900, 1300, 1700]])
def test_few_annotations_are_read_and_give_no_beats(tmp_path, peaks):
    write(tmp_path, peaks=peaks or [5])
    if not peaks:
        (tmp_path / "r.atr").write_bytes(b"\0\0")
    record = read_record(tmp_path, "r")
    assert record.samples.tolist() == peaks
    assert len(record_beats(record).label) == 0


def test_annotations_of_another_clock_are_refused(tmp_path):
    import wfdb

    write(tmp_path)
    wfdb.wrann("r", "atr", PEAKS, ["N"] * len(PEAKS), fs=250, write_dir=str(tmp_path))
    with pytest.raises(hn.DataError, match=r"r\.atr counts time in steps of 1/250"):
        read_record(tmp_path, "r")


def test_only_the_reference_annotations_count(tmp_path):
    import wfdb

    write(tmp_path)
    wfdb.wrann("r", "qrs", np.array([7000, 7100]), ["V", "V"], write_dir=str(tmp_path))
    assert read_record(tmp_path, "r").samples.tolist() == PEAKS.tolist()


# The pool's cache


def test_the_cache_follows_the_file_that_a_header_names(mitdb, tmp_path):
    folder = tmp_path / "mitdb"
    folder.mkdir()
    for name in MITBIH_RECORDS:
        for suffix in (".hea", ".dat", ".atr"):
            (folder / f"{name}{suffix}").symlink_to((mitdb / f"{name}{suffix}").resolve())
    (folder / "100.hea").unlink()
    (folder / "100.hea").write_text((mitdb / "100.hea").read_text(encoding="utf-8").replace("100.dat", "moved.dat"))
    shutil.copy(mitdb / "100.dat", folder / "moved.dat")
    first = load_mitbih(folder, split="patients", cache_dir=tmp_path / "cache")
    shutil.copy(mitdb / "101.dat", folder / "moved.dat")
    second = load_mitbih(folder, split="patients", cache_dir=tmp_path / "cache")
    assert not np.array_equal(first.test_x, second.test_x)
    assert len(list((tmp_path / "cache").iterdir())) == 2


# Places for caches


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without HOME and without an entry in the table of users; temporary files go to tmp_path."""
    from hesplit_native.data import records

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records._temporary_cache.cache_clear()
    yield tmp_path
    records._temporary_cache.cache_clear()


def test_without_a_home_there_is_a_private_temporary_cache_that_is_announced_once(homeless):
    with pytest.warns(UserWarning, match="no home directory.*XDG_CACHE_HOME"):
        path = cache_directory()
    assert path.parent == homeless
    assert path.stat().st_mode & 0o077 == 0
    assert cache_directory() == path


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners are POSIX's")
def test_a_cache_that_others_can_write_to_is_not_believed(homeless):
    planted = homeless / f"hesplit_native-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.warns(UserWarning, match="no home directory"):
        path = cache_directory()
    assert path != planted
    assert path.stat().st_mode & 0o077 == 0


def test_a_planted_link_is_not_followed(homeless):
    (homeless / "elsewhere").mkdir(mode=0o700)
    user = os.getuid() if hasattr(os, "getuid") else 0
    (homeless / f"hesplit_native-{user}").symlink_to(homeless / "elsewhere")
    with pytest.warns(UserWarning, match="no home directory"):
        assert cache_directory().name != f"hesplit_native-{user}"


def test_without_any_place_the_error_says_what_to_set(homeless, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(homeless / "nowhere"))
    with pytest.raises(hn.DataError, match="XDG_CACHE_HOME"):
        cache_directory()


def test_a_home_in_which_nothing_can_be_made(homeless, monkeypatch):
    (homeless / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(homeless / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be made"):
        assert cache_directory().parent == homeless


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path):
    from hesplit_native.data.npz import write_cache

    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot keep processed data"):
        write_cache(tmp_path / "file" / "c.npz", x=np.zeros(3))


def test_a_download_without_a_place_says_so(homeless, monkeypatch):
    monkeypatch.delenv("HESPLIT_MITDB", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(homeless / "nowhere"))
    with warnings.catch_warnings(), pytest.raises(hn.DataError, match="XDG_CACHE_HOME"):
        find_mitbih()

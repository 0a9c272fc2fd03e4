"""Recordings as they come: every format, rate and damage that `predict --record` may meet."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.data import recording_files, recordings
from hesplit_native.data.mitbih import record_beats, usable
from hesplit_native.data.ptbxl import LEADS
from hesplit_native.data.recording_rows import find_beats, leads_of, rows_of
from hesplit_native.data.recordings import read_recording, resampled
from hesplit_native.data.records import read_record
from hesplit_native.data.tables import notations, number

WAVES = ((-0.17, 0.022, 0.12), (-0.035, 0.010, -0.10), (0.0, 0.012, 1.0), (0.030, 0.011, -0.25), (0.26, 0.050, 0.30))
PEAKS = np.arange(0.7, 29.5, 0.8)  # seconds


def ecg(rate, seconds=30.0, peaks=PEAKS, noise=0.01, baseline=0.0):
    """A lead in millivolts [samples]."""
    time = np.arange(round(seconds * rate)) / rate
    offset = time[:, None] - np.asarray(peaks)
    clean = sum(height * np.exp(-0.5 * ((offset - at) / width) ** 2).sum(1) for at, width, height in WAVES)
    return clean + baseline + noise * np.random.default_rng(0).normal(size=len(time))


def write_wfdb(folder, name="r", rate=360, leads=("MLII", "V1"), signal=None, beats=None, symbols=None, units="mV"):
    import wfdb

    one = ecg(rate) if signal is None else signal
    wfdb.wrsamp(
        name, fs=rate, units=[units] * len(leads), sig_name=list(leads), fmt=["16"] * len(leads), write_dir=str(folder),
        p_signal=np.stack([one] + [0.3 * one] * (len(leads) - 1), axis=1),
    )  # fmt: skip
    if beats is not None:
        wfdb.wrann(name, "atr", np.asarray(beats), symbol=list(symbols or "N" * len(beats)), write_dir=str(folder))
    return folder / name


def write_edf(path, signals, labels, rates, units="uV", span=5000.0, **options):
    import edfio

    edfio.Edf(
        [
            edfio.EdfSignal(
                np.clip(values, -span, span), rate, label=label, physical_dimension=units, physical_range=(-span, span)
            )
            for values, label, rate in zip(signals, labels, rates, strict=True)
        ],
        **options,
    ).write(path)
    return path


def write_csv(path, columns, delimiter=",", comma=False, head=()):
    rows = zip(*(np.atleast_1d(values) for values in columns.values()), strict=True)
    text = [*head, delimiter.join(columns), *(delimiter.join(f"{value:.4f}" for value in row) for row in rows)]
    body = "\n".join(text) + "\n"
    path.write_text(body.replace(".", ",") if comma else body, encoding="utf-8")
    return path


@pytest.fixture
def edf():
    pytest.importorskip("edfio")


# The same signal from every format


def test_a_record_of_frames(tmp_path):
    """A fast ECG beside a slow signal, as monitors store them: several samples a frame."""
    import wfdb

    signal, slow = ecg(500), np.sin(np.arange(3750) / 40)
    common = {"units": ["mV", "mV"], "fmt": ["16", "16"], "write_dir": str(tmp_path), "fs": 125}
    wfdb.wrsamp("r", sig_name=["II", "Resp"], e_p_signal=[signal, slow], samps_per_frame=[4, 1], **common)
    wfdb.wrann("r", "atr", np.round(PEAKS * 125).astype(int), symbol=["N"] * len(PEAKS), write_dir=str(tmp_path))
    found = read_recording(tmp_path / "r", ["II"])
    assert found.sampling_rate == 500
    np.testing.assert_allclose(found.signal[:, 0], signal, atol=1e-3)
    np.testing.assert_allclose(found.samples / 500, PEAKS, atol=0.005)
    assert read_recording(tmp_path / "r", ["Resp"]).sampling_rate == 125
    with pytest.raises(hn.DataError, match="Resp is recorded at 125 Hz, expected 500 Hz"):
        read_recording(tmp_path / "r", ["II", "Resp"])
    # The same twice, with a gap between, as segments.
    (tmp_path / "m.hea").write_text("m/3 2 125 8000\nr 3750\n~ 500\nr 3750\n")
    found = read_recording(tmp_path / "m", ["II"])
    assert found.sampling_rate == 500
    assert np.isnan(found.signal[15000:17000]).all()
    np.testing.assert_allclose(found.signal[17000:, 0], signal, atol=1e-3)


def test_every_format_gives_the_same_signal(tmp_path, edf):
    signal = ecg(360)
    written = {
        "wfdb": write_wfdb(tmp_path, signal=signal),
        "wfdb with its suffix": tmp_path / "r.hea",
        "edf": write_edf(tmp_path / "a.edf", [1000 * signal], ["ECG MLII"], [360]),
        "edf in mV": write_edf(tmp_path / "b.EDF", [signal, signal[::2]], ["mlii", "Resp"], [360, 180], "mV", 5.0),
        "csv": write_csv(tmp_path / "a.csv", {"time": np.arange(len(signal)), "MLII": signal}),
        "csv, decimal comma": write_csv(tmp_path / "b.csv", {"MLII": signal, "V1": signal}, ";", comma=True),
        "csv in uV": write_csv(tmp_path / "c.txt", {"MLII [µV]": 1000 * signal}),
        "tsv with titles": write_csv(tmp_path / "d.tsv", {"ml ii": signal, "V1": signal}, "\t", head=["Device 7", ""]),
    }
    (tmp_path / "e.csv").write_text(
        "'Elapsed time','MLII'\n'seconds','uV'\n"
        + "".join(f"{i / 360:.3f},{1000 * v:.1f}\n" for i, v in enumerate(signal))
    )
    written["csv as rdsamp writes it"] = tmp_path / "e.csv"
    for name, array in (
        ("f8", signal),
        ("f4", signal.astype("<f4")),
        ("big", signal.astype(">f8")),
        ("row", signal[None]),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        written[name] = tmp_path / f"{name}.npy"
    for what, path in written.items():
        says = path.suffix.lower() in ("", ".hea", ".edf")
        found = read_recording(path, ["MLII"], sampling_rate=None if says else 360)
        assert found.sampling_rate == 360, what
        assert found.signal.shape == (10800, 1), what
        assert found.samples is None, what
        np.testing.assert_allclose(found.signal[:, 0], signal, atol=2e-3, err_msg=what)
        if not says:
            with pytest.raises(hn.ParameterError, match="--rate"):
                read_recording(path, ["MLII"])
        else:
            with pytest.raises(hn.DataError, match="says 360 Hz, not 250 Hz"):
                read_recording(path, ["MLII"], sampling_rate=250)


@pytest.mark.parametrize("kind", ["wfdb", "edf", "csv"])
def test_a_missing_lead_lists_those_there(tmp_path, edf, kind):
    signal = ecg(250)
    path = {
        "wfdb": lambda: write_wfdb(tmp_path, rate=250, leads=("II", "V5")),
        "edf": lambda: write_edf(tmp_path / "r.edf", [signal, signal], ["EKG II", "ECG V5"], [250, 250], "mV", 5.0),
        "csv": lambda: write_csv(tmp_path / "r.csv", {"II": signal, "V5": signal}),
    }[kind]()
    rate = 250 if kind == "csv" else None
    with pytest.raises(hn.DataError, match=r"no lead MLII, its leads are II, V5.*--lead"):
        read_recording(path, ["MLII"], sampling_rate=rate)
    assert read_recording(path, ["v5"], sampling_rate=rate).leads == ("v5",)


def test_twelve_leads_in_any_order(tmp_path, edf):
    signals = {lead: ecg(500, noise=0.02) * (1 + k) / 6 for k, lead in enumerate(LEADS)}
    shuffled = [LEADS[k] for k in np.random.default_rng(1).permutation(12)]
    path = write_edf(
        tmp_path / "a.edf",
        [1000 * signals[name] for name in shuffled],
        [f"ECG {name}" for name in shuffled],
        [500] * 12,
    )
    together = np.stack([signals[name] for name in LEADS], axis=1)
    np.testing.assert_allclose(read_recording(path, LEADS).signal, together, atol=1e-3)
    for array in (together, together.T):
        np.save(tmp_path / "a.npy", array)
        found = read_recording(tmp_path / "a.npy", LEADS, sampling_rate=500)
        np.testing.assert_array_equal(found.signal, together)
    rows = rows_of(found)
    assert rows.x.shape == (3, 12, 1000)
    assert rows.samples.tolist() == [0, 1000, 2000]
    assert rows.recording.in_file(rows.samples).tolist() == [0, 5000, 10000]
    np.testing.assert_allclose(rows.x.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(rows.x.std(axis=(1, 2)), 1, atol=1e-4)
    assert "resampled from 500 Hz to the model's 100 Hz" in rows.notes
    together[5200, 3] = np.nan
    np.save(tmp_path / "a.npy", together[:-250])
    rows = rows_of(read_recording(tmp_path / "a.npy", LEADS, sampling_rate=500))
    assert rows.samples.tolist() == [0]
    assert any("1 of 2 windows left out" in note for note in rows.notes)
    assert any("the last 9.5 s" in note for note in rows.notes)


def test_leads_of_a_model():
    assert leads_of(1, 128, None) == ("MLII",)
    assert leads_of(1, 128, "II") == ("II",)
    assert leads_of(12, 1000, None) == LEADS
    with pytest.raises(hn.DataError, match="twelve leads"):
        leads_of(12, 1000, "II")
    with pytest.raises(hn.DataError, match="takes no recordings"):
        leads_of(1, 100, None)


# Resampling


@pytest.mark.parametrize("rate", [100, 128, 250, 257.31, 500, 1000, 12_500, 50_000])
@pytest.mark.parametrize("to", [360, 100])
def test_resampling_keeps_what_both_rates_can_hold_and_no_more(rate, to):
    time = np.arange(round(4 * rate)) / rate
    slow = np.sin(2 * np.pi * 7 * time + 0.3) + 2.5  # on an offset, whose ends must not ring
    fast = 0.5 * np.sin(2 * np.pi * 0.65 * to * time) if rate > 1.4 * to else 0.0  # beyond what the new rate can hold
    found = resampled(recordings.Recording(Path("r"), ("II",), (slow + fast)[:, None], rate), to)
    assert abs(len(found.signal) - 4 * to) <= 1
    assert found.sampling_rate == to
    then = np.arange(len(found.signal)) / to
    inside = slice(to // 10, -to // 10)
    np.testing.assert_allclose(found.signal[inside, 0], np.sin(2 * np.pi * 7 * then + 0.3)[inside] + 2.5, atol=0.02)
    assert np.abs(found.signal[:, 0] - 2.5).max() < 1.2
    samples = np.arange(0, len(found.signal), 97)
    np.testing.assert_allclose(found.in_file(samples) / rate, samples / to, atol=0.51 / rate + 1e-6)


def test_resampling_does_not_touch_what_has_the_rate():
    found = recordings.Recording(Path("r"), ("II",), ecg(360)[:, None], 360.0)
    assert resampled(found, 360) is found


@given(rate=st.sampled_from([200, 250, 500, 1000]), at=st.integers(0, 5999), length=st.integers(1, 400))
@settings(max_examples=40)
def test_invalid_samples_stay_invalid_and_spoil_only_their_neighbourhood(rate, at, length):
    signal = ecg(rate, seconds=6000 / rate)
    broken = signal.copy()
    broken[at : at + length] = np.nan
    whole, found = (
        resampled(recordings.Recording(Path("r"), ("II",), values[:, None], rate), 360).signal[:, 0]
        for values in (signal, broken)
    )
    bad = np.isnan(found)
    then = np.arange(len(found)) / 360
    inside = (then >= at / rate) & (then <= (min(at + length, 6000) - 1) / rate)
    assert bad[inside].all()
    near = (then > at / rate - 0.11) & (then < (at + length) / rate + 0.11)
    assert not bad[~near].any()
    np.testing.assert_allclose(found[~bad], whole[~bad], atol=1e-4)


def test_annotations_move_with_the_signal(tmp_path):
    beats = np.round(PEAKS * 250).astype(int)
    path = write_wfdb(tmp_path, rate=250, beats=beats)
    found = read_recording(path, ["MLII"])
    assert found.samples.tolist() == beats.tolist()
    moved = resampled(found, 360)
    np.testing.assert_allclose(moved.samples / 360, PEAKS, atol=0.004)
    rows = rows_of(found)
    assert rows.labels.tolist() == [0] * (len(PEAKS) - 4)
    np.testing.assert_allclose(rows.recording.in_file(rows.samples), beats[2:-2], atol=1)


# Beats


@pytest.mark.parametrize("rate", [128, 250, 360, 500, 1000])
def test_beats_are_found_at_every_rate(rate):
    found = recordings.Recording(Path("r"), ("II",), ecg(rate, noise=0.03, baseline=1.5)[:, None], rate)
    rows = rows_of(found)
    seconds = rows.samples / 360
    assert rows.labels is None
    assert rows.x.shape == (len(PEAKS), 1, 128)
    np.testing.assert_allclose(seconds, PEAKS, atol=0.02)
    assert any(f"{len(PEAKS)} found in II by gqrs" in note for note in rows.notes)


def test_found_beats_are_cut_as_annotated_ones(tmp_path):
    signal = ecg(360)
    path = write_wfdb(tmp_path, signal=signal)
    rows = rows_of(read_recording(path, ["MLII"]))
    symbols = ["+", *"N" * len(rows.samples), "+"]
    import wfdb

    wfdb.wrann("r", "atr", np.array([1, *rows.samples, 10798]), symbol=symbols, write_dir=str(tmp_path))
    same = record_beats(read_record(tmp_path, "r", any_storage=True))
    np.testing.assert_array_equal(rows.samples[1:-1], same.sample)  # training leaves the outermost out
    np.testing.assert_array_equal(rows.x[1:-1, 0], same.signal)
    annotated = rows_of(read_recording(path, ["MLII"]))
    np.testing.assert_array_equal(annotated.x[:, 0], same.signal)
    assert annotated.labels.tolist() == same.label.tolist()


def test_annotations_without_beats_count_as_none(tmp_path):
    path = write_wfdb(tmp_path, beats=[10, 5000], symbols=["+", "~"])
    found = read_recording(path, ["MLII"])
    assert found.samples is None
    assert rows_of(found).labels is None


def test_beats_near_each_other_at_ends_and_in_gaps_are_left_out():
    assert usable(np.array([99, 300, 399, 500, 600, 899, 900]), 1000).tolist() == [
        False,
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    peaks = np.array([0.2, 1.0, 2.0, 3.2, 4.2, 5.2, 6.2, 7.2, 7.8])
    signal = ecg(360, 8.0, peaks)
    signal[round(5.2 * 360) + 60] = np.nan
    rows = rows_of(recordings.Recording(Path("r"), ("II",), signal[:, None], 360.0))
    np.testing.assert_allclose(rows.samples / 360, [1.0, 2.0, 3.2, 4.2, 6.2, 7.2], atol=0.02)
    assert any("left out" in note and "invalid samples (1)" in note for note in rows.notes)


def test_long_recordings_are_searched_in_pieces_without_a_seam(monkeypatch):
    peaks = np.arange(0.7, 179.5, 0.8)
    signal = ecg(360, 180.0, peaks)
    whole = find_beats(signal, 360)
    monkeypatch.setattr("hesplit_native.data.recording_rows._PIECE", 10_007)
    seen = []
    found = find_beats(signal, 360, progress=lambda pieces: (seen.append(len(pieces)), pieces)[1])
    assert seen == [7]
    np.testing.assert_allclose(found, whole, atol=1)
    # A seam in the middle of a beat, wherever that is, neither loses nor doubles it.
    for piece in range(9_900, 10_200, 13):
        monkeypatch.setattr("hesplit_native.data.recording_rows._PIECE", piece)
        np.testing.assert_allclose(find_beats(signal, 360), whole, atol=1)


def test_a_recording_without_beats_is_an_error():
    noise = 0.001 * np.random.default_rng(0).normal(size=(7200, 1))
    with pytest.raises(hn.DataError, match="no beats"):
        rows_of(recordings.Recording(Path("r"), ("II",), noise, 360.0))


@pytest.mark.parametrize(("name", "share"), [("100", 0.995), ("119", 0.99), ("222", 0.99)])
def test_real_beats_are_found(mitdb, name, share):
    """Against the annotators' beats, in a window of 150 ms as the standard has it."""
    from wfdb.processing import compare_annotations

    found = read_recording(mitdb / name, ["MLII"])
    beats = found.samples[np.isin(found.symbols, list("NLRBAaJSVrFejnE/fQ?"))]
    compared = compare_annotations(beats, find_beats(found.signal[:, 0], 360), 54)
    assert compared.sensitivity > share
    assert compared.positive_predictivity > share
    other = find_beats(resampled(replace(resampled(found, 250), samples=None), 360).signal[:, 0], 360)
    assert compare_annotations(beats, other, 54).sensitivity > share


# What is refused


def refused(path, words, *, leads=("MLII",), rate=360.0):
    with pytest.raises(hn.DataError, match=words) as caught:
        read_recording(path, leads, sampling_rate=rate if path.suffix in (".npy", ".csv", ".txt") else None)
    assert path.name.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(0), "too short"),
        (np.zeros((0, 1)), "too short"),
        (ecg(360)[:700], "too short"),
        (np.full(7200, np.nan), "no usable signal"),
        (np.full(7200, np.inf), "no usable signal"),
        (np.ones(7200), "no usable signal"),
        (ecg(360)[:, None, None], "expected"),
        (np.stack([ecg(360)] * 3), "expected"),
        (np.float64(1.0), "expected"),
        (np.round(1000 * ecg(360)).astype(np.int16), "expected floats in mV, got int16"),
        (ecg(360).astype(complex), "expected floats"),
        (ecg(360) > 0, "expected floats"),
        (np.array(["1.0"] * 7200), "expected floats"),
        (np.array([{}], object), "no numpy array"),
        (1000 * ecg(360), "microvolts"),
        (ecg(360) / 1000, "volts"),
    ],
)
def test_arrays_of_no_use(tmp_path, array, words):
    np.save(tmp_path / "r.npy", array)
    refused(tmp_path / "r.npy", words)


@pytest.mark.parametrize("suffix", [".npy", ".edf", ".csv", ""])
@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"MLII\n0.1\n0.2\n", b"\x93NUMPY\x01\x00", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"0" * 256],
)
def test_other_files_under_such_a_name(tmp_path, edf, suffix, content):
    path = tmp_path / f"r{suffix}"
    path.write_bytes(content)
    refused(path, r"r(\.|\b)")


def test_files_that_are_not_there_or_of_no_kind(tmp_path):
    for name in ("r.npy", "r.csv", "r", "r.hea"):
        with pytest.raises(hn.DataError, match=r"does not exist|missing"):
            read_recording(tmp_path / name, ["MLII"], sampling_rate=360)
    (tmp_path / "r.mat").write_bytes(b"MATLAB")
    refused(tmp_path / "r.mat", "no recording that is read")
    (tmp_path / "d.npy").mkdir()
    refused(tmp_path / "d.npy", "not a file")


def test_arrays_that_announce_more_than_they_are(tmp_path, monkeypatch):
    path = tmp_path / "r.npy"
    np.save(path, ecg(360))
    content = path.read_bytes()
    for shape in (b"(1080000000000000,)", b"(-10800,)", b"(10801,)", b"(1e4,)"):
        header = content[:128].replace(b"(10800,)", shape)
        path.write_bytes(header[: 128 - len(shape) + 8 - 1] + b"\n" + content[128:])
        refused(path, r"r\.npy")
    np.savez(tmp_path / "z.npz", ecg(360))
    (tmp_path / "z.npz").rename(path)
    refused(path, "archive")
    np.save(path, ecg(360))
    monkeypatch.setattr(recording_files, "MAX_SAMPLES", 10_000)
    refused(path, "more than the 10000")
    np.save(path, np.zeros((12, 3400)))  # of twelve a third
    refused(path, "more than the 3333 of 12", leads=LEADS)


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan])
def test_rates_that_are_none(tmp_path, rate):
    np.save(tmp_path / "r.npy", ecg(360))
    with pytest.raises(hn.ParameterError, match="must be positive"):
        read_recording(tmp_path / "r.npy", ["MLII"], sampling_rate=rate)


@pytest.mark.parametrize("rate", [49.0, 50_001.0])
def test_rates_that_are_not_read(tmp_path, rate):
    np.save(tmp_path / "r.npy", ecg(360))
    refused(tmp_path / "r.npy", "50 to 50000 Hz", rate=rate)


def test_more_samples_after_resampling_than_are_read(monkeypatch):
    monkeypatch.setattr(recording_files, "MAX_SAMPLES", 12_000)
    with pytest.raises(hn.DataError, match="has 21600 samples a lead"):
        resampled(recordings.Recording(Path("r"), ("II",), ecg(180, 60.0)[:, None], 180.0), 360)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MLII\n" + "0.1,0.2,0.3\n" * 10, r"row 2: MLII: '0.1,0.2,0.3' is not a number"),
        ("MLII,V1\n" + "0.1,0.2,0.3\n" * 10, r"3 fields.*no rows that could be left out"),
        ("MLII,V1\n0.1,0.2\n0.1\n" + "0.2,0.3\n" * 900, "no rows that could be left out"),
        ("MLII,V1\n" + "0.1,0.2\n" * 900 + "abc,0.1\n", r"row 902: MLII: 'abc' is not a number"),
        ("MLII,MLII\n" + "0.1,0.2\n" * 900, "2 leads called MLII"),
        ("0.1\n" * 900, "no lead MLII, its leads are 0.1"),
        ("MLII\n", "no samples"),
        ("MLII\nmV\n", "no samples"),
        ("MLII\n" + "NaN\n" * 900, "no usable signal"),
        ("MLII\n" + "0.1\n-0.1\n" * 100, "too short"),
        ("MLII (kV)\n" + "0.1\n" * 900, "no lead MLII"),
        ("MLII\n" + "".join(f"{1000 * v:.0f}\n" for v in ecg(360)), "microvolts or an ADC"),
        ("MLII (uV)\n" + "".join(f"{v:.6f}\n" for v in ecg(360)), "volts"),
        ("MLII\n" + "1,234\n" * 900, "nothing in its column tells which"),
    ],
)
def test_tables_of_no_use(tmp_path, text, words):
    (tmp_path / "r.csv").write_text(text)
    refused(tmp_path / "r.csv", words)


@given(
    st.lists(
        st.floats(-9, 9, width=32).flatmap(
            lambda v: st.sampled_from([f"{v:.3f}", f"{v:+.2e}", f"{v:.0f}", f"{v:.3f}".replace("0.", ".", 1)])
        ),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_plain_numbers_are_what_the_tables_rules_make_of_them(cells):
    notation = notations({"x": cells})["x"]
    plain = recording_files._plain_numbers(cells)
    assert plain is not None
    assert plain.tolist() == [number(cell, notation) for cell in cells]


@pytest.mark.parametrize("cell", ["", "-", "1,5", "1_000", "nan", "1.2.3", "0x1", " 1", "٣", "1e"])
def test_everything_else_is_left_to_the_tables_rules(cell):
    assert recording_files._plain_numbers(["0.5", cell]) is None


def test_missing_cells_are_invalid_samples(tmp_path):
    cells = [f"{value:.4f}" for value in ecg(360)]
    cells[100:103] = ["", "NaN", "-"]
    (tmp_path / "r.csv").write_text("t,MLII\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    found = read_recording(tmp_path / "r.csv", ["MLII"], sampling_rate=360)
    assert np.flatnonzero(np.isnan(found.signal[:, 0])).tolist() == [100, 101, 102]
    assert len(found.signal) == 10800


def test_tables_that_are_too_large(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "r.csv", {"MLII": ecg(360)})
    monkeypatch.setattr(recording_files, "_MAX_TABLE", 1000)
    refused(path, "more than the 1000")


def test_wfdb_records_that_announce_too_much(tmp_path, monkeypatch):
    path = write_wfdb(tmp_path)
    monkeypatch.setattr(recording_files, "MAX_SAMPLES", 10_000)
    refused(path, "more than the 10000")
    monkeypatch.undo()
    for rate in ("0", "1e9"):
        lines = (tmp_path / "r.hea").read_text().splitlines()
        lines[0] = f"r 2 {rate} 10800"
        (tmp_path / "r.hea").write_text("\n".join(lines) + "\n")
        refused(path, r"r\.hea|Hz")


def test_wfdb_without_a_voltage_or_a_whole_file(tmp_path):
    refused(write_wfdb(tmp_path, units="mmHg"), "expected mV")
    path = write_wfdb(tmp_path, "q")
    (tmp_path / "q.dat").write_bytes((tmp_path / "q.dat").read_bytes()[:-100])
    refused(path, "truncated")
    path = write_wfdb(tmp_path, "p", beats=[10, 2_000_000])
    refused(path, "does not belong")


def test_edf_of_no_use(tmp_path, edf):
    import edfio

    signal = 1000 * ecg(360)
    path = write_edf(tmp_path / "r.edf", [signal], ["ECG MLII"], [360])
    whole = path.read_bytes()
    for content, words in (
        (whole[:-100], "damaged or truncated"),
        (whole + bytes(720), "damaged or truncated"),
        (whole[:200], "EDF"),
        (whole[:600], "EDF|truncated|short"),
        (whole[:236] + b"-1      " + whole[244:], "damaged or truncated"),
        (whole[:244] + b"0       " + whole[252:], "EDF"),
        (whole[:252] + b"9999" + whole[256:], "EDF"),
        (whole[:252] + b"-1  " + whole[256:], "EDF|no lead"),
    ):
        path.write_bytes(content)
        refused(path, words)
    write_edf(path, [signal], ["MLII"], [360], "mmHg")
    refused(path, "expected mV, uV or V")
    write_edf(path, [signal, signal[::2]], ["I", "II"], [360, 180])
    refused(path, "resample them first", leads=("I", "II"))
    write_edf(path, [signal, signal], ["MLII", "ECG MLII"], [360, 360])
    refused(path, "2 leads called MLII")
    write_edf(path, [signal], ["MLII"], [360], annotations=[edfio.EdfAnnotation(3, None, "here")])
    assert len(read_recording(path, ["MLII"]).signal) == 10800
    broken = path.read_bytes().replace(b"EDF+C", b"EDF+D").replace(b"+5\x14\x14", b"+9\x14\x14")
    assert broken != path.read_bytes()
    path.write_bytes(broken)
    refused(path, "interrupted")


def test_edf_needs_its_package(tmp_path, monkeypatch):
    (tmp_path / "r.edf").write_bytes(b"0")
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(hn.ParameterError, match=r"\[edf\]"):
        read_recording(tmp_path / "r.edf", ["MLII"])


def test_a_damaged_byte_is_an_error_of_ours_or_harmless(tmp_path, edf):
    """Every byte of the headers, changed: what comes is a signal of the same length, or a DataError."""
    generator = np.random.default_rng(0)
    files = [write_edf(tmp_path / "r.edf", [1000 * ecg(360)], ["ECG MLII"], [360]), tmp_path / "r.npy"]
    np.save(files[1], ecg(360))
    for path, length in zip(files, (512, 128), strict=True):
        whole = path.read_bytes()
        for at in range(length):
            broken = bytearray(whole)
            broken[at] = int(generator.integers(256))
            path.write_bytes(broken)
            try:
                found = read_recording(path, ["MLII"], sampling_rate=360 if path.suffix == ".npy" else None)
            except (hn.DataError, hn.ParameterError):
                continue
            assert found.signal.shape[1] == 1
            assert np.isfinite(found.signal).any()

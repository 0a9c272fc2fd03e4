from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.data import load_mitbih, synthetic_ecg
from hesplit_native.data.mitbih import CLASSES, load_beats, record_beats
from hesplit_native.data.records import MITBIH_RECORDS, find_mitbih, read_record
from hesplit_native.training.models import architecture


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def beats(mitdb, cache):
    return load_beats(mitdb, cache_dir=cache)


def test_there_are_48_records():
    assert len(MITBIH_RECORDS) == len(set(MITBIH_RECORDS)) == 48


def test_the_pool_of_the_papers(beats):
    assert len(beats.label) == 96_049
    assert np.bincount(beats.label).tolist() == [71_732, 8_036, 7_231, 2_491, 6_559]
    assert beats.signal.shape == (96_049, 128)
    assert beats.signal.dtype == np.float32


def test_the_paper_split_and_how_much_it_leaks(mitdb, cache, beats):
    data = load_mitbih(mitdb, split="paper", cache_dir=cache)
    assert data.train_x.shape == data.test_x.shape == (13_245, 1, 128)
    assert np.bincount(data.train_y).tolist() == np.bincount(data.test_y).tolist() == [3000, 3000, 3000, 1245, 3000]
    train, test = ([row.tobytes() for row in x[:, 0]] for x in (data.train_x, data.test_x))
    from hesplit_native.data.mitbih import _paper

    train_ids, test_ids = _paper(beats)
    assert len(set(train_ids) | set(test_ids)) == 19_629
    assert round(100 * float(np.isin(test_ids, train_ids).mean()), 1) == 27.8
    assert len(set(train) & set(test)) > 2900


def test_unique_has_no_beat_on_both_sides(mitdb, cache):
    data = load_mitbih(mitdb, split="unique", cache_dir=cache)
    assert len(data.train_y) == len(data.test_y) == 13_245
    train, test = ({row.tobytes() for row in x} for x in (data.train_x, data.test_x))
    assert not train & test


def test_patients_are_on_one_side_only(mitdb, cache, beats):
    data = load_mitbih(mitdb, split="patients", cache_dir=cache)
    assert 10_000 < len(data.train_y) <= len(data.test_y) < 15_000
    assert set(np.unique(data.train_y)) == set(range(5))
    owner = {row.tobytes(): int(record) for row, record in zip(beats.signal, beats.record, strict=True)}
    train, test = ({owner[row.tobytes()] for row in x[:, 0]} for x in (data.train_x, data.test_x))
    assert not train & test


def test_cache_is_used_and_a_corrupt_one_is_rebuilt(mitdb, cache, beats, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the cache was not used")

    with monkeypatch.context() as patch:
        patch.setattr("hesplit_native.data.mitbih.read_record", never)
        assert len(load_beats(mitdb, cache_dir=cache).label) == len(beats.label)
    (file,) = cache.glob("mitbih-*.npz")
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    try:
        rebuilt = load_beats(mitdb, cache_dir=cache)
        np.testing.assert_array_equal(rebuilt.signal, beats.signal)
    finally:
        file.write_bytes(good)


def test_unknown_split():
    with pytest.raises(hn.DataError, match="paper, unique, patients"):
        load_mitbih(split="random")


def write_record(folder: Path, name="100", *, fs=360, seconds=20, fmt="212"):
    import wfdb

    generator = np.random.default_rng(0)
    count = fs * seconds
    signal = 0.05 * generator.normal(size=(count, 2))
    peaks = np.arange(300, count - 300, 300)
    for peak in peaks:
        signal[peak - 20 : peak + 20, 0] += np.hanning(40)
    wfdb.wrsamp(
        name, fs=fs, units=["mV"] * 2, sig_name=["MLII", "V1"], p_signal=signal, fmt=[fmt] * 2, write_dir=str(folder)
    )
    wfdb.wrann(name, "atr", peaks, symbol=[CLASSES[i % 5] for i in range(len(peaks))], write_dir=str(folder))
    return peaks


def test_beats_of_a_small_record(tmp_path):
    peaks = write_record(tmp_path)
    beats = record_beats(read_record(tmp_path, "100"))
    # The recipe leaves out the first and last annotation twice.
    assert beats.sample.tolist() == peaks[2:-2].tolist()
    assert beats.label.tolist() == [i % 5 for i in range(len(peaks))][2:-2]
    assert beats.signal.shape == (len(peaks) - 4, 128)
    assert (beats.signal.argmax(axis=1) - 64 <= 2).all()


@pytest.mark.parametrize("suffix", [".hea", ".dat", ".atr"])
def test_missing_files_are_named(tmp_path, suffix):
    write_record(tmp_path)
    (tmp_path / f"100{suffix}").unlink()
    with pytest.raises(hn.DataError, match=rf"100\{suffix} is missing"):
        read_record(tmp_path, "100")


def test_a_truncated_signal_is_named(tmp_path):
    write_record(tmp_path)
    path = tmp_path / "100.dat"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(hn.DataError, match=r"100\.dat is truncated"):
        read_record(tmp_path, "100")


def test_a_garbage_header_is_named(tmp_path):
    write_record(tmp_path)
    (tmp_path / "100.hea").write_bytes(b"\x00\xffgarbage\n" * 3)
    with pytest.raises(hn.DataError, match=r"100\.hea"):
        read_record(tmp_path, "100")


def test_garbage_annotations_are_named(tmp_path):
    write_record(tmp_path)
    (tmp_path / "100.atr").write_bytes(b"\xff" * 301)
    with pytest.raises(hn.DataError, match=r"100\.atr"):
        read_record(tmp_path, "100")


@pytest.mark.parametrize("options", [{"fs": 250}, {"fmt": "16"}])
def test_a_record_of_another_database_is_named(tmp_path, options):
    write_record(tmp_path, **options)
    with pytest.raises(hn.DataError, match=r"100\.hea is not an MIT-BIH record"):
        read_record(tmp_path, "100")


def test_annotations_of_another_record(tmp_path):
    (tmp_path / "long").mkdir()
    write_record(tmp_path / "long", seconds=60)
    write_record(tmp_path)
    shutil.copy(tmp_path / "long" / "100.atr", tmp_path / "100.atr")
    with pytest.raises(hn.DataError, match=r"100\.atr does not belong"):
        read_record(tmp_path, "100")


def test_an_incomplete_directory_names_the_first_missing_file(tmp_path):
    write_record(tmp_path)
    with pytest.raises(hn.DataError, match=r"101\.hea is missing"):
        load_mitbih(tmp_path, cache_dir=tmp_path)


def test_where_records_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HESPLIT_MITDB", str(tmp_path))
    assert find_mitbih() == tmp_path
    monkeypatch.setenv("HESPLIT_MITDB", str(tmp_path / "nowhere"))
    with pytest.raises(hn.DataError, match="HESPLIT_MITDB names"):
        find_mitbih()
    with pytest.raises(hn.DataError, match="--data-dir names"):
        find_mitbih(tmp_path / "nowhere")


def test_a_failed_download_says_how_to_give_a_directory(tmp_path, monkeypatch):
    import wfdb

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.delenv("HESPLIT_MITDB", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wfdb, "dl_files", fail)
    with pytest.raises(hn.DataError, match="--data-dir or in the environment variable HESPLIT_MITDB"):
        find_mitbih()


def test_synthetic_beats_are_deterministic_and_well_formed():
    data, again = synthetic_ecg(train=500, test=100, seed=3), synthetic_ecg(train=500, test=100, seed=3)
    np.testing.assert_array_equal(data.train_x, again.train_x)
    assert data.train_x.shape == (500, 1, 128)
    assert data.train_x.dtype == np.float32
    assert data.train_x.min() >= 0
    assert data.train_x.max() <= 1
    assert np.bincount(data.train_y).tolist() == [100] * 5
    assert not np.array_equal(data.train_x, synthetic_ecg(train=500, test=100, seed=4).train_x)


def accuracy(model, data, *, epochs, batch, rate):
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return float((model(torch.from_numpy(data.test_x)).argmax(1) == torch.from_numpy(data.test_y)).double().mean())


def test_a_linear_model_on_the_raw_signal_does_clearly_worse_than_the_network():
    torch.manual_seed(0)
    data = synthetic_ecg(train=8000, test=1000)
    linear = accuracy(nn.Sequential(nn.Flatten(), nn.Linear(128, 5)), data, epochs=30, batch=64, rate=5e-3)
    network = accuracy(
        nn.Sequential(architecture("m1", 1, 128, 5).body(0), nn.Linear(256, 5)), data, epochs=4, batch=8, rate=2e-3
    )
    assert network > 0.88
    assert network > linear + 0.1


def test_m1_has_the_papers_shape():
    assert architecture("m1", 1, 128, 5).body(0)(torch.zeros(3, 1, 128)).shape == (3, 256)
    assert sum(p.numel() for p in architecture("m1", 1, 128, 5).body(0).parameters()) == 16 * 7 + 16 + 8 * 16 * 5 + 8

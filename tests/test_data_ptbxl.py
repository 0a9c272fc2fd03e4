"""PTB-XL in the official layout, on records that this writes, and on the real ones where they are."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.data import check_dataset, load_ptbxl, synthetic_ptbxl
from hesplit_native.data.ptbxl import CLASSES, LEADS
from hesplit_native.training.models import architecture

STATEMENTS = {"NORM": "NORM", "IMI": "MI", "NDT": "STTC", "LAFB": "CD", "LVH": "HYP"}


def write(folder, codes, *, fs=100, samples=1000, folds=None):
    import wfdb

    (folder / "records100" / "00000").mkdir(parents=True)
    generator = np.random.default_rng(0)
    signals = []
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_lr"])
        for i, scp in enumerate(codes, 1):
            name = f"{i:05d}_lr"
            signal = np.round(generator.normal(size=(samples, 12)), 3)
            signals.append(signal.T)
            wfdb.wrsamp(
                name, fs=fs, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signal, fmt=["16"] * 12,
                adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(folder / "records100" / "00000"),
            )  # fmt: skip
            fold = folds[i - 1] if folds else 1 + (i - 1) % 10
            writer.writerow([i, 100.0 + i // 2, scp, fold, f"records100/00000/{name}"])
    with (folder / "scp_statements.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "description", "diagnostic", "diagnostic_class"])
        writer.writerows([[code, "", "1.0", name] for code, name in STATEMENTS.items()])
        writer.writerow(["SR", "sinus rhythm", "", ""])
    return signals


@pytest.fixture
def folder(tmp_path):
    codes = ["{'SR': 0.0, 'NORM': 100.0}", "{'IMI': 50.0, 'LVH': 100.0}", "{'SR': 0.0}", "{'LAFB': 0.0}"] * 5
    write(tmp_path / "ptbxl", codes)
    return tmp_path / "ptbxl"


def load(folder):
    return load_ptbxl(folder, cache_dir=folder.parent / "cache")


def test_labels_folds_patients_and_normalisation(folder):
    data = load(folder)
    # Fold 10 is row 10 and 20; every fourth row has no diagnostic statement.
    assert (len(data.train_y), len(data.test_y)) == (13, 2)
    assert [CLASSES[i] for i in data.train_y[:3]] == ["NORM", "MI", "CD"]
    assert [CLASSES[i] for i in data.test_y] == ["MI", "CD"]
    assert data.train_x.shape == (13, 12, 1000)
    assert data.train_x.dtype == np.float32
    assert list(data.train_patient[:3]) == [100, 101, 102]
    np.testing.assert_allclose(data.train_x.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_x.std(axis=(1, 2)), 1, atol=1e-3)


def test_the_second_time_comes_from_the_cache_and_notices_changes(folder):
    first = load(folder)
    caches = list((folder.parent / "cache").iterdir())
    assert len(caches) == 1
    record = folder / "records100" / "00000" / "00001_lr.dat"
    np.testing.assert_array_equal(load(folder).train_x, first.train_x)
    # Damage any part of the cache: it is made anew, not believed.
    for at in (10, 60, 128, 1000):
        broken = bytearray(caches[0].read_bytes())
        broken[at] ^= 4
        caches[0].write_bytes(broken)
        np.testing.assert_array_equal(load(folder).train_x, first.train_x)
    record.write_bytes((record.parent / "00002_lr.dat").read_bytes())
    assert not np.array_equal(load(folder).train_x[0], first.train_x[0])


@pytest.mark.parametrize("missing", ["ptbxl_database.csv", "scp_statements.csv", "records100/00000/00001_lr.dat"])
def test_missing_files_are_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(hn.DataError, match=Path(missing).name):
        load(folder)


def test_a_truncated_signal_is_refused(folder):
    path = folder / "records100" / "00000" / "00001_lr.dat"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(hn.DataError, match="00001_lr"):
        load(folder)


@pytest.mark.parametrize("options", [{"fs": 500}, {"samples": 999}])
def test_other_recordings_are_refused(tmp_path, options):
    write(tmp_path / "ptbxl", ["{'NORM': 1.0}"] * 2, folds=[1, 10], **options)
    with pytest.raises(hn.DataError, match="no recording of PTB-XL"):
        load(tmp_path / "ptbxl")


@pytest.mark.parametrize(
    "row",
    [
        ["1", "1", "__import__('os').getcwd()", "1", "x"],
        ["1", "1", "[1]", "1", "x"],
        ["1", "1", "{'NORM': 1}", "11", "x"],
        ["1", "1", "{'NORM': 1}", "one", "x"],
        ["1", "", "{'NORM': 1}", "1", "x"],
        ["1", "1", "{'NORM': 1}", "1", "../../etc/passwd"],
        ["1", "1", "{'NORM': 1}", "1", "/etc/passwd"],
    ],
)
def test_bad_rows_name_their_line(folder, row):
    path = folder / "ptbxl_database.csv"
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)
    with pytest.raises(hn.DataError, match=r"ptbxl_database.csv, line 22"):
        load(folder)


def test_a_path_is_needed(monkeypatch, tmp_path):
    monkeypatch.delenv("HESPLIT_PTBXL", raising=False)
    with pytest.raises(hn.DataError, match="HESPLIT_PTBXL"):
        load_ptbxl()
    with pytest.raises(hn.DataError, match="neither"):
        load_ptbxl(tmp_path / "nothing")


def subset(path, **changes):
    generator = np.random.default_rng(0)
    values = {
        "signal_uV": generator.integers(-2000, 2000, (6, 12, 1000)).astype(np.int16),
        "label": np.array([0, 1, 2, 3, 4, 0], np.int8),
        "classes": np.array(["NORM", "CD", "MI", "HYP", "STTC"]),
        "strat_fold": np.array([1, 2, 3, 4, 5, 10], np.int8),
        "leads": np.array(LEADS),
    } | changes
    np.savez(path, **{k: v for k, v in values.items() if v is not None})
    return path


def test_the_subset_in_one_file(tmp_path):
    data = load_ptbxl(subset(tmp_path / "s.npz"))
    assert [CLASSES[i] for i in data.train_y] == ["NORM", "CD", "MI", "HYP", "STTC"]
    assert data.test_x.shape == (1, 12, 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": None},
        {"signal_uV": np.zeros((6, 12, 1000), np.float32)},
        {"signal_uV": np.zeros((6, 12, 999), np.int16)},
        {"label": np.array([0, 1, 2, 3, 4, 5])},
        {"label": np.array([0, 1])},
        {"strat_fold": np.full(6, 11)},
        {"strat_fold": np.full(6, 3)},
        {"classes": np.array(["NORM", "CD", "MI", "HYP", "X"])},
        {"leads": np.array(["I"] * 12)},
        {"label": np.array([object()] * 6)},
    ],
)
def test_other_files_are_refused(tmp_path, changes):
    with pytest.raises(hn.DataError, match=r"s\.npz"):
        load_ptbxl(subset(tmp_path / "s.npz", **changes))


def test_damaged_files_are_refused(tmp_path):
    whole = subset(tmp_path / "s.npz").read_bytes()
    for data in (b"", whole[:1000], b"x" * 100):
        (tmp_path / "d.npz").write_bytes(data)
        with pytest.raises(hn.DataError, match=r"d\.npz"):
            load_ptbxl(tmp_path / "d.npz")
    expected = load_ptbxl(tmp_path / "s.npz").train_x
    for at in range(0, 400, 7):
        broken = bytearray(whole)
        broken[at] ^= 2
        (tmp_path / "d.npz").write_bytes(broken)
        try:
            found = load_ptbxl(tmp_path / "d.npz").train_x
        except hn.DataError:
            continue
        np.testing.assert_array_equal(found, expected)  # a byte that means nothing


@pytest.fixture(scope="module")
def real():
    """The official sample folder and the subset file."""
    named = os.environ.get("HESPLIT_PTBXL_SAMPLES")
    base = Path(named) if named else Path(__file__).parents[1] / ".." / "shared" / "data"
    if not (base / "ptbxl" / "ptbxl_database.csv").is_file():
        pytest.skip(f"NO REAL RECORDINGS: looked in {base}; set HESPLIT_PTBXL_SAMPLES to test on them")
    return base / "ptbxl", base / "ptbxl_subset_100hz.npz"


def test_the_real_recordings_agree_in_both_forms(real, tmp_path):
    folder = load_ptbxl(real[0], cache_dir=tmp_path)
    single = load_ptbxl(real[1])
    assert len(folder.train_y) + len(folder.test_y) == 488
    assert len(single.test_y) == 321
    # The official records of the subset come first, in the same order.
    count = len(folder.test_y)
    np.testing.assert_array_equal(folder.test_y, single.test_y[:count])
    np.testing.assert_allclose(folder.test_x, single.test_x[:count], atol=0.02)


def test_synthetic_recordings_are_learnable_and_the_same_for_the_same_seed():
    data = synthetic_ptbxl(train=400, test=100, seed=3)
    again = synthetic_ptbxl(train=400, test=100, seed=3)
    np.testing.assert_array_equal(data.train_x, again.train_x)
    assert not np.array_equal(data.train_x, synthetic_ptbxl(train=400, test=100, seed=4).train_x)
    assert np.bincount(data.train_y).tolist() == [80] * 5
    shape = architecture("m1", 12, 1000, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(shape.body(0), nn.Linear(2000, 5))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    for _ in range(4):
        for rows in torch.randperm(400, generator=torch.Generator().manual_seed(0)).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        right = (network(torch.from_numpy(data.test_x)).argmax(1).numpy() == data.test_y).mean()
    assert right > 0.4  # by chance 0.2; over seeds and epochs 0.4 to 0.56


def test_several_labels_are_all_superclasses_of_a_recording(tmp_path):
    codes = [
        "{'SR': 0.0, 'NORM': 100.0}",
        "{'IMI': 50.0, 'LVH': 0.0, 'IMI ': 1.0}",
        "{'SR': 0.0}",
        "{'LVH': 9.0, 'NDT': 9.0}",
    ]
    write(tmp_path / "ptbxl", codes, folds=[1, 2, 3, 10])
    data = load_ptbxl(tmp_path / "ptbxl", labels="multi", cache_dir=tmp_path / "cache")
    assert data.labels == "multi"
    assert data.train_y.dtype == np.int64
    assert data.train_y.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1]]  # NORM, MI, STTC, CD, HYP
    assert data.test_y.tolist() == [[0, 0, 1, 0, 1]]
    check_dataset(data)
    single = load_ptbxl(tmp_path / "ptbxl", cache_dir=tmp_path / "cache")
    assert single.labels == "single"
    assert [CLASSES[i] for i in (*single.train_y, *single.test_y)] == ["NORM", "MI", "HYP"]
    np.testing.assert_array_equal(single.train_x, data.train_x)


def test_several_labels_without_recordings_that_are_invalid(tmp_path):
    write(tmp_path / "ptbxl", ["{'NORM': 1.0}", "{'IMI': 1.0, 'LVH': 1.0}", "{'NDT': 1.0}"], folds=[1, 2, 10])
    path = tmp_path / "ptbxl" / "records100" / "00000" / "00001_lr.dat"
    path.write_bytes(np.full(12, -32768, "<i2").tobytes() + path.read_bytes()[24:])
    with pytest.warns(UserWarning, match="1 of 3 recordings are left out"):
        data = load_ptbxl(tmp_path / "ptbxl", labels="multi", cache_dir=tmp_path / "cache")
    assert data.train_y.tolist() == [[0, 1, 0, 0, 1]]


def test_several_labels_of_the_subset_follow_its_own_order_of_classes(tmp_path):
    several = np.eye(5, dtype=np.int8)[[0, 1, 2, 3, 4, 1]]  # NORM, CD, MI, HYP, STTC
    several[5, 4] = 1
    data = load_ptbxl(subset(tmp_path / "s.npz", label_multi=several, label=None), labels="multi")
    names = [[name for name, applies in zip(CLASSES, row, strict=True) if applies] for row in data.train_y]
    assert names == [["NORM"], ["CD"], ["MI"], ["HYP"], ["STTC"]]
    assert data.test_y.tolist() == [[0, 0, 1, 1, 0]]
    for bad in (None, several[:, :4], several.astype(float), 2 * several, several[:5]):
        with pytest.raises(hn.DataError, match=r"s\.npz"):
            load_ptbxl(subset(tmp_path / "s.npz", label_multi=bad), labels="multi")
    with pytest.raises(hn.DataError, match="single or multi"):
        load_ptbxl(tmp_path / "s.npz", labels="all")


def test_the_real_several_labels_agree_in_both_forms(real, tmp_path):
    folder = load_ptbxl(real[0], labels="multi", cache_dir=tmp_path)
    single = load_ptbxl(real[1], labels="multi")
    count = len(folder.test_y)
    np.testing.assert_array_equal(folder.test_y, single.test_y[:count])
    assert folder.train_y.sum(1).max() > 1
    first = load_ptbxl(real[0], cache_dir=tmp_path).train_y
    assert folder.train_y[np.arange(len(first)), first].all()

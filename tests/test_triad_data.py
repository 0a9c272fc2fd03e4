from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.triad import cifar10, load_cifar10, load_csv, synthetic_cohort, synthetic_images

PANEL = {"sex": "Sex", "tc": "Chol", "hdl": "HDL", "tg": "TG", "ldl": "LDL"}
HEADER = "Sex,Chol,HDL,TG,LDL"


def table(count=30):
    """Lines of a clean table in mg/dL, every row different."""
    return [f"{'MF'[i % 2]},{180 + i},{50 + i % 5},{100 + i},{105 + i}" for i in range(count)]


@pytest.fixture
def write(tmp_path):
    def write(lines, header=HEADER, name="panel.csv"):
        path = tmp_path / name
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def everything(cohort):
    x = np.concatenate([cohort.train_x, cohort.test_x])
    y = np.concatenate([cohort.train_y, cohort.test_y])
    order = np.argsort(y, kind="stable")
    return x[order], y[order]


# --- the synthetic cohort


def test_the_synthetic_cohort_is_friedewalds_with_an_error():
    cohort = synthetic_cohort(20_000, seed=3)
    assert cohort.features == ("height", "weight", "sex", "tc", "hdl", "tg")
    assert (len(cohort.train_y), len(cohort.test_y)) == (16_000, 4_000)
    assert cohort.train_x.dtype == cohort.train_y.dtype == np.float32
    x, y = everything(cohort)
    column = dict(zip(cohort.features, x.T, strict=True))
    error = y - (column["tc"] - column["hdl"] - column["tg"] / 5)
    assert 7 < np.abs(error).mean() < 9
    assert abs(error.mean()) < 0.5
    assert 0.002 < (np.abs(error) > 50).mean() < 0.02  # somebody else's
    high = column["tg"] > np.quantile(column["tg"], 0.9)
    assert np.abs(error[high]).mean() > 1.2 * np.abs(error[~high]).mean()


def test_the_synthetic_cohort_looks_like_people():
    x, y = everything(synthetic_cohort(20_000))
    height, weight, sex, tc, hdl, tg = x.T
    bmi = weight / (height / 100) ** 2
    assert set(np.unique(sex)) == {0, 1}
    assert 8 < height[sex == 1].mean() - height[sex == 0].mean() < 18
    assert hdl[sex == 0].mean() > hdl[sex == 1].mean() + 3
    assert np.corrcoef(bmi, tg)[0, 1] > 0.2 > 0 > np.corrcoef(tg, hdl)[0, 1]
    for values, low, high in (
        (height, 125, 210),
        (bmi, 12, 50),
        (tc, 60, 420),
        (hdl, 15, 160),
        (tg, 10, 1200),
        (y, 4, 400),
    ):
        assert low < values.min()
        assert values.max() < high


def test_cohorts_follow_their_seed():
    one, again, other = (synthetic_cohort(100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.train_x, again.train_x)
    assert np.array_equal(one.test_y, again.test_y)
    assert not np.array_equal(one.train_x, other.train_x)
    with pytest.raises(hn.ParameterError, match="at least 10"):
        synthetic_cohort(9)


# --- tables


def test_a_clean_table_comes_through_whole(write):
    cohort = load_csv(write(table()), PANEL)
    assert cohort.features == ("sex", "tc", "hdl", "tg")
    assert cohort.dropped == {}
    assert (len(cohort.train_y), len(cohort.test_y)) == (24, 6)
    x, y = everything(cohort)
    assert y.tolist() == [105 + i for i in range(30)]
    assert x[:, 1].tolist() == [180 + i for i in range(30)]
    assert x[:, 0].tolist() == [float(i % 2 == 0) for i in range(30)]


def test_the_split_follows_the_seed_and_leaks_nothing(write):
    path = write(table())
    one, again, other = (load_csv(path, PANEL, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.test_y, again.test_y)
    assert not np.array_equal(np.sort(one.test_y), np.sort(other.test_y))
    assert not set(one.train_y.tolist()) & set(one.test_y.tolist())


def test_cleaning_counts_what_it_drops(write):
    dirty = [
        "M,,50,100,100",
        "M,200,NaN,100,100",
        " ,200,50,100,100",
        "F,0,50,100,100",
        "F,200,50,-3,100",
        "u,200,50,100,100",
        "M,200,120,100,150",
        " male , 180 ,50.0,1e2, 105 ",  # row 0 again
    ]
    cohort = load_csv(write([*table(), *dirty, "", " "]), PANEL)
    assert cohort.dropped == {
        "missing value": 3,
        "zero or negative": 2,
        "unknown sex": 1,
        "HDL + LDL above TC": 1,
        "duplicate": 1,
    }
    assert len(cohort.train_y) + len(cohort.test_y) == 30


def test_units_are_converted_on_request(write):
    lines = [f"1,{4 + i / 10:.1f},1.0,1.0,{2 + i / 10:.1f}" for i in range(20)]
    path = write(lines)
    with pytest.warns(UserWarning, match="'Chol', 'HDL', 'TG', 'LDL' read as mg/dL, but the values look like mmol/L"):
        unconverted = load_csv(path, PANEL)
    (x, y), (x_mg, y_mg) = everything(unconverted), everything(load_csv(path, PANEL, unit="mmol/L"))
    np.testing.assert_allclose(x_mg, x * np.array([1, 38.67, 38.67, 88.57]), rtol=1e-5)
    np.testing.assert_allclose(y_mg, y * 38.67, rtol=1e-5)
    with pytest.raises(hn.ParameterError, match="unit"):
        load_csv(path, PANEL, unit="g/L")


def test_target_and_features_are_free(write):
    lines = [f"x{i};{i - 15};{i % 3};{100 + i}" for i in range(30)]
    path = write(lines, header="\ufeffid; Score ;code;Chol")
    cohort = load_csv(path, {"score": "Score", "tc": "Chol"}, target="tc")
    assert (cohort.features, cohort.target) == (("score",), "tc")
    x, y = everything(cohort)
    assert x[:, 0].tolist() == [i - 15 for i in range(30)]  # zeros and signs of an unknown quantity are its own
    assert y.tolist() == [100 + i for i in range(30)]
    for columns, target in (({"tc": "Chol"}, "tc"), ({"tc": "Chol", "code": "code"}, "ldl"), (PANEL, "sex")):
        with pytest.raises(hn.ParameterError, match="columns"):
            load_csv(path, columns, target=target)


@pytest.mark.parametrize("codes", ["M F", "male FEMALE", "1 0", "1 2", "1.0 0.0"])
def test_codes_of_sex_are_unified(write, codes):
    one, zero = codes.split()
    lines = [line.replace("M,", f"{one},").replace("F,", f"{zero},") for line in table()]
    x, _ = everything(load_csv(write(lines), PANEL))
    assert x[:, 0].tolist() == [float(i % 2 == 0) for i in range(30)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("M,abc,50,100,100", "row 32, column 'Chol': 'abc' is not a number"),
        ("M,1_80,50,100,100", "row 32, column 'Chol': '1_80' is not a number"),
        ("M,180,50,inf,100", "row 32, column 'TG': 'inf' is out of range"),
        ("x,180,50,100,100", "row 32, column 'Sex': 'x' is no code"),
        ("M,180,50", "row 32: 3 fields, but the header has 5"),
        ("M,180,50,100,100,7", "row 32: 6 fields"),
        ('M,180,50,100,"100', "row 32: unexpected end of data"),
    ],
)
def test_a_bad_row_is_named(write, line, message):
    path = write([*table(), line])
    with pytest.raises(hn.DataError) as caught:
        load_csv(path, PANEL)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_unusable_files_are_named(write, tmp_path):
    with pytest.raises(hn.DataError, match=r"missing\.csv"):
        load_csv(tmp_path / "missing.csv", PANEL)
    with pytest.raises(hn.DataError, match=r"'LDL' is not in the header"):
        load_csv(write(table(), header="Sex,Chol,HDL,TG,Other"), PANEL)
    with pytest.raises(hn.DataError, match=r"'LDL' is more than once"):
        load_csv(write([line + ",1" for line in table()], header=HEADER + ", LDL"), PANEL)
    with pytest.raises(hn.DataError, match="9 usable rows are too few"):
        load_csv(write(table(9)), PANEL)
    with pytest.raises(hn.DataError, match="'Sex' is not in the header"):
        load_csv(write([], header=""), PANEL)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(HEADER.encode() + b"\n\xff\xfe\x00")
    with pytest.raises(hn.DataError, match=r"binary\.csv"):
        load_csv(binary, PANEL)


@pytest.fixture(scope="module")
def lipids():
    """A real, untidy table."""
    named = os.environ.get("HESPLIT_LIPIDS")
    path = Path(named) if named else Path(__file__).parents[1] / ".." / "shared" / "data" / "lipids.csv"
    if not path.is_file():
        pytest.skip(f"NO REAL TABLE: looked for {path}; set HESPLIT_LIPIDS to test on it")
    return path


def test_a_real_table_is_cleaned(lipids):
    columns = {"sex": "Gender", "age": "AGE", "tc": "Chol", "hdl": "HDL", "tg": "TG", "bmi": "BMI", "ldl": "LDL"}
    cohort = load_csv(lipids, columns, unit="mmol/L")
    kept = len(cohort.train_y) + len(cohort.test_y)
    source = len(lipids.read_text(encoding="utf-8").strip().splitlines()) - 1
    assert kept + sum(cohort.dropped.values()) == source
    assert kept > 0.7 * source
    assert {"duplicate", "zero or negative"} <= set(cohort.dropped)
    assert 80 < np.median(cohort.train_y) < 130  # mg/dL
    x, y = everything(cohort)
    assert len({(*row, target) for row, target in zip(x.tolist(), y.tolist(), strict=True)}) == kept
    column = dict(zip(cohort.features, cohort.train_x.T, strict=True))
    error = cohort.train_y - (column["tc"] - column["hdl"] - column["tg"] / 5)
    assert np.median(np.abs(error)) < 10  # half of it agrees with Friedewald


# --- CIFAR-10


@pytest.fixture
def binaries(tmp_path, monkeypatch):
    """The six official files with 20 instead of 10,000 rows each."""
    monkeypatch.setattr(cifar10, "_ROWS_PER_FILE", 20)
    generator = np.random.default_rng(0)
    contents = {}
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows = generator.integers(0, 256, (20, 3073), np.uint8)
        rows[:, 0] %= 10
        (tmp_path / name).write_bytes(rows.tobytes())
        contents[name] = rows
    return tmp_path, contents


def test_binary_files_are_read_in_order(binaries):
    directory, contents = binaries
    images = load_cifar10(directory)
    assert images.train_x.shape == (100, 3, 32, 32)
    assert images.test_x.shape == (20, 3, 32, 32)
    assert images.classes[:2] == ("airplane", "automobile")
    third = contents["data_batch_3.bin"]
    assert np.array_equal(images.train_y[40:60], third[:, 0])
    # Red, green, blue planes of 32 rows of 32.
    assert images.train_x[41, 1, 2, 3] == third[1, 1 + 1024 + 2 * 32 + 3]
    assert np.array_equal(images.test_y, contents["test_batch.bin"][:, 0])


def test_official_files_have_their_size():
    assert cifar10._ROWS_PER_FILE * cifar10._ROW_BYTES == 30_730_000


@pytest.mark.parametrize("damage", ["truncated", "extended", "empty", "label", "missing", "directory"])
def test_damaged_binary_files_are_named(binaries, damage):
    directory, contents = binaries
    path = directory / "data_batch_4.bin"
    data = bytearray(contents[path.name].tobytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "extended":
        path.write_bytes(data + b"\0")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "label":
        data[5 * 3073] = 10
        path.write_bytes(data)
    elif damage == "directory":
        path.mkdir()
    with pytest.raises(hn.DataError, match="data_batch_4") as caught:
        load_cifar10(directory)
    assert ("61460" in str(caught.value)) == (damage in ("truncated", "extended", "empty", "directory"))


def arrays(**changes):
    generator = np.random.default_rng(0)
    values = {
        "x_train": generator.integers(0, 256, (12, 3, 32, 32), np.uint8),
        "y_train": np.arange(12, dtype=np.int8) % 10,
        "x_test": generator.integers(0, 256, (5, 3, 32, 32), np.uint8),
        "y_test": np.arange(5, dtype=np.int64),
        "classes": np.array(list("abcdefghij")),
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_are_read(tmp_path, save):
    path = tmp_path / "some.npz"
    save(path, **arrays())
    images = load_cifar10(path)
    assert np.array_equal(images.train_x, arrays()["x_train"])
    assert images.train_y.dtype == images.test_y.dtype == np.int64
    assert np.array_equal(images.train_y, arrays()["y_train"])
    assert images.classes == tuple("abcdefghij")
    save(path, **arrays(classes=None))
    assert load_cifar10(path).classes == cifar10.CLASSES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "no array 'x_test'"),
        ({"x_train": np.zeros((12, 32, 32, 3), np.uint8)}, "x_train: expected uint8"),
        ({"x_train": np.zeros((12, 3, 32, 32), np.float32)}, "x_train: expected uint8"),
        ({"x_test": np.zeros((0, 3, 32, 32), np.uint8), "y_test": np.zeros(0, np.int64)}, "x_test: expected uint8"),
        ({"x_test": np.uint8(3)}, "x_test: expected uint8"),
        ({"y_train": np.zeros(11, np.int64)}, "y_train: expected 12 integers"),
        ({"y_train": np.zeros(12)}, "y_train: expected 12 integers"),
        ({"y_test": np.array([0, 1, 2, 3, 10])}, "label 10 of row 4"),
        ({"y_test": np.array([0, -1, 2, 3, 4], np.int8)}, "label -1 of row 1"),
        ({"classes": np.array(["a", "b"])}, "expected ten names"),
        ({"y_train": np.array([object()] * 12)}, "cannot be read"),
    ],
)
def test_npz_files_of_something_else_are_refused(tmp_path, changes, message):
    path = tmp_path / "other.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(hn.DataError, match=r"other\.npz") as caught:
        load_cifar10(path)
    assert message in str(caught.value)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "bits.npz"
    np.savez(path, **arrays())
    good, data = load_cifar10(path), bytearray(path.read_bytes())
    bits = random.Random(0)
    ends = [*range(400), *range(len(data) - 600, len(data))]  # headers, and the archive's directory
    places = [*ends, *(bits.randrange(len(data)) for _ in range(200))]
    noticed = 0
    for place in places:
        flip = 1 << bits.randrange(8)
        data[place] ^= flip
        path.write_bytes(data)
        try:
            images = load_cifar10(path)
        except hn.DataError:
            noticed += 1
        else:
            for name in ("train_x", "train_y", "test_x", "test_y"):
                assert np.array_equal(getattr(images, name), getattr(good, name)), place
        data[place] ^= flip
    assert noticed > 0.6 * len(places)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_npz_files_are_refused(tmp_path, keep):
    path = tmp_path / "short.npz"
    np.savez_compressed(path, **arrays())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(hn.DataError, match=r"short\.npz"):
        load_cifar10(path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 1 << 20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x_train.npy", "w") as member:
        member.write(bytes((1 << 20) + 1))
    assert path.stat().st_size < 1 << 12
    with pytest.raises(hn.DataError, match="unpack"):
        load_cifar10(path)


def test_paths_that_are_nothing_are_named(tmp_path):
    with pytest.raises(hn.DataError, match=r"nowhere"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(hn.DataError, match=r"data_batch_1\.bin"):
        load_cifar10(tmp_path)
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    with pytest.raises(hn.DataError, match=r"text\.npz"):
        load_cifar10(text)


def test_synthetic_images_are_balanced_and_follow_their_seed():
    one, again, other = (synthetic_images(200, 50, seed) for seed in (1, 1, 2))
    assert one.train_x.shape == (200, 3, 32, 32)
    assert one.train_x.dtype == np.uint8
    assert np.bincount(one.train_y).tolist() == [20] * 10
    assert np.bincount(one.test_y).tolist() == [5] * 10
    assert np.array_equal(one.train_x, again.train_x)
    assert not np.array_equal(one.train_x, other.train_x)
    assert len({image.tobytes() for image in np.concatenate([one.train_x, one.test_x])}) == 250
    assert len(one.classes) == len(set(one.classes)) == 10


def test_synthetic_images_are_not_told_by_their_neighbours():
    # The class of the nearest training image is a guess that is better than chance and far from right.
    images = synthetic_images(1000, 200)
    train, test = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (images.train_x, images.test_x))
    distance = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    accuracy = (images.train_y[distance.argmin(1)] == images.test_y).mean()
    assert 0.15 < accuracy < 0.6

"""PTB-XL after spreadsheets, pandas and other software have been over it."""

from __future__ import annotations

import csv
import io
import shutil

import numpy as np
import pandas as pd
import pytest
import wfdb

import hesplit_native as hn
from hesplit_native.data import load_ptbxl
from hesplit_native.data.ptbxl import LEADS

CODES = ["{'SR': 0.0, 'NORM': 100.0}", "{'IMI': 50.0, 'LVH': 100.0}", "{'SR': 0.0}", "{'LAFB': 0.0}", "{'NDT': 80.0}"]
COUNT = 60


def signal_of(i):
    return np.round(np.random.default_rng(i).normal(size=(1000, 12)), 3)


def write_recording(folder, i, *, leads=LEADS, units="mV", change=lambda x: x):
    order = [[name.upper() for name in LEADS].index(lead.upper()) for lead in leads if lead.upper() in LEADS]
    signal = np.zeros((1000, len(leads)))
    signal[:, [lead.upper() in LEADS for lead in leads]] = signal_of(i)[:, order]
    wfdb.wrsamp(
        f"{i:05d}_lr", fs=100, units=[units] * len(leads), sig_name=list(leads), p_signal=change(signal), fmt=["16"] * len(leads),
        adc_gain=[1000.0 if units == "mV" else 1.0] * len(leads), baseline=[0] * len(leads), write_dir=str(folder),
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "ptbxl"
    records = folder / "records100" / "00000"
    records.mkdir(parents=True)
    for i in range(1, COUNT + 1):
        write_recording(records, i)
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ecg_id", "patient_id", "report", "recording_date", "scp_codes", "strat_fold", "filename_lr"])
        for i in range(1, COUNT + 1):
            name = f"records100/00000/{i:05d}_lr"
            writer.writerow([i, 100.0 + i // 2, "a, b; c", "1984-11-09 09:17:34", CODES[i % 5], 1 + i % 10, name])
    with (folder / "scp_statements.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "description", "diagnostic", "form", "diagnostic_class", "diagnostic_subclass"])
        for code, name in {"NORM": "NORM", "IMI": "MI", "NDT": "STTC", "LAFB": "CD", "LVH": "HYP"}.items():
            writer.writerow([code, f"about {code}", "1.0", "", name, code])
        writer.writerows([[code, f"about {code}", "", "1.0", "", ""] for code in ("SR", "AFIB", "PVC")])
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "ptbxl")
    return tmp_path / "ptbxl"


def load(folder):
    return load_ptbxl(folder, cache_dir=folder.parent / "cache")


@pytest.fixture(scope="module")
def expected(original, tmp_path_factory):
    return load_ptbxl(original, cache_dir=tmp_path_factory.mktemp("cache"))


def same(found, expected):
    for name in ("train_x", "train_y", "test_x", "test_y", "train_patient"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def rewrite(path, *, sep=",", end="\n", encoding="utf-8", lead="", change=lambda rows: rows):
    rows = change(list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))))
    out = io.StringIO()
    csv.writer(out, delimiter=sep, lineterminator=end).writerows(rows)
    path.write_bytes((lead + out.getvalue()).encode(encoding))


def column(name, change):
    def apply(rows):
        at = rows[0].index(name)
        return [rows[0], *[[*row[:at], change(row[at]), *row[at + 1 :]] for row in rows[1:]]]

    return apply


def named(old, new):
    return lambda rows: [[new if cell == old else cell for cell in rows[0]], *rows[1:]]


@pytest.mark.parametrize("table", ["ptbxl_database.csv", "scp_statements.csv"])
@pytest.mark.parametrize(
    "options",
    [
        {"sep": ";", "end": "\r\n", "encoding": "utf-8-sig"},
        {"sep": ";", "end": "\r\n", "lead": "sep=;\r\n"},
        {"sep": "\t", "encoding": "utf-16"},
        {"end": "\r"},
        {"change": lambda rows: [["", *rows[0]], *[[str(i), *row] for i, row in enumerate(rows[1:])]]},
        {"change": lambda rows: [["Unnamed: 0", *rows[0]], *[[str(i), *row] for i, row in enumerate(rows[1:])]]},
        {"change": lambda rows: [[*row, "", ""] for row in rows]},
        {"change": lambda rows: [*rows, [""] * len(rows[0]), []]},
        {"change": lambda rows: [[cell.upper() for cell in rows[0]], *rows[1:]]},
        {"change": lambda rows: [row[::-1] for row in rows]},
    ],
)
def test_tables_written_anew_say_the_same(folder, expected, table, options):
    rewrite(folder / table, **options)
    same(load(folder), expected)


@pytest.mark.parametrize(
    "change",
    [
        column("strat_fold", lambda cell: f"{cell}.0"),
        column("strat_fold", lambda cell: f" {cell},0 "),
        column("patient_id", lambda cell: cell.replace(".", ",")),
        column("patient_id", lambda cell: cell.removesuffix(".0")),
        column("scp_codes", lambda cell: cell.replace("'", '"')),
        column("scp_codes", lambda cell: cell.replace("'", "’")),
        column("scp_codes", lambda cell: f'"{cell}"'),
        column("scp_codes", lambda cell: f"  {cell} "),
        column("filename_lr", lambda cell: cell.replace("/", "\\")),
        column("filename_lr", lambda cell: f"{cell}.hea"),
        column("recording_date", lambda cell: "09.11.1984 09:17"),
        column("ecg_id", lambda cell: f"{cell}.0"),
    ],
)
def test_cells_written_anew_say_the_same(folder, expected, change):
    rewrite(folder / "ptbxl_database.csv", change=change)
    same(load(folder), expected)


@pytest.mark.parametrize(
    "change",
    [
        named("", "Unnamed: 0"),
        named("", "scp_code"),
        column("diagnostic", lambda cell: cell.replace("1.0", "1")),
        column("diagnostic", lambda cell: cell.replace("1.0", "1,0")),
        column("diagnostic", lambda cell: cell.replace("1.0", "True")),
        column("", lambda cell: f" {cell} "),
    ],
)
def test_statements_written_anew_say_the_same(folder, expected, change):
    rewrite(folder / "scp_statements.csv", change=change)
    same(load(folder), expected)


def test_two_round_trips_through_pandas(folder, expected):
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        for options in ({}, {"sep": ";", "decimal": ","}):
            text = pd.read_csv(folder / name, **({"sep": ";", "decimal": ","} if options.get("again") else {}))
            text.to_csv(folder / name)
        frame = pd.read_csv(folder / name)
        frame.to_csv(folder / name, sep=";", decimal=",", index=False)
    same(load(folder), expected)


@pytest.mark.parametrize(
    ("name", "cell", "words"),
    [
        ("scp_codes", "{'NORM': nan}", "malformed"),
        ("scp_codes", "", "unexpected EOF|invalid syntax"),
        ("strat_fold", "", "strat_fold is ''"),
        ("strat_fold", "0", "fold 0 is not"),
        ("strat_fold", "2.5", "strat_fold is '2.5'"),
        ("patient_id", "#N/A", "patient_id is '#N/A'"),
        ("patient_id", "1.57E+04", "patient_id is"),
        ("filename_lr", "", "does not lie"),
        ("filename_lr", "..\\..\\secret", "does not lie"),
    ],
)
def test_one_bad_row_costs_that_row(folder, expected, name, cell, words):
    def spoil(rows):
        rows[3][rows[0].index(name)] = cell
        return rows

    rewrite(folder / "ptbxl_database.csv", change=spoil)
    with pytest.warns(UserWarning, match=f"1 unreadable; the first: line 4: .*({words})"):
        found = load(folder)
    # Row 3 is the second of the training set: row 2 has no diagnosis.
    np.testing.assert_array_equal(found.train_x, np.delete(expected.train_x, 1, axis=0))
    np.testing.assert_array_equal(found.test_x, expected.test_x)


def test_many_bad_rows_are_refused_with_the_first(folder):
    rewrite(folder / "ptbxl_database.csv", change=column("strat_fold", lambda cell: cell.replace("10", "ten")))
    with pytest.raises(hn.DataError, match=r"line 10: strat_fold is 'ten', expected a whole number \(6 of 60 rows"):
        load(folder)


def test_a_repeated_recording_is_read_once(folder, expected):
    rewrite(folder / "ptbxl_database.csv", change=lambda rows: [*rows, *rows[1:31]])
    with pytest.warns(UserWarning, match="30 repeated"):
        same(load(folder), expected)


def test_statements_of_something_else_are_refused(folder):
    rewrite(folder / "scp_statements.csv", change=column("", lambda cell: cell.lower()))
    rewrite(folder / "scp_statements.csv", change=column("diagnostic_subclass", lambda cell: ""))
    with pytest.raises(hn.DataError, match="no column with the codes"):
        load(folder)


def test_codes_that_no_statement_explains_are_said(folder, expected):
    rewrite(folder / "scp_statements.csv", change=lambda rows: [row for row in rows if row[0] != "LAFB"])
    with pytest.warns(UserWarning, match="lacks the codes LAFB"):
        found = load(folder)
    assert len(found.train_y) < len(expected.train_y)


# Recordings


@pytest.mark.parametrize(
    "leads",
    [
        LEADS[::-1],
        ("I", "II", "III", "aVR", "aVL", "aVF", *LEADS[6:]),
        (*LEADS[6:], *LEADS[:6]),
        ("X", *LEADS, "RESP"),
    ],
)
def test_leads_are_found_by_name(folder, expected, leads):
    for i in range(1, COUNT + 1, 7):
        write_recording(folder / "records100" / "00000", i, leads=leads)
    found = load(folder)
    np.testing.assert_allclose(found.train_x, expected.train_x, atol=1e-5)
    np.testing.assert_allclose(found.test_x, expected.test_x, atol=1e-5)


@pytest.mark.parametrize("leads", [LEADS[:-1], ("II", *LEADS[1:-1], "-V6"), ("I", "I", *LEADS[2:])])
def test_a_missing_lead_is_named(folder, leads):
    path = folder / "records100" / "00000" / "00004_lr.hea"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1:13] = [f"{line.rpartition(' ')[0]} {lead}" for line, lead in zip(lines[1:13], (*leads, "V7"), strict=False)]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(hn.DataError, match=r"00004_lr\.hea has (no lead|2 leads called)"):
        load(folder)


def test_microvolts_become_millivolts(folder, expected):
    write_recording(folder / "records100" / "00000", 5, units="uV", change=lambda x: 1000 * x)
    np.testing.assert_allclose(load(folder).train_x, expected.train_x, atol=1e-5)


def test_a_recording_with_an_invalid_sample_is_left_out(folder, expected):
    def gap(signal):
        signal[500, 3] = np.nan
        return signal

    write_recording(folder / "records100" / "00000", 2, change=gap)
    # Row 2 has no diagnosis and is not read, row 3 is the second of the training set.
    write_recording(folder / "records100" / "00000", 3, change=gap)
    for _ in range(2):  # from the cache, too
        with pytest.warns(
            UserWarning, match=r"1 of 48 recordings are left out, they hold invalid samples; the first is .*3_lr"
        ):
            found = load(folder)
        np.testing.assert_array_equal(found.train_x, np.delete(expected.train_x, 1, axis=0))


def test_a_subset_with_leads_in_another_order(tmp_path):
    generator = np.random.default_rng(0)
    values = {
        "signal_uV": generator.integers(-2000, 2000, (6, 12, 1000)).astype(np.int16),
        "label": np.array([0, 1, 2, 3, 4, 0]),
        "classes": np.array(["NORM", "MI", "STTC", "CD", "HYP"]),
        "strat_fold": np.array([1, 2, 3, 4, 5, 10]),
        "leads": np.array(LEADS),
    }
    np.savez(tmp_path / "a.npz", **values)
    order = generator.permutation(12)
    np.savez(
        tmp_path / "b.npz", **values | {"signal_uV": values["signal_uV"][:, order], "leads": np.array(LEADS)[order]}
    )
    np.testing.assert_array_equal(load_ptbxl(tmp_path / "a.npz").train_x, load_ptbxl(tmp_path / "b.npz").train_x)

"""Published numbers: each with a source, nothing twice, nothing mixed."""
import csv
from importlib.resources import files

import pytest

from fer_bench.catalogue import DATASETS
from fer_bench.core import BenchError
from fer_bench.data.splits import BUDGETS
from fer_bench.report.published import published, published_table

ALL = published()

def test_every_number_has_its_place_and_its_source():
    assert list(ALL) == ["method", "kind", "backbone", "start", "data", "classes", "labels", "measure", "split",
                         "value", "source"]
    for column in ("method", "data", "measure", "source"): assert (ALL[column] != "").all()
    assert set(ALL["kind"]) == {"supervised", "semi-supervised", "self-supervised", ""}
    assert set(ALL["measure"]) == {"WAR", "UAR", "macro-F1"}
    assert set(ALL["data"]) - {"affectnet"} <= set(DATASETS) and set(ALL["split"]) == {"", "val", "test"}
    assert all(n == "" or n.isdigit() or n in BUDGETS for n in ALL["labels"]) and ALL["value"].between(20, 93).all()
    assert not ALL.drop(columns="value").duplicated().any()

def test_the_number_of_classes_is_the_set_s_or_unknown():
    known = {"raf-db": 7, "fer2013": 7, "affectnet-7": 7, "affectnet-8": 8, "abaw5-expr": 8, "ferplus": None,
             "affectnet": None}
    for data, rows in ALL.groupby("data"): assert set(rows["classes"].dropna()) == {known[data]} - {None}
    assert ALL["classes"].isna().sum() == (ALL["data"].isin(["ferplus", "affectnet"])).sum()

@pytest.mark.parametrize("method, data, measure, value", [
    ("SCN", "ferplus", "WAR", 89.35), ("POSTER++", "affectnet-8", "WAR", 63.77),
    ("HSEmotion", "affectnet-7", "WAR", 66.29),
    ("Netease Fuxi", "abaw5-expr", "macro-F1", 41.21), ("SimCLR", "affectnet", "WAR", 57.7)])
def test_a_number_stands_where_it_was_read(method, data, measure, value):
    rows = published(data)
    assert rows[(rows["method"] == method) & (rows["measure"] == measure)]["value"].item() == value

def test_rows_are_chosen():
    assert set(published("raf-db", labels="250")["value"]) == {75.51}
    assert set(published(labels="ada_cm-4000")["method"]) == {"Ada-CM"}
    assert set(published(classes=8)["data"]) == {"affectnet-8", "abaw5-expr"}, "what may be 7 classes is not given as 8"
    assert published("ferplus", classes=8).empty and published("no such set").empty and len(published("ferplus")) == 4

def test_for_people_each_row_is_marked_and_has_its_source():
    table = published_table(published("raf-db", labels=""))
    assert table["method"].str.endswith(" (published)").all() and (table["source"] != "").all()
    mek = table[table["method"] == "MEK (published)"].set_index("backbone")
    assert mek.loc["ResNet-50", ["WAR", "UAR"]].tolist() == ["90.29", "84.88"] and (table["UAR"] == "").any()
    assert published_table(published("affectnet"))["WAR"].tolist() == ["60.23", "56.4", "56.8", "57.7"]

def test_no_number_is_lost_for_people():
    for _, rows in ALL.groupby(["data", "classes"], dropna=False):
        table = published_table(rows)
        values = [float(v) for m in ("WAR", "UAR", "macro-F1") if m in table for v in table[m] if v]
        assert sorted(values) == sorted(rows["value"])

def test_several_data_sets_never_share_a_table():
    with pytest.raises(BenchError, match="affectnet-8, 8 classes; affectnet-7, 7 classes"):
        published_table(ALL[ALL["data"].isin(["affectnet-7", "affectnet-8"])])

def test_the_file_has_a_cell_for_every_column():
    with files("fer_bench.report").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {11} and all(cell == cell.strip() for row in rows for cell in row)

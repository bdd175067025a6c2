"""The report of the installed package: escaping, self-containment, odd tables, and failure half-way."""
import base64
import html
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fer_nb.core import ConfigError
from fer_nb.report import Section, fig_to_png, mean_sd, pivot_mean_sd, table_text, write_report

NASTY = "<script>alert('1')</script> & \"quoted\" {{ 7 * 7 }} </style>"


def figure():
    fig = Figure(figsize=(2, 1))
    fig.add_subplot().plot([1, 2])
    return fig


def written(folder, title, sections, **options):
    return write_report(folder / "r.html", title, sections, **options).read_text(encoding="utf-8")


class Text(HTMLParser):
    "All text outside the style, and all tags."

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)


def test_everything_is_escaped(tmp_path):
    table = pd.DataFrame({NASTY: [NASTY]}, index=pd.Index([NASTY], name=NASTY))
    section = Section(NASTY, NASTY, [(NASTY, table)], [(NASTY, figure())])
    text = Text(written(tmp_path, NASTY, [section], settings={NASTY: NASTY}))
    assert "script" not in text.tags and text.tags.count("style") == 1
    assert text.data.count(NASTY) >= 10 and ("alt", NASTY) in text.attributes


def test_nothing_is_loaded_from_outside(tmp_path):
    page = written(tmp_path, "t", [Section("s", figures=[("f", figure())])])
    links = [v for k, v in Text(page).attributes if k in ("src", "href")]
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in links)
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page


def test_the_image_is_the_figure_and_the_figure_is_left_alone(tmp_path):
    fig = figure()
    before = fig.dpi, fig.get_size_inches().tolist(), fig.get_facecolor()
    page = written(tmp_path, "t", [Section("s", figures=[("f", fig)])], dpi=80)
    assert base64.b64decode(re.search(r'base64,([^"]+)"', page)[1]) == fig_to_png(fig, 80)
    assert (fig.dpi, fig.get_size_inches().tolist(), fig.get_facecolor()) == before


@pytest.mark.parametrize("table", [
    pd.DataFrame(),
    pd.DataFrame({"a": []}),
    pd.DataFrame({"a": [True, False], "b": [None, "x"], "c": pd.array([1, None], dtype="Int64")}),
    pd.DataFrame({"a": [np.inf, -np.inf, np.nan]}),
    pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("test", "all"), ("test", "without_duplicates")])),
    pd.DataFrame([[1, 2]], columns=["a", "a"]),
    pd.DataFrame({"a": [1., 2.]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["s", "k"])),
    pd.DataFrame({"a": pd.Categorical(["happy", "sad"]), "when": pd.to_datetime(["2026-01-01", None])}),
], ids=["empty", "no rows", "missing", "infinite", "two levels", "same names", "two indices", "categories"])
def test_odd_tables(tmp_path, table):
    page = written(tmp_path, "t", [Section("s", tables=[("c", table)])])
    rows = re.findall(r"<tr>.*?</tr>", page, flags=re.S)
    assert len(rows) == 1 + len(table)
    assert len({len(re.findall(r"<t[hd]", row)) for row in rows}) == 1
    assert ">nan<" not in page and ">None<" not in page and "NaT" not in page and "&lt;NA" not in page


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_numbers_of_a_column_have_the_same_decimals_and_are_true(values):
    cells = table_text(pd.DataFrame({"x": values})).x.tolist()
    assert len({len(c.partition(".")[2]) for c in cells}) == 1
    digits = len(cells[0].partition(".")[2])
    for cell, value in zip(cells, values):
        assert abs(float(cell.replace(",", "").replace("−", "-")) - value) <= 0.5 * 10**-digits * (1 + 1e-6)


def test_long_tables_fold_and_short_ones_do_not(tmp_path):
    def folds(n):
        table = pd.DataFrame({"epoch": range(n)})
        return "<details" in written(tmp_path, "t", [Section("s", tables=[("c", table)])])
    assert [folds(30), folds(31)] == [False, True]


def test_failure_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path / "deep/er/r.html", "old", [])
    old = path.read_bytes()
    monkeypatch.setattr("fer_nb.core.os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, "new", [])
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_a_folder_is_no_report(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_report(tmp_path, "t", [])


@pytest.mark.parametrize("parts, message", [
    ({"tables": [("c", [1])]}, "'c' in section 's': a DataFrame expected, not list"),
    ({"figures": [("f", figure().axes[0])]}, "'f' in section 's': a Figure expected, not Axes")])
def test_a_section_refuses_what_it_cannot_show(parts, message):
    with pytest.raises(ConfigError, match=message):
        Section("s", **parts)


def test_settings_are_shown_only_if_there_are_any(tmp_path):
    with_settings = written(tmp_path, "t", [], settings={"path": tmp_path / "x", "n": None})
    assert html.escape("null") in with_settings and 'id="settings"' in with_settings
    assert 'id="settings"' not in written(tmp_path, "t", [])


def test_the_template_belongs_to_the_package():
    from importlib.resources import files
    page = (files("fer_nb") / "assets/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and page.count("<style>") == 1


RUNS = pd.DataFrame([("b", "x", .5), ("b", "x", .7), ("a", "y", .25), ("b", "y", .1)], columns=["arm", "dataset", "value"])


def test_runs_as_mean_and_sd_in_their_own_order():
    wide = pivot_mean_sd(RUNS, "arm", "dataset")
    assert (list(wide.index), list(wide), wide.index.name, wide.columns.name) == (["b", "a"], ["x", "y"], "arm", None)
    assert wide.loc["b"].tolist() == ["60.00 ± 14.14", "10.00"] and wide.isna().to_numpy().sum() == 1
    both = pivot_mean_sd(RUNS.assign(split="test"), ["split", "arm"], "dataset", {"y": "Y"}, percent=False, digits=1)
    assert both.index.names == ["split", "arm"] and both.Y.tolist() == ["0.2", "0.1"]
    assert pivot_mean_sd(RUNS[:0], "arm", "dataset").empty


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_mean_and_sd_are_those_of_pandas(values):
    v = 100 * pd.Series(values)
    assert mean_sd(values, digits=3) == f"{v.mean():.3f} ± {v.std():.3f}" or np.isclose(
        [float(x) for x in mean_sd(values, digits=3).split(" ± ")], [v.mean(), v.std()], atol=6e-4).all()

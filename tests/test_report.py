"""The report of the installed package: escaping, self-containment, odd tables, and failure half-way."""
import base64
import html
import re
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urlparse

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from scipy.stats import binomtest

from fer_nb.core import ConfigError, DataError
from fer_nb.report import (Headline, Section, fig_to_png, markdown_table, mean_sd, percent_range, pivot_mean_sd, share_intervals, summary_table,
                           table_text, write_report)

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
    section = Section(NASTY, NASTY, [(NASTY, table)], [(NASTY, figure())], [(NASTY, table)])
    text = Text(written(tmp_path, NASTY, [section], settings={NASTY: NASTY}, record={NASTY: NASTY}, beside=[(NASTY, NASTY)],
                        headline=Headline([(NASTY, NASTY, NASTY)], NASTY)))
    assert "script" not in text.tags and text.tags.count("style") == 1
    assert text.data.count(NASTY) >= 20 and ("alt", NASTY) in text.attributes
    assert [v for k, v in text.attributes if k == "href" and v[0] != "#"] == [quote(NASTY)]


def test_a_link_stays_in_the_folder_whatever_the_file_is_called(tmp_path):
    names = ["results.csv", "javascript:alert(1)", "https://example.org/x", "a b%.csv", "ü.csv"]
    links = [v for k, v in Text(written(tmp_path, "t", [], beside=[(n, "") for n in names])).attributes if k == "href" and v[0] != "#"]
    assert [unquote(link) for link in links] == names and not any(urlparse(link).scheme or urlparse(link).netloc for link in links)


def test_what_stands_on_top_stands_on_top(tmp_path):
    page = written(tmp_path, "t", [Section("Results")], headline=Headline([("accuracy", "71.1 %", "263 images")], "One.\n\n\nTwo."))
    data = [d.strip() for d in Text(page).data if d.strip()]
    at = [data.index(part) for part in ("accuracy", "71.1 %", "263 images", "One.", "Two.", "Results")]
    assert at == sorted(at)
    assert "headline" not in Text(written(tmp_path, "t", [Section("Results")])).tags and 'class="numbers"' not in written(tmp_path, "t", [])


def test_the_record_is_shown_open_and_the_settings_folded(tmp_path):
    page = written(tmp_path, "t", [], settings={"seed": 3}, record={"command": "fer-nb demo", "versions": {"torch": "2"}})
    assert page.index("fer-nb demo") < page.index("<details") < page.index(">3<") and "{&#34;torch&#34;: &#34;2&#34;}" in page
    assert 'id="made"' not in written(tmp_path, "t", []) and 'id="files"' not in written(tmp_path, "t", [])


RESULTS = pd.DataFrame([("a", metric, attack, k / n, n) for metric, attack, k, n in (
    ("accuracy", "none", 187, 263), ("accuracy", "pgd", 0, 40), ("recall:x:y", "none", 4, 4), ("macro_f1", "none", 1, 2), ("precision:x", "none", 1, 2))],
    columns=["model", "metric", "attack", "value", "n"])


def test_shares_of_images_have_wilsons_interval_and_nothing_else_has():
    table = share_intervals(RESULTS)
    assert table.metric.tolist() == ["accuracy", "accuracy", "recall:x:y"] and set(table.interval) == {"Wilson"}
    for row in table.itertuples():
        ci = binomtest(round(row.value * row.n), row.n).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx(tuple(ci), abs=1e-12)
    assert table.high[1] > .08 and table.low[2] < .52       # 0 of 40 and 4 of 4 are not certain
    empty = share_intervals(RESULTS[:1].assign(value=np.nan, n=0))
    assert percent_range(empty.low, empty.high) == ["–"]


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
    decimals = len(cells[int(np.argmax(np.abs(values)))].partition(".")[2])
    small = [k for k, c in enumerate(cells) if "e" in c or len(c.partition(".")[2]) != decimals]   # else they would be shown as zero
    for k in small:
        assert abs(values[k]) < 0.5 * 10.0**-decimals or abs(values[k]) < 1e-12
        assert abs(float(cells[k].replace("−", "-")) - values[k]) <= 0.5 * 10**np.floor(np.log10(abs(values[k]))) * (1 + 1e-6)
    cells, values = ([x for k, x in enumerate(of) if k not in small] for of in (cells, values))
    if not cells:
        return
    digits = len(cells[0].partition(".")[2])
    for cell, value in zip(cells, values):
        assert abs(float(cell.replace(",", "").replace("−", "-")) - value) <= 0.5 * 10**-digits * (1 + 1e-6)


def test_long_tables_fold_and_short_ones_do_not(tmp_path):
    def folds(n):
        table = pd.DataFrame({"epoch": range(n)})
        return "<details" in written(tmp_path, "t", [Section("s", tables=[("c", table)])])
    assert [folds(30), folds(31)] == [False, True]
    page = written(tmp_path, "t", [Section("s", folded=[("one", pd.DataFrame({"x": [1]}))])])
    assert "<summary>one (1 row)</summary>" in page and page.count("<details") == 1


def test_text_that_is_compared_downwards_is_on_the_right(tmp_path):
    table = pd.DataFrame({"p": ["< 0.001", "0.508"], "interval": ["−22.4 to 1,000.0", "–"], "id": ["12a", "7"], "name": ["to 1", "2 to"]})
    assert table_text(table).attrs["numbers"] == [True, True, False, False]
    assert table_text(table[:0]).attrs["numbers"] == [False] * 4


def test_one_rule_says_what_a_column_of_numbers_is_in_html_and_markdown(tmp_path):
    table = pd.DataFrame({"mean": ["67.10 ± 0.42", "–"], "range": ["4.5 to 7.0", "–"], "who": ["1 teacher", "3 teachers"], "note": ["", ""], "n": [3, 5]})
    expected = [True, True, False, False, True]
    assert table_text(table).attrs["numbers"] == expected
    assert [cell.strip() == "--:" for cell in markdown_table(table).splitlines()[1].split("|")[1:-1]] == expected
    head = re.search(r"<tr>.*?</tr>", written(tmp_path, "t", [Section("s", tables=[("c", table)])]), flags=re.S)[0]
    assert ['class="n"' in cell for cell in re.findall(r"<th[^>]*>", head)] == expected


def test_wide_figures_stand_alone_and_scroll_on_a_phone(tmp_path):
    wide = Figure(figsize=(9, 2))
    wide.add_subplot().plot([1, 2])
    page = written(tmp_path, "t", [Section("s", figures=[("f", figure()), ("w", wide)])])
    [small, large] = re.findall(r"<figure.*?</figure>", page, flags=re.S)
    width = int(re.search(r'width="(\d+)"', large)[1])
    assert 'class="wide"' in large and f"min-width: {round(.8 * width)}px" in large
    assert "wide" not in small and "min-width" not in small


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


def attacked(**more):
    base = {"model": "a", "split": "test", "attack": "pgd", "steps": 10, "metric": "accuracy", "eps": 1 / 255, "value": 0.5}
    return pd.DataFrame([base | row for row in more["rows"]])


def test_a_cell_of_the_robust_table_is_one_row():
    subsets = attacked(rows=[{"subset": "sample", "value": 0.9}, {"subset": "all", "value": 0.5}])
    from fer_nb.report import robust_table
    assert robust_table(subsets)["ε = 1/255"].tolist() == [90, 50]
    small = attacked(rows=[{"eps": 0.001 / 255, "value": 0.9}, {"eps": 0.004 / 255, "value": 0.5}])
    assert robust_table(small).loc[0, ["ε = 0.001/255", "ε = 0.004/255"]].tolist() == [90, 50]
    lengths = attacked(rows=[{"norm": "l2", "eps": 0.1}, {"norm": "linf"}])
    assert {"ε = 0.1", "ε = 1/255"} <= set(robust_table(lengths))
    with pytest.raises(DataError, match="1 rows more than one a cell, the first of a, test, pgd"):
        robust_table(attacked(rows=[{"seed": 0, "value": 0.9}, {"seed": 1, "value": 0.5}]))
    from fer_nb.report import summary_table
    with pytest.raises(DataError, match="more than one a cell, the first of test, a"):
        summary_table(attacked(rows=[{"attack": "none", "tta": "none", "subset": "all", "n": 9, "seed": k} for k in (0, 1)]))


@pytest.mark.parametrize(("values", "cells"), [
    ([1e-5, 3e-5], ["0.0000100", "0.0000300"]), ([1e-6, .04], ["1e−06", "0.0400"]), ([-2e-7, 5.5], ["−2e−07", "5.500"]), ([0, .04], ["0.0000", "0.0400"]),
    ([3e-17, .5], ["0.000", "0.500"]), ([2e-20, 3e-20], ["2e−20", "3e−20"]), ([.004, .03], ["0.0040", "0.0300"]), ([np.nan, 4e-4], ["–", "0.000400"])])
def test_a_small_number_is_not_shown_as_zero(values, cells):
    assert table_text(pd.DataFrame({"x": values})).x.tolist() == cells and cells[-1] in markdown_table(pd.DataFrame({"x": values}))


def test_runs_with_an_empty_key_stay_and_splits_are_not_averaged():
    runs = pd.DataFrame({"arm": ["a", "a"], "norm": [None, "linf"], "metric": "accuracy", "value": [.5, .6]})
    assert pivot_mean_sd(runs, ["arm", "norm"], "metric").accuracy.to_dict() == {("a", "–"): "50.00", ("a", "linf"): "60.00"}
    with pytest.raises(DataError, match="several splits, valid, test"):
        pivot_mean_sd(runs.assign(split=["valid", "test"]), "arm", "metric")
    assert len(pivot_mean_sd(runs.assign(split=["valid", "test"]), ["split", "arm"], "metric")) == 2


def test_confusions_of_two_seeds_are_refused():
    cells = pd.DataFrame([("m", "test", t, p, 3, s) for t in "ab" for p in "ab" for s in (0, 1)], columns=["model", "split", "true", "predicted", "n", "seed"])
    from fer_nb.report import confusion_matrix
    assert confusion_matrix(cells[cells.seed == 0], "m", "test").shape == (2, 2)
    with pytest.raises(DataError, match="more than one a cell"):
        confusion_matrix(cells, "m", "test")


def test_a_summary_without_clean_rows_says_what_there_is():
    rows = pd.DataFrame({"split": "test", "model": "m", "subset": "all", "attack": "none", "tta": "flip", "metric": ["accuracy", "macro_f1"],
                         "value": [.7, .6], "n": 9})
    with pytest.raises(DataError, match="no rows of attack none with tta=none; there are none with tta=flip"):
        summary_table(rows)
    with pytest.raises(DataError, match="there are no rows"):
        summary_table(rows[:0])
    table = summary_table(rows.assign(tta="none", value=np.nan))
    assert table.columns.tolist()[2:6] == ["accuracy", "precision", "recall", "F1"]
    assert summary_table(rows.assign(tta="none")).accuracy.tolist() == [70]
    with pytest.raises(ConfigError, match="a share of 71.2"):
        share_intervals(pd.DataFrame({"metric": ["accuracy"], "value": [71.2], "n": [3589]}))


def test_cells_that_are_lists_are_shown():
    table = pd.DataFrame({"a": [[1, 2], np.arange(3), None, (), np.nan]})
    assert table_text(table).a.tolist() == ["[1, 2]", "[0 1 2]", "–", "()", "–"]
    assert "[1, 2]" in markdown_table(table)

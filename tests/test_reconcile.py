"""Papers' tables: the files are whole and agree with the constants in the code, nothing measured or missing is lost, calls exist."""
import ast
import html
import importlib
import inspect
import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)  # fastai's import

from fer_nb.audit import PAPER_TABLE1  # noqa: E402
from fer_nb.cli import parser  # noqa: E402
from fer_nb.core import ConfigError, DataError  # noqa: E402
from fer_nb.hyfer_studies import PAPER_TABLE4  # noqa: E402
from fer_nb.models import SQSNET_TABLE3, TEACHERS, teacher_table  # noqa: E402
from fer_nb.reconcile import (PAPER_COLUMNS, SideBySide, as_printed, beside, footnotes, largest_f1, largest_sd, over_runs, p_range,  # noqa: E402
                              read_paper, read_result)
from fer_nb.store import run_record, write_record  # noqa: E402
from fer_nb.robustness import PAPER_TABLE5  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "results/papers").glob("*.csv"))
PAGES = sorted((ROOT / "nbs/tutorials").glob("*_paper_*.ipynb"))


def printed(name: str) -> pd.DataFrame:
    "Values of a table: a row a row, a column a column."
    return read_paper(ROOT / f"results/papers/{name}.csv").pivot(index="row", columns="column", values="value")


def facts(*rows: tuple, **more: object) -> pd.DataFrame:
    "A paper's table from (row, column, text)."
    table = pd.DataFrame(rows, columns=["row", "column", "printed"]).assign(table="1", footnote="", plus_minus=np.nan, **more)
    return table.assign(value=pd.to_numeric(table.printed.str.split(" ").str[0], errors="coerce"))


# ---------------------------------------------------------------- the files

def test_every_table_of_both_papers_is_there():
    assert {f.stem for f in FILES} == {f"dmc-table{k}" for k in range(1, 6)} | {f"sqsnet-table{k}" for k in range(1, 8)} | {"sqsnet-figure3"}


@pytest.mark.parametrize("path", FILES, ids=lambda f: f.stem)
def test_a_table_is_whole(path):
    table = read_paper(path)
    number = re.search(r"\d+", path.stem)[0]
    assert set(table.table) == {number if "table" in path.stem else f"Fig. {number}"}
    cells = table[table.column != "values tested"]
    assert not cells.duplicated(["row", "column"]).any() and len(cells) == cells.row.nunique() * cells.column.nunique()
    percent = table[table.column.str.contains("%")].value.dropna()
    assert percent.between(0, 100).all() and (table.value.dropna() >= 0).all()
    assert as_printed(table).notna().all(axis=None)


def test_the_constants_in_the_code_are_the_same_figures():
    t1 = printed("dmc-table1").fillna(0).loc[PAPER_TABLE1.index]
    for column, name in {"duplicated": "duplicated", "multilabel": "multi-label", "label_error": "label errors", "original": "original"}.items():
        assert (t1[f"FER2013 {name}"] == PAPER_TABLE1[column]).all()
    t3 = printed("dmc-table3")
    for row in t3.index:
        assert TEACHERS[row.lower().replace("-", "_")][2:] == tuple(t3.loc[row, ["parameters (M)", "GFLOPs", "size (MB)"]])
    t3 = printed("sqsnet-table3").rename({"SQSNet (ours)": "SQSNet"})
    columns = ["parameters (M)", "FLOPs (G)", "inference (ms)", "training (h)", "GPU memory (GB)", "RAF-DB accuracy (%)"]
    assert {row: tuple(t3.loc[row, columns]) for row in t3.index} == {row: tuple(v[1:]) for row, v in SQSNET_TABLE3.items()}
    t5 = printed("dmc-table5")
    for r in PAPER_TABLE5.itertuples():
        name = f"{r.dataset}, {dict(fgsm='FGSM', pgd='PGD', deepfool='DeepFool')[r.attack]}"
        assert tuple(t5.loc[name, ["accuracy (%)", "loss", "precision (%)", "recall (%)", "F1-score (%)"]]) == tuple(r[4:9])
    assert (PAPER_TABLE5[PAPER_TABLE5.dataset == "FER2013"].clean == printed("dmc-table4").loc["HyFER (KD: T1+T2+T3)", "after: FER2013 accuracy (%)"]).all()


def test_table_4_of_the_experiments_is_the_same():
    names = {("fer2013", "accuracy"): "FER2013 accuracy (%)", ("fer2013", "loss"): "FER2013 loss",
             ("kdef", "accuracy"): "KDEF accuracy (%)", ("kdef", "loss"): "KDEF loss"}
    assert list(PAPER_TABLE4) == list(names)
    for key, name in names.items():
        t4 = printed("dmc-table4")[[f"{arm}: {name}" for arm in ("before", "after")]]
        rows = [tuple(t4.loc[row]) for row in ("HyFER (No KD)", "HyFER (KD: T1)", "HyFER (KD: T1+T2)", "HyFER (KD: T1+T2+T3)")]
        assert list(PAPER_TABLE4[key]) == rows


def test_costs_are_those_of_the_networks():
    names = ["mobilevit_s", "efficientvit_m2"]
    saved = pd.read_csv(ROOT / "results/costs/teachers.csv").set_index("teacher").loc[names]
    pd.testing.assert_frame_equal(teacher_table(names).set_index("teacher"), saved, check_dtype=False)


# ---------------------------------------------------------------- reading

@pytest.mark.parametrize("line, message", [("1,A,x,O.5,,", "line 2: value 'O.5'"), ("1,A,x,0.5,a,", "line 2: plus_minus 'a'")])
def test_no_number_is_no_figure(tmp_path, line, message):
    path = tmp_path / "t.csv"
    path.write_text(",".join(PAPER_COLUMNS) + "\n" + line + "\n")
    with pytest.raises(DataError, match=re.escape(message)):
        read_paper(path)


def test_faults_of_columns_and_values_are_named_together(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",".join(PAPER_COLUMNS) + ",page\n1,A,x,O.5,,,3\n")
    with pytest.raises(DataError, match="column 'page'.*line 2: value 'O.5'"):
        read_paper(path)


def test_what_is_printed_stays_as_printed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",".join(PAPER_COLUMNS) + "\n1,A,x,0.20,0.010,first | second\n1,A,y,N/A,,second\n1,B,x,–,,\n1,B,y,7,,\n")
    table = read_paper(path)
    assert table.printed.tolist() == ["0.20 ± 0.010", "N/A", "–", "7"] and table.value.isna().tolist() == [False, True, True, False]
    assert as_printed(table).to_numpy().tolist() == [["0.20 ± 0.010 [a b]", "N/A [b]"], ["–", "7"]]
    assert footnotes(table).footnote.to_dict() == {"[a]": "first", "[b]": "second"}


def test_results_may_be_missing_but_not_broken(tmp_path):
    path = tmp_path / "r.csv"
    assert not (absent := read_result(path, call="fer-nb run")) and "not measured here yet; `fer-nb run` would" in repr(absent)
    write_record(tmp_path, ["r.csv"], run_record("fer-nb run"))
    for text, columns in (("", []), ("a,b\n", []), ("a,b\n1,2\n", ["c"])):
        path.write_text(text)
        with pytest.raises(DataError, match="r.csv.*fer-nb run"):
            read_result(path, columns)
    found = read_result(path, ["b"])
    assert found and found.record["command"] == "fer-nb run" and "made by `fer-nb run`" in repr(found)
    assert str(tmp_path.parent) not in repr(found)
    (tmp_path / "record.json").write_text("[]")
    assert "no record of the run" in repr(read_result(path))


# ---------------------------------------------------------------- side by side

@pytest.mark.parametrize("text, here, agrees", [
    ("12.29", 12.2956, True), ("12.30", 12.2956, True), ("12.29", 12.2999, True), ("12.29", 12.30001, False), ("4953", 4953, True),
    ("4953", 4954, False), ("0.794 ± 0.024", 0.7945, True), ("0.20", 0.21, False), ("0.352 ± 0.008", 0.3531, False)])
def test_a_figure_agrees_rounded_or_cut(text, here, agrees):
    found = beside(facts(("A", "x", text)), pd.DataFrame({"row": ["A"], "column": ["x"], "value": [here]}), "other data")
    assert found.remark.tolist() == ["agrees" if agrees else "other data"]
    assert len(found.here.iloc[0].partition(".")[2]) == len(text.split(" ")[0].partition(".")[2])


def test_every_figure_is_on_one_line():
    rng = np.random.default_rng(0)
    for _ in range(20):
        paper = facts(*((r, c, f"{rng.random():.2f}") for r in "ABC" for c in "wxyz"))
        here = paper[["row", "column", "value"]][rng.random(12) < rng.random()].assign(value=rng.random(), plus_minus=0.01)
        table = beside(paper, here, "other data", {"w": "`f(1)`", "B": "`g(2)`", "": "`h(3)`"}).reset_index()
        table["figure"] = table.figure.replace("everything", "w, x, y, z").str.split(", ")
        lines = table.explode("figure")
        assert sorted(zip(lines.row, lines.figure)) == sorted(zip(paper.row, paper.column))
        missing = lines[lines.here == "not measured here"]
        assert len(missing) == 12 - len(here)
        assert (missing.remark == ["call: " + ("`f(1)`" if c == "w" else "`g(2)`" if r == "B" else "`h(3)`")
                                   for r, c in zip(missing.row, missing.figure)]).all()


def test_nothing_is_passed_over_in_silence():
    paper, here = facts(("A", "x", "0.5"), ("A", "y", "N/A")), pd.DataFrame({"row": ["A"], "column": ["x"], "value": [0.9]})
    with pytest.raises(DataError, match="A, x: 0.9 here, 0.5 in the paper, and no reason"):
        beside(paper, here, {"y": "other data"}, "`f()`")
    with pytest.raises(DataError, match="A, y: not measured, and no call"):
        beside(paper, here, "other data", {"x": "`f()`"})
    with pytest.raises(DataError, match="B, x: no such figure"):
        beside(paper, here.assign(row="B"), "other data", "`f()`")
    both = beside(paper, pd.concat([here, here.assign(column="y")]), "other data")
    assert both.remark.tolist() == ["other data", "no figure in the paper"]
    assert beside(paper, here.assign(value=np.nan), "x", "`f()`").here.tolist() == ["not measured here"]


def test_runs_are_averaged_apart():
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({"model": np.repeat(["b", "a"], 10), "metric": ["m", "n"] * 10, "value": rng.random(20)})
    for r in over_runs(runs, ["model", "metric"], 100).itertuples():
        v = 100 * runs.value[(runs.model == r.model) & (runs.metric == r.metric)]
        assert (r.value, r.plus_minus, r.runs) == pytest.approx((v.mean(), np.std(v, ddof=1), 5))


def test_runs_without_a_value_or_a_name_are_neither_counted_nor_lost():
    runs = pd.DataFrame({"model": ["a"] * 3, "teacher": [np.nan, np.nan, "t"], "value": [.5, .7, np.nan]})
    table = over_runs(runs, ["model", "teacher"])
    assert table.runs.tolist() == [2, 0] and table.value.tolist()[0] == pytest.approx(.6) and np.isnan(table.value[1])
    assert over_runs(runs, ["model"]).runs.tolist() == [2] and over_runs(runs, ["model"], 100).plus_minus[0] == pytest.approx(14.142, abs=.001)


@pytest.mark.parametrize("text, here, agrees", [("5e-3", .9, False), ("5e-3", .0052, True), ("1.2e-05", 1.9e-5, False), ("1.2e-05", 1.24e-5, True),
                                                ("4E+2", 430, True), ("4E+2", 530, False), ("1e1", 21, False)])
def test_figures_in_scientific_notation_have_decimals(text, here, agrees):
    found = beside(facts(("A", "p", text)), pd.DataFrame({"row": ["A"], "column": ["p"], "value": [here]}), "other data")
    assert (found.remark.iloc[0] == "agrees") == agrees and (agrees or found.difference.iloc[0] != "0")


def test_a_figure_that_stands_twice_is_a_fault():
    once = pd.DataFrame({"row": ["A"], "column": ["acc"], "value": [.91]})
    with pytest.raises(DataError, match="A, acc: measured more than once"):
        beside(facts(("A", "acc", "0.91")), pd.concat([once, once.assign(value=.85)]), "other seed")
    twice = facts(("A", "acc", "0.91"), ("A", "acc", "0.55"), ("A", "rest", "1"), ("A", "rest", "2"))
    with pytest.raises(DataError, match="A, acc: more than once in the paper's table") as e:
        beside(twice, once, "other data", "`f()`")
    assert "rest" not in str(e.value)                                   # nobody measured it: it is shown as printed
    assert len(beside(twice, None, "", "`f()`")) == 1


def test_p_of_equal_means_is_one():
    assert p_range(0, 1, 1, 5) == p_range(0.0, 0, 0, 2) == (1.0, 1.0) and p_range(1, 0, 0, 5) == (0.0, 0.0)
    for k in (1, 0, 2.5):
        with pytest.raises(ConfigError, match=f"k={k}"):
            p_range(1, 0, 1, k)


def test_a_table_shows_both_figures_and_says_each_thing_once():
    paper = facts(("A", "x", "0.50"), ("A", "y", "0.60"), ("B", "x", "0.70"), ("B", "y", "0.80")).assign(footnote=["n", "", "", ""])
    here = pd.DataFrame({"row": ["A", "B"], "column": ["x", "x"], "value": [0.9, 0.7]})
    table = SideBySide(paper, beside(paper, here, "other data", "`f()`"))
    assert table.cells().to_numpy().tolist() == [["0.50 [a]\nhere 0.90", "0.60"], ["0.70\nhere 0.70 ✓", "0.80"]]
    assert table.notes() == {"Footnotes": ["[a] n"], "Why they differ": ["A (x): other data"], "What would measure the rest": ["A, B (y): `f()`"]}
    page = table._repr_html_()
    assert page.count("<details>") == 3 and "0.50 [a]<br><span class='here'>here 0.90</span>" in page and page.count("other data") == 1
    assert "2 of 4 figures measured here" in repr(table)
    assert "<details>" not in SideBySide(paper.assign(footnote=""), beside(paper, paper[["row", "column", "value"]]))._repr_html_()


# ---------------------------------------------------------------- limits

def test_limits_hold_and_are_reached():
    rng = np.random.default_rng(1)
    for k in (2, 3, 5, 10):
        x = 100 * rng.random((200, k)) ** rng.uniform(0.01, 1)
        assert (x.std(1, ddof=1) <= largest_sd(x.mean(1), k, 100) + 1e-9).all()
        assert np.std([1.0] * (k - 1) + [0.7], ddof=1) == pytest.approx(largest_sd(1 - 0.3 / k, k))
    assert largest_f1(0.4, 0.4) == 0.4


def test_p_of_any_pairing_is_in_the_range():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.9, 0.01, 6), rng.normal(0.89, 0.02, 6)
    low, high = p_range(a.mean() - b.mean(), a.std(ddof=1), b.std(ddof=1), 6)
    for _ in range(200):
        assert low <= stats.ttest_rel(a, rng.permutation(b)).pvalue <= high
    assert p_range(1, 0.1, 0.1, 5)[0] == 0
    mirrored = 2 * a.mean() - a - 0.01                                                     # the worst pairing there is
    assert p_range(0.01, a.std(ddof=1), a.std(ddof=1), 6)[1] == pytest.approx(stats.ttest_rel(a, mirrored).pvalue)


# ---------------------------------------------------------------- the pages

def calls(page: Path) -> list[str]:
    "What stands in backquotes in the saved outputs and names a module of the package or its command."
    found = set()
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        for o in cell.get("outputs", []):
            text = "".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/html", ""))
            found |= set(re.findall(r"`([^`]+)`", html.unescape(text)))
    return sorted(found)


def resolve(node: ast.expr) -> object:
    "The object that `module.name` or `module.Class.name` is; None for anything else."
    if isinstance(node, ast.Name):
        return importlib.import_module(f"fer_nb.{node.id}") if (ROOT / f"fer_nb/{node.id}.py").exists() else None
    owner = resolve(node.value) if isinstance(node, ast.Attribute) else None
    return None if owner is None else getattr(owner, node.attr)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_call_that_a_page_names_exists(page):
    named = calls(page)
    assert len(named) > 10 and len(PAGES) == 2
    for text in named:
        if text.startswith("fer-nb "):
            parser().parse_args(shlex.split(text)[1:])
            continue
        if text.startswith("python "):
            assert (ROOT / text.split()[1]).is_file(), text
            continue
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
        assert any(resolve(node) is not None for node in nodes if isinstance(node, ast.Attribute)), text
        for node in nodes:
            if isinstance(node, ast.Call) and (function := resolve(node.func)) is not None:
                inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords})


def test_spaces_around_a_printed_figure_do_no_harm(tmp_path):
    (path := tmp_path / "p.csv").write_text(",".join(PAPER_COLUMNS) + "\n" + ",".join({"value": " 71.3", "plus_minus": " "}.get(c, "acc ") for c in PAPER_COLUMNS) + "\n")
    assert read_paper(path).value.tolist() == [71.3] and read_paper(path).printed.tolist() == ["71.3"]
    path.write_text(path.read_text().replace("71.3", "inf"))
    with pytest.raises(DataError, match="a number or N/A expected"):
        read_paper(path)

"""The pages as a reader meets them: what they need, Run All without the data, the first cell, a picture."""
import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import run_notebooks
from run_all import ROOT, notebooks, run_all

from fer_nb.data import VOTE_COLUMNS, add_votes, read_fer2013, read_ferplus, real_data
from fer_nb.synth import fer2013_folder

PAGES = [p for p in notebooks() if p.name != "index.ipynb"]              # the index is README.md, which has its own tests
TIME = r"(\d+) (s|min)"
NEEDS = re.compile(rf"\*Needs: (?P<data>no data|FER2013, or drawn faces in its place|FER2013 for \w+ cells); (?P<time>{TIME}) of one core"
                   rf"(?: \((?P<less>{TIME}) (?:with drawn faces|without it)\))?, (?P<memory>\d+\.\d) GB\.\*")
QUICK = ("04_data.ipynb", "10_balance.ipynb")                          # one leaves cells out, one draws faces
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def cells(page, kind):
    "The sources of a page's cells of one kind."
    found = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def needs(page):
    "The line that says what a page needs, taken apart."
    return next((m for text in cells(page, "markdown")[:3] if (m := NEEDS.fullmatch(text.strip().splitlines()[0]))), None)


def seconds(text):
    number, unit = text.split()
    return int(number) * (60 if unit == "min" else 1)


@pages
def test_says_what_it_needs(page):
    "In the beginning, in one form; real data exactly where a cell asks for them."
    said = needs(page)
    assert said, f"{page.name}: no line '*Needs: ...*' among the first three texts"
    asks = any(source.startswith("#| realdata") or "= fer2013_folder(" in source for source in cells(page, "code"))
    assert (said["data"] != "no data") == (asks and page.stem != "05_synth") == bool(said["less"])  # which shows the faces themselves


@pages
def test_says_how_real_data_are_found(page):
    "Under that line: the variable and the files, for who reads the page and runs nothing."
    if needs(page)["data"] != "no data":
        way = next(text for text in cells(page, "markdown") if text.startswith("*Needs:"))
        votes = any("fer2013new.csv" in source or "votes=True" in source for source in cells(page, "code"))
        assert "`FER_NB_DATA`" in way and "`fer2013.csv`" in way and ("`fer2013new.csv`" in way or not votes)


@pages
def test_a_paper_has_one_name(page):
    "The first, the second; other names were three for one."
    assert not re.search(r"(dual-phase|data- and model-centric) paper", "\n".join(cells(page, "markdown")))


def test_a_wrong_line_is_found():
    for text in ("*Needs: no data; 7 s of one core, 0.7 GB.*", "*Needs: FER2013, or drawn faces in its place; 2 min of one core "
                 "(50 s with drawn faces), 2.2 GB.*"):
        assert NEEDS.fullmatch(text)
        assert not NEEDS.fullmatch(text.replace(" GB", "")) and not NEEDS.fullmatch(text.replace("Needs: ", "Needs "))


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "tutorials"], ids=lambda p: p.stem)
def test_first_cell_of_a_tutorial_is_short(page):
    "At most eight lines before something is shown; and no other cell is a wall of imports."
    code = cells(page, "code")
    assert len(next(s for s in code if not s.startswith("#| hide")).splitlines()) <= 8
    for source in code:
        assert sum(line.startswith(("import ", "from ")) for line in source.splitlines()) <= 8, source


@pages
def test_has_a_picture(page):
    "An image that a cell has drawn, or one from nbs/images."
    outputs = [o for c in json.loads(page.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    assert any(key.startswith("image/") for o in outputs for key in o.get("data", {})) \
        or any("](images/" in text for text in cells(page, "markdown"))


def test_the_folder_of_real_data_is_asked_for_in_one_place():
    "No page, test or benchmark reads the variable itself; `data.real_data` does."
    reads = re.compile(r"^(?!\s*del ).*(environ(\.get\(|\[)|getenv\()['\"]FER_NB_DATA", re.MULTILINE)
    texts = {p.name: "\n".join(cells(p, "code")) for p in PAGES}
    texts |= {p.name: p.read_text(encoding="utf-8") for folder in ("tests", "benchmarks", "docs") for p in (ROOT / folder).glob("*.py")}
    assert [name for name, text in texts.items() if reads.search(text)] == ["04_data.ipynb"]


# ---- with a folder of the reader's own ----

OWN = ROOT / "nbs/tutorials/06_own_dataset.ipynb"


def test_a_folder_of_the_readers_own_is_only_read(tmp_path):
    "He writes its name where the page says so and steps on: no file is drawn into it, moved or damaged, and nothing else lies beside it."
    code = cells(OWN, "code")
    code = code[:next(k for k, source in enumerate(code) if "read(root, broken=" in source) + 1]
    assert sum(source.count("root = drawn") for source in code) == 1
    from PIL import Image
    from fer_nb.synth import make_faces
    faces = make_faces(12, seed=1, defects=None)[0]
    for k in range(len(faces)):
        (folder := tmp_path / "mine" / ("calm", "amused")[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.image(k)).save(folder / f"{k}.png")

    def files():
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before, names = files(), {}
    for source in code:
        exec(compile(source.replace("root = drawn", f"root = Path({str(tmp_path / 'mine')!r})"), OWN.name, "exec"), names)
    assert len(names["mine"]) == 12 and files() == before
    names["temporary"].cleanup()


def test_no_cell_after_it_writes_there():
    writes = re.compile(r"root\b[^\n]*\.(unlink|mkdir|write_\w+|touch|rename|replace)\(|(rmtree|copy\w*|move|to_csv|save\w*)\([^\n]*\broot\b")
    assert not [source for source in cells(OWN, "code") if writes.search(source)]
    assert writes.search('(root / "stray.png").unlink()') and writes.search("shutil.move(root / a, root / b)")


# ---- without the data ----

def test_says_how_to_get_the_data(monkeypatch, tmp_path, capsys):
    "One line with the file that lacks, where it is to be had, and what to export."
    monkeypatch.delenv("FER_NB_DATA", raising=False)
    assert real_data("fer2013.csv") is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "FER_NB_DATA is not set" in said and "kaggle.com" in said and "export FER_NB_DATA=" in said
    monkeypatch.setenv("FER_NB_DATA", str(tmp_path))
    (tmp_path / "fer2013.csv").touch()
    assert real_data() == real_data("fer2013.csv") == tmp_path and capsys.readouterr().out == ""
    assert real_data("fer2013.csv", "fer2013new.csv") is None
    said = capsys.readouterr().out
    assert f"no fer2013new.csv in FER_NB_DATA={tmp_path}" in said and "github.com/microsoft/FERPlus" in said
    monkeypatch.setenv("FER_NB_DATA", str(tmp_path / "gone"))
    assert real_data() is None and "no folder in FER_NB_DATA=" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:fer:UserWarning")
def test_drawn_faces_stand_in(monkeypatch, tmp_path, capsys):
    "The same files, which the same readers read; all emotions in each split; real files are preferred where they are."
    monkeypatch.delenv("FER_NB_DATA", raising=False)
    folder = fer2013_folder(350, votes=True)
    assert "350 drawn faces stand in for FER2013" in capsys.readouterr().out
    assert fer2013_folder(350) == folder != fer2013_folder(140)
    ds = add_votes(read_fer2013(folder / "fer2013.csv"), folder / "fer2013new.csv")
    assert len(ds) == 350 and ds.counts().loc[:, ["train", "valid", "test"]].min(axis=None) > 0
    assert (ds.df[list(VOTE_COLUMNS)].sum(axis=1) == 10).all() and (ds.df.label == ds.df.vote_label).mean() > .9
    ferplus = read_ferplus(folder / "fer2013new.csv", folder / "fer2013.csv")
    assert len(ferplus) > 300 and set(ferplus.df.label) == set(ds.labels)
    capsys.readouterr()
    monkeypatch.setenv("FER_NB_DATA", str(tmp_path))
    pd.DataFrame({"emotion": [3], "pixels": [" ".join(["0"] * 2304)], "Usage": ["Training"]}).to_csv(tmp_path / "fer2013.csv", index=False)
    assert fer2013_folder() == tmp_path and capsys.readouterr().out == ""
    assert fer2013_folder(140, votes=True) != tmp_path                      # the votes are not there


@pytest.mark.parametrize("name", QUICK)
def test_run_all_of_a_quick_page(name):
    "Every cell, flagged ones too, without the data."
    assert not run_all(ROOT / "nbs" / name).error


def test_run_all_sees_an_error(tmp_path):
    code = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": "#| slow\nraise KeyError('FER_NB_DATA')"}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    path = Path(tmp_path, "page.ipynb")
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [code]}))
    assert "KeyError" in run_all(path).error


@pytest.mark.slow
@pages
def test_run_all(page):
    "Every page runs to its end in a fresh clone without the data, within the time and memory that it says, and half as much again."
    took, said = run_all(page), needs(page)
    assert not took.error, took.error
    assert took.cpu <= 1.5 * seconds(said["less"] or said["time"]) + 5 and took.memory <= 1.5 * float(said["memory"]) + .2


def test_the_reader_runs_what_ci_runs():
    "The pages that Run All goes through are all there are."
    assert {p.name for p in PAGES} == {p.name for p in (ROOT / "nbs").rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in str(p)}
    assert not any(os.path.islink(p) for p in PAGES)


@pytest.mark.parametrize("saved, new, of_results, of_toys", [
    ("accuracy 0.81", "accuracy 0.84", False, True), ("accuracy 0.81", "accuracy 0.82", True, True), ("n 12", "n 13", False, True),
    ("accuracy 0.81", "recall 0.81", False, False), ("it says happy", "it says sad", False, True), ("happy", "glad", False, False),
    ("array([-1. , 2.5])", "array([-3.2, 2.5])", False, True), ("<img src='base64,AAA='>", "<img src='base64,BB+/='>", False, True)])
def test_what_a_page_must_still_say(saved, new, of_results, of_toys):
    """Numbers count to the last digit where results are shown; of toys the words, without labels and pictures."""
    assert (run_notebooks.same(saved, new, True), run_notebooks.same(saved, new, False)) == (of_results, of_toys)


def test_results_are_followed_through_a_page_with_toys():
    known = set()
    cells = [("runs = read_table('../results/x/runs.csv')", True), ("wide = runs.pivot(index='a')", True), ("wide.round(2)", True),
             ("net = HyFER()", False), ("results = evaluate(net)", False), ("results", False), ("runs = evaluate(net)", False), ("runs.head()", False)]
    assert [run_notebooks.of_results(source, known) for source, _ in cells] == [found for _, found in cells]

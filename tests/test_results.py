"""Committed results: each file has the record of the run that made it, pages print that record, and saved outputs are compared."""
import json
import re
import sys
from pathlib import Path

import pytest

from fer_nb.store import made_by, read_record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import run_notebooks  # noqa: E402

FILES = sorted(p for p in (ROOT / "results").rglob("*.csv") if p.parent.name not in ("papers", "install"))
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if p.stem != "index")  # its numbers: test_readme.py
# Made before runs wrote records; the list may only shrink.
BY_HAND = {"fer2013-audit", "fer2013-cpu", "fer2013-protocol", "fer2013-robust",
           "fer2013-shipped", "fer2013-variants", "ferplus-sqs", "ferplus-transfer"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_each_result_has_a_record(path):
    record = read_record(path)
    assert record is not None, f"{path}: no record"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d.*", record["date"]) and record["commit"]
    if path.parent.name in BY_HAND:
        assert "entered" in record or "system" in record
    else:
        assert {"versions", "system", "cores"} <= set(record), "not written by a run"
    assert record["command"] in made_by(path)


def test_the_readme_of_the_results_names_the_same_commands():
    text = (ROOT / "results/README.md").read_text(encoding="utf-8")
    for folder in sorted({p.parent for p in FILES}):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{folder.name}`"))
        for record in json.loads((folder / "record.json").read_text(encoding="utf-8")):
            name = re.match(r"fer-nb \w+|python \S+|[\w.]+", record["command"])[0]  # the verb, the script or the function
            name = name if " " in name else name.split(".")[-1]
            assert name in row, f"{folder.name}: {record['command']} is not in its row"


def test_no_record_names_a_directory():
    for path in (ROOT / "results").rglob("record.json"):
        for record in json.loads(path.read_text(encoding="utf-8")):
            assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users)/", json.dumps(record)), path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pages_print_the_record_of_what_they_read(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    read = {m for m in re.findall(r"results[/\"') ]+(?:/ ?f?\")?((?:fer2013|ferplus)-[\w]+)", code)}
    assert not read or re.search(r"made_by\(|read_result\(|read_record\(", code), f"{path.name} reads {sorted(read)} and prints no record"
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert not re.search(r"(made by|, from) `fer-nb ", prose), f"{path.name}: a typed command says what made a result"


# ---------------------------------------------------------------- the comparison of saved outputs

@pytest.mark.parametrize("saved, new, numbers, same", [
    ("accuracy 48.25", "accuracy 52.00", True, False),   # another network's figure
    ("accuracy 48.25", "accuracy 52.00", False, True),   # a page that trains toys
    ("accuracy 48.25", "accuracy 48.26", True, True),    # the last digit is the machine's
    ("accuracy 48.25", "accuracy 48.27", True, False),
    ("3,589 images", "3,588 images", True, False),       # counts are exact
    ("1.0e-07", "1.2e-07", True, False),
    ("a  1.0\nb 10.0", "a 1.0\nb 9.9", False, True),     # the padding of a column
    ("a 1.0", "b 1.0", False, False),
    ("of 'f30d077519bac680'", "of 'a44bf5c9258254ee'", False, True),    # the digest of a toy's weights
    ("of 'f30d077519bac680'", "of 'a44bf5c9258254ee'", True, False),
    ("−0.5 (p 0.01)", "−0.6 (p 0.01)", True, True),
])
def test_what_counts_as_the_same_output(saved, new, numbers, same):
    assert run_notebooks.same(saved, new, numbers) is same


def notebook(path: Path, *cells: tuple[str, str]) -> Path:
    "A notebook of code cells, each with the line that is saved as its output."
    cells = [{"cell_type": "code", "id": f"c{k}", "metadata": {}, "execution_count": None, "source": source,
              "outputs": [{"output_type": "stream", "name": "stdout", "text": text}] if text else []}
             for k, (source, text) in enumerate(cells)]
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_stale_page_fails(here):
    page = notebook(here / "p.ipynb", ("results = 'results/x.csv'", ""), ("print('accuracy', 52.0)", "accuracy 48.25\n"), ("print(1)", "1\n"))
    ran = run_notebooks.run(page, ["slow"])
    assert len(ran.stale) == 1 and "cell c1" in ran.stale[0] and "48.25" in ran.stale[0] and "52.0" in ran.stale[0]
    assert not ran.error and ran.cells == 3


def test_an_error_stops_the_page_and_a_flag_skips_a_cell(here):
    page = notebook(here / "p.ipynb", ("#| slow\nprint(1)", "9\n"), ("1 / 0", ""), ("print(2)", "3\n"))
    ran = run_notebooks.run(page, ["slow"])
    assert "ZeroDivisionError" in ran.error and ran.skipped == {"slow": 1} and not ran.stale


def test_progress_bars_do_not_count(here):
    for end in ("\r", "\n"):
        shown = [run_notebooks.texts([{"output_type": "stream", "name": "stdout",
                                       "text": "".join(f"\rEpoch 1/2 : |{n * '█'}| {n}/9" for n in range(steps)) + end + "done\n"}]) for steps in (2, 9)]
        assert shown[0] == shown[1] and "done" in shown[0][0]
    assert run_notebooks.texts([{"output_type": "stream", "name": "stdout", "text": "█\r\rEpoch 1/2 : |█| 100%\r"}]) == []


def test_outputs_can_be_saved(here):
    page = notebook(here / "p.ipynb", ("print('two')", "one\n"))
    assert run_notebooks.run(page, []).stale
    run_notebooks.run(page, [], save=True)
    assert not run_notebooks.run(page, []).stale


# ---------------------------------------------------------------- tables of the shipped weights

SHIPPED = ("fer2013-shipped/headline.csv",)  # tables whose record names the weights; the list may only grow


@pytest.mark.parametrize("name", SHIPPED)
def test_a_table_is_of_the_shipped_weights_or_refused(name):
    from fer_nb.core import DataError
    from fer_nb.evaluate import measured_by_others, table_of
    from fer_nb.models import HyFER
    accurate, robust = HyFER.from_pretrained().card, HyFER.from_pretrained("hyfer_robust").card
    assert len(table_of(ROOT / "results" / name, accurate))
    with pytest.raises(DataError, match=f"{accurate['sha256'][:12]}.*{robust['sha256'][:12]}"):
        table_of(ROOT / "results" / name, robust)
    stated = {r["measure"]: r for r in accurate["record"]["headline"]}
    for r in table_of(ROOT / "results" / name, accurate).itertuples():  # card and table are one
        assert (stated[r.measure]["n"], stated[r.measure]["who"]) == (r.n, r.who) and abs(stated[r.measure]["value"] - r.value) < 1e-4
    assert set(measured_by_others(accurate).split) == {"PrivateTest"} and not len(measured_by_others(robust))  # of these weights, by nobody yet


def test_figures_of_privatetest_stand_on_the_card_alone():
    """Others measured them with the weights that the card names; no other page may carry them on."""
    for page in [ROOT / "README.md", *(p for p in NOTEBOOKS if p.name != "08_model_card.ipynb")]:
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"PrivateTest[^.\n]{0,60}\b(?:68\.8|69\.4|67\.9|65\.2)\b", text)
        assert not found, f"{page.name}: {found}"


def test_the_page_of_results_names_every_folder():
    "What it does not show it lists, with the page that does."
    text = (ROOT / "nbs/tutorials/13_results.ipynb").read_text(encoding="utf-8")
    lacking = [p.name for p in (ROOT / "results").iterdir() if p.is_dir() and f"`{p.name}`" not in text and f"results/{p.name}/" not in text]
    assert not lacking

"""Tables about the shipped networks: each is current or refused, none is forgotten, one command makes them again."""
import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from fer_nb import shipped
from fer_nb.cli import main
from fer_nb.core import ConfigError, DataError
from fer_nb.data import real_data
from fer_nb.evidence import EVIDENCE
from fer_nb.shipped import ALL, EARLIER, TABLES, found_of, need_shipped, outcomes_text, pages_of_tables, remake_tables, shipped_weights, table_state, weights_named, words_of
from fer_nb.store import StoreError, read_record, write_record
from fer_nb.synth import fer2013_folder

ROOT = Path(__file__).resolve().parents[1]
FILES = [(name, file) for name, made in TABLES.items() for file in made.files]


@pytest.mark.parametrize("name, file", FILES, ids=[f for _, f in FILES])
def test_a_table_is_of_the_shipped_weights_or_refused(name, file, tmp_path):
    path, whose = found_of(ROOT, file), TABLES[name].whose(file)
    if file in EARLIER:
        with pytest.raises(DataError, match="does not name|of weights [0-9a-f]{12}"):
            need_shipped(path, whose)
        return
    need_shipped(path, whose)
    for network in whose:                                     # one network that is another's is enough
        with pytest.raises(DataError, match=f"000000000000.*{network}|{network}.*expected"):
            need_shipped(path, whose, shipped_weights() | {network: "0" * 64})
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    if (record := read_record(path)) is None:                 # a row is its own record
        row = json.loads(copy.read_text())
        copy.write_text(json.dumps({k: v for k, v in row.items() if k != "weights"}))
    else:
        write_record(tmp_path, [path.name], {k: v for k, v in record.items() if k not in ("files", "weights")})
    with pytest.raises(DataError, match="does not name"):
        need_shipped(copy, whose)


def test_no_table_is_forgotten():
    listed = {found_of(ROOT, file).relative_to(ROOT).as_posix() for _, file in FILES}
    runs = re.compile(r"Recogniser\(|from_pretrained\(|shipped_weights\(|results/fer2013-shipped(?!/parts)")
    for script in (ROOT / "benchmarks").glob("*.py"):          # a benchmark that runs a shipped network has its file here
        if script.stem != "common" and runs.search(script.read_text(encoding="utf-8")):
            assert f"benchmarks/{script.stem}.json" in listed, script.name
    for folder in ("fer2013-shipped", "fer2013-robust", "ferplus-transfer"):
        there = {f"results/{folder}/{p.name}" for p in (ROOT / "results" / folder).iterdir() if p.name != "record.json"}
        assert there <= listed, there - listed
    listed |= {f"{e.place.removesuffix('.csv')}{end}" for e in EVIDENCE.values() for end in (".csv", ".costs.csv")}   # say whose they are
    listed |= {f"results/fer2013-recipe/{n}" for n in ("taught.csv", "taught.history.csv", "onward.csv", "onward.history.csv")}   # never shipped
    listed |= {f"results/fer2013-again/{n}.csv" for n in ("headline", "results", "history", "headline-2", "results-2", "history-2",
                                                               "headline-2-clip", "results-2-clip", "history-2-clip", "robust-autoattack",
                                                           *(f"{kind}{end}" for end in ("", "-2") for kind in (
                                                               "robust-headline", "robust-results", "robust-history", "int8-headline")))}   # never shipped either
    for record in [*(ROOT / "results").rglob("record.json"), ROOT / "benchmarks/record.json"]:
        for entry in json.loads(record.read_text(encoding="utf-8")):
            if entry.get("weights"):
                assert {record.with_name(f).relative_to(ROOT).as_posix() for f in entry["files"]} <= listed
    assert "nbs/tutorials/04_robustness.ipynb" in (pages := pages_of_tables(ROOT)) and "nbs/tutorials/08_model_card.ipynb" in pages
    assert "nbs/21_metrics.ipynb" not in pages


def test_commands_are_those_that_the_command_takes():
    from fer_nb.cli import parser
    given = {"data": "d", "votes": "v", "split": "valid", "peers": "--peers p", "made": "m", "accurate": "a.safetensors", "robust": "r"}
    for name, made in TABLES.items():
        words = words_of(made, given, tiny=True)
        assert "{" not in " ".join(words), name
        if made.script:
            text = (ROOT / words[1]).read_text(encoding="utf-8") + (ROOT / "benchmarks/common.py").read_text(encoding="utf-8")
            assert all(f'"{w}"' in text for w in words if w.startswith("--")), words
        elif made.command:
            parser(words[3]).parse_args(words[3:])


def test_a_trial_of_the_cheap_ones_and_on_with_the_rest(tmp_path, capsys, monkeypatch):
    drawn = fer2013_folder(210, votes=True)
    words = ["study", "shipped", "--data", str(drawn / "fer2013.csv"), "--budget", "tiny", "--only", "headline", "--only", "run",
             "--only", "reliable", "--out", str(tmp_path)]
    assert main(words) == 0 and "left: --votes was not given" in (said := capsys.readouterr().out) and "fer-nb ship makes it" in said
    words += ["--votes", str(drawn / "fer2013new.csv")]
    assert main(words) == 0 and "made" in (said := capsys.readouterr().out) and "shipped before" in said
    need_shipped(tmp_path / "results/fer2013-shipped/headline.csv", ["hyfer"])
    assert not list((tmp_path / "tables.work").iterdir())
    calls = []
    monkeypatch.setattr(shipped, "make_table", lambda *args: calls.append(args[0]))
    given = {"data": "d", "votes": "v", "split": "test"}
    with pytest.raises(ConfigError, match="trial.txt: the tables here are a trial's"):   # they are no results
        remake_tables(tmp_path, given, ["headline"])
    with pytest.raises(ConfigError, match="results are here"):
        remake_tables(ROOT, given, ["headline"], tiny=True, again=True)
    (tmp_path / "trial.txt").unlink()
    assert remake_tables(tmp_path, given, ["headline"]).outcome.tolist() == ["up to date"] and not calls
    assert remake_tables(tmp_path, given, ["headline"], again=True).outcome.tolist() == ["made"] and calls == ["headline"]
    (tmp_path / "results/fer2013-shipped/record.json").unlink()
    assert remake_tables(tmp_path, given, ["headline"]).outcome.tolist() == ["made"]
    with pytest.raises(ConfigError, match="the checkout that runs"):
        remake_tables(tmp_path, given, ["headline"], pages=True)
    assert table_state(ROOT).query("state != 'current'").file.tolist() == list(EARLIER)


def test_a_command_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "results/fer2013-shipped").mkdir(parents=True)
    old = tmp_path / "results/fer2013-shipped/headline.csv"
    old.write_text("old")
    table = remake_tables(tmp_path, {"data": "nowhere.csv", "votes": "nowhere.csv", "split": "valid"}, ["headline"])
    assert "failed: table headline: exit status 2" in table.outcome[0] and "no such file" in table.outcome[0] and old.read_text() == "old"


def test_a_row_that_is_cut_short_is_stale_and_the_others_are_not(tmp_path, monkeypatch):
    row_file = "results/bench/*-hyfer-fer2013.json"
    whole = found_of(ROOT, row_file)
    (bench := tmp_path / "results/bench").mkdir(parents=True)
    (tmp_path / "benchmarks").mkdir()
    for name in ("in_the_world.json", "reliable_fit.json"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    shutil.copy(ROOT / "benchmarks/record.json", tmp_path / "benchmarks")

    def states():
        return table_state(tmp_path).set_index("file").state

    for cut in (whole.read_bytes()[:-9], b"", b"\xff\xfe\x00", b"[" * 100_000):
        (row := bench / whole.name).write_bytes(cut)
        with pytest.raises(StoreError, match=f"{row.name}: cut short or changed"):
            weights_named(row)
        assert "cut short or changed" in states()[row_file] and states()["benchmarks/in_the_world.json"] == "current"
    assert states()[EARLIER[0]] == "earlier networks, as its page says"
    calls = []
    monkeypatch.setattr(shipped, "make_table", lambda *args: calls.append(args[0]))
    table = remake_tables(tmp_path, {"data": "d", "votes": "v", "split": "test"}, ["bench", "in the world"])
    assert table.outcome.tolist() == ["made", "up to date"] and calls == ["bench"]
    (tmp_path / EARLIER[0]).unlink()
    assert "not there" in states()[EARLIER[0]]                                                # neither is it of earlier ones
    (tmp_path / "benchmarks/record.json").write_text("[{")
    assert "cannot be read as records" in states()["benchmarks/in_the_world.json"]


def test_no_page_is_saved_and_no_success_is_told_after_a_failure(tmp_path, monkeypatch, capsys):
    def fails(name, *args):
        if name == "headline":
            raise DataError("table headline: exit status 1: no")

    given = {"data": "d", "votes": "v", "split": "valid"}
    monkeypatch.setattr(shipped, "make_table", fails)
    monkeypatch.setattr(shipped, "checkout", lambda: tmp_path)
    saved = []
    monkeypatch.setattr(shipped, "save_pages", lambda *args: saved.append(args) or pd.DataFrame([("page a", "saved")], columns=["table", "outcome"]))
    made = remake_tables(tmp_path, given, ["headline", "groups"], pages=True)
    assert made.outcome.tolist() == ["failed: table headline: exit status 1: no", "made", "left: a table failed"] and not saved
    assert made.table.tolist() == ["headline", "groups", "pages"]
    with pytest.raises(DataError, match="^1 of 3 failed\nheadline: failed: table headline: exit status 1: no$"):
        outcomes_text(made)
    assert remake_tables(tmp_path, given, ["groups"], pages=True).outcome.tolist() == ["made", "saved"] and len(saved) == 1
    with pytest.raises(DataError, match="page a: failed: Error"):
        outcomes_text(pd.DataFrame([("page a", "failed: Error")], columns=["table", "outcome"]))
    drawn = fer2013_folder(210, votes=True)
    words = ["study", "shipped", "--data", str(drawn / "fer2013.csv"), "--votes", str(drawn / "fer2013new.csv"), "--budget", "tiny",
             "--out", str(tmp_path / "trial"), "--only", "groups", "--only"]
    assert main([*words, "headline"]) == 2 and "1 of 2 failed\nheadline: failed" in capsys.readouterr().err
    assert main([*words, "groups"]) == 0 and "made" in capsys.readouterr().out


def test_pages_are_saved_with_their_cells_of_real_data(tmp_path, monkeypatch):
    called = []

    class Done:
        returncode, stderr, stdout = 0, "", ""

    monkeypatch.delenv("FER_NB_DATA", raising=False)
    monkeypatch.setattr(shipped.subprocess, "run", lambda words, **more: called.append((words[1:], more["env"].get("FER_NB_DATA"))) or Done())
    table = shipped.save_pages(ROOT, {"data": str(tmp_path / "fer2013.csv")})
    assert set(table.outcome) == {"saved"} and called[0][0][:2] == ["tests/run_notebooks.py", "--save"] and called[-1][0] == ["docs/build.py", "export"]
    (tmp_path / "fer2013.csv").touch()
    called.clear()
    shipped.save_pages(ROOT, {"data": str(tmp_path / "fer2013.csv")})
    assert called[0] == (["tests/run_notebooks.py", "--flags", "realdata", "--save", pages_of_tables(ROOT)[0]], str(tmp_path))


@pytest.mark.slow
def test_a_trial_of_all_that_the_command_makes(tmp_path):
    drawn = fer2013_folder(210, votes=True)
    given = {"data": str(drawn / "fer2013.csv"), "votes": str(drawn / "fer2013new.csv"), "split": "test"}
    names = [n for n, made in TABLES.items() if made.command and not made.script]
    table = remake_tables(tmp_path, given, names, tiny=True, again=True, say=print)
    assert set(table.outcome) == {"made"}, table.outcome.tolist()
    assert all(need_shipped(found_of(tmp_path, f), TABLES[n].whose(f)) is None for n in names for f in TABLES[n].files)
    assert ALL == tuple(shipped_weights())


@pytest.mark.slow
@pytest.mark.skipif(real_data("fer2013_train_public.npz") is None, reason="FER2013 as benchmarks read it is not at hand")
def test_a_trial_of_the_scripts(tmp_path):
    """Those whose packages are here: a benchmark calls what the package no longer has, and nobody notices for months."""
    given = {"data": str(real_data() / "fer2013.csv"), "votes": "", "split": "valid"}
    names = [n for n, made in TABLES.items() if made.script and not made.needs and (n != "server" or find_spec("uvicorn"))]
    table = remake_tables(tmp_path, given, names, tiny=True, again=True)
    assert set(table.outcome) == {"made"}, table.outcome.tolist()


def test_the_name_of_a_root_is_no_pattern(tmp_path):
    for name in ("x[1]", "x1"):
        (tmp_path / name).mkdir()
    (tmp_path / "x1/table.csv").write_text("a\n1\n")
    assert found_of(tmp_path / "x[1]", "table.csv") == tmp_path / "x[1]/table.csv"
    assert found_of(tmp_path / "x1", "t*.csv") == tmp_path / "x1/table.csv"


def test_what_a_command_says_in_other_letters_is_told(tmp_path):
    from fer_nb.shipped import put_in_place, run_process
    with pytest.raises(DataError, match="a table: exit status 1: caf"):
        run_process("a table", [sys.executable, "-c", "import sys; sys.stderr.buffer.write(b'caf\\xe9'); sys.exit(1)"], {})
    (tmp_path / "results").write_text("")
    (tmp_path / "made.csv").write_text("a\n1\n")
    with pytest.raises(StoreError, match="could not be written"):
        put_in_place(tmp_path, {"results/a.csv": tmp_path / "made.csv"})

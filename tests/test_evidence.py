"""Every question is answered by a command that exists, as a process of its own, and what it leaves lies where the pages read it."""
import json
from pathlib import Path

import pandas as pd
import pytest

from fer_nb.cli import main, parser
from fer_nb.core import ConfigError, DataError
from fer_nb.evidence import COMPARED, EVIDENCE, Compared, differences_of, evidence_table, evidence_words, family, reproduce_all
from fer_nb.experiment import arms_of, with_options
from fer_nb import hyfer_studies
from fer_nb.hyfer_studies import STUDY, changed_budgets
from fer_nb.store import made_by, read_record, read_table, write_table
from fer_nb.synth import fer2013_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_command_has_options_and_settings_that_there_are(name, tmp_path, capsys):
    """Settings are looked at before data: what is missing here is the file alone."""
    for tiny in (False, True):
        words = evidence_words(name, {"data": str(tmp_path / "none.csv"), "votes": str(tmp_path / "v.csv")}, tmp_path / "out", tiny)
        assert main(words[3:]) == 2 and "none.csv: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, arms", [
    ("protocol", {"honest", "duplicates_across", "balance_then_split"}),
    pytest.param("SQS", {"SQSNet", "without the hinge", "pairs alone", "pooled vectors", "w/o SQS"}, marks=pytest.mark.slow)])
def test_a_question_is_answered_and_taken_up_again(tmp_path, capsys, name, arms):
    drawn = fer2013_folder(210, votes=True)
    given = {"data": str(drawn / "fer2013.csv"), "votes": str(drawn / "fer2013new.csv")}
    asked = ["reproduce", "--all", "--budget", "tiny", "--only", name, "--data", given["data"], "--votes", given["votes"], "--out", str(tmp_path)]
    assert main(asked) == 0 and "made" in capsys.readouterr().out
    table = tmp_path / EVIDENCE[name].place
    runs, first = read_table(table), table.read_bytes()
    command = " ".join(["fer-nb", *EVIDENCE[name].command.split()[:2]])
    assert set(runs["protocol" if name == "protocol" else "arm"]) == arms and read_record(table)["command"].startswith(command)
    assert read_record(table.with_suffix(".costs.csv"))["command"] == read_record(table)["command"]
    assert read_record(table)["fits"] == [read_record(table)["commit"] or "unknown"] and "fits at" not in made_by(table)
    row = evidence_table(tmp_path).set_index("evidence").loc[name]
    assert row.hours > 0 and row.date and not row.current                       # a trial is not the command
    assert reproduce_all(given, tmp_path, [name], tiny=True).outcome.tolist() == ["made"] and table.read_bytes() == first
    assert pd.isna(evidence_table(tmp_path).set_index("evidence").hours["data"])
    with pytest.raises(ConfigError, match="a trial's"):
        reproduce_all(given, tmp_path, [name])


def test_what_drawn_images_cannot_answer_is_not_tried_and_why_is_said(tmp_path, capsys):
    drawn = fer2013_folder(210, votes=True)
    asked = ["reproduce", "--all", "--budget", "tiny", "--data", str(drawn / "fer2013.csv"), "--votes", str(drawn / "fer2013new.csv"), "--out", str(tmp_path)]
    assert main([*asked, "--only", "phase 2", "--only", "label errors"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not tried: the shipped network goes on only" in said and "not tried: drawn votes contradict no label" in said
    assert not list((tmp_path / "results").rglob("*.csv"))


@pytest.mark.parametrize("more, says", [
    ([], "no paper"), (["--all"], "--data None"), (["dmc", "--all", "--data", "a.csv", "--votes", "b.csv"], "dmc, --all True"), (["--only", "data"], "--all False"),
    (["--all", "--data", "a.csv", "--votes", "b.csv", "--budget", "paper"], "--budget paper")])
def test_what_is_asked_in_part_is_refused(more, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = fer2013_folder(210, votes=True)
    for name, file in (("a.csv", "fer2013.csv"), ("b.csv", "fer2013new.csv")):
        (tmp_path / name).write_bytes((drawn / file).read_bytes())
    assert main(["reproduce", *more, "--out", str(tmp_path / "never")]) == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_a_file_of_the_repository_is_missed_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr("fer_nb.evidence.run_process", lambda name, *a: begun.append(name) or (_ for _ in ()).throw(DataError("stopped")))
    given = {"data": "fer2013.csv", "votes": "fer2013new.csv"}
    says = "phase 2: results/fer2013-shipped/parts.csv: no such file; a clone of the repository has it"
    with pytest.raises(DataError, match=says):
        reproduce_all(given, tmp_path / "out", ["settings", "phase 2"])
    assert not begun
    made = reproduce_all(given, tmp_path / "out").set_index("evidence").outcome   # the others are answered all the same
    assert says in made["phase 2"] and set(begun) == {*EVIDENCE} - {"phase 2"}
    (tmp_path / "results/fer2013-shipped").mkdir(parents=True)
    (tmp_path / "results/fer2013-shipped/parts.csv").write_text("id,part\n")
    assert "stopped" in reproduce_all(given, tmp_path / "out", ["phase 2"]).outcome[0]


def test_other_names_and_absent_votes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="protocol"):
        reproduce_all({"data": "a.csv", "votes": "b.csv"}, tmp_path, ["protokol"])
    with pytest.raises(DataError, match="--votes fer2013new.csv expected"):
        reproduce_all({"data": "a.csv", "votes": ""}, tmp_path)


def some_runs(folder, n=(100, 100), split="valid"):
    """Three seeds of two arms, in the place of the SQS controls."""
    rows = [{"arm": arm, "seed": seed, "split": split, "subset": "all", "tta": "none", "metric": "accuracy", "n": m, "value": .6 + add + .001 * seed * add}
            for (arm, add), m in zip((("SQSNet", .03), ("w/o SQS", 0)), n) for seed in range(3)]
    write_table(pd.DataFrame(rows), folder / COMPARED["SQS's parts"].place)


@pytest.mark.parametrize("name", [name for name, asked in EVIDENCE.items() if " --arm " in asked.command])
def test_arms_are_there_and_change_settings_that_there_are(name):
    """Which the run alone would find, after the data have been read."""
    for tiny in (False, True):
        args = parser("study").parse_args(evidence_words(name, {"data": "a.csv", "votes": "b.csv"}, "o", tiny)[3:])
        preset = with_options(STUDY, args)
        if args.what == "settings":
            assert len(changed_budgets(preset, arms_of(args.arm))) == len(args.arm) + 1
        else:
            arms = arms_of(args.arm, int)
            assert set(arms) <= set(hyfer_studies._ARMS) and max(n for counts in arms.values() for n in counts) <= len(preset.teachers)


def test_arms_that_are_one_network_in_all_seeds_are_no_finding(tmp_path):
    """An interval of no width says nothing about another seed."""
    rows = [{"arm": arm, "seed": seed, "split": "valid", "subset": "all", "tta": "none", "metric": "accuracy", "n": 100, "value": .6 + .01 * seed}
            for arm in ("SQSNet", "w/o SQS") for seed in range(3)]
    write_table(pd.DataFrame(rows), tmp_path / COMPARED["SQS's parts"].place)
    table = family(tmp_path).query("evidence == \"SQS's parts\"")
    assert table.set_index("comparison").verdict["SQSNet against w/o SQS"] == "the same in all seeds"


def test_a_narrow_interval_is_little_to_find_also_without_zero(tmp_path):
    """And the pages that explain the verdicts give them in that order."""
    rows = [{"arm": arm, "seed": seed, "split": "valid", "subset": "all", "tta": "none", "metric": "accuracy", "n": 1000, "value": .6 + gain}
            for arm, gains in (("SQSNet", (.004, .006, .005)), ("w/o SQS", (0, 0, 0))) for seed, gain in enumerate(gains)]
    write_table(pd.DataFrame(rows), tmp_path / COMPARED["SQS's parts"].place)
    found = family(tmp_path).query("evidence == \"SQS's parts\"").set_index("comparison").loc["SQSNet against w/o SQS"]
    assert 0 < found.low and found.high < 1.5 and found.p_holm > .05 and found.verdict == "little to find"
    for page in ("55_evidence", "tutorials/12_paper_sqsnet", "tutorials/17_findings"):
        cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text(encoding="utf-8"))["cells"]
        told = next(text for c in cells if c["cell_type"] == "markdown" and "±1.5 points" in (text := "".join(c["source"])) and "suggest" in text)
        assert told.index("ittle to find") < told.index("*suggest"), page


def test_a_table_is_current_wherever_its_files_lay():
    """A record has a file by its name alone."""
    assert evidence_table(ROOT).set_index("evidence").current["phase 2"]


def test_what_is_declared_and_not_made_counts(tmp_path):
    """Or a verdict would depend on which study ran first."""
    some_runs(tmp_path)
    table = family(tmp_path)
    made = table[table.p.notna()].iloc[0]
    assert table.p.notna().sum() == 1 and made.p_holm == pytest.approx(min(1, made.p * sum(len(c.pairs) for c in COMPARED.values())))


def test_arms_judged_on_other_images_are_refused(tmp_path):
    some_runs(tmp_path, n=(100, 90))
    asked = COMPARED["SQS's parts"]
    with pytest.raises(ConfigError, match="same images"):
        differences_of(tmp_path, asked)
    own = Compared(asked.place, asked.pairs, where=asked.where, own=True)
    assert differences_of(tmp_path, own).difference.dropna().tolist() == pytest.approx([3], abs=.01)


def test_the_only_reported_split_is_compared(tmp_path):
    some_runs(tmp_path, split="test")
    assert differences_of(tmp_path, COMPARED["SQS's parts"]).difference.notna().sum() == 1


@pytest.mark.parametrize("known", [False, True])
def test_voters_judge_the_data_steps_without_duplicates_where_a_table_can(tmp_path, known):
    "Before cleaning a network is trained on duplicates of what it is judged on."
    asked = COMPARED["data, FER+'s majority"]
    rows = [{"arm": arm, "model": "HyFER", "teachers": 0, "seed": seed, "split": "valid", "metric": "majority", "n": n,
             "value": .6 + .001 * seed + (arm == "cleaned") * add + .0001 * seed * (arm == "cleaned"), "subset": subset}
            for arm in ("before", "cleaned") for seed in range(3)
            for subset, add, n in (("voters", -.02, 100), ("voters_without_duplicates", .01, 70))]
    runs = pd.DataFrame(rows)
    write_table(runs if known else runs[runs.subset == "voters"], tmp_path / asked.place)
    found = differences_of(tmp_path, asked).difference["cleaned against before"]
    assert found == pytest.approx(1 if known else -2, abs=.05)

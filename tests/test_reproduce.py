"""Every table and figure of the two papers by one call and one command, on drawn faces in each data set's layout."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb import models
from fer_nb.cli import main
from fer_nb.core import LABEL_ORDERS, ConfigError, DataError, DownloadError
from fer_nb.experiment import fits_of, measured_cost, training_costs
from fer_nb.formats import read
from fer_nb.hyfer_studies import (AS_IT_IS, PAPER_TABLE2, PAPER_TABLE3, STUDY, attack_table, candidates, folds_of, over_folds, setting_study,
                                  setting_table, teacher_results)
from fer_nb.models import SQSNET, SQSNetConfig
from fer_nb.reconcile import read_paper
from fer_nb.reproduce import BUDGETS, ITEMS, LAYOUTS, budget_preset, drawn, honest_folds, reproduce, reproducible
from fer_nb.sqs_studies import (ABLATION, EFFICIENCY, PAPER_SQS_TABLE6, accuracy_table, efficiency_table, metrics_table, sensitivity_table,
                                study_arms)
from fer_nb.store import StoreError, processor, read_record, read_table, write_table
from fer_nb.synth import make_faces

PAPERS = Path(__file__).resolve().parents[1] / "results/papers"
TOY = SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 32, 48, "residual", 2, {"output_stride": 8},
                   {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 3})
QUICK = ["student.network=toy", "student.bs=32"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(SQSNET, "toy", TOY)


# ---- drawn faces in the layout of each set ----

def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def kdef(root, ds):
    codes = dict(zip(("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"), ("AN", "DI", "AF", "HA", "NE", "SA", "SU")))
    seen = {}
    for i, label in enumerate(ds.df.label):
        k = seen[label] = seen.get(label, -1) + 1                                  # the k-th face of its emotion: a person and a series
        person = f"{'AB'[k % 2]}{'FM'[k // 2 % 2]}{1 + k // 4:02d}"
        save(root / f"KDEF/{person}/{person}{codes[label]}S.JPG", ds.image(i))


def rafdb(root, ds):
    rows = []
    for i, (label, split) in enumerate(zip(ds.df.label, ds.df.split)):
        name = f"{split}_{i:05d}"
        save(root / f"basic/Image/aligned/{name}_aligned.jpg", np.repeat(ds.image(i)[..., None], 3, 2))
        rows.append(f"{name}.jpg {1 + LABEL_ORDERS['rafdb'].index(label)}")
    (root / "basic/EmoLabel").mkdir()
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(rows))


def affectnet(root, ds):
    for i, (label, split) in enumerate(zip(ds.df.label, ds.df.split)):
        folder = root / {"train": "train_set", "valid": "val_set"}[split]
        save(folder / f"images/{i}.jpg", np.repeat(ds.image(i)[..., None], 3, 2))
        (folder / "annotations").mkdir(exist_ok=True)
        for what, value in (("exp", LABEL_ORDERS["affectnet"].index(label)), ("val", 0.1), ("aro", 0.1)):
            np.save(folder / f"annotations/{i}_{what}.npy", np.array(str(value)))


def fer2013(root, ds, ferplus=False):
    usage, lines = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}, ["emotion,pixels,Usage"]
    votes = ["Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"]
    for i, (label, split) in enumerate(zip(ds.df.label, ds.df.split)):
        lines.append(f"{LABEL_ORDERS['fer2013'].index(label)},{' '.join(map(str, ds.image(i).ravel()))},{usage[split]}")
        given = [10 if name == label else 0 for name in LABEL_ORDERS["ferplus"]]
        votes.append(",".join([usage[split], f"fer{i:07d}.png", *map(str, given), "0", "0"]))
    (root / "fer2013.csv").write_text("\n".join(lines))
    (root / "fer2013new.csv").write_text("\n".join(votes))


def tree(name, root, n=140):
    "Drawn faces in a data set's layout; the options that read them."
    ds = drawn(name, n)
    {"kdef": kdef, "rafdb": rafdb, "affectnet": affectnet}.get(name, fer2013)(root, ds)
    if name in ("fer2013", "ferplus"):
        votes = ["--votes", str(root / "fer2013new.csv")] if name == "ferplus" else []
        return ["--data", str(root / "fer2013.csv"), *votes]
    return ["--data", str(root)]


@pytest.mark.parametrize("name", ["kdef", "rafdb", "affectnet", "fer2013"])
def test_the_trees_are_read_as_what_they_are(name, tmp_path):
    tree(name, tmp_path)
    ds = read(tmp_path / "fer2013.csv" if name == "fer2013" else tmp_path)
    asked = drawn(name)
    assert ds.name == name and len(ds) == len(asked) and set(ds.df.split) == set(asked.df.split)
    assert ds.df.label.value_counts().to_dict() == asked.df.label.value_counts().to_dict()
    assert honest_folds(ds) == honest_folds(asked) == ("subject" if name == "kdef" else "honest")


# ---- what there is, and what is refused ----

def test_every_table_and_figure_of_the_papers_is_there():
    listed = reproducible()
    for paper, numbers in {"dmc": range(1, 6), "sqs": range(1, 8)}.items():
        assert {f"table {k}" for k in numbers} <= set(listed.what[listed.paper == paper])
    assert {"figure 1", "figure 2", "figure 3", "gradcam"} <= set(ITEMS["sqs"]) and {"figure 1", "figure 2"} <= set(ITEMS["dmc"])
    assert {data for items in ITEMS.values() for one in items.values() for data in one.datasets} == set(LAYOUTS)
    assert set(EFFICIENCY) - {"SQSNet"} < set(study_arms("efficiency", replace(budget_preset("sqs", "paper"), quads=None))) | {"SQSNet"}


@pytest.mark.parametrize("argv, needle", [
    (["dmc", "--table", "9"], "'table 9'"), (["sqs", "--figure", "7"], "'figure 7'"), (["dmc", "--figure", "gradcam"], "'gradcam'"),
    (["sqs", "--table", "1", "--figure", "3"], "one of the two"), (["dmc", "--table", "2", "--set", "student.depth=2"], "student.depth"),
    (["sqs", "--table", "7", "--seeds", "0"], "seeds=0"), (["dmc", "--table", "2", "--part", "0"], "part=0"),
    (["dmc", "--table", "2", "--folds", "1"], "folds"), (["dmc", "--table", "2", "--data", "nowhere"], "nowhere"),
    (["sqs", "--table", "7", "--dataset", "kdef"], "kdef")])
def test_what_cannot_be_made_is_refused_in_a_line(argv, needle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *argv]) == 2
    text = capsys.readouterr().err
    assert needle in text and "Traceback" not in text and len(text.splitlines()) <= 3


def test_without_a_table_the_command_lists_them(capsys):
    assert main(["reproduce", "sqs"]) == 0
    assert "table 7" in capsys.readouterr().out


# ---- two that run whole, in seconds ----

def test_a_table_of_the_second_paper_by_one_command(tmp_path, capsys):
    argv = ["reproduce", "sqs", "--table", "6", *tree("rafdb", tmp_path / "data"), "--dataset", "rafdb", "--out", str(tmp_path / "out")]
    argv += [word for change in QUICK for word in ("--set", change)]
    (tmp_path / "data").mkdir(exist_ok=True)
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "RAF-DB" in printed and "91.75 ± 0.31" in printed and "budget tiny" in printed
    folder = tmp_path / "out/sqs-table-6-rafdb-tiny"
    assert {"table.csv", "runs.csv", "costs.csv", "record.json"} <= {p.name for p in folder.iterdir()}
    assert all(set(pd.read_csv(path).dataset) == {"RAF-DB"} for path in folder.glob("*.csv"))
    cost = read_table(folder / "costs.csv")   # a commit of digits alone is no number
    assert (cost.hours > 0).all() and cost.whole.all() and (cost.ram_gb > 0.05).all()
    again = reproduce("sqs", "figure 3", read(tmp_path / "data"), out=tmp_path / "out", changes=QUICK)   # the same fit, taken up
    assert again.tables["table"].to_numpy().sum() == 28 and again.tables["costs"].equals(cost.drop(columns="dataset"))


def test_drawn_faces_are_said_to_be_drawn(tmp_path):
    made = reproduce("dmc", "table 1", "fer2013", out=tmp_path)
    assert "not run on the data: 140 drawn faces" in repr(made) and "not run on the data" in made._repr_html_()
    assert made.shown["table"].filter(like="paper").shape[1] == 5
    assert reproduce("sqs", "figure 2", out=tmp_path).write(tmp_path) == ["figure.png"]
    made.write(tmp_path)
    assert set(pd.read_csv(tmp_path / "table.csv").dataset) == {"FER2013, 140 drawn faces"}


def test_the_papers_counts_of_kdef_stand_beside_kdef(tmp_path):
    beside = reproduce("dmc", "table 1", "kdef", out=tmp_path).shown["table"].filter(like="paper: ")
    printed = read_paper(PAPERS / "dmc-table1.csv").pivot(index="row", columns="column", values="value").reindex(beside.index)
    for name, column in {"label_error": "KDEF label errors", "error_ratio": "KDEF error ratio (%)", "original": "KDEF original"}.items():
        pd.testing.assert_series_equal(beside[f"paper: {name}"], printed[column].astype(float), check_names=False, check_dtype=False)


def test_a_set_without_poor_images_has_counts_and_no_gallery(tmp_path):
    clean = make_faces(60, seed=0, defects=None)[0].replace(name="kdef")
    made = reproduce("dmc", "figure 2", clean, out=tmp_path)
    assert not made.figures and made.write(tmp_path) == ["table.csv"]
    two = pd.DataFrame({"n": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", "b"), ("c", "d")]))
    replace(made, tables={"table": two}).write(tmp_path / "two")
    assert read_table(tmp_path / "two/table.csv").columns.tolist() == ["dataset", "row 1", "row 2", "n"]


def test_the_gallery_counts_the_duplicates_of_table_1(tmp_path):
    faces = make_faces(300, seed=1)[0].replace(name="kdef")
    counts, beside = (reproduce("dmc", what, faces, budget="paper", out=tmp_path / what).shown["table"] for what in ("figure 2", "table 1"))
    assert counts.loc["duplicate", "all"] == beside["duplicated"].sum() > 0


@pytest.mark.parametrize("paper, what, start", [
    pytest.param("dmc", "table 3", "davit_base.msft_in1k", marks=pytest.mark.slow), ("dmc", "table 4", "mobilevit_s.cvnets_in1k"),
    ("sqs", "table 2", "seresnext50_32x4d.racm_in1k")])
def test_weights_that_cannot_be_had_are_named_before_the_work(paper, what, start, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "reachable", lambda url: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setenv("FER_NB_WEIGHTS", str(tmp_path))
    for room in ("pipeline", "sqs_studies"):
        monkeypatch.setattr(f"fer_nb.{room}.audit", lambda *a, **k: pytest.fail("the data were looked at"))
    with pytest.raises(DownloadError, match=f"--weights-dir.*{start}.safetensors from https://huggingface.co.*--new-weights"):
        reproduce(paper, what, budget="paper", out=tmp_path / "out", anyway=True)


def test_what_does_not_fit_is_refused_and_can_be_tried_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_nb.plan.available", lambda device: (2 * 10**9, "a toy"))
    for paper, what in (("dmc", "table 5"), ("sqs", "table 7")):
        with pytest.raises(ConfigError, match="2.0 GB are free on a toy.*--anyway"):
            reproduce(paper, what, budget="gpu", out=tmp_path)
    assert reproduce("dmc", "figure 2", out=tmp_path, changes=["student.bs=4000000"]).figures        # for which nothing is fitted


def test_a_trial_is_said_to_be_one(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    tree("rafdb", root)
    made = reproduce("sqs", "figure 3", read(root), out=tmp_path / "out", changes=QUICK, epochs=1, new_weights=True)
    assert "not run on the data; 1 epochs, new weights" in repr(made)
    assert "not run on the data: 140 drawn faces in the splits of FER2013; 3 epochs" in repr(reproduce("dmc", "table 1", out=tmp_path, epochs=3))


def test_what_differs_from_the_budget_is_said_and_recorded(tmp_path, monkeypatch):
    ds = drawn("fer2013")
    change = "data.near_duplicates=false"
    made = reproduce("dmc", "table 1", ds, "paper", tmp_path / "a", [change], folds=2, seeds=1)
    assert made.heading[1] == f"run on the data; seeds=1, folds=2, {change}"
    made.write(tmp_path / "b")
    record = read_record(tmp_path / "b/table.csv")
    assert record["command"] == f"reproduce('dmc', 'table 1', ds, 'paper', changes=['{change}'], seeds=1, folds=2)"
    assert record["changes"] == [change] and (record["seeds"], record["folds"]) == (1, 2)
    assert record["data"] == ds.fingerprint() and change in record["run_on"]
    made.write(tmp_path / "b", "fer-nb reproduce dmc")                                        # the command's own words win
    assert read_record(tmp_path / "b/table.csv")["command"] == "fer-nb reproduce dmc"
    same = reproduce("dmc", "table 1", ds, "paper", tmp_path / "a", folds=5, seeds=5)         # the paper's own
    assert same.heading[1] == "run on the data" and not same.changed
    monkeypatch.setitem(ITEMS["dmc"], "table 1", replace(ITEMS["dmc"]["table 1"], fitted=True))
    for more, said in (({"folds": 2}, "; folds=2; budget paper but for these: the"), ({}, "run on the data; budget paper: the paper's own")):
        assert said in reproduce("dmc", "table 1", ds, "paper", tmp_path / "a", anyway=True, **more).heading[1]
    folder = tmp_path / "someone"                                                             # not named in a record
    network = reproduce("dmc", "figure 1", changes=[f"student.network={folder}/mine.safetensors"])
    assert "student.network=mine.safetensors" in network.command and str(folder) not in f"{network.command}{network.on}{network.about}"
    assert "data" not in network.about


def test_figures_come_whole_and_into_a_folder_of_their_own(tmp_path):
    made = reproduce("sqs", "figure 2", out=tmp_path)
    assert made.write(tmp_path / "not/there") == ["figure.png"]
    png = tmp_path / "not/there/figure.png"
    before = png.read_bytes()
    assert Image.open(png).format == "PNG" and read_record(png)["command"] == "reproduce('sqs', 'figure 2', None, 'tiny')"

    class Half:
        def savefig(self, path, dpi):
            Path(path).write_bytes(before[:99])
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="figure.png: could not be written .No space left.*the one before it is intact"):
        replace(made, figures={"figure": Half()}).write(png.parent)
    assert png.read_bytes() == before and {p.name for p in png.parent.iterdir()} == {"figure.png", "record.json"}
    with pytest.raises(StoreError, match="could not be written"):
        made.write(png)                                                                       # a file is no folder


ALL = [(paper, what, data) for paper, items in ITEMS.items() for what, one in items.items() for data in one.datasets]


@pytest.mark.slow
@pytest.mark.parametrize("paper, what, data", ALL)
def test_every_command_runs_on_every_set(paper, what, data, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    kind, _, number = what.partition(" ")
    argv = ["reproduce", paper, *(["--figure", what] if not number else [f"--{kind}", number]), "--out", str(tmp_path / "out")]
    argv += [*tree(data, tmp_path / "data"), *(word for c in QUICK if paper == "sqs" for word in ("--set", c))]
    assert main(argv) == 0
    assert LAYOUTS[data][0] in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob(f"{paper}-*-{data}-tiny/record.json"))) == 1


# ---- the papers' figures ----

def test_the_constants_are_those_of_the_printed_tables():
    two, three = (read_paper(PAPERS / f"dmc-table{n}.csv").set_index(["row", "column"]) for n in (2, 3))
    names = {"fer2013": "FER2013", "kdef": "KDEF"}
    for data, own in PAPER_TABLE2.items():
        for metric, (mean, sd) in zip(("accuracy", "precision", "recall", "F1-score"), own):
            fact = two.loc[("Proposed (ours)", f"{names[data]} {metric}")]
            assert (fact.value, fact.plus_minus) == (mean, sd)
    for row in three.index.get_level_values(0).unique():
        printed = tuple(three.loc[(row, f"{data} {metric}")].value for data in names.values() for metric in ("accuracy (%)", "loss"))
        assert PAPER_TABLE3[row.lower().replace("-", "_")] == printed
    six = read_paper(PAPERS / "sqsnet-table6.csv").set_index(["row", "column"])
    for data, own in PAPER_SQS_TABLE6.items():
        columns = ("accuracy (%)", "macro F1 (%)", "weighted F1 (%)", "balanced accuracy (%)")
        assert own[:4] == tuple(six.loc[(data, c)].printed for c in columns)
        assert own[4] == "–".join(six.loc[(data, f"{end} F1 of a class (%)")].printed for end in ("lowest", "highest"))


def tidy(dataset, **values):
    "Made-up runs of SQSNet on one data set."
    rows = [{"dataset": dataset, "arm": arm, "seed": s, "split": "test", "subset": "all", "tta": "none", "metric": m, "value": v + s / 100, "n": 9}
            for arm, v in (values or {"SQSNet": 0.5}).items() for s in (0, 1)
            for m in ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "f1:sad")]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("dataset", ["RAF-DB", "FERPlus", "AffectNet", "CK+", "fer2013"])
def test_no_figure_of_the_second_paper_stands_beside_another_set(dataset):
    runs, papers = tidy(dataset), {"RAF-DB", "FERPlus", "AffectNet"}
    for table in (1, 2, 7):
        shown = [c for c in accuracy_table(runs, table) if str(c).startswith("paper")]
        assert shown == ([f"paper: {dataset}"] if dataset in papers else [])
        assert not [c for c in accuracy_table(runs, table, "macro_f1") if str(c).startswith("paper")]
    assert ("paper: SQSNet" in metrics_table(runs, paper=True).index.get_level_values(1)) == (dataset in papers)
    chosen = pd.concat([runs, runs[runs.metric == "accuracy"].assign(split="holdout")])
    assert bool([c for c in sensitivity_table(chosen) if c.startswith("paper")]) == (dataset == "RAF-DB")
    costs = pd.DataFrame([{"arm": "SQSNet", "seed": 0, "hours": 1.0, "gpu_gb": np.nan, "device": "cpu"}])
    beside = efficiency_table(runs, costs, replace(budget_preset("sqs", "tiny"), student=replace(
        budget_preset("sqs", "tiny").student, network="toy")))
    assert bool([c for c in beside if c.startswith("paper")]) == (dataset == "RAF-DB") and beside.loc["SQSNet", "training (h)"] == 1


@pytest.mark.parametrize("dataset, accuracy", [("fer2013", 77.49), ("kdef", 98.60), ("rafdb", None)])
def test_no_figure_of_the_first_paper_stands_beside_another_set(dataset, accuracy):
    runs = pd.DataFrame([{"dataset": dataset, "teacher": "mobilevit_s", "px": 256, "fold": k, "split": "test", "subset": "all", "metric": m,
                          "value": v, "n": 9} for k in (0, 1) for m, v in (("accuracy", 0.5), ("loss", 1.25))])
    row = teacher_results(runs).loc["mobilevit_s"]
    assert (row["accuracy (%)"], row["loss"], row["parameters (M)"]) == ("50.00 ± 0.00", "1.250 ± 0.000", 4.94)
    assert row.get("paper: accuracy (%)") == accuracy
    attacked = pd.DataFrame([{"model": "s", "fold": k, "subset": "sample", "attack": "pgd", "eps": 1 / 255, "metric": m, "value": 0.5, "n": 9}
                             for k in (0, 1) for m in ("accuracy", "loss", "macro_precision", "macro_recall", "macro_f1")])
    table = attack_table(attacked, dataset)
    assert table.loc[("pgd", "1/255")].tolist() == ["50.00 ± 0.00", "0.500 ± 0.000", *["50.00 ± 0.00"] * 3]
    assert (("pgd", "paper: not given") in table.index) == (accuracy is not None)
    mixed = attacked.assign(subset=attacked.fold.map({0: "all", 1: "sample"}))   # folds about as large as the sample
    pd.testing.assert_frame_equal(attack_table(mixed, dataset), table)


# ---- folds, candidates, costs ----

def test_the_papers_random_folds_part_persons_and_honest_ones_do_not():
    ds = drawn("kdef", 140)
    quick = replace(STUDY, data=replace(STUDY.data, near_duplicates=False))

    def torn(protocol):
        return sum(len(set(p.df.subject[p.df.split == "train"]) & set(p.df.subject[p.df.split == "test"])) for p in
                   folds_of(ds, quick, 3, protocol=protocol))

    assert torn("paper") > 0 and torn("subject") == 0
    parts = folds_of(ds, quick, 3, protocol="paper")
    assert sorted(i for p in parts for i in p.df.id[p.df.split == "test"]) == sorted(ds.df.id)


def test_a_study_over_folds_has_a_column_for_them(tmp_path):
    parts = folds_of(drawn("fer2013", 105), replace(STUDY, data=replace(STUDY.data, near_duplicates=False)), 3)
    asked = []

    def study(ds, seeds, out, say, factor):
        asked.append((out, seeds))
        return pd.DataFrame({"seed": list(seeds), "value": [factor * len(ds)]})

    table = over_folds(study, parts, tmp_path, factor=2)
    assert table.columns.tolist() == ["value", "fold"] and table.value.tolist() == [2 * len(p) for p in parts]
    assert asked == [(tmp_path / f"fold-{k}", (0,)) for k in range(3)]


def test_candidates_are_fitted_at_their_own_size():
    fits = {fit.network: fit for fit in candidates()}
    assert len(fits) == 8 and {fits[n].size for n in ("davit_b", "crossvit_18", "mobilevit_s")} == {224, 240, 256}
    with pytest.raises(ConfigError, match="vgg"):
        candidates(names=("vgg",))


def test_two_cores_fit_the_smallest_candidates_alone():
    """All eight at their published sizes are days, not an evening."""
    assert set(BUDGETS["cpu"].candidates) == set(sorted(PAPER_TABLE3, key=lambda name: models.TEACHERS[name][3])[:2])
    assert not BUDGETS["paper"].candidates and not BUDGETS["gpu"].candidates


def test_what_a_block_costs_counts_every_attempt(tmp_path):
    """One that was broken off has a row, which the next adds to; one that was killed has left its checkpoints alone."""
    with pytest.raises(DataError, match="folder of a study"):
        training_costs(tmp_path)
    with pytest.raises(KeyboardInterrupt), measured_cost(tmp_path / "a.cost.csv", arm="a"):
        raise KeyboardInterrupt
    first = training_costs(tmp_path).hours.item()
    with measured_cost(tmp_path / "a.cost.csv", arm="a"):
        pass
    assert training_costs(tmp_path).hours.item() > first > 0 and training_costs(tmp_path).whole.item()
    for folder, work in (("b.work", None), ("elsewhere/fold", tmp_path / "elsewhere")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "fit.ckpt").touch()
        with measured_cost(tmp_path / "b.cost.csv", work, arm="b", fold=2):
            pass
        assert training_costs(tmp_path)[["arm", "fold", "whole"]].values.tolist()[1:] == [["b", 2, False]]
        (tmp_path / "b.cost.csv").unlink()


@pytest.mark.parametrize("first", ["a1", "81449e4", "0123456", "1234567"])   # all are names of commits, three are numbers as well
def test_what_a_block_costs_says_which_code_ran_and_where(tmp_path, monkeypatch, first):
    """A fit that was broken off may go on at another commit, and its first file may be of before there was the column."""
    file, both = tmp_path / "a.cost.csv", f"{first}; b2 with changes"
    for commit, said in ((first, first), ("b2 with changes", both), (first, both), (None, both)):
        monkeypatch.setattr("fer_nb.store._LOADED", commit)
        with measured_cost(file, arm="a"):
            pass
        assert training_costs(tmp_path).commit.item() == said and fits_of(tmp_path) == {"fits": said.split("; ")}
    write_table(training_costs(tmp_path).drop(columns=["commit", "processor"]), file)
    monkeypatch.setattr("fer_nb.store._LOADED", None)
    with measured_cost(file, arm="a"):
        pass
    costs = training_costs(tmp_path)
    assert costs.commit.isna().item() and costs.processor.item() == processor() and fits_of(tmp_path) == {"fits": ["unknown"]}


def test_what_a_block_costs_is_known_of_an_attempt_that_was_killed(tmp_path, monkeypatch):
    """Nothing runs after a SIGKILL: what stays is the row of the beginning, with the commit and whole=False."""
    code = ("import os, sys, fer_nb.store; from pathlib import Path; from fer_nb.experiment import measured_cost\n"
            "fer_nb.store._LOADED = 'a1'\n"
            "with measured_cost(Path(sys.argv[1]), arm='a'): os.kill(os.getpid(), 9)")
    file = tmp_path / "a.cost.csv"
    assert subprocess.run([sys.executable, "-c", code, str(file)]).returncode == -9
    assert training_costs(tmp_path)[["whole", "done", "commit"]].values.tolist() == [[False, False, "a1"]]
    monkeypatch.setattr("fer_nb.store._LOADED", "b2")
    with measured_cost(file, arm="a"):
        pass
    assert training_costs(tmp_path)[["whole", "done", "commit"]].values.tolist() == [[False, True, "a1; b2"]]
    before = file.read_bytes()
    with measured_cost(file, once=True, arm="a"):   # it only reads what it left
        pass
    assert file.read_bytes() == before


# ---- one setting changed ----

def test_an_arm_without_changes_or_with_the_name_of_the_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one change expected"):
        setting_study(drawn("fer2013"), {"flip": []}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match=AS_IT_IS):
        setting_study(drawn("fer2013"), {AS_IT_IS: ["student.lr=1"]}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="student.flip"):
        setting_study(drawn("fer2013"), {"flip": ["student.flip=1"]}, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_arms_that_are_attacked_on_other_samples_are_not_paired():
    runs = pd.DataFrame([{"arm": arm, "model": "m", "seed": s, "split": "test", "subset": "sample", "attack": "pgd", "eps": 0.1,
                          "metric": "accuracy", "value": 0.1 * s, "n": n} for arm, n in ((AS_IT_IS, 50), ("flip", 50)) for s in range(3)])
    assert setting_table(runs, model="m", attack="pgd").difference["flip"] == 0
    with pytest.raises(ConfigError, match="different numbers of test images"):
        setting_table(runs.assign(n=runs.arm.map({AS_IT_IS: 50, "flip": 40})), model="m", attack="pgd")


def test_changes_are_paired_and_what_they_share_is_made_once(tmp_path, monkeypatch):
    import fer_nb.hyfer_studies as studies
    made, real = [], studies.fit_student
    monkeypatch.setattr(studies, "fit_student", lambda *args, **kw: made.append(args[3]) or real(*args, **kw))
    preset = budget_preset("dmc", "tiny", ["teachers=[]", "student.bs=64", "evaluation.eps=[0.01]", "adversarial.steps=1"])
    arms = {"deepfool": ["adversarial.attacks=[deepfool]"], "flip": ["student.augment.vflip=1.0"]}
    runs = setting_study(drawn("fer2013", 140), arms, preset, (0,), tmp_path)
    assert len(made) == 2                                                              # DeepFool needs no phase 1 of its own
    table = setting_table(runs)
    assert table.difference["deepfool"] == 0 and np.isnan(table.p["flip"]) and table.seeds["flip"] == 1
    attacked = setting_table(runs, model="HyFER + adversarial", attack="pgd", eps=0.01)
    assert set(attacked.index) == {AS_IT_IS, *arms} and set(ABLATION) == {"SQSNet", "w/o CNN", "w/o Swin", "w/o SQS"}

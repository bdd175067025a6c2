"""The command as a shell user meets it: exit codes, one clear line, no half-written folder."""
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fer_nb
from fer_nb.cli import VERBS, _in_parts, main, need_inputs, need_layout, parser
from fer_nb.core import EMOTIONS, ConfigError, DataError, canonical_label, file_sha256
from fer_nb.store import read_record
from fer_nb.synth import make_faces

PIXELS = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage"


def fails(capsys, tmp_path, data, *words):
    status = main(["run", "--data", str(data), "--out", str(tmp_path / "out"), "--preset", "tiny"])
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("fer-nb: ")
    for word in words:
        assert word in err, err
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


@pytest.mark.parametrize("lines, words", [
    ((), ("empty",)),
    ((HEADER,), ("no rows",)),
    (("emotion,Usage", "3,Training"), ("'pixels'",)),
    ((HEADER, f"3,{PIXELS},Training", f"3,{PIXELS} 1,Training"), ("row 3", "2305 pixels")),
    ((HEADER, f"3,{PIXELS[:-1]}x,Training"), ("row 2", "'x'")),
    ((HEADER, f"3,{PIXELS[:-1]}256,Training"), ("row 2", "256")),
    ((HEADER, f"3,{PIXELS[:-1]}-1,Training"), ("row 2", "-1")),
    ((HEADER, f"7,{PIXELS},Training"), ("row 2", "'7'")),
    ((HEADER, f"3.5,{PIXELS},Training"), ("row 2", "'3.5'")),
    ((HEADER, f"3,{PIXELS},Trian"), ("row 2", "'Trian'")),
    ((HEADER, f"3,{PIXELS}"), ("row 2", "2 fields")),
])
def test_csv_that_cannot_be_used(capsys, tmp_path, lines, words):
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + ("\n" if lines else ""))
    fails(capsys, tmp_path, path, "data.csv", *words)


def test_folders_that_cannot_be_used(capsys, tmp_path):
    fails(capsys, tmp_path, tmp_path / "nowhere", "nowhere", "no such file")
    (tmp_path / "empty").mkdir()
    fails(capsys, tmp_path, tmp_path / "empty", "no image files")
    good = tmp_path / "data" / "happy"
    good.mkdir(parents=True)
    for k in range(3):
        Image.fromarray(np.full((48, 48), 40 * k, np.uint8)).save(good / f"{k}.png")
    (good / "broken1.png").write_bytes(b"no")
    (good / "broken2.jpg").write_bytes(b"")
    fails(capsys, tmp_path, tmp_path / "data", "broken1.png", "broken2.jpg", "2 of 5")


def test_class_with_too_few_images(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for label, n in (("happy", 60), ("sad", 3)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for k in range(n):
            Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(folder / f"{k}.png")
    fails(capsys, tmp_path, tmp_path / "data", "class 'sad' has 3")


def test_existing_folder_is_not_touched(capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert main(["demo", "--out", str(out), "--preset", "tiny"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "precious.txt").read_text() == "mine"


def test_usage_errors_and_help_from_a_shell(tmp_path):
    def call(*argv):
        command = Path(sys.executable).with_name("fer-nb")
        return subprocess.run([command, *argv], capture_output=True, text=True, cwd=tmp_path)

    assert call("--help").returncode == 0
    version = subprocess.run([sys.executable, "-m", "fer_nb", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"fer-nb {fer_nb.__version__}\n")
    assert "--preset" in call("run", "--help").stdout
    assert call("run").returncode == 2
    assert call("fly").returncode == 2
    unknown = call("demo", "--preset", "huge")
    assert unknown.returncode == 2 and "'huge'" in unknown.stderr and "Traceback" not in unknown.stderr


def test_demo_end_to_end(capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["demo", "--images", "320", "--preset", "tiny", "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == f"report: {out / 'report.html'}"
    assert (out / "report.html").stat().st_size > 50_000


# ---- audit and study ----

@pytest.fixture(scope="module")
def csv_of_faces(tmp_path_factory):
    "Synthetic faces in the form of fer2013.csv, and votes for them in the form of fer2013new.csv."
    from fer_nb.synth import make_faces
    ds, _ = make_faces(210, seed=3, balance="uniform", splits=(.8, .2, 0))
    ds = ds.take(np.argsort(ds.df.split.map({"train": 0, "valid": 1}), kind="stable"))
    folder, usage = tmp_path_factory.mktemp("csv"), ds.df.split.map({"train": "Training", "valid": "PublicTest"})
    rows = [f"{EMOTIONS.index(e)},{' '.join(map(str, im.ravel()))},{u}" for e, im, u in zip(ds.df.label, ds.array(), usage)]
    (folder / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    names = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]
    said = [canonical_label(n) if n not in ("unknown", "NF") else n for n in names]
    votes = [[10 * (n == (e if k % 7 else "happy")) for n in said] for k, e in enumerate(ds.df.label)]
    lines = [f"{u},fer{k:07}.png,{','.join(map(str, v))}" for k, (u, v) in enumerate(zip(usage, votes))]
    (folder / "fer2013new.csv").write_text("\n".join(["Usage,Image name," + ",".join(names), *lines]) + "\n")
    return folder / "fer2013.csv", folder / "fer2013new.csv"


def test_audit_writes_its_tables_and_says_the_summary(csv_of_faces, tmp_path, capsys):
    data, votes = csv_of_faces
    assert main(["audit", "--data", str(data), "--votes", str(votes), "--out", str(tmp_path / "a")]) == 0
    issues = pd.read_csv(tmp_path / "a/issues.csv")
    assert {"duplicate", "label_error"} <= set(issues.kind) and "label_error" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "a/table1.csv").original.sum() == 210
    assert main(["audit", "--data", str(data), "--out", str(tmp_path / "a")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["audit", "--data", str(data), "--votes", str(data), "--out", str(tmp_path / "b")]) == 2
    assert not (tmp_path / "b").exists()


def test_a_study_leaves_its_table_and_goes_on_where_it_stopped(csv_of_faces, tmp_path, capsys):
    data, votes = csv_of_faces
    study = ["study", "labels", "--data", str(data), "--votes", str(votes), "--epochs", "1", "--out", str(tmp_path / "s")]
    with pytest.MonkeyPatch.context() as patch:
        from fer_nb import studies
        from fer_nb.config import Fit
        patch.setattr(studies, "LABEL_FIT", Fit(epochs=1, bs=32))
        assert main(study) == 0 and "fold 3 of 3" in capsys.readouterr().out
        assert main(study) == 0 and "of 3" not in capsys.readouterr().out
    assert {"confident learning", "self-confidence", "loss in training"} < set(pd.read_csv(tmp_path / "s/labels.csv").ranking)
    assert len(pd.read_csv(tmp_path / "s/probabilities.csv")) == 210
    look = ["audit", "--data", str(data), "--exact", "--out", str(tmp_path / "a"), "--probs"]
    assert main([*look, str(tmp_path / "s/probabilities.csv")]) == 0
    assert "out-of-fold" in set(pd.read_csv(tmp_path / "a/issues.csv").how)
    assert main([*look, str(data), "--overwrite"]) == 2 and "columns id" in capsys.readouterr().err
    assert main(["study", "labels", "--data", str(data)]) == 2 and "--votes" in capsys.readouterr().err


def fake(monkeypatch, what, result):
    "The registered study `what` with a run that gives `result` and leaves its arguments in the dictionary that is returned."
    from dataclasses import replace

    from fer_nb import hyfer_studies, recipe, sqs_studies, studies  # noqa: F401, they register
    from fer_nb.experiment import STUDIES
    asked = {}
    monkeypatch.setitem(STUDIES, what, replace(STUDIES[what], run=lambda **arguments: asked.update(arguments) or result))
    return asked


@pytest.mark.parametrize("what, more", [("distillation", []), ("variants", []), ("kfold", []), ("kfold", ["--subjects"]),
                                        ("variants", ["--set", "student.lr=0.5", "--config", "CONFIG"])])
def test_the_studies_of_teachers_are_called_as_the_command_says(csv_of_faces, tmp_path, capsys, monkeypatch, what, more):
    row = {"split": "valid", "subset": "all", "value": 0.5, "n": 9, "model": "HyFER", "teachers": 0, "variant": "light"}
    metrics = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    runs = pd.DataFrame([{**row, "metric": m, "seed": k, "fold": k, "arm": a} for m in metrics for k in (0, 1) for a in ("before", "after")])
    if what == "variants":
        runs = runs.assign(variant=runs.arm)
    asked = fake(monkeypatch, what, runs)
    out = tmp_path / "s"
    (config := tmp_path / "c.json").write_text('{"student": {"network": "light_rep"}}')
    more = [str(config) if m == "CONFIG" else m for m in more]
    seeds = [] if what == "kfold" else ["--seeds", "2"]
    assert main(["study", what, "--data", str(csv_of_faces[0]), *seeds, "--epochs", "5", "--part", "1", "--out", str(out), *more]) == 0
    printed = capsys.readouterr().out
    assert "0.500 ± 0.000" in printed if what == "kfold" else "50.0" in printed or "0.5" in printed
    fit = asked["preset"].student
    assert (fit.epochs, fit.lr, fit.network) == ((5, 0.5, "light_rep") if "--set" in more else (5, 3e-3, "light"))
    assert len(pd.read_csv(out / f"{what}.csv")) == len(runs) and asked["out"] == out / "runs"
    if what == "kfold":
        assert set(asked["ds"].df.split) == {"train"} and asked["protocol"] == ("subject" if "--subjects" in more else "honest")
    else:
        assert list(asked["seeds"]) == [0, 1]


def test_the_recipe_is_called_as_the_command_says(csv_of_faces, tmp_path, capsys, monkeypatch):
    row = {"subset": "all", "tta": "none", "metric": "accuracy", "n": 9, "seed": 0}
    runs = pd.DataFrame([{**row, "network": name, "split": split, "value": value} for name, value in (("a", 0.25), ("b", 0.5))
                         for split in ("holdout", "valid")])
    asked = fake(monkeypatch, "recipe", runs)
    study = ["study", "recipe", "--data", str(csv_of_faces[0]), "--out", str(tmp_path / "s")]
    assert main([*study, "--seeds", "2", "--network", "light", "--network", "light_full", "--set", "student.epochs=3"]) == 0
    shown = capsys.readouterr().out
    header = next(line for line in shown.splitlines() if "hold-out" in line)
    assert header.index("hold-out") < header.index("valid") and shown.index("\nb ") < shown.index("\na ")  # the best on the hold-out first
    assert (list(asked["networks"]), list(asked["seeds"]), asked["preset"].student.epochs) == (["light", "light_full"], [0, 1], 3)
    assert main([*study, "--step", "long"]) == 0 and (list(asked["networks"]), asked["step"]) == ([], "long")
    assert asked["preset"].data.clean == "leaks" and {p.name for p in (tmp_path / "s").iterdir()} >= {"recipe-recipe.csv", "recipe-long.csv"}


@pytest.mark.parametrize("what", ["sqs", "bridge"])
def test_the_studies_of_sqsnet_are_called_as_the_command_says(csv_of_faces, tmp_path, capsys, monkeypatch, what):
    from fer_nb import sqs_studies
    asked = fake(monkeypatch, what, shown := pd.DataFrame({"accuracy": [0.625], "arm": ["SQSNet"]}))
    for name in ("accuracy_table", "metrics_table", "bridge_table"):
        monkeypatch.setattr(sqs_studies, name, lambda runs, table=7: runs)
    study = ["study", what, "--data", str(csv_of_faces[0]), "--part", "1", "--out", str(tmp_path / "s")]
    table = ["--table", "fusion"] if what == "sqs" else []
    assert main([*study, "--epochs", "2", "--seeds", "2", *table, "--tta", "flip"]) == 0
    file = {"sqs": "sqs-fusion.csv", "bridge": "bridge.csv"}[what]
    assert "0.625" in capsys.readouterr().out and len(pd.read_csv(tmp_path / "s" / file)) == len(shown)
    preset = asked["preset"]
    assert (preset.student.epochs, preset.evaluation.tta, preset.student.network) == (2, "flip", "light_64") and len(asked["ds"]) == 210
    assert what == "bridge" or asked["arms"] == "fusion"
    paper = [*study, "--votes", str(csv_of_faces[1]), "--preset", "paper"]
    monkeypatch.setattr("fer_nb.plan.available", lambda device: (2 * 10**9, "a toy"))
    assert main(paper) == 2 and "2.0 GB are free on a toy" in capsys.readouterr().err
    assert main([*paper, "--anyway"]) == 0
    assert asked["ds"].name == "ferplus" and "contempt" in asked["ds"].labels
    assert (asked["preset"].student.epochs, asked["preset"].evaluation.tta) == (50, "five")


def test_the_study_of_robustness_takes_the_networks_it_is_given(csv_of_faces, tmp_path, capsys, monkeypatch):
    from fer_nb.models import HyFER, save_hyfer
    asked = fake(monkeypatch, "robust", {"paper_epsilon": pd.DataFrame({"model": ["accurate"]})})
    files = [save_hyfer(HyFER(7, 1, "light"), tmp_path / f"{name}.safetensors") for name in ("a", "b", "c")]
    study = ["study", "robust", "--data", str(csv_of_faces[0]), "--images", "5", "--strong", "0", "--out", str(tmp_path / "r"), "--weights", str(files[0])]
    for others, names in ([], []), (files[1:2], ["robust"]), (files[1:], ["b", "c"]):
        assert main([*study, *(["--robust", *map(str, others)] if others else [])]) == 0
        assert list(asked["models"]) == ["accurate", *names] and asked["n"] == 5 and asked["strong"] == 0
        assert set(asked["ds"].df.split) == {"valid"} and asked["out"] == tmp_path / "r"
    assert f"tables: {tmp_path / 'r'}" in capsys.readouterr().out and not (tmp_path / "r").exists()
    assert main([*study, "--robust", str(files[1]), str(files[1])]) == 2 and "differ" in capsys.readouterr().err


def test_harden_begins_with_the_network_it_is_given(csv_of_faces, tmp_path, capsys, monkeypatch):
    from fer_nb.hyfer_studies import PHASE2
    from fer_nb.models import HyFER, save_hyfer
    runs = pd.DataFrame({"arm": "TRADES", "chosen": "robust", "seed": 0, "split": "valid", "subset": "all", "attack": "none",
                         "eps": 0.0, "metric": "accuracy", "value": [0.5], "n": 9})
    asked, a = fake(monkeypatch, "harden", runs), save_hyfer(HyFER(7, 1, "light"), tmp_path / "a.safetensors")
    harden = ["study", "harden", "--data", str(csv_of_faces[0]), "--weights", str(a), "--out", str(tmp_path / "h"), "--epochs", "3"]
    assert main([*harden, "--arm", "TRADES", "adversarial.trades=6"]) == 0 and "harden.csv" in capsys.readouterr().out
    assert asked["arms"] == {"TRADES": ["adversarial.trades=6"]} and asked["part"] == 4 and asked["student"].record is not None
    assert asked["preset"].adversarial.fit.epochs == 3 and asked["preset"].student.epochs == PHASE2.student.epochs
    for idle in (["--set", "student.lr=0.1"], ["--arm", "softer", "distillation.T=2"]):
        assert main([*harden, *idle]) == 2 and f"{idle[-1]}: phase 2 has no use for it" in capsys.readouterr().err
    assert main(harden) == 0 and {"TRADES", "with DeepFool"} < set(asked["arms"])
    assert read_record(tmp_path / "h/harden.csv")["weights"] == {"a": file_sha256(a)}


def test_every_study_is_known_and_its_options_have_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["study", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for words in ("protocol", "labels", "distillation", "kfold", "variants", "transfer", "robust", "harden", "sqs", "bridge",
                  "labels: label-error search", "--table", "sqs: rows", "--subjects", "kfold: keep each person"):
        assert words in text, words
    assert "teachers" not in text.split("positional")[0].split("{")[1].split("}")[0].split(",")


@pytest.mark.parametrize("what, more", [("kfold", ["--seeds", "2"]), ("bridge", ["--table", "fusion"]), ("robust", ["--set", "student.lr=1"]),
                                        ("labels", ["--epochs", "1", "--config", "FILE"])])
def test_an_option_of_another_study_is_refused(csv_of_faces, capsys, what, more):
    assert main(["study", what, "--data", str(csv_of_faces[0]), *(str(csv_of_faces[0]) if m == "FILE" else m for m in more)]) == 2
    assert f"study {what} does not take {more[-2]}" in capsys.readouterr().err


def test_what_needs_votes_says_so(csv_of_faces, capsys):
    for what, why in (("labels", "the judge"), ("transfer", "whose labels are the others")):
        assert main(["study", what, "--data", str(csv_of_faces[0])]) == 2
        assert f"study {what} needs --votes fer2013new.csv, {why}" in capsys.readouterr().err


@pytest.fixture
def shipped(csv_of_faces, tmp_path, monkeypatch):
    "`fer-nb ship`, which says what it would train."
    from fer_nb import hyfer_studies
    seen = {}

    def train(ds, out, preset, **kw):
        seen.update(kw, preset=preset, ds=ds)
        out.mkdir()
        (out / "hyfer.json").touch()
        return out

    monkeypatch.setattr(hyfer_studies, "train_shipped", train)
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "a.ckpt", "v.csv"):
        (tmp_path / name).touch()
    data, votes = map(str, csv_of_faces[:2])
    return seen, votes, lambda *more: main(["ship", "--data", data, "--out", str(tmp_path / "w"), *more])


def test_ship_says_where_the_weights_are(shipped, tmp_path, capsys):
    from fer_nb.data import VOTE_COLUMNS
    from fer_nb.hyfer_studies import SHIP
    seen, votes, ship = shipped
    assert ship("--votes", votes) == 0 and f"weights: {tmp_path / 'w'}" in capsys.readouterr().out
    assert (seen["preset"], seen["command"]) == (SHIP, "fer-nb ship --data fer2013.csv --out w --votes fer2013new.csv")
    assert read_record(tmp_path / "w/hyfer.json")["command"] == seen["command"]
    assert len(seen["ds"]) == 210 and set(VOTE_COLUMNS) <= set(seen["ds"].df)


def test_ship_with_settings_and_teachers_of_ones_own(shipped):
    from fer_nb.hyfer_studies import SHIP
    seen, votes, ship = shipped
    assert ship("--votes", votes, "--set", "born_again=null", "--set", "student.epochs=3", "--teacher", "./a.safetensors",
                "--teacher", "b.safetensors") == 0
    assert [fit.network for fit in seen["preset"].teachers] == [*(fit.network for fit in SHIP.teachers), "a.safetensors", "b.safetensors"]
    assert seen["preset"].student.epochs == 3 and seen["preset"].born_again is None
    assert seen["command"] == ("fer-nb ship --data fer2013.csv --out w --votes fer2013new.csv --set born_again=null --set student.epochs=3 "
                               "--teacher a.safetensors --teacher b.safetensors")


@pytest.mark.parametrize("more, says", [((), "--votes fer2013new.csv expected"), (("--teacher", "a.ckpt"), "--teacher a.ckpt: a .safetensors"),
                                        (("--votes", "v.csv", "--teacher", "a.safetensors"), "--set born_again=null expected"),
                                        (("--set", "student.epoch=3"), "student.epochs"), (("--config", "nowhere.json"), "nowhere.json")])
def test_ship_refuses_at_once_what_could_not_go_well(shipped, capsys, more, says):
    seen, _, ship = shipped
    assert ship(*more) == 2 and says in capsys.readouterr().err and not seen


# ---- settings ----

def test_run_takes_a_file_and_changes_by_name(csv_of_faces, tmp_path, capsys, monkeypatch):
    from fer_nb import pipeline
    from fer_nb.config import PRESETS, to_dict
    seen = []
    monkeypatch.setattr(pipeline, "run", lambda ds, preset, out, *rest, **more: seen.append((preset, out)))
    run = ["run", "--data", str(csv_of_faces[0])]
    monkeypatch.chdir(tmp_path)
    assert main([*run, "--preset", "tiny"]) == 0 and seen[-1] == ("tiny", Path("runs/fer2013-tiny-seed0"))
    (config := tmp_path / "mine.json").write_text(json.dumps({"settings": to_dict(PRESETS["demo"]), "seed": 3}))
    assert main([*run, "--config", str(config), "--set", "student.epochs=2", "--set", "adversarial.steps=1"]) == 0
    preset, out = seen[-1]
    assert (preset.student.epochs, preset.adversarial.steps, preset.student.bs) == (2, 1, 32) and out == Path("runs/fer2013-mine-seed0")
    assert preset.teachers == PRESETS["demo"].teachers


@pytest.mark.parametrize("more, words", [(["--set", "student.epoch=2"], ["student.epoch", "student.epochs"]), (["--set", "student.epochs=many"], ["student.epochs"]),
                                         (["--set", "student.epochs"], ["="]), (["--set", "adversarial.eps=-1"], ["eps"]),
                                         (["--config", "gone.json"], ["gone.json"])])
def test_settings_that_make_no_sense_are_refused_before_pytorch_is_loaded(tmp_path, csv_of_faces, more, words):
    code = ("import sys; from fer_nb.cli import main; status = main(sys.argv[1:]); "
            "print('torch' in sys.modules); sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code, "run", "--data", str(csv_of_faces[0]), *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.strip() == "False" and not list(tmp_path.glob("runs"))
    assert all(w in done.stderr for w in words) and len(done.stderr.strip().splitlines()) == 1, done.stderr


REFUSED = [  # arguments; words of the message; {faces} is a data set, {photos} none, {file} a file, {old} a folder with something in it
    ("pridect a.jpg", "did you mean 'predict'?"), ("run --data {faces} --presset tiny", "did you mean '--preset'?"),
    ("study kfld --data {faces}", "did you mean 'kfold'?"), ("study sqs --data {faces} --table fusoin", "did you mean 'fusion'?"),
    ("demo --preset huge", "'tiny', 'demo', 'cpu'"), ("demo --set student.epoch=3", "did you mean student.epochs?"),
    ("study kfold --data {faces} --set student.epoch=3", "student.epochs"), ("ship --data {faces} --set nothing", "nothing"),
    ("study kfold --data nowhere.csv", "nowhere.csv: no such file"), ("run --data nowhere.csv", "nowhere.csv"), ("ship --data nowhere.csv", "nowhere.csv"),
    ("audit --data nowhere.csv", "nowhere.csv"), ("audit --data {faces} --probs nowhere.csv", "nowhere.csv"), ("run --data {faces} --config no.json", "no.json"),
    ("evaluate --data nowhere.csv", "nowhere.csv"), ("evaluate --data {faces} --model no.onnx", "no.onnx: no such file"),
    ("export --weights no.safetensors", "no.safetensors: no such file"), ("predict nofile.jpg", "nofile.jpg: no such file"),
    ("predict {file} --weights fragile", "accurate, robust"), ("study robust --data {faces} --weights no.safetensors", "no.safetensors"),
    *((f"{verb} --data {{photos}}", "a layout that `fer-nb formats` shows") for verb in ("run", "audit", "study kfold", "ship", "evaluate", "export --int8")),
    *((f"{verb} --out {{old}}", "exists already") for verb in ("demo", "run --data {faces}", "audit --data {faces}")),
    *((f"{verb} --out {{file}}", "a file is there") for verb in ("demo", "run --data {faces}", "audit --data {faces}", "study kfold --data {faces}", "ship --data {faces}")),
    *((f"{verb} {{old}}", "a folder is there") for verb in ("evaluate --data {faces} --out", "export --to", "predict {file} --to")),
    *((f"{verb} {{file}}/x.onnx", "takes no files") for verb in ("demo --out", "run --data {faces} --out", "audit --data {faces} --out", "ship --data {faces} --out",
      "study kfold --data {faces} --out", "evaluate --data {faces} --out", "export --to", "predict {file} --to", "predict {file} --out annotated --to")),
    ("export --int8", "--int8 needs --data"), ("export --to x.pt", ".onnx expected"), ("evaluate --data {faces} --split test", "--split train expected")]


def test_refusals_do_without_pytorch(tmp_path):
    "All of them in one fresh process: the status is 2, the message says what is wrong, PyTorch is not loaded, nothing is left."
    for label in ("happy", "sad"):
        (tmp_path / "faces" / label).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((48, 48), 9 * k, np.uint8)).save(tmp_path / "faces" / label / f"{k}.png")
    (tmp_path / "photos").mkdir()
    (old := tmp_path / "old").mkdir()
    for path in (tmp_path / "photos/0.jpg", old / "mine.txt", tmp_path / "a.jpg"):
        path.write_text("mine")
    names = {"faces": "faces", "photos": "photos", "file": "a.jpg", "old": "old"}
    before = sorted(tmp_path.rglob("*"))
    code = ("import contextlib, io, json, sys; from fer_nb.__main__ import start\nfor argv in json.load(sys.stdin):\n    err = io.StringIO()\n"
            "    with contextlib.redirect_stderr(err):\n        try: status = start(argv)\n        except SystemExit as e: status = e.code\n"
            "    print(json.dumps([status, err.getvalue(), 'torch' in sys.modules]))")
    argvs = [text.format(**names).split() for text, _ in REFUSED]
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(argvs), capture_output=True, text=True, cwd=tmp_path, timeout=300)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(REFUSED), done.stderr[-2000:]
    for (text, words), (status, said, torch) in zip(REFUSED, answers):
        assert (status, torch) == (2, False) and words in said and "Traceback" not in said, (text, status, torch, said)
    assert sorted(tmp_path.rglob("*")) == before


def test_help_does_without_pytorch(tmp_path):
    code = ("import contextlib, sys; from fer_nb.__main__ import start\nfor argv in (['--help'], *([v, '--help'] for v in sys.argv[1:])):\n"
            "    with contextlib.suppress(SystemExit): start(argv)\nprint('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False"
    for words in ("--subjects", "the student that its held-out", "use the network trained under attack", "--int8", "--shared", "--camera", "--version"):
        assert words in done.stdout


def test_the_studies_declared_are_those_that_are_bound():
    from fer_nb.experiment import STUDIES
    from fer_nb.sqs_studies import SQS_PRESETS
    assert all(study.load().run and study.call and study.show for study in STUDIES.values())
    assert set(STUDIES["sqs"].options["--preset"]["choices"]) == set(SQS_PRESETS)


def test_a_big_folder_that_is_no_data_set_is_refused_in_two_seconds(tmp_path, capsys):
    import time
    for k in range(300):
        (tmp_path / f"home/projects/{k}/src").mkdir(parents=True)
        (tmp_path / f"home/projects/{k}/src/logo.txt").touch()
    start = time.monotonic()
    with pytest.raises(DataError, match="no image files in class folders and no table.*fer-nb formats"):
        need_layout(tmp_path / "home")
    (tmp_path / "home/projects/7/src/logo.png").touch()
    assert main(["audit", "--data", str(tmp_path / "home"), "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - start < 2
    need_layout(tmp_path / "home", seconds=0)            # no time to look: the reader will say what is wrong


# ---- evaluate and export ----

@pytest.fixture(scope="module")
def folder_of_faces(tmp_path_factory):
    "Drawn faces in train/ and test/, four of the test images with a copy in train/, and an untrained network."
    from fer_nb.models import HyFER, save_hyfer
    from fer_nb.synth import make_faces
    ds, root = make_faces(140, seed=6, defects=None, splits=(.6, 0, .4))[0], tmp_path_factory.mktemp("faces")
    copies = ds.where(split="test").take(range(4))
    for part, split, names in ((ds, ds.df.split, ds.df.id), (copies, ["train"] * 4, "copy" + copies.df.id)):
        for name, label, where, pixels in zip(names, part.df.label, split, part.array()):
            (root / "data" / where / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "data" / where / label / f"{name}.png")
    import torch
    torch.manual_seed(0)
    (root / "run").mkdir()
    for name in ("student_phase1", "student"):
        save_hyfer(HyFER(7, 1, "light"), root / f"run/{name}.safetensors", temperature=2.0)
    return root


def test_evaluate_gives_what_evaluate_gives(folder_of_faces, tmp_path, capsys):
    "The table of the command is that of `evaluate` on tempered logits with the planted duplicates; the record says how."
    from fer_nb.formats import read
    from fer_nb.evaluate import evaluate, predict_logits
    from fer_nb.models import load_teacher
    root, out = folder_of_faces, tmp_path / "e.csv"
    assert main(["evaluate", "--model", str(root / "run"), "--data", str(root / "data"), "--exact", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "student_phase1.safetensors, the run has no students.csv" in said.err and "4 of 57 have a duplicate" in said.out
    assert "judged by the data set's own labels" in said.out and "95 % bootstrap intervals" in said.out
    assert "proportions are held fixed (narrow for a network that answers one class)" in said.out and "in the report of a run" in said.out
    ds = read(root / "data")
    test, net = ds.where(split="test"), load_teacher(root / "run/student_phase1.safetensors")
    copied = {i for i in test.df.id if any(ds.df.id.str.endswith(f"copy{Path(i).name}"))}
    assert len(copied) == 4
    expected = evaluate(predict_logits(net, test) / 2, test, duplicates=copied)
    table = pd.read_csv(out)
    both = table.merge(expected, on=["subset", "metric"], suffixes=("", "_expected"))
    assert len(both) == len(expected) == len(table) and set(table.subset) == {"all", "without_duplicates"}
    np.testing.assert_allclose(both.value, both.value_expected, atol=1e-6)
    assert ((table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9))[table.metric == "accuracy"].all()
    record = read_record(out)
    assert record["command"].startswith("fer-nb evaluate --model run --data data") and record["temperature"] == 2.0 and record["split"] == "test"
    assert main(["evaluate", "--data", str(root / "data"), "--out", str(out)]) == 2 and "pass --overwrite" in capsys.readouterr().err


def test_evaluate_takes_images_of_several_sizes(folder_of_faces, tmp_path, capsys):
    from fer_nb.data import resized
    from fer_nb.evaluate import evaluate, predict_logits
    from fer_nb.formats import read
    from fer_nb.models import load_teacher
    model, root = folder_of_faces / "run/student.safetensors", tmp_path / "data"
    for k, path in enumerate(sorted((folder_of_faces / "data/test").rglob("*.png"))):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((48 + k % 3,) * 2).save(root / path.parent.name / path.name)
    assert main(["evaluate", "--model", str(model), "--data", str(root), "--split", "train", "--out", str(tmp_path / "e.csv")]) == 0
    assert "images of several sizes, made 48 pixels" in capsys.readouterr().out
    net, table = load_teacher(model), pd.read_csv(tmp_path / "e.csv").set_index(["subset", "metric"])
    ds = resized(read(root), net.input_size)
    expected = evaluate(predict_logits(net, ds) / 2, ds).set_index(["subset", "metric"])
    assert table.value["all", "accuracy"] == pytest.approx(expected.value["all", "accuracy"])


def test_evaluate_matches_labels_by_name(folder_of_faces, tmp_path, capsys):
    "A network whose labels come in another order has the same accuracy; other labels are an error that names those in common."
    from fer_nb.models import HyFER, load_hyfer, save_hyfer
    net = load_hyfer(folder_of_faces / "run/student.safetensors")
    order = [3, 0, 6, 1, 2, 5, 4]
    turned = HyFER(7, 1, "light", labels=tuple(net.labels[k] for k in order))
    state = net.state_dict()
    last = [k for k, v in state.items() if v.ndim and v.shape[0] == 7]
    turned.load_state_dict(state | {k: state[k][order] for k in last})
    save_hyfer(turned, tmp_path / "turned.safetensors", temperature=2.0)
    save_hyfer(HyFER(3, 1, "light", labels=("happy", "sad", "bored")), tmp_path / "three.safetensors")
    data, rates = str(folder_of_faces / "data"), []
    for k, model in enumerate((folder_of_faces / "run/student.safetensors", tmp_path / "turned.safetensors")):
        assert main(["evaluate", "--model", str(model), "--data", data, "--exact", "--out", str(tmp_path / f"{k}.csv")]) == 0
        rates.append(pd.read_csv(tmp_path / f"{k}.csv").query("subset == 'all' and not metric.str.contains(':')").set_index("metric").value)
    pd.testing.assert_series_equal(*rates, atol=1e-5)
    three = ["evaluate", "--model", str(tmp_path / "three.safetensors"), "--data", data, "--out", str(tmp_path / "t.csv")]
    capsys.readouterr()
    assert main(three) == 2 and "--shared evaluates over happy, sad" in capsys.readouterr().err
    assert main([*three, "--shared"]) == 0
    said, test = capsys.readouterr().out, folder_of_faces / "data/test"
    copied = {p.name.removeprefix("copy") for p in (folder_of_faces / "data/train").rglob("copy*")}
    shared = [p for label in ("happy", "sad") for p in (test / label).iterdir()]
    found = sum(p.name in copied for p in shared)
    assert found < 4 and "left out: angry" in said and f"{found} of {len(shared)} have a duplicate" in said
    assert set(pd.read_csv(tmp_path / "t.csv").labels) == {"happy, sad"}


@pytest.mark.parametrize("labels", ["ferplus", "without contempt", "fer2013"])
def test_evaluate_judges_by_the_votes_that_it_is_given(csv_of_faces, tmp_path, capsys, labels):
    "With FER+'s votes, the labels are the majority of the votes, whatever the file of FER2013 says."
    from fer_nb.core import LABEL_ORDERS
    from fer_nb.data import read_ferplus
    from fer_nb.evaluate import evaluate, predict_logits
    from fer_nb.models import HyFER, load_hyfer, save_hyfer
    names = {"ferplus": LABEL_ORDERS["ferplus"], "without contempt": LABEL_ORDERS["ferplus"][:7], "fer2013": EMOTIONS}[labels]
    (data, votes), out = csv_of_faces, tmp_path / "e.csv"
    model = save_hyfer(HyFER(len(names), 1, "light", labels=names), tmp_path / "n.safetensors")
    command = ["evaluate", "--model", str(model), "--data", str(data), "--split", "valid", "--exact", "--overwrite", "--out", str(out)]
    assert main([*command, "--votes", str(votes)]) == 0
    assert "judged by FER+'s labels, the majority of the votes" in capsys.readouterr().out and "FER+" in read_record(out)["labels"]
    ds, net = read_ferplus(votes, data, num_classes=len(names), splits=("train", "valid")), load_hyfer(model)
    part = ds.where(split="valid").replace(labels=net.labels)
    assert (part.df.label != part.df.fer2013_label).any()
    expected = evaluate(predict_logits(net, part), part).set_index(["subset", "metric"]).value
    table = pd.read_csv(out).set_index(["subset", "metric"]).value
    assert table["all", "accuracy"] == pytest.approx(expected["all", "accuracy"])
    assert table["all", "loss"] == pytest.approx(expected["all", "loss"], abs=1e-5)
    if labels == "fer2013":
        assert main(command) == 0 and "own labels" in capsys.readouterr().out
        assert pd.read_csv(out).set_index(["subset", "metric"]).value["all", "loss"] != pytest.approx(table["all", "loss"], abs=1e-5)


def test_evaluate_takes_the_student_that_was_chosen_and_says_so(folder_of_faces, tmp_path, capsys):
    import shutil
    shutil.copytree(folder_of_faces / "run", run := tmp_path / "run")
    for files in (["student_phase1.safetensors", "student.safetensors"], ["student.safetensors"]):
        pd.DataFrame({"file": files, "chosen": [f == "student.safetensors" for f in files]}).to_csv(run / "students.csv", index=False)
        assert main(["export", "--weights", str(run), "--to", str(tmp_path / f"{len(files)}.onnx")]) == 0
        said = f"fer-nb: {run}: student.safetensors, the student that the run's held-out images chose (students.csv)"
        assert said in capsys.readouterr().err.splitlines()
    for verb in (["evaluate", "--data", str(folder_of_faces / "data"), "--model"], ["export", "--to", str(tmp_path / "x.onnx"), "--weights"], ["predict", str(run), "--weights"]):
        assert main([*verb, str(run), "--robust"]) == 2 and "no network trained under attack is there" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_records_beside_the_target_that_cannot_be_read_are_refused_before_the_work(folder_of_faces, tmp_path, capsys, monkeypatch):
    from fer_nb import cli
    monkeypatch.setattr(cli, "_load", lambda path: pytest.fail("the work has begun"))
    for text in ("no JSON", '{"mine": 1}'):
        (tmp_path / "record.json").write_text(text)
        for verb in (["evaluate", "--data", str(folder_of_faces / "data"), "--out", str(tmp_path / "e.csv")], ["export", "--to", str(tmp_path / "a.onnx")]):
            assert main(verb) == 2 and "cannot be read as records" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["record.json"] and (tmp_path / "record.json").read_text() == text


def test_an_existing_folder_that_shall_be_replaced_needs_room_beside_it(tmp_path, monkeypatch):
    "The new one is made beside it; a study and annotated images go into the folder itself."
    import tempfile

    from fer_nb.cli import need_target
    (out := tmp_path / "out").mkdir()
    asked, real = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: asked.append(Path(dir)) or real(dir=dir))
    for aside in (True, False):
        need_target("out", out, True, True, True, aside)
    assert asked == [tmp_path, out] and [n for n, v in VERBS.items() if not v.aside] == ["study", "reproduce", "bench", "predict"]


def test_evaluate_says_whose_training_images_they_were(folder_of_faces):
    from fer_nb.cli import trained_on
    from fer_nb.data import resized
    from fer_nb.formats import read
    ds = read(folder_of_faces / "data")
    small = resized(ds, 24).fingerprint()
    assert "86 images of this data set; its epoch was chosen on 9 others" in trained_on(
        {"data": {"fingerprint": small, "trained on": 86, "selected on": 9, "name": "faces"}}, ds, 24)
    assert "of this data set" in trained_on({"fingerprint": ds.where(split="train").fingerprint()}, ds, 48)
    assert "another data set (elsewhere)" in trained_on({"data": {"fingerprint": "0", "name": "elsewhere"}}, ds, 48)
    assert "does not say" in trained_on({}, ds, 48)
    came = {"fingerprint": ds.assign(split="train").fingerprint(), "fingerprint of the split": "of another test part"}
    assert "of these images in other splits: some" in trained_on(came, ds, 48)


def test_beside_a_class_stands_how_many_images_of_each_column_count():
    from fer_nb.cli import readable
    rows = [(subset, m, .5, n, np.nan, np.nan) for subset, all_, happy in (("all", 40, 9), ("without_duplicates", 1032, 8))
            for m, n in (("accuracy", all_), ("recall:happy", happy), ("recall:sad", 4))]
    table = pd.DataFrame(rows, columns=["subset", "metric", "value", "n", "low", "high"])
    said = readable(table)
    assert "recall % happy (9 / 8)" in said and "recall % sad (4)" in said and "without duplicates (1,032)" in said
    assert "recall % happy (9) " in readable(table[table.subset == "all"])


def test_export_writes_a_file_that_predicts_the_same(folder_of_faces, tmp_path, capsys):
    root = folder_of_faces
    assert main(["export", "--weights", str(root / "run"), "--robust", "--data", str(root / "data"), "--to", str(tmp_path / "a.onnx")]) == 0
    said = capsys.readouterr()
    assert "student.safetensors" in said.err and "57 images of data, test" in said.out and read_record(tmp_path / "a.onnx")["weights"] == "student.safetensors"
    image = next((root / "data/test").rglob("*.png"))
    faces = []
    for weights in (["--weights", str(root / "run"), "--robust"], ["--weights", str(tmp_path / "a.onnx")]):
        assert main(["predict", str(image), "--no-crop", "--out", "json", *weights]) == 0
        faces.append(json.loads(capsys.readouterr().out)["faces"][0]["probs"])
    assert faces[0] == pytest.approx(faces[1], abs=2e-4)


def test_endings_in_capitals_are_endings(folder_of_faces, tmp_path, capsys):
    data, capital = ["--data", str(folder_of_faces / "data")], str(tmp_path / "A.ONNX")
    assert main(["export", "--weights", str(folder_of_faces / "run"), "--to", capital]) == 0
    assert main(["export", "--weights", capital, "--to", str(tmp_path / "b.onnx")]) == 2 and "an ONNX file already; --int8 expected" in capsys.readouterr().err
    assert main(["export", "--weights", capital, "--int8", "--images", "8", *data, "--to", str(tmp_path / "C.ONNX")]) == 0
    assert {p.name for p in tmp_path.iterdir() if p.suffix.lower() == ".onnx"} == {"A.ONNX", "C.ONNX"}


def test_bench_refuses_what_it_cannot_do_before_images_are_read(folder_of_faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fer_nb.cli.read_data", None)
    bench = ["bench", "--data", str(folder_of_faces / "data"), "--out", str(tmp_path / "rows")]
    for more, says in ((["--seconds", "nan"], "seconds=nan; a positive number"), (["--sample", "-1"], "sample=-1; a whole number"),
                       (["--models", ","], "--models ',': no model")):
        assert main([*bench, *more]) == 2 and says in capsys.readouterr().err


def test_an_address_says_how_to_go_on(capsys):
    assert main(["predict", "https://example.org/a.jpg"]) == 2
    assert "of a film or a stream: --camera https://example.org/a.jpg; of a photo: download it first" in capsys.readouterr().err


def test_export_of_a_network_with_labels_of_its_own(folder_of_faces, tmp_path):
    from fer_nb.models import HyFER, save_hyfer
    model = save_hyfer(HyFER(3, 1, "light", labels=("calm", "bored", "happy")), tmp_path / "three.safetensors")
    for k, more in enumerate(([], ["--data", str(folder_of_faces / "data")])):
        assert main(["export", "--weights", str(model), *more, "--to", str(to := tmp_path / f"{k}.onnx")]) == 0
        assert read_record(to)["parity"][-1]["agreement"] == 1 and "accuracy" not in read_record(to)["parity"][-1]


def test_export_leaves_nothing_where_the_images_cannot_be_used(folder_of_faces, tmp_path, capsys, monkeypatch):
    def broken(self, ds, net):
        raise DataError("no images to compare on")

    monkeypatch.setattr(type(VERBS["export"]), "held_out", broken)
    assert main(["export", "--weights", str(folder_of_faces / "run"), "--to", str(tmp_path / "a.onnx")]) == 2
    assert "no images to compare on" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_export_in_int8_takes_its_ranges_from_training_images(folder_of_faces, tmp_path, capsys):
    from fer_nb.formats import read
    from fer_nb.export import OnnxModel
    root, to = folder_of_faces, tmp_path / "a-int8.onnx"
    assert main(["export", "--weights", str(root / "run"), "--data", str(root / "data"), "--int8", "--images", "16", "--to", str(to)]) == 0
    how = json.loads(OnnxModel(to).metadata["int8"])
    train = read(root / "data").where(split="train")
    assert how["images"] == 16 and how["data"] == train.take(np.linspace(0, len(train) - 1, 16).astype(int)).fingerprint()
    (row,) = [r for r in read_record(to)["parity"] if r["model"] == "a-int8"]
    assert 0 <= row["agreement"] <= 1 and row["n"] == 57


def test_export_prepares_images_as_evaluate_does(folder_of_faces, tmp_path, capsys, monkeypatch):
    "A network that was trained on cut-out faces is calibrated and measured on such."
    from fer_nb.export import OnnxModel, parity, to_onnx
    from fer_nb.formats import read
    from fer_nb.models import load_hyfer, save_hyfer

    class Inverted:
        "A refiner whose faces are unmistakable: negatives, without the first image."
        def __init__(self, size, policy):
            assert size == 48 and policy == {"no_face": "drop"}

        def refine(self, ds):
            return ds.take(range(1, len(ds))).replace(images=255 - ds.array()[1:])

    monkeypatch.setattr("fer_nb.faces.FaceRefiner", Inverted)
    model = save_hyfer(load_hyfer(folder_of_faces / "run/student.safetensors"), tmp_path / "faces.safetensors", faces="drop")
    command = ["export", "--weights", str(model), "--data", str(folder_of_faces / "data")]
    assert main([*command, "--to", str(tmp_path / "a.onnx")]) == 0 and main([*command, "--int8", "--images", "16", "--to", str(tmp_path / "b.onnx")]) == 0
    assert capsys.readouterr().out.count("faces cut out, as in its training; images without one: drop, 1 of 57 images (") == 2
    assert main(["evaluate", "--model", str(model), "--data", str(folder_of_faces / "data"), "--exact", "--out", str(tmp_path / "e.csv")]) == 0
    assert "images without one: drop, 1 of 57 images (" in capsys.readouterr().out
    ds, net = read(folder_of_faces / "data"), load_hyfer(model)
    test, train = (ds.where(split=s) for s in ("test", "train"))
    ranges = Inverted(48, {"no_face": "drop"}).refine(train.take(np.linspace(0, len(train) - 1, 16).astype(int)))
    assert json.loads(OnnxModel(tmp_path / "b.onnx").metadata["int8"])["data"] == ranges.fingerprint()
    cut = Inverted(48, {"no_face": "drop"}).refine(test)
    expected = parity(net, tmp_path / "a.onnx", cut.replace(labels=net.labels))
    record = read_record(tmp_path / "a.onnx")
    assert record["parity"][0]["accuracy"] == pytest.approx(expected.accuracy[0]) and record["parity"][0]["n"] == len(test) - 1
    assert record["images"].startswith("faces cut out") and parity(net, to_onnx(net, tmp_path / "c.onnx"), test.replace(labels=net.labels)).accuracy[0] != expected.accuracy[0]
    monkeypatch.setattr(Inverted, "refine", lambda self, ds: ds.take([]))
    assert main([*command, "--to", str(tmp_path / "none.onnx")]) == 2 and "no face in any of" in capsys.readouterr().err
    assert not (tmp_path / "none.onnx").exists()


def test_export_takes_images_of_several_sizes(folder_of_faces, tmp_path, capsys):
    for k, path in enumerate(sorted((folder_of_faces / "data").rglob("*.png"))):
        (to := tmp_path / "data" / path.parent.relative_to(folder_of_faces / "data")).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((48 + k % 3,) * 2).save(to / path.name)
    for more in ([], ["--int8", "--images", "8"]):
        to = tmp_path / f"{len(more)}.onnx"
        assert main(["export", "--weights", str(folder_of_faces / "run"), "--data", str(tmp_path / "data"), "--to", str(to), *more]) == 0
        assert "images of several sizes, made 48 pixels" in capsys.readouterr().out and read_record(to)["parity"][0]["n"] == 57


def test_export_that_fails_leaves_what_was_there(folder_of_faces, tmp_path, monkeypatch):
    import fer_nb.export
    def fails(*a, **k):
        raise DataError("an image was lost")

    monkeypatch.setattr(fer_nb.export, "parity", fails)
    (tmp_path / "a.onnx").write_text("mine")
    for name in ("a", "b"):
        assert main(["export", "--weights", str(folder_of_faces / "run"), "--to", str(tmp_path / f"{name}.onnx"), "--overwrite"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"] and (tmp_path / "a.onnx").read_text() == "mine"


def test_export_writes_over_nothing_that_it_reads_or_that_is_there(folder_of_faces, tmp_path, capsys, monkeypatch):
    from fer_nb import cli
    from fer_nb.export import to_onnx
    from fer_nb.models import load_hyfer
    data, table = ["--data", str(folder_of_faces / "data")], tmp_path / "t.csv"
    x = to_onnx(load_hyfer(folder_of_faces / "run/student.safetensors"), tmp_path / "x.onnx")
    before = x.read_bytes()
    table.write_text("mine")
    monkeypatch.setattr(cli, "_load", lambda path: pytest.fail("the work has begun"))
    for words, said in ((["--weights", str(x), "--int8", *data, "--to", str(x), "--overwrite"], "x.onnx: is read; it cannot be written too"),
                        (["--weights", str(x), "--int8", *data, "--to", str(tmp_path / "y.onnx"), "--table", str(x), "--overwrite"], "x.onnx: is read"),
                        (["--to", str(tmp_path / "y.onnx"), "--table", str(table)], "t.csv: exists already; choose another --table or pass --overwrite"),
                        (["--to", str(tmp_path / "y.onnx"), "--table", str(tmp_path / "y.onnx")], "another name expected"),
                        (["--int8", *data, "--images", "-5", "--to", str(tmp_path / "y.onnx")], "images=-5; a whole number of at least 1 expected")):
        assert main(["export", *words]) == 2 and said in capsys.readouterr().err
    assert x.read_bytes() == before and table.read_text() == "mine" and not (tmp_path / "y.onnx").exists()


def test_of_the_training_split_it_is_said_that_it_is_the_training_split(folder_of_faces, tmp_path, capsys):
    data = str(folder_of_faces / "data")
    for verb in (["evaluate", "--model", str(folder_of_faces / "run"), "--out", str(tmp_path / "e.csv")],
                 ["bench", "--models", str(folder_of_faces / "run"), "--out", str(tmp_path / "rows"), "--sample", "0", "--no-own-finder"]):
        assert main([*verb, "--data", data, "--split", "train"]) == 0
        assert "this is the training split itself: duplicates were not looked for" in capsys.readouterr().out


def test_export_without_its_packages_says_what_to_install(tmp_path, capsys, monkeypatch):
    import importlib.util as util
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "onnxscript" else real(name, *rest))
    assert main(["export", "--to", str(tmp_path / "a.onnx")]) == 2
    assert "not installed: onnxscript; pip install \"fer-nb[export]\"" in capsys.readouterr().err


# ---- predict ----

@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    "A folder with portraits, a wall, a broken file and a note, and a small network beside it."
    from skimage.data import astronaut

    from fer_nb.models import HyFER, save_hyfer
    root = tmp_path_factory.mktemp("trip")
    save_hyfer(HyFER(7, 1, "light"), root / "toy.safetensors", temperature=2.0)
    (root / "photos/more").mkdir(parents=True)
    for name in ("a.jpg", "more/ä b.jpg"):
        Image.fromarray(astronaut()).save(root / "photos" / name)
    Image.new("RGB", (90, 60), "teal").save(root / "photos/wall.png")
    (root / "photos/broken.jpg").write_bytes(b"no")
    (root / "photos/notes.txt").write_text("no picture")
    return root


def predict(trip, capsys, *argv):
    status = main(["predict", *map(str, argv), "--weights", str(trip / "toy.safetensors")])
    return status, *capsys.readouterr()


def test_predict_says_csv_and_names_what_failed(trip, capsys):
    status, out, err = predict(trip, capsys, trip / "photos")
    table = pd.read_csv(io.StringIO(out))
    assert status == 1 and table.status.value_counts().to_dict() == {"ok": 2, "error": 1, "no_face": 1, "skipped": 1}
    np.testing.assert_allclose(table.loc[table.status == "ok", list(EMOTIONS)].sum(axis=1), 1, atol=1e-3)
    lines = err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("fer-nb: ") for line in lines) and "broken.jpg" in err and "notes.txt" in err
    assert predict(trip, capsys, trip / "photos/a.jpg")[0] == 0
    status, out, err = predict(trip, capsys, trip / "photos/a.jpg", trip / "nowhere.jpg")
    assert status == 1 and "nowhere.jpg: no such file" in err and "a.jpg" in out


def test_predict_writes_nothing_where_nothing_is_there(trip, capsys, tmp_path):
    assert predict(trip, capsys, tmp_path / "nofile.jpg")[:2] == (2, "")
    assert predict(trip, capsys, "--camera", "77")[:2] == (2, "") and main(["predict", "--camera", "77", "--to", str(tmp_path / "x.csv")]) == 2
    assert "camera 77: cannot be opened" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def test_predict_knows_how_many_only_where_there_are_no_videos(trip, capsys, tmp_path, monkeypatch):
    from fer_nb import cli
    totals, progress = [], cli.progress
    monkeypatch.setattr(cli, "progress", lambda items, what, total: totals.append(total) or progress(items, what, total))
    (tmp_path / "v.mp4").touch()
    for k, paths in enumerate(([trip / "photos"], [trip / "photos", tmp_path])):
        predict(trip, capsys, *paths, "--to", tmp_path / f"{k}.csv")
    assert totals == [5, None]


def test_predict_reads_a_camera_for_some_seconds(trip, capsys, monkeypatch):
    from skimage.data import astronaut

    from fer_nb import predict as room
    monkeypatch.setattr(room._Video, "__iter__", lambda self: ((k, k / 2, astronaut()) for k in range(4) if k / 2 < self.seconds))
    status, out, err = predict(trip, capsys, "--camera", "0", "--seconds", "1.2")
    table = pd.read_csv(io.StringIO(out))
    assert status == 0 and table.frame.tolist() == [0, 1, 2] and set(table.file) == {0} and table.face.eq(0).all()


def test_predict_takes_the_student_that_is_asked_for(trip, capsys, tmp_path):
    from fer_nb.models import HyFER, save_hyfer
    for name in ("student", "student_phase1"):
        save_hyfer(HyFER(7, 1, "light"), tmp_path / f"{name}.safetensors")
    seen = {}
    for name, more in (("run", []), ("robust", ["--robust"]), ("phase1", None)):
        weights = tmp_path / "student_phase1.safetensors" if more is None else tmp_path
        assert main(["predict", str(trip / "photos/a.jpg"), "--out", "json", "--weights", str(weights), *(more or [])]) == 0
        out, err = capsys.readouterr()
        seen[name] = json.loads(out)["faces"][0]["probs"]
        assert (f"{tmp_path}: student" in err) == (more is not None)
    assert seen["run"] == seen["phase1"] != seen["robust"]


def test_predict_json_is_one_object_a_picture(trip, capsys):
    status, out, err = predict(trip, capsys, trip / "photos", "--out", "json")
    seen = {Path(s["file"]).name: s for s in map(json.loads, out.splitlines())}
    assert status == 1 and len(seen) == 5 and seen["wall.png"]["faces"] == [] and len(seen["ä b.jpg"]["faces"][0]["landmarks"]) == 6
    status, out, err = predict(trip, capsys, trip / "photos/wall.png", "--out", "json", "--no-crop")
    (face,) = json.loads(out)["faces"]
    assert face["score"] is None and face["box"] == [0, 0, 90, 60]


def test_predict_into_a_file_and_a_folder(trip, capsys, tmp_path):
    status, out, err = predict(trip, capsys, trip / "photos", "--to", tmp_path / "new/faces.csv")
    assert status == 1 and "2 faces" in out and len(pd.read_csv(tmp_path / "new/faces.csv")) == 5
    status, out, err = predict(trip, capsys, trip / "photos", "--to", tmp_path / "new/faces.csv")
    assert status == 2 and "exists already; choose another --to" in err
    status, out, err = predict(trip, capsys, trip / "photos", "--out", "annotated", "--to", tmp_path / "drawn")
    assert sorted(p.relative_to(tmp_path / "drawn").as_posix() for p in (tmp_path / "drawn").rglob("*.jpg")) == [
        "a.jpg", "more/ä b.jpg", "wall.png.jpg"]
    assert predict(trip, capsys, trip / "photos", "--out", "annotated", "--to", tmp_path / "drawn")[0] == 2
    assert predict(trip, capsys, trip / "photos", "--out", "annotated", "--to", tmp_path / "drawn", "--overwrite")[0] == 1


def test_predict_takes_a_dash_for_standard_output(trip, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = predict(trip, capsys, trip / "photos/a.jpg", "--to", "-")
    assert status == 0 and len(pd.read_csv(io.StringIO(out))) == 1 and not list(tmp_path.iterdir())
    assert predict(trip, capsys, trip / "photos/a.jpg", "--to", "./-")[0] == 0 and len(pd.read_csv("./-")) == 1
    status, out, err = predict(trip, capsys, trip / "photos/a.jpg", "--to", "-", "--out", "annotated")
    assert status == 2 and "--to -: standard output takes no pictures" in err


@pytest.mark.parametrize("words, why", [("--no-crop --smallest .3", "--smallest goes with --crop"), ("--overwrite", "--overwrite goes with --to"),
                                        ("--keep ,", "--keep: LABEL,LABEL expected"), ("--to - --overwrite", "--overwrite goes with --to")])
def test_predict_refuses_options_that_would_do_nothing(trip, capsys, words, why):
    status, out, err = predict(trip, capsys, trip / "photos/a.jpg", *words.split())
    assert status == 2 and why in err and not out


def test_places_of_results_are_found_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(b"x")
    for argv, name, place in (("predict in --annotate=~/zz.mp4", "annotate", "zz.mp4"), ("predict in --to=~/a.csv", "to", "a.csv"),
                              ("export --table=~/t.csv --to x.onnx", "table", "t.csv"), ("ship --data ~/in --work=~/w", "work", "w"),
                              ("ship --data ~/in --teacher=~/in", "teacher", "in")):
        args = parser().parse_args(argv.split())
        with suppress(DataError):            # the data are none
            need_inputs(VERBS[args.verb], args)
        assert getattr(args, name) == ([tmp_path / place] if name == "teacher" else tmp_path / place), argv
    args = parser().parse_args(["predict", "in", "--to=~nobody-of-this-name.csv"])
    need_inputs(VERBS["predict"], args)
    assert args.to == Path("~nobody-of-this-name.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("argv, where, says", [("formats rafdb", "> /dev/full", "fer-nb: OSError: standard output: [Errno 28]"),
                                               ("predict {photo}", ">&-", "fer-nb: ConfigError: no standard output; --to FILE expected"),
                                               ("predict {photo} --to {to} --weights {toy}", ">&-", "")])
def test_without_standard_output_there_is_one_line(trip, tmp_path, argv, where, says):
    words = argv.format(photo=trip / "photos/a.jpg", to=tmp_path / "a.csv", toy=trip / "toy.safetensors")
    done = subprocess.run(f"{sys.executable} -m fer_nb {words} {where}", shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode == (2 if says else 0) and done.stderr.count("\n") == bool(says) and says in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_predict_that_is_ended_from_outside_keeps_what_was_done(trip, tmp_path, number):
    import cv2
    out = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for k in range(9000):
        out.write(np.full((120, 160, 3), k % 256, np.uint8))
    out.release()
    command = [sys.executable, "-m", "fer_nb", "predict", str(tmp_path / "in.avi"), "--no-crop", "--weights", str(trip / "toy.safetensors"),
               "--to", str(tmp_path / "t.parquet"), "--annotate", str(tmp_path / "t.mp4")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(1200):
        if list(tmp_path.glob(".t.*mp4")) or process.poll() is not None:
            break
        time.sleep(.1)
    time.sleep(1)   # the first frames
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "what was done stays" in said and "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.avi", "t.mp4", "t.parquet"]
    assert 0 < len(pd.read_parquet(tmp_path / "t.parquet")) < 9000 and cv2.VideoCapture(str(tmp_path / "t.mp4")).get(7) > 0


def test_of_a_full_disk_the_table_and_the_film_are_named(trip, capfd, tmp_path):
    import cv2
    resource = pytest.importorskip("resource")
    out = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    for k in range(100):
        out.write(np.random.default_rng(k).integers(0, 256, (120, 160, 3), np.uint8))
    out.release()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        status = main(["predict", str(tmp_path / "in.avi"), "--no-crop", "--weights", str(trip / "toy.safetensors"),
                       "--to", str(tmp_path / "t.csv"), "--annotate", str(tmp_path / "t.mp4")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capfd.readouterr().err
    assert status == 2 and "t.mp4: not all" in err and re.search(r"fer-nb: OSError: \[Errno \d+\] .*t\.csv", err) and "Traceback" not in err
    assert 0 < len(pd.read_csv(tmp_path / "t.csv")) < 100 and sorted(p.name for p in tmp_path.iterdir()) == ["in.avi", "t.csv"]


def test_predict_refuses_what_it_cannot_start_with(trip, capsys, tmp_path):
    assert main(["predict", str(trip / "photos"), "--weights", str(trip / "photos/a.jpg")]) == 2
    assert "not the weights" in capsys.readouterr().err
    assert predict(trip, capsys, trip / "photos", "--smallest", "7")[0] == 2
    with pytest.raises(SystemExit) as end:
        main(["predict", "x.jpg", "--out", "xml"])
    assert end.value.code == 2
    assert main(["predict"]) == 2 and "one or the other" in capsys.readouterr().err


def test_predict_leaves_an_older_result_alone_where_a_setting_makes_no_sense(trip, capsys, tmp_path):
    (old := tmp_path / "old.csv").write_text("precious\n")
    assert predict(trip, capsys, trip / "photos", "--to", old, "--overwrite", "--every", "0")[0] == 2
    assert old.read_text() == "precious\n"
    assert predict(trip, capsys, trip / "photos", "--to", tmp_path / "new.csv", "--smooth", "-1")[0] == 2
    assert not (tmp_path / "new.csv").exists()


def test_predict_says_so_where_there_is_nothing_to_read(trip, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    for folder in ("empty", "texts"):
        status, _, err = predict(trip, capsys, tmp_path / folder)
        assert status == 2 and f"{tmp_path / folder}: no image or video that can be read" in err
    (old := tmp_path / "old.csv").write_text("precious\n")
    for given, to, said in (("empty", old, True), ("texts/a.txt", old, True), ("empty", tmp_path / "new.csv", False)):
        status, out, _ = predict(trip, capsys, tmp_path / given, "--to", to, "--overwrite")
        assert status == 2 and (f"{to} stays as it is" in out) == said
    assert old.read_text() == "precious\n" and (tmp_path / "new.csv").read_text().startswith("file,")
    assert predict(trip, capsys, tmp_path / "texts/a.txt")[0] == 2
    bare = tmp_path / "IMG_0001"
    bare.write_bytes((trip / "photos/a.jpg").read_bytes())
    assert predict(trip, capsys, bare)[0] == 0


def test_predict_draws_links_under_their_own_names(trip, capsys, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / "in" / name).symlink_to(trip / "photos/a.jpg")
    assert predict(trip, capsys, tmp_path / "in", "--out", "annotated", "--to", tmp_path / "drawn")[0] == 0
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["one.jpg", "two.jpg"]
    assert predict(trip, capsys, tmp_path / "in/one.jpg", "--out", "annotated", "--to", tmp_path / "alone")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_predict_writes_names_that_are_no_text(trip, capsys, tmp_path, kind):
    import os
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"M\xfcnchen.jpg")
    try:
        (tmp_path / "in" / name).write_bytes((trip / "photos/a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    assert predict(trip, capsys, tmp_path / "in", "--out", kind, "--to", tmp_path / f"t.{kind}")[0] == 0
    text = (tmp_path / f"t.{kind}").read_text(encoding="utf-8")
    assert "M\\udcfcnchen.jpg" in text
    assert kind == "csv" or json.loads(text)["file"] == str(tmp_path / "in" / name)
    if kind == "csv":   # what a terminal gets says nothing of the file's kind
        command = [str(Path(sys.executable).with_name("fer-nb")), "predict", str(tmp_path / "in"), "--weights", str(trip / "toy.safetensors")]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0 and b"M\\udcfcnchen.jpg" in done.stdout


def test_predict_interrupted_keeps_what_was_done(trip, capsys, tmp_path, monkeypatch):
    from fer_nb.predict import Recogniser
    whole = Recogniser.results

    def until(self, *args):
        for k, s in enumerate(whole(self, *args)):
            if k == 3:
                raise KeyboardInterrupt
            yield s
    monkeypatch.setattr(Recogniser, "results", until)
    status, out, err = predict(trip, capsys, trip / "photos", "--to", tmp_path / "x.csv")
    assert status == 130 and "what was done stays" in err and len(pd.read_csv(tmp_path / "x.csv")) == 3


def test_predict_into_a_pipe_that_closes(trip):
    command = f"{Path(sys.executable).with_name('fer-nb')} predict {trip}/photos {trip}/photos --weights {trip}/toy.safetensors"
    done = subprocess.run(f"{command} 2> {trip}/err | head -n 1", shell=True, capture_output=True, text=True)
    said = (trip / "err").read_text()
    assert done.stdout.startswith("file,frame") and "Traceback" not in said
    said = re.sub(r"^\d\d:\d\d:\d\d .* left\n", "", said, flags=re.M)   # how long the rest takes, on a busy machine
    assert [line for line in said.splitlines() if not line.startswith("fer-nb: ")] == []


def test_the_headline_has_all_judges_and_what_others_measured(csv_of_faces, tmp_path, capsys):
    "With votes each judge speaks; the record names the weights; a quoted figure of other weights is refused."
    from fer_nb.audit import audit
    from fer_nb.core import file_sha256
    from fer_nb.data import VOTE_COLUMNS, add_votes, read_fer2013
    from fer_nb.evaluate import headline_of, table_of
    from fer_nb.models import HyFER, load_hyfer
    from fer_nb.store import read_table
    (data, votes), out = csv_of_faces, tmp_path / "h.csv"
    card = HyFER(7, 1, "light").save(tmp_path, "net", temperature=2.0, data={"name": "photos"})
    model, facts = card.with_suffix(".safetensors"), json.loads(card.read_text())
    command = ["evaluate", "--model", str(model), "--data", str(data), "--votes", str(votes), "--headline", "--split", "valid",
               "--exact", "--overwrite", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "one voter, by the others" in said and "others with these weights" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = add_votes(read_fer2013(data), votes)
    assert set(VOTE_COLUMNS) <= set(ds.df)
    expected = headline_of(load_hyfer(model), ds.where(split="valid"), audit(ds, ("leak",), None).issues.id, 2.0)
    table = table_of(out, facts)
    assert list(table.measure) == list(expected.measure) and np.allclose(table.value, expected.value, atol=1e-6)
    assert read_record(out)["weights"] == facts["sha256"] == file_sha256(model)
    figure = {"split": "PrivateTest", "who": "network, one view", "value": 0.625, "n": None}
    for weights in (facts["sha256"], "ab" * 32):
        card.write_text(json.dumps(facts | {"measured by others": {"weights": weights, "figures": [figure]}}))
        code, printed = main(command), capsys.readouterr()
        assert code == (0 if weights == facts["sha256"] else 2)
        assert re.search(r"0\.625 +–", printed.out) and "NaN" not in printed.out and \
            "on splits of photos, the data of their training, not by this run" in printed.out if code == 0 else "abababababab" in printed.err
    for text in ("{", "[]", json.dumps({"sha256": "ab" * 32})):  # no card, or of another file: nothing is quoted
        card.write_text(text)
        assert main(command) == 0 and "not by this run" not in capsys.readouterr().out
    with pytest.raises(DataError, match="of weights"):
        table_of(out, facts | {"sha256": "cd" * 32})
    assert len(read_table(out)) == len(table)
    assert main([*command, "--tta", "flip"]) == 2 and "--tta beside --headline" in capsys.readouterr().err


# ---- what is read is not replaced ----

@pytest.mark.parametrize("words", ["audit --data {photos} --out {photos} --exact", "audit --data {photos}/train --out {photos} --exact", "run --data {photos} --out {photos}/../photos",
                                   "ship --data {photos} --out {photos}", "evaluate --data {csv} --out {csv}", "audit --data {csv} --out {here}", "audit --data {csv} --out {here}/.."])
def test_what_is_read_is_never_replaced(words, tmp_path, csv_of_faces, capsys, monkeypatch):
    photos, csv = tmp_path / "in/photos", tmp_path / "in/f.csv"
    ds = make_faces(28, seed=0, defects=None, balance="uniform")[0]
    for k, (label, pixels) in enumerate(zip(ds.df.label, ds.array())):
        (photos / "train" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(photos / "train" / label / f"{k}.png")
    shutil.copy(csv_of_faces[0], csv)
    monkeypatch.chdir(tmp_path / "in")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main([*words.format(photos=photos, csv=csv, here=tmp_path / "in").split(), "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "would be replaced; another place expected" in said or "the working folder is in it" in said
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_does_not_replace_its_images(tmp_path):
    from fer_nb.data import read_folder
    from fer_nb.pipeline import run
    ds = make_faces(28, seed=0, defects=None, balance="uniform")[0]
    for k, (label, pixels) in enumerate(zip(ds.df.label, ds.array())):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{k}.png")
    with pytest.raises(DataError, match="which is read, would be replaced"):
        run(read_folder(tmp_path / "photos"), "tiny", tmp_path / "photos", overwrite=True)
    with pytest.raises(ConfigError, match="seed=1.5"):
        run(ds, "tiny", tmp_path / "out", seed=1.5)
    assert len(list(tmp_path.rglob("*.png"))) == 28


def test_a_link_to_nothing_is_told_before_the_work(tmp_path, csv_of_faces, capsys):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    assert main(["audit", "--data", str(csv_of_faces[0]), "--out", str(tmp_path / "out"), "--overwrite"]) == 2
    assert "a link to nothing is there" in capsys.readouterr().err


@pytest.mark.parametrize("words, says", [("demo --preset tiny --config {config}", "--preset tiny and --config"), ("demo --epochs 3 --set student.epochs=4", "one of the two expected"),
                                         ("demo --seed 99999999999999999999", "seed=99999999999999999999"), ("demo --device meta", "cannot be used here"),
                                         ("demo --set data.protocol=rubbish", "protocol='rubbish'"), ("demo --set data.folds_by=subject", "without folds"),
                                         ("demo --set student.size=", "nothing behind =")])
def test_options_that_contradict_each_other_are_told(words, says, tmp_path, capsys, monkeypatch):
    from fer_nb.config import PRESETS, to_dict
    (tmp_path / "c.json").write_text(json.dumps(to_dict(PRESETS["tiny"])))
    monkeypatch.chdir(tmp_path)
    preset = "" if "--config" in words else " --preset tiny"
    assert main([*(words + preset).format(config=tmp_path / "c.json").split(), "--images", "70", "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_settings_that_go_with_the_preset_of_a_verb_are_taken():
    from argparse import Namespace
    from fer_nb import cli
    for change in ("student.mix=0.2", "student.restart_epochs=2", "student.sam=0.05", "student.freeze_epochs=10", "adversarial.taught=true"):
        cli._need_settings(Namespace(config=None, set=[change]))
    for change in ("student.epoch=3", "student.lr=-1", "student.optimiser=foo", "student.epochs=many"):
        with pytest.raises(ConfigError):
            cli._need_settings(Namespace(config=None, set=[change]))


def test_data_without_a_split_have_no_test_images_and_the_message_says_where_their_figures_are(tmp_path, capsys):
    for row, label in enumerate(("happy", "sad") * 3):
        to = tmp_path / "faces" / label / f"{row}.png"
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 48), 10 * row, np.uint8)).save(to)
    assert main(["evaluate", "--data", str(tmp_path / "faces"), "--out", str(tmp_path / "out.csv")]) == 2
    assert "--split train expected; for a network of a run on these data, which set its test images apart itself, --parts" in capsys.readouterr().err


def test_a_run_on_data_without_a_split_is_measured_on_the_images_that_it_reported(tmp_path, capsys):
    "Evaluate and bench take the parts of the run: by its folder, or by its list for a file of weights."
    from fer_nb.bench import leaderboard
    from fer_nb.store import read_table
    for name, label, pixels in zip((ds := make_faces(210, seed=8, defects=None, balance="uniform")[0]).df.id, ds.df.label, ds.array()):
        (to := tmp_path / "faces" / label / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(to)
    small = ["--preset", "tiny", "--epochs", "1", "--quiet", "--set", "teachers=[]", "--set", "adversarial=null", "--set", "evaluation.n=20",
             "--set", "data.near_duplicates=false", "--set", "student.network=light"]
    data = ["--data", str(tmp_path / "faces")]
    for run, seed in (("a", "0"), ("b", "1")):
        assert main(["run", *data, "--out", str(tmp_path / run), "--seed", seed, *small]) == 0
    own = read_table(tmp_path / "a/results.csv")
    parts = read_table(tmp_path / "a/parts.csv", words=("id", "part", "split"))
    assert len(parts) == len(ds) and set(parts.part) <= {"trained on", "held out", "reported", "left out"}
    asked = [["--model", str(tmp_path / "a")],
             ["--model", str(tmp_path / "a/student_phase1.safetensors"), "--parts", str(tmp_path / "a/parts.csv")]]
    for k, model in enumerate(asked):
        capsys.readouterr()
        assert main(["evaluate", *data, *model, "--out", str(tmp_path / f"{k}.csv"), "--exact"]) == 0
        said = capsys.readouterr()
        assert "parts.csv: the splits of this run are taken" in said.err and "images of this data set" in said.out
        table = read_table(tmp_path / f"{k}.csv")
        same = [t[(t.metric == "accuracy") & (t.subset == "all") & (t.split == "test")] for t in (own[own.attack == "none"], table)]
        assert same[1].n.item() == (parts.part == "reported").sum() and same[1].value.item() in same[0].value.tolist()
    bench = ["bench", *data, "--sample", "0", "--no-own-finder", "--exact", "--out", str(tmp_path / "bench"), "--models"]
    assert main([*bench, str(tmp_path / "a")]) == 0
    assert leaderboard(tmp_path / "bench").n.tolist() == [(parts.part == "reported").sum()]
    assert main([*bench, f"{tmp_path / 'a'},{tmp_path / 'b'}"]) == 2 and "this run was trained on" in capsys.readouterr().err
    given = ["--parts", str(tmp_path / "a/parts.csv"), "--model", str(tmp_path / "b")]
    assert main(["evaluate", *data, *given, "--out", str(tmp_path / "y.csv")]) == 2 and "this run was trained on" in capsys.readouterr().err
    file = str(tmp_path / "b/student.safetensors")                                       # the run is the folder that it lies in
    assert main(["evaluate", *data, *given[:2], "--model", file, "--out", str(tmp_path / "y.csv")]) == 2
    assert "this run was trained on" in capsys.readouterr().err
    assert main([*bench, file]) == 0 and "b/parts.csv: the splits of this run are taken" in capsys.readouterr().err
    changed = read_table(tmp_path / "a/parts.csv", words=("id", "label", "part", "split"))
    changed.loc[0, "label"] = "sad" if changed.label[0] != "sad" else "happy"            # a label that was mended since
    changed.to_csv(tmp_path / "a/parts.csv", index=False)
    assert main(["evaluate", *data, "--model", str(tmp_path / "a"), "--out", str(tmp_path / "z.csv"), "--exact"]) == 0
    said = capsys.readouterr().err
    assert "1 of 210 images had other labels" in said and "the splits of this run are taken" in said
    assert main(["evaluate", *data, "--model", str(tmp_path / "a"), "--parts", str(tmp_path / "a/results.csv"), "--out", str(tmp_path / "x")]) == 2
    assert "the parts of a run" in capsys.readouterr().err


def test_a_fold_s_network_is_not_measured_on_the_data_s_own_test_split(tmp_path, capsys):
    "Folds ignore the splits that the data came with: some of the test images were trained on."
    from fer_nb import cli
    ds = make_faces(60, seed=0, defects=None, splits=(.6, 0, .4))[0]
    went = np.resize(["trained on", "held out", "reported"], len(ds))
    table = ds.df[["id", "label"]].assign(part=went, split=np.where(went == "reported", "test", "train"))
    (run := tmp_path / "fold-0").mkdir()
    table.to_csv(run / "parts.csv", index=False)
    (run / "student.safetensors").write_bytes(b"")
    test = (ds.df.split == "test").to_numpy()
    for name in (str(run), str(run / "student.safetensors")):
        with pytest.raises(DataError, match=f"held out, {(test & (went != 'reported')).sum()} of the {test.sum()} images of split test .*--parts"):
            _in_parts(ds, None, ["accurate", name])
        assert _in_parts(ds, run / "parts.csv", [name]).df.split.tolist() == table.split.tolist()
        assert _in_parts(ds, None, [name], "train") is ds
    table.assign(part=np.where(test, "reported", "trained on"), split=ds.df.split).to_csv(run / "parts.csv", index=False)
    assert _in_parts(ds, None, [str(run)]) is ds                      # a run that kept the data's splits


def test_a_list_of_other_images_that_are_numbered_alike_says_nothing(tmp_path):
    """Rows of two tables of pixels have the same ids; whose list it is, their labels tell."""
    ds = make_faces(60, seed=0, defects=None)[0]
    parts = ds.df[["id", "label"]].assign(split="train", part="trained on")
    parts.to_csv(tmp_path / "parts.csv", index=False)
    with pytest.raises(DataError, match="this run was trained on, or held out"):
        _in_parts(ds, None, [str(tmp_path)])
    others = ds.df.label.where(np.arange(60) % 2 == 0, np.roll(ds.df.label, 1))
    assert _in_parts(ds.assign(label=others), None, [str(tmp_path)]).df.equals(ds.assign(label=others).df)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_ended_from_outside_leaves_no_half_written_folder(csv_of_faces, tmp_path, number):
    "A batch system's SIGTERM, and a terminal that closes, end the command as Ctrl-C does; its work goes on at the next start."
    command = [sys.executable, "-m", "fer_nb", "run", "--data", str(csv_of_faces[0]), "--out", str(tmp_path / "run"), "--preset", "tiny",
               "--set", "teachers=[]", "--set", "data.near_duplicates=false"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(1200):
        if (tmp_path / "run.work").exists() or process.poll() is not None:
            break
        time.sleep(.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "interrupted; nothing is half-written" in said and "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["run.work"]


def test_outside_the_command_signals_are_as_before():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["formats"]) == 0
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("change, says", [
    ("data.folds=1000", "or fewer folds"), ("data.held=/nowhere.csv", "data.held=/nowhere.csv: no such file"), ("distillation.T={angry: 3}", "distillation.T is for angry"),
    ("distillation.tau=[]", "distillation.tau is for"), ("student.class_weights=[1,2]", "a number for each of angry"),
    ("student.network=landmarks", "a network that does, such as"), ("student.device=foo", "'foo' cannot be used here"), ("student.size=100000000000", "at most 4096 pixels")])
def test_a_plan_refuses_what_the_run_would(change, says, capsys):
    assert main(["demo", "--preset", "tiny", "--images", "140", "--dry-run", "--set", change]) == 2
    said = capsys.readouterr()
    assert says in said.err and "nothing was run" not in said.out
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("split, rare, more, refused", [
    (True, 4, (), True), (True, 5, (), False), (True, 4, ("data.held=list.csv",), False),   # that list holds out
    (False, 5, (), True), (False, 6, (), False), (False, 5, ("data.held=list.csv",), False), (False, 4, ("data.held=list.csv",), True)])
def test_a_plan_refuses_too_few_of_a_class_as_the_holdout_of_a_run_does(split, rare, more, refused, tmp_path, monkeypatch):
    from fer_nb.cli import _need_runnable
    from fer_nb.config import PRESETS, override
    from fer_nb.loaders import make_splits
    ds = make_faces(700, seed=4)[0]
    ds = ds.assign(split=np.where(ds.df.split == "train", "train", "test") if split else "train")
    few = np.flatnonzero((ds.df.label == "disgust").to_numpy() & (ds.df.split == "train").to_numpy())
    ds = ds.take(np.setdiff1d(np.arange(len(ds)), few[rare:]))
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"id": ds.df.id[ds.df.split == "train"][:200], "part": "held out"}).to_csv("list.csv", index=False)
    preset = override(PRESETS["tiny"], ["data.near_duplicates=false", *more])
    if not refused:
        return _need_runnable(preset, ds)
    with pytest.raises(DataError, match="class 'disgust' has .* fewer than 5 folds, of which one is held out") as planned:
        _need_runnable(preset, ds)
    with pytest.raises(DataError) as run:
        make_splits(ds, preset.data)
    if not more:
        assert str(planned.value) in str(run.value)


def test_a_list_of_a_clone_is_missed_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fer_nb.cli.read_data", lambda *a, **k: pytest.fail("was read"))
    held = ("--set", "data.held=results/fer2013-shipped/parts.csv")
    for label in ("happy", "sad"):
        (tmp_path / "faces/train" / label).mkdir(parents=True)
        Image.new("L", (48, 48)).save(tmp_path / "faces/train" / label / "a.png")
    for words in (("study", "harden"), ("run", "--preset", "tiny"), ("ship",)):
        assert main([*words, "--data", "faces", "--out", "out", *held]) == 2
        assert "parts.csv: no such file; a clone of the repository has it" in capsys.readouterr().err, words


def test_a_plan_of_as_many_folds_as_there_may_be_is_made(capsys):
    assert main(["demo", "--preset", "tiny", "--images", "700", "--dry-run", "--set", "data.folds=2"]) == 0
    assert "2 folds of" in capsys.readouterr().out

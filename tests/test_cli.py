"""The command as a shell user meets it: exit codes, one clear line, no half-written folder."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb.cli import main
from fer_nb.core import EMOTIONS, canonical_label

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
    ((HEADER, f"3.0,{PIXELS},Training"), ("row 2", "'3.0'")),
    ((HEADER, f"3,{PIXELS},Train"), ("row 2", "'Train'")),
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
        patch.setattr(studies, "LABEL_FIT", studies.Fit(epochs=1, bs=32))
        assert main(study) == 0 and "fold 3 of 3" in capsys.readouterr().out
        assert main(study) == 0 and "of 3" not in capsys.readouterr().out
    assert {"confident learning", "self-confidence", "loss in training"} < set(pd.read_csv(tmp_path / "s/labels.csv").ranking)
    assert len(pd.read_csv(tmp_path / "s/probabilities.csv")) == 210
    look = ["audit", "--data", str(data), "--exact", "--out", str(tmp_path / "a"), "--probs"]
    assert main([*look, str(tmp_path / "s/probabilities.csv")]) == 0
    assert "out-of-fold" in set(pd.read_csv(tmp_path / "a/issues.csv").how)
    assert main([*look, str(data), "--overwrite"]) == 2 and "columns id" in capsys.readouterr().err
    assert main(["study", "labels", "--data", str(data)]) == 2 and "--votes" in capsys.readouterr().err

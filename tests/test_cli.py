"""The command as a shell user meets it: exit codes, one clear line, no half-written folder."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_nb.cli import main

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

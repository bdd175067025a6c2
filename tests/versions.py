"""Install a wheel of the checkout with the oldest or the newest requirements and use it: python tests/versions.py oldest newest.

Each set is built in a virtual environment of its own (some gigabytes, a quarter of an hour); what came of it is a row of
results/install/matrix.csv. `tests/test_versions.py` does the same in the slow run.
"""
from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gates
import pandas as pd
from packaging.requirements import Requirement

ROOT, CFG = gates.ROOT, gates.build.settings(gates.ROOT)
MATRIX = ROOT / "results/install/matrix.csv"
SHOWN = ("torch", "torchvision", "fastai", "fastcore", "timm", "numpy", "pandas", "scipy", "scikit-learn", "pillow", "mediapipe")
PYTHON = {"oldest": "3.10", "newest": ""}  # the oldest bounds have no wheels for later versions; "": this one
USE = '''
import importlib, json, pkgutil, subprocess, sys
from importlib.metadata import version
import fer_nb
done = {}
light = "import fer_nb.models, sys; print([m for m in ('mediapipe', 'IPython', 'matplotlib', 'fastai', 'pandas') if m in sys.modules])"
done["light import"] = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True).stdout.strip() == "[]"
for m in pkgutil.iter_modules(fer_nb.__path__):
    if not m.name.startswith("_"):
        importlib.import_module(f"fer_nb.{m.name}")
done["every module"] = True
from dataclasses import replace
from fer_nb.config import Adversarial, Data, Distillation, Evaluation, Fit, Preset
from fer_nb.pipeline import run
from fer_nb.synth import make_faces
small = Fit(epochs=1, bs=32)
preset = Preset(Data(near_duplicates=False), (Fit("resnet18", 32, False, epochs=1, bs=32),), small, Distillation(views=1),
                adversarial=Adversarial(steps=1, fit=small), evaluation=Evaluation((0, 8 / 255), 2, 40))
out = run(make_faces(300, seed=0)[0], preset, "run", show=False)
done["audit, fit, distilled fit"] = (out / "report.html").stat().st_size > 10_000
print(json.dumps(done | {p: version(p) for p in sys.argv[1:]}))
'''


def wheel(
    folder: Path,  # where
) -> Path:         # the file
    "Build a wheel of the checkout."
    for name in ("fer_nb", "settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        where, what = folder / "source" / name, ROOT / name
        shutil.copytree(what, where, ignore=shutil.ignore_patterns("__pycache__")) if what.is_dir() else shutil.copy(what, where)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"],
                   check=True)
    return next(folder.glob("*.whl"))


def pins(
    which: str,    # "oldest" or "newest"
) -> list[str]:    # requirements beside the wheel
    "Every lower bound as a pin, or nothing: pip takes the newest by itself."
    if which == "newest":
        return []
    asked = [Requirement(r) for r in shlex.split(CFG["requirements"])]
    return [f"{r.name}=={next(s.version for s in r.specifier if s.operator == '>=')}" for r in asked]


def interpreter(
    which: str,       # "oldest" or "newest"
) -> str | None:      # a Python, or None where there is none of that version
    "The Python of a set."
    if not (version := PYTHON[which]):
        return sys.executable
    places = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    return next((p for p in places if p and subprocess.run([p, "--version"], capture_output=True).returncode == 0), None)


def attempt(
    which: str,             # "oldest" or "newest"
    folder: Path,           # for the environment
) -> dict[str, object]:     # a row of the matrix
    "Install and use. Raises `CalledProcessError` or `AssertionError` with what went wrong."
    python, home = interpreter(which), folder / "venv"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PIP_CONFIG_FILE": os.devnull}
    subprocess.run([python, "-m", "venv", home], check=True)

    def call(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(map(str, command))[:200]}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stdout

    bin_ = home / "bin"
    call(bin_ / "python", "-m", "pip", "install", "-q", wheel(folder), *pins(which))
    row: dict[str, object] = {"set": which, "python": call(bin_ / "python", "-c", "import platform; print(platform.python_version())").strip()}
    call(bin_ / "python", "-m", "pip", "check")
    call(bin_ / "python", "-c", "from fer_nb.synth import make_faces; from PIL import Image; "
         "Image.fromarray(make_faces(7, seed=0, defects=None)[0].image(0)).save('face.png')")
    assert len(json.loads(call(bin_ / "fer-nb", "predict", "face.png", "--no-crop", "--out", "json"))["faces"][0]["probs"]) == 7
    found = json.loads(call(bin_ / "python", "-W", "ignore", "-c", USE, *SHOWN).splitlines()[-1])
    assert all(v for v in found.values()), found
    row |= {p: found[p] for p in SHOWN} | {"pip check": "ok", "fer-nb predict": "ok"}
    return row | {k: "ok" for k in ("light import", "every module", "audit, fit, distilled fit")}


def main() -> None:
    "Try the sets that are named and write their rows."
    for which in sys.argv[1:] or list(PYTHON):
        with tempfile.TemporaryDirectory() as tmp:
            row = attempt(which, Path(tmp)) | {"remark": f"python tests/versions.py {which}, {datetime.date.today()}"}
        table = pd.read_csv(MATRIX, dtype=str, keep_default_na=False) if MATRIX.exists() else pd.DataFrame()
        keep = table[~table.remark.str.contains(re.escape(f"versions.py {which},"))] if len(table) else table
        pd.concat([keep, pd.DataFrame([row])], ignore_index=True).to_csv(MATRIX, index=False)
        print(row)


if __name__ == "__main__":
    main()

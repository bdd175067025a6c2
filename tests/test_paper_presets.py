"""The papers' presets: made of their clauses, tried whole on drawn faces, refused in words where they cannot begin."""
import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb import models, pipeline, plan
from fer_nb.cli import main
from fer_nb.config import (PAPERS, PRESETS, Adversarial, Augment, Data, Distillation, Evaluation, Fit, Preset, from_dict, override,
                           paper_rows, preset_of, to_dict, tried)
from fer_nb.core import EMOTIONS, ConfigError, DataError, DownloadError, ImageError
from fer_nb.data import FERData
from fer_nb.faces import FaceRefiner
from fer_nb.loaders import Originals, balanced, make_splits, paper_counts
from fer_nb.pipeline import capped, fold_parts, prepare, run
from fer_nb.synth import make_faces

CODES = {"fear": "AF", "angry": "AN", "disgust": "DI", "happy": "HA", "neutral": "NE", "sad": "SA", "surprise": "SU"}
TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def small_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path_factory.mktemp("cache")))


def kdef_tree(root: Path, people: int, side: int = 96) -> Path:
    "Drawn faces under KDEF's names: every person shows every emotion once."
    drawn = make_faces(people * 9, seed=3, size=96, balance="uniform", defects=None)[0]
    for label, code in CODES.items():
        rows = np.flatnonzero(drawn.df.label == label)[:people]
        for person, row in enumerate(rows, 1):
            folder = root / f"A{'FM'[person % 2]}{person:02}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.image(row)).convert("RGB").resize((side, side)).save(folder / f"{folder.name}{code}S.JPG")
    return root


def rafdb_tree(root: Path, each: int, side: int = 100) -> Path:
    "Drawn faces in RAF-DB's official layout."
    order = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
    drawn = make_faces(each * 9, seed=4, size=96, balance="uniform", defects=None)[0]
    (root / "basic/Image/aligned").mkdir(parents=True)
    (root / "basic/EmoLabel").mkdir()
    lines = []
    for code, label in enumerate(order, 1):
        for k, row in enumerate(np.flatnonzero(drawn.df.label == label)[:each]):
            name = f"{'test' if k % 4 == 0 else 'train'}_{code}{k:04}"
            Image.fromarray(drawn.image(row)).convert("RGB").resize((side, side)).save(root / f"basic/Image/aligned/{name}_aligned.jpg")
            lines.append(f"{name}.jpg {code}\n")
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("".join(lines))
    return root

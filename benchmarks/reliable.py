"""How far the recogniser's probabilities and its word "reliable" can be relied on: faces pasted into photographs, and spoiled.

    python benchmarks/reliable.py --fit        # doubts and limits from Training faces that the shipped networks were not trained on
    python benchmarks/reliable.py              # what they are worth on PublicTest, and on labelled photographs
"""
import argparse
import csv
import os
import pickle
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import FER2013, HERE, machine, save  # noqa: E402
from in_the_world import SCENES, SIZE, scene  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402

from fer_nb.core import EMOTIONS  # noqa: E402
from fer_nb.data import real_data  # noqa: E402
from fer_nb.predict import Network, Recogniser, as_image  # noqa: E402

CONDITIONS = ("as it is", "small", "dark", "blurred", "noisy", "mouth covered", "eyes covered", "turned")
PARTS = HERE.parent / "results/fer2013-shipped/parts.csv"   # of FER2013's rows: held out of the training, or a duplicate


def rows_of(
    part: str,   # "held out" (of Training) or "PublicTest"
    n: int,      # how many, drawn with seed 0
) -> np.ndarray:  # rows of FER2013
    "Faces that the shipped networks were not trained on, nor on a duplicate of them."
    parts = pd.read_csv(PARTS)
    if part == "held out":
        rows = parts.row[parts.part == "held out"].to_numpy()
    else:
        with np.load((real_data() or HERE.parents[1] / "shared/fer2013") / FER2013) as table:
            rows = np.flatnonzero((table["usage"] == part) & ~table["recovered"])
        rows = np.setdiff1d(rows, parts.row[parts.part == "duplicate"])
    return np.sort(np.random.default_rng(0).permutation(rows)[:n])


def covered(face: np.ndarray, what: str, rng: np.random.Generator) -> np.ndarray:
    "A face of 48 × 48 with a patch over its mouth or its eyes: grey, dark, or of some texture."
    (y, v), (x, u) = ((29, 46), (10, 38)) if what == "mouth covered" else ((12, 24), (5, 43))
    face, kind = face.copy(), rng.integers(3)
    patch = np.asarray(Image.fromarray(scene(SCENES[rng.integers(len(SCENES))])).convert("L"))[:v - y, :u - x]
    face[y:v, x:u] = (int(np.median(face)), int(rng.integers(0, 60)), patch)[kind]
    return face


def spoiled(
    face: np.ndarray,   # uint8 (48, 48)
    condition: str,     # of `CONDITIONS`
    seed: int,          # of place, size and strength
) -> tuple[np.ndarray, tuple[float, float], float]:   # photograph with the face in it, the face's middle and side
    "A face somewhere in a photograph of 640 × 480, under one condition."
    rng = np.random.default_rng(seed)
    low, high = (45, 95) if condition == "small" else (110, 260)
    side, canvas = round(float(np.exp(rng.uniform(np.log(low), np.log(high))))), scene(SCENES[rng.integers(len(SCENES))]).copy()
    x, y = rng.integers(0, SIZE[0] + 1 - side), rng.integers(0, SIZE[1] + 1 - side)
    strength = rng.uniform()
    face = covered(face, condition, rng) if "covered" in condition else face
    large = Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC)
    if condition == "blurred":
        large = large.filter(ImageFilter.GaussianBlur(side * (.02 + .05 * strength)))
    canvas[y:y + side, x:x + side] = np.asarray(large)[..., None]
    middle = np.array([x, y]) + side / 2
    if condition == "dark":
        canvas = (canvas * .03 * 8 ** strength).round().astype(np.uint8)
    if condition == "noisy":
        canvas = (canvas + rng.normal(0, 15 + 35 * strength, canvas.shape)).clip(0, 255).round().astype(np.uint8)
    if condition == "turned":
        angle, before = 360 * strength, np.array(canvas.shape[1::-1]) / 2
        canvas = np.asarray(Image.fromarray(canvas).rotate(angle, Image.Resampling.BICUBIC, expand=True))
        (c, s), d = (np.cos(np.radians(angle)), np.sin(np.radians(angle))), middle - before
        middle = np.array(canvas.shape[1::-1]) / 2 + (c * d[0] + s * d[1], -s * d[0] + c * d[1])
    return canvas, tuple(middle), side


def find(pixels: np.ndarray, rows: np.ndarray, conditions: tuple[str, ...], recognise: Recogniser) -> list[dict]:
    "The face that is found at the place of each pasted one, if there is one."
    seen = []
    for k, row in enumerate(rows):
        for condition in conditions if len(conditions) < 3 else (conditions[0], conditions[1 + k % (len(conditions) - 1)]):
            image, middle, side = spoiled(pixels[row], condition, int(row))
            near = [f for f in recognise._found(image) if np.hypot(*(f.box[:2] + f.box[2:] / 2 - middle)) < side / 2]
            seen.append({"row": int(row), "condition": condition, "found": max(near, key=lambda f: f.score, default=None)})
    return seen

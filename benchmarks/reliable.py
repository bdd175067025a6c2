"""How far the recogniser's probabilities and its word "reliable" can be relied on: faces pasted into photographs, and spoiled.

    python benchmarks/reliable.py --fit        # doubts and limits from Training faces that the shipped networks were not trained on
    python benchmarks/reliable.py              # what they are worth on PublicTest, and on labelled photographs
"""
import argparse
import csv
import os
import pickle
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import FER2013, HERE, machine, save  # noqa: E402
from in_the_world import SCENES, SIZE, scene  # noqa: E402
from PIL import Image, ImageFilter  # noqa: E402
from scipy.optimize import minimize  # noqa: E402
from sklearn.isotonic import IsotonicRegression  # noqa: E402

from fer_nb.core import EMOTIONS  # noqa: E402
from fer_nb.data import real_data  # noqa: E402
from fer_nb.faces import InRange  # noqa: E402
from fer_nb.metrics import ece  # noqa: E402
from fer_nb.predict import DOUBTS, Network, Recogniser, as_image, reasons_against, signs, temperature_factor  # noqa: E402
from fer_nb.shipped import BOTH, shipped_weights  # noqa: E402

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
        large = large.filter(ImageFilter.GaussianBlur(side * (.008 + .032 * strength)))
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
            near = [f for f in recognise._found(InRange(image)) if np.hypot(*(f.box[:2] + f.box[2:] / 2 - middle)) < side / 2]
            seen.append({"row": int(row), "condition": condition, "found": max(near, key=lambda f: f.score, default=None)})
    return seen


def measured(
    seen: list[dict],       # from `find`
    pixels: np.ndarray,     # of FER2013
    y: np.ndarray,          # positions in `EMOTIONS`
    names: tuple[str, ...], # shipped networks
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:   # a row a face with its signs; logits of those found, by network
    "What the recogniser measures of every face that it found, and what the networks say."
    nets, rows, crops = {name: Recogniser(name) for name in names}, [], []
    for s in seen:
        rows.append({"row": s["row"], "condition": s["condition"], "y": int(y[s["row"]]), "found": s["found"] is not None})
        if s["found"] is not None:
            image = spoiled(pixels[s["row"]], s["condition"], s["row"])[0]
            crops.append(nets[names[0]]._crop(InRange(image).image, s["found"]))
            rows[-1] |= signs(image, s["found"], crops[-1])
    logits = {name: np.concatenate([net.network.logits(net.network.pixels(crops[k:k + 64])) for k in range(0, len(crops), 64)]) for name, net in nets.items()}
    return pd.DataFrame(rows), logits


def softmax(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    "Probabilities at the temperatures t."
    e = np.exp((z - z.max(1, keepdims=True)) / np.reshape(t, (-1, 1)))
    return e / e.sum(1, keepdims=True)


def fit(table: pd.DataFrame, logits: dict[str, np.ndarray]) -> dict:
    "The weights of the doubts, for all networks together, and the limits of the signs."
    faces = table[table.found].reset_index(drop=True)
    starts = {name: d.start for name, d in DOUBTS.items() if name in ("side", "white", "fine", "eyes", "mouth", "evidence")}
    starts |= {"white": 32.0, "evidence": .82}
    below = np.stack([(1 - faces[name] / a).clip(0, 1) for name, a in starts.items()] + [(faces.nose - .3).clip(0, 1)], 1)
    base = {name: Network.read(name).temperature for name in logits}

    def loss(w: np.ndarray) -> float:
        probs = (softmax(z, base[name] * np.exp(below @ w)) for name, z in logits.items())
        return sum(-np.log(p[np.arange(len(p)), faces.y]).mean() for p in probs) / len(logits)

    names = [*starts, "nose"]
    found = minimize(loss, np.zeros(len(names)), bounds=[(0, None)] * len(names))
    weights = dict(zip(names, found.x.round(3).tolist()))
    both, limits = [], {}
    for name, z in logits.items():
        p = np.sort(softmax(z, base[name] * np.exp(below @ found.x)), 1)
        both.append(faces.assign(right=z.argmax(1) == faces.y, gap=p[:, -1] - p[:, -2]))
    both = pd.concat(both, ignore_index=True)
    for name in DOUBTS:
        some, up = both.dropna(subset=name), not DOUBTS[name].above
        curve = IsotonicRegression(increasing=up).fit(some[name], some.right)
        wrong = some[name][curve.predict(some[name]) < .5]
        limit = None if len(wrong) < 20 * len(logits) else wrong.max() if up else wrong.min()
        limits[name] = {"limit": None if limit is None else float(f"{limit:.3g}"), "faces beyond": len(wrong) // len(logits),
                        "right beyond": round(float(some.right[wrong.index].mean()), 3) if len(wrong) else None}
    return {"faces": len(faces), "loss": round(found.fun, 4), "loss without": round(loss(np.zeros(len(names))), 4), "weights": weights,
            "limits": limits}


def scores(probs: np.ndarray, y: np.ndarray, reliable: np.ndarray) -> dict[str, float]:
    "Accuracy, confidence, calibration, and what `reliable` separates."
    right, z = probs.argmax(1) == y, np.log(np.maximum(probs, 1e-12))
    return {"n": len(y), "accuracy": right.mean(), "mean probability": probs.max(1).mean(), "ece": ece(z, y), "reliable": reliable.mean(),
            "accuracy, reliable": right[reliable].mean(), "accuracy, others": right[~reliable].mean()}


def interval(faces: pd.DataFrame, probs: np.ndarray, times: int = 1000) -> list[float]:
    "The 95 % bootstrap interval of the ECE; photographs of one face are drawn together."
    rng, of = np.random.default_rng(0), faces.reset_index(drop=True).groupby("row").indices
    members = list(of.values())
    draws = [np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))]) for _ in range(times)]
    y, z = faces.y.to_numpy(), np.log(np.maximum(probs, 1e-12))
    return np.percentile([ece(z[d], y[d]) for d in draws], [2.5, 97.5]).round(4).tolist()


def curve(probs: np.ndarray, y: np.ndarray) -> list[dict]:
    "Accuracy of the surest share of faces."
    order, right = np.argsort(-probs.max(1), kind="stable"), probs.argmax(1) == y
    return [{"coverage": c / 10, "accuracy": round(float(right[order][:round(len(y) * c / 10)].mean()), 4)} for c in range(1, 11)]


def report(table: pd.DataFrame, logits: dict[str, np.ndarray]) -> dict:
    "The tables of each network: by condition, over all, the coverage curve, and the same without the doubts."
    out, found = {}, table[table.found].reset_index(drop=True)
    few = [{k: v for k, v in row.items() if k in DOUBTS and v == v} for row in found.to_dict("records")]
    for name, z in logits.items():
        base = Network.read(name).temperature
        probs, plain = softmax(z, base * np.array([temperature_factor(m) for m in few])), softmax(z, base)
        reliable = np.array([not reasons_against(m, p) for m, p in zip(few, probs)])
        rows = []
        for condition in (*dict.fromkeys(found.condition), "all"):
            part = np.flatnonzero((found.condition == condition) | (condition == "all"))
            share = table.found[(table.condition == condition) | (condition == "all")].mean()
            rows.append({"condition": condition, "found": share} | scores(probs[part], found.y.to_numpy()[part], reliable[part])
                        | {"ece without doubts": ece(np.log(np.maximum(plain[part], 1e-12)), found.y.to_numpy()[part])})
        rows[-1]["interval of ece"] = interval(found, probs)
        why = pd.Series([r for m, p in zip(few, probs) for r in reasons_against(m, p)]).value_counts() / len(found)
        out[name] = {"conditions": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
                     "curve": curve(probs, found.y.to_numpy()), "reasons": why.round(4).to_dict()}
    return out


def photographs() -> dict:
    "Labelled photographs in a folder with labels.csv: reported, never chosen by."
    folder = Path(os.environ.get("FER_NB_PHOTOS") or HERE.parents[1] / "shared/photos")
    if not (folder / "labels.csv").exists():
        return {}
    names = {"anger": "angry", "happiness": "happy", "sadness": "sad"}
    truth = {r["image"]: names.get(r["emotion"], r["emotion"]) for r in csv.DictReader(open(folder / "labels.csv"))}
    recognise, faces, y = Recogniser(), [], []
    for name, label in truth.items():
        found = recognise(as_image(folder / name))
        if found:
            faces.append(max(found, key=lambda f: f.box[2:].prod()))
            y.append(EMOTIONS.index(label))
    probs, y = np.array([list(f.probs.values()) for f in faces]), np.array(y)
    return {"photographs": len(truth), "found": round(len(y) / len(truth), 4)} | {
        k: round(float(v), 4) for k, v in scores(probs, y, np.array([f.reliable for f in faces])).items()}


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit on the faces held out of the training; else report on PublicTest")
    parser.add_argument("--images", type=int, help="faces (default: all that were held out; 1000 of PublicTest)")
    parser.add_argument("--out", type=Path, help="result file (default: reliable_fit.json or reliable.json, beside the script)")
    parser.add_argument("--found", type=Path, help="keep what was found in this file, or read it from there")
    args = parser.parse_args()
    with np.load((real_data() or HERE.parents[1] / "shared/fer2013") / FER2013) as data:
        pixels, y = data["pixels"], data["emotion"]
    if args.found and args.found.exists():
        seen = pickle.loads(args.found.read_bytes())
    else:
        rows = rows_of("held out" if args.fit else "PublicTest", args.images or (10_000 if args.fit else 1000))
        seen = find(pixels, rows, CONDITIONS, Recogniser())
        if args.found:
            args.found.write_bytes(pickle.dumps(seen))
    table, logits = measured(seen, pixels, y, ("accurate", "robust"))
    about = {"settings": {"part": "held out of Training" if args.fit else "PublicTest", "faces": table.row.nunique(),
                          "photographs": len(table)}, "machine": machine()}
    result = fit(table, logits) if args.fit else {"networks": report(table, logits), "labelled photographs": photographs()}
    print(pd.Series(result).to_string() if args.fit else pd.DataFrame(result["networks"]["accurate"]["conditions"]).round(3).to_string())
    print(result.get("labelled photographs"), result.get("limits"))
    out = args.out or HERE / ("reliable_fit.json" if args.fit else "reliable.json")
    save(out, about | {"results": result}, weights=shipped_weights(BOTH))


if __name__ == "__main__":
    main()

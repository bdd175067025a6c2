"""The recogniser in the world: faces of FER2013 pasted into photographs, turned, dark, noisy, in groups; pictures without people; times.

    python benchmarks/in_the_world.py --images 100                    # 100 faces of PublicTest
    python benchmarks/in_the_world.py --split Training --against OLD   # beside the code in the checkout OLD, in turns
"""
import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from common import FER2013, HERE, machine, save  # noqa: E402
from PIL import Image  # noqa: E402
from skimage import data  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402

from fer_nb.core import EMOTIONS  # noqa: E402
from fer_nb.data import real_data  # noqa: E402
from fer_nb.predict import Recogniser, as_image  # noqa: E402
from fer_nb.shipped import shipped_weights  # noqa: E402

SCENES = ("coffee", "chelsea", "rocket", "grass", "gravel", "brick", "hubble_deep_field", "coins")
EMPTY = (*SCENES, "cell", "clock", "colorwheel", "horse", "immunohistochemistry", "logo", "moon", "page", "retina", "text",
         "microaneurysms", "checkerboard")   # pictures of scikit-image without a person
SIZE = 640, 480


def fitted(im: Image.Image) -> np.ndarray:  # uint8 (480, 640, 3)
    "A picture cut to 640 × 480."
    k = max(SIZE[0] / im.width, SIZE[1] / im.height)
    return np.asarray(im.convert("RGB").resize((round(im.width * k + .5), round(im.height * k + .5))))[:SIZE[1], :SIZE[0]]


def scene(name: str) -> np.ndarray:  # uint8 (480, 640, 3)
    "A photograph of scikit-image or scikit-learn, cut to 640 × 480."
    if name in ("china", "flower"):
        return fitted(Image.fromarray(load_sample_image(f"{name}.jpg")))
    made = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    return fitted(Image.fromarray(np.asarray(made).astype(np.uint8) * (255 if name == "horse" else 1)))


def faces(
    split: str,   # "Training" or "PublicTest"
    n: int,       # how many, drawn with seed 0
) -> tuple[np.ndarray, np.ndarray]:  # uint8 (N, 48, 48), positions in `EMOTIONS`
    "Faces of FER2013 that FER+ did not drop as none."
    with np.load((real_data() or HERE.parents[1] / "shared/fer2013") / FER2013) as table:
        rows = np.flatnonzero((table["usage"] == split) & ~table["recovered"])
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:n])
        return table["pixels"][rows], table["emotion"][rows]


def pasted(
    faces: np.ndarray,   # uint8 (N, 48, 48)
    seed: int = 1,       # of places and sizes
    names: Sequence[str] = SCENES,   # of the photographs
) -> list[tuple[np.ndarray, tuple[float, float, int]]]:  # scene; middle and side of the face's image
    "Each face somewhere in a photograph, .17 to .4 of its width."
    rng, places = np.random.default_rng(seed), [scene(name) for name in names]
    found = []
    for face in faces:
        side, canvas = round(float(np.exp(rng.uniform(np.log(110), np.log(260))))), places[rng.integers(len(places))].copy()
        x, y = rng.integers(0, SIZE[0] + 1 - side), rng.integers(0, SIZE[1] + 1 - side)
        canvas[y:y + side, x:x + side] = np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))[..., None]
        found.append((canvas, (x + side / 2, y + side / 2, side)))
    return found


def noisy(image: np.ndarray, sigma: float = 40) -> np.ndarray:
    "With Gaussian noise."
    return (image + np.random.default_rng(7).normal(0, sigma, image.shape)).clip(0, 255).round().astype(np.uint8)


CONDITIONS = {"upright": lambda im: im, "90°": lambda im: np.rot90(im, 1), "180°": lambda im: np.rot90(im, 2),
              "270°": lambda im: np.rot90(im, 3), "135°": lambda im: np.asarray(Image.fromarray(im).rotate(135, expand=True)),
              "a tenth of the light": lambda im: (im * .1).round().astype(np.uint8), "noise of 40": noisy,
              "12 bits in 16": lambda im: (im.astype(np.uint16) * 16)}


def turned(where: tuple[float, float, int], quarters: int) -> tuple[float, float]:
    "The middle of the face in the scene turned by quarters."
    (x, y, _), (w, h) = where, SIZE
    return [(x, y), (y, w - x), (w - x, h - y), (h - y, x)][quarters]


def answers(recognise: Recogniser, scenes: list, y: np.ndarray, condition: str) -> dict:
    "What is found and said of every scene under one condition."
    said, rolls, probs, others = [], [], [], 0
    quarters = {"90°": 1, "180°": 2, "270°": 3}.get(condition, 0)
    for im, where in scenes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = recognise(np.ascontiguousarray(CONDITIONS[condition](im)))
        middle = (None, None) if condition == "135°" else turned(where, quarters)
        near = found if condition == "135°" else [f for f in found
                                                  if np.hypot(*(f.box[:2] + f.box[2:] / 2 - middle)) < where[2] / 2]
        best = max(near, key=lambda f: f.score, default=None)
        others += len(found) - len(near)
        said.append(-1 if best is None else EMOTIONS.index(best.emotion))
        rolls.append(np.nan if best is None else best.roll)
        probs.append(np.nan if best is None else best.probs[best.emotion])
    said, off = np.array(said), (np.array(rolls) + 90 * quarters + 180) % 360 - 180
    return {"said": said, "found": float((said >= 0).mean()), "accuracy": float((said == y).mean()), "others": others,
            "accuracy of those found": float((said == y)[said >= 0].mean()) if (said >= 0).any() else None,
            "turned by more than 60°": float((np.abs(off) > 60).sum() / len(y)) if condition != "135°" else None, "probs": probs}


def group(seed: int, share: float = .09, n: int = 30) -> np.ndarray:  # uint8 (960, 1280, 3)
    "Thirty faces of a photograph, each `share` of the longer side."
    portrait = data.astronaut()[0:250, 100:350]     # its face is .43 of this part
    side = round(1280 * share / .43)
    small = np.asarray(Image.fromarray(portrait).resize((side, side), Image.Resampling.LANCZOS))
    canvas = np.full((960, 1280, 3), 120, np.uint8)
    step, rng, k = 1280 / 6, np.random.default_rng(seed), 0
    middle = round(side * .68)                       # the part with the head
    cut = small[:, (side - middle) // 2:][:, :middle]
    cut = cut[:min(len(cut), 185)]
    for row in range(5):
        for col in range(6):
            x, y = (int(a + rng.integers(0, 5)) for a in (col * step + 8, row * 190))
            canvas[y:y + len(cut), x:x + middle] = cut[:960 - y, :1280 - x]
            k += 1
    return canvas


SPEED = """
import sys, time, numpy as np, warnings
warnings.simplefilter("ignore")
from PIL import Image
from fer_nb.predict import Recogniser
import in_the_world as w
recognise = Recogniser()
one, ten, none = w.timed()
print("ready", flush=True)
for line in sys.stdin:
    image, start = {"one": one, "ten": ten, "none": none}[line.strip()], time.process_time()
    for _ in range(10):
        faces = [recognise(im) for im in image]
    print((time.process_time() - start) / 10 / len(image), np.mean([len(f) for f in faces]), flush=True)
"""


def timed() -> tuple[list, list, list]:
    "Scenes of one face, of ten, and of none."
    few = faces("Training", 24)[0]
    one = [im for im, _ in pasted(few[:4], 3)]
    canvas = scene("grass").copy()
    for k, face in enumerate(few[4:14]):
        x, y = k % 5 * 126 + 3, k // 5 * 236 + 50
        canvas[y:y + 120, x:x + 120] = np.asarray(Image.fromarray(face).resize((120, 120)))[..., None]
    return one, [canvas], [scene(name) for name in ("coffee", "clock", "grass")]


def speed(trees: dict[str, Path], repeats: int) -> list[dict]:
    "Processor seconds a picture of 640 × 480, each checkout in a process of its own, taking turns."
    workers = {}
    for name, tree in trees.items():
        env = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{HERE}"}
        workers[name] = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SPEED], env=env, text=True, cwd=tree,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        while workers[name].stdout.readline().strip() != "ready":
            pass
    times = {(name, what): [] for name in trees for what in ("one", "ten", "none")}
    for turn in range(-1, repeats):
        for name, what in list(times)[::1 if turn % 2 else -1]:
            print(what, file=workers[name].stdin, flush=True)
            seconds, found = map(float, workers[name].stdout.readline().split())
            if turn >= 0:
                times[name, what].append((seconds, found))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return [{"code": name, "faces": what, "ms": round(1e3 * float(np.median([s for s, _ in t])), 2), "found": t[0][1]}
            for (name, what), t in times.items()]


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="PublicTest", help="Training or PublicTest (default)")
    parser.add_argument("--images", type=int, default=500, help="faces (default 500)")
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS), help="of the scenes")
    parser.add_argument("--against", type=Path, help="another checkout, for the times")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of times (0: none)")
    parser.add_argument("--out", type=Path, default=HERE / "in_the_world.json", help="result file")
    args = parser.parse_args()
    px, y = faces(args.split, args.images)
    scenes, recognise, rows = pasted(px), Recogniser(), []
    for condition in args.conditions:
        start = time.process_time()
        found = answers(recognise, scenes, y, condition)
        said, probs = found.pop("said"), np.array(found.pop("probs"))
        if condition == "upright":
            straight = said
        found["as upright"] = float((said == straight)[straight >= 0].mean())
        found["ms"] = round(1e3 * (time.process_time() - start) / len(y), 1)
        rows.append({"condition": condition} | {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
        print(rows[-1], flush=True)
    empty = {name: len(recognise(scene(name))) for name in EMPTY}
    print("without people:", {k: v for k, v in empty.items() if v})
    groups = [len(recognise(group(k))) for k in range(3)]
    print("groups of 30:", groups)
    photos = Path(os.environ.get("FER_NB_PHOTOS") or HERE.parents[1] / "shared/photos")
    seen = {q: [recognise(np.rot90(as_image(p), q).copy()) for p in sorted(photos.glob("*.jpg"))] for q in range(4)}
    names = {"anger": "angry", "happiness": "happy", "sadness": "sad"}
    if seen[0]:
        import csv
        truth = [r["emotion"] for r in csv.DictReader(open(photos / "labels.csv"))]
        truth = [names.get(t, t) for t in truth]
        best = {q: [max(f, key=lambda f: f.box[2:].prod()).emotion if f else None for f in s] for q, s in seen.items()}
        for q, said in best.items():
            print(f"photos turned by {90 * q}:", {"found": np.mean([s is not None for s in said]).round(3),
                  "accuracy": np.mean([s == t for s, t in zip(said, truth)]).round(3),
                  "as upright": np.mean([s == t for s, t in zip(said, best[0]) if t]).round(3)})
    here = Path(sys.modules["fer_nb"].__file__).parents[1]
    times = speed({"old": args.against.resolve(), "new": here} if args.against else {"new": here}, args.repeats) if args.repeats else []
    for row in times:
        print(row)
    save(args.out, {"settings": {"split": args.split, "images": len(y)}, "machine": machine(), "results": rows,
                    "faces in pictures without people": empty, "found of 30": groups, "times": times}, weights=shipped_weights())


if __name__ == "__main__":
    main()

"""The limits of the face finder on faces and pictures that they were set on, and on others.

    python benchmarks/finder.py                   # both parts
    python benchmarks/finder.py --parts hold      # the part on which nothing was set
"""
import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from common import HERE, machine, save  # noqa: E402
from in_the_world import CONDITIONS, faces, fitted, group, pasted, scene, turned  # noqa: E402
from PIL import Image  # noqa: E402

from fer_nb.faces import FaceFinder  # noqa: E402

BACKGROUNDS = {"fit": ("coffee", "rocket", "grass", "brick", "hubble_deep_field", "china"),
               "hold": ("chelsea", "gravel", "coins", "motorcycle", "flower")}
EMPTY = {"fit": (*BACKGROUNDS["fit"], "clock", "cell", "horse", "logo", "retina", "checkerboard"),
         "hold": (*BACKGROUNDS["hold"], "colorwheel", "immunohistochemistry", "moon", "page", "text", "microaneurysms")}
CASES = ("upright", "90°", "180°", "a tenth of the light", "noise of 40")


def views(name: str) -> list[np.ndarray]:   # uint8 (480, 640, 3) each
    "A picture without people, whole and in five parts of half its width, four of them in the corners."
    whole = scene(name)
    places = [(0, 0), (0, 240), (320, 0), (320, 240), (160, 120)]
    return [whole] + [fitted(Image.fromarray(whole[y:y + 240, x:x + 320])) for x, y in places]


def measured(finder: FaceFinder, part: str, n: int, cases: list[str]) -> list[dict]:
    "Found, false faces and processor time of each case."
    px, rows = faces("Training", 2 * n)[0][part == "hold"::2], []
    for case in cases:
        found, false, ms = [], 0, []
        quarters = {"90°": 1, "180°": 2, "270°": 3}.get(case, 0)
        for im, where in pasted(px, 1 + (part == "hold"), BACKGROUNDS[part]):
            im, start = np.ascontiguousarray(CONDITIONS[case](im)), time.process_time()
            them = finder(im)
            ms.append(1e3 * (time.process_time() - start))
            near = [f for f in them if np.hypot(*(f.box[:2] + f.box[2:] / 2 - turned(where, quarters))) < where[2] / 2]
            off = [abs((f.roll + 90 * quarters + 180) % 360 - 180) for f in near]
            found.append(any(o < 60 for o in off))
            false += len(them) - len(near)
        rows.append({"part": part, "case": case, "n": len(px), "found upright": round(float(np.mean(found)), 4),
                     "false faces": false, "ms": round(float(np.mean(ms)), 1)})
        print(rows[-1], flush=True)
    return rows


def without_people(finder: FaceFinder, part: str) -> dict:
    "Pictures without people in which a face is seen."
    said, ms, detections = [], [], 0
    detect = FaceFinder._detect

    def counted(*args: object) -> list:
        nonlocal detections
        detections += 1
        return detect(*args)

    FaceFinder._detect = counted
    for name in EMPTY[part]:
        for k, im in enumerate(views(name)):
            start = time.process_time()
            said += [f"{name}/{k}"] if finder(im) else []
            ms.append(1e3 * (time.process_time() - start))
    FaceFinder._detect = detect
    row = {"part": part, "case": "without people", "n": len(ms), "with a face": said,
           "no face": round(1 - len(said) / len(ms), 4), "ms": round(float(np.mean(ms)), 1),
           "detections": round(detections / len(ms), 1)}
    print(row, flush=True)
    return row


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=["fit", "hold"])
    parser.add_argument("--images", type=int, default=200, help="faces of Training a part (default 200)")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--out", type=Path, default=HERE / "finder.json", help="result file")
    args = parser.parse_args()
    finder, rows = FaceFinder(), []
    finder(scene("grass"))
    for part in args.parts:
        rows += measured(finder, part, args.images, args.cases) + [without_people(finder, part)]
        rows.append({"part": part, "case": "found of 30", "n": 3, "found": [len(finder(group(k))) for k in range(3)]})
        print(rows[-1])
    save(args.out, {"settings": {"images": args.images, "backgrounds": BACKGROUNDS}, "machine": machine(), "results": rows})


if __name__ == "__main__":
    main()

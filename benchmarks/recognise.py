"""From a photograph to emotions: what each step costs, and which share of faces is found."""
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from common import HERE, arguments, photograph, report, take_turns  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.data import astronaut, coffee  # noqa: E402

from fer_nb.faces import FaceFinder, FaceRefiner, face_square  # noqa: E402
from fer_nb.models import HyFER, weights_digest  # noqa: E402
from fer_nb.predict import Network, Recogniser, as_image  # noqa: E402
from fer_nb.shipped import shipped_weights  # noqa: E402

SHARES = (.05, .0625, .09, .125, .18, .25, .35)       # side of the face's box in longer sides of the picture
SMALLEST = (.25, .125, .0625)                 # settings of the finder


def cpu(
    work: Callable[[], object],  # what to time
    times: int = 5,              # calls a run
) -> Callable[[], float]:        # CPU seconds of one call, all threads: what one core needs for it
    "Time CPU, not the clock: other work on the machine does not count."
    def run() -> float:
        start = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - start) / times
    return run


def imported() -> float:  # CPU seconds
    "Start an interpreter that imports the recogniser, less one that imports nothing."
    def seconds(code: str) -> float:
        code = f"import time; {code}; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    return seconds("import fer_nb.predict") - seconds("pass")


def faces() -> list[np.ndarray]:  # uint8 (H, W, 3), a large face each
    "Every other labelled photograph where `FER_NB_PHOTOS` or `shared/photos` beside the checkout holds them, else one portrait."
    folder = Path(os.environ.get("FER_NB_PHOTOS") or HERE.parents[1] / "shared/photos")
    images = [as_image(p) for p in sorted(folder.glob("*.jpg"))[::2]] or [astronaut()[:260, 90:350]]
    return [np.asarray(Image.fromarray(im).convert("RGB")) for im in images]


def found(
    pictures: list[np.ndarray],  # from `faces`
) -> pd.DataFrame:               # share of faces found, by their size and the finder's setting
    "Paste faces that are found on their own into a grey 640 × 480 picture, at many sizes."
    whole, finders, rng = FaceFinder(.25), {s: FaceFinder(s, turn=False) for s in SMALLEST}, np.random.default_rng(0)
    big = [(im, max(f, key=lambda f: f.score)) for im in pictures if max(im.shape) >= 250 and (f := whole(im))]
    rows = []
    for share in SHARES:
        hits = dict.fromkeys(SMALLEST, 0)
        for im, face in big:
            side = max(8, round(640 * share / (face.box[2] / max(im.shape))))
            if side > 480:
                continue
            small = np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.LANCZOS))
            canvas = np.full((480, 640, 3), 110, np.uint8)
            x, y = rng.integers(0, 641 - side), rng.integers(0, 481 - side)
            canvas[y:y + side, x:x + side] = small
            middle = (face.box[:2] + face.box[2:] / 2) * side / max(im.shape) + (x, y)
            for s, finder in finders.items():
                hits[s] += any(np.abs(f.box[:2] + f.box[2:] / 2 - middle).max() < 640 * share / 2 for f in finder(canvas))
            hits["n"] = hits.get("n", 0) + 1
        if n := hits.pop("n", 0):
            rows.append({"face": share, "pictures": n} | {f"smallest={s:g}": round(k / n, 3) for s, k in hits.items()})
    return pd.DataFrame(rows)


def main() -> None:
    "Run the benchmark."
    args = arguments("recognise", __doc__, 0, 9).parse_args()
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    torch.set_num_threads(1)
    photo, recognise, portrait = photograph(), Recogniser(), Recogniser(finder=FaceFinder(smallest=.25))
    table = np.asarray(Image.fromarray(coffee()).resize((640, 427)))  # a cup on a table
    assert not recognise.finder(table)
    crops = [face_square(photo, face) for face in recognise.finder(photo)]
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "photo.jpg")
        Image.fromarray(photo).save(path, quality=90)
        work = {"decode": cpu(lambda: as_image(path)),
                "find, faces from 1/4 of the side": cpu(lambda: portrait.finder(photo)),
                "find, faces from 1/8 of the side": cpu(lambda: recognise.finder(photo)),
                "find, a photo without a face": cpu(lambda: recognise.finder(table)),
                "landmarker, framed": cpu(lambda: FaceRefiner()(photo), 3),
                "landmarker, as it is": cpu(lambda: FaceRefiner(pad=0)(photo), 3),
                "crop": cpu(lambda f=recognise.finder(photo)[0]: face_square(photo, f)),
                "network, one face": cpu(lambda: recognise.network(crops)),
                "network, a face of 32": lambda: cpu(lambda: recognise.network(crops * 32), 2)() / 32,
                "photo file to emotions, from 1/4": cpu(lambda: portrait(path)),
                "photo file to emotions, from 1/8": cpu(lambda: recognise(path)),
                "photo file to emotions, from 1/8, 16 together": lambda: cpu(lambda: recognise.batch([path] * 16), 1)() / 16}
        if onnx := os.environ.get("FER_NB_ONNX"):
            network = Network.read(onnx)
            work |= {"ONNX, one face": cpu(lambda: network(crops)), "ONNX, a face of 32": lambda: cpu(lambda: network(crops * 32), 2)() / 32}
        times = take_turns(work, args.repeats)
        times["import"] = [imported() for _ in range(args.repeats)]
    shares = found(faces())
    print(shares.to_string(index=False))
    settings = {"photo": "astronaut, 640 × 480, JPEG quality 90", "seconds": "CPU seconds of one core, a photo or face",
                "repeats": args.repeats, "network": recognise.network.name, "weights": weights_digest(HyFER.from_pretrained()),
                "found": shares.to_dict("records")}
    report(times, {"find, faces from 1/8 of the side": "landmarker, framed"}, settings, args.out, rate=1, weights=shipped_weights())


if __name__ == "__main__":
    main()

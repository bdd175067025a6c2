"""What the benchmarks share: taking turns, medians, the machine, and one small JSON file a benchmark."""
import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from skimage.data import astronaut

from fer_nb.core import EMOTIONS
from fer_nb.data import FERData, read_fer2013, real_data
from fer_nb.store import command_line, run_record, write_record
from fer_nb.synth import make_faces

HERE = Path(__file__).resolve().parent
FER2013 = "fer2013_train_public.npz"


def arguments(
    name: str,       # the benchmark's name
    what: str,       # one sentence for --help
    images: int,     # default number of images, 0 for all there are
    repeats: int,    # default number of repeats
) -> argparse.ArgumentParser:  # with --images, --repeats and --out
    "The options that every benchmark has."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--images", type=int, default=images,
                        help=f"number of images (default {images or 'all there are'})")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"runs of each contestant (default {repeats})")
    parser.add_argument("--out", type=Path, default=HERE / f"{name}.json",
                        help="result file (default: beside the script)")
    return parser


def clock_options(
    name: str,       # the benchmark's name
    what: str,       # one sentence for --help
) -> argparse.ArgumentParser:  # with --repeats, --threads, --batches and --out
    "The options of a benchmark that times networks by ONNX Runtime."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each network (default 15)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of a call (default 1 2)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="images at once (default 1 32)")
    parser.add_argument("--out", type=Path, default=HERE / f"{name}.json", help="result file (default: beside the script)")
    return parser


def fer2013(
    n: int,       # number of images, evenly picked; 0 for all there are
) -> FERData:     # real FER2013 where it is present, else synthetic faces
    "Training and PublicTest of FER2013 from the folder `FER_NB_DATA` or `shared/fer2013` beside the checkout, or `make_faces`."
    folder = real_data() or HERE.parents[1] / "shared/fer2013"
    ds = _from_arrays(folder / FER2013) if (folder / FER2013).is_file() else \
        read_fer2013(folder / "fer2013.csv").where(split=["train", "valid"]) if (folder / "fer2013.csv").is_file() else None
    if ds is None:
        return make_faces(n or 4000, seed=0)[0]
    return ds.take(np.linspace(0, len(ds) - 1, min(n, len(ds))).astype(int) if n else np.arange(len(ds)))


def _from_arrays(
    path: Path,   # pixels, emotion and usage in one .npz file
) -> FERData:     # which loads faster than the competition's CSV
    "FER2013 as arrays."
    with np.load(path, allow_pickle=False) as data:
        pixels, emotion, usage = data["pixels"], data["emotion"], data["usage"]
    df = pd.DataFrame({"id": np.arange(len(pixels)).astype(str), "label": np.array(EMOTIONS)[emotion],
                       "split": np.where(usage == "Training", "train", "valid")})
    return FERData(df, pixels, name="fer2013")


def photograph() -> np.ndarray:  # uint8 (480, 640, 3)
    "NASA's portrait of Eileen Collins, from scikit-image, as a 640-pixel photo."
    return np.asarray(Image.fromarray(astronaut()).resize((640, 640), Image.Resampling.LANCZOS).crop((0, 20, 640, 500)))


def sheet(
    images: np.ndarray,    # uint8 (N, 48, 48)
    pairs: pd.DataFrame,   # i, j, number
    path: Path,            # PNG file
    cols: int = 7,         # pairs in a line
    zoom: int = 2,         # pixels a pixel
) -> None:
    "Pairs side by side, numbered; a mirrored one is turned back."
    cell, line = (2 * 48 * zoom + 12, 48 * zoom + 16)
    page = Image.new("L", (cols * cell, -(-len(pairs) // cols) * line), 255)
    pen = ImageDraw.Draw(page)
    for k, row in enumerate(pairs.itertuples()):
        x, y = k % cols * cell, k // cols * line
        b = images[row.j][:, ::-1] if row.how == "mirror" else images[row.j]
        for n, image in enumerate((images[row.i], b)):
            page.paste(Image.fromarray(np.ascontiguousarray(image)).resize((48 * zoom,) * 2, Image.Resampling.BICUBIC),
                       (x + n * 48 * zoom, y + 14))
        pen.text((x, y), f"{row.number}  {row.how} {row.score:.3f}", fill=0)
    page.save(path)


def machine() -> dict[str, str | int]:  # what a reader needs to know, and nothing that says where it ran
    "The machine and the versions."
    return {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count() or 0,
            "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__}


def take_turns(
    contestants: dict[str, Callable[[], float | None]],  # name -> what to time; may return its own seconds
    repeats: int,                                        # runs of each
) -> dict[str, list[float]]:                             # name -> seconds of each run
    "Run the contestants in turns, every other round backwards, after one round that does not count."
    times = {name: [] for name in contestants}
    for turn in range(-1, repeats):
        for name in list(contestants) if turn % 2 else list(contestants)[::-1]:
            start = time.perf_counter()
            own = contestants[name]()
            seconds = time.perf_counter() - start if own is None else own
            if turn >= 0:
                times[name].append(seconds)
    return times


def report(
    times: dict[str, list[float]],       # from `take_turns`
    baseline: dict[str, str],            # contestant -> what it is compared with
    settings: dict[str, object],         # what was run
    out: Path,                           # result file
    rate: float | None = None,           # images a run, for a column images/s
    **about: object,                     # what else the record says, see `save`
) -> pd.DataFrame:                       # one row a contestant
    "Print and write medians and ratios; a ratio is the median of the ratios of runs of one round."
    rows = []
    for name, seconds in times.items():
        row = {"what": name, "median_s": statistics.median(seconds),
               "fastest_s": min(seconds), "slowest_s": max(seconds)}
        if rate:
            row["images_per_s"] = rate / row["median_s"]
        if name in baseline:
            ratios = [a / b for a, b in zip(seconds, times[baseline[name]])]
            row |= {"compared_with": baseline[name], "ratio": statistics.median(ratios)}
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.round(3).astype(object).where(table.notna(), "").to_string(index=False))
    print("settings:", settings)
    print("machine:", machine())
    rows = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    save(out, {"settings": settings, "machine": machine(), "results": rows}, **about)
    return table


def save(
    out: Path,                   # result file
    result: dict[str, object],   # what was measured
    **about: object,             # what else the record says: `weights=shipped_weights()` where it is about these
) -> None:
    "Write a result, and enter what made it into the record beside it."
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    words = command_line(sys.argv[1:]).removeprefix("fer-nb")
    write_record(out.parent, [out.name], run_record(f"python benchmarks/{Path(sys.argv[0]).name}{words}", **about))

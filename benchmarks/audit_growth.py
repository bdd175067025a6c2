"""How the time and the memory of the search for duplicates grow with the number of images; one process each.

CPU seconds are fitted, which other programs on the machine disturb least."""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments, fer2013, machine, save
from PIL import Image

from fer_nb.copies import CHANGES, change
from fer_nb.data import FERData
from fer_nb.duplicates import find_duplicates

PROJECTIONS = {"AffectNet-7/8 (414,798 + 5,500 images)": 414_798 + 5_500}


def blends(
    n: int,  # number of images
) -> FERData:  # distinct pictures, grey 48 × 48
    """Faces mixed in pairs, one of them moved, perhaps mirrored: as many different pictures as wanted. One picture
    in twenty is replaced by a changed copy of another, by the changes of `copies` in turn."""
    faces = fer2013(0).array()
    rng = np.random.default_rng(0)
    images = np.empty((n, 48, 48), np.uint8)
    for start in range(0, n, 1024):
        k = min(1024, n - start)
        a, b = faces[rng.integers(0, len(faces), (2, k))].astype(np.float32)
        b = np.roll(np.where(rng.random((k, 1, 1)) < .5, b[:, :, ::-1], b), tuple(rng.integers(-6, 7, 2)), (1, 2))
        share = rng.uniform(.35, .65, (k, 1, 1)).astype(np.float32)
        images[start:start + k] = share * a + (1 - share) * b
    changes = list(CHANGES["development"].values())
    for k in range(n // 20):
        images[n - 1 - k] = change(images[k], changes[k % len(changes)], np.random.default_rng(k))
    df = pd.DataFrame({"id": np.arange(n).astype(str), "label": "happy", "split": "train"})
    return FERData(df, images, name="blends")


def as_files(
    ds: FERData,   # grey pictures
    folder: Path,  # where to write them
    side: int,     # size of the files, in pixels
) -> FERData:      # the same pictures as JPEG files, larger and in colour
    "The dataset as files."
    paths = [folder / f"{k}.jpg" for k in range(len(ds))]
    for path, image in zip(paths, ds.array()):
        Image.fromarray(image).convert("RGB").resize((side, side)).save(path)
    return FERData(ds.df, paths, name="files")


def peak_mb() -> float:  # megabytes
    "The most memory that this process has had, and that the largest one it started has had."
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def one_size(
    n: int,       # number of images
    files: bool,  # as JPEG files of 224 pixels
) -> dict[str, object]:  # images, seconds, CPU seconds, peak memory with and before the search, pairs
    "Search once; meant for a process of its own."
    with tempfile.TemporaryDirectory() as folder:
        ds = as_files(blends(n), Path(folder), 224) if files else blends(n)
        before = peak_mb()
        start, cpu = time.perf_counter(), sum(os.times()[:4])                # with processes that the search starts
        duplicates = find_duplicates(ds)
        seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    peak = peak_mb()
    return {"images": n, "from": "224-px JPEG files" if files else "array", "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2), "peak_mb": round(peak), "before_mb": round(before), "pairs": len(duplicates)}


def main() -> None:
    "Run the benchmark."
    parser = arguments("audit_growth", __doc__, 0, 1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 32_000, 100_000, 200_000])
    parser.add_argument("--files", type=int, nargs="*", default=[2_000, 8_000], help="sizes read from JPEG files")
    parser.add_argument("--one", type=int, help="run this size only, in this process, and print its row")
    parser.add_argument("--as-files", action="store_true", help="with --one")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_size(options.one, options.as_files)))
        return
    rows = []
    for n, files in [(n, False) for n in options.sizes] + [(n, True) for n in options.files]:
        command = [sys.executable, __file__, "--one", str(n)] + ["--as-files"] * files
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    arrays = table[table["from"] == "array"]
    exponent = float(np.polyfit(np.log(arrays.images), np.log(arrays.cpu_seconds), 1)[0])
    terms = np.stack([arrays.images, arrays.images.astype(float) ** 2], 1) / arrays.cpu_seconds.to_numpy()[:, None]
    linear, square = np.linalg.lstsq(terms, np.ones(len(arrays)), rcond=None)[0]            # of relative errors
    kb = float(np.polyfit(arrays.images, arrays.peak_mb, 1)[0]) * 1024
    result = {"exponent": round(exponent, 2), "cpu_seconds": f"{linear:.3g} n + {square:.3g} n²",
              "peak_kb_per_image": round(kb, 2)}
    for name, n in PROJECTIONS.items():
        last = arrays.iloc[-1]
        result[name] = {"projected_cpu_seconds": round(linear * n + square * n**2),
                        "projected_peak_gb": round((last.peak_mb + kb / 1024 * (n - last.images)) / 1024, 1)}
    print(json.dumps(result, indent=1, ensure_ascii=False))
    save(options.out, {"machine": machine(), "rows": rows, "fit": result})


if __name__ == "__main__":
    main()

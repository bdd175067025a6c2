"""How time and memory grow with images, classes, teachers, views and folds; each size in a process of its own, one thread.

CPU seconds are fitted, which other programs on the machine disturb least; `nbs/tutorials/09_scale.ipynb` draws and projects them."""
import json
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import audit_growth
import numpy as np
import pandas as pd
import torch
from audit_growth import as_files, blends
from common import arguments, machine
from fastai.learner import Learner
from torch import nn

from fer_nb.augment import Augment
from fer_nb.core import EMOTIONS
from fer_nb.data import FERData, read_fer2013
from fer_nb.distill import EADD
from fer_nb.teachers import teacher_logits
from fer_nb.loaders import dataloaders, folds
from fer_nb.metrics import bootstrap_scores, scores
from fer_nb.duplicates import find_duplicates

IMAGES = [2_000, 4_000, 8_000, 16_000, 32_000]


def labelled(
    n: int,            # number of images
    classes: int = 7,  # number of classes
) -> FERData:          # distinct pictures, a fifth of them for validation
    "Pictures with labels in turn."
    ds, labels = blends(n), tuple(EMOTIONS[:classes]) + tuple(f"class{k}" for k in range(7, classes))
    df = ds.df.assign(label=np.array(labels)[np.arange(n) % classes], split=np.where(np.arange(n) % 5, "train", "valid"))
    return FERData(df, ds.array(), labels, "scale")


def linear(
    labels: tuple[str, ...],  # of the outputs
) -> nn.Module:               # costs next to nothing, so that what is around it is measured
    "A teacher."
    net = nn.Sequential(nn.AvgPool2d(12), nn.Flatten(), nn.Linear(16, len(labels)))
    net.labels, net.name = labels, "linear"
    return net


def logits_and_targets(
    n: int,        # images
    classes: int,  # classes
) -> tuple[np.ndarray, np.ndarray]:  # (N, C), (N,)
    "Noise."
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, classes)).astype(np.float32), np.arange(n) % classes


def exact(n: int) -> Callable:
    ds = blends(n)
    return lambda: find_duplicates(ds, None)


def near(n: int) -> Callable:
    ds = blends(n)
    return lambda: find_duplicates(ds)


def csv(n: int) -> Callable:
    ds, path = blends(n), Path(tempfile.mkdtemp()) / "fer2013.csv"
    with path.open("w") as f:
        f.write("emotion,pixels,Usage\n")
        f.writelines(f"{k % 7},{' '.join(map(str, im.ravel()))},Training\n" for k, im in enumerate(ds.array()))
    return lambda: (read_fer2013(path, splits=["train"]), path.unlink())


def files(n: int) -> Callable:
    ds = as_files(blends(n), Path(tempfile.mkdtemp()), 112)
    return lambda: ds.array()


def epoch(n: int) -> Callable:
    ds = labelled(n)
    dls = dataloaders(ds.where(split="train"), ds.where(split="valid"), augment=Augment())
    return lambda: [None for _ in dls.train]


def kept_logits(n: int, views: int = 1) -> Callable:
    ds = labelled(n)
    dls = dataloaders(ds.where(split="train"), ds.where(split="valid"), views=views)
    return lambda: teacher_logits(linear(ds.labels), dls.train, dls.valid)


def metrics(n: int, classes: int = 7) -> Callable:
    z, y = logits_and_targets(n, classes)
    return lambda: scores(z, y, [str(k) for k in range(classes)])


def bootstrap(n: int) -> Callable:
    z, y = logits_and_targets(n, 7)
    return lambda: bootstrap_scores(z, y, 50)


def split(n: int, k: int = 5) -> Callable:
    ds = labelled(n)
    return lambda: folds(ds, k, groups=np.arange(n))


def teachers(n: int) -> Callable:
    "EADD's part of a training step with `n` teachers; 100 batches of 128."
    ds = labelled(2_000)
    dls = dataloaders(ds.where(split="train"), ds.where(split="valid"), views=1)
    said = teacher_logits(linear(ds.labels), dls.train, dls.valid)
    learn = Learner(dls, linear(ds.labels), nn.CrossEntropyLoss(), cbs=[EADD([said] * n)])
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])

    def fit() -> None:
        with learn.no_logging():
            learn.fit(8)
    return fit


TASKS = {  # what is timed: how it is made ready, what grows, sizes
    "exact duplicates": (exact, "images", IMAGES), "near duplicates": (near, "images", IMAGES[:4]), "FER2013's CSV": (csv, "images", IMAGES),
    "JPEG files": (files, "images", [500, 1_000, 2_000, 4_000]), "one epoch of a loader": (epoch, "images", IMAGES),
    "cached logits, one view": (kept_logits, "images", IMAGES), "metrics": (metrics, "images", [10_000, 40_000, 160_000, 640_000]),
    "bootstrap, 50 resamples": (bootstrap, "images", [4_000, 8_000, 16_000, 32_000]), "folds": (split, "images", IMAGES),
    "metrics of 32,000 images": (lambda c: metrics(32_000, c), "classes", [7, 14, 28, 56]),
    "cached logits of 4,000 images": (lambda v: kept_logits(4_000, v), "views", [1, 2, 4, 8]),
    "EADD, 96 steps of 128": (teachers, "teachers", [1, 2, 4, 8]), "folds of 8,000 images": (lambda k: split(8_000, k), "folds", [2, 5, 10, 20]),
}


def memory(
    what: str,  # "VmRSS", now, or "VmHWM", the most since the last reset
) -> float:     # MB
    "What Linux says of this process."
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def one_size(
    task: str,  # a name in `TASKS`
    size: int,  # how many
) -> dict[str, object]:  # task, grows, size, CPU seconds, MB that the work took at most beyond its input
    "Do it once, after a small rehearsal; meant for a process of its own."
    make, grows, sizes = TASKS[task]
    make(sizes[0])()
    work = make(size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    before, cpu = memory("VmRSS"), time.process_time()
    work()
    return {"task": task, "grows": grows, "size": size, "cpu_seconds": round(time.process_time() - cpu, 4),
            "mb": round(memory("VmHWM") - before, 1)}


def main() -> None:
    "Run the benchmark."
    parser = arguments("scale", __doc__, 0, 1)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="only these; the others' rows are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    audit_growth.fer2013 = cache(audit_growth.fer2013)
    blends(2)  # read before the others are forked
    rows = [r for r in (json.loads(options.out.read_text())["rows"] if options.out.is_file() else []) if r["task"] not in options.tasks]
    for task in options.tasks:
        for size in TASKS[task][2]:
            with ProcessPoolExecutor(1, get_context("fork")) as pool:
                rows.append(pool.submit(one_size, task, size).result())
            print(rows[-1], flush=True)
        order = {t: k for k, t in enumerate(TASKS)}
        text = json.dumps({"machine": machine(), "rows": sorted(rows, key=lambda r: (order[r["task"]], r["size"]))}, indent=1)
        options.out.write_text(text + "\n")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

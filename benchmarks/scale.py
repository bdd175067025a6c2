"""How time and memory grow with images, classes, teachers, views and folds; each size in a process of its own, one thread.

CPU seconds are fitted, which other programs on the machine disturb least; `nbs/tutorials/09_scale.ipynb` draws and projects them."""
import json
import os
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
import torch.nn.functional as F
from audit_growth import as_files, blends
from common import arguments, machine
from fastai.learner import Learner
from PIL import Image
from torch import nn

from fer_nb.audit import audit
from fer_nb.augment import Augment
from fer_nb.core import EMOTIONS, progress
from fer_nb.data import FERData, read_fer2013, read_folder
from fer_nb.distill import EADD
from fer_nb.teachers import teacher_logits
from fer_nb.loaders import dataloaders, folds
from fer_nb.metrics import bootstrap_scores, scores
from fer_nb.duplicates import find_duplicates
from fer_nb.store import run_record, write_record
from fer_nb.synth import make_faces

IMAGES = [2_000, 4_000, 8_000, 16_000, 32_000]
AFFECTNET = 287_651  # training images of AffectNet-8
SHARES = [AFFECTNET // 2**k for k in range(6, -1, -1)]
FOLDER = Path(tempfile.gettempdir()) / "fer_nb_scale"


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


def drawn_files(
    n: int,        # number of images
    folder: Path,  # where they are, or are written; others that are there stay
) -> None:
    "Drawn faces, repeated with changes, as colour JPEG files of 224 pixels in split and class folders."
    faces = make_faces(2_000, seed=0, defects=None, size=96)[0]
    pixels, labels = faces.array(), faces.df.label.to_numpy()
    for start in progress(range(0, n, 256), "files", -(-n // 256)):
        rng, k = np.random.default_rng(start), min(256, n - start)
        rows = rng.integers(0, len(pixels), (2, k))
        a, b = pixels[rows].astype(np.float32)
        b = np.roll(np.where(rng.random((k, 1, 1)) < .5, b[:, :, ::-1], b), tuple(rng.integers(-12, 13, 2)), (1, 2))
        share, tint = rng.uniform(.4, .7, (k, 1, 1)), rng.uniform(.7, 1, (k, 1, 1, 3))
        mixed = ((share * a + (1 - share) * b)[..., None] * tint).astype(np.uint8)
        for at, image, label in zip(range(start, start + k), mixed, labels[rows[0]]):
            path = folder / ("valid" if at % 20 == 0 else "train") / label / f"{at:07}.jpg"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR).save(path, quality=70)


def linked(
    n: int,  # number of images, the first of those in FOLDER
) -> Path:   # a folder that holds them alone
    "The same files in a folder of their own, without a copy."
    drawn_files(n, FOLDER) if not next(FOLDER.glob(f"*/*/{n - 1:07}.jpg"), None) else None
    folder = FOLDER.parent / f"{FOLDER.name}_{n}"
    for path in FOLDER.glob("*/*/*.jpg") if not folder.exists() else ():
        if int(path.stem) < n:
            new = folder / path.relative_to(FOLDER)
            new.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, new)
    return folder


def audited(n: int) -> Callable:
    folder = linked(n)
    return lambda: audit(read_folder(folder), cache=False)


def steps(n: int) -> Callable:
    "200 steps of 32 images from files, whose pixels are kept first where they fit."
    ds = read_folder(linked(n))

    def work() -> None:
        dls = dataloaders(ds.where(split="train"), ds.where(split="valid").take(range(32)), 32, Augment())
        net = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(ds.labels)))
        opt, done = torch.optim.SGD(net.parameters(), .01), 0
        while done < 200:
            for x, y in dls.train:
                F.cross_entropy(net(x), y).backward()
                opt.step()
                opt.zero_grad()
                if (done := done + 1) == 200:
                    return
    return work


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
    "audit of 224-px JPEG files": (audited, "images", SHARES), "200 steps from 224-px JPEG files": (steps, "images", SHARES),
}
LARGE = {"audit of 224-px JPEG files", "200 steps from 224-px JPEG files"}  # half an hour, and 3 GB of files


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
    if task not in LARGE:
        make(sizes[0])()
    work = make(size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
    before, cpu = memory("VmRSS"), time.process_time()
    work()
    return {"task": task, "grows": grows, "size": size, "cpu_seconds": round(time.process_time() - cpu, 4),
            "mb": round(memory("VmHWM") - before, 1)} | ({"peak_mb": round(memory("VmHWM"), 1)} if task in LARGE else {})


def main() -> None:
    "Run the benchmark."
    parser = arguments("scale", __doc__, 0, 1)
    parser.add_argument("--tasks", nargs="+", default=[t for t in TASKS if t not in LARGE], choices=TASKS, metavar="TASK",
                        help="only these; the others' rows are kept; those that are left out without it: " + ", ".join(sorted(LARGE)))
    parser.add_argument("--sizes", type=int, nargs="+", help="only these sizes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the JPEG files are, or are written")
    options = parser.parse_args()
    globals()["FOLDER"] = options.folder
    torch.set_num_threads(1)
    audit_growth.fer2013 = cache(audit_growth.fer2013)
    blends(2)  # read before the others are forked
    rows = [r for r in (json.loads(options.out.read_text())["rows"] if options.out.is_file() else []) if r["task"] not in options.tasks]
    for task in options.tasks:
        for size in options.sizes or TASKS[task][2]:
            with ProcessPoolExecutor(1, get_context("fork")) as pool:
                rows.append(pool.submit(one_size, task, size).result())
            print(rows[-1], flush=True)
        order = {t: k for k, t in enumerate(TASKS)}
        text = json.dumps({"machine": machine(), "rows": sorted(rows, key=lambda r: (order[r["task"]], r["size"]))}, indent=1)
        options.out.write_text(text + "\n")
    write_record(options.out.parent, [options.out.name], run_record(f"python benchmarks/{options.out.stem}.py"))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

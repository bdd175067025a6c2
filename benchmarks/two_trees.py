"""The step of SQS, the epoch of EADD and the batches of a loader under two checkouts of the package, in pairs: what a change costs.

    python benchmarks/two_trees.py OLD NEW      # folders with fer_nb and benchmarks in them

Each tree runs in a process of its own, which lives through all pairs; the two take turns, every other pair backwards. Printed
are the medians and the median of the ratios, new to old, with the 95 % interval of its bootstrap.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

KINDS = ("SQS", "EADD, cached", "EADD, asked", "plain", "batches: geometry", "batches: colour", "batches: erased", "batches: texture")
WORKER = """
import argparse, sys, time, torch
from functools import partial
import common, eadd_epoch, sqs_step, stopwatch
if sys.argv[1] == "cpu":
    stopwatch.time = argparse.Namespace(perf_counter=time.process_time)
from fer_nb.models import create_teacher
from fer_nb.teachers import teacher_logits
n = int(sys.argv[2])
sqs = argparse.Namespace(bs=64, variant="light_64")
eadd = argparse.Namespace(bs=64, student="light")
ds = common.fer2013(n + 2)
torch.manual_seed(1)
teacher = create_teacher("efficientnet_lite0", pretrained=False, input_size=64).requires_grad_(False).eval()
dls = eadd_epoch.loaders(ds, eadd.bs)
kept = teacher_logits(teacher, dls.train, dls.valid)
from fer_nb.augment import Augment
from fer_nb.core import keep_freed_memory
from fer_nb.data import resized
from fer_nb.loaders import ReplayLoader
keep_freed_memory()
large = resized(ds.take(range(64)), 224)
large = large.replace(images=large.array()[..., None].repeat(3, 3))
changes = {"geometry": {}, "colour": {"brightness": 0.1, "contrast": 0.2}, "erased": {"erase": 0.5, "erase_size": (0.14, 0.57)},
           "texture": {"brightness": 0.15, "contrast": 0.25, "noise": 0.03, "blur": 0.7}}

def batches(name):  # 256 colour images of 224 pixels, made and thrown away
    loader, start = ReplayLoader(large, 32, True, Augment(**changes[name])), time.process_time()
    for _ in range(4):
        for batch in loader:
            pass
    return time.process_time() - start

run = {f"batches: {name}": (lambda name=name: batches(name)) for name in changes}
run |= {"SQS": lambda: sqs_step.epoch(ds, sqs, sqs_step.SQS), "EADD, cached": lambda: eadd_epoch.epoch(ds, eadd, [kept], {}, ""),
       "EADD, asked": lambda: eadd_epoch.epoch(ds, eadd, [teacher], {}, ""), "plain": lambda: eadd_epoch.epoch(ds, eadd, [], {}, "")}
print("ready", flush=True)
for line in sys.stdin:
    print("seconds", run[line.strip()](), flush=True)
"""


class Tree:
    "A process that imports the package from one folder."

    def __init__(
        self,
        folder: str,   # a checkout
        clock: str,    # "wall" or "cpu"
        images: int,   # of an epoch
    ):
        folder = Path(folder).resolve()
        env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'benchmarks'}", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, clock, str(images)], env=env, text=True, cwd=folder,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer("ready")

    def answer(
        self,
        word: str,     # the first of the line
    ) -> list[str]:    # the others
        "The next line that begins with this word."
        for line in self.process.stdout:
            first, *others = line.split() or [""]
            if first == word:
                return others
        raise SystemExit("a tree's process has ended")

    def seconds(
        self,
        kind: str,     # one of `KINDS`
    ) -> float:
        "Run one epoch."
        print(kind, file=self.process.stdin, flush=True)
        return float(self.answer("seconds")[0])


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", help="a checkout")
    parser.add_argument("new", help="another one")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of runs (default 20)")
    parser.add_argument("--images", type=int, default=256, help="images of an epoch (default 256)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that is not idle")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="what is timed (default all)")
    options = parser.parse_args()
    trees, rng = [Tree(folder, options.clock, options.images) for folder in (options.old, options.new)], np.random.default_rng(0)
    for kind in options.kinds:
        times = [[], []]
        for pair in range(-1, options.pairs):
            for k in (0, 1) if pair % 2 else (1, 0):
                seconds = trees[k].seconds(kind)
                if pair >= 0:
                    times[k].append(seconds)
        ratios = np.divide(times[1], times[0])
        low, high = np.quantile(np.median(rng.choice(ratios, (4000, len(ratios))), axis=1), (0.025, 0.975))
        print(json.dumps({"what": kind, "old_s": round(statistics.median(times[0]), 4), "new_s": round(statistics.median(times[1]), 4),
                          "ratio": round(float(np.median(ratios)), 4), "low": round(low, 4), "high": round(high, 4),
                          "pairs": options.pairs, "clock": options.clock}), flush=True)


if __name__ == "__main__":
    main()

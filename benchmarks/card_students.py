"""Teachers, students and robust students on a rented card, several processes at once, in three steps that fit into minutes.

    python benchmarks/card_students.py FOLDER --minutes 9                 # results in FOLDER/out
    python benchmarks/card_students.py FOLDER --device cpu --tiny         # a trial of the script itself: one epoch of each

FOLDER holds `fer2013.csv` and `fer2013new.csv`. Every network is made by `fer-nb ship`, so that its card says how; the three
steps are the teachers, the students that they teach, and the students under attack; students without teachers go on through the
first two. What is not finished when its time is over is ended, and the next step begins with what is there. Small networks leave
a card idle while Python prepares their next batch, so the fits share the card.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def presets(
    o: argparse.Namespace,   # epochs of each step, held
) -> dict:                   # name -> (first step, last step, settings of `fer-nb ship`, its options)
    "All networks, in order."
    from fer_nb.config import Adversarial, Distillation, Fit
    from fer_nb.hyfer_studies import RECIPE
    voters = Distillation(alpha=0.5, T=2.0, views=8, cached_views="mean")
    fit = replace(RECIPE.student, bs=o.bs, lr=o.lr)
    base = replace(RECIPE, data=replace(RECIPE.data, held=o.held), student=replace(fit, epochs=o.epochs[1]))
    large, found = replace(fit, epochs=o.epochs[0], stage_drop=0.1, lr=0.75 * o.lr), {}
    for name, seed in (("large_res", 0), ("large_vgg", 0), ("large_half", 0), ("large_res", 1)):
        own = replace(base, teachers=(Fit("annotators"),), distillation=voters, student=replace(large, network=name))
        found[f"{name}-{seed}"] = 0, 0, own, ["--student", "accurate", "--seed", str(seed)]
    found["alone-0"] = 0, 1, base, ["--student", "accurate"]
    found["ferplus-0"] = 0, 1, replace(base, student=replace(base.student, soft="votes")), ["--student", "ferplus"]
    taught = replace(base, teachers=(Fit("annotators"),),
                     distillation=Distillation(alpha=0.3, T=2.0, views=o.views, cached_views="each"))
    attacked = replace(fit, network="light", epochs=o.epochs[2], lr=o.lr / 3, stage_drop=None, keep="last",
                       augment=replace(fit.augment, rotate=10.0, translate=0.05, scale=(0.9, 1.1), erase=0.25))
    robust = replace(taught, distillation=voters, adversarial=Adversarial(("pgd",), 3 / 255, 2, 0.7, True, attacked))
    for seed in range(o.seeds):
        own = ["--seed", str(seed), "--teachers"]
        found[f"taught-{seed}"] = 1, 1, taught, ["--student", "accurate", *own]
        found[f"robust-{seed}"] = 2, 2, robust, ["--student", "robust", *own, "--start", f"taught-{seed}"]
    return found


def command(
    name: str,               # of a network
    settings: object,        # its preset
    options: list[str],      # of `fer-nb ship`
    o: argparse.Namespace,
) -> list[str]:              # of the process
    "The command of a network; its settings lie in a file beside it."
    from fer_nb.config import to_dict
    files = [o.out / f"{part}.safetensors" for part in o.done if part.startswith("large")] if "--teachers" in options else []
    options = [word for word in options if word != "--teachers"]
    if "--start" in options:
        start = o.out / f"{options[-1]}.safetensors"
        options, files = [*options[:-2], "--start", str(start), "--held", str(o.held)], [*files, start]
        settings = replace(settings, student=replace(settings.student, network=str(start), stage_drop=None))
    values = to_dict(settings)
    values["student"]["network"] = settings.student.network
    config = o.out / f"{name}.json"
    config.write_text(json.dumps(values, indent=1))
    words = [sys.executable, "-m", "fer_nb", "ship", "--data", str(o.folder / "fer2013.csv"), "--votes", str(o.folder / "fer2013new.csv"),
             "--config", str(config), "--anyway", "--overwrite", "--out", str(o.out / name), *options]
    words += [word for path in files for word in ("--teacher", str(path))]
    return words + (["--device", o.device] if o.device else []) + ["--fast-math"] * (not str(o.device).startswith("cpu"))


def step(
    number: int,             # of the step
    o: argparse.Namespace,
    ends: float,             # when what is not finished is ended, by `time.monotonic`
) -> dict:                   # name -> seconds, or why it has none
    "Begin the networks of a step, and wait for those that end with it."
    said, of = {}, presets(o)
    for name, (first, _, settings, options) in of.items():
        if first != number or o.only and name not in o.only:
            continue
        if "--start" in options and options[-1] not in o.done:
            said[name] = f"left: {options[-1]} is not there"
            continue
        log = open(o.out / f"{name}.log", "w")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        o.running[name] = time.monotonic(), subprocess.Popen(command(name, settings, options, o), cwd=ROOT, stdout=log, stderr=log, env=env)
    while any(of[name][1] <= number for name in o.running):
        for name, (began, process) in list(o.running.items()):
            late = time.monotonic() > ends and of[name][1] <= number
            if process.poll() is not None or late:
                process.kill()
                process.wait()
                said[name] = round(time.monotonic() - began, 1) if process.returncode == 0 else f"ended with {process.returncode}"
                if process.returncode == 0:   # under a name of its own, which records and cards show
                    shutil.copy2(next((o.out / name).glob("*.safetensors")), o.out / f"{name}.safetensors")
                    o.done.append(name)
                print(f"step {number + 1}: {name}: {said[name]}", flush=True)
                del o.running[name]
        time.sleep(0.2)
    return said


def main() -> None:
    "All steps, and a report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="with the data")
    p.add_argument("--out", type=Path, help="results (default: FOLDER/out)")
    p.add_argument("--device", help="cuda, cpu (default: CUDA where there is a card)")
    p.add_argument("--held", default="results/fer2013-shipped/parts.csv", help="what is held out (default: as of the shipped networks)")
    p.add_argument("--minutes", type=float, default=9, help="in all (default 9)")
    p.add_argument("--shares", type=float, nargs=3, default=(0.42, 0.40, 0.18), help="of the time, one a step")
    p.add_argument("--epochs", type=int, nargs=3, default=(50, 80, 16), help="of teachers, students, robust students")
    p.add_argument("--views", type=int, default=30, help="cached views of each image")
    p.add_argument("--seeds", type=int, default=3, help="of students and robust students")
    p.add_argument("--bs", type=int, default=256)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--only", nargs="*", default=[], help="names of networks; default: all")
    p.add_argument("--tiny", action="store_true", help="one epoch of each, one seed, two views")
    o = p.parse_args()
    if o.tiny:
        o.epochs, o.seeds, o.views, o.minutes = (1, 1, 1), 1, 2, 1e6
    o.folder, o.running = o.folder.resolve(), {}
    o.out = (o.out or o.folder / "out").resolve()
    o.out.mkdir(parents=True, exist_ok=True)
    o.done = [path.stem for path in sorted(o.out.glob("*.safetensors"))]
    began, report = time.monotonic(), {}
    for number, share in enumerate(o.shares):
        ends = began + 60 * o.minutes * sum(o.shares[:number + 1]) / sum(o.shares)
        report[f"step {number + 1}"] = step(number, o, ends)
        (o.out / "students.json").write_text(json.dumps(report | {"done": o.done}, indent=1))


if __name__ == "__main__":
    main()

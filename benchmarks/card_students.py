"""Teachers, students and robust students on a rented card, several fits at once, in three steps that fit into minutes.

    python benchmarks/card_students.py FOLDER --minutes 9                 # results in FOLDER/out
    python benchmarks/card_students.py FOLDER --device cpu --tiny         # a trial of the script itself: one epoch of each

FOLDER holds `fer2013.csv` and `fer2013new.csv`. Every network is made by the command `fer-nb ship`, so that its card says how. The
three steps are the teachers, the students that they teach, and the students under attack; students without teachers go on through
the first two. Small networks leave a card idle while Python prepares their next batch, so several fits share it, each in a process
of its own; what all of them read is read once, before they begin. The number of epochs of a step is what its time allows by the
speed that was measured in the first seconds; `--epochs` says it instead. What is not finished when its time is over is ended.
"""
from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGE = ("large_res", "large_vgg", "large_half")
STEPS = 105        # of an epoch of FER2013's Training, in batches of 256
HOST = 0.023       # seconds that Python needs for a step (beside an H200, seven fits at once)
SHARED = 1.3       # what sharing a card costs: a guess
LEAST, MOST = (24, 30, 6), (60, 100, 20)   # epochs of each step


# ---------------------------------------------------------------- what is fitted

def presets(
    o: argparse.Namespace,   # epochs of each step, held
) -> dict:                   # name -> (first step, last step, settings of `fer-nb ship`, its options)
    "All networks, in order."
    from fer_nb.config import Adversarial, Distillation, Fit
    from fer_nb.hyfer_studies import RECIPE
    voters = Distillation(alpha=0.5, T=2.0, views=8, cached_views="mean")
    fit = replace(RECIPE.student, bs=o.bs, lr=o.lr)
    base = replace(RECIPE, data=replace(RECIPE.data, held=o.held), student=replace(fit, epochs=o.epochs[1]))
    found = {}
    for name in LARGE:
        student = replace(fit, network=name, epochs=o.epochs[0], stage_drop=0.1, lr=0.75 * o.lr)
        own = replace(base, teachers=(Fit("annotators"),), distillation=voters, student=student)
        found[f"{name}-0"] = 0, 0, own, ["--student", "accurate"]
    found["alone-0"] = 0, 1, base, ["--student", "accurate"]
    found["ferplus-0"] = 0, 1, replace(base, student=replace(base.student, soft="votes")), ["--student", "ferplus"]
    taught = replace(base, teachers=(Fit("annotators"),),
                     distillation=Distillation(alpha=0.3, T=2.0, views=o.views, cached_views="each"))
    attacked = replace(fit, network="light", epochs=o.epochs[2], lr=o.lr / 3, stage_drop=None, keep="last",
                       augment=replace(fit.augment, rotate=10.0, translate=0.05, scale=(0.9, 1.1), erase=0.25))
    robust = replace(taught, distillation=replace(voters, alpha=0.3),
                     adversarial=Adversarial(("pgd",), 3 / 255, 2, 0.7, True, attacked))
    for seed in range(o.seeds):
        own = ["--seed", str(seed), "--teachers"]
        found[f"taught-{seed}"] = 1, 1, taught, ["--student", "accurate", *own]
        found[f"robust-{seed}"] = 2, 2, robust, ["--student", "robust", *own, "--start", f"taught-{seed}"]
    return found


def words_of(
    name: str,               # of a network
    settings: object,        # its preset
    options: list[str],      # of `fer-nb ship`
    o: argparse.Namespace,
) -> list[str]:              # of the command `fer-nb`
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
    words = ["ship", "--data", str(o.folder / "fer2013.csv"), "--votes", str(o.folder / "fer2013new.csv"), "--config", str(config),
             "--anyway", "--overwrite", "--out", str(o.out / name), *options]
    words += [word for path in files for word in ("--teacher", str(path))]
    return words + (["--device", o.device] if o.device else []) + ["--fast-math"] * (not str(o.device).startswith("cpu"))


# ---------------------------------------------------------------- processes

def begun(
    work: object,     # what the process does; its value is its exit status
    log: Path,        # gets what it says
) -> int:             # its number
    "A process that has what this one has read and imported. CUDA must not have begun here."
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        with open(log, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            status = work() or 0
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def card_seconds(
    to: Path,            # JSON: network -> seconds of a batch of 256
    device: str | None,  # None: CUDA where there is a card
) -> int:             # 0
    "How long a card computes for a training step, without Python's share: from batches so large that it is never idle."
    import torch
    from fer_nb.models import HYFER, HyFER
    from torch.nn.functional import cross_entropy
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found, n = {}, 2048 if device == "cuda" else 2
    for name in ("light_full", *LARGE):
        net = HyFER(7, 1, HYFER[name]).to(device, memory_format=torch.channels_last).train()
        x, y = torch.rand(n, 1, 48, 48, device=device).contiguous(memory_format=torch.channels_last), torch.zeros(n, dtype=torch.long, device=device)
        for k in range(5):
            if k == 2:
                torch.cuda.synchronize() if device == "cuda" else None
                start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                loss = cross_entropy(net(x).float(), y)
            loss.backward()
        torch.cuda.synchronize() if device == "cuda" else None
        found[name] = (time.perf_counter() - start) / 3 * 256 / n
    to.write_text(json.dumps(found))
    print(found)
    return 0


def step(
    number: int,             # of the step
    o: argparse.Namespace,
    ends: float,             # when what is not finished is ended, by `time.monotonic`
) -> dict:                   # name -> seconds, or why it has none
    "Begin the networks of a step, and wait for those that end with it."
    from fer_nb.cli import main as command
    said, of = {}, presets(o)
    for name, (first, _, settings, options) in of.items():
        if first != number or o.only and name not in o.only:
            continue
        if "--start" in options and options[-1] not in o.done:
            said[name] = f"left: {options[-1]} is not there"
            continue
        o.done = [other for other in o.done if other != name]   # of an earlier run
        words = words_of(name, settings, options, o)
        o.running[name] = time.monotonic(), begun(lambda: command(words), o.out / f"{name}.log")
    while any(of[name][1] <= number for name in o.running):
        for name, (start, pid) in list(o.running.items()):
            late = time.monotonic() > ends and of[name][1] <= number
            if late:
                os.kill(pid, 9)
            found, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if not found:
                continue
            fine = os.waitstatus_to_exitcode(status) == 0
            said[name] = round(time.monotonic() - start, 1) if fine else f"ended with {os.waitstatus_to_exitcode(status)}"
            if fine:   # under a name of its own, which records and cards show
                made = next((o.out / name).glob("*.safetensors"))
                (o.out / f"{name}.safetensors").write_bytes(made.read_bytes())
                o.done.append(name)
            print(f"{time.strftime('%T')} step {number + 1}: {name}: {said[name]}", flush=True)
            del o.running[name]
        time.sleep(0.1)
    return said


def epochs_for(
    number: int,             # of the step
    seconds: float,          # that its fits may take
    cost: dict,              # from `card_seconds`
    seeds: int,
) -> int:
    "What the time allows."
    light = cost["light_full"]
    load = (sum(cost[name] for name in LARGE) + 2 * light, (seeds + 2) * light, seeds * 3 * 4 * light)[number]
    epoch = STEPS * max(HOST * (1, 1, 2.7)[number], SHARED * load) + 0.3   # seconds, for batches of 256
    found = int(min(MOST[number], max(LEAST[number], seconds / epoch)))
    print(f"{time.strftime('%T')} step {number + 1}: {seconds:.0f} s, {epoch:.1f} s an epoch: {found} epochs", flush=True)
    return found


def main() -> None:
    "All steps, and a report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="with the data")
    p.add_argument("--out", type=Path, help="results (default: FOLDER/out)")
    p.add_argument("--device", help="cuda, cpu (default: CUDA where there is a card)")
    p.add_argument("--held", default="results/fer2013-shipped/parts.csv", help="what is held out (default: as of the shipped networks)")
    p.add_argument("--minutes", type=float, default=9, help="in all (default 9)")
    p.add_argument("--shares", type=float, nargs=2, default=(0.34, 0.78), help="of the time, when the first two steps are to be over")
    p.add_argument("--epochs", type=int, nargs=3, help="of teachers, students, robust students (default: what the time allows)")
    p.add_argument("--views", type=int, default=30, help="cached views of each image")
    p.add_argument("--seeds", type=int, default=3, help="of students and robust students")
    p.add_argument("--bs", type=int, default=256)
    p.add_argument("--lr", type=float, default=4e-3)
    p.add_argument("--only", nargs="*", default=[], help="names of networks; default: all")
    p.add_argument("--tiny", action="store_true", help="one epoch of each, one seed, two views")
    o = p.parse_args()
    began = time.monotonic()
    if o.tiny:
        o.epochs, o.seeds, o.views, o.minutes = [1, 1, 1], 1, 2, 1e6
    o.folder, o.running = o.folder.resolve(), {}
    o.out = (o.out or o.folder / "out").resolve()
    o.out.mkdir(parents=True, exist_ok=True)
    o.done = [path.stem for path in sorted(o.out.glob("*.safetensors"))]
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}   # the second: looking for a card begins nothing
    import torch
    torch.set_num_threads(1)
    import fer_nb.cli
    import fer_nb.hyfer_studies  # noqa: F401
    speed, reading, known = o.out / "speed.txt", fer_nb.cli.read, {}
    pid = None if o.epochs else begun(lambda: card_seconds(speed, o.device), o.out / "speed.log")

    def read_once(*args: object) -> object:
        key = repr(args)
        if key not in known:
            known[key] = reading(*args)
        return known[key]

    fer_nb.cli.read = read_once
    fer_nb.cli.read_data(fer_nb.cli.parser("ship").parse_args(["ship", "--data", str(o.folder / "fer2013.csv"), "--votes",
                                                               str(o.folder / "fer2013new.csv")]), o.folder / "fer2013new.csv")
    cost, report, auto = {}, {}, not o.epochs
    if pid:
        os.waitpid(pid, 0)
        cost = json.loads(speed.read_text()) if speed.is_file() else {"light_full": 0.004} | dict.fromkeys(LARGE, 0.008)
        print(time.strftime("%T"), "seconds of the card for a batch of 256:", {k: round(v, 4) for k, v in cost.items()}, flush=True)
    o.epochs, last = list(o.epochs or LEAST), began + 60 * o.minutes
    atexit.register(lambda: [os.kill(pid, 9) for _, pid in o.running.values()])
    for number, share in enumerate((*o.shares, 1.0)):
        left = began + 60 * o.minutes * share - time.monotonic()
        if auto:
            o.epochs[number] = epochs_for(number, left - (25, 25 + 0.35 * len(LARGE) * o.views, 40)[number], cost, o.seeds)
            if number == 0:   # of those that go on through the second step
                o.epochs[1] = epochs_for(1, began + 60 * o.minutes * o.shares[1] - time.monotonic() - 40, cost | {"light_full": 1.5 * cost["light_full"]}, o.seeds)
        ends = last if number else began + 0.75 * 60 * o.minutes   # late teachers are worth waiting for, but not the whole time
        report[f"step {number + 1}"] = {"epochs": list(o.epochs)} | step(number, o, ends)
        (o.out / "students.txt").write_text(json.dumps(report | {"done": o.done, "seconds of the card": cost}, indent=1))


if __name__ == "__main__":
    main()

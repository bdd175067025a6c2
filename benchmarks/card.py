"""What a rented card can do, by one script and without a network: its tests, a table of speeds, and the shipped recipe.

    python benchmarks/card.py FOLDER --minutes 8                # all three parts; results in FOLDER/out
    python benchmarks/card.py FOLDER --device cpu --tiny        # the same on the CPU, in minutes

FOLDER holds what was prepared: `wheels/` (installed first, without a network), `fer2013.csv` and `fer2013new.csv`, or any data
set that `fer-nb formats` shows in `data/`, and files of published weights in `weights/`. What is missing is done without, and
said. Everything is written as it comes, so that a machine that is taken away leaves what was done.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_IMAGES = ("geometry", "annotators")  # teachers that are no networks of images


# ---------------------------------------------------------------- first part: the tests

def install(
    folder: Path,   # with `wheels`, or without
) -> str:           # what was done
    "Install what lies in the folder."
    wheels = sorted((folder / "wheels").glob("*.whl"))
    if not wheels:
        return "no wheels: what is installed is used"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]  # all that is needed is in the folder
    done = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True)
    return f"{len(wheels)} wheels installed" if not done.returncode else f"pip: {done.stderr.strip().splitlines()[-1]}"


def run_tests(
    device: str,     # "cuda", or "cpu"
    out: Path,       # folder for the log
    seconds: float,  # at most
) -> dict:           # status, last line
    "The tests that compare a card with the CPU; without a card those that compare the CPU with itself."
    chosen = ["-m", "gpu"] if device.startswith("cuda") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "tests/test_gpu.py"]
    with open(out / "tests.txt", "w") as log:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = [line for line in (out / "tests.txt").read_text().splitlines() if line.strip()]
    return {"status": {0: "passed", None: "out of time"}.get(code, "failed"), "last line": lines[-1] if lines else ""}


# ---------------------------------------------------------------- second part: speeds

def peak(
    device: object,     # where
    precision: object,  # a type of PyTorch
    seconds: float,     # at least
) -> float:             # operations a second
    "The best that a product of two large matrices reaches there: what a network is measured by."
    import torch
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=precision) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def fits_of(
    names: list[str],   # of presets; none: all but those for smoke tests
) -> dict:              # (network, size, batch size, amp) -> the settings, and the presets that have them
    "Every network of images in the presets."
    from fer_nb.config import PRESETS
    found = {}
    for name in names or [n for n in PRESETS if not n.startswith("tiny")]:
        preset = PRESETS[name]
        for fit in (*preset.teachers, preset.student):
            if fit.network not in NO_IMAGES and not fit.network.endswith(".safetensors"):
                found.setdefault((fit.network, fit.size, fit.bs, fit.amp), (fit, []))[1].append(name)
    return found


def noise(
    n: int,       # images
    side: int,    # pixels
    colour: bool,
) -> object:      # FERData
    "Images of random bytes: no training, only its speed."
    import numpy as np
    import pandas as pd
    from fer_nb.core import EMOTIONS
    from fer_nb.data import FERData
    df = pd.DataFrame({"id": [f"{side}-{n}-{k}" for k in range(n)], "label": np.array(EMOTIONS)[np.arange(n) % 7], "split": "train"})
    return FERData(df, np.random.default_rng(0).integers(0, 256, (n, side, side, 3)[:3 + colour], dtype=np.uint8))


def speed(
    fit: object,      # settings of a network
    device: object,   # where
    seconds: float,   # of steps that count
    most: int,        # images in a batch
) -> dict:            # images a second, share of the time that was waiting for data, memory
    "Train for some seconds exactly as a run does: loader, augmentation, precision, optimiser."
    import torch
    from fastai.callback.core import Callback, CancelFitException
    from fer_nb.launch import peak_memory
    from fer_nb.models import HYFER, count_macs
    from fer_nb.train import fit_model, make_loaders, make_network

    class Watch(Callback):
        "Count steps and waiting after a few that do not count; end the fit when the time is over."
        order, run_valid = -99, False

        def before_fit(self) -> None:
            self.steps, self.waited, self.left, self.start = 0, 0.0, None, None
            self.begun = time.perf_counter()

        def now(self) -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter()

        def before_batch(self) -> None:
            now = self.now()
            if self.start is None and (self.train_iter >= 3 or now - self.begun > seconds):
                self.start = self.left = now
            if self.start is not None:
                self.waited += now - self.left
                if now - self.start > seconds and self.steps:
                    self.seconds = now - self.start
                    raise CancelFitException

        def after_batch(self) -> None:
            if self.start is not None:
                self.steps, self.left = self.steps + 1, self.now()

    colour = fit.network not in HYFER or (fit.size or 48) >= 112
    chans, bs = (3 if colour else 1), min(fit.bs, most)
    net = make_network(replace(fit, pretrained=False), ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"], chans)
    side = fit.size or getattr(net, "input_size", 48)
    fit = replace(fit, bs=bs, epochs=10_000, device=str(device), freeze_epochs=None, soft=None, sampler=None, class_weights=None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    fit_model(net, make_loaders(noise(8 * bs, side, colour), noise(7, side, colour), fit), fit, [watch := Watch()])
    rate = watch.steps * bs / watch.seconds
    return {"network": fit.network, "side": side, "channels": chans, "bs": bs, "images_per_s": rate,
            "waiting_for_data": watch.waited / watch.seconds, "memory_gb": peak_memory(device),
            "operations_per_s": 6 * count_macs(net, side, chans) * rate}


def throughput(
    options: argparse.Namespace,
    device: object,    # where
    out: Path,         # folder
) -> list[dict]:       # a row a network and way
    "The table; each row is written when it is there."
    import fer_nb.train  # gives settings their `precision`
    import pandas as pd
    import torch
    from fer_nb.core import FERError
    from fer_nb.launch import machine
    card = device.type == "cuda"
    ways = {"as the preset says": {}}
    if card:
        fast = {"tf32": True, "benchmark": True}
        ways |= {"float32, TF32": fast | {"amp": "off"}, "bf16": fast | {"amp": "bf16"},
                 "bf16, channels first": fast | {"amp": "bf16", "channels_last": False}}
    if options.compile:
        ways["compiled"] = ({"tf32": True, "benchmark": True, "amp": "bf16"} if card else {}) | {"compile": True}
    if odd := set(options.ways) - set(ways):
        raise SystemExit(f"--ways {', '.join(sorted(odd))}: some of {', '.join(ways)} expected")
    ways = {name: switches for name, switches in ways.items() if not options.ways or name in options.ways}
    best = {name: peak(device, getattr(torch, name), options.seconds / 2) for name in ("float32", "bfloat16")}
    rows, end = [], time.monotonic() + 60 * options.table_minutes
    for (network, size, bs, amp), (fit, presets) in fits_of(options.presets).items():
        for way, switches in ways.items():
            about = {"network": network, "side": size, "bs": bs, "presets": ", ".join(presets), "way": way}
            if time.monotonic() > end:
                rows.append(about | {"note": "no time left"})
                continue
            try:
                with machine(**switches):
                    half = fit.here().precision(device) is not None
                    row = about | speed(fit, device, options.seconds, options.most)
                row["share_of_peak"] = row["operations_per_s"] / best["bfloat16" if half else "float32"]
                row["precision"] = fit.here().precision(device) or "float32"
            except (FERError, RuntimeError) as e:  # one network that does not fit is no end of the table
                row = about | {"note": str(e).strip().splitlines()[0][:150]}
            rows.append(row)
            print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            pd.DataFrame(rows).to_csv(out / "throughput.csv", index=False, float_format="%.4g")
            if card:
                torch.cuda.empty_cache()
    (out / "peak.json").write_text(json.dumps(best, indent=1))
    return rows


# ---------------------------------------------------------------- third part: training

def prepared(
    folder: Path,   # of the user
    tiny: bool,     # a small part is enough
) -> tuple[object, str, bool]:  # data, what they are, whether FER+'s votes are there
    "The data in the folder; without any, drawn faces."
    import numpy as np
    from fer_nb.formats import read
    from fer_nb.synth import make_faces
    csv, votes = folder / "fer2013.csv", folder / "fer2013new.csv"
    where = csv if csv.is_file() else folder / "data"
    if not where.exists():
        ds, said, voted = make_faces(300 if tiny else 3000, seed=0)[0], "drawn faces: nothing was found in the folder", False
    else:
        voted = csv.is_file() and votes.is_file()
        ds = read(where, votes if voted else None)
        said = f"{where.name}: {ds.provenance}"
    if tiny:  # of each class as many
        per = [np.flatnonzero(ds.df.label == label) for label in ds.labels]
        ds = ds.take(np.sort(np.concatenate([at[np.linspace(0, len(at) - 1, min(len(at), 60)).astype(int)] for at in per if len(at)])))
    return ds, said, voted


def recipe(
    voted: bool,     # whether FER+'s votes are there
    new: bool,       # begin teachers without published weights
    tiny: bool,      # so small that the CPU sees its end
) -> object:         # a preset
    "The shipped recipe, as far as what is there allows."
    from fer_nb.hyfer_studies import SHIP

    def of(preset: object) -> object:
        teachers = [t for t in preset.teachers if t.network not in NO_IMAGES or t.network == "annotators" and voted]
        if new:
            teachers = [replace(t, pretrained=False) for t in teachers]
        if tiny:
            teachers = [replace(t, epochs=1, size=32, bs=32) for t in teachers[:1] if t.network not in NO_IMAGES]
        made = replace(preset, teachers=tuple(teachers), born_again=None)
        if not tiny:
            return made
        return replace(made, student=replace(made.student, network="light", epochs=2, bs=32, freeze_epochs=None),
                       distillation=replace(made.distillation, views=2), data=replace(made.data, near_duplicates=False),
                       adversarial=replace(made.adversarial, steps=1, fit=replace(made.adversarial.fit, epochs=1, bs=32)))

    whole = of(SHIP)
    return replace(whole, born_again=of(SHIP.born_again)) if SHIP.born_again and not tiny else whole


def train(
    options: argparse.Namespace,
    device: object,   # where
    out: Path,        # folder
) -> dict:            # what came of it
    "The shipped recipe for as long as there is time; each epoch is a checkpoint, each minute a copy of the weights."
    from fastai.callback.core import Callback
    from fastai.torch_core import defaults
    from fer_nb.core import FERError
    from fer_nb.hyfer_studies import train_shipped
    from fer_nb.launch import machine
    from safetensors.torch import save_file
    ds, said, voted = prepared(options.folder, options.tiny)
    print(said, flush=True)
    end, kept = time.monotonic() + 60 * options.minutes, out / "minutes"
    kept.mkdir(exist_ok=True)
    saved = [time.monotonic()]

    class EveryMinute(Callback):
        "In every learner: keep the weights each minute, and end when the time is over."
        order, run_valid, name = 98, False, "every_minute"

        def after_batch(self) -> None:
            now = time.monotonic()
            if now - saved[0] >= options.every or now > end:
                saved[0] = now
                phase = getattr(getattr(self.learn, "fit_progress", None), "phase", "fit").replace(" ", "-").replace(",", "").replace("/", "-")
                aside = kept / "aside.tmp"
                save_file({k: v.detach().cpu().contiguous().clone() for k, v in self.model.state_dict().items()}, str(aside),
                          {"phase": phase, "epoch": str(self.epoch + 1), "step": str(self.train_iter)})
                aside.replace(kept / f"{phase}.safetensors")
                print(f"{(end - now) / 60:.1f} minutes left: {phase}, epoch {self.epoch + 1}", flush=True)
            if now > end:
                raise KeyboardInterrupt

    defaults.callbacks = [*defaults.callbacks, EveryMinute]
    switches = {"amp": "auto", "tf32": True, "benchmark": True} if device.type == "cuda" else {}
    lines = []

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    try:
        with machine(device=str(device), **switches):
            done = train_shipped(ds, out / "shipped", recipe(voted, options.new_weights, options.tiny), overwrite=True, say=say,
                                 command="python benchmarks/card.py")
        status = f"complete: {done.name}"
    except FERError as e:  # the report keeps what was done before
        status = f"{type(e).__name__}: {e}"
    except KeyboardInterrupt:
        status = f"ended by the clock during: {lines[-1] if lines else 'the beginning'}; the same call goes on"
    return {"status": status, "data": said, "images": len(ds), "minutes": options.minutes, "weights": sorted(p.name for p in kept.glob("*.safetensors"))}


# ---------------------------------------------------------------- all of it

def main() -> None:
    "Run the parts that are asked for, and write a report after each."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="what was prepared")
    p.add_argument("--out", type=Path, help="results (default: $OUT, else FOLDER/out)")
    p.add_argument("--parts", nargs="*", choices=("tests", "table", "train"), default=["tests", "table", "train"])
    p.add_argument("--device", help="cuda, cuda:1, cpu (default: CUDA where there is a card)")
    p.add_argument("--minutes", type=float, default=8, help="of training (default 8)")
    p.add_argument("--every", type=float, default=60, help="seconds between copies of the weights (default 60)")
    p.add_argument("--tests-minutes", type=float, default=4, help="at most, for the tests (default 4)")
    p.add_argument("--table-minutes", type=float, default=6, help="at most, for the table (default 6)")
    p.add_argument("--seconds", type=float, default=6, help="of steps for each row of the table (default 6)")
    p.add_argument("--most", type=int, default=10_000, help="largest batch in the table")
    p.add_argument("--presets", nargs="*", default=[], help="whose networks are in the table (default: all but tiny ones)")
    p.add_argument("--ways", nargs="*", default=[], help="in the table, such as 'bf16' (default: all)")
    p.add_argument("--compile", action="store_true", help="torch.compile too: a minute more a row")
    p.add_argument("--new-weights", action="store_true", help="teachers begin without published weights")
    p.add_argument("--tiny", action="store_true", help="a trial of the script itself: seconds, 300 images, small networks")
    o = p.parse_args()
    if o.tiny:
        o.minutes, o.seconds, o.most, o.presets, o.new_weights = min(o.minutes, 3), 0.5, 16, o.presets or ["tiny", "cpu"], True
    out = o.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else o.folder / "out")
    out.mkdir(parents=True, exist_ok=True)
    if (o.folder / "weights").is_dir():
        os.environ.setdefault("FER_NB_WEIGHTS", str(o.folder / "weights"))
    report = {"wheels": install(o.folder)}

    def keep(**more: object) -> None:
        report.update(more)
        aside = out / "card.tmp"
        aside.write_text(json.dumps(report, indent=1, default=str) + "\n")
        aside.replace(out / "card.json")

    from fer_nb.launch import pick_device
    from fer_nb.store import run_record
    device = pick_device(o.device)
    import torch
    keep(device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device), record=run_record("python benchmarks/card.py"))
    if "tests" in o.parts:
        keep(tests=run_tests(str(device), out, 60 * o.tests_minutes))
        print("tests:", report["tests"], flush=True)
    if "table" in o.parts:
        keep(table=throughput(o, device, out))
    if "train" in o.parts:
        keep(train=train(o, device, out))
        print("train:", report["train"], flush=True)
    print(f"report: {out / 'card.json'}")


if __name__ == "__main__":
    main()

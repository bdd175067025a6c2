"""Attacks and adversarial training beside foolbox and torchattacks: same model, images and budget, in turns."""
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import arguments, fer2013, report, take_turns
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn
from training_step import LR, WD, new_model

from fer_nb.advtrain import AdversarialTraining
from fer_nb.attacks import deepfool, fgsm, pgd
from fer_nb.data import FERData
from fer_nb.evaluate import predict_logits
from fer_nb.loaders import ReplayLoader
from fer_nb.models import HyFER

EPS, STEPS = 2/255, 10  # of PGD; the step is eps / 4
TARGETS = {  # what is compared: the name, whether the ratio is to be at least or at most, and the figure
    "DeepFool: torchattacks": ("time of one image over ours in a batch", "at least", 20.0),
    "PGD: foolbox": ("our time over theirs", "at most", 1.0), "PGD: torchattacks": ("our time over theirs", "at most", 1.0),
    "training: FGSM-RS": ("time over a plain step", "at most", 2.1), "training: PGD-7": ("time over a plain step", "at most", 6.0)}


def peers(
    libs: Path | None,  # a folder with torchattacks, as `pip install --no-deps --target` makes it
) -> dict[str, object]:  # name -> module, of those that are there
    "foolbox and torchattacks; one that is missing is named and left out."
    if libs is not None:
        sys.path.append(str(libs))
    found = {}
    for name in ("foolbox", "torchattacks"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                found[name] = __import__(name)
        except ImportError as e:
            print(f"{name} is left out: {e}")
    return found


def fit(
    model: nn.Module,                       # trained in place
    ds: FERData,                            # images
    bs: int,                                # batch size
    epochs: int = 1,                        # passes over the images
    attack: dict[str, object] | None = None,  # settings of AdversarialTraining; None: plain training
) -> float:                                 # CPU seconds
    "Train with the Learner."
    dls = DataLoaders(ReplayLoader(ds, bs, True), ReplayLoader(ds.take(range(2)), 2), device="cpu")
    cbs = [] if attack is None else [AdversarialTraining(ratio=1.0, guard=0, **attack)]
    opt_func = partial(OptimWrapper, opt=torch.optim.AdamW, weight_decay=WD)
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, lr=LR, cbs=cbs)
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        return cpu_seconds(lambda: learn.fit(epochs))


def victim(
    ds: FERData,   # images to learn
    n: int,        # how many of them to attack
    bs: int,       # batch size of the training
    epochs: int,   # of the training
) -> tuple[HyFER, torch.Tensor, torch.Tensor]:  # model, x (B, 1, 48, 48) in [0, 1], y (B,)
    "A briefly trained light student and images that it reads correctly."
    model = new_model()
    fit(model, ds, bs, epochs)
    model.eval().labels = ds.labels
    right = (predict_logits(model, ds).argmax(1) == ds.targets()).nonzero()[0][:n]
    part = ds.take(right)
    return model, torch.from_numpy(part.array()).float()[:, None] / 255, torch.from_numpy(part.targets())


def attackers(
    model: HyFER,                # in evaluation mode
    x: torch.Tensor,             # images
    y: torch.Tensor,             # their classes
    others: dict[str, object],   # from `peers`
    few: int,                    # images of torchattacks' DeepFool, which takes them one by one
) -> dict[str, Callable[[], torch.Tensor]]:  # "attack: whose" -> attacked images
    "The same attacks from each library, PGD without a random start so that all do the same."
    run = {"DeepFool: fer_nb": lambda: deepfool(model, x, y),
           "FGSM: fer_nb": lambda: fgsm(model, x, y, EPS),
           "PGD: fer_nb": lambda: pgd(model, x, y, EPS, EPS / 4, STEPS, random_start=False)}
    if foolbox := others.get("foolbox"):
        theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        fool = foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02)
        climb = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=STEPS, random_start=False)
        once = foolbox.attacks.FGSM()
        run |= {"DeepFool: foolbox": lambda: fool(theirs, x, y, epsilons=None)[0],
                "FGSM: foolbox": lambda: once(theirs, x, y, epsilons=EPS)[1],
                "PGD: foolbox": lambda: climb(theirs, x, y, epsilons=EPS)[1]}
    if torchattacks := others.get("torchattacks"):
        single = torchattacks.DeepFool(model, steps=50, overshoot=0.02)
        steps = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS, random_start=False)
        run |= {"DeepFool: torchattacks": lambda: single(x[:few], y[:few]), "PGD: torchattacks": lambda: steps(x, y),
                "FGSM: torchattacks": lambda: torchattacks.FGSM(model, eps=EPS)(x, y)}
    return run


def cpu_seconds(
    work: Callable[[], object],  # what to time
) -> float:                      # seconds
    "Processor time of this process: on a busy machine the clock on the wall measures the neighbours."
    start = time.process_time()
    work()
    return time.process_time() - start


def verdicts(
    times: dict[str, list[float]],        # seconds of each run
    found: dict[str, dict[str, float]],   # strength of each attack
    n: int,                               # images attacked
    few: int,                             # images of torchattacks' DeepFool
) -> list[dict[str, object]]:             # what, figure, target, met
    "The project's targets, and whether they are met."
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows = []
    for name, (what, side, target) in TARGETS.items():
        if name not in middle:
            continue
        mine = "training: plain" if name.startswith("training") else f"{name.split(':')[0]}: fer_nb"
        ratios = [a / b for a, b in zip(times[name], times[mine])]
        if name.startswith("DeepFool"):
            ratios = [r * n / few for r in ratios]
        elif name.startswith("PGD"):
            ratios = [1 / r for r in ratios]
        ratio = statistics.median(ratios)
        rows.append({"what": f"{name}, {what}", "figure": round(ratio, 3), "target": f"{side} {target:g}",
                     "met": ratio >= target if side == "at least" else ratio <= target})
    for name, theirs in found.items():
        mine = found[f"{name.split(':')[0]}: fer_nb"]
        if "fer_nb" in name:
            continue
        if name.startswith("DeepFool"):
            if theirs["images"] != mine["images"]:
                mine = found["DeepFool: fer_nb, few"]
            ratio = mine["mean L2"] / theirs["mean L2"]
            rows.append({"what": f"{name}, our mean change over theirs", "figure": round(ratio, 4), "target": "at most 1.02",
                         "met": ratio <= 1.02})
        rows.append({"what": f"{name}, our share turned minus theirs", "figure": round(mine["turned"] - theirs["turned"], 4),
                     "target": "at least 0", "met": mine["turned"] >= theirs["turned"]})
    return rows


@torch.no_grad()
def strength(
    model: HyFER,       # in evaluation mode
    x: torch.Tensor,    # clean images
    y: torch.Tensor,    # their classes
    adv: torch.Tensor,  # attacked images
) -> dict[str, float]:  # share of images turned, mean Euclidean length of the change
    "How strong an attack was."
    return {"images": len(adv), "turned": round((model(adv).argmax(1) != y).float().mean().item(), 4),
            "mean L2": round((adv - x).flatten(1).norm(dim=1).mean().item(), 4)}


def main() -> None:
    "Run the benchmark."
    parser = arguments("attacks", __doc__, 1280, 5)
    parser.add_argument("--bs", type=int, default=128, help="images attacked, and batch size of training (default 128)")
    parser.add_argument("--few", type=int, default=16, help="images of torchattacks' DeepFool, one by one (default 16)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that the attacked model is trained (default 3)")
    parser.add_argument("--batches", type=int, default=3, help="batches of the timed training (default 3)")
    parser.add_argument("--libs", type=Path, help="folder with torchattacks (pip install --no-deps --target FOLDER torchattacks==3.5.1)")
    options = parser.parse_args()
    others, ds = peers(options.libs), fer2013(options.images)
    model, x, y = victim(ds, options.bs, options.bs, options.epochs)
    n, few = len(x), min(options.few, len(x))
    attacks, found = attackers(model, x, y, others, few), {}
    for name, attack in attacks.items():
        adv = attack()
        found[name] = strength(model, x[:len(adv)], y[:len(adv)], adv)
        if name == "DeepFool: fer_nb":
            found["DeepFool: fer_nb, few"] = strength(model, x[:few], y[:few], adv[:few])
    batches = ds.take(range(min(len(ds), options.batches * options.bs)))
    training = {"training: plain": None, "training: FGSM-RS": {"attack": "fgsm"},
                "training: PGD-7": {"attack": "pgd", "steps": 7}}
    contestants = {name: partial(cpu_seconds, attack) for name, attack in attacks.items() if name != "DeepFool: foolbox"}
    contestants |= {name: (lambda how=how: fit(new_model(), batches, options.bs, 1, how)) for name, how in training.items()}
    times = take_turns(contestants, options.repeats)
    baseline = {name: name.split(":")[0] + ": fer_nb" for name in contestants if "fer_nb" not in name and name in attacks}
    baseline |= {name: "training: plain" for name, how in training.items() if how}
    settings = {"data": ds.name, "images attacked": n, "of these, DeepFool of torchattacks": few, "side": 48,
                "model": f"HyFER light, grey, {options.epochs} epochs", "clock": "processor time",
                "PGD": f"eps {EPS * 255:g}/255, {STEPS} steps of eps / 4, no random start", "FGSM": f"eps {EPS * 255:g}/255",
                "DeepFool": "L2, overshoot 0.02, at most 50 steps", "batches of training": len(batches) // options.bs,
                "batch size": options.bs, "share attacked in training": 1.0, "repeats": options.repeats, "strength": found,
                "targets": verdicts(times, found, n, few)}
    report(times, baseline, settings, options.out)


if __name__ == "__main__":
    main()

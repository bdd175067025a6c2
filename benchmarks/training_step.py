"""One epoch of a fastai Learner with ReplayLoader beside a loop written by hand: same batches, same model."""
import time
from collections.abc import Callable
from functools import partial

import torch
from common import arguments, fer2013, report, take_turns
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from stopwatch import Stopwatch
from torch import nn

from fer_nb.augment import Augment
from fer_nb.data import FERData
from fer_nb.loaders import ReplayLoader
from fer_nb.models import HyFER

LR, WD = 1e-3, 0.01


def new_model() -> HyFER:  # grey, without dropout: both sides must end with the same weights
    "The light student, always with the same weights."
    torch.manual_seed(0)
    return HyFER(in_chans=1, variant="light", drop=0.0)


def by_learner(
    ds: FERData,                # images
    bs: int,                    # batch size
    augment: Augment | None,    # changes, None for none
    opt_func: Callable,         # fastai's way to make an optimiser
    ends: dict[str, list],      # gets the trained weights
    name: str,                  # under this name
) -> float:                     # seconds
    "One epoch of the Learner."
    dls = DataLoaders(ReplayLoader(ds, bs, True, augment), ReplayLoader(ds.take(range(2)), 2), device="cpu")
    watch = Stopwatch()
    learn = Learner(dls, new_model(), loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, lr=LR, cbs=watch)
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        learn.fit(1)
    ends[name] = [p.detach() for p in learn.model.parameters()]
    return watch.seconds


def by_hand(
    ds: FERData,                # images
    bs: int,                    # batch size
    augment: Augment | None,    # changes, None for none
    ends: dict[str, list],      # gets the trained weights
    name: str,                  # under this name
) -> float:                     # seconds
    "One epoch of a plain loop over batches of bytes that lie ready before the clock starts."
    loader = ReplayLoader(ds, bs, True)
    full = torch.tensor(loader.get_idxs())[:len(loader) * loader.bs].split(loader.bs)
    batches = [(ids, loader.x[ids], loader.y[ids]) for ids in full]
    model, loss_func = new_model().train(), nn.CrossEntropyLoss()
    optimiser = torch.optim.AdamW(model.parameters(), LR, weight_decay=WD)
    start = time.perf_counter()
    for ids, x, y in batches:
        x = x.float().div_(255)
        if augment is not None:
            x = augment(x, ids.numpy(), 0, 0)
        loss = loss_func(model(x.contiguous(memory_format=torch.channels_last)), y)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    seconds = time.perf_counter() - start
    ends[name] = [p.detach() for p in model.parameters()]
    return seconds


def main() -> None:
    "Run the benchmark."
    parser = arguments("training_step", __doc__, 2560, 5)
    parser.add_argument("--bs", type=int, default=128, help="batch size (default 128)")
    options = parser.parse_args()
    ds = fer2013(options.images)
    adamw = partial(OptimWrapper, opt=torch.optim.AdamW, weight_decay=WD)
    contestants, baseline, ends = {}, {}, {}
    for kind, augment in (("augmented", Augment()), ("plain", None)):
        hand, learner, own = f"{kind}: by hand", f"{kind}: Learner", f"{kind}: Learner, fastai's Adam"
        contestants[hand] = partial(by_hand, ds, options.bs, augment, ends, hand)
        contestants[learner] = partial(by_learner, ds, options.bs, augment, adamw, ends, learner)
        contestants[own] = partial(by_learner, ds, options.bs, augment, partial(Adam, wd=WD), ends, own)
        baseline |= {learner: hand, own: hand}
    times = take_turns(contestants, options.repeats)
    apart = max((a - b).abs().max().item() for kind in ("augmented", "plain")
                for a, b in zip(ends[f"{kind}: by hand"], ends[f"{kind}: Learner"]))
    if apart > 1e-3:
        raise SystemExit(f"the Learner's weights end {apart:.2g} away from the loop's: they did not do the same work")
    settings = {"data": ds.name, "images": len(ds), "batches": len(ds) // min(options.bs, len(ds)),
                "batch size": options.bs, "side": 48, "model": "HyFER light, grey", "optimiser": "AdamW",
                "repeats": options.repeats,
                "largest difference of a weight": float(f"{apart:.2g}")}
    report(times, baseline, settings, options.out)


if __name__ == "__main__":
    main()

"""One epoch of EADD with kept teacher logits, and with the teacher asked on every batch, beside a plain epoch."""
import tempfile
from functools import partial

import numpy as np
import torch
from common import arguments, fer2013, report, take_turns
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from stopwatch import Stopwatch
from torch import nn

from fer_nb.data import FERData
from fer_nb.distill import EADD
from fer_nb.teachers import CachedLogits, teacher_logits
from fer_nb.loaders import dataloaders
from fer_nb.models import HyFER, Teacher, create_teacher

VIEWS = 2


def loaders(
    ds: FERData,      # images
    bs: int,          # batch size
) -> DataLoaders:     # nine tenths to train on, one tenth to validate
    "The same loaders for every contestant, at their first view."
    train, valid = ([i for i in range(len(ds)) if (i % 10 == 0) == held] for held in (False, True))
    return dataloaders(ds.take(train), ds.take(valid), bs, views=VIEWS, device="cpu")


def epoch(
    ds: FERData,                           # images
    options: object,                       # student, batch size
    teachers: list[nn.Module | CachedLogits],  # for EADD; none: a plain epoch
    ends: dict[str, list],                 # gets the trained weights
    name: str,                             # under this name
) -> float:                                # seconds
    "One epoch from the same weights, without dropout."
    torch.manual_seed(0)
    model = HyFER(in_chans=1, variant=options.student, drop=0.0)
    watch = Stopwatch(whole=True)
    opt_func = partial(OptimWrapper, opt=torch.optim.AdamW, weight_decay=0.01, fused=True)
    cbs = [watch] + ([EADD(teachers)] if teachers else [])
    learn = Learner(loaders(ds, options.bs), model, loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, lr=1e-3, cbs=cbs)
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        learn.fit(1)
    ends[name] = [p.detach() for p in model.parameters()]
    return watch.seconds


def keep(
    teacher: Teacher,      # to ask
    ds: FERData,           # images
    bs: int,               # batch size
) -> None:
    "Ask about every view once and write it down: what a cache costs before the first epoch."
    dls = loaders(ds, bs)
    with tempfile.TemporaryDirectory() as folder:
        teacher_logits(teacher, dls.train, dls.valid, folder=folder)


def main() -> None:
    "Run the benchmark."
    parser = arguments("eadd_epoch", __doc__, 2560, 5)
    parser.add_argument("--bs", type=int, default=128, help="batch size (default 128)")
    parser.add_argument("--student", default="light", help="HyFER variant (default light)")
    parser.add_argument("--teacher", default="efficientnet_lite0", help="teacher, without trained weights")
    parser.add_argument("--side", type=int, default=64, help="input side of the teacher in pixels (default 64)")
    options = parser.parse_args()
    ds = fer2013(options.images)
    torch.manual_seed(1)
    teacher = create_teacher(options.teacher, pretrained=False, input_size=options.side).requires_grad_(False).eval()
    dls, ends = loaders(ds, options.bs), {}
    kept = teacher_logits(teacher, dls.train, dls.valid)
    contestants = {name: partial(epoch, ds, options, teachers, ends, name) for name, teachers in (
        ("plain epoch", []), ("EADD, cached logits", [kept]), ("EADD, teacher asked on every batch", [teacher]))}
    contestants[f"keeping the logits of {VIEWS} views, once"] = partial(keep, teacher, ds, options.bs)
    times = take_turns(contestants, options.repeats)
    plain, cached, online = list(contestants)[:3]
    ids = np.arange(min(256, len(dls.train.x)))
    with torch.inference_mode():
        now = teacher(dls.train.images(ids, 0)).numpy()
    off = float(np.abs(kept.train[0][ids] - now).max() / np.abs(now).max())
    if off > 1e-2:
        raise SystemExit(f"the kept logits are {off:.2%} of the largest one away from what the teacher says now")
    apart = max((a - b).abs().max().item() for a, b in zip(ends[cached], ends[online]))
    settings = {"data": ds.name, "images": len(ds), "batch size": options.bs, "student": f"HyFER {options.student}, grey, 48 px",
                "teacher": f"{options.teacher}, {options.side} px", "views": VIEWS, "repeats": options.repeats,
                "bytes kept": kept.train.nbytes + kept.valid.nbytes,
                "cached logits off by, relative to the largest": float(f"{off:.2g}"),
                "largest difference of a weight after the epoch": float(f"{apart:.2g}")}
    report(times, {name: plain for name in contestants if name != plain}, settings, options.out)


if __name__ == "__main__":
    main()

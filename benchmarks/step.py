"""Where the time of a training step goes: convolutions, normalisation, augmentation, averaging of weights, optimiser, the rest."""
import statistics
from contextlib import contextmanager
from collections.abc import Iterator

from common import arguments, fer2013, machine, save
from fastai.callback.core import Callback, CancelFitException
from torch.profiler import ProfilerActivity, profile, record_function

from fer_nb.hyfer_studies import RECIPE
from fer_nb.launch import on_machine
from fer_nb.loaders import ReplayLoader
from fer_nb.train import EMA, fit_model, make_loaders, make_network

KINDS = {"convolution": ("convolution", "mkldnn_conv"), "normalisation": ("batch_norm", "layer_norm", "native_batch", "native_layer")}
MARKS = ("augmentation", "averaging", "optimiser")


@contextmanager
def marked(
    owner: type,   # a class
    name: str,     # one of its methods
    mark: str,     # what its time is called
) -> Iterator[None]:
    "Within the block, the profiler knows the method by this mark."
    own = getattr(owner, name)

    def method(self: object, *args: object, **more: object) -> object:
        with record_function(mark):
            return own(self, *args, **more)

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, own)


class Profiled(Callback):
    "Profile the steps after the first ones, then end the fit."

    order, run_valid = 100, False

    def __init__(self, warm: int, steps: int):
        self.warm, self.steps, self.prof = warm, steps, profile(activities=[ProfilerActivity.CPU])

    def before_fit(self) -> None:
        "Mark the optimiser."
        own = self.opt.step

        def step(*args: object, **more: object) -> object:
            with record_function("optimiser"):
                return own(*args, **more)

        self.opt.step = step

    def after_batch(self) -> None:
        "Begin, or end."
        if self.learn.train_iter == self.warm:
            self.prof.start()
        if self.learn.train_iter == self.warm + self.steps:
            self.prof.stop()
            raise CancelFitException


def shares(
    prof: profile,   # of some steps
) -> dict[str, float]:   # what -> seconds
    "Time by mark, and outside the marks by kind of operation; what is nested counts once."
    events = [e for e in prof.events() if e.device_type.name == "CPU"]
    began, ended = min(e.time_range.start for e in events), max(e.time_range.end for e in events)
    spans = {m: [(e.time_range.start, e.time_range.end) for e in events if e.name == m] for m in MARKS}
    found = {m: sum(b - a for a, b in s) for m, s in spans.items()}
    inside = [s for group in spans.values() for s in group]
    for kind, names in KINDS.items():
        taken = sorted((e.time_range.start, e.time_range.end) for e in events if any(n in e.name for n in names)
                       and not any(a <= e.time_range.start < b for a, b in inside))
        total, last = 0.0, 0.0
        for a, b in taken:                       # an operation and those that it calls overlap
            total += max(0.0, b - max(a, last))
            last = max(last, b)
        found[kind] = total
    found["the rest"] = (ended - began) - sum(found.values())
    return {k: v / 1e6 for k, v in found.items()}


def profiled(
    network: str,   # a variant of HyFER
    ds: object,     # images
    warm: int,      # steps that do not count
    steps: int,     # that do
    bs: int,        # batch
) -> dict[str, float]:   # what -> seconds
    "Some steps of a fit by the recipe."
    fit = RECIPE.student
    fit = type(fit)(**{**vars(fit), "network": network, "bs": bs, "epochs": 1, "keep": "last"})
    cut = len(ds) - bs
    dls = make_loaders(ds.take(range(cut)), ds.take(range(cut, len(ds))), fit)
    look = Profiled(warm, steps)
    with marked(ReplayLoader, "create_batch", "augmentation"), marked(EMA, "after_step", "averaging"):
        fit_model(make_network(fit, ds.labels), dls, fit, [look])
    return shares(look.prof)


def main() -> None:
    "Run the benchmark."
    parser = arguments("step", __doc__, 0, 3)
    parser.add_argument("--networks", nargs="+", default=["light_full", "light_res"], help="variants of HyFER")
    parser.add_argument("--steps", type=int, default=8, help="steps that count (default 8)")
    parser.add_argument("--bs", type=int, default=128, help="batch size (default 128)")
    options = parser.parse_args()
    ds = fer2013(options.images or (options.steps + 5) * options.bs)
    rows, found = [], {n: [] for n in options.networks}
    for _ in range(options.repeats):
        for name in options.networks:
            found[name].append(profiled(name, ds, 2, options.steps, options.bs))
    for name, runs in found.items():
        seconds = {k: statistics.median(r[k] for r in runs) / options.steps for k in runs[0]}
        whole = sum(seconds.values())
        rows += [{"network": name, "what": k, "ms_a_step": round(1000 * v, 2), "share": round(v / whole, 4)} for k, v in seconds.items()]
        print(name, {k: f"{v / whole:.1%}" for k, v in seconds.items()}, f"{whole:.3f} s a step")
    settings = {"data": ds.name, "batch size": options.bs, "steps": options.steps, "repeats": options.repeats, "recipe": "RECIPE",
                "channels_last": on_machine().channels_last, "precision": "float32 where amp='auto' on a CPU"}
    save(options.out, {"settings": settings, "machine": machine(), "results": rows})


if __name__ == "__main__":
    main()

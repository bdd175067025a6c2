"""A training step with Spatial Quad-Similarity beside one without, and beside four passes through the network."""
from functools import partial

import torch
from common import arguments, fer2013, report, take_turns
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from stopwatch import Stopwatch
from torch import nn

from fer_nb.data import FERData
from fer_nb.loaders import dataloaders
from fer_nb.models import SQSNet
from fer_nb.sqs import SQS, form_quads, quad_dataloaders, refine_features, spatial_similarity, sqs_loss


class FourPasses(Callback):
    "The drawing of the paper taken at its word: anchor, positive and negatives each go through the network."

    run_valid = False

    def after_pred(self) -> None:
        "Three more passes, and the losses that `SQS` has."
        (positive, first, second), mask = form_quads(self.y, self.dls.train.ids, self.dls.train.seed, self.epoch, self.iter)
        maps = [self.model.forward_features(self.x)] if self.keep is None else [self.keep]
        maps += [self.model.forward_features(self.x[rows]) for rows in (positive, first, second)]
        s = [spatial_similarity(maps[0], m) for m in maps[1:]]
        z = self.model.enhanced(refine_features(maps[0], *s).mean((2, 3)))
        base = self.pred.log_softmax(1)
        kl = nn.functional.kl_div(base, z.detach().log_softmax(1), log_target=True, reduction="batchmean")
        self.more = nn.functional.cross_entropy(z[mask], self.y[mask]) + kl + 0.5 * sqs_loss(*(m[mask] for m in s))

    def before_fit(self) -> None:
        "Keep the maps of the anchors as the pass leaves them."
        self.keep = None
        real = self.model.forward_features

        def kept(x: torch.Tensor) -> torch.Tensor:
            out = real(x)
            self.keep = out if self.keep is None else self.keep
            return out

        self.model.forward_features = kept

    def after_loss(self) -> None:
        "Add them."
        self.learn.loss_grad = self.learn.loss_grad + self.more
        self.keep = None


def epoch(
    ds: FERData,            # images
    options: object,        # network, batch size
    extra: type[Callback] | None,  # what is trained beside the cross-entropy
) -> float:                 # seconds
    "One epoch over the same batches of pairs, from the same weights."
    torch.manual_seed(0)
    model = SQSNet(len(ds.labels), options.variant, pretrained=False, labels=ds.labels)
    n = len(ds) - 2  # the last two are there because a learner wants to validate; it is not timed
    dls = quad_dataloaders(dataloaders(ds.take(range(n)), ds.take([n, n + 1]), options.bs, device="cpu"))
    watch, opt_func = Stopwatch(), partial(OptimWrapper, opt=torch.optim.AdamW)
    cbs = [watch] + ([extra()] if extra else [])
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, lr=1e-4, cbs=cbs)
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        learn.fit(1)
    return watch.seconds


def main() -> None:
    "Run the benchmark."
    parser = arguments("sqs_step", __doc__, 256, 5)
    parser.add_argument("--bs", type=int, default=64, help="batch size (default 64)")
    parser.add_argument("--variant", default="light_64", help="SQSNet variant (default light_64)")
    options = parser.parse_args()
    ds = fer2013(options.images + 2)
    contestants = {"without SQS": None, "SQS, one pass": SQS, "SQS, four passes": FourPasses}
    times = take_turns({name: partial(epoch, ds, options, extra) for name, extra in contestants.items()}, options.repeats)
    settings = {"data": ds.name, "images": options.images, "batch size": options.bs, "network": f"SQSNet {options.variant}",
                "repeats": options.repeats, "steps a run": options.images // options.bs}
    report(times, {"SQS, one pass": "without SQS", "SQS, four passes": "SQS, one pass"}, settings, options.out, options.images)


if __name__ == "__main__":
    main()

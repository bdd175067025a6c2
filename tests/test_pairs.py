"""EADD, SQS and TRADES beside gradient accumulation, mixing, mixed precision, clipping, and each other."""
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from fastai.callback.core import Callback
    from fastai.callback.mixup import CutMix, MixUp
    from fastai.callback.progress import ProgressCallback
    from fastai.callback.training import GradientAccumulation, GradientClip
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner, Recorder
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import SGD

from fer_nb.advtrain import AdversarialTraining
from fer_nb.core import EMOTIONS
from fer_nb.distill import EADD, eadd_weights
from fer_nb.loaders import dataloaders
from fer_nb.sqs import SQS
from fer_nb.synth import make_faces
from fer_nb.train import Amp, fit_model

N, LAM, ALPHA, BETA = 24, 0.7, 0.3, 5.0
T, TABLE = np.linspace(1, 4, 7), np.random.default_rng(0).random((2, 7))
G = torch.Generator().manual_seed(0)
X, Y = torch.rand(N, 1, 12, 12, generator=G, dtype=torch.double), torch.randint(0, 7, (N,), generator=G)


class FrozenNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class Net(nn.Module):
    num_features, num_classes, labels = 8, 7, EMOTIONS

    def __init__(self, seed, stride=2):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.norm, self.fc = nn.Conv2d(1, 8, 5, stride, 2), FrozenNorm(8), nn.Linear(8, 7)
        self.norm.running_mean.normal_(0, 0.1)

    def forward_features(self, x):
        return self.norm(self.body(x)).tanh()

    def forward_head(self, f, pre_logits=False):
        pooled = f.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class CrossEntropy(nn.CrossEntropyLoss):
    "fastai's own one rounds to 32 bits."
    y_int = True  # so that MixUp mixes losses


def teachers(dtype=torch.double):
    made = [Net(seed).to(dtype).eval().requires_grad_(False) for seed in (5, 6)]
    for t in made:
        t.fc.weight.data.mul_(5)  # with an opinion
    return made


def shift(model, x, y, eps, generator):
    "An attack that does not depend on the batch."
    return (x + 0.2 * torch.sin(37 * x)).clamp(0, 1)


class Pairs:
    "Image 2k is mixed with image 2k + 1, whatever the batch is."

    def before_batch(self):
        other = torch.arange(len(self.y)) ^ 1
        self.lam, self.yb1 = self.share(), (self.y[other],)
        self.learn.xb = (self.mixed(self.x, self.x[other]),)


class FixedMixUp(Pairs, MixUp):
    def share(self):
        return torch.full((len(self.y),), LAM, dtype=self.x.dtype)

    def mixed(self, x, other):
        return LAM * x + (1 - LAM) * other


class FixedCutMix(Pairs, CutMix):
    def share(self):
        return torch.tensor(LAM - 0.4, dtype=self.x.dtype)  # less than half is of the image itself

    def mixed(self, x, other):
        return torch.cat([other[:, :, :8], x[:, :, 8:]], 2)


class Scale(Callback):
    "Somebody's own callback."
    run_valid = False

    def __init__(self, order, after="after_loss"):
        self.order = order
        setattr(self, after, self.scale)

    def scale(self):
        self.learn.loss_grad = self.loss_grad / 4


class Steps(Callback):
    "The gradient of every step, and the size and gradient of every batch that had one of its own."
    order, run_valid = 100, False

    def __init__(self):
        self.found = []

    def before_step(self):
        self.found.append(torch.cat([p.grad.flatten().double() for p in self.model.parameters() if p.grad is not None]).clone())


TERMS = {"EADD": lambda d: EADD(teachers(d), ALPHA, T, accuracy=TABLE), "SQS": lambda d: SQS(),
         "TRADES": lambda d: AdversarialTraining(shift, trades=BETA, ratio=1.0, guard=0)}
BESIDE = {"nothing": lambda: [], "MixUp": lambda: [FixedMixUp()], "CutMix": lambda: [FixedCutMix()],
          "bf16": lambda: [Amp("bf16")], "GradientClip": lambda: [GradientClip(0.05)],
          "scaled early": lambda: [Scale(-90)], "scaled late": lambda: [Scale(80)],
          "scaled before the backward pass": lambda: [Scale(-7, "before_backward")]}


def steps(names, beside="nothing", n_acc=None, bs=N, n=N, epochs=1):
    "Gradients of the steps of a fit that changes no weight."
    dtype = torch.float if beside == "bf16" or "SQS" in names else torch.double
    items = list(zip(X[:n].to(dtype), Y[:n]))
    dls = DataLoaders(DataLoader(items, bs=bs, num_workers=0), DataLoader(items[:2], bs=2, num_workers=0), device="cpu")
    dls.vocab = list(EMOTIONS)
    acc = [] if n_acc is None else [GradientAccumulation(n_acc)]
    cbs = [*BESIDE[beside](), *(TERMS[name](dtype) for name in names), *acc, seen := Steps()]
    learn = Learner(dls, Net(1).to(dtype), CrossEntropy(), opt_func=SGD, cbs=cbs)
    learn.remove_cbs([ProgressCallback, Recorder])  # fastai's Recorder knows no 64 bits
    with learn.no_logging():
        learn.fit(epochs, 0.0)
    return seen.found


def clipped(g, beside):
    return g * min(1, 0.05 / (g.norm().item() + 1e-6)) if beside == "GradientClip" else g


def by_hand(name, beside):
    "The gradient of one batch of all images, from the equations."
    model, x, other = Net(1).double().train(), X, torch.arange(N) ^ 1
    lam = {"MixUp": LAM, "CutMix": LAM - 0.4}.get(beside, 1.0)
    if beside in ("MixUp", "CutMix"):
        x = LAM * X + (1 - LAM) * X[other] if beside == "MixUp" else torch.cat([X[other][:, :, :8], X[:, :, 8:]], 2)
    shares = lam * F.one_hot(Y, 7).double() + (1 - lam) * F.one_hot(Y[other], 7)
    z = model(x)
    loss = -(shares * z.log_softmax(1)).sum(1).mean()
    if name == "EADD":
        w, total = eadd_weights(TABLE, 0.1).double(), 0
        for i, teacher in enumerate(teachers()):
            for n in range(N):
                own, t_n = (shares[n] * w[i]).sum(), (shares[n] * torch.tensor(T)).sum()
                p, q = (teacher(x[n:n + 1]) / t_n).log_softmax(1), (z[n:n + 1] / t_n).log_softmax(1)
                total = total + own * t_n**2 * (p.exp() * (p - q)).sum()
        loss = ALPHA * loss + total / N
    if name == "TRADES":
        p, q = z.log_softmax(1), model(shift(None, x, None, 0, None)).log_softmax(1)
        loss = loss + BETA * (p.exp() * (p - q)).sum(1).mean()
    if beside.startswith("scaled"):
        loss = loss / 4
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("beside", [b for b in BESIDE if b != "bf16"])
@pytest.mark.parametrize("name", ["EADD", "TRADES"])
def test_the_gradient_is_that_of_the_equations_however_the_batch_is_cut(name, beside):
    """Terms that are means over samples: two, three and six or eight batches of a step give the gradient of the large one."""
    expected = clipped(by_hand(name, beside), beside)
    for bs in (12, 8, 3 if beside == "nothing" else 4):
        found, = steps([name], beside, N, bs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", TERMS)
def test_an_accumulated_step_is_the_mean_of_its_batches_by_their_sizes(name, beside):
    """Also of groups that go on in the next epoch: 20 images in batches of 8, steps of at least 16."""
    for n, bs, n_acc, epochs in ((24, 8, 24, 1), (16, 2, 16, 1), (20, 8, 16, 2)):
        own = "nothing" if beside == "GradientClip" else beside
        alone = steps([name], own, None, bs, n, epochs)
        sizes = [min(bs, n - start) for start in range(0, n, bs)] * epochs
        expected, total, count = [], 0, 0
        for g, size in zip(alone, sizes):
            total, count = total + g * size / n_acc, count + size
            if count >= n_acc:
                expected.append(clipped(total, beside))
                total, count = 0, 0
        found = steps([name], beside, n_acc, bs, n, epochs)
        assert len(found) == len(expected) == {20: 2}.get(n, 1)
        for a, b in zip(found, expected):
            assert (a - b).norm() <= (0.01 if beside == "bf16" else 1e-5) * b.norm()  # 8 bits round what was divided before


@pytest.mark.parametrize("beside", ["nothing", "MixUp", "CutMix", "scaled early"])
@pytest.mark.parametrize("pair", [("EADD", "SQS"), ("TRADES", "SQS"), ("SQS", "TRADES", "EADD")])
def test_terms_add_up_beside_each_other(pair, beside):
    """Whatever order they are given in: α of EADD is for the cross-entropy alone. A step of two batches."""
    plain, = steps([], beside, 16, 8, 16)
    parts = [steps([name], beside, 16, 8, 16)[0] - plain for name in pair]
    together, = steps(pair, beside, 16, 8, 16)
    torch.testing.assert_close(together, plain + sum(parts), rtol=1e-4, atol=1e-6)


class Watch(Callback):
    "What the student, the teacher and the attack see."
    order, run_valid = 100, False

    def after_loss(self):
        self.student, self.clean, self.attacked = self.xb[0].clone(), self.clean_xb[0].clone(), self.adversarial_training.adv_rows


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(1.0)])
@pytest.mark.parametrize("trades", [0.0, 2.0])
def test_everybody_sees_the_same_mixture(mix, trades):
    seen, asked = Watch(), []
    torch.manual_seed(3)
    items = list(zip(X.float(), Y))
    dls = DataLoaders(*(DataLoader(items, bs=N, num_workers=0) for _ in range(2)), device="cpu")
    dls.vocab, teacher = list(EMOTIONS), teachers(torch.float)[0]
    teacher.register_forward_hook(lambda m, args, z: asked.append(args[0].clone()))
    adv = AdversarialTraining("pgd", steps=2, ratio=1.0, trades=trades, guard=0)
    learn = Learner(dls, Net(1), CrossEntropyLossFlat(), cbs=[adv, EADD([teacher], accuracy=TABLE[:1]), mix, seen])
    with learn.no_logging(), learn.no_bar():
        learn.fit(1)
    assert torch.equal(asked[0], seen.clean) and not torch.allclose(seen.clean, X.float())
    attacked = seen.attacked if trades else seen.student
    assert 0 < (attacked - seen.clean).abs().max() <= 4 / 255 + 1e-6
    assert torch.equal(seen.student, seen.clean) == bool(trades)


def test_in_fit_model():
    faces = make_faces(90, seed=0, defects=None)[0]

    def fit(*acc):
        dls = dataloaders(faces.where(split="train").take(range(48)), faces.where(split="valid"), bs=16, device="cpu", views=1)
        fit_model(Net(1), dls, 1, cbs=[*acc, TERMS["EADD"](torch.float), TERMS["SQS"](0), TERMS["TRADES"](0), seen := Steps()], lr=1e-12)
        return seen.found
    (step,), own = fit(GradientAccumulation(48)), fit()
    assert len(own) == 3
    torch.testing.assert_close(step, sum(own) / 3, rtol=1e-4, atol=1e-6)


def test_a_search_for_a_learning_rate_leaves_no_log(tmp_path):
    "Neither before the first fit nor between two; accuracies and logs are those of the fits alone."
    from fastai.callback.schedule import Learner  # with lr_find
    faces = make_faces(90, seed=0, defects=None)[0]

    def run(search):
        torch.manual_seed(0)
        dls = dataloaders(faces.where(split="train").take(range(48)), faces.where(split="valid"), bs=16, device="cpu", views=1)
        eadd = EADD(teachers(torch.float), accuracy="running")
        learn = Learner(dls, Net(1), CrossEntropy(), path=tmp_path, cbs=[eadd, SQS(), AdversarialTraining("fgsm", eps=0.1, guard=2)])
        seen = []
        with learn.no_bar(), learn.no_logging():
            for _ in range(2):
                if search:
                    learn.lr_find(num_it=7, show_plot=False)
                names = ("sqs_log", "adv_log", "guard_log")
                seen += [eadd.history, None if eadd.acc is None else eadd.acc.tolist(), *(getattr(learn, k, None) for k in names)]
                torch.manual_seed(1)
                learn.fit(2, 1e-3)
        return [*seen, learn.sqs_log, learn.adv_log, learn.guard_log, eadd.history]

    for alone, searched in zip(run(False), run(True), strict=True):
        assert alone.equals(searched) if hasattr(alone, "equals") else alone == searched

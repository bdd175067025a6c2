"""Spatial Quad-Similarity of the exported package: gradients, quads by chance, and a callback that leaves no trace."""
import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException
    from fastai.callback.mixup import CutMix, MixUp
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import trainable_params

import fer_nb.sqs
from fer_nb.advtrain import AdversarialTraining
from fer_nb.augment import Augment
from fer_nb.core import EMOTIONS, ConfigError, DataError, LabelError, seed_everything
from fer_nb.distill import EADD
from fer_nb.loaders import ReplayLoader, dataloaders
from fer_nb.models import HyFER, HyFERConfig, SQSNet, SQSNetConfig, count_macs
from fer_nb.sqs import (SQS, QuadLoader, attach_sqs, detach_sqs, form_quads, quad_dataloaders, quad_similarities, refine_features,
                        refinement_map, spatial_similarity, sqs_layout, sqs_loss)
from fer_nb.synth import make_faces
from fer_nb.train import TrainingError, fit_model

SMALL = HyFERConfig(stem=8, blocks=((8, 2, 2), (16, 2, 2)), dim=16, depth=1, patch=1, proj=24, light=True, act="relu",
                     input_size=48)
PAIR = SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 32, 48, "residual", 2, {"output_stride": 8},
                    {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 3})


@pytest.fixture(scope="module")
def data():
    ds, _ = make_faces(110, defects=None, balance="uniform")
    return ds.where(split="train"), ds.where(split="valid")


@pytest.fixture
def dls(data):
    return quad_dataloaders(dataloaders(*data, bs=16, augment=Augment(), device="cpu"))


def hyfer(drop=0.0):
    torch.manual_seed(0)
    return HyFER(in_chans=1, variant=SMALL, drop=drop)


def learner(model, dls, *cbs, loss=None):
    seed_everything(0)
    dls.train.epoch = 0
    learn = Learner(dls, model, loss or CrossEntropyLossFlat(label_smoothing=0.1), cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda row: None
    return learn


def state(model):
    return torch.cat([v.detach().flatten().double() for v in model.state_dict().values()])


# ---- maps and loss ----

@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_by_differences(normalize):
    torch.manual_seed(0)
    f = [torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True) for _ in range(4)]
    tau = torch.tensor(0.7, dtype=torch.double, requires_grad=True)

    def whole(a, p, n1, n2, tau):
        S = [spatial_similarity(a, x, tau, normalize) for x in (p, n1, n2)]
        return sqs_loss(*S) + refine_features(a, *S, alpha=tau, gamma=0.3).square().mean()
    assert torch.autograd.gradcheck(whole, (*f, tau))


@given(st.integers(0, 2**31), st.floats(0.1, 4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_similarity_is_one(seed, tau, normalize):
    a, b = torch.randn(2, 1, 5, 2, 3, generator=torch.Generator().manual_seed(seed))
    s = spatial_similarity(a, b, tau, normalize)
    assert s.shape == (1, 2, 3) and (s >= 0).all() and (s <= 1).all()
    assert torch.allclose(s, spatial_similarity(b, a, tau, normalize))
    if normalize:
        assert torch.allclose(s, spatial_similarity(3 * a, 0.1 * b, tau), atol=1e-5)
        assert (s >= np.exp(-4 / tau) - 1e-6).all()


def test_zero_vectors_and_high_dimensions():
    zero, some = torch.zeros(1, 1024, 2, 2), torch.randn(1, 1024, 2, 2)
    assert torch.allclose(spatial_similarity(zero, zero), torch.ones(1, 2, 2))
    assert spatial_similarity(some, -some, normalize=False).max() == 0          # the literal form underflows
    a = zero.clone().requires_grad_()
    spatial_similarity(a, some).sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("a, b", [((2, 3, 4, 4), (2, 3, 4, 5)), ((2, 3, 4, 4), (1, 3, 4, 4)), ((2, 3), (2, 3))])
def test_other_shapes(a, b):
    with pytest.raises(ConfigError, match="feature maps"):
        spatial_similarity(torch.rand(a), torch.rand(b))


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_tau_is_positive(tau):
    with pytest.raises(ConfigError, match="tau"):
        spatial_similarity(torch.rand(1, 2, 2, 2), torch.rand(1, 2, 2, 2), tau)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 1, 4), (4, 4), (2, 4, 5)])
def test_similarities_are_not_broadcast(shape):
    s = torch.rand(2, 4, 4)
    for k in range(3):
        with pytest.raises(ConfigError, match="shape="):
            refine_features(torch.rand(2, 3, 4, 4), *(torch.rand(shape) if i == k else s for i in range(3)))


def test_refinement_keeps_sign_and_limits():
    s = torch.rand(3, 2, 4, 4)
    r = refinement_map(*s, 1.0, 0.5)
    assert r.min() >= -1 and r.max() <= 1 and torch.equal(refinement_map(*s, 1.0, 0.0), s[0])
    assert 0 <= sqs_loss(*s) < 3 and sqs_loss(*s, margin=0) <= sqs_loss(*s) <= sqs_loss(*s, margin=1)


# ---- quads ----

@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40), st.integers(0, 99), st.booleans())
@settings(max_examples=80, deadline=None)
def test_quads_are_quads(y, seed, distinct):
    y = np.array(y, dtype=int)
    (p, n1, n2), mask = (t.numpy() for t in form_quads(y, seed=seed, distinct=distinct))
    counts = {c: (y == c).sum() for c in set(y.tolist()) - {-1}}
    others = {c: (len(counts) > 2 if distinct else (y >= 0).sum() - n > 1) for c, n in counts.items()}
    assert mask.tolist() == [c >= 0 and counts[c] > 1 and bool(others[c]) for c in y.tolist()]
    a = np.arange(len(y))
    assert (y[p] == y)[mask].all() and (p != a)[mask].all() and (y[n1] != y)[mask].all() and (y[n2] != y)[mask].all()
    assert (n1 != n2)[mask].all() and not (distinct and (y[n1] == y[n2])[mask].any())
    assert (np.stack([p, n1, n2])[:, ~mask] == a[~mask]).all() and (y[[*p[mask], *n1[mask], *n2[mask]]] >= 0).all()


def test_choice_is_even_and_depends_on_each_number():
    y = np.repeat([0, 1, 2], 4)
    drawn = np.stack([form_quads(y, batch=k)[0][:, 0] for k in range(3000)])
    positive, first = np.bincount(drawn[:, 0], minlength=12)[1:4], np.bincount(drawn[:, 1], minlength=12)[4:]
    assert (abs(positive - 1000) < 120).all() and (abs(first - 375) < 80).all()
    base = form_quads(y)[0]
    assert all(not torch.equal(base, form_quads(y, **{k: 1})[0]) for k in ("seed", "epoch", "batch"))


@pytest.mark.parametrize("y", [np.ones((3, 3)), np.zeros(0, int), np.array([0.5, 1]), np.array(["a"]), np.zeros(3, bool), [None, 1]])
def test_no_class_numbers(y):
    with pytest.raises(LabelError, match="class numbers"):
        form_quads(y)


# ---- the loader ----

@pytest.mark.parametrize("bs", [2, 8, 16, 64, 500])
def test_every_class_of_a_batch_is_there_twice(data, bs):
    loader, plain = QuadLoader(data[0], bs, True, seed=3), ReplayLoader(data[0], bs, True, seed=3)
    if loader.bs % 2:  # the whole set is one odd batch
        with pytest.raises(ConfigError, match="even"):
            loader.get_idxs()
        return
    for epoch in range(3):
        batches = [y for _, y in loader]
        assert len(batches) == len(plain) and loader.epoch == epoch + 1
        assert all((y.bincount()[y.unique()] >= 2).all() for y in batches)


def test_all_images_are_shown_in_the_long_run(data):
    loader, seen = QuadLoader(data[0], 8, True), set()
    orders = []
    for loader.epoch in range(6):
        orders.append(loader.get_idxs())
        seen |= set(orders[-1])
    assert seen == set(range(len(data[0]))) and all(len(o) == len(data[0]) for o in orders) and orders[0] != orders[1]
    assert QuadLoader(data[0], 8).get_idxs() == list(range(len(data[0])))     # not in validation


def test_repeated_rows_and_lone_images(data):
    train = data[0]
    rows = np.r_[np.flatnonzero(train.df.label == "happy"), np.flatnonzero(train.df.label == "sad")[[0, 0]],
                 np.flatnonzero(train.df.label == "fear")[:1]]
    loader = QuadLoader(train, 4, True, rows=rows)
    for _, y in loader:
        assert (y.bincount()[y.unique()] >= 2).all()
    y = [0, 0, 1, 1, 2, 2]
    assert form_quads(y, ids=[5, 5, 6, 7, 8, 9])[1].tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("kind", [ReplayLoader, QuadLoader])
def test_an_image_shown_twice_is_not_its_own_positive(data, kind):
    """With `rows` an image is at several positions of an epoch; SQS treats them as one image."""
    train = data[0]
    first = [int(np.flatnonzero(train.df.label == label)[0]) for label in ("happy", "sad", "fear")]
    dls = dataloaders(*data, bs=12, device="cpu", rows=np.repeat(first, 4))
    learn = learner(hyfer(), quad_dataloaders(dls) if kind is QuadLoader else dls, SQS())
    learn.fit(1)
    assert learn.sqs_log.quads.tolist() == [0]


def test_same_views_as_before(data):
    old = dataloaders(*data, bs=16, augment=Augment(), seed=4, views=3, device="cpu")
    new = quad_dataloaders(old)
    assert new.vocab == old.vocab and new.valid is old.valid and (new.train.seed, new.train.views) == (4, 3)
    assert torch.equal(new.train.images(np.arange(5), 2), old.train.images(np.arange(5), 2))
    with pytest.raises(ConfigError, match="ReplayLoader"):
        quad_dataloaders(type(old)([1], [2]))


# ---- the callback ----

def models():
    torch.manual_seed(0)
    return {"shared": hyfer(), "attached": attach_sqs(hyfer()), "learnable": attach_sqs(hyfer(), learnable=True),
            "sqsnet": SQSNet(variant=PAIR, drop=0)}


@pytest.mark.parametrize("kind", ["shared", "attached", "learnable", "sqsnet"])
def test_everything_learns_and_vanishes(dls, kind):
    model = models()[kind]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learn = learner(model, dls, SQS())
    learn.fit(1, 3e-3)
    log = learn.sqs_log.iloc[0]
    assert len(learn.sqs_log) == 1 and np.isfinite(log.to_numpy(float)).all() and log.quads == 1
    assert log.total == pytest.approx(log.base + log.enhanced + log.kl + 0.5 * log.sqs, rel=1e-5)
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    x, macs = dls.valid.one_batch()[0], count_macs(model.eval(), 48, 1)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(detach_sqs(model)(x), logits) and count_macs(model, 48, 1) == macs
    assert not [n for n in model.state_dict() if n.startswith(("enhanced", "quad_weights"))]


def test_who_learns_from_the_divergence(dls):
    for mutual in (False, True):
        model = attach_sqs(hyfer(), drop=0)
        seen = []

        class Look(Callback):
            run_valid = False

            def before_step(self):
                grad = self.model.enhanced[1].weight.grad
                seen.append(0 if grad is None else grad.abs().sum().item())
        learner(model, dls, SQS(lam=0, enhanced=0, mutual=mutual), Look()).fit(1)
        assert any(seen) is mutual


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "after_backward", "after_step"])
@pytest.mark.parametrize("error", [CancelBatchException, CancelEpochException, CancelFitException, RuntimeError,
                                   KeyboardInterrupt])
def test_interruptions_leave_nothing(dls, event, error):
    class Stop(Callback):
        order, on = 100, True

    def stop(self):
        if self.on and self.training and self.iter == 1:
            raise error("boom")
    setattr(Stop, event, stop)
    model = hyfer()
    learn = learner(model, dls, SQS(), stopper := Stop())
    try:
        learn.fit(1)
    except (RuntimeError, KeyboardInterrupt):
        pass
    x = dls.valid.one_batch()[0]
    with torch.no_grad():
        assert torch.equal(model.eval()(x), copy.deepcopy(model)(x))
    stopper.on = False
    learn.fit(1)  # the next fit is a clean one
    assert "forward_features" not in vars(model) and learn.sqs._maps == () and learn.sqs_log.epoch.tolist() == [0]


def test_validation_is_the_base_branch(dls):
    learn = learner(attach_sqs(hyfer()), dls, SQS())
    learn.fit(1, 3e-3)
    with torch.no_grad():
        by_hand = F.cross_entropy(learn.model.eval()(dls.valid.one_batch()[0]), dls.valid.y, label_smoothing=0.1)
    assert learn.recorder.values[-1][1] == pytest.approx(by_hand.item(), rel=1e-5)
    log = learn.sqs_log.copy()
    learn.validate()
    learn.get_preds()
    assert log.equals(learn.sqs_log)


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_loss_of_the_enhanced_branch(dls, mix, smoothing):
    class Same(Callback):
        order, run_valid, seen = 12, False, 0

        def after_loss(self):  # with γ = 0 the enhanced branch is the base branch
            images, anchors = self.learn.sqs._batches[-1][:2]
            if anchors < images:
                return
            assert self.learn.sqs._batches[-1][3] == pytest.approx(self.learn.sqs._batches[-1][2], rel=1e-4)
            assert self.learn.sqs._batches[-1][4] == pytest.approx(0, abs=1e-6)
            self.seen += 1
    loss = CrossEntropyLossFlat(label_smoothing=smoothing)
    learner(hyfer(), dls, mix(0.4), SQS(gamma=0), same := Same(), loss=loss).fit(1, 1e-3)
    assert same.seen > 0


def test_soft_labels(dls):
    class Soften(Callback):
        def before_batch(self):
            self.learn.yb = (0.9 * F.one_hot(self.y, 7) + 0.1 / 7,)
    learn = learner(hyfer(), dls, Soften(), SQS(purity=0.8), loss=nn.CrossEntropyLoss())
    learn.fit(1)
    assert learn.sqs_log.quads[0] == 1
    learn = learner(hyfer(), dls, Soften(), SQS(purity=0.95), loss=nn.CrossEntropyLoss())
    learn.fit(1)
    assert learn.sqs_log.quads[0] == 0


def test_beside_distillation_attacks_and_precision(dls):
    teacher = hyfer()
    teacher.name = "duplicate"
    model = attach_sqs(hyfer())
    cbs = [EADD([teacher]), AdversarialTraining("fgsm", ratio=0.5), SQS()]
    history = fit_model(model, dls, 2, cbs=cbs, schedule="cosine", ema=0.9, clip=1.0, amp="bf16")
    assert np.isfinite(history.train_loss).all() and "forward_features" not in vars(model)


def test_eadd_does_not_scale_sqs(dls):
    class Look(Callback):
        order, run_valid, seen = 12, False, 0

        def after_loss(self):
            *_, base, ce, kl, sqs, total = self.learn.sqs._batches[-1]
            assert self.loss_grad.item() == pytest.approx(base + ce + kl + 0.5 * sqs, rel=1e-5)
            self.seen += 1
    learner(hyfer(), dls, SQS(), EADD([attach_sqs(hyfer())], alpha=0.1), look := Look()).fit(1)
    assert look.seen == len(dls.train)


def test_resume_is_exact(dls, tmp_path):
    whole, parts = SQS(seed=1), [SQS(seed=1), SQS(seed=1)]

    def fit(cbs, path):
        dls.train.epoch = 0
        model = attach_sqs(hyfer(0.1), learnable=True)
        return model, fit_model(model, dls, 3, cbs=cbs, checkpoint=path)
    a, _ = fit([whole], tmp_path / "a")

    class Broken(QuadLoader):  # a callback would be part of the run's description, and so is the name of the class
        def get_idxs(self):
            if self.epoch == 2:
                raise KeyboardInterrupt
            return super().get_idxs()
    Broken.__name__ = "QuadLoader"
    dls.train.__class__ = Broken
    with pytest.raises(KeyboardInterrupt):
        fit([parts[0]], tmp_path / "b")
    dls.train.__class__ = QuadLoader
    b, _ = fit([parts[1]], tmp_path / "b")
    assert torch.equal(state(a), state(b))
    assert whole.learn.sqs_log.equals(parts[1].learn.sqs_log) and whole.learn.sqs_log.epoch.tolist() == [0, 1, 2]


def test_record_is_plain():
    cb = SQS(lam=0.3)
    assert json.loads(json.dumps(cb.config()))["lam"] == 0.3 and cb.state_dict() == {"log": None}


@pytest.mark.parametrize("kwargs", [{"lam": -1}, {"tau": 0}, {"gamma": float("nan")}, {"kl": float("inf")},
                                    {"margin": -0.1}, {"tau": None}, {"purity": None}, {"purity": 1.5}])
def test_settings(kwargs):
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        SQS(**kwargs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(dls, value):
    model = hyfer()
    with torch.no_grad():
        model.epc.norm.bias.fill_(value)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        learner(model, dls, SQS()).fit(1)

    class Break(Callback):
        def before_batch(self):
            if self.iter == 1:
                with torch.no_grad():
                    self.learn.model.epc.norm.bias.fill_(value)
    model = hyfer()
    with pytest.raises((DataError, TrainingError), match="epoch 1, batch 2"):
        learner(model, dls, SQS(), Break()).fit(1)
    assert "forward_features" not in vars(model)


def test_models_without_a_map(dls):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48 * 48, 7)

        def forward_features(self, x):
            return x.flatten(1)

        def forward_head(self, x, pre_logits=False):
            return x if pre_logits else self.fc(x)

        def forward(self, x):
            return self.forward_head(self.forward_features(x))
    with pytest.raises(ConfigError, match="feature map is"):
        learner(Pooled(), dls, SQS()).fit(1)
    model = Pooled()
    model.forward = lambda x: model.fc(x.flatten(1))
    with pytest.raises(ConfigError, match="forward does not call forward_features"):
        learner(model, dls, SQS()).fit(1)


@pytest.mark.parametrize("late", ["after a fit", "again", "splitter"])
def test_parts_that_no_step_would_reach_are_refused(dls, late):
    model = hyfer() if late == "after a fit" else attach_sqs(hyfer(), learnable=True)
    learn = learner(model, dls)
    if late == "splitter":
        learn.splitter = lambda m: [list(m.get_classifier().parameters())]
    learn.fit(1)
    attach_sqs(model, learnable=True)  # new weights of α, β, γ and τ
    learn.add_cb(SQS())
    missing = "quad_weights.log " if late == "again" else "enhanced.1.weight, enhanced.1.bias, quad_weights.log "
    with pytest.raises(ConfigError, match=f"does not know {missing}"):
        learn.fit(1)
    learn.splitter = trainable_params
    learn.create_opt()
    parts = [p.detach().clone() for part in (model.enhanced, model.quad_weights) for p in part.parameters()]
    learn.fit(1)
    assert not any(torch.equal(p, q) for p, q in zip(parts, [*model.enhanced.parameters(), *model.quad_weights.parameters()]))


def test_parts_that_are_frozen_stay_so(dls):
    model = attach_sqs(hyfer())
    model.enhanced.requires_grad_(False)
    before = model.enhanced[1].weight.clone()
    learner(model, dls, SQS()).fit(1)
    assert torch.equal(model.enhanced[1].weight, before)


def test_two_classes(data):
    parts = [part.where(label=["happy", "sad"]) for part in data]
    two = [part.replace(labels=("happy", "sad"), name="two") for part in parts]
    pair = dataloaders(*two, bs=8, device="cpu")
    torch.manual_seed(0)
    model = HyFER(2, 1, SMALL)
    with pytest.raises(ConfigError, match="distinct=False"):
        learner(model, pair, SQS()).fit(1)
    learn = learner(model, quad_dataloaders(pair), SQS(distinct=False))
    learn.fit(1)
    assert learn.sqs_log.quads[0] > 0.9


def test_the_step_costs_little(dls):
    "Operations of a step, counted, forwards and backwards: a clock would say what else the machine does."
    model, x, y = SQSNet(variant=PAIR, drop=0).train(), torch.rand(16, 1, 48, 48), torch.arange(16) % 5
    learn = learner(model, dls, cb := SQS())
    (_, n1, n2), mask = quads = form_quads(y)
    cb._layout = sqs_layout(model, x)
    assert mask.all()

    def flops(step):
        with FlopCounterMode(display=False) as counter:
            step().backward()
        return counter.get_total_flops()

    def plain():
        learn.pred = model(x)
        return F.cross_entropy(learn.pred, y)

    def with_sqs():
        cb._maps = cb._features = [model.forward_features(x)]
        learn.pred = model.forward_head(cb._maps[0])
        return F.cross_entropy(learn.pred, y) + cb._terms(y, torch.arange(16), quads[0]).sum()

    def four():
        return sum(model(x).sum() for _ in range(4))
    once, ours = flops(plain), flops(with_sqs)
    assert ours < 1.3 * once and flops(four) > 2.5 * ours


# ---- batches of other makes, other types, other processes ----

def items(labels, dtype=torch.float32, same=None):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(len(labels), 1, 48, 48, generator=g, dtype=dtype)
    return list(zip(x if same is None else x[same], torch.tensor(labels)))


def plain_dls(items, bs=8):
    dls = DataLoaders(DataLoader(items, bs=bs), DataLoader(items, bs=bs))
    dls.vocab = list(EMOTIONS)
    return dls


class Net(nn.Module):
    labels, num_features, num_classes = EMOTIONS, 6, 7

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Conv2d(1, 6, 8, 8), nn.Linear(6, 7)

    def forward_features(self, x):
        return self.body(x)

    def forward_head(self, f, pre_logits=False):
        return f.mean((2, 3)) if pre_logits else self.fc(f.mean((2, 3)))

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def run(net, dls, *cbs):
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda row: None
    learn.fit(1)
    return learn


def test_of_other_loaders_an_image_is_not_its_own_positive(monkeypatch):
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    twice = plain_dls(items(labels, same=[0, 0, 2, 2, 4, 4, 6, 6]))          # drawn with replacement
    assert run(attach_sqs(Net()), twice, SQS()).sqs_log.quads.tolist() == [0.0]
    assert run(attach_sqs(Net()), twice, AdversarialTraining(ratio=1.0), SQS()).sqs_log.quads.tolist() == [0.0]
    assert run(attach_sqs(Net()), plain_dls(items(labels)), SQS()).sqs_log.quads.tolist() == [1.0]
    x = torch.rand(5, 3, 9, 9)[[0, 1, 0, 3, 1]]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert len(set(fer_nb.sqs._equal_rows(x.to(dtype)).tolist())) == 3


class Named(torch.utils.data.Dataset):
    "Images with names, as many people's are."

    def __init__(self, pairs, **own):
        self.pairs = pairs
        vars(self).update(own)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, k):
        return self.pairs[k]


@pytest.mark.parametrize("own", [{"ids": [f"image {k}" for k in range(16)]}, {"ids": np.array(["p0"] * 8)}, {"ids": np.arange(8), "rows": np.zeros(8, int)}])
def test_what_a_dataset_calls_ids_is_its_own(own):
    ds = Named(items([0, 0, 1, 1, 2, 2, 3, 3] * (len(own["ids"]) // 8)), **own)
    dls = plain_dls(ds)
    assert dls.train.ids is own["ids"]                                       # fastai asks the dataset
    assert run(attach_sqs(Net()), dls, SQS()).sqs_log.quads.tolist() == [1.0]


def test_a_batch_without_anchors_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(attach_sqs(Net(), learnable=True))
        log = run(net, plain_dls(items([0, 1, 2, 0, 1, 2, 0, 1, *[0] * 8, 0, 1, 2, 0, 1, 2, 0, 1])), SQS()).sqs_log
    finally:
        torch.distributed.destroy_process_group()
    assert 0 < log.quads[0] < 1
    alone = attach_sqs(Net())
    run(alone, plain_dls(items([0] * 8)), SQS())
    assert all(p.grad is None for p in alone.enhanced.parameters())          # no step, no decay


def test_a_network_of_doubles_gets_a_classifier_of_doubles():
    net = attach_sqs(Net().double(), learnable=True)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert run(net, plain_dls(items([0, 1, 2, 0, 1, 2, 0, 1], torch.float64)), SQS()).sqs_log.quads[0] == 1


@pytest.mark.parametrize("seed", [0.5, 2**70, -1, True])
def test_a_seed_that_is_no_number_of_64_bits_is_refused(seed):
    with pytest.raises(ConfigError, match="seed="):
        SQS(seed=seed)


def test_a_learner_can_be_pickled_after_a_fit():
    cb = run(attach_sqs(Net()), plain_dls(items([0, 1, 2, 0, 1, 2, 0, 1])), SQS()).sqs
    cb.learn = None
    assert pickle.loads(pickle.dumps(cb)).lam == cb.lam


def test_what_all_faces_share_does_not_drown_their_differences():
    torch.manual_seed(0)
    maps = 100 + 0.03 * torch.randn(12, 384, 3, 3)
    quads, mask = form_quads(torch.arange(12) % 3)
    rows = mask.nonzero()[:, 0]
    for q, found in zip(quads[:, rows], quad_similarities(maps, rows, quads[:, rows], 1.0, False)):
        torch.testing.assert_close(found, spatial_similarity(maps[rows], maps[q], 1.0, False), atol=1e-4, rtol=0)


def test_processes_get_whole_pairs(data):
    for bs, world, fine in ((8, 2, True), (6, 2, False), (16, 3, False), (18, 3, True)):
        train = quad_dataloaders(dataloaders(*data, bs=bs, device="cpu")).train
        train.rank_world = 1, world
        if not fine:
            with pytest.raises(ConfigError, match=f"bs={bs}; .*a multiple of {2 * world}"):
                next(iter(train))
            continue
        assert all((y.bincount(minlength=7) != 1).all() for _, y in train)


def test_rows_are_told_apart_by_value_and_place():
    from fer_nb.sqs import _equal_rows
    assert sorted(_equal_rows(torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8))) == [0, 1, 2, 3]
    a = torch.zeros(3, 1, 8, 8)
    a[0, 0, 2, 3] = a[0, 0, 2, 5] = a[1, 0, 2, 2] = a[1, 0, 2, 6] = a[2, 0, 2, 3] = a[2, 0, 2, 5] = 1
    rows = _equal_rows(a)
    assert rows[0] == rows[2] != rows[1]


# ---- heads that keep averages ----

class HeadNorm(Net):
    "As MobileNetV4: a BatchNorm in the head."
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward_head(self, f, pre_logits=False):
        f = self.norm(f.mean((2, 3)))
        return f if pre_logits else self.fc(f)


@pytest.mark.parametrize("separate", [False, True])
def test_a_head_keeps_the_averages_of_the_base_branch_alone(separate):
    torch.manual_seed(0)
    start, data = HeadNorm(), plain_dls(items([0, 1, 2, 0, 1, 2, 0, 1] * 3))
    alone, beside = copy.deepcopy(start), attach_sqs(copy.deepcopy(start), separate=separate)
    run(alone, data), run(beside, data, SQS(lam=0, enhanced=0, kl=0))
    assert torch.equal(state(alone), state(detach_sqs(beside))) and alone.norm.num_batches_tracked == 3
    assert beside.norm.track_running_stats
    own = HeadNorm()
    own.enhanced = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 7))
    run(own, data, SQS())
    assert own.enhanced[0].num_batches_tracked == 3 and not own.enhanced[0].running_mean.eq(0).all()


def test_images_that_a_crashed_attack_left_are_not_taken_for_those_of_the_batch():
    class Crash(Callback):
        def after_pred(self):
            raise KeyboardInterrupt
    learn = Learner(plain_dls(items([0, 0, 1, 1, 2, 2, 3, 3])), attach_sqs(Net()), CrossEntropyLossFlat(),
                    cbs=AdversarialTraining(ratio=0.5, guard=0))
    learn.remove_cb(ProgressCallback)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=Crash())
    learn.remove_cb(AdversarialTraining)
    assert learn.clean_xb is not None
    learn.dls = plain_dls(items([0, 0, 1, 1, 2, 2, 3, 3], same=[0, 0, 2, 2, 4, 4, 6, 6]))
    learn.logger = lambda row: None
    learn.fit(1, cbs=SQS())
    assert learn.sqs_log.quads.tolist() == [0.0]


@pytest.mark.parametrize("drop", [1.0, 1.5, -0.1, True])
def test_dropout_is_a_share(drop):
    with pytest.raises(ConfigError, match="drop="):
        attach_sqs(Net(), drop=drop)


def test_half_precision_without_a_feature_is_no_nan():
    from fer_nb.sqs import quad_similarities, spatial_similarity, sqs_loss
    torch.manual_seed(0)
    maps = torch.randn(6, 8, 4, 4).relu().half()
    maps[:, :, 0, 0] = 0
    found, exact = (spatial_similarity(m[:3], m[3:]) for m in (maps, maps.double()))
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-4)
    rows, quads = torch.arange(2), torch.tensor([[2, 3], [3, 4], [4, 5]])
    with torch.autocast("cpu", torch.bfloat16):
        similarities = quad_similarities(maps, rows, quads, 1.0, True)
    for s, e in zip(similarities, quad_similarities(maps.double(), rows, quads, 1.0, True)):
        torch.testing.assert_close(s.double(), e, atol=1e-4, rtol=1e-3)
    assert sqs_loss(*similarities).isfinite()

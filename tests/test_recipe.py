"""What a fit can be told: class weights, focal loss, soft targets, accumulation, optimisers, a frozen body, rates by layer; against plain loops."""
import copy
from functools import partial

import fastai.optimizer
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import RandomSplitter
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.config import OPTIMISERS, Fit, Preset, override
from fer_nb.core import LABEL_ORDERS, ConfigError, DataError, seed_everything
from fer_nb.data import VOTE_COLUMNS
from fer_nb.distill import EADD
from fer_nb.loaders import dataloaders
from fer_nb.synth import make_faces
from fer_nb.models import HyFER, create_teacher
from fer_nb.sqs import SQS, attach_sqs
from fer_nb.train import CheckpointError, FocalCrossEntropy, fit_model, layer_groups, make_loaders, read_checkpoint
from toys import flat


def net(seed=0, norm=True):
    "A body with a batch norm, and a classifier."
    torch.manual_seed(seed)
    body = nn.Sequential(nn.AvgPool2d(6), nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12) if norm else nn.Tanh(), nn.ReLU())
    return nn.Sequential(body, nn.Linear(12, 12), nn.Linear(12, 7))


def same_states(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


class Steps(Callback):
    "Keep what the optimiser sees: rates, gradients; and the batches."
    order, run_valid = 50, False

    def before_fit(self):
        self.rates, self.gradients, self.batches = [], [], []

    def before_batch(self):
        self.batches.append((self.x.as_subclass(torch.Tensor).clone(), self.y.as_subclass(torch.Tensor).clone()))

    def before_step(self):
        self.rates.append([h["lr"] for h in self.opt.hypers])
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]))


@pytest.fixture(scope="module")
def voted(faces):
    "The faces with ten votes each: seven for the label, three for the next; one image without a vote for any label."
    own = np.array([LABEL_ORDERS["ferplus"].index(label) for label in faces.df.label])[:, None]
    counts = 7 * (np.arange(10) == own) + 3 * (np.arange(10) == (own + 1) % 7)
    counts[np.flatnonzero(faces.df.split == "train")[0]] = 10 * (np.arange(10) == 9)
    return faces.replace(df=pd.concat([faces.df, pd.DataFrame(counts, columns=list(VOTE_COLUMNS), index=faces.df.index)], axis=1))


def of(ds, bs=32, **more):
    return make_loaders(ds.where(split="train"), ds.where(split=["valid", "test"]), Fit(bs=bs, augment=None, **more))


# ---------------------------------------------------------------- the loss

def by_loops(z, y, gamma=0.0, smoothing=0.0, weight=None):
    "The loss of each image: sums over labels, in Python's numbers; `y` of shares (B, C)."
    out, classes = [], z.shape[1]
    for row, target in zip(z.double().tolist(), y.double().tolist()):
        p, loss = np.exp(row) / np.exp(row).sum(), 0.0
        for c in range(classes):
            one = sum(((1 - smoothing) * (k == c) + smoothing / classes) * (1 if weight is None else weight[k]) * -np.log(p[k])
                      for k in range(classes))
            loss += target[c] * (1 - p[c]) ** gamma * one
        out.append(loss)
    return np.array(out)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_against_loops(gamma, smoothing, weighted, soft):
    g = torch.Generator().manual_seed(1)
    z, y = torch.randn(9, 5, generator=g), torch.randint(5, (9,), generator=g)
    weight = torch.tensor([.2, 1., 3., .5, 2.]) if weighted else None
    shares = torch.rand(9, 5, generator=g).softmax(1) if soft else F.one_hot(y, 5).float()
    loss = FocalCrossEntropy(label_smoothing=smoothing)
    loss.gamma, loss.weight = gamma, weight
    expected = by_loops(z, shares, gamma, smoothing, None if weight is None else weight.tolist())
    for reduction, reduce in (("none", lambda v: v), ("mean", np.mean), ("sum", np.sum)):
        loss.reduction = reduction
        np.testing.assert_allclose(loss(z, shares if soft else y).numpy(), reduce(expected), rtol=2e-5)
    loss.reduction = "mean"
    flat = CrossEntropyLossFlat(flatten=False)
    flat.func = loss
    assert flat(z, shares if soft else y).item() == loss(z, shares if soft else y).item()


def test_all_weights_alike_are_none(dls):
    """Whatever their scale; and the default is today's fit, bit for bit."""
    def once(**changes):
        dls.train.epoch = 0
        fit_model(model := net(), dls, 1, lr=1e-2, **changes)
        return flat(model)

    plain = once()
    assert torch.allclose(once(class_weights=[40] * 7), plain, atol=1e-6)
    assert torch.equal(once(accumulate=1), plain) and torch.equal(once(loss="focal"), once(loss="focal", gamma=2.0))
    assert not torch.allclose(once(loss="focal", gamma=0.5), once(loss="focal"), atol=1e-4)


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"class_weights": (1, 9, 2, 2, 3, 4, 5), "smoothing": 0.0},
                                     {"loss": "focal", "gamma": 1.5, "class_weights": "balanced"}, {"soft": "votes"},
                                     {"soft": "votes", "loss": "focal", "class_weights": "balanced"}], ids=str)
def test_a_fit_is_the_plain_loop(voted, changes):
    """Torch's SGD on the same batches with the loss written out: the weights agree after an epoch."""
    dls, model = of(voted), net()
    plain = copy.deepcopy(model)
    fit_model(model, dls, 1, lr=.05, wd=0.0, optimiser="sgd", schedule="cosine", keep="last", cbs=[steps := Steps()], **changes)
    fit = Fit(**changes)
    y = dls.train.y
    n = np.bincount(y.numpy(), minlength=7)
    w = np.ones(7) if fit.class_weights is None else 1 / n if fit.class_weights == "balanced" else np.array(fit.class_weights)
    w = torch.tensor(w * n.sum() / (n * w).sum(), dtype=torch.float32)
    assert abs((w[y]).mean().item() - 1) < 1e-6
    opt = torch.optim.SGD(plain.parameters(), momentum=.9, nesterov=True)
    gamma = 0 if fit.loss != "focal" else fit.gamma or 2
    for (x, target), rate in zip(steps.batches, steps.rates):
        opt.param_groups[0]["lr"] = rate[0]
        log_p, t = plain.train()(x).log_softmax(1), target if target.ndim == 2 else F.one_hot(target, 7).float()
        each = -w * log_p
        each = (1 - fit.smoothing) * each + fit.smoothing * each.mean(1, keepdim=True)
        ((1 - log_p.exp()) ** gamma * each * t).sum(1).mean().backward()
        opt.step()
        opt.zero_grad()
    assert len(steps.rates) == len(dls.train) and torch.allclose(flat(model), flat(plain), atol=2e-6)


def test_balanced_counts_the_training_images_alone(faces):
    """As scikit-learn does; with the copies of a balanced epoch; nothing of the validation part enters."""
    from sklearn.utils.class_weight import compute_class_weight
    train, valid = faces.where(split="train"), faces.where(split="valid")
    fit = Fit(class_weights="balanced")
    for rows in (None, np.repeat(np.arange(len(train)), 1 + (np.arange(len(train)) % 3 == 0))):
        dls = dataloaders(train, valid, 16, rows=rows)
        expected = compute_class_weight("balanced", classes=np.arange(7), y=dls.train.y.numpy())
        assert torch.allclose(fit.weights_of(dls), torch.tensor(expected).float())
    other = dataloaders(train, valid.take(np.flatnonzero(valid.df.label == "happy")), 16)
    assert torch.equal(fit.weights_of(other), fit.weights_of(dataloaders(train, valid, 16)))


def test_over_the_whole_split_it_is_pytorchs_weighted_mean(faces):
    dls, chosen = dataloaders(faces.where(split="train"), faces.where(split="valid"), 16), torch.arange(1., 8)
    loss, y = FocalCrossEntropy(), dls.train.y
    loss.weight = Fit(class_weights=chosen).weights_of(dls)
    z = torch.randn(len(y), 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loss(z, y), F.cross_entropy(z, y, weight=chosen), rtol=1e-5)


def block_loaders(labels, bs=4):
    block = DataBlock((TransformBlock, CategoryBlock(vocab=["c", "b", "a"], sort=False)), get_x=lambda i: torch.rand(1, 48, 48),
                      get_y=lambda i: labels[i], splitter=RandomSplitter(.25, seed=0))
    return block.dataloaders(list(range(len(labels))), bs=bs)


def test_class_weights_of_a_datablock():
    """fastai's labels are counted, in the order of its vocabulary, and no image is opened."""
    dls = block_loaders(list("aaaaaabbbbbcccc") * 4)
    y = [int(dls.train_ds.tls[1][k]) for k in range(len(dls.train_ds))]
    n = np.bincount(y, minlength=3)
    assert np.allclose(Fit(class_weights="balanced").weights_of(dls), n.sum() / (3 * n))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2304, 3))
    assert len(fit_model(model, dls, 1, class_weights="balanced", loss="focal", gamma=1)) == 1


@pytest.mark.parametrize("make, says", [
    (lambda ds: Fit(class_weights=(1, 2)).weights_of(of(ds)), r"class_weights=\(1\.0, 2\.0\) for the labels \('angry', .*one number for each"),
    (lambda ds: Fit(class_weights="balanced").weights_of(of(ds.where(label=["happy", "sad"]))), "no training images of angry, disgust"),
    (lambda ds: Fit(class_weights="balanced").weights_of(DataLoaders(DataLoader([(1, 2)]), DataLoader([]))), "of a ReplayLoader or of a DataBlock"),
    (lambda ds: fit_model(net(), of(ds), 1, soft="votes"), "no column 'vote_neutral'"),
    (lambda ds: Fit(soft="votes").soft_targets(DataLoaders(DataLoader([]), DataLoader([]))), "soft='votes' needs the votes"),
    (lambda ds: fit_model(net(), of(ds), 1, sampler="balanced"), "sampler='balanced', but these loaders show each image once"),
    (lambda ds: fit_model(net(), of(ds), 1, accumulate=99), "accumulate=99; at least 1 and at most 4 batches"),
    (lambda ds: fit_model(nn.Sequential(nn.Flatten(), nn.Linear(2304, 7)), of(ds), 1, freeze_epochs=1), "0 groups of layers below"),
    (lambda ds: fit_model(nn.Sequential(nn.Flatten(), nn.Linear(2304, 7)), of(ds), 1, early_lr=1e-4), "0 groups of layers below"),
    (lambda ds: fit_model(net().requires_grad_(False), of(ds), 1, freeze_epochs=1), "0 trained parameters")])
def test_what_makes_no_sense_is_said_before_the_first_batch(faces, make, says):
    with pytest.raises((ConfigError, DataError), match=says) as e:
        make(faces)
    assert str(e.value).count("\n") <= 1                         # fastai puts the callback's name above


def test_soft_targets(voted):
    """The shares of the votes in training, the label where no vote is for one, the labels in validation; copies of an image too."""
    train = voted.where(split="train")
    dls = dataloaders(train, voted.where(split="valid"), 16, rows=np.r_[0, 0, 0, np.arange(len(train))])
    seen = {}

    class See(Callback):
        order = 70

        def before_batch(self):
            if self.training:
                seen.update(zip(dls.train.rows[dls.train.ids].tolist(), self.y))
            else:
                assert self.y.ndim == 1

    fit_model(net(), dls, 1, soft="votes", cbs=[See()])
    shares = train.soft_labels("votes")
    assert np.isnan(shares[0]).all() and seen[0].tolist() == F.one_hot(torch.tensor(train.targets()[0]), 7).tolist()
    assert len(seen) > 100 and all(np.allclose(seen[k], shares[k]) for k in seen if k)


def test_mixed_soft_and_weighted_targets(voted):
    """MixUp interpolates the two losses, whatever they are."""
    dls, far = of(voted), []
    w = Fit(class_weights="balanced").weights_of(dls)

    class See(Callback):
        order, run_valid = 80, False

        def after_loss(self):
            mix = self.learn.mix
            lam = mix.lam.expand(len(self.y))
            one, other = (by_loops(self.pred.detach(), t, 2.0, .1, w.tolist()) for t in (self.y, mix.yb1[0]))
            far.append(self.loss_grad.item() - np.mean(lam.numpy() * one + (1 - lam.numpy()) * other))

    fit_model(net(), dls, 1, soft="votes", loss="focal", class_weights="balanced", mix=.4, cut=.5, cbs=[See()])
    assert far and np.abs(far).max() < 1e-5


def test_a_balanced_sampler(faces):
    """Each class of the training images as often as any other, by seed and epoch; and a checkpoint knows it."""
    dls = of(faces, 8, sampler="balanced")
    n = len(dls.train.ds)
    for _ in range(2):
        counts = np.bincount(dls.train.y[np.asarray(dls.train.get_idxs()) % n], minlength=7)
        assert counts.sum() == n and np.abs(counts - n / 7).max() < 6 < np.ptp(np.bincount(dls.train.y))
        dls.train.epoch += 1
    assert fit_model(net(), of(faces, sampler="balanced"), 1, sampler="balanced").train_loss.notna().all()
    assert torch.allclose(Fit(sampler="balanced", class_weights=[1, 2, 3, 4, 5, 6, 7]).weights_of(dls), torch.arange(1., 8) / 4)


@pytest.mark.parametrize("changes", [{"soft": "votes"}, {"class_weights": "balanced", "accumulate": 2}, {"freeze_epochs": 1, "early_lr": 1e-4},
                                     pytest.param({"sampler": "balanced", "loss": "focal"}, marks=pytest.mark.slow),
                                     pytest.param({"optimiser": "ranger", "mix": .4}, marks=pytest.mark.slow)], ids=str)
def test_with_distillation_quads_and_attacks(voted, changes):
    """Every part of the recipe goes with every callback of the package."""
    torch.manual_seed(0)
    student, teacher = (HyFER(7, 1, "light", labels=voted.labels) for _ in range(2))
    cbs = [EADD([teacher], accuracy="running"), SQS(), AdversarialTraining("fgsm", guard=0)]
    history = fit_model(attach_sqs(student), of(voted, sampler=changes.get("sampler")), 2, cbs=cbs, lr=1e-3, **changes)
    assert np.isfinite(history.train_loss).all() and all(p.requires_grad for p in student.parameters())


# ---------------------------------------------------------------- accumulation

@pytest.mark.parametrize("changes", [{}, {"loss": "focal"}, {"class_weights": "balanced"}, {"soft": "votes"}], ids=str)
def test_accumulated_steps_are_those_of_large_batches(voted, changes):
    """Gradients of all steps of two epochs: 8 x 4 images, 32 at once, and fastai's own callback; without batch norm."""
    def once(bs, accumulate=None, cbs=()):
        train = np.flatnonzero(voted.df.split == "train")
        dls = of(voted.take(np.setdiff1d(np.arange(len(voted)), train[128:])), bs)
        fit_model(net(norm=False), dls, 2, optimiser="sgd", lr=1e-3, schedule="warm_restarts", restart_epochs=900, wd=0,
                  accumulate=accumulate, cbs=[steps := Steps(), *cbs], **changes)
        return steps

    large, small, fastais = once(32), once(8, 4), once(8, cbs=[GradientAccumulation(32)])
    found = [torch.stack(s.gradients) for s in (large, small, fastais)]
    assert len(found[0]) == 8
    assert torch.allclose(found[0], found[1], atol=2e-6) and torch.equal(found[1], found[2])


def test_gradients_that_wait_do_not_reach_the_next_fit(dls):
    """Nor do those of whoever had the network before."""
    model = net()
    fit_model(model, dls, 1, accumulate=3)                     # 5 batches: two wait at the end
    assert all(p.grad is None for p in model.parameters())
    fresh = copy.deepcopy(model)
    model(torch.rand(4, 1, 48, 48)).sum().backward()
    for m in (model, fresh):
        m.load_state_dict(net(3).state_dict())
        dls.train.epoch = 0
        fit_model(m, dls, 1)
    assert same_states(model, fresh)


# ---------------------------------------------------------------- optimisers

def plain_fit(dls, model, opt_func, lr, splitter=None, wd=.02):
    "fastai's own Learner and one cycle; norms and biases decay."
    dls.train.epoch = 0
    seed_everything(2)
    learn = Learner(dls, model.to(memory_format=torch.channels_last), CrossEntropyLossFlat(label_smoothing=.1), metrics=accuracy, wd=wd,
                    opt_func=opt_func, wd_bn_bias=True, **({"splitter": splitter} if splitter else {}))
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(1, lr)
    return learn


@pytest.mark.parametrize("name", [n for n in OPTIMISERS if n[0] != "a" and n != "sgd"])
def test_fastais_optimisers_by_name(dls, name):
    """The same weights as a Learner with that `opt_func`."""
    model, plain = net(), net()
    dls.train.epoch = 0
    fit_model(model, dls, 1, lr=1e-2, optimiser=name, seed=2, keep="last")
    plain_fit(dls, plain, getattr(fastai.optimizer, name), 1e-2)
    assert same_states(model, plain)


@pytest.mark.parametrize("opt", [torch.optim.NAdam, partial(OptimWrapper, opt=torch.optim.NAdam), torch.optim.Adagrad, torch.optim.SGD,
                                 partial(torch.optim.SGD, momentum=0.9), partial(fastai.optimizer.Adam, eps=1e-3)],
                         ids=["NAdam", "wrapped NAdam", "Adagrad", "SGD", "SGD with momentum", "Adam of fastai"])
def test_an_optimiser_of_ones_own(dls, tmp_path, opt):
    """A class of torch, also one without a momentum to schedule or with settings, or what fastai takes; its name is in the identity."""
    model = net()
    history = fit_model(model, dls, 2, opt_func=opt, checkpoint=tmp_path / "a")
    assert history.train_loss.notna().all() and not torch.equal(flat(model), flat(net()))
    assert read_checkpoint(tmp_path / "a")["described"]["settings"]["opt_func"]
    with pytest.raises(CheckpointError, match=r"settings\.opt_func"):
        fit_model(net(), dls, 2, checkpoint=tmp_path / "a")


# ---------------------------------------------------------------- layers

def test_groups_are_all_parameters_once():
    for model in (net(), HyFER(in_chans=1, variant="light"), create_teacher("mobilenetv3_small_100", 7, False, 32),
                  create_teacher("vit_tiny_patch16_224", 7, False, 224), nn.Sequential(net())):
        groups = layer_groups(model)
        every = [id(p) for g in groups for p in g]
        assert sorted(every) == sorted(id(p) for p in model.parameters()) and len(groups) > 2
        assert groups[-1][0].shape[0] == 7                                         # the classifier is last
    frozen = net()
    frozen[0].requires_grad_(False)
    assert [len(g) for g in layer_groups(frozen)] == [2, 2]


@pytest.mark.parametrize("decay_all", [True, False])
def test_rates_by_layer_are_fastais_slice(dls, decay_all):
    """Bit for bit the weights of `fit_one_cycle(1, slice(early, late))` where fastai decays the same."""
    model, plain = net(), net()
    dls.train.epoch = 0
    fit_model(model, dls, 1, lr=1e-2, early_lr=1e-4, seed=2, keep="last", decay_all=decay_all, cbs=[steps := Steps()])
    rates = sorted({round(r, 12) for r in steps.rates[len(steps.rates) // 4]})
    assert len(rates) == 3 and np.allclose(np.diff(np.log(rates)), np.log(10))
    if decay_all:
        opt = partial(OptimWrapper, opt=torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5, fused=True)
        plain_fit(dls, plain, opt, slice(1e-4, 1e-2), layer_groups)
        assert torch.allclose(flat(model), flat(plain), atol=1e-7)
    else:
        assert Fit(early_lr=1e-4, decay_all=False).groups(model)[1].count(0) == 3


def test_a_frozen_body_does_not_move(dls):
    """Neither weights nor batch statistics, nor by weight decay; the classifier does; then all do, and have their gradients back."""
    model, states = net(), [copy.deepcopy(net().state_dict())]

    class See(Callback):
        order = 70

        def after_epoch(self):
            states.append(copy.deepcopy(self.model.state_dict()))

    fit_model(model, dls, 3, lr=1e-2, wd=.5, freeze_epochs=2, keep="last", cbs=[See()])
    moved = [{k for k in a if not torch.equal(a[k], b[k])} for a, b in zip(states, states[1:])]
    assert moved[0] == moved[1] == {"2.weight", "2.bias"} and moved[2] == set(states[0]) and all(p.requires_grad for p in model.parameters())


def test_what_was_frozen_before_stays_frozen(dls):
    """Also after an error in a frozen epoch, after which the rest has its gradients back."""
    class Break(Callback):
        def after_loss(self):
            raise RuntimeError("gone")

    for cbs in ([], [Break()]):
        model = net()
        model[0].requires_grad_(False)
        try:
            fit_model(model, dls, 1, freeze_epochs=1, cbs=cbs)
        except RuntimeError:
            assert cbs
        assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 4


# ---------------------------------------------------------------- interrupted and not

class CtrlC(Callback):
    order = 95

    def __init__(self, at):
        self.at = at

    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [
    {"accumulate": 3}, {"accumulate": 2, "optimiser": "ranger", "clip": 1.0}, {"optimiser": "Adam"}, {"optimiser": "ranger"},
    {"opt_func": torch.optim.NAdam}, {"freeze_epochs": 1}, {"freeze_epochs": 2, "early_lr": 1e-4, "ema": .9}, {"early_lr": 1e-4, "decay_all": False},
    {"class_weights": "balanced", "loss": "focal", "gamma": 1.0, "accumulate": 2}, {"soft": "votes", "mix": .4, "accumulate": 4}], ids=str)
def test_it_resumes_bit_for_bit(voted, tmp_path, changes):
    """Interrupted in the second and in the third epoch, and not: the same weights, history and last checkpoint."""
    def attempt(name, at=None):
        model = net()
        cbs = [CtrlC(at)]
        return model, fit_model(model, of(voted), 4, lr=1e-2, seed=3, checkpoint=tmp_path / name, cbs=cbs, **changes)

    whole, history = attempt("whole")
    for at in ((1, 2), (2, 1)):
        with pytest.raises(KeyboardInterrupt):
            attempt("broken", at)
    again, continued = attempt("broken")
    assert history.equals(continued) and same_states(whole, again)


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"accumulate": 2}, {"optimiser": "Adam"}, {"freeze_epochs": 1},
                                     {"early_lr": 1e-4}, {"loss": "focal", "gamma": 1.0}, {"soft": "votes"}], ids=str)
def test_another_setting_is_another_run(voted, tmp_path, changes):
    """And a checkpoint of a version that did not know the settings goes on where they are off."""
    fit_model(net(), of(voted), 1, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"of another run: .*{next(iter(changes))}"):
        fit_model(net(), of(voted), 1, checkpoint=tmp_path / "a", **changes)


def test_a_command_sets_them():
    preset = override(Preset(), ["student.class_weights=[1, 2, 3]", "student.loss=focal", "student.gamma=1", "student.accumulate=4",
                                 "student.optimiser=ranger", "student.freeze_epochs=1", "student.early_lr=1e-4", "student.soft=votes"])
    assert preset.student == Fit(class_weights=(1, 2, 3), loss="focal", gamma=1.0, accumulate=4, optimiser="ranger", freeze_epochs=1,
                                 early_lr=1e-4, soft="votes")


@pytest.mark.parametrize(("votes", "own"), [({"unknown": 9, "happy": 1}, True), ({"contempt": 6, "happy": 4}, True), ({"no_face": 5, "happy": 5}, True),
                                            ({"unknown": 4, "happy": 6}, False), ({"happy": 7, "sad": 3}, False), ({}, True)])
def test_votes_for_nothing_that_the_data_name_leave_the_label(votes, own):
    faces = make_faces(70, seed=1, defects=None, size=32, balance="uniform", splits=(.8, .2, 0))[0]
    table = np.zeros((len(faces), 10), int)
    for name, n in votes.items():
        table[:, [c.removeprefix("vote_") for c in VOTE_COLUMNS].index(name)] = n
    ds = faces.assign(**{c: table[:, k] for k, c in enumerate(VOTE_COLUMNS)})
    dls = dataloaders(ds.where(split="train"), ds.where(split="valid"), 16, device="cpu")
    shares = Fit(soft="votes").soft_targets(dls)[0].shares.numpy()
    mine = np.eye(7)[dls.train.ds.targets()]
    heard = np.zeros(7)
    for name, n in votes.items():
        if name in ds.labels:
            heard[ds.labels.index(name)] = n
    np.testing.assert_allclose(shares, mine if own else np.tile(heard / heard.sum(), (len(mine), 1)))

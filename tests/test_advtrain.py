"""AdversarialTraining of the installed package: failure paths, state, reproducibility, other callbacks."""
import json
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from fastai.callback.core import Callback, CancelBatchException, CancelFitException
    from fastai.callback.fp16 import MixedPrecision
    from fastai.callback.mixup import MixUp
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import AvgMetric, Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.metrics import accuracy
    from fastai.optimizer import Adam, OptimWrapper
    from fastai.torch_core import TensorCategory, TensorImage

from fer_nb.advtrain import AdversarialTraining, KeepRobust
from fer_nb.attacks import fgsm, pgd
from fer_nb.augment import generator_of
from fer_nb.core import ConfigError, FERError, ImageError, LabelError
from fer_nb.distill import EADD
from fer_nb.loaders import dataloaders
from fer_nb.synth import make_faces
from fer_nb.train import EMA, KeepBest

BS, N = 8, 32


def learner(*cbs, items=None, seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    g = torch.Generator().manual_seed(9)
    items = items or [(torch.rand(1, 8, 8, generator=g), torch.tensor(i % 3)) for i in range(N)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8),
                          nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3))
    dls = DataLoaders(DataLoader(items, bs=BS, shuffle=True), DataLoader(items, bs=BS))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda row: None
    return learn


def weights(learn):
    return torch.cat([v.detach().flatten().double() for v in learn.model.state_dict().values()])


class Spy(Callback):
    "Looks at each batch; runs last."
    order = 100

    def __init__(self, at="after_loss", do=lambda learn: None):
        super().__init__()
        self.calls, self.modes = 0, set()
        setattr(self, at, lambda: self.look(do))

    def look(self, do):
        self.calls += 1
        self.modes.add((self.learn.training, self.learn.model.training))
        do(self.learn)


def raises(e):
    def f(learn):
        raise e
    return f


def broken(model, x, y, eps, generator):
    pgd(model, x, y, eps=eps, steps=1, generator=generator)
    raise RuntimeError("boom")


@pytest.mark.parametrize("error", [CancelFitException(), CancelBatchException(), RuntimeError("boom"),
                                   KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["before_batch", "after_pred", "after_loss", "after_backward"])
def test_interrupted_fits_leave_nothing(error, at):
    learn = learner(AdversarialTraining(ratio=1.0))
    learn.model[1].eval()
    flags = [p.requires_grad for p in learn.model.parameters()]
    spy = Spy(at, lambda learn: raises(error)(learn) if learn.training else None)
    try:
        learn.fit(1, cbs=spy)
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert spy.calls >= 1 and [p.requires_grad for p in learn.model.parameters()] == flags
    learn.model.train()
    learn.fit(1)  # the next fit is a clean one
    assert learn.clean_xb is None and learn.adv_mask is None
    assert learn.adv_log.attack.tolist() == ["fgsm"] and learn.adv_log.images.tolist() == [N]


def test_broken_attack_restores_each_mode():
    learn = learner(AdversarialTraining(broken))

    class Freeze(Callback):
        def before_batch(self):
            self.model[1].eval()
    learn.add_cb(Freeze())
    with pytest.raises(RuntimeError, match="boom"):
        learn.fit(1)
    assert [learn.model[i].training for i in (0, 1, 4, 8)] == [True, False, True, True]
    learn.remove_cb(AdversarialTraining)
    learn.add_cb(AdversarialTraining("pgd", steps=2))
    mean = learn.model[1].running_mean.clone()
    learn.fit(1)
    assert torch.equal(mean, learn.model[1].running_mean)  # the frozen BatchNorm stayed frozen through the attacks


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "deepfool"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_rows_and_ball(attack, ratio):
    seen = []

    def look(learn):
        if not learn.training:
            return
        x, clean, mask = learn.xb[0], learn.clean_xb[0], learn.adv_mask
        assert int(mask.sum()) == int(ratio * BS + 0.5) and torch.equal(x[~mask], clean[~mask])
        assert x.min() >= 0 and x.max() <= 1
        if attack != "deepfool":
            assert (x - clean).abs().max() <= 8/255 + 1e-6
        seen.append(not torch.equal(x, clean))
    learn = learner(AdversarialTraining(attack, eps=8/255, ratio=ratio, steps=3))
    learn.fit(1, cbs=Spy("after_loss", look))
    assert len(seen) == N // BS and any(seen) == (ratio > 0)


def test_training_mode_during_the_forward_pass():
    spy = Spy("after_pred")
    learner(AdversarialTraining()).fit(1, cbs=spy)
    assert spy.modes == {(True, True), (False, False)}


def test_validation_and_prediction_are_clean():
    learn = learner(AdversarialTraining("pgd", eps=0.3, steps=2, ratio=1.0))
    learn.fit(2)
    x = torch.stack([a for a, _ in learn.dls.valid.dataset])
    y = torch.stack([b for _, b in learn.dls.valid.dataset])
    with torch.no_grad():
        z = learn.model.eval()(x)
    assert torch.allclose(learn.get_preds()[0], z.softmax(1), atol=1e-5)
    assert abs(learn.validate()[0] - F.cross_entropy(z, y).item()) < 1e-5
    assert len(learn.adv_log) == 2


def test_same_seed_same_run_and_no_global_draws():
    def run(seed, cb=True):
        learn = learner(*([AdversarialTraining(("fgsm", "pgd", "deepfool"), steps=2, seed=seed)] if cb else []))
        learn.fit(2)
        return weights(learn), torch.get_rng_state(), learn
    a, b, c, plain = run(1), run(1), run(2), run(0, cb=False)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], c[0]) and not torch.equal(a[0], plain[0])
    assert torch.equal(a[1], plain[1])
    assert a[2].adv_log.equals(b[2].adv_log)


def test_draws_of_an_epoch_do_not_depend_on_the_ones_before():
    masks = {0: [], 1: []}
    for start in (0, 1):
        learn = learner(AdversarialTraining(seed=3))

        def look(learn):
            if learn.training and learn.epoch == 1:
                masks[start].append(learn.adv_mask.tolist())
        learn.fit(2, start_epoch=start, cbs=Spy("after_loss", look))
    assert masks[0] == masks[1] and len(masks[0]) == N // BS
    assert len(set(map(tuple, masks[0]))) > 1


def test_ramp_and_explicit_alpha():
    seen = []

    def spy(model, x, y, eps, generator):
        seen.append(eps)
        return x
    learner(AdversarialTraining(spy, eps=0.1, warmup_epochs=2)).fit(3)
    assert np.allclose(seen, [0.1 * min(1, (i + 1) / 8) for i in range(12)])
    learn = learner(AdversarialTraining("fgsm", eps=0.1, alpha=0.05, ratio=1.0, random_start=False, warmup_epochs=1))
    change = []

    def look(learn):
        if learn.training:
            change.append(float((learn.xb[0] - learn.clean_xb[0]).abs().max()))
    learn.fit(1, cbs=Spy("after_loss", look))
    assert np.allclose(change, [0.05 * k / 4 for k in (1, 2, 3, 4)], atol=1e-6)


def test_weights_of_a_mixture():
    cb = AdversarialTraining(("fgsm", "deepfool"), weights=(0, 1), steps=1)
    learn = learner(cb)
    learn.fit(1)
    assert set(learn.adv_log.attack) == {"clean", "deepfool"}
    assert json.loads(json.dumps(cb.config()))["kind"] == ["fgsm", "deepfool"]


def test_log_agrees_with_the_forward_pass():
    hits = []

    def look(learn):
        if learn.training:
            hits.append(int((learn.pred.argmax(1) == learn.yb[0])[learn.adv_mask].sum()))
    learn = learner(AdversarialTraining(ratio=0.5))
    learn.fit(1, cbs=Spy("after_loss", look))
    row = learn.adv_log.set_index("attack").loc["fgsm"]
    assert row.images == N // 2 and np.isclose(row.accuracy, sum(hits) / row.images)
    assert learn.adv_log.images.sum() == N


def test_with_mixup_mixed_precision_and_typed_images():
    class Typed(Callback):
        order, run_valid = MixedPrecision.order - 2, False

        def before_batch(self):
            self.learn.xb, self.learn.yb = (TensorImage(self.xb[0]),), (TensorCategory(self.yb[0]),)
    spy = Spy("after_loss", lambda learn: None)
    learner(AdversarialTraining("pgd", steps=1), MixUp(), Typed()).fit(1, cbs=spy)
    assert spy.calls == 2 * N // BS
    assert AdversarialTraining.order < MixedPrecision.order and AdversarialTraining.order > MixUp.order
    auto = []

    def look(model, x, y, eps, generator):
        auto.append((torch.is_autocast_enabled("cpu"), x.dtype))
        return pgd(model, x, y, eps=eps, steps=1)

    class Bf16(Callback):
        order = MixedPrecision.order

        def before_batch(self):
            self.cast = torch.autocast("cpu", torch.bfloat16)
            self.cast.__enter__()

        def after_loss(self):
            self.cast.__exit__(None, None, None)
    learner(AdversarialTraining(look), Bf16()).fit(1)
    assert auto == [(False, torch.float32)] * 4


def test_typed_errors_come_through_fastai():
    items = [(torch.rand(1, 8, 8) + 1, torch.tensor(0))] * N
    with pytest.raises(ImageError, match="inside the model"):
        learner(AdversarialTraining(), items=items).fit(1)
    with pytest.raises(ImageError, match="outside"):
        learner(AdversarialTraining(lambda model, x, y, eps, generator: x + 2)).fit(1)
    with pytest.raises(ConfigError, match="probabilities"):
        learn = learner(AdversarialTraining())
        learn.model.append(nn.Softmax(1))
        learn.fit(1)


@pytest.mark.parametrize("bad", [dict(attack=()), dict(attack="PGD"), dict(attack=("fgsm", None)),
                                 dict(eps=float("nan")), dict(weights=(1, 2)), dict(weights=(0,)), dict(ratio=-0.1),
                                 dict(alpha=-1), dict(warmup_epochs=-1), dict(steps=0), dict(trades=-1), dict(guard=-1),
                                 dict(collapse=1.0), dict(collapse=0), dict(collapse=None), dict(eps=lambda p: float("nan")),
                                 dict(eps=lambda p: 0.1, alpha=0.1), dict(trades=1, random_start=False)])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        AdversarialTraining(**bad)
    assert issubclass(ConfigError, FERError)


def test_schedule_of_eps():
    seen = []

    def spy(model, x, y, eps, generator):
        seen.append(eps)
        return x
    cb = AdversarialTraining(("fgsm", spy), eps=lambda p: 0.1 * p, weights=(0, 1), warmup_epochs=1)
    learner(cb).fit(2)
    assert np.allclose(seen, [0.1 * i / 8 * min(1, (i + 1) / 4) for i in range(8)])
    assert np.allclose(json.loads(json.dumps(cb.config()))["eps"], [0, 0.025, 0.05, 0.075, 0.1])


class MadeUp(AdversarialTraining):
    "Measures a collapse at the end of the epochs of `bad`."
    bad = (2,)

    def _probe(self):
        return (0.9, 0.0) if self.epoch in self.bad else (0.5, 0.4)


@pytest.mark.parametrize("opt", [Adam, lambda params, **kw: OptimWrapper(params, torch.optim.AdamW, **kw)])
def test_roll_back_of_weights_and_optimiser(opt):
    ends = []

    def look(learn):
        state = learn.opt.state_dict()["state"]
        moments = [v for s in (state.values() if isinstance(state, dict) else state) for v in s.values()]
        ends.append((weights(learn), torch.cat([v.double().flatten() for v in moments if isinstance(v, torch.Tensor)])))
    learn = learner(MadeUp(trades=1.0, ratio=1.0))
    learn.opt_func = opt
    learn.fit(4, 1e-2, cbs=Spy("after_train", look))
    assert all(torch.equal(a, b) for a, b in zip(ends[1], ends[2]))
    assert not any(torch.equal(a, b) for a, b in zip(ends[2], ends[3]))
    log = learn.guard_log
    assert log.rolled_back.tolist() == [False, False, True, False] and "weights of epoch 1" in log.note[2]
    assert list(log.note[[0, 1, 3]]) == ["", "", ""] and set(log.images) == {BS}


def test_a_collapse_with_nothing_to_go_back_to_is_said():
    class Early(MadeUp):
        bad = (0, 1)
    learn = learner(Early(ratio=1.0))
    learn.fit(3, 1e-2)
    log = learn.guard_log
    assert not log.rolled_back[0] and "single step only" in log.note[0] and log.note[2] == ""


def test_roll_back_of_the_average():
    """Else a collapsed epoch stays in what is validated and kept."""
    ema, ends = EMA(0.9), []

    def look(learn):
        ends.append((ema.step, torch.cat([v.double().flatten() for v in ema.average.module.state_dict().values()])))
    learn = learner(MadeUp(ratio=1.0), ema)
    learn.fit(4, 1e-2, cbs=Spy("after_train", look))
    assert ends[1][0] == ends[2][0] < ends[3][0]
    assert torch.equal(ends[1][1], ends[2][1]) and not torch.equal(ends[2][1], ends[3][1])


def test_guard_looks_at_the_largest_budget_of_a_schedule():
    """A schedule that ends at 0 would leave it blind."""
    learn = learner(AdversarialTraining(eps=lambda p: 0.1 * (1 - p), guard=2))
    learn.fit(1)
    assert learn.guard_log.eps.tolist() == [0.1]


def test_roll_backs_in_a_row_go_to_the_same_epoch():
    cb = MadeUp()
    cb.bad = (0, 2, 3)
    learn = learner(cb)
    learn.fit(4)
    assert learn.guard_log.rolled_back.tolist() == [False, False, True, True]  # nothing to go back to in epoch 0
    assert "epoch 1" in learn.guard_log.note[2] and "epoch 1" in learn.guard_log.note[3]


def test_guard_measures_a_fixed_batch_and_changes_nothing():
    def run(guard):
        learn = learner(AdversarialTraining(guard=guard, ratio=1.0))
        learn.fit(2)
        return learn
    with_guard, without = run(3), run(0)
    assert torch.equal(weights(with_guard), weights(without)) and len(without.guard_log) == 0
    cb, log = with_guard.adversarial_training, with_guard.guard_log
    assert len(log) == 2 and set(log.steps) == {3} and np.allclose(log.eps, 4/255)
    x, y = cb.watched
    fast, slow = cb._probe()
    assert np.isclose(log.pgd[1], slow) and np.isclose(log.fgsm[1], fast) and slow <= fast and len(x) == len(y) == BS
    assert AdversarialTraining("pgd").guard == 0 and AdversarialTraining(("pgd", "fgsm")).guard == 10


def test_the_best_epoch_under_attack_against_a_loop_of_ones_own():
    """The copy is of the weights at the end of its epoch; what the fit loads is that, or what it had before."""
    g = torch.Generator().manual_seed(4)
    x, y, seen = torch.rand(20, 1, 8, 8, generator=g), torch.arange(20) % 3, []

    class Look(Callback):
        order = 70

        def after_epoch(self):
            seen.append({k: v.clone() for k, v in self.model.state_dict().items()})

    def fitted(**how):
        seen.clear()
        learn = learner(AdversarialTraining("pgd", steps=1), keep := KeepRobust(x, y, 8 / 255, steps=3, seed=2, **how), Look())
        learn.metrics = [AvgMetric(accuracy)]
        with learn.no_logging():
            learn.fit(4, 5e-2)
        return learn.model, keep

    model, keep = fitted()
    rows = []
    for state in seen:
        model.load_state_dict(state)
        model.eval()
        adv = pgd(model, x, y, 8 / 255, steps=3, generator=generator_of(2, 0, 0))
        rows.append([(model(t).argmax(1) == y).float().mean().item() for t in (adv, x)])
    assert [[row["robust"], row["clean"]] for row in keep.log] == rows and rows.index(max(rows)) == keep.best_epoch
    other, kept = fitted(load=False)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), seen[-1].values()))
    assert all(torch.equal(a, b) for a, b in zip(kept.state.values(), seen[kept.best_epoch].values()))
    for bad in (dict(eps=-1), dict(steps=0), dict(images=x[:0])):
        with pytest.raises(ConfigError):
            KeepRobust(**{"images": x, "targets": y} | bad)
    with pytest.raises(ConfigError, match="accuracy"):
        learner(KeepRobust(x, y)).fit(1)


def test_state_goes_on_with_both_logs_and_the_watched_batch():
    first = learner(AdversarialTraining(guard=2))
    first.fit(1)
    state = first.adversarial_training.state_dict()
    cb = AdversarialTraining(guard=2)
    second = learner(cb)

    class Resume(Callback):
        order = -20

        def before_train(self):
            if self.epoch == 1:
                cb.load_state_dict(state)
    second.add_cb(Resume())
    second.fit(2, start_epoch=1)
    assert second.adv_log.epoch.tolist() == [0, 0, 1, 1] and second.guard_log.epoch.tolist() == [0, 1]
    assert torch.equal(cb.watched[0], state["watched"][0])


@pytest.mark.parametrize("error", [CancelFitException(), CancelBatchException(), RuntimeError("boom")])
@pytest.mark.parametrize("at", ["after_pred", "before_backward", "after_backward"])
def test_interrupted_trades_leaves_nothing(at, error):
    cb = AdversarialTraining(trades=2.0)
    learn = learner(cb)
    try:
        learn.fit(1, cbs=Spy(at, lambda learn: raises(error)(learn) if learn.training else None))
    except RuntimeError:
        pass
    learn.fit(1)
    assert cb.adv_rows is None and cb.adv_pred is None and learn.clean_xb is None
    assert learn.adv_log.images.tolist() == [N // 2, N]


def test_trades_without_attacked_rows_is_plain_training():
    ends = []
    for cbs in ([], [AdversarialTraining(trades=5.0, ratio=0.0)]):
        learn = learner(*cbs)
        learn.fit(1)
        ends.append(weights(learn))
    assert torch.equal(*ends)


def test_a_process_without_attacked_rows_goes_through_the_network_as_often_as_the_others():
    """With joint statistics every forward pass waits for all processes: one that made fewer would leave them waiting for ever."""
    calls, real = [], AdversarialTraining._draw

    class Elsewhere(AdversarialTraining):   # the attacked rows of its batches are all in another process's part
        def _draw(self, x):
            found = real(self, x)
            none = torch.zeros(len(x), dtype=torch.bool)
            self.learn.adv_mask, self.shared, self.weight = none, True, 0.0
            self.attacked, self.clean = none.nonzero()[:, 0], (~none).nonzero()[:, 0]
            return found
    ends = []
    for cbs in ([], [Elsewhere(trades=5.0)]):
        learn = learner(*cbs)
        for i in (1, 4, 8):                   # norms and dropout: what one more pass does to these is theirs
            learn.model[i] = nn.Identity()
        learn.model.register_forward_hook(lambda *_: calls.append(learn.model.training))
        calls.clear()
        learn.fit(1)
        ends.append((weights(learn), sum(calls)))
    assert ends[1][1] == 2 * ends[0][1]
    assert torch.allclose(ends[0][0], ends[1][0], atol=1e-6)   # it counts nothing


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "deepfool"])
def test_trades_batches(attack):
    def look(learn):
        if learn.training:
            cb = learn.adversarial_training
            assert torch.equal(learn.xb[0], learn.clean_xb[0]) and len(cb.adv_rows) == BS // 2
            if attack != "deepfool":
                assert (cb.adv_rows - learn.xb[0][learn.adv_mask]).abs().max() <= 8/255 + 1e-6
    learner(AdversarialTraining(attack, eps=8/255, steps=2, trades=1.0)).fit(1, cbs=Spy("after_loss", look))


class Toy(nn.Sequential):
    labels = ()


def teacher_and_student(labels):
    def net(seed):
        torch.manual_seed(seed)
        model = Toy(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                    nn.Linear(128, len(labels)))
        model.labels = labels
        return model
    return net(1).eval(), net(2)


@pytest.mark.parametrize("trades", [0.0, 3.0])
def test_together_with_distillation(trades):
    "The teacher is asked about the clean view, and TRADES adds to the distillation loss rather than being scaled by it."
    faces = make_faces(120, seed=0, defects=None, size=32)[0]
    dls = dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32, views=2)
    teacher, student = teacher_and_student(tuple(dls.vocab))
    asked, extra = [], []
    teacher.register_forward_hook(lambda m, args, z: asked.append(args[0].detach().clone()))
    eadd = EADD([teacher], alpha=0.3, accuracy=np.full((1, 7), 0.5))
    learn = Learner(dls, student, loss_func=nn.CrossEntropyLoss(), cbs=[eadd, AdversarialTraining(ratio=1.0, trades=trades)])
    losses = []

    class Before(Callback):
        order, run_valid = eadd.first + 1, False  # between distillation and TRADES

        def after_loss(self):
            losses.append(float(self.loss_grad.detach()))

    def after(learn):
        assert torch.equal(asked[-1], learn.clean_xb[0])
        cb = learn.adversarial_training
        if trades:
            clean, adv = learn.pred.log_softmax(1), cb.adv_pred.log_softmax(1)
            extra.append(float(trades * (clean.exp() * (clean - adv)).sum(1).mean()))
            assert abs(float(learn.loss_grad) - losses[-1] - extra[-1]) < 1e-4
        else:
            assert float(learn.loss_grad) == losses[-1] and not torch.equal(asked[-1], learn.xb[0])
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, cbs=[Before(), Spy("before_backward", after)])
    assert losses and len(extra) == (len(losses) if trades else 0)
    assert set(learn.adv_log.attack) == ({"fgsm", "clean"} if trades else {"fgsm"})
    learn.remove_cb(EADD)
    with learn.no_logging(), learn.no_bar():
        learn.fit(1)  # and after it
    assert len(learn.guard_log) == 1


# ---- which fit it is ----

class Attack:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, model, x, y, eps, generator):
        return pgd(model, x, y, eps=eps, steps=self.steps, generator=generator)


def bound(by):
    return lambda model, x, y, eps, generator: (x * by).clamp(0, 1)


def test_attacks_of_ones_own_are_told_apart_by_what_they_do():
    each = [lambda m, x, y, eps, generator: fgsm(m, x, y, eps), lambda m, x, y, eps, generator: pgd(m, x, y, eps),
            bound(0.5), bound(0.25), Attack(1), Attack(5), Attack(5).__call__, partial(pgd, steps=3), partial(pgd, steps=30)]
    told = [json.dumps(AdversarialTraining(a).config()) for a in each]
    assert len(set(told)) == len(told)
    assert AdversarialTraining(bound(0.5)).config() == AdversarialTraining(bound(0.5)).config()
    assert AdversarialTraining(Attack(5)).config() == AdversarialTraining(Attack(5)).config()
    assert "code" not in AdversarialTraining("pgd").config()


def test_held_out_images_are_part_of_what_a_fit_is():
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    same, others = KeepRobust(x.clone(), y.clone()).config(), [KeepRobust(1 - x, y), KeepRobust(x, y.flip(0)), KeepRobust(x[:3], y[:3])]
    assert same == KeepRobust(x, y).config() and all(k.config() != same for k in others)


# ---- what is refused before the first hour ----

def test_a_ratio_that_attacks_nobody_is_refused():
    for ratio, fine in ((0.4 / BS, False), (0.6 / BS, True), (0, True)):
        learn = learner(AdversarialTraining(ratio=ratio, guard=0))
        if fine:
            learn.fit(1)
            assert ("fgsm" in learn.adv_log.attack.tolist()) == (ratio > 0)
        else:
            with pytest.raises(ConfigError, match=f"ratio=.* {BS} images.*at least {0.5 / BS:.4g}"):
                learn.fit(1)


def test_held_out_images_and_targets_are_checked():
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    with pytest.raises(ImageError, match="image 0 has values"):
        KeepRobust(255 * x, y)
    with pytest.raises(ImageError, match="images is a ndarray"):
        KeepRobust(x.numpy(), y)
    for targets in (y[:3], y.numpy(), y.float()):
        with pytest.raises(LabelError, match="targets"):
            KeepRobust(x, targets)
    with pytest.raises(LabelError, match="targets has labels from 0 to 3; the model has 3"):
        learn = learner(KeepRobust(x, torch.arange(4), steps=1))
        learn.metrics = [AvgMetric(named(False))]
        learn.fit(1)


@pytest.mark.parametrize("seed", [0.5, 2**70, True])
def test_a_seed_that_is_no_number_of_64_bits_is_refused(seed):
    for make in (lambda: AdversarialTraining(seed=seed), lambda: KeepRobust(torch.rand(1, 1, 8, 8), torch.zeros(1).long(), seed=seed)):
        with pytest.raises(ConfigError, match="seed="):
            make()


# ---- networks that return more ----

class Two(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return z, z.square()


def test_a_network_that_returns_features_too_is_trained_like_one_that_does_not():
    ends = []
    for more in (False, True):
        x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
        cbs = AdversarialTraining(("fgsm", "pgd"), steps=2), KeepRobust(x, y, steps=2)
        learn = learner(*cbs)
        learn.metrics = [AvgMetric(named(more))]
        if more:
            learn.model = Two(learn.model)
            learn.loss_func = lambda z, y: F.cross_entropy(z[0], y)
        else:
            learn.loss_func = lambda z, y: F.cross_entropy(z, y)
        learn.fit(2)
        ends.append((learn.adv_log, learn.guard_log, cbs[1].log, weights(learn)))
    (a, b, c, d), (e, f, g, h) = ends
    assert a.equals(e) and b.equals(f) and c == g and torch.equal(d, h)


def named(more):
    def accuracy(z, y):
        return ((z[0] if more else z).argmax(1) == y).float().mean()
    return accuracy


class Counting:
    "An attack that counts its calls."
    def __init__(self, step=1.0):
        self.calls, self.step = 0, step

    def __call__(self, model, x, y):
        self.calls += 1
        return x


def test_an_attack_is_what_it_was_before_it_was_called():
    attack = Counting()
    term = AdversarialTraining(attack)
    before = term.config()
    attack(None, torch.zeros(1), None)
    assert term.config() == before != AdversarialTraining(Counting(2.0)).config()


@pytest.mark.parametrize("made", [lambda: torch.zeros(3, dtype=torch.bfloat16), lambda: torch.zeros(3).to_sparse(), lambda: {len, max},
                                  lambda: torch.float16, lambda: torch.device("cpu")], ids="abcde")
def test_attacks_may_hold_anything(made):
    from functools import partial
    part = made()
    from fer_nb.train import code_digest
    def attack(model, x, y, held=None):
        return x
    assert len(code_digest(partial(attack, held=part))) == 16
    assert code_digest(partial(attack, held=torch.float16)) != code_digest(partial(attack, held=torch.float32))


# ---- functions of one's own ----

def own(by_backward, clears=False):
    def attack(model, x, y, eps, generator):
        x = x.clone().requires_grad_()
        loss = F.cross_entropy(model(x), y)
        if by_backward:
            loss.backward()
            grad = x.grad
        else:
            grad = torch.autograd.grad(loss, x)[0]
        if clears:
            model.zero_grad()
        return (x + eps * grad.sign()).clamp(0, 1)
    return attack


def test_gradients_of_an_attack_of_ones_own_do_not_reach_the_step():
    from fastai.callback.training import GradientAccumulation
    for more in ((), (GradientAccumulation(2 * BS),)):
        ends = []
        for kind in ((False,), (True,), (True, True)):
            learn = learner(AdversarialTraining(own(*kind), ratio=1.0), *more)
            learn.fit(1)
            ends.append(weights(learn))
        assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_the_log_of_functions_of_ones_own():
    def clean(model, x, y, eps, generator):
        return pgd(model, x, y, eps, steps=2)
    attacks = (lambda m, x, y, eps, generator: x, lambda m, x, y, eps, generator: 1 - x, clean, pgd, "pgd", own(True))
    learn = learner(term := AdversarialTraining(attacks, ratio=1.0, steps=3))
    assert term.kinds == ("<lambda> (1)", "<lambda> (2)", "clean (3)", "pgd (4)", "pgd", "attack") == tuple(term.config()["kind"])
    learn.fit(8)
    log = learn.adv_log.groupby("attack").first()
    assert set(log.index) == set(term.kinds) and log.steps["pgd"] == 3 and log.steps.drop("pgd").isna().all()
    assert AdversarialTraining(("pgd", "pgd")).kinds == ("pgd", "pgd")


def test_what_an_attack_of_ones_own_returns_is_brought_to_the_type_of_the_images():
    for trades in (0, 1):
        learn = learner(AdversarialTraining(lambda m, x, y, eps, generator: 0.5 * x.double(), ratio=1.0, trades=trades))
        learn.fit(1)
        assert learn.adv_log.attack[0] == "<lambda>"
    with pytest.raises(ImageError, match="returned a ndarray; a tensor"):
        learner(AdversarialTraining(lambda m, x, y, eps, generator: x.numpy())).fit(1)


def test_a_search_for_a_learning_rate_leaves_what_was_kept():
    from fastai.callback import schedule  # noqa: F401  (adds lr_find)
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    looks = []

    class Looks(AdversarialTraining):
        def _look(self):
            looks.append(self.epoch)
    keep, best, guarded = KeepRobust(x, y, steps=1, load=False), KeepBest(), Looks(ratio=0.5)
    learn = learner(keep, best, guarded)
    learn.metrics = [AvgMetric(named(False))]
    learn.fit(2)
    before = keep.log, keep.state, best.state, best.best_epoch
    assert len(keep.log) == 2 and looks == [0, 1]
    learn.lr_find(num_it=3 * N // BS, stop_div=False, show_plot=False)
    assert all(a is b for a, b in zip(before[:3], (keep.log, keep.state, best.state)))
    assert before[3] == best.best_epoch and looks == [0, 1]
    learn.fit(1)
    assert len(keep.log) == 1


class Head(nn.Sequential):
    "With a batch norm over features, as fastai's `create_head` has, or another layer there."

    def __init__(self, norm):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Linear(4, 3))


@pytest.mark.parametrize("norm, rows", [(nn.BatchNorm1d(4), 2), (nn.Identity(), 1)])
def test_one_attacked_row_of_trades_goes_with_a_clean_one(norm, rows):
    g = torch.Generator().manual_seed(0)
    items, seen = [(torch.rand(1, 8, 8, generator=g), torch.tensor(i % 3)) for i in range(10)], []   # 8 and 2, of which one is attacked

    def look(learn):
        cb = learn.adversarial_training
        if learn.training and len(cb.attacked) == 1:
            clean, adv = learn.pred.detach()[cb.attacked], cb.adv_pred.detach()
            by_hand = F.kl_div(adv[:1].log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
            base = F.cross_entropy(learn.pred.detach(), learn.y)
            seen.append((len(cb.adv_rows), float(learn.loss_grad.detach() - base), float(by_hand)))
    learn = learner(AdversarialTraining(trades=1.0, guard=0), items=items)
    learn.model = Head(norm)
    learn.fit(1, cbs=Spy("after_loss", look))
    [(found, term, by_hand)] = seen
    assert found == rows and term == pytest.approx(by_hand, abs=1e-6)
    assert learn.adv_log.set_index("attack").images.to_dict() == {"fgsm": 5, "clean": 10}


def own_attack(model, x, y, eps, generator):
    return pgd(model, x, y, eps, generator=generator)


@pytest.mark.parametrize("attack", ["deepfool", "pgd", own_attack])
@pytest.mark.parametrize("trades", [0.0, 1.0])
def test_an_attack_asks_no_other_process(tmp_path, attack, trades):
    def fitted(around=lambda net: net):
        learn = learner(AdversarialTraining(attack, steps=3, trades=trades, guard=0, seed=1))
        learn.model = around(learn.model)
        if around is not nn.parallel.DistributedDataParallel:
            return learn.fit(1) or learn, []
        passes = []
        learn.model.register_forward_pre_hook(lambda net, x: passes.append(net.training))
        return learn.fit(1) or learn, passes

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        learn, passes = fitted(nn.parallel.DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()
    assert passes.count(True) == (N // BS) * (2 if trades else 1)            # as many in each process, whatever its images
    assert passes.count(False) == N // BS                                    # the validation's
    assert torch.allclose(weights(learn), weights(fitted()[0]), atol=1e-5)


# ---- schedules ----

def test_a_schedule_is_known_by_all_that_it_does():
    def begins(at):
        return lambda p: 8 / 255 * (p > at)

    one, same, other = (AdversarialTraining("pgd", eps=begins(at)).config() for at in (.30, .30, .48))
    assert one == same and one["eps"] == other["eps"] and one["schedule"] != other["schedule"] and json.dumps(one)
    assert "schedule" not in AdversarialTraining("pgd", eps=8 / 255).config()


def test_what_a_schedule_calls_is_known_by_its_values():
    def by(inner):   # a global of this name, of which the code of a schedule says no more
        made = AdversarialTraining("pgd", eps=eval("lambda p: helper(p) / 9", {"helper": inner}))
        return made.config()["schedule"]
    assert by(np.square) == by(np.square) != by(np.sqrt)


def test_a_fit_under_another_schedule_does_not_go_on(tmp_path):
    from fer_nb.config import Fit
    from fer_nb.loaders import dataloaders
    from fer_nb.synth import make_faces
    from fer_nb.train import CheckpointError, fit_model
    from toys import small_net
    ds = make_faces(60, seed=1, defects=None)[0]
    train, valid = ds.where(split="train"), ds.where(split="valid")

    def go(at):
        cb = AdversarialTraining("fgsm", eps=lambda p: 8 / 255 * (p > at), guard=0)
        fit_model(small_net(1), dataloaders(train, valid, bs=16), Fit(epochs=1, bs=16, keep="last"), checkpoint=tmp_path / "ck.pt", cbs=[cb])
    go(.30)
    go(.30)
    with pytest.raises(CheckpointError, match="schedule"):
        go(.48)

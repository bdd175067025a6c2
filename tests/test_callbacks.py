"""However a fit ends, what its callbacks borrowed is back; whoever evaluates inside it or after it, they remember what they should."""
import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from fastai.callback.fp16 import AMPMode
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import LRFinder  # noqa: F401  (brings lr_find)
from fastai.callback.tracker import ReduceLROnPlateau, SaveModelCallback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam, OptimWrapper

from fer_nb.advtrain import AdversarialTraining, KeepRobust
from fer_nb.config import Fit
from fer_nb.attacks import pgd
from fer_nb.core import ConfigError, FERError, seed_everything
from fer_nb.data import resized
from fer_nb.distill import EADD
from fer_nb.loaders import dataloaders
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.sqs import SQS
from fer_nb.synth import make_faces
from fer_nb.teachers import teacher_logits
from fer_nb.terms import LossTerm, in_fit, mixer
from fer_nb.train import (EMA, SAM, Accumulate, Amp, CheckInputRange, FreezeBody, KeepBest, Mix, Progress, ResumableLearner, StopOnNaN, TrainingError, fit_model,
                          layer_groups, read_checkpoint)

TINY = HyFERConfig(8, ((12, 2, 2), (16, 2, 2)), 16, 1, 1, 32, True, "relu", 24)
CALLBACKS = {"EADD": lambda: [EADD([hyfer(7)], accuracy="running")], "SQS": lambda: [SQS()],
             "AdversarialTraining": lambda: [AdversarialTraining("fgsm", guard=1)],
             "all three": lambda: [EADD([hyfer(7)]), SQS(), AdversarialTraining("pgd", steps=1)]}
ENDINGS = {"end": None, "cancelled batch": CancelBatchException, "cancelled fit": CancelFitException, "exception": RuntimeError}
PHASES = {"before_batch": True, "after_pred": True, "after_backward": True, "before_validate": False, "validation batch": False}
ROWS = [("end", "before_batch"), *((e, p) for e in list(ENDINGS)[1:] for p in PHASES if (e, p) != ("cancelled batch", "before_validate"))]
ROWS = [(*row, Learner) for row in ROWS] + [(*row, ResumableLearner) for row in ROWS if row[0] == "exception"]


class Ending(Callback):
    "Ends the fit in its second epoch, at the second batch or in the validation."
    order = 100

    def __init__(self, phase, error):
        self.event, self.error = {"validation batch": "after_pred"}.get(phase, phase), error
        setattr(self, self.event, self.maybe)
        self.training_only = PHASES[phase]

    def maybe(self):
        here = self.epoch == 1 and (self.event == "before_validate" or (self.training == self.training_only and self.iter == self.training))
        if here and self.error:
            raise self.error("over")


class Plain(Callback):
    "The loss of every validation batch."

    def __init__(self):
        self.losses = []

    def after_loss(self):
        if not self.training:
            self.losses.append((self.loss.item(), self.learn.loss_func(self.pred, self.y).item()))


def hyfer(seed=1):
    torch.manual_seed(seed)
    model = HyFER(in_chans=1, variant=TINY)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0  # a second pass would draw
    return model


@pytest.fixture(scope="module")
def faces():
    ds = resized(make_faces(60, seed=0, defects=None, balance="uniform")[0], 24)
    return ds.where(split="train").take(range(32)), ds.where(split=["valid", "test"])


def modes(module):
    return [m.training for m in module.modules()]


def hooks(module):
    tables = [getattr(m, name) for m in module.modules() for name in vars(m) if name.endswith("_hooks") and name.startswith("_")]
    return [len(table) for table in tables if table is not None] + [p._backward_hooks for p in module.parameters()]


def chance():
    return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state().tolist()


def broken_fit(make, faces, ending, phase, kind):
    "A fit that ends like this; the learner, and everything that it must not have kept."
    model, cbs, loss = hyfer(), make(), CrossEntropyLossFlat(label_smoothing=0.1)
    teachers = [t.network for cb in cbs if isinstance(cb, EADD) for t in cb.teachers]
    states = [copy.deepcopy(t.state_dict()) for t in teachers]
    seed_everything(0)
    learn = kind(dataloaders(*faces, bs=16, device="cpu"), model, loss, cbs=[*cbs, plain := Plain(), Ending(phase, ENDINGS[ending])])
    learn.remove_cb(ProgressCallback)
    state = dict(vars(loss))
    with learn.no_logging():
        try:
            learn.fit(2, 1e-3)
        except RuntimeError:
            assert ENDINGS[ending] is RuntimeError
    assert learn.model is model and learn.loss_func is loss and vars(loss) == state
    assert all(a == b for a, b in plain.losses)
    for teacher, before in zip(teachers, states):
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()) and not any(modes(teacher))
        assert all(p.grad is None for p in teacher.parameters())
    rest = {"modes": modes(model), "hooks": hooks(model), "taken": [p.requires_grad for p in model.parameters()],
            "gradients": [p.grad is not None and bool(p.grad.any()) for p in model.parameters()], "chance": chance(),
            "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(), "autocast": torch.is_autocast_enabled("cpu")}
    return learn, rest


@pytest.fixture(scope="module")
def controls(faces):
    made = {}

    def control(*how):
        "The same without any of the three."
        if how not in made:
            made[how] = broken_fit(list, faces, *how)[1]
        return made[how]
    return control


@pytest.mark.parametrize("ending, phase, kind", ROWS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_what_was_borrowed_is_back(faces, controls, name, ending, phase, kind):
    learn, rest = broken_fit(CALLBACKS[name], faces, ending, phase, kind)
    same = controls(ending, phase, kind)
    differ = [k for k in rest if rest[k] != same[k]]
    assert not differ, {k: (rest[k], same[k]) for k in differ if k != "chance"} or differ
    clean_copy = copy.deepcopy(learn.model).eval()
    weights = learn.model.state_dict()
    x = faces[1].array()[:4, None] / np.float32(255)
    with torch.no_grad():
        first = clean_copy(torch.from_numpy(x))
        clean_copy.load_state_dict({k: v if "running" in k or "tracked" in k else 0.9 * v for k, v in weights.items()})
        assert not torch.equal(clean_copy(torch.from_numpy(x)), first)  # a copy is a network of its own
        assert torch.equal(learn.model.eval()(torch.from_numpy(x)), first) and "forward_features" not in vars(learn.model)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, Ending)])
    with learn.no_logging():
        learn.fit(1, 1e-3)
    for log in (getattr(learn, n, None) for n in ("adv_log", "sqs_log")):
        assert log is None or set(log.epoch) == {0}
    assert getattr(learn, "clean_xb", None) is None and getattr(learn, "adv_mask", None) is None


@pytest.mark.parametrize("kind", [Learner, ResumableLearner])
def test_an_attack_that_fails_half_way(faces, kind):
    """The error comes from within: modes, flags and gradients are those of before the batch."""
    def attack(model, x, y, eps, generator):
        x = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(model(x), y).backward(inputs=[x])
        raise RuntimeError("gone")

    learn, rest = broken_fit(lambda: [AdversarialTraining(attack)], faces, "exception", "before_batch", kind)
    assert all(rest["modes"]) and all(rest["taken"]) and not any(rest["gradients"])


def test_a_teacher_that_fails_half_way(faces):
    class Gone(torch.nn.Module):
        labels = hyfer().labels

        def forward(self, x):
            raise RuntimeError("gone")

    learn, rest = broken_fit(lambda: [EADD([Gone()], accuracy="running"), SQS()], faces, "exception", "after_backward", ResumableLearner)
    assert all(rest["modes"]) and not any(rest["gradients"]) and rest["grad"] and "forward_features" not in vars(learn.model)


# ---- an evaluation inside a fit, and callbacks outside of one ----

class Looks(Callback):
    "Evaluates in the middle of a fit, in one of the ways that fastai has, then in another."

    busy = False   # of all of them: an evaluation has no room for another

    def __init__(self, when, order):
        self.order, self.looked = order, 0
        setattr(self, when, self.look)

    def look(self):
        if Looks.busy:
            return
        Looks.busy, self.looked = True, self.looked + 1
        with self.learn.no_bar(), self.learn.no_logging():
            if self.looked % 3 == 1:
                self.learn.validate()
            elif self.looked % 3 == 2:
                self.learn.get_preds(with_loss=mixer(self.learn) is None)   # fastai's MixUp knows no single losses
            else:
                self.learn.get_preds(dl=self.dls.test_dl([np.zeros((24, 24), np.uint8)]))
        Looks.busy = False


OURS = {"KeepBest": lambda: KeepBest(patience=3), "Progress": lambda: Progress("x", show=False), "StopOnNaN": StopOnNaN, "CheckInputRange": CheckInputRange,
        "EMA": lambda: EMA(0.9), "Mix": Mix, "FreezeBody": lambda: FreezeBody(2), "Accumulate": lambda: Accumulate(2), "SAM": SAM, "Amp": lambda: Amp("bf16"),
        "EADD": lambda: EADD([hyfer(7)], accuracy="running"), "EADD, valid": lambda: EADD([hyfer(7)]), "SQS": SQS,
        "AdversarialTraining": lambda: AdversarialTraining("fgsm", guard=1, collapse=0.99),
        "KeepRobust": lambda: KeepRobust(torch.rand(9, 1, 24, 24, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 7, steps=1)}
WHEN = [("before_fit", 100), ("before_epoch", 0), ("before_train", 80), ("before_batch", -60), ("after_loss", 95), ("after_backward", 0), ("after_batch", 65),
        ("after_train", 65), ("before_validate", 40), ("after_validate", 65), ("after_epoch", 55), ("after_epoch", 65), ("after_fit", 80)]


def memory(cb):
    "What a callback of ours knows after a fit."
    state = cb.state_dict() if hasattr(type(cb), "state_dict") and not isinstance(cb, Amp) else {}
    more = {k: getattr(cb, k) for k in ("best", "best_epoch", "step", "count", "frozen", "raw") if k in vars(cb)}
    logs = {k: getattr(cb.learn, k) for k in ("adv_log", "guard_log", "sqs_log") if k in vars(cb.learn)}
    return flattened([state, more, {k: v.to_dict("list") for k, v in logs.items()}])


def flattened(v):
    if isinstance(v, torch.Tensor):
        return v.tolist()
    if isinstance(v, dict):
        return {k: flattened(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [flattened(x) for x in v]
    return None if isinstance(v, float) and v != v else v


def looked_at(make, faces, looks=(), cbs=(), epochs=2):
    seed_everything(0)
    learn = Learner(dataloaders(*faces, bs=16, device="cpu"), hyfer(), CrossEntropyLossFlat(), metrics=accuracy,
                    cbs=[cb := make(), *cbs, *(Looks(*look) for look in looks)])
    learn.remove_cb(ProgressCallback)
    with learn.no_logging():
        learn.fit(epochs, 1e-2)
    recorder = str(list(map(list, learn.recorder.values)))
    return learn, memory(cb), recorder, torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])


@pytest.fixture(scope="module")
def undisturbed_fits(faces):
    made = {}
    return lambda name: made.setdefault(name, None) or made.update({name: looked_at(OURS[name], faces)}) or made[name]


def nothing_changes(faces, fits, name, looks):
    _, known, recorded, weights = fits(name)
    learn, *found = looked_at(OURS[name], faces, looks)
    assert found[0] == known and torch.equal(found[2], weights) and not {"validation_context", "_with_events"} & {*vars(learn)}
    assert found[1] == recorded or "after_fit" in dict(looks)   # when fastai's own log may be over
    assert all(cb.looked for cb in learn.cbs if isinstance(cb, Looks))


@pytest.mark.parametrize("name", OURS)
def test_evaluations_inside_a_fit_change_nothing(faces, undisturbed_fits, name):
    """What the callback knows, what fastai recorded, all weights: those of the fit that nobody looked at."""
    nothing_changes(faces, undisturbed_fits, name, WHEN[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("look", WHEN, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_an_evaluation_at_any_place_changes_nothing(faces, undisturbed_fits, name, look):
    nothing_changes(faces, undisturbed_fits, name, [look])


RECIPES = {"plain": {}, "all": {"ema": 0.9, "clip": 1.0, "freeze_epochs": 1, "accumulate": 2, "early_lr": 1e-3}, "mix": {"mix": 0.4}, "bf16": {"amp": "bf16"},
           "focal": {"loss": "focal", "smoothing": 0.1}, "sam": {"sam": 0.05}, "early stop": {"patience": 1, "epochs": 5}, "last": {"keep": "last", "ema": 0.9}}


@pytest.mark.parametrize("recipe", [r if r in ("all", "focal", "last") else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES])
def test_a_recipe_that_is_looked_at(faces, tmp_path, recipe):
    """History, result and the checkpoint's every number are those of the recipe alone."""
    def fitted(path, cbs):
        model = hyfer()
        history = fit_model(model, dataloaders(*faces, bs=16, device="cpu"), Fit(**{"epochs": 2, "lr": 1e-2, "bs": 16} | RECIPES[recipe]), cbs, checkpoint=path, seed=1)
        held = read_checkpoint(path)
        return history.values.tolist(), flattened(model.state_dict()), flattened({k: held[k] for k in ("epoch", "model", "optimizer", "smooth_loss", "train_iter", "callbacks")} | {"torch": held["rng"]["torch"]})

    looks = [Looks(*at) for at in (("before_epoch", 80), ("after_batch", 20), ("after_epoch", 55), ("after_epoch", 65), ("after_fit", 10))]
    assert fitted(tmp_path / "looked", looks) == fitted(tmp_path / "alone", [])


def test_fastais_own_callbacks_go_on_too(faces):
    """What the plateau has seen, and the average loss, are those of the fit."""
    def fitted(when=None):
        learn, *_ = looked_at(KeepBest, faces, [(when, 55)] if when else [], cbs=[ReduceLROnPlateau("valid_loss", patience=1), GradientAccumulation(32)], epochs=5)
        return learn.recorder.lrs, [float(v) for v in learn.recorder.losses], learn.recorder.iters
    assert fitted("after_epoch") == fitted("after_batch") == fitted()


def test_after_a_fit_that_crashed_an_evaluation_is_of_the_weights_as_they_are(faces):
    """EMA swaps within a fit that is running, and no other."""
    learn, *_ = looked_at(lambda: EMA(0.9), faces)
    learn.add_cb(Ending("after_backward", RuntimeError))
    with learn.no_logging(), learn.no_bar():
        with pytest.raises(RuntimeError):
            learn.fit(2, 1e-2)
        mine = copy.deepcopy(learn.model).eval()
        x, y = learn.dls.valid.one_batch()
        with torch.no_grad():
            assert torch.equal(learn.get_preds(dl=[(x, y)], act=lambda z: z)[0], mine(x.as_subclass(torch.Tensor)).cpu())
    assert not in_fit(learn)


@pytest.mark.parametrize("fit_first", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", OURS)
def test_outside_of_a_fit(faces, tmp_path, name, fit_first):
    """Losses of single images, images without labels, and a learner that was exported: as without the callback."""
    learn, plain = (Learner(dataloaders(*faces, bs=16, device="cpu"), hyfer(), CrossEntropyLossFlat(), cbs=cbs, path=tmp_path, metrics=accuracy)
                    for cbs in ([OURS[name]()], []))
    with learn.no_bar(), learn.no_logging(), plain.no_bar(), plain.no_logging():
        if fit_first:
            learn.fit(1, 1e-3)
            plain.model.load_state_dict(learn.model.state_dict())
        known, near = memory(learn.cbs[-1]) if fit_first else None, dict(atol=0.05 if name == "Amp" else 0)
        for one, other in zip(learn.get_preds(with_loss=True), plain.get_preds(with_loss=True)):
            assert torch.allclose(one, other, **near)
        images = [faces[1].image(0), faces[1].image(1)]
        for some in (learn, plain):
            some.found = some.get_preds(dl=some.dls.test_dl(images))[0]
        assert torch.allclose(learn.found, plain.found, **near)
        assert np.allclose(learn.validate(), plain.validate(), **near)
        learn.metrics = []
        learn.get_preds()
        assert not fit_first or memory(learn.cbs[-1]) == known
        learn.export("x.pkl")
        loaded = load_learner(tmp_path / "x.pkl")
        with loaded.no_bar():
            assert torch.allclose(loaded.get_preds(dl=loaded.dls.test_dl(images))[0], plain.found, **near)


def test_a_loss_that_is_nan_is_found_in_every_evaluation_and_ends_a_search(faces):
    learn = Learner(dataloaders(*faces, bs=16, device="cpu"), hyfer(), CrossEntropyLossFlat(), cbs=StopOnNaN())
    start = copy.deepcopy(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(start_lr=1.0, end_lr=1e30, num_it=12, stop_div=False, show_plot=False, suggest_funcs=())
        assert all(torch.equal(v, start[k]) for k, v in learn.model.state_dict().items())
        torch.nn.init.constant_(next(learn.model.parameters()), torch.nan)
        for ask in (learn.validate, lambda: learn.get_preds(with_loss=True)):
            with pytest.raises(TrainingError, match="the loss is nan in epoch 1, validation batch 1"):
                ask()


@pytest.mark.parametrize("opt", [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=["fastai's", "PyTorch's"])
def test_a_body_that_is_frozen_in_a_later_fit_stays(faces, opt):
    """Moments of an earlier fit, and decay, do not move it; afterwards it is trained again."""
    learn = Learner(dataloaders(*faces, bs=16, device="cpu"), hyfer(), CrossEntropyLossFlat(), opt_func=opt, wd=0.1)

    def body():
        return torch.cat([p.detach().flatten().clone() for group in layer_groups(learn.model)[:-1] for p in group])

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        before = body()
        learn.fit(2, 1e-2, cbs=FreezeBody(2))
        assert torch.equal(body(), before)
        learn.fit(2, 1e-2, cbs=FreezeBody(1))
        assert not torch.equal(body(), before)


def test_no_batch_is_no_training():
    from fastai.data.core import DataLoaders
    data = torch.utils.data.TensorDataset(torch.rand(20, 1, 24, 24), torch.arange(20) % 7)
    dls = DataLoaders(torch.utils.data.DataLoader(data, batch_size=64, drop_last=True), torch.utils.data.DataLoader(data, batch_size=64))
    with pytest.raises(ConfigError, match="no batch to train on"):
        fit_model(hyfer(0), dls, Fit(epochs=1, bs=64))


class SumInside(torch.nn.Module):
    def forward(self, z, y):
        return torch.nn.functional.cross_entropy(z, y, reduction="sum")


@pytest.mark.parametrize("loss", [SumInside(), lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction="sum")])
@pytest.mark.parametrize("cbs", [lambda: [EADD([hyfer(7)], accuracy="running")], lambda: [SQS()]])
def test_a_hidden_sum_is_refused(faces, loss, cbs):
    learn = Learner(dataloaders(*faces, 16, device="cpu"), hyfer(0), loss, metrics=accuracy, cbs=cbs(), path="/nowhere")
    with pytest.raises(ConfigError, match="a sum over the images"), learn.no_bar(), learn.no_logging():
        learn.fit(1)


class Reduces(Callback):
    "Somebody's weights of the images of a batch."
    order = 5

    def after_loss(self):
        self.learn.loss_grad = self.learn.loss_grad.sum() if self.training else self.learn.loss_grad.mean()


@pytest.mark.parametrize("cbs", [lambda: [EADD([hyfer(7)], accuracy="running")], lambda: [SQS()], lambda: [AdversarialTraining(trades=1.0, guard=0)]])
def test_a_loss_of_each_image_is_refused(faces, cbs):
    def loss(z, y):
        return torch.nn.functional.cross_entropy(z, y, reduction="none")
    learn = Learner(dataloaders(*faces, 16, device="cpu"), hyfer(0), loss, cbs=[*cbs(), Reduces()], path="/nowhere")
    with pytest.raises(ConfigError, match=r"losses of shape \(16,\); their mean expected"), learn.no_bar(), learn.no_logging():
        learn.fit(1)


class OfShares(torch.nn.KLDivLoss):
    def forward(self, z, y):
        return super().forward(z.log_softmax(1), torch.nn.functional.one_hot(y.long(), 7).float())


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(), lambda z, y: torch.nn.functional.cross_entropy(z, y, label_smoothing=.1),
                                  torch.nn.CrossEntropyLoss(weight=torch.arange(1., 8.)), OfShares(reduction="batchmean")])
def test_a_mean_is_taken_whatever_it_is_made_of(faces, loss):
    learn = Learner(dataloaders(*faces, 16, device="cpu"), hyfer(0), loss, metrics=accuracy, cbs=[EADD([hyfer(7)], accuracy="running")], path="/nowhere")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


@pytest.mark.parametrize("event", ["after_batch", "after_step", "after_pred"])
def test_a_look_at_the_training_images_inside_a_fit_changes_nothing(faces, event):
    def weights(look):
        class Look(Callback):
            order, busy = 50, False

            def here(self):
                if look and self.learn.training and self.iter == 1 and not self.busy:
                    self.busy = True
                    with self.learn.no_bar():
                        self.learn.validate(ds_idx=0)
                    self.busy = False

        setattr(Look, event, Look.here)
        dls = dataloaders(*faces, 16, device="cpu", views=3)
        learn = ResumableLearner(dls, hyfer(0), CrossEntropyLossFlat(), partial(OptimWrapper, opt=torch.optim.AdamW), metrics=accuracy,
                                 cbs=[EADD([teacher_logits(hyfer(7), dls.train, dls.valid)]), Look()], path="/nowhere")
        seed_everything(1)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-2)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    assert torch.equal(weights(True), weights(False))


def test_the_average_counts_the_steps_that_were_made(faces):
    class Overflow(Callback):
        order = 8

        def after_backward(self):
            if self.learn.train_iter < 1:
                for p in self.model.parameters():
                    if p.grad is not None:
                        p.grad.fill_(float("inf"))

    ema, steps = EMA(0.99), []
    learn = Learner(dataloaders(*faces, 16, device="cpu"), hyfer(0), CrossEntropyLossFlat(), partial(OptimWrapper, opt=torch.optim.SGD), metrics=accuracy,
                    cbs=[Amp(AMPMode.FP16), ema, Overflow()], path="/nowhere")
    learn.create_opt()
    made = learn.opt.opt.step
    learn.opt.opt.step = lambda *a, **k: steps.append(1) or made(*a, **k)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert 0 < ema.step == len(steps) < len(learn.dls.train)


@pytest.mark.parametrize(("before", "after"), [
    (lambda: GradientClip(0.01), lambda: GradientClip(100)), (lambda: GradientAccumulation(16), lambda: GradientAccumulation(32)),
    (lambda: MixUp(0.1), lambda: MixUp(8)),
    (lambda: AdversarialTraining(partial(pgd, steps=1)), lambda: AdversarialTraining(partial(pgd, steps=20)))])
def test_a_checkpoint_of_callbacks_with_other_settings_is_refused(faces, tmp_path, before, after):
    fit = Fit(epochs=2, bs=16, augment=None)
    for cbs, again in ((before, False), (before, True), (after, None)):
        dls, run = dataloaders(*faces, 16, device="cpu"), lambda: fit_model(hyfer(0), dls, fit, [cbs()], checkpoint=tmp_path / "fit.ckpt")  # noqa: B023
        if again is None:
            with pytest.raises(FERError, match="callbacks"):
                run()
        else:
            run()


class OfThisBatch(torch.nn.Module):
    "A loss with a weight for each image of the batch it was made for."

    def forward(self, z, y):
        return (torch.nn.functional.cross_entropy(z, y, reduction="none") * torch.ones(14)).mean()


def test_a_loss_of_one_batch_alone_is_left_in_peace(faces):
    train, valid = faces[0].take(range(28)), faces[1].take(range(14))
    learn = Learner(dataloaders(train, valid, 14, device="cpu"), hyfer(0), OfThisBatch(), metrics=[], cbs=[EADD([hyfer(7)], accuracy="running")], path="/nowhere")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


# ---- fits that fail or are interrupted in a plain Learner; two of a kind; what fastai's callbacks load at the end ----

class Interrupts(Callback):
    "Ctrl-C, or another end, in a batch of training or of validation."
    order = 50

    def __init__(self, training, error=KeyboardInterrupt, epoch=0, event="after_pred"):
        self.there, self.error, self.at = training, error, epoch
        setattr(self, event, self.end)

    def end(self):
        if self.training == self.there and self.epoch == self.at:
            raise self.error


def plain_learner(faces, cbs, model=None, **more):
    learn = Learner(dataloaders(*faces, bs=16, device="cpu"), model or hyfer(), CrossEntropyLossFlat(), cbs=cbs, **{"metrics": accuracy} | more)
    learn.remove_cb(ProgressCallback)
    return learn


def fitted_quietly(learn, epochs=1, **how):
    seed_everything(0)
    with learn.no_logging(), learn.no_bar():
        learn.fit(epochs, 1e-2, **how)
    return learn


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Softened(torch.nn.Module):
    "A network that is refused after its first forward pass."

    def __init__(self, net):
        super().__init__()
        self.net, self.labels = net, net.labels

    def forward(self, x):
        return self.net(x).softmax(1)


@pytest.mark.parametrize("other, error", [(CheckInputRange, ConfigError), (lambda: EADD([Softened(hyfer(7))], accuracy="running"), ConfigError),
                                          (lambda: Interrupts(True), KeyboardInterrupt), (lambda: Interrupts(False), KeyboardInterrupt)])
def test_mixed_precision_ends_with_a_fit_that_fails_in_a_plain_learner(faces, other, error):
    model = Softened(hyfer()) if other is CheckInputRange else hyfer()
    learn = plain_learner(faces, [Amp("bf16"), other()], model)
    with pytest.raises(error):
        fitted_quietly(learn)
    assert not torch.is_autocast_enabled("cpu") and not any("forward" in vars(m) for m in model.modules())
    assert not {"validation_context", "_with_events"} & {*vars(learn)} and not any(cb.begun for cb in learn.cbs if hasattr(cb, "begun"))


@pytest.mark.parametrize("event, order", [("before_batch", 50), ("after_pred", 0), ("after_loss", 5)])
def test_mixed_precision_ends_with_its_batch_where_there_was_an_evaluation_inside(faces, event, order):
    look, seen = Looks(event, order), []
    after = Callback(after_backward=lambda cb: seen.append(torch.is_autocast_enabled("cpu")))
    one = fitted_quietly(plain_learner(faces, [Amp("bf16"), look, after]))
    assert look.looked and not any(seen) and not torch.is_autocast_enabled("cpu")
    assert torch.equal(parameters(one.model), parameters(fitted_quietly(plain_learner(faces, [Amp("bf16")])).model))


def test_the_trained_weights_are_back_after_an_interrupted_validation(faces):
    """Also where the same average serves another learner afterwards: that one trains its own network."""
    ema, first, new = EMA(0.9), hyfer(1), hyfer(2)
    one = plain_learner(faces, [ema, Interrupts(False)], first)
    with pytest.raises(KeyboardInterrupt):
        fitted_quietly(one)
    assert one.model is first
    ema.raw, before = (one, first), parameters(new)   # as after an end that no callback hears of
    two = fitted_quietly(plain_learner(faces, [ema], new))
    assert two.model is new and not torch.equal(parameters(new), before)


def test_a_body_is_trained_again_after_an_interrupted_fit(faces):
    model = hyfer()
    with pytest.raises(KeyboardInterrupt):
        fitted_quietly(plain_learner(faces, [FreezeBody(1), Interrupts(True)], model))
    assert all(p.requires_grad for p in model.parameters())


TWICE = {"EADD": lambda: EADD([hyfer(7)], accuracy="running"), "SQS": SQS, "AdversarialTraining": lambda: AdversarialTraining("fgsm", guard=0),
         "EMA": lambda: EMA(0.9), "Amp": lambda: Amp("bf16"), "SAM": SAM, "Accumulate": lambda: Accumulate(2), "FreezeBody": lambda: FreezeBody(1), "Mix": Mix}


@pytest.mark.parametrize("name", TWICE)
def test_two_of_a_kind_are_refused(faces, name):
    """Whether one was added twice, in the learner or for the fit, or two were made."""
    cb = TWICE[name]()
    for cbs, more in (([cb, cb], {}), ([cb], {"cbs": cb}), ([cb, TWICE[name]()], {})):
        with pytest.raises(ConfigError, match=f"2 callbacks {name} in this learner"):
            fitted_quietly(plain_learner(faces, cbs), **more)


def test_one_made_from_another_is_of_its_kind_and_terms_of_ones_own_are_not(faces):
    class Mine(EMA):
        pass

    class Term(LossTerm):
        def after_loss(self):
            self.learn.loss_grad = self.learn.loss_grad + 0 * self.learn.pred.float().mean()

    with pytest.raises(ConfigError, match="2 callbacks EMA in this learner"):
        fitted_quietly(plain_learner(faces, [EMA(.9), Mine(.9)]))
    fitted_quietly(plain_learner(faces, [Term(), Term()]))


def test_two_of_a_kind_are_refused_by_fit_model(faces):
    with pytest.raises(ConfigError, match="2 callbacks EADD in this learner.*a list of teachers"):
        fit_model(hyfer(), dataloaders(*faces, bs=16, device="cpu"), 1, cbs=[TWICE["EADD"]()] * 2)


@pytest.mark.parametrize("end", [None, ("after_epoch", False), ("after_batch", False)])
def test_the_weights_that_fastai_saved_are_those_that_the_learner_ends_with(faces, tmp_path, end):
    """An average beside `SaveModelCallback`, whether the fit comes to its end or a callback ends it."""
    cbs = [EMA(0.5), SaveModelCallback(monitor="valid_loss")]
    if end:
        cbs.append(stop := Interrupts(end[1], CancelFitException, 1, end[0]))
        stop.order = 0
    learn = fitted_quietly(plain_learner(faces, cbs, path=tmp_path), 3)
    saved = torch.load(tmp_path / "models/model.pth", weights_only=False)
    saved = saved.get("model", saved)
    assert all(torch.equal(v, saved[k]) for k, v in learn.model.state_dict().items())


def test_the_second_pass_is_not_in_cumulative_averages(faces):
    """Batch norms without momentum average over all batches: SAM's second pass is none."""
    def ends(cbs):
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm2d(1, momentum=None)
        model = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(576, 7))
        fitted_quietly(plain_learner(faces, cbs, model))
        return norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert all(torch.equal(a, b) for a, b in zip(ends([SAM()]), ends([])))


class InDicts(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return {"image": torch.full((1, 24, 24), i / 32)}, i % 7


@pytest.mark.parametrize("make", [CheckInputRange, Mix, TWICE["EADD"], TWICE["AdversarialTraining"]])
def test_inputs_that_are_no_tensor_are_told(make):
    class Takes(torch.nn.Module):
        labels = hyfer().labels

        def __init__(self):
            super().__init__()
            self.net = hyfer()

        def forward(self, x):
            return self.net(x["image"])
    dls = DataLoaders(*(torch.utils.data.DataLoader(InDicts(), 8) for _ in range(2)))
    learn = Learner(dls, Takes(), CrossEntropyLossFlat(), cbs=make(), path="/nowhere")
    with pytest.raises(ConfigError, match="the first input of a batch is a dict; a tensor"):
        fitted_quietly(learn)

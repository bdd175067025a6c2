"""Fitting: selection, restoring, settings, checkpoints that are refused, failure paths. (Exact resume: test_resume.py.)"""
import errno
import hashlib
import io
import os
import pickle
import warnings
from functools import partial

import fastai.data.load
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from timm.layers import create_conv2d
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.config import OPTIMISERS, Fit
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, LabelError, seed_everything
from fer_nb.loaders import dataloaders
from fer_nb.models import HyFER, load_teacher, save
from fer_nb.synth import make_faces
from fer_nb.train import (EMA, Amp, CheckInputRange, Checkpoint, CheckpointError, FocalCrossEntropy, KeepBest, Mix, ResumableLearner, TrainingError,
                          fit_model, make_loaders, make_network, read_checkpoint, write_checkpoint)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 7))


class On(Callback):
    "Do something at one event of one epoch."

    def __init__(self, event, what, epoch=0, training=True, order=40):
        self.event, self.what, self.at, self.only_training, self.order = event, what, epoch, training, order

    def __call__(self, event_name):
        if event_name == self.event and self.learn.epoch == self.at and self.learn.training == self.only_training:
            self.what(self.learn)


def throw(error):
    def act(learn):
        raise error
    return act


def learner(dls, model, *cbs):
    learn = ResumableLearner(dls, model, CrossEntropyLossFlat(), partial(OptimWrapper, opt=torch.optim.SGD), cbs=cbs, metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    return learn


def test_best_epoch_wins(dls):
    """The weights that come out are those of the epoch with the best validation accuracy, whichever it was."""
    states = []

    class Watch(Callback):
        order = 65

        def after_epoch(self):
            states.append({k: v.clone() for k, v in self.model.state_dict().items()})

    model = net()
    history = fit_model(model, dls, 5, lr=0.3, cbs=[Watch()])
    best = history.sort_values(["accuracy", "valid_loss"], ascending=[False, True]).epoch.iloc[0] - 1
    assert all(torch.equal(v, states[best][k]) for k, v in model.state_dict().items())


def test_same_seed_same_weights(dls):
    def once():
        dls.train.epoch = 0
        model = net(3)
        fit_model(model, dls, 2, seed=5)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(once(), once())


def test_an_error_in_training_is_not_swallowed(dls):
    class Break(Callback):
        def after_loss(self):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fit_model(net(), dls, 1, cbs=[Break()])


def test_keepbest_forgets_an_earlier_fit(dls):
    keep = KeepBest()
    first, second = net(1), net(2)
    fit_model(first, dls, 2, lr=1e-2, cbs=[keep])
    snapshot = {k: v.clone() for k, v in first.state_dict().items()}
    fit_model(second, dls, 1, lr=1e-5, cbs=[keep])
    assert all(torch.equal(v, snapshot[k]) for k, v in first.state_dict().items())
    assert not torch.equal(second[3].weight, first[3].weight)


@pytest.mark.parametrize("error", [ConfigError("no"), KeyboardInterrupt(), CancelFitException()])
def test_a_fit_that_is_refused_before_it_begins_leaves_the_weights(dls, error):
    """Not those of the best epoch of the fit before it."""
    class Refuse(Callback):
        order = -5

        def before_fit(self):
            raise error

    learn = learner(dls, model := net(), KeepBest())
    learn.fit(2, 1e-2)
    nn.init.constant_(model[3].bias, 7.0)
    try:
        learn.fit(1, 1e-2, cbs=[Refuse()])
    except (ConfigError, KeyboardInterrupt):
        pass
    assert model[3].bias.eq(7).all()
    learn.metrics = []                              # KeepBest itself refuses, in its `before_fit`
    with pytest.raises(ConfigError, match="KeepBest chooses by the accuracy"):
        learn.fit(1, 1e-2)
    assert model[3].bias.eq(7).all()


def test_progress_lines_where_there_is_no_terminal(dls, capsys):
    fit_model(net(), dls, 2, phase="student", show=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["student", "student"]
    assert "epoch 2/2" in lines[1]


# ---------------------------------------------------------------- settings

def test_the_default_schedule_is_fastais_one_cycle(dls):
    """The same weights as `fit_one_cycle` of a plain Learner, step by step: the checkpoint machinery changes nothing."""
    model, plain = net(), net().to(memory_format=torch.channels_last)
    fit_model(model, dls, 1, lr=1e-2, wd=0.05, seed=2)
    dls.train.epoch = 0
    seed_everything(2)
    learn = Learner(dls, plain, CrossEntropyLossFlat(label_smoothing=0.1), metrics=accuracy, wd=0.05,
                    opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5, fused=True))
    learn.remove_cb(ProgressCallback)
    with learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_no_decay_on_norms_and_biases(dls, optimiser):
    """Without a gradient, decay is all that moves a weight: norms and biases stay, matrices shrink; of every optimiser."""
    def after(**changes):
        model = net()
        nn.init.ones_(model[3].bias)
        zero = On("before_step", lambda learn: [p.grad.zero_() for p in learn.model.parameters()])
        fit_model(model, dls, 1, lr=0.1, wd=0.5, cbs=[zero], optimiser=optimiser, **changes)
        return [model[2].weight.mean().item(), model[3].bias.mean().item(), model[3].weight.norm().item()]

    (norm, bias, matrix), every, start = after(decay_all=False), after(), net()[3].weight.norm().item()
    assert norm == bias == 1 and matrix < 0.9999 * start and max(every[:2]) < 0.9999 and every[2] == matrix
    assert optimiser != "adamw" or max(*every[:2], matrix / start) < 0.95


def test_the_average_changes_the_result_but_not_the_training(dls):
    raws, kept = [], []
    for ema in (None, 0.8):
        dls.train.epoch = 0
        model = net()
        fit_model(model, dls, 2, seed=1, ema=ema,
                  cbs=[On("after_epoch", lambda learn: raws.append(learn.model[3].weight.clone()), 1, False, order=80)])
        kept.append(model[3].weight)
    assert torch.equal(*raws) and not torch.equal(*kept)


@pytest.mark.parametrize("setting", [{"ema": 1.0}, {"ema": 0}, {"patience": 0}, {"amp": "fp16"}])
def test_settings_that_make_no_sense(dls, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}="):
        fit_model(net(), dls, 1, **setting)


# ---------------------------------------------------------------- failure paths

@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "before_step", "after_batch"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("gone"), KeyboardInterrupt(), CancelFitException(), CancelEpochException()])
def test_everything_lent_is_back(dls, event, training, error):
    """The learner's network, autocast and the scaler: as before, whichever way out and wherever."""
    if not training and event == "before_step":
        pytest.skip("validation takes no steps")
    model = net()
    ema = EMA(0.9)
    learn = learner(dls, model, KeepBest(), ema, Amp("bf16"), On(event, throw(error), 1, training))
    if isinstance(error, (CancelFitException, CancelEpochException)):
        learn.fit(2, 1e-3)
    else:
        with pytest.raises(type(error)):
            learn.fit(2, 1e-3)
    assert learn.model is model and ema.raw is None
    assert not torch.is_autocast_enabled("cpu") and learn._autocast is None and learn.scaler is None
    best = learn.keep_best.state
    assert all(torch.equal(v, best[k]) for k, v in model.state_dict().items())


def test_autocast_is_left_after_a_cancelled_batch(dls):
    seen = []
    learn = learner(dls, net(), Amp("bf16"), On("after_pred", throw(CancelBatchException())),
                    On("after_batch", lambda _: seen.append(torch.is_autocast_enabled("cpu"))))
    learn.fit(1, 1e-3)
    assert seen and not any(seen)


def depthwise(**kwargs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, 1, 1, groups=8), create_conv2d(8, 8, 3, stride=2, depthwise=True, **kwargs),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))


@pytest.mark.parametrize("padding", ["", "same"])
def test_strided_depthwise_convolutions_stay_in_float32_on_the_cpu(dls, padding):
    model, seen = depthwise(padding=padding), {}
    before = model[:3](torch.zeros(1, 1, 48, 48)).shape
    for k in (1, 2):
        model[k].register_forward_hook(lambda m, args, y, k=k: seen.update({k: (y.dtype, y.shape[2:])}))
    fit_model(model, dls, 1, amp="bf16", ema=0.9)
    assert seen[1][0] == torch.bfloat16 and seen[2] == (torch.float32, before[2:]) and "forward" not in vars(model[2])


@pytest.mark.parametrize("event", ["after_pred", "after_batch"])
def test_convolutions_are_themselves_again_after_a_failure(dls, event):
    model = depthwise()
    with pytest.raises(RuntimeError, match="gone"):
        learner(dls, model, Amp("bf16"), On(event, throw(RuntimeError("gone")))).fit(1, 1e-3)
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_failure_before_anything_was_lent_is_the_one_that_is_told(dls):
    class First(Callback):
        order = -100

        def before_fit(self):
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        learner(dls, depthwise(), Amp("bf16"), First()).fit(1, 1e-3)


def test_an_epoch_cut_short_is_not_counted(dls):
    history = fit_model(net(), dls, 3, cbs=[On("before_validate", throw(CancelEpochException()), 1, True),
                                            On("before_validate", throw(CancelEpochException()), 1, False)])
    assert history.epoch.tolist() == [1, 3]


@pytest.mark.parametrize("training", [True, False])
def test_nan_names_epoch_and_batch_and_spares_the_checkpoint(dls, tmp_path, training):
    path = tmp_path / "run.ckpt"

    def poison(learn):
        learn.xb = (learn.x * float("nan"),)

    where = "training" if training else "validation"
    with pytest.raises(TrainingError, match=f"nan in epoch 2, {where} batch 1 of"):
        fit_model(net(), dls, 3, cbs=[On("before_batch", poison, 1, training)], checkpoint=path)
    found = read_checkpoint(path)
    assert found["epoch"] == 1 and all(v.isfinite().all() for v in found["model"].values())


# ---------------------------------------------------------------- checkpoints

@pytest.fixture()
def saved(dls, tmp_path):
    path = tmp_path / "runs" / "run.ckpt"
    fit_model(net(), dls, 1, checkpoint=path)
    return path


def refused(dls, path, says, model=None, **changed):
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=says) as caught:
        fit_model(model or net(), dls, **{"epochs": 1, "checkpoint": path} | changed)
    assert str(path) in str(caught.value) and path.read_bytes() == before and isinstance(caught.value, FERError)


def test_another_runs_checkpoint_is_refused(dls, faces, saved):
    refused(dls, saved, "settings.epochs is 1 there and 2 here", epochs=2)
    refused(dls, saved, "settings.seed is 0 there and 1 here", seed=1)
    refused(dls, saved, "settings.clip is None there and 1.0 here", clip=1.0)
    refused(dls, saved, r"callbacks.0.0 is 'absent' there and 'EMA' here", cbs=[EMA(0.9)])
    refused(dls, saved, r"model.2.weight is 'float32 \(144,\)' there and 'absent' here", model=nn.Sequential(nn.Conv2d(1, 7, 48), nn.Flatten()))
    train = faces.where(split="train")
    other = dataloaders(train.take(np.arange(len(train))[::-1]), faces.where(split=["valid", "test"]), bs=32)
    refused(other, saved, "data.train is '[0-9a-f]{16}' there")
    reseeded = dataloaders(train, faces.where(split=["valid", "test"]), bs=32, seed=4)
    refused(reseeded, saved, "data.seed is 0 there and 4 here")


def test_another_start_is_another_run(dls, tmp_path):
    """The same seed begins with the same weights, and goes on; others are refused, and a network is not changed by that."""
    path, first, other = tmp_path / "a", net(), net(3)
    history = fit_model(first, dls, 1, lr=1e-2, checkpoint=path)
    refused(dls, path, "start.weights is '[0-9a-f]{16}' there and '[0-9a-f]{16}' here", model=other, lr=1e-2)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net(3).state_dict().items())
    assert fit_model(again := net(), dls, 1, lr=1e-2, checkpoint=path).equals(history) and torch.equal(again[3].weight, first[3].weight)
    fit_model(other, dls, 1, lr=1e-2, checkpoint=path, resume=False)
    refused(dls, path, "start.weights", lr=1e-2)


def test_the_same_call_goes_on_with_the_network_that_the_fit_left(dls, tmp_path):
    """Twice in a notebook: after Ctrl-C, and after the end; with `ema` and `keep="last"`, too. Not with weights that were changed since."""
    how = dict(lr=1e-2, seed=3, ema=0.9, keep="last")
    dls.train.epoch = 0
    fit_model(whole := net(), dls, 3, cbs=[On("before_batch", lambda learn: None)], checkpoint=tmp_path / "a", **how)
    dls.train.epoch, model = 0, net()
    with pytest.raises(KeyboardInterrupt):
        fit_model(model, dls, 3, cbs=[On("before_batch", throw(KeyboardInterrupt()), 1)], checkpoint=tmp_path / "b", **how)
    for _ in range(2):
        fit_model(model, dls, 3, cbs=[On("before_batch", lambda learn: None)], checkpoint=tmp_path / "b", **how)
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in model.state_dict().items())
        assert read_checkpoint(tmp_path / "b")["described"] == read_checkpoint(tmp_path / "a")["described"]
    nn.init.ones_(model[3].bias)
    with pytest.raises(CheckpointError, match="start.weights"):
        fit_model(model, dls, 3, cbs=[On("before_batch", lambda learn: None)], checkpoint=tmp_path / "b", **how)
    with pytest.raises(CheckpointError, match="start.weights"):     # left by another file's fit
        fit_model(whole, dls, 3, cbs=[On("before_batch", lambda learn: None)], checkpoint=tmp_path / "b", **how)


def test_a_checkpoint_that_does_not_know_its_start_goes_on(dls, saved):
    """As those do that were written before it was kept; where it began stays unknown."""
    state = read_checkpoint(saved)
    del state["described"]["start"]
    write_checkpoint(state, saved)
    fit_model(model := net(9), dls, 1, checkpoint=saved)
    assert all(torch.equal(v, state["callbacks"][0][1]["state"][k]) for k, v in model.state_dict().items())
    assert "start" not in read_checkpoint(saved)["described"]


@pytest.mark.parametrize("what", ["torch", "processor"])
def test_elsewhere_a_start_of_other_last_bits_is_said(dls, saved, what):
    """A seed makes them by the processor and the version of PyTorch."""
    state = read_checkpoint(saved)
    state["described"]["start"][what] = "another"
    write_checkpoint(state, saved)
    with pytest.warns(UserWarning, match="going on, but not from the same start: .*weights"):
        fit_model(net(9), dls, 1, checkpoint=saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_model(net(), dls, 1, checkpoint=saved)


def test_settings_that_an_address_names_do_not_make_another_start(dls, saved):
    """The `repr` of somebody's settings may differ from call to call."""
    model = net()
    model.config = object()
    fit_model(model, dls, 1, checkpoint=saved)


def test_settings_of_a_callback_are_compared(dls, tmp_path):
    class Setting(Callback):
        def __init__(self, value):
            self.value = value

        def config(self):
            return {"value": self.value, "pair": (1, 2)}

    path = tmp_path / "run.ckpt"
    fit_model(net(), dls, 1, cbs=[Setting(3)], checkpoint=path)
    fit_model(net(), dls, 1, cbs=[Setting(3)], checkpoint=path)
    refused(dls, path, "callbacks.0.1.value is 3 there and 4 here", cbs=[Setting(4)])


@pytest.mark.parametrize("keep", [0, 10, 40, 51, 52, 1000, -1])
def test_a_file_cut_short_is_refused(dls, saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(dls, saved, "not a checkpoint|cut short or damaged")


def test_any_changed_byte_is_noticed(saved):
    good = saved.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(good), 50):
        saved.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        with pytest.raises(CheckpointError):
            read_checkpoint(saved)


def test_a_strangers_pickle_is_not_run(dls, saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"epoch": Evil()}, buffer := io.BytesIO())
    for payload in (buffer.getvalue(), pickle.dumps(Evil()), b"", b"text"):
        saved.write_bytes(b"fer_nb checkpoint 1\n" + hashlib.sha256(payload).digest() + payload)
        refused(dls, saved, "something else than tensors and plain values")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full(dls, tmp_path, monkeypatch, call):
    """The error is typed, names the file, and the checkpoint before it can be gone on with."""
    path, real, calls = tmp_path / "run.ckpt", getattr(os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    whole = net()
    fit_model(whole, dls, 3, ema=0.9)
    dls.train.epoch = 0
    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="run.ckpt: could not be written .No space left.*before it is intact"):
        fit_model(net(), dls, 3, checkpoint=path, ema=0.9)
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"] and read_checkpoint(path)["epoch"] == 1
    model = net()
    fit_model(model, dls, 3, checkpoint=path, ema=0.9)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_place_that_cannot_be_written_fails_before_the_first_epoch(dls, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        fit_model(net(), dls, 1, checkpoint=tmp_path / "file" / "run.ckpt")
    with pytest.raises(CheckpointError, match="could not be read"):
        fit_model(net(), dls, 1, checkpoint=tmp_path)
    assert dls.train.epoch == 0


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), {1, 2}, [{"deep": object()}]])
def test_what_cannot_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(CheckpointError, match="state.memory"):
        write_checkpoint({"memory": value}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_loss_scale_of_fastais_callback_is_kept(dls, tmp_path):
    """A scale that grows with every second step: interrupted and not, the same."""
    class Half(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast, self.scaled = torch.autocast("cpu", torch.bfloat16), self.scales
            self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_factor=1.125, growth_interval=2)

    def attempt(name, at=None):
        half, stop = Half(), On("before_train", throw(KeyboardInterrupt()) if at else lambda learn: None, at)
        try:
            fit_model(net(), dls, 2, cbs=[half, stop], checkpoint=tmp_path / name)
        except KeyboardInterrupt:
            pass
        return [*half.scaled]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(CUDA|cuda)")
        dls.train.epoch = 0
        whole, dls.train.epoch = attempt("a"), 0
        begun, rest = attempt("b", 1), attempt("b")
    assert 0 < len(begun) < len(whole) and begun + rest == whole and len({*whole}) > 2


def test_a_callback_without_the_methods_is_not_mistaken_for_one_with(dls, tmp_path):
    """fastai's callbacks pass unknown names on to the learner and its model."""
    class Plain(Callback):
        pass

    plain = Plain()
    fit_model(net(), dls, 1, cbs=[plain], checkpoint=tmp_path / "x")
    assert [name for name, _ in read_checkpoint(tmp_path / "x")["callbacks"]] == ["keep_best", "fit_progress"]


def test_another_number_of_threads_is_said(dls, saved, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.warns(UserWarning, match="not bit for bit: threads is .* there and 77 here"):
        fit_model(net(), dls, 1, checkpoint=saved)


def test_checkpoint_needs_its_learner(dls, tmp_path):
    learn = Learner(dls, net(), CrossEntropyLossFlat(), cbs=[Checkpoint(tmp_path / "x", {})])
    with pytest.raises(ConfigError, match="ResumableLearner"):
        learn.fit(1)


def test_validating_does_not_restore(dls, tmp_path):
    """A learner of one's own may be validated between fits: fastai calls before_fit then too."""
    model = net()
    learn = learner(dls, model, Checkpoint(tmp_path / "x", {"mine": 1}))
    learn.fit(1, 1e-2)
    model[3].weight.data.zero_()
    learn.validate()
    assert model[3].weight.abs().sum() == 0


def test_a_resumed_bar_starts_where_it_was(dls, tmp_path, capsys):
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit_model(net(), dls, 3, show=True, checkpoint=path, cbs=[On("before_batch", throw(KeyboardInterrupt()), 2)])
    capsys.readouterr()
    assert len(fit_model(net(), dls, 3, show=True, checkpoint=path, cbs=[On("before_batch", print, 9)])) == 3
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["  fit: epoch 3/3"]


# ---------------------------------------------------------------- warm restarts, mixed batches, the last epoch

class Rates(Callback):
    "Every learning rate that a batch was trained with, across interruptions; breaks off where it is told to."

    order = 65  # after the schedule

    def __init__(self, seen, at=None):
        self.seen, self.at = seen, at

    def before_batch(self):
        if self.training:
            if (self.epoch, self.iter) == self.at:
                raise KeyboardInterrupt
            self.seen[self.epoch, self.iter] = self.opt.hypers[0]["lr"]


@pytest.mark.parametrize("epochs,cycle", [(7, 3), (6, 2), (3, 50)])
def test_warm_restarts_are_pytorchs(dls, epochs, cycle):
    fit_model(net(), dls, epochs, lr=3e-4, wd=1e-5, cbs=[rates := Rates({})], schedule="warm_restarts", restart_epochs=cycle)
    opt, n = torch.optim.AdamW([torch.zeros(1)], lr=3e-4), len(dls.train)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=cycle, T_mult=1, eta_min=3e-9)
    for epoch in range(epochs):
        for i in range(n):
            theirs.step(epoch + i / n)
            assert rates.seen[epoch, i] == pytest.approx(opt.param_groups[0]["lr"], rel=1e-6), (epoch, i)
        assert rates.seen[epoch, 0] == pytest.approx(3e-4) or epoch % cycle


@pytest.mark.parametrize("epochs", [7, 11, 49, 93])
def test_no_epoch_begins_at_the_bottom_by_rounding(epochs):
    rate = Fit(schedule="warm_restarts", restart_epochs=1, lr=1.0, epochs=epochs).schedules()["lr"]
    assert all(rate(e / epochs) == pytest.approx(1) for e in range(epochs))


def test_restarts_and_mixtures_go_on_exactly(faces, tmp_path):
    def attempt(name, at=None, seen=None):
        dls = dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32)
        m = net()
        history = fit_model(m, dls, 4, lr=1e-2, cbs=[Mix(0.4), Rates({} if seen is None else seen, at)], seed=3,
                            schedule="warm_restarts", restart_epochs=2, checkpoint=tmp_path / name)
        return m.state_dict(), history

    one, two = {}, {}
    weights, history = attempt("whole", seen=one)
    with pytest.raises(KeyboardInterrupt):
        attempt("broken", (2, 1), two)
    again, continued = attempt("broken", seen=two)
    assert one == two and history.equals(continued) and all(torch.equal(weights[k], again[k]) for k in weights)


def test_the_mixture_is_part_of_the_run(dls, tmp_path):
    fit_model(net(), dls, 1, cbs=[Mix(0.4)], checkpoint=tmp_path / "m")
    with pytest.raises(CheckpointError, match="alpha is 0.4 there and 0.2 here"):
        fit_model(net(), dls, 1, cbs=[Mix(0.2)], checkpoint=tmp_path / "m")


@pytest.mark.parametrize("cut,sizes", [(0.0, {32}), (1.0, {1})])
def test_one_kind_of_mixture_alone(dls, cut, sizes):
    class See(Callback):
        order, run_valid = 12, False

        def after_loss(self):
            found.add(self.learn.mix.lam.numel())

    found = set()
    fit_model(net(), dls, 2, cbs=[Mix(0.4, cut), See()])
    assert found == sizes


@pytest.mark.parametrize("make, setting", [(Mix, {"alpha": 0}), (Mix, {"alpha": None}), (Mix, {"cut": 5}), (Mix, {"cut": None}),
                                           (EMA, {"decay": None}), (KeepBest, {"patience": 0})])
def test_callbacks_refuse_settings_of_their_own(make, setting):
    with pytest.raises(ConfigError, match=f"={next(iter(setting.values()))}"):
        make(**setting)


def test_validation_is_not_mixed(dls):
    alone = net()
    history = fit_model(alone, dls, 1, lr=1e-12, wd=0, cbs=[Mix(0.4)], keep="last")
    with torch.no_grad():
        right = [(alone(x).argmax(1) == y).float() for x, y in dls.valid]
    assert history.accuracy[0] == pytest.approx(torch.cat(right).mean().item(), abs=1e-6)


def test_the_last_epoch_is_kept_though_another_was_better(dls):
    class Spoil(Callback):
        order = 50

        def before_validate(self):
            if self.epoch == 1:
                with torch.no_grad():
                    self.model[-1].weight.zero_()
                    self.model[-1].bias.zero_()

    last, best = net(), net()
    fit_model(last, dls, 2, lr=2e-3, cbs=[Spoil()], keep="last")
    dls.train.epoch = 0
    fit_model(best, dls, 2, lr=2e-3, cbs=[Spoil()])
    assert not last[-1].weight.any() and best[-1].weight.any()


def test_the_average_is_what_the_last_epoch_leaves(dls, tmp_path):
    "The network that comes back is the one that was validated, also from a checkpoint of a finished fit."
    for where in (None, tmp_path / "a", tmp_path / "a"):
        dls.train.epoch, model = 0, net()
        history = fit_model(model, dls, 2, lr=0.05, keep="last", ema=0.99, checkpoint=where)
        with torch.no_grad():
            measured = nn.functional.cross_entropy(torch.cat([model(x) for x, _ in dls.valid]), dls.valid.y).item()
        assert measured == pytest.approx(history.valid_loss.iloc[-1], rel=1e-4)
    dls.train.epoch, raw = 0, net()
    fit_model(raw, dls, 2, lr=0.05, keep="last")
    assert not torch.allclose(raw[-1].weight, model[-1].weight, atol=1e-3)


@pytest.mark.parametrize("cbs", [[], [Mix(0.4)]])
def test_the_validation_loss_is_plain_and_the_training_loss_smoothed(dls, cbs):
    losses = []
    for smoothing in (0.0, 0.3):
        dls.train.epoch, still = 0, net()
        history = fit_model(still, dls, 1, lr=1e-12, wd=0, smoothing=smoothing, keep="last", cbs=cbs)
        with torch.no_grad():
            plain = nn.functional.cross_entropy(torch.cat([still(x) for x, _ in dls.valid]), dls.valid.y).item()
        assert history.valid_loss[0] == pytest.approx(plain, rel=1e-4)
        losses.append(history.train_loss[0])
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("setting", [dict(restart_epochs=3), dict(schedule="warm_restarts", restart_epochs=0),
                                     dict(schedule="warm_restarts", warmup=0.2)])
def test_restarts_that_make_no_sense(setting):
    with pytest.raises(ConfigError, match="warm_restarts"):
        Fit(**setting)


def test_a_setting_that_is_new_and_not_used_does_not_refuse_an_older_checkpoint(dls, tmp_path):
    fit_model(net(), dls, 1, checkpoint=tmp_path / "old")
    state = read_checkpoint(tmp_path / "old")
    del state["described"]["settings"]["restart_epochs"]
    write_checkpoint(state, tmp_path / "old")
    fit_model(net(), dls, 1, checkpoint=tmp_path / "old")
    with pytest.raises(CheckpointError, match="restart_epochs is 'absent' there and 5 here|schedule"):
        fit_model(net(), dls, 1, checkpoint=tmp_path / "old", schedule="warm_restarts", restart_epochs=5)


def test_no_tensor_of_a_step_is_kept(dls):
    """fastai's recorder keeps one a step; small blocks that stay between large ones make a long fit's memory grow without end."""
    seen = []
    fit_model(net(), dls, 2, cbs=[On("after_fit", lambda learn: seen.extend(learn.recorder.losses), 1, training=False)])
    assert len(seen) == 2 * len(dls.train) and not any(torch.is_tensor(loss) for loss in seen)


# ---------------------------------------------------------------- one Fit for all

def test_an_integer_and_fields_are_a_fit(dls):
    """`fit_model(model, dls, 2, lr=...)` and the `Fit` of these values are the same training."""
    results = []
    for call in ((2, {"lr": 0.01, "wd": 0.1}), (Fit(epochs=2, lr=0.01, wd=0.1), {}), (Fit(lr=0.01), {"epochs": 2, "wd": 0.1})):
        dls.train.epoch, model = 0, net()
        results.append((fit_model(model, dls, call[0], **call[1]), model[3].weight))
    assert all(h.equals(results[0][0]) and torch.equal(w, results[0][1]) for h, w in results)
    with pytest.raises(TypeError, match="epoch"):
        fit_model(net(), dls, epoch=3)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_sgd_and_focal_loss_are_pytorchs(dls, loss):
    """Three steps by hand: Nesterov's momentum, decay in the gradient, (1 - p)² in front of the cross-entropy."""
    model, plain, n = net(), net(), len(dls.train)
    fit_model(model, dls, 1, lr=0.05, wd=0.01, schedule="cosine", optimiser="sgd", loss=loss, smoothing=0.0, keep="last")
    opt = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    rate, dls.train.epoch = Fit(lr=0.05, epochs=1, schedule="cosine").schedules()["lr"], 0
    for i, (x, y) in enumerate(dls.train):
        p = plain(x).softmax(1)[torch.arange(len(y)), y]
        (-p.log() * ((1 - p)**2 if loss == "focal" else 1)).mean().backward()
        opt.param_groups[0]["lr"] = rate(i / n)
        opt.step()
        opt.zero_grad()
    for a, b in zip(model.parameters(), plain.parameters()):
        assert torch.allclose(a, b, atol=1e-5)


def test_focal_loss_reduces_as_it_is_told():
    focal = FocalCrossEntropy(reduction="none")
    focal.gamma = 2.0
    z, y = torch.randn(6, 7), torch.arange(6)
    each, focal.reduction = focal(z, y), "mean"
    assert each.shape == (6,) and torch.allclose(each.mean(), focal(z, y))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_of_a_certain_image_has_a_gradient(gamma, soft):
    """(1 - p)^γ has none at p = 1 where γ < 1."""
    focal = FocalCrossEntropy(label_smoothing=0.1)
    focal.gamma = gamma
    z = torch.tensor([[200.0, 0, 0], [0.5, 0, 0]], requires_grad=True)
    loss = focal(z, torch.eye(3)[[0, 0]] if soft else torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all() and z.grad[1].abs().sum() > 0.05
    assert z.grad[0].abs().max() < 0.1


@pytest.mark.parametrize("changes", [{"mix": 0.4}, {"mix": 0.4, "cut": 1.0}, {"cbs": [Mix(0.4)]}], ids=["mixup", "cutmix", "one's own"])
def test_one_image_is_not_mixed(faces, changes):
    one = dataloaders(faces.where(split="train").take(range(8)), faces.where(split="valid"), bs=1)
    with pytest.raises(ConfigError, match="images to mix=1; at least 2 in each batch"):
        fit_model(net(), one, 1, **changes)


def test_a_last_batch_of_one_image_is_not_mixed(faces):
    pairs = [(torch.rand(1, 48, 48), k % 7) for k in range(9)]
    own = DataLoaders(torch.utils.data.DataLoader(pairs, 4), torch.utils.data.DataLoader(pairs, 4))
    with pytest.raises(ConfigError, match="images to mix=1"):
        fit_model(net(), own, 1, mix=0.4)


def test_parts_of_one_image_are_not_mixed(dls, monkeypatch):
    """Each process mixes its own part of a batch."""
    import fer_nb.train as train
    monkeypatch.setattr(train, "rank_world", lambda: (0, 20))
    mix = Mix(0.4)
    mix.learn = learner(dls, net())
    with pytest.raises(ConfigError, match="images to mix=1"):
        mix("before_fit")


def test_mixing_is_a_setting(dls):
    """`mix` and `cut` of a `Fit` are the callback `Mix`."""
    results = []
    for changes in ({"mix": 0.4, "cut": 0.5}, {"cbs": [Mix(0.4, 0.5)]}):
        dls.train.epoch, model = 0, net()
        fit_model(model, dls, 1, seed=2, **changes)
        results.append(model[3].weight)
    assert torch.equal(*results)


def test_networks_and_loaders_of_a_fit(faces, tmp_path):
    labels = faces.labels
    assert make_network(Fit("light", size=32), labels).input_size == 32
    with pytest.raises(ConfigError, match="teacher='nobody'"):
        make_network(Fit("nobody"), labels)
    with pytest.raises(DataError, match="nothing.safetensors"):
        make_network(Fit(str(tmp_path / "nothing.safetensors")), labels)
    train, valid = faces.where(split="train"), faces.where(split="valid")
    dls = make_loaders(train, valid, Fit(bs=8, augment=None))
    x, _ = next(iter(dls.train))
    assert torch.equal(x, dls.train.x[dls.train.ids].float() / 255)


# ---- dropout per stage ----

def test_dropout_per_stage_is_of_a_hyfer_and_of_the_network_that_was_made():
    made = make_network(Fit("light_full", stage_drop=0.2), EMOTIONS)
    assert made.config.stage_drop == made.stage_drop.p == 0.2 and make_network(Fit("light_full"), EMOTIONS).stage_drop.p == 0
    for network in ("resnet18", "sqsnet", "some.safetensors"):
        with pytest.raises(ConfigError, match="stage_drop=0.2 of"):
            make_network(Fit(network, stage_drop=0.2, pretrained=False), EMOTIONS)
    with pytest.raises(ConfigError, match="stage_drop=1"):
        Fit(stage_drop=1.0)


def test_a_fit_refuses_a_network_without_the_dropout_it_names():
    from fer_nb.synth import make_faces
    ds = make_faces(60, seed=0)[0].where(split="train")
    fit = Fit("light", epochs=1, bs=16, stage_drop=0.2)
    dls = make_loaders(ds.take(np.arange(32)), ds.take(np.arange(32, len(ds))), fit)
    with pytest.raises(ConfigError, match="not made with it"):
        fit_model(make_network(Fit("light"), ds.labels), dls, fit)
    assert len(fit_model(make_network(fit, ds.labels), dls, fit)) == 1


def test_the_size_of_the_images_is_what_a_network_is_meant_for_from_then_on(tmp_path):
    faces = make_faces(40, seed=0, defects=None, size=56)[0]
    train, valid = faces.take(np.arange(24)), faces.take(np.arange(24, 40))
    for size, resized, side in ((None, None, 56), (48, None, 48), (None, 40, 48)):
        how = Fit("light", size=size, bs=8, epochs=1, augment=None, device="cpu")
        model = make_network(how, faces.labels)
        model.adapt.size = resized
        fit_model(model, make_loaders(train, valid, how), how)
        assert model.input_size == model.config.input_size == side
        if side == 56:
            back, x = load_teacher(save(model, tmp_path / "m.safetensors")), valid_images(valid)
            with torch.no_grad():
                torch.testing.assert_close(back(x), model(x))
                assert back.input_size == 56


def valid_images(ds):
    return torch.from_numpy(ds.array())[:, None] / 255


def test_a_checkpoint_of_another_attack_of_the_same_name_is_refused(dls, tmp_path):
    def attack(by):
        return lambda model, x, y, eps, generator: (x * by).clamp(0, 1)

    def go(by, epochs):
        how = Fit(epochs=epochs, bs=32, keep="last")
        return fit_model(net(), dls, how, cbs=[AdversarialTraining(attack(by))], checkpoint=tmp_path / "c.ckpt")
    go(0.5, 1)
    go(0.5, 1)
    with pytest.raises(CheckpointError, match="of another run: .*code"):
        go(0.25, 1)


def test_a_network_that_resizes_says_so_where_it_is_trained():
    net, ds = HyFER.from_pretrained("hyfer"), make_faces(60, seed=0, size=64, defects=None)[0]
    dls = make_loaders(ds.take(np.arange(40)), ds.take(np.arange(40, 60)), Fit(size=None, bs=16))
    with pytest.warns(UserWarning, match="64 × 64 pixels are made 48 × 48 within the network"):
        fit_model(net, dls, Fit(epochs=1, size=None, bs=16))
    net.adapt.size = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Fit(epochs=1, size=None, bs=16).check_beside(net, dls, [])


def test_a_checkpoint_with_other_frozen_parts_is_refused(dls, tmp_path):
    def go(frozen, **how):
        model = net()
        model[3].requires_grad_(not frozen)
        model.append(nn.Linear(7, 7))
        return fit_model(model, dls, Fit(epochs=1, bs=32, keep="last"), checkpoint=tmp_path / "c.ckpt", **how)

    for first in (True, False):
        go(first, resume=False)
        with pytest.raises(CheckpointError, match=r"of another run: frozen\.0 is .*3\.weight"):
            go(not first)
        assert len(go(first)) == 1
        state = read_checkpoint(tmp_path / "c.ckpt")   # of an earlier version, which did not write it down
        del state["described"]["frozen"]
        write_checkpoint(state, tmp_path / "c.ckpt")
        assert len(go(first)) == 1
    plainly = Fit().identity(net(), dls, [])
    assert set(plainly) == {"settings", "data", "callbacks", "model", "start", "frozen"} and "augment code" not in plainly["data"]


class Attributes(torch.utils.data.TensorDataset):
    "Whose names are those that loaders of this package have."
    batch_part, crops, weights, wgts, rank_world = (0, 3), 4, [1.0] * 90, [1.0] * 90, (0, 1)


def test_what_a_dataset_calls_weights_is_its_own():
    data, counts = Attributes(torch.rand(64, 1, 48, 48), torch.arange(64) % 7), []
    own = DataLoaders(*(fastai.data.load.DataLoader(data, bs=16) for _ in range(2)))
    assert own.train.weights is Attributes.weights                           # fastai asks the dataset
    fit_model(net(), own, Fit(epochs=1, bs=16, accumulate=2), cbs=On("before_step", lambda learn: counts.append(learn.accumulate.n_acc)))
    assert set(counts) == {32}
    with pytest.raises(ConfigError, match="crops=4, but these loaders show 1 views"):
        fit_model(net(), own, Fit(epochs=1, bs=16, crops=4))
    with pytest.raises(ConfigError, match="these loaders show each image once"):
        fit_model(net(), own, Fit(epochs=1, bs=16, sampler="balanced"))
    drawn = torch.utils.data.WeightedRandomSampler(torch.ones(64), 64)
    torchs = DataLoaders(*(torch.utils.data.DataLoader(data, batch_size=16, sampler=drawn) for _ in range(2)))
    assert len(fit_model(net(), torchs, Fit(epochs=1, bs=16, sampler="balanced"))) == 1


def torchs(kind):
    "PyTorch's loaders that shuffle by a generator of the sampler's, or of the sampler of batches."
    data = torch.utils.data.TensorDataset(torch.rand(40, 1, 48, 48, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 7)
    order = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(3))
    batches = {"sampler": dict(batch_size=8, sampler=order),
               "batch_sampler": dict(batch_sampler=torch.utils.data.BatchSampler(order, 8, True))}[kind]
    return DataLoaders(torch.utils.data.DataLoader(data, **batches), torch.utils.data.DataLoader(data, 20))


@pytest.mark.parametrize("kind", ["sampler", "batch_sampler"])
def test_samplers_with_a_generator_of_their_own_go_on_where_they_were(tmp_path, kind):
    def fitted(checkpoint=None, then=lambda learn: None):
        fit_model(model := net(), torchs(kind), 3, cbs=On("before_train", then, 1), checkpoint=checkpoint)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain = fitted()
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "own.ckpt", throw(KeyboardInterrupt()))
    assert torch.equal(fitted(tmp_path / "own.ckpt"), plain)


@pytest.mark.parametrize("kind", ["sampler", "batch_sampler"])
def test_a_look_at_the_training_images_leaves_the_order_of_a_sampler(kind):
    def fitted(*cbs):
        torch.manual_seed(0)
        learn = Learner(torchs(kind), net(), CrossEntropyLossFlat(), metrics=accuracy, cbs=[KeepBest(), *cbs])
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 0.01)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    look = On("after_train", lambda learn: learn.get_preds(dl=learn.dls.train))
    assert torch.equal(fitted(look), fitted())


class Two(nn.Module):
    "A classifier that measures something else beside."
    def __init__(self):
        super().__init__()
        self.net, self.more = net(), nn.Linear(1, 1)

    def forward(self, x):
        return self.net(x), self.more(x.mean((1, 2, 3))[:, None])


def test_a_network_of_several_outputs_and_targets_is_looked_at_by_its_first():
    data = torch.utils.data.TensorDataset(torch.rand(16, 1, 48, 48), torch.arange(16) % 7, torch.rand(16, 1))
    dls = DataLoaders(*(torch.utils.data.DataLoader(data, 8) for _ in range(2)))
    dls.n_inp = 1

    def fitted(check, bad=0):
        def loss(z, y, other):
            return nn.functional.cross_entropy(z[0], y) + (z[1] - other).square().mean()
        learn = Learner(dls, Two(), loss, cbs=[check, *([On("before_batch", lambda learn: setattr(
            learn, "yb", (learn.yb[0] + bad, learn.yb[1])))] if bad else [])])
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 0.01)

    fitted(CheckInputRange())
    with pytest.raises(LabelError, match="labels from 3 to 9; the model has 7 classes"):
        fitted(CheckInputRange(), 3)
    with pytest.raises(ConfigError, match="the model returned a tuple"):
        fitted(CheckInputRange(several=False))

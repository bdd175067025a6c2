"""Killed for good, by SIGKILL in another process, and gone on with: the result is the undisturbed run's, bit for bit.

Which of these tests concern which room is listed in tests/README.md.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback

from fer_nb.advtrain import AdversarialTraining, KeepRobust
from fer_nb.data import resized
from fer_nb.loaders import dataloaders
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.synth import make_faces
from fer_nb.train import fit_model, read_checkpoint

TINY = HyFERConfig(8, ((12, 2, 2), (16, 2, 2)), 16, 1, 1, 32, True, "relu", 24)
EPOCHS = 4
POINTS = ("first epoch", "after a checkpoint", "mid-epoch", "writing", "before the rename")


class Chancy(Callback):
    "Draws from every generator and remembers: whatever is not put back shows in `drawn`."
    order, run_valid = 20, False

    def before_fit(self):
        self.drawn = []

    def after_batch(self):
        self.drawn.append([random.random(), float(np.random.normal()), torch.rand(()).item(), self.train_iter, self.pct_train])

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Peak(Callback):
    "Has the second epoch measured as the best: what comes out is an older state than what goes on."
    order = 55

    def after_epoch(self):
        self.recorder.log[3] = -abs(self.epoch - 1.0)


class At(Callback):
    "Do something at a batch of an epoch."

    def __init__(self, epoch=None, batch=None, what=None):
        self.when, self.what = (epoch, batch), what

    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.when:
            self.what()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


@cache
def faces():
    return resized(make_faces(250, seed=0, defects=None)[0], 24)


def fit(path, at=(None, None, None), seed=1, **changed):
    "The run of this file: tiny HyFER with dropout, one cycle, an average, a callback with a memory."
    torch.manual_seed(seed)
    model = HyFER(in_chans=1, variant=TINY)
    dls = dataloaders(faces().where(split="train"), faces().where(split=["valid", "test"]), bs=32)
    chancy = Chancy()
    args = dict(epochs=EPOCHS, lr=5e-3, seed=3, cbs=[chancy, Peak(), At(*at)], ema=0.9, clip=1.0, decay_all=False)
    history = fit_model(model, dls, checkpoint=path, **args | changed)
    return {"model": model.state_dict(), "history": history.values.tolist(), "drawn": getattr(chancy, "drawn", None),
            "loader": dls.train.epoch, "after": [torch.rand(3), np.random.rand()]}


def same(a, b):
    "Equal in every bit; says where not."
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            same(a[key], b[key])
    else:
        assert a == b
    return True


def train_until_killed(path, point):
    "What another process does: it dies at `point`."
    if point == "first epoch":
        fit(path, (0, 2, die))
    if point == "after a checkpoint":
        fit(path, (2, 0, die))
    if point == "mid-epoch":  # somebody else kills
        fit(path, (2, 3, lambda: (Path(f"{path}.ready").touch(), time.sleep(600))))
    calls, sync, replace = [], os.fsync, os.replace

    def half(fd):
        "The third checkpoint gets half-way to the disk."
        calls.append(fd)
        if len(calls) == 3:
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
        sync(fd)
        if len(calls) == 3:
            die()

    def renamed(*names):
        calls.append(names)
        die() if len(calls) == 3 else replace(*names)

    os.fsync, os.replace = (half, replace) if point == "writing" else (sync, renamed)
    fit(path)


def other_processes(folder):
    "In a new interpreter: a process for each point, killed; and one that goes on with what the first of them left."
    faces()
    for point in POINTS:
        if not (pid := os.fork()):
            train_until_killed(folder / point, point)
            os._exit(0)
        if point == "mid-epoch":
            while not (folder / f"{point}.ready").exists():
                time.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(status := os.waitpid(pid, 0)[1]) and os.WTERMSIG(status) == signal.SIGKILL, point
    shutil.copy(folder / "mid-epoch", folder / "elsewhere")
    fit(folder / "elsewhere")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    return fit(path), read_checkpoint(path)


@pytest.fixture(scope="module")
def corpses(tmp_path_factory):
    "A folder with the checkpoints of trainings that were killed, each in a process of its own."
    folder = tmp_path_factory.mktemp("killed")
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], env=env, check=True, timeout=300)
    return folder


@pytest.mark.parametrize("point, done", [*zip(POINTS, (0, 2, 2, 1, 1))])
def test_killed_and_gone_on_with(whole, corpses, point, done):
    """Weights, best epoch's weights, moments, average, history, generators, loader: all equal."""
    path = corpses / point
    assert read_checkpoint(path)["epoch"] == done
    assert any(corpses.glob(f".{point}.*")) == (point in ("writing", "before the rename"))
    assert same(fit(path), whole[0]) and same(read_checkpoint(path), whole[1])


def test_resumed_in_another_process(whole, corpses):
    """The process that went on was not this one: only the file passed between them."""
    assert same(read_checkpoint(corpses / "elsewhere"), whole[1])


def test_interrupted_three_times(whole, tmp_path):
    """Ctrl-C in the first, the second and the last epoch: the same result; and once complete, it is not done again."""
    path = tmp_path / "run.ckpt"
    for epoch, batch in ((0, 1), (1, 5), (3, 0)):
        with pytest.raises(KeyboardInterrupt):
            fit(path, (epoch, batch, interrupt))
    assert same(fit(path), whole[0])
    assert same(fit(path, (0, 0, die)), whole[0])


def test_saving_disturbs_nothing(whole):
    assert same(fit(None), whole[0])


def test_starting_again_on_purpose(whole, tmp_path):
    path = tmp_path / "run.ckpt"
    fit(path, epochs=1)
    assert same(fit(path, resume=False), whole[0])


class Told(AdversarialTraining):
    "Believes that the second epoch ends in a collapse."

    def _probe(self):
        return (0.9, 0.0) if self.epoch == 1 else (0.5, 0.4)


def test_adversarial_training_goes_on_exactly(tmp_path):
    """Attacks, logs, the watched batch, and what a roll-back brought back, weights and average."""
    def attempt(path, *at):
        adv = Told(("fgsm", "pgd"), steps=1)
        return fit(path, cbs=[adv, Peak(), At(*at)], epochs=3), adv.learn.adv_log, adv.learn.guard_log

    whole = attempt(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path / "b", 2, 1, interrupt)
    again = attempt(tmp_path / "b")
    assert same(again[0], whole[0]) and same(read_checkpoint(tmp_path / "b"), read_checkpoint(tmp_path / "a"))
    assert all(x.equals(y) for x, y in zip(again[1:], whole[1:])) and whole[2].rolled_back.tolist() == [False, True, False]


class Falls(KeepRobust):
    "Its best robust accuracy is that of the second epoch: what is loaded is an older state, seen before the interruption."

    def _accuracies(self):
        return (0.9 if self.epoch == 1 else 0.1, super()._accuracies()[1])


def test_the_epoch_of_the_best_robust_accuracy_is_remembered(tmp_path):
    g = torch.Generator().manual_seed(3)
    images, labels = torch.rand(30, 1, 24, 24, generator=g), torch.arange(30) % 2

    def attempt(path, *at, kind=Falls):
        keep = kind(images, labels, steps=2)
        return fit(path, cbs=[AdversarialTraining("pgd", steps=1), keep, At(*at)], epochs=3), keep.log, keep.best_epoch

    whole = attempt(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        attempt(tmp_path / "b", 2, 1, interrupt)
    again = attempt(tmp_path / "b")
    assert same(again[0], whole[0]) and again[1:] == whole[1:] and whole[2] == 1 and len(whole[1]) == 3


def test_early_stop_is_remembered(tmp_path):
    """Interrupted or complete, a run with an early stop stops where it would have stopped."""
    args = dict(epochs=9, patience=2)
    whole = fit(tmp_path / "a", cbs=[Peak(), At()], **args)
    assert len(whole["history"]) == whole["loader"] == 4
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", cbs=[Peak(), At(3, 3, interrupt)], **args)
    assert same(fit(tmp_path / "b", cbs=[Peak(), At()], **args), whole)
    assert same(fit(tmp_path / "b", cbs=[Peak(), At(4, 0, die)], **args), whole)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    other_processes(Path(sys.argv[1]))

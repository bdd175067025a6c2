"""Two and three processes under torchrun, over gloo, against one process doing the same."""
import os
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

import fer_nb.train as train
from fer_nb.advtrain import AdversarialTraining
from fer_nb.audit import audit
from fer_nb.augment import Augment
from fer_nb.core import ConfigError, DataError, FERError
from fer_nb.data import resized
from fer_nb.distill import EADD
from fer_nb.evaluate import eval_mode, evaluate
from fer_nb.experiment import grid
from fer_nb.launch import (RankError, all_reduce, gather, machine, map_ranks, process_group, rank0_folder, rank_world,
                                 single_process)
from fer_nb.loaders import as_split, dataloaders, folds
from fer_nb.models import HyFER, HyFERConfig, create_teacher
from fer_nb.sqs import SQS
from fer_nb.synth import make_faces
from fer_nb.teachers import teacher_logits
from fer_nb.train import Distributed, fit_model
from fer_nb.duplicates import DuplicateSearch, find_duplicates

TINY = HyFERConfig(8, ((12, 2, 2), (16, 2, 2)), 16, 1, 1, 32, True, "relu", 24)
BS, EPOCHS = 33, 2  # 33 does not divide by two, nor does the validation set
EXACT = ("plain", "eadd", "running", "adversarial", "trades", "recipe")


# ---------------------------------------------------------------- what is done, by one process or by each of several

def net(seed=1, dropout=0.0):
    "Without batch norm."
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 7))
    model.labels = FACES.labels
    return model


def hyfer():
    torch.manual_seed(1)
    return HyFER(in_chans=1, variant=TINY)


def loaders(bs=BS, views=2):
    valid = FACES.where(split=["valid", "test"])
    return dataloaders(FACES.where(split="train"), valid.take(range(2 * BS + 1)), bs, Augment(contrast=0.2), views=views, device="cpu")


class Seen(Callback):
    "Which images this process has seen."
    order = 100

    def __init__(self):
        self.seen = {"training": [], "validation": []}

    def after_pred(self):
        self.seen["training" if self.training else "validation"].append((self.epoch, self.dl.ids.tolist()))


class Broken(Callback):
    "Ends the fit at a batch of an epoch, in every process."
    order = 90

    def __init__(self, *at):
        self.at = at

    def before_backward(self):
        if (self.epoch, self.iter) == self.at:
            raise KeyboardInterrupt


def fits():
    "Weights, history and logs of several fits."
    dls = loaders()
    kept = [teacher_logits(net(seed), dls.train, dls.valid, f"teacher {seed}") for seed in (5, 6)]
    attack = partial(AdversarialTraining, ("fgsm", "pgd"), 8 / 255, steps=2, guard=3, seed=4)
    kinds = {"plain": (net, [], dict(clip=0.5, ema=0.9, decay_all=False)), "eadd": (net, [EADD(kept, tau=0.05)], dict()),
             "running": (net, [EADD(kept, accuracy="running", momentum=0.5)], dict()),
             "recipe": (net, [], dict(class_weights="balanced", loss="focal", accumulate=3, freeze_epochs=1, early_lr=1e-3)),
             "adversarial": (net, [attack()], dict()), "trades": (net, [attack(trades=2.0)], dict()),
             "batch norm": (hyfer, [], dict(ema=0.9)), "sqs": (hyfer, [SQS()], dict())}
    done = {"kept": [k.train for k in kept] + [k.valid for k in kept]}
    for name, (make, cbs, changes) in kinds.items():
        dls, model, seen = loaders(), make(), Seen()
        history = fit_model(model, dls, EPOCHS, lr=5e-3, cbs=[*cbs, seen], **changes)
        logs = [getattr(cb, "history", None) for cb in cbs if isinstance(cb, EADD)]
        logs += [log for cb in cbs if isinstance(cb, AdversarialTraining) for log in (cb.learn.adv_log, cb.learn.guard_log)]
        logs += [cb.learn.sqs_log for cb in cbs if isinstance(cb, SQS)]
        done[name] = {"model": model.state_dict(), "history": history, "logs": logs, "seen": seen.seen,
                      "loader": (dls.train.epoch, dls.train.rank_world, dls.valid.rank_world)}
    return done


def data_work():
    "An audit with bands and blocks of its own size, and a study's three folds."
    ds, _ = make_faces(200, seed=3)
    report = audit(ds, search=DuplicateSearch(block=64))
    features = np.random.default_rng(0).normal(size=(len(ds), 3))
    proposed = find_duplicates(ds, DuplicateSearch(block=50, trust_features=True, feature=0.9999), features)

    some = FACES.take(range(200))

    parts = folds(some, 3)

    def fold(arm, seed, k):
        model = hyfer()
        dls = dataloaders(*(as_split(some, parts[k]).where(split=side) for side in ("train", "test")), 64, device="cpu")
        fit_model(model, dls, 1)
        return evaluate(model, as_split(some, parts[k]).where(split="test"))

    return {"issues": report.issues, "duplicates": report.duplicates, "proposed": proposed, "groups": report.groups,
            "cells": grid(fold, ["hyfer"], [0], folds=range(3))}


def interrupted(folder):
    "A fit with dropout, once whole, once broken off and gone on with; who wrote, and what went on."
    written, write = [], train.write_checkpoint
    train.write_checkpoint = lambda state, path: (written.append(path.name), write(state, path))
    try:
        for name, at in (("whole", ()), ("broken", (1, 2)), ("broken", ())):
            model, dls = net(dropout=0.3), loaders()
            try:
                history = fit_model(model, dls, 3, lr=5e-3, cbs=[Broken(*at)], seed=2, checkpoint=folder / f"{name}.ckpt")
            except KeyboardInterrupt:
                continue
            written.append((name, model.state_dict(), history, torch.rand(3)))
    finally:
        train.write_checkpoint = write
    return written


def refused(folder):
    "The errors of processes that do different things."
    rank, said = rank_world()[0], []

    def caught(f):
        try:
            f()
        except (FERError, OSError) as e:
            said.append((type(e).__name__, str(e)))
    caught(lambda: fit_model(net(), loaders(BS + rank), 1))
    caught(lambda: fit_model(net(), loaders(1), 1))
    caught(lambda: map_ranks([0] * (2 + rank), str))
    (folder / "bad.ckpt").write_bytes(b"nothing")
    caught(lambda: fit_model(net(), loaders(), 1, checkpoint=folder / "bad.ckpt"))
    caught(lambda: map_ranks([1, 0], lambda n: 1 / n if n else open(folder / "missing")))
    return said


def two_processes(folder):
    "All of it; then process 1 ends without a word."
    torch.save({"fits": fits(), "data": data_work(), "interrupted": interrupted(folder), "refused": refused(folder)},
               folder / f"of-two-{rank_world()[0]}.pt")
    with rank0_folder(folder / "run") as run:
        (run / "results.csv").write_text(str(rank_world()[0]))
    if rank_world()[0]:
        os._exit(0)
    with pytest.raises(RankError) as left:
        gather("here")
    (folder / "left.txt").write_text(str(left.value))


LATE = """
import sys, time, torch
from fer_nb.launch import RankError, all_reduce, process_group
with process_group(timeout=12) as (rank, _):
    time.sleep(300 * rank)
    try:
        all_reduce(torch.ones(2))
    except RankError as e:
        print(e, flush=True)
        raise
"""


def launched(script, *args):
    "Run a script in two processes."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *args]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


# ---------------------------------------------------------------- the tests

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_two(folder):
    done = launched(__file__, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"of-two-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"fits": fits(), "data": data_work()}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", EXACT)
def test_a_fit_is_that_of_one_process(of_one, of_two, name):
    """Weights to 1e-4 after 2 epochs of Adam, accuracies to the image, losses and logs to 1e-4."""
    one, two = of_one["fits"][name], of_two[0]["fits"][name]
    for k, v in one["model"].items():
        torch.testing.assert_close(two["model"][k], v, atol=1e-4, rtol=1e-3)
    assert one["history"].accuracy.tolist() == pytest.approx(two["history"].accuracy.tolist(), abs=1e-6)
    for a, b in zip([one["history"], *one["logs"]], [two["history"], *two["logs"]], strict=True):
        pd.testing.assert_frame_equal(a, b, atol=1e-4, rtol=1e-3, check_dtype=False)
    assert one["loader"] == two["loader"] == (EPOCHS, (0, 1), (0, 1))


@pytest.mark.parametrize("name", [*EXACT, "batch norm", "sqs"])
def test_all_processes_end_with_the_same_network_and_logs(of_two, name):
    a, b = (results["fits"][name] for results in of_two)
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    for x, y in zip([a["history"], *a["logs"]], [b["history"], *b["logs"]], strict=True):
        pd.testing.assert_frame_equal(x, y)


def test_each_image_is_seen_once(of_one, of_two):
    """The same images in the same batches, each by one process; validation sets that do not divide too."""
    one, *two = (results["fits"]["plain"]["seen"] for results in (of_one, *of_two))
    for batch, *parts in zip(one["training"], *(seen["training"] for seen in two), strict=True):
        assert batch[1] == [i for _, ids in parts for i in ids] and sorted(len(ids) for _, ids in parts) == [16, 17]
    for epoch in range(EPOCHS):
        seen = [i for part in two for e, ids in part["validation"] if e == epoch for i in ids]
        assert sorted(seen) == list(range(2 * BS + 1))
    assert len(two[0]["validation"]) != len(two[1]["validation"])  # the last batch is one image


def test_batch_norm_is_near(of_one, of_two):
    """On the CPU each process normalises its own rows: 16 or 17 instead of 33."""
    one, two = (results["fits"]["batch norm"] for results in (of_one, of_two[0]))
    assert (one["history"].valid_loss - two["history"].valid_loss).abs().max() < 0.1
    means = [torch.cat([v for k, v in r["model"].items() if k.endswith("running_mean")]) for r in (one, two)]
    assert torch.corrcoef(torch.stack(means))[0, 1] > 0.98


def test_cached_logits_are_those_of_one_process(of_one, of_two):
    assert all(np.array_equal(a, b) for results in of_two for a, b in zip(of_one["fits"]["kept"], results["fits"]["kept"], strict=True))


def test_audit_and_cells_of_a_study_are_those_of_one_process(of_one, of_two):
    one = of_one["data"]
    assert len(one["issues"]) > 10 and {"near", "mirror"} <= set(one["duplicates"].how) and "feature" in set(one["proposed"].how)
    for results in of_two:
        found = results["data"]
        for name in ("issues", "duplicates", "proposed", "cells"):
            pd.testing.assert_frame_equal(one[name], found[name], check_exact=True)
        assert np.array_equal(one["groups"], found["groups"])


@cache
def unsharded():
    "Images and their audit, in parts that no one shares."
    ds, _ = make_faces(200, seed=4)
    return ds, audit(ds, search=DuplicateSearch(block=40)).issues


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_any_number_of_shards_gives_the_same_audit(monkeypatch, shards):
    ds, whole = unsharded()

    def sharded(parts, make, what=""):
        done = {k: make(parts[k]) for rank in reversed(range(shards)) for k in range(rank, len(parts), shards)}
        return [done[k] for k in range(len(parts))]

    for room in ("fer_nb.duplicates", "fer_nb.audit"):
        monkeypatch.setattr(f"{room}.map_ranks", sharded)
    pd.testing.assert_frame_equal(audit(ds, search=DuplicateSearch(block=40)).issues, whole, check_exact=True)


def test_a_fit_that_was_broken_off_goes_on_bit_for_bit(of_two):
    """In each process with its own dropout; process 0 alone writes."""
    for rank, results in enumerate(of_two):
        *names, whole, again = sorted(results["interrupted"], key=lambda entry: isinstance(entry, tuple))
        assert (whole[0], again[0]) == ("whole", "broken") and bool(names) == (rank == 0)
        assert all(torch.equal(v, again[1][k]) for k, v in whole[1].items())
        assert whole[2].equals(again[2]) and torch.equal(whole[3], again[3])


def test_processes_that_differ_are_told(of_two):
    zero, one = (results["refused"] for results in of_two)
    for said in (zero, one):
        assert said[0][0] == "ConfigError" and "data.bs.0 is 33 there and 34 here" in said[0][1]
        assert said[1][0] == "ConfigError" and "bs=1; at least 2 images, one for each process, expected" in said[1][1]
        assert said[2][0] == "RankError" and "2, 3 parts" in said[2][1]
    assert zero[3][0] == "StoreError" and one[3][0] == "RankError" and "StoreError" in one[3][1]
    assert zero[4][0] == "RankError" and "process 1 of 2: FileNotFoundError" in zero[4][1]
    assert one[4][0] == "FileNotFoundError"


def test_a_folder_appears_once_and_is_that_of_process_0(folder, of_two):
    assert [p.name for p in folder.iterdir() if "run" in p.name] == ["run"]
    assert [(p.name, p.read_text()) for p in (folder / "run").iterdir()] == [("results.csv", "0")]


def test_a_process_that_ends_is_missed_at_once(folder, of_two):
    assert "process 0 of 2, collecting: another process has ended, or did not come" in (folder / "left.txt").read_text()


@pytest.mark.slow
def test_a_process_that_does_not_come_is_waited_for_so_long(tmp_path):
    (script := tmp_path / "late.py").write_text(LATE)
    start = time.monotonic()
    done = launched(script)
    assert done.returncode and "process 0 of 2, adding up: another process has ended, or did not come" in done.stdout
    assert time.monotonic() - start < 200


# ---------------------------------------------------------------- one process that pretends

@pytest.fixture()
def pretended(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.parametrize("rank, world", [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0"), ("0", "")])
def test_environments_that_contradict_themselves(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=f"RANK={rank}, WORLD_SIZE={world};"):
        rank_world()


def test_without_a_process_group_nothing_waits(pretended):
    for work in (lambda: gather(1), lambda: all_reduce(torch.ones(1)), lambda: map_ranks([1, 2], str)):
        with pytest.raises(ConfigError, match="is in no process group"):
            work()
    with single_process():
        assert gather(1) == [1] and map_ranks([1, 2], str) == ["1", "2"] and rank_world() == (0, 1)
    assert rank_world() == (1, 2)


def test_single_process_ends_with_an_error_too(pretended):
    with pytest.raises(DataError), single_process():
        raise DataError("gone")
    assert rank_world() == (1, 2) and os.environ["WORLD_SIZE"] == "2"


@pytest.mark.parametrize("make", [hyfer, lambda: create_teacher("mobilenetv3_small_100", 7, False, 32),
                                  lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(1936, 7))],
                         ids=["HyFER", "a teacher", "plain"])
def test_norms_are_joint_on_cuda_only_and_only_within(pretended, make):
    """The same logits with joint norms, those of timm with their activation; afterwards the same modules, with what they learnt."""
    def joining(device):
        torch.manual_seed(0)
        callback = Distributed()
        callback.learn = SimpleNamespace(model=make().eval(), dls=SimpleNamespace(device=device, __iter__=None))
        own, logits = [*callback.model.modules()], callback.model(x)
        callback.join_norms()
        return callback, own, logits

    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    callback, own, _ = joining("cpu")
    assert [*callback.model.modules()] == own
    callback, own, before = joining("cuda")
    names, norms = [*callback.model.state_dict()], sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in own)
    joint = [m for m in callback.model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(joint) == norms > 0 and not any(isinstance(m, nn.BatchNorm2d) for m in callback.model.modules())
    assert torch.equal(callback.model(x), before) and not any(m.training for m in joint)
    with torch.no_grad():
        for m in joint:
            m.running_mean += 0.1
            m.weight *= 1.5
    learnt = callback.model(x)
    callback.learn.dls = []
    callback.after_fit()
    assert [*callback.model.modules()] == own and [*callback.model.state_dict()] == names
    assert torch.equal(callback.model(x), learnt) and not torch.equal(learnt, before)


def test_one_process_needs_no_callback():
    seen = Seen()
    fit_model(net(), loaders(), 1, cbs=[seen])
    assert not any(isinstance(cb, Distributed) for cb in seen.learn.cbs)


FACES = resized(make_faces(400, seed=0, defects=None)[0], 24)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(timeout=120):
        two_processes(Path(sys.argv[1]))


# ---------------------------------------------------------------- PyTorch's switches of the precision

SWITCHES = ["set_float32_matmul_precision('medium')", "set_float32_matmul_precision('high')", "backends.cudnn.allow_tf32 = False",
            "backends.cuda.matmul.allow_tf32 = True", "backends.cuda.matmul.fp32_precision = 'tf32'", "backends.fp32_precision = 'tf32'",
            "backends.fp32_precision = 'ieee'", "backends.cudnn.conv.fp32_precision = 'ieee'", "backends.cudnn.fp32_precision = 'tf32'",
            "backends.mkldnn.matmul.fp32_precision = 'bf16'"]


def precisions() -> list:
    "What each operation's switch says, and what the older interface says where PyTorch lets it."
    def told(read):
        try:
            return read()
        except RuntimeError:
            return None
    b = torch.backends
    ops = [getattr(ops, op) for ops, op in ((b.cuda, "matmul"), (b.cudnn, "conv"), (b.cudnn, "rnn"), (b.mkldnn, "matmul"), (b.mkldnn, "conv"))]
    return [op.fp32_precision for op in ops] + [told(torch.get_float32_matmul_precision), told(lambda: b.cudnn.allow_tf32)]


@pytest.fixture
def put_back():
    yield
    for owner in (torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        owner.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before PyTorch 2.9 there is one interface")
@pytest.mark.parametrize("switch", SWITCHES)
def test_evaluation_is_as_exact_as_it_says_whichever_switch_of_pytorch_is_set(put_back, switch):
    exec(f"torch.{switch}")
    before = precisions()
    with eval_mode(nn.Linear(2, 2)):
        assert {*precisions()[:5]} <= {"none", "ieee"} and precisions()[5:] == ["highest", False]
    assert precisions() == before
    with machine(tf32=True), eval_mode(nn.Linear(2, 2)):
        assert precisions()[:3] == ["tf32"] * 3 and {*precisions()[3:5]} <= {"none", "ieee"} and precisions()[5:] == ["high", True]
    assert precisions()[:5] == before[:5]

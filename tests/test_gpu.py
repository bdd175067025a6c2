"""The same on the CPU and on a card, and in half precision: augmentation, attacks, EADD, SQS, resumed fits, memory.

Each test takes the device as a parameter. On the CPU it runs with all others, and compares the CPU with itself, in other
pieces or in half precision; on a card it runs with `make test-gpu`.
"""
from __future__ import annotations

import copy
import gc
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image
from torch import nn

import fer_nb.data
from fer_nb.advtrain import AdversarialTraining
from fer_nb.attacks import deepfool, fgsm, pgd
from fer_nb.augment import _places, affine_maps, mapped, normal_numbers, warp
from fer_nb.balance import ClassAugment
from fer_nb.cli import VERBS, main, parser
from fer_nb.config import Augment, Fit
from fer_nb.core import ConfigError, hash_bits
from fer_nb.data import resized
from fer_nb.distill import EADD
from fer_nb.evaluate import predict_logits
from fer_nb.launch import Machine, OutOfMemory, fast_math, machine, on_machine, pick_device
from fer_nb.loaders import ReplayLoader, dataloaders
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.predict import Recogniser
from fer_nb.sqs import SQS, attach_sqs, quad_dataloaders
from fer_nb.synth import make_faces
from fer_nb.teachers import teacher_logits
from fer_nb.train import compiled, fit_model, make_loaders, read_checkpoint

from run_notebooks import flag_of, has_gpu_cells

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
TINY = HyFERConfig(stem=8, blocks=((16, 2, 2), (24, 2, 2)), dim=32, depth=1, patch=1, proj=64, light=True, act="relu", input_size=24)
CHANGES = {"geometry": Augment(vflip=0.5), "colour": Augment(brightness=0.1, contrast=0.2), "erased": Augment(erase=0.5),
           "texture": Augment(brightness=0.15, contrast=0.25, noise=0.03, blur=0.7)}


@pytest.fixture(scope="module")
def small() -> object:
    "Drawn faces of 24 pixels."
    return resized(make_faces(240, seed=0, defects=None)[0], 24)


def tiny(seed: int = 1, **how: object) -> HyFER:
    torch.manual_seed(seed)
    return HyFER(in_chans=1, variant=TINY, **how)


def plain() -> nn.Module:
    "Two convolutions, a norm, dropout."
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Dropout(0.1), nn.Flatten(),
                         nn.Linear(8 * 36, 7))


def batches(ds: object, device: str, views: int | None = None, bs: int = 16) -> object:
    fit = Fit(bs=bs, device=device, augment=Augment(brightness=0.1))
    return make_loaders(ds.where(split="train"), ds.where(split=["valid", "test"]), fit, 5, views)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in net.parameters()])


# ---------------------------------------------------------------- augmentation

@on_devices
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(9, 3, 40, 56), (33, 1, 48, 48)])
def test_augmentation_of_bytes_is_the_same_on_every_device_and_in_every_piece(device, name, shape, monkeypatch):
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment, ids = CHANGES[name], 7 * np.arange(shape[0]) - 3
    own = augment(x, ids, 4, 11)
    there = augment(x.to(device), ids, 4, 11)
    assert there.device.type == device and there.dtype == torch.float32 and there.is_contiguous(memory_format=torch.channels_last)
    whole = pytest.MonkeyPatch.context()
    with whole as patched:
        patched.setattr(Augment, "_piece", lambda self, x: len(x))
        together = augment(x.to(device), ids, 4, 11)
    close = torch.isclose(there.cpu(), own, atol=2e-4, rtol=0).float().mean()
    assert torch.equal(together.cpu(), own) if device == "cpu" else close > 0.999  # an edge of a hidden patch may round otherwise


@on_devices
def test_places_are_computed_in_full_precision_whatever_is_allowed(device):
    n = 25
    u = torch.rand(n, generator=torch.Generator().manual_seed(1))
    maps = affine_maps((224, 224), 20 * u - 10, 0.9 + 0.2 * u, torch.stack([u, -u], 1) / 20, torch.ones(n, 2))
    x = torch.rand(n, 1, 224, 224)
    with machine(tf32=True), fast_math(), torch.autocast(device, torch.bfloat16):
        y = warp(x.to(device), maps).cpu()
        other = mapped(maps.to(device), _places(224, 224, torch.device(device), torch.float32)).cpu()
    exact = maps.double() @ _places(224, 224, torch.device("cpu"), torch.float64)
    assert (other - exact).abs().max() < 1e-6
    torch.testing.assert_close(y, warp(x.double(), maps.double()).float(), atol=2e-4, rtol=0)


@on_devices
def test_noise_is_the_same_to_the_bit(device):
    keys = torch.from_numpy(hash_bits(-3, 5, np.arange(-4, 9)).view(np.int64))
    assert torch.equal(normal_numbers(keys.to(device), 1000).cpu(), normal_numbers(keys, 1000))


@on_devices
def test_what_was_made_under_inference_mode_can_be_differentiated_later(device):
    x, augment = torch.rand(2, 1, 19, 23, device=device), Augment(noise=0.1, contrast=0.3)
    with torch.inference_mode():
        seen = augment(x, np.arange(2))
    y = augment(x.requires_grad_(), np.arange(2))
    y.sum().backward()
    assert torch.equal(y.detach(), seen) and x.grad.abs().sum() > 0


def test_augmentation_by_class_takes_bytes():
    x = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    both = ClassAugment(CHANGES["geometry"], CHANGES["texture"], (1, 4))
    y, alone = both(x, np.arange(6), 2, 3), CHANGES["texture"](x[1:2], np.array([1]), 2, 3)
    torch.testing.assert_close(y[1:2], alone, atol=1e-6, rtol=0)
    assert torch.equal(y, both(x.float() / 255, np.arange(6), 2, 3))


# ---------------------------------------------------------------- batches

@on_devices
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_read_ahead_are_the_same(device, workers, small, tmp_path, monkeypatch):
    part = small.where(split="train")
    paths = [tmp_path / f"{k}.png" for k in range(len(part))]
    for path, image in zip(paths, part.array()):
        Image.fromarray(image).save(path)
    monkeypatch.setattr(fer_nb.data, "IN_MEMORY", 0)
    monkeypatch.setattr(fer_nb.loaders, "IN_MEMORY", 0)
    monkeypatch.setenv("FER_NB_CACHE_GB", "0")                   # files are decoded for each batch
    rows = np.r_[np.arange(len(part)), 3, 3]
    how = dict(bs=16, train=True, augment=CHANGES["colour"], seed=3, rows=rows)
    plain, files = ReplayLoader(part, **how), ReplayLoader(part.replace(images=paths), device=device, workers=workers, **how)
    assert (plain.ahead, files.ahead) == (0, workers) and ReplayLoader(part.replace(images=paths)).ahead == 2
    for _ in range(2):
        for (x, y), (u, v) in zip(plain, files, strict=True):
            assert np.array_equal(plain.ids, files.ids) and u.device.type == device and torch.equal(y, v.cpu())
            torch.testing.assert_close(u.cpu(), x, atol=2e-4 * (device != "cpu"), rtol=0)
    plain.rank_world = files.rank_world = 1, 3
    for _ in zip(plain, files, strict=True):
        assert plain.batch_part == files.batch_part and np.array_equal(plain.ids, files.ids)


def test_a_pass_that_is_broken_off_ends_its_threads_and_an_unreadable_file_is_named(small, tmp_path):
    import threading
    loader = ReplayLoader(small, 8, workers=2)
    for _ in loader:
        break
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
    class Broken:
        def __len__(self): return len(small)
        def __getitem__(self, ids): raise OSError("disk of the images is gone")
    loader.x = Broken()
    with pytest.raises(OSError, match="is gone"):
        list(loader)


@on_devices
def test_the_machine_chooses_device_and_threads(device, small):
    with machine(device=device, workers=1):
        dls = dataloaders(small.where(split="train"), small.where(split="valid"), bs=16)
        assert dls.device == pick_device() and dls.device.type == device and dls.train.ahead == 1
    assert dls.train.one_batch()[0].device.type == device and on_machine() == Machine()


# ---------------------------------------------------------------- attacks

def scaled(net: nn.Module, by: float) -> nn.Module:
    "The same answers, with more confidence."
    net = copy.deepcopy(net)
    for p in net.fc.parameters():
        p.data *= by
    return net


@on_devices
def test_attacks_are_the_same_on_every_device_and_within_half_precision(device, small):
    net, x = tiny().eval(), torch.from_numpy(small.array()[:24])[:, None] / 255
    with torch.no_grad():
        y = net(x).argmax(1)
    there = copy.deepcopy(net).to(device)
    for attack in (lambda m, x, y: fgsm(m, x, y, 8 / 255), lambda m, x, y: pgd(m, x, y, 8 / 255, steps=3, random_start=False),
                   lambda m, x, y: deepfool(m, x, y, steps=5)):
        own = attack(net, x, y)
        with fast_math(), torch.autocast(device, torch.bfloat16):
            other = attack(there, x.to(device), y.to(device)).cpu()
        same = torch.isclose(own, other, atol=1e-3, rtol=0).float().mean().item()  # a gradient near 0 may have another sign
        assert other.dtype == torch.float32 and (same == 1 if device == "cpu" else same > 0.98), same


@on_devices
def test_attacks_do_not_underflow_where_half_precision_does(device, small):
    x = torch.from_numpy(small.array()[:16])[:, None].to(device) / 255
    net = tiny().eval().to(device)
    with torch.no_grad():
        y = net(x).argmax(1)
        sure = scaled(net, 30 / net(x).topk(2).values.diff().abs().median().item())
    with torch.autocast(device, torch.float16):
        by_hand = x.clone().requires_grad_()
        p = sure(by_hand)
        assert p.dtype == torch.float16
        grad, = torch.autograd.grad(nn.functional.cross_entropy(p.float(), y, reduction="sum"), by_hand)
        lost = (grad.flatten(1) == 0).all(1)                      # of these the whole gradient is 0
        moved = (fgsm(sure, x, y, 8 / 255) - x).flatten(1).abs()
    assert lost.float().mean() > 0.25
    assert (moved.amax(1) > 7.9 / 255).all() and ((moved > 0).float().mean(1) > 0.5).all()


# ---------------------------------------------------------------- fits

class Recorded(Callback):
    "Losses of all batches, and what the attack changed while mixed precision was on."
    order, run_valid = 95, False

    def before_fit(self):
        self.losses, self.moved = [], []

    def after_loss(self):
        self.losses.append(float(self.loss_grad))
        if getattr(self.learn, "clean_xb", None) is not None:
            self.moved.append((self.xb[0] - self.clean_xb[0]).abs().amax((1, 2, 3)).max().item())


def everything(net: nn.Module, small: object, device: str, bank: object, **how: object) -> Recorded:
    "A fit with EADD from cached logits and attacked images."
    cbs = [EADD([bank]), AdversarialTraining("pgd", eps=4 / 255, steps=2, guard=0), seen := Recorded()]
    fit_model(net, batches(small, device, 2), Fit(epochs=2, lr=1e-3), cbs, seed=3, **how)
    return seen


@pytest.fixture(scope="module")
def bank(small) -> object:
    "Logits of a teacher for two views."
    dls = batches(small, "cpu", 2)
    teacher = tiny(8).eval()
    return teacher_logits(teacher, dls.train, dls.valid, "tiny")


@on_devices
@pytest.mark.parametrize("amp", [None, "bf16", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_a_fit_with_teachers_and_attacks_is_the_same_on_every_device_and_near_it_in_half_precision(device, amp, small, bank):
    if amp == "fp16" and device == "cpu":
        pytest.skip("fp16 is for cards")
    own = everything(one := tiny(drop=0), small, "cpu", bank)     # dropout draws other numbers on a card
    with machine(amp=amp):
        other = everything(two := tiny(drop=0), small, device, bank)
    assert len(own.losses) == len(other.losses) > 15 and min(other.moved) > 3.9 / 255
    apart = np.abs(np.array(own.losses) - other.losses) / np.abs(own.losses)
    assert apart.max() == 0 if (device, amp) == ("cpu", None) else apart[0] < (1e-3, 0.05)[amp is not None]
    assert apart.mean() < (0.01, 0.1)[amp is not None], apart
    assert next(two.parameters()).device.type == device and next(two.parameters()).dtype == torch.float32
    if (device, amp) == ("cpu", None):
        assert torch.equal(weights(one), weights(two))


@on_devices
def test_teachers_are_asked_where_they_are(device, small, bank):
    teacher = tiny(8).eval().to(device)
    dls = batches(small, device, 2)
    there = teacher_logits(teacher, dls.train, dls.valid, "tiny")
    np.testing.assert_allclose(there.train.astype(float), bank.train.astype(float), atol=0 if device == "cpu" else 0.02)


@on_devices
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_sqs_is_the_same_on_every_device_and_near_it_in_half_precision(device, amp, small):
    losses = []
    for where, how in (("cpu", "off"), (device, amp)):
        with machine(amp=how):
            seen = Recorded()
            fit_model(attach_sqs(tiny(drop=0), separate=False), quad_dataloaders(batches(small, where)), Fit(epochs=1, lr=1e-3), [SQS(), seen], seed=3)
        losses.append(seen.losses)
    apart = np.abs(np.subtract(*losses)) / np.abs(losses[0])
    assert apart.max() == 0 if (device, amp) == ("cpu", "off") else apart[0] < (1e-3, 0.1)[amp == "bf16"], apart


@pytest.mark.parametrize("device, back", [("cpu", False), *(pytest.param("cuda", back, marks=pytest.mark.gpu) for back in (False, True))])
def test_a_fit_goes_on_on_another_device(device, back, small, tmp_path):
    begins, ends = ("cpu", device) if back else (device, "cpu")
    how = dict(seed=3, phase="student")
    whole = fit_model(one := tiny(), batches(small, "cpu"), Fit(epochs=3, lr=1e-3), **how)

    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_model(tiny(), batches(small, begins), Fit(epochs=3, lr=1e-3), [Stop()], checkpoint=tmp_path / "fit", **how)

    class Stop(Callback):  # the same name: the checkpoint knows its callbacks
        pass

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resumed = fit_model(two := tiny(), batches(small, ends), Fit(epochs=3, lr=1e-3), [Stop()], checkpoint=tmp_path / "fit", **how)
    told = any("not bit for bit: device" in str(w.message) for w in said)
    assert told == (begins != ends) and len(resumed) == 3
    if device == "cpu":
        assert torch.equal(weights(one), weights(two)) and resumed.equals(whole)
    assert np.allclose(resumed.train_loss, whole.train_loss, rtol=0.02)


@on_devices
def test_memory_does_not_grow_over_200_steps(device, small):
    class Held(Callback):
        "Bytes of all tensors that are alive; on a card, what is allocated."
        order, run_valid = 99, False

        def before_fit(self):
            self.bytes, self.steps = {}, 0

        def after_batch(self):
            self.steps += 1
            if self.steps in (40, 200):
                gc.collect()
                self.bytes[self.steps] = torch.cuda.memory_allocated() if device == "cuda" else sum(
                    o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))

    net = plain()
    dls = dataloaders(small.where(split="train"), small.where(split="valid"), bs=8, device=device, workers=2)
    epochs = -(-200 // len(dls.train))
    cbs = [AdversarialTraining("fgsm", guard=0), held := Held()]
    fit_model(net, dls, Fit(epochs=epochs, lr=1e-4, amp="bf16", ema=0.9), cbs)
    assert held.steps >= 200 and held.bytes[200] - held.bytes[40] < 8 * 8 * 24 * 24 * 4, held.bytes  # of 160 batches in between


# ---------------------------------------------------------------- memory that is not enough

@on_devices
def test_a_full_memory_says_what_to_try_and_keeps_the_checkpoint(device, small, tmp_path):
    class Big(Callback):
        "Asks the allocator itself for more than there is."
        def before_batch(self):
            if self.training and self.epoch == 1:
                torch.empty(2**50, dtype=torch.uint8, device=self.x.device)

    with pytest.raises(OutOfMemory, match=r"batches of 16 images on (cpu|cuda.*)(.|\n)*bs=8 with accumulate=2(.|\n)*keeps the complete"):
        fit_model(tiny(), batches(small, device), Fit(epochs=2), [Big()], checkpoint=tmp_path / "fit")
    assert read_checkpoint(tmp_path / "fit")["epoch"] == 1


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"),
                                   RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
                                   MemoryError("Unable to allocate 8.00 GiB for an array")])
def test_every_allocators_error_is_one_of_ours_and_short(error, small):
    class Full(Callback):
        def before_backward(self):
            raise error
    with pytest.raises(OutOfMemory) as told:
        fit_model(tiny(), batches(small, "cpu", bs=1), Fit(epochs=1, accumulate=3), [Full()])
    assert len(str(told.value).splitlines()) <= 3 and "smaller images" in str(told.value)


def test_other_errors_pass_as_they_are(small):
    class Wrong(Callback):
        def before_backward(self):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit_model(tiny(), batches(small, "cpu"), Fit(epochs=1), [Wrong()])


# ---------------------------------------------------------------- networks elsewhere, and the command

@on_devices
def test_predictions_are_the_same_on_every_device(device, small, net):
    faces = make_faces(14, seed=3, defects=None)[0]
    here, there = (predict_logits(net, faces, device=where) for where in ("cpu", device))
    np.testing.assert_allclose(here, there, atol=2e-3)
    one, other = (Recogniser(crop=False, device=where).batch(faces.array()) for where in ("cpu", device))
    for a, b in zip(one, other):
        assert np.allclose([*a[0].probs.values()], [*b[0].probs.values()], atol=1e-3)


def test_switches_reach_the_fit_and_are_put_back(small):
    class Look(Callback):
        def before_fit(self):
            cudnn = torch.backends.cudnn
            self.found = cudnn.benchmark, cudnn.allow_tf32, self.model[3].weight.is_contiguous()
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    for switches, expected in (({"benchmark": True, "tf32": True, "channels_last": False}, (True, True, True)), ({}, (False, False, False))):
        with machine(**switches):
            fit_model(plain(), batches(small, "cpu"), Fit(epochs=1), [look := Look()])
        assert look.found == expected
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.slow
@on_devices
def test_a_compiled_fit_ends_where_the_plain_one_does(device, small):
    how = dict(fit=Fit(epochs=1, lr=1e-3, ema=0.9), seed=3)
    plain = fit_model(one := tiny(drop=0.0) if "drop" in HyFER.__init__.__code__.co_varnames else tiny(), batches(small, device), **how)
    with machine(compile=True):
        fast = fit_model(two := tiny(), batches(small, device), **how)
    assert two._compiled_call_impl is None and list(two.state_dict()) == list(one.state_dict())
    assert np.allclose(plain.train_loss, fast.train_loss, rtol=0.05)


def test_a_network_that_cannot_be_compiled_is_a_sentence():
    from torch._dynamo.exc import TorchDynamoException
    with pytest.raises(ConfigError, match="compile=True: Linear cannot be compiled here .no compiler.; a C\\+\\+"), machine(compile=True):
        with compiled(nn.Linear(2, 2)):
            raise TorchDynamoException("no compiler")


def test_the_command_knows_the_machine_in_every_verb_that_has_a_use_for_it():
    flags = {"--device", "--workers", "--amp", "--compile", "--fast-math"}
    known = {name: flags & set(parser(name).flags) for name in VERBS}
    assert all(known[name] == flags for name in ("demo", "run", "study", "reproduce", "ship")) and known["audit"] == {"--workers"}
    assert known["evaluate"] == known["predict"] == {"--device"}


@pytest.mark.parametrize("given, fast", [([], False), (["--fast-math"], True)])
def test_fast_math_is_two_switches_of_the_machine(given, fast, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(VERBS["demo"], "run", lambda args: seen.append(on_machine()) or "")
    assert main(["demo", "--out", str(tmp_path / "run"), *given]) == 0
    assert (seen[0].tf32, seen[0].benchmark) == (fast, fast)


def test_the_command_refuses_a_device_that_is_not_there_before_anything_is_read(tmp_path, capsys):
    for verb in (["demo"], ["predict", __file__], ["demo", "--amp", "fp16", "--device", "cuda:77"]):
        device = [] if "--device" in verb else ["--device", "gpu"]
        assert main([*verb, *device, *(["--out", str(tmp_path / "run")] if verb[0] == "demo" else [])]) == 2
        assert "cannot be used here" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main(["demo", "--amp", "half"])


# ---------------------------------------------------------------- pages

def test_cells_for_a_card_are_found_by_their_flag(tmp_path):
    cells = [{"cell_type": "markdown", "source": "#| gpu"}, {"cell_type": "code", "source": ["#| gpu\n", "1 / 0"]}]
    for k, expected in ((2, True), (1, False)):
        page = tmp_path / f"{k}.ipynb"
        page.write_text(json.dumps({"cells": cells[:k]}))
        assert has_gpu_cells(page) == expected
    assert flag_of(cells[1], ["slow", "gpu"]) == "gpu"


@pytest.mark.slow
def test_the_cells_for_a_card_run_on_the_cpu_with_a_tiny_budget():
    import subprocess
    import sys
    done = subprocess.run([sys.executable, "tests/run_notebooks.py", "--tiny"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

"""AdversarialTraining of the installed package: failure paths, state, reproducibility, other callbacks."""
import json
import random
import warnings

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
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import TensorCategory, TensorImage

from fer_nb.advtrain import AdversarialTraining
from fer_nb.attacks import pgd
from fer_nb.core import ConfigError, FERError, ImageError

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
                                 dict(alpha=-1), dict(warmup_epochs=-1), dict(steps=0)])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        AdversarialTraining(**bad)
    assert issubclass(ConfigError, FERError)

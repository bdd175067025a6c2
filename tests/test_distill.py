"""EADD beyond its notebook: failure paths, other events, other callbacks, and Hinton's distillation as a special case."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.core import ConfigError
from fer_nb.distill import EADD, TeacherLogits, eadd_weights, teacher_logits
from fer_nb.loaders import dataloaders
from fer_nb.synth import make_faces


def small_net(seed, width=4):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(144, width), nn.ReLU(), nn.Linear(width, 7))
    net.labels = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    return net


@pytest.fixture()
def dls():
    faces = make_faces(160, seed=0, defects=None)[0]
    return dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32, views=2)


def fit(dls, cbs, epochs=2, seed=1):
    dls.train.epoch = 0
    learn = Learner(dls, small_net(seed), loss_func=nn.CrossEntropyLoss(), cbs=cbs, lr=1e-2)
    with learn.no_logging():
        learn.fit(epochs)
    return learn


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_one_teacher_is_hinton(dls):
    """With N = 1 the weights are all 1 whatever the accuracies, and a hand-written Hinton loop ends at the same weights."""
    teacher = small_net(7).eval()
    learn = fit(dls, [EADD([teacher], alpha=0.3, T=2.0)], epochs=1)
    dls.train.epoch = 0
    model = small_net(1)
    plain = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), lr=1e-2)
    plain.create_opt()
    plain.opt.set_hyper("lr", 1e-2)
    model.train()
    for x, y in dls.train:
        z = model(x)
        with torch.no_grad():
            t = teacher(x)
        kd = F.kl_div(F.log_softmax(z / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
        (0.3 * F.cross_entropy(z, y) + kd).backward()
        plain.opt.step()
        plain.opt.zero_grad()
    torch.testing.assert_close(flat(learn.model), flat(model), atol=1e-4, rtol=1e-3)


def test_uniform_weights_average_the_teachers(dls):
    """A table of equal accuracies weighs N teachers by 1/N: two copies of one teacher equal that teacher alone."""
    teacher = small_net(7)
    table = np.full((2, 7), 0.4)
    two = fit(dls, [EADD([teacher, teacher], accuracy=table)])
    one = fit(dls, [EADD([teacher], accuracy=table[:1])])
    torch.testing.assert_close(flat(two.model), flat(one.model), atol=1e-5, rtol=1e-4)


def test_running_accuracy_moves_towards_the_batches(dls):
    class Oracle(nn.Module):
        labels = small_net(0).labels

        def forward(self, x):
            return 20.0 * F.one_hot(dls.train.y[dls.train.ids], 7).float()

    eadd = EADD([Oracle(), small_net(3)], accuracy="running", momentum=0.5)
    fit(dls, [eadd], epochs=4)
    first, last = (eadd.history[(eadd.history.epoch == e) & (eadd.history.teacher == "Oracle")] for e in (0, 3))
    assert (first.accuracy == 0.5).all()
    common = last.emotion.isin(["happy", "neutral", "sad"])
    assert (last.accuracy[common] > 0.9).all() and (last.weight[common] > 0.9).all()


def test_validation_labels_only_set_weights(dls):
    """Logits kept for validation images never enter a loss: replacing them by noise changes the weights alone."""
    kept = teacher_logits(small_net(7), dls.train, dls.valid)
    noise = TeacherLogits(kept.name, kept.labels, kept.train, np.random.default_rng(0).normal(size=kept.valid.shape).astype(np.float16))
    a, b = (fit(dls, [EADD([k])]) for k in (kept, noise))
    torch.testing.assert_close(flat(a.model), flat(b.model))


class Interrupt(Callback):
    order = 30

    def __init__(self, error):
        self.error, self.left = error, 2

    def after_backward(self):
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("error", [CancelFitException(), RuntimeError("boom"), KeyboardInterrupt()])
def test_nothing_to_restore_after_a_broken_fit(dls, error):
    teacher, loss = small_net(7), nn.CrossEntropyLoss()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    learn = Learner(dls, small_net(1), loss_func=loss, cbs=[EADD([teacher]), Interrupt(error)], lr=1e-2)
    with learn.no_logging():
        try:
            learn.fit(1)
        except (RuntimeError, KeyboardInterrupt):
            pass
    assert learn.loss_func is loss
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, (EADD, Interrupt))])
    dls.train.epoch = 0
    with learn.no_logging():
        learn.fit(1)


def test_validate_after_a_fit_keeps_the_history(dls):
    eadd = EADD([small_net(7)])
    learn = fit(dls, [eadd])
    rows = len(eadd.history)
    learn.validate()
    assert len(eadd.history) == rows == 2 * 7


def test_teacher_sees_the_clean_view_under_attack(dls):
    seen = []

    class Watch(nn.Module):
        labels = small_net(0).labels

        def forward(self, x):
            if len(x) == 32:
                seen.append((x.detach().clone(), dls.train.ids.copy(), dls.train.view))
            return torch.zeros(len(x), 7)

    fit(dls, [EADD([Watch()], accuracy=np.full((1, 7), 0.5)), AdversarialTraining("fgsm", eps=8 / 255, ratio=1.0)], epochs=1)
    assert seen
    for x, ids, view in seen:
        assert torch.allclose(x, dls.train.images(ids, view))


@pytest.mark.parametrize("kwargs, word", [({"accuracy": "best"}, "'best'"), ({"tau": -1.0}, "tau"), ({"over": "none"}, "'none'")])
def test_settings_that_make_no_sense(dls, kwargs, word):
    with pytest.raises(ConfigError, match=word):
        fit(dls, [EADD([small_net(7)], **kwargs)])


def test_endless_views_cannot_be_kept(dls):
    dls.train.views = None
    with pytest.raises(ConfigError, match="number of views"):
        teacher_logits(small_net(7), dls.train, dls.valid)


def test_per_emotion_tau():
    acc = np.array([[0.9, 0.9], [0.5, 0.5]])
    w = eadd_weights(acc, [0.01, 100.0])
    assert w[0, 0] > 0.999 and abs(w[0, 1] - 0.5) < 0.01

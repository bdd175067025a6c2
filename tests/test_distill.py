"""EADD beyond its notebook: failure paths, other events, other callbacks, and Hinton's distillation as a special case."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.augment import Augment
from fer_nb.balance import on_the_fly
from fer_nb.core import ConfigError, DataError, FERError
from fer_nb.distill import (EADD, Geometry, StaleCacheError, TeacherLogits, distill_loss, eadd_distill, eadd_weights,
                            fit_geometry, geometry_features, geometry_logits, load_teacher_logits, logits_size,
                            teacher_logits, view_key)
from fer_nb.loaders import ReplayLoader, dataloaders
from fer_nb.models import HyFER
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


# ---- the equations ----

def softmax(z, T=1.0):
    e = np.exp((z - z.max()) / T)
    return e / e.sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("over", ["label", "all"])
def test_equations_1_to_5_against_loops(seed, over):
    """Three teachers, some silent, per-emotion temperatures; every sum written out."""
    rng = np.random.default_rng(seed)
    N, B, C, alpha = 3, 9, 7, 0.4
    z_s, z_t, y = rng.normal(size=(B, C)), rng.normal(size=(N, B, C)), rng.integers(0, C, B)
    acc, T, tau, speaks = rng.random((N, C)), rng.uniform(1, 5, C), rng.uniform(0.05, 0.5, C), rng.random((N, B)) < 0.7
    total = 0.0
    for n in range(B):
        ce = -np.log(softmax(z_s[n])[y[n]])                                                   # Eq. 2
        total += alpha * ce
        for e in ([y[n]] if over == "label" else range(C)):
            w = [np.exp(acc[i, e] / tau[e]) * speaks[i, n] for i in range(N)]                 # Eq. 5
            for i in range(N):
                if speaks[i, n]:
                    p, q = softmax(z_t[i, n], T[e]), softmax(z_s[n], T[e])
                    total += w[i] / sum(w) * T[e]**2 * sum(p[c] * np.log(p[c] / q[c]) for c in range(C))   # Eq. 3, 4
    t = lambda a: torch.tensor(a, dtype=torch.float32)
    ours = alpha * F.cross_entropy(t(z_s), torch.tensor(y)) + eadd_distill(
        t(z_s), t(z_t), torch.tensor(y), eadd_weights(acc, t(tau)), t(T), over, torch.tensor(speaks))
    assert ours.item() == pytest.approx(total / B, rel=1e-4)


def test_silence_changes_no_gradient_of_others():
    """A silent teacher's logits have no influence whatever they are; where all are silent nothing is learnt."""
    torch.manual_seed(0)
    z_s, z_t, y = torch.randn(4, 7, requires_grad=True), torch.randn(2, 4, 7), torch.tensor([0, 1, 2, 3])
    w, T = eadd_weights(torch.rand(2, 7)), torch.full((7,), 2.0)
    speaks = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    first = torch.autograd.grad(eadd_distill(z_s, z_t, y, w, T, speaks=speaks), z_s)[0]
    z_t[~speaks] = 100.0
    second = torch.autograd.grad(eadd_distill(z_s, z_t, y, w, T, speaks=speaks), z_s)[0]
    assert torch.equal(first, second) and torch.equal(first[3], torch.zeros(7)) and first[:3].abs().sum(1).min() > 0


@pytest.mark.parametrize("tau", [0.1, 0.02, 0.005])
def test_who_speaks_alone_is_heard_however_little_it_is_trusted(tau):
    "e^(-0.4 / 0.005) is about 1e-35: less than any ε that would keep a division from failing."
    torch.manual_seed(0)
    z_s, z_t, y = torch.randn(3, 7), torch.randn(2, 3, 7), torch.tensor([0, 3, 6])
    weights = eadd_weights(torch.tensor([[0.9] * 7, [0.5] * 7]), tau)
    speaks = torch.tensor([[False, True, False], [True, True, False]])
    found = eadd_distill(z_s, z_t, y, weights, torch.full((7,), 2.0), speaks=speaks)
    alone = [distill_loss(z_s[i:i + 1], z_t[k, i:i + 1], 2.0) for i, k in ((0, 1), (1, 0), (1, 1))]
    w = np.exp((np.array([0.9, 0.5]) - 0.9) / tau)
    expected = (alone[0] + (w / w.sum() * np.array([float(alone[1]), float(alone[2])])).sum()) / 3   # the third hears nobody
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_one_sample_alone_with_a_silent_partner_is_hinton():
    z_s, z_t, y = torch.randn(5, 7), torch.randn(2, 5, 7), torch.arange(5)
    speaks = torch.tensor([[True] * 5, [False] * 5])
    ours = eadd_distill(z_s, z_t, y, eadd_weights(torch.rand(2, 7), 0.1), torch.full((7,), 3.0), speaks=speaks)
    torch.testing.assert_close(ours, distill_loss(z_s, z_t[0], 3.0))


# ---- the callback's settings ----

@pytest.mark.parametrize("kwargs, word", [
    ({"alpha": -0.1}, "alpha"), ({"alpha": float("nan")}, "alpha"), ({"T": 0.0}, "T=0"), ({"T": [1.0] * 6}, "7 emotions"),
    ({"tau": [0.1] * 6}, "7 emotions"), ({"accuracy": np.full((1, 6), 0.5)}, "teachers by emotions"),
    ({"accuracy": np.full((2, 7), 0.5)}, "teachers by emotions"), ({"momentum": 1.5}, "momentum"),
    ({"alpha": lambda p: -1.0}, "alpha"), ({"T": lambda p: [3.0] * 2}, "7 emotions")])
def test_more_settings_that_make_no_sense(dls, kwargs, word):
    with pytest.raises(ConfigError, match=word):
        fit(dls, [EADD([small_net(7)], **kwargs)])


def test_schedules_follow_the_progress(dls):
    """α seen by the loss at each batch is the schedule at fastai's own progress."""
    seen = []
    eadd = EADD([small_net(7)], alpha=lambda p: seen.append(p) or 1 - p, T=lambda p: [2.0 + p] * 7)
    fit(dls, [eadd], epochs=2)
    batches = len(dls.train)
    expected = np.concatenate([[0, e / 2, *(e / 2 + np.arange(batches) / (2 * batches))][1 - (e == 0):] for e in (0, 1)])
    np.testing.assert_allclose(np.unique(np.round(seen, 9)), np.unique(np.round(expected, 9)), atol=1e-6)
    assert np.allclose(sorted(set(eadd.history.alpha)), [0.5, 1.0]) and np.allclose(sorted(set(eadd.history["T"])), [2.0, 2.5])


def test_a_constant_schedule_is_a_number(dls):
    """The same run, to the bit."""
    a, b = (fit(dls, [EADD([small_net(7)], alpha=alpha, T=T)]) for alpha, T in ((0.3, 2.0), (lambda p: 0.3, [2.0] * 7)))
    assert torch.equal(flat(a.model), flat(b.model))


def test_teachers_of_one_name_are_told_apart():
    assert EADD([small_net(1), small_net(2)]).names == ["Sequential (1)", "Sequential (2)"]


def test_a_teacher_is_frozen_and_apart_from_the_student(dls):
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2304), nn.Dropout(0.5), nn.Linear(2304, 7)).train()
    teacher.labels = small_net(0).labels
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    class Wake(Callback):
        def before_batch(self):
            self.learn.model.train()
            teacher.train()                                           # somebody else's mistake

    learn = fit(dls, [EADD([teacher]), Wake()])
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert set(learn.model.state_dict()) == set(small_net(1).state_dict())


def test_the_student_cannot_teach_itself(dls):
    model = small_net(1)
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), cbs=[EADD([model])])
    with pytest.raises(ConfigError, match="shares parameters"), learn.no_logging():
        learn.fit(1)
    assert all(p.requires_grad for p in model.parameters())


def test_loaders_without_views_are_refused_where_they_are_needed(dls):
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    images = [(torch.rand(1, 48, 48), k % 7) for k in range(8)]
    plain = DataLoaders(*(DataLoader(images, bs=4, num_workers=0) for _ in range(2)))
    plain.vocab, plain.device = dls.vocab, torch.device("cpu")
    for cb in (EADD([small_net(7)]), EADD([teacher_logits(small_net(7), dls.train, dls.valid)], accuracy="running")):
        with pytest.raises(ConfigError, match="loaders.dataloaders"):
            Learner(plain, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[cb]).fit(1)


def test_kept_logits_do_not_mix(dls):
    from fastai.callback.mixup import MixUp
    kept = teacher_logits(small_net(7), dls.train, dls.valid)
    with pytest.raises(ConfigError, match="MixUp"):
        fit(dls, [EADD([kept]), MixUp()])


# ---- going on ----

@pytest.mark.parametrize("accuracy", ["valid", "running"])
def test_a_state_is_json_and_leaves_nothing_out(dls, accuracy):
    eadd = EADD([small_net(7), small_net(8)], accuracy=accuracy)
    fit(dls, [eadd])
    other = EADD([small_net(7), small_net(8)], accuracy=accuracy)
    other.load_state_dict(json.loads(json.dumps(eadd.state_dict())))
    assert np.array_equal(other.acc, eadd.acc)
    assert other.history.to_dict("list") == eadd.history.to_dict("list")
    assert json.loads(json.dumps(other.state_dict())) == json.loads(json.dumps(eadd.state_dict()))


def test_a_second_fit_starts_again_and_keeps_the_first_ones_history(dls):
    eadd = EADD([small_net(7)], accuracy="running", momentum=0.5)
    fit(dls, [eadd])
    first = eadd.history.copy()
    fit(dls, [eadd])
    assert len(eadd.history) == 2 * len(first) and (eadd.history.accuracy[len(first):len(first) + 7] == 0.5).all()
    assert eadd.history.weight[:len(first)].equals(first.weight)


def test_validating_between_loading_and_fitting_loses_nothing(dls):
    eadd = EADD([small_net(7)], accuracy="running", momentum=0.5)
    fit(dls, [eadd], epochs=3)
    other = EADD([small_net(7)], accuracy="running", momentum=0.5)
    other.load_state_dict(eadd.state_dict())
    learn = Learner(dls, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[other])
    with learn.no_logging():
        learn.validate()
        learn.fit(4, start_epoch=3)
    assert np.allclose(other.history.accuracy[-7:].to_numpy(float), eadd.acc[0]) and len(other.history) == 4 * 7


def test_the_state_of_other_teachers_is_refused():
    eadd = EADD([small_net(7)])
    state = EADD([small_net(7), small_net(8)]).state_dict()
    with pytest.raises(ConfigError, match="teachers"):
        eadd.load_state_dict(state)


def test_the_settings_can_be_written_down():
    config = EADD([small_net(7)], tau=[0.1] * 7, accuracy=np.full((1, 7), 0.5), alpha=lambda p: p).config()
    assert json.loads(json.dumps(config)) == config and config["alpha"] == [0, 0.25, 0.5, 0.75, 1]
    assert config["of"] == EADD([small_net(7)]).config()["of"] != EADD([small_net(8)]).config()["of"]


# ---- the cache ----

class Counting(nn.Module):
    """A teacher that counts its questions and may die."""
    name = "counting"

    def __init__(self, left=10**9):
        super().__init__()
        self.net, self.asked, self.left = small_net(7), 0, left
        self.labels = self.net.labels

    def forward(self, x):
        self.asked += 1
        if self.asked > self.left:
            raise KeyboardInterrupt
        return self.net(x)


@pytest.mark.parametrize("left", range(4))
def test_a_killed_generation_goes_on_where_it_stopped(dls, tmp_path, left):
    with pytest.raises(KeyboardInterrupt):
        teacher_logits(Counting(left), dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == left and not list(tmp_path.glob(".*"))
    with pytest.raises(DataError, match=f"{4 - left} of 4"):
        load_teacher_logits(tmp_path)
    (tmp_path / ".train-0001.123.npy").write_bytes(b"half")            # what a SIGKILL may leave
    again, whole = Counting(), teacher_logits(Counting(), dls.train, dls.valid, bs=1000)
    kept = teacher_logits(again, dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert again.asked == 4 - left
    for a in (kept, load_teacher_logits(tmp_path)):
        assert np.array_equal(a.train, whole.train) and np.array_equal(a.valid, whole.valid) and a.labels == whole.labels
    assert logits_size(dls.train, dls.valid) == whole.train.nbytes + whole.valid.nbytes


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_damaged_view_is_asked_again(dls, tmp_path, content):
    whole = teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    file = tmp_path / "train-0001.npy"
    if content is None:
        np.save(file, np.zeros((3, 7), np.float16))                    # of another size
    else:
        file.write_bytes(content)
    again = Counting()
    kept = teacher_logits(again, dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert again.asked == 1 and np.array_equal(kept.train, whole.train)


def other_runs():
    faces = make_faces(160, seed=0, defects=None)[0]
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    return {"training images": (train.take(range(1, len(train))), valid, {}),
            "validation images": (train, valid.take(range(1, len(valid))), {}),
            "augmentation": (train, valid, {"augment": Augment(rotate=5)}),
            "seed": (train, valid, {"seed": 1}), "views": (train, valid, {"views": 3}),
            "training rows": (train, valid, {"rows": np.arange(len(train))[::-1].copy()})}


@pytest.mark.parametrize("what", other_runs())
def test_stale_logits_say_what_differs(dls, tmp_path, what):
    kept = teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    train, valid, kwargs = other_runs()[what]
    other = dataloaders(train, valid, bs=32, **{"views": 2, **kwargs})
    asked = Counting()
    with pytest.raises(StaleCacheError, match=what) as e:
        teacher_logits(asked, other.train, other.valid, folder=tmp_path)
    assert isinstance(e.value, FERError) and asked.asked == 0
    if what == "augmentation":
        assert "rotate" in str(e.value) and "hflip" not in str(e.value)
    for said in (kept, load_teacher_logits(tmp_path)):
        with pytest.raises(StaleCacheError):
            fit(other, [EADD([said])])


def test_logits_without_their_key_are_refused(dls, tmp_path):
    teacher_logits(small_net(7), dls.train, dls.valid, folder=tmp_path)
    (tmp_path / "key.json").unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(StaleCacheError, match="without key.json"):
        teacher_logits(small_net(8), dls.train, dls.valid, folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_weights_and_another_name_are_stale(dls, tmp_path):
    teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    changed = Counting()
    with torch.no_grad():
        changed.net[2].bias[0] += 1e-6
    with pytest.raises(StaleCacheError, match="differ in teacher "):
        teacher_logits(changed, dls.train, dls.valid, folder=tmp_path)
    with pytest.raises(StaleCacheError, match="name"):
        teacher_logits(Counting(), dls.train, dls.valid, "other", folder=tmp_path)


def test_another_normalisation_is_another_teacher(dls, tmp_path):
    """Mean and spread are no part of a state dict, but of what is said."""
    teacher = HyFER(in_chans=1, variant="light")
    teacher_logits(teacher, dls.train, dls.valid, folder=tmp_path)
    teacher.adapt.mean += 0.1
    with pytest.raises(StaleCacheError, match="differ in teacher "):
        teacher_logits(teacher, dls.train, dls.valid, folder=tmp_path)


def test_a_teacher_is_asked_where_it_is(dls):
    """A teacher that was read from a file lies on the CPU, wherever the batches go."""
    here = teacher_logits(small_net(7), dls.train, dls.valid)
    dls.train.device = torch.device("meta")
    assert np.array_equal(teacher_logits(small_net(7), dls.train, dls.valid).train, here.train)


def test_the_key_of_a_balanced_epoch_is_short():
    train = make_faces(160, seed=0, defects=None)[0].where(split="train")
    valid = make_faces(160, seed=0, defects=None)[0].where(split=["valid", "test"])
    keys = []
    for minority in (None, ["happy"]):
        rows, augment = on_the_fly(train, "max", minority=minority)
        dls = dataloaders(train, valid, bs=16, rows=rows, augment=augment, views=2)
        keys.append(view_key(dls.train, dls.valid))
    assert max(len(json.dumps(k)) for k in keys) < 1500 and keys[0] != keys[1]


@pytest.mark.parametrize("key", ["", "{}", "[]", "\xff"])
def test_a_foreign_key_is_refused(dls, tmp_path, key):
    (tmp_path / "key.json").write_text(key, encoding="latin-1")
    with pytest.raises(DataError, match="key.json"):
        teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    with pytest.raises(DataError, match="key.json"):
        load_teacher_logits(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_logits_that_are_not_finite_name_the_image(dls, tmp_path, value):
    class Broken(Counting):
        def forward(self, x):
            z = super().forward(x)
            z[3] = value
            return z

    with pytest.raises(DataError, match=f"counting.*{dls.train.ds.df.id.iloc[3]}"):
        teacher_logits(Broken(), dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_cached_run_is_the_online_run(dls, tmp_path):
    """On the same views, up to the 16 bits that are kept: the online teacher rounds its answers likewise."""
    class Rounded(Counting):
        def forward(self, x):
            return super().forward(x).half().float()

    kept = teacher_logits(Rounded(), dls.train, dls.valid, folder=tmp_path)
    cached, online = fit(dls, [EADD([load_teacher_logits(tmp_path)])], epochs=3), fit(dls, [EADD([Rounded()])], epochs=3)
    torch.testing.assert_close(flat(cached.model), flat(online.model), atol=1e-4, rtol=1e-3)
    assert kept.train.dtype == np.float16


def test_the_mean_of_all_views_stands_for_any_view(dls):
    kept = teacher_logits(small_net(1), dls.train, dls.valid)
    said = kept.mean()
    for table, one in ((kept.train, said.train), (kept.valid, said.valid)):
        z = table.astype(np.float64)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        np.testing.assert_allclose(one, log_p.mean(0, keepdims=True), atol=5e-3)
    said.check(*(ReplayLoader(d.ds, 8, d.train, d.augment, 9, None) for d in (dls.train, dls.valid)))
    with pytest.raises(StaleCacheError, match="training images"):
        said.check(dls.valid, dls.valid)


def test_a_teacher_keeps_the_modes_of_its_parts(dls):
    teacher = Counting().train()
    teacher.net[3].eval()
    teacher_logits(teacher, dls.train, dls.valid)
    assert teacher.training and teacher.net[2].training and not teacher.net[3].training


# ---- geometry ----

def hints(ds, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.random(len(ds)) < 0.8
    features = np.eye(7)[ds.targets()] + 0.3 * rng.normal(size=(len(ds), 7))
    features[~found] = np.nan
    return Geometry(list(ds.df.id), features, found)


@pytest.fixture(scope="module")
def world():
    faces = make_faces(160, seed=0, defects=None)[0]
    geometry = hints(faces)
    return faces, geometry, fit_geometry(geometry, faces.where(split="train"), epochs=10, bs=32)


def test_a_geometry_teacher_joins_and_is_silent(world, dls):
    faces, geometry, net = world
    kept = geometry_logits(net, geometry, dls.train, dls.valid)
    assert kept.train.shape[0] == 1 and (kept.train[0][~kept.train_speaks] == 0).all() and not kept.train_speaks.all()
    eadd = EADD([kept, small_net(7)])
    fit(dls, [eadd])
    spoke = kept.valid_speaks
    right = kept.valid[0].argmax(1) == dls.valid.y.numpy()
    h = eadd.history[(eadd.history.teacher == "geometry") & (eadd.history.epoch == 0)].set_index("emotion").accuracy
    for e, name in enumerate(dls.vocab):
        of = spoke & (dls.valid.y.numpy() == e)
        assert h[name] == pytest.approx(right[of].mean() if of.any() else 0.5)


def test_geometry_follows_rows_and_sources(world):
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    rows = np.array([5, 5, 0, 9])
    dls = dataloaders(train, valid, bs=2, views=2, rows=rows)
    plain = dataloaders(train, valid, bs=2, views=2)
    a, b = (geometry_logits(net, geometry, d.train, d.valid) for d in (dls, plain))
    assert np.array_equal(a.train, b.train[:, rows]) and np.array_equal(a.train_speaks, b.train_speaks[rows])
    copies = train.take([0, 1])
    copies.df["source"], copies.df["id"] = copies.df.id.copy(), ["copy/a", "copy/b"]
    assert np.array_equal(geometry.rows(copies), geometry.rows(train.take([0, 1])))


def test_mirrored_features_are_used_where_the_view_is_mirrored(world):
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    other = Geometry(geometry.ids, geometry.features, geometry.found, -geometry.features)
    always, never = (dataloaders(train, valid, views=1, augment=Augment(hflip=p)) for p in (1.0, 0.0))
    a, b, plain = (geometry_logits(net, g, d.train, d.valid) for g, d in ((other, always), (other, never), (geometry, never)))
    assert np.array_equal(b.train, plain.train) and not np.array_equal(a.train, b.train)
    endless = dataloaders(train, valid)
    with pytest.raises(ConfigError, match="views"):
        geometry_logits(net, other, endless.train, endless.valid)
    fit(endless, [EADD([geometry_logits(net, geometry, endless.train, endless.valid)])], epochs=1)


def test_mirroring_follows_the_class_of_an_image(world):
    """Minority classes may be mirrored more or less often than the others; validation images are no minority."""
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    still = {"rotate": 0, "translate": 0, "scale": (1, 1)}
    rows, augment = on_the_fly(train, "max", Augment(hflip=0.5, **still), Augment(hflip=0.0, **still))
    dls = dataloaders(train, valid, bs=16, rows=rows, augment=augment, views=2)
    ids = np.arange(len(rows))
    moved = (dls.train.images(ids, 1) - dls.train.x[ids].float() / 255).abs().amax((1, 2, 3)) > 1e-2
    other = Geometry(geometry.ids, geometry.features, geometry.found, -geometry.features)
    said = geometry_logits(net, other, dls.train, dls.valid)
    as_is, mirrored = (geometry_logits(net, Geometry(geometry.ids, f, geometry.found), dls.train, dls.valid).train[0]
                       for f in (geometry.features, -geometry.features))
    assert 0 < moved.sum() < (ids >= 0).sum()
    assert np.array_equal(said.train[1], np.where(moved.numpy()[:, None], mirrored, as_is))


def test_geometry_logits_that_are_not_finite_name_the_image(world, dls):
    faces, geometry, net = world
    wild = geometry.features.copy()
    at = geometry.rows(dls.train.ds)[geometry.found[geometry.rows(dls.train.ds)]][0]
    wild[at] = 1e9                                                     # far outside of what the teacher was trained on
    with pytest.raises(DataError, match=f"geometry.*{geometry.ids[at]}"):
        geometry_logits(net, Geometry(geometry.ids, wild, geometry.found), dls.train, dls.valid)


def test_geometry_does_not_depend_on_the_augmentation(world):
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    kept = [geometry_logits(net, geometry, d.train, d.valid) for d in
            (dataloaders(train, valid, views=2, seed=s, augment=Augment(rotate=r)) for s, r in ((0, 0.0), (1, 20.0)))]
    assert np.array_equal(kept[0].train, kept[1].train)
    fit(dataloaders(train, valid, bs=32, views=5, seed=9), [EADD(kept[:1])], epochs=1)


def test_faces_without_features_and_features_without_numbers(world):
    faces, geometry, _ = world
    with pytest.raises(DataError, match="not finite"):
        Geometry(geometry.ids, geometry.features, np.ones(len(faces), bool))
    none = Geometry(geometry.ids, geometry.features, np.zeros(len(faces), bool))
    with pytest.raises(DataError, match="0 images with a face"):
        fit_geometry(none, faces)
    with pytest.raises(ConfigError, match="expected"):
        geometry_features(np.zeros((2, 52)), np.zeros((3, 478, 3)))


def test_geometry_features_survive_a_face_that_was_not_found():
    points = np.random.default_rng(0).random((2, 478, 3))
    points[1] = np.nan
    features = geometry_features(np.zeros((2, 52)), points)
    assert features.dtype == np.float32 and features.shape == (2, 52 + 956)
    assert np.isfinite(features[0]).all() and np.isnan(features[1, 52:]).all()

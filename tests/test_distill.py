"""EADD beyond its notebook: failure paths, other events, other callbacks, and Hinton's distillation as a special case."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders, Transform
from fastai.learner import Learner
from fastai.torch_core import TensorImageBW
from torch import nn

from fer_nb.advtrain import AdversarialTraining
from fer_nb.core import EMOTIONS, ConfigError, LabelError
from fer_nb.distill import EADD, distill_loss, eadd_distill, eadd_weights, recalls
from fer_nb.teachers import CachedLogits, teacher_logits
from toys import fit, flat, small_net


@pytest.fixture()
def dls(view_dls):
    return view_dls


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
    noise = CachedLogits(kept.name, kept.labels, kept.train, np.random.default_rng(0).normal(size=kept.valid.shape).astype(np.float16))
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
    acc, T, tau, mask = rng.random((N, C)), rng.uniform(1, 5, C), rng.uniform(0.05, 0.5, C), rng.random((N, B)) < 0.7
    total = 0.0
    for n in range(B):
        ce = -np.log(softmax(z_s[n])[y[n]])                                                   # Eq. 2
        total += alpha * ce
        for e in ([y[n]] if over == "label" else range(C)):
            w = [np.exp(acc[i, e] / tau[e]) * mask[i, n] for i in range(N)]                 # Eq. 5
            for i in range(N):
                if mask[i, n]:
                    p, q = softmax(z_t[i, n], T[e]), softmax(z_s[n], T[e])
                    total += w[i] / sum(w) * T[e]**2 * sum(p[c] * np.log(p[c] / q[c]) for c in range(C))   # Eq. 3, 4
    t = lambda a: torch.tensor(a, dtype=torch.float32)
    ours = alpha * F.cross_entropy(t(z_s), torch.tensor(y)) + eadd_distill(
        t(z_s), t(z_t), torch.tensor(y), eadd_weights(acc, t(tau)), t(T), over, torch.tensor(mask))
    assert ours.item() == pytest.approx(total / B, rel=1e-4)


def test_a_masked_teacher_changes_no_gradient():
    """A silent teacher's logits have no influence whatever they are; where all are silent nothing is learnt."""
    torch.manual_seed(0)
    z_s, z_t, y = torch.randn(4, 7, requires_grad=True), torch.randn(2, 4, 7), torch.tensor([0, 1, 2, 3])
    w, T = eadd_weights(torch.rand(2, 7)), torch.full((7,), 2.0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    first = torch.autograd.grad(eadd_distill(z_s, z_t, y, w, T, valid_mask=mask), z_s)[0]
    z_t[~mask] = 100.0
    second = torch.autograd.grad(eadd_distill(z_s, z_t, y, w, T, valid_mask=mask), z_s)[0]
    assert torch.equal(first, second) and torch.equal(first[3], torch.zeros(7)) and first[:3].abs().sum(1).min() > 0


@pytest.mark.parametrize("tau", [0.1, 0.02, 0.005])
def test_who_mask_alone_is_heard_however_little_it_is_trusted(tau):
    "e^(-0.4 / 0.005) is about 1e-35: less than any ε that would keep a division from failing."
    torch.manual_seed(0)
    z_s, z_t, y = torch.randn(3, 7), torch.randn(2, 3, 7), torch.tensor([0, 3, 6])
    weights = eadd_weights(torch.tensor([[0.9] * 7, [0.5] * 7]), tau)
    mask = torch.tensor([[False, True, False], [True, True, False]])
    found = eadd_distill(z_s, z_t, y, weights, torch.full((7,), 2.0), valid_mask=mask)
    alone = [distill_loss(z_s[i:i + 1], z_t[k, i:i + 1], 2.0) for i, k in ((0, 1), (1, 0), (1, 1))]
    w = np.exp((np.array([0.9, 0.5]) - 0.9) / tau)
    expected = (alone[0] + (w / w.sum() * np.array([float(alone[1]), float(alone[2])])).sum()) / 3   # the third hears nobody
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_one_teacher_beside_a_masked_one_is_hinton():
    z_s, z_t, y = torch.randn(5, 7), torch.randn(2, 5, 7), torch.arange(5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    ours = eadd_distill(z_s, z_t, y, eadd_weights(torch.rand(2, 7), 0.1), torch.full((7,), 3.0), valid_mask=mask)
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
    """Only cached logits are of certain views; a network is asked about whatever comes."""
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    images = [(torch.rand(1, 48, 48), k % 7) for k in range(8)]
    plain = DataLoaders(*(DataLoader(images, bs=4, num_workers=0) for _ in range(2)))
    plain.vocab, plain.device = dls.vocab, torch.device("cpu")
    cached = EADD([teacher_logits(small_net(7), dls.train, dls.valid)], accuracy="running")
    with pytest.raises(ConfigError, match="loaders.dataloaders"):
        Learner(plain, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[cached]).fit(1)
    asked = EADD([small_net(7)])
    Learner(plain, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[asked]).fit(2)
    assert len(asked.history) == 2 * 7


def test_cached_logits_do_not_mix(dls):
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


@pytest.mark.parametrize("old", [False, True])
def test_resuming_a_second_fit_keeps_the_rows_of_the_first(dls, old):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch == 1:
                raise CancelFitException
    eadd = EADD([small_net(7)], accuracy="running")
    learn = fit(dls, [eadd], epochs=3)
    with learn.no_logging():
        learn.fit(3, cbs=Stop())
    state, other = json.loads(json.dumps(eadd.state_dict())), EADD([small_net(7)], accuracy="running")
    if old:   # before there was more than one fit in a history
        del state["first row"]
        state["history"] = {k: v[21:] for k, v in state["history"].items()}
    other.load_state_dict(state)
    learn = Learner(dls, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[other])
    with learn.no_logging():
        learn.fit(3, start_epoch=2)
    assert other.history.epoch[::7].tolist() == [0, 1, 2] * (1 if old else 2)


def test_the_state_of_other_teachers_is_refused():
    eadd = EADD([small_net(7)])
    state = EADD([small_net(7), small_net(8)]).state_dict()
    with pytest.raises(ConfigError, match="teachers"):
        eadd.load_state_dict(state)


def test_the_settings_can_be_written_down():
    config = EADD([small_net(7)], tau=[0.1] * 7, accuracy=np.full((1, 7), 0.5), alpha=lambda p: p).config()
    assert json.loads(json.dumps(config)) == config and config["alpha"] == [0, 0.25, 0.5, 0.75, 1]
    assert config["of"] == EADD([small_net(7)]).config()["of"] != EADD([small_net(8)]).config()["of"]


class Change(Callback):
    "Changes images and labels of training batches."
    run_valid = False

    def __init__(self, change):
        self.change = change

    def before_batch(self):
        self.learn.xb, self.learn.yb = ((part,) for part in self.change(self.x, self.y))


@pytest.mark.parametrize("change", [lambda x, y: (x.flip(0), y.flip(0)), lambda x, y: (x[:3], y[:3]), lambda x, y: (x, (y + 1) % 7)],
                         ids=["reordered", "cut", "relabelled"])
def test_cached_logits_are_not_of_a_batch_that_a_callback_changed(dls, change):
    kept = teacher_logits(small_net(7), dls.train, dls.valid)
    with pytest.raises(ConfigError, match="cut, reordered or relabelled"):
        fit(dls, [EADD([kept]), Change(change)])


# ---- tables by name ----

def table():
    acc = np.stack([np.linspace(0.9, 0.3, 7), np.linspace(0.2, 0.8, 7)])
    return pd.DataFrame(acc, index=["a", "b"], columns=EMOTIONS)


def pair():
    nets = [small_net(3), small_net(4)]
    nets[0].name, nets[1].name = "a", "b"
    return nets


def test_a_table_of_pandas_goes_by_its_names(dls):
    named, T = table(), pd.Series(np.arange(1.0, 8.0), EMOTIONS)
    for given in (named, named[sorted(EMOTIONS)], named.iloc[::-1], named.to_numpy(), pd.DataFrame(named.to_numpy())):
        cb = EADD(pair(), accuracy=given, T=T.sort_index(), tau=T[::-1])
        assert np.array_equal(cb.table, named.to_numpy()) and np.array_equal(cb.T, T) and np.array_equal(cb.tau, T)
    assert cb.config() == EADD(pair(), accuracy=named, T=T, tau=T).config()
    log = fit(dls, [cb], epochs=1).eadd.history
    assert log[log.teacher == "a"].accuracy.tolist() == named.loc["a"].tolist()
    again = log.pivot_table(index="teacher", columns="emotion", values="accuracy")     # sorted by name
    assert np.array_equal(EADD(pair(), accuracy=again).table, named.to_numpy())


def test_a_table_of_other_names_is_refused():
    for wrong, says in ((table().rename(index={"a": "c"}), "no teachers a"), (table().drop(columns="fear"), "no emotions fear"),
                        (table().iloc[[0, 1, 1]], "each once")):
        with pytest.raises(LabelError, match=says):
            EADD(pair(), accuracy=wrong)
    with pytest.raises(LabelError, match="T has no emotions"):
        EADD(pair(), T=pd.Series([1.0, 2.0], ["x", "y"]))
    with pytest.raises(ConfigError, match="accuracy: .*a table of numbers"):
        EADD(pair(), accuracy=[["a"] * 7] * 2)


@pytest.mark.parametrize("fade", [0, -0.5, 1.5, float("nan"), True, "0.2"])
def test_a_fade_that_is_no_share_is_refused(fade):
    with pytest.raises(ConfigError, match="fade="):
        EADD(pair(), fade=fade)


def test_a_tiny_temperature_trusts_the_best_alone():
    w = eadd_weights(np.array([[0.5, 0.6, 0.5], [0.4, 0.7, 0.5]]), 1e-39)
    assert torch.equal(w, torch.tensor([[1, 0, 0.5], [0, 1, 0.5]]))


def test_loaders_without_validation_images_are_refused(dls):
    with pytest.raises(ConfigError, match="there are no validation images"):
        fit(DataLoaders(dls.train), [EADD(pair())])


def test_first_measures_once_a_fit(dls):
    dls.train.epoch = 0
    cb = EADD(pair(), accuracy="first")
    asked, measure = [], cb.measure_views
    cb.measure_views = lambda: asked.append(1) or measure()
    learn = Learner(dls, small_net(1), loss_func=nn.CrossEntropyLoss(), cbs=[cb])
    with learn.no_logging(), learn.no_bar():
        learn.fit(2)
        learn.fit(2)
    assert len(asked) == 2


@pytest.mark.parametrize("what", ["T", "tau"])
def test_a_schedule_goes_by_names_too(dls, what):
    by = pd.Series(np.arange(1.0, 8.0), EMOTIONS)
    fixed, moving = (fit(dls, [EADD(pair(), **{what: v})], 1) for v in (by, lambda p: by[::-1]))
    assert torch.equal(flat(fixed.model), flat(moving.model))
    assert moving.eadd.config()[what] == [by.tolist()] * 5
    with pytest.raises(LabelError, match=f"{what} has no emotions"):
        fit(dls, [EADD(pair(), **{what: lambda p: by[:3]})], 1)


class Darker(Transform):
    "Of batches."
    def encodes(self, x: TensorImageBW):
        return x / 4


class Sees(nn.Module):
    "A teacher that remembers how bright its images were."
    labels = EMOTIONS

    def __init__(self):
        super().__init__()
        self.net, self.most = small_net(7), []

    def forward(self, x):
        self.most.append(float(x.max()))
        return self.net(x)


@pytest.mark.parametrize("accuracy", ["valid", "first"])
def test_a_network_is_measured_by_what_batches_show(dls, accuracy):
    for dl in dls:
        dl.after_batch.add(Darker())
    teacher, chance = Sees(), torch.random.get_rng_state()
    eadd = EADD([teacher], accuracy=accuracy)
    learn = fit(dls, [eadd], 1)
    assert 0 < max(teacher.most) <= 0.25 and len(teacher.most) > len(dls.train)
    dls.train.epoch, found = 0, []
    with torch.no_grad():
        for ids in np.array_split(np.arange(len(dls.valid.x)), 4):
            shown = dls.train.augment(dls.valid.pixels(ids), ids, 0, dls.train.seed) / 4
            found.append(teacher.net(shown).argmax(1))
    by_hand = recalls(torch.cat(found).numpy(), dls.valid.y.numpy(), 7)
    assert np.allclose(eadd.acc[0], by_hand) and learn.eadd is eadd and len(chance)


# ---- half precision, names, schedules ----

@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_in_float32(kind):
    torch.manual_seed(0)
    z_s = (4 * torch.randn(64, 7)).to(kind)
    z_t = (z_s.float() * 1.02 + .02 * torch.randn(3, 64, 7)).to(kind)
    weights, y, T = torch.full((3, 7), 1 / 3), torch.arange(64) % 7, [2.1, 3.3, 1.7, 4.1, .9, 1.3, 2.7]
    found, exact = (eadd_distill(s, t, y, weights, T) for s, t in ((z_s, z_t), (z_s.double(), z_t.double())))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact.item(), rel=1e-3)
    assert distill_loss(z_s, z_t[0], 3.3).item() == pytest.approx(distill_loss(z_s.double(), z_t[0].double(), 3.3).item(), rel=1e-3)
    soft = F.one_hot(y, 7).to(kind)
    assert eadd_distill(z_s, z_t, soft, weights.to(kind), T).item() == pytest.approx(exact.item(), rel=.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert eadd_distill(z_s, z_t, y, weights, T).item() == pytest.approx(exact.item(), rel=1e-3)
    z_s.requires_grad_()
    distill_loss(z_s, z_t[0], 3.0).backward()
    assert z_s.grad.dtype == kind and z_s.grad.isfinite().all()


def test_weights_take_tau_by_its_names():
    acc = np.array([[.5, .9, .2], [.7, .1, .3]])
    tau = pd.Series([.1, 1, 10], list("abc"))
    expected = eadd_weights(acc, tau.tolist())
    assert torch.equal(eadd_weights(acc, tau), expected)
    assert torch.equal(eadd_weights(pd.DataFrame(acc, columns=list("abc")), tau[::-1]), expected)
    with pytest.raises(LabelError, match="tau has no emotions c"):
        eadd_weights(pd.DataFrame(acc, columns=list("abc")), tau[:2])


@pytest.mark.parametrize("what", ["alpha", "T", "tau"])
def test_schedules_are_known_by_all_that_they_do(what):
    def begins(at):
        return lambda p: 1.0 if p < at else .3

    one, same, other = (EADD(pair(), **{what: begins(at)}).config() for at in (.30, .30, .45))
    assert one == same and one[what] == other[what] and one["schedule"].keys() == {what}
    assert one["schedule"] != other["schedule"] and json.dumps(one)
    assert "schedule" not in EADD(pair(), **{what: .5}).config()

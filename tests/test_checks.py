"""One check at every door: the same images, targets, temperatures, logits and names are taken, and the same refused."""
import random
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback
    from fastai.callback.schedule import Learner
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Recorder
    from fastai.losses import CrossEntropyLossFlat

from fer_nb.advtrain import AdversarialTraining
from fer_nb.attacks import deepfool, fgsm, margin, pgd, square_search
from fer_nb.checks import as_tensor, ask, check_names, targets_fit, temperature
from fer_nb.core import EMOTIONS, ConfigError, FERError, ImageError, LabelError
from fer_nb.data import FERData
from fer_nb.distill import EADD, distill_loss, eadd_distill, eadd_weights
from fer_nb.evaluate import confusion, evaluate, logits_of, predict_logits, robust_curve
from fer_nb.loaders import dataloaders
from fer_nb.robustness import corruption_curve
from fer_nb.sqs import SQS, form_quads, spatial_similarity
from fer_nb.synth import make_faces
from fer_nb.teachers import teacher_logits

B, C = 14, 7
G = torch.Generator().manual_seed(0)
X, Y = torch.rand(B, 1, 12, 12, generator=G), torch.arange(B) % C
SOFT = torch.softmax(3 * F.one_hot(Y, C) + torch.rand(B, C, generator=G), 1)
FACES = make_faces(40, seed=0, defects=None)[0]


class Net(nn.Module):
    num_features, num_classes, labels = 8, C, EMOTIONS

    def __init__(self, seed=1, out=lambda z: z, chans=1, labels=EMOTIONS):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.fc, self.out, self.labels = nn.Conv2d(chans, 8, 5, 2, 2), nn.Linear(8, C), out, labels

    def forward_features(self, x):
        return self.body(x).tanh()

    def forward_head(self, f, pre_logits=False):
        pooled = f.mean((2, 3))
        return pooled if pre_logits else self.out(self.fc(pooled))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def any_loss(z, y, reduction="mean"):
    "A loss that minds no type, so that only the callbacks do."
    return F.cross_entropy(z, y.long() if y.ndim == 1 else y.to(z.dtype), reduction=reduction)


def plain_loaders(x, y, bs=B, kind=DataLoader, vocab=EMOTIONS, valid=None):
    parts = [list(zip(x, y)), list(zip(x, y)) if valid is None else valid]
    dls = DataLoaders(*(kind(part, bs, num_workers=0) for part in parts))
    if vocab is not None:
        dls.vocab = list(vocab)
    return dls


def fit(dls, *cbs, model=None, epochs=1):
    learn = Learner(dls, model or Net(), any_loss, cbs=cbs, lr=1e-3)
    learn.remove_cbs([ProgressCallback] + [Recorder] * (next(learn.model.parameters()).dtype == torch.double))  # it knows no 64 bits
    learn.logger = lambda row: None
    learn.fit(epochs)
    return learn


TABLE = np.full((1, C), 0.5)
CALLBACKS = {"EADD": lambda t: EADD([t or Net(2)], accuracy=TABLE), "SQS": lambda t: SQS(),
             "AdversarialTraining": lambda t: AdversarialTraining("fgsm", ratio=1.0),
             "TRADES": lambda t: AdversarialTraining("pgd", steps=1, trades=1.0)}


def callback_doors(make):
    return {name: lambda *a, cb=cb: make(cb, *a) for name, cb in CALLBACKS.items()}


def train(cb, x, y, model=None, dtype=None):
    double = x.dtype == torch.double
    net, teacher = (m.double() if double else m for m in (model or Net(), Net(2)))
    return fit(plain_loaders(x, y), cb(teacher), model=net)


ATTACKS = {"fgsm": fgsm, "pgd": lambda m, x, y: pgd(m, x, y, steps=2), "deepfool": lambda m, x, y: deepfool(m, x, y, steps=2),
           "square_search": lambda m, x, y: square_search(m, x, y, queries=2)}
FINE, REFUSED = "taken", "refused"


def answer(door, *objects, error=FERError):
    "Taken or refused; anything but a typed error is a fault, and so is one of more than three lines."
    try:
        door(*objects)
    except error as e:
        assert len(str(e).splitlines()) <= 3, str(e)
        return REFUSED
    return FINE


# ---- images ----

def last(x, value):
    x = x.clone()
    x[-1, 0, 3, 3] = value
    return x


IMAGES = {
    "float32": (X, FINE), "float64": (X.double(), FINE), "a rounding error above 1": (last(X, 1 + 2e-7), FINE), "channels last": (
        X.contiguous(memory_format=torch.channels_last), FINE),
    "bytes": ((X * 255).byte(), REFUSED), "half": (X.half(), REFUSED), "bfloat16": (X.bfloat16(), REFUSED), "0 to 255": (X * 255, REFUSED),
    "normalised": ((X - 0.5) / 0.25, REFUSED), "one NaN": (last(X, float("nan")), REFUSED), "one infinite": (last(X, float("inf")), REFUSED),
    "one above": (last(X, 1.01), REFUSED), "one below": (last(X, -0.01), REFUSED), "no channel": (X[:, 0], REFUSED)}


def attacked(attack, x):
    model = Net().eval()
    return attack(model.double() if isinstance(x, torch.Tensor) and x.dtype == torch.double else model, x, Y)


IMAGE_DOORS = {**callback_doors(lambda cb, x: train(cb, x, Y)), **{n: lambda x, a=a: attacked(a, x) for n, a in ATTACKS.items()}}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    x, expected = IMAGES[name]
    assert {door: answer(call, x, error=ImageError) for door, call in IMAGE_DOORS.items()} == dict.fromkeys(IMAGE_DOORS, expected)


# ---- targets ----

TARGETS = {
    **{str(t): (Y.to(t), FINE) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
    "votes": (SOFT, FINE), "votes in 64 bits": (SOFT.double(), FINE), "one-hot": (F.one_hot(Y, C).float(), FINE),
    "floats": (Y.float(), REFUSED), "truth": (Y > 3, REFUSED), "whole one-hot": (F.one_hot(Y, C), REFUSED), "sums of 2": (2 * SOFT, REFUSED),
    "negative shares": (SOFT - 1 / C, REFUSED), "NaN": (SOFT * float("nan"), REFUSED), "a column": (Y[:, None], REFUSED)}
MODEL_TARGETS = {"a class too many": (Y + 1, REFUSED), "a class below 0": (Y - 1, REFUSED), "eight shares": (F.pad(SOFT, (0, 1)), REFUSED)}
MODEL_DOORS = {
    **callback_doors(lambda cb, y: train(cb, X, y)), **{n: lambda y, a=a: a(Net().eval(), X, y) for n, a in ATTACKS.items()},
    "margin": lambda y: margin(Net().eval(), X, y),
    "eadd_distill": lambda y: eadd_distill(torch.randn(B, C), torch.randn(1, B, C), y, eadd_weights(TABLE), 2.0)}
TARGET_DOORS = MODEL_DOORS | {"form_quads": form_quads}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name):
    y, expected = TARGETS[name]
    assert {door: answer(call, y, error=LabelError) for door, call in TARGET_DOORS.items()} == dict.fromkeys(TARGET_DOORS, expected)


@pytest.mark.parametrize("name", MODEL_TARGETS)
def test_targets_of_other_classes(name):
    y, expected = MODEL_TARGETS[name]
    assert {door: answer(call, y, error=LabelError) for door, call in MODEL_DOORS.items()} == dict.fromkeys(MODEL_DOORS, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_small_integers_are_compared_with_many_classes(dtype):
    """300 is no number of 8 bits."""
    assert [bool(targets_fit(torch.tensor([0, 100], dtype=dtype), n)) for n in (300, 200, 101, 100)] == [True] * 3 + [False]


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("what", [0, 1])
def test_a_later_batch_is_looked_at_too(name, what):
    x, y = X.repeat(2, 1, 1, 1), Y.repeat(2)
    if what == 0:
        x[-1] = 200
    else:
        y[-1] = C
    with pytest.raises((ImageError, LabelError)):
        fit(plain_loaders(x, y, B), CALLBACKS[name](None))


@pytest.mark.parametrize("name", CALLBACKS)
def test_class_numbers_are_one_hot_shares(name):
    """To the bit in EADD, SQS and attacks; the learner's own cross-entropy rounds."""
    a, b = (fit(plain_loaders(X, y), CALLBACKS[name](None)) for y in (Y.int(), F.one_hot(Y, C).float()))
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_of_votes_the_running_accuracy_takes_the_dominant_emotion():
    class Oracle(Net):
        def forward(self, x):
            return 9 * (SOFT == SOFT.max(1, keepdim=True).values).float()[:len(x)]
    eadd = EADD([Oracle(2)], accuracy="running", momentum=0.0)
    fit(plain_loaders(X, SOFT), eadd)
    assert (eadd.acc == 1).all()


# ---- temperatures ----

TEMPERATURES = {
    **{str(i): (v, FINE) for i, v in enumerate((3, 3.0, np.float64(3), np.float32(3), torch.tensor(3.0), torch.tensor(3), [3.0] * 7,
                                                (3,) * 7, np.full(7, 3.0), torch.full((7,), 3.0), torch.full((7,), 3.0).double()))},
    **{str(v): (v, REFUSED) for v in (0, -1.0, float("nan"), float("inf"), "warm", None, True, [3.0] * 6, np.zeros(7), torch.ones(7, 1))}}
TEMPERATURE_DOORS = {
    "eadd_weights": lambda t: eadd_weights(TABLE, t), "distill_loss": lambda t: distill_loss(torch.randn(7, C), torch.randn(7, C), t),
    "eadd_distill": lambda t: eadd_distill(torch.randn(B, C), torch.randn(1, B, C), Y, eadd_weights(TABLE), t),
    "spatial_similarity": lambda t: spatial_similarity(torch.rand(7, 2, 3, 3), torch.rand(7, 2, 3, 3), t),
    "EADD's T": lambda t: fit(plain_loaders(X, Y), EADD([Net(2)], T=t, accuracy=TABLE)),
    "EADD's tau": lambda t: fit(plain_loaders(X, Y), EADD([Net(2)], tau=t, accuracy=TABLE))}


@pytest.mark.parametrize("name", TEMPERATURES)
def test_temperatures(name):
    t, expected = TEMPERATURES[name]
    found = {door: answer(call, t, error=ConfigError) for door, call in TEMPERATURE_DOORS.items()}
    assert found == dict.fromkeys(TEMPERATURE_DOORS, expected)


def test_every_kind_of_temperature_means_the_same():
    z_s, z_t, w = torch.randn(B, C), torch.randn(1, B, C), eadd_weights(TABLE)
    values = {eadd_distill(z_s, z_t, Y, w, t).item() for t, fine in TEMPERATURES.values() if fine == FINE}
    assert len(values) == 1


# ---- what networks return ----

OUTPUTS = {
    "logits": (lambda z: z, FINE), "log-probabilities": (lambda z: z.log_softmax(1), FINE), "probabilities": (lambda z: z.softmax(1), REFUSED),
    "NaN": (lambda z: z * float("nan"), REFUSED), "infinite": (lambda z: z / 0, REFUSED), "one column": (lambda z: z[:, :1], REFUSED),
    "a map": (lambda z: z[:, :, None, None], REFUSED)}


def outputs_of(out):
    with torch.no_grad():
        return out(Net()(torch.from_numpy(FACES.array())[:, None].float() / 255)).numpy()


def given(out):
    with torch.no_grad():
        return out(Net()(X))


NETWORK_DOORS = {
    **callback_doors(lambda cb, out: train(cb, X, Y, Net(out=out))), **{n: lambda out, a=a: a(Net(out=out).eval(), X, Y) for n, a in ATTACKS.items()},
    "a teacher": lambda out: fit(plain_loaders(X, Y), EADD([Net(2, out)], accuracy=TABLE)),
    "a teacher's accuracy": lambda out: fit(plain_loaders(X, Y), EADD([Net(2, out)])),
    "evaluate": lambda out: evaluate(Net(out=out), FACES), "evaluate, of logits": lambda out: evaluate(outputs_of(out), FACES),
    "logits_of": lambda out: logits_of(outputs_of(out), FACES), "confusion": lambda out: confusion(outputs_of(out), FACES),
    "predict_logits": lambda out: predict_logits(Net(out=out), FACES),
    "distill_loss, student": lambda out: distill_loss(given(out), given(lambda z: z), 2.0),
    "distill_loss, teacher": lambda out: distill_loss(given(lambda z: z), given(out), 2.0),
    "eadd_distill": lambda out: eadd_distill(given(lambda z: z), given(out)[None], Y, eadd_weights(TABLE), 2.0)}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name):
    out, expected = OUTPUTS[name]
    found = {door: answer(call, out, error=ConfigError) for door, call in NETWORK_DOORS.items()}
    assert found == dict.fromkeys(NETWORK_DOORS, expected)


@pytest.mark.parametrize("name", [*CALLBACKS, *ATTACKS, "a teacher", "a teacher's accuracy", "evaluate", "predict_logits"])
def test_a_network_that_returns_a_dict(name):
    with pytest.raises(ConfigError, match="returned a dict"):
        NETWORK_DOORS[name](lambda z: {"logits": z})


CHANNEL_DOORS = {
    **callback_doors(lambda cb: train(cb, X, Y, Net(chans=3))), **{n: lambda a=a: a(Net(chans=3).eval(), X, Y) for n, a in ATTACKS.items()},
    "a teacher": lambda: fit(plain_loaders(X, Y), EADD([Net(2, chans=3)], accuracy="running")),
    "evaluate": lambda: evaluate(Net(chans=3), FACES)}


@pytest.mark.parametrize("door", CHANNEL_DOORS)
def test_a_network_of_three_channels_on_grey_images(door):
    with pytest.raises(ConfigError, match="cannot read images of 1 channels"):
        CHANNEL_DOORS[door]()


TYPE_DOORS = {
    **callback_doors(lambda cb: fit(plain_loaders(X.double(), Y), cb(Net(2)), model=Net())),
    **{n: lambda a=a: a(Net().eval(), X.double(), Y) for n, a in ATTACKS.items()},
    "evaluate": lambda: evaluate(Net().double(), FACES)}


@pytest.mark.parametrize("door", TYPE_DOORS)
def test_a_network_of_another_type_than_its_images(door):
    with pytest.raises(ConfigError, match="bring both to one type and one device"):
        TYPE_DOORS[door]()


@pytest.mark.parametrize("name", ATTACKS)
def test_images_with_a_gradient_are_attacked_as_those_without(name):
    model, (a, b) = Net().eval(), (X.clone().requires_grad_(), X)
    draws = [(torch.manual_seed(0), ATTACKS[name](model, x, Y))[1] for x in (a, b)]
    assert torch.equal(*draws) and not draws[0].requires_grad and a.grad is None


# ---- the loss that a term is added to ----

@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("form", [lambda how: nn.CrossEntropyLoss(reduction=how), lambda how: partial(F.cross_entropy, reduction=how)])
def test_a_term_wants_a_loss_that_is_a_mean(reduction, name, form):
    learn = Learner(plain_loaders(X, Y), model := Net(), form(reduction), cbs=[CALLBACKS[name](None)])
    before = model.fc.weight.clone()
    with learn.no_bar(), learn.no_logging():
        if name == "AdversarialTraining" and reduction == "sum":  # adds nothing
            return learn.fit(1)
        with pytest.raises((ConfigError, RuntimeError), match="reduction=|scalar outputs"):
            learn.fit(1)
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("name", ["AdversarialTraining", "TRADES"])
def test_a_batch_that_is_cut_after_the_attack_is_refused(name):
    class Cut(Callback):
        order = 50

        def before_batch(self):
            self.learn.xb, self.learn.yb = (self.xb[0][:6],), (self.yb[0][:6],)
    with pytest.raises(ConfigError, match="14 images when some were attacked, 6 predictions"):
        fit(plain_loaders(X, Y), CALLBACKS[name](None), Cut())
    Cut.order = 0
    fit(plain_loaders(X, Y), CALLBACKS[name](None), Cut())


@pytest.mark.parametrize("name", CALLBACKS)
def test_64_bits_are_logged_as_without_a_term(name):
    "fastai's losses give its log 32 bits whatever the network has; so does a term."
    learn = Learner(plain_loaders(X.double(), Y), Net().double(), CrossEntropyLossFlat(), cbs=[CALLBACKS[name](Net(2).double())])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert np.isfinite(learn.recorder.values[0]).all()


@pytest.mark.parametrize("cb", [lambda: SQS(), lambda: AdversarialTraining("fgsm")])
def test_a_network_of_timm_says_so_before_a_step(cb):
    import timm
    model = timm.create_model("test_efficientnet", num_classes=7)
    before = model.classifier.weight.clone()
    with pytest.raises(ConfigError, match="in_chans=1"):
        fit(plain_loaders(X, Y), cb(), model=model)
    assert torch.equal(model.classifier.weight, before)


NAMES = {"the data's": (EMOTIONS, FINE), "another order": (EMOTIONS[::-1], REFUSED), "others": (EMOTIONS[:6] + ("bored",), REFUSED)}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    labels, expected = NAMES[name]
    doors = {"teacher": lambda n: fit(plain_loaders(X, Y), EADD([n], accuracy="running")), "evaluate": lambda n: evaluate(n, FACES)}
    assert {d: answer(call, Net(2, labels=labels), error=LabelError) for d, call in doors.items()} == dict.fromkeys(doors, expected)


def test_a_student_of_other_names_is_warned_of():
    with pytest.warns(UserWarning, match="the student's labels are"):
        fit(plain_loaders(X, Y), CALLBACKS["EADD"](None), model=Net(labels=EMOTIONS[::-1]))


# ---- what fastai allows to be absent ----

@pytest.mark.parametrize("accuracy", ["valid", "running", TABLE])
def test_loaders_of_plain_pytorch(accuracy):
    """No device, no names, no place to put them."""
    dls = plain_loaders(X, Y, kind=torch.utils.data.DataLoader, vocab=None)
    assert not hasattr(dls, "device") and not hasattr(dls, "vocab")
    with pytest.warns(UserWarning, match="name no classes"):
        learn = fit(dls, EADD([Net(2)], accuracy=accuracy), SQS(), AdversarialTraining("fgsm", guard=2), epochs=2)
    assert len(learn.eadd.history) == 14 and len(learn.guard_log) == 2 and len(learn.sqs_log) == 2


class Drawing(list):
    "Items that take from every random generator, as somebody's augmentation may."

    def __getitem__(self, i):
        random.random(), np.random.random(), torch.rand(1)
        return super().__getitem__(i)


@pytest.mark.parametrize("kind", [DataLoader, torch.utils.data.DataLoader])
def test_the_teachers_are_measured_by_what_the_valid_loader_gives(kind):
    """Against a plain loop; and neither the fit nor any generator is moved by it."""
    valid = Drawing(zip(torch.rand(20, 1, 12, 12, generator=G), torch.arange(20) % 5))
    teacher = Net(2)
    eadd = EADD([teacher])
    dls = plain_loaders(X, Y, 4, kind, valid=valid)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    eadd.learn = Learner(dls, Net(), any_loss)
    eadd.before_fit()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = eadd.measure_loader()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with torch.no_grad():
        hits = [(int(teacher.eval()(x[None]).argmax()) == int(y), int(y)) for x, y in valid]
    expected = [np.mean([h for h, k in hits if k == e]) if e < 5 else 0.5 for e in range(C)]
    assert np.allclose(found[0], expected)


def test_measuring_does_not_change_the_fit():
    """The same weights as with the table that the measurement gives; shuffled batches and dropout included."""
    def run(accuracy):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        items = list(zip(X, Y))
        dls = DataLoaders(DataLoader(items, 4, shuffle=True, num_workers=0), DataLoader(items, 5, num_workers=0))
        dls.vocab, model = list(EMOTIONS), Net(out=nn.Dropout(0.3))
        torch.manual_seed(1)
        learn = fit(dls, EADD([Net(2)], accuracy=accuracy), model=model, epochs=2)
        return torch.cat([p.flatten() for p in learn.model.parameters()]), learn.eadd.acc
    torch.manual_seed(5), Net(2)
    a, acc = run("valid")
    b, _ = run(acc)
    assert torch.equal(a, b)


@pytest.mark.parametrize("valid, why", [([], "no validation images"), ([(X[0],)] * 3, "1 parts"), ([(X[0], Y[0], Y[0])] * 3, "3 parts")])
def test_where_teachers_cannot_be_measured_the_message_says_what_can(valid, why):
    with pytest.raises(ConfigError, match=f"(?s){why}.*accuracy=\"running\""):
        fit(plain_loaders(X, Y, valid=valid), EADD([Net(2)]))
    with pytest.raises(ConfigError, match="no validation images"):
        fit(DataLoaders(plain_loaders(X, Y).train), EADD([Net(2)]))


def test_cached_logits_say_what_other_loaders_can_have():
    dls = dataloaders(FACES.where(split="train"), FACES.where(split="valid"), bs=8, device="cpu", views=1)
    kept = teacher_logits(Net(2), dls.train, dls.valid)
    with pytest.raises(ConfigError, match="accuracy=\"valid\", \"running\" or a table"):
        fit(plain_loaders(X, Y), EADD([kept], accuracy="running"))


@pytest.mark.parametrize("name", CALLBACKS)
def test_predicting_and_validating_ask_for_nothing(name):
    """No targets, a loader that training would refuse, and a callback that came later."""
    learn = fit(plain_loaders(X, Y))
    learn.add_cb(CALLBACKS[name](None))
    for data in (plain_loaders(X, Y), plain_loaders(200 * X, Y)):
        learn.dls = data
        assert learn.get_preds(dl=[(X[:5],)])[0].shape == (5, C) and np.isfinite(learn.validate()[0])
    learn.dls = plain_loaders(X, Y)
    learn.fit(1)
    learn.fit(1, cbs=[CALLBACKS["SQS" if name != "SQS" else "EADD"](None)])


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_batch_without_targets_is_refused(name):
    dls = DataLoaders(DataLoader([(x,) for x in X], B, num_workers=0), DataLoader([(x,) for x in X], B, num_workers=0))
    dls.vocab = list(EMOTIONS)
    with pytest.raises(ConfigError, match="1 inputs and 0 targets"):
        fit(dls, CALLBACKS[name](None))


# ---- a search for a learning rate ----

@pytest.mark.parametrize("accuracy", ["valid", "running", TABLE])
def test_a_search_leaves_no_trace_in_eadd(accuracy, tmp_path):
    def run(search):
        eadd = EADD([Net(2)], accuracy=accuracy)
        torch.manual_seed(0)
        learn = Learner(plain_loaders(X, Y, 7), Net(), any_loss, cbs=eadd, lr=1e-3, path=tmp_path)
        learn.remove_cb(ProgressCallback)
        learn.logger = lambda row: None
        learn.fit(1)
        if search:
            with learn.no_bar():
                learn.lr_find(num_it=20, show_plot=False, stop_div=False, end_lr=1e9, suggest_funcs=())
        first = eadd.history.copy()
        learn.fit(1)
        assert len(first) == C and len(eadd.history) == 2 * C
        return eadd
    a, b = run(False), run(True)
    assert a.history.equals(b.history) and np.array_equal(a.acc, b.acc)


def test_a_search_between_loading_and_fitting_loses_nothing(tmp_path):
    first = EADD([Net(2)], accuracy="running", momentum=0.5)
    fit(plain_loaders(X, Y), first)
    other = EADD([Net(2)], accuracy="running", momentum=0.5)
    other.load_state_dict(first.state_dict())
    learn = Learner(plain_loaders(X, Y), Net(), any_loss, cbs=other, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=12, show_plot=False, suggest_funcs=())
        assert np.array_equal(other.acc, first.acc)
        learn.fit(2, start_epoch=1)
    assert other.history.epoch.tolist() == [0] * C + [1] * C and np.allclose(other.history.accuracy[-C:].to_numpy(float), first.acc[0])


def test_a_search_that_crashes_leaves_no_rows(tmp_path):
    class Boom(Callback):
        def after_backward(self):
            if self.train_iter == 3:
                raise RuntimeError("boom")
    eadd = EADD([Net(2)], accuracy="running")
    learn = Learner(plain_loaders(X, Y, 7), Net(), any_loss, cbs=[eadd, boom := Boom()], path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(RuntimeError, match="boom"):
            learn.lr_find(num_it=20, show_plot=False)
        learn.remove_cb(boom)
        learn.fit(1)
    assert len(eadd.history) == C and (eadd.history.accuracy == 0.5).all()


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_search_may_diverge(name, tmp_path):
    """It is meant to; fastai puts the weights back."""
    model = Net()
    before = model.fc.weight.detach().clone()
    learn = Learner(plain_loaders(X, Y, 7), model, any_loss, cbs=CALLBACKS[name](None), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=40, show_plot=False, stop_div=False, end_lr=1e38, suggest_funcs=())
    assert torch.equal(model.fc.weight, before)


def test_arrays_of_any_order_of_elements_and_bytes():
    T = np.linspace(1, 4, 7)
    assert temperature("T", T[::-1], 7).tolist() == T.astype(np.float32)[::-1].tolist()
    assert temperature("T", np.array(2.0, ">f8"), 7).shape == () and as_tensor(np.ones(1)[::-1]).tolist() == [1]
    acc = np.random.default_rng(0).random((2, 7))
    torch.testing.assert_close(eadd_weights(acc[::-1]), eadd_weights(acc).flip(0))
    assert torch.equal(eadd_weights(acc.astype(">f8")), eadd_weights(acc))
    z, zs, y = torch.randn(7, 7), torch.randn(2, 7, 7), torch.arange(7)
    mask, w = np.arange(14).reshape(2, 7) % 3 > 0, eadd_weights(acc).numpy()
    torch.testing.assert_close(eadd_distill(z, zs, y, w[:, ::-1], T[::-1], valid_mask=mask[:, ::-1]),
                               eadd_distill(z, zs, y, w[:, ::-1].copy(), T[::-1].copy(), valid_mask=mask[:, ::-1].copy()))
    distill_loss(z, zs[0], T[::-1])
    spatial_similarity(torch.rand(7, 3, 2, 2), torch.rand(7, 3, 2, 2), tau=T[::-1])
    labels = np.arange(12) % 3
    assert torch.equal(form_quads(labels[::-1])[0], form_quads(labels[::-1].copy())[0])
    assert torch.equal(form_quads(labels.astype(">i4"))[0], form_quads(labels)[0])


class Viewed(nn.Module):
    "PyTorch's tutorial in small: it flattens by `.view`."
    labels = EMOTIONS

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 11 * 11, 7)

    def forward(self, x):
        return self.last(self.conv(x).relu().view(-1, 4 * 11 * 11))


def test_a_network_that_views_its_maps_is_measured_and_attacked_in_colour():
    ds = FERData(pd.DataFrame({"id": [*map(str, range(9))], "label": [EMOTIONS[k % 7] for k in range(9)], "split": "test"}),
                 np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8))
    x = torch.from_numpy(ds.array()).permute(0, 3, 1, 2).float().div(255).contiguous()
    net = Viewed()
    with torch.no_grad():
        np.testing.assert_allclose(predict_logits(net, ds, bs=4), net(x).numpy(), atol=1e-5)
    assert len(robust_curve(net, ds, eps=(0, .01), steps=2)) and len(corruption_curve(net, ds, ["dark"], 3))
    with pytest.raises(RuntimeError, match="view size"):
        ask(lambda x: x.permute(0, 2, 3, 1).view(-1), x)


@pytest.mark.parametrize("form", [np.array, pd.Series, pd.Index, list, tuple])
def test_names_of_any_kind_of_sequence(form):
    check_names(form(EMOTIONS), EMOTIONS)
    with pytest.raises(LabelError, match="another order"):
        check_names(form(EMOTIONS[::-1]), EMOTIONS)
    for none in (form([]), None):
        with pytest.raises(LabelError, match="does not name its outputs"):
            check_names(none, EMOTIONS)

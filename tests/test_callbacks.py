"""However a fit ends, and wherever: what EADD, SQS and AdversarialTraining borrowed is back, as after a fit without them."""
import copy
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat

from fer_nb.advtrain import AdversarialTraining
from fer_nb.core import seed_everything
from fer_nb.data import resized
from fer_nb.distill import EADD
from fer_nb.loaders import dataloaders
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.sqs import SQS
from fer_nb.synth import make_faces
from fer_nb.train import ResumableLearner

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

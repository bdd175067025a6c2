"""Fitting: selection, restoring, reproducibility, failure paths."""
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from fer_nb.loaders import dataloaders
from fer_nb.synth import make_faces
from fer_nb.train import KeepBest, fit_model


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 7))


@pytest.fixture()
def dls():
    faces = make_faces(200, seed=0, defects=None)[0]
    return dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32)


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


def test_progress_lines_where_there_is_no_terminal(dls, capsys):
    fit_model(net(), dls, 2, phase="student", show=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["student", "student"]
    assert "epoch 2/2" in lines[1]

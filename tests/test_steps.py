"""The steps of the search for a better student: rows of one table, resumed, each on top of what earlier ones left."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback  # noqa: F401  (brings no_bar)
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from fer_nb import recipe, train
from fer_nb.advtrain import AdversarialTraining
from fer_nb.config import Augment, Data, Distillation, Fit, Preset, override
from fer_nb.core import ConfigError, DataError
from fer_nb.distill import EADD
from fer_nb.evaluate import predict_logits
from fer_nb.experiment import STEP, reported
from fer_nb.hyfer_studies import RECIPE, SHIP
from fer_nb.loaders import dataloaders
from fer_nb.models import HYFER, HyFER, load_teacher, save_hyfer
from fer_nb.pipeline import cache_logits, prepare
from fer_nb.recipe import BEST, STEPS, Arm, _key, best_of, budgets_of, in_scenes, left_by_recipe, recipe_study, recipe_table
from fer_nb.sqs import SQS
from fer_nb.store import StoreError, read_table
from fer_nb.synth import make_faces
from fer_nb.teachers import NetworkTeacher, OnlineLogits
from fer_nb.train import SAM, Amp, CheckpointError, Mix, fit_model, make_loaders

SMALL = replace(RECIPE, student=replace(RECIPE.student, network="light", epochs=1, bs=64, stage_drop=None, amp=None), data=Data(near_duplicates=False, targets=None))


@pytest.fixture(scope="module")
def faces():
    return make_faces(200, seed=0, defects=None, balance="uniform")[0]


def test_the_command_knows_the_steps_and_every_row_can_be_built(tmp_path):
    assert STEP["--step"]["choices"] == tuple(STEPS)
    (tmp_path / "teachers").mkdir()
    for name in ("teachers/large_vgg-0", "light_full-1"):   # both teach
        (tmp_path / f"{name}.safetensors").touch()
    for step in STEPS:
        for name, budget in budgets_of(step, RECIPE, tmp_path, ["light_full"] if BEST in {a.network for a in STEPS[step].values()} else ()).items():
            assert budget.student.network in HYFER and budget.adversarial is None, (step, name)
            assert budget.data == RECIPE.data and budget.student.augment.erase == RECIPE.student.augment.erase
    rows = budgets_of("distil", RECIPE, tmp_path, ["light_res"])
    assert [b.student.network for b in rows.values()] == ["light_res"] * 3
    assert [len(b.teachers) for b in rows.values()] == [0, 2, 2] and rows["views asked afresh"].distillation.cached_views == "fresh"
    old = budgets_of("ablation", RECIPE, tmp_path, ["light"])
    assert [f.network for f in old["without landmarks"].teachers] == [f.network for f in SHIP.teachers if f.network != "geometry"]
    assert [f.network.split("/")[-1] for f in old["more networks"].teachers] == ["efficientnet_lite0", "efficientnet_lite1", "annotators",
                                                                                "large_vgg-0.safetensors", "light_full-1.safetensors"]
    assert old["weight falls to 0"].distillation.fade == 0.34 and old["all three"].distillation.views == 30


def test_fitted_teachers_stay_when_another_network_joins_or_the_folder_moves(tmp_path):
    def teachers(folder, names):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f"{name}.safetensors").touch()
        return budgets_of("ablation", RECIPE, folder, ["light_full"])["more networks"].teachers

    first, moved = teachers(tmp_path / "a", ["light_full-0"]), teachers(tmp_path / "b", ["light_full-0"])
    joined = teachers(tmp_path / "a", ["light_full-1"])
    fitted = {_key([f for f in fits if not f.is_file]) for fits in (first, moved, joined)}
    assert len(fitted) == 1 and len(joined) == len(first) + 1
    assert _key(first) == _key(moved) != _key(joined)


def test_larger_networks_are_of_the_size_that_teachers_may_have():
    sizes = {n: sum(p.numel() for p in HyFER(7, 1, n).parameters()) / 1e6 for n in STEPS["teachers"]}
    assert all(2 <= n <= 5 for n in sizes.values()), sizes
    assert all(width % 16 == 0 for n in (*STEPS["teachers"], "light_full") for width in (HYFER[n].stem, *(b[0] for b in HYFER[n].blocks)))


@pytest.mark.slow
def test_a_step_on_top_of_another_and_again(faces, tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS, "teachers", {n: Arm(n) for n in ("light", "light_rep")})
    lesson = ("distillation.views=2", "distillation.cached_views=mean")
    monkeypatch.setitem(STEPS, "distil", {"bank": Arm(changes=lesson, taught=True),
                                          "afresh": Arm(changes=(*lesson, "distillation.cached_views=fresh"), taught=True)})
    with pytest.raises(DataError, match="step recipe"):
        recipe_study(faces, preset=SMALL, step="long", out=tmp_path)
    first = recipe_study(faces, ["light"], SMALL, range(2), tmp_path)
    assert best_of(tmp_path, SMALL.student) == "light"
    together = first[(first.network == "together") & (first.metric == "accuracy")]
    splits = prepare(faces, SMALL)
    nets = [load_teacher(tmp_path / f"light-{k}.safetensors") for k in range(2)]        # a plain loop beside the row
    p = np.mean([torch.softmax(torch.tensor(predict_logits(n, splits.valid)), 1).numpy() for n in nets], 0)
    held = together[together.split == "holdout"].value.item()
    assert held == pytest.approx((p.argmax(1) == splits.valid.targets()).mean()) and set(together.split) == {"holdout", "valid", "test"}
    taught = recipe_study(faces, preset=SMALL, seeds=(0,), out=tmp_path, step="teachers")
    assert set(taught.network) == {"light", "light_rep", "together"}
    said = []
    lessons = recipe_study(faces, preset=SMALL, seeds=(0,), out=tmp_path, step="distil", say=said.append)
    assert set(lessons.network) == {"bank", "afresh", "together"} and (tmp_path / "distil/bank-0.safetensors").exists()
    monkeypatch.setattr(recipe, "fit_student", lambda *a, **k: pytest.fail("fitted again"))
    again = recipe_study(faces, preset=SMALL, seeds=(0,), out=tmp_path, step="distil")
    pd.testing.assert_frame_equal(again, lessons, check_dtype=False)
    assert "bank" in recipe_table(lessons).index and len(read_table(tmp_path / "distil/bank-0.history.csv")) == 1


def test_a_step_goes_on_within_a_fit(faces, tmp_path, monkeypatch):
    two = replace(SMALL, student=replace(SMALL.student, epochs=2))
    whole = recipe_study(faces, ["light"], two, (0,), tmp_path / "whole")
    real, done = train.Checkpoint.save, []

    def broken(self, epochs):
        real(self, epochs)
        done.append(epochs)
        if epochs == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Checkpoint, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        recipe_study(faces, ["light"], two, (0,), tmp_path / "b")
    monkeypatch.setattr(train.Checkpoint, "save", real)
    assert done == [0, 1]
    pd.testing.assert_frame_equal(recipe_study(faces, ["light"], two, (0,), tmp_path / "b"), whole)
    monkeypatch.setitem(STEPS, "photographs", {"as it is": Arm()})      # what the first step left is not fitted again
    monkeypatch.setattr(recipe, "fit_student", lambda *a, **k: pytest.fail("fitted again"))
    same = recipe_study(faces, preset=two, seeds=(0,), out=tmp_path / "whole", step="photographs")
    assert "scenes" in set(same.split) and set(same.network) == {"as it is"}
    held = same[same.split != "scenes"].reset_index(drop=True).drop(columns="network")
    pd.testing.assert_frame_equal(held, whole.drop(columns="network"))
    other = replace(two, student=replace(two.student, epochs=3))
    assert left_by_recipe(tmp_path / "whole", two, replace(other, teachers=()), 0) is None
    assert left_by_recipe(tmp_path / "whole", two, replace(two, teachers=(), student=replace(two.student, network="light")), 0) is not None
    assert left_by_recipe(tmp_path / "whole", other, replace(other, teachers=(), student=replace(other.student, network="light")), 0) is None   # made with two epochs
    assert best_of(tmp_path / "whole", two.student) == "light"
    with pytest.raises(DataError, match="light-0.csv: fitted with other settings"):
        best_of(tmp_path / "whole", other.student)
    with pytest.raises(StoreError, match="data"):
        recipe_study(faces.take(range(len(faces) - 1)), ["light"], two, (0,), tmp_path / "whole", step="photographs")


def test_networks_asked_afresh_are_asked_about_the_students_views(faces):
    budget = replace(SMALL, distillation=Distillation(views=2, cached_views="fresh"))
    splits, net = prepare(faces, budget), HyFER(7, 1, "light", labels=faces.labels)
    asked = cache_logits([NetworkTeacher.of(net, "mine")], splits, budget)
    assert isinstance(asked[0], OnlineLogits) and asked[0].name == "mine" and EADD(asked).names == ["mine"]


def test_photographs_are_chosen_by_the_held_out_faces_in_scenes(faces, tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS, "photographs", {"as it is": Arm("light"), "frames": Arm("light", ("student.augment.scale=[0.7, 1.35]",))})
    runs = recipe_study(faces, preset=SMALL, seeds=(0,), out=tmp_path, step="photographs")
    assert set(runs.split) == {"holdout", "scenes", "valid", "test"}
    shown = recipe_table(runs)
    assert "hold-out in scenes (chooses)" in shown and "hold-out" in shown and list(shown.index)[-1] == "together"
    scenes, held = runs[(runs.split == "scenes") & (runs.metric == "accuracy")], prepare(faces, SMALL).valid
    net = load_teacher(tmp_path / "photographs/frames-0.safetensors")
    right = predict_logits(net, in_scenes(held)).argmax(1) == held.targets()
    assert scenes[scenes.network == "frames"].value.item() == pytest.approx(right.mean()) and "scenes" not in set(reported(runs, tta=None).split)


def test_scenes_keep_the_labels_and_change_every_pixel_room(faces):
    colour = make_faces(8, seed=0, defects=None)[0]
    colour = colour.replace(images=np.repeat(colour.array()[..., None], 3, -1))
    pasted = in_scenes(colour)
    assert pasted.shape() == colour.shape() and pasted.df.equals(colour.df)
    grey = in_scenes(faces)
    assert (grey.array() != faces.array()).mean() > 0.9 and 0.2 < np.corrcoef(grey.array().ravel(), faces.array().ravel())[0, 1] < 0.99
    large = faces.take(range(2)).replace(images=np.repeat(np.repeat(faces.array()[:2], 10, 1), 10, 2))   # than the photographs are
    assert in_scenes(large).shape() == large.shape()


# ---- a weight that falls, and flat minima, against plain loops ----

@pytest.mark.parametrize("fade, at, left", [(None, 0.99, 1.0), (0.34, 0.5, 1.0), (0.34, 0.66, 1.0), (0.34, 0.83, 0.5), (0.34, 1.0, 0.0), (1.0, 0.25, 0.75)])
def test_what_is_left_of_the_teachers_part(fade, at, left):
    class Half(nn.Module):
        labels, name = tuple("abc"), "half"

        def batch_logits(self, learn):
            return torch.tensor([[2.0, 0.0, 0.0]]), None

    term = EADD([Half()], alpha=0.5, accuracy=np.full((1, 3), 0.5), fade=fade)
    term.learn = type("Learn", (), {"pct_train": at, "model": nn.Linear(1, 1), "iter": 1, "loss_func": nn.CrossEntropyLoss(), "xb": (torch.zeros(1, 1),), "y": torch.tensor([0]), "yb": (torch.tensor([0]),),
                                    "pred": torch.tensor([[0.0, 1.0, 0.0]])})()
    term.teachers, term.emotions, term.outputs = [Half()], ("a", "b", "c"), 3
    term.weights, whole = torch.ones(1, 3), []
    for value in (None, fade):
        term.fade = value
        whole.append(float(term.total(torch.tensor(4.0)) - 0.5 * 4))
    assert whole[1] == pytest.approx(left * whole[0], abs=1e-6) and whole[0] > 0


def test_flat_minima_are_those_of_a_plain_loop(faces):
    ds, held = faces.take(range(32)), faces.take(range(32, 40))

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))

    made, by_hand = net(), net()
    dls = dataloaders(ds, held, bs=32, seed=0)
    fit = Fit(epochs=1, lr=0.1, optimiser="sgd", wd=0.0, smoothing=0.0, schedule="cosine", warmup=0.0, sam=0.5, augment=None, keep="last", bs=32)
    batch = {}

    def look(module, x):
        if len(x[0]) == 32:
            batch.setdefault("x", x[0].detach().clone())

    hook = made.register_forward_pre_hook(look)
    fit_model(made, dls, fit)
    hook.remove()
    x = batch["x"].as_subclass(torch.Tensor)
    order = dataloaders(ds, held, bs=32, seed=0)
    y = next((b[1] for b in order.train), None).as_subclass(torch.Tensor)
    loss = nn.functional.cross_entropy(by_hand(x), y)
    loss.backward()
    params = list(by_hand.parameters())
    length = torch.sqrt(sum((p.grad ** 2).sum() for p in params))
    steps = [0.5 * p.grad / length for p in params]
    with torch.no_grad():
        for p, s in zip(params, steps):
            p += s
    by_hand.zero_grad()
    nn.functional.cross_entropy(by_hand(x), y).backward()
    with torch.no_grad():
        for p, s in zip(params, steps):
            p -= s
    moved = [a.detach() - b.detach() for a, b in zip(made.parameters(), params)]
    for m, p in zip(moved, params):                     # one step of SGD goes along the second gradient
        assert torch.nn.functional.cosine_similarity(m.flatten(), -p.grad.flatten(), 0) > 0.9999


def test_flat_minima_leave_batch_norms_and_refuse_what_they_do_not_know(faces):
    dls = dataloaders(faces.take(range(64)), faces.take(range(64, 80)), bs=32)
    seen = []
    model = HyFER(7, 1, "light", labels=faces.labels)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda m, x: seen.append(m.momentum) if m.training else None)
    fit_model(model, dls, Fit(epochs=1, bs=32, sam=0.05))
    assert seen == [norm.momentum] * 4 and int(norm.num_batches_tracked) == 2   # the second pass is not kept
    with pytest.raises(ConfigError, match="sam=0.05 beside accumulate"):
        fit_model(model, dls, Fit(epochs=1, bs=32, sam=0.05, accumulate=2))
    teacher = HyFER(7, 1, "light", labels=faces.labels)
    with pytest.raises(ConfigError, match="sam=0.05 beside EADD"):
        fit_model(model, dls, Fit(epochs=1, bs=32, sam=0.05), [EADD([teacher])])
    with pytest.raises(ConfigError, match="sam"):
        Fit(sam=0.0)
    with pytest.raises(ConfigError, match="fade"):
        Distillation(fade=1.5)
    assert SAM().rho == 0.05 and override(Preset(), ["student.sam=0.1"]).student.sam == 0.1 and Augment().blur == 0


class Halves(Callback):
    "Halves the loss, at a place of its own."

    def after_loss(self):
        self.learn.loss_grad = self.loss_grad / 2


@pytest.mark.parametrize("make, named", [(lambda f: EADD([HyFER(7, 1, "light", labels=f.labels)]), "EADD"), (lambda f: SQS(), "SQS"), (lambda f: GradientAccumulation(64), "GradientAccumulation"),
                                         (lambda f: MixUp(), "MixUp"), (lambda f: Mix(), "Mix"), (lambda f: MixedPrecision(), "MixedPrecision"), (lambda f: Amp("bf16"), "Amp"),
                                         (lambda f: AdversarialTraining("fgsm", trades=1.0), "AdversarialTraining"), (lambda f: Halves(), "a callback that makes")],
                         ids=lambda v: v if isinstance(v, str) else "")
def test_flat_minima_in_a_learner_of_ones_own_refuse_what_they_would_drop(faces, make, named):
    """In the words of `fit_model`, and with the weights as they were."""
    model = HyFER(7, 1, "light", labels=faces.labels)
    learn = Learner(dataloaders(faces.take(range(64)), faces.take(range(64, 80)), bs=32, device="cpu"), model, CrossEntropyLossFlat(), cbs=[SAM(0.05), make(faces)])
    before = [p.detach().clone() for p in model.parameters()]
    with learn.no_bar(), learn.no_logging(), pytest.raises(ConfigError, match=rf"sam=0.05 beside {named}.*alone expected"):
        learn.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_flat_minima_go_with_attacks_that_add_nothing(faces):
    """The second pass sees the attacked images, as the first did."""
    dls, seen = dataloaders(faces.take(range(64)), faces.take(range(64, 80)), bs=32), []
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))
    model.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().clone()) if m.training else None)
    fit_model(model, dls, Fit(epochs=1, bs=32, sam=0.05), [AdversarialTraining("fgsm", ratio=1.0, guard=0)])
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])


def test_several_crops_a_step(faces, tmp_path):
    ds, held = faces.take(range(30)), faces.take(range(32, 48))
    fit = Fit(epochs=4, bs=12, crops=3, augment=Augment(rotate=11, translate=0.18), keep="last")
    dls, seen = make_loaders(ds, held, fit, seed=1), []
    for dls.train.epoch in range(3):
        for x, _ in dls.train:
            groups = x.as_subclass(torch.Tensor).unflatten(0, (4, 3))
            assert (dls.train.ids.reshape(4, 3) == dls.train.ids[::3, None]).all()
            assert not any(torch.equal(g[i], g[j]) for g in groups for i, j in ((0, 1), (0, 2), (1, 2)))
            seen.append(dls.train.ids[::3])
    whole = [np.asarray(dls.train.new().get_idxs()) % 30 for dls.train.epoch in range(3)]
    assert sorted(np.unique(np.concatenate(whole))) == list(range(30)) and len(np.concatenate(seen)) == 24
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))
    fit_model(model, make_loaders(ds, held, fit), fit)
    with pytest.raises(ConfigError, match="crops=3, but these loaders show 1 views"):
        fit_model(model, make_loaders(ds, held, fit, views=2), fit)
    for wrong, match in ((dict(bs=128, crops=3), "crops=3 of batches of 128"), (dict(crops=4, sampler="balanced"), "one of the two"),
                         (dict(crops=0), "crops")):
        with pytest.raises(ConfigError, match=match):
            Fit(**wrong)


def test_a_fit_of_other_crops_is_another_fit(faces, tmp_path):
    ds, held = faces.take(range(32)), faces.take(range(32, 48))
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))
    one, four = (Fit(epochs=1, bs=16, crops=c, keep="last") for c in (None, 4))
    fit_model(model, make_loaders(ds, held, one), one, checkpoint=tmp_path / "fit.ckpt")
    with pytest.raises(CheckpointError, match="crops"):
        fit_model(model, make_loaders(ds, held, four), four, checkpoint=tmp_path / "fit.ckpt")


def stand_in(splits, preset, *args, **kw):
    "A network that nobody fitted, at once."
    return train.make_network(preset.student, splits.train.labels).eval(), pd.DataFrame({"phase": ["x"], "epoch": [1]}), None


def test_a_fit_of_another_precision_is_not_taken_over_and_one_that_is_costs_once(faces, tmp_path, monkeypatch):
    from fer_nb.experiment import training_costs
    from fer_nb.launch import machine
    monkeypatch.setattr(recipe, "fit_student", stand_in)
    monkeypatch.setattr(recipe, "two_views", lambda *args: pd.DataFrame(
        {"split": ["holdout"], "subset": "all", "tta": "none", "metric": "accuracy", "value": .5, "n": 9}))
    monkeypatch.setitem(STEPS, "averages", {"as it is": Arm()})
    with machine(amp="bf16"):
        recipe_study(faces, ["light"], SMALL, (0,), tmp_path)
    there, of = (tmp_path / "light-0.safetensors").read_bytes(), replace(SMALL, teachers=(), student=replace(SMALL.student, network="light"))
    assert left_by_recipe(tmp_path, SMALL, of, 0) is None
    with machine(amp="bf16"):
        assert left_by_recipe(tmp_path, SMALL, of, 0) is not None
        recipe_study(faces, ["light"], SMALL, (0,), tmp_path, step="averages")
    assert (tmp_path / "averages/as-it-is-0.safetensors").read_bytes() == there and training_costs(tmp_path).network.tolist() == ["light"]
    recipe_study(faces, ["light"], SMALL, (1,), tmp_path, step="averages")   # none to take over
    assert sorted(training_costs(tmp_path).network) == ["as it is", "light"]


def test_precision_is_measured_once_for_all_steps(faces, tmp_path, monkeypatch):
    """A busy machine at one of two times must not give rows of two precisions."""
    asked, rates = [], [{"float32": 1.0, "bf16": 3.0}, {"float32": 1.0, "bf16": 1.0}]
    monkeypatch.setattr(recipe, "settled", lambda *args: train.settled(*args, measure=lambda *a: asked.append(1) or rates[len(asked) - 1]))
    seen = []
    monkeypatch.setattr(recipe, "fit_student", lambda splits, preset, *a, **k: seen.append(preset.student.amp) or stand_in(splits, preset))
    auto = replace(SMALL, student=replace(SMALL.student, amp="auto"))
    monkeypatch.setitem(STEPS, "averages", {"as it is": Arm(), "last": Arm(changes=("student.keep=last",))})
    recipe_study(faces, ["light"], auto, (0,), tmp_path)
    recipe_study(faces, ["light"], auto, (0,), tmp_path, step="averages")
    assert len(asked) == 1 and seen == ["bf16", "bf16"] and not (tmp_path / "averages/precision.csv").exists()


def test_a_step_of_another_file_of_weights_is_refused(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "fit_student", stand_in)
    monkeypatch.setattr(recipe, "two_views", lambda *args: pd.DataFrame(
        {"split": ["holdout"], "subset": "all", "tta": "none", "metric": "accuracy", "value": .5, "n": 9}))
    file, none = tmp_path / "w.safetensors", replace(SMALL, student=replace(SMALL.student, stage_drop=None))
    save_hyfer(HyFER(7, 1, "light", labels=faces.labels), file)
    recipe_study(faces, [str(file)], none, (0,), tmp_path / "r")
    cell = next((tmp_path / "r").glob("*-0.csv")).name
    assert best_of(tmp_path / "r", none.student) == str(file)
    save_hyfer(HyFER(7, 1, "light_rep", labels=faces.labels), file)
    with pytest.raises(DataError, match="fitted with other settings"):
        best_of(tmp_path / "r", none.student)
    with pytest.raises(StoreError, match=rf"{cell}: of something else: arm_settings\.sha256"):
        recipe_study(faces, [str(file)], none, (0, 1), tmp_path / "r")

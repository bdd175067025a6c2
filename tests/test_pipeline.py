"""The whole way, small: reproducible, leak-free, and nothing half-written."""
import json
import re
import time
import warnings
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import binomtest

import fer_nb.pipeline as pipeline
import fer_nb.teachers as teachers_room
from fer_nb import models
from fer_nb.config import PRESETS, Data, Distillation, Evaluation, Fit, Preset, Quads, load_config
from fer_nb.core import EMOTIONS, ConfigError, DataError, ImageError
from fer_nb.cli import trained_on
from fer_nb.data import FERData, resized
from fer_nb.loaders import make_splits
from fer_nb.models import HyFER, load_hyfer
from fer_nb.hyfer_studies import facts_of
from fer_nb.pipeline import cache_logits, fit_adversarial, fit_student, fit_teachers, prepare, run
from fer_nb.report import fig_to_png
from fer_nb.store import Store, StoreError, read_record
from fer_nb.synth import make_faces
from fer_nb.teachers import NetworkTeacher, OnlineLogits, data_record, make_teachers, need_same_holdout

TINY = PRESETS["tiny"]
LCNET = Fit("lcnet_050", 32, pretrained=False, epochs=1, lr=1e-3, bs=32)   # a teacher of half a million parameters
QUICK = replace(TINY, teachers=(LCNET,), evaluation=replace(TINY.evaluation, steps=1, n=20))


def with_student(preset=TINY, **changed):
    return replace(preset, student=replace(preset.student, **changed))


def with_distillation(preset=TINY, **changed):
    return replace(preset, distillation=replace(preset.distillation, **changed))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """One tiny run, shared by the tests that only look at it: data, folder, what it found, seconds by the clock."""
    ds, found, real = make_faces(400, seed=0)[0], [], pipeline.RunResults.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.RunResults, "write", lambda self, *args: (found.append(self), real(self, *args))[1])
        start = time.perf_counter()
        out = run(ds, "tiny", tmp_path_factory.mktemp("runs") / "a", show=False, command="fer-nb demo --preset tiny <b>")
        return ds, out, found[0], time.perf_counter() - start


@pytest.fixture
def no_pictures(monkeypatch):
    "A report without its drawings and without its stop-watch, which take as long as a tiny training."
    png = fig_to_png(Figure((0.2, 0.2)), 10)
    monkeypatch.setattr("fer_nb.report.fig_to_png", lambda fig, dpi: png)
    for draw in ("_figure", "_figure_of"):
        monkeypatch.setattr(f"fer_nb.pipeline.{draw}", lambda *args, **size: Figure((0.2, 0.2)))
    monkeypatch.setattr("fer_nb.pipeline.latency_ms", lambda *args: 1.0)


@pytest.fixture(scope="module")
def finished(watched):
    """Its data and its folder."""
    return watched[:2]


@pytest.mark.usefixtures("no_pictures")
def test_the_students_of_a_run_carry_the_temperature_of_their_validation_images(tmp_path, monkeypatch):
    ds, calls = make_faces(300, seed=0)[0], []
    monkeypatch.setattr("fer_nb.evaluate.fit_temperature", lambda z, y: calls.append(len(y)) or 1.25)
    out = run(ds, QUICK, tmp_path / "a", show=False)
    assert [load_hyfer(out / f"{name}.safetensors").record["temperature"] for name in ("student", "student_phase1")] == [1.25, 1.25]
    assert calls == [len(make_splits(ds, TINY.data).valid)] * 3
    assert pd.read_csv(out / "students.csv").temperature.tolist() == [1.25] * 3


def test_a_temperature_is_that_of_the_logits_or_absent():
    class Said(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.labels = torch.nn.Parameter(torch.tensor(scale)), EMOTIONS

        def forward(self, x):
            z = torch.zeros(len(x), 7)
            z[torch.arange(len(x)), (x.mean((1, 2, 3)) * 1e4).long() % 7] = 3.0
            return self.scale * z
    faces = make_faces(200, defects=None)[0]
    said = pipeline.predict_logits(Said(1.0), faces)
    right = FERData(faces.df.assign(label=[faces.labels[k] for k in said.argmax(1)]), faces.array(), faces.labels)
    mixed = FERData(right.df.assign(label=[faces.labels[(k + (i % 4 == 0)) % 7] for i, k in enumerate(said.argmax(1))]), faces.array(), faces.labels)
    one, five = (pipeline.calibration(Said(s), mixed)["temperature"] for s in (1.0, 5.0))
    assert five == pytest.approx(5 * one, rel=1e-3) and one == pytest.approx(3 / np.log(0.75 / (0.25 / 6)), rel=0.1)
    assert pipeline.calibration(Said(1.0), right) == {} == pipeline.calibration(Said(-1.0), mixed)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_at_another_size_says_so(tmp_path):
    from fer_nb.predict import Recogniser
    out = run(make_faces(300, seed=0)[0], replace(with_student(QUICK, size=40), adversarial=None), tmp_path / "a", show=False)
    assert load_hyfer(out / "student.safetensors").input_size == 40
    recogniser = Recogniser(out, crop=False)
    assert recogniser.network.size == 40 and recogniser(np.zeros((90, 70), np.uint8))[0].crop.shape[:2] == (40, 40)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_is_broken_off_goes_on_where_it_stopped(tmp_path, monkeypatch):
    ds, folder = make_faces(300, seed=0)[0], tmp_path / "runs"
    out = run(ds, QUICK, tmp_path / "whole", show=False)
    real, fitted = pipeline.fit_model, []

    def fit(model, dls, spec, cbs=(), phase="", *args, **kwargs):
        fitted.append(phase)
        if phase == "HyFER, EADD" and fitted.count(phase) == 1:
            raise KeyboardInterrupt
        return real(model, dls, spec, cbs, phase, *args, **kwargs)

    monkeypatch.setattr(pipeline, "fit_model", fit)
    monkeypatch.setattr(teachers_room, "fit_model", fit)
    with pytest.raises(KeyboardInterrupt):
        run(ds, QUICK, folder / "b", show=False)
    assert [p.name for p in folder.iterdir()] == ["b.work"]
    with pytest.raises(StoreError, match="settings.teachers.0.epochs is 1 there and 2 here"):
        run(ds, replace(QUICK, teachers=(replace(LCNET, epochs=2),)), folder / "b", show=False)
    again = run(ds, QUICK, folder / "b", show=False)
    assert [p.name for p in folder.iterdir()] == ["b"] and fitted.count("HyFER, EADD") == 2 and len(fitted) > 3
    for name in ("results.csv", "student.safetensors", "student_phase1.safetensors"):
        assert (out / name).read_bytes() == (again / name).read_bytes(), name
    assert [json.loads((f / "config.json").read_text())["record"]["resumed"] for f in (out, again)] == [False, True]
    assert "earlier ones were broken off" in (again / "report.html").read_text()


def with_teacher(**changed):
    return replace(TINY, teachers=(replace(TINY.teachers[0], **changed), TINY.teachers[1]))


def test_work_of_another_run_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    """Also where the checkpoints could not tell: weights of the same shapes, made in another way."""
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(teachers_room, "fit_model", stop)
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    fresh = FERData(ds.df, 255 - ds.array(), ds.labels)

    def begun(data=ds, preset=TINY, seed=0):
        run(data, preset, tmp_path / "b", seed, show=False)

    with pytest.raises(KeyboardInterrupt):
        begun()
    for other, why in [({"preset": with_teacher(pretrained=False)}, "pretrained"), ({"seed": 1}, "seed"), ({"data": fresh}, "data"),
                       ({"preset": with_teacher(size=48)}, "size"),
                       ({"preset": replace(TINY, adversarial=replace(TINY.adversarial, eps=0.5))}, "adversarial.eps")]:
        with pytest.raises(StoreError, match=f"b.work: .*{why}.*delete this one"):
            begun(**other)
    with pytest.raises(KeyboardInterrupt):  # not refused
        begun(preset=replace(TINY, evaluation=Evaluation(n=10, eps=(0,))))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_teachers_of_one_kind_and_colour_images_of_another_size(tmp_path):
    "Both teachers teach and both are reported; the student takes colour as the images have it."
    ds = make_faces(400, seed=1, size=64, balance="uniform")[0]
    colour = FERData(ds.df, np.repeat(ds.array()[..., None], 3, -1), ds.labels, "colour")
    specs = tuple(replace(LCNET, size=size) for size in (32, 40))
    out = run(colour, replace(TINY, teachers=specs, adversarial=replace(TINY.adversarial, attacks=("pgd",))), tmp_path / "a", show=False)
    assert load_hyfer(out / "student.safetensors").in_chans == 3
    names = {"lcnet_050 32 px", "lcnet_050 40 px"}
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "results.csv").model)
    assert {f"teacher {n}" for n in names} <= set(pd.read_csv(out / "history.csv").phase)
    assert set(pd.read_csv(out / "teacher_weights.csv").teacher) == names


@pytest.fixture(scope="module")
def born_again(tmp_path_factory):
    """A student that a first-generation student taught too."""
    ds, out = make_faces(400, seed=0)[0], tmp_path_factory.mktemp("runs") / "again"
    return run(ds, replace(with_student(with_distillation(cached_views="mean"), network="light_rep", keep="last"), born_again=TINY), out, show=False)


@pytest.mark.slow
def test_the_first_generation_student_teaches(finished, born_again):
    results, history, weights = (pd.read_csv(born_again / f"{name}.csv") for name in ("results", "history", "teacher_weights"))
    def clean(table, model):
        return table[(table.model == model) & (table.attack == "none")].drop(columns="model").reset_index(drop=True)
    before = pd.read_csv(finished[1] / "results.csv")
    pd.testing.assert_frame_equal(clean(results, "teacher first-generation HyFER"), clean(before, "HyFER, EADD"))
    assert set(weights.teacher) == {"efficientnet_lite0", "resnet18", "first-generation HyFER"}
    assert "first-generation HyFER" in set(history.phase)


def resnet(splits, name="resnet18"):
    """A teacher that nobody fitted."""
    teacher = make_teachers([Fit("resnet18", 32, pretrained=False)])[0]
    return NetworkTeacher.of(pipeline.make_network(teacher.settings, splits.train.labels), name)


@cache
def four_hundred():
    "Parts that several tests look at and none changes: the search for duplicates takes seconds."
    return make_splits(make_faces(400, seed=0)[0], TINY.data)


def test_each_student_has_its_own_kind_of_views(tmp_path, monkeypatch):
    splits, heard = four_hundred(), []

    def fit(splits, preset, cached=(), *args):
        heard.append((preset, [c.name for c in cached], {c.train.shape[0] for c in cached}))
        return resnet(splits).network, pd.DataFrame(), None
    monkeypatch.setattr(teachers_room, "fit_model", lambda *a, **k: pd.DataFrame())
    monkeypatch.setattr(pipeline, "fit_student", fit)
    first = with_distillation(views=2)
    both = replace(with_distillation(first, cached_views="mean"), born_again=first)
    teachers, cached, _ = fit_teachers(splits, both, 0, Store(tmp_path))
    names = ["efficientnet_lite0", "resnet18"]
    assert heard == [(first, names, {2})] and len(teachers) == 3
    assert [(c.name, c.train.shape[0]) for c in cached] == [(n, 1) for n in (*names, "first-generation HyFER")]


def test_cached_means_go_with_new_views(monkeypatch):
    splits, shown = four_hundred(), []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, *a, **k: shown.append(dls.train.views))
    for cached_views in ("each", "mean"):
        preset = with_distillation(cached_views=cached_views, views=3)
        cached = cache_logits([resnet(splits)], splits, preset)
        assert cached[0].train.shape[0] == (3 if cached_views == "each" else 1)
        fit_student(splits, preset, cached)
    assert shown == [3, None]


def test_what_a_fit_says_reaches_the_student_and_its_second_phase(monkeypatch):
    """Every field of a `Fit`: nothing is set twice or forgotten on the way."""
    splits, fits = four_hundred(), []
    monkeypatch.setattr(pipeline, "fit_model", lambda model, dls, fit, *a, **k: fits.append((fit, dls.train.bs, dls.train.augment)))
    student, attacked = Fit("light_rep", epochs=7, bs=16, keep="last", ema=0.9, augment=None), Fit(epochs=3, bs=8, amp="bf16")
    preset = replace(TINY, student=student, adversarial=replace(TINY.adversarial, fit=attacked))
    network = fit_student(splits, preset)[0]
    fit_adversarial(network, splits, preset)
    assert fits == [(student, 16, None), (attacked, 8, attacked.augment)]


def test_callbacks_and_quads_go_along(monkeypatch):
    """A student with Spatial Quad-Similarity and a callback of one's own, in one call; nothing of it stays in the network."""
    splits, mine = four_hundred(), pipeline.Callback()
    preset = with_student(replace(TINY, quads=Quads(lam=0.3)), bs=16)
    teacher = resnet(splits)
    student, history, eadd = fit_student(splits, preset, cache_logits([teacher], splits, preset), cbs=[mine])
    assert len(history) == 1 and mine.learn.sqs.lam == 0.3 and mine.learn.eadd is eadd
    assert isinstance(student, HyFER) and not {"enhanced", "quad_weights"} & {k.split(".")[0] for k in student.state_dict()}
    _, _, adv = fit_adversarial(student, splits, preset, cbs=[other := pipeline.Callback()])
    assert other.learn.adversarial_training is adv


@pytest.mark.usefixtures("no_pictures")
def test_a_run_without_teachers_and_without_attacks(tmp_path):
    """What is not done is not reported: no teacher, no second phase."""
    out = run(make_faces(300, seed=0)[0], replace(TINY, teachers=(), adversarial=None), tmp_path / "a", show=False)
    results = pd.read_csv(out / "results.csv")
    assert set(results.model) == {"HyFER, no teacher"} and set(results.attack.fillna("none")) == {"none"}
    assert not {"teacher_weights.csv", "adversarial.csv"} & {p.name for p in out.iterdir()}
    assert (out / "student.safetensors").read_bytes() == (out / "student_phase1.safetensors").read_bytes()


def test_logs_of_adversarial_training_are_kept(finished):
    _, out = finished
    log, guard = pd.read_csv(out / "adversarial.csv"), pd.read_csv(out / "guard.csv")
    assert set(log.attack) == {"clean", "fgsm", "pgd"} and log.images.gt(0).all()
    assert guard.rolled_back.tolist() == [False] and guard.pgd.between(0, 1).all()


def test_config_says_how_to_run_again(finished):
    ds, out = finished
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["fingerprint"] == ds.fingerprint()
    assert config["settings"]["adversarial"]["eps"] == TINY.adversarial.eps and config["seed"] == 0
    assert load_config(out / "config.json") == TINY
    assert {"torch", "fastai", "timm", "python"} <= set(config["versions"])


def test_results_name_split_attack_and_radius(finished):
    _, out = finished
    results = pd.read_csv(out / "results.csv")
    assert set(results.split) == {"valid", "test"}
    attacked = results[results.attack != "none"]
    assert (attacked.eps >= 0).all() and (attacked.steps >= 1).all()
    assert not results.duplicated(["model", "split", "subset", "tta", "attack", "eps", "steps", "metric"]).any()


def test_shipped_student_is_the_one_that_was_measured(finished):
    ds, out = finished
    from fer_nb.evaluate import evaluate
    results = pd.read_csv(out / "results.csv")
    row = results[(results.model == "HyFER, EADD + adversarial") & (results.split == "test") & (results.subset == "all")
                  & (results.attack == "none") & (results.metric == "accuracy")]
    measured = evaluate(load_hyfer(out / "student.safetensors"), ds.where(split="test"))
    accuracy = measured[(measured.metric == "accuracy") & (measured.subset == "all")].value
    assert accuracy.item() == pytest.approx(row.value.item(), abs=1e-6)


def test_report_stands_alone(finished):
    _, out = finished
    html = (out / "report.html").read_text()
    assert "<script src" not in html and "http://" not in html and "https://" not in html
    assert html.count("data:image/png;base64,") >= 8


# ---- the report, its numbers, and the files beside it ----

def text_of(html):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html))).replace("\N{NO-BREAK SPACE}", " ")


def page_of(out):
    return (out / "report.html").read_text(encoding="utf-8")


def headline_of(out):
    """(what, value, note) of each number, and the sentences below."""
    block = re.search(r'<section class="headline".*?</section>', page_of(out), flags=re.S)[0]
    numbers = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="note">(.*?)</dd>', block)
    return [tuple(map(text_of, number)) for number in numbers], text_of(block.split("</dl>")[1])


def tables_of(out):
    """(caption, headings, rows) of each table of the report."""
    found = re.findall(r'aria-label="([^"]*)"><table>\s*<thead>(.*?)</thead>(.*?)</table>', page_of(out), flags=re.S)
    return [(unescape(caption), [text_of(h).strip() for h in re.findall(r"<th.*?</th>", head, flags=re.S)],
             [[text_of(c).strip() for c in re.findall(r"<td.*?</td>", row, flags=re.S)] for row in re.findall(r"<tr>.*?</tr>", body, flags=re.S)])
            for caption, head, body in found]


def said_of(row):
    """A share of images as the report says it, from a row of results.csv alone."""
    low, high = binomtest(round(row.value * row.n), row.n).proportion_ci(method="wilson")
    return f"{100 * row.value:.1f} %", f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; {row.n:,} images"


def test_every_number_of_the_headline_is_in_the_results(finished):
    _, out = finished
    results, students = pd.read_csv(out / "results.csv", keep_default_na=False), pd.read_csv(out / "students.csv")
    name = students.model[students.chosen].item()
    here = results[(results.model == name) & (results.split == "test")]
    clean = here[(here.attack == "none") & (here.tta == "none")]
    accuracy = clean[clean.metric == "accuracy"].set_index("subset")
    attacked = here[(here.attack != "none") & (here.metric == "accuracy") & np.isclose(here.eps, 8 / 255)]
    worst = attacked.sort_values(["value", "steps"], ascending=[True, False]).iloc[0]
    numbers, _ = headline_of(out)
    assert [n[1:] for n in (numbers[0], numbers[1])] == [said_of(accuracy.loc[s]) for s in ("all", "without_duplicates")]
    assert numbers[0][0] == "accuracy, test split"
    leaked = accuracy.n["all"] - accuracy.n["without_duplicates"]
    assert numbers[1][0] == f"accuracy without the {leaked} images that had a duplicate in the training split as it came"
    assert numbers[2][:2] == ("macro F1", f"{100 * clean[(clean.metric == 'macro_f1') & (clean.subset == 'all')].value.item():.1f} %")
    steps = f", {worst.steps} steps" if worst.steps > 1 else ""
    assert numbers[3][:2] == (f"accuracy under {worst.attack.upper()}, ε = 8/255{steps}", said_of(worst)[0])
    assert numbers[3][2].startswith(said_of(worst)[1]) and worst.n == 40


def test_the_held_out_images_choose_the_student_of_the_headline(finished):
    """Judged again from the weights in the folder."""
    ds, out = finished
    held, students = make_splits(ds, TINY.data).valid, pd.read_csv(out / "students.csv").set_index("model")
    again = {name: (pipeline.predict_logits(load_hyfer(out / file), held).argmax(1) == held.targets()).mean() for name, file in students.file.items()}
    assert again == pytest.approx(students.accuracy.to_dict()) and set(students.images) == {len(held)}
    assert students.chosen.sum() == 1 and again[students.chosen.idxmax()] == max(again.values())
    _, text = headline_of(out)
    assert f"{students.chosen.idxmax()} is the student that the {len(held)} held-out training images chose" in text
    assert all(f"{name} {100 * value:.1f} %" in text for name, value in again.items())
    assert list(students.index) == ["HyFER, no teacher", "HyFER, EADD", "HyFER, EADD + adversarial"]
    assert students.file.tolist() == ["student_no_teacher.safetensors", "student_phase1.safetensors", "student.safetensors"]


def test_of_equal_students_the_smaller_loss_is_chosen(watched, monkeypatch):
    found, rows = watched[2], iter([(.5, 1.2), (.6, .9), (.6, .8)])
    def scores(*args):
        accuracy, loss = next(rows)
        return pd.DataFrame({"metric": ["accuracy", "loss"], "value": [accuracy, loss]})
    monkeypatch.setattr(pipeline, "scores", scores)
    monkeypatch.setattr(pipeline.RunResults, "costs", lambda self: pd.DataFrame({"network": list(self.students)}))
    before = found.cost_table
    assert found.rank_students().chosen.tolist() == [False, False, True]
    found.cost_table = before


def test_students_are_compared_in_pairs_on_the_same_images(finished):
    ds, out = finished
    test, table = ds.where(split="test"), pd.read_csv(out / "comparison.csv")
    files = pd.read_csv(out / "students.csv").set_index("model").file
    right = {name: pipeline.predict_logits(load_hyfer(out / file), test).argmax(1) == test.targets() for name, file in files.items()}
    p = []
    for row in table.itertuples():
        a, b = right[row.first], right[row.second]
        assert row.difference == pytest.approx(a.mean() - b.mean()) and row.n == len(test)
        alone = (a & ~b).sum(), (b & ~a).sum()
        p.append(binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0)
        assert row.p == pytest.approx(p[-1])
    assert len(p) == 3
    order, holm, top = np.argsort(p, kind="stable"), np.empty(3), 0.0
    for rank, k in enumerate(order):
        top = max(top, min(1.0, (3 - rank) * p[k]))
        holm[k] = top
    assert table.p_holm.tolist() == pytest.approx(holm.tolist())


def test_recall_of_each_class_is_that_of_the_confusion_matrix(finished):
    _, out = finished
    cells = pd.read_csv(out / "confusion.csv").query("split == 'test'")
    [(_, head, rows)] = [t for t in tables_of(out) if t[0].startswith("Recall of each class")]
    for k, name in enumerate(head[2:5], 2):
        one = cells[cells.model == name]
        total = one.groupby("true").n.sum()
        hits = one[one.true == one.predicted].set_index("true").n
        assert {row[0]: row[k] for row in rows} == {label: f"{100 * hits[label] / n:.1f}" if n else "–" for label, n in total.items()}
        assert {row[0]: int(row[1]) for row in rows} == total.to_dict()


def test_shares_are_in_per_cent_everywhere(finished):
    """A number between 0 and 1 stands only where the heading names another unit, or per cent."""
    _, out = finished
    others = {"training loss", "validation loss", "p", "p, corrected", "temperature", "ms an image", "multiplications (millions)"}
    for caption, head, rows in tables_of(out):
        in_percent = "in %" in caption
        for k, name in enumerate(head):
            if not in_percent and "(%)" not in name and "(points)" not in name and name not in others and name != "95 % interval":
                assert not [row[k] for row in rows if re.fullmatch(r"[−<]?\s?0?\.\d+", row[k])], (caption, name)
    values = {(c, h): [row[k] for row in rows] for c, head, rows in tables_of(out) for k, h in enumerate(head)}
    epochs = values["Epochs", "accuracy (%)"]
    assert epochs == [f"{100 * v:.1f}" for v in pd.read_csv(out / "history.csv").accuracy]
    watch = {h: v for (c, h), v in values.items() if c.startswith("The adversarial phase")}
    assert watch["epoch"] == ["1"] and watch["ε"] == ["4/255"] and "0.0157" not in text_of(re.sub(r'<details id="settings">.*', "", page_of(out), flags=re.S))
    assert all("not looked for" in c for c, h in values if h == "error ratio (%)")


def test_the_epochs_are_folded(finished):
    page = page_of(finished[1])
    assert re.search(r"<details><summary>Epochs \(\d+ rows\)</summary>", page)


def test_figures_have_text_that_one_can_read(watched):
    """Smallest text in CSS pixels: 358 of them are there for a figure on a phone, 507 or 1,056 on a screen."""
    found = watched[2]
    with mpl.rc_context(pipeline.STYLE):
        figures = [(caption, fig) for part in found.sections() for caption, fig in part.figures]
        assert len(figures) >= 11
        for caption, fig in figures:
            fig.savefig("/dev/null", format="png", bbox_inches="tight")
            texts = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
            points, width = min(t.get_fontsize() for t in texts), 96 * fig.get_figwidth()
            wide = width > 680
            phone, screen = max(358, .8 * width) if wide else 358, min(1.25 * width, 1056 if wide else 507)
            assert points * 96 / 72 * phone / width >= 8, caption
            assert points * 96 / 72 * screen / width >= 11, caption


def test_figures_and_headline_are_of_one_split(watched):
    ds, out, found, _ = watched
    captions = [text_of(c) for c in re.findall(r"<figcaption>(.*?)</figcaption>", page_of(out), flags=re.S)]
    of_a_split = [c for c in captions if re.search(r"\b(test|validation) split", c)]
    assert len(of_a_split) >= 8 and all("test split" in c for c in of_a_split)
    assert ds.df.split.iloc[0] != "test" or found.splits.test.df.split.iloc[0] != "test"   # the order of the rows says otherwise
    captions = [c for c, *_ in tables_of(out)]
    assert [c.split(":")[0] for c in captions if c.startswith(("Test split", "Validation split"))] == ["Test split", "Validation split"]


def test_links_of_the_report_lead_to_the_files_beside_it(finished):
    _, out = finished
    links = {unquote(link) for link in re.findall(r'href="([^#"][^"]*)"', page_of(out))}
    assert links == {p.name for p in out.iterdir()} - {"report.html"}


def test_timings_are_durations(watched):
    _, out, _, seconds = watched
    timings = json.loads((out / "timings.json").read_text())
    assert seconds / 2 < sum(timings.values()) < seconds + .01 * len(timings) and min(timings.values()) >= 0  # rounded
    steps = list(timings)
    assert steps[0] == "audit, cleaning, splits" and steps[-1] == "writing the report"
    assert steps.index("HyFER, EADD") < steps.index("HyFER, EADD + adversarial") < steps.index("evaluating HyFER, no teacher")
    assert pipeline.step_seconds([("a", 0.), ("b", 1.), ("a", 3.), ("end", 3.5)]) == {"a": 1.5, "b": 2.0} and pipeline.step_seconds([]) == {}


def test_a_run_records_how_it_was_made(finished):
    ds, out = finished
    record, config = read_record(out / "report.html"), json.loads((out / "config.json").read_text())
    assert set(record["files"]) == {p.name for p in out.iterdir()} - {"record.json"}
    assert {k: v for k, v in record.items() if k != "files"} == config["record"]
    assert record["command"] == "fer-nb demo --preset tiny <b>" and record["seed"] == 0 and record["preset"] == "tiny"
    made = text_of(re.search(r'<section id="made">.*?</section>', page_of(out), flags=re.S)[0])
    versions = record["versions"]
    for part in (record["command"], f"fer-nb {versions['fer-nb']}", f"torch {versions['torch']}", f"python {versions['python']}", record["device"],
                 record["date"][:10], config["data"]["fingerprint"], "to repeat it", "to cite it"):
        assert part in made, part


# ---- what the report says of the images comes from what the run did ----

def small_run(ds, out, **changes):
    """No teachers, one epoch, no attack unless `changes` say so."""
    return run(ds, replace(TINY, **{"teachers": (), "adversarial": None} | changes), out, show=False)


@pytest.mark.usefixtures("no_pictures")
def test_without_a_test_split_the_validation_split_is_reported_and_that_is_said(tmp_path):
    ds = make_faces(300, seed=0)[0]
    ds = ds.take(ds.df.split != "test")
    out = small_run(ds, tmp_path / "a")
    numbers, text = headline_of(out)
    n = (ds.df.split == "valid").sum()
    assert numbers[0][0] == "accuracy, validation split" and f"The data have no test split. Figures are of the validation split ({n} images)." in text
    assert "test split" not in re.sub("no test split", "", text_of(page_of(out)))
    assert "HyFER, no teacher is the only student of this run" in text and "One network was measured" in text
    assert not (out / "comparison.csv").exists() and "McNemar" not in text_of(page_of(out))
    assert not any("under" in what for what, *_ in numbers) and "Robustness" not in page_of(out)
    assert read_record(out / "results.csv")["command"] == "run(ds, load_config(\"config.json\"), 'a', seed=0)"


@pytest.mark.usefixtures("no_pictures")
def test_a_test_split_that_the_run_cut_off_is_said_to_be_one(tmp_path):
    ds = make_faces(400, seed=0, defects=None)[0]
    out = small_run(ds.assign(split="train"), tmp_path / "a")
    numbers, text = headline_of(out)
    assert numbers[0][0] == "accuracy, test split" and "The data came without a split: a fifth of the images" in text
    assert "validation split" not in text


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.usefixtures("no_pictures")
def test_a_student_knows_the_data_again_that_came_without_a_split(tmp_path, size):
    """Its record has the fingerprint of the data as they came: the split that the run made is not in the file that is read again."""
    def read():
        return make_faces(300, seed=0, defects=None, balance="uniform")[0].assign(split="train")
    out = small_run(read(), tmp_path / "a", student=replace(TINY.student, size=size))
    record, ds = load_hyfer(out / "student.safetensors").record, read()
    assert record["fingerprint"] == (ds if size is None else resized(ds, size)).fingerprint()
    assert record["fingerprint"] == json.loads((out / "config.json").read_text())["data"]["fingerprint"]
    assert "of this data set" in trained_on(record, ds, size or 48)
    teacher, = make_teachers([Fit(str(out / "student.safetensors"))])
    came = ds if size is None else resized(ds, size)
    teacher.check(make_splits(came, TINY.data), 0)
    cut = make_splits(came, TINY.data, 1)                                  # another test part was cut off
    with pytest.raises(DataError, match="fingerprint of the split"):
        teacher.check(cut, 0)


@pytest.mark.usefixtures("no_pictures")
def test_images_that_were_learned_from_are_counted_and_not_denied(tmp_path):
    ds = make_faces(400, seed=0, defects={"leak": .1}, balance="uniform")[0]
    found = {}
    for clean in (True, False):
        out = small_run(ds, tmp_path / str(clean), data=replace(TINY.data, clean=clean), student=replace(TINY.student, keep="last"))
        found[clean] = json.loads((out / "config.json").read_text())["facts"], headline_of(out)[1]
    facts, text = found[True]
    assert facts["also learned from"] == 0 and f"No reported image, and no byte-identical copy of one, is among the {facts['trained on']} training and" in text
    assert "the epoch of each fit" not in facts["chosen by the held-out images"] and "the epoch of each fit" not in text      # keep="last"
    facts, text = found[False]
    pixels = {tuple(ds.image(k).ravel()) for k in np.flatnonzero(ds.df.split == "train")}
    leaked = sum(tuple(ds.image(k).ravel()) in pixels for k in np.flatnonzero(ds.df.split != "train"))
    assert leaked > 5 and facts["also learned from"] == leaked and f"{leaked} of the reported images have a byte-identical copy among" in text
    assert "were not cleaned" in text and "No reported image" not in text


def test_the_best_network_on_the_reported_split_is_named_if_it_is_another(watched, monkeypatch):
    _, out, found, _ = watched
    results = pd.read_csv(out / "results.csv", keep_default_na=False)
    clean = results.query("split == 'test' and subset == 'all' and attack == 'none' and metric == 'accuracy'")
    best = clean.loc[clean.value.idxmax()]
    text = headline_of(out)[1]
    assert "5 networks were measured on the reported images, which chose nothing" in text
    ahead = best.value > clean[clean.model == found.chosen].value.item()
    assert (f"the best of them there is {best.model}, {100 * best.value:.1f} %" if ahead else "the chosen student is also the most accurate of them there") in text
    others = found.results.assign(value=found.results.value.where(found.results.model != "teacher resnet18", .99))
    monkeypatch.setattr(found, "results", others)
    assert "the best of them there is teacher resnet18, 99.0 %" in " ".join(found.sentences())
    several = clean[clean.model == list(found.students)[-1]].assign(value=.999, tta="flip")      # several views of one image: not the same measure
    monkeypatch.setattr(found, "results", pd.concat([others, several], ignore_index=True))
    assert found.facts()["best on it"] == {"model": "teacher resnet18", "accuracy": .99}


@pytest.mark.slow
def test_odd_labels_two_of_them_and_colour_make_a_whole_report(tmp_path):
    faces = make_faces(260, seed=2, defects=None, balance={"happy": 1, "sad": 1}, size=40)[0].where(label=["happy", "sad"])
    names = {"happy": "x:y $a_{b$ <b>", "sad": "{{ 7*7 }} & \\frac{"}
    df = faces.df.assign(label=faces.df.label.map(names), split=faces.df.split.replace("test", "valid"))
    ds = FERData(df, np.repeat(faces.array()[..., None], 3, -1), tuple(names.values()), "odd <i>")
    out = small_run(ds, tmp_path / "a", adversarial=replace(TINY.adversarial, attacks=("pgd",)), evaluation=Evaluation(eps=(0, 4 / 255), steps=1, n=20, tta="flip"))
    page = page_of(out)
    assert "<b>" not in page and "<i>" not in page and "Traceback" not in page
    [(_, head, rows)] = [t for t in tables_of(out) if t[0].startswith("Recall of each class")]
    assert {row[0] for row in rows} == set(names.values())
    numbers, text = headline_of(out)
    assert len(numbers) == 4 and "ε = 4/255" in numbers[3][0] and "no test split" in text
    results = [rows for caption, _, rows in tables_of(out) if caption.startswith("Validation split")][0]
    assert [row[0].replace(" (chosen)", "") for row in results] == [f"HyFER, no teacher{x}{v}" for x in ("", " + adversarial") for v in ("", ", flip views")]


def test_a_failed_report_leaves_nothing_half_written(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "write_report", broken)
    monkeypatch.setattr(pipeline, "fit_teachers", lambda splits, *a: ([], [], [pd.DataFrame()]))
    monkeypatch.setattr(pipeline, "fit_students", lambda *a: ({}, [], None, None))
    monkeypatch.setattr(pipeline.RunResults, "evaluate", broken)
    with pytest.raises(OSError):
        run(make_faces(300, seed=0)[0], "tiny", tmp_path / "run", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["run.work"]


def test_inputs_that_cannot_be_used(tmp_path):
    faces = make_faces(200, seed=0)[0]
    with pytest.raises(ConfigError, match="'huge'"):
        run(faces, "huge", tmp_path / "x")
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists already"):
        run(faces, "tiny", tmp_path / "there")
    faces = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    disgust = np.flatnonzero(faces.df.label == "disgust")
    few = faces.take(np.setdiff1d(np.arange(len(faces)), disgust[3:]))
    rare = FERData(few.df.assign(split="train", subject=""), few.array(), few.labels)
    with pytest.raises(DataError, match="class 'disgust' has"):
        run(rare, "tiny", tmp_path / "y", show=False)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


# ---- trained networks as teachers ----

@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_trained_network_teaches_as_it_is(finished, tmp_path):
    ds, out = finished
    file = Fit(str(out / "student_phase1.safetensors"))
    preset = replace(with_student(with_distillation(cached_views="mean"), keep="last"), teachers=(LCNET, file))
    again = run(ds, preset, tmp_path / "b", show=False)
    results = pd.concat([pd.read_csv(folder / "results.csv") for folder in (out, again)], keys=["old", "new"]).reset_index(level=0)
    clean = results[(results.attack == "none") & (results.tta == "none") & (results.subset == "all")]
    old = clean[(clean.level_0 == "old") & (clean.model == "HyFER, EADD")]
    new = clean[(clean.level_0 == "new") & (clean.model == "teacher student_phase1")]
    keys = ["split", "metric"]
    pd.testing.assert_series_equal(new.set_index(keys).value, old.set_index(keys).value)
    assert set(pd.read_csv(again / "teacher_weights.csv").teacher) == {"lcnet_050", "student_phase1"}
    assert [t["network"] for t in json.loads((again / "config.json").read_text())["settings"]["teachers"]] == [
        "lcnet_050", "student_phase1.safetensors"]                              # without its folder


def test_a_refused_network_stops_a_run_before_any_teacher_is_fitted(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers_room, "fit_model", lambda *_, **__: pytest.fail("a teacher was fitted"))
    preset = replace(TINY, teachers=(*TINY.teachers, Fit(str(tmp_path / "gone.safetensors"))))
    with pytest.raises(DataError, match="gone.safetensors"):
        run(finished[0], preset, tmp_path / "b", show=False)
    with pytest.raises(ConfigError, match="annotators twice"):
        run(finished[0], replace(TINY, teachers=(Fit("annotators"),) * 2), tmp_path / "c", show=False)


BARE = Data(clean="leaks", targets=None, near_duplicates=False)


def undivided(**more):
    ds = make_faces(160, seed=1, defects=None, size=32, balance="uniform")[0]
    return ds.replace(df=ds.df.drop(columns="subject")).assign(split="train", **more)


def saved_by(splits, path, seed=0, **record):
    "A network that says what it was trained on."
    torch.manual_seed(0)
    models.save(HyFER(variant="light").eval(), path, seed=seed, **data_record(splits), **record)
    return path


def test_a_student_goes_on_only_from_weights_that_do_not_know_the_hold_out(tmp_path, monkeypatch):
    ds, how = undivided(), Preset(data=BARE, student=Fit("light", 32, epochs=1, bs=32, augment=None, amp=None), adversarial=None)
    first, second = (prepare(ds, how, seed) for seed in (0, 1))
    path = str(saved_by(first, tmp_path / "start.safetensors"))
    start = replace(how, student=replace(how.student, network=path))
    assert fit_student(first, start, seed=3)[0].labels == ds.labels        # another seed of the student, the same hold-out
    with pytest.raises(DataError, match="held-out ids .*it may know what is held out here"):
        fit_student(second, start)
    taught = replace(start, teachers=(Fit("light", 32, epochs=1, bs=32, augment=None, amp=None),))
    monkeypatch.setattr(NetworkTeacher, "fit", lambda *a, **k: pytest.fail("a teacher was fitted first"))
    with pytest.raises(DataError, match="it may know what is held out here"):
        run(ds, taught, tmp_path / "run", seed=1, show=False)


@pytest.mark.parametrize("change", [lambda ds, how: (ds, replace(how, data=replace(BARE, near_duplicates=True))),
                                    lambda ds, how: (ds.assign(subject=np.arange(len(ds)) // 5), how)])
def test_what_is_held_out_is_compared_and_not_its_number_alone(tmp_path, change):
    ds, how = undivided(), Preset(data=BARE, student=Fit("light", 32))
    first, second = prepare(ds, how), prepare(*change(ds, how))
    path = saved_by(first, tmp_path / "net.safetensors")
    need_same_holdout(path, models.load_teacher(path), first, 0)
    assert set(first.valid.df.id) != set(second.valid.df.id)
    with pytest.raises(DataError, match="held-out ids"):
        need_same_holdout(path, models.load_teacher(path), second, 0)


@pytest.mark.parametrize("divided", [False, True])
def test_weights_of_a_run_at_another_size_are_known_by_the_same_images(tmp_path, divided):
    ds = undivided() if not divided else undivided().assign(split=["test" if k % 4 == 0 else "train" for k in range(160)])
    large, small = (Preset(data=BARE, student=Fit("light", side)) for side in (40, 24))
    first, second = prepare(ds, large), prepare(ds, small)
    torch.manual_seed(0)
    for side, learned in ((40, first), (24, second)):
        net = HyFER(variant="light").eval()
        net.input_size = side
        net.record = data_record(learned)
        for here in (first, second):
            need_same_holdout("net", net, here)
    darker = ds.replace(images=ds.array() // 2)
    with pytest.raises(DataError, match="fingerprint"):
        need_same_holdout("net", net, prepare(darker, large))
    with pytest.raises(DataError, match="held-out ids"):
        need_same_holdout("net", net, prepare(ds, large, 1))


def test_weights_of_a_study_are_taken_back_on_their_own_data(tmp_path):
    splits = prepare(undivided(), Preset(data=BARE, student=Fit("light", 32)))
    torch.manual_seed(0)
    models.save(HyFER(variant="light").eval(), tmp_path / "net.safetensors", seed=0, data=facts_of(splits))
    need_same_holdout("net", models.load_teacher(tmp_path / "net.safetensors"), splits, 0)


@pytest.mark.usefixtures("no_pictures")
def test_a_file_without_a_record_is_taken_and_the_run_and_its_report_say_so(tmp_path):
    "It may have been trained on the very images that are reported."
    ds, small = undivided(), Fit("light", 32, epochs=1, bs=32, augment=None, amp=None)
    torch.manual_seed(0)
    models.save(HyFER(variant="light").eval(), mute := str(tmp_path / "mute.safetensors"))
    known = str(saved_by(prepare(ds, Preset(data=BARE, student=small)), tmp_path / "known.safetensors"))
    for file, said in ((mute, True), (known, False)):
        for preset in (Preset(data=BARE, student=replace(small, network=file), adversarial=None),
                       Preset(data=BARE, student=small, teachers=(Fit(file, 32),), distillation=Distillation(views=1), adversarial=None)):
            out = tmp_path / f"{said}-{len(preset.teachers)}"
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                run(ds, replace(preset, evaluation=Evaluation(eps=())), out, show=False)
            assert any("does not say what it was trained on" in str(w.message) for w in told) == said
            facts, text = json.loads((out / "config.json").read_text())["facts"], headline_of(out)[1]
            assert facts["without a record"] == [Path(file).name] * said and Path(file).name in text
            assert ("which has no record of what it saw: it may know the reported" in text) == said
            assert ("taught or begun without a record" in load_hyfer(out / "student.safetensors").record) == said


@pytest.mark.usefixtures("no_pictures")
def test_what_the_fit_of_a_list_learned_from_is_counted_among_the_reported_images(tmp_path):
    "Weights of an uncleaned run know byte copies of reported images, whatever the cleaned run that goes on from them drops."
    ds = make_faces(400, seed=0, defects={"leak": .1}, balance="uniform")[0]
    same = {"evaluation": Evaluation(eps=()), "student": replace(TINY.student, keep="last")}
    first = small_run(ds, tmp_path / "a", data=replace(TINY.data, clean=False), **same)
    leaked = json.loads((first / "config.json").read_text())["facts"]["also learned from"]
    start = replace(same["student"], network=str(first / "student.safetensors"))
    with pytest.raises(DataError, match="trained on"):
        small_run(ds, tmp_path / "b", **same | {"student": start})
    assert not (tmp_path / "b.work").exists()                              # so that the corrected call finds nothing of it
    out = small_run(ds, tmp_path / "b", data=replace(TINY.data, held=str(first / "parts.csv")), **same | {"student": start})
    facts, text = json.loads((out / "config.json").read_text())["facts"], headline_of(out)[1]
    assert facts["known to the fit of data.held"] == leaked > 5 and f"{leaked} of the reported images, or a" in text
    assert (facts["also learned from"], facts["without a record"]) == (0, [])


@pytest.mark.usefixtures("no_pictures")
def test_copies_by_source_are_learned_from_and_a_source_need_be_no_image(tmp_path):
    ds = undivided()
    ds = ds.assign(split=np.where(np.arange(len(ds)) % 4 == 0, "test", "train"))
    train, test = (ds.df.id[ds.df.split == split].tolist() for split in ("train", "test"))
    source = ds.df.id.map(dict(zip(test[:20], train[:20]))).fillna("")
    out = small_run(ds.assign(source=source.to_numpy()), tmp_path / "a", data=replace(BARE, clean=False), evaluation=Evaluation(eps=()))
    assert json.loads((out / "config.json").read_text())["facts"]["also learned from"] == 20
    assert "20 of the reported images have a" in headline_of(out)[1]
    out = small_run(ds.assign(source=[f"clip{k}" for k in range(len(ds))]), tmp_path / "b", data=replace(BARE, targets="max"), evaluation=Evaluation(eps=()))
    assert json.loads((out / "config.json").read_text())["facts"]["also learned from"] == 0


def test_a_teacher_of_another_size_is_not_asked_about_the_student_s_images():
    ds = make_faces(160, seed=1, defects=None, size=48, balance="uniform")[0]
    for size, online in ((32, True), (48, False)):
        how = Preset(data=BARE, student=Fit("light", 32, epochs=1, bs=32, augment=None, amp=None), adversarial=None,
                     teachers=(Fit("light", size, epochs=1, bs=32, augment=None, amp=None),), distillation=Distillation(views=1, cached_views="fresh"))
        splits = prepare(ds, how)
        teacher, = make_teachers(how.teachers)
        teacher.fit(splits, 0)
        assert isinstance(cache_logits([teacher], splits, how)[0], OnlineLogits) == online, size


# ---- refused before the teachers are fitted ----

@pytest.mark.parametrize("changes, error", [
    (["student.soft=votes"], "no column 'vote_"), (["student.class_weights=[1,2]"], "class_weights"), (["student.amp=fp16"], "amp='fp16' on cpu"),
    (["student.network=landmarks"], "teacher='landmarks'"), (["quads={}", "student.bs=31"], "pairs need an even number"),
    (["adversarial.fit.stage_drop=0.1"], "stage_drop=0.1"), (["adversarial.fit.soft=votes"], "no column 'vote_")])
def test_a_student_that_cannot_be_fitted_is_refused_before_its_teachers(changes, error, tmp_path, monkeypatch):
    from fer_nb.config import override
    monkeypatch.setattr(pipeline, "fit_teachers", lambda *_: pytest.fail("teachers were fitted"))
    ds = make_faces(105, seed=0, defects=None, balance="uniform")[0]
    with pytest.raises((ConfigError, DataError), match=re.escape(error)):
        run(ds, override(QUICK, changes), tmp_path / "out", show=False)
    assert not list(tmp_path.iterdir())   # a corrected run begins without a trace of this one


def test_a_class_that_cleaning_takes_from_all_folds_is_refused():
    """Each image of fear is there as sad too, so cleaning drops both: a fold would test what it never saw."""
    ds = make_faces(300, seed=5, defects=None)[0].where(label=[e for e in EMOTIONS if e != "disgust"])
    fear = ds.where(label="fear")
    table = pd.concat([ds.df, fear.df.assign(id="copy " + fear.df.id, label="sad")], ignore_index=True).assign(split="train")
    ds = FERData(table, np.concatenate([ds.array(), fear.array()]), ds.labels, "twice")
    preset = replace(QUICK, data=Data(near_duplicates=False, folds=3))
    with pytest.raises(DataError, match="'fear' has 0 .*data.clean=false"):
        pipeline.fold_parts(ds, preset)
    assert len(pipeline.fold_parts(ds, replace(preset, data=replace(preset.data, clean=False)))) == 3


def test_a_class_without_faces_is_refused_where_these_are_dropped(monkeypatch):
    """Cleaning leaves it, the finder drops its training images: it would be reported and never learnt."""
    ds = make_faces(300, seed=5, defects=None)[0].where(label=[e for e in EMOTIONS if e != "disgust"])
    gone = ((ds.df.label == "fear") & (ds.df.split == "train")).to_numpy()
    monkeypatch.setattr(pipeline, "refined", lambda ds, *a, **k: ds.take(~gone).assign(face_status="ok"))
    preset = replace(QUICK, data=Data(near_duplicates=False, refine="drop"))
    with pytest.raises(DataError, match=rf"no training images left of fear of {gone.sum()} \(without a face {gone.sum()}\).*refine=keep"):
        pipeline.prepare(ds, preset)


def test_folds_of_two_generations_can_be_run(monkeypatch, tmp_path):
    seen, both = [], replace(QUICK, data=replace(QUICK.data, folds=2))
    monkeypatch.setattr(pipeline, "run", lambda ds, preset, *_, **__: seen.append(preset) or (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        pipeline.run_folds(make_faces(400, seed=0, defects=None, balance="uniform")[0], replace(both, born_again=both), tmp_path / "out", show=False)
    assert seen[0].born_again.data == seen[0].data and seen[0].data.folds is None


def test_what_the_precision_was_is_known_of_folds_and_records(tmp_path, monkeypatch):
    from fer_nb.launch import machine
    preset, ds = replace(QUICK, teachers=(), adversarial=None, data=replace(QUICK.data, folds=2)), make_faces(400, seed=0, defects=None, balance="uniform")[0]
    real, done = pipeline.run, []

    def once(*args, **how):
        if done:
            raise InterruptedError
        done.append(1)
        return real(*args, **how)

    monkeypatch.setattr(pipeline, "run", once)
    with pytest.raises(InterruptedError):
        pipeline.run_folds(ds, preset, tmp_path / "out", show=False)
    with machine(amp="bf16"), pytest.raises(StoreError, match="amp is 'absent' there and 'bf16' here"):
        pipeline.run_folds(ds, preset, tmp_path / "out", show=False)


def test_a_record_names_every_start_and_the_precision(tmp_path):
    from fer_nb.launch import machine
    ds = make_faces(105, seed=0, defects=None, balance="uniform")[0]
    with machine(amp="bf16"):
        out = run(ds, replace(QUICK, teachers=(), adversarial=None), tmp_path / "out", show=False)
    config = json.loads((out / "config.json").read_text())
    assert config["record"]["amp"] == "bf16" and len(config["record"]["starts"]) == 1
    assert "within machine(amp='bf16')" in unescape((out / "report.html").read_text())


def test_what_a_network_may_cost_is_counted_in_images(monkeypatch):
    class Answers(torch.nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right
    monkeypatch.setattr(pipeline, "between", lambda a, b, k: b if k == 1 else a)
    monkeypatch.setattr(pipeline, "predict_logits", lambda net, ds: np.eye(2)[(np.arange(100) >= net.right).astype(int)])
    valid = type("Valid", (), {"targets": lambda self: np.zeros(100, int), "__len__": lambda self: 100})()
    for right in range(5, 101):
        assert pipeline.within_cost(Answers(right), Answers(right - 5), valid, .05)[1] == 1.0, right
        assert pipeline.within_cost(Answers(right), Answers(right - 5), valid, .04)[1] != 1.0


def test_faces_are_looked_for_by_as_many_processes_as_are_asked_for(monkeypatch):
    from fer_nb.launch import machine
    seen = []
    monkeypatch.setattr(pipeline.FaceRefiner, "refine", lambda self, ds, workers: seen.append(workers) or ds.assign(face_status="ok"))
    for workers in (None, 0, 4):
        with machine(workers=workers):
            pipeline.refined(make_faces(20, seed=0)[0], replace(TINY, data=Data(refine="keep")))
    assert seen == [1, 1, 4]


def test_work_begun_with_other_workers_goes_on(tmp_path, monkeypatch):
    from fer_nb.config import override, to_dict
    from fer_nb.launch import precision
    ds = make_faces(300, seed=0)[0]
    preset = override(replace(QUICK, teachers=(), adversarial=None), ["student.workers=2"])
    settings = {k: v for k, v in to_dict(preset).items() if k != "evaluation"}   # as versions did that counted the workers
    Store(tmp_path / "out.work", {"settings": settings, "seed": 0, **resized(ds, preset.student.size).identity(), **precision()})
    monkeypatch.setattr(pipeline, "fit_teachers", lambda *_: (_ for _ in ()).throw(InterruptedError))
    for changes in ([], ["student.workers=0"]):
        with pytest.raises(InterruptedError):
            run(ds, override(preset, changes), tmp_path / "out", show=False)
    with pytest.raises(StoreError, match="student.lr"):
        run(ds, override(preset, ["student.lr=0.5"]), tmp_path / "out", show=False)


def test_folds_of_another_file_of_weights_are_not_averaged(tmp_path, monkeypatch):
    """A finished fold is of the file that lay there then; of a version that did not write down which, it is taken up."""
    ds, done = make_faces(400, seed=0, defects=None, balance="uniform")[0], []
    (file := tmp_path / "t.safetensors").write_bytes(b"first")
    preset = replace(QUICK, teachers=(Fit(str(file)),), adversarial=None, data=replace(QUICK.data, folds=2))

    def one(ds, preset, out, *args, **how):
        if done:
            raise InterruptedError
        done.append(out)
        out.mkdir(parents=True)
        (out / "results.csv").write_text("value\n1\n")

    monkeypatch.setattr(pipeline, "run", one)
    monkeypatch.setattr(pipeline, "need_networks", lambda preset: None)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            pipeline.run_folds(ds, preset, tmp_path / "out", show=False)
    file.write_bytes(b"second")
    with pytest.raises(StoreError, match=r"settings\.teachers\.0\.sha256 is '\w+' there and '\w+' here"):
        pipeline.run_folds(ds, preset, tmp_path / "out", show=False)
    identity = json.loads((path := tmp_path / "out.work/identity.json").read_text())
    del identity["settings"]["teachers"][0]["sha256"]
    path.write_text(json.dumps(identity))
    with pytest.raises(InterruptedError):
        pipeline.run_folds(ds, preset, tmp_path / "out", show=False)
    assert len(done) == 1


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("clean", [False, True])
def test_images_without_a_face_are_counted_apart(clean, monkeypatch):
    ds = make_faces(300, seed=0)[0]
    gone = set(ds.df.id[ds.df.split == "train"].iloc[:20])
    monkeypatch.setattr(pipeline, "refined", lambda ds, *args: ds.take(~ds.df.id.isin(gone).to_numpy()).assign(face_status="ok"))
    preset = replace(QUICK, teachers=(), data=replace(QUICK.data, refine="drop", clean=clean, targets=None))
    splits = prepare(ds, preset)
    said = pipeline.RunResults(ds, splits, preset, 0, {}, {}, pd.DataFrame()).data_section().text
    before, left = int((splits.audit.ds.df.split == "train").sum()), len(splits.train) + len(splits.valid)
    assert f"{before - left - 20:,} training images were dropped as copies" in said and "20 more, in which no face was found, were left out" in said
    assert (before - left == 20) == (not clean)


def test_reported_images_without_a_face_are_told_by_class(tmp_path, monkeypatch):
    """Images that `data.refine` left out of the test split make it another test set: headline, data section and config.json say so."""
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    there = ds.df[ds.df.split == "test"]
    gone = {*there.id[there.label == "sad"].iloc[:3], *there.id[there.label == "fear"].iloc[:1]}
    monkeypatch.setattr(pipeline, "refined", lambda ds, *args: ds.take(~ds.df.id.isin(gone).to_numpy()).assign(face_status="ok"))
    preset = replace(QUICK, teachers=(), adversarial=None, data=replace(QUICK.data, refine="drop", targets=None))
    out, counts = run(ds, preset, tmp_path / "a", show=False), there.label.value_counts()
    said = unescape((out / "report.html").read_text())
    each = f"4 of {len(there)} images (sad 3 of {counts.sad}, fear 1 of {counts.fear})"
    assert f"{each} of the test split, in which no face was found, were left out and are in no figure (data.refine=drop)" in said
    assert "Images in which no face was found, left out" in said and f"3 of {counts.sad}" in said
    missed = pd.DataFrame(json.loads((out / "config.json").read_text())["facts"]["images without a face"])
    assert missed.missed.sum() == 4 and missed[(missed.label == "sad") & (missed.split == "test")].n.item() == counts.sad
    whole = ds.assign(face_status=np.where(ds.df.id.isin(gone), "no_face", "ok"))   # "keep": nobody is gone, and it is said
    monkeypatch.setattr(pipeline, "refined", lambda ds, *args: whole.replace(images=ds.array()))
    kept = replace(preset, data=replace(preset.data, refine="keep"))
    found = pipeline.RunResults(ds, prepare(ds, kept), kept, 0, {}, {}, pd.DataFrame())
    assert found.faces_said("test").startswith(f"{each} of the test split, in which no face was found, were taken whole")
    plain = replace(preset, data=replace(preset.data, refine=None))
    assert not len(pipeline.RunResults(ds, prepare(ds, plain), plain, 0, {}, {}, pd.DataFrame()).faceless())


@pytest.mark.usefixtures("no_pictures")
def test_an_attack_named_twice_is_measured_once(monkeypatch):
    from fer_nb.plan import Images, parts_of
    asked, how = [], replace(TINY, teachers=(), adversarial=replace(TINY.adversarial, attacks=("fgsm", "fgsm", "pgd")))
    once = replace(how, adversarial=replace(how.adversarial, attacks=("fgsm", "pgd")))
    ds = make_faces(140, seed=0, defects=None, balance="uniform")[0]
    splits, net = prepare(ds, replace(how, data=replace(how.data, targets=None))), HyFER(7, 1, "light", labels=EMOTIONS).eval()
    real = pipeline.robust_curve
    monkeypatch.setattr(pipeline, "robust_curve", lambda *args, **more: asked.append(args[2]) or real(*args, **more))
    found = pipeline.RunResults(ds, splits, how, 0, {}, {"HyFER, no teacher": net}, pd.DataFrame())
    found.evaluate()
    assert asked == ["fgsm", "pgd"] and found.robustness_section().tables
    counted = [parts_of(p, Images(360, 540, 40, 100))[-1].passes for p in (how, once)]
    assert counted[0] == counted[1]


def test_copies_that_came_with_the_data_are_neither_dropped_nor_added():
    ds = undivided()
    copies = ds.take(np.arange(40)).df.assign(source=lambda df: df.id, id=lambda df: df.id + " mirrored")
    both = FERData(pd.concat([ds.df.assign(source=ds.df.id), copies]), np.concatenate([ds.array(), ds.array()[:40, :, ::-1]]), ds.labels)
    how = Preset(data=replace(BARE, clean=False), student=Fit("light", 32))
    splits = prepare(both, how)
    left = splits.audit.ds.where(split="train")
    gone = len(left) - len(splits.train) - len(splits.valid)   # copies of what is held out
    text = pipeline.RunResults(both, splits, how, 0, {}, {}, pd.DataFrame()).data_section().text
    assert f". {gone} training images were dropped" in text and " 0 transformed copies were added" in text
    assert (splits.train.df.source != splits.train.df.id).any() and 0 < gone < 40


def test_faces_that_were_cut_out_before_are_dropped_where_there_is_none():
    ds = undivided(face_status=["no_face" if k % 8 == 0 else "ok" for k in range(160)])
    kept, dropped, stopped = (Preset(data=replace(BARE, refine=how), student=Fit("light", 32)) for how in ("keep", "drop", "error"))
    without = {*ds.df.id[ds.df.face_status == "no_face"]}
    assert without <= {*pipeline.refined(ds, kept).df.id}
    splits = prepare(ds, dropped)
    assert not without & {*splits.train.df.id, *splits.valid.df.id, *splits.test.df.id}
    with pytest.raises(ImageError, match="20 images without a face"):
        prepare(ds, stopped)

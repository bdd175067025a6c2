"""The exported explorer: its table against plain loops, neighbours against scikit-learn, the widget without a screen."""
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from fer_nb import explore
from fer_nb.audit import KINDS, Audit, audit
from fer_nb.core import EMOTIONS, ConfigError, DataError, LabelError
from fer_nb.data import FERData
from fer_nb.explore import (Explorer, Neighbours, audit_findings, bars_html, findings_html, gallery_html, gradcam_png,
                            nearest_features, network_features, prediction_table, select_predictions)
from fer_nb.models import HyFER, HyFERConfig, SQSNet, SQSNetConfig, Teacher
from fer_nb.synth import make_faces


@pytest.fixture(scope="module")
def faces():
    return make_faces(160, seed=3, defects={"exact": .1, "multilabel": .1, "leak": .1})[0]


@pytest.fixture(scope="module")
def report(faces):
    return audit(faces)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return HyFER(in_chans=1, variant=HyFERConfig(8, ((8, 2, 2), (8, 2, 2)), 16, 1, 1, 16, True, "relu", 48)).eval()


@pytest.fixture(scope="module")
def logits(faces):
    return np.random.default_rng(0).normal(size=(len(faces), 7)) * 2


def some(n, label="happy", **columns):
    "Noise that passes for images."
    df = pd.DataFrame({"id": [f"im{k}" for k in range(n)], "label": label, "split": "train"} | columns)
    return FERData(df, np.random.default_rng(1).integers(0, 256, (n, 48, 48), dtype=np.uint8))


# ---- the table ----

def test_table_by_hand(faces, logits, report):
    table = prediction_table(faces, logits, report)
    for k in (0, 7, len(faces) - 1):
        p = np.exp(logits[k].astype(float))
        p /= p.sum()
        row, y = table.loc[k], EMOTIONS.index(faces.df.label[k])
        assert (row.predicted, row.right, row.true) == (EMOTIONS[p.argmax()], p.argmax() == y, EMOTIONS[y])
        np.testing.assert_allclose([row.confidence, row.loss, row.doubt],
                                   [p.max(), -np.log(p[y]), -(p * np.log(p)).sum() / np.log(7)], rtol=1e-9)
        kinds = set(report.issues.kind[report.issues.id == row.id])
        assert set(filter(None, row.found.split("+"))) == kinds
    assert (table.id == faces.df.id).all() and table.doubt.between(0, 1).all()


def test_table_of_certainty_has_no_nan():
    "A probability of 0 has no logarithm; entropy and loss stay finite as far as float64 reaches."
    table = prediction_table(some(2), np.array([[0, 0, 0, 900, 0, 0, 0], [900, 0, 0, 0, 0, 0, 0.]]))
    assert table.loss.tolist() == [0, 900] and table.doubt.tolist() == [0, 0] and table.confidence.tolist() == [1, 1]


def test_table_of_nothing(student):
    none = some(1).take([])
    for given_ in (student, np.empty((0, 7))):
        table = prediction_table(none, given_, audit(none, search=None))
        assert len(table) == 0 and len(select_predictions(table, true="sad", finding="any", sort="loss")) == 0


def test_what_does_not_belong_together_is_refused(faces, logits, student, report):
    with pytest.raises(ConfigError, match=r"\(159, 7\) for 160 images"):
        prediction_table(faces, logits[1:])
    with pytest.raises(ConfigError, match="8"):
        prediction_table(faces, np.zeros((len(faces), 8)))
    with pytest.raises(ConfigError, match="NaN"):
        prediction_table(faces, np.full((len(faces), 7), np.nan))
    with pytest.raises(DataError, match="does not know image 'im0'"):
        prediction_table(some(3), np.zeros((3, 7)), report)
    turned = faces.replace(labels=EMOTIONS[::-1])
    with pytest.raises(LabelError, match="another order"):
        prediction_table(turned, student)


# ---- filters ----

conditions = st.fixed_dictionaries({}, optional={
    "true": st.sampled_from(EMOTIONS), "predicted": st.sampled_from(EMOTIONS), "right": st.booleans(),
    "split": st.sampled_from(["train", "valid", "test"]), "finding": st.sampled_from(["any", "none", *KINDS]),
    "confidence": st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda c: tuple(sorted(c))),
    "sort": st.sampled_from(["confidence", "loss", "doubt"]), "descending": st.booleans()})


@given(filters=conditions)
@settings(max_examples=60, deadline=None)
def test_select_is_a_loop_with_conditions(faces, logits, report, filters):
    table = prediction_table(faces, logits, report)
    f = filters

    def wanted(r):
        found = r.found.split("+") if r.found else []
        finding = {"any": bool(found), "none": not found}.get(f.get("finding"), f.get("finding") in found)
        low, high = f.get("confidence", (0, 1))
        return (low <= r.confidence <= high and (finding or "finding" not in f)
                and all(getattr(r, c) == f[c] for c in ("true", "predicted", "right", "split") if c in f))
    got = select_predictions(table, **f)
    assert sorted(got.index) == [r.Index for r in table.itertuples() if wanted(r)]
    order = got[f["sort"]].to_numpy() if "sort" in f else got.index.to_numpy()
    assert (np.diff(order) * (-1 if "sort" in f and f.get("descending", True) else 1) >= 0).all()


@pytest.mark.parametrize("filters, error, text", [
    ({"true": "smug"}, ConfigError, "true='smug'; 'angry'"), ({"predicted": ""}, ConfigError, "predicted=''"),
    ({"right": "yes"}, ConfigError, "right='yes'; True or False"), ({"split": "dev"}, ConfigError, "split='dev'"),
    ({"sort": "id"}, ConfigError, "sort='id'; 'confidence', 'loss' or 'doubt'"),
    ({"finding": "ugly"}, ConfigError, "finding='ugly'; 'any', 'none', 'duplicate'"),
    ({"confidence": (-.1, 1)}, ConfigError, "confidence"), ({"confidence": .5}, ConfigError, "confidence=0.5; two numbers expected"),
    ({"confidence": (0, np.nan)}, ConfigError, "confidence")])
def test_unknown_values_are_no_empty_page(faces, logits, report, filters, error, text):
    with pytest.raises(error, match=text):
        select_predictions(prediction_table(faces, logits, report), **filters)
    with pytest.raises(DataError, match="there is no audit"):
        select_predictions(prediction_table(faces, logits), finding="any")


def test_as_large_as_fer2013():
    "A page of 32,298 filtered images decodes what it shows."
    n = 32_298
    rng = np.random.default_rng(0)
    ds = FERData(pd.DataFrame({"id": [f"im{k}" for k in range(n)], "label": np.array(EMOTIONS)[rng.integers(0, 7, n)],
                               "split": np.where(rng.random(n) < .9, "train", "valid")}), [Path(f"none/{k}.png") for k in range(n)])
    issues = pd.DataFrame({"id": [f"im{k}" for k in range(0, n, 3)], "kind": "label_error", "score": .5, "partner": "",
                           "how": "votes", "suggested": "sad"})
    report = Audit(ds, issues, np.arange(n), pd.DataFrame(columns=["i", "j", "score", "how"]))
    explorer = Explorer(ds, rng.normal(size=(n, 7)), audit=report)
    explorer.show(right=False, finding="label_error", confidence=(.3, .9), sort="loss")
    explorer.look(int(explorer.rows.index[0]))
    assert explorer.gallery.content.count("cannot be read") == 30             # the files are none; nothing else was decoded
    assert "rather sad" in explorer.details.content


# ---- the audit ----

def test_findings_go_both_ways(faces, report):
    issues = report.issues
    for id in faces.df.id:
        found = audit_findings(report, id)
        own, others = issues[issues.id == id], issues[issues.partner == id]
        assert {(f.kind, f.other) for f in found.itertuples()} == {*zip(own.kind, own.partner), *zip(others.kind, others.id)}
        assert found.own.sum() == len(own) and not found.duplicated(["kind", "other"]).any()
    with pytest.raises(DataError, match="'nobody'"):
        audit_findings(report, "nobody")


def test_only_partners_that_are_here_can_be_opened(faces, report):
    leak = report.issues[report.issues.kind == "leak"].iloc[0]
    test = faces.where(split=["valid", "test"])
    assert "data-go" in findings_html(report, faces, leak.id) and "data-go" not in findings_html(report, test, leak.id)
    fine = next(i for i in faces.df.id if i not in {*report.issues.id, *report.issues.partner})
    assert "no issue" in findings_html(report, faces, fine)


# ---- neighbours ----

def test_neighbours_of_every_kind_of_network(faces):
    from sklearn.neighbors import NearestNeighbors
    torch.manual_seed(0)
    few = faces.take(range(20))
    pair = SQSNet(7, SQSNetConfig("test_efficientnet", "swin_tiny_patch4_window7_224", 32, 48, "residual", 2, {"output_stride": 8},
                                  {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 3}), pretrained=False)
    teachers = [Teacher(timm.create_model(n, num_classes=7, **kw), 64) for n, kw in
                (("mobilenetv3_small_050", {}), ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}))]
    for model in (HyFER(in_chans=1), pair, *teachers):
        model.eval()
        f = network_features(model, few, bs=7)
        np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, rtol=1e-5)
        distance, row = NearestNeighbors(n_neighbors=4, metric="cosine").fit(f[5:]).kneighbors(f[:5])
        for k in range(5):
            np.testing.assert_allclose(nearest_features(f[k], f[5:], 4).distance, distance[k], atol=1e-5)
        assert f.dtype == np.float32 and len(nearest_features(f[0], f, 99)) == 20
        assert not model.training and all(p.grad is None for p in model.parameters())


def test_nearest_prefers_the_first_of_equals_and_leaves_one_out():
    f = np.eye(3, dtype=np.float32)[[0, 1, 0, 0]]
    assert nearest_features(f[0], f, 3).row.tolist() == [0, 2, 3] and nearest_features(f[0], f, 9, without=2).row.tolist() == [0, 3, 1]
    assert nearest_features(f[0], -f, 1).distance.tolist() == [1] and nearest_features(f[0], -f[:1], 1).distance.tolist() == [2]
    for k in (0, -1):
        with pytest.raises(ConfigError, match="k="):
            nearest_features(f[0], f, k)


def test_training_is_read_once_and_an_image_is_not_its_own_neighbour(faces, student, monkeypatch):
    calls, done = [], []
    plain = explore.network_features
    monkeypatch.setattr(explore, "network_features", lambda m, ds, *a, **k: calls.append(len(ds)) or plain(m, ds, *a, **k))
    train = faces.where(split="train")
    neighbours = Neighbours(student, train, bs=50)
    assert not neighbours.ready and not calls
    neighbours.read(done.append)
    for row in (0, 3):
        near = neighbours.of(train, row)
        assert train.df.id[row] not in set(near.id) and near.distance.is_monotonic_increasing and len(near) == 8
        assert (train.df.label[near.row].to_numpy() == near.label).all()
    assert calls == [len(train), 1, 1] and done == [*range(50, len(train), 50), len(train)]


def test_networks_without_features(faces, student):
    class Plain(nn.Sequential):
        labels = EMOTIONS
    with pytest.raises(ConfigError, match="Plain has no forward_head"):
        Neighbours(Plain(nn.Flatten(), nn.Linear(48 * 48, 7)), faces)

    class Broken(HyFER):
        def forward_head(self, features, pre_logits=False):
            return super().forward_head(features, pre_logits) * float("nan")
    broken = Broken(in_chans=1, variant=HyFERConfig(8, ((8, 2, 2), (8, 2, 2)), 16, 1, 1, 16, True, "relu", 48))
    with pytest.raises(ConfigError, match="Broken: features of image 0 are not finite"):
        network_features(broken, faces.take([0]))
    with pytest.raises(LabelError):
        Neighbours(student, faces.replace(labels=EMOTIONS[::-1]))
    with pytest.raises(ConfigError, match="train=0"):
        Neighbours(student, faces.take([]))


# ---- images and words ----

class Tags(HTMLParser):
    "What HTML is made of."

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)

    def handle_data(self, data):
        self.words += data


def test_names_of_others_are_words(student):
    evil = "<script>alert(1)</script>\"'>"
    labels = (evil, *EMOTIONS[1:])
    df = some(3).df.assign(id=[f"{evil}{k}" for k in range(3)], label=evil)
    ds = FERData(df, np.zeros((3, 48, 48), np.uint8), labels)
    model = HyFER(in_chans=1, variant=HyFERConfig(8, ((8, 2, 2), (8, 2, 2)), 16, 1, 1, 16, True, "relu", 48))
    model.labels = labels
    explorer = Explorer(ds, model, train=ds, audit=audit(ds))
    explorer.look(1)
    explorer.wait()
    for text in (explorer.gallery.content, explorer.details.content):
        tags = Tags(text)
        assert "script" not in tags.found and evil in tags.words
        assert set(tags.found) <= {"div", "button", "img", "span", "br", "b", "h4", "table", "tr", "td", "i", "p"}


def test_pages_draw_what_they_show(faces, logits):
    table = prediction_table(faces, logits)
    drawn = Tags(gallery_html(faces, table.iloc[10:15])).found
    assert (drawn.count("img"), drawn.count("button")) == (5, 5) and "No image" in gallery_html(faces, table[:0])
    assert bars_html(("a", "b"), np.array([.2, .8]), "a").count("width:80.0%") == 1


def test_gradcam_leaves_no_figure(faces, student):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    assert gradcam_png(student, faces, 0, 96).startswith("data:image/png;base64,") and plt.get_fignums() == before
    assert all(p.grad is None for p in student.parameters())


# ---- the widget ----

def test_controls_and_show_do_the_same(faces, student, report):
    explorer = Explorer(faces, student, audit=report, per_page=7)
    explorer.turn(2)
    for name, value in (("true", "happy"), ("right", False), ("finding", "any"), ("confidence", (.1, .9)), ("sort", "doubt")):
        explorer.controls[name].value = value
    wanted = dict(true="happy", right=False, finding="any", confidence=(.1, .9), sort="doubt")
    pd.testing.assert_frame_equal(explorer.rows, select_predictions(explorer.table, **wanted))
    assert explorer.page == 0
    other = Explorer(faces, student, audit=report)
    other.show(**wanted)
    pd.testing.assert_frame_equal(explorer.rows, other.rows)
    other.show(true=None, right=None, finding=None, sort=None, confidence=(0, 1))
    assert len(other.rows) == len(faces) and f"{len(faces)} of {len(faces)} images" in other.count.value
    assert set(explorer.controls) == set(select_predictions.__annotations__) - {"table", "return"}


def test_turning_stops_at_the_ends(faces, logits):
    explorer = Explorer(faces, logits, per_page=50)
    seen = []
    for page, disabled in ((-3, (True, False)), (1, (False, False)), (99, (False, True))):
        explorer.turn(page)
        seen.append(explorer.page)
        assert (explorer.back.disabled, explorer.forth.disabled) == disabled
    assert seen == [0, 1, 3] and explorer.gallery.content.count("<img") == len(faces) - 150
    explorer.back.click(), explorer.back.click(), explorer.forth.click()
    assert explorer.page == 2


def test_only_what_was_given_is_shown(faces, logits, student, report):
    bare = Explorer(faces, logits)
    bare.look(4)
    assert "finding" not in bare.controls and "Grad-CAM" not in bare.details.content and "<h4>the" not in bare.details.content
    given_ = Explorer(faces, student, logits=logits)
    pd.testing.assert_frame_equal(given_.table, bare.table)
    given_.look(4)
    assert "Grad-CAM" in given_.details.content and "nearest" not in given_.details.content


def test_clicks_that_mean_nothing(faces, logits):
    explorer = Explorer(faces, logits)
    for message in ({}, {"go": None}, {"go": "x"}, {"go": "-1"}, {"go": "160"}, {"go": 3}, "go", {"go": "²"}):
        explorer._clicked(message)
        assert explorer.opened is None
    explorer._clicked({"go": "159"})
    assert explorer.opened == 159 and faces.df.id[159] in explorer.details.content
    for row in (-1, 160):
        with pytest.raises(KeyError, match=str(row)):
            explorer.look(row)


def test_errors_appear_in_their_place(faces, student, tmp_path, monkeypatch):
    class Flat(nn.Sequential):  # without maps, with features
        labels, in_chans = EMOTIONS, 1

        def forward_features(self, x):
            return x.flatten(1)

        def forward_head(self, f, pre_logits=False):
            return f if pre_logits else self[1](f)
    flat = Explorer(faces, Flat(nn.Flatten(), nn.Linear(48 * 48, 7)), train=faces)
    flat.look(0)
    flat.wait()
    assert "no layer with a map" in flat.details.content and "distance" in flat.details.content

    failing = Explorer(faces, student, train=faces.where(split="train"))
    monkeypatch.setattr(Neighbours, "read", lambda *_: 1 / 0)
    failing.look(0)
    failing.wait()
    assert "ZeroDivisionError" in failing.details.content and failing.progress.layout.display == "none"

    from PIL import Image
    Image.fromarray(faces.image(0)).save(tmp_path / "a.png")
    files = FERData(some(2).df, [tmp_path / "a.png", tmp_path / "gone.png"])
    explorer = Explorer(files, student, logits=np.zeros((2, 7)))
    assert explorer.gallery.content.count("cannot be read") == 1
    explorer.look(1)
    assert "gone.png: no such file" in explorer.details.content


def test_reading_ends_with_the_program():
    "A kernel that is shut down while the training images are read ends at the next batch without a traceback."
    code = """import numpy as np
from fer_nb.explore import Explorer, Neighbours
from fer_nb.models import HyFER
from fer_nb.synth import make_faces
faces = make_faces(120, seed=0)[0]
model = HyFER(in_chans=1)
explorer = Explorer(faces, model, train=faces, logits=np.zeros((120, 7)))
explorer.neighbours = Neighbours(model, faces, bs=2)
explorer.look(0)
assert not explorer.neighbours.ready"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_explorer_refuses(faces, logits, student):
    for make, error, text in (
            (lambda: Explorer(faces, logits, train=faces), ConfigError, "ndarray has no forward_head"),
            (lambda: Explorer(faces, logits[1:]), ConfigError, "160 images"),
            (lambda: Explorer(faces, student, logits=logits[1:]), ConfigError, "160 images"),
            (lambda: Explorer(faces, student, train=faces.replace(labels=EMOTIONS[::-1])), LabelError, "labels"),
            (lambda: Explorer(faces.replace(labels=EMOTIONS[::-1]), student), LabelError, "another order"),
            (lambda: Explorer(faces, logits, per_page=0), ConfigError, "per_page=0"),
            (lambda: Explorer(faces, logits, per_page=2.5), ConfigError, "per_page=2.5; a whole number"),
            (lambda: nearest_features(logits, logits, 2.5), ConfigError, "k=2.5; a whole number"),
            (lambda: Explorer(faces, logits).show(blur=1), TypeError, "argument 'blur'"),
            (lambda: Explorer(faces, logits).show(finding="leak"), DataError, "there is no audit")):
        with pytest.raises(error, match=text):
            make()


def test_a_file_of_the_same_name_from_elsewhere_is_a_neighbour(faces, student):
    train = faces.where(split="train")
    neighbours = Neighbours(student, train)
    elsewhere = train.take([5]).assign(id=[train.df.id[0]], split="test")     # the pixels of one image, the name of another
    near = neighbours.of(elsewhere, 0)
    assert train.df.id[5] in near.id[near.distance < 1e-5].tolist()


@pytest.mark.parametrize("changed", [{"split": "valid"}, {"label": "sad"}])
def test_an_image_under_another_split_or_label_is_not_its_own_neighbour(faces, student, changed):
    train = faces.where(split="train").where(label="happy")
    near = Neighbours(student, train).of(train.assign(**changed), 3, k=len(train))
    assert train.df.id[3] not in set(near.id) and len(near) == len(train) - 1


def test_logits_in_any_order_of_memory(faces, logits):
    z = logits.astype(np.float32)
    backwards = faces.take(np.arange(len(faces))[::-1])
    table = prediction_table(backwards, z[::-1])
    assert table.confidence.tolist() == prediction_table(faces, z).confidence.tolist()[::-1]
    assert len(Explorer(backwards, z[::-1]).rows) == len(faces)


def test_an_onnx_file_is_explored_without_gradients(faces):
    from importlib.resources import files
    pytest.importorskip("onnxruntime")
    from fer_nb.export import OnnxModel
    explorer = Explorer(faces, OnnxModel(files("fer_nb") / "weights" / "hyfer.onnx"))
    explorer.look(3)
    assert "OnnxModel has no gradients; Grad-CAM needs a network in PyTorch" in explorer.details.content and "<table>" in explorer.details.content


def test_a_finding_that_the_audit_does_not_look_for_is_named(faces, logits):
    explorer = Explorer(faces, logits, audit=audit(faces, search=None))
    missing = next(kind for kind in KINDS if kind not in explorer.audit.kinds)
    before = {name: control.value for name, control in explorer.controls.items()}
    with pytest.raises(ConfigError, match=f"finding='{missing}'"):
        explorer.show(true="happy", finding=missing)
    assert before == {name: control.value for name, control in explorer.controls.items()}


def test_none_sets_no_condition(faces, logits):
    table, explorer = prediction_table(faces, logits), Explorer(faces, logits)
    every = dict.fromkeys(("true", "predicted", "right", "confidence", "split", "finding", "sort", "descending"))
    pd.testing.assert_frame_equal(select_predictions(table, **every), table)
    explorer.show(right=False, confidence=np.array([.2, .9]), sort="loss", descending=False)
    wanted = select_predictions(table, right=False, confidence=(.2, .9), sort="loss", descending=False)
    assert explorer.rows.id.tolist() == wanted.id.tolist() and 0 < len(wanted) < len(table)
    with pytest.raises(ConfigError, match="confidence='all'; two numbers expected"):
        explorer.show(right=True, confidence="all")
    assert explorer.rows.id.tolist() == wanted.id.tolist()
    explorer.show(**every)
    assert explorer.rows.id.tolist() == table.id.tolist() and explorer.controls["descending"].value is True

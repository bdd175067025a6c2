"""The bench: answers checked and counted against plain loops, models that fail, rows as files, predictions without a model."""
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import f1_score

from fer_nb.bench import (Answers, Contender, StressTest, ModelError, Worker, are_crops, bench, checked, contender, figures, found_scores, leaderboard, over_labels,
                          read_predictions, read_rows, paired_tests, voters)
from fer_nb.cli import VERBS, main
from fer_nb.compare import holm, mcnemar
from fer_nb.core import EMOTIONS, ConfigError, DataError, file_sha256
from fer_nb.data import FERData, VOTE_COLUMNS
from fer_nb.metrics import scores
from fer_nb.robustness import corrupt, noise_keys
from fer_nb.synth import make_faces

TOYS = """
import functools, os, subprocess, sys, time, numpy as np
LABELS = ["Happiness", "Sadness", "Anger", "Disgust", "Fear", "Surprise", "Neutral"]
asked = 0
def mean(images): return np.array([np.roll(np.r_[.4, np.full(6, .1)], int(im.mean()) % 7) for im in images])
def half(images): return [None if im.mean() % 2 < 1 else dict(zip(LABELS, row)) for im, row in zip(images, mean(images))]
def whole(images, cropped=False): return mean(images) if cropped else [None] * len(images)
def percent(images): return mean(images) * 100
def few(images): return mean(images)[:, :3]
def short(images): return mean(images)[1:]
def odd(images): return mean(images) * np.nan
def sums(images): return mean(images) * 3
def names(images): return [{"joy": .5, "boredom": .5}] * len(images)
def loud(images):
    print("a line\\\\n{}" * 3); os.system("echo from a child")
    return mean(images)
def leaves(images): os._exit(7)
def raises(images): raise RuntimeError("no such layer")
def sleeps(images): time.sleep(600)
def another(images): return np.random.default_rng().dirichlet(np.ones(7), len(images))
def two():
    import torch
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48 * 48, 2))
    torch.manual_seed(0); torch.nn.init.normal_(net[1].weight); torch.nn.init.constant_(net[1].bias, 0)
    net.labels, net.input_size, net.in_chans = ("happy", "sad"), 48, 1
    return net
def told(f):
    @functools.wraps(f)
    def inner(*a, **k): return f(*a, **k)
    return inner
wrapped, bound = told(whole), functools.partial(whole)
class Called:
    def __call__(self, images, cropped=False): return whole(images, cropped)
called = Called()
def frame(images):
    import pandas as pd
    return pd.DataFrame(mean(images), columns=LABELS)[sorted(LABELS)]
def sorted_dicts(images): return [dict(sorted(zip(LABELS, row), key=lambda kv: -kv[1])) for row in mean(images)]
def nameless(images): return [dict(zip(LABELS, row)) for row in mean(images)]
def shrinks(images):
    global asked
    asked += 1
    return [{k: 1 / (9 - asked) for k in "abcdefgh"[:9 - asked]}] * len(images)
def reads(images):
    assert not sys.stdin.read() and not os.system("cat > /dev/null")
    return mean(images)
def parent(images):
    subprocess.Popen(["sleep", "321"])
    return mean(images)
def forks(images):
    subprocess.Popen(["sleep", "321"])
    os._exit(7)
def counted(images):
    with open("asked.txt", "a") as file: file.write(f"{len(images)} ")
    return mean(images)
"""


@pytest.fixture(autouse=True)
def toys(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def faces():
    return make_faces(90, seed=2, size=48, defects=None, balance="uniform")[0].assign(split="test")


def as_toy(ds, name):
    "What the toy says, by a plain loop: positions in the labels of the data, -1 without a face."
    order = ["happy", "sad", "angry", "disgust", "fear", "surprise", "neutral"]
    said = []
    for k in range(len(ds)):
        mean = ds.image(k).mean()
        no = name == "half" and mean % 2 < 1
        said.append(-1 if no else ds.labels.index(order[int(mean) % 7]))
    return np.array(said)


@pytest.mark.parametrize("name", ["mean", "half", "percent", "loud"])
def test_a_row_is_what_a_loop_counts(faces, tmp_path, name):
    table = bench(faces, [contender(f"toys:{name}")], tmp_path / "rows")
    said, y = as_toy(faces, name), faces.targets()
    assert set(table.column) == {"own finder", "as they are"} and (table.n == 90).all() and "fault" not in table
    assert table["accuracy %"].tolist() == pytest.approx([100 * np.mean(said == y)] * 2, abs=1e-3)
    assert table["not found %"].tolist() == pytest.approx([100 * np.mean(said < 0)] * 2, abs=1e-3)
    recalls = [np.mean(said[y == c] == c) for c in range(7) if (y == c).any()]
    assert table["balanced %"].tolist() == pytest.approx([100 * np.mean(recalls)] * 2, abs=1e-3)
    f1 = f1_score(y, said, labels=np.unique(y), average="macro", zero_division=0)
    assert table["macro F1 %"].tolist() == pytest.approx([100 * f1] * 2, abs=1e-3)


def test_a_function_that_knows_the_word_is_told_which_are_faces(faces, tmp_path):
    table = bench(faces, [contender("toys:whole")], tmp_path / "rows").set_index("column")
    assert table.loc["own finder", ["accuracy %", "not found %"]].tolist() == [0, 100] and table.loc["as they are", "not found %"] == 0


@pytest.mark.parametrize("name,said", [
    ("few", "3 probabilities, 7 labels"), ("short", "63 answers|shape .63, 7. for 64 images"), ("odd", "64 of 64 answers are NaN"),
    ("sums", "no probabilities"), ("names", "labels joy, boredom"), ("leaves", "ended .exit status 7"), ("raises", "RuntimeError: no such layer"),
    ("another", "other answers"), ("nothing", "no attribute 'nothing'")])
def test_a_model_that_fails_has_a_row_and_the_others_finish(faces, tmp_path, name, said):
    table = bench(faces, [contender(f"toys:{name}"), contender("toys:mean")], tmp_path / "rows")
    assert list(table.model) == ["toys.mean", "toys.mean", f"toys.{name}"]
    fault = table.fault.iloc[-1]
    assert pd.Series([fault]).str.contains(said).all(), fault
    assert len(fault.splitlines()) <= 3 and set(leaderboard(tmp_path / "rows").model) == {"toys.mean", f"toys.{name}"}


def test_one_that_hangs_is_ended(faces, tmp_path):
    table = bench(faces, [contender("toys:sleeps")], tmp_path / "rows", seconds=3)
    assert table.fault.tolist() == ["toys.sleeps: no answer within 3 seconds"]


def test_a_second_bench_asks_nobody_and_gives_the_same(faces, tmp_path):
    first = bench(faces, [contender("toys:counted")], tmp_path / "rows", stress=StressTest(0))
    asked = Path("asked.txt").read_text()
    second = bench(faces, [contender("toys:counted")], tmp_path / "rows", stress=StressTest(0))
    assert asked == Path("asked.txt").read_text() == "64 64 26 64 64 26 "          # the first images twice, in both columns
    pd.testing.assert_frame_equal(first, second)
    next((tmp_path / "rows/answers").rglob("faces-64.npz")).unlink()           # broken off
    bench(faces, [contender("toys:counted")], tmp_path / "rows", stress=StressTest(0))
    assert Path("asked.txt").read_text() == asked + "26 "
    bench(faces.take(np.arange(60)), [contender("toys:counted")], tmp_path / "rows", stress=StressTest(0))  # other images: other answers
    assert Path("asked.txt").read_text() == asked + "26 60 60 60 60 "


def test_the_others_are_compared_with_the_first(faces, tmp_path):
    bench(faces, [contender(f"toys:{n}") for n in ("mean", "half", "percent", "odd")], tmp_path / "rows")
    tests, y = paired_tests(tmp_path / "rows", "toys.mean"), faces.targets()
    assert list(tests.against) == ["toys.half"] * 2 + ["toys.percent"] * 2
    expected = mcnemar(as_toy(faces, "mean") == y, as_toy(faces, "half") == y)
    assert tests[["difference", "low", "high", "p"]].iloc[0].tolist() == pytest.approx(list(expected)[3:])
    assert tests.p_holm.tolist() == pytest.approx(holm(tests.p))


def test_duplicates_are_taken_out_beside(faces, tmp_path):
    known = set(faces.df.id[:30])
    table = bench(faces, [contender("toys:mean")], tmp_path / "rows", known)
    right = (as_toy(faces, "mean") == faces.targets())[30:]
    assert table["without duplicates %"].tolist() == pytest.approx([100 * right.mean()] * 2, abs=1e-3)
    row = json.loads(next((tmp_path / "rows").glob("*mean-*.json")).read_text())
    assert row["duplicates"] == 30 and row["splits"] == {"test": 90} and row["versions"]["numpy"] == np.__version__


def test_labels_are_mapped_by_name_and_what_is_not_in_common_is_said():
    said = Answers(["Joy", "Anger", "contempt"], np.array([[.2, .2, .6], [0, 0, 1], [np.nan] * 3]), np.array([True, True, False]), 1, 1, 1, 1)
    probs, apart = over_labels(said, ("angry", "happy", "sad"))
    assert np.allclose(probs, [[.5, .5, 0], [0, 0, 0], [np.nan] * 3], equal_nan=True)
    assert apart == {"unused": ["contempt"], "lacking": ["sad"]}
    for labels in (["Joy", "happy"], ["joy", "boredom"], []):
        with pytest.raises(ModelError, match="labels"):
            over_labels(Answers(labels, np.ones((1, len(labels))), np.array([True]), 1, 1, 1, 1), ("angry", "happy"))


def test_probabilities_are_checked():
    ok = np.array([[.25, .75], [.5, .5]])
    assert np.array_equal(checked(ok, np.ones(2, bool), ["a", "b"], 2, "m"), ok)
    assert np.allclose(checked(ok * 1.02, np.ones(2, bool), ["a", "b"], 2, "m"), ok)     # rounded to two digits
    for bad in (-ok, ok * 2, ok[0], ok[:1], np.where(ok == .25, np.inf, ok)):
        with pytest.raises(ModelError):
            checked(bad, np.ones(len(bad), bool), ["a", "b"], 2, "m")


def test_calibration_is_of_the_faces_that_were_found():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(7), 200), rng.integers(0, 7, 200)
    p[::4] = np.nan
    table, found = found_scores(p, y, EMOTIONS).set_index("metric"), ~np.isnan(p).any(1)
    assert table.n[["accuracy", "ece", "brier", "loss"]].tolist() == [200, 150, 150, 150]
    assert table.value["loss"] == pytest.approx(-np.log(p[found, y[found]]).mean())
    assert table.value["brier"] == pytest.approx(((p[found] - np.eye(7)[y[found]])**2).sum(1).mean())
    assert not table.index.str.contains("no face").any()


@pytest.mark.parametrize("labels", [("angry", "happy", "sad"), ("happy", "sad", "angry"), ("sad", "angry", "happy")])
def test_a_label_that_the_data_lack_is_a_wrong_answer_in_any_order(labels):
    "50 angry and 50 happy faces: ten angry ones are called contempt, the other forty happy, all happy ones happy."
    said = np.zeros((100, 3))                                   # angry, happy, contempt
    said[:10, 2] = said[10:, 1] = 1
    y = np.array([labels.index("angry")] * 50 + [labels.index("happy")] * 50)
    df = pd.DataFrame({"id": [f"i{k}" for k in range(100)], "label": np.array(labels)[y], "split": "test"})
    ds = FERData(df, np.zeros((100, 4, 4), np.uint8), labels=labels)
    table, _, right = figures(Answers(["angry", "happy", "contempt"], said, np.ones(100, bool), 1, 1, 1, 1), ds, None, "m", 50)
    table = table.set_index("metric").value
    assert right.sum() == 50 and table["accuracy"] == 0.5 and table["recall:angry"] == 0 and table["recall:happy"] == 1
    assert table["not_found"] == 0 and table["precision:happy"] == pytest.approx(50 / 90)


def test_splits_are_compared_each_for_itself_and_names_are_checked(faces, tmp_path):
    two = faces.assign(split=np.where(np.arange(90) < 50, "train", "test"))
    bench(two, [contender(f"toys:{n}") for n in ("mean", "half")], tmp_path / "rows", stress=StressTest(0))
    tests, y = paired_tests(tmp_path / "rows", "toys.mean").query("column == 'as they are'").set_index("split"), two.targets()
    for split, here in (("train", slice(0, 50)), ("test", slice(50, 90))):
        expected = mcnemar((as_toy(faces, "mean") == y)[here], (as_toy(faces, "half") == y)[here])
        assert tests.loc[split, ["n", "difference", "low", "high", "p"]].tolist() == pytest.approx([expected.n, *expected[3:]])
    with pytest.raises(ConfigError, match="toys.men"):
        paired_tests(tmp_path / "rows", "toys.men")


def test_rows_of_before_are_read_where_they_are_of_one_split(faces, tmp_path):
    bench(faces, [contender(f"toys:{n}") for n in ("mean", "half")], tmp_path / "rows", stress=StressTest(0))
    rows = read_rows(tmp_path / "rows")
    old = [r | {"right": {c: of["test"] for c, of in r["right"].items()}} for r in rows]
    pd.testing.assert_frame_equal(paired_tests(old), paired_tests(rows))


def test_predictions_without_the_model(faces, tmp_path):
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(7), 90)
    sheet = pd.DataFrame(p, columns=EMOTIONS).assign(id=faces.df.id.to_numpy()).sample(frac=1, random_state=0)
    sheet.iloc[:80].to_csv(tmp_path / "mine.csv", index=False)
    row = bench(faces, [contender("mine.csv")], tmp_path / "rows").iloc[0]
    there = faces.df.id.isin(sheet.id.iloc[:80]).to_numpy()
    order = [EMOTIONS.index(k) for k in faces.labels]
    assert row["accuracy %"] == pytest.approx(100 * np.mean(there & (p[:, order].argmax(1) == faces.targets())), abs=1e-3)
    assert row["not found %"] == pytest.approx(100 * 10 / 90, abs=1e-3) and row.column == "predictions"
    for bad, said in ((sheet.assign(id="x"), "of no image|twice"), (sheet.drop(columns="id"), "columns"), (pd.concat([sheet, sheet]), "twice")):
        bad.to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataError, match=said):
            read_predictions(tmp_path / "bad.csv", faces)


def test_the_command(tmp_path, capsys):
    drawn = make_faces(40, seed=1, size=96, defects=None, balance="uniform")[0]
    for k in range(len(drawn)):
        to = tmp_path / "data" / ("train", "test")[k % 2] / drawn.df.label[k] / f"{k}.png"
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image(k)).save(to)
    about = tmp_path / "about.json"
    about.write_text(json.dumps({"toys:mean": {"claimed": "99 %", "source": "a poster"}}))
    command = ["bench", "--data", "data", "--models", "toys:mean,toys:odd", "--exact", "--about", str(about), "--out", "rows"]
    assert main(command) == 1   # one of the two could not be measured
    said = capsys.readouterr().out
    assert "no paired tests: answers of one model; of two or more on the same images expected" in said and "Empty" not in said
    assert "0 of 20 have a duplicate" in said and "99 %" in said and "a poster" in said and "toys.odd: 20 of 20 answers are NaN" in said
    assert main(["bench", "--show", "rows"]) == 0 and "toys.mean" in capsys.readouterr().out
    for wrong, text in ((["--show", "data"], "no rows"), ([], "neither --data nor --show"), (["--data", "data", "--split", "valid"], "no images of the split"),
                        (["--data", "data", "--models", "hyfre"], "hyfre: no such file or model; hyfer, hyfer_robust"), (["--data", "data", "--models", "hyfre"], "did you mean 'hyfer'?"),
                        (["--data", "data", "--models", "fre"], "module:function, or a .csv of predictions expected; did you mean 'fer'?"),
                        (["--data", "data", "--training-as", "list"], "--training expected"), (["--data", "data", "--training", "rows"], "--training: "), (["--data", "data", "--about", "rows"], "--about rows"),
                        (["--data", "data", "--models", "toys:mean,toys:mean"], "twice")):
        assert main(["bench", *wrong]) == 2 and text in capsys.readouterr().err


def test_the_model_that_others_are_compared_with_has_failed(faces, tmp_path, capsys):
    for k, label in enumerate(faces.df.label):
        (to := tmp_path / "data" / label / f"{k}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.image(k)).save(to)
    ask = ["bench", "--data", "data", "--sample", "0", "--no-own-finder", "--out", "rows", "--models"]
    assert main([*ask, "toys:raises,toys:mean,toys:percent"]) == 1
    said = capsys.readouterr().out
    assert "no paired tests: toys.raises, with which the others are compared, has no answers" in said and "Empty" not in said
    assert main([*ask, "toys:mean,toys:percent"]) == 0 and "toys.percent" in capsys.readouterr().out


def test_duplicates_are_looked_for_in_the_training_images_that_are_named(faces, tmp_path, capsys):
    """Data without a training split of their own: `--training` names the images; the figure and the row say whose duplicates are left out."""
    for k, label in enumerate(faces.df.label):
        for root in ["data"] + ["learned/train"] * (k % 3 == 0) + ["learned/test"] * (k % 3 == 1):
            (to := tmp_path / root / label / f"{k}.png").parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(faces.image(k)).save(to)
    ask = ["bench", "--data", "data", "--sample", "0", "--no-own-finder", "--exact", "--models", "toys:mean"]
    assert main([*ask, "--out", "rows", "--training", "learned"]) == 0
    assert "30 of 90 have a duplicate in 30 training images of learned" in capsys.readouterr().out
    (row,) = read_rows("rows")
    assert (row["duplicates"], row["searched"]) == (30, "30 training images of learned")
    shown = leaderboard("rows").iloc[0]
    right, apart = as_toy(faces, "mean") == faces.targets(), np.arange(90) % 3 > 0
    assert shown["duplicates of"] == row["searched"] and shown["without duplicates %"] == pytest.approx(100 * right[apart].mean(), abs=1e-3)
    assert main([*ask, "--out", "plain"]) == 0 and "no training split beside it: duplicates were not looked for" in capsys.readouterr().out
    assert "duplicates of" not in leaderboard("plain")


@pytest.mark.parametrize("without", ["drop", "keep"])
def test_a_network_of_faces_cut_out_gets_them_cut_out(faces, tmp_path, monkeypatch, without):
    """As `fer-nb evaluate` shows them; an image in which no outline is found is not found, with "keep" it is shown whole. Its row says so."""
    import fer_nb.faces
    from types import SimpleNamespace
    from fer_nb.bench import Ours
    from fer_nb.evaluate import predict_logits
    from fer_nb.models import HyFER, save_hyfer

    class Negatives:
        "A refiner whose faces are unmistakable: negatives; none in a dark image."
        def __init__(self, size, policy=None):
            assert size == 48

        def __call__(self, image):
            return SimpleNamespace(crop=255 - image if image.mean() > middle else None)

    middle = np.median([image.mean() for image in faces.array()])
    torch.manual_seed(0)
    net = HyFER(variant="light", in_chans=1)
    file = save_hyfer(net, tmp_path / "cut.safetensors", faces=without)
    monkeypatch.setattr(fer_nb.faces, "FaceRefiner", Negatives)
    with pytest.warns(UserWarning, match="cut out along their outline"):
        ours = Ours(str(file))
    found = np.array([image.mean() > middle for image in faces.array()])
    shown = np.stack([255 - im if ok else im for im, ok in zip(faces.array(), found)])
    expected = softmax(predict_logits(net.eval(), faces.replace(images=shown, labels=net.labels)), 1)
    said = ours([faces.image(k) for k in range(90)], cropped=True)
    assert [p is not None for p in said] == (found | (without == "keep")).tolist()
    for k, p in enumerate(said):
        assert p is None or np.allclose([p[label] for label in net.labels], expected[k], atol=1e-3)
    near = ours.attacked([faces.image(k) for k in range(9)], list(faces.df.label[:9]), 0, 1)
    assert [p is not None for p in near] == [p is not None for p in said[:9]]
    assert all(p is None or np.allclose(p, expected[k], atol=1e-3) for k, p in enumerate(near))
    assert "cut out along their outline" in ours.note and not Ours("accurate").note


def test_a_row_says_what_is_to_be_known_of_its_model(faces, tmp_path):
    (tmp_path / "noted.py").write_text("from toys import *\nclass Noted(Called):\n    note = 'not as it was trained'\nnoted = Noted()\n")
    table = bench(faces, [contender("noted:noted"), contender("toys:mean")], tmp_path / "rows", own_finder=False, stress=StressTest(0))
    assert table.set_index("model").note.fillna("").to_dict() == {"noted.noted": "not as it was trained", "toys.mean": ""}


def test_an_interpreter_that_cannot_be_run(faces, tmp_path):
    with pytest.raises(ConfigError, match="cannot be run"), Worker(contender("toys:mean", str(tmp_path / "no-python"))) as worker:
        worker.ready()
    assert are_crops(faces) and not are_crops(make_faces(9, size=128)[0])


@pytest.mark.slow
def test_the_shipped_network_is_what_evaluate_says(faces, tmp_path):
    from fer_nb.evaluate import evaluate
    from fer_nb.models import load_hyfer
    row = bench(faces, [contender("hyfer")], tmp_path / "rows").set_index("column").loc["as they are"]
    net = load_hyfer(contender("hyfer").settings["weights"])
    expected = evaluate(net, faces.replace(labels=net.labels)).set_index("metric").value
    assert row["accuracy %"] == pytest.approx(100 * expected["accuracy"], abs=1e-3)


def test_answers_of_other_code_are_asked_for_again(faces, tmp_path):
    first = bench(faces, [contender("toys:mean")], tmp_path / "rows")
    (tmp_path / "toys.py").write_text(TOYS.replace("int(im.mean()) % 7", "(int(im.mean()) + 1) % 7"))
    second = bench(faces, [contender("toys:mean")], tmp_path / "rows")
    assert first["accuracy %"].tolist() != second["accuracy %"].tolist()


def test_corrupted_faces_are_what_a_loop_counts(faces, tmp_path):
    bench(faces, [contender("toys:mean")], tmp_path / "rows", stress=StressTest(60, ("noise", "mouth"), severity=2))
    row, part = read_rows(tmp_path / "rows")[0], faces.sample(60)
    order = ["happy", "sad", "angry", "disgust", "fear", "surprise", "neutral"]
    by = {r["images"]: r for r in row["stress"]}
    assert set(by) == {"clean", "noise", "mouth"} and all(r["n"] == 60 and r["low"] <= r["value"] <= r["high"] for r in by.values())
    assert by["clean"]["value"] == pytest.approx(np.mean(as_toy(part, "mean") == part.targets()))
    for kind in ("noise", "mouth"):
        right = 0
        for k, label in enumerate(part.df.label):
            x = torch.from_numpy(part.image(k))[None, None].float() / 255
            image = (corrupt(x, kind, 2, noise_keys(part)[[k]]) * 255).round().numpy()
            right += order[int(image.mean()) % 7] == label
        assert by[kind]["value"] == pytest.approx(right / 60)


def test_an_attack_on_a_linear_network_reaches_the_worst_there_is(faces, tmp_path):
    two = faces.where(label=["happy", "sad"])
    exec(TOYS, place := {})
    weight = place["two"]()[1].weight.detach()
    x, y = torch.from_numpy(np.stack([two.image(k) for k in range(len(two))])).flatten(1).float() / 255, (two.df.label == "sad").to_numpy()
    toward = (weight[0] - weight[1]) * torch.from_numpy(np.where(y, 1, -1)).float()[:, None]
    for eps in (1 / 255, 4 / 255):
        bench(two, [contender("torch:toys:two")], tmp_path / "rows", stress=StressTest(len(two), (), eps=eps, steps=30))
        by = {r["images"]: r["value"] for r in read_rows(tmp_path / "rows")[0]["stress"]}
        for change, name in ((0, "clean"), (eps, "attacked")):
            z = (x + change * toward.sign()).clamp(0, 1) @ weight.T
            assert by[name] == pytest.approx(np.mean((z[:, 1] > z[:, 0]).numpy() == y)), (eps, name)
    assert leaderboard(tmp_path / "rows")["PGD, 30 steps, 4/255 %"].notna().sum() == 1


def test_voters_by_a_loop(faces):
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, [.3, .3, .1, .1, .05, .05, .04, .02, .02, .02], 30)
    ds = faces.take(np.arange(30)).assign(**dict(zip(VOTE_COLUMNS, votes.T)))
    probs = rng.dirichlet(np.ones(len(ds.labels)), 30)
    probs[3:6] = np.nan
    table = voters(probs, ds).set_index("metric")
    expected = [0 if k in (3, 4, 5) else votes[k, VOTE_COLUMNS.index(f"vote_{ds.labels[probs[k].argmax()]}")] / votes[k].sum()
                for k in range(30) if votes[k, -1] < votes[k].sum()]
    assert table.value["expected"] == pytest.approx(np.mean(expected)) and table.value["best"] > table.value["expected"]


def test_a_row_names_its_weights_and_the_kept_ones_are_the_shipped(tmp_path, faces):
    bench(faces.take(np.arange(20)), [contender("hyfer")], tmp_path / "rows", stress=StressTest(0))
    [row] = read_rows(tmp_path / "rows")
    file = Path(contender("hyfer").settings["weights"])
    assert row["weights"] == {file.stem: file_sha256(file)}
    rows = read_rows(Path(__file__).parents[1] / "results/bench")
    assert {(r["model"], r["data"]) for r in rows} >= {(m, d) for m in ("hyfer", "hyfer_robust", "fer") for d in ("fer2013", "photos")}
    assert all(r["command"].startswith("fer-nb bench ") and r["commit"] and r["versions"] for r in rows)
    for kept in rows:
        assert kept["fault"] or kept["weights"], kept["model"]
        for name in ("hyfer", "hyfer_robust"):
            if kept["model"] == name:
                assert set(kept["weights"].values()) == {file_sha256(contender(name).settings["weights"])}, f"{name}: run the bench again"


def accuracies(table):
    return table.set_index("model")["accuracy %"].round(6).to_dict()


def test_answers_of_every_form_are_read_alike(faces, tmp_path):
    names = ("mean", "wrapped", "bound", "called", "frame", "reads")
    found = accuracies(bench(faces, [contender(f"toys:{n}") for n in names], tmp_path / "rows", stress=StressTest(0), own_finder=False))
    assert len(set(found.values())) == 1 and len(found) == len(names)


def test_labels_of_answers_without_a_list_of_labels(faces, tmp_path):
    (tmp_path / "plain.py").write_text(TOYS.replace("LABELS = [", "NAMES = [").replace("LABELS", "NAMES"))
    found = accuracies(bench(faces, [contender(f"plain:{n}") for n in ("nameless", "sorted_dicts")], tmp_path / "rows", stress=StressTest(0)))
    assert len(set(found.values())) == 1 and len(found) == 2
    table = bench(faces, [contender("plain:shrinks"), contender("toys:mean")], tmp_path / "other", stress=StressTest(0))
    assert "other answers" in table.fault[table.model == "plain.shrinks"].iloc[0] and table["accuracy %"].notna().any()


@pytest.mark.slow
def test_a_network_of_a_module_is_asked_again_when_it_has_changed(faces, tmp_path):
    def accuracy():
        return accuracies(bench(faces, [contender("torch:toys:two")], tmp_path / "rows", stress=StressTest(0)))["toys.two"]

    two = accuracy()
    (tmp_path / "toys.py").write_text(TOYS.replace("manual_seed(0)", "manual_seed(31)"))
    assert accuracy() != two


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_process_is_left_and_an_end_is_an_end(faces, tmp_path):
    def sleeping():
        lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        return sum(line.startswith(b"sleep\x00321") for line in lines)

    table = bench(faces, [contender("toys:parent"), contender("toys:forks")], tmp_path / "rows", stress=StressTest(0), own_finder=False)
    assert "exit status 7" in table.fault[table.model == "toys.forks"].iloc[0]
    for _ in range(50):
        if not sleeping():
            break
        time.sleep(.1)
    assert not sleeping()


def test_no_row_is_written_over_by_another(faces, tmp_path):
    first, second = faces.take(range(40)), faces.take(range(40, 80))
    for ds in (first, second, second):
        bench(ds, [contender("модель=toys:mean"), contender("другое=toys:half")], tmp_path / "rows", stress=StressTest(0), own_finder=False)
    rows = read_rows(tmp_path / "rows")
    assert {(r["model"], r["fingerprint"]) for r in rows} == {(m, d.fingerprint()) for m in ("модель", "другое") for d in (first, second)}
    assert len(list((tmp_path / "rows").glob("*.json"))) == 4 and len(paired_tests(tmp_path / "rows")) == 2
    (tmp_path / "rows/2020-other.json").write_text('{"model": "a", "fingerprint": "b"}')
    with pytest.raises(DataError, match="no row of a bench"):
        read_rows(tmp_path / "rows")


@pytest.mark.slow
def test_runs_are_measured_each_in_a_row_of_its_own(faces, tmp_path, capsys):
    "Two folders of runs, and two files of one name, are not taken for one another; nor is a network for what it was before."
    from fer_nb.models import HyFER, save_hyfer
    ds, rows = faces.take(range(8)), tmp_path / "rows"
    for k, run in enumerate(("runA", "runB")):
        torch.manual_seed(k)
        (tmp_path / run).mkdir()
        save_hyfer(HyFER(7, 1, "light"), tmp_path / run / "student.safetensors")
    measured = {"stress": StressTest(0), "own_finder": False}
    for run in ("runA", "onnx:runB/"):
        bench(ds, [contender(run)], rows, **measured)
    assert [r["model"] for r in read_rows(rows)] == ["runA", "runB"] and contender("mine=runA").name == "mine"
    for run in ("runA", "runB", "runA"):
        bench(ds, [contender(f"{run}/student.safetensors")], rows, **measured)
    two = read_rows(rows)[2:]
    assert [r["model"] for r in two] == ["student"] * 2 and len({json.dumps(r["weights"]) for r in two}) == 2
    names = leaderboard(two).model
    assert len(set(names)) == 2 and all(n.startswith("student (") for n in names) and len(paired_tests(rows, "student")) == 3


def test_the_command_says_whose_training_images_they_were(tmp_path, capsys):
    from fer_nb.formats import read
    from fer_nb.models import HyFER, save_hyfer
    drawn = make_faces(28, seed=3, size=48, defects=None, balance="uniform")[0]
    for k in range(len(drawn)):
        to = tmp_path / "data" / ("train", "test")[k < 7] / drawn.df.label[k] / f"{k}.png"
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image(k)).save(to)
    whole = read(tmp_path / "data")
    known = {"fingerprint": whole.fingerprint(), "trained on": 12, "selected on": 2}
    for name, record in (("mine", {"data": known}), ("other", {"data": {"fingerprint": "0", "name": "elsewhere"}}), ("told", {"data": known})):
        save_hyfer(HyFER(7, 1, "light"), tmp_path / f"{name}.safetensors", **record)
    models = [contender("mine.safetensors"), contender("other.safetensors"), contender("told.safetensors", about={"trained on": "a poster"})]
    for split in ("train", "test", None):
        mine, other, told = (m.about["trained on"] for m in VERBS["bench"].with_records([*models], whole, split))
        assert mine == "its record: trained on 12 images of this data set; its epoch was chosen on 2 others"
        assert "another data set (elsewhere)" in other and told == "a poster"
        warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert [line.split(": ")[2] for line in warned] == ["mine"] * (split != "test")
    (tmp_path / "bad.safetensors").write_text("nothing")
    assert VERBS["bench"].with_records([contender("bad.safetensors"), contender("toys:mean")], whole, "train")[0].about == {}
    assert main(["bench", "--data", "data", "--models", "mine.safetensors", "--sample", "0", "--no-own-finder", "--split", "train", "--out", "rows"]) == 0
    said = capsys.readouterr()
    assert mine in said.out and "warning: mine: its record" in said.err
    assert "proportions are held fixed (narrow for a network that answers one class)" in said.out
    assert read_rows(tmp_path / "rows")[0]["known"]["trained on"] == mine


def test_what_failed_before_its_weights_were_known_is_forgotten_once_it_is_measured(faces, tmp_path):
    ds, rows = faces.take(range(8)), tmp_path / "rows"
    (tmp_path / "mine.py").write_text("raise RuntimeError('no such layer')")
    bench(ds, [contender("mine:mean")], rows, stress=StressTest(0), own_finder=False)
    [failed] = rows.glob("*.json")
    assert read_rows(rows)[0]["fault"]
    (tmp_path / "mine.py").write_text(TOYS)
    failed.rename(rows / "2001-01-01-mine.mean.json")
    bench(ds, [contender("mine:mean")], rows, stress=StressTest(0), own_finder=False)
    assert [r["fault"] for r in read_rows(rows)] == [""]


def test_files_of_predictions_are_told_apart(faces, tmp_path):
    for k, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        table = pd.DataFrame(np.full((len(faces), 7), 0.1) + np.eye(7)[k] * .3, columns=EMOTIONS)
        table.insert(0, "id", faces.df.id)
        table.to_csv(tmp_path / folder / "preds.csv", index=False)
        bench(faces, [contender(f"{folder}/preds.csv")], tmp_path / "rows")
    assert [r["weights"] for r in read_rows(tmp_path / "rows")] == [{"preds": file_sha256(tmp_path / f / "preds.csv")} for f in "ba"]


def test_the_kept_rows_keep_their_names():
    from fer_nb.bench import file_name, told_apart
    folder = Path(__file__).parents[1] / "results/bench"
    rows = read_rows(folder)
    assert len(rows) == len(list(folder.glob("2*.json"))) and told_apart(rows) == [r["model"] for r in rows]
    assert {file_name(r, folder) for r in rows} == {p.name for p in folder.glob("2*.json")}


def test_predictions_are_known_before_anybody_is_asked(faces, tmp_path):
    ids = [f"{k:04d}" for k in range(len(faces))]
    named = faces.replace(df=faces.df.assign(id=ids))
    table = pd.DataFrame(np.full((len(ids), 7), 1 / 7), columns=EMOTIONS)
    table.insert(0, "id", ids)
    table.to_csv(tmp_path / "preds.txt", index=False)
    model = contender("preds.txt", predictions=True)
    assert len(read_predictions(tmp_path / "preds.txt", named).probs) == len(named) and model.spec == "predictions"
    (tmp_path / "wide.csv").write_text("id," + ",".join(EMOTIONS) + "\n" + "\n".join(f"{i}," + ",".join(["0.1"] * 8) for i in ids))
    with pytest.raises(DataError, match="Length of header"):
        bench(named, [contender("toys:counted"), contender("wide.csv")], tmp_path / "rows")
    assert not (tmp_path / "asked.txt").exists()


def test_the_command_knows_what_is_known_of_whom(faces, tmp_path, capsys):
    root = tmp_path / "data"
    for k, label in enumerate(faces.df.label):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.image(k)).save(root / label / f"{k}.png")
    about = tmp_path / "about.json"
    about.write_text(json.dumps({"toys.mean": {"claimed": "99 %"}}))
    ask = ["bench", "--data", str(root), "--models", "toys:mean", "--about", str(about), "--out", str(tmp_path / "rows"), "--sample", "0"]
    assert main(ask) in (0, None) and "99 %" in capsys.readouterr().out
    about.write_text(json.dumps({"toys:mean": {}, "nonsense": {"claimed": "1"}}))
    assert main(ask) in (0, None) and "warning: --about" in (err := capsys.readouterr().err) and "nonsense" in err
    about.write_text(json.dumps({"nonsense": {"claimed": "1"}}))
    assert main(ask) == 2 and "nonsense" in capsys.readouterr().err


def faces_and_toys(tmp_path, monkeypatch, n=70):
    "Drawn faces in two splits, and a model that knows a label more than they."
    (tmp_path / "other.py").write_text("import numpy as np\nLABELS = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral', 'contempt']\n"
                                       "def scorn(images): return np.tile(np.eye(8)[7], (len(images), 1))\n"
                                       "def bright(images):\n    return np.array([np.roll(np.r_[.3, np.full(7, .1)], int(im.mean()) % 7) for im in images])\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return make_faces(n, seed=2, size=48, defects=None, balance="uniform")[0].assign(split=np.where(np.arange(n) % 2, "train", "test"))


def test_each_split_has_a_sample_of_its_own_and_an_answer_outside_the_labels_is_wrong(tmp_path, monkeypatch):
    two, few = faces_and_toys(tmp_path, monkeypatch), StressTest(70, ("noise",), steps=0)
    models = [contender("other:scorn"), contender("other:bright")]
    table = bench(two, models, tmp_path / "rows", stress=few, own_finder=False).set_index(["model", "split"])
    assert (table.loc["other.scorn", ["accuracy %", "sample %", "corrupted %"]] == 0).all(axis=None)
    for split in ("train", "test"):     # the whole split is asked about: the same figure
        line = table.loc[("other.bright", split)]
        assert line["sample %"] == pytest.approx(line["accuracy %"], abs=1e-3)
    rows = read_rows(tmp_path / "rows")
    assert {(s["split"], s["n"]) for s in rows[0]["stress"]} == {("train", 35), ("test", 35)}
    old = [r | {"stress": [{k: v for k, v in s.items() if k != "split"} for s in r["stress"]]} for r in rows]
    assert "sample %" not in leaderboard(old)    # of which split the sample was is not said


def test_another_corruption_or_attack_is_asked_about_again(tmp_path, monkeypatch):
    ds = faces_and_toys(tmp_path, monkeypatch).assign(split="test")
    def noise(out):
        bench(ds, [contender("other:bright")], tmp_path / out, stress=StressTest(70, ("noise",), steps=0), own_finder=False)
        return {s["images"]: s["value"] for s in read_rows(tmp_path / out)[0]["stress"]}
    before = noise("rows")
    monkeypatch.setattr("fer_nb.robustness.corrupt", lambda x, *a: 1 - x)
    assert noise("rows") == noise("new") != before


def test_predictions_are_compared_with_each_column_of_a_model(faces, tmp_path):
    p = np.random.default_rng(1).dirichlet(np.ones(7), 90)
    pd.DataFrame(p, columns=EMOTIONS).assign(id=faces.df.id.to_numpy()).to_csv(tmp_path / "mine.csv", index=False)
    bench(faces, [contender("toys:mean"), contender("mine.csv")], tmp_path / "rows", stress=StressTest(0))
    right = p[:, [EMOTIONS.index(k) for k in faces.labels]].argmax(1) == faces.targets()
    for first, sign in (("toys.mean", 1), ("mine", -1)):
        tests = paired_tests(tmp_path / "rows", first).set_index("column")
        assert set(tests.index) == {"own finder", "as they are"} and tests.n.eq(90).all()
        expected = mcnemar(as_toy(faces, "mean") == faces.targets(), right)
        assert tests.difference["as they are"] == pytest.approx(sign * expected.difference) and tests.p["as they are"] == pytest.approx(expected.p)


def test_small_probabilities_count_as_they_are_and_zeros_stay_finite():
    rng, y = np.random.default_rng(0), np.arange(700) % 7
    z = 20 * (rng.normal(size=(700, 7)) + np.eye(7)[y])
    ours, theirs = (t.set_index("metric").value for t in (found_scores(softmax(z, axis=1), y, EMOTIONS), scores(z, y, EMOTIONS)))
    assert ours[theirs.index].to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-9)
    hard = found_scores(np.eye(7)[(y + 1) % 7], y, EMOTIONS).set_index("metric").value
    assert hard["loss"] == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize("files", [("face.bin", "face.xml"), ("a/net.pt", "b/net.pt", "c/net.pt")])
def test_each_file_of_weights_counts_whatever_the_others_are_called(faces, tmp_path, files):
    "The answer is read from the first file; the others have its name without ending."
    for file in files:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("0")
    Path("filed.py").write_text("import numpy as np\nclass Make:\n"
                                f"    labels, weights = {list(EMOTIONS)!r}, {list(files)!r}\n"
                                "    def __call__(self, images): return np.eye(7)[[int(open(self.weights[0]).read())] * len(images)]\n")
    model, digests = Contender("mine", "filed:Make", {}), []
    for k in (0, 3):
        Path(files[0]).write_text(str(k))
        table = bench(faces, [model], tmp_path / "rows", stress=StressTest(0), own_finder=False)
        assert table["accuracy %"][0] == pytest.approx(100 * (faces.df.label == EMOTIONS[k]).mean(), abs=1e-3)
        digests.append(max(read_rows(tmp_path / "rows"), key=lambda r: r["date"])["weights"])
    assert digests[0] != digests[1] and [len(d) for d in digests] == [len(files)] * 2
    assert list(digests[0])[0] == Path(files[0]).stem          # the first keeps the name it always had


def test_kept_answers_of_a_model_that_names_no_weights_are_told_of(faces, tmp_path, capfd):
    for told in (False, True):
        bench(faces, [contender("toys:mean")], tmp_path / "rows", stress=StressTest(0), own_finder=False)
        assert ("toys.mean names no `weights`" in capfd.readouterr().err) == told


@pytest.mark.parametrize(("change", "error", "match"), [
    (lambda t: t.assign(label="happy"), DataError, "bad.csv, row 2, column label: 'happy'; a probability, id and labels"),
    (lambda t: t.mask(pd.DataFrame({c: t.index == 3 for c in t}) & (t.columns != "id")), DataError, "bad.csv, row 5, column angry: nothing"),
    (lambda t: t.assign(confidence=.9), ModelError, r"bad.csv, row 2 \(angry, .*, confidence\): no probabilities"),
    (lambda t: t.assign(happy=np.where(t.index == 4, 5, t.happy)), ModelError, "bad.csv, row 6 "),
    (lambda t: t.assign(happy=np.where(t.index == 4, np.inf, t.happy)), DataError, "row 6, column happy: 'inf'"),
    (lambda t: t.astype({"sad": object}).assign(sad=t.sad.astype(str).str.replace(".", ",")), DataError, "row 2, column sad: '0,"),
    (lambda t: t[:0], DataError, "bad.csv: no rows"),
])
def test_faults_of_a_file_of_predictions_are_named(faces, tmp_path, change, error, match):
    table = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(7), 90), columns=EMOTIONS)
    table.insert(0, "id", faces.df.id.to_numpy())
    change(table).to_csv("bad.csv", index=False)
    with pytest.raises(error, match=match):
        read_predictions("bad.csv", faces)


def test_a_model_whose_finder_finds_nothing_keeps_what_it_says_of_faces(faces, tmp_path):
    """It names its labels with its answers, so where there is none, there are no labels either."""
    (tmp_path / "unnamed.py").write_text(
        "def f(images, cropped=False): return [{'sad': .2, 'happy': .8} if cropped else None for _ in images]\n"
        "def g(images): return [{'sad': .2, 'happy': .8} if im.mean() < 220 else None for im in images]\n")
    ds, brighter = faces.assign(split="test"), StressTest(20, ("bright",), severity=5)
    table = bench(ds, [contender("unnamed:f")], tmp_path / "rows", stress=StressTest(0)).set_index("column")
    assert table.loc["own finder", ["accuracy %", "not found %"]].tolist() == [0, 100]
    happy = 100 * (ds.df.label == "happy").mean()
    assert table.loc["as they are", ["accuracy %", "not found %"]].tolist() == pytest.approx([happy, 0], abs=1e-3)
    assert set(table.lacks) == {"angry, disgust, fear, surprise, neutral"}
    white = ds.replace(images=np.full_like(ds.array(), 210))
    line = bench(white, [contender("unnamed:g")], tmp_path / "white", stress=brighter, own_finder=False).iloc[0]
    assert line["accuracy %"] == pytest.approx(happy, abs=1e-3) and line["corrupted %"] == 0


@pytest.mark.parametrize("how", [{"kinds": ("noise", "rain")}, {"severity": 9}, {"eps": -.1}, {"steps": 2.5}])
def test_what_cannot_be_asked_is_refused_before_anybody_is(how):
    with pytest.raises(ConfigError, match=next(iter(how))):
        StressTest(**how)
    assert StressTest(kinds="noise").kinds == ("noise",)

"""The studies: what a protocol puts where, that finished runs are stored and checked, arithmetic on known numbers."""
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)  # fastai's import

from fer_nb import studies  # noqa: E402
from fer_nb.audit import audit  # noqa: E402
from fer_nb.config import Fit  # noqa: E402
from fer_nb.core import EMOTIONS, ConfigError, DataError  # noqa: E402
from fer_nb.loaders import leak_groups  # noqa: E402
from fer_nb.experiment import training_costs  # noqa: E402
from fer_nb.studies import (PROTOCOLS, doubt_rankings, grouped, inflation, label_error_study, leaked_ids,  # noqa: E402
                            protocol_parts, protocol_study, ranking_scores, subsample)
from fer_nb.synth import make_faces  # noqa: E402


@pytest.fixture(scope="module")
def faces():
    ds, _ = make_faces(420, seed=6, splits=(1, 0, 0), defects={"exact": 0.2}, balance="uniform")
    return audit(ds, ("duplicate", "multilabel"), search=None).grouped()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 3])
def test_a_protocol_does_what_its_name_says(faces, protocol, seed):
    train, test = protocol_parts(faces, protocol, seed)
    assert not set(train.df.id) & set(test.df.id)
    shared = leaked_ids(train, test)
    if protocol == "honest":
        together = pd.Series(leak_groups(faces), faces.df.id)
        assert not shared and not set(together[train.df.source]) & set(together[test.df.id])
    else:
        assert shared
    originals = set(faces.df.id)
    assert (set(test.df.id) <= originals) == (protocol != "balance_then_split")
    assert protocol_parts(faces, protocol, seed)[0].fingerprint() == train.fingerprint()


def test_every_protocol_has_as_much_to_learn_from(faces):
    sizes = [len(protocol_parts(faces, p)[0]) for p in PROTOCOLS]
    assert max(sizes) < 1.1 * min(sizes)


def test_leaked_ids_name_duplicates_and_copies(faces):
    train, test = protocol_parts(faces, "balance_then_split")
    group = dict(zip(faces.df.id, faces.df.group))
    trained = {group[s] for s in train.df.source}
    assert leaked_ids(train, test) == {i for i, s in zip(test.df.id, test.df.source) if group[s] in trained}


def test_a_subsample_takes_training_images_by_group_and_all_others(faces):
    ds = faces.assign(split=np.where(faces.df.group % 5, "train", "valid"))
    some = subsample(ds, 3, seed=1)
    train = some.where(split="train")
    assert set(some.where(split="valid").df.id) == set(ds.where(split="valid").df.id)
    assert ds.where(split="train").df.group.isin(train.df.group).sum() == len(train) and len(train) < len(ds) / 2
    assert subsample(ds, 1) is ds
    plain = make_faces(200, seed=2, balance="uniform")[0]  # without groups: the audit's
    assert subsample(plain, 2).df.id.tolist() == subsample(grouped(plain), 2).df.id.tolist() and "group" not in subsample(plain, 2).df
    with pytest.raises(DataError, match="no column 'group', 'photo'; audit first"):
        protocol_study(make_faces(30)[0])
    with pytest.raises(ConfigError, match="seeds=0"):
        protocol_study(faces, ())


def fake_runs(monkeypatch):
    "Runs cost nothing and count themselves."
    done = []

    def fit(train, fit, seed, groups):
        done.append(seed)
        return seed
    monkeypatch.setattr(studies, "fit_network", fit)
    monkeypatch.setattr(studies, "evaluate", lambda seed, test, duplicates: pd.DataFrame(
        {"subset": ["all"], "metric": ["accuracy"], "value": [0.5 + seed / 100], "n": [9]}))
    return done


def test_finished_runs_are_not_done_again(monkeypatch, faces, tmp_path):
    done = fake_runs(monkeypatch)
    protocol_study(faces, range(1), out=tmp_path)
    (tmp_path / "duplicates-across-0.csv").unlink()
    results = protocol_study(faces, range(2), out=tmp_path)
    assert done == [0] * 4 + [1] * 3 and results.protocol.tolist() == [*PROTOCOLS] * 2
    assert len(results) == 6 and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("other, text", [
    (dict(fit=Fit(epochs=9)), "fit.epochs is 8"), (dict(targets="median"), "targets is 'max'"), (dict(data="less"), "data is"),
    (dict(data="other groups"), "groups is"), (dict(data="groups reversed"), "groups is")])
def test_runs_of_another_study_are_refused(monkeypatch, faces, tmp_path, other, text):
    fake_runs(monkeypatch)
    protocol_study(faces, range(1), out=tmp_path)
    what = other.pop("data", "")
    ds = faces.take(np.arange(400)) if what == "less" else faces
    if what.startswith("other"):
        ds = faces.assign(group=np.arange(len(faces)))
    if what.endswith("reversed"):
        ds = faces.assign(group=faces.df.group.to_numpy()[::-1])
    with pytest.raises(DataError, match=text):
        protocol_study(ds, range(1), out=tmp_path, **other)


@pytest.mark.parametrize("column", ["subject", "source", "photo"])
def test_runs_of_other_ties_are_refused(monkeypatch, faces, tmp_path, column):
    "Persons that became known since part the images otherwise; a folder of before this was looked at is taken up."
    fake_runs(monkeypatch)
    protocol_study(faces, range(1), out=tmp_path)
    kept = json.loads((tmp_path / "identity.json").read_text())
    tied = faces.assign(**{column: [f"{label}-{k % 9}" for k, label in enumerate(faces.df.label)]})
    with pytest.raises(DataError, match=f"{column}s is"):
        protocol_study(tied, range(1), out=tmp_path)
    (tmp_path / "identity.json").write_text(json.dumps({k: v for k, v in kept.items() if k in ("data", "groups", "targets", "fit")}))
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    protocol_study(faces, range(1), out=tmp_path)


def test_inflation_is_scipys_paired_interval_but_wider_for_runs_share_images():
    rng = np.random.default_rng(0)
    values = {p: rng.uniform(0.4, 0.6, 5) for p in PROTOCOLS}
    runs = pd.DataFrame([(p, s, "all", "accuracy", v) for p, vs in values.items() for s, v in enumerate(vs)],
                        columns=["protocol", "seed", "subset", "metric", "value"]).sample(frac=1, random_state=0)
    table = inflation(runs).set_index("protocol")
    for protocol in PROTOCOLS[1:]:
        interval = stats.ttest_rel(values[protocol], values["honest"]).confidence_interval()
        mean, wider = (interval.low + interval.high) / 2, np.sqrt((1 / 5 + 1 / 4) / (1 / 5))   # Nadeau and Bengio 2003
        assert table.low[protocol] == pytest.approx(100 * (mean + wider * (interval.low - mean)))
        assert table.high[protocol] == pytest.approx(100 * (mean + wider * (interval.high - mean)))
    assert table.loc["honest", ["inflation", "low", "high"]].tolist() == [0, 0, 0] and table.seeds.tolist() == [5] * 3
    assert table["mean"].tolist() == pytest.approx([100 * values[p].mean() for p in PROTOCOLS])
    assert table.sd.tolist() == pytest.approx([100 * values[p].std(ddof=1) for p in PROTOCOLS])
    one = inflation(runs[runs.seed == 0]).set_index("protocol")
    assert np.isnan(one.low["duplicates_across"]) and one.seeds["honest"] == 1
    loss = inflation(runs.assign(metric="loss"), "loss").set_index("protocol")   # no share: as it is
    assert (100 * loss[["mean", "sd", "inflation", "low", "high"]]).to_numpy() == pytest.approx(table[["mean", "sd", "inflation", "low", "high"]].to_numpy())


def test_balanced_accuracies_are_over_the_classes_that_all_test_parts_have():
    """Where one test part has no image of a class, its mean recall is over fewer classes, mostly the easier ones."""
    recalls = {"honest": (.9, .1), "duplicates_across": (.9, .3), "balance_then_split": (.9, np.nan)}
    rows = [(p, s, "without_duplicates", f"recall:{c}", v) for p, both in recalls.items() for s in range(2) for c, v in zip(("happy", "disgust"), both)]
    rows += [(p, s, "without_duplicates", "balanced_accuracy", np.nanmean(both)) for p, both in recalls.items() for s in range(2)]
    table = inflation(pd.DataFrame(rows, columns=["protocol", "seed", "subset", "metric", "value"]), "balanced_accuracy", "without_duplicates")
    assert table["mean"].tolist() == pytest.approx([90] * 3) and table.inflation.tolist() == pytest.approx([0] * 3) and table.classes.tolist() == [1] * 3


def test_a_study_of_persons_says_that_its_protocols_part_them(faces, tmp_path):
    def say(text):
        raise KeyboardInterrupt(text)
    with pytest.raises(KeyboardInterrupt, match="duplicates and persons together"):
        protocol_study(grouped(faces).assign(subject=[f"s{i % 9}" for i in range(len(faces))]), range(1), out=tmp_path / "a", say=say)


def test_rankings_against_plain_loops():
    rng = np.random.default_rng(2)
    ds = make_faces(60, seed=1, defects=None, balance="uniform")[0]
    splits = [(np.setdiff1d(np.arange(60), t), t) for t in np.arange(60).reshape(3, 20)]
    logits = rng.normal(0, 2, (3, 60, 7)).astype(np.float32)
    rankings, y = doubt_rankings(ds, logits, splits), ds.targets()
    for i in range(60):
        p = [np.exp(z[i]) / np.exp(z[i]).sum() for z in logits.astype(float)]
        assert rankings["self-confidence"][i] == pytest.approx(1 - p[i // 20][y[i]], abs=1e-6)
        mean = np.mean(p, axis=0)
        margin = (mean[y[i]] - np.delete(mean, y[i]).max() + 1) / 2
        assert rankings["margin, all folds"][i] == pytest.approx(1 - margin, abs=1e-6)
        own = (p[i // 20][y[i]] - np.delete(p[i // 20], y[i]).max() + 1) / 2
        assert rankings["confident learning"][i] == pytest.approx(1 - own, abs=1e-6)
        assert rankings["loss in training"][i] == pytest.approx(
            np.mean([-np.log(p[k][y[i]]) for k in range(3) if k != i // 20]), abs=1e-5)


def test_the_first_are_no_more_than_are_wrong_and_ties_come_by_chance():
    wrong = np.arange(800) < 67
    best = -np.arange(800.0)
    table = ranking_scores(wrong, {"best": best, "none": np.zeros(800)}).set_index(["ranking", "metric"])
    assert set(table["first"]) == {67} and table.value["best", "precision"] == 1
    assert table.value["none", "precision"] < 0.2 and table.low["none", "precision"] <= table.value["none", "precision"] <= table.high["none", "precision"]


def test_scores_are_scikit_learns_and_intervals_hold_them():
    rng = np.random.default_rng(3)
    wrong = rng.random(500) < 0.2
    doubt = wrong + rng.normal(0, 1, 500)
    table = ranking_scores(wrong, {"good": doubt, "random": rng.random(500)}, first=50).set_index(["ranking", "metric"])
    assert table.value["good", "auroc"] == pytest.approx(roc_auc_score(wrong, doubt))
    assert table.value["good", "precision"] == wrong[np.argsort(-doubt)[:50]].mean()
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert table.low["random", "auroc"] < 0.5 < table.high["random", "auroc"]
    for judge in (np.zeros(9, bool), np.ones(9, bool)):
        with pytest.raises(DataError, match="some, not all, expected"):
            ranking_scores(judge, {"x": np.arange(9)})


def test_label_errors_are_looked_for_without_training_on_official_test_images(monkeypatch):
    ds, _ = make_faces(210, seed=9, defects=None, balance="uniform", splits=(.6, .2, .2))
    ds = ds.assign(vote_label=np.roll(ds.df.label, 1))
    trained = []

    class Fixed(torch.nn.Module):
        labels = ds.labels

        def forward(self, x):
            return x.flatten(1)[:, :7]

    def fit(train, fit, seed):
        trained.append(train.df)
        return Fixed()
    monkeypatch.setattr(studies, "fit_network", fit)
    scores, probs = label_error_study(ds, k=2)
    assert len(trained) == 2 and set(pd.concat(trained).split) == {"train"}
    assert np.isfinite(probs).all(), "every image gets probabilities"
    assert (scores.n == (ds.df.split == "train").sum()).all(), "the votes judge the training split"
    given = ds.assign(label=np.where(ds.df.split == "train", ds.df.label, "happy"))   # other labels of other splits have no say
    assert label_error_study(given, k=2)[0].equals(scores)


def test_label_error_study_from_votes_to_scores(tmp_path):
    ds, truth = make_faces(245, seed=5, splits=(1, 0, 0), defects={"wrong_label": 0.1}, balance="uniform")
    real = ds.df.id.map(truth.set_index("id").detail).str.extract(r"(\w+)$")[0]
    ds = ds.assign(vote_label=[v if v in EMOTIONS else e for v, e in zip(real, ds.df.label)])
    ds.df.loc[::10, "vote_label"] = ""
    lines, file = [], tmp_path / "probabilities.csv"
    scores, probs = label_error_study(ds, Fit(epochs=1, bs=32), k=2, out=tmp_path, say=lines.append, probabilities=file)
    written = pd.read_csv(file, dtype={"id": str}).set_index("id")
    assert written.index.tolist() == ds.df.id.tolist() and np.allclose(written[list(ds.labels)], probs, atol=1e-4)
    assert len(lines) == 2 and len(training_costs(tmp_path)) == 2 and probs.shape == (245, 7) and np.allclose(probs.sum(1), 1, atol=1e-5)
    assert (scores.n == (ds.df.vote_label != "").sum()).all()
    again, same = label_error_study(ds, Fit(epochs=1, bs=32), k=2, out=tmp_path, say=lines.append)
    assert len(lines) == 2 and np.array_equal(same, probs)
    with pytest.raises(DataError, match="no votes"):
        label_error_study(make_faces(30)[0])
    with pytest.raises(ConfigError, match="'fair'"):
        protocol_parts(audit(ds, ("duplicate",), search=None).grouped(), "fair")

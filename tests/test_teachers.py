"""Teachers: the interface, cached logits that survive a kill and refuse another's, landmarks, annotators, files, mixing."""
import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders, Transform
from fastai.torch_core import TensorImageBW
from PIL import Image
from torch import nn

import fer_nb.teachers
from fer_nb.augment import Augment
from fer_nb.balance import ClassAugment
from fer_nb.config import Data, Fit
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, LabelError
from fer_nb.data import VOTE_COLUMNS, FERData
from fer_nb.distill import EADD, recalls
from fer_nb.loaders import ReplayLoader, dataloaders, make_splits
from fer_nb.models import HyFER, load, load_teacher, save, weights_digest
from fer_nb.store import Store, digest, plain
from fer_nb.synth import make_faces
from fer_nb.teachers import (AnnotatorTeacher, CachedLogits, FileTeacher, Geometry, LandmarkTeacher, NetworkTeacher, OnlineLogits, StaleCacheError,
                             TeacherBase, geometry_features, make_teachers, teacher_logits)
from toys import fit, flat, small_net

DATA = Data(near_duplicates=False)


@pytest.fixture()
def dls(view_dls):
    return view_dls


@pytest.fixture(scope="module")
def splits():
    return make_splits(make_faces(400, seed=0)[0], DATA)


def the_teacher(fit):
    "Of a run that has no other."
    return make_teachers([fit])[0]


def repeated(ds, rare, augment, minority_augment):
    "Positions of an epoch that shows the classes `rare` twice, and an augmentation that treats them differently."
    rows = np.concatenate([np.arange(len(ds)), np.flatnonzero(ds.df.label.isin(rare))])
    keys = np.flatnonzero(ds.df.label.iloc[rows].isin(rare))
    return rows, ClassAugment(augment, minority_augment, tuple(keys.tolist()))


# ---- the cache ----

class Counting(nn.Module):
    """A teacher that counts its calls and may die."""
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
    assert len(list(tmp_path.glob("[!.]*.npz"))) == left and not list(tmp_path.glob(".*"))
    (tmp_path / ".train-0001.123.npz").write_bytes(b"half")            # what a SIGKILL may leave
    again, whole = Counting(), teacher_logits(Counting(), dls.train, dls.valid, bs=1000)
    cached = teacher_logits(again, dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert again.asked == 4 - left
    assert np.array_equal(cached.train, whole.train) and np.array_equal(cached.valid, whole.valid) and cached.labels == whole.labels


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_a_damaged_view_is_asked_again(dls, tmp_path, content):
    whole = teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    (tmp_path / "train-0001.npz").write_bytes(content)
    again = Counting()
    with pytest.warns(UserWarning, match="made again"):
        cached = teacher_logits(again, dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert again.asked == 1 and np.array_equal(cached.train, whole.train)


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
    cached = teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    train, valid, kwargs = other_runs()[what]
    other = dataloaders(train, valid, bs=32, **{"views": 2, **kwargs})
    asked = Counting()
    with pytest.raises(StaleCacheError, match=what) as e:
        teacher_logits(asked, other.train, other.valid, folder=tmp_path)
    assert isinstance(e.value, FERError) and asked.asked == 0
    if what == "augmentation":
        assert "rotate" in str(e.value) and "hflip" not in str(e.value)
    with pytest.raises(StaleCacheError):
        fit(other, [EADD([cached])])


def test_other_weights_and_another_name_are_stale(dls, tmp_path):
    teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)
    changed = Counting()
    with torch.no_grad():
        changed.net[2].bias[0] += 1e-6
    with pytest.raises(StaleCacheError, match="teacher is "):
        teacher_logits(changed, dls.train, dls.valid, folder=tmp_path)
    with pytest.raises(StaleCacheError, match="name"):
        teacher_logits(Counting(), dls.train, dls.valid, "other", folder=tmp_path)


def test_another_normalisation_is_another_teacher(dls, tmp_path):
    """Mean and spread are no part of a state dict, but of what is mean."""
    teacher = HyFER(in_chans=1, variant="light")
    teacher_logits(teacher, dls.train, dls.valid, folder=tmp_path)
    teacher.adapt.mean += 0.1
    with pytest.raises(StaleCacheError, match="teacher is "):
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
    for rare in (["disgust"], ["happy"]):
        rows, augment = repeated(train, rare, Augment(), Augment(brightness=0.1))
        dls = dataloaders(train, valid, bs=16, rows=rows, augment=augment, views=2)
        keys.append(CachedLogits.key_of(dls.train, dls.valid))
    assert max(len(json.dumps(k)) for k in keys) < 1500 and keys[0] != keys[1]


@pytest.mark.parametrize("key", ["", "{}", "[]", "\xff"])
def test_a_foreign_key_is_refused(dls, tmp_path, key):
    (tmp_path / "identity.json").write_text(key, encoding="latin-1")
    with pytest.raises(StaleCacheError, match="absent|identity.json"):
        teacher_logits(Counting(), dls.train, dls.valid, folder=tmp_path)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_logits_that_are_not_finite_name_the_image(dls, tmp_path, value):
    class Broken(Counting):
        def forward(self, x):
            z = super().forward(x)
            z[3, 0] = value
            return z

    with pytest.raises(DataError, match=f"counting.*{dls.train.ds.df.id.iloc[3]}"):
        teacher_logits(Broken(), dls.train, dls.valid, bs=1000, folder=tmp_path)
    assert not list(tmp_path.glob("[!.]*.npz"))


def test_a_cached_run_is_the_online_run(dls, tmp_path):
    """On the same views, up to the 16 bits that are cached: the online teacher rounds its answers likewise."""
    class Rounded(Counting):
        def forward(self, x):
            return super().forward(x).half().float()

    cached = teacher_logits(Rounded(), dls.train, dls.valid, folder=tmp_path)
    with_cache, online = fit(dls, [EADD([cached])], epochs=3), fit(dls, [EADD([Rounded()])], epochs=3)
    torch.testing.assert_close(flat(with_cache.model), flat(online.model), atol=1e-4, rtol=1e-3)
    assert cached.train.dtype == np.float16


def test_the_mean_of_all_views_stands_for_any_view(dls):
    cached = teacher_logits(small_net(1), dls.train, dls.valid)
    mean = cached.mean()
    for table, one in ((cached.train, mean.train), (cached.valid, mean.valid)):
        z = table.astype(np.float64)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        np.testing.assert_allclose(one, log_p.mean(0, keepdims=True), atol=5e-3)
    mean.check(*(ReplayLoader(d.ds, 8, d.train, d.augment, 9, None) for d in (dls.train, dls.valid)))
    with pytest.raises(StaleCacheError, match="training images"):
        mean.check(dls.valid, dls.valid)


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


def seen_by(net, geometry, train, valid):
    "What a landmark teacher with this network and these faces caches."
    teacher = LandmarkTeacher(Fit("geometry"))
    teacher.network, teacher.geometry = net, geometry
    return teacher.cache(train, valid)


@pytest.fixture(scope="module")
def world():
    faces = make_faces(160, seed=0, defects=None)[0]
    geometry = hints(faces)
    return faces, geometry, geometry.fit(faces.where(split="train"), Fit(epochs=10, bs=32))


def test_a_geometry_teacher_joins_and_is_silent(world, dls):
    faces, geometry, net = world
    cached = seen_by(net, geometry, dls.train, dls.valid)
    assert cached.train.shape[0] == 1 and (cached.train[0][~cached.train_mask] == 0).all() and not cached.train_mask.all()
    eadd = EADD([cached, small_net(7)])
    fit(dls, [eadd])
    spoke = cached.valid_mask
    right = cached.valid[0].argmax(1) == dls.valid.y.numpy()
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
    a, b = (seen_by(net, geometry, d.train, d.valid) for d in (dls, plain))
    assert np.array_equal(a.train, b.train[:, rows]) and np.array_equal(a.train_mask, b.train_mask[rows])
    copies = train.take([0, 1])
    copies.df["source"], copies.df["id"] = copies.df.id.copy(), ["copy/a", "copy/b"]
    assert np.array_equal(geometry.rows(copies), geometry.rows(train.take([0, 1])))


def test_mirrored_features_are_used_where_the_view_is_mirrored(world):
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    other = Geometry(geometry.ids, geometry.features, geometry.found, -geometry.features)
    always, never = (dataloaders(train, valid, views=1, augment=Augment(hflip=p)) for p in (1.0, 0.0))
    a, b, plain = (seen_by(net, g, d.train, d.valid) for g, d in ((other, always), (other, never), (geometry, never)))
    assert np.array_equal(b.train, plain.train) and not np.array_equal(a.train, b.train)
    endless = dataloaders(train, valid)
    with pytest.raises(ConfigError, match="views"):
        seen_by(net, other, endless.train, endless.valid)
    fit(endless, [EADD([seen_by(net, geometry, endless.train, endless.valid)])], epochs=1)


def test_mirroring_follows_the_class_of_an_image(world):
    """Minority classes may be mirrored more or less often than the others; validation images are no minority."""
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    still = {"rotate": 0, "translate": 0, "scale": (1, 1)}
    rows, augment = repeated(train, ["disgust", "surprise"], Augment(hflip=0.5, **still), Augment(hflip=0.0, **still))
    dls = dataloaders(train, valid, bs=16, rows=rows, augment=augment, views=2)
    ids = np.arange(len(rows))
    moved = (dls.train.images(ids, 1) - dls.train.x[ids].float() / 255).abs().amax((1, 2, 3)) > 1e-2
    other = Geometry(geometry.ids, geometry.features, geometry.found, -geometry.features)
    mean = seen_by(net, other, dls.train, dls.valid)
    as_is, mirrored = (seen_by(net, Geometry(geometry.ids, f, geometry.found), dls.train, dls.valid).train[0]
                       for f in (geometry.features, -geometry.features))
    assert 0 < moved.sum() < (ids >= 0).sum()
    assert np.array_equal(mean.train[1], np.where(moved.numpy()[:, None], mirrored, as_is))


def test_logits_of_landmarks_that_are_not_finite_name_the_image(world, dls):
    faces, geometry, net = world
    wild = geometry.features.copy()
    at = geometry.rows(dls.train.ds)[geometry.found[geometry.rows(dls.train.ds)]][0]
    wild[at] = 1e9                                                     # far outside of what the teacher was trained on
    with pytest.raises(DataError, match=f"geometry.*{geometry.ids[at]}"):
        seen_by(net, Geometry(geometry.ids, wild, geometry.found), dls.train, dls.valid)


def test_geometry_does_not_depend_on_the_augmentation(world):
    faces, geometry, net = world
    train, valid = faces.where(split="train"), faces.where(split=["valid", "test"])
    cached = [seen_by(net, geometry, d.train, d.valid) for d in
            (dataloaders(train, valid, views=2, seed=s, augment=Augment(rotate=r)) for s, r in ((0, 0.0), (1, 20.0)))]
    assert np.array_equal(cached[0].train, cached[1].train)
    fit(dataloaders(train, valid, bs=32, views=5, seed=9), [EADD(cached[:1])], epochs=1)


def test_faces_without_features_and_features_without_numbers(world):
    faces, geometry, _ = world
    with pytest.raises(DataError, match="not finite"):
        Geometry(geometry.ids, geometry.features, np.ones(len(faces), bool))
    none = Geometry(geometry.ids, geometry.features, np.zeros(len(faces), bool))
    with pytest.raises(DataError, match="0 images with a face"):
        none.fit(faces)
    with pytest.raises(ValueError, match="dimension 0"):
        geometry_features(np.zeros((2, 52)), np.zeros((3, 478, 3)))


def test_files_of_any_sizes_are_looked_at_one_by_one_mirrored_too(tmp_path, monkeypatch):
    arrays, paths = [], []
    for k, (image, side) in enumerate(zip(make_faces(9, seed=1, size=96, defects=None)[0].array()[:3], (96, 128, 160))):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(image).resize((side, side)).save(paths[-1])
        arrays.append(np.asarray(Image.open(paths[-1])))
    df = pd.DataFrame({"id": list("abc"), "label": "happy", "split": "train"})
    expected = [Geometry.find(FERData(df.iloc[[k]].reset_index(drop=True), np.ascontiguousarray(a[None, :, ::side])), mirrored=False,
                              cache=False).features for side in (1, -1) for k, a in enumerate(arrays)]
    monkeypatch.setattr(FERData, "array", lambda self: pytest.fail("all pixels at once"))
    found = Geometry.find(FERData(df, paths), cache=False)
    assert np.array_equal(np.concatenate(expected), np.concatenate([found.features, found.mirrored]), equal_nan=True)
    assert found.found.any()


def test_geometry_features_survive_a_face_that_was_not_found():
    points = np.random.default_rng(0).random((2, 478, 3))
    points[1] = np.nan
    features = geometry_features(np.zeros((2, 52)), points)
    assert features.dtype == np.float32 and features.shape == (2, 52 + 956)
    assert np.isfinite(features[0]).all() and np.isnan(features[1, 52:]).all()


# ---- the interface ----

class Prior(TeacherBase):
    "The frequencies of the labels: the smallest teacher there is."

    names = ("prior",)

    def fit(self, splits, seed=0, store=None, show=False):
        self.labels, n = splits.train.labels, np.bincount(splits.train.targets(), minlength=len(splits.train.labels))
        self.table = np.log((n + 1) / (n + 1).sum()).astype(np.float32)
        return pd.DataFrame()

    def logits(self, ds):
        return np.tile(self.table, (len(ds), 1))


@pytest.fixture(scope="module", autouse=True)
def only_here():
    yield
    TeacherBase.kinds.remove(Prior)


def test_a_kind_without_logits_is_refused():
    kinds = list(TeacherBase.kinds)
    try:
        class Mute(TeacherBase):
            names = ("mute",)

        with pytest.raises(TypeError, match="abstract.*logits"):
            the_teacher(Fit("mute"))
    finally:
        TeacherBase.kinds[:] = kinds


def test_a_fifth_kind_is_one_class(splits, dls):
    """Found by its name, cached without a line of its own, and a teacher for EADD."""
    teacher = the_teacher(Fit("prior"))
    assert isinstance(teacher, Prior) and teacher.name == "prior" and len(teacher.fit(splits)) == 0
    loaders = dataloaders(splits.train, splits.valid, bs=32, views=3)
    cached = teacher.cache(loaders.train, loaders.valid)
    assert cached.train.shape == (1, len(splits.train), 7) and cached.train_mask.all() and "seed" not in cached.key
    eadd = EADD([cached, small_net(7)])
    fit(loaders, [eadd])
    assert set(eadd.history.teacher) == {"prior", "Sequential"}


@pytest.mark.parametrize("network, kind", [("resnet18", NetworkTeacher), ("light", NetworkTeacher), ("a/b.safetensors", FileTeacher),
                                           ("landmarks", LandmarkTeacher), ("geometry", LandmarkTeacher),
                                           ("annotators", AnnotatorTeacher)])
def test_the_name_says_the_kind(network, kind):
    assert type(the_teacher(Fit(network))) is kind


def test_names_are_told_apart():
    def names(*fits):
        return [t.name for t in make_teachers(fits)]

    small, large = Fit("resnet18", 32), Fit("resnet18", 40)
    assert names(small, large, small, Fit("geometry")) == ["resnet18 (1)", "resnet18 40 px", "resnet18 (3)", "geometry"]
    assert names(Fit("a/student.safetensors"), Fit("b/student.safetensors")) == ["student (1)", "student (2)"]
    assert names(Fit("resnet18.safetensors"), small) == ["resnet18", "resnet18 32 px"]
    with pytest.raises(ConfigError, match="annotators twice"):
        make_teachers([Fit("annotators")] * 2)


@pytest.mark.parametrize("network", ["geometry", "annotators", "old.safetensors"])
def test_mixing_is_for_networks_that_are_fitted_to_images(network):
    with pytest.raises(ConfigError, match="mix=0.4"):
        the_teacher(Fit(network, mix=0.4))


def test_a_teacher_can_be_fitted_to_mixed_images(splits):
    weights = []
    for mix in (None, 0.4, 0.4):
        teacher = the_teacher(Fit("lcnet_050", 32, pretrained=False, epochs=1, lr=1e-3, bs=32, mix=mix))
        assert np.isfinite(teacher.fit(splits).train_loss).all()
        weights.append(teacher.network.net.classifier.weight.detach())
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_each_place_has_weights_of_its_own_and_a_checkpoint(splits, tmp_path):
    store, spec = Store(tmp_path, {"run": 1}), Fit("light", epochs=1, bs=64)
    first, second = make_teachers([spec, spec])
    history = first.fit(splits, 0, store)
    second.fit(splits, 0, store)
    assert not torch.equal(flat(first.network), flat(second.network))
    assert {p.name for p in tmp_path.iterdir()} == {"identity.json", "teacher-0-light.ckpt", "teacher-1-light.ckpt"}
    again = make_teachers([spec, spec])[0]
    assert again.fit(splits, 0, store).equals(history) and torch.equal(flat(again.network), flat(first.network))
    dls = dataloaders(splits.train, splits.valid, bs=32, views=1, seed=5)
    first.cache(dls.train, dls.valid, store)
    assert (tmp_path / "logits-0-light-5" / "train-0000.npz").is_file()


# ---- files ----

def test_a_trained_network_teaches_as_it_is(splits, tmp_path):
    torch.manual_seed(0)
    path = save(HyFER(in_chans=1, variant="light"), tmp_path / "own.safetensors", data="my_faces")
    teacher = the_teacher(Fit(str(path)))
    assert len(teacher.fit(splits)) == 0 and teacher.name == teacher.network.name == "own" and not teacher.network.training
    assert teacher.logits(splits.test).shape == (len(splits.test), 7)


@pytest.mark.parametrize("record, differs", [({"seed": 1}, "seed 1, here 0"), ({"fingerprint": "f00"}, "fingerprint f00, here"),
                                             ({"trained on": 7}, "trained on 7, here"),
                                             ({"data": {"trained on": 7}}, "trained on 7, here")])
def test_a_network_that_may_know_the_held_out_images_is_refused(splits, tmp_path, record, differs):
    path = save(HyFER(in_chans=1, variant="light"), tmp_path / "other.safetensors", **record)
    with pytest.raises(DataError, match=f"other.safetensors: .*{differs}"):
        the_teacher(Fit(str(path))).check(splits, 0)


def test_files_that_cannot_teach_are_refused(splits, tmp_path):
    path = save(HyFER(2, 1, "light", labels=("sad", "happy")), tmp_path / "other.safetensors")
    with pytest.raises(LabelError, match="labels sad, happy; angry"):
        the_teacher(Fit(str(path))).check(splits)
    with pytest.raises(DataError, match="gone.safetensors"):
        the_teacher(Fit(str(tmp_path / "gone.safetensors"))).check(splits)


# ---- landmarks and annotators in a run ----

def test_a_landmark_teacher_is_kept_and_not_fitted_again(splits, tmp_path, monkeypatch):
    ds, spec = splits.audit.ds, Fit("geometry", epochs=2)
    features = np.random.default_rng(0).normal(size=(len(ds), 6)).astype(np.float32)
    known = Geometry(ds.df.id.tolist(), features, np.ones(len(features), bool))
    monkeypatch.setattr(Geometry, "find", lambda ds, **more: known)
    store, first = Store(tmp_path, {"run": 1}), the_teacher(spec)
    first.fit(splits, 0, store)
    monkeypatch.setattr(Geometry, "fit", None)
    again = the_teacher(spec)
    again.fit(splits, 0, store)
    assert weights_digest(again.network) == weights_digest(first.network) and not again.network.training
    assert np.array_equal(again.logits(splits.test), first.logits(splits.test)) and again.network.name == "geometry"
    with pytest.raises(StaleCacheError, match="teacher-0-geometry.ckpt: of something else: fit.epochs is 2 there and 3 here"):
        the_teacher(replace(spec, epochs=3)).fit(splits, 0, store)
    with pytest.raises(StaleCacheError, match="seed"):
        the_teacher(spec).fit(splits, 1, store)


def test_annotators_need_votes_and_have_no_opinion_without(splits):
    teacher = the_teacher(Fit("annotators"))
    with pytest.raises(DataError, match="vote_neutral.*add_votes"):
        teacher.check(splits)
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, 0.6 * np.eye(10)[rng.integers(0, 7, len(splits.audit.ds))] + 0.04)
    votes[::10] = 0
    ds = make_faces(400, seed=0)[0]
    voted = make_splits(ds.assign(**dict(zip(VOTE_COLUMNS, votes.T))), DATA)
    teacher.check(voted)
    teacher.fit(voted)
    silent = (voted.test.df[list(VOTE_COLUMNS)] == 0).all(axis=1).to_numpy()
    assert silent.any() and (teacher.logits(voted.test) == 0).all(1).tolist() == silent.tolist()
    dls = dataloaders(voted.train, voted.valid, bs=32)
    cached = teacher.cache(dls.train, dls.valid)
    assert isinstance(cached, CachedLogits) and not cached.train_mask.all()


# ---- networks and loaders that are none of a teacher's ----

class Says(nn.Module):
    "A network that returns what a function of the flat images says."

    def __init__(self, says, labels=small_net(0).labels):
        super().__init__()
        self.says, self.labels = says, labels

    def forward(self, x):
        return self.says(x.flatten(1))


@pytest.mark.parametrize("net, error, text", [
    (Says(lambda x: x[:, :7], None), LabelError, "does not name its outputs"), (Says(lambda x: x[:, :7].softmax(1)), ConfigError, "softmax"),
    (Says(lambda x: x[:, :5]), ConfigError, r"expected logits \(\d+, 7\)"), (Says(lambda x: nn.Conv2d(3, 7, 3)(x[:, :9].view(-1, 1, 3, 3))),
                                                                          ConfigError, "cannot read images of 1 channels")],
    ids=["no labels", "softmax", "five outputs", "colour"])
def test_a_network_that_is_no_teacher_is_said_before_anything_is_cached(dls, net, error, text):
    with pytest.raises(error, match=text):
        teacher_logits(net, dls.train, dls.valid)


class Upside(Transform):
    "Of pictures."
    def encodes(self, x: TensorImageBW):
        return x.flip(-2)


def test_cached_logits_do_not_know_what_is_done_to_batches(dls):
    cached = teacher_logits(small_net(1), dls.train, dls.valid, "t")
    dls.train.after_batch.add(Upside())
    try:
        with pytest.raises(ConfigError, match="after_batch"):
            teacher_logits(small_net(1), dls.train, dls.valid)
        with pytest.raises(ConfigError, match="after_batch"):
            fit(dls, [EADD([cached])], 1)
        fit(dls, [EADD([cached.mean()])], 1)  # of no view in particular
    finally:
        dls.train.after_batch.fs.clear()
    dls.valid.after_batch.add(Upside())
    with pytest.raises(ConfigError, match="after_batch of the validation loader"):
        teacher_logits(small_net(1), dls.train, dls.valid)


@dataclass(frozen=True)
class Negative(Augment):
    "Somebody's: the fields of `Augment`, other images."

    def __call__(self, x, ids, view=0, seed=0):
        return 1 - super().__call__(x, ids, view, seed)


class Negative2(Augment):
    "Another."
    __qualname__, by = "Negative", 0.5

    def __call__(self, x, ids, view=0, seed=0):
        return self.by - super().__call__(x, ids, view, seed)


def test_the_class_of_an_augmentation_belongs_to_the_key(dls, tmp_path):
    def key(augment):
        dls.train.augment = augment
        return CachedLogits.key_of(dls.train, dls.valid)

    assert key(Augment())["augmentation"] == plain(asdict(Augment()))        # what stored caches have
    classes = ClassAugment(Augment(), Augment(hflip=0.0), (1,))
    assert key(classes)["augmentation"] == plain(asdict(classes) | {"minor": digest(np.array((1,)))})
    own = [Augment(), Negative(), Negative2(), classes, replace(classes, augment=Negative()), replace(classes, minority=Negative2())]
    keys = [json.dumps(key(a)) for a in own]
    assert len(set(keys)) == len(own) and key(Negative()) == key(Negative())
    dls.train.augment = Augment()
    cached = teacher_logits(small_net(1), dls.train, dls.valid, "t", folder=tmp_path)
    fit(dls, [EADD([cached])], 1)
    dls.train.augment = Negative()
    with pytest.raises(StaleCacheError, match="Negative"):
        fit(dls, [EADD([cached])], 1)
    with pytest.raises(StaleCacheError, match="Negative"):
        teacher_logits(small_net(1), dls.train, dls.valid, "t", folder=tmp_path)


# ---- logits from anywhere ----

def by_hand(dls, train_mask=None, valid_mask=None, nan=(), dtype=np.float16):
    rng = np.random.default_rng(0)
    tables = [(4 * np.eye(7)[dl.y.numpy()] + rng.normal(size=(len(dl.y), 7)))[None].astype(dtype) for dl in (dls.train, dls.valid)]
    tables[0][0, list(nan)] = np.nan
    return CachedLogits("by hand", small_net(0).labels, *tables, {}, train_mask, valid_mask)


def test_a_mask_of_numbers_is_one_of_truth_values(dls):
    masks = [np.arange(len(dl.y)) % 2 == 0 for dl in (dls.train, dls.valid)]
    for accuracy in ("valid", "running"):
        ends = [fit(dls, [EADD([by_hand(dls, *given)], accuracy=accuracy)], 1) for given in (masks, [m.astype(int) for m in masks], [m.tolist() for m in masks])]
        assert all(np.array_equal(ends[0].eadd.acc, e.eadd.acc) and torch.equal(flat(ends[0].model), flat(e.model)) for e in ends[1:])
    assert recalls(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, np.array([1, 0, 1])).tolist() == [1, 1]


def test_nan_counts_where_the_teacher_has_an_opinion(dls):
    dls.train.epoch = 0
    late = int(dls.train.get_idxs()[40])                                     # not in the first batch
    mask = np.arange(len(dls.train.y)) != late
    ends = [flat(fit(dls, [EADD([by_hand(dls, mask, nan=nan)])]).model) for nan in ((), [late])]
    assert ends[0].isfinite().all() and torch.equal(*ends)
    for given in (None, np.roll(mask, 1)):
        with pytest.raises(DataError, match=f"by hand: train: the logits of row {late} in view 0 are not finite"):
            by_hand(dls, given, nan=[late])


class Shy(OnlineLogits):
    "A teacher of somebody's that says NaN where it abstains."

    def batch_logits(self, learn):
        z, _ = super().batch_logits(learn)
        mask = torch.arange(len(z)) % 3 > 0
        return z.masked_fill(~mask[:, None], torch.nan), mask


def test_nan_of_any_teacher_that_abstains_does_not_count(dls):
    assert flat(fit(dls, [EADD([Shy(small_net(1)), small_net(2)], accuracy="running")], 1).model).isfinite().all()


@pytest.mark.parametrize("change, text", [
    ({"train": np.zeros((40, 7))}, r"train is float64 \(40, 7\)"), ({"labels": ("a", "b")}, r"\(views, images, 2\)"),
    ({"valid_mask": np.ones(3, bool)}, r"valid_mask is bool \(3,\)"), ({"valid_mask": np.full(56, 0.5)}, "True or False for each of the")])
def test_a_table_that_is_none_is_said_at_once(dls, change, text):
    with pytest.raises(DataError, match=text):
        replace(by_hand(dls), **change)


def test_logits_of_other_types_are_taken(dls):
    one = by_hand(dls, dtype=np.float64)
    whole = replace(one, train=one.train.round().astype(int), valid=torch.tensor(one.valid))
    assert isinstance(whole.valid, np.ndarray) and fit(dls, [EADD([whole])], 1).eadd.acc.shape == (1, 7)


@pytest.mark.parametrize("given", [lambda t: t.bfloat16(), lambda t: t.requires_grad_()], ids=["bfloat16", "with a gradient"])
def test_tensors_of_any_kind_are_logits_and_masks(dls, given):
    one = by_hand(dls, dtype=np.float32)
    mask = given(torch.ones(len(dls.valid.y)))
    made = replace(one, train=given(torch.tensor(one.train)), valid=given(torch.tensor(one.valid)), valid_mask=mask)
    assert made.train.dtype == np.float32 and np.allclose(made.train, one.train, atol=0.05) and made.valid_mask.all()


def test_a_network_with_branches_is_asked_fused_and_stays_as_it_was(dls, monkeypatch):
    torch.manual_seed(0)
    net = HyFER(in_chans=1, variant="light_full").eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
    before, asked, view_logits = weights_digest(net), [], fer_nb.teachers._view_logits
    monkeypatch.setattr(fer_nb.teachers, "_view_logits", lambda teacher, *a: asked.append(teacher) or view_logits(teacher, *a))
    found = teacher_logits(net, dls.train, dls.valid)
    assert asked and not any(isinstance(m, torch.nn.BatchNorm2d) for one in asked for m in one.blocks.modules())
    assert weights_digest(net) == before == found.key["teacher"]
    with torch.no_grad():
        for view in range(dls.train.views):
            own = net(dls.train.images(np.arange(len(dls.train.x)), view)).numpy()
            np.testing.assert_allclose(found.train[view].astype(float), own, atol=4e-3 * np.abs(own).max())


def test_a_network_from_a_file_is_asked_where_the_batches_go_and_goes_back(splits, dls, tmp_path, monkeypatch):
    path = save(HyFER(in_chans=1, variant="light"), tmp_path / "own.safetensors", data="my_faces")
    teacher = the_teacher(Fit(str(path), device="cpu"))
    teacher.fit(splits)
    places, real = [], fer_nb.teachers.eval_mode
    monkeypatch.setattr(fer_nb.teachers, "eval_mode", lambda net, device=None: places.append(device and str(device)) or real(net, device))
    teacher.cache(dls.train, dls.valid)
    assert places[0] == str(dls.train.device)
    places.clear()
    teacher.logits(splits.test)
    assert places[0] == "cpu" and next(teacher.network.parameters()).device.type == "cpu"


def test_a_teacher_that_resizes_does_not_share_a_cache_with_one_that_does_not(tmp_path):
    faces = make_faces(60, seed=1, defects=None, size=64)[0]
    dls = dataloaders(faces.take(np.arange(40)), faces.take(np.arange(40, 60)), bs=8, device="cpu", views=1)
    torch.manual_seed(0)
    path = save(HyFER(7, 1, "light", labels=faces.labels), tmp_path / "t.safetensors")
    plain, resizing = load(path, "t"), load_teacher(path, "t")
    first = teacher_logits(plain, dls.train, dls.valid, folder=tmp_path / "cache")
    with pytest.raises(StaleCacheError, match="resized is"):
        teacher_logits(resizing, dls.train, dls.valid, folder=tmp_path / "cache")
    own = teacher_logits(resizing, dls.train, dls.valid)
    assert not np.array_equal(first.train, own.train) and own.key["resized"] == 48
    assert OnlineLogits(plain).key != OnlineLogits(resizing).key


def test_a_function_that_augments_cannot_be_cached(dls):
    train = ReplayLoader(dls.train.ds, 8, train=True, augment=lambda x, ids, view, seed: x, views=2)
    with pytest.raises(ConfigError, match="augment is a function"):
        teacher_logits(small_net(0), train, dls.valid, name="t")


def test_cached_logits_without_validation_images_are_refused(dls):
    cached = teacher_logits(small_net(3).eval(), dls.train, dls.valid, name="t")
    with pytest.raises(ConfigError, match="no validation images"):
        fit(DataLoaders(dls.train), [EADD([cached])])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_teacher_of_another_precision_is_asked_in_it(dls, kind):
    net = small_net(7).to(kind)
    for accuracy in ("running", "valid"):
        fit(dls, [eadd := EADD([net], accuracy=accuracy)], epochs=1)
        assert len(eadd.history) == 7
    kept = teacher_logits(net, dls.train, dls.valid)
    assert kept.train.dtype == np.float16

    class Deaf(nn.Module):
        labels, name = net.labels, "deaf"

        def __init__(self):
            super().__init__()
            self.net, self.calls = net, 0

        def forward(self, x):
            self.calls += 1
            return self.net(x)[:, :1 if self.calls > 2 else 7]
    with pytest.raises(ConfigError, match="teacher deaf returned"):
        fit(dls, [EADD([Deaf()])], epochs=1)


@pytest.mark.parametrize("count", [np.nan, np.inf, -1])
def test_votes_that_are_no_counts_are_refused(splits, count):
    table = splits.train.df.assign(**{c: 1.0 for c in VOTE_COLUMNS}).reset_index(drop=True)
    table.loc[2, VOTE_COLUMNS[3]] = count
    with pytest.raises(DataError, match=f"image '{table.id[2]}' has votes .*{count}.*at least 0 expected"):
        AnnotatorTeacher.features(splits.train.replace(df=table))


@pytest.mark.parametrize("offset", [0, 1000, 70_000])
def test_an_offset_of_all_classes_costs_no_digits(dls, offset):
    class Shifted(nn.Module):
        name, labels = "shifted", EMOTIONS

        def __init__(self):
            super().__init__()
            self.net = small_net(7).double()

        def forward(self, x):
            return 5 * self.net(x.double()) + offset

    kept = teacher_logits(Shifted(), dls.train, dls.valid).train[dls.train.view].astype(np.float64)
    with torch.no_grad():
        expected = (5 * small_net(7).double().eval()(dls.train.images(np.arange(len(kept))).double())).softmax(1)
    assert (kept.max(1) == 0).all() == (offset > 0)          # ordinary logits are cached as they are
    torch.testing.assert_close(torch.from_numpy(kept).softmax(1), expected, atol=2e-3, rtol=1e-2)


def test_geometry_of_pandas_and_of_an_image_twice():
    features = np.arange(12, dtype=np.float64).reshape(3, 4)
    table = pd.DataFrame(features, index=[7, 8, 9])
    made = Geometry(pd.Series(["a", "b", "c"], index=[7, 8, 9]), table, pd.Series([1, 1, 0], index=[7, 8, 9]), table)
    assert made.ids == ["a", "b", "c"] and made.found.tolist() == [True, True, False]
    for side in (made.features, made.mirrored):
        assert side.dtype == np.float32 and (side[[2, 0]] == features[[2, 0]]).all()
    with pytest.raises(DataError, match="image 'a' has several rows; one expected"):
        Geometry(["a", "b", "a"], features, np.ones(3, bool))

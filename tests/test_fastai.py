"""What a fastai user does with the package's loaders means what it means in fastai, and nothing but a fit moves the epoch."""
import copy
import random
import warnings
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
import fastai.callback.data  # noqa: F401  (brings weighted_dataloaders)
from fastai.callback.schedule import LRFinder  # noqa: F401  (brings fit_one_cycle, fine_tune and lr_find)
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback  # noqa: F401  (brings Learner.no_bar)
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders, Transform
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter, Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, error_rate
from fastai.optimizer import SGD, OptimWrapper
from PIL import Image
from torch import nn

from fer_nb.audit import audit
from fer_nb.augment import Augment
from fer_nb.balance import balance
from fer_nb.config import Fit
from fer_nb.core import EMOTIONS, ConfigError, DataError, ImageError, LabelError, seed_everything
from fer_nb.data import FERData
from fer_nb.loaders import LoaderEpoch, ReplayLoader, ReplayLoaders, _warn_of_twins, dataloaders, folds, holdout
from fer_nb.sqs import QuadLoader, quad_dataloaders
from fer_nb.synth import make_faces
from fer_nb.train import Checkpoint, CheckpointError, KeepBest, ResumableLearner, fit_model, read_checkpoint

plt.switch_backend("agg")
FACES = make_faces(100, seed=0, defects=None)[0]
TRAIN, VALID = FACES.where(split="train"), FACES.where(split=["valid", "test"])


def loaders(**kwargs):
    return dataloaders(TRAIN, VALID, **{"bs": 16, "seed": 3, "device": "cpu"} | kwargs)


def net(out=7):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, out))


def learner(dls=None, cbs=(), kind=Learner, path="/tmp"):
    return kind(dls or loaders(), net(), CrossEntropyLossFlat(), SGD, lr=.1, path=Path(path), cbs=cbs)


def quietly(call, *args, **kwargs):
    "Call a method of a learner without bars and logs."
    with call.__self__.no_bar(), call.__self__.no_logging():
        return call(*args, **kwargs)


def flat(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.state_dict().values()])


class Seen(Callback):
    "Remembers the positions and pixels of every training batch."
    order, run_valid = -30, False

    def __init__(self):
        self.batches = []

    def before_batch(self):
        self.batches.append((self.dls.train.ids.tolist(), self.dls.train.view, self.x.sum().item()))


# ---- the epoch is the learner's ----

def stop_in(epoch):
    def before_batch(cb):
        if cb.training and cb.epoch == epoch and cb.iter == 1:
            raise KeyboardInterrupt
    return Callback(before_batch=before_batch)


def aborted(learn):
    state, opt = copy.deepcopy(learn.model.state_dict()), learn.opt
    with pytest.raises(KeyboardInterrupt):
        quietly(learn.fit, 3, cbs=stop_in(1))
    learn.model.load_state_dict(state)
    learn.opt = opt


BESIDE = {
    "lr_find": lambda learn: quietly(learn.lr_find, num_it=12, show_plot=False),
    "a long lr_find": lambda learn: quietly(learn.lr_find, num_it=60, show_plot=False, stop_div=False),
    "validate": lambda learn: [quietly(learn.validate, k) for k in (0, 1, 1)],
    "loops": lambda learn: [list(learn.dls.train) for _ in range(3)],
    "a loop broken off": lambda learn: next(iter(learn.dls.train)),
    "one_batch": lambda learn: [learn.dls.one_batch(), learn.dls.train.one_batch()],
    "get_preds": lambda learn: [quietly(learn.get_preds, ds_idx=k) for k in (0, 1)],
    "get_preds of the loader": lambda learn: quietly(learn.get_preds, dl=learn.dls.train),
    "show_batch": lambda learn: (learn.dls.show_batch(max_n=2), plt.close("all")),
    "tta": lambda learn: quietly(learn.tta, n=1),
    "predict": lambda learn: quietly(learn.predict, FACES.image(0)),
    "interpretation": lambda learn: quietly(learn.get_preds, with_loss=True),
    "an aborted fit": aborted,
    "an aborted fit, then validate": lambda learn: (aborted(learn), quietly(learn.validate)),
    "another learner's fit": lambda learn: quietly(learner(learn.dls).fit, 2),
}


@cache
def two_fits(beside=lambda learn: None, when="between two fits"):
    "All weights, and the batches, of two fits of a learner."
    learn, seen = learner(), Seen()
    for k in range(2):
        if (k == 1) == (when == "between two fits"):
            beside(learn)
        seed_everything(0)
        quietly(learn.fit, 2, cbs=seen)
    return flat(learn), seen.batches


@pytest.mark.parametrize("when", ["before the first fit", "between two fits"])
@pytest.mark.parametrize("what", BESIDE)
def test_what_is_no_fit_changes_nothing(what, when):
    """Bit-equal to the fits alone: weights, positions, views, pixels."""
    disturbed, alone = two_fits(BESIDE[what], when), two_fits()
    assert alone[1] == disturbed[1] and torch.equal(alone[0], disturbed[0])


@pytest.mark.parametrize("fits", [
    lambda learn, seen: [learn.fit(2, cbs=seen), learn.fit(2, cbs=seen)],
    lambda learn, seen: [learn.fit_one_cycle(1, cbs=seen), learn.fit_one_cycle(3, cbs=seen)],
    lambda learn, seen: learn.fine_tune(3, cbs=seen),
    lambda learn, seen: [learn.fit(2, cbs=seen), learn.fit(4, cbs=seen, start_epoch=2)]])
def test_the_next_fit_of_a_learner_goes_on_with_the_epochs(fits):
    """Order and pixels are those of a loop over the loader, whatever kind of fits made four epochs."""
    learn, seen, loader = learner(), Seen(), loaders().train
    with learn.no_bar(), learn.no_logging():
        fits(learn, seen)
    loop = [(loader.ids.tolist(), loader.view, x.sum().item()) for _ in range(4) for x, _ in loader]
    assert seen.batches == loop and learn.dls.train.epoch == loader.epoch == 4


def views(learn, *args, **kwargs):
    seen = Seen()
    with learn.no_bar(), learn.no_logging():
        learn.fit(*args, cbs=[seen, *kwargs.pop("cbs", ())], **kwargs)
    return [*dict.fromkeys(view for _, view, _ in seen.batches)]


def test_an_epoch_that_is_set_is_where_every_fit_begins():
    dls = loaders()
    dls.train.epoch = 5
    one, two = learner(dls), learner(dls)
    assert views(one, 2) == [5, 6] and views(one, 1) == [7] and views(two, 1) == [5]
    dls.train.epoch = 0
    assert views(one, 1) == [0] and views(one, 1) == [1] and views(two, 1) == [0]
    dls.train.epoch = 2                                                          # goes on by hand
    assert views(one, 4, start_epoch=2) == [2, 3] and views(one, 1) == [4] and views(learner(), 4, start_epoch=2) == [2, 3]


def test_an_early_stop_counts_the_epochs_that_were_trained():
    def after_epoch(cb):
        if cb.epoch == 1:
            raise CancelFitException
    learn = learner()
    assert views(learn, 5, cbs=[Callback(after_epoch=after_epoch)]) == [0, 1] and views(learn, 1) == [2]


def test_predictions_within_a_fit_do_not_move_it():
    class Looks(Callback):
        def after_epoch(self):
            if self.busy:
                return
            self.busy = True
            quietly(self.learn.get_preds)
            list(self.dls.train)
            self.busy = False

    look = Looks()
    look.busy = False
    learn = learner()
    assert views(learn, 3, cbs=[look]) == [0, 1, 2] and views(learn, 1) == [3]


def test_a_copied_learner_goes_on_as_the_first_would():
    learn = learner()
    views(learn, 2)
    assert views(copy.deepcopy(learn), 1) == views(learn, 1) == [2]


def test_learners_over_other_loaders_are_left_alone():
    plain = DataLoader([(torch.zeros(1, 48, 48), 0)] * 4, 2)
    assert not any(isinstance(cb, LoaderEpoch) for cb in learner(DataLoaders(plain, plain)).cbs)
    assert sum(isinstance(cb, LoaderEpoch) for cb in learner().cbs) == 1


# ---- fastai's calls ----

@pytest.fixture(scope="module")
def fitted():
    learn = learner()
    quietly(learn.fit, 1)
    return learn


def scores(learn, x):
    with torch.no_grad():
        return learn.model.eval()(x).softmax(1)


def pixels(ds):
    return torch.from_numpy(ds.array())[:, None].float() / 255


FORMS = {"arrays": lambda ds, tmp: [ds.image(i) for i in range(len(ds))], "one array": lambda ds, tmp: ds.array(),
         "floats": lambda ds, tmp: ds.array().astype(np.float32) / 255, "a tensor": lambda ds, tmp: pixels(ds),
         "tensors": lambda ds, tmp: list(pixels(ds)), "pillow": lambda ds, tmp: [*map(Image.fromarray, ds.array())],
         "colour": lambda ds, tmp: [*np.repeat(ds.array()[..., None], 3, -1)], "FERData": lambda ds, tmp: ds,
         "files": lambda ds, tmp: [saved(im, tmp / f"{k}.png") for k, im in enumerate(ds.array())],
         "a series of names": lambda ds, tmp: pd.Series([str(saved(im, tmp / f"{k}.png")) for k, im in enumerate(ds.array())])}


def saved(image, path):
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("plain", [False, True], ids=["ReplayLoaders", "DataLoaders"])
@pytest.mark.parametrize("form", FORMS)
def test_new_images_give_predictions_of_themselves(fitted, form, plain, tmp_path):
    new = make_faces(7, seed=9, defects=None)[0].take(range(5))
    learn = learner(DataLoaders(*fitted.dls.loaders)) if plain else fitted
    learn.model = fitted.model
    dl = learn.dls.test_dl(FORMS[form](new, tmp_path), bs=2)
    z, y = quietly(learn.get_preds, dl=dl)
    torch.testing.assert_close(z, scores(learn, pixels(new)))
    assert len(dl) == 3 and (y is None) == (not plain or form != "FERData")


def test_new_images_with_labels(fitted):
    new = make_faces(7, seed=9, defects=None)[0].take(range(6))
    pairs = [(new.image(i), new.df.label[i]) for i in range(6)]
    for items in (new, pairs, [(x, EMOTIONS.index(y)) for x, y in pairs]):
        dl = fitted.dls.test_dl(items, with_labels=True)
        assert torch.equal(quietly(fitted.get_preds, dl=dl)[1], torch.from_numpy(new.targets()))
    with pytest.raises(DataError, match="FERData, or .image, label. pairs"):
        fitted.dls.test_dl(list(new.array()), with_labels=True)
    other = new.replace(labels=EMOTIONS[::-1])
    with pytest.raises(LabelError, match="labels"):
        fitted.dls.test_dl(other, with_labels=True)
    assert len(fitted.dls.test_dl(other).one_batch()) == 1                      # its labels are not asked


@pytest.mark.parametrize("items, error", [
    (np.zeros((48, 48), np.uint8), DataError), (np.zeros((48, 48, 3), np.uint8), DataError), ("face.png", DataError),
    (Image.new("L", (48, 48)), DataError), ([], DataError), ([np.full((48, 48), 200.)], ImageError), (7, DataError),
    ([np.zeros((48, 48), np.int64)], ImageError), (["nowhere.png"], ImageError), ([np.zeros((2, 3, 4, 5))], ImageError),
    ([None], ImageError), ([(np.zeros((48, 48), np.uint8), "bored")], LabelError)])
def test_what_are_no_images_is_refused_in_words(fitted, items, error):
    with pytest.raises(error):
        fitted.dls.test_dl(items, with_labels=isinstance(items, list) and bool(items) and isinstance(items[0], tuple))


def test_predict(fitted, tmp_path):
    face = FACES.image(3)
    expected = scores(fitted, pixels(FACES.take([3])))[0]
    for item in (face, face / 255, Image.fromarray(face), saved(face, tmp_path / "a.png"), str(tmp_path / "a.png"),
                 torch.from_numpy(face)[None], fitted.dls.valid_ds.ds.image(0) * 0 + face):
        label, number, p = quietly(fitted.predict, item)
        torch.testing.assert_close(p, expected)
        assert number == expected.argmax() and label == EMOTIONS[number]
    shown, *rest = quietly(fitted.predict, face, with_input=True)
    assert torch.equal(shown.cpu().as_subclass(torch.Tensor), pixels(FACES.take([3]))[0]) and len(rest) == 3
    fitted.loss_func = nn.CrossEntropyLoss()                                     # which knows no `decodes`
    assert quietly(fitted.predict, face)[0] == EMOTIONS[int(number)]
    fitted.loss_func = CrossEntropyLossFlat()


@pytest.mark.parametrize("rows", [None, np.r_[:20, 3, 3]])
def test_predictions_are_in_order_once_an_image_and_unchanged(rows):
    learn = learner(loaders(rows=rows))
    for given in ({"ds_idx": 0}, {"dl": learn.dls.train}, {"dl": learn.dls.train.new(shuffle=False, drop_last=False)}):
        x, z, y, decoded = quietly(learn.get_preds, with_input=True, with_decoded=True, **given)
        assert torch.equal(x, pixels(TRAIN)) and y.tolist() == TRAIN.targets().tolist() and torch.equal(decoded, z.argmax(1))


def test_interpretation(fitted):
    found = quietly_made(ClassificationInterpretation.from_learner, fitted)
    z, y = quietly(fitted.get_preds)
    table = np.zeros((7, 7), int)
    np.add.at(table, (y.numpy(), z.argmax(1).numpy()), 1)
    assert (found.confusion_matrix() == table).all()
    losses, at, items = found.top_losses(3, items=True)
    own = nn.functional.nll_loss(z.log(), y, reduction="none")
    torch.testing.assert_close(losses, own.topk(3).values, check_dtype=False)
    assert (items.array() == VALID.array()[at]).all()
    assert sum(n for *_, n in found.most_confused()) == len(y) - np.trace(table)
    with fitted.no_bar():
        found.plot_confusion_matrix(), found.plot_top_losses(4), found.show_results([0, 1]), found.print_classification_report()
    assert [ax.get_title().split("/")[1].strip() for ax in plt.figure(plt.get_fignums()[1]).axes][0] == EMOTIONS[y[at[0]]]
    plt.close("all")


def quietly_made(make, learn):
    with learn.no_bar(), learn.no_logging():
        return make(learn)


def test_pictures_are_drawn_as_they_are(fitted):
    fitted.dls.valid.show_batch(max_n=3)
    axes = plt.gcf().axes
    assert [ax.get_title() for ax in axes[:3]] == VALID.df.label[:3].tolist()
    assert axes[0].images[0].get_cmap().name == "gray" and axes[0].images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(axes[1].images[0].get_array(), VALID.image(1) / 255, atol=1e-6)
    fitted.dls.train.show_batch(max_n=4, unique=True)
    drawn = [ax.images[0].get_array() for ax in plt.gcf().axes if ax.images]
    assert len(drawn) == 4 and not (drawn[0] == drawn[1]).all()
    with fitted.no_bar():
        fitted.show_results(max_n=4), fitted.show_results(ds_idx=0, shuffle=False)
    plt.close("all")
    (x, y), *_ = fitted.dls.valid.decode_batch(next(iter(fitted.dls.valid)), max_n=2)
    assert y == VALID.df.label[0] and torch.equal(x.as_subclass(torch.Tensor), pixels(VALID)[0])


def test_what_a_dataset_says(fitted):
    dls = fitted.dls
    assert dls.c == 7 and dls.n_inp == 1 and dls.vocab == list(EMOTIONS) and dls.vocab.o2i["sad"] == EMOTIONS.index("sad")
    assert dls.to("cpu") is dls and dls.train.device.type == "cpu" == dls.cpu().device.type
    assert len(dls.train_ds) == len(TRAIN) and dls.train_ds[-1][1] == TRAIN.targets()[-1]
    x, y = dls.valid_ds[2]
    assert torch.equal(x.as_subclass(torch.Tensor), pixels(VALID)[2]) and y == VALID.targets()[2]
    assert Learner(dls, net()).loss_func.__class__ is CrossEntropyLossFlat       # inferred
    bare = DataLoaders(ReplayLoader(TRAIN, 8, True), ReplayLoader(VALID, 8, device=None))
    assert bare.vocab == list(EMOTIONS) and bare.c == 7 and bare.train.device.type == "cpu" and bare.valid.device is None


def test_tta_is_the_mean_over_views(fitted):
    z, y = quietly(fitted.tta, n=3, beta=0)
    augment, ids = fitted.dls.train.augment, np.arange(len(VALID))
    by_hand = torch.stack([scores(fitted, augment(pixels(VALID), ids, view, 3)) for view in (1, 2, 3)]).mean(0)
    torch.testing.assert_close(z, by_hand)
    again, _ = quietly(fitted.tta, n=3, beta=0)
    plain, _ = quietly(fitted.tta, n=3, beta=1)
    assert torch.equal(z, again) and not torch.allclose(z, plain)
    torch.testing.assert_close(plain, quietly(fitted.get_preds)[0])
    _, y = quietly(fitted.tta, ds_idx=0, n=1)
    assert y.tolist() == TRAIN.targets().tolist()


def test_export(fitted, tmp_path):
    fitted.path = tmp_path
    quietly(fitted.export, "e.pkl")
    assert (tmp_path / "e.pkl").stat().st_size < 200_000 and len(fitted.dls.train_ds) == len(TRAIN)  # no images in it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_learner(tmp_path / "e.pkl")
    here, there = (quietly(learn.predict, FACES.image(1)) for learn in (fitted, loaded))
    assert here[0] == there[0] and torch.equal(here[2], there[2])
    dl = loaded.dls.test_dl(VALID, with_labels=True)
    assert torch.equal(quietly(loaded.get_preds, dl=dl)[0], quietly(fitted.get_preds)[0])


def test_vision_learner_infers_classes_and_loss_and_normalises_once():
    from fastai.vision.learner import vision_learner
    from torchvision.models import resnet18
    learn = vision_learner(loaders(bs=8), resnet18, pretrained=False, n_in=1)
    assert learn.model[-1][-1].out_features == 7 and type(learn.loss_func) is CrossEntropyLossFlat
    colour = TRAIN.replace(images=np.repeat(TRAIN.array()[..., None], 3, -1))
    dls = dataloaders(colour, VALID.replace(images=np.repeat(VALID.array()[..., None], 3, -1)), bs=8, device="cpu")
    dls.add_tfms([Normalize.from_stats([.5] * 3, [.25] * 3, cuda=False)], "after_batch")
    x = next(iter(dls.valid))[0]
    by_hand = (dls.valid.x[:16].float() / 255 - .5) / .25
    torch.testing.assert_close(x.as_subclass(torch.Tensor), by_hand)
    for made in (dls.valid.new(bs=4), dls.test_dl(dls.valid.ds)):                # transforms stay
        torch.testing.assert_close(next(iter(made))[0][:4].as_subclass(torch.Tensor), by_hand[:4])
    torch.testing.assert_close(dls.valid.decode((x,))[0].as_subclass(torch.Tensor), dls.valid.x[:16].float() / 255)
    dls.add_tfms([Transform(lambda x: x)], "after_item")
    with pytest.raises(ConfigError, match="after_batch"):
        next(iter(dls.train))


# ---- new ----

def batches(loader):
    return [(loader.ids.tolist(), x) for x, _ in loader]


def equal(a, b):
    return len(a) == len(b) and all(i == j and torch.equal(x, y) for (i, x), (j, y) in zip(a, b))


def test_new_keeps_what_it_is_not_told(fitted):
    train = loaders().train
    train.epoch = 2
    fresh = ReplayLoader(TRAIN, 16, True, Augment(), 3)
    fresh.epoch = 2
    assert equal(batches(train.new()), batches(fresh))
    small = train.new(bs=4)
    assert small.bs == 4 and small.train and small.drop_last and len(small) == len(TRAIN) // 4
    assert sum((i for i, _ in batches(small)), []) == train.get_idxs()[:len(small) * 4]
    still = train.new(shuffle=False)
    assert not still.train and still.drop_last and [i for i, _ in batches(still)][0] == list(range(16))
    assert len(train.new(drop_last=False)) == -(-len(TRAIN) // 16)
    assert fitted.dls.valid.new(shuffle=True).get_idxs() != list(range(len(VALID)))
    assert train.new(batch_size=5, num_workers=4, pin_memory=True).bs == 5
    assert train.new(VALID).ds is VALID and train.new(VALID).train and not train.new(VALID).augment is None
    assert train.new(seed=9).seed == 9 and train.new(augment=None).augment is None and train.new(device="cpu").device.type == "cpu"
    assert len(fitted.dls.valid.new(labelled=False).one_batch()) == 1 and len(fitted.dls.valid.one_batch()) == 2
    few = ReplayLoader(TRAIN.take(range(3)), 16)
    assert few.bs == 3 and few.new(TRAIN).bs == 16                               # what was asked for, not what was there
    assert isinstance(quad_dataloaders(loaders()).train.new(bs=8), QuadLoader)


@pytest.mark.parametrize("wrong", [{"sampler": 1}, {"collate_fn": list}, {"batch_sampler": 1}, {"n": 3}, {"cls": DataLoader}, {"bs": 0}])
def test_new_refuses_what_it_does_not_understand(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        loaders().train.new(**wrong)


def test_what_is_bound_to_positions_does_not_pass_to_other_images():
    train = loaders(rows=[0, 0, 1, 2]).train
    with pytest.raises(ConfigError, match="rows"):
        train.new(VALID)
    assert train.new(VALID, rows=None).n == len(VALID) and train.new(bs=2).n == 4
    with pytest.raises(ConfigError, match="weights"):
        loaders(weights=dict.fromkeys(EMOTIONS, 1)).train.new(VALID)


# ---- weights ----

def test_equal_weights_show_each_image_once():
    loader = ReplayLoader(TRAIN, 8, True, weights=np.full(len(TRAIN), .3))
    for _ in range(3):
        assert sorted(loader.get_idxs()) == list(range(len(TRAIN)))
        loader.epoch += 1


def test_an_epoch_holds_what_the_weights_expect():
    """Each image is there the expected number of times, rounded up or down, and over epochs on average."""
    w = np.random.default_rng(0).random(len(TRAIN)) ** 3
    w[:4] = 0, 5, 0, 3
    loader, expected, sum_of = ReplayLoader(TRAIN, 8, True, weights=w), w * len(w) / w.sum(), np.zeros(len(w))
    orders = set()
    for loader.epoch in range(200):
        drawn = np.array(loader.get_idxs())
        times = np.bincount(drawn % loader.n, minlength=loader.n)
        assert len(drawn) == loader.n and (np.floor(expected) <= times).all() and (times <= np.ceil(expected)).all()
        assert len(set(drawn)) == loader.n and loader.get_idxs() == drawn.tolist()
        sum_of += times
        orders.add(tuple(drawn))
    assert len(orders) == 200 and abs(sum_of / 200 - expected).max() < .2


def test_weights_by_class_make_classes_alike():
    counts = TRAIN.df.label.value_counts()
    loader = loaders(weights=1 / counts).train
    by_dict = loaders(weights=(1 / counts).to_dict()).train
    labels = TRAIN.df.label.to_numpy()[np.array(loader.get_idxs()) % loader.n]
    shown = pd.Series(labels).value_counts()
    assert (abs(shown - len(TRAIN) / len(counts)) <= counts[shown.index]).all() and by_dict.get_idxs() == loader.get_idxs()
    assert shown.max() - shown.min() < counts.max() - counts.min()


def test_repeats_are_seen_differently_and_replayed():
    w = np.zeros(len(TRAIN))
    w[[4, 7]] = 1
    def epoch(**kwargs):
        loader = ReplayLoader(TRAIN, 8, True, Augment(), 5, weights=w, **kwargs)
        return torch.cat([x for x, _ in loader]), loader
    x, loader = epoch()
    assert len({im.numpy().tobytes() for im in x}) == len(x) and torch.equal(x, epoch()[0])
    assert set(loader.ids) <= {4, 7} and (loader.y[loader.ids] == torch.from_numpy(TRAIN.targets())[loader.ids]).all()
    cached, loader = epoch(views=2)
    assert len({im.numpy().tobytes() for im in cached}) == 2                     # whose logits lie in a cache
    torch.testing.assert_close(cached[-1], loader.images(loader.ids[-1:], view=0)[0])


def test_weights_are_for_training_alone():
    dls = loaders(weights=dict.fromkeys(EMOTIONS, 1))
    assert dls.valid.weights is None and dls.valid.get_idxs() == list(range(len(VALID)))
    assert dls.train.new(shuffle=False).weights is None and len(quietly(learner(dls).get_preds, ds_idx=0)[0]) == len(TRAIN)
    assert quad_dataloaders(dls).train.weights is dls.train.weights
    history = fit_model(net(), quad_dataloaders(dls), 1)
    assert len(history) == 1


@pytest.mark.parametrize("weights, word", [
    ({"happy": 1}, "angry"), (dict.fromkeys(EMOTIONS, 1) | {"bored": 1}, "bored"), (np.ones(3), "3"), (dict.fromkeys(EMOTIONS, 0), "all 0"),
    (dict.fromkeys(EMOTIONS, -1), "negative"), (np.full(len(TRAIN), np.nan), "finite"), (np.ones((len(TRAIN), 1)), "one for each")])
def test_weights_that_make_no_sense_are_refused(weights, word):
    with pytest.raises(ConfigError, match=word):
        loaders(weights=weights)


def test_weights_and_rows_or_validation_are_refused():
    with pytest.raises(ConfigError, match="rows"):
        loaders(weights=np.ones(len(TRAIN)), rows=[0, 1])
    with pytest.raises(ConfigError, match="train=True"):
        ReplayLoader(VALID, weights=np.ones(len(VALID)))


def test_weights_resume_and_are_part_of_what_a_training_is(tmp_path):
    weighted = dict(weights=1 / TRAIN.df.label.value_counts())
    def run(path, stop=None, **kwargs):
        model = net()
        fit_model(model, loaders(**kwargs), 3, [stop_in(stop)] if stop else [Callback(before_batch=lambda cb: None)], checkpoint=path)
        return torch.cat([p.flatten() for p in model.parameters()])
    whole = run(tmp_path / "a", **weighted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 2, **weighted)
    with pytest.raises(CheckpointError, match="weights"):
        run(tmp_path / "b")
    assert torch.equal(run(tmp_path / "b", **weighted), whole)


# ---- loaders of other people ----

def block(seed=0, workers=0, held=range(70, 100)):
    "A user's own DataBlock: random crops of the item, string labels, shuffled."
    def picture(i):
        shift = random.randint(0, 3)
        return torch.from_numpy(np.roll(FACES.image(i), shift, 0).copy())[None].float() / 255

    made = DataBlock((TransformBlock, CategoryBlock(vocab=list(EMOTIONS), sort=False)), get_x=picture,
                     get_y=lambda i: FACES.df.label[i], splitter=IndexSplitter(held))
    random.seed(seed)
    return made.dataloaders(range(100), bs=16, num_workers=workers, device="cpu")


def torch_loaders(generator=None):
    data = [(x, int(y)) for x, y in zip(pixels(FACES), FACES.targets())]
    own = None if generator is None else torch.Generator().manual_seed(generator)
    made = DataLoaders(torch.utils.data.DataLoader(data[:70], 16, True, generator=own), torch.utils.data.DataLoader(data[70:], 16))
    return made


@pytest.mark.parametrize("make", [block, torch_loaders, lambda: torch_loaders(4)], ids=["DataBlock", "PyTorch", "own generator"])
def test_a_users_own_loaders_resume_exactly(make, tmp_path):
    def run(path, stop=None):
        seed_everything(1)
        model = net()
        history = fit_model(model, make(), 4, [stop_in(stop)] if stop else [Callback(before_batch=lambda cb: None)], checkpoint=path, seed=2)
        return torch.cat([p.flatten() for p in model.state_dict().values()]), history.values.tolist()

    whole = run(tmp_path / "a")
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", stop)
    resumed = run(tmp_path / "b")
    assert torch.equal(whole[0], resumed[0]) and whole[1] == resumed[1]


def test_a_learner_of_ones_own_resumes(tmp_path):
    def learn(cbs=()):
        torch.manual_seed(0)
        opt = lambda p, lr: OptimWrapper(p, torch.optim.SGD, lr=lr)
        return ResumableLearner(block(), net(), CrossEntropyLossFlat(), opt, lr=.1, cbs=[Checkpoint(tmp_path / "x", {"it": 1}), *cbs])
    whole = ResumableLearner(block(), net(), CrossEntropyLossFlat(), lambda p, lr: OptimWrapper(p, torch.optim.SGD, lr=lr), lr=.1)
    seed_everything(5), quietly(whole.fit, 3)
    one, two = learn([stop_in(1)]), learn()
    seed_everything(5)
    with pytest.raises(KeyboardInterrupt):
        quietly(one.fit, 3)
    seed_everything(77), quietly(two.fit, 3)
    assert torch.equal(flat(whole), flat(two))


def kept(path, cbs=(), **how):
    "A learner of one's own with a Checkpoint."
    opt = partial(OptimWrapper, opt=torch.optim.SGD)
    learn = ResumableLearner(loaders(), net(), CrossEntropyLossFlat(), opt, lr=.1, cbs=[*([Checkpoint(path, {"it": 1}, **how)] if path else []), *cbs], path=Path("/tmp"),
                             splitter=lambda model: [[*model[:3].parameters()], [*model[3:].parameters()]])
    seed_everything(5)
    return learn


def search(learn):
    quietly(learn.lr_find, num_it=12, show_plot=False, suggest_funcs=())


def test_a_search_leaves_the_checkpoint_alone(tmp_path):
    """Before the fit, and again when the notebook is run from its top after it was killed; weights are those without a checkpoint."""
    whole, path = kept(None), tmp_path / "x"
    search(whole), seed_everything(5), quietly(whole.fit, 4)
    one = kept(path)
    search(one)
    assert not path.exists()
    one.add_cb(stop_in(2))
    seed_everything(5)
    with pytest.raises(KeyboardInterrupt):
        quietly(one.fit, 4)
    assert read_checkpoint(path)["epoch"] == 2
    two = kept(path)
    search(two)
    assert read_checkpoint(path)["epoch"] == 2
    quietly(two.fit, 4)
    assert torch.equal(flat(two), flat(whole)) and read_checkpoint(path)["epoch"] == 4
    search(two)
    assert read_checkpoint(path)["epoch"] == 4 and torch.equal(flat(two), flat(whole))


def test_an_evaluation_writes_no_checkpoint(tmp_path):
    learn, path = kept(tmp_path / "x"), tmp_path / "x"
    quietly(learn.validate), quietly(learn.get_preds)
    assert not path.exists()
    quietly(learn.fit, 1)
    held = path.read_bytes()
    quietly(learn.validate), quietly(learn.get_preds)
    assert path.read_bytes() == held


SECOND = {"fit": lambda learn: quietly(learn.fit, 2), "longer": lambda learn: quietly(learn.fit, 4), "one cycle": lambda learn: quietly(learn.fit_one_cycle, 2),
          "another Checkpoint of the file": lambda learn: (learn.remove_cb(Checkpoint), quietly(learn.fit, 2, cbs=Checkpoint(tmp_of(learn), {"it": 1})))}


def tmp_of(learn):
    return next(iter(learn.ended))


@pytest.mark.parametrize("first", [lambda learn: quietly(learn.fit, 2), lambda learn: quietly(learn.fit, 9, cbs=Callback(before_train=ends_in(2)))], ids=["to the end", "ended early"])
@pytest.mark.parametrize("second", SECOND)
def test_a_second_fit_beside_a_checkpoint_is_refused_before_its_first_batch(tmp_path, second, first):
    seen = Seen()
    learn = kept(tmp_path / "x", [seen])
    first(learn)
    weights, batches = flat(learn), len(seen.batches)
    with pytest.raises(ConfigError, match="has ended"):
        SECOND[second](learn)
    assert torch.equal(flat(learn), weights) and len(seen.batches) == batches
    learn.remove_cb(Checkpoint)
    quietly(learn.fit, 2, cbs=Checkpoint(tmp_path / "y", {"it": 2}))
    assert len(seen.batches) > batches and read_checkpoint(tmp_path / "y")["epoch"] == 2


def ends_in(epoch):
    def before_train(cb):
        if cb.epoch == epoch:
            raise CancelFitException
    return before_train


def test_one_that_was_interrupted_goes_on_in_the_same_learner(tmp_path):
    whole, learn = kept(None), kept(tmp_path / "x", [stop := stop_in(1)])
    seed_everything(5), quietly(whole.fit, 3), seed_everything(5)
    with pytest.raises(KeyboardInterrupt):
        quietly(learn.fit, 3)
    learn.remove_cb(stop)
    quietly(learn.fit, 3)
    assert torch.equal(flat(whole), flat(learn))


def test_two_fits_in_one_call_are_refused_with_a_checkpoint(tmp_path):
    seen = Seen()
    learn = kept(tmp_path / "x", [seen])
    with pytest.raises(ConfigError, match="fine_tune makes two fits"):
        quietly(learn.fine_tune, 3)
    learn.remove_cb(Checkpoint)
    with pytest.raises(ConfigError, match="fine_tune makes two fits"):
        quietly(learn.fine_tune, 3, cbs=Checkpoint(tmp_path / "x", {}))
    assert not seen.batches and not (tmp_path / "x").exists()
    quietly(learn.fine_tune, 1)
    assert seen.batches


def test_a_file_of_more_epochs_than_the_fit_is_refused_and_one_may_start_again(tmp_path):
    quietly(kept(tmp_path / "x").fit, 3)
    learn = kept(tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds 3 epochs"):
        quietly(learn.fit, 2)
    again = kept(tmp_path / "x", resume=False)
    quietly(again.fit, 2), quietly(again.fit, 1)          # replaces the file, and says so
    assert read_checkpoint(tmp_path / "x")["epoch"] == 1


def test_workers_are_warned_of_and_other_loaders_told_apart(tmp_path):
    with pytest.warns(UserWarning, match="worker processes"):
        with pytest.raises(KeyboardInterrupt):
            fit_model(net(), block(workers=1), 1, [stop_in(0)], checkpoint=tmp_path / "x")
    with pytest.raises(CheckpointError, match="of another run.*(loader|bs)"):
        fit_model(net(), torch_loaders(), 1, [stop_in(0)], checkpoint=tmp_path / "x")
    with pytest.raises(CheckpointError, match="of another run.*items"):                # another fold, of the same size
        fit_model(net(), block(held=range(30)), 1, [stop_in(0)], checkpoint=tmp_path / "x")


def test_fit_model_takes_loaders_without_device_and_names():
    assert len(fit_model(net(), torch_loaders(), 1)) == len(fit_model(net(), block(), 1)) == 1


# ---- folds that part duplicates ----

def twins(how):
    faces = make_faces(90, seed=4, defects=None, splits=(1, 0, 0))[0]
    x = faces.array().copy()
    x[:30] = x[60:90, :, ::-1] if how == "mirror" else np.clip(x[60:90].astype(int) + 4, 0, 255)
    return FERData(faces.df.assign(label=np.array(EMOTIONS)[np.arange(90) % 3]).drop(columns="subject"), x, EMOTIONS, "twins")


@pytest.mark.parametrize("how", ["mirror", pytest.param("near", marks=pytest.mark.slow)])
def test_folds_warn_of_duplicates_that_they_part(how):
    ds = twins(how)
    found = audit(ds)
    for split in (lambda ds, **kw: folds(ds, 3, **kw), lambda ds, **kw: holdout(ds, .2, **kw), lambda ds, **kw: folds(ds, 3, protocol="honest", **kw)):
        for given in ({}, {"groups": np.arange(90)}):
            with pytest.warns(UserWarning, match=rf"pairs of duplicates.*\d+ {how}.*groups=audit\(ds\)\.groups"):
                split(ds, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            split(ds, groups=found.groups)
            split(found.grouped())
    with pytest.warns(UserWarning, match=f"{how}"):
        folds(ds, 3, protocol="paper")


def test_more_images_than_are_searched_are_said():
    ds = make_faces(20, seed=0, defects=None)[0]
    with pytest.warns(UserWarning, match="20 images that no audit has seen.*not searched"):
        _warn_of_twins(ds, np.arange(20), [], most=10)


# ---- several ways together ----

def test_quads_balance_and_views_are_loaders_too():
    dls = quad_dataloaders(loaders(views=2))
    assert isinstance(dls, ReplayLoaders) and isinstance(dls.train, QuadLoader) and dls.vocab == list(EMOTIONS)
    learn = learner(dls)
    assert views(learn, 3) == [0, 1] and len(quietly(learn.get_preds, dl=dls.test_dl([FACES.image(0)]))[0]) == 1
    more = dataloaders(balance(TRAIN, "max"), VALID, bs=16, device="cpu")
    assert len(quietly(learner(more).get_preds, ds_idx=0)[0]) == len(more.train.ds)


# ---- what would be silently wrong beside a recipe ----

@pytest.mark.parametrize("cb, changes, says", [
    (MixUp(), {"mix": .4}, "MixUp beside mix"), (GradientAccumulation(32), {"accumulate": 2}, "GradientAccumulation beside accumulate"),
    (ReduceLROnPlateau(), {}, "ReduceLROnPlateau, but schedule"), (ParamScheduler({"lr": SchedLin(.1, .2)}), {}, "ParamScheduler, but schedule")])
def test_what_is_done_twice_or_undone_is_refused(cb, changes, says):
    with pytest.raises(ConfigError, match=says):
        fit_model(net(), loaders(), 1, cbs=[cb], **changes)


def test_callbacks_are_given_as_fastai_takes_them():
    fits = [fit_model(net(), loaders(), 1, cbs=cbs) for cbs in (GradientClip, GradientClip(), [GradientClip])]
    assert fits[0].equals(fits[1]) and fits[0].equals(fits[2])


@pytest.mark.parametrize("make", [lambda: EarlyStoppingCallback("train_loss", np.greater, patience=3), lambda: GradientAccumulation(40)],
                         ids=["early stop", "waiting gradients"])
def test_what_fastais_callbacks_remember_is_resumed(make, tmp_path):
    def run(path, stop=None):
        model = net()
        history = fit_model(model, loaders(), 6, [make(), stop_in(stop)] if stop else
                            [make(), Callback(before_batch=lambda cb: None)], checkpoint=path, keep="last")
        return history, torch.cat([p.flatten() for p in model.parameters()])
    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 2)
    again = run(tmp_path / "b")
    assert whole[0].equals(again[0]) and torch.equal(whole[1], again[1])


def test_the_best_epoch_is_that_of_the_accuracy_whatever_else_is_measured():
    learns = [Learner(loaders(), net(), CrossEntropyLossFlat(), SGD, lr=.1, metrics=metrics, cbs=KeepBest())
              for metrics in ([accuracy], [error_rate, accuracy], [error_rate])]
    for learn in learns[:2]:
        quietly(learn.fit, 3)
    assert learns[0].keep_best.best == learns[1].keep_best.best and torch.equal(flat(learns[0]), flat(learns[1]))
    with pytest.raises(ConfigError, match="error_rate, time; metrics="):
        quietly(learns[2].fit, 1)


def test_a_network_of_other_labels_than_a_datablocks_is_refused():
    model = net()
    model.labels = EMOTIONS[::-1]
    with pytest.raises(LabelError, match="another order"):
        fit_model(model, block(), 1)


def plain(y, n_inp=1, bs=8):
    x = pixels(FACES)[:len(y)]
    data = torch.utils.data.TensorDataset(x, *[torch.zeros(len(y), 2)] * (n_inp - 1), y)
    made = DataLoaders(*[torch.utils.data.DataLoader(data, bs) for _ in range(2)])
    for dl in (*made, made):
        dl.n_inp = n_inp
    return made


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"amp": "bf16"}, {"mix": .3}])
def test_pytorchs_loaders_take_the_whole_recipe(changes):
    targets = torch.from_numpy(FACES.targets())[:32].long()
    assert len(fit_model(net(), plain(targets), 1, **changes)) == 1


def test_soft_targets_of_ones_own_are_validated_by_their_largest_share():
    y = torch.nn.functional.one_hot(torch.from_numpy(FACES.targets())[:32].long(), 7).float()
    histories = [fit_model(net(), plain(t), 2, smoothing=0) for t in (y, y.argmax(1))]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5)


def test_the_images_come_first_among_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x, extra):
            return self.net(x)

    assert len(fit_model(Two(), plain(torch.arange(32) % 7, n_inp=2), 1)) == 1


@pytest.mark.parametrize("y, error", [(torch.arange(32) % 8, "7 classes"), (torch.arange(32.) % 7, "float32"),
                                      (torch.zeros(32, 1).long(), "int64")])
def test_targets_that_are_none_are_said(y, error):
    with pytest.raises(LabelError, match=error):
        fit_model(net(), plain(y), 1)


@pytest.mark.parametrize("model, error", [
    (nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1 channels"),
    (nn.Sequential(net(), nn.Softmax(1)), "remove its softmax"), (net(1), r"\(16, 1\)")])
def test_networks_of_something_else_are_said(model, error):
    with pytest.raises(ConfigError, match=error):
        fit_model(model, loaders(), 1)


@pytest.mark.parametrize("dls", [DataLoaders(loaders().train), tuple(loaders())])
def test_both_loaders_are_needed(dls):
    with pytest.raises(ConfigError, match="DataLoaders\\(train, valid\\) expected"):
        fit_model(net(), dls, 1)


@pytest.mark.parametrize("label", [-1, 7, 3.5, None, float("nan"), "joyful", np.zeros(2)], ids=str)
def test_a_label_that_is_none_is_said(label):
    with pytest.raises(LabelError, match="is not one of"):
        loaders().test_dl([(FACES.image(0), label)], with_labels=True)
    with pytest.raises(DataError, match="1 of 2 images without labels"):
        loaders().test_dl([FACES.image(0), (FACES.image(0), 1)])


def test_nothing_is_not_the_validation_images():
    with pytest.raises(DataError, match="no images"):
        loaders().test_dl(None)


def test_class_weights_know_how_often_images_are_drawn():
    dls = loaders(weights={label: 1 + k for k, label in enumerate(EMOTIONS)})
    shown = torch.from_numpy(dls.train.weights.copy())
    w = Fit(class_weights="balanced").weights_of(dls)[dls.train.y]
    assert float((w * shown).sum() / shown.sum()) == pytest.approx(1)


def test_class_weights_know_fastais_weighted_loader():
    labels = [0] * 60 + [1] * 20 + [2] * 10
    x = torch.rand(90, 1, 8, 8)
    block = DataBlock(blocks=(TransformBlock, CategoryBlock(vocab=["a", "b", "c"])), get_x=lambda k: x[k], get_y=lambda k: "abc"[labels[k]],
                      splitter=IndexSplitter(list(range(0, 90, 9))))
    dls = block.weighted_dataloaders(list(range(90)), wgts=np.array([1 / labels.count(v) for v in labels]), bs=16)
    w, y = Fit(class_weights="balanced").weights_of(dls).double(), torch.tensor([v for k, v in enumerate(labels) if k % 9])
    assert float((w[y] * torch.tensor(dls.train.wgts)).sum()) == pytest.approx(1)      # of what an epoch shows
    once = Fit(class_weights="balanced").weights_of(block.dataloaders(list(range(90)), bs=16)).double()
    assert float(once[y].mean()) == pytest.approx(1) and torch.allclose(w / w[0], once / once[0])

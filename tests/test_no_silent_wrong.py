"""What would be wrong without a word: each case is planted, and an error or a warning names it where it enters.

Which of these tests concern which room is listed in tests/README.md.

What other files test already:

| what is wrong | where it is found | test |
|---|---|---|
| outputs in another order than the labels | evaluation, attacks, corruptions | test_evaluate: test_labels_must_agree |
| the same, of an exported file | parity | test_export: test_parity_refuses_other_labels_and_no_images |
| the same, on the screen | explorer | test_explore: test_what_does_not_belong_together_is_refused |
| a copy of a dataset with ids in another order | reader, by the published counts | test_readers: test_counts_of_another_order_are_refused_when_strict_and_said_when_whole |
| votes of other rows | reader | test_readers: test_what_does_not_belong_together_is_refused |
| bytes given to a network | its adapter | test_models: test_bytes_are_refused_they_are_not_in_the_unit_range |
| normalised images under attack | attacks | test_attacks: test_bad_input_is_refused |
| pictures that are no bytes | FERData | test_data: test_arrays_that_are_no_pictures_are_refused |
| cached logits of a teacher with another normalisation | cached logits | test_teachers: test_another_normalisation_is_another_teacher |
| attack on a network in training mode | attacks | test_attacks: test_training_mode_and_integer_images_are_refused_and_nothing_is_touched |
| teacher in training mode | EADD | test_teachers: test_a_teacher_keeps_the_modes_of_its_parts |
| an image, or the source of a copy, on both sides | loaders, folds | test_loaders: test_an_image_or_a_copys_source_on_both_sides_is_refused |
| random folds that leak | folds | test_loaders: test_the_papers_folds_warn_of_what_leaks_and_of_nothing_else |
| test images among training images, nobody looked | results say NaN | test_evaluate: test_duplicates_that_nobody_looked_for_are_not_known |
| calibration on other images than training images | export | test_export: test_calibration_sees_training_images_alone |
| loss that is no number | training | test_train: test_nan_names_epoch_and_batch_and_spares_the_checkpoint |
| teachers' logits that are no numbers | cached logits | test_teachers: test_logits_that_are_not_finite_name_the_image |
| a class missing from a fold | folds | test_loaders: test_a_class_that_cannot_be_in_every_fold_is_named |
| weights for other labels | loading | test_models: test_weights_for_other_labels_are_refused |
| checkpoint of another run | training | test_train: test_another_runs_checkpoint_is_refused |
| folds of other data | cross-validation | test_evaluate: test_folds_of_other_data_or_another_split_are_refused |
| decisions about another dataset | review | test_review: test_other_dataset_is_refused_unless_any_is_accepted |
| a decision on one copy of a photo | cleaning | test_audit: test_a_new_label_is_that_of_the_whole_photo |
| a test list that is read as train | reader | test_formats: test_lists_in_split_folders_are_one_and_each_alone_is_its_split |
| folders that name two splits | reader | test_formats: test_folders_that_name_two_splits_are_refused_by_every_reader |
| columns of Parquet files, unread | reader | test_formats: test_a_table_says_the_same_whatever_file_it_is_in |
| a list that contradicts its images' folders | reader | test_formats: test_a_list_that_contradicts_the_folders_of_its_images_is_doubted |
| splits in the names of images | reader | test_formats: test_splits_in_the_names_of_images_are_noticed |
| the first unknown column taken as the label | reader | test_formats: test_the_label_of_a_list_without_a_header_is_not_the_first_that_comes |
"""
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from fer_nb.audit import audit
from fer_nb.core import ConfigError, DataError, ImageError, LabelError
from fer_nb.data import FERData
from fer_nb.distill import EADD
from fer_nb.evaluate import evaluate, predict_logits
from fer_nb.loaders import dataloaders, folds
from fer_nb.metrics import scores
from fer_nb.predict import Network
from fer_nb.synth import make_faces
from fer_nb.teachers import CachedLogits, teacher_logits
from fer_nb.train import CheckpointError, fit_model

FACES = make_faces(160, seed=0, defects=None)[0]


def net(labels=FACES.labels, outputs=7):
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(144), nn.Dropout(), nn.Linear(144, outputs))
    model.labels, model.in_chans = labels, 1
    return model


def loaders(ds=FACES, **settings):
    return dataloaders(ds.where(split="train"), ds.where(split=["valid", "test"]), bs=32, **settings)


def named(ds, labels):
    "The same images; the labels are counted in another order."
    return FERData(ds.df, ds.array(), labels, ds.name)


# ---------------------------------------------------------------- labels

@pytest.mark.parametrize("labels, outputs, says", [
    (FACES.labels[::-1], 7, "the same names in another order"), (FACES.labels[:6] + ("bored",), 7, "other names"),
    (FACES.labels + ("contempt",), 8, "other names")])
def test_a_network_of_other_labels_is_not_trained(labels, outputs, says):
    model = net(labels, outputs)
    before = model[4].weight.clone()
    with pytest.raises(LabelError, match=says):
        fit_model(model, loaders(), 1)
    assert torch.equal(model[4].weight, before)


def test_training_and_validation_of_other_orders():
    with pytest.raises(DataError, match="training labels .* differ from validation labels"):
        dataloaders(FACES.where(split="train"), named(FACES.where(split="valid"), FACES.labels[::-1]))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("labels", [FACES.labels[::-1], FACES.labels[:6] + ("bored",)])
def test_a_teacher_of_other_labels_does_not_teach(cached, labels):
    dls, teacher = loaders(views=1), net(labels)
    teacher = teacher_logits(teacher, dls.train, dls.valid) if cached else teacher
    with pytest.raises(LabelError, match="teacher .* has labels .* the data"):
        fit_model(net(), dls, 1, cbs=[EADD([teacher])])


def test_cached_logits_with_fewer_columns_than_names():
    """A table whose columns were cut off by hand: its names say otherwise."""
    dls = loaders(views=1)
    whole = teacher_logits(net(), dls.train, dls.valid)
    cut = CachedLogits(whole.name, whole.labels[:6], whole.train[..., :6], whole.valid[..., :6], whole.key)
    with pytest.raises(LabelError, match="has labels"):
        fit_model(net(), dls, 1, cbs=[EADD([cut])])


def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    """Every tensor has the same shape; only the names say that it is another run."""
    path = tmp_path / "run.ckpt"
    fit_model(net(), loaders(), 1, checkpoint=path)
    other = FACES.labels[::-1]
    with pytest.raises(CheckpointError, match="data"):
        fit_model(net(other), loaders(named(FACES, other)), 1, checkpoint=path)


def test_outputs_without_names_are_not_evaluated_nor_shown():
    model = net()
    del model.labels
    with pytest.raises(LabelError, match="does not name its outputs"):
        evaluate(model, FACES)
    with pytest.raises(ConfigError, match="without .labels"):
        Network.read(model)


def test_fewer_outputs_than_names():
    with pytest.raises(ConfigError, match=r"returned \(160, 6\) for 160 images and 7 labels"):
        predict_logits(net(outputs=6), FACES)


# ---------------------------------------------------------------- images in range

class Scale(Callback):
    "What a transform of the user's does."
    order = -60

    def __init__(self, scale, shift=0.0, when=True):
        self.scale, self.shift, self.when = scale, shift, when

    def before_batch(self):
        if self.training == self.when:
            self.learn.xb = (self.x * self.scale + self.shift,)


@pytest.mark.parametrize("scale, shift", [(255, 0), (4, -2), (1 / 255, 0)], ids=["bytes", "normalised", "divided twice"])
@pytest.mark.parametrize("training", [True, False])
def test_images_in_another_range_are_not_trained_on(scale, shift, training):
    part = "training" if training else "validation"
    with pytest.raises(ImageError, match=rf"{part} images have values in .*; \[0, 1\] expected"):
        fit_model(net(), loaders(), 1, cbs=[Scale(scale, shift, training)])


def test_dark_images_and_black_ones_are_no_mistake():
    dark = FERData(FACES.df, FACES.array() // 64, FACES.labels)
    black = FERData(FACES.df, np.zeros_like(FACES.array()), FACES.labels)
    for ds in (dark, black):
        fit_model(net(), loaders(ds), 1)


# ---------------------------------------------------------------- mode

def test_a_network_left_in_training_mode_answers_as_in_evaluation_mode():
    model = net().eval()
    expected = predict_logits(model, FACES)
    model.train()
    assert np.array_equal(predict_logits(model, FACES), expected) and model.training
    assert np.allclose(Network.read(model).logits(FACES.array()[:, None] / np.float32(255)), expected, atol=1e-6)


def test_a_fit_ends_in_evaluation_mode_however_it_ends():
    model = net()
    fit_model(model, loaders(), 1)
    assert not any(m.training for m in model.modules())
    with pytest.raises(ImageError):
        fit_model(model, loaders(), 1, cbs=[Scale(255)])
    assert not any(m.training for m in model.modules())


# ---------------------------------------------------------------- test images in training

def test_test_pictures_under_other_names_are_found():
    """No id, no source tells: the pictures do. The audit names them, clean training images are without them, folds keep
    them together, and a result says how many there were."""
    test = FACES.where(split="test")
    stolen = FERData(test.df.assign(id="new " + test.df.id, split="train"), test.array(), FACES.labels)
    both = FERData(pd.concat([FACES.df, stolen.df]), np.concatenate([FACES.array(), stolen.array()]), FACES.labels)
    found = audit(both)
    assert set(stolen.df.id) <= set(found.issues.id[found.issues.kind == "leak"]) | set(found.issues.partner[found.issues.kind == "leak"])
    assert not set(found.clean().df.id) & set(stolen.df.id)
    for train, held in folds(both, 3):
        pictures = [{both.image(i).tobytes() for i in side} for side in (train, held)]
        assert not pictures[0] & pictures[1]
    result = evaluate(net(), test, duplicates=set(test.df.id))
    assert result[result.metric == "duplicates_in_training"].value.tolist() == [len(test)]


# ---------------------------------------------------------------- classes without images

def test_a_class_that_training_never_shows_is_said():
    train, valid = FACES.where(split="train"), FACES.where(split=["valid", "test"])
    some = train.take((train.df.label != "fear").to_numpy())
    with pytest.warns(UserWarning, match="validation has images of fear, training none"):
        dataloaders(some, valid)
    with pytest.warns(UserWarning, match="training none"):
        dataloaders(train, valid, rows=np.flatnonzero(train.df.label != "fear"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataloaders(train, valid)
        dataloaders(some, valid.take((valid.df.label != "fear").to_numpy()))


def test_a_class_without_test_images_has_no_score():
    """Not 0 and not 1, and the macro average is over the others."""
    z, y = np.eye(3)[[0, 0, 1, 1]] * 5, np.array([0, 0, 1, 1])
    table = scores(z, y, "abc").set_index("metric").value
    assert np.isnan(table["recall:c"]) and np.isnan(table["precision:c"]) and table["macro_recall"] == 1


# ---------------------------------------------------------------- numbers that are none

def test_a_network_of_nan_says_nothing():
    model = net()
    model[4].weight.data[3, 0] = torch.nan
    with pytest.raises(ConfigError, match="image 'face.*NaN"):
        predict_logits(model, FACES)
    with pytest.raises(DataError, match="not all finite"):
        Network.read(model)([FACES.image(0)])


def test_the_table_above_tells_of_tests_that_exist():
    told = re.findall(r"\| (test_\w+): (test_\w+) \|", __doc__)
    assert len(told) > 20
    for file, test in told:
        assert f"def {test}(" in Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8"), (file, test)

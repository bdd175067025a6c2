"""The lists of changes and the count of what a search finds: any size, grey or colour, replayed; the counts against plain loops."""
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from fer_nb.copies import CHANGE_KINDS, CHANGES, change, planted, planted_sets, recall, shift_by, warped
from fer_nb.core import ConfigError, DataError, ImageError


from fer_nb.copies import CHANGE_KINDS, CHANGES, change, planted, planted_sets, recall, recorded, relit, shift_by, warped
from fer_nb.core import ConfigError, DataError
from fer_nb.data import FERData

EVERY = {(part, name): steps for part, changes in CHANGES.items() for name, steps in changes.items()}


def picture(height=48, width=48, seed=0, colour=False):
    "Broad patches, as photographs have."
    x = np.random.default_rng(seed).integers(20, 235, (6, 6, 3), dtype=np.uint8)
    x = np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC))
    return x if colour else x[..., 0].copy()


def crowd(n, side=48):
    df = pd.DataFrame({"id": [f"im{k:03}" for k in range(n)], "label": "happy", "split": "train"})
    return FERData(df, np.stack([picture(side, side, k) for k in range(n)]))


@pytest.mark.parametrize("part", CHANGES)
@pytest.mark.parametrize("shape", [(48, 48, False), (48, 48, True), (96, 80, False)])
def test_every_change_keeps_the_shape_changes_something_and_is_replayed(part, shape):
    image = picture(*shape[:2], colour=shape[2])
    same = image.copy()
    for name, steps in CHANGES[part].items():
        made = [change(image, steps, np.random.default_rng(3)) for _ in range(2)]
        assert made[0].shape == image.shape and made[0].dtype == np.uint8, name
        assert (made[0] == made[1]).all(), name
        assert name == "turn, mirror or border" or (made[0] != image).any(), name
    assert (image == same).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_tiny_images_of_any_shape_are_changed_too(which, height, width, colour, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, *[3] * colour), dtype=np.uint8)
    made = change(image, EVERY[which], np.random.default_rng(seed))
    assert made.shape == image.shape and made.dtype == np.uint8


def test_no_change_stands_in_two_lists_and_no_two_have_one_name():
    for a, b in itertools.combinations(CHANGES, 2):
        if "targets" not in (a, b) or "scripts" not in (a, b):
            assert not set(CHANGES[a].values()) & set(CHANGES[b].values())
        assert not set(CHANGES[a]) & set(CHANGES[b])
    used = {kind for steps in EVERY.values() for kind, *_ in steps} - {"one of"}
    assert used | {"drift", "border", "zoom"} == set(CHANGE_KINDS)


def test_every_amount_of_a_recording_has_a_unit():
    missing = [kind for kind, f in CHANGE_KINDS.items() if f is recorded and kind not in f.__doc__]
    assert not missing and all(kind in relit.__doc__ for kind in ("brightness", "contrast", "gamma", "tint", "autocontrast"))


def test_geometry_against_arrays():
    image = picture()
    assert (warped(image, np.eye(3)).round() == image).all()
    down = warped(image, shift_by(3, -2), "black").round()
    assert (down[3:, :-2] == image[:-3, 2:]).all() and not down[:3].any() and not down[:, -2:].any()
    assert (warped(image, shift_by(0, 5)).round()[:, :6] == image[:, :1]).all()                    # the edge repeated
    assert (change(image, (("border", (4, 4)), ), np.random.default_rng(0)).mean() - image[4:-4, 4:-4].mean()) < 3
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.]])
    assert (warped(image, quarter).round() == np.rot90(image, -1)).all() or (warped(image, quarter).round() == np.rot90(image)).all()
    wide = change(picture(48, 96), (("shift", 6, "white"),), np.random.default_rng(1))
    assert wide.shape == (48, 96) and (wide == 255).any()


def test_light_and_files_against_pillow():
    image, rng = picture(), np.random.default_rng(0)
    assert (change(image, (("equalise", 1),), rng) == np.asarray(ImageOps.equalize(Image.fromarray(image)))).all()
    assert len(np.unique(change(image, (("posterise", 4),), rng))) <= 4
    assert len(np.unique(change(image, (("palette", 8),), rng))) <= 8
    flat = np.full((48, 48), 100, np.uint8)
    assert abs(change(flat, (("noise", 10),), rng).std() - 10) < 1
    specks = change(flat, (("specks", .1),), rng)
    assert abs((specks != 100).mean() - .1) < .03 and set(np.unique(specks)) == {0, 100, 255}
    assert change(flat, (("frame", 3, "white"),), rng)[:3].min() == 255
    assert (change(flat, (("frame", 3, "white"),), rng)[3:-3, 3:-3] == 100).all()


def test_ranges_and_choices_are_drawn_from_all_of_them():
    image, rng = picture(), np.random.default_rng(0)
    steps = (("one of", ((("mirror", 1),), (("brightness", (.5, .5)),))),)
    kinds = {change(image, steps, rng).tobytes() for _ in range(30)}
    assert kinds == {image[:, ::-1].tobytes(), (image * .5).round().astype(np.uint8).tobytes()}


@pytest.mark.parametrize("steps, word", [((("melt", 1),), "melt"), ((("rotate", 5, "pink"),), "pink")])
def test_what_nobody_can_do_is_refused(steps, word):
    with pytest.raises(ConfigError, match=word):
        change(picture(), steps, np.random.default_rng(0))


@pytest.mark.parametrize("step", [("posterise", 1), ("crop", 1), ("corner", 1.2), ("brightness", float("nan")), ("jpeg", .2), ("jpeg", "90"),
                                  ("border", 24), ("zoom", 0), ("resize", .5, "bicubik"), ("frame", 5, "blak"), ("patch", .2), ("bar", 7, ""),
                                  ("rotate", float("inf")), ("noise", -1), ("brightness", (1, float("inf"))), ("rotate", 5, "blak")])
def test_an_amount_or_option_that_makes_no_image_is_refused(step):
    with pytest.raises(ConfigError, match=f"{step[0]}|fill"):
        change(picture(), (step,), np.random.default_rng(0))


@pytest.mark.parametrize("step, word", [
    (("stamp", 8, "07 11 03"), "no words"), (("meme", 9, "NOT/AGAIN"), "no words"), (("meme", 9, "serif:/"), "no words"), (("tiled", .35), "no words"),
    (("text", 1), "no words"), (("text", 1, ": "), "no words"), (("caption", 8, "Monday"), '":Monday"'), (("title", 8), "no words"),
    (("stamp", 8, "Arial:07 11"), "font='Arial'.*serif"), (("rotate", (1, 5, 9)), "smaller to the larger")])
def test_words_that_would_not_be_drawn_are_refused(step, word):
    """Without them the copy is the original, and a search finds all of these."""
    with pytest.raises(ConfigError, match=word):
        change(picture(), (step,), np.random.default_rng(0))


@pytest.mark.parametrize("image", [picture() / 255., np.zeros((9, 9, 4), np.uint8), np.zeros((0, 9), np.uint8), [[1, 2]]])
@pytest.mark.parametrize("step", [("jpeg", 50), ("mirror", 1)])
def test_what_is_no_image_is_not_changed(image, step):
    with pytest.raises(ImageError, match="uint8"):
        change(image, (step,), np.random.default_rng(0))


def test_no_changes_and_no_sets_are_refused():
    for call, word in ((lambda: planted(crowd(3), {}), "changes"), (lambda: recall(len, []), "sets")):
        with pytest.raises(ConfigError, match=f"{word}.*at least 1"):
            call()


def test_sets_hold_as_many_others_as_were_asked_for():
    changes = {"a": (("mirror", 1),), "b": (("mirror", 1), ("jpeg", 90))}
    assert [len(made) - 2 * len(truth) for made, truth in planted_sets(crowd(70), changes, each=10, others=60)] == [60, 60]
    for n, settings in ((69, dict(each=10, others=60)), (30, dict(each=20, others=4000))):
        with pytest.raises(DataError, match=f"{n} images; .* expected"):
            planted_sets(crowd(n), changes, **settings)
    for wrong in (dict(each=0), dict(others=-1), dict(at_once=0), dict(each=2.5)):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            planted_sets(crowd(30), changes, **{"each": 2, "others": 4} | wrong)


@pytest.mark.parametrize("search, message", [(lambda ds: [(0, 1)], "gave a list"),
                                             (lambda ds: pd.DataFrame({"i": [0], "j": [1]}), "no column 'how'")])
def test_a_search_that_gives_no_table_of_pairs_is_told(search, message):
    with pytest.raises(DataError, match=message):
        recall(search, [planted(crowd(20), {"a": (("mirror", 1),)}, 5)])


def test_originals_are_used_once_and_too_few_are_refused():
    ds, two = crowd(40), {"dark": (("brightness", .5),), "mirror": (("mirror", 1),)}
    made, truth = planted(ds, two, each=10)
    assert truth.i.is_unique and truth.j.tolist() == list(range(40, 60)) and made.df.id.is_unique
    for row in truth.itertuples():
        expected = change(ds.image(row.i), two[row.change], np.random.default_rng(0))
        assert (made.image(row.j) == expected).all()
    assert not set(truth.i) == set(planted(ds, two, 10, seed=1)[1].i)
    with pytest.raises(DataError, match="60 expected"):
        planted(ds, two, each=30)
    with pytest.raises(ConfigError, match="each"):
        planted(ds, two, each=0)


def test_counts_against_plain_loops():
    ds, changes = crowd(60), {k: CHANGES["targets"][k] for k in ("half size", "equalise", "brightness 1.5")}
    said = []

    def guess(made):
        rng = np.random.default_rng(len(said))
        pairs = {tuple(sorted(p)) for p in rng.integers(0, len(made), (900, 2)).tolist() if p[0] != p[1]}
        table = pd.DataFrame(sorted(pairs), columns=["j", "i"]).assign(how=lambda t: rng.choice(["near", "similar", "exact"], len(t)))
        said.append((len(made), table))
        return table.sample(frac=1, random_state=0)

    got = recall(guess, planted_sets(ds, changes, each=10, others=40, seed=4))
    assert len(said) == 2 and got.images == sum(n for n, _ in said)       # two changes fit in one search, then the third
    found = similar = 0
    for k, (_, table) in enumerate(said):
        how = {frozenset(p): h for *p, h in table[["i", "j", "how"]].itertuples(index=False)}
        pairs = got.pairs[got.pairs.search == k]
        mine = [how.get(frozenset(p)) for p in zip(pairs.i, pairs.j)]
        assert [h in ("near", "exact") for h in mine] == pairs.found.tolist()
        found, similar = found + sum(h in ("near", "exact") for h in mine), similar + mine.count("similar")
        assert (got.wrong.search == k).sum() == len(table) - sum(h is not None for h in mine)
    assert got.table.found.sum() == found and got.table.similar.sum() == similar and (got.table.made == 10).all()


def test_a_search_that_compares_pixels_finds_what_is_unchanged():
    ds = crowd(50, side=32)

    def same(made):
        x = made.array().reshape(len(made), -1).astype(float)
        i, j = np.nonzero(np.triu(np.corrcoef(x) > .998, 1))
        return pd.DataFrame({"i": i, "j": j, "how": "near"})

    changes = {"darker": (("brightness", .5),), "half": (("resize", .4),)}
    got = recall(same, planted_sets(ds, changes, each=20, others=5))
    assert got.table.recall.tolist()[0] > .9 and len(got.wrong) == 0


def test_colours_may_be_numbers_and_amounts_go_up():
    image = np.full((48, 48, 3), 90, np.uint8)
    rng = np.random.default_rng(0)
    assert change(image, (("frame", 2, (255, 0, 0)),), rng).shape == image.shape
    assert change(image, (("contrast", -1),), rng).shape == image.shape
    with pytest.raises(ConfigError, match="from the smaller to the larger"):
        change(image, (("rotate", (5, -5)),), rng)

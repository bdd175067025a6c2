"""The exported search for duplicates: planted copies found and nothing else, whatever the size, the source, the block."""
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from fer_nb.core import ConfigError, DataError, ImageError
from fer_nb.data import FERData
from fer_nb.synth import make_faces
from fer_nb.duplicates import (DuplicateSearch, aligned_cosine, find_duplicates, grey_thumbs, similar_pairs, unit_vectors, whitened)


def dataset(images, labels="happy", splits="train"):
    df = pd.DataFrame({"id": [f"im{k:03}" for k in range(len(images))], "label": labels, "split": splits})
    return FERData(df, images)


def noise(n, seed=0, shape=(48, 48)):
    "Images that have nothing to do with each other."
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def smooth(n, seed=0, side=48):
    "Images of a few broad patches, as photographs are, that have nothing to do with each other."
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(x, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return (x[:, 0] * 215 + 20).round().byte().numpy()


def shifted(image, dx=2, dy=1):
    return np.pad(image, 4, mode="edge")[4 - dy:52 - dy, 4 - dx:52 - dx]


def noisy(image):
    return (image + np.random.default_rng(1).normal(0, 4, image.shape)).round().clip(0, 255).astype(np.uint8)


CHANGES = {
    "shift": shifted,
    "mirror": lambda im: im[:, ::-1],
    "brighter": lambda im: (im * 0.8 + 30).round().astype(np.uint8),
    "noisy": noisy,
    "shifted mirror": lambda im: shifted(im[:, ::-1]),
}


def pairs(duplicates):
    return list(zip(duplicates.i, duplicates.j, duplicates.how))


def as_files(images, folder):
    "The same images as a dataset of PNG files."
    paths = [folder / f"{k}.png" for k in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    return FERData(dataset(images).df, paths)


# ---- the parts ----

@given(st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_unit_vectors_have_length_one_and_mean_zero(seed):
    v = unit_vectors(torch.from_numpy(noise(5, seed)))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(5))
    assert v.mean(1).abs().max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.floats(-1, 1), st.integers(0, 99))
def test_similar_pairs_agrees_with_plain_loops(n, block, threshold, seed):
    v = unit_vectors(torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(seed)))
    scores = (v.double() @ v.double().T).tolist()
    close = {(i, j) for i in range(n) for j in range(i + 1, n) if abs(scores[i][j] - threshold) < 1e-5}
    slow = {(i, j) for i in range(n) for j in range(i + 1, n) if scores[i][j] >= threshold}
    found = [tuple(p) for p in similar_pairs(v, v, threshold, block).tolist()]
    assert len(set(found)) == len(found) and set(found) - close == slow - close


@pytest.mark.parametrize("n", [2, 40, 600])
def test_whitened_vectors_have_length_one_and_know_mirrors(n):
    x = torch.from_numpy(smooth(n, side=12))
    v, m = whitened(unit_vectors(x), unit_vectors(x.flip(2)))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(n))
    twice, _ = whitened(unit_vectors(x.flip(2)), unit_vectors(x))
    torch.testing.assert_close(m @ m.T, twice @ twice.T, atol=1e-4, rtol=0)


def test_whitening_survives_images_without_content_and_empty_sets():
    v, m = whitened(torch.zeros(5, 144), torch.zeros(5, 144))
    assert not v.any() and not m.any()
    assert whitened(torch.zeros(0, 144), torch.zeros(0, 144))[0].shape == (0, 64)


def test_aligned_cosine_does_not_care_for_light_and_finds_the_offset():
    a = torch.from_numpy(smooth(6)).float()
    b = torch.from_numpy(np.stack([shifted(im, 3, -2) for im in smooth(6)])).float()
    assert (aligned_cosine(a, b, 3) > .999).all() and (aligned_cosine(a, b, 1) < .99).any()
    torch.testing.assert_close(aligned_cosine(a, b * 0.4 + 70, 3), aligned_cosine(a, b, 3), atol=1e-4, rtol=0)
    assert aligned_cosine(a, -a).max() < .9
    assert aligned_cosine(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("side, reach", [(24, 1), (48, 3), (20, 0)])
def test_aligned_cosine_is_the_best_of_all_windows(side, reach):
    a, b = torch.from_numpy(smooth(4, 1, side)).float(), torch.from_numpy(smooth(4, 2, side)).float()
    n = side - 2 * reach
    for x, y, score in zip(a.numpy(), b.numpy(), aligned_cosine(a, b, reach).tolist()):
        inner = x[reach:reach + n, reach:reach + n].ravel()
        best = max(np.corrcoef(inner, y[r:r + n, c:c + n].ravel())[0, 1]
                   for r in range(2 * reach + 1) for c in range(2 * reach + 1))
        assert score == pytest.approx(best, abs=1e-4)


def test_a_magnified_copy_is_aligned_in_either_direction():
    a = torch.from_numpy(smooth(6)).float()
    b = torch.nn.functional.interpolate(a[:, None], size=(52, 52), mode="bilinear")[:, 0, 2:50, 2:50]
    assert aligned_cosine(a, b, zooms=(1.0, 1.08)).min() > .999 and aligned_cosine(b, a, zooms=(1.0, 1.08)).min() > .999
    assert aligned_cosine(a, b).max() < .999


# ---- what is a duplicate ----

@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("changed_first", [False, True])
def test_changed_copies_are_found_and_nothing_else(change, changed_first):
    images = smooth(30, seed=3)
    copies = np.stack([CHANGES[change](im) for im in images[:8]])
    ds = dataset(np.concatenate([images, copies] if not changed_first else [copies, images]))
    duplicates = find_duplicates(ds)
    expected = [(k, 30 + k) for k in range(8)] if not changed_first else [(k, 8 + k) for k in range(8)]
    assert list(zip(duplicates.i, duplicates.j)) == expected
    assert set(duplicates.how) == {"mirror" if "mirror" in change else "near"}
    assert (duplicates.score >= 0.95).all() and (duplicates.score <= 1 + 1e-5).all()


def test_mirrors_are_left_alone_on_request():
    ds = dataset(np.concatenate([smooth(5), smooth(5)[:, :, ::-1]]))
    assert len(find_duplicates(ds)) == 5 and len(find_duplicates(ds, DuplicateSearch(mirrored=False))) == 0


def test_the_block_size_does_not_change_the_result():
    images = smooth(12, seed=5)
    moved = np.stack([shifted(p) for p in images[:4]])
    ds = dataset(np.concatenate([images, images[::2], images[:4, :, ::-1], moved]))
    whole = find_duplicates(ds)
    assert set(whole.how) == {"exact", "near", "mirror"}
    for block in (1, 3, 7, 20, 21):
        pd.testing.assert_frame_equal(whole, find_duplicates(ds, DuplicateSearch(block=block)), atol=1e-5)


def test_of_identical_images_each_is_paired_with_the_first_only():
    which = np.array([0, 1, 0, 0, 2, 1, 0])
    for search in (DuplicateSearch(), None):
        duplicates = find_duplicates(dataset(smooth(3)[which]), search)
        assert pairs(duplicates) == [(0, 2, "exact"), (0, 3, "exact"), (0, 6, "exact"), (1, 5, "exact")]


def test_thousands_of_identical_blanks_are_as_many_pairs():
    images = np.zeros((3000, 8, 8), np.uint8)
    duplicates = find_duplicates(dataset(images))
    assert len(duplicates) == 2999 and set(duplicates.i) == {0} and set(duplicates.how) == {"exact"}


def test_planted_copies_of_synthetic_faces():
    ds, truth = make_faces(800, seed=21)
    at = {id: k for k, id in enumerate(ds.df.id)}
    known = truth[truth.kind.isin(["duplicate", "leak", "multilabel"])]
    planted = {tuple(sorted((at[a], at[b]))) for a, b in zip(known.id, known.partner)}
    duplicates = find_duplicates(ds)
    found = set(zip(duplicates.i, duplicates.j))
    faceless = set(ds.df.id[ds.df.id.isin(truth.id[truth.kind == "no_face"])].map(at))
    assert len(planted & found) >= .93 * len(planted)
    assert not {p for p in found - planted if not set(p) & faceless}


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("search", [DuplicateSearch(), None])
def test_tiny_datasets_give_an_empty_table_of_the_same_columns(n, search):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        duplicates = find_duplicates(dataset(smooth(n)), search)
    assert list(duplicates.columns) == ["i", "j", "score", "how"] and len(duplicates) == 0
    assert duplicates.i.dtype == duplicates.j.dtype == np.int64


@pytest.mark.parametrize("bad", [dict(reach=-1), dict(reach=13), dict(zooms=()), dict(zooms=(0.5, 1.0)), dict(block=0)])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DuplicateSearch(**bad)


# ---- sizes, colour, files ----

@pytest.mark.parametrize("shape", [(48, 48, 3), (64, 50), (20, 20), (112, 112, 3)])
def test_colour_and_other_sizes(shape):
    images = np.stack([np.asarray(Image.fromarray(im).resize(shape[1::-1])) for im in smooth(8, seed=2)])
    if len(shape) == 3:
        images = np.stack([images, images // 2 + 60, 255 - images // 3], -1)
    ds = dataset(np.concatenate([images, images[:2], images[2:4, :, ::-1]]))
    duplicates = find_duplicates(ds)
    expected = [(0, 8, "exact"), (1, 9, "exact"), (2, 10, "mirror"), (3, 11, "mirror")]
    assert list(zip(duplicates.i, duplicates.j, duplicates.how)) == expected
    assert grey_thumbs(ds).shape == (12, 48, 48) and grey_thumbs(ds).dtype == torch.uint8


def test_same_bytes_in_another_shape_are_another_image(tmp_path):
    pixels = np.arange(0, 240, 2, dtype=np.uint8)
    for name, shape in (("a.png", (10, 12)), ("b.png", (12, 10))):
        Image.fromarray(pixels.reshape(shape)).save(tmp_path / name)
    df = pd.DataFrame({"id": ["a", "b"], "label": "sad", "split": "train"})
    assert len(find_duplicates(FERData(df, [tmp_path / "a.png", tmp_path / "b.png"]), None)) == 0


def test_files_give_what_the_same_arrays_give(tmp_path):
    images = smooth(70, seed=9, side=60)
    images = np.concatenate([images, images[:3], np.stack([im[:, ::-1] for im in images[3:6]])])
    files, arrays = as_files(images, tmp_path), dataset(images)
    assert torch.equal(grey_thumbs(files), grey_thumbs(arrays))
    assert len(find_duplicates(arrays)) == 6
    pd.testing.assert_frame_equal(find_duplicates(files), find_duplicates(arrays))
    pd.testing.assert_frame_equal(find_duplicates(files, None), find_duplicates(arrays, None))


def test_files_are_decoded_once_and_not_kept(tmp_path, monkeypatch):
    import fer_nb.data
    big = np.kron(smooth(1)[0], np.ones((8, 8), np.uint8))                     # 147 kB decoded
    files = as_files(np.stack([np.roll(big, k, 0) for k in range(200)]), tmp_path)
    decoded, read = [], fer_nb.data.read_image
    monkeypatch.setattr(fer_nb.data, "read_image", lambda path: decoded.append(path) or read(path))
    tracemalloc.start()
    find_duplicates(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(decoded) == sorted(files._images)
    assert peak < 150 * big.nbytes, "all 200 originals were in memory"


def test_a_file_that_is_no_image_is_named(tmp_path):
    files = as_files(smooth(3), tmp_path)
    files._images[1].write_bytes(b"no image")
    with pytest.raises(ImageError, match="1.png"):
        find_duplicates(files)


def test_every_original_is_shown_in_order():
    images, seen = smooth(5, side=50), []
    grey_thumbs(dataset(images), each=seen.append)
    assert np.array_equal(np.stack(seen), images)


@pytest.mark.parametrize("view", [lambda x: x[:, :, ::-1], lambda x: np.broadcast_to(x[:1], x.shape), lambda x: x[::2]])
def test_views_of_arrays_are_as_good_as_arrays(view):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = view(smooth(6))
        assert np.array_equal(grey_thumbs(dataset(images)).numpy(), images)
        pd.testing.assert_frame_equal(find_duplicates(dataset(images)), find_duplicates(dataset(images.copy())))


def test_no_cosine_is_above_one():
    assert find_duplicates(make_faces(600, seed=3)[0]).score.max() <= 1


# ---- features ----

def with_features():
    "Images 0-9; 10 is a moved copy of 0; the features of 1 and 2, and of 0 and 10, are the same."
    images = np.concatenate([smooth(10), shifted(smooth(10)[0])[None]])
    features = np.eye(11)
    features[2] = 5 * features[1]
    features[10] = features[0]
    return dataset(images), features


def test_features_propose_and_alignment_decides():
    ds, features = with_features()
    assert pairs(find_duplicates(ds, DuplicateSearch(), features)) == [(0, 10, "near")]
    blind = DuplicateSearch(candidate=2)                                            # nothing but features proposes
    assert len(find_duplicates(ds, blind)) == 0
    duplicates = find_duplicates(ds, blind, features)
    assert pairs(duplicates) == [(0, 10, "feature")]
    assert duplicates.score[0] == pytest.approx(find_duplicates(ds).score[0], abs=1e-5)


def test_features_alone_decide_on_request_and_pixels_keep_their_word():
    ds, features = with_features()
    duplicates = find_duplicates(ds, DuplicateSearch(trust_features=True), torch.from_numpy(features))
    assert pairs(duplicates) == [(0, 10, "near"), (1, 2, "feature")] and duplicates.score[1] == pytest.approx(1)


def test_features_find_mirrors_and_leave_blanks_and_copies_alone():
    blank = np.full((1, 48, 48), 7, np.uint8)
    images = np.concatenate([smooth(4), smooth(4)[:1, :, ::-1], blank, blank + 1, smooth(4)[:1]])
    ds, features = dataset(images), np.ones((8, 2))
    assert pairs(find_duplicates(ds, DuplicateSearch(candidate=2), features)) == [(0, 4, "feature"), (0, 7, "exact")]
    trusted = find_duplicates(ds, DuplicateSearch(candidate=2, trust_features=True), features)
    trusted = trusted[trusted.how == "feature"]
    assert len(trusted) and not {5, 6, 7} & {*trusted.i, *trusted.j}


@pytest.mark.parametrize("features, message", [(np.ones((3, 2)), "(5, D)"), (np.ones(5), "(5, D)"),
                                               (np.array([[1.], [2.], [np.nan], [1.], [np.inf]]), "image 2")])
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(DataError) as e:
        find_duplicates(dataset(smooth(5)), DuplicateSearch(), features)
    assert message in str(e.value)
    with pytest.raises(ConfigError, match="search=None"):
        find_duplicates(dataset(smooth(5)), None, np.ones((5, 2)))


# ---- the real FER2013 ----

@pytest.mark.realdata
def test_duplicates_of_the_real_data(fer2013_npz):
    duplicates = find_duplicates(dataset(fer2013_npz[0])).how.value_counts()
    assert duplicates.exact == len(fer2013_npz[0]) - len({image.tobytes() for image in fer2013_npz[0]}) == 1532
    assert duplicates.near == pytest.approx(4043, abs=10) and duplicates.mirror == pytest.approx(62, abs=3)

"""The exported search for duplicates: planted copies found and nothing else, whatever the size, the source, the block."""
import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image

import fer_nb.duplicates
from fer_nb.core import ConfigError, DataError, ImageError
from fer_nb.data import FERData
from fer_nb.synth import make_faces
from fer_nb.duplicates import (EVIDENCE, DuplicateSearch, best_hits, block_correlations, block_score, changed_copies, chance_of, discriminant,
                               find_duplicates, grey_thumbs, motion, nearest_pairs, plain_borders, refined, sorted_into_cells,
                               unit_vectors, without_borders)


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
    "rotated": lambda im: np.asarray(Image.fromarray(im).rotate(7, Image.BILINEAR, fillcolor=int(im.mean()))),
    "cropped": lambda im: np.asarray(Image.fromarray(im).resize((48, 48), Image.BICUBIC, (0, 4, 41, 45))),
    "covered": lambda im: np.where((np.mgrid[:48, :48] // 12 == 1).all(0), 0, im).astype(np.uint8),
    "framed": lambda im: np.pad(im[4:-4, 4:-4], 4, constant_values=255),
    "half as large": lambda im: np.asarray(Image.fromarray(im).resize((24, 24)).resize((48, 48))),
    "gamma": lambda im: (255 * (im / 255) ** 1.8).round().astype(np.uint8),
}
WORDS = {"shift": "shifted", "mirror": "mirrored", "shifted mirror": "mirrored", "rotated": "rotated by 7°", "cropped": "cropped 1",
         "covered": "covered"}


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
@given(st.integers(1, 30), st.integers(1, 12), st.floats(-1, 1), st.integers(1, 40), st.integers(0, 99), st.integers(0, 20))
def test_nearest_pairs_agrees_with_plain_loops(n, block, least, keep, seed, cut):
    generator = torch.Generator().manual_seed(seed)
    views = [F.normalize(torch.randn(n, 6, generator=generator)) for _ in range(3)]
    found = np.concatenate([nearest_pairs(views, views[0], least, keep, block, top, cut) for top in range(0, n, block)])
    for i in range(n):
        best = {j: max(float(view[i] @ views[0][j]) for view in views) for j in range(n)
                if j != i and (not cut or (i < cut) != (j < cut))}
        expected = sorted((score for score in best.values() if score >= least), reverse=True)[:keep]
        mine = found[found[:, 0] == i]
        assert np.allclose(mine[:, 2], expected, atol=1e-5) if len(mine) == len(expected) else \
            abs(min(list(expected) + list(mine[:, 2])) - least) < 1e-5
        assert len(set(mine[:, 1])) == len(mine) and np.allclose(mine[:, 2], [best[j] for j in mine[:, 1]], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_all_cells_together_are_an_exhaustive_search(n, block, keep, seed):
    generator = torch.Generator().manual_seed(seed)
    views = [F.normalize(torch.randn(n, 6, generator=generator)) for _ in range(3)]
    cells = sorted_into_cells(views[0])
    assert sorted(torch.cat(cells.members).tolist()) == list(range(n))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fer_nb.duplicates, "PROBES", 1)
        found, expected = ([nearest_pairs(views, views[0], -1., keep, block, top, 0, c) for top in range(0, n, block)] for c in (cells, None))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-5)


def test_a_search_by_cells_finds_the_same_duplicates(monkeypatch):
    images = smooth(700)
    copies = np.stack([list(CHANGES.values())[k % len(CHANGES)](images[k]) for k in range(150)])
    ds = dataset(np.concatenate([images, copies]))
    expected = set(pairs(find_duplicates(ds)))
    monkeypatch.setattr(fer_nb.duplicates, "EXHAUSTIVE", 100)
    found = set(pairs(find_duplicates(ds)))
    assert len(expected) >= 140 and len(found & expected) >= .97 * len(expected) and not {p for p in found - expected if p[1] - p[0] != 700}


def test_a_pair_is_kept_once_with_its_best_view():
    hits = np.array([[0, 1, .5, 0], [0, 1, .7, 2], [0, 2, .6, 1], [1, 0, .2, 0], [0, 3, .1, 0]])
    assert best_hits(hits, 2).tolist() == [[0, 1, .7, 2], [0, 2, .6, 1], [1, 0, .2, 0]]
    assert best_hits(np.empty((0, 4)), 2).shape == (0, 4)


def test_the_discriminant_is_scikit_learns():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(300, 5, generator=generator, dtype=torch.double) * torch.tensor([5., 1, 1, 1, 1])
    after = before + torch.randn(300, 5, generator=generator, dtype=torch.double) * torch.tensor([4., .1, 1, 1, 1])
    axes = discriminant(before, after, 1, 0)[:, 0].double()
    peer = LinearDiscriminantAnalysis(solver="eigen", n_components=1).fit(torch.cat([before, after]), list(range(300)) * 2)
    cosine = F.cosine_similarity(axes, torch.from_numpy(peer.scalings_[:, 0]), 0).abs()
    assert cosine > .95 and axes[1].abs() == axes.abs().max(), "the axis that no change moves comes first"


def test_the_discriminant_survives_images_without_content():
    assert discriminant(torch.zeros(5, 8), torch.zeros(5, 8)).isfinite().all()


def test_block_correlations_agree_with_plain_loops():
    rng = np.random.default_rng(0)
    a, b = smooth(4, 1).astype(float), smooth(4, 2).astype(float) + rng.normal(0, 20, (4, 48, 48))
    mask = (rng.random((4, 48, 48)) < .8).astype(float)
    mask[0, :8, :8], a[1, 8:16, 8:16] = 0, 50
    r = block_correlations(*(torch.from_numpy(x).float() for x in (a, b, mask)), 8, 2.)
    for n in range(4):
        slow = []
        for top in range(0, 48, 8):
            for left in range(0, 48, 8):
                x, y, m = (z[n, top:top + 8, left:left + 8].ravel() for z in (a, b, mask > 0))
                flat = m.mean() < .6 or min(x[m].std(), y[m].std()) <= 2
                slow.append(np.nan if flat else np.corrcoef(x[m], y[m])[0, 1])
        assert np.allclose(r[n], slow, atol=1e-3, equal_nan=True)
        assert block_score(r)[n] == pytest.approx(np.nanmedian(slow), abs=1e-3)
    assert r[0, 0].isnan() and r[1, 7].isnan()
    assert block_score(torch.full((2, 36), torch.nan)).tolist() == [0, 0], "nothing to compare is no agreement"


@pytest.mark.parametrize("turn, zoom, right", [(0, 1, 0), (6, 1, .05), (-8, 1.1, 0), (0, .9, .1)])
def test_alignment_finds_the_map_that_was_applied(turn, zoom, right):
    t = np.radians(turn)
    true = torch.tensor([[np.cos(t) * zoom, -np.sin(t) * zoom, right], [np.sin(t) * zoom, np.cos(t) * zoom, 0.]]).float()
    b = torch.from_numpy(smooth(6)).float() / 40
    b = b - b.mean((1, 2), keepdim=True)
    a = F.grid_sample(b[:, None], F.affine_grid(true.repeat(6, 1, 1), (6, 1, 48, 48), align_corners=False),
                      align_corners=False, padding_mode="border")[:, 0]
    one = torch.ones_like(a)
    found = refined(torch.eye(2, 3).repeat(6, 1, 1), a, b, one, one, 25)
    assert (found - true).abs().amax((1, 2)).median() < .01
    turns, zooms, stretch, shift = motion(true[None])
    assert float(turns) == pytest.approx(turn, abs=1e-3) and float(zooms) == pytest.approx(zoom, abs=1e-4)
    assert float(stretch) == pytest.approx(1, abs=1e-3) and float(shift) == pytest.approx(right, abs=1e-4)


def test_borders_are_measured_and_filled():
    image = torch.from_numpy(smooth(1)).clone()
    image[:, :3], image[:, :, -5:] = 9, 9
    assert plain_borders(image).tolist() == [[3, 0, 0, 5]]
    inner = without_borders(image, plain_borders(image))
    assert torch.equal(inner[0, 0], inner[0, 3]) and torch.equal(inner[0, :, -1], inner[0, :, -6])
    assert plain_borders(torch.full((1, 48, 48), 7, dtype=torch.uint8)).tolist() == [[0] * 4], "a blank has no inside"


def test_changed_copies_are_images_and_the_same_for_a_seed():
    x = torch.from_numpy(smooth(64)).float()
    y = changed_copies(x, torch.Generator().manual_seed(3))
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 255 and y.isfinite().all()
    assert torch.equal(y, changed_copies(x, torch.Generator().manual_seed(3)))
    assert ((y - x).abs().amax((1, 2)) > 5).float().mean() > .7


def test_the_chance_falls_with_the_score():
    chances = chance_of(np.linspace(0, 1, 50), EVIDENCE[0])
    assert (np.diff(chances) <= 0).all() and chances[0] == 1 and 0 < chances[-1] < 1e-9


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
    assert (duplicates.score >= 0.95).all() and (duplicates.score <= 1 + 1e-5).all() and (duplicates.chance <= 1e-4).all()
    assert duplicates.change.str.contains(WORDS.get(change, "")).mean() >= .75, duplicates.change.tolist()


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


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (3, 90)])
def test_blanks_of_every_size_and_colour_are_compared_with_none(shape):
    images = np.stack([np.full(shape, k // 2, np.uint8) for k in range(500)])
    assert set(find_duplicates(dataset(images)).how) == {"exact"} and len(find_duplicates(dataset(images))) == 250


def test_of_many_copies_each_is_paired_with_a_few():
    image = smooth(1)[0]
    images = np.stack([np.clip(image * (.7 + .0005 * k), 0, 255).round().astype(np.uint8) for k in range(600)])
    duplicates = find_duplicates(dataset(images), DuplicateSearch(candidates=3))
    exact = duplicates.how == "exact"
    assert (~exact).sum() <= 3 * 2 * (600 - exact.sum()), "no row has more than its candidates, straight and mirrored"


def expressions(n):
    "Drawn faces whose mouth is another's: the same person in another moment."
    faces = make_faces(3 * n, seed=8, defects=None)[0].array()
    other = faces[:n].copy()
    other[:, 28:44, 8:40] = faces[n:2 * n, 28:44, 8:40]
    return np.concatenate([faces, other])


@pytest.mark.parametrize("n, m", [(13, 13), (20, 13), (12, 12), (14, 9)])
def test_large_groups_of_one_photo_meet(n, m):
    "Copies that resemble each other take all partners of a row; those that were cropped are the same photo all the same."
    rng, image = np.random.default_rng(0), smooth(1, seed=5)[0]
    near = np.stack([(im * rng.uniform(.85, 1) + rng.normal(0, 3, im.shape)).clip(0, 255).astype(np.uint8)
                     for im in [image] * n + [CHANGES["cropped"](image)] * m])
    found = find_duplicates(dataset(np.concatenate([smooth(80, seed=1), near])))
    same = found[found.how != "similar"]
    number = fer_nb.duplicates.components(80 + n + m, same.i, same.j)
    assert len(set(number[80:])) == 1 and len(set(number)) == 81
    assert not found.duplicated(["i", "j"]).any()


def test_another_photograph_of_a_person_is_no_duplicate():
    images = expressions(60)
    table = find_duplicates(dataset(images), DuplicateSearch(similar=.1))
    assert set(table.how) <= {"similar", "near", "mirror"} and (table.how == "similar").any()
    assert (table.chance[table.how == "similar"] > 1e-4).all() and (table.chance[table.how != "similar"] <= 1e-4).all()
    none = find_duplicates(dataset(images), DuplicateSearch(similar=0))
    assert "similar" not in set(none.how)
    pd.testing.assert_frame_equal(none, table[table.how != "similar"].reset_index(drop=True))


def before_one_wall(n, face, seed=3):
    "Different drawn persons, in an oval before one textured background; every one with noise of its own."
    rng, yy, xx = np.random.default_rng(0), *(np.mgrid[:48, :48] - 23.5)
    oval = ((yy / (face / 2)) ** 2 + (xx / (face / 2.3)) ** 2) < 1
    persons = torch.from_numpy(smooth(n, seed, side=face)).float()
    wall = smooth(1, 99)[0] * .5 + np.kron(rng.integers(0, 100, (16, 16)), np.ones((3, 3)))
    start = (48 - face) // 2
    persons = np.pad(persons.numpy(), ((0, 0), *[(start, 48 - face - start)] * 2))
    return (np.where(oval, persons, wall) + rng.normal(0, 2, (n, 48, 48))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("n", [20, 60])
def test_persons_before_one_wall_are_no_copies_and_their_copies_are_found(n):
    images = before_one_wall(n, 28)
    copies = np.stack([(images[k] * .8 + 20 + (k % 2) * np.random.default_rng(k).normal(0, 3, (48, 48))).clip(0, 255).astype(np.uint8)
                       for k in range(6)])
    found = find_duplicates(dataset(np.concatenate([images, copies])))
    assert pairs(found[found.how != "similar"]) == [(k, n + k, "near") for k in range(6)]
    assert .4 < found.attrs["shared"] < .9 and 0 < found.attrs["scale"] < 1


def test_where_persons_are_small_before_one_wall_pairs_are_similar_and_not_dropped():
    images = before_one_wall(40, 16)
    found = find_duplicates(dataset(images))
    assert set(found.how) == {"similar"} and len(found) > 40
    assert found.attrs["shared"] == 0 and found.attrs["scale"] < .1


@pytest.mark.parametrize("photos", [1, 2, 3, 12])
def test_sets_of_many_copies_of_few_photos_share_no_wall(photos):
    "There random pairs are copies: what they agree in is the photo."
    rng = np.random.default_rng(0)
    images = np.stack([(im * rng.uniform(.75, 1) + rng.normal(0, 4, im.shape)).clip(0, 255).astype(np.uint8)
                       for im in smooth(photos, 5).repeat(36 // photos, 0)])
    found = find_duplicates(dataset(images))
    assert found.attrs == {"shared": 0, "scale": 1} and set(found.how) == {"near"}
    assert len(set(fer_nb.duplicates.components(36, found.i, found.j))) == photos


def test_what_is_said_of_the_images_is_cached_with_the_pairs(tmp_path):
    ds = dataset(before_one_wall(20, 28))
    told = [find_duplicates(ds, cache=cache).attrs for cache in (False, tmp_path, tmp_path)]
    assert told[0] == told[1] == told[2] and told[0]["shared"] > .4


@pytest.mark.parametrize("border", [12, 14, 16])
def test_a_wide_border_that_most_images_have_makes_no_copies(border):
    side = 48 - 2 * border
    images = np.pad(make_faces(60, seed=8, defects=None, size=48)[0].array()[:, ::48 // side, ::48 // side][:, :side, :side], ((0, 0), *[(border, border)] * 2))
    found = find_duplicates(dataset(images))
    assert not len(found[found.how != "similar"])


def test_a_smaller_error_finds_fewer():
    images = np.concatenate([smooth(60), np.stack([noisy(noisy(noisy(im))) for im in smooth(60)])])
    found = [set(pairs(find_duplicates(dataset(images), DuplicateSearch(error=error, similar=0)))) for error in (1e-2, 1e-6, 1e-12)]
    assert found[2] <= found[1] <= found[0] and len(found[0]) == 60


def test_a_killed_search_computes_the_missing_parts_only(tmp_path, monkeypatch):
    images = np.concatenate([smooth(60), smooth(60)[:20, :, ::-1]])
    search = DuplicateSearch(block=30)
    whole = find_duplicates(dataset(images), search, folder=tmp_path)
    parts = sorted(tmp_path.rglob("*.npz"))
    assert len(parts) == 4 and {part.name.split("-")[0] for part in parts} == {"candidates", "pairs"}
    parts[1].unlink()
    bands, nearest = [], fer_nb.duplicates.nearest_pairs
    monkeypatch.setattr(fer_nb.duplicates, "nearest_pairs", lambda *a: bands.append(a[5]) or nearest(*a))
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), search, folder=tmp_path), whole)
    assert bands == [30]


def test_stored_pairs_are_read_for_the_same_candidates_alone(tmp_path, monkeypatch):
    "A band of candidates that is made again elsewhere may lack its weakest one; those behind it move up."
    images = np.concatenate([smooth(60), smooth(60)[:20, :, ::-1]])
    whole = find_duplicates(dataset(images), folder=tmp_path)
    band, = tmp_path.rglob("candidates-*")
    band.unlink()
    nearest = fer_nb.duplicates.nearest_pairs

    def without_the_weakest(*a):
        hits = nearest(*a)
        pair, weak = np.sort(hits[:, :2]), hits[:, 2].argmin()
        return hits[(pair != pair[weak]).any(1)]

    monkeypatch.setattr(fer_nb.duplicates, "nearest_pairs", without_the_weakest)
    again = find_duplicates(dataset(images), folder=tmp_path)
    assert len(whole) == 20 and set(pairs(again)) == set(pairs(whole))


def searches(monkeypatch) -> list:
    "What is searched from now on: an entry a search."
    found, near = [], DuplicateSearch.near
    monkeypatch.setattr(DuplicateSearch, "near", lambda *a: found.append(1) or near(*a))
    return found


def test_what_was_found_is_read_for_the_same_images_settings_and_code_alone(tmp_path, monkeypatch):
    images = np.concatenate([smooth(40), smooth(40)[:20, :, ::-1], noisy(smooth(40)[20:30])])
    done, plain = searches(monkeypatch), find_duplicates(dataset(images))
    for _ in range(3):
        pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path), plain)
    assert len(done) == 2 and len(plain) >= 30
    find_duplicates(dataset(images[1:]), cache=tmp_path)
    find_duplicates(dataset(images), DuplicateSearch(least=0.5), cache=tmp_path)
    find_duplicates(dataset(images), features=np.eye(len(images), dtype=np.float32), cache=tmp_path)
    monkeypatch.setattr(fer_nb.duplicates, "_CODE", "another")
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path), plain)
    assert len(done) == 6 and len([*tmp_path.rglob("*.npz")]) == 5


def no_home():
    "What `Path.home` raises where a user has none."
    raise RuntimeError("Could not determine home directory.")


def test_a_cache_that_cannot_be_used_is_done_without_and_a_damaged_one_made_again(tmp_path, monkeypatch):
    images, done = np.concatenate([smooth(30), noisy(smooth(30)[:9])]), searches(monkeypatch)
    plain = find_duplicates(dataset(images))
    (tmp_path / "file").write_text("no folder")
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path / "file"), plain)
    monkeypatch.setattr(fer_nb.duplicates, "cache_dir", no_home)
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=True), plain)
    find_duplicates(dataset(images), cache=tmp_path)
    kept, = tmp_path.rglob("found.npz")
    whole = kept.read_bytes()
    foreign = kept.with_name(".found.1-2.npz")                              # what another process is writing
    foreign.write_bytes(b"half")
    kept.write_bytes(whole[:len(whole) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path), plain)
    assert len(done) == 5 and foreign.exists()
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path), plain)
    assert len(done) == 5


def test_all_processes_read_or_all_search(tmp_path, monkeypatch):
    images, done = np.concatenate([smooth(30), noisy(smooth(30)[:9])]), searches(monkeypatch)
    plain = find_duplicates(dataset(images), cache=tmp_path)
    monkeypatch.setattr(fer_nb.duplicates, "gather", lambda there: [there, False])                      # the other has none
    pd.testing.assert_frame_equal(find_duplicates(dataset(images), cache=tmp_path), plain)
    assert len(done) == 2


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
    assert list(duplicates.columns) == ["i", "j", "score", "how", "chance", "change"] and len(duplicates) == 0
    assert duplicates.i.dtype == duplicates.j.dtype == np.int64


@pytest.mark.parametrize("bad", [dict(error=0.), dict(error=2), dict(similar=-1.), dict(similar=2.), dict(candidates=0), dict(block=0),
                                 dict(candidates=2.5), dict(block=10.5), dict(block=True)])
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


def test_a_file_that_is_written_anew_is_looked_at_again(tmp_path, monkeypatch):
    import fer_nb.data
    images = smooth(6)
    files = as_files(images, tmp_path)
    assert len(find_duplicates(files)) == 0 and len(find_duplicates(files.take([0, 5]))) == 0
    Image.fromarray(images[0][:, ::-1]).save(files._images[5])
    os.utime(files._images[5], ns=(1, 1))                                     # also by a copy that keeps its old time
    decoded, read = [], fer_nb.data.read_image
    monkeypatch.setattr(fer_nb.data, "read_image", lambda path: decoded.append(path) or read(path))
    assert pairs(find_duplicates(files)) == [(0, 5, "mirror")] and pairs(find_duplicates(files.take([0, 5]))) == [(0, 1, "mirror")]
    assert decoded == [files._images[5]]


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
    blind = DuplicateSearch(least=2)                                            # nothing but features proposes
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
    assert pairs(find_duplicates(ds, DuplicateSearch(least=2), features)) == [(0, 4, "feature"), (0, 7, "exact")]
    trusted = find_duplicates(ds, DuplicateSearch(least=2, trust_features=True), features)
    trusted = trusted[trusted.how == "feature"]
    assert len(trusted) and not {5, 6, 7} & {*trusted.i, *trusted.j}


@pytest.mark.parametrize("kind", [lambda x: torch.from_numpy(x).requires_grad_(), lambda x: torch.from_numpy(x).half()])
def test_features_may_be_tensors_of_any_kind(kind):
    ds, features = with_features()
    features = features.astype(np.float32)
    found = find_duplicates(ds, DuplicateSearch(), kind(features))
    assert pairs(found) == pairs(find_duplicates(ds, DuplicateSearch(), features))


@pytest.mark.parametrize("features, message", [(np.ones((3, 2)), "(5, D)"), (np.ones(5), "(5, D)"),
                                               (np.array([[1.], [2.], [np.nan], [1.], [np.inf]]), "image 2")])
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(DataError) as e:
        find_duplicates(dataset(smooth(5)), DuplicateSearch(), features)
    assert message in str(e.value)
    with pytest.raises(ConfigError, match="search=None"):
        find_duplicates(dataset(smooth(5)), None, np.ones((5, 2)))


# ---- the real FER2013 ----

@pytest.mark.slow
@pytest.mark.realdata
def test_duplicates_of_the_real_data(fer2013_npz):
    duplicates = find_duplicates(dataset(fer2013_npz[0])).how.value_counts()
    assert duplicates.exact == len(fer2013_npz[0]) - len({image.tobytes() for image in fer2013_npz[0]}) == 1532
    assert duplicates.near == pytest.approx(9805, abs=10) and duplicates.mirror == pytest.approx(236, abs=3)

"""The exported augmentation: geometry against NumPy, replay, statistics of each change, and refusals."""
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fer_nb.augment import Augment, affine, gaussian_blur, hash_normal
from fer_nb.core import ConfigError, ImageError

STILL = Augment(hflip=0, rotate=0, translate=0, scale=(1, 1))
STRONG = Augment(vflip=0.3, rotate=30, brightness=0.2, contrast=0.4, noise=0.1, erase=0.5, blur=1.5)


def images(n=6, c=1, h=16, w=16, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def test_another_default_type_changes_nothing():
    x, before = (255 * images()).byte(), torch.get_default_dtype()
    views = STRONG(x, np.arange(6))
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(STRONG(x, np.arange(6)), views)
    finally:
        torch.set_default_dtype(before)


def still(n):
    return {"angle": torch.zeros(n), "scale": torch.ones(n), "shift": torch.zeros(n, 2), "mirror": torch.ones(n, 2)}


# ---- affine ----

@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([(16, 16), (10, 20)]))
@settings(max_examples=30, deadline=None)
def test_whole_pixel_shifts_agree_with_padding(dx, dy, shape):
    h, w = shape
    x = images(2, 3, h, w)
    moved = affine(x, **{**still(2), "shift": torch.tensor([[dx / w, dy / h]] * 2)})
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (5, 5), (5, 5)], mode="edge")
    expected = padded[:, :, 5 - dy:5 - dy + h, 5 - dx:5 - dx + w]
    np.testing.assert_allclose(moved, expected, atol=2e-5)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("mirror", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_quarter_turns_and_mirrors_agree_with_numpy(turns, mirror):
    x = images(2)
    change = {"angle": torch.full((2,), 90.0 * turns), "mirror": torch.tensor([mirror] * 2, dtype=torch.float)}
    ours = affine(x, **{**still(2), **change})
    mirrored = x.flip([d for d, m in zip((3, 2), mirror) if m < 0])   # mirrored first, then turned
    expected = torch.rot90(mirrored, turns, (2, 3))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_quarter_turn_of_a_wide_image_keeps_lengths():
    x = torch.zeros(1, 1, 20, 40)
    x[..., 9:11, 27:29] = 1                                           # a square, 8 pixels to the right of the centre
    turned = affine(x, **{**still(1), "angle": torch.tensor([90.0])})[0, 0]
    ys, xs = (turned > 0.5).nonzero(as_tuple=True)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (1, 2, 19, 20)  # now 8 pixels above it, and still square


def test_magnifying_enlarges_and_every_image_has_its_own_change():
    x = torch.zeros(2, 1, 32, 32)
    x[..., 12:20, 12:20] = 1
    y = affine(x, **{**still(2), "scale": torch.tensor([2.0, 0.5])})
    assert [(im > 0.5).sum().item() for im in y] == [16 * 16, 4 * 4]


def test_edges_are_repeated_not_blackened():
    y = affine(torch.ones(1, 1, 16, 16), torch.tensor([45.0]), torch.tensor([0.5]), torch.tensor([[0.3, 0.3]]),
               torch.ones(1, 2))
    torch.testing.assert_close(y, torch.ones_like(y))


# ---- replay ----

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-2**40, 2**40), min_size=1, max_size=6), st.integers(0, 1000),
       st.integers(-2**31, 2**31), st.sampled_from([1, 3]))
def test_a_view_depends_on_image_key_view_and_seed_alone(ids, view, seed, c):
    x = images(len(ids), c)
    ids = np.array(ids)
    batch = STRONG(x, ids, view, seed)
    for k in range(len(ids)):
        torch.testing.assert_close(STRONG(x[k:k + 1], ids[k:k + 1], view, seed), batch[k:k + 1], atol=1e-5, rtol=0)
    order = np.argsort(ids, kind="stable")
    torch.testing.assert_close(STRONG(x[order.copy()], ids[order], view, seed), batch[order.copy()], atol=1e-5, rtol=0)


def test_the_generators_of_torch_and_numpy_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    STRONG(images(), np.arange(6))
    assert (torch.get_rng_state() == before[0]).all() and (np.random.get_state()[1] == before[1]).all()


def test_the_given_batch_is_not_changed():
    for augment in (STRONG, STILL, Augment(brightness=1)):
        x = images()
        augment(x, np.arange(6))
        assert (x == images()).all()


@pytest.mark.parametrize("ids", [list(range(6)), torch.arange(6), np.arange(6, dtype=np.int32)])
def test_keys_may_be_lists_or_tensors(ids):
    assert (STRONG(images(), ids) == STRONG(images(), np.arange(6))).all()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 48, 48), (3, 1, 20, 33), (2, 3, 1, 1)])
@pytest.mark.parametrize("augment", [STRONG, STILL, Augment()])
def test_shapes_types_and_range_are_kept(shape, augment):
    x = torch.rand(shape)
    y = augment(x, np.arange(shape[0]))
    assert y.shape == x.shape and y.dtype == x.dtype and 0 <= y.min() and y.max() <= 1


def test_channels_move_together():
    grey = images(8, 1)
    geometric = dataclasses.replace(STRONG, noise=0)
    y = geometric(grey.expand(-1, 3, -1, -1), np.arange(8))
    torch.testing.assert_close(y[:, 0], y[:, 2])
    torch.testing.assert_close(y[:, :1], geometric(grey, np.arange(8)))


# ---- each change alone ----

def test_flips_come_in_their_shares_and_independently():
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(4000, -1, -1, -1) / 4
    y = dataclasses.replace(STILL, hflip=0.3, vflip=0.6)(x, np.arange(4000))
    right = (y[:, 0, 0, 0] > y[:, 0, 0, 1]).numpy()
    down = (y[:, 0, 0, 0] > y[:, 0, 1, 0]).numpy()
    assert abs(right.mean() - 0.3) < 0.03 and abs(down.mean() - 0.6) < 0.03 and abs((right & down).mean() - 0.18) < 0.03


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_flips_are_certain(p):
    x = images(300, 1, 8, 8)
    y = dataclasses.replace(STILL, hflip=p)(x, np.arange(300))
    torch.testing.assert_close(y, x.flip(3) if p else x, atol=1e-5, rtol=0)


def test_brightness_shifts_a_flat_image_evenly_within_its_range():
    y = dataclasses.replace(STILL, brightness=0.2)(torch.full((3000, 1, 2, 2), 0.5), np.arange(3000))
    assert (y.flatten(1).std(1) < 1e-6).all()
    change = y[:, 0, 0, 0] - 0.5
    assert -0.2 <= change.min() < -0.19 and 0.19 < change.max() <= 0.2001 and abs(change.mean()) < 0.01


def test_contrast_keeps_the_mean_and_scales_the_spread():
    x = 0.5 + 0.1 * (images(2000, 1, 4, 4) - 0.5)
    y = dataclasses.replace(STILL, contrast=0.4)(x, np.arange(2000))
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-4, rtol=0)
    ratio = y.flatten(1).std(1) / x.flatten(1).std(1)
    assert 0.6 - 1e-3 <= ratio.min() < 0.61 and 1.39 < ratio.max() <= 1.401


def test_noise_is_normal_and_independent_between_pixels_and_images():
    y = dataclasses.replace(STILL, noise=0.05)(torch.full((400, 1, 24, 24), 0.5), np.arange(400)) - 0.5
    flat = y.flatten(1).numpy()
    spread = flat.std(1)
    assert 0 <= spread.min() < 0.005 and 0.045 < spread.max() < 0.056 and abs(spread.mean() - 0.025) < 0.003
    unit = (flat / spread[:, None])[spread > 0.002]
    assert abs(unit.mean()) < 0.01 and abs((unit**4).mean() - 3) < 0.1            # kurtosis of a normal
    assert np.abs(np.corrcoef(unit[:30]) - np.eye(30)).max() < 0.2
    assert abs((unit[:, :-1] * unit[:, 1:]).mean()) < 0.01


def test_noise_is_replayed_to_the_last_bit_in_any_batch():
    noisy = dataclasses.replace(STILL, noise=0.3)
    x = torch.full((8, 1, 7, 11), 0.5)                                # 77 numbers an image: not a multiple of three
    alone = torch.cat([noisy(x[:1], np.array([k]), 3, 9) for k in range(8)])
    assert torch.equal(noisy(x, np.arange(8), 3, 9), alone)
    assert len({im.numpy().tobytes() for im in alone}) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(-2**31, 2**31), st.integers(0, 99), st.lists(st.integers(-2**40, 2**40), min_size=1, max_size=4), st.integers(1, 50))
def test_normal_numbers_depend_on_their_arguments_alone(seed, view, ids, n):
    z = hash_normal(seed, view, np.array(ids), n)
    assert z.shape == (len(ids), n) and z.dtype == np.float32 and np.abs(z).max() < 4.4
    for k, i in enumerate(ids):
        assert (hash_normal(seed, np.array([view]), np.array([i]), 60)[0, :n] == z[k]).all()


def test_normal_numbers_have_the_tails_of_the_normal_and_no_common_part_between_slots():
    z = hash_normal(5, 0, np.arange(300), 3000).astype(np.float64)
    for sigma, share in ((1, 0.317311), (2, 0.045500), (3, 0.0026998)):
        assert abs((np.abs(z) > sigma).mean() - share) < 4.5 * np.sqrt(share / z.size)
    a, b, c = (z[:, k::3].ravel() for k in range(3))                  # the three numbers of one hash
    bound = 4.5 / np.sqrt(a.size)
    for u, v in ((a, b), (a, c), (b, c)):
        assert abs((u * v).mean()) < bound and abs(((u**2 - 1) * (v**2 - 1)).mean() / 2) < bound


def test_blur_keeps_flat_images_and_the_mean_and_lowers_the_spread():
    flat = torch.full((5, 3, 9, 9), 0.3)
    sigma = torch.tensor([0, 0.3, 0.7, 1, 3.0])
    torch.testing.assert_close(gaussian_blur(flat, sigma, 9), flat)
    x = images(1).expand(5, -1, -1, -1)
    y = gaussian_blur(x, sigma, 9)
    spread = y.flatten(1).std(1)
    assert (spread.diff() < 0).all() and torch.equal(y[0], x[0]) and (y.mean((1, 2, 3)) - x.mean()).abs().max() < 0.05


def test_one_call_can_ask_for_several_views():
    x, ids, views = images(4), np.array([3, 3, 9, 3]), np.array([0, 5, 5, 0])
    together = STRONG(x, ids, views, 2)
    for k in range(4):
        torch.testing.assert_close(together[k:k + 1], STRONG(x[k:k + 1], ids[k:k + 1], int(views[k]), 2), atol=1e-6, rtol=0)


def test_erased_patches_are_grey_squares_of_the_given_size_in_the_given_share():
    n, side = 2000, 40
    y = dataclasses.replace(STILL, erase=0.25, erase_size=(0.2, 0.5))(torch.ones(n, 1, side, side), np.arange(n))[:, 0]
    hit = (y == 0.5).flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03 and ((y == 0.5) | (y > 0.999)).all()
    for image in y[hit][:50]:
        ys, xs = (image == 0.5).nonzero(as_tuple=True)
        h, w = (ys.max() - ys.min() + 1).item(), (xs.max() - xs.min() + 1).item()
        assert len(ys) == h * w and abs(h - w) <= 1 and 0.2 * side - 2 <= h <= 0.5 * side + 2


def test_the_views_of_one_image_differ_and_a_zero_change_is_no_change():
    x = images(1)
    views = torch.cat([Augment()(x, np.array([5]), v) for v in range(20)])
    assert len({v.numpy().tobytes() for v in views}) == 20
    unchanged = torch.cat([STILL(x, np.array([5]), v) for v in range(20)])
    torch.testing.assert_close(unchanged, x.expand(20, -1, -1, -1), atol=1e-5, rtol=0)


# ---- refusals ----

@pytest.mark.parametrize("bad", [{"hflip": -0.1}, {"vflip": 1.1}, {"erase": float("nan")}, {"scale": (1.2, 0.8)},
                                 {"scale": (-1, 1)}, {"scale": (float("nan"), 1)}, {"noise": -0.1}, {"blur": -1}, {"blur": float("nan")},
                                 {"erase_size": (0.5, 0.2)}, {"erase_size": (0, 2)}])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Augment(**bad)


def test_settings_cannot_be_changed_behind_a_runs_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augment().hflip = 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_16_bits_are_sampled_at_the_same_places(dtype):
    x = images(2, 3, 224, 224).to(dtype)
    same = Augment(hflip=0, rotate=0, translate=0, scale=(1, 1))(x, np.arange(2))
    torch.testing.assert_close(same, x, atol=0.004, rtol=0)
    change = {"angle": torch.full((2,), 10.0), "scale": torch.full((2,), 1.1), "shift": torch.full((2, 2), 0.05), "mirror": torch.ones(2, 2)}
    assert torch.equal(affine(x, **change), affine(x.float(), **change).to(dtype))


def test_other_floats_and_other_numbers_of_keys_are_refused():
    x = images(3)
    for wrong in (255 * x, x - 0.1, x.clone().index_fill_(0, torch.tensor([1]), torch.nan), 255 * x.half()):
        with pytest.raises(ImageError, match="bytes, or floats in .0, 1."):
            STRONG(wrong, np.arange(3))
    with pytest.raises(ConfigError, match="len.ids.=4; 3 expected"):
        STRONG(x, np.arange(4))
    with pytest.raises(ConfigError, match="number of views=2"):
        STRONG(x, np.arange(3), view=np.arange(2))
    assert torch.equal(STRONG((255 * x).byte(), np.arange(3)), STRONG((255 * x).byte().float() / 255, np.arange(3)))


@pytest.mark.parametrize("kind", [lambda x: (x * 60000).int(), lambda x: (x * 127).to(torch.int8), lambda x: x > 0.5, lambda x: x[:, 0],
                                  lambda x: x[None], lambda x: (x * 255).byte()[:, 0]])
def test_other_types_and_shapes_of_images_are_refused(kind):
    wrong = kind(images(3))
    with pytest.raises(ImageError, match=r"images are torch.* of shape .*; \(B, C, H, W\), bytes \(uint8\)"):
        STRONG(wrong, np.arange(len(wrong)))

"""What the recogniser says about how far to rely on a face: the temperature rises with doubts, against a softmax written out; reasons and limits."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage.data import astronaut

from fer_nb.faces import FaceFinder, FoundFace
from fer_nb.predict import DOUBTS, REASONS, Network, Recogniser, reasons_against, signs, temperature_factor

ROOT = Path(__file__).resolve().parents[1]
PHOTO = astronaut()[:260, 90:350]
CLEAR = {"side": 100, "white": 230, "fine": .3, "nose": .1, "eyes": .9, "mouth": .8, "margin": np.nan, "evidence": .9}
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
Z = np.random.default_rng(1).normal(0, 3, (1, 7))


def covered(y, half, apart):
    "The portrait with a flat patch over a part of the face."
    (face,) = FaceFinder()(PHOTO)
    x, y = face.points[:2, 0].mean(), face.points[y, 1].mean()
    a, image = np.hypot(*(face.points[1] - face.points[0])), PHOTO.copy()
    image[int(y - half * a):int(y + half * a), int(x - apart * a):int(x + apart * a)] = 120
    return image


def test_a_clear_face_has_no_doubts():
    assert temperature_factor(CLEAR) == 1 and reasons_against(CLEAR, [.9, .1]) == ()


@pytest.mark.parametrize("name", [name for name, d in DOUBTS.items() if d.weight])
def test_each_weighted_sign_raises_the_temperature_steadily(name):
    values = np.linspace(DOUBTS[name].start * 1.2, 0, 13)
    factors = [temperature_factor(CLEAR | {name: v}) for v in values]
    assert all(a <= b for a, b in zip(factors, factors[1:])) and factors[0] == temperature_factor(CLEAR)
    assert np.log(factors[-1]) == pytest.approx(DOUBTS[name].weight)


@pytest.mark.parametrize("name", list(DOUBTS))
def test_a_reason_is_given_beyond_its_limit_alone(name):
    d = DOUBTS[name]
    for step in (-1e-6, 1e-6):
        gap, measured = (d.limit + step, CLEAR) if name == "gap" else (.9, CLEAR | {name: d.limit + step})
        beyond = step > 0 if d.above else step < 0
        assert reasons_against(measured, [.05 + gap, .05]) == ((d.reason,) if beyond else ())
    assert d.reason in REASONS


def test_probabilities_are_the_softmax_at_the_raised_temperature():
    network = Network(EMOTIONS, 48, 1, 1.3, lambda x: np.repeat(Z, len(x), 0), "toy")
    recognise, image = Recogniser(network), covered(3, .35, .6)
    (face,) = recognise(image)
    found = recognise.finder(image)[0]
    factor = temperature_factor(signs(image, found, face.crop))
    e = np.exp(Z[0] / (1.3 * factor))
    np.testing.assert_allclose(list(face.probs.values()), e / e.sum(), rtol=1e-5)
    assert factor > 1.1 and face.emotion == EMOTIONS[Z.argmax()]


def test_without_looking_for_a_face_the_probabilities_are_the_networks():
    crops = np.random.default_rng(0).integers(0, 256, (5, 48, 48), np.uint8)
    plain = Network.read()(list(crops))
    got = [list(f.probs.values()) for (f,) in Recogniser(crop=False).batch(list(crops))]
    np.testing.assert_allclose(got, plain, atol=1e-6)


@pytest.mark.parametrize("robust", [False, True])
def test_what_is_covered_or_blurred_lowers_the_probability_and_is_named(robust):
    recognise = Recogniser(robust=robust)
    clear = recognise(PHOTO)[0]
    for image in (covered(3, .35, .6), np.asarray(Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(2.5)))):
        (face,) = recognise(image)
        assert face.probs[face.emotion] < clear.probs[clear.emotion] and not face.reliable and clear.reliable
    eyes = recognise(covered(0, .22, .9))
    assert not eyes or "partly hidden" in eyes[0].reasons and eyes[0].probs[eyes[0].emotion] < clear.probs[clear.emotion]


def test_faces_at_the_border_and_of_one_pixel_are_measured():
    for box, points in (([-30., -20, 60, 60], np.full((6, 2), -5.)), ([258., 258, 1, 1], np.full((6, 2), 259.)), ([500., 500, 9, 9], np.full((6, 2), 505.))):
        found = FoundFace(np.array(box), .9, points)
        measured = signs(PHOTO, found, np.zeros((48, 48), np.uint8))
        assert temperature_factor(measured) >= 1 and set(reasons_against(measured, [.9, .1])) <= set(REASONS)


def test_the_constants_are_those_of_the_fit():
    fitted = json.loads((ROOT / "benchmarks/reliable_fit.json").read_text())["results"]
    assert {name: d.weight for name, d in DOUBTS.items() if d.weight} == {k: w for k, w in fitted["weights"].items() if w}
    assert all(of["limit"] in (None, DOUBTS[name].limit) for name, of in fitted["limits"].items())
    assert set(DOUBTS) - set(fitted["limits"]) == {"inside"}     # a fact, and no limit that was fitted


def test_merged_labels_are_judged_by_their_own_probabilities():
    level = Network(("a", "b", "c"), 48, 1, 1.0, lambda x: np.log([[.4, .35, .25]] * len(x)), "toy")
    assert "emotions level" in Recogniser(level)(PHOTO)[0].reasons
    assert "emotions level" not in Recogniser(level, merge={"ab": ["a", "b"]})(PHOTO)[0].reasons

"""The recogniser in the world: turned, dark, noisy and crowded photographs; films as people have them; inputs and processes of every kind."""
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, clock, coffee, colorwheel, grass

from fer_nb.faces import FaceFinder, brightness_and_noise, brought_into_range

PHOTO = astronaut()[:260, 90:350]


def pasted(sides, canvas=None):
    "The portrait at several sizes beside each other in a photograph."
    canvas = np.asarray(Image.fromarray(coffee()).resize((640, 480))).copy() if canvas is None else canvas
    x = 10
    for side in sides:
        canvas[40:40 + side, x:x + side] = np.asarray(Image.fromarray(PHOTO).resize((side, side), Image.Resampling.LANCZOS))
        x += side + 10
    return canvas


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_scene_gives_the_faces_of_the_upright_one(quarters):
    scene, finder = pasted((240, 160)), FaceFinder()
    upright, turned = finder(scene), finder(np.rot90(scene, quarters).copy())
    back = sorted((f.turned_back(quarters, *scene.shape[:2]) for f in turned), key=lambda f: f.box[0])
    assert len(upright) == len(back) == 2
    for f, g in zip(upright, back):
        np.testing.assert_allclose(f.box, g.box, atol=3)
        assert abs((g.roll - f.roll + 180) % 360 - 180) < 5


@pytest.mark.parametrize("angle", [30, 60, 120, 135, 150, 200, 225, 300])
def test_any_angle(angle):
    turned = np.asarray(Image.fromarray(pasted((200,))).rotate(angle, Image.Resampling.BICUBIC, expand=True))
    (face,) = FaceFinder()(turned)
    own = FaceFinder()(pasted((200,)))[0].roll
    assert abs((face.roll - own + angle + 180) % 360 - 180) < 20


def test_dark_and_noisy_scenes_are_brought_into_range_first():
    scene, finder = pasted((200,)), FaceFinder()
    (bright,) = finder(scene)
    rng = np.random.default_rng(0)
    for changed in (scene * .1, scene * .05, scene + rng.normal(0, 40, scene.shape), scene * .1 + rng.normal(0, 2, scene.shape)):
        (face,) = finder(changed.clip(0, 255).round().astype(np.uint8))
        np.testing.assert_allclose(face.box, bright.box, atol=20)
    assert brought_into_range(scene) is scene and brightness_and_noise(scene)[1] < 5
    assert 36 < brightness_and_noise((128 + rng.normal(0, 40, (200, 300))).clip(0, 255).astype(np.uint8))[1] < 44


def test_all_of_a_crowd_and_small_faces_beside_large_ones():
    crowd, small = np.full((960, 1280, 3), 120, np.uint8), Image.fromarray(PHOTO).resize((190, 190), Image.Resampling.LANCZOS)
    for k in range(30):
        x, y = 8 + k % 6 * 212, k // 6 * 191
        crowd[y:y + 190, x:x + 190] = small
    assert len(FaceFinder()(crowd)) >= 27
    assert len(FaceFinder()(pasted((300, 140, 110)))) == 3


@pytest.mark.parametrize("picture", [coffee, clock, colorwheel, grass])
def test_pictures_without_people_have_no_face(picture):
    image = picture()
    stretched = np.asarray(Image.fromarray(image).resize((640, 480)))
    assert FaceFinder()(image) == [] and FaceFinder()(stretched) == []

"""Labels of one's own: merged, renamed and fewer, against plain sums; names in any script, drawn and never as empty boxes."""
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from fer_nb import predict
from fer_nb.cli import main
from fer_nb.core import ConfigError, LabelError
from fer_nb.predict import Face, Network, Recogniser, annotate, font_files, has_glyphs, lettering

PHOTO = astronaut()[:260, 90:350]
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
Z = np.random.default_rng(0).normal(0, 4, (3, 7))
SEVEN = Network(EMOTIONS, 4, 1, 1.7, lambda x: Z[:len(x)], "toy")
GREY = [np.zeros((4, 4), np.uint8)] * 3


@pytest.mark.parametrize("merge, keep", [
    ({"negative": ["angry", "disgust", "fear", "sad"]}, ()), ({"joie": "happy"}, ()), (None, ["sad", "happy"]), (None, EMOTIONS[::-1]),
    ({"bad": ("sad", "fear"), "calm": ["neutral"]}, ["calm", "bad"]), ({"happy": ["happy", "surprise"]}, ()), ({"sad": "happy", "happy": "sad"}, ()),
    ({"all else": [e for e in EMOTIONS if e != "happy"]}, ())])
def test_probabilities_are_plain_sums_and_add_up(merge, keep):
    p = [np.exp(z / 1.7) / np.exp(z / 1.7).sum() for z in Z]
    network = SEVEN.relabelled(merge, keep)
    for row, got in zip(p, network(GREY)):
        parts = {name: [old] if isinstance(old, str) else old for name, old in (merge or {}).items()}
        used = {e for part in parts.values() for e in part}
        plain = {e: row[EMOTIONS.index(e)] for e in EMOTIONS if e not in used}
        plain |= {name: sum(row[EMOTIONS.index(e)] for e in part) for name, part in parts.items()}
        chosen = {name: plain[name] for name in (keep or network.labels)}
        assert set(network.labels) == set(chosen) and sum(got) == pytest.approx(1)
        for name, value in zip(network.labels, got):
            assert value == pytest.approx(chosen[name] / sum(chosen.values()), abs=1e-6)


def test_kept_labels_of_no_probability_still_add_up():
    far = Network(("a", "b", "c"), 4, 1, 1.0, lambda x: np.array([[500., 1, 0]] * len(x)), "toy").relabelled(keep=["b", "c"])
    np.testing.assert_allclose(far(GREY), [[np.e / (1 + np.e), 1 / (1 + np.e)]] * 3, rtol=1e-5)


def test_labels_can_be_merged_again():
    twice = SEVEN.relabelled({"low": ["sad", "fear"]}).relabelled({"negative": ["low", "angry"]}, ["negative", "happy"])
    once = SEVEN.relabelled({"negative": ["sad", "fear", "angry"]}, ["negative", "happy"])
    np.testing.assert_array_equal(twice(GREY), once(GREY))


@pytest.mark.parametrize("merge, keep, why", [
    ({"x": "anger"}, (), "'anger' is no label"), ({"x": ["sad", "sad"]}, (), "merged twice"), ({"x": [], " ": "sad"}, (), "no parts.*' ' has no parts"),
    ({"fear": ["sad"]}, (), "'fear' is a label already"), (None, ["Happy", "sad"], "'Happy' cannot be kept"), (None, ["sad", "sad"], "cannot be kept"),
    ({"x": EMOTIONS}, (), "1 label remains"), ({"x": "sad"}, ["sad", "happy"], "'sad' cannot be kept"), ({"x": 3}, (), "3 is no label"),
    (["sad", "fear"], (), "no parts")])
def test_wrong_labels_are_named_with_those_there_are(merge, keep, why):
    with pytest.raises(LabelError, match=why) as caught:
        SEVEN.relabelled(merge, keep)
    assert "angry, disgust, fear, happy, sad, surprise, neutral" in str(caught.value) and "\n" not in str(caught.value)


def test_tables_and_the_command_have_the_new_labels(tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    merged = Recogniser(merge={"negative": ["angry", "disgust", "fear", "sad"]}, keep=["negative", "happy"])
    table = merged.table(merged.many([PHOTO]))
    assert table[["negative", "happy"]].sum(axis=1).iloc[0] == pytest.approx(1, abs=1e-3) and "neutral" not in table
    command = ["predict", str(tmp_path / "a.png"), "--to", str(tmp_path / "a.csv")]
    assert main([*command, "--merge", "negative=angry,disgust, fear,sad", "--merge", "froh=happy", "--keep", "negative,froh"]) == 0
    written = pd.read_csv(tmp_path / "a.csv")
    assert written.emotion.tolist() == ["froh"] and written.froh[0] == pytest.approx(table.happy[0], abs=2e-4)
    for wrong, why in ((["--merge", "negative"], "NAME=LABEL"), (["--merge", "a=sad", "--merge", "a=fear"], "each NAME once"),
                       (["--keep", "happy,joy"], "'joy' cannot be kept"), (["--merge", "x=anger"], "'anger' is no label")):
        assert main([*command, "--overwrite", *wrong]) == 2 and why in capsys.readouterr().err


@pytest.mark.parametrize("labels", [("a", "a"), (), ("a", "b", "a")])
def test_labels_of_a_network_differ(labels):
    with pytest.raises(predict.DataError, match="labels that differ"):
        Network(labels, 4, 1, 1.0, lambda x: x, "toy")


# ---- scripts ----

def face(*names):
    return Face(np.array([60., 60, 100, 100]), names[0], dict(zip(names, np.linspace(.8, .1, len(names)))), None, .9, 0., PHOTO)


@pytest.mark.parametrize("name", ["ş ı İ ğ ç", "радость", "χαρά", "سعيد", "שמח", "niño €", "Zażółć"])
def test_names_of_every_script_that_a_font_has_are_drawn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font, text = lettering(name, 20)
        drawn = annotate(PHOTO, [face(name, "x")])
    assert text == name and (drawn != PHOTO).any()
    box = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(c)) != box for c in name if c != " ")


def test_names_that_no_font_has_are_drawn_as_numbers_with_a_warning():
    lettering.cache_clear()
    with pytest.warns(UserWarning, match=r"高兴: no font here has its letters; install one.*drawn as \\u9ad8\\u5174"):
        font, text = lettering("高兴", 20, folders=())
    assert text == r"\u9ad8\u5174" and font.getmask(text).getbbox()


def test_a_font_of_the_system_is_found(tmp_path):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    def box(right):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0)); pen.lineTo((0, 700)); pen.lineTo((right, 700)); pen.lineTo((right, 0)); pen.closePath()
        return pen.glyph()
    order = [".notdef", "g", "h", "space"]
    build = FontBuilder(1000, isTTF=True)
    build.setupGlyphOrder(order)
    build.setupCharacterMap({ord("高"): "g", ord("兴"): "h", 32: "space"})
    build.setupGlyf({name: box(right) for name, right in zip(order, (300, 500, 800, 100))})
    build.setupHorizontalMetrics(dict.fromkeys(order, (900, 0)))
    build.setupHorizontalHeader(ascent=800, descent=-200)
    build.setupNameTable({"familyName": "Own", "styleName": "Regular"})
    build.setupOS2()
    build.setupPost()
    build.save(str(tmp_path / "own.ttf"))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert str(tmp_path / "own.ttf") in font_files((str(tmp_path),)) and not has_glyphs(str(tmp_path / "broken.ttf"), "a")
    font, text = lettering("高兴", 20, folders=(str(tmp_path),))
    assert font.getname()[0] == "Own" and text == "高兴"
    assert lettering("高 兴", 20, font=str(tmp_path / "own.ttf"))[0].getname()[0] == "Own"
    with pytest.warns(UserWarning, match="高x: no font"):
        lettering("高x", 20, folders=(str(tmp_path),))


def test_without_shaping_what_needs_it_is_not_drawn_wrong(monkeypatch):
    monkeypatch.setattr(predict.features, "check", lambda name: False)
    lettering.cache_clear()
    with pytest.warns(UserWarning, match="install libfribidi"):
        assert lettering("سعيد", 20)[1].startswith(r"\u0633")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lettering("радость", 20)[1] == "радость" and lettering("é", 20)[1] == "é"
    lettering.cache_clear()


def test_the_file_of_a_font_is_not_guessed(tmp_path):
    with pytest.raises(ConfigError, match="no font"):
        annotate(PHOTO, [face("a", "b")], font=tmp_path / "no.ttf")

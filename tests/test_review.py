"""The exported review: the log against accidents, the session against a model of it, merging, and what is applied."""
import json
import os
import signal
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from fer_nb.audit import Audit, audit
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError
from fer_nb.data import FERData
from fer_nb.review import (Reviewer, ReviewSession, agreement, align_pair, image_card, merge_decisions, read_decisions,
                           review_changes, review_decisions, review_items)


def images(which, labels, splits=None, ids=None, names=EMOTIONS):
    "A dataset whose image k shows face `which[k]`."
    images = np.random.default_rng(0).integers(0, 256, (max(which) + 1, 48, 48), dtype=np.uint8)[np.array(which)]
    ids = ids or [f"im{k}" for k in range(len(which))]
    return FERData(pd.DataFrame({"id": ids, "label": labels, "split": splits or "train"}), images, names)


@pytest.fixture(scope="module")
def report():
    "Two contradictory copies, a triple, a leak, and an image without fault."
    return audit(images([0, 0, 1, 1, 1, 2, 2, 3], ["happy", "sad", "fear", "fear", "fear", "angry", "angry", "sad"],
                          ["train"] * 6 + ["test", "train"]), search=None)


def line(n, who="anna", id="im0", action="drop", kind="leak", dataset="d"):
    return dict(time=f"2026-01-01T00:00:{n:02}.000+00:00", reviewer=who, id=id, kind=kind, action=action, dataset=dataset)


def write(path, *lines):
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


# ---- what there is to decide ----

def test_items_are_the_issues_and_what_the_rules_touch(report):
    items = review_items(report)
    assert sorted(items.id) == ["im0", "im1", "im3", "im4", "im5", "im6"]     # im2 is the one that a triple keeps
    touched = report.actions()
    assert dict(items[items.rule != "keep"][["id", "rule"]].to_numpy()) == dict(touched[["id", "action"]].to_numpy())
    by_id = items.set_index("id")
    assert by_id.kind["im5"] == "leak" and by_id.rule["im5"] == "drop"       # its duplicate in the test split has the issue
    assert by_id.rule["im6"] == "keep" and (items.group != items.group.shift()).sum() == items.group.nunique()
    assert (report.ds.df.label.to_numpy()[items.row] == items.label).all()


def test_one_kind_or_label_may_be_given_as_a_text(report):
    assert review_items(report, "leak").equals(review_items(report, ["leak"])) and len(review_items(report, "leak"))
    assert review_items(report, None, "sad").equals(review_items(report, None, ["sad"]))
    with pytest.raises(ConfigError, match="kind='leaks'"):
        review_items(report, "leaks")


def test_several_kinds_are_one_item(tmp_path):
    both = audit(images([0, 0, 0], ["happy", "sad", "happy"]), search=None)
    items = review_items(both).set_index("id")
    assert set(items.kind["im2"].split("+")) == {"duplicate", "multilabel"}
    session = ReviewSession(both, tmp_path / "log", "anna", kinds=["duplicate"])
    session.decide("drop")
    progress = session.progress()
    assert dict(progress.done) == {"duplicate": 1, "multilabel": 1, "all": 1}


def test_nothing_to_review(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = audit(images([0, 1], ["happy", "sad"]), search=None)
        session = ReviewSession(fine, tmp_path / "log", "anna")
        assert session.current is None and session.gallery().empty and "nothing to review" in session.to_html()
        assert session.progress().total["all"] == 0
        session.move(1), session.undo()
        with pytest.raises(ConfigError, match="no image"):
            session.decide("drop")
        assert not (tmp_path / "log").exists()
        assert "0 of 0 decided" in Reviewer(fine, tmp_path / "log").count.value
        assert review_changes(fine, {}).empty


# ---- the session, against a model ----

@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["keep", "drop", "unsure", "happy", "undo", "next", "back", "reopen", "leak", "fear", "all"]),
                max_size=20))
def test_session_is_its_log(tmp_path_factory, report, steps):
    "After any sequence of steps: memory, log and a plain list agree; the place is in the queue or was just undone."
    log = tmp_path_factory.mktemp("log") / "sub" / "anna.jsonl"
    session, model = ReviewSession(report, log, "anna"), []
    for step in steps:
        undone = step == "undo" and model
        if step == "undo":
            session.undo()
            assert not model or session.current.id == model.pop()[0]
        elif step in ("next", "back"):
            session.move(1 if step == "next" else -1, undecided=False)
        elif step == "reopen":
            session = ReviewSession(report, log, "anna")
        elif step in ("leak", "fear", "all"):
            session.filter("leak" if step == "leak" else "", "fear" if step == "fear" else "")
        else:
            item = session.current
            model.append((item.id, "keep" if step == item.label else step))
            session.decide(step)
        assert session.decisions == dict(model)
        assert undone or session.at in session.queue or steps.count("undo")
    if log.exists():
        table = read_decisions(log)
        assert dict(zip(table.id, table.action)) == dict(model)
    done = {i for i, _ in model}
    assert session.progress().done["all"] == len(done) and session.progress().total["all"] == 6


def test_deciding_walks_through_the_queue_once(tmp_path, report):
    session, seen = ReviewSession(report, tmp_path / "log", "anna"), []
    while session.current.id not in session.decisions:
        seen.append(session.current.id)
        session.decide("keep")
    assert seen == list(session.items.id)
    before = session.current.id
    session.move(1), session.move(-1)                                        # nothing undecided: stay
    assert session.current.id == before
    session.undo()
    assert session.current.id == seen[-1] and seen[-1] not in session.decisions


def test_moving_wraps_around(tmp_path, report):
    session = ReviewSession(report, tmp_path / "log", "anna")
    session.decide("keep")
    session.move(-1, undecided=False)
    assert session.current.id == session.items.id.iloc[0]
    session.move(-1)
    assert session.current.id == session.items.id.iloc[-1]
    session.move(1)
    assert session.current.id == session.items.id.iloc[1]                    # the first is decided


def test_changing_ones_mind_and_back(tmp_path, report):
    session = ReviewSession(report, tmp_path / "log", "anna")
    session.decide("drop")
    session.move(-1, undecided=False)
    session.decide("keep")
    first = session.items.id[0]
    assert session.decisions == {first: "keep"}
    session.undo()
    assert session.decisions == {first: "drop"} and list(read_decisions(session.log).action) == ["drop"]


def test_gallery_is_the_whole_group(tmp_path, report):
    session = ReviewSession(report, tmp_path / "log", "anna", kinds=["duplicate"])
    gallery = session.gallery()
    assert sorted(gallery.id) == ["im2", "im3", "im4"] and list(gallery.role)[:2] == ["current", "partner"]
    session.decide("drop")
    assert dict(zip(session.gallery().id, session.gallery().decision))[gallery.id[0]] == "drop"


def test_large_group_is_cut(tmp_path):
    session = ReviewSession(audit(images([0] * 30, "happy"), search=None), tmp_path / "log", "anna")
    page = session.to_html(most=10)
    assert page.count('class="fer-nb-card') == 10 and "and 20 more" in page


def test_reviewers_share_a_log(tmp_path, report):
    anna, ben = (ReviewSession(report, tmp_path / "log", name) for name in ("anna", "ben"))
    anna.decide("drop"), ben.decide("keep"), anna.undo()
    assert ReviewSession(report, tmp_path / "log", "anna").decisions == {}
    assert list(ReviewSession(report, tmp_path / "log", "ben").decisions.values()) == ["keep"]


def test_relative_log_stays_where_it_was(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = ReviewSession(report, "log.jsonl", "anna")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    session.decide("drop")
    assert (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("change, error, message", [
    (dict(reviewer=""), ConfigError, "reviewer=''"), (dict(reviewer="majority"), ConfigError, "majority"),
    (dict(reviewer=None), ConfigError, "None"), (dict(kinds=["lek"]), ConfigError, "'lek'"), (dict(labels=["joy"]), ConfigError, "label='joy'")])
def test_bad_settings(tmp_path, report, change, error, message):
    with pytest.raises(error, match=message):
        ReviewSession(report, tmp_path / "log", **change)


def test_label_that_is_an_action(tmp_path):
    duplicates = audit(images([0, 0], ["drop", "sad"], names=("drop", "sad")), search=None)
    with pytest.raises(ConfigError, match="label='drop'"):
        ReviewSession(duplicates, tmp_path / "log", "anna")


def test_other_dataset_is_refused_unless_any_is_accepted(tmp_path, report):
    other = audit(report.ds.take(range(7)), search=None)
    session = ReviewSession(report, tmp_path / "log", "anna")
    session.decide("drop")
    with pytest.raises(DataError, match=session.dataset):
        ReviewSession(other, tmp_path / "log", "anna")
    assert ReviewSession(other, tmp_path / "log", "anna", any_dataset=True).decisions == session.decisions


# ---- the log and accidents ----

@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_cut_anywhere(tmp_path, report, cut):
    "Whatever number of bytes of the last line arrived: at most that decision is lost, and the log goes on."
    log = tmp_path / "log"
    session = ReviewSession(report, log, "anna")
    session.decide("drop"), session.decide("keep")
    whole = log.read_bytes()
    log.write_bytes(whole[:-cut])
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        again = ReviewSession(report, log, "anna")
    assert len(again.decisions) == (2 if cut == 1 else 1)                    # without the newline alone, nothing is lost
    assert [f"{log}, line 2" in str(w.message) for w in messages] == ([] if cut == 1 else [True])
    before = log.read_bytes()
    again.decide("unsure")
    assert log.read_bytes().startswith(before)                               # appended, not rewritten
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ReviewSession(report, log, "anna").decisions == again.decisions


def test_cut_while_mending(tmp_path, report):
    log = write(tmp_path / "log", line(0, dataset=report.ds.fingerprint()))
    for _ in range(2):
        log.write_bytes(log.read_bytes() + b'{"time": "20')
        with pytest.warns(UserWarning, match="cut off"):
            session = ReviewSession(report, log, "anna")
        session.decide("keep")
        log.write_bytes(log.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="cut off"):
        session = ReviewSession(report, log, "anna")
    session.decide("keep")
    assert len(read_decisions(log)) == 2


@pytest.mark.parametrize("bad", ["", "{", "[1]", "null", "7", '{"id": "im0"}', "[" * 100_000, "\xff",
                                 json.dumps(line(1) | {"action": 3}), json.dumps(line(1) | {"action": ""})])
def test_damage_in_the_middle(tmp_path, bad):
    log = write(tmp_path / "log", line(0))
    log.write_bytes(log.read_bytes() + bad.encode("latin1") + b"\n" + json.dumps(line(2, id="im1")).encode() + b"\n")
    if not bad:
        assert len(read_decisions(log)) == 2                                 # an empty line is skipped
        return
    with pytest.raises(DataError, match=r"log, line 2: not a decision"):
        read_decisions(log)


def test_unreadable_and_unwritable(tmp_path, report):
    with pytest.raises(OSError, match="nowhere"):
        read_decisions(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path.name}: a folder"):
        read_decisions(tmp_path)
    (tmp_path / "file").write_text("")
    session = ReviewSession(report, tmp_path / "file" / "log", "anna")
    with pytest.raises(OSError, match="file"):
        session.decide("drop")
    assert session.decisions == {} and session.current.id == session.items.id[0]  # nothing has been decided
    assert read_decisions(tmp_path / "file").empty


def test_killed_process_loses_nothing(tmp_path):
    "SIGKILL right after the last `decide`: all decisions are in the file."
    code = ("import os, signal, sys\n"
            "from pathlib import Path\n"
            "from fer_nb.review import _append, _FIELDS\n"
            "for n in range(50):\n"
            "    _append(Path(sys.argv[1]), dict.fromkeys(_FIELDS, 'x') | {'id': str(n)})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert list(read_decisions(tmp_path / "log").id) == [str(n) for n in range(50)]


def test_undo_of_nothing_and_of_others(tmp_path):
    log = write(tmp_path / "log", line(0, action="undo"), line(1), line(2, who="ben", action="undo"))
    assert list(read_decisions(log).reviewer) == ["anna"]


# ---- several people ----

def judged(tmp_path, **votes):
    "One log a reviewer; a vote is a letter for each image: k, d, u; a space for none."
    words = {"k": "keep", "d": "drop", "u": "unsure", "h": "happy"}
    return [write(tmp_path / who, *(line(n, who, f"im{n}", words[v], "leak" if n % 2 else "leak+duplicate")
                                    for n, v in enumerate(vote) if v != " ")) for who, vote in votes.items()]


@pytest.mark.parametrize("policy, action", [("unsure", "unsure"), ("keep", "keep"), ("drop", "drop"), ("majority", "drop"),
                                            ("anna", "keep"), ("carl", "drop")])
def test_policies(tmp_path, policy, action):
    logs = judged(tmp_path, anna="k", ben="d", carl="d")
    merged = merge_decisions(*logs, policy=policy)
    assert merged.action.tolist() == [action] and not merged.agree[0]
    assert merged.votes[0] == "anna: keep, ben: drop, carl: drop" and merged.reviewers[0] == "anna, ben, carl"
    assert review_decisions(merged) == ({} if action == "unsure" else {"im0": action})


def test_merging(tmp_path):
    a, b = judged(tmp_path, anna="kdu h", ben="kd k ")
    merged = merge_decisions(a, b).set_index("id")
    assert set(merged.index) == {f"im{k}" for k in range(5)}
    assert merged.agree.all() and dict(merged.reviewers)["im4"] == "anna"
    assert review_decisions(merge_decisions(a, b)) == {"im0": "keep", "im1": "drop", "im3": "keep", "im4": "happy"}
    tie = merge_decisions(*judged(tmp_path, anna="k", ben="d"), policy="majority")
    assert tie.action[0] == "unsure"
    silent = merge_decisions(*judged(tmp_path, anna="k ", ben="dk", carl="kd"), policy="anna").set_index("id")
    assert dict(silent.action) == {"im0": "keep", "im1": "unsure"}           # anna has no decision on im1


def test_same_log_twice_and_later_decisions(tmp_path):
    a, b = write(tmp_path / "a", line(0)), write(tmp_path / "b", line(5, action="keep"))
    assert merge_decisions(b, a, a).action.tolist() == ["keep"]              # the later decision, whatever the order
    assert review_decisions(a) == {"im0": "drop"} and review_decisions(read_decisions(b)) == {"im0": "keep"}


def test_merge_refuses(tmp_path):
    a, b = write(tmp_path / "a", line(0)), write(tmp_path / "b", line(0, who="ben", dataset="e"))
    for bad, message in ((lambda: merge_decisions(a, b), "2 logs, of the datasets d, e"), (lambda: merge_decisions(), "0 logs"),
                      (lambda: merge_decisions(a, policy="zoe"), "'zoe'"), (lambda: agreement(a), "reviewers anna; .* at least 2"),
                      (lambda: agreement(write(tmp_path / "c")), "none")):
        with pytest.raises(FERError, match=message):
            bad()


def test_agreement_known_values(tmp_path):
    a, b, c = judged(tmp_path, anna="kkkkdddd", ben="kkkddddk", carl="k       ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = agreement(a, b, c).set_index(["a", "b", "kind"])
    every = table.loc[("anna", "ben", "all")]
    assert (every.n, every.observed) == (8, .75) and every.kappa == pytest.approx(.5)
    assert table.loc[("anna", "ben", "leak")].n == 8 and table.loc[("anna", "ben", "duplicate")].n == 4
    alone = table.loc[("anna", "carl", "all")]
    assert (alone.n, alone.observed) == (1, 1) and np.isnan(alone.kappa)     # one answer only: kappa is undefined
    assert agreement(*judged(tmp_path, x="k ", y=" k")).n.tolist() == [0, 0, 0]


# ---- what becomes of it ----

def test_changes_are_what_clean_does(tmp_path, report):
    session = ReviewSession(report, tmp_path / "log", "anna")
    wish = {"im0": "keep", "im1": "happy", "im3": "unsure", "im4": "drop", "im5": "keep", "im6": "sad"}
    for _ in range(len(session.items)):
        session.decide(wish.get(session.current.id, "unsure"))
    table, clean = review_changes(report, session.log).set_index("id"), report.clean(review_decisions(session.log))
    before = report.ds.df.set_index("id").label
    after = clean.df.set_index("id").label
    assert set(table.index[table.action == "drop"]) == set(before.index) - set(after.index) == {"im3", "im4"}
    assert {i: e for i, e in after.items() if e != before[i]} == {"im1": "happy", "im6": "sad"} == \
        dict(table.after[(table.after != "") & (table.after != table.before)])
    assert ((table.why == "decision") == (table.reviewers == "anna")).all() and set(table.reviewers) == {"anna", ""}
    assert table.loc["im5"][["action", "rule", "before", "after"]].tolist() == ["keep", "drop", "angry", "angry"]
    assert table.loc["im3"].why == "duplicate" and list(table.index) == sorted(table.index)
    by_hand = review_changes(report, review_decisions(session.log)).set_index("id")
    assert by_hand.drop(columns="reviewers").equals(table.drop(columns="reviewers"))


# ---- the screen ----

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attrs, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [k for k, _ in attrs]

    def handle_data(self, data):
        self.words += data


def test_strangers_names_are_text(tmp_path):
    nasty = '"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'
    ds = images([0, 0], [nasty, "sad"], ids=[nasty, "../../<b>"], names=(nasty, "sad"))
    report = audit(ds, search=None)
    report = Audit(ds, report.issues.assign(how=nasty), report.groups, report.duplicates)
    screen = Reviewer(report, tmp_path / "<i>.jsonl", reviewer="<u>anna</u>")
    screen.press("u")
    for text in (screen.image.value, screen.count.value, screen.message.value):
        page = Tags(text)
        assert not {"script", "i", "u"} & set(page.tags) and "onerror" not in page.attrs
    assert nasty in Tags(screen.image.value).words and "<u>anna</u>" in Tags(screen.count.value).words


def test_colour_and_odd_sizes(tmp_path):
    images = np.zeros((2, 30, 50, 3), np.uint8)
    images[:, :10] = 200
    ds = FERData(pd.DataFrame({"id": ["a", "b"], "label": "sad", "split": "train"}), images)
    assert ReviewSession(audit(ds, search=None), tmp_path / "log").to_html().count("data:image/png") == 2


def test_screen_follows_the_session(tmp_path, report):
    screen = Reviewer(report, tmp_path / "log", reviewer="anna")
    shown = screen.keyboard.shown
    for key in "dk1u":
        screen.press(key)
    screen.buttons["z"].click()
    assert screen.keyboard.shown == shown + 5 and "3 of 6 decided" in screen.count.value
    screen.press("F5"), screen.press(None)
    assert screen.keyboard.shown == shown + 5
    screen.kind.value = "leak"
    assert {"leak"} == set(screen.session.items.kind[screen.session.queue]) and (screen.label.value, screen.label.label) == ("", "all")
    screen.label.value = "sad"                                               # no such leak
    assert "nothing to review" in screen.image.value
    screen.press("d")
    assert "widen the filter" in screen.message.value and screen.keyboard.shown == shown + 8


def test_a_full_disk_shows_a_message(tmp_path, report):
    (tmp_path / "file").write_text("")
    screen = Reviewer(report, tmp_path / "file" / "log")
    screen.press("d")
    assert "could not be written" in screen.message.value and "0 of 6 decided" in screen.count.value
    (tmp_path / "file").unlink()
    screen.press("d")
    assert "1 of 6 decided" in screen.count.value and "could not" not in screen.message.value


def test_each_label_has_a_button_and_nine_have_a_key(tmp_path):
    names = tuple(f"e{k}" for k in range(12))
    duplicates = audit(images([0, 0], ["e0", "e1"], names=names), search=None)
    screen = Reviewer(duplicates, tmp_path / "log")
    assert [c for k, (c, _) in screen.session.commands().items() if k.isdigit()] == list(names[:9])
    assert {b.description.split(" ")[0] for b in screen.buttons.values()} >= set(names)
    screen.buttons["label 12"].click()
    assert list(screen.session.decisions.values()) == ["e11"] and "label 12" not in screen.keyboard.commands


def test_the_end_says_what_comes_next(tmp_path, report):
    "The counts are those of the log, and the code that is shown does what it says."
    log = tmp_path / "it's <here>" / "log.jsonl"
    screen = Reviewer(report, log, reviewer="anna")
    assert screen.panel.value == ""
    screen.label.value = "sad"
    screen.press("d")
    assert "This filter is done." in screen.panel.value and "5 of 6 are left" in screen.panel.value
    screen.label.value = ""
    for key in "kdud1":
        screen.press(key)
    words = Tags(screen.panel.value).words
    assert "All 6 are decided: drop 3, keep 1, unsure 1, angry 1" in words and str(log) in words
    code = words[words.index("from fer_nb"):words.index("Unsure ones")]
    scope = {"audit": report}
    exec(code, scope)
    assert list(scope["clean"].df.id) == list(report.clean(review_decisions(log)).df.id)
    screen.press("z")
    assert screen.panel.value == ""


def test_help_names_every_key_and_view(tmp_path, report):
    screen = Reviewer(report, tmp_path / "log")
    screen.press("?")
    words = Tags(screen.panel.value).words
    for key, (caption, _) in screen.session.commands().items():
        assert caption in words and {"ArrowLeft": "←", "ArrowRight": "→"}.get(key, key) in words
    screen.press("?")
    assert screen.panel.value == "" and not (tmp_path / "log").exists()


def moved(face, dy, dx, mirror):
    "A face with a margin, mirrored and shifted."
    return np.roll(face[:, ::-1] if mirror else face, (dy, dx), (0, 1))


@pytest.mark.parametrize("dy, dx, mirror", [(0, 0, False), (2, -3, False), (0, 0, True), (-4, 1, True)])
def test_pairs_are_aligned(dy, dx, mirror):
    "Whatever shift and mirroring made the copy, nothing is left of it where the two overlap."
    from fer_nb.synth import make_faces
    face = make_faces(7, seed=3, defects=None)[0].image(2)
    one, two, how = align_pair(face, moved(face, dy, dx, mirror))
    assert (one == face).all() and np.abs(one.astype(int) - two).mean() < .3
    assert ("mirrored" in how) == mirror and ("shifted" in how) == bool(dy or dx)


def test_two_photographs_differ():
    from fer_nb.synth import make_faces
    faces = make_faces(14, seed=3, defects=None)[0].array()
    assert min(np.abs(np.subtract(*align_pair(faces[0], f)[:2], dtype=int)).mean() for f in faces[1:]) > 5
    colour = np.repeat(faces[0][:24, :, None], 3, axis=2)
    assert align_pair(colour, faces[1])[0].shape == align_pair(colour, faces[1])[1].shape == (24, 48)


def test_views_of_a_pair(tmp_path, report):
    session = ReviewSession(report, tmp_path / "log", kinds=["multilabel"])
    seen = []
    for _ in range(4):
        page = session.to_html()
        seen.append((session.view, page.count("data:image/png"), "difference × 4, 0.0 grey levels" in page, "in turn with" in page))
        session.commands()["c"][1]()
    assert seen == [("side by side", 2, False, False), ("difference", 2, True, False), ("blink", 2, False, True), seen[0]]
    assert "suggested" not in session.to_html()                              # a column without a word is left out
    told = Audit(report.ds, report.issues.assign(suggested="sad"), report.groups, report.duplicates)
    assert "suggested" in ReviewSession(told, tmp_path / "log", kinds=["multilabel"]).to_html()
    other = ReviewSession(report, tmp_path / "log", kinds=["leak"])
    other.at = other.items.index[other.items.id == "im5"][0]                 # the issue is im6's, but im5 is its duplicate
    other.view = "difference"
    assert "difference × 4, 0.0 grey levels" in other.to_html()
    alone = audit(images([0, 1], ["happy", "sad"]), search=None)
    found = Audit(alone.ds, report.issues.head(1).assign(id="im0", partner=""), alone.groups, alone.duplicates)
    single = ReviewSession(found, tmp_path / "alone")
    single.view = "difference"
    assert single.to_html().count("<img") == 1 and "difference ×" not in single.to_html()


# ---- several sessions, datasets and files ----

def test_an_undo_takes_back_what_its_session_decided(tmp_path, report):
    "Two windows of one reviewer on one log: whatever the order, memory is the log."
    a, b = (ReviewSession(report, tmp_path / "log", "anna") for _ in range(2))
    first = a.current.id
    a.decide("keep"), b.decide("drop"), a.undo()
    assert a.decisions == {first: "drop"} and read_decisions(tmp_path / "log").action.tolist() == ["drop"]
    a.undo()                                                                 # nothing of its own is left
    assert a.decisions == {first: "drop"}
    b.undo()
    assert b.decisions == ReviewSession(report, tmp_path / "log", "anna").decisions == {} and read_decisions(tmp_path / "log").empty
    for k in range(5):
        b.decide("drop"), a.decide("keep")
        assert a.decisions == ReviewSession(report, tmp_path / "log", "anna").decisions   # knows of the other's
    mine = [r["id"] for r in a._made if (r["time"], r["id"], r["action"]) not in a._elsewhere]
    a.undo()
    assert a.current.id == mine[-1] and a.decisions == ReviewSession(report, tmp_path / "log", "anna").decisions


def test_old_logs_without_the_time_of_what_is_undone(tmp_path):
    log = write(tmp_path / "log", line(0), line(1, action="keep"), line(2, action="undo"))
    assert read_decisions(log).action.tolist() == ["drop"]
    write(log, line(0), line(1, action="keep"), line(2, action="undo") | {"undoes": line(0)["time"]})
    assert read_decisions(log).action.tolist() == ["keep"]
    write(log, line(0), line(2, action="undo") | {"undoes": "another time"})
    assert read_decisions(log).action.tolist() == ["drop"]


def test_a_log_of_two_datasets_is_applied_where_that_was_asked_for(tmp_path, report):
    other, log = audit(report.ds.take(range(7)), search=None), tmp_path / "log"
    ReviewSession(report, log, "anna").decide("drop")
    with open(log, "a") as f:
        f.write(json.dumps(line(3, id="gone", action="drop", dataset=report.ds.fingerprint())) + "\n")
    screen = Reviewer(other, log, "anna", any_dataset=True)
    while screen.panel.value == "":
        screen.press("k" if len(screen.session.decisions) % 2 else "d")
    words = Tags(screen.panel.value).words
    scope = {"audit": other}
    exec(words[words.index("from fer_nb"):words.index("Unsure ones")], scope)
    assert list(scope["clean"].df.id) == list(other.clean(screen.session.decisions).df.id) and len(scope["clean"]) < 7
    for read in (review_decisions, merge_decisions, lambda *a, **k: review_changes(other, *a, **k)):
        with pytest.raises(DataError, match="any_dataset=True"):
            read(log)
        assert len(read(log, any_dataset=True))
    ben = write(tmp_path / "ben", line(4, "ben"))
    assert len(agreement(log, ben, any_dataset=True))


def test_what_reviewers_differ_about_is_said_at_the_end(tmp_path, report):
    anna, ben = (Reviewer(report, tmp_path / "log", name) for name in ("anna", "ben"))
    for _ in range(6):
        anna.press("d")
    assert "its reviewers differ" not in anna.panel.value
    for _ in range(6):
        ben.press("k" if len(ben.session.decisions) < 4 else "d")
    assert "All 6 are decided" in ben.panel.value and "On <b>4</b> of the images in this log its reviewers differ" in ben.panel.value


@pytest.mark.parametrize("content", [json.dumps({"accuracy": .7}), "hello", "a, b", json.dumps(line(0))[1:40], "\x89PNG\r"])
def test_a_file_that_is_no_log_is_never_written_to(tmp_path, report, content):
    (path := tmp_path / "card.json").write_bytes(content.encode("latin1"))
    for read in (lambda: ReviewSession(report, path, "anna"), lambda: read_decisions(path)):
        with pytest.raises(DataError, match="card.json, line 1: not a decision"):
            read()
    assert path.read_bytes() == content.encode("latin1")


def test_a_folder_and_no_name_are_no_log(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for log, why in ((tmp_path, "a folder; the file of a log expected"), ("", "an empty name"), (".", "a folder")):
        with pytest.raises(DataError, match=why):
            ReviewSession(report, log, "anna")


def test_a_log_that_somebody_spoils_meanwhile_is_a_message(tmp_path, report):
    screen = Reviewer(report, tmp_path / "log", "anna")
    screen.press("d")
    with open(tmp_path / "log", "a") as f:
        f.write("spoiled\n")
    screen.press("d")
    assert "log, line 2: not a decision" in screen.message.value and len(screen.session.decisions) == 1


def test_a_last_line_of_zeros_is_one_that_was_cut_off(tmp_path, report):
    log = tmp_path / "log.jsonl"
    ReviewSession(report, log, "anna").decide("keep")
    log.write_bytes(log.read_bytes() + bytes(200))
    with pytest.warns(UserWarning, match="cut off"):
        assert len(read_decisions(log)) == 1

"""What several processes agree on, with real processes over loopback.

A round that must end at once has the default timeout of ten minutes, and the processes are killed
after one: so no test measures time.
"""

import pickle
from typing import Any

import pytest
from peers import Ended, run

import solstice
from solstice._agreement import agreement

TWO = """
connect()
from solstice import _agreement, _service
from solstice._agreement import Word, agreement
import numpy as np

a = agreement()
other = 1 - me
folders = lambda: sorted({name.split("/")[0] for name in a._service.read_all("solstice")}, key=int)

def agree(phase, timeout=None, **said):
    return error_of(a.agree, Word(**{"batches": 32, "phase": phase, **said}), timeout)

def show_agreed(name, **said):
    show(name, list(vars(a.agree(Word(**{"batches": 32, "phase": name, **said}))).values()))

def late(who, name):
    if me == who:
        a._service.wait(f"given up: {name}", 30).result(30)
    show(name, agree(name, 0.3))
    a._service.set(f"given up: {name}", "yes")

assert agreement() is a and a.is_lead == (me == 0)
show_agreed("equal")
show_agreed("fewest", batches=np.int64(40 - 5 * me))
show_agreed("none left", batches=3 * other)
show_agreed("stop", stop="because" if me else "", stop_at=5 if me else None)
show_agreed("two stops", stop=f"why {me}", stop_at=8 - me)
show_agreed("a stop without a step", stop=f"why {me}", stop_at=None if me else 8)
show_agreed("signal", signal=15 * me)
show_agreed("two signals", signal=[2, 15][me], stop="why")
show_agreed("kinds", kind="two" if me else "one")
show("share", a.share("texts", f"{me}: \\u00e9 \\ud800 \\" \\0"))
show("after share", agree("x"))

for i in range(50):
    a.agree(Word(32, phase="x"))
a.barrier("all have spoken")
show("folders", len(folders()))

show("apart", agree(f"place {me}"))
show("apart in kind", agree("x") if me else error_of(a.barrier, "x"))
show("after apart", agree("x"))
late(0, "late lead")
show("after late lead", agree("x"))
_agreement._LATE, _agreement._GLANCE = 1, 0.05
late(1, "late other")
_agreement._LATE, _agreement._GLANCE = 5, 1.0
show("after late other", agree("x"))
for who in range(2):
    if me == who:
        a.fail(RuntimeError("boom in one process"))
    else:
        show(f"failed {who}", agree("a place that the other never reaches"))
    show(f"after failed {who}", agree("x"))
a.barrier("the end")
show("folders after errors", len(folders()))
a._service.set("RECEIVED_PREEMPTION_NOTICE", "now")
while not a.agree(Word(32, phase="wait")).signal:
    pass
show_agreed("preempted")
"""


@pytest.fixture(scope="module")
def two() -> list[Ended]:
    ended = run(TWO)
    assert [one.code for one in ended] == [0, 0], [one.output for one in ended]
    return ended


@pytest.mark.parametrize(
    ("name", "agreed"),
    [
        ("equal", [32, 32, "", None, 0, None, []]),
        ("fewest", [35, 40, "", None, 0, None, []]),
        ("none left", [0, 3, "", None, 0, None, []]),
        ("stop", [32, 32, "because", 5, 0, 1, []]),
        ("two stops", [32, 32, "why 1", 7, 0, 1, []]),
        ("a stop without a step", [32, 32, "why 0", 8, 0, 0, []]),
        ("signal", [32, 32, "", None, 15, 1, []]),
        ("two signals", [32, 32, "why", None, 2, 0, []]),
        ("kinds", [32, 32, "", None, 0, None, [["one", 0], ["two", 1]]]),
        ("share", ['0: \u00e9 \ud800 " \0', '1: \u00e9 \ud800 " \0']),
        ("preempted", [32, 32, "", None, 15, None, []]),
    ],
)
def test_all_agree_on_the_same(two: list[Ended], name: str, agreed: Any):
    assert [one.shown[name] for one in two] == [agreed, agreed]


def test_old_rounds_are_deleted(two: list[Ended]):
    # Of 65 rounds and of 80: the last one, and one that the lead deletes or the other opens.
    for name in ("folders", "folders after errors"):
        assert max(one.shown[name] for one in two) <= 2


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_is_raised_in_the_other_at_once(two: list[Ended], who: int):
    error = ["PeerFailed", f"process {who} failed: RuntimeError: boom in one process"]
    assert two[1 - who].shown[f"failed {who}"] == error


@pytest.mark.parametrize(("who", "name"), [(0, "late lead"), (1, "late other")])
def test_who_is_missing_is_named_in_all_and_in_the_late_one(two, who: int, name: str):
    text = f"process {who} did not arrive at block '{name}' within 0.3 s: slow, stopped or dead. "
    assert [one.shown[name] for one in two] == [["PeerMissing", text + "See its log"]] * 2


def test_the_lead_says_once_for_whom_it_waits(two: list[Ended]):
    assert two[0].output.count("still waiting for process 1 at block 'late other'") == 1
    assert [one.output.count("still waiting") for one in two] == [1, 0]


def test_processes_at_different_places_are_named(two: list[Ended]):
    text = "process 0 is at block 'place 0'; process 1 is at block 'place 1'"
    for one in two:
        assert one.shown["apart"][0] == one.shown["apart in kind"][0] == "PeerMismatch"
        assert text in one.shown["apart"][1]
        assert "0 is at barrier 'x'; process 1 is at block 'x'" in one.shown["apart in kind"][1]


def test_the_next_round_after_an_error_is_a_usual_one(two: list[Ended]):
    for one in two:
        after = {name: value for name, value in one.shown.items() if name.startswith("after")}
        assert len(after) == 6
        assert set(after.values()) == {None}


THREE = """
connect()
import signal
from solstice._agreement import Word, agreement

a = agreement()
def agree(phase, timeout=None):
    return error_of(a.agree, Word(1, phase=phase), timeout)

if me == 2:
    a.fail(ValueError("in the last"))
if me == 1:  # comes only when the lead, which waits for it, has heard of the error
    show("heard", a._service.wait("heard", 20).result(20))
show("failed", agree("alone") if me < 2 else None)
if me == 0:
    a._service.set("heard", "yes")
if me > 0:
    a._service.wait("given up", 30).result(30)
show("missing", agree("late", 0.3))
a._service.set("given up", "yes")
show("before", agree("x"))

# Ctrl-C in a wait: at once, and the others hear of it.
signal.signal(signal.SIGINT, signal.default_int_handler)
for who in range(3):
    if me == who:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            a.agree(Word(1, phase="wait"))
        except KeyboardInterrupt as error:
            a.fail(error)
            a._service.set(f"interrupted {who}", "yes")
    else:
        a._service.wait(f"interrupted {who}", 30).result(30)
        show(f"interrupted {who}", agree("wait"))
    show(f"after {who}", agree("x"))

# An error after the round is complete, and before this process has the summary.
if me == 1:
    a._service.set(f"solstice/{a._round}/1", '["said","block \\'x\\'",[1,"",null,0,""]]')
    while a._service.read(f"solstice/{a._round}/summary") is None:
        time.sleep(0.01)
    a.fail(ValueError("too late for the round"))
else:
    show("complete", agree("x"))
    show("next", agree("y"))
show("the end", agree("z"))
"""


@pytest.fixture(scope="module")
def three() -> list[Ended]:
    ended = run(THREE, 3)
    assert [one.code for one in ended] == [0, 0, 0], [one.output for one in ended]
    return ended


def test_an_error_wakes_a_lead_that_waits_for_a_third(three: list[Ended]):
    error = ["PeerFailed", "process 2 failed: ValueError: in the last"]
    assert [one.shown["failed"] for one in three] == [error, error, None]
    assert three[1].shown["heard"] == "yes"


def test_all_that_are_missing_are_named(three: list[Ended]):
    for one in three:
        assert one.shown["missing"][0] == "PeerMissing"
        assert "processes 1, 2 did not arrive at block 'late'" in one.shown["missing"][1]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_ctrl_c_ends_a_wait_and_is_raised_in_the_others(three: list[Ended], who: int):
    error = ["PeerFailed", f"process {who} failed: KeyboardInterrupt"]
    for process, one in enumerate(three):
        assert one.shown.get(f"interrupted {who}") == (None if process == who else error)
        assert one.shown[f"after {who}"] is None


def test_an_error_after_a_complete_round_is_raised_in_the_next(three: list[Ended]):
    for process in (0, 2):
        assert three[process].shown["complete"] is None
        error = ["PeerFailed", "process 1 failed: ValueError: too late for the round"]
        assert three[process].shown["next"] == error
    assert [one.shown["the end"] for one in three] == [None] * 3


@pytest.mark.parametrize(
    "error",
    [
        solstice.PeerFailed(1, "RuntimeError: boom"),
        solstice.PeerMissing((1, 2), "block 'x'", 600),
        solstice.PeerMismatch(((0, "block 'x'"), (1, "barrier 'y'"))),
    ],
)
def test_errors_keep_their_fields_when_they_are_pickled(error: solstice.PeerError):
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_one_process_pays_nothing():
    assert agreement() is None

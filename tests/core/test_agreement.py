"""What several processes agree on, with real processes over loopback.

A round that must end at once has the default timeout of ten minutes, and the processes are killed
after one: so no test measures time.
"""

from typing import Any

import pytest
from peers import Ended, run

TWO = """
connect()
from solstice import _service
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
        time.sleep(1)  # the other gives up meanwhile
    show(name, agree(name, 0.3))

assert agreement() is a and a.is_lead == (me == 0)
show_agreed("equal")
show_agreed("fewest", batches=np.int64(40 - 5 * me))
show_agreed("none left", batches=3 * other)
show_agreed("stop", stop="because" if me else "", stop_at=5 if me else None)
show_agreed("two stops", stop=f"why {me}", stop_at=8 - me)
show_agreed("a stop without a step", stop=f"why {me}", stop_at=None if me else 8)
show_agreed("signal", signal=15 * me)
show_agreed("two signals", signal=[2, 15][me], stop="why")
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
late(1, "late other")
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
        ("equal", [32, 32, "", None, 0, None]),
        ("fewest", [35, 40, "", None, 0, None]),
        ("none left", [0, 3, "", None, 0, None]),
        ("stop", [32, 32, "because", 5, 0, 1]),
        ("two stops", [32, 32, "why 1", 7, 0, 1]),
        ("a stop without a step", [32, 32, "why 0", 8, 0, 0]),
        ("signal", [32, 32, "", None, 15, 1]),
        ("two signals", [32, 32, "why", None, 2, 0]),
        ("share", ['0: \u00e9 \ud800 " \0', '1: \u00e9 \ud800 " \0']),
        ("preempted", [32, 32, "", None, 15, None]),
    ],
)
def test_all_agree_on_the_same(two: list[Ended], name: str, agreed: Any):
    assert [one.shown[name] for one in two] == [agreed, agreed]


def test_old_rounds_are_deleted(two: list[Ended]):
    # Of 64 rounds and of 79: the last one, and one that the lead deletes or the other opens.
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

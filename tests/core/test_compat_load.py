"""What an adapter's package raises is an error about it; what the user's signals raise is not."""

import signal
import threading

import pytest

from solstice.compat import AdapterError
from solstice.compat._claims import Claim
from solstice.compat._load import is_found, load


def adapter(function):
    """A claim whose import calls a function."""
    return Claim("model", 1, "csv", "evil:Net", "Net", "evil 1.0", function, "evil")


@pytest.fixture(autouse=True)
def usual_handlers():
    """Python's own, also where the tests run in the background, whose shell ignores Ctrl-C."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def swallowed():
    try:
        ctrl_c()
    except KeyboardInterrupt:
        return "a result"


def turned():
    try:
        ctrl_c()
    except KeyboardInterrupt:
        raise RuntimeError("turned") from None


def exits():
    raise SystemExit(0)


def interrupts():
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", [ctrl_c, swallowed, turned])
def test_ctrl_c_of_the_user_ends_the_program(function):
    with pytest.raises(KeyboardInterrupt):
        load(adapter(function))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("function", [exits, interrupts])
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_what_the_package_raises_itself_is_an_error_of_it(function, handler):
    signal.signal(signal.SIGINT, handler)
    with pytest.raises(AdapterError, match=r"(?s)evil 1\.0.*pip uninstall evil") as caught:
        load(adapter(function))
    assert isinstance(caught.value.__cause__, SystemExit | KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_the_users_handler_of_any_signal_raises_is_the_users():
    def leave(number, frame):
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
    with pytest.raises(SystemExit) as caught:
        load(adapter(lambda: signal.raise_signal(signal.SIGTERM)))
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is leave


def test_a_handler_that_raises_nothing_is_heard_and_hides_no_error():
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))

    def fails():
        ctrl_c()
        raise KeyboardInterrupt

    with pytest.raises(AdapterError):
        load(adapter(fails))
    assert heard == [signal.SIGINT]


def test_a_handler_that_the_package_sets_stays():
    def own(number, frame):
        pass

    load(adapter(lambda: signal.signal(signal.SIGINT, own)))
    assert signal.getsignal(signal.SIGINT) is own


@pytest.mark.parametrize("function", [exits, interrupts])
def test_in_a_thread_no_signal_is_heard(function):
    found = []

    def work():
        try:
            load(adapter(function))
        except BaseException as error:
            found.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [AdapterError]


@pytest.mark.parametrize(
    ("module", "is_there"),
    [
        ("json", True),
        ("json.decoder", True),
        ("json.decoder.deeper", False),
        ("json.nowhere", False),
        ("nowhere", False),
        ("nowhere.at.all", False),
        ("", False),
        (".json", False),
        ("no-name", False),
    ],
)
def test_whether_a_module_is_found(module, is_there):
    assert is_found(module) == is_there

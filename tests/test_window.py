import cv2
import numpy as np
import pytest

from utils import window


def blank(height, width):
    return np.full((height, width, 3), 90, np.uint8)


@pytest.fixture
def screen(monkeypatch):
    """OpenCV's window functions without a screen; `keys` are pressed in turn, then none."""

    class Screen:
        keys, open, calls = [], True, []

    def note(name):
        return lambda *values: Screen.calls.append((name, *values))

    Screen.keys, Screen.calls, Screen.open = [], [], True
    for name in ("namedWindow", "resizeWindow", "imshow", "setWindowTitle", "destroyWindow"):
        monkeypatch.setattr(cv2, name, note(name))
    monkeypatch.setattr(cv2, "waitKeyEx", lambda _: Screen.keys.pop(0) if Screen.keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0 if Screen.open else 0.0)
    return Screen


def test_no_screen_no_window(monkeypatch):
    monkeypatch.setattr(window.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not window.can_show()


def test_a_screen_that_is_not_there(monkeypatch):
    monkeypatch.setattr(window.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    assert not window.can_show()


def test_headless_build_has_no_windows(monkeypatch):
    monkeypatch.setattr(window.sys, "platform", "win32")
    monkeypatch.setattr(
        cv2, "getBuildInformation", lambda: "\n  GUI:                  NONE\n    GTK+: NO\n"
    )
    assert not window.can_show()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "\n  GUI:                  WIN32UI\n")
    assert window.can_show()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (ord("q"), "quit"),
        (27, "quit"),
        (ord(" "), "space"),
        (ord("s"), "save"),
        (ord("+"), "up"),
        (ord("="), "up"),  # the same key without shift
        (ord("-"), "down"),
        (65363, "right"),  # X11
        (0x10FF53, "right"),  # GTK, num lock on
        (0x270000, "right"),  # Windows
        (65361, "left"),
        (0x250000, "left"),
        (0x100000 + ord("q"), "quit"),
        (ord("x"), ""),
        (65505, ""),  # shift alone
    ],
)
def test_keys(screen, code, name):
    screen.keys.append(code)
    assert window.Window().key(1) == name


def test_wait_passes_over_keys_without_meaning(screen):
    screen.keys += [-1, ord("x"), -1, ord("s")]
    assert window.Window().wait() == "save"


def test_a_closed_window_is_the_end(screen):
    screen.open = False
    assert window.Window().wait() == "quit"


def test_window_is_no_larger_than_the_screen_and_follows_the_pictures(screen):
    with window.Window("x") as shown:
        assert not screen.calls  # nothing appears before the first picture
        shown.show(blank(3000, 4000), "large")
        shown.show(blank(3000, 4000), "large too")
        shown.show(blank(60, 50), "small")
    names = [call[0] for call in screen.calls]
    assert names.count("namedWindow") == 1 and names.count("imshow") == 3
    sizes = [call[2:] for call in screen.calls if call[0] == "resizeWindow"]
    assert sizes == [(1067, 800), (50, 60)]
    assert names[-1] == "destroyWindow"


def test_steps_of_the_threshold_end_at_both_sides():
    stepped = window.stepped
    assert stepped(0.3, "up") == 0.35 and stepped(0.3, "down") == 0.25
    assert stepped(0.3, "save") == 0.3 and stepped(0.123, "") == 0.123
    assert stepped(0.95, "up") == 0.95 and stepped(0.05, "down") == 0.05

"""Windows on a screen, where there is one, and the keys that are pressed in them."""

import os
import re
import subprocess
import sys

import cv2
import numpy as np

WINDOW = (1280, 800)  # largest width and height of a window
TICK = 50  # milliseconds between two looks at a window
STEP, LOWEST, HIGHEST = 0.05, 0.05, 0.95  # of the threshold that the keys + and - change
PROBE = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"
NO_FONT_MESSAGES = "*.debug=false;default.warning=false"  # OpenCV's Qt comes without fonts

# What waitKeyEx returns; the arrows have one code in X11, another in Windows and macOS each.
KEYS = {
    **dict.fromkeys((ord("q"), ord("Q"), 27), "quit"),
    ord(" "): "space",
    ord("s"): "save",
    **dict.fromkeys((ord("+"), ord("="), 65451), "up"),
    **dict.fromkeys((ord("-"), ord("_"), 65453), "down"),
    **dict.fromkeys((ord("n"), 13, 65363, 0x270000, 63235), "right"),
    **dict.fromkeys((ord("b"), 8, 65361, 0x250000, 63234), "left"),
}


def can_show() -> bool:
    """Whether OpenCV can open a window here: it has a GUI, and there is a screen for it."""
    gui = re.search(r"^\s*GUI:[ \t]*(\S*)", cv2.getBuildInformation(), re.MULTILINE)
    if gui and gui.group(1).upper() == "NONE":
        return False
    if not sys.platform.startswith("linux"):
        return True
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    # A name alone proves no screen, and Qt ends the process where it finds none: ask another one.
    try:
        command = [sys.executable, "-c", PROBE]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def stepped(threshold: float, key: str) -> float:
    """The threshold after the keys up and down, from LOWEST to HIGHEST."""
    change = {"up": STEP, "down": -STEP}.get(key, 0.0)
    return min(max(round(threshold + change, 2), LOWEST), HIGHEST) if change else threshold


class Window:
    """A window for one picture after another; it appears with the first."""

    def __init__(self, name: str = "detections"):
        self._name, self._shape = name, None

    def show(self, image: np.ndarray, title: str):
        """Shows the picture; large ones are scaled down to the window."""
        if self._shape is None:
            os.environ.setdefault("QT_LOGGING_RULES", NO_FONT_MESSAGES)
            flags = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
            cv2.namedWindow(self._name, flags)
        if image.shape != self._shape:
            ratio = min(WINDOW[0] / image.shape[1], WINDOW[1] / image.shape[0], 1.0)
            size = (max(round(side * ratio), 1) for side in (image.shape[1], image.shape[0]))
            cv2.resizeWindow(self._name, *size)
        self._shape = image.shape
        cv2.imshow(self._name, image)
        # A file name may hold bytes that are no text, which OpenCV refuses.
        cv2.setWindowTitle(self._name, title.encode("utf-8", "replace").decode())

    def key(self, milliseconds: int) -> str:
        """What the key pressed within this time stands for ("" if none); "quit" too when the
        window has been closed."""
        code = cv2.waitKeyEx(max(milliseconds, 1))
        if code == -1 and cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) < 1:
            return "quit"
        return KEYS.get(code) or KEYS.get(code & 0xFFFF, "")  # GTK adds bits for the modifiers

    def wait(self) -> str:
        """The next key that stands for something."""
        while True:
            name = self.key(TICK)
            if name:
                return name

    def close(self):
        if self._shape is not None:
            cv2.destroyWindow(self._name)
            self._shape = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

"""The lists of a large json file, item by item: the file is never in memory as a whole."""

import json
import re
from collections.abc import Iterator

from utils.errors import UserError

CHUNK = 1 << 20  # characters that are read at a time
NEAR_END = 16  # an error so near the end of what was read may be cured by reading on
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER = re.compile(r"[ \t\n\r]*([,\]}:]?)[ \t\n\r]*")


def lists(path) -> Iterator[tuple[str, Iterator]]:
    """(key, iterator over its items) for each list in the json object of a file.

    Items that the caller leaves are passed over, as are values that are no lists.
    """
    try:
        stream = open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    with stream:
        yield from _Reader(stream, path).lists()


class _Reader:
    """A window that slides over the text; `_at` is where the next token begins in it."""

    def __init__(self, stream, path):
        self._stream, self._path = stream, path
        self._text, self._at, self._ended = "", 0, False
        self._passed = 0  # characters before the window
        self._decode = json.JSONDecoder().raw_decode

    def lists(self):
        self._skip_space()
        if not self._text.startswith("{", self._at):
            raise self._fault("expected an object in braces")
        for key in self._keys():
            if self._text.startswith("[", self._at):
                items = self._items()
                yield key, items
                for _ in items:
                    pass
            else:
                self._value()
        self._skip_space()
        if self._at < len(self._text):
            raise self._fault("extra data after the object")

    def _keys(self):
        """The keys of the object that begins here; the caller reads each value."""
        self._at += 1
        self._skip_space()
        if self._text.startswith("}", self._at):
            self._at += 1
            return
        while True:
            key = self._value()
            if not isinstance(key, str) or self._delimiter() != ":":
                raise self._fault("expected a name in quotes and a colon")
            yield key
            end = self._delimiter()
            if end == "}":
                return
            if end != ",":
                raise self._fault("expected , or }")

    def _items(self):
        """The items of the list that begins here."""
        self._at += 1
        self._skip_space()
        if self._text.startswith("]", self._at):
            self._at += 1
            return
        while True:
            yield self._value()
            end = self._delimiter()
            if end == "]":
                return
            if end != ",":
                raise self._fault("expected , or ]")

    def _value(self):
        """The value that begins here; reads on while it is cut off by the end of the window."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                near = error.pos >= len(self._text) - NEAR_END
                if self._ended or not (near or error.msg.startswith("Unterminated string")):
                    raise self._fault(error.msg, error.pos) from None
            except ValueError:
                raise self._fault("a number of too many digits") from None
            except RecursionError:
                raise self._fault("lists within lists without end") from None
            else:
                # A number at the end of the window may go on, as 1 or 1.5e- does.
                if end < len(self._text) - NEAR_END or self._ended:
                    self._at = end
                    return value
            self._read_on()

    def _delimiter(self):
        """The sign after a value, "" if there is none; the next token begins behind it."""
        while True:
            match = _AFTER.match(self._text, self._at)
            if match.end() < len(self._text) or self._ended:
                self._at = match.end()
                return match[1]
            self._read_on()

    def _skip_space(self):
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or self._ended:
                return
            self._read_on()

    def _read_on(self):
        """Forgets what was used; reads as much as is left or more, so that time stays linear."""
        left = self._text[self._at :]
        try:
            more = self._stream.read(max(CHUNK, len(left)))
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path}: no valid json ({error})") from None
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror or error})") from None
        self._passed += self._at
        self._text, self._at, self._ended = left + more, 0, not more

    def _fault(self, message, position=None):
        position = self._passed + (self._at if position is None else position)
        return UserError(f"{self._path}: no valid json ({message}, at character {position})")

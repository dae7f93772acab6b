"""The class names in a yaml file, as other projects' sets have one: the key `names`, no more.

Read are a list in brackets, a list with dashes, and a map that numbers them from 0.
"""

import re
from pathlib import Path

from utils.errors import UserError

# What stands behind a backslash in double quotes.
HEX = "[0-9a-fA-F]"
ESCAPED = rf"x{HEX}{{2}}|u{HEX}{{4}}|U00(?:0{HEX}|10){HEX}{{4}}|[0abt\tnvfre \"/\\N_LP]"
ESCAPES = {"0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
ESCAPES |= {"e": "\x1b", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029"}  # else itself
QUOTED = rf"'(?:[^']|'')*'|\"(?:[^\"\\]|\\(?:{ESCAPED}))*\""
KEY = re.compile(r"^names\s*:(?=\s)(.*)$", re.MULTILINE)
KEYPOINTS = re.compile(r"^kpt_shape\s*:", re.MULTILINE)
BLANK = re.compile(r"\s*(#.*)?$")
DASHED = re.compile(rf"\s*-\s+({QUOTED}|[^\s'\"#].*?)(\s+#.*)?\s*$")
NUMBERED = re.compile(rf"\s+(\d+)\s*:\s+({QUOTED}|[^\s'\"#].*?)(\s+#.*)?\s*$")
# In brackets: a mark or a word, after white space and comments. A colon inside a word is no mark.
WORD = r"[^\s,\[\]{}:'\"](?:[^\n,\[\]{}:#]|:(?=\S)|(?<=\S)#)*"
TOKEN = re.compile(rf"(?:\s|(?<=\s)#[^\n]*)*({QUOTED}|[\[\]{{}},]|:(?=\s)|{WORD})")


def has_keypoints(path: Path) -> bool:
    """Whether the labels that belong to a yaml file have key points, which look like polygons."""
    try:
        return bool(KEYPOINTS.search(path.read_text(encoding="utf-8-sig", errors="replace")))
    except OSError:  # told where it matters
        return False


def read_names(path: Path) -> tuple[str, ...] | None:
    """The class names in the order of their numbers; None if the file has no key `names`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    key = KEY.search(text)
    if key is None:
        return None
    rest = text[key.start(1) :]
    names = _bracketed(rest) if rest.lstrip()[:1] in ("[", "{") else _block(rest)
    if not names or len(set(names)) != len(names):
        line = text.count("\n", 0, key.start()) + 1
        raise UserError(
            f"{path}, line {line}: the class names cannot be parsed; write them into "
            f"{path.parent / 'classes.txt'}, one a line, in order"
        )
    return tuple(names)


def _block(text):
    """Names of the lines after `names:`, until the next key; None if they are something else."""
    first, *lines = text.split("\n")
    names = []
    for line in lines:
        dashed, numbered = DASHED.match(line), NUMBERED.match(line)
        if dashed:
            names.append(_plain(dashed[1]))
        elif numbered and int(numbered[1]) == len(names):
            names.append(_plain(numbered[2]))
        elif line[:1] in (" ", "\t", "-") and not BLANK.match(line):
            return None
        elif not BLANK.match(line):
            break
    return names if BLANK.match(first) else None


def _bracketed(text):
    """Names of `[a, "b"]` or `{0: a, 1: b}`; None if it is something else."""
    groups, closing, at = [[]], None, 0
    while (token := TOKEN.match(text, at)) and token[1] != closing:
        word, at = token[1], token.end()
        if closing is None:
            closing = {"[": "]", "{": "}"}[word]
        elif word == ",":
            groups.append([])
        else:
            groups[-1].append(word)
    if token is None:
        return None
    if not groups[-1]:  # a comma after the last name
        groups.pop()
    names = []
    for group in groups:
        head = [str(len(names)), ":"] if closing == "}" else []
        if not group or [_plain(word) for word in group[:-1]] != head or group[-1] == ":":
            return None
        names.append(_plain(group[-1]))
    return names


def _plain(word):
    """A word without its quotes."""
    word = word.strip()
    if word[:1] == "'":
        return word[1:-1].replace("''", "'")
    if word[:1] != '"':
        return word
    word = re.sub(rf"\\({ESCAPED})", lambda match: _unescaped(match[1]), word[1:-1])
    return word.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs of \u


def _unescaped(sign):
    """What an escape in double quotes stands for."""
    return chr(int(sign[1:], 16)) if len(sign) > 1 else ESCAPES.get(sign, sign)

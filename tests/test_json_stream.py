import json

import pytest

from data import json_stream
from utils.errors import UserError

CONTENT = {
    "info": {"images": [1, 2], "x": "]}"},
    "numbers": [0, -1.5e-7, 12345678901234567890, True, False, None, float("inf"), 10],
    "empty": [],
    "licenses": 7,
    "images": [
        {"id": 1, "name": 'a "quoted" \\ ]},{ \u00e9\U0001f600'},
        {},
        {"id": [[], {"k": []}]},
    ],
    "strings": ["", "x" * 50, "\\u0041", "\n"],
    "last": "text",
}
LISTS = {key: value for key, value in CONTENT.items() if isinstance(value, list)}


def read(path):
    return {key: list(items) for key, items in json_stream.lists(path)}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    "options",
    [{}, {"ensure_ascii": False}, {"indent": 3}, {"separators": (",", ":")}, {"indent": "\t"}],
    ids=str,
)
def test_lists_equal_those_of_json(tmp_path, monkeypatch, chunk, options):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "a.json"
    for start, end in (("", ""), ("\ufeff \r\n", " \n\t")):
        path.write_text(start + json.dumps(CONTENT, **options) + end, encoding="utf-8")
        assert read(path) == LISTS


def test_items_that_are_left_are_passed_over(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    found = [key if key != "images" else next(items) for key, items in json_stream.lists(path)]
    assert found == ["numbers", "empty", CONTENT["images"][0], "strings"]
    path.write_text(" {} ")
    assert read(path) == {}


@pytest.mark.parametrize("chunk, every", [(1, 5), (5, 1), (1 << 20, 5)])
def test_every_cut_is_an_error(tmp_path, monkeypatch, chunk, every):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    text, path = json.dumps(CONTENT), tmp_path / "a.json"
    for length in range(0, len(text), every):
        path.write_text(text[:length])
        with pytest.raises(UserError, match="a.json: no valid json"):
            read(path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("[]", "expected an object"),
        ("", "expected an object"),
        ('{"a": [1 2]}', "expected , or ]"),
        ('{"a": [1,]}', "Expecting value"),
        ('{"a": [1], }', "Expecting value"),
        ('{"a": [1} }', "expected , or ]"),
        ('{"a" [1]}', "a name in quotes and a colon"),
        ("{1: [1]}", "a name in quotes and a colon"),
        ('{"a": 1 "b": 2}', "expected , or }, at character 8"),
        ('{"a": [1]} x', "extra data"),
        ('{"a": [{"b": tru}]}', "at character"),
        ('{"a": ["\t"]}', "control character"),
        ('{"a": [' + "[" * 100_000, "no valid json"),
        ('{"a": [' + "1" * 5000 + "]}", "no valid json .a number of too many digits"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_is_no_json(tmp_path, monkeypatch, chunk, text, words):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read(path)


def test_an_error_is_told_without_reading_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b": x}, "' + "y" * 10_000)
    with pytest.raises(UserError, match="character 13"):
        read(path)


def test_what_cannot_be_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(UserError, match="a.json: no valid json.*utf-8"):
        read(path)
    with pytest.raises(UserError, match="none.json: cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)

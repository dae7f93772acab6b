import pytest

from data.yaml_names import read_names
from utils.errors import UserError

ESCAPED = ("caf\u00e9", "\u4e2d\U0001f600", "\U0001f600", 'a"\\/', "t\tn")


@pytest.mark.parametrize(
    "text, names",
    [
        ("nc: 2\nnames: ['a b', \"c, d\", it's, 'isn''t']\n", ("a b", "c, d", "it's", "isn't")),
        (r'names: ["caf\xE9", "\u4E2D\U0001F600", "\ud83d\ude00", "a\"\\\/", "t\tn"]', ESCAPED),
        ("names:\n  - \"\\xE9\"\n  - '\\xE9'", ("\u00e9", "\\xE9")),
        ("names: [a,  # first, not last\n  b,\n  C#,\n]\n", ("a", "b", "C#")),
        ("names: {0: a, 1: 'b', '2': c:d}", ("a", "b", "c:d")),
        ("names:\n  - a # c\n\n  - 'b # x'\n- \"q\"\nnc: 3\n  - d", ("a", "b # x", "q")),
        (
            "\ufeffnames:\r\n  0: person\r\n # c\r\n  1: red light\r\nd:\r\n  2: z",
            ("person", "red light"),
        ),
    ],
)
def test_spellings(tmp_path, text, names):
    path = tmp_path / "data.yaml"
    path.write_bytes(text.encode())
    assert read_names(path) == names


@pytest.mark.parametrize(
    "names",
    [
        "coco.names",
        "[a, b",
        "[a, , b]",
        "[a [b]]",
        "['a' 'b']",
        "['a, b]",
        r'["\xZZ"]',
        r'["\u12"]',
        r'["\UFFFFFFFF"]',
        r'["\d"]',
        "[]",
        "\n",
        "\n  1: a",
        "\n  0: a\n  2: b",
        "\n  a: b",
        "{0: a, 1: }",
        "{1: a}",
        "[" + " " * 20000 + "'",
    ],
)
def test_what_cannot_be_parsed_is_an_error(tmp_path, names):
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {names}")
    with pytest.raises(UserError, match="data.yaml, line 2: .*classes.txt, one a line"):
        read_names(tmp_path / "data.yaml")


def test_no_names(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("nc: 2\nmy_names: [a]\n")
    assert read_names(path) is None
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="x.yaml: cannot be read"):
        read_names(path)

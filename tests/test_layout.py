"""The rules of the house that a program can check: import arrows, file length, names, habits."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    *("benchmarks", "cuda_ops", "data", "docs", "models"),
    *("recipes", "report", "tests", "utils"),
)
ENTRIES = ("train", "eval", "test", "demo", "pretrain", "export", "benchmark")
BANNED_NAMES = ("misc", "helpers", "common", "tools", "base_utils")
MAY_PRINT = ("utils/log.py", "cuda_ops/setup.py")  # and tests, and what is run as a command
MAX_LINES = 500

# What each room may import of the others; entry scripts may import one another.
ARROWS = {
    **{
        name: {
            *("engine", "recipes", "models", "data", "report", "utils", "cuda_ops", "benchmarks"),
            *ENTRIES,
        }
        for name in ENTRIES
    },
    "benchmarks": {"engine", "recipes", "models", "data", "utils", "cuda_ops", "benchmarks"},
    "docs": {"docs", "engine", "recipes", "models", "data", "utils"},
    "engine": {"utils"},
    "recipes": {"recipes"},
    "models": {"models", "cuda_ops", "utils"},
    "data": {"data", "utils"},
    "report": {"report", "utils"},
    "utils": {"utils"},
    "cuda_ops": {"cuda_ops"},
}
ROOMS = set(ARROWS)


def sources() -> list[Path]:
    files = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT) for path in files)


def text_files() -> list[Path]:
    files = [path for path in ROOT.glob("*") if path.suffix in (".sh", ".md", ".toml", ".txt")]
    files += (ROOT / "docs").rglob("*.md")
    return sorted(path.relative_to(ROOT) for path in files)


SOURCES = sources()


def room_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(tree: ast.AST):
    """(first part of the name, line) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module.split(".")[0], node.lineno


def upward(room: str, tree: ast.AST) -> list[str]:
    return [
        f"line {line}: {room} imports {name}"
        for name, line in imports(tree)
        if name in ROOMS and name not in ARROWS[room]
    ]


def is_command(tree: ast.Module) -> bool:
    """Whether the file ends in `if __name__ == "__main__":`."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in tree.body
    )


def habits(path: str, tree: ast.Module) -> list[str]:
    """What the style forbids, by line."""
    may_print = path in MAY_PRINT or path.startswith("tests/") or is_command(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"line {node.lineno}: star import")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "hasattr":
                found.append(f"line {node.lineno}: hasattr")
            if node.func.id == "print" and not may_print:
                found.append(f"line {node.lineno}: print")
        if isinstance(node, ast.Attribute) and node.attr == "path":
            if isinstance(node.value, ast.Name) and node.value.id == "sys":
                found.append(f"line {node.lineno}: sys.path")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_source(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in BANNED_NAMES
    assert habits(path.as_posix(), tree) == []
    room = room_of(path)
    if room != "tests":
        assert room in ARROWS, f"{path}: no room for this file in the house"
        assert upward(room, tree) == []


@pytest.mark.parametrize("path", [*SOURCES, *text_files()], ids=str)
def test_no_path_of_somebody_s_home(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    home = re.compile(r"(?<![\w.])/(home|root|Users)/\w|[A-Z]:\\\\?Users")
    assert [line for line in text.splitlines() if home.search(line)] == []


@pytest.mark.parametrize("path", [p for p in text_files() if p.suffix == ".md"], ids=str)
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (ROOT / path).parent.joinpath(link).exists()] == []


def test_the_rules_catch_offenders():
    assert upward("models", ast.parse("def f():\n    from data.records import Records"))
    assert upward("data", ast.parse("import models.yolox"))
    assert upward("utils", ast.parse("import engine"))
    assert upward("engine", ast.parse("import recipes"))
    assert upward("recipes", ast.parse("from utils import cli"))
    assert not upward("models", ast.parse("import torch\nfrom cuda_ops import corr"))
    bad = (
        "try:\n    from x import *\nexcept:\n    print(hasattr(a, 'b'))\n"
        "import sys\nsys.path.append('')\n"
    )
    assert len(habits("models/x.py", ast.parse(bad))) == 5
    command = bad + "if __name__ == '__main__':\n    main()\n"
    assert len(habits("models/x.py", ast.parse(command))) == 4


def test_files_found():
    assert Path("utils/errors.py") in SOURCES
    assert Path("tests/test_layout.py") in SOURCES

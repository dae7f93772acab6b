"""Checkpoints: written so that a crash cannot harm the last good one, read without running code.

`save` writes tensors and plain values only. `read` opens such files with torch's own safe loader;
files that hold more (a NumPy number, a pickled module, an argparse namespace) go through a reader
that knows tensors and numbers, makes an empty record of every other class, and calls nothing else.
"""

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import replace_file
from utils.safetensors import read_safetensors
from utils.unpickle import read_inert

START = 16  # bytes that tell what kind of file it is
WEB_PAGE = re.compile(rb"\s*<")
SAFETENSORS = re.compile(rb".{4}\0{4}\{", re.DOTALL)
STATE_KEYS = ("ema", "model", "state_dict", "model_state", "params")


def save(path: str | Path, content: dict):
    """Writes tensors and plain values; whatever fails, the file that was there stays as it was.

    Equal contents give equal bytes, whatever the file's name or the device of the tensors.
    """
    plain = _portable(content, Path(path).name, {})
    # A file object: given a path, torch would write the file's name into the archive.
    replace_file(path, lambda file: torch.save(plain, file))


def _portable(value, where: str, strings: dict):
    """A copy with detached CPU tensors and plain containers; equal strings become one object,
    since pickle writes an object seen before as a reference."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {
            _portable(k, where, strings): _portable(v, f"{where}: {k}", strings)
            for k, v in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(_portable(v, f"{where}: {i}", strings) for i, v in enumerate(value))
    if type(value) is str:
        return strings.setdefault(value, value)
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(
        f"{where}: a checkpoint holds no {type(value).__module__}.{type(value).__name__}"
    )


def read(path: str | Path) -> dict:
    """The content of a checkpoint, on the CPU; a whole pickled module becomes its state dict."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the checkpoint in it")
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise UserError(f"{path} is empty; its writing or download was interrupted")
    if WEB_PAGE.match(start):
        raise UserError(
            f"{path} is a web page, not a checkpoint: the download failed; fetch the file itself "
            "again"
        )
    if SAFETENSORS.match(start):
        return read_safetensors(path)
    zipped = start.startswith(b"PK\x03\x04")
    if zipped and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off; its writing or download was interrupted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file's age, which the user cannot change
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # more than weights, or damaged: the reader below tells which
        content = read_inert(path, zipped)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def find_state(checkpoint: dict) -> dict[str, Tensor]:
    """The weights of our checkpoints and of public ones, without the `module.` of parallel runs."""
    found = _search(checkpoint)
    if found is None:
        names = ", ".join(str(key) for key in list(checkpoint)[:8]) or "nothing"
        raise UserError(
            f"no weights in this checkpoint: it holds {names}; "
            f"expected one of {', '.join(STATE_KEYS)}, or the tensors themselves"
        )
    while all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _search(content: dict) -> dict[str, Tensor] | None:
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    for key in STATE_KEYS:
        if isinstance(content.get(key), dict):
            found = _search(content[key])
            if found is not None:
                return found
    return None


def load_weights(model: nn.Module, state: dict[str, Tensor], allow: tuple[str, ...] = ()) -> list:
    """Copies the weights whose name and shape agree; returns the sorted names left out.

    A name that is missing, unexpected or of another shape must start with a prefix in `allow`.
    """
    own = model.state_dict()
    both = own.keys() & state.keys()
    differences = {
        "missing": own.keys() - both,
        "unexpected": state.keys() - both,
        "reshaped": {name for name in both if own[name].shape != state[name].shape},
    }
    parts = []
    for kind, names in differences.items():
        refused = sorted(name for name in names if not name.startswith(tuple(allow)))
        if refused:
            shown = [_describe(name, kind, own, state) for name in refused[:5]]
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            parts.append(f"{len(refused)} {kind}: {', '.join(shown)}{more}")
    if parts:
        fitting = len(both) - len(differences["reshaped"])
        raise UserError(
            f"these weights do not fit the model ({fitting} of its {len(own)} tensors agree): "
            f"{'; '.join(parts)}"
        )
    skipped = set().union(*differences.values())
    fitting = {name: state[name] for name in own if name not in skipped}
    model.load_state_dict(fitting, strict=False)
    return sorted(skipped)


def _describe(name: str, kind: str, own: dict, state: dict) -> str:
    if kind != "reshaped":
        return name
    return f"{name} {list(state[name].shape)} where the model has {list(own[name].shape)}"

"""What every command shares: flags, the device, and how errors reach the user."""

import argparse
import difflib
import gc
import importlib.metadata
import io
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable

import cv2
import torch

from utils import dist
from utils.errors import UserError
from utils.log import say

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "pycocotools")
OPTIONAL_PACKAGES = ("faster-coco-eval", "matplotlib", "tqdm", "tensorboard")
DATASETS = {  # other names: what YOLOF's users call it, and what sets of videos are called
    "coco-val": "coco",
    "yolo-video": "yolovideo",
    "visdrone-vid": "visdrone",
}
NOT_KEPT = ("resume", "device", "cuda", "debug")  # of an earlier call's arguments


class Arguments(argparse.Namespace):
    """Parsed flags; `given` names those that stood on the command line and is not one of them."""

    __slots__ = ("given",)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for which hyphens and underscores in a flag's name are the same."""

    def __init__(self, **options):
        super().__init__(formatter_class=_formatter, allow_abbrev=False, **options)

    def parse_args(self, args=None, namespace=None) -> Arguments:
        unset = object()
        actions = [action for action in self._actions if action.dest != "help"]
        parsed = Arguments(**{action.dest: unset for action in actions})
        super().parse_args(_underscores(sys.argv[1:] if args is None else args), parsed)
        given = {name for name, value in vars(parsed).items() if value is not unset}
        for action in actions:
            if action.dest not in given:
                setattr(parsed, action.dest, action.default)
        parsed.given = frozenset(given)
        return parsed

    def flags(self) -> dict[str, argparse.Action]:
        return {flag: action for action in self._actions for flag in action.option_strings}

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            close = nearest(message.split(": ")[1].split()[0].split("=")[0], self.flags())
            message += f" (did you mean {close}?)" if close else ""
        self.exit(2, f"{self.prog}: {message}; --help lists all flags\n")


class Switch(argparse.Action):
    """`--name` is True, `--no_name` False, neither None."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, default=None, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30)


def _underscores(argv: Iterable[str]) -> list[str]:
    """The arguments with `--batch-size=8` as `--batch_size=8`; values stay as they are."""
    result, ended = [], False
    for argument in argv:
        ended = ended or argument == "--"
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and not ended:
            argument = f"--{name[2:].replace('-', '_')}{equals}{value}"
        result.append(argument)
    return result


def was_given(args: Arguments, name: str) -> bool:
    """Whether the flag stood on the command line."""
    return name in args.given


def keep_arguments(args: Arguments, earlier: dict):
    """Fills the flags that were not given from an earlier call's, apart from where to run."""
    for name in vars(args).keys() & earlier.keys() - set(NOT_KEPT):
        if not was_given(args, name):
            setattr(args, name, earlier[name])


def add_switch(group, name: str, text: str):
    """Adds `--name` and `--no_name`; None when neither is given."""
    group.add_argument(f"--{name}", f"--no_{name}", action=Switch, dest=name, help=text)


def add_weight_flags(group, conf: float, nms: float | None = None, required: bool = True):
    """Adds --weight, the flags of the size, --half, --conf and --nms, the last with these defaults
    (None: the recipe's)."""
    group.add_argument(
        "--weight", required=required, metavar="FILE", help="checkpoint, ours or public"
    )
    add_size_flags(group)
    group.add_argument("--conf", type=real(0, 1), default=conf, help=f"least score ({conf})")
    shown = "the recipe's" if nms is None else nms
    group.add_argument(
        "--nms", type=real(0, 1), default=nms, help=f"greatest IoU of two boxes ({shown})"
    )
    group.add_argument(
        "--half", action="store_true", help="compute in 16 bits where the device does so faster"
    )


def add_size_flags(group):
    """Adds --img_size, --min_size and --max_size."""
    group.add_argument(
        "--img_size", type=side, metavar="PX", help="side of a square input (the model's)"
    )
    group.add_argument(
        "--min_size", type=whole(32), metavar="PX", help="short side, in place of --img_size"
    )
    group.add_argument(
        "--max_size", type=whole(32), metavar="PX", help="most that the long side measures then"
    )


def sides_of(args: argparse.Namespace) -> dict[str, int | None]:
    """The given sides by the names that `models.load` knows; both kinds at once are a UserError."""
    sides = {name: vars(args)[name] for name in ("img_size", "min_size", "max_size")}
    if sides["min_size"] and sides["min_size"] == sides["max_size"]:
        raise UserError(
            f"--min_size and --max_size are both {sides['min_size']}; give --img_size "
            f"{sides['min_size']} for a square"
        )
    if sides["img_size"] and (sides["min_size"] or sides["max_size"]):
        raise UserError(
            "--img_size is the side of a square input, --min_size and --max_size are the short and "
            "the longest side of one that keeps an image's shape; give one kind or the other"
        )
    return sides


def side(text: str) -> int:
    """The type of --img_size: a side that the coarsest stride divides."""
    if not text.isdigit() or int(text) == 0 or int(text) % 32:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 32{_near_side(text)}")
    return int(text)


def _near_side(text: str) -> str:
    """The sides that --img_size could have meant."""
    below = int(text) // 32 * 32 if text.isdigit() else 0
    return f"; take {below} or {below + 32}" if below else ""


def whole(least: int) -> Callable[[str], int]:
    """The type of a flag: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of {least} or more")
        return int(text)

    return parse


def real(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of a flag: a number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            limits = f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} is not a number {limits}")
        return value

    return parse


def add_data_flags(group, kinds: Iterable[str], default: str | None = None):
    """Adds -d (one of `kinds`), --root, --ann, --images, --classes and --voc_train."""
    shown = f"{', '.join(kinds)} ({default})" if default else ", ".join(kinds)
    group.add_argument(
        "-d",
        "--dataset",
        metavar="NAME",
        type=lambda name: DATASETS.get(name, name),
        default=default,
        help=f"kind of data set: {shown}",
    )
    group.add_argument(
        "--root", metavar="DIR", default="datasets", help="folder the data set lies in (datasets)"
    )
    group.add_argument(
        "--ann",
        metavar="FILE",
        nargs="+",
        help="annotation file, if not at its usual place (two: to train on, to evaluate on)",
    )
    group.add_argument(
        "--images",
        metavar="DIR",
        nargs="+",
        help="image folder, if not at its usual place (two: as --ann)",
    )
    group.add_argument("--classes", metavar="FILE", help="class names, one a line (the set's own)")
    group.add_argument(
        "--voc_train",
        choices=("07", "12", "07+12"),
        help="years that VOC trains on (07, and 12 where it is there)",
    )


def add_device_flags(group):
    """Adds --cuda and --device."""
    group.add_argument("--cuda", action="store_true", help="use CUDA (the default where it is)")
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (the best there is)"
    )


def add_debug_flag(group):
    """Adds --debug, which `run_main` looks for."""
    group.add_argument("--debug", action="store_true", help="show the traceback of any error")


def typed(value) -> str:
    """An option's value as one would type it; files hold lists where recipes hold tuples."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(typed, value)) or "none" if isinstance(value, list | tuple) else str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like this one, or "" if none is; of those that it begins the first."""
    lower = {each.lower(): each for each in known}
    for each in lower:
        if each.startswith(f"{name.lower()}-"):
            return lower[each]
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[close[0]] if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known: the nearest one, then all."""
    close = nearest(name, known)
    hint = f"did you mean {close}? Known" if close else "known"
    return f"there is no {kind} {name!r}; {hint}: {', '.join(known)}"


def pick_device(args: argparse.Namespace) -> torch.device:
    """--device, else CUDA, else MPS, else the CPU; said once. Each process takes its own GPU."""
    main = dist.local_rank() == 0
    if args.device:
        device = _checked(args.device)
    elif torch.cuda.is_available():
        device = _checked("cuda")
    elif torch.backends.mps.is_available():
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    if main and args.cuda and device.type != "cuda":
        why = f"--device {args.device}" if args.device else "this PyTorch finds no CUDA device"
        say(f"warning: --cuda, but {why}; going on with {device.type}")
    if main:
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
        say(f"device: {device}{name}{threads}")
    return device


def _checked(name: str) -> torch.device:
    """The named device, if it can be used here; a bare "cuda" is this process' own."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; try cpu, cuda, cuda:0 or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = dist.local_rank() if device.index is None else device.index
        if index >= count:
            raise UserError(
                f"device {name}, process {dist.local_rank()} of this machine: it has {count} CUDA "
                "devices that PyTorch can use; start at most one process on each"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this PyTorch finds no Apple GPU")
    if device.type not in ("cpu", "mps"):
        raise UserError(f"--device {name}: only cpu, cuda and mps are supported")
    return device


def worker_count(asked: int | None, device: torch.device) -> int:
    """Processes that read images: as asked, else up to 8 beside a GPU; on a CPU, which computes
    as well, one for each four cores."""
    if asked is not None:
        return asked
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, cores if device.type == "cuda" else cores // 4))


def add_split_flags(group, splits: tuple[str, ...]):
    """Adds --split and --limit, for commands that look at one part of a set."""
    group.add_argument("--split", default="val", choices=splits, help="part of the set (val)")
    group.add_argument("--limit", type=whole(1), metavar="N", help="only the first N images")


def of_split(values: list[str] | None, split: str) -> str | None:
    """Of the one or two values of --ann or --images: the first trains, the last evaluates."""
    if values and len(values) > 2:
        raise UserError(f"{' '.join(values)}: at most two, one to train and one to evaluate on")
    return values and values[0 if split == "train" else -1]


def reader_options(args: Arguments, split: str) -> dict:
    """What `data.read` is told of one part of the set that the data flags name."""
    return {
        "classes": args.classes,
        "annotation": of_split(args.ann, split),
        "images": of_split(args.images, split),
        "years": args.voc_train,
        "limit": args.limit,
    }


def data_of_checkpoint(args: Arguments, trained: dict):
    """Without -d, the data set that a checkpoint was trained on."""
    if was_given(args, "dataset"):
        return
    if "dataset" not in trained:
        raise UserError(
            "this checkpoint does not say what data it belongs to; name them, as in -d voc --root "
            "DIR or -d coco --ann FILE --images DIR"
        )
    for name in ("dataset", "root", "ann", "images", "classes", "voc_train"):
        if not was_given(args, name):
            setattr(args, name, trained[name])


def python_command() -> str:
    """How the user calls this interpreter: `python`, or its path where that is another one."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes; optional ones if installed."""
    versions = {}
    for name in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in PACKAGES:
                versions[name] = "unknown"
    return versions


def prepare_process():
    """Settings of the process of a command."""
    # Denormal numbers make an untrained network twenty times slower on a CPU.
    torch.set_flush_denormal(True)
    # What the imports made stays: collecting it would write to pages that workers share.
    gc.freeze()
    cv2.setNumThreads(0)  # parallel over images, not inside one; and safe with forked workers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name must not end a run on any console
            stream.reconfigure(errors="backslashreplace")


def run_main(main: Callable[[], int | None]):
    """Runs an entry script and ends the process: 0, its own code, 2 (user's mistake) or 130."""
    prepare_process()
    try:
        code = main()
        dist.shutdown()
    except UserError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        rank = f"process {dist.rank()}: " if dist.rank() else ""
        sys.stderr.write(f"error: {rank}{error}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    sys.exit(code)

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from utils import cli, family_flags
from utils.errors import UserError


def option(default, text, choices=(), **bounds):
    return field(default=default, metadata={"help": text, "choices": choices, **bounds})


@dataclass(frozen=True)
class Fast:
    depth: float = option(0.33, "depth multiplier", least=0.0, most=1.0)
    layers: int = option(3, "number of layers", least=1)
    reach: float = option(2.0, "reach of a layer", least=0.5)
    wide: bool = option(False, "wider convolutions")
    act: str = option("silu", "activation", ("silu", "relu"))


@dataclass(frozen=True)
class Slow:
    depth: float = option(0.5, "depth multiplier")
    rounds: int = option(3, "rounds of refinement")
    act: str = option("own", "activation", ("own", "relu"))


@dataclass(frozen=True)
class SlowTraining:
    pauses: tuple[int, ...] = option((), "lengths of the pauses")
    still: tuple[str, ...] = option((), "parts that stay as they are", ("neck", "head"))


FAMILIES = {"fast": (Fast,), "slow": (Slow, SlowTraining)}


def parse(*argv):
    parser = cli.Parser(prog="train.py")
    cli.add_data_flags(parser, ("voc", "synthetic"), default="synthetic")
    cli.add_device_flags(parser)
    cli.add_debug_flag(parser)
    parser.add_argument("-bs", "--batch_size", type=int, metavar="N", help="images per step")
    parser.add_argument("--resume", nargs="?", const="", help="go on")
    cli.add_switch(parser, "amp", "mixed precision")
    for family, kinds in FAMILIES.items():
        family_flags.add(parser, family, kinds, "plain")
    return parser.parse_args(argv)


def test_both_spellings():
    for argv in (["--batch_size", "8"], ["--batch-size", "8"], ["--batch-size=8"], ["-bs", "8"]):
        assert parse(*argv).batch_size == 8
    assert parse("--no-amp").amp is False


def test_values_keep_their_hyphens():
    assert parse("--root", "my-data/a-b").root == "my-data/a-b"
    assert parse("--root=my-data/--a-b").root == "my-data/--a-b"


def test_what_was_given():
    args = parse("-d", "synthetic", "--amp", "--resume")
    assert args.given == {"dataset", "amp", "resume"}
    assert cli.was_given(args, "dataset") and not cli.was_given(args, "root")
    assert (args.root, args.batch_size, args.cuda, args.resume) == ("datasets", None, False, "")
    assert "given" not in vars(args)
    assert parse().dataset == "synthetic" and parse().given == frozenset()


def test_switches():
    assert [parse(*argv).amp for argv in ([], ["--amp"], ["--no_amp"])] == [None, True, False]


def test_arguments_of_an_earlier_call():
    args = parse("--root", "new")
    earlier = {**vars(parse("--root", "old", "-d", "voc", "--cuda", "--debug")), "gone": 1}
    cli.keep_arguments(args, earlier)
    assert (args.root, args.dataset, args.cuda, args.debug) == ("new", "voc", False, False)
    assert "gone" not in vars(args)


def test_options_of_a_family():
    args = parse("--depth", "0.5", "--layers", "4", "--wide", "--act", "relu")
    assert family_flags.given(args, "fast", FAMILIES) == {
        "depth": 0.5,
        "layers": 4,
        "wide": True,
        "act": "relu",
    }
    assert family_flags.given(parse("--no_wide"), "fast", FAMILIES) == {"wide": False}
    assert family_flags.given(parse(), "fast", FAMILIES) == {}
    assert family_flags.given(parse("--depth", "1"), "slow", FAMILIES) == {"depth": 1.0}
    args = parse("--rounds", "2", "--pauses", "3,5")
    assert family_flags.given(args, "slow", FAMILIES) == {"rounds": 2, "pauses": (3, 5)}


def test_options_of_another_family_are_refused():
    with pytest.raises(UserError, match="--rounds is an option of slow.*model is of fast"):
        family_flags.given(parse("--rounds", "2"), "fast", FAMILIES)
    with pytest.raises(UserError, match="--pauses is an option of slow"):
        family_flags.given(parse("--pauses", "2"), "fast", FAMILIES)


def test_one_flag_serves_two_families_that_take_other_values():
    assert family_flags.given(parse("--act", "own"), "slow", FAMILIES) == {"act": "own"}
    with pytest.raises(UserError, match="--act own is not for models of fast: there .* relu"):
        family_flags.given(parse("--act", "own"), "fast", FAMILIES)
    with pytest.raises(UserError, match="--act silu is not for models of slow: .* own, relu$"):
        family_flags.given(parse("--act", "silu"), "slow", FAMILIES)
    args = parse("--still", "neck", "head")
    assert family_flags.given(args, "slow", FAMILIES) == {"still": ("neck", "head")}


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--bach_size", "8"], ["--bach_size", "did you mean --batch_size?"]),
        (["--act", "gelu"], ["--act", "gelu", "relu"]),
        (["--batch_size", "many"], ["batch_size", "many"]),
        (["--pauses", "3", "0"], ["--pauses", "0 is not a list of whole numbers"]),
        (["--pauses", "3,x"], ["--pauses", "3,x is not a list of whole numbers"]),
        (["--layers", "0"], ["--layers", "0 is not a whole number of 1 or more"]),
        (["--layers", "2.5"], ["--layers", "2.5 is not a whole number of 1 or more"]),
        (["--depth", "1.5"], ["--depth", "1.5 is not a number from 0 to 1"]),
        (["--depth", "-1"], ["--depth", "-1 is not a number from 0 to 1"]),
        (["--depth", "nan"], ["--depth", "nan is not a number from 0 to 1"]),
        (["--reach", "0.4"], ["--reach", "0.4 is not a number of 0.5 or more"]),
        (["--reach", "inf"], ["--reach", "inf is not a number of 0.5 or more"]),
        (["--batch", "8"], ["--batch"]),  # no abbreviations: they change when a flag is added
    ],
)
def test_wrong_flags_end_with_a_sentence(capsys, argv, words):
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and all(word in text for word in words)


def test_help_shows_each_flag_once(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--batch_size N" in text and "--batch-size" not in text
    assert "--amp, --no_amp" in text and "{silu,relu,own}" in text
    assert text.count("--depth X") == 2  # usage and list
    assert "fast (default: what the recipe says; here plain's):" in text
    assert "wider convolutions (off)" in text and "activation (silu)" in text


def test_nearest_and_unknown():
    known = ("yolox-s", "yolox-nano", "yolof-r50-c5")
    assert cli.nearest("yolox_nano", known) == "yolox-nano"
    assert cli.nearest("YOLOX-S", known) == "yolox-s"
    assert cli.nearest("qqq", known) == ""
    text = cli.unknown("model", "yolox-nao", known)
    assert text.startswith("there is no model 'yolox-nao'; did you mean yolox-nano?")
    assert all(name in text for name in known)


def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_device_is_chosen_and_said(monkeypatch, capsys):
    no_accelerator(monkeypatch)
    assert cli.pick_device(parse()) == torch.device("cpu")
    assert "device: cpu" in capsys.readouterr().out
    assert cli.pick_device(parse("--cuda")) == torch.device("cpu")
    assert "warning: --cuda" in capsys.readouterr().out
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert cli.pick_device(parse()) == torch.device("mps")
    assert cli.pick_device(parse("--device", "cpu")) == torch.device("cpu")


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert cli.pick_device(parse()) == torch.device("cuda", 2)
    assert cli.pick_device(parse("--device", "cuda")) == torch.device("cuda", 2)
    assert cli.pick_device(parse("--device", "cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="4 CUDA devices"):
        cli.pick_device(parse("--device", "cuda:7"))


@pytest.mark.parametrize("name", ["gpu0", "cuda", "cuda:1", "mps", "meta"])
def test_devices_that_are_not_there(monkeypatch, name):
    no_accelerator(monkeypatch)
    with pytest.raises(UserError, match=f"device {name}"):
        cli.pick_device(parse("--device", name))


def test_number_of_workers(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 8)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [cli.worker_count(0, cpu), cli.worker_count(5, gpu)] == [0, 5]
    assert [cli.worker_count(None, cpu), cli.worker_count(None, gpu)] == [2, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cli.worker_count(None, gpu) == 2
    monkeypatch.setattr(cli.os, "cpu_count", lambda: None)
    assert cli.worker_count(None, cpu) == 1


def test_data_of_a_checkpoint():
    trained = vars(parse("-d", "voc", "--root", "old", "--classes", "names.txt"))
    args = parse("--root", "new")
    cli.data_of_checkpoint(args, trained)
    assert (args.dataset, args.root, args.classes) == ("voc", "new", "names.txt")
    args = parse("-d", "coco")
    cli.data_of_checkpoint(args, trained)
    assert (args.dataset, args.root, args.classes) == ("coco", "datasets", None)
    with pytest.raises(UserError, match="-d voc --root DIR"):
        cli.data_of_checkpoint(parse(), {})


SCRIPT = """
import sys
from utils import cli, family_flags
from utils.errors import UserError

def main():
    what = sys.argv[1]
    if what == "user":
        raise UserError("no file x.jpg; check the path")
    if what == "ctrl-c":
        raise KeyboardInterrupt
    if what == "fault":
        raise RuntimeError("a fault of ours")
    print("fine")
    return 1 if what == "one" else None

cli.run_main(main)
"""


@pytest.mark.parametrize(
    "argv, code, err",
    [
        (["fine"], 0, ""),
        (["one"], 1, ""),
        (["user"], 2, "error: no file x.jpg; check the path\n"),
        (["ctrl-c"], 130, "interrupted\n"),
    ],
)
def test_how_a_command_ends(monkeypatch, capsys, argv, code, err):
    monkeypatch.setattr(sys, "argv", ["x.py", *argv])
    with pytest.raises(SystemExit) as end:
        exec(SCRIPT, {})
    assert (end.value.code or 0, capsys.readouterr().err) == (code, err)


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py", "user", "--debug"])
    with pytest.raises(SystemExit) as end:
        exec(SCRIPT, {})
    err = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" in err and err.endswith("check the path\n")


def test_a_fault_of_ours_never_ends_with_zero():
    command = [sys.executable, "-c", SCRIPT, "fault"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "a fault of ours" in done.stderr


def test_package_versions():
    versions = cli.package_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(cli.PACKAGES) <= set(versions)


def test_prepare_process():
    cli.prepare_process()
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() == 0
    torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    "argv, sides",
    [
        ([], (None, None, None)),
        (["--img_size", "64"], (64, None, None)),
        (["--min_size", "100"], (None, 100, None)),
        (["--min-size", "800", "--max-size", "1333"], (None, 800, 1333)),
        (["--img_size", "64", "--max_size", "100"], None),
        (["--img_size", "64", "--min_size", "64"], None),
    ],
)
def test_a_square_or_two_sides(argv, sides):
    parser = cli.Parser(prog="test.py")
    cli.add_weight_flags(parser, conf=0.3, required=False)
    args = parser.parse_args(argv)
    if sides is None:
        with pytest.raises(UserError, match="--img_size is the side of a square.*one kind"):
            cli.sides_of(args)
    else:
        names = ("img_size", "min_size", "max_size")
        assert cli.sides_of(args) == dict(zip(names, sides, strict=True))


def test_a_square_has_a_flag_of_its_own():
    parser = cli.Parser(prog="test.py")
    cli.add_size_flags(parser)
    args = parser.parse_args(["--min_size", "96", "--max_size", "96"])
    with pytest.raises(UserError, match="are both 96; give --img_size 96 for a square"):
        cli.sides_of(args)

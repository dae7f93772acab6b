"""Time the operators of cuda_ops, compiled kernels in turn with plain PyTorch, and their memory.

python benchmark.py operators
python benchmark.py operators --device cuda

DCNv3 against its twin; the correlation lookup against its twin and against all pairs (the volume of
all products, pooled, then sampled). A lookup includes its pyramid or volume. Medians of calls taken
in turn. On CUDA also in float16, and against the time in which the bytes of all inputs and outputs
could be copied, at the speed of a large copy in the same run.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.turns import alternate
from cuda_ops import corr_lookup, corr_lookup_twin, corr_pyramid, dcnv3, dcnv3_twin, library
from utils import cli
from utils.errors import UserError
from utils.log import say

DCNV3_SHAPES = ((80, 80, 128, 8), (64, 64, 64, 4))  # height, width, channels, groups
CORR_SHAPES = ((96, 128, 128), (48, 64, 128))  # height, width, channels
RADIUS, LEVELS = 4, 4
CUDA_BATCHES = (1, 32)  # 1 fits into a GPU's cache, 32 does not
CALLS = {"cpu": 1, "cuda": 20}  # in one measurement
COPY = 1 << 28  # bytes
LEAST_ROUNDS, LONGEST = 5, 60  # seconds of all rounds, if there are more than the least
PEERS = ("kernel", "twin", "all pairs")


class Case(NamedTuple):
    """One operator at one shape: who computes it, from which inputs."""

    name: str
    peers: dict[str, Callable]
    inputs: tuple[Tensor, ...]


def add_flags(parser: cli.Parser):
    parser.add_argument(
        "--rounds",
        type=cli.whole(1),
        default=15,
        metavar="N",
        help="most measurements of each, in turn (15)",
    )
    parser.add_argument(
        "--corr_batch", type=cli.whole(1), default=1, metavar="N", help="pairs of maps (1)"
    )
    cli.add_device_flags(parser)


def dcnv3_case(batch: int, shape: tuple, device: torch.device, dtype: torch.dtype) -> Case:
    height, width, channels, group = shape
    rng = torch.Generator().manual_seed(0)
    points = (batch, height, width, group, 9)
    inputs = torch.randn(batch, height, width, channels, generator=rng)
    offset = torch.randn(*points, 2, generator=rng).flatten(3)
    mask = torch.randn(points, generator=rng).softmax(dim=-1).flatten(3)
    numbers = (3, 1, 1, 1, group)
    return Case(
        f"dcnv3 {batch} x {height} x {width} x {channels}, {group} groups",
        {
            "kernel": lambda *tensors: dcnv3(*tensors, *numbers),
            "twin": lambda *tensors: dcnv3_twin(*tensors, *numbers),
        },
        (inputs.to(device, dtype), offset.to(device), mask.to(device, dtype)),
    )


def corr_case(batch: int, shape: tuple, device: torch.device, dtype: torch.dtype) -> Case:
    """Maps in channels-last memory, each pixel looking about 4 pixels away."""
    height, width, channels = shape
    rng = torch.Generator().manual_seed(0)
    fmap1, fmap2 = torch.randn(2, batch, channels, height, width, generator=rng)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    coords = torch.stack([x, y]) + 4 * torch.randn(batch, 2, height, width, generator=rng)

    def with_pyramid(lookup: Callable) -> Callable:
        return lambda one, two, at: lookup(one, corr_pyramid(two, LEVELS), at, RADIUS)

    maps = (
        fmap.to(device, dtype).contiguous(memory_format=torch.channels_last)
        for fmap in (fmap1, fmap2)
    )
    return Case(
        f"corr {batch} x {channels} x {height} x {width}, radius {RADIUS}, {LEVELS} levels",
        {
            "kernel": with_pyramid(corr_lookup),
            "twin": with_pyramid(corr_lookup_twin),
            "all pairs": all_pairs,
        },
        (*maps, coords.to(device)),
    )


def all_pairs(fmap1: Tensor, fmap2: Tensor, coords: Tensor) -> Tensor:
    """The lookup as RAFT computes it: every product first. [B, L*(2r+1)^2, H, W]."""
    batch, channels, height, width = fmap1.shape
    queries = (fmap1 / channels**0.5).flatten(2).mT  # [B, H*W, C]
    volume = (queries @ fmap2.flatten(2)).to(coords.dtype)  # [B, H*W, H*W]
    volume = volume.reshape(-1, 1, height, width)  # [B*H*W, 1, H, W]
    steps = torch.arange(-RADIUS, RADIUS + 1, device=coords.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # x slow, y fast
    at = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)  # [B*H*W, 1, 1, 2]
    found = []
    for level in range(LEVELS):
        sides = coords.new_tensor([volume.shape[3] - 1, volume.shape[2] - 1])
        grid = 2 * (at / 2**level + window) / sides - 1
        seen = F.grid_sample(volume, grid, align_corners=True)
        found.append(seen.reshape(batch, height, width, -1))
        if level < LEVELS - 1:
            volume = F.avg_pool2d(volume, 2)
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def forward(function: Callable, inputs: tuple[Tensor, ...]):
    with torch.no_grad():
        return function(*inputs)


def forward_backward(function: Callable, inputs: tuple[Tensor, ...]):
    """Gradients for all inputs, of a sum of the outputs with weights of one."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


PASSES = {"forward": forward, "forward + backward": forward_backward}


def compulsory(case: Case) -> dict[str, int]:
    """Bytes that each pass must read or write: inputs, output, and again with all gradients."""
    given = sum(tensor.nbytes for tensor in case.inputs)
    made = forward(case.peers["kernel"], case.inputs).nbytes
    return {"forward": given + made, "forward + backward": 3 * given + 2 * made}


def copy_speed(device: torch.device, rounds: int) -> float:
    """Bytes a second read and written by a large copy."""
    source = torch.ones(COPY // 4, device=device)
    target = torch.empty_like(source)

    def copy():
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * COPY / statistics.median(alternate({"copy": copy}, (), rounds)["copy"])


def seconds_of(case: Case, run: Callable, device: torch.device, rounds: int) -> dict[str, list]:
    """{peer: seconds of a call, each round}; fewer rounds where they would take too long."""
    calls = CALLS[device.type]

    def repeat(function: Callable) -> Callable:
        def measured():
            for _ in range(calls):
                run(function, case.inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return measured

    steps = {name: repeat(function) for name, function in case.peers.items()}
    once = sum(seconds[0] for seconds in alternate(steps, (), 1, warm_up=1).values())
    rounds = min(rounds, max(LEAST_ROUNDS, int(LONGEST / once)))
    found = alternate(steps, (), rounds, warm_up=0)
    return {name: [value / calls for value in seconds] for name, seconds in found.items()}


def report(case: Case, device: torch.device, rounds: int, speed: float | None):
    """Prints a row for each pass."""
    dtype = str(case.inputs[0].dtype).removeprefix("torch.")
    for name, run in PASSES.items():
        measured = seconds_of(case, run, device, rounds)
        seconds = {peer: statistics.median(values) for peer, values in measured.items()}
        cells = [str(len(measured["kernel"]))]
        cells += [f"{seconds[peer] * 1e3:.3f}" if peer in seconds else "-" for peer in PEERS]
        for peer in PEERS[1:]:
            ratio = seconds[peer] / seconds["kernel"] if peer in seconds else None
            cells.append(f"{ratio:.2f}" if ratio else "-")
        if speed:
            least = compulsory(case)[name] / speed
            cells += [f"{least * 1e3:.3f}", f"{least / seconds['kernel']:.0%}"]
        say("| " + " | ".join([case.name, dtype, name, *cells]) + " |")


def heading(names: list[str]):
    say("| " + " | ".join(names) + " |")
    say("|" + "---|" * len(names))


def measure_memory(peer: str, part: str, batch: int, shape: tuple, device: torch.device, answers):
    """Puts the most bytes above the inputs in a pass; for a process of its own, as what a process
    has freed is used again."""
    small = corr_case(1, (16, 16, shape[2]), device, torch.float32)
    case = corr_case(batch, shape, device, torch.float32)
    PASSES[part](small.peers[peer], small.inputs)  # what a first call loads is no one's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        memory.reset_peak()
        held = memory.status()[0]
    PASSES[part](case.peers[peer], case.inputs)
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory.status()[1]
    answers.put(most - held)


def report_memory(batch: int, device: torch.device):
    say("\nMost memory above the inputs, float32:\n")
    heading(["operator", "pass", *(f"{peer}, MB" for peer in PEERS), "all pairs / kernel"])
    for shape in CORR_SHAPES:
        case = corr_case(batch, shape, torch.device("cpu"), torch.float32)
        for name in PASSES:
            sizes = [
                memory.in_fresh_process(measure_memory, peer, name, batch, shape, device) / 1e6
                for peer in PEERS
            ]
            cells = [f"{size:.1f}" for size in sizes] + [f"{sizes[2] / sizes[0]:.1f}"]
            say("| " + " | ".join([case.name, name, *cells]) + " |")


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    if not library.serves(device):
        raise UserError(
            f"no kernels for {device.type}: {library.KERNELS.missing}; {library.COMMAND}"
        )
    cuda = device.type == "cuda"
    speed = copy_speed(device, args.rounds) if cuda else None
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    say(f"{device.type}, {where}, medians in milliseconds, taken in turn; ratios: peer / kernel")
    if speed:
        say(f"a copy moves {speed / 1e9:.0f} GB/s, read and written")
    names = ["operator", "format", "pass", "rounds", *PEERS, "twin ratio", "all pairs ratio"]
    heading([*names, "limit", "share of copy speed"] if cuda else names)
    for dtype in (torch.float32, torch.float16) if cuda else (torch.float32,):
        for batch in CUDA_BATCHES if cuda else (1,):
            for shape in DCNV3_SHAPES:
                report(dcnv3_case(batch, shape, device, dtype), device, args.rounds, speed)
        for shape in CORR_SHAPES:
            case = corr_case(args.corr_batch, shape, device, dtype)
            report(case, device, args.rounds, speed)
    report_memory(args.corr_batch, device)

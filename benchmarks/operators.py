"""Time native operators in turn with plain PyTorch, and measure their memory.

python benchmark.py operators
python benchmark.py operators --device cuda

DCNv3 against its twin; the correlation lookup against its twin and against all pairs (the volume of
all products, pooled, then sampled). "corr" is a pyramid or a volume and one lookup; RAFT looks 12
times or more into one volume, so that "lookup alone", to which pyramid and volume are given, is
what counts there. Medians of calls taken in turn: on the CPU a kernel's call comes right after a
peer's and finds the caches cold. On CUDA also in float16, and against the time in which the bytes
of all inputs and outputs could be copied, at the speed of a large copy in the same run. There a
graph of 100 calls is timed, so that neither Python's time nor that of a launch counts; but the twin
is called from Python, as it copies small tables from the CPU, which no graph can hold.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from cuda_ops import corr_lookup, corr_lookup_twin, corr_pyramid, dcnv3, dcnv3_twin, library
from utils import cli
from utils.errors import UserError
from utils.log import say

DCNV3_SHAPES = ((80, 80, 128, 8), (64, 64, 64, 4))  # height, width, channels, groups
CORR_SHAPES = ((96, 128, 128), (48, 64, 128))  # height, width, channels
RADIUS, LEVELS = 4, 4
CUDA_BATCHES = (1, 32)  # 1 fits into a GPU's cache, 32 does not
GRAPH, EAGER = 100, 5  # calls that are timed together on CUDA, in a graph and from Python
COPY = 1 << 28  # bytes
LEAST_ROUNDS, ROUNDS_IF_SLOW, SLOW = 11, 5, 1.0  # seconds of a peer
PEERS = ("kernel", "twin", "all pairs")


class Peer(NamedTuple):
    """Who computes an operator, and from what."""

    function: Callable
    inputs: tuple[Tensor, ...]


class Case(NamedTuple):
    """One operator at one shape."""

    name: str
    peers: dict[str, Peer]
    alone: bool  # nothing but the operator, whose bytes can be counted


def add_flags(parser: cli.Parser):
    parser.add_argument(
        "--rounds",
        type=cli.whole(LEAST_ROUNDS),
        default=21,
        metavar="N",
        help=f"measurements of each, in turn (21); {ROUNDS_IF_SLOW} of a peer that takes over "
        f"{SLOW:.0f} s",
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
    given = (inputs.to(device, dtype), offset.to(device), mask.to(device, dtype))
    numbers = (3, 1, 1, 1, group)
    return Case(
        f"dcnv3 {batch} x {height} x {width} x {channels}, {group} groups",
        {
            "kernel": Peer(lambda *tensors: dcnv3(*tensors, *numbers), given),
            "twin": Peer(lambda *tensors: dcnv3_twin(*tensors, *numbers), given),
        },
        alone=True,
    )


def corr_inputs(
    batch: int, shape: tuple, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """(fmap1, fmap2, coords): maps in channels-last memory, pixels that look 4 pixels away."""
    height, width, channels = shape
    rng = torch.Generator().manual_seed(0)
    maps = (
        fmap.to(device, dtype).contiguous(memory_format=torch.channels_last)
        for fmap in torch.randn(2, batch, channels, height, width, generator=rng)
    )
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    coords = torch.stack([x, y]) + 4 * torch.randn(batch, 2, height, width, generator=rng)
    return *maps, coords.to(device)


def corr_case(batch: int, shape: tuple, device: torch.device, dtype: torch.dtype) -> Case:
    """A pyramid or a volume, and one lookup."""
    inputs = corr_inputs(batch, shape, device, dtype)

    def with_pyramid(lookup: Callable) -> Peer:
        return Peer(
            lambda one, two, coords: lookup(one, corr_pyramid(two, LEVELS), coords, RADIUS), inputs
        )

    return Case(
        f"corr {_name(batch, shape)}",
        {
            "kernel": with_pyramid(corr_lookup),
            "twin": with_pyramid(corr_lookup_twin),
            "all pairs": Peer(all_pairs, inputs),
        },
        alone=False,
    )


def lookup_case(batch: int, shape: tuple, device: torch.device, dtype: torch.dtype) -> Case:
    """A lookup into a pyramid or a volume that is there."""
    fmap1, fmap2, coords = corr_inputs(batch, shape, device, dtype)
    maps = (fmap1, *corr_pyramid(fmap2, LEVELS), coords)

    def given_pyramid(lookup: Callable) -> Peer:
        return Peer(lambda one, *rest: lookup(one, list(rest[:-1]), rest[-1], RADIUS), maps)

    return Case(
        f"lookup alone {_name(batch, shape)}",
        {
            "kernel": given_pyramid(corr_lookup),
            "twin": given_pyramid(corr_lookup_twin),
            "all pairs": Peer(
                lambda *given: sampled(given[:-1], given[-1], RADIUS),
                (*volumes(fmap1, fmap2, LEVELS), coords),
            ),
        },
        alone=True,
    )


def _name(batch: int, shape: tuple) -> str:
    height, width, channels = shape
    return f"{batch} x {channels} x {height} x {width}, radius {RADIUS}, {LEVELS} levels"


def all_pairs(
    fmap1: Tensor, fmap2: Tensor, coords: Tensor, *, radius: int = RADIUS, levels: int = LEVELS
) -> Tensor:
    """The lookup as RAFT computes it, [B, L*(2r+1)^2, H, W]: every product first."""
    return sampled(volumes(fmap1, fmap2, levels), coords, radius)


def volumes(fmap1: Tensor, fmap2: Tensor, levels: int) -> Iterator[Tensor]:
    """Products of each pixel with all of the other map, then their averages, [B*H*W, 1, Hl, Wl];
    one by one, as who looks once need not keep them."""
    queries = (fmap1 / fmap1.shape[1] ** 0.5).flatten(2).mT  # [B, H*W, C]
    volume = queries @ fmap2.flatten(2)  # [B, H*W, H*W]
    volume = volume.to(torch.promote_types(fmap1.dtype, torch.float32))
    volume = volume.reshape(-1, 1, *fmap2.shape[2:])
    yield volume
    for _ in range(levels - 1):
        volume = F.avg_pool2d(volume, 2)
        yield volume


def sampled(pooled: Iterable[Tensor], coords: Tensor, radius: int) -> Tensor:
    """Each pixel's window at every level of the volume, [B, L*(2r+1)^2, H, W]."""
    batch, _, height, width = coords.shape
    steps = torch.arange(-radius, radius + 1, device=coords.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # x slow, y fast
    at = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)  # [B*H*W, 1, 1, 2]
    found = []
    for level, volume in enumerate(pooled):
        grid = _from_minus_one(at / 2**level + window, *volume.shape[2:])  # [B*H*W, R, R, 2]
        seen = F.grid_sample(volume, grid, align_corners=True)
        found.append(seen.reshape(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def _from_minus_one(at: Tensor, height: int, width: int) -> Tensor:
    """Places in pixels as grid_sample counts them, from -1 to 1."""
    x, y = at.unbind(dim=-1)
    return torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)


def forward(peer: Peer) -> Callable:
    def step() -> Tensor:
        with torch.no_grad():
            return peer.function(*peer.inputs)

    return step


def backward(peer: Peer) -> Callable:
    """The gradients for all inputs, again and again after one forward pass."""
    leaves = [tensor.detach().requires_grad_() for tensor in peer.inputs]
    output = peer.function(*leaves)
    ones = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, leaves, ones, retain_graph=True)


def forward_backward(peer: Peer) -> Callable:
    def step() -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in peer.inputs]
        output = peer.function(*leaves)
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    return step


PASSES = {"forward": forward, "backward": backward, "forward + backward": forward_backward}
TIMED = {"cpu": ("forward", "forward + backward"), "cuda": ("forward", "backward")}


def compulsory(case: Case) -> dict[str, int]:
    """Bytes that each pass must read or write: inputs and output, or inputs, the output's gradient
    and all gradients of inputs."""
    kernel = case.peers["kernel"]
    given, made = sum(tensor.nbytes for tensor in kernel.inputs), forward(kernel)().nbytes
    return {"forward": given + made, "backward": 2 * given + made}


def cpu_seconds(step: Callable) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def gpu_seconds(step: Callable) -> float:
    """From the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(step: Callable) -> Callable:
    """Replays GRAPH calls of a step as one CUDA graph. Whatever the step reads must be kept, and
    have been made on the current stream, where a backward pass runs too."""
    for _ in range(3):  # what a first call loads or makes cannot be captured
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(GRAPH):
            step()
    return graph.replay


def copy_speed(rounds: int) -> float:
    """Bytes a second read and written by a large copy on the GPU."""
    source = torch.ones(COPY // 4, device="cuda")
    target = torch.empty_like(source)
    copies = captured(lambda: target.copy_(source))
    copies()
    return 2 * COPY * GRAPH / statistics.median(gpu_seconds(copies) for _ in range(rounds))


def timed(name: str, step: Callable, device: torch.device) -> tuple[Callable, int]:
    """What is run between two looks at the clock, and how many calls it makes."""
    if device.type == "cpu":
        return step, 1
    if name == "twin":
        return lambda: [step() for _ in range(EAGER)], EAGER
    return captured(step), GRAPH


def seconds_of(case: Case, run: Callable, device: torch.device, rounds: int) -> dict[str, list]:
    """{peer: seconds of a call, each round}, taken in turn; slow peers in the first rounds only."""
    clock = gpu_seconds if device.type == "cuda" else cpu_seconds
    # Kept to the end: graphs read what belongs to the steps.
    steps = {name: run(peer) for name, peer in case.peers.items()}
    measured = {name: timed(name, step, device) for name, step in steps.items()}
    most = {}
    for name, (step, _) in measured.items():
        warm_up = clock(step)
        slow = name != "kernel" and warm_up > SLOW
        most[name] = min(rounds, ROUNDS_IF_SLOW) if slow else rounds
    seconds = {name: [] for name in measured}
    for turn in range(rounds):
        for name, (step, calls) in measured.items():
            if turn < most[name]:
                seconds[name].append(clock(step) / calls)
    return seconds


def report(case: Case, device: torch.device, rounds: int, speed: float | None):
    """Prints a row for each pass."""
    dtype = str(case.peers["kernel"].inputs[0].dtype).removeprefix("torch.")
    for name in TIMED[device.type]:
        measured = seconds_of(case, PASSES[name], device, rounds)
        seconds = {peer: statistics.median(values) for peer, values in measured.items()}
        low, _, high = statistics.quantiles(measured["kernel"], n=4)
        cells = [", ".join(str(len(values)) for values in measured.values())]
        cells.append(f"{seconds['kernel'] * 1e3:.3f} ({low * 1e3:.3f} to {high * 1e3:.3f})")
        for peer in PEERS[1:]:
            cells.append(f"{seconds[peer] * 1e3:.3f}" if peer in seconds else "-")
        for peer in PEERS[1:]:
            known = peer in seconds
            cells.append(f"{seconds[peer] / seconds['kernel']:.2f}" if known else "-")
        if speed and case.alone:
            least = compulsory(case)[name] / speed
            cells += [f"{least * 1e3:.3f}", f"{least / seconds['kernel']:.0%}"]
        elif speed:
            cells += ["-", "-"]
        say("| " + " | ".join([case.name, dtype, name, *cells]) + " |")


def heading(names: list[str]):
    say("| " + " | ".join(names) + " |")
    say("|" + "---|" * len(names))


def measure_memory(peer: str, part: str, batch: int, shape: tuple, device: torch.device, answers):
    """Puts the most bytes above the inputs in a pass; for a process of its own, as what a process
    has freed is used again."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    small = corr_case(1, (16, 16, shape[2]), device, torch.float32)
    case = corr_case(batch, shape, device, torch.float32)
    PASSES[part](small.peers[peer])()  # what a first call loads is no one's
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        memory.reset_peak()
        held = memory.status()[0]
    PASSES[part](case.peers[peer])()
    most = torch.cuda.max_memory_allocated() if cuda else memory.status()[1]
    answers.put(most - held)


def report_memory(batch: int, device: torch.device):
    say("\nMost memory above the inputs, float32:\n")
    heading(["operator", "pass", *(f"{peer}, MB" for peer in PEERS), "all pairs / kernel"])
    for shape in CORR_SHAPES:
        for name in ("forward", "forward + backward"):
            sizes = [
                memory.in_fresh_process(measure_memory, peer, name, batch, shape, device) / 1e6
                for peer in PEERS
            ]
            cells = [f"{size:.1f}" for size in sizes] + [f"{sizes[2] / sizes[0]:.1f}"]
            say("| " + " | ".join([f"corr {_name(batch, shape)}", name, *cells]) + " |")


def report_times(args: argparse.Namespace, device: torch.device):
    cuda = device.type == "cuda"
    speed = copy_speed(args.rounds) if cuda else None
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    say(f"{device.type}, {where}, medians in milliseconds, taken in turn; ratios: peer / kernel")
    if speed:
        say(f"a copy moves {speed / 1e9:.0f} GB/s, read and written")
    names = ["operator", "format", "pass", "rounds", "kernel (quartiles)", *PEERS[1:]]
    names += ["twin ratio", "all pairs ratio"]
    heading([*names, "limit", "share of copy speed"] if cuda else names)
    for dtype in (torch.float32, torch.float16) if cuda else (torch.float32,):
        for batch in CUDA_BATCHES if cuda else (1,):
            for shape in DCNV3_SHAPES:
                report(dcnv3_case(batch, shape, device, dtype), device, args.rounds, speed)
        for shape in CORR_SHAPES:
            for make in (corr_case, lookup_case):
                case = make(args.corr_batch, shape, device, dtype)
                report(case, device, args.rounds, speed)


def run(args: argparse.Namespace):
    device = cli.pick_device(args)
    if not library.serves(device):
        why = f": {library.KERNELS.missing}; {library.COMMAND}" if library.KERNELS.missing else ""
        raise UserError(f"no kernels for {device.type}{why}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream()):  # the default one cannot be captured
            report_times(args, device)
    else:
        report_times(args, device)
    report_memory(args.corr_batch, device)

"""The only loops of the project: `fit`, `train_one_epoch`, `evaluate`.

The engine is handed a model, loaders and a recipe; it knows steps, epochs, ranks and optimizers and
nothing of boxes or files. A training is a pure function of (recipe, data, seed): where it stands is
`Position`, and a checkpoint holds all that the next step needs, so that a run that was killed ends
with the same bits as one that was not.
"""

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import boxes, checkpoint, dist, optim
from utils.ema import Ema
from utils.errors import DataError, UserError
from utils.interrupt import Interrupted, StopFlag
from utils.log import RunLog, progress
from utils.precision import cpu_computes_bf16
from utils.stopwatch import Stopwatch

LOG_EVERY = 10  # updates between two records
FORETOLD_SECONDS = 60  # runs that take longer than this are told how long
SAVE_SECONDS = 600  # a checkpoint inside an epoch at least this often


@dataclass
class Position:
    """Where a training stands; `step` counts batches of this epoch, `update` updates of the run."""

    epoch: int = 0
    step: int = 0
    update: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    loss: float = math.inf  # the newest that was recorded


class Verdict:
    """Numbers of the last update that all ranks share, read without stopping the device.

    `post` starts the copy to the host; `read` returns what arrived: the same update's numbers on a
    CPU, the previous update's on a GPU, whose queue is never drained for them.
    """

    def __init__(self, device: torch.device):
        self._late = device.type == "cuda"
        self._posted = self._event = None

    def post(self, numbers: Tensor):
        earlier = self.read() if self._late else None
        if self._late:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._posted = host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            return earlier
        return numbers.tolist()

    def read(self) -> list[float] | None:
        if self._posted is None:
            return None
        self._event.synchronize()
        numbers, self._posted = self._posted.tolist(), None
        return numbers


def amp_dtype(device: torch.device, wanted: bool | None) -> torch.dtype | None:
    """bfloat16 where the processor computes in it, float16 on other GPUs, else None (float32)."""
    if wanted is False:
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if device.type == "cpu" and (wanted or cpu_computes_bf16()):
        return torch.bfloat16
    return None


def _moved(value, device: torch.device):
    """The tensors in tuples, lists and dicts on the device; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, dict):
        return {name: _moved(entry, device) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(entry, device) for entry in value)
    return value


def begin_all(new_video: Tensor) -> bool:
    """Whether the first frames [B] or [B, T] of all rows are of new videos. To be asked while they
    are on the host; a model that need not look back at all takes less time."""
    return bool(new_video.reshape(len(new_video), -1)[:, 0].all())


class Trainer:
    """A model with its optimizer, averages and position: what a checkpoint saves and restores."""

    def __init__(self, model: nn.Module, recipe, *, device, amp: bool | None, per_epoch: list[int]):
        self.model = model.to(device, memory_format=torch.channels_last)
        self.recipe, self.device = recipe, device
        self.dtype = amp_dtype(device, amp)
        # A frozen part keeps its norms' statistics as well.
        self.frozen = [model.get_submodule(part) for part, share in recipe.part_lr if not share]
        for part in self.frozen:
            part.requires_grad_(False)
        self.wide = torch.float32 if device.type == "mps" else torch.float64  # which MPS has not
        updates = [math.ceil(batches / recipe.accumulate) for batches in per_epoch]
        self.epochs = len(per_epoch)
        batch = recipe.batch_size * recipe.accumulate * dist.world_size()
        lr, self.lr_text = optim.scaled_lr(recipe.lr, recipe.base_batch, batch, recipe.optimizer)
        self.schedule = optim.schedule_of(recipe, updates, lr)
        self.optimizer = optim.build_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = None
        if recipe.ema_decay:
            self.ema = Ema(self.model, decay=recipe.ema_decay, ramp=recipe.ema_ramp)
        self.position = Position()
        # What a video model carries from one step to the next. It is not saved: clips begin anew.
        self.state = None
        self.sums: dict[str, Tensor] = {}  # of the losses since the last record, with their count
        self.left_out = torch.zeros((), device=device)  # 1: the last gradient was not finite
        self.norms = [
            (module, module.momentum)
            for module in self.model.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.wrapped = self.model
        if dist.is_distributed():
            ids = [device.index] if device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(
                self.model, device_ids=ids, gradient_as_bucket_view=True
            )

    @property
    def evaluated(self) -> nn.Module:
        """The model whose numbers count: the moving average where there is one."""
        return self.ema.model if self.ema else self.model

    @property
    def precision(self) -> str:
        return f"mixed precision, {self.dtype}" if self.dtype else "float32"

    def state_dict(self) -> dict:
        cuda = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "sums": self.sums,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            },
        }

    def load_state_dict(self, saved: dict):
        self.model.load_state_dict(saved["model"])
        if self.ema and saved["ema"]:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:  # empty where the run used no float16 before
            self.scaler.load_state_dict(saved["scaler"])
        self.position = Position(**saved["position"])
        self.sums = {name: total.to(self.device) for name, total in saved["sums"].items()}
        torch.set_rng_state(saved["rng"]["cpu"].cpu())
        if self.device.type == "cuda" and saved["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(saved["rng"]["cuda"].cpu(), self.device)

    def train(self):
        """The model in training mode, what is frozen apart."""
        self.wrapped.train()
        for part in self.frozen:
            part.eval()

    def prepare_update(self) -> float:
        """Sets what the schedule says of the update that comes next; returns the learning rate."""
        for norm, momentum in self.norms:
            # Running statistics start as plain means (of a clip's frames the last counts most):
            # their untrained values are gone at once.
            norm.momentum = max(momentum, 1 / (self.position.update + 1))
        lr = optim.lr_at(self.position.update, **self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        return lr

    def note(self, losses: dict):
        """Adds numbers to the sums behind the next record."""
        for name, value in losses.items():
            value = value.to(self.wide)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def backward(self, images: Tensor, targets: dict, weights: dict, *, sync: bool) -> dict:
        """Adds one batch's gradients, times what its loss was divided by."""
        if self.state is not None and begin_all(targets["new_video"]):
            self.state = None
        images, targets = _moved((images, targets), self.device)
        alone = self.wrapped is self.model
        with contextlib.nullcontext() if sync or alone else self.wrapped.no_sync():
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                losses, self.state = self.wrapped(images, targets, self.state, weights)
            self.scaler.scale(losses["loss"] * losses["divisor"].clamp(min=1)).backward()
        return {name: value.detach() for name, value in losses.items()}

    def update(self, divisor: Tensor, bad: Tensor):
        """One optimizer step, left out on the device where `bad` is 1 or the gradient not finite.

        Gradients arrive as sums over all batches and ranks and are divided once, by the sum of
        what each loss was divided by (YOLOX: the positives): several small batches, or several
        ranks, give what one large batch would. (Of clips nearly: their loss is a mean of frames.)
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, dist.world_size() / divisor.clamp(min=1))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.recipe.grad_clip:
            nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.grad_clip, norm)
        if not self.scaler.is_enabled():  # a scaler leaves out such steps itself, and is meant to
            bad = self.left_out = torch.maximum(bad, (~norm.isfinite()).float())
            self.optimizer.found_inf = bad  # the fused step leaves the weights alone where it is 1
        self.note({"grad_norm": norm, "updates": torch.ones_like(norm)})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, skip=bad)


def _record(trainer: Trainer, log: RunLog, lr: float, size: list[int]) -> dict:
    """Writes the means since the last record, over all ranks, and starts anew."""
    names = list(trainer.sums)
    sums = dist.all_sum(torch.stack([trainer.sums[name] for name in names])).tolist()
    means = dict(zip(names, sums, strict=True))
    batches, updates = means.pop("batches"), means.pop("updates")
    norm = means.pop("grad_norm") / updates
    trainer.sums = {}
    at = {"mode": "train", "epoch": trainer.position.epoch + 1, "step": trainer.position.update}
    values = {name: round(value / batches, 6) for name, value in means.items()}
    values["grad_norm"] = round(norm, 6) if math.isfinite(norm) else None  # float16's first steps
    trainer.position.loss = values["loss"]
    log.record({**at, "lr": round(lr, 9), "size": size, **values})
    log.scalars(trainer.position.update, {"lr": lr, **values, "grad_norm": norm})
    return values


def _not_finite(trainer: Trainer, batches, lr: float) -> UserError:
    """The sentence for a loss that is not finite, from the last batches' losses and files."""
    found = []
    for losses, files in batches:
        terms = [name for name, value in losses.items() if not math.isfinite(float(value))]
        if terms:
            found.append(f"{', '.join(terms)} of {', '.join(_names(files))}")
    if not found:
        names = ", ".join(name for _, files in batches for name in _names(files))
        found = [f"the gradient here, or a loss on another process, near {names}"]
    return UserError(
        f"the loss is not finite at update {trainer.position.update}, epoch "
        f"{trainer.position.epoch + 1}, lr {lr:g}: {'; '.join(found)}. "
        "Usual causes: wrong boxes, an lr too high for the batch (--lr), float16 (--no_amp). The "
        "last checkpoint is from before"
    )


def _names(files: list) -> list[str]:
    """The files of a batch; of a clip the first and the last."""
    return [f"{row[0]} to {row[-1]}" if isinstance(row, list) else str(row) for row in files]


def train_one_epoch(trainer: Trainer, loader, weights: dict, *, log: RunLog, stop: StopFlag, save):
    """The rest of the epoch from `trainer.position` on; raises Interrupted after saving."""
    position, accumulate = trainer.position, trainer.recipe.accumulate
    trainer.train()
    verdict, recent = Verdict(trainer.device), deque(maxlen=2 * accumulate)
    zero = torch.zeros((), device=trainer.device)
    divisor, bad, group, border = zero, zero, [], position.step
    lr, clock, saved_at = trainer.prepare_update(), Stopwatch(), time.monotonic()
    title = f"epoch {position.epoch + 1} of {trainer.epochs}"
    bar = log.progress(loader.per_epoch, title, done=position.step)
    try:
        for images, targets in clock.timed(loader.batches(position.epoch, first=position.step)):
            position.step += 1
            last = position.step % accumulate == 0 or position.step == loader.per_epoch
            losses = trainer.backward(images, targets, weights, sync=last)
            recent.append((losses, targets["files"]))
            divisor = divisor + losses.pop("divisor")
            group.append({**losses, "batches": torch.ones_like(zero)})
            clock.images += images.shape[:-3].numel()  # of clips all frames
            bad = torch.maximum(bad, (~losses["loss"].isfinite()).float())
            bar.advance()
            if not last:
                continue
            # One exchange an update: what was counted, and what all ranks must do alike.
            wishes = [stop.signum > 0, time.monotonic() - saved_at > SAVE_SECONDS]
            wishes = torch.tensor(wishes, dtype=torch.float32).to(trainer.device, non_blocking=True)
            bad = torch.maximum(bad, trainer.left_out)
            shared = dist.all_sum(torch.cat([torch.stack([divisor, bad]), wishes]))
            _, any_bad, stop_wished, save_wished = verdict.post(shared) or (0, 0, 0, 0)
            if any_bad:
                raise _not_finite(trainer, recent, lr)
            trainer.update(shared[0], shared[1].clamp(max=1))
            position.update += 1
            for losses in group:
                trainer.note(losses)
            divisor, bad, group, border = zero, zero, [], position.step
            if position.update % LOG_EVERY == 0 or position.step == loader.per_epoch:
                values = _record(trainer, log, lr, list(images.shape[-2:]))
                took = clock.lap(trainer.device)
                log.timing({"epoch": position.epoch + 1, "step": position.update, **took})
                bar.note(loss=values["loss"], lr=lr)
            if stop_wished or save_wished:
                _check_unread(trainer, verdict, recent, lr)
                save()
                saved_at = time.monotonic()
            if stop_wished:
                raise Interrupted(stop.signum or signal.SIGTERM)
            lr = trainer.prepare_update()
    except DataError:  # what was learnt up to here is not lost
        position.step = border
        _check_unread(trainer, verdict, recent, lr)
        save()
        raise
    bar.close()
    _check_unread(trainer, verdict, recent, lr)


def _check_unread(trainer: Trainer, verdict: Verdict, recent, lr: float):
    """Reads what is still on its way, so that no checkpoint holds weights nobody checked."""
    seen = verdict.read()
    if seen and seen[1] > 0 or trainer.left_out > 0:
        raise _not_finite(trainer, recent, lr)


@contextlib.contextmanager
def _memory_errors(recipe):
    """Turns an allocation that failed into the sentence that says what to change."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        flags = "--min_size and --max_size" if recipe.max_size else "--img_size"
        if any(stage.clip.length > 1 for stage in recipe.stages):
            flags = f"--split_batch, --split_length or {flags}"
        raise UserError(
            f"out of memory with {recipe.batch_size} images of {recipe.size_text} pixels a batch: "
            f"lower --batch_size (and raise --accumulate), or {flags} ({text.splitlines()[0]})"
        ) from error


@torch.no_grad()
def evaluate(model: nn.Module, loader, evaluator, *, device, stop: StopFlag | None = None):
    """The evaluator, with the detections of `model` on the loader's images, over all ranks. For a
    model that remembers, the loader streams videos: the rows that go on are a batch's first."""
    assert loader.streams or not model.remembers
    model.eval()
    state = None
    batches = progress(loader.batches(0), "evaluating", loader.per_epoch, shown=dist.is_main())
    for images, targets in batches:
        names = ("size", "ratio", "new_video")
        sizes, ratios, new_video = (targets[n].to(device, non_blocking=True) for n in names)
        images = images.to(device, non_blocking=True)
        detections, state = model.step(images, sizes, state, new_video)
        detections = [boxes.clipped(*pair) for pair in zip(detections, sizes, strict=True)]
        for found, ratio in zip(detections, ratios.repeat(1, 2), strict=True):
            found["boxes"] = found["boxes"] / ratio
        evaluator.add(targets["image_id"].tolist(), detections)
        if stop and stop.signum and not dist.is_distributed():
            raise Interrupted(stop.signum)
    evaluator.gather()
    return evaluator


def fit(
    model: nn.Module,
    recipe,
    *,
    loaders: list,
    evaluation: Callable,
    folder: Path,
    log: RunLog,
    device: torch.device,
    amp: bool | None = None,
    saved: dict | None = None,
    extra: dict | None = None,
) -> Position:
    """Trains `model` through the recipe's stages (one loader each); keeps last.pth and best.pth.

    `evaluation(model, stop)` gives a filled evaluator, whose `main` are the names of its numbers
    that are printed; best.pth has the highest of the first. `saved` is a checkpoint to go on from;
    `extra` (recipe, class names) is stored in each one.
    """
    per_epoch = [
        loader.per_epoch
        for stage, loader in zip(recipe.stages, loaders, strict=True)
        for _ in range(stage.epochs)
    ]
    trainer = Trainer(model, recipe, device=device, amp=amp, per_epoch=per_epoch)
    position = trainer.position
    if saved:
        trainer.load_state_dict(saved)
        position = trainer.position
    tell = log.show if saved else log.say
    tell(trainer.lr_text)
    tell(f"{trainer.schedule['total']} updates, {len(per_epoch)} epochs; {trainer.precision}")

    def save(finished: bool = False):
        if dist.is_main():
            content = {**trainer.state_dict(), **(extra or {}), "log": log.position()}
            checkpoint.save(folder / "last.pth", {**content, "finished": finished})

    if not saved:
        save()
    with StopFlag() as stop, _memory_errors(recipe):
        first, foretold = 0, False
        for number, (stage, loader) in enumerate(zip(recipe.stages, loaders, strict=True)):
            until = first + stage.epochs
            if position.epoch < until:
                begins = (position.epoch, position.step) == (first, 0)
                tell = log.say if begins else log.show
                tell(f"stage {number + 1}: epochs {first + 1} to {until}, {stage.text}")
                trainer.state = None if begins else trainer.state
            for _ in range(max(first, position.epoch), until):
                weights, whole, start = dict(stage.weights), position.step == 0, time.monotonic()
                train_one_epoch(trainer, loader, weights, log=log, stop=stop, save=save)
                if whole and not foretold:
                    _foretell(trainer, time.monotonic() - start, log)
                    foretold = True
                due = (position.epoch + 1) % recipe.eval_every == 0
                if due or position.epoch + 1 == len(per_epoch):
                    save()
                    best_of = _evaluate_and_keep(
                        trainer, evaluation, folder, log, stop, extra or {}
                    )
                position.epoch, position.step = position.epoch + 1, 0
                save(finished=position.epoch == len(per_epoch))
                waited = position.epoch - max(position.best_epoch, 0)
                if due and recipe.patience and waited >= recipe.patience:
                    log.say(f"no better {best_of} for {recipe.patience} epochs: the run ends here")
                    save(finished=True)
                    return position
            loader.close()
            first = until
    return position


def _foretell(trainer: Trainer, seconds: float, log: RunLog):
    """Says how long the run will take, once an epoch has been timed."""
    left = trainer.epochs - trainer.position.epoch - 1
    if left * seconds > FORETOLD_SECONDS:
        minutes = left * seconds / 60
        span = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"
        log.show(f"an epoch takes {seconds:.0f} s: about {span} for the other {left} (--epochs)")


def _evaluate_and_keep(trainer, evaluation, folder, log, stop, extra) -> str:
    """Evaluates, records the numbers, and writes best.pth if the first of the main ones is the best
    so far; returns its name."""
    position = trainer.position
    dist.broadcast(list(trainer.evaluated.buffers()))  # each rank averaged its own statistics
    evaluator = evaluation(trainer.evaluated, stop)
    metrics, first = evaluator.compute(), evaluator.main[0]
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    at = {"mode": "val", "epoch": position.epoch + 1, "step": position.update}
    log.record({**at, **{name: round(value, 6) for name, value in numbers.items()}})
    log.scalars(position.update, numbers)
    better = numbers[first] > position.best
    if better:
        position.best, position.best_epoch = numbers[first], position.epoch + 1
        if dist.is_main():
            content = {"model": trainer.evaluated.state_dict(), "epoch": position.epoch + 1}
            checkpoint.save(folder / "best.pth", {**content, "metrics": numbers, **extra})
    shown = ", ".join(f"{name} {numbers[name]:.4f}" for name in evaluator.main)
    log.say(
        f"epoch {position.epoch + 1}: loss {position.loss:.4g}, {shown}"
        + (" (best so far)" if better else f" (best {position.best:.4f} at {position.best_epoch})")
    )
    return first

"""The flags that every training has, whatever it trains, and what they change in its recipe."""

from dataclasses import replace

from utils import cli


def add_training_flags(group):
    """Adds --batch_size, --epochs, --optimizer and the like; None: the recipe decides."""
    group.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), metavar="N", help="images per process"
    )
    group.add_argument("--accumulate", type=cli.whole(1), metavar="N", help="batches per update")
    group.add_argument("--epochs", type=cli.whole(1), metavar="N", help="epochs in all")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), help="sgd or adamw")
    group.add_argument("--lr", type=cli.real(0), help="learning rate at the recipe's base batch")
    group.add_argument("--warmup_epochs", type=cli.real(0), metavar="N", help="epochs of warm-up")
    group.add_argument(
        "--grad_clip", type=cli.real(0), metavar="NORM", help="0: gradients not clipped"
    )
    cli.add_switch(group, "amp", "mixed precision (where the processor computes in it)")
    cli.add_switch(group, "ema", "moving average of the weights")
    group.add_argument("--seed", type=cli.whole(0), help="same seed, same training")
    group.add_argument(
        "--eval_epoch", type=cli.whole(1), metavar="N", help="evaluate every N epochs"
    )
    group.add_argument(
        "--patience",
        type=cli.whole(0),
        metavar="N",
        help="end after N epochs without a better result (0: never)",
    )


def add_running_flags(group, save_folder: str):
    """Adds what says where a training runs, where its folder lies, and --resume."""
    cli.add_device_flags(group)
    group.add_argument(
        "--num_workers", type=cli.whole(0), metavar="N", help="processes that read images"
    )
    group.add_argument("--cache", action="store_true", help="keep all decoded images in memory")
    group.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="go on: a run's folder (newest)"
    )
    group.add_argument(
        "--save_folder", default=save_folder, metavar="DIR", help=f"parent of runs ({save_folder})"
    )
    group.add_argument("--tfboard", action="store_true", help="TensorBoard files beside the log")


def with_training_flags(recipe, args: cli.Arguments, ema_decay: float):
    """(recipe, names of the fields that were given): the recipe with what these flags say; its
    batch size and its epochs, which change more than themselves, are left to the caller.
    `ema_decay` is that of --ema where the recipe has none."""
    averages = {None: None, True: recipe.ema_decay or ema_decay, False: 0.0}
    changes = {
        "accumulate": args.accumulate,
        "optimizer": args.optimizer,
        "lr": args.lr,
        "grad_clip": args.grad_clip,
        "seed": args.seed,
        "eval_every": args.eval_epoch,
        "patience": args.patience,
        "ema_decay": averages[args.ema],
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    recipe = replace(recipe, **changes)
    if args.warmup_epochs is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, warmup=args.warmup_epochs))
    return recipe, frozenset(changes)


def flag_of(name: str, value) -> list[str]:
    """A flag as it stands on a command line; nothing for None."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]

"""The options of families of models as flags: fields with help texts, declared once."""

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import get_origin, get_type_hints

from utils import cli
from utils.errors import UserError

METAVARS = {
    **{int: "N", float: "X", str: "NAME"},
    **{tuple[int, ...]: "N", tuple[tuple[int, int], ...]: "N:N"},
}


class _Joined(argparse.Action):
    """Several values, some of which may be several in one, as a tuple."""

    def __call__(self, parser, namespace, values, option_string=None):
        parts = [value if isinstance(value, tuple) else (value,) for value in values]
        setattr(namespace, self.dest, sum(parts, ()))


def add(parser: cli.Parser, family: str, kinds: Iterable[type], plain: str):
    """One flag for each field of a family's options; None when not given: the recipe decides. The
    defaults that the help shows are those of the model `plain`."""
    group = parser.add_argument_group(f"{family} (default: what the recipe says; here {plain}'s)")
    for options in kinds:
        types = get_type_hints(options)
        for field in fields(options):
            name, kind = field.name, types[field.name]
            choices = field.metadata.get("choices") or None
            shared = parser.flags().get(f"--{name}")
            if shared is not None:  # another family has it too: one flag serves both
                if choices:
                    shared.choices = tuple(dict.fromkeys((*shared.choices, *choices)))
                continue
            text = f"{field.metadata['help']} ({cli.typed(field.default)})"
            if kind is bool:
                cli.add_switch(group, name, text)
                continue
            shape = {"choices": choices} if choices else {"metavar": METAVARS[kind]}
            if get_origin(kind) is tuple:
                shape |= {"nargs": "+", "action": _Joined}
            kind = _within(kind, field.metadata.get("least"), field.metadata.get("most"))
            group.add_argument(f"--{name}", type=kind, help=text, **shape)


def _within(kind: type, least: float | None, most: float | None) -> Callable:
    """The type of an option's flag; of a number with bounds one that checks them."""
    if kind == tuple[int, ...]:
        return numbers(1 if least is None else least)
    if kind == tuple[tuple[int, int], ...]:
        return pair
    if get_origin(kind) is tuple:
        return str
    if least is None:
        return kind
    return cli.whole(least) if kind is int else cli.real(least, math.inf if most is None else most)


def numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    """The type of a flag: whole numbers of `least` or more, also several with commas between."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if not all(part.isdigit() and int(part) >= least for part in parts):
            raise argparse.ArgumentTypeError(
                f"{text} is not a list of whole numbers of {least} or more, as in 2,4,6,8 or 2 4 6"
            )
        return tuple(int(part) for part in parts)

    return parse


def pair(text: str) -> tuple[tuple[int, int]]:
    """The type of a flag: two whole numbers of 1 or more with a colon between, as in 4:6."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not two whole numbers of 1 or more, as in 4:6")
    return ((int(parts[0]), int(parts[1])),)


def given(args: cli.Arguments, family: str, families: dict[str, Iterable[type]]) -> dict:
    """The family's options that were given; those of another family only, and values that only
    others take, are a UserError."""
    names = {name: _field_names(kinds) for name, kinds in families.items()}
    for other, theirs in names.items():
        for name in sorted(theirs - names[family]):
            if cli.was_given(args, name):
                raise UserError(
                    f"--{name} is an option of {other}, and this model is of {family}; "
                    f"leave it out or choose a {other} model with -v"
                )
    own = {name: value for name, value in vars(args).items() if name in names[family] & args.given}
    for field in (field for options in families[family] for field in fields(options)):
        choices, values = field.metadata.get("choices"), own.get(field.name, ())
        for value in values if isinstance(values, tuple) else (values,):
            if choices and value not in choices:
                raise UserError(
                    f"--{field.name} {value} is not for models of {family}: there it can be "
                    f"{', '.join(map(str, choices))}"
                )
    return own


def _field_names(kinds: Iterable[type]) -> set[str]:
    return {field.name for options in kinds for field in fields(options)}

"""Options that several commands share: added together, and handed to the command as one argument."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

__all__ = ["Decorator", "gather", "in_order"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def in_order(*options: Decorator) -> Decorator:
    """Add options to a command in the order in which its help lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def gather(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Add options to a command, which gets the argument `name` in their place.

    Args:
        name: The argument.
        make: Makes its value of those of the options; its parameters are named like these, with an underscore
            behind what is a word of the language. One that has a default may belong to an option that only
            some of the commands have.
        options: The options, in the order in which the help lists them.
    """
    taken = {parameter.rstrip("_"): parameter for parameter in signature(make).parameters}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_one(**given: Any) -> Any:
            values = {taken[option]: given.pop(option) for option in taken if option in given}
            return command(**given, **{name: make(**values)})

        return in_order(*options)(with_one)

    return decorate

"""Options from files and the environment: what is known, what is wrong, and where each value comes from.

A flag goes before the environment, this before the project's file ``dwcp.toml`` in the working directory,
this before the user's own file, and this before the default. In a file, each command has a table, and each of
its options a key of the same name without the dashes::

    [send]
    bwlimit = "500Mbps"

    [delta.diff]
    codec = "lz4"
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from dwcp_fast.errors import ConfigError
from dwcp_fast.rollout.flags import FILE_VARIABLE, FLAGS_VARIABLE, NODE_VARIABLE
from dwcp_fast.rollout.outcomes import OUTCOMES_VARIABLE
from dwcp_fast.state import STATE_VARIABLE

__all__ = [
    "PROJECT_FILE",
    "Setting",
    "default_map",
    "environment_faults",
    "faults",
    "members_of",
    "settings",
    "user_file",
]

PROJECT_FILE: Final = Path("dwcp.toml")
MAX_FILE_BYTES: Final = 1 << 20
PREFIX: Final = "DWCP"
KNOWN_VARIABLES: Final = (FILE_VARIABLE, FLAGS_VARIABLE, NODE_VARIABLE, OUTCOMES_VARIABLE, STATE_VARIABLE)
"""Variables that belong to no single command."""
PAIRING_SCHEME: Final = "dwcp://"

ONLY_BY_HAND: Final = frozenset({"insecure", "allow-v1", "protocol"})
"""Options that lower security: they are said each time."""
ONLY_BY_OWNER: Final = frozenset({"to", "cert", "key", "ca", "server-name", "flags", "outcomes"})
"""Options that say who the peer is, or which fleet is moved and by what it is judged: a directory, which
somebody else may have filled, must not."""

Path_ = tuple[str, ...]
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of one command, as it would be used if the command line does not say otherwise.

    Attributes:
        command: The command, such as ``"delta diff"``.
        option: The option without its dashes.
        value: The value as it was written; None for an option that is not given.
        origin: A file, a variable of the environment, or ``"default"``.
    """

    command: str
    option: str
    value: Any
    origin: str


def user_file() -> Path:
    """Give the file of this user's own settings; it need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "dwcp" / "config.toml"


def read_files() -> list[tuple[Path, Table]]:
    """Read the files that there are, the one that goes first at the end.

    Raises:
        ConfigError: One is too long, or no TOML.
        OSError: One cannot be read.
    """
    return [(path, read_file(path)) for path in (user_file(), PROJECT_FILE) if path.exists()]


def read_file(path: Path) -> Table:
    """Read a file; see `read_files`."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    # Imported late: most have no such file.
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc


def default_map(program: click.Group) -> Table:
    """Give what the files say, in the words of click.

    Raises:
        ConfigError: Something in them is not known, or no value of its option; or the environment has an
            option that its command does not.
        OSError: A file cannot be read.
    """
    merged: Table = {}
    for _, table in known_files(program):
        merge(merged, table)
    for fault in environment_faults(program):
        raise fault
    return merged


def known_files(program: click.Group) -> list[tuple[str, Table]]:
    """Give what the files say, by their names, in the words of click; the one that goes first at the end.

    Raises:
        ConfigError: One cannot be used.
        OSError: One cannot be read.
    """
    files = [(str(path), table) for path, table in read_files()]
    for where, table in files:
        for fault in table_faults(program, table, where):
            raise fault
    return [(where, named_as_parameters(program, table)) for where, table in files]


def faults(program: click.Group) -> list[ConfigError | OSError]:
    """Find all that is wrong in the files and the environment."""
    found: list[ConfigError | OSError] = []
    for path in (user_file(), PROJECT_FILE):
        try:
            table = read_file(path) if path.exists() else {}
        except (ConfigError, OSError) as fault:
            found.append(fault)
            continue
        found += table_faults(program, table, str(path))
    return [*found, *environment_faults(program, values=True)]


def table_faults(command: click.Command, table: Table, where: str, path: Path_ = ()) -> Iterator[ConfigError]:
    """Find what is wrong in a table of a file, whether or not the command is ever run."""
    members = members_of(command)
    known = {key_of(option): option for option in options_of(command)}
    for key, value in table.items():
        name = " ".join([*path, key])
        if key in members:
            if isinstance(value, dict):
                yield from table_faults(members[key], value, where, (*path, key))
            else:
                yield ConfigError(f"{where}: {name} is {value!r}: it must be a table")
        elif key not in known:
            what = f"an option of {' '.join(path)}" if path and not members else "a command"
            yield unknown(f"{where}: {name} is not {what}", key, [*members, *known])
        elif key in ONLY_BY_HAND:
            yield ConfigError(
                f"{where}: {name} cannot be set in a file",
                hint=f"say --{key}, which lowers security, each time",
            )
        elif key in ONLY_BY_OWNER and where == str(PROJECT_FILE):
            yield ConfigError(
                f"{where}: {name} cannot be set in the file of a project", hint=f"set it in {user_file()}"
            )
        else:
            fault = value_fault(command, known[key], value, path)
            if fault is not None:
                yield ConfigError(f"{where}: {name} is {shown(value)!r}: {fault}")


def environment_faults(program: click.Group, *, values: bool = False) -> list[ConfigError]:
    """Find variables that mean to be an option of a command and are none.

    Args:
        program: The program.
        values: Whether the values of those that are known are looked at too.
    """
    variables = [
        name for name in sorted(os.environ) if name.startswith(f"{PREFIX}_") and name not in KNOWN_VARIABLES
    ]
    if not variables:
        # Spares the import of every command.
        return []
    leaves = dict(leaves_of(program))
    known = {
        variable_of(path, option): (path, option)
        for path, leaf in leaves.items()
        for option in options_of(leaf)
    }
    prefixes = tuple(f"{'_'.join([PREFIX, *map(variable_word, path)])}_" for path in leaves)
    found = []
    for variable in variables:
        if variable in known:
            path, option = known[variable]
            fault = None
            if values:
                raw = option.value_from_envvar(context_of(leaves[path], path))
                fault = value_fault(leaves[path], option, raw, path)
            if fault is not None:
                found.append(ConfigError(f"{variable} is {shown(os.environ[variable])!r}: {fault}"))
        elif variable.startswith(prefixes):
            found.append(unknown(f"{variable} is no option of a command", variable, known))
        elif values:
            # It may be for another program, unless it looks very much like one of ours.
            close = difflib.get_close_matches(variable, [*known, *KNOWN_VARIABLES], 1, 0.85)
            found += [unknown(f"{variable} is not known", variable, close)] if close else []
    return found


def settings(program: click.Group) -> Iterator[Setting]:
    """Tell of every option of every command which value it has and where that comes from.

    Raises:
        ConfigError: A file cannot be used.
        OSError: A file cannot be read.
    """
    files = known_files(program)
    for path, leaf in leaves_of(program):
        for option in options_of(leaf):
            value, origin = plain_default(option), "default"
            for where, table in files:
                found = lookup(table, path)
                if option.name in found:
                    value, origin = found[option.name], where
            for variable in (variable_of(path, option), *shared_variables(option)):
                if os.environ.get(variable):
                    value, origin = os.environ[variable], variable
            yield Setting(" ".join(path), key_of(option), shown(value), origin)


def leaves_of(command: click.Command, path: Path_ = ()) -> Iterator[tuple[Path_, click.Command]]:
    """Give every command that does something by itself, with the words that call it."""
    if isinstance(command, click.Group):
        if command.invoke_without_command and path:
            yield path, command
        for name, member in members_of(command).items():
            yield from leaves_of(member, (*path, name))
    else:
        yield path, command


def members_of(command: click.Command) -> dict[str, click.Command]:
    """Give the commands of a group by their names; a command has none."""
    if not isinstance(command, click.Group):
        return {}
    ctx = click.Context(command)
    found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return {name: member for name, member in found.items() if member is not None}


def options_of(command: click.Command) -> list[click.Option]:
    """Give the options of a command."""
    return [option for option in command.params if isinstance(option, click.Option)]


def key_of(option: click.Option) -> str:
    """Give the name of an option in a file: its longest, without the dashes."""
    return max(option.opts, key=len).lstrip("-")


def variable_word(word: str) -> str:
    """Write a word as the environment has it."""
    return word.replace("-", "_").upper()


def variable_of(path: Path_, option: click.Option) -> str:
    """Give the variable of an option."""
    return "_".join([PREFIX, *map(variable_word, path), variable_word(option.name or "")])


def shared_variables(option: click.Option) -> list[str]:
    """Give the variables that an option has in common with others; they go before its own."""
    named = option.envvar
    return [named] if isinstance(named, str) else list(named or ())


def context_of(command: click.Command, path: Path_) -> click.Context:
    """Make a context in which a value can be looked at, and nothing is run."""
    prefix = "_".join([PREFIX, *map(variable_word, path)])
    return click.Context(command, info_name=" ".join(["dwcp", *path]), auto_envvar_prefix=prefix)


def value_fault(command: click.Command, option: click.Option, value: Any, path: Path_) -> str | None:
    """Say what is wrong with a value, None if nothing is."""
    if option.is_bool_flag and not isinstance(value, bool | str):
        return "it must be true or false"
    if isinstance(value, dict):
        return "it must be no table"
    if isinstance(value, bool) and not option.is_flag:
        return "it must be a text or a number"
    if isinstance(value, list) and not option.multiple:
        return "it must be one value, not a list"
    if option.multiple and not isinstance(value, list | tuple):
        return "it must be a list"
    try:
        option.process_value(context_of(command, path), value)
    except click.ClickException as error:
        return error.message
    except (ConfigError, ValueError, TypeError) as error:
        return str(error)
    return None


def named_as_parameters(command: click.Command, table: Table) -> Table:
    """Give a table of a file with the names that click has for the options."""
    members = members_of(command)
    known = {key_of(option): option.name or "" for option in options_of(command)}
    inner = {key: named_as_parameters(members[key], table[key]) for key in table if key in members}
    return inner | {known[key]: value for key, value in table.items() if key in known}


def merge(into: Table, table: Table) -> None:
    """Put one table over another: what it does not name stays."""
    for key, value in table.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def lookup(table: Table, path: Path_) -> Table:
    """Give the table of a command, empty if there is none."""
    for word in path:
        table = table.get(word, {})
    return table


def plain_default(option: click.Option) -> Any:
    """Give the default as it would be written, None if there is none."""
    default = option.default
    if option.is_flag:
        return default is True
    return default if isinstance(default, str | int | float | list | tuple) else None


def shown(value: Any) -> Any:
    """Hide what is a secret."""
    if isinstance(value, str) and value.startswith(PAIRING_SCHEME):
        return f"{value.partition('#')[0]}#..."
    return value


def unknown(message: str, name: str, known: Iterable[str]) -> ConfigError:
    """Say that a name is not known, and which one may be meant."""
    close = difflib.get_close_matches(name, list(known), 1)
    return ConfigError(message, hint=f"did you mean {close[0]}?" if close else None)

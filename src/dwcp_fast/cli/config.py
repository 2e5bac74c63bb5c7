"""``dwcp config``."""

from dataclasses import asdict
from typing import Any

import click

from dwcp_fast.cli.output import Output, describe, output_options
from dwcp_fast.cli.settings import PROJECT_FILE, Setting, faults, settings, user_file
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.errors import ConfigError, DwcpError

__all__ = ["config"]


@click.group(
    short_help="Look at settings of files and the environment.",
    help=help_with_example(
        "Options can be set in the environment (DWCP_SEND_BWLIMIT), in ./dwcp.toml and in the user's own "
        "file ($XDG_CONFIG_HOME/dwcp/config.toml). A flag goes before all of them, and each before the next.",
        "dwcp config show --origin send",
    ),
)
def config() -> None:
    """Look at settings."""


@config.command(
    short_help="Tell which values hold.",
    help=help_with_example(
        "Tell which values the options of a command have if its command line does not say otherwise. Without "
        "COMMAND those of all commands that are set somewhere.",
        "dwcp config show --origin send",
    ),
)
@click.argument("command", nargs=-1, metavar="[COMMAND]...")
@click.option("--origin", is_flag=True, help="Tell where each comes from.")
@output_options
@click.pass_context
def show(ctx: click.Context, command: tuple[str, ...], origin: bool, printer: Output) -> None:
    """Tell which values hold."""
    wanted, everything = " ".join(command), list(settings(program_of(ctx)))
    if not command:
        found = [setting for setting in everything if setting.origin != "default"]
    else:
        found = [setting for setting in everything if f"{setting.command} ".startswith(f"{wanted} ")]
        if not found:
            raise ConfigError(f"{wanted!r} is no command with options")
    lines: list[str] = []
    for before, setting in zip([None, *found], found, strict=False):
        if before is None or before.command != setting.command:
            lines.append(f"[{setting.command.replace(' ', '.')}]")
        lines.append(describe_setting(setting, origin=origin))
    told = {"type": "config", "settings": [asdict(setting) for setting in found]}
    printer.result(told, "\n".join(lines) or "nothing is set")


@config.command(
    short_help="Look for mistakes.",
    help=help_with_example(
        "Look for names that no command knows and values that no option takes, in the files and the "
        "environment, also of what is not in use. Ends with 2 if there are any.",
        "dwcp config check",
    ),
)
@output_options
@click.pass_context
def check(ctx: click.Context, printer: Output) -> int:
    """Look for mistakes."""
    found = faults(program_of(ctx))
    files = [str(path) for path in (user_file(), PROJECT_FILE) if path.exists()]
    told: dict[str, Any] = {
        "type": "config-check",
        "files": files,
        "faults": [{"message": describe(fault), "hint": hint_of(fault)} for fault in found],
    }
    lines = [describe(fault) + (f" ({hint_of(fault)})" if hint_of(fault) else "") for fault in found]
    printer.result(told, "\n".join(lines) or f"nothing wrong in {', '.join(files) or 'the environment'}")
    return ConfigError.exit_code if found else 0


def program_of(ctx: click.Context) -> click.Group:
    """Give the program that a command belongs to."""
    program = ctx.find_root().command
    if not isinstance(program, click.Group):
        raise TypeError("the command belongs to no program")
    return program


def hint_of(fault: BaseException) -> str | None:
    """Give what can be done about a fault."""
    return fault.hint if isinstance(fault, DwcpError) else None


def describe_setting(setting: Setting, *, origin: bool) -> str:
    """Write a setting as it would stand in a file; one that is not given as a comment."""
    value = setting.value
    if value is None:
        text = f"# {setting.option} is not set"
    elif isinstance(value, bool):
        text = f"{setting.option} = {str(value).lower()}"
    elif isinstance(value, list | tuple):
        text = f"{setting.option} = [{', '.join(quoted(one) for one in value)}]"
    else:
        text = f"{setting.option} = {value if isinstance(value, int | float) else quoted(value)}"
    return f"{text}  # {setting.origin}" if origin and value is not None else text


def quoted(value: Any) -> str:
    """Write a text as TOML has it."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

"""The program: its commands, and how each way of ending becomes an exit code."""

import sys
from importlib import import_module
from typing import Final, NoReturn

import click

from dwcp_fast.cli.output import report_failure, report_usage
from dwcp_fast.cli.settings import default_map
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.errors import ConfigError, exit_code_for

__all__ = ["main", "program"]

COMMANDS: Final = {
    "config": "config",
    "delta": "delta",
    "demo": "demo",
    "dict": "dictionary",
    "doctor": "doctor",
    "link": "link",
    "pull": "pull",
    "recv": "recv",
    "rollout": "rollout",
    "select": "select",
    "send": "send",
    "serve": "serve",
    "snap": "snap",
    "vm": "vm",
}
"""Where each command is: the module, and what it is called there."""
EPILOG = """\b
Exit codes:
  0 ok                  1 other              2 usage
  3 source not found    4 peer unreachable   5 authentication failed
  6 integrity failure   7 deadline missed    8 limit reached
  10 version or format not supported         12 partial, resumable
  130 interrupted
"""


class Program(click.Group):
    """Takes what no flag says from the environment and from files.

    A command is imported when it is asked for: what the others need takes longer than many a transfer.
    """

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Name the commands."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name]
        command = getattr(import_module(f"dwcp_fast.cli.{module}"), module)
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant, and read the files for it."""
        name, command, rest = super().resolve_command(ctx, args)
        # Help is to be had, and mistakes to be looked for, whatever the files say.
        if name != "config" and not {"-h", "--help"} & set(rest):
            try:
                ctx.default_map = default_map(self)
            except ConfigError as error:
                told = f"{error} ({error.hint})" if error.hint else str(error)
                raise click.UsageError(told, ctx) from error
        return name, command, rest


def show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Tell the version and end."""
    if wanted and not ctx.resilient_parsing:
        # Only now: to find it takes longer than the rest of the start.
        from dwcp_fast import __version__

        print(f"dwcp, version {__version__}")
        ctx.exit()


@click.group(
    cls=Program,
    help=help_with_example(
        "Move large changing state between machines: compressed, resumable, verified. Every option can also "
        "be set in the environment (--bwlimit of `dwcp send` is DWCP_SEND_BWLIMIT), and in files as "
        "`dwcp config -h` says.",
        "dwcp recv --listen 0.0.0.0:7443 --into inbox      (prints a pairing string)",
        "dwcp send model.bin --to 'dwcp://host:7443#...'   (on the other machine)",
    ),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DWCP"},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
def program() -> None:
    """Move large changing state between machines: compressed, resumable, verified."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the program and exit.

    Args:
        arguments: The command line without the program's name; None takes that of the process.
    """
    sys.exit(run(arguments))


def run(arguments: list[str] | None) -> int:
    """Run the program and give its exit code."""
    try:
        outcome = program.main(args=arguments, prog_name="dwcp", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        report_usage(error, sys.argv[1:] if arguments is None else arguments)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return exit_code_for(KeyboardInterrupt())
    except BrokenPipeError:
        # Whoever read the output is gone, and so is the need for it.
        sys.stderr.close()
        return 1
    except Exception as error:  # noqa: BLE001  # the last stop: anything else would be a traceback
        report_failure(error)
        return exit_code_for(error)
    return outcome if isinstance(outcome, int) else 0

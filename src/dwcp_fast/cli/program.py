"""The program: its commands, and how each way of ending becomes an exit code."""

import sys
from typing import NoReturn

import click

from dwcp_fast import __version__
from dwcp_fast.cli.config import config
from dwcp_fast.cli.delta import delta
from dwcp_fast.cli.demo import demo
from dwcp_fast.cli.dictionary import dictionary
from dwcp_fast.cli.doctor import doctor
from dwcp_fast.cli.link import link
from dwcp_fast.cli.output import report_failure, report_usage
from dwcp_fast.cli.pull import pull
from dwcp_fast.cli.recv import recv
from dwcp_fast.cli.rollout import rollout
from dwcp_fast.cli.select import select
from dwcp_fast.cli.send import send
from dwcp_fast.cli.serve import serve
from dwcp_fast.cli.settings import default_map
from dwcp_fast.cli.snap import snap
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.cli.vm import vm
from dwcp_fast.errors import ConfigError, exit_code_for

__all__ = ["main", "program"]

EPILOG = """\b
Exit codes:
  0 ok                  1 other              2 usage
  3 source not found    4 peer unreachable   5 authentication failed
  6 integrity failure   7 deadline missed    8 limit reached
  10 version or format not supported         12 partial, resumable
  130 interrupted
"""


class Program(click.Group):
    """Takes what no flag says from the environment and from files."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant, and read the files for it."""
        name, command, rest = super().resolve_command(ctx, args)
        # Help is to be had, and mistakes to be looked for, whatever the files say.
        if command is not config and not {"-h", "--help"} & set(rest):
            try:
                ctx.default_map = default_map(self)
            except ConfigError as error:
                told = f"{error} ({error.hint})" if error.hint else str(error)
                raise click.UsageError(told, ctx) from error
        return name, command, rest


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
@click.version_option(__version__, prog_name="dwcp")
def program() -> None:
    """Move large changing state between machines: compressed, resumable, verified."""


program.add_command(send)
program.add_command(recv)
program.add_command(serve)
program.add_command(pull)
program.add_command(delta)
program.add_command(dictionary)
program.add_command(snap)
program.add_command(vm)
program.add_command(select)
program.add_command(rollout)
program.add_command(link)
program.add_command(doctor)
program.add_command(config)
program.add_command(demo)


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

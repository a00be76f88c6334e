"""The commands, and the one place where errors become messages."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import traceback
from importlib.metadata import version

import typer

from llmconv.cli import (
    batch_command,
    bundles,
    catalog,
    convert_command,
    doctor_command,
    eval_command,
    graph_command,
    inspect,
    new_plugin_command,
    recipes,
    sensitivity_command,
    talk,
)
from llmconv.cli import plan_command as planning
from llmconv.cli.extensions import ExtensibleGroup
from llmconv.errors import LlmconvError
from llmconv.plugins.frame import blame

WRONG, INTERRUPTED = 2, 130  # exit codes; 1 is a proof that failed

app = typer.Typer(
    cls=ExtensibleGroup,
    help="Convert a language model to parts that a Snapdragon phone's NPU runs, and prove each conversion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(convert_command.convert)
app.command()(planning.plan)
app.command()(bundles.apply)
app.command()(batch_command.batch)
app.command()(bundles.verify)
app.command("eval")(eval_command.evaluate)
app.command()(sensitivity_command.sensitivity)
app.command()(talk.generate)
app.command()(talk.chat)
app.command()(inspect.inspect)
app.command()(bundles.export)
app.command()(graph_command.graph)
app.command()(catalog.passes)
app.command()(catalog.plugins)
app.command()(catalog.families)
app.command()(catalog.targets)
app.command()(doctor_command.doctor)
app.command("new-plugin")(new_plugin_command.new)
app.add_typer(recipes.app, name="recipe")


@app.callback(invoke_without_command=True)
def _root(
    show_version: bool = typer.Option(False, "--version", help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens inside."),
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    if show_version:
        print(version("llmconv"))
        raise typer.Exit


def main() -> None:
    """Run the command line; a `LlmconvError` is one line on stderr and exit code 2."""
    atexit.register(gc.freeze)  # else a second and more goes to taking graphs apart, node by node
    # Torch's threads else spin while they wait, on cores that the compiler, the simulator and others need: beside one
    # busy process, small models then take ten times as long. OpenMP reads it once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except LlmconvError as error:
        print(f"error: {error}", file=sys.stderr)
        _show_traceback()
        sys.exit(WRONG)
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(WRONG)
    except Exception as error:  # what a plugin's code or ours did not foresee
        print(f"error: {blame(main, error)}; 'llmconv --verbose ...' shows the traceback", file=sys.stderr)
        _show_traceback()
        sys.exit(WRONG)
    except SystemExit as left:
        if left.code == INTERRUPTED:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
        raise


def _show_traceback() -> None:
    if logging.getLogger().isEnabledFor(logging.INFO):  # --verbose
        traceback.print_exc()

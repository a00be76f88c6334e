"""`llmconv hub`: what an output folder has at AI Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llmconv import BackendError
from llmconv.work import Steps, work_of
from llmconv_plugins.ai_hub.account import check_configuration
from llmconv_plugins.ai_hub.ledger import NAME, Entry, Ledger

app = typer.Typer(no_args_is_help=True, help="Uploads and jobs at Qualcomm AI Hub.", pretty_exceptions_enable=False)
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The output folder of 'llmconv apply'.")]
UPLOAD = "upload "  # what slots of uploads begin with


@app.command()
def jobs(output: Output) -> None:
    """List what was sent for an output folder, and how each job stands."""
    from llmconv_plugins.ai_hub.service import Service  # noqa: PLC0415  imports the client

    entries = _ledger(output).entries
    check_configuration()
    service, console = Service(), Console(highlight=False)
    width = max(len(entry.slot) for entry in entries)
    for entry in entries:  # no table, which would cut addresses
        upload = entry.slot.startswith(UPLOAD)
        page = service.link(entry.id) if entry.id and not upload else entry.id
        console.print(f"{entry.slot:{width}}  {_state(service, entry)}  {page}", soft_wrap=True, markup=False)


@app.command()
def cancel(output: Output) -> None:
    """Let go of unfinished jobs, so that the next run submits them again; the client cannot stop those that run."""
    from llmconv_plugins.ai_hub.service import Service  # noqa: PLC0415  imports the client

    ledger = _ledger(output)
    check_configuration()
    service, console = Service(), Console()
    unfinished = [e for e in ledger.entries if not e.complete and not e.slot.startswith(UPLOAD)]
    for entry in unfinished:
        ledger.drop(entry)
        console.print(f"{entry.slot}: {service.link(entry.id) if entry.id else 'was not submitted'}", soft_wrap=True)
    console.print(
        f"{len(unfinished)} jobs let go of. AI Hub's client has no call that stops a job: those that run end by "
        "themselves, and their results stay on the pages above."
    )


def _ledger(output: Path) -> Ledger:
    """What an output folder has sent: the run that works on it or broke off, else its bundle."""
    for folder in (work_of(output.absolute()) / "bundle", output):
        ledger = Ledger(Steps(folder, {}).ledger(NAME))
        if ledger.entries:
            return ledger
    raise BackendError(f"{output}: nothing was sent to AI Hub for this output folder")


def _state(service: object, entry: Entry) -> str:
    from llmconv_plugins.ai_hub.service import MissingError, Service, UnavailableError  # noqa: PLC0415  as above

    assert isinstance(service, Service)
    if entry.complete:
        return "DONE"
    if not entry.id:
        return "being sent"
    if entry.slot.startswith(UPLOAD):
        return "begun"
    try:
        return service.status(entry.id).state
    except (MissingError, UnavailableError) as error:
        return str(error)

"""The command line: each verb parses, calls, prints."""

from __future__ import annotations

import logging
import sys

import typer

from cpmi.cli import evaluate, fit, label, loop, prepare, report, runs, score, serve, solve, targets, train, verify  # noqa: F401 - they add their verbs
from cpmi.cli.app import app
from cpmi.errors import CpmiError, InputError
from cpmi.storage import store_errors

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: what went wrong is one line, and the exit status says whose fault it was."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("cpmi: %(message)s"))
    logging.getLogger("cpmi").handlers = [handler]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error that ends its retries says it all
    try:
        app()
    except CpmiError as error:
        typer.echo(f"cpmi: error: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        typer.echo(f"cpmi: error: {error.filename or 'file'}: {error.strerror or error}", err=True)
        sys.exit(1)
    except store_errors() as error:
        typer.echo(f"cpmi: error: {(str(error).strip() or type(error).__name__).splitlines()[0]}", err=True)
        sys.exit(1)

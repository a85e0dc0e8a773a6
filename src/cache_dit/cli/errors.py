"""Errors that users can mend are one line and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cache_dit.errors import CacheDiTError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of the package and of the file system into one line on stderr and exit code 2."""
    try:
        yield
    except (CacheDiTError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error

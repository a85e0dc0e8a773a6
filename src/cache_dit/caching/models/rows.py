"""All rows. To add a model, add its row to one of the files of rows and a tiny model to the tests."""

from __future__ import annotations

from cache_dit.caching.models import audio_rows, control_rows, image_rows, video_rows
from cache_dit.caching.models.row import Row

ROWS: tuple[Row, ...] = (
    *image_rows.ROWS,
    *video_rows.ROWS,
    *audio_rows.ROWS,
    *control_rows.ROWS,
)

_BY_NAME = {row.name: row for row in ROWS}


def row_of(kind: type) -> Row | None:
    """The row of a transformer class or of its nearest known base class."""
    return next((_BY_NAME[base.__name__] for base in kind.__mro__ if base.__name__ in _BY_NAME), None)


def known_names() -> tuple[str, ...]:
    """Names of the classes that have a row."""
    return tuple(_BY_NAME)

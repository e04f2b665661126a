"""What a conversion did, kept with the version as `migration.json`."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from brainstore.dtypes import logical_dtype
from brainstore.errors import BadParams, Corrupt

FILE = "migration.json"
FORMAT = 1


class LeafReport(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf that was made: where it is, and what it is."""

    path: str
    shape: list[int]
    dtype: str


def leaf_report(path: str, leaf: Any) -> LeafReport:
    """Return what a report says of an array or a number.

    Raises:
        BadParams: no leaf can be that; the message names it.
    """
    array = np.asarray(leaf)
    try:
        return LeafReport(path=path, shape=list(array.shape), dtype=logical_dtype(array))
    except BadParams as error:
        raise BadParams(f"{path}: {error}") from error


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the map, applied: the tensors it took, with their shapes, and its leaves."""

    torch: dict[str, list[int]]
    rule: str
    flax: str
    options: dict[str, Any]
    leaves: list[LeafReport]


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was migrated, by its digest."""

    path: str
    kind: str
    size_bytes: int
    digest: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a migration read, made and left out.

    Attributes:
        how: what told the layers: "map", "target", "map and target", or "names" (nothing
            but names and shapes); "as is", or "flax", where nothing was converted.
        root, stripped: where the state dict was, and prefixes taken off its names.
        folded: weights that were made of a length and a direction.
        dropped: tensors that Flax has no use for, or the map dropped.
        aside: what else the checkpoint has: values that are no tensors, an optimizer, ….
        values: numbers and texts among that, of a migration as is.
    """

    format: int = FORMAT
    how: str
    source: SourceReport | None = None
    root: str = ""
    stripped: list[str] = []
    folded: list[str] = []
    layers: list[LayerReport] = []
    dropped: list[str] = []
    aside: list[str] = []
    values: dict[str, Any] = {}
    tensors_read: int = 0
    leaves_made: int = 0
    parameters: int = 0

    def encode(self) -> bytes:
        """Return the report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def decode(body: bytes) -> Report:
    """Return the report that `encode` wrote.

    Raises:
        Corrupt: the bytes are no report.
    """
    try:
        return msgspec.json.decode(body, type=Report)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{FILE} is no report of a migration: {error}") from error

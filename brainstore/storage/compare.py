"""Comparing what a store holds with what was to be stored, without a copy of either."""

from __future__ import annotations

from brainstore.storage.base import Body, pieces


class Comparison:
    """Compares the bytes fed to it, in chunks of any size, with those of `body`."""

    def __init__(self, body: bytes | Body) -> None:
        self._pieces = iter(pieces(body))
        self._rest = memoryview(b"")
        self._equal = True

    def feed(self, chunk: bytes | memoryview) -> bool:
        """Return whether all bytes were equal so far."""
        found = memoryview(chunk).cast("B")
        while self._equal and found:
            if not self._rest and not self._next_piece():
                self._equal = False
                break
            length = min(len(found), len(self._rest))
            self._equal = found[:length] == self._rest[:length]
            found, self._rest = found[length:], self._rest[length:]
        return self._equal

    def finish(self) -> bool:
        """Return whether the bytes fed were all of the body, and equal."""
        return self._equal and not self._rest and not self._next_piece()

    def _next_piece(self) -> bool:
        for piece in self._pieces:
            if piece.nbytes:
                self._rest = piece.cast("B")
                return True
        return False

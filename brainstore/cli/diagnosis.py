"""What `doctor` says of one thing that it has looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from brainstore.cli.app import code_of, lines_of
from brainstore.cli.codes import CORRUPT, NOT_FOUND, UNAVAILABLE
from brainstore.errors import BrainstoreError

OK, NOTE, BAD = "ok", "note", "problem"

_FIXES = {
    NOT_FOUND: "check the URL, or create what is missing",
    CORRUPT: "brainstore fsck",
    UNAVAILABLE: "check URL, network and credentials, then look again: brainstore doctor",
}
_OTHER_FIX = "do what it says, then look again: brainstore doctor"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `code` is what doctor exits with because of it."""

    state: str
    what: str
    text: str
    fix: str = ""
    code: int = 0


def safely(what: str, step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield what the step yields; what it raises becomes a problem."""
    try:
        yield from step()
    except (BrainstoreError, OSError, ModuleNotFoundError) as error:
        yield problem(what, error)


def problem(what: str, error: BaseException) -> Check:
    """Return what to say of an error, with a way to mend it."""
    line, *notes = lines_of(error)
    code = code_of(error)
    fix = " ".join(notes) or _FIXES.get(code, _OTHER_FIX)
    return Check(BAD, what, line.removeprefix("error: "), fix, code)

"""Every error that brainstore raises, sorted by what the caller does next.

BrainstoreError
├── NotFound          no such model, version, alias or blob          (KeyError, ValueError)
│   └── NoZoo         nothing at this place was ever a zoo
├── AlreadyExists     the thing to create is there already
├── Conflict          somebody else was faster: load again and retry
├── Corrupt           stored bytes are not what they must be: run fsck
├── BadParams         what was given to save or load does not fit    (ValueError)
├── BadReference      a name, alias, version or reference is ill-formed (ValueError)
├── GateFailed        a promotion misses something that its policy asks for
├── Unsupported       this store, format or platform cannot do that
├── ReadOnly          the store may be read but not written
└── StoreUnavailable  the store does not answer, or refuses us: wait, retry
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class BrainstoreError(Exception):
    """The root of the tree."""

    def __str__(self) -> str:
        # KeyError would show the repr of the message.
        return str(self.args[0]) if self.args else type(self).__name__


class NotFound(BrainstoreError, KeyError, ValueError):
    """The model, version, alias or blob does not exist."""


class NoZoo(NotFound):
    """There is no zoo at this place."""


class AlreadyExists(BrainstoreError):
    """The object to create exists, with other content."""


class Conflict(BrainstoreError):
    """Another writer changed the object first; nothing of ours was stored."""


class Corrupt(BrainstoreError):
    """Stored bytes do not have the digest, size or form that they must have."""


class BadParams(BrainstoreError, ValueError):
    """The arguments, the pytree, the metadata or the target do not fit."""


class BadReference(BrainstoreError, ValueError):
    """A name, alias, version, digest or reference does not parse."""


class GateFailed(BrainstoreError):
    """The zoo's policy for an alias is not met, or would be passed by.

    `missing` lists what it asks for and does not find: each has `what`, `expected` and
    `found`.
    """

    def __init__(self, message: str, missing: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class Unsupported(BrainstoreError):
    """The store, the format or the platform cannot do what was asked."""


class ReadOnly(BrainstoreError):
    """The store refuses to be written."""


class StoreUnavailable(BrainstoreError):
    """The store did not answer, or did not let us in.

    `outcome_unknown` is True when a write was sent and neither its reply nor a
    read afterwards could tell whether it took effect.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown

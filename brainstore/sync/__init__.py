"""Copying versions between two zoos, verbatim.

The order is that of a save: an intent that names all, then what is missing of the
blobs, then the manifests, parents before children, each followed by its fact and
`latest`. Manifests keep their bytes, and so their digests; a number that stands for
something else at the target is a conflict, and nothing is renumbered. A sync that
was killed is run again, and sends what is still missing.
"""

from brainstore.sync.report import Outcome, Step, SyncReport
from brainstore.sync.run import sync

__all__ = ["Outcome", "Step", "SyncReport", "sync"]

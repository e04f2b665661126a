"""Checking a zoo: every record against its key, its blobs, its pointers and the index.

Nothing stops at the first finding, and damage is never an exception. A zoo is checked
while others work on it: what looks wrong is looked at again, and what a running save
explains is not wrong.
"""

from brainstore.fsck.findings import HARMLESS, WRONG, Finding, Kind, Step
from brainstore.fsck.run import fsck

__all__ = ["HARMLESS", "WRONG", "Finding", "Kind", "Step", "fsck"]

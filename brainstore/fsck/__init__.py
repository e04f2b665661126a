"""Checking a zoo: every record against its key, its blobs, its pointers and the index.

Nothing stops at the first finding, and damage is never an exception. A zoo is checked
while others work on it: what looks wrong is looked at again, and what a running save
explains is no finding.
"""

from brainstore.fsck.check import fsck
from brainstore.fsck.survey import Finding

__all__ = ["Finding", "fsck"]

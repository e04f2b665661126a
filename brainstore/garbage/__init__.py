"""Collecting garbage: blobs that nothing names any more, while others save, load and sync.

`docs/design.md` has the protocol and why it holds; `tests/collector_model.py` searches it.
"""

from brainstore.garbage.collection import Collection, Garbage
from brainstore.garbage.collector import collect
from brainstore.garbage.reasons import Reason, Why, why

__all__ = ["Collection", "Garbage", "Reason", "Why", "collect", "why"]

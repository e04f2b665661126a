"""DIAL pairs: a speaker's encoder and a listener's decoder, kept as one version.

The encoder turns an observation into a message of `vocab_size` token logits and
`payload_dim` payload values; the decoder takes the message and, beside it, a context of
width `context_dim`. Halves that do not fit each other are noise, so they are checked
against each other (`fitting`), and committed together (`pairs`).
"""

from brainstore.dial.config import DIALConfig
from brainstore.dial.pairs import DIALBrainManager, DIALBrainPair

__all__ = ["DIALBrainManager", "DIALBrainPair", "DIALConfig"]

"""Any pytree <-> a structure and leaves. The way in is `flatten`.

The way back: `unflatten` builds the containers, `place` makes JAX arrays of what was read,
`match` and `Plan.build` do both in the form of a target. Nothing is ever pickled.
"""

from brainstore.pytree.flattening import Flat, Leaf, flatten
from brainstore.pytree.placement import HostLeaf, place
from brainstore.pytree.structure import register, subtree, unflatten
from brainstore.pytree.target import Plan, Spec, abstract, match

__all__ = [
    "Flat",
    "HostLeaf",
    "Leaf",
    "Plan",
    "Spec",
    "abstract",
    "flatten",
    "match",
    "place",
    "register",
    "subtree",
    "unflatten",
]

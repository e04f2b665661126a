"""The factory: where versions come from, how good they are, and what lets them out.

`reports` files what stations found out, `policy` keeps what an alias asks for, `gates`
holds one against the other, `lineage` follows the pins both ways, and `proofs` tells
whether a frozen expert is one.
"""

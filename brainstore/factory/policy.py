"""The policy of a zoo: one small record at its root, moved by compare-and-swap.

Its rules are read by `brainstore.factory.gates`. A change whose reply was lost is settled
by its write id among the last changes, as the moves of a pointer are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from brainstore import marker
from brainstore.address import POLICY_KEY, Digest, new_ulid
from brainstore.errors import AlreadyExists, BadParams, Conflict
from brainstore.quality import Rule
from brainstore.records import Policy
from brainstore.storage.base import ABSENT, Token
from brainstore.zoo import Zoo

SWAP_ATTEMPTS = 64
_SHOWN = ("generation", "changes")

Rules = Mapping[str, Any] | Iterable[Rule | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy as it is stored: the digest is that of its bytes."""

    policy: Policy
    digest: Digest
    token: Token


def in_force(zoo: Zoo) -> InForce | None:
    """Return the policy of the zoo, or None if it never had one.

    Raises:
        Corrupt, Unsupported: it is damaged, or of a newer format; nothing can be promoted.
    """
    found = zoo.store.get(POLICY_KEY)
    if found is None:
        return None
    policy = Policy.decode(found.body, f"{zoo.url}/{POLICY_KEY}")
    return InForce(policy, Digest.of(found.body), found.token)


def rules_of(given: Rules) -> tuple[Rule, ...]:
    """Return the rules, from Rules, from dicts, or from {"rules": […]} as a file holds them.

    What `policy show --json` prints beside them may stand there too, and says nothing.

    Raises:
        BadParams, BadReference: one of them is none.
    """
    if isinstance(given, Mapping):
        if "rules" not in given or set(given) - {"rules", *_SHOWN}:
            raise BadParams(f"policy: expected a list of rules, found {sorted(map(str, given))}")
        given = given["rules"]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadParams(f"policy: expected a list of rules, found {given!r:.60}")
    return tuple(map(Rule.of, given))


def set_policy(
    zoo: Zoo, rules: tuple[Rule, ...], *, expected: int | None = None, why: str = ""
) -> Policy:
    """Make these the rules of the zoo, in place of all others; return the policy as it is then.

    Atomic: with `expected`, only if the policy has this generation now (0: there is none).

    Raises:
        Conflict: it has another generation; nothing was changed.
        NoZoo: there is no zoo.
    """
    marker.require(zoo.store)
    write_id = new_ulid()
    for _ in range(SWAP_ATTEMPTS):
        found = in_force(zoo)
        before = found.policy if found else Policy(generation=0, write_id="")
        if any(change.write_id == write_id for change in before.changes):
            return before  # our swap was accepted, and its reply was lost
        if expected is not None and before.generation != expected:
            raise Conflict(
                f"{zoo.url}: the policy has generation {before.generation}, expected {expected}. "
                "Look again: brainstore policy show"
            )
        after = before.changed(rules, by=zoo.registry.by, why=why, write_id=write_id)
        try:
            expect = found.token if found else ABSENT
            zoo.store.put(POLICY_KEY, after.encode_readable(), expect=expect)
        except (Conflict, AlreadyExists):
            continue
        return after
    raise Conflict(f"{zoo.url}: the policy kept changing; nothing of ours was stored. Try again")

"""The factory: reports, the policy, promotion, lineages, proofs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brainstore.manager.changing import Changing
from brainstore.records import Policy
from brainstore.versions import Version

if TYPE_CHECKING:
    from brainstore.factory.lineage import Lineage
    from brainstore.factory.policy import Rules
    from brainstore.factory.proofs import Proof
    from brainstore.quality import QualityReport


class Judging(Changing):
    """How good versions are, where they come from, and what lets them out."""

    def add_report(self, ref: str, report: QualityReport | Mapping[str, Any]) -> QualityReport:
        """File what a station found out about a version; return the report as it is filed.

        Atomic and durable once it returns. It says something of this content alone: it
        pins the manifest's digest. Reports are never changed; a newer one of the same
        station takes precedence.

        Raises:
            BadParams: the report is none; nothing was stored.
            NotFound: there is no such version; nothing was stored.
        """
        from brainstore.factory.reports import add_report
        from brainstore.quality import QualityReport

        return add_report(self.zoo, self.zoo.own_reference(ref), QualityReport.of(report))

    def reports(self, ref: str, version: int | str | None = None) -> list[QualityReport]:
        """Return all reports on a version in the order of filing: first the save's own.

        Raises:
            Corrupt: one of them is damaged, or is about other content; none is passed over.
        """
        from brainstore.factory.reports import reports_on

        found, manifest, owner = self.zoo.find(ref, version)
        return reports_on(owner, found, manifest)

    def promote(
        self,
        ref: str,
        alias: str,
        *,
        expected: int | None = None,
        why: str = "",
        dry_run: bool = False,
    ) -> Version:
        """Make the alias name the version if the zoo's policy lets it; return the version.

        Atomic. The move records which policy and which reports it was judged by. What the
        policy or a report changes while it is under way counts: the alias steps back then.

        Args:
            expected: promote only if the alias names this version now (0: names none).
            why: a reason, for the log.
            dry_run: only judge; nothing is moved.

        Raises:
            GateFailed: the policy is not met, or none guards the alias; `missing` and the
                message list what it asks for, with what was found.
            Conflict: somebody moved the alias meanwhile, or it does not name `expected`.
            Corrupt: a report or the policy cannot be read, so that nothing can be judged.
        """
        from brainstore.drafts import movable
        from brainstore.factory.gates import promote

        reference, pointer = self.zoo.own_reference(ref), movable(alias)
        options: dict[str, Any] = {"expected": expected, "why": why, "dry_run": dry_run}
        version = promote(self.zoo, reference, pointer, **options)
        if not dry_run:
            self.zoo.committer.tidy()
        return version

    def policy(self) -> Policy | None:
        """Return the zoo's policy, or None if it never had one."""
        from brainstore.factory.policy import in_force

        found = in_force(self.zoo)
        return found.policy if found else None

    def set_policy(self, rules: Rules, *, expected: int | None = None, why: str = "") -> Policy:
        """Make these the rules that guard aliases, in place of all others; return the policy.

        Atomic. Where aliases are now is not looked at.

        Args:
            rules: of `brainstore.Rule`, or dicts of its fields; none removes all guards.
            expected: only if the policy has this generation (0: there is none).
            why: a reason, for the log.

        Raises:
            BadParams, BadReference: a rule is none; nothing was changed.
            Conflict: the policy has another generation.
        """
        from brainstore.factory.policy import rules_of, set_policy

        return set_policy(self.zoo, rules_of(rules), expected=expected, why=why)

    def lineage(self, ref: str, *, most: int | None = None) -> Lineage:
        """Return what a version was made from and what was made from it.

        Its `text()`, `to_dict()` and `dot()` show it. At most `most` versions, by default
        1,000, are looked at, the nearest first.
        """
        from brainstore.factory.lineage import MOST_VERSIONS, lineage

        version, _, owner = self.zoo.find(ref)
        return lineage(owner, version, most=MOST_VERSIONS if most is None else most)

    def prove(self, ref: str) -> list[Proof]:
        """Return for each frozen expert of a version whether it is one, leaf by leaf.

        Reads the leaves that are the same, and only those.

        Raises:
            Corrupt: a leaf is not what its digest says.
        """
        from brainstore.factory.proofs import prove

        version, _, owner = self.zoo.find(ref)
        return prove(owner, version)

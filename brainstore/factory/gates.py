"""What stands between a version and an alias: the policy's rules, held against its reports.

The order of a promotion: the pointer is read first, policy and reports after it, and the
pointer is swapped from exactly the state that was read. So what was judged is what moves;
of two that race, one gets a Conflict. After the swap, policy and reports are read once
more: what came between counts too, and the alias steps back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from brainstore.address import Alias, Name, Reference
from brainstore.errors import Conflict, Corrupt, GateFailed, Unsupported
from brainstore.factory.policy import InForce, in_force
from brainstore.factory.reports import reports_on
from brainstore.quality import FUTURE_S, Condition, Gate, QualityReport, Rule, age_s, holds
from brainstore.records import Manifest, Pointer
from brainstore.versions import Version
from brainstore.zoo import Zoo

if TYPE_CHECKING:
    from brainstore.factory.proofs import Proof


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that the policy asks for and does not find."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Candidate:
    """A version that is to be judged, perhaps more than once."""

    zoo: Zoo
    version: Version
    manifest: Manifest

    def reports(self) -> list[QualityReport]:
        """Return the reports as they are now. Errors as for `reports_on`."""
        return reports_on(self.zoo, self.version, self.manifest)

    @cached_property
    def proofs(self) -> list[Proof]:
        """The proofs of the experts; content does not change, so they are made once."""
        from brainstore.factory.proofs import prove  # reads leaves, so needs NumPy

        return prove(self.zoo, self.version)


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules that an alias of a model is under."""

    in_force: InForce
    rules: tuple[Rule, ...]

    def gate(self, reports: Sequence[QualityReport] = (), *, is_forced: bool = False) -> Gate:
        ids = tuple(sorted({report.id for report in reports}))
        return Gate(
            policy=self.in_force.digest,
            generation=self.in_force.policy.generation,
            rules=self.rules,
            reports=ids,
            is_forced=is_forced,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guard says of a version: the gate to move with, and what is missing."""

    gate: Gate
    missing: tuple[Missing, ...]


def guard_of(zoo: Zoo, name: Name, alias: Alias) -> Guard | None:
    """Return the rules that guard the alias of this model, or None where none does."""
    found = in_force(zoo)
    rules = [rule for rule in found.policy.rules if rule.guards(name, alias)] if found else []
    return Guard(found, tuple(rules)) if found and rules else None


def judge(candidate: Candidate, guard: Guard) -> Verdict:
    """Hold a version against every rule of a guard, as of now.

    Raises:
        Corrupt: a report cannot be read, so that nothing can be said.
    """
    reports = candidate.reports()
    used: list[QualityReport] = []
    missing = [
        each
        for rule in guard.rules
        for each in (
            *_stations(rule, reports, used),
            *_checks(rule, reports, used),
            *_experts(rule, candidate),
        )
    ]
    return Verdict(guard.gate(used), tuple(dict.fromkeys(missing)))


def promote(
    zoo: Zoo,
    reference: Reference,
    alias: Alias,
    *,
    expected: int | None = None,
    why: str = "",
    dry_run: bool = False,
) -> Version:
    """Make the alias name the version, if the policy lets it; return the version.

    The move records the policy and the reports that it was judged by. A version that the
    alias names already, and that came through a gate, is judged, and stays. With `dry_run`,
    it is judged, and nothing moves.

    Raises:
        GateFailed: the policy is not met, as `missing` says, or has no rule for the alias.
        Conflict: the alias was moved meanwhile, or does not name `expected`.
    """
    registry = zoo.registry
    version, manifest = registry.find(reference)
    candidate = Candidate(zoo, version, manifest)
    found = registry.pointers.pointer(version.name, alias)
    generation = found[0].generation if found else 0
    verdict = _passed(candidate, alias)
    if dry_run:
        return version
    moved = registry.pointers.move_alias(
        version.name,
        alias,
        version,
        expected=expected,
        generation=generation,
        why=why,
        gate=verdict.gate,
    )
    if moved.generation != generation:
        _confirm(candidate, moved)
    return version


def _confirm(candidate: Candidate, moved: Pointer) -> None:
    """Judge once more, after the swap; what came before it counts, and the alias steps back.

    Raises:
        GateFailed, Corrupt, Unsupported: as before the swap; the alias is back.
    """
    shown, pointers = f"{moved.name}:{moved.ref}", candidate.zoo.registry.pointers
    try:
        _passed(candidate, moved.ref)
    except (GateFailed, Corrupt, Unsupported) as error:
        with suppress(Conflict):  # somebody has moved it on, and that stands
            pointers.step_back(moved, candidate.version, "policy or reports changed meanwhile")
            error.add_note(f"{shown} is back where it was")
        raise
    except BaseException as error:
        error.add_note(f"{shown} names {candidate.version}, which had met the policy before")
        raise


def refuse_guarded(zoo: Zoo, name: Name, aliases: Sequence[Alias]) -> None:
    """Raise GateFailed if a policy guards one of these aliases of a model to be saved."""
    for alias in aliases:
        if guard := guard_of(zoo, name, alias):
            raise _guarded(guard, f"{name}:{alias}", f"brainstore promote {name} {alias}")


def hand_gate(zoo: Zoo, version: Version, alias: Alias, *, force: bool) -> Gate | None:
    """Return what a move by hand is to carry: None where no policy guards the alias.

    To a version that was promoted to this alias before, as far as its last moves tell,
    the way back is free; it carries the gate of then.

    Raises:
        GateFailed: the alias is guarded, and neither is so.
    """
    guard = guard_of(zoo, version.name, alias)
    if guard is None:
        return None
    found = zoo.registry.pointers.pointer(version.name, alias)
    if found and (gate := found[0].passed(version.version, version.digest)):
        return gate
    if not force:
        shown = f"{version.name}:{alias}"
        raise _guarded(guard, shown, f"brainstore promote {version} {alias}")
    return guard.gate(is_forced=True)


def synced_gate(zoo: Zoo, version: Version, alias: Alias) -> Gate | None:
    """Return what a move that a sync makes is to carry: this zoo's own policy decides.

    Raises:
        GateFailed: it is not met.
    """
    if guard_of(zoo, version.name, alias) is None:
        return None
    with suppress(GateFailed):
        return hand_gate(zoo, version, alias, force=False)
    return _passed(Candidate(zoo, version, zoo.registry.manifest(version)), alias).gate


def _guarded(guard: Guard, shown: str, advice: str) -> GateFailed:
    generation = guard.in_force.policy.generation
    return GateFailed(
        f"{shown} is guarded by the zoo's policy (generation {generation}), and is not moved by "
        f"hand. Run: {advice}; or overrule the policy with force"
    )


def _passed(candidate: Candidate, alias: Alias) -> Verdict:
    """Return the verdict on a version, which is that it may pass.

    Raises:
        GateFailed: it may not.
    """
    version = candidate.version
    guard = guard_of(candidate.zoo, version.name, alias)
    if guard is None:
        lacks = Missing("policy", f"a rule for {alias} of {version.name}", "none")
        raise GateFailed(
            f"{version} cannot be promoted: no rule of the zoo's policy is for {version.name}:"
            f"{alias}. Set one: brainstore policy set FILE; or move it by hand: brainstore alias "
            f"{version} {alias}",
            [lacks],
        )
    verdict = judge(candidate, guard)
    if verdict.missing:
        lines = "\n".join(f"  {each}" for each in verdict.missing)
        raise GateFailed(
            f"{version} may not become {alias}: {len(verdict.missing)} of what the policy "
            f"(generation {guard.in_force.policy.generation}) asks for is missing\n{lines}",
            verdict.missing,
        )
    return verdict


def _stations(
    rule: Rule, reports: Sequence[QualityReport], used: list[QualityReport]
) -> Iterator[Missing]:
    for station in rule.stations:
        what = f"station {station}"
        newest = next((each for each in reversed(reports) if each.station == station), None)
        if newest is None:
            yield Missing(what, "a report that is passed", _told(reports))
            continue
        used.append(newest)
        if not newest.is_passed:
            failed = ", ".join(str(check) for check in newest.checks if not check.is_passed)
            found = f"{failed or 'no checks'} in report {newest.id}"
            yield Missing(what, "a report that is passed", found)
        yield from _too_old(rule, newest, what)


def _told(reports: Sequence[QualityReport]) -> str:
    stations = dict.fromkeys(report.station for report in reports)
    return f"reports of {', '.join(stations)}" if stations else "no report"


def _checks(
    rule: Rule, reports: Sequence[QualityReport], used: list[QualityReport]
) -> Iterator[Missing]:
    for condition in rule.conditions:
        at = f" at {condition.station}" if condition.station else ""
        what = f"metric {condition.metric}{at}"
        newest = _measuring(rule, condition, reports)
        if newest is None:
            yield Missing(what, str(condition), "no report that measured it")
            continue
        used.append(newest)
        values = newest.values(condition.metric)
        worst = [x for x in values if not holds(x, condition.op, condition.threshold)]
        if worst:
            found = f"{worst[0]:.6g} in report {newest.id} of {newest.station}"
            yield Missing(what, str(condition), found)
        yield from _too_old(rule, newest, what)


def _measuring(
    rule: Rule, condition: Condition, reports: Sequence[QualityReport]
) -> QualityReport | None:
    stations = [condition.station] if condition.station else rule.stations
    for report in reversed(reports):
        if report.station in (stations or [report.station]) and report.values(condition.metric):
            return report
    return None


def _too_old(rule: Rule, report: QualityReport, what: str) -> Iterator[Missing]:
    if rule.max_age_s is None:
        return
    age, at = age_s(report), report.at or "an unknown time"
    if age > rule.max_age_s:
        yield Missing(what, f"a report of the last {rule.max_age_s:,.0f} s", f"one of {at}")
    elif age < -FUTURE_S:
        yield Missing(what, "a report of the past", f"one of {at}, which is to come")


def _experts(rule: Rule, candidate: Candidate) -> Iterator[Missing]:
    for proof in candidate.proofs if rule.frozen_experts else ():
        if not proof.is_proved:
            yield Missing(f"expert {proof.path}", f"{proof.expert} unchanged", proof.verdict)

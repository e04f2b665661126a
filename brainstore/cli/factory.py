"""Verbs of the factory: report, promote, policy, lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from brainstore.cli import render
from brainstore.cli.app import Call, read_table, verb, verbs
from brainstore.cli.change import moved
from brainstore.errors import GateFailed

if TYPE_CHECKING:
    from brainstore.quality import QualityReport, Rule
    from brainstore.records import Policy


@verb("report")
@click.argument("ref")
@click.option("--station", metavar="TEXT", help="Who judged, such as s3. Without it, only lists.")
@click.option(
    "--check", "checks", metavar="METRIC=VALUE>=THRESHOLD", multiple=True,
    help="What was measured and had to be; with >= > <= < == or !=. May be repeated.",
)  # fmt: skip
@click.option("--n", type=int, metavar="N", help="How many episodes or samples were looked at.")
@click.option("--seed", "seeds", type=int, multiple=True, help="A seed; may be repeated.")
@click.option("--at", metavar="TIME", help="When it was measured, as RFC 3339. [default: now]")
@click.option(
    "--file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="A .json or .toml file with the whole report, in place of the options above.",
)  # fmt: skip
def report(call: Call, ref: str, file: str | None, **fields: Any) -> None:
    """File a quality report on a version, or list those it has."""
    given = {key: value for key, value in fields.items() if value not in (None, ())}
    if file and given:
        raise click.UsageError("--file holds the whole report; drop the other options")
    if given and "station" not in given:
        raise click.UsageError("say who judged: --station TEXT")
    zoo, ref = call.open_for(ref)
    if not file and not given:
        _list(call, zoo.reports(ref))
        return
    filed = zoo.add_report(ref, read_table(file, "--file") if file else given)
    if call.as_json:
        render.print_json(plain_report(filed))
    else:
        click.echo(f"{zoo.resolve(ref)}: {filed}")


def _list(call: Call, reports: list[QualityReport]) -> None:
    if call.as_json:
        render.print_json(list(map(plain_report, reports)))
    elif reports:
        rows = [
            [render.when(x.at), x.by, x.station, x.verdict, _checks(x), render.value(x.n)]
            for x in reports
        ]
        render.print_table(["AT", "BY", "STATION", "VERDICT", "CHECKS", "N"], rows, right=["N"])
    else:
        click.echo("no reports")


def _checks(report: QualityReport) -> str:
    return ", ".join(map(str, report.checks)) or render.NOTHING


@verb("promote")
@click.argument("ref")
@click.argument("alias", metavar="ALIAS")
@click.option(
    "--expect", "expected", type=int, metavar="N",
    help="Only if the alias names version N by now; 0: only if it names none.",
)  # fmt: skip
@click.option("--why", default="", metavar="TEXT", help="A reason, for the log.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say whether the policy lets it.")
def promote(
    call: Call, ref: str, alias: str, expected: int | None, why: str, dry_run: bool
) -> None:
    """Make ALIAS name REF, if the zoo's policy lets it.

    Otherwise all that is missing is told, and the exit code is 6.
    """
    zoo, ref = call.open_for(ref)
    try:
        version = zoo.promote(ref, alias, expected=expected, why=why, dry_run=dry_run)
    except GateFailed as error:
        if call.as_json:
            render.print_json({"alias": alias, "ref": ref, "missing": error.missing})
        raise
    if dry_run and not call.as_json:
        click.echo(f"{version} may become {alias}; nothing was done")
    else:
        moved(call, version, alias)


@verbs.group("policy")
def policy() -> None:
    """Say what a version needs before an alias may name it."""


@verb("show", policy)
def policy_show(call: Call) -> None:
    """Show the rules of the zoo."""
    found = call.open().policy()
    if call.as_json:
        render.print_json(_plain_policy(found) if found else None)
    elif found is None:
        click.echo("no policy")
    else:
        _print_policy(found)


def _plain_policy(found: Policy) -> dict[str, Any]:
    return {
        "generation": found.generation,
        "rules": list(map(plain_rule, found.rules)),
        "changes": found.changes,
    }


def _print_policy(found: Policy) -> None:
    last = found.changes[-1] if found.changes else None
    told = f", set {render.when(last.at)} UTC by {last.by}" if last else ""
    click.echo(f"policy {found.generation}{told}")
    rows = [
        [
            rule.alias,
            rule.models,
            render.value(list(rule.stations)),
            ", ".join(
                f"{x.metric} {x}{f' at {x.station}' if x.station else ''}" for x in rule.conditions
            )
            or render.NOTHING,
            f"{rule.max_age_s:,.0f} s" if rule.max_age_s else render.NOTHING,
            "proved" if rule.frozen_experts else render.NOTHING,
        ]
        for rule in found.rules
    ]
    if rows:
        headers = ["ALIAS", "MODELS", "STATIONS", "CHECKS", "MAX AGE", "EXPERTS"]
        render.print_table(headers, rows, right=["MAX AGE"])


@verb("set", policy)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--expect", "expected", type=int, metavar="N",
    help="Only if the policy has generation N by now; 0: only if there is none.",
)  # fmt: skip
@click.option("--why", default="", metavar="TEXT", help="A reason, for the log.")
def policy_set(call: Call, file: str, expected: int | None, why: str) -> None:
    """Make the rules in FILE those of the zoo.

    FILE is TOML, with a table [[rules]] for each; or JSON, {"rules": [...]}.
    """
    found = call.open().set_policy(read_table(file, "FILE"), expected=expected, why=why)
    if call.as_json:
        render.print_json(_plain_policy(found))
    else:
        _print_policy(found)


@verb("lineage")
@click.argument("ref")
@click.option("--dot", is_flag=True, help="Print it in Graphviz's language.")
@click.option(
    "--most", type=click.IntRange(min=1), metavar="N", help="Look at N versions. [default: 1000]"
)
def lineage(call: Call, ref: str, dot: bool, most: int | None) -> None:
    """Show what a version was made from, and what became of it."""
    zoo, ref = call.open_for(ref)
    found = zoo.lineage(ref, most=most)
    if dot:
        click.echo(found.dot())
    elif call.as_json:
        render.print_json(found.to_dict())
    else:
        click.echo(found.text())


def plain_rule(rule: Rule) -> dict[str, Any]:
    """Return a rule as plain data, as `policy set` reads it."""
    return {**asdict(rule), "checks": list(map(asdict, rule.conditions))}


def plain_report(report: QualityReport) -> dict[str, Any]:
    """Return a report as plain data, with what follows from it."""
    checks = [{**asdict(check), "is_passed": check.is_passed} for check in report.checks]
    return {**asdict(report), "checks": checks, "is_passed": report.is_passed}

"""Checking what a version promises: golden outputs, and frozen experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brainstore.architecture import Apply, label, rebuilt
from brainstore.errors import BadParams, NotFound
from brainstore.factory.proofs import prove
from brainstore.golden import GROUP, Golden, play
from brainstore.groups import PARAMS, Placement, Reader
from brainstore.programs import DESCRIPTION, opened
from brainstore.records import Manifest
from brainstore.versions import Version
from brainstore.zoo import Zoo


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what it is, whether it holds, and what was found.

    `max_error` and `share` are those of `golden.Deviation`; None where nothing was measured.
    """

    what: str
    holds: bool
    text: str
    max_error: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Verification:
    """What was checked of a version. `played_with` names what replayed its golden inputs."""

    version: Version
    played_with: str | None
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """True when everything does."""
        return all(check.holds for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'ok ' if x.holds else 'OFF'}  {x.what}: {x.text}" for x in self.checks]
        return "\n".join([f"{self.version}", *lines])


def verify(
    zoo: Zoo,
    ref: str,
    network_class: Callable[..., Any] | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
) -> Verification:
    """Return what became of everything that the version promises.

    Golden inputs are replayed with the network's class if it is given, else with the
    program that was saved with the version. Frozen experts are compared leaf by leaf.

    Raises:
        NotFound: there is no such version, or it promises nothing.
        BadParams: there is golden behaviour, and neither a class nor a program to replay
            it; or the class does not fit the version.
        Unsupported, Corrupt: the program cannot be run here; see `programs.opened`.
    """
    version, manifest, owner = zoo.find(ref)
    played_with, golden = None, list[Check]()
    if GROUP in manifest.groups:
        played_with, golden = _replay(owner, version, manifest, network_class, network_kwargs)
    experts = [
        Check(f"frozen expert {x.path}", x.is_proved, f"{x.expert}: {x.verdict}")
        for x in prove(owner, version)
    ]
    if not golden and not experts:
        raise NotFound(
            f"{version} has nothing to verify: neither golden behaviour nor frozen experts were "
            "saved with it. Save it with golden=, or with apply_fn= and example_obs="
        )
    return Verification(version, played_with, (*golden, *experts))


def _replay(
    zoo: Zoo,
    version: Version,
    manifest: Manifest,
    network_class: Callable[..., Any] | None,
    network_kwargs: Mapping[str, Any] | None,
) -> tuple[str, list[Check]]:
    trees = Reader(manifest, zoo.blobs, str(version), verify=True).read(
        [PARAMS, GROUP], None, Placement()
    )
    golden = Golden.of_group(trees[GROUP], str(version))
    owner, given = str(version), network_kwargs or {}
    apply: Apply
    if network_class is not None:
        played_with = label(network_class)
        apply = rebuilt(network_class, manifest, owner, given, inputs=golden.inputs).apply
    elif DESCRIPTION in manifest.files:
        played_with, apply = "program", opened(zoo.blobs, manifest, owner).apply
    else:
        raise BadParams(
            f"{version} has golden behaviour, and no program to replay it with; name the network's "
            "class: verify(ref, MyNetwork), or --network module:Class"
        )
    return played_with, replayed(golden, apply, trees[PARAMS])


def replayed(golden: Golden, apply: Apply, params: Any) -> list[Check]:
    """Return a check for each golden output of `apply(params, …)`."""
    deviations = golden.deviations(play(apply, params, golden.inputs))
    return [
        Check(f"golden output {x.path}".rstrip(), x.fits, str(x), x.max_error, x.share)
        for x in deviations
    ]

"""Copying the reports that were filed after the saves, verbatim, to the versions that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from brainstore.address import MODELS_PREFIX, Digest, Name, parse_report_key
from brainstore.errors import AlreadyExists, BadReference, Corrupt, Unsupported
from brainstore.factory.reports import decoded, require_pin
from brainstore.storage.base import ABSENT
from brainstore.sync.plan import Key
from brainstore.sync.report import Ledger
from brainstore.versions import Version
from brainstore.zoo import Zoo


@dataclass(frozen=True)
class Reporting:
    """The reports of one sync on their way to the target."""

    source: Zoo
    target: Zoo
    ledger: Ledger

    def run(self, digests: Mapping[Key, Digest], *, everything: bool) -> None:
        """Copy what the target lacks of the reports on these versions, by what they are.

        Costs a listing of the models at the source; and at the target, of those that have
        reports. One that cannot be copied is told, and does not stop the others.

        Args:
            digests: of the versions that both zoos have by now.
            everything: whether to list all models at once, or each by itself.
        """
        names = {name for name, _ in digests}
        prefixes = [MODELS_PREFIX] if everything else [_prefix(name) for name in sorted(names)]
        found = {
            key: digests[parsed[:2]]
            for key in _listed(self.source, prefixes)
            if (parsed := parse_report_key(key)) and parsed[:2] in digests
        }
        owners = {parsed[0] for key in found if (parsed := parse_report_key(key))}
        there = set(_listed(self.target, [_prefix(name) for name in sorted(owners)]))
        missing = [key for key in found if key not in there]
        self.source.in_parallel(lambda key: self._copy(key, found[key]), missing)

    def _copy(self, key: str, digest: Digest) -> None:
        parsed = parse_report_key(key)
        assert parsed is not None
        name, number, _ = parsed
        stored = self.source.store.get(key)
        if stored is None:
            return
        try:
            record = decoded(stored.body, key, self.source.url)
            # What both indexes agree on was compared as text.
            require_pin(self.source.url, record, Version(name, number, Digest(digest)))
            if not self.ledger.dry_run:
                self.target.store.put(key, stored.body, expect=ABSENT)
        except (Corrupt, Unsupported, BadReference) as error:
            self.ledger.tell(name, number, "failed", str(error))
        except AlreadyExists:
            problem = f"{self.target.url} has another report under {key}"
            self.ledger.tell(name, number, "conflict", problem)
        else:
            self.ledger.reported()


def _prefix(name: Name) -> str:
    return f"{MODELS_PREFIX}{name}/"


def _listed(zoo: Zoo, prefixes: Iterable[str]) -> list[str]:
    """Return the keys of all reports below these prefixes."""
    lists = zoo.in_parallel(lambda prefix: [x.key for x in zoo.store.list(prefix)], [*prefixes])
    return [key for keys in lists for key in keys if parse_report_key(key)]

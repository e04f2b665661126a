"""The widths that both halves of a DIAL pair agree on."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from brainstore.errors import BadParams


@dataclass(frozen=True, slots=True)
class DIALConfig:
    """The widths of a pair, each in numbers of values.

    Raises:
        BadParams: one is not an integer from 0 up, or a message would be empty.
    """

    vocab_size: int
    payload_dim: int
    context_dim: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, _width(name, value))
        if self.message_dim == 0:
            raise BadParams("config: vocab_size and payload_dim are both 0; nothing can be said")

    @property
    def message_dim(self) -> int:
        return self.vocab_size + self.payload_dim

    def __str__(self) -> str:
        sum_ = f"vocab_size {self.vocab_size} + payload_dim {self.payload_dim}"
        return f"{sum_} = {self.message_dim}"

    @classmethod
    def of(cls, config: object) -> DIALConfig:
        """Return the three from a mapping's keys or an object's attributes.

        Raises:
            BadParams: some are missing; all of them are named.
        """
        found = config if isinstance(config, Mapping) else _attributes(config)
        if missing := [name for name in NAMES if name not in found]:
            raise BadParams(
                f"config: {', '.join(missing)} missing in a {type(config).__name__}; expected a "
                f"mapping or an object with {', '.join(NAMES)}"
            )
        return cls(**{name: found[name] for name in NAMES})


NAMES = tuple(each.name for each in fields(DIALConfig))


def _attributes(config: object) -> dict[str, Any]:
    return {name: getattr(config, name) for name in NAMES if hasattr(config, name)}


def _width(name: str, value: Any) -> int:
    try:
        width = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        width = -1
    if width < 0:
        raise BadParams(f"config: {name}: expected an integer from 0 up, found {value!r:.60}")
    return width

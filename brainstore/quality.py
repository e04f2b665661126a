"""How good a version is: checks and reports; and what a policy asks for before an alias moves.

Pure values, checked as they are made, so that a record that holds them is checked too.
Nothing compares with NaN: a check or condition that meets one is not passed, whatever
its operator.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec.structs import force_setattr

from brainstore.address import LATEST, Alias, Digest
from brainstore.errors import BadParams

MAX_LABEL_LENGTH = 128
FUTURE_S = 300.0
"""How far the clock of who reports may be ahead of ours."""

OPS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}

_CHECK = re.compile(r"(?P<metric>[^=]+)=(?P<value>[^<>=!]+)(?P<op>[<>]=?|[=!]=)(?P<threshold>.+)")
_CONDITION = re.compile(r"(?P<metric>[^<>=!]+)(?P<op>[<>]=?|[=!]=)(?P<threshold>.+)")

T = TypeVar("T", bound=msgspec.Struct)

if TYPE_CHECKING:
    Number = float  # what callers may give
else:

    class Number(float):
        """A float that JSON can hold: NaN and infinities are {"$float": "nan"} there."""

        def __new__(cls, value: Any) -> Number:
            if isinstance(value, dict) and value.get("$float") in ("nan", "inf", "-inf"):
                value = value["$float"]
            elif isinstance(value, str | bytes) or not hasattr(value, "__float__"):
                raise BadParams(f"expected a number, found {value!r:.60}")
            try:
                return super().__new__(cls, value)
            except (TypeError, ValueError, OverflowError) as error:
                raise BadParams(f"expected a number, found {value!r:.60}") from error


def number_as_json(value: float) -> Any:
    """Return what JSON holds in place of a `Number`."""
    return float(value) if math.isfinite(value) else {"$float": repr(float(value))}


class Check(msgspec.Struct, frozen=True):
    """One metric as it was measured, and what it had to be.

    Raises:
        BadParams: `op` is none of >= > <= < == !=, or a value is no number.
    """

    metric: str
    value: Number
    op: str
    threshold: Number

    def __post_init__(self) -> None:
        where = f"check {self.metric!a:.60}"
        force_setattr(self, "metric", _label(self.metric, "check: metric"))
        force_setattr(self, "op", _op(self.op, where))
        force_setattr(self, "value", _number(self.value, f"{where}: value"))
        force_setattr(self, "threshold", _number(self.threshold, f"{where}: threshold"))

    @property
    def is_passed(self) -> bool:
        return holds(self.value, self.op, self.threshold)

    @classmethod
    def of(cls, given: object) -> Check:
        """Return the check, from itself, a text such as `return=7.2>=7.0`, or its fields."""
        if isinstance(given, Mapping):
            return _made(given, cls, "check")
        if isinstance(given, str):
            return cls.parse(given)
        if not isinstance(given, cls):
            raise BadParams(f"check: expected a Check, found {given!r:.60}")
        return given

    @classmethod
    def parse(cls, text: str) -> Check:
        """Return the check that a text such as `return=7.2>=7.0` is.

        Raises:
            BadParams: it does not parse.
        """
        match = _CHECK.fullmatch(text.strip())
        if match is None:
            raise BadParams(
                f"check {text!r:.80}: expected a metric, its value, an operator and a threshold, "
                "such as return=7.2>=7.0"
            )
        metric, value, op, threshold = (part.strip() for part in match.groups())
        return cls(metric, _float(value, text), op, _float(threshold, text))

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.6g} {self.op} {self.threshold:.6g}"


class QualityReport(msgspec.Struct, frozen=True):
    """What a station found out about a version.

    Attributes:
        station: who judged, such as "s3" or "evaluation/night".
        checks: what was measured. Without any, the report passes nothing.
        n: how many episodes, games or samples were looked at.
        seeds: the seeds of the evaluation.
        by: who reports, as `user@host`; filled in when it is filed.
        at: when it was measured, as RFC 3339; filled in when it is filed.
        id: what the zoo knows it by; given when it is filed, in the order of filing.

    Raises:
        BadParams: a field has a value that it cannot have.
    """

    station: str
    checks: Sequence[Check] = ()
    n: int | None = None
    seeds: Sequence[int] = ()
    by: str = ""
    at: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "station", _label(self.station, "report: station"))
        force_setattr(self, "checks", _sequence(self.checks, "report: checks"))
        if not all(isinstance(check, Check) for check in self.checks):
            raise BadParams(f"report: checks: expected Check(…) each, found {self.checks!r:.80}")
        force_setattr(self, "n", None if self.n is None else _count(self.n, "report: n"))
        seeds = _sequence(self.seeds, "report: seeds")
        force_setattr(self, "seeds", tuple(_integer(seed, "report: seeds") for seed in seeds))
        force_setattr(self, "by", _text(self.by, "report: by"))
        force_setattr(self, "at", _instant(self.at, "report: at"))
        force_setattr(self, "id", _text(self.id, "report: id"))

    @classmethod
    def of(cls, given: object) -> QualityReport:
        """Return the report, from itself or a mapping of its fields; checks may be texts."""
        if isinstance(given, Mapping):
            checks = _sequence(given.get("checks", ()), "report: checks")
            return _made({**given, "checks": list(map(Check.of, checks))}, cls, "report")
        if not isinstance(given, cls):
            raise BadParams(
                f"report: expected a QualityReport or its fields, found {type(given).__name__}"
            )
        return given

    @property
    def is_passed(self) -> bool:
        """True when there are checks, and all of them hold."""
        return bool(self.checks) and all(check.is_passed for check in self.checks)

    def values(self, metric: str) -> list[float]:
        """Return what was measured of a metric: nothing, one value, or several."""
        return [check.value for check in self.checks if check.metric == metric]

    def __str__(self) -> str:
        told = ", ".join(f"{check}{'' if check.is_passed else ' ✗'}" for check in self.checks)
        return f"{self.station} {self.verdict}: {told or 'no checks'}"

    @property
    def verdict(self) -> str:
        """`passed` or `failed`."""
        return "passed" if self.is_passed else "failed"


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a metric must be, as `station` measured it, or else as the rule's stations did.

    Raises:
        BadParams: `op` is unknown, or the threshold is no number, or is NaN.
    """

    metric: str
    op: str
    threshold: Number
    station: str | None = None

    def __post_init__(self) -> None:
        where = f"condition {self.metric!a:.60}"
        force_setattr(self, "metric", _label(self.metric, "condition: metric"))
        force_setattr(self, "op", _op(self.op, where))
        force_setattr(self, "threshold", _number(self.threshold, f"{where}: threshold"))
        if math.isnan(self.threshold):
            raise BadParams(f"{where}: the threshold is NaN, which nothing could ever meet")
        if self.station is not None:
            force_setattr(self, "station", _label(self.station, f"{where}: station"))

    @classmethod
    def of(cls, given: object) -> Condition:
        """Return the condition, from itself, a text such as `return >= 7.0`, or its fields."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return _made(given, cls, "condition")
        match = _CONDITION.fullmatch(given.strip()) if isinstance(given, str) else None
        if match is None:
            raise BadParams(f"condition {given!r:.80}: expected such as 'return >= 7.0'")
        metric, op, threshold = (part.strip() for part in match.groups())
        return cls(metric, op, _float(threshold, str(given)))

    def __str__(self) -> str:
        return f"{self.op} {self.threshold:.6g}"


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must be so before an alias may name a version.

    Attributes:
        alias: the alias that it guards.
        models: of which models, as a pattern of `fnmatch`; `*` fits `/` too.
        stations: each must have reported; its newest report must be passed.
        checks: conditions, each on the newest report that measured the metric: of the
            condition's station, or else of one of `stations`, or of any if there are none.
            Texts such as "return >= 7.0" will do.
        max_age_s: how old those reports may be.
        frozen_experts: whether every expert that the version declares must be proved.

    Raises:
        BadParams: a field has a value that it cannot have, or the rule asks for nothing.
        BadReference: the alias does not parse.
    """

    alias: str
    models: str = "*"
    stations: Sequence[str] = ()
    checks: Sequence[Condition | str] = ()
    max_age_s: Number | None = None
    frozen_experts: bool = False

    def __post_init__(self) -> None:
        force_setattr(self, "alias", Alias(self.alias))
        if self.alias == LATEST:
            raise BadParams("rule: 'latest' follows the versions; no policy can guard it")
        where = f"rule for {self.alias}"
        force_setattr(self, "models", _label(self.models, f"{where}: models"))
        stations = _sequence(self.stations, f"{where}: stations")
        force_setattr(self, "stations", tuple(_label(x, f"{where}: stations") for x in stations))
        checks = _sequence(self.checks, f"{where}: checks")
        force_setattr(self, "checks", tuple(map(Condition.of, checks)))
        self._check_age(where)
        if not isinstance(self.frozen_experts, bool):
            raise BadParams(f"{where}: frozen_experts: expected true or false")
        if not (self.stations or self.checks or self.frozen_experts):
            raise BadParams(f"{where} asks for nothing; name stations, checks or frozen_experts")

    def _check_age(self, where: str) -> None:
        if self.max_age_s is not None:
            age_s = _number(self.max_age_s, f"{where}: max_age_s")
            if not age_s > 0:
                raise BadParams(f"{where}: max_age_s: expected seconds above 0, found {age_s}")
            force_setattr(self, "max_age_s", age_s)

    @classmethod
    def of(cls, given: object) -> Rule:
        """Return the rule, from itself or a mapping of its fields."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise BadParams(f"rule: expected a Rule or its fields, found {type(given).__name__}")
        return _made(given, cls, "rule")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The checks, none of them as text."""
        return tuple(map(Condition.of, self.checks))

    def guards(self, name: str, alias: str) -> bool:
        return self.alias == alias and fnmatchcase(name, self.models)


class Gate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On what grounds an alias moved: the policy as it was, and the reports that met it.

    `rules` are those of the policy that guarded the alias, which may be others by now.
    `is_forced` says that they were there, and were overruled.
    """

    policy: Digest
    generation: int
    rules: tuple[Rule, ...] = ()
    reports: tuple[str, ...] = ()
    is_forced: bool = False

    def __str__(self) -> str:
        if self.is_forced:
            return f"forced past policy {self.generation}"
        plural = "" if len(self.reports) == 1 else "s"
        return f"by policy {self.generation} and {len(self.reports)} report{plural}"


def holds(value: float, op: str, threshold: float) -> bool:
    """True when the comparison is true; never where one side is NaN."""
    is_nan = math.isnan(value) or math.isnan(threshold)
    return not is_nan and OPS[op](value, threshold)


def age_s(report: QualityReport) -> float:
    """Return how many seconds ago it was measured: negative in the future, inf if unknown."""
    if not report.at:
        return math.inf
    return (datetime.now(UTC) - datetime.fromisoformat(report.at)).total_seconds()


def _label(text: object, where: str) -> str:
    found = _text(text, where)
    if not found.strip() or found != found.strip() or len(found) > MAX_LABEL_LENGTH:
        raise BadParams(
            f"{where}: expected a text of at most {MAX_LABEL_LENGTH} characters, without space "
            f"around it, found {found!r:.60}"
        )
    return found


def _text(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.isprintable():
        raise BadParams(f"{where}: expected a line of text, found {text!r:.60}")
    return str.__str__(text)


def _op(op: object, where: str) -> str:
    if not isinstance(op, str) or op not in OPS:
        raise BadParams(f"{where}: unknown operator {op!r:.20}; there are {' '.join(OPS)}")
    return op


def _number(value: object, where: str) -> float:
    try:
        return Number(value)  # type: ignore[arg-type]  # it checks
    except BadParams as error:
        raise BadParams(f"{where}: {error}") from error


def _float(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadParams(f"{whole!r:.80}: {text!r} is no number") from None


def _integer(value: Any, where: str) -> int:
    try:
        found = int(value.__index__())
    except (AttributeError, TypeError):
        raise BadParams(f"{where}: expected whole numbers, found {value!r:.60}") from None
    if not -(2**63) <= found < 2**63:
        raise BadParams(f"{where}: {found} does not fit into 64 bits")
    return found


def _count(value: object, where: str) -> int:
    found = _integer(value, where)
    if found < 0:
        raise BadParams(f"{where}: expected a number from 0 up, found {found}")
    return found


def _sequence(given: object, where: str) -> tuple[Any, ...]:
    if not isinstance(given, str | bytes | Mapping) and isinstance(given, Iterable):
        with suppress(TypeError):  # an array without dimensions
            return tuple(given)
    raise BadParams(f"{where}: expected a list, found {given!r:.60}")


def _instant(at: object, where: str) -> str:
    """Return a time as RFC 3339 with its zone; "" for none."""
    if at == "":
        return ""
    try:
        found = at if isinstance(at, datetime) else datetime.fromisoformat(str(at))
    except ValueError:
        raise BadParams(f"{where}: expected a time as RFC 3339, found {at!r:.60}") from None
    if found.tzinfo is None:
        raise BadParams(f"{where}: {at!r:.60} has no time zone; add one, such as Z for UTC")
    if isinstance(at, str):
        return _text(at, where)
    return found.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _made(given: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Return the struct with these fields. It checks their values itself."""
    known = msgspec.structs.fields(kind)
    if unknown := set(given) - {each.name for each in known}:
        raise BadParams(f"{where}: unknown fields {', '.join(sorted(map(str, unknown)))}")
    if lacking := {each.name for each in known if each.required} - set(given):
        raise BadParams(f"{where}: lacks {', '.join(sorted(lacking))}")
    return kind(**given)

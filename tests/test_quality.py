"""Checks, reports, conditions and rules as values: what they accept, and what never passes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstore import BadParams, BadReference, Check, Condition, QualityReport, Rule
from brainstore.quality import OPS, holds
from brainstore.records import StoredReport

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "op", "threshold", "passes"),
    [
        (7.0, ">=", 7.0, True),
        (7.0, ">", 7.0, False),
        (0.1, "<=", 0.1, True),
        (0.1, "<", 0.1, False),
        (3, "==", 3.0, True),
        (3, "!=", 3.0, False),
        (INF, ">", 1e308, True),
        (-INF, "<", 0, True),
        (True, "==", 1, True),
    ],
)
def test_a_check_compares_its_value_with_its_threshold(
    value: float, op: str, threshold: float, passes: bool
) -> None:
    assert Check("return", value, op, threshold).is_passed is passes


@pytest.mark.parametrize("op", OPS)
def test_nan_never_passes_whatever_the_operator(op: str) -> None:
    for value, threshold in [(NAN, 1.0), (1.0, NAN), (NAN, NAN)]:
        assert not Check("return", value, op, threshold).is_passed
        assert not holds(value, op, threshold)


def test_a_report_passes_when_it_has_checks_and_all_of_them_hold() -> None:
    good, bad = Check("a", 1, ">", 0), Check("b", 0, ">", 0)
    assert QualityReport("s3", [good]).is_passed
    assert not QualityReport("s3", [good, bad]).is_passed
    assert not QualityReport("s3", []).is_passed


def test_arrays_scalars_and_times_are_coerced_to_plain_values() -> None:
    at = datetime(2026, 11, 23, 22, 33, 35, tzinfo=UTC)
    found = QualityReport(
        "s3",
        [Check("a", np.float32(0.5), ">", np.array(0))],
        n=np.int64(9),
        seeds=[np.uint8(3)],
        at=at,
    )
    assert found == QualityReport(
        "s3", [Check("a", 0.5, ">", 0.0)], 9, [3], at="2026-11-23T22:33:35.000Z"
    )
    assert type(found.n) is int
    assert [type(seed) for seed in found.seeds] == [int]
    assert QualityReport("s3", seeds=np.arange(3)).seeds == (0, 1, 2)
    assert QualityReport("s3", (Check(x, 1, ">", 0) for x in "ab"), seeds=range(2)).seeds == (0, 1)


def test_a_report_may_be_given_as_its_fields_with_values_of_any_library() -> None:
    at = datetime(2026, 11, 23, 22, 33, 35, tzinfo=UTC)
    fields = {
        "station": "s3",
        "checks": ["a=1>0", {"metric": "b", "value": np.float32(2), "op": "<", "threshold": 3}],
        "n": np.int32(5),
        "seeds": (np.int64(1),),
        "at": at,
    }
    found = QualityReport.of(fields)
    assert found.checks == (Check("a", 1, ">", 0), Check("b", 2, "<", 3))
    assert (found.n, found.seeds, found.at) == (5, (1,), "2026-11-23T22:33:35.000Z")
    assert QualityReport.of(found) is found


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("return=7.2>=7.0", Check("return", 7.2, ">=", 7.0)),
        (" eval/return = -1e3 == -1000 ", Check("eval/return", -1e3, "==", -1000.0)),
        ("loss=inf!=0", Check("loss", INF, "!=", 0.0)),
    ],
)
def test_a_check_can_be_written_as_text(text: str, check: Check) -> None:
    assert Check.parse(text) == check


@pytest.mark.parametrize(
    "text", ["", "return", "return=7", "return>=7", "=7>=6", "a=b>=c", "a=1~2"]
)
def test_a_text_that_is_no_check_is_refused(text: str) -> None:
    with pytest.raises(BadParams):
        Check.parse(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Check("a", 1, "~", 2), "unknown operator '~'"),
        (lambda: Check("a", 1, ["<"], 2), "unknown operator"),
        (lambda: Check("a", "1", "<", 2), "expected a number"),
        (lambda: Check("a", np.ones(2), "<", 2), "expected a number"),
        (lambda: Check("a", None, "<", 2), "expected a number"),
        (lambda: Check("", 1, "<", 2), "metric"),
        (lambda: Check("a\nb", 1, "<", 2), "a line of text"),
        (lambda: Check("x" * 200, 1, "<", 2), "128"),
        (lambda: QualityReport(""), "station"),
        (lambda: QualityReport(" s3"), "station"),
        (lambda: QualityReport("s3", Check("a", 1, "<", 2)), "checks: expected a list"),
        (lambda: QualityReport("s3", ["a=1<2"]), "Check"),
        (lambda: QualityReport("s3", seeds=3), "seeds: expected a list"),
        (lambda: QualityReport("s3", seeds={"a": 1}), "seeds: expected a list"),
        (lambda: QualityReport("s3", seeds=np.array(3)), "seeds: expected a list"),
        (lambda: QualityReport("s3", n=-1), "from 0 up"),
        (lambda: QualityReport("s3", n=1.5), "whole numbers"),
        (lambda: QualityReport("s3", seeds=[2**63]), "64 bits"),
        (lambda: QualityReport("s3", at="yesterday"), "RFC 3339"),
        (lambda: QualityReport("s3", at="2026-11-23T22:33:35"), "time zone"),
        (lambda: QualityReport.of(5), "found int"),
        (lambda: QualityReport.of({"station": "s3", "score": 1}), "unknown fields score"),
        (lambda: QualityReport.of({"checks": []}), "lacks station"),
        (lambda: QualityReport.of({"station": "s3", "checks": [5]}), "expected a Check"),
        (lambda: QualityReport.of({"station": "s3", "checks": "a=1>0"}), "expected a list"),
        (lambda: QualityReport.of({"station": "s", "checks": [{"metric": "a"}]}), "value"),
        (lambda: Condition("a", ">", NAN), "NaN"),
        (lambda: Condition("a", "is", 1), "unknown operator"),
        (lambda: Condition.of("a = 3"), "expected such as"),
        (lambda: Rule("prod"), "asks for nothing"),
        (lambda: Rule("prod", max_age_s=5), "asks for nothing"),
        (lambda: Rule("latest", stations=["s3"]), "latest"),
        (lambda: Rule("prod", stations="s3"), "expected a list"),
        (lambda: Rule("prod", stations=["s3"], max_age_s=0), "above 0"),
        (lambda: Rule("prod", stations=["s3"], max_age_s=NAN), "above 0"),
        (lambda: Rule("prod", frozen_experts="yes"), "true or false"),
        (lambda: Rule.of({"alias": "prod", "station": "s3"}), "unknown fields station"),
    ],
)
def test_bad_values_are_refused_as_they_are_made(make: Any, said: str) -> None:
    with pytest.raises(BadParams, match=said):
        make()


def test_the_alias_of_a_rule_is_checked_like_every_alias() -> None:
    with pytest.raises(BadReference):
        Rule("Prod", stations=["s3"])


def test_conditions_can_be_written_as_text_or_fields() -> None:
    rule = Rule.of(
        {
            "alias": "prod",
            "checks": [
                "return >= 7",
                {"metric": "loss", "op": "<", "threshold": 1, "station": "s4"},
            ],
        }
    )
    assert rule.checks == (Condition("return", ">=", 7.0), Condition("loss", "<", 1.0, "s4"))


def test_a_rule_guards_the_models_that_its_pattern_fits() -> None:
    rule = Rule("prod", "team/*", stations=["s3"])
    assert rule.guards("team/a/b", "prod")
    assert not rule.guards("team/a", "candidate")
    assert not rule.guards("other", "prod")


numbers = st.floats(allow_nan=True, allow_infinity=True)
checks = st.builds(Check, st.sampled_from("ab"), numbers, st.sampled_from(sorted(OPS)), numbers)


@given(st.lists(checks, max_size=3), st.none() | st.integers(0, 2**63 - 1))
def test_a_report_reads_back_as_it_was_written(found: list[Check], n: int | None) -> None:
    report = QualityReport("s3", found, n, [1], "me", datetime.now(UTC) - timedelta(1), "id")
    digest = "blake3:" + "0" * 64
    record = StoredReport(name="a", version=1, digest=digest, at="", by="", report=report)
    again = StoredReport.decode(record.encode(), "here")
    assert repr(again.report) == repr(report)
    assert again.report.is_passed == report.is_passed
    for check, back in zip(found, again.report.checks, strict=True):
        assert math.isnan(check.value) == math.isnan(back.value)

"""Names, versions, references and keys: what parses, what is refused, what comes back."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstore.address import (
    JOURNAL_PREFIX,
    Alias,
    Digest,
    Fact,
    Name,
    Reference,
    blob_key,
    full_name,
    intent_key,
    is_ulid,
    manifest_key,
    new_ulid,
    parse_blob_key,
    parse_fact_key,
    parse_manifest_key,
    parse_pointer_key,
    parse_reference,
    parse_report_key,
    parse_version,
    pointer_key,
    report_key,
    ulid_after,
)
from brainstore.errors import BadReference

DIGEST = Digest.of(b"hello")
ULID = "01M85C50560SV00T2XCPB2KJ4K"

segments = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)


def _is_name(text: str) -> bool:
    try:
        Name(text)
    except BadReference:
        return False
    return True


def _is_alias(text: str) -> bool:
    try:
        Alias(text)
    except BadReference:
        return False
    return True


names = st.lists(segments, min_size=1, max_size=3).map("/".join).filter(_is_name)
aliases = segments.filter(_is_alias)
numbers = st.integers(1, 10**18 - 1)

BAD_NAMES = [
    "",
    ".",
    "..",
    "a/../b",
    "../a",
    "a/..",
    "/a",
    "a/",
    "a//b",
    ".a",
    "a.",
    "-a",
    "a_",
    "A",
    "ppo Swarm",
    "ppo\n",
    "ppo\x00",
    "\x1b[31m",
    "\u202eppo",
    "é",
    "a\\b",
    "C:\\a",
    "con",
    "a/nul",
    "com1.x",
    "lpt0/x",
    "aux",
    "refs",
    "a/refs/b",
    "v3",
    "a/v12",
    "ppo_v3",
    "a+b",
    "a~b",
    "a:b",
    "a@b",
    "a#b",
    "x" * 129,
    "x" * 300,
    "ppo٣",
]


@pytest.mark.parametrize("text", BAD_NAMES, ids=ascii)
def test_an_ill_formed_name_is_refused_on_one_short_line(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        Name(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("PPO Swarm", "ppo_swarm"),
        ("a//b", "a/b"),
        ("/ppo/", "ppo"),
        ("Ppo_v3", "ppo-v3"),
        ("con", "model-con"),
        ("a/v12", "a/model-v12"),
        ("a\\b", "a/b"),
    ],
)
def test_the_nearest_good_name_is_offered(text: str, near: str) -> None:
    with pytest.raises(BadReference, match=f"nearest good name is '{near}'"):
        Name(text)


@given(st.text(max_size=140))
def test_every_text_is_a_name_or_refused_and_what_is_offered_is_good(text: str) -> None:
    try:
        assert Name(text) == text
    except BadReference as error:
        offered = str(error).partition("nearest good name is '")[2].rstrip("'")
        if offered:
            assert Name(offered) == offered


@pytest.mark.parametrize("text", ["a", "0", "ppo_swarm", "team/ppo.1-b", "x" * 128, "v3a", "a_v0"])
def test_a_well_formed_name_stays_as_it_is(text: str) -> None:
    assert Name(text) == text
    assert Name(Name(text)) == text


def test_only_text_is_a_name() -> None:
    for other in (None, 3, b"ppo", ["ppo"]):
        with pytest.raises(BadReference, match="expected a string"):
            Name(other)


@pytest.mark.parametrize(
    "text", ["", "3", "003", "v3", "Prod", "a/b", "..", "prod\n", "x" * 65, "nul", "a~1", "٣", None]
)
def test_an_ill_formed_alias_is_refused(text: object) -> None:
    with pytest.raises(BadReference, match="alias"):
        Alias(text)


@pytest.mark.parametrize("text", ["prod", "latest", "candidate-2", "2b", "a.b_c", "x" * 64])
def test_a_well_formed_alias_stays_as_it_is(text: str) -> None:
    assert Alias(text) == text


@pytest.mark.parametrize("given", [3, "3", "v3", pytest.param(True + 2, id="int")])
def test_versions_are_numbers_from_one_up(given: object) -> None:
    assert parse_version(given) == 3


@pytest.mark.parametrize(
    "given",
    [0, -1, "0", "v0", "03", "", "3.0", 3.0, True, None, 10**18, "1٣", "9" * 5000, print],
)
def test_what_is_no_version_is_refused(given: object) -> None:
    with pytest.raises(BadReference, match="version"):
        parse_version(given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppo", Reference(Name("ppo"), alias=Alias("latest"))),
        ("ppo:3", Reference(Name("ppo"), 3)),
        ("ppo:v3", Reference(Name("ppo"), 3)),
        ("ppo_v3", Reference(Name("ppo"), 3)),
        ("ppo:prod", Reference(Name("ppo"), alias=Alias("prod"))),
        ("ppo:prod~1", Reference(Name("ppo"), alias=Alias("prod"), back=1)),
        (f"ppo:3@{DIGEST}", Reference(Name("ppo"), 3, digest=DIGEST.hex)),
        ("ppo:3@0123abcd", Reference(Name("ppo"), 3, digest="0123abcd")),
        ("ppo@blake3:0123abcd", Reference(Name("ppo"), digest="0123abcd")),
        ("ppo:prod@0123abcd", Reference(Name("ppo"), alias=Alias("prod"), digest="0123abcd")),
        (
            "ppo#encoder/dense_0",
            Reference(Name("ppo"), alias=Alias("latest"), subtree="encoder/dense_0"),
        ),
        ("ppo:3#a#b", Reference(Name("ppo"), 3, subtree="a#b")),
        (
            "s3://team/zoo::ppo:prod",
            Reference(Name("ppo"), alias=Alias("prod"), zoo="s3://team/zoo"),
        ),
        ("/a::b::team/ppo_v2", Reference(Name("team/ppo"), 2, zoo="/a::b")),
        (
            f"s3://t/z::a/b:3@{DIGEST}#x",
            Reference(Name("a/b"), 3, digest=DIGEST.hex, subtree="x", zoo="s3://t/z"),
        ),
    ],
)
def test_every_form_of_a_reference_parses_and_comes_back(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected
    assert parse_reference(expected) is expected


@given(
    st.builds(
        Reference,
        names.map(Name),
        version=st.none() | numbers,
        digest=st.none() | st.from_regex(r"[0-9a-f]{8,64}", fullmatch=True),
        subtree=st.none() | st.text(string.ascii_letters + "/#@:_0", min_size=1),
        zoo=st.none() | st.sampled_from(["s3://team/zoo", "/home/x y/brains", "a::b", "C:\\zoo"]),
    ),
    st.none() | aliases.map(Alias),
    st.integers(0, 99),
)
def test_any_reference_comes_back_from_its_text(
    reference: Reference, alias: Alias | None, back: int
) -> None:
    if reference.version is None and (alias or not reference.digest):
        from dataclasses import replace

        reference = replace(reference, alias=alias or Alias("latest"), back=back)
    # The text after the last `::` is the reference, so a subtree cannot hold one.
    if "::" not in (reference.subtree or ""):
        assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":3",
        "ppo:",
        "ppo:0",
        "ppo:007",
        "ppo:v0",
        "ppo:prod~",
        "ppo:prod~0",
        "ppo:prod~100",
        "ppo:~1",
        "ppo:3~1",
        "ppo@",
        "ppo@blake3:123",
        "ppo@sha256:0123abcd",
        "ppo:3@0123ABCD",
        "::ppo",
        "ppo:1:2",
        "../ppo",
        "ppo:../x",
        "PPO:3",
        "#x",
        "ppo:1٣",
        None,
        7,
        b"ppo",
    ],
)
def test_what_is_no_reference_is_refused(text: object) -> None:
    with pytest.raises(BadReference):
        parse_reference(text)


@given(st.text(max_size=60) | st.text("ppov:@~#/3_blake", max_size=30))
def test_any_text_parses_or_is_a_bad_reference(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadReference:
        return
    assert sum([reference.version is not None, reference.alias is not None]) <= 1
    assert reference.version or reference.alias or reference.digest


def test_a_version_beside_the_reference_must_not_name_it_twice() -> None:
    assert parse_reference("ppo", 3).version == 3
    assert parse_reference("ppo", "v3").version == 3
    assert parse_reference("ppo", "prod~2").back == 2
    assert parse_reference("ppo#enc", 3).subtree == "enc"
    for text in ("ppo:3", "ppo_v3", "ppo:prod", "ppo:latest~1"):
        with pytest.raises(BadReference, match="names a version already"):
            parse_reference(text, 4)


@given(names.map(Name), numbers, aliases.map(Alias))
def test_keys_come_back_as_what_they_name(name: Name, version: int, alias: Alias) -> None:
    assert parse_manifest_key(manifest_key(name, version)) == (name, version)
    assert parse_pointer_key(pointer_key(name, alias)) == (name, alias)
    assert parse_blob_key(blob_key(DIGEST)) == DIGEST
    assert parse_manifest_key(report_key(name, version, ULID)) is None
    assert parse_report_key(report_key(name, version, ULID)) == (name, version, ULID)
    assert parse_report_key(manifest_key(name, version)) is None
    assert parse_manifest_key(pointer_key(name, alias)) is None
    assert parse_pointer_key(manifest_key(name, version)) is None
    assert full_name(name, version) == f"{name}_v{version}"


@given(names.map(Name), numbers, st.integers(0, 10**18 - 1), aliases.map(Alias))
def test_facts_come_back_from_their_keys(
    name: Name, version: int, generation: int, alias: Alias
) -> None:
    for fact in (
        Fact(ULID, "save", name, version),
        Fact(ULID, "delete", name, version, generation),
        Fact(ULID, "restore", name, version, generation),
        Fact(ULID, "move", name, version, generation, alias),
        Fact(ULID, "move", name, 0, generation, alias),
    ):
        assert parse_fact_key(fact.key) == fact
        assert "/" not in fact.key.removeprefix(JOURNAL_PREFIX)


@pytest.mark.parametrize(
    "rest",
    [
        "save~ppo~03",  # would be looked for under another key
        "save~ppo~0",  # would make a snapshot that nobody can read
        "save~ppo~1000000000000000000",
        "save~ppo~٣",
        "save~../x~3",
        "save~PPO~3",
        "save~ppo~3~1",
        "delete~ppo~3",
        "delete~ppo~0~1",
        "delete~ppo~3~1~prod",
        "delete~ppo~3~01",
        "move~ppo~3~1",
        "move~ppo~3~1~../prod",
        "renamed~ppo~3",
        "save~a/b~3",
    ],
)
def test_a_stray_key_in_the_journal_is_no_fact(rest: str) -> None:
    assert parse_fact_key(f"journal/{ULID}~{rest}") is None


@pytest.mark.parametrize(
    "key",
    [
        "models/ppo/v0/manifest.json",
        "models/ppo/v03/manifest.json",
        "models/PPO/v3/manifest.json",
        "models/../v3/manifest.json",
        "models/v3/manifest.json",
        "models/ppo/v3/manifest.json.bak",
        "models/ppo/v9999999999999999999/manifest.json",
        "models/ppo/refs/3.json",
        "models/ppo/refs/Prod (copy).json",
        "models/../refs/prod.json",
        "blobs/00/" + DIGEST.hex,
        f"blobs/{DIGEST.hex[:2]}/{DIGEST.hex[:-1]}",
        f"blobs/{DIGEST.hex[:2]}/{DIGEST.hex.upper()}",
    ],
)
def test_a_stray_key_is_nothing_of_ours(key: str) -> None:
    assert parse_manifest_key(key) is None
    assert parse_pointer_key(key) is None
    assert parse_blob_key(key) is None


@given(st.text(max_size=80))
def test_no_key_makes_a_parser_fail(text: str) -> None:
    for key in (text, f"models/{text}/v3/manifest.json", f"models/ppo/refs/{text}.json"):
        parse_manifest_key(key), parse_pointer_key(key), parse_blob_key(key)
        parse_report_key(f"{text}/reports/{ULID}.json"), parse_report_key(key)
    fact = parse_fact_key(f"journal/{ULID}~save~{text}")
    assert fact is None or fact.key == f"journal/{ULID}~save~{text}"


@pytest.mark.parametrize("text", ["", "blake3:", "0" * 64, "blake3:" + "A" * 64, DIGEST + "\n"])
def test_an_ill_formed_digest_is_refused(text: str) -> None:
    with pytest.raises(BadReference, match="digest"):
        Digest(text)


def test_the_digest_of_bytes_is_blake3() -> None:
    # Source: the test vectors of the BLAKE3 reference implementation, empty input.
    known = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert Digest.of(b"") == f"blake3:{known}"
    assert (Digest.of(b"").hex, Digest.of(b"").short) == (known, "blake3:af1349b9")


def test_ulids_sort_by_time_and_differ() -> None:
    made = [new_ulid() for _ in range(100)]
    assert len(set(made)) == 100
    assert all(map(is_ulid, made))
    assert [each[:10] for each in made] == sorted(each[:10] for each in made)
    assert intent_key(made[0]) == f"intents/{made[0]}.json"


@pytest.mark.parametrize(
    "key",
    [
        f"models/a/v1/reports/{ULID.lower()}.json",
        f"models/a/v1/reports/{ULID}",
        f"models/a/v1/reports/x/{ULID}.json",
        f"models/a/v01/reports/{ULID}.json",
        f"models/../v1/reports/{ULID}.json",
        f"models/a/reports/{ULID}.json",
        f"a/v1/reports/{ULID}.json",
        "models/a/v1/reports/../manifest.json",
    ],
)
def test_what_is_no_report_is_not_taken_for_one(key: str) -> None:
    assert parse_report_key(key) is None


@given(st.integers(0, 2**128 - 2))
def test_a_ulid_comes_after_any_other(value: int) -> None:
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    last = "".join(digits[value >> shift & 31] for shift in range(125, -1, -5))
    assert is_ulid(last)
    after = ulid_after(last)
    assert is_ulid(after)
    assert after > last


def test_nothing_comes_after_the_last_ulid() -> None:
    with pytest.raises(BadReference, match="no other"):
        ulid_after("7" + "Z" * 25)

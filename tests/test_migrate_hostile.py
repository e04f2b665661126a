"""Files that are damaged, or made to harm: a clear error, nothing run, bounded memory."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import Asks, pickled, saved, write_archive

from brainstore.errors import BadParams, BrainstoreError, Unsupported
from brainstore.migrate import migrate
from brainstore.migrate.torchfile import KNOWN
from brainstore.migrate.unpickling import unpickle

MEBIBYTE = 1 << 20


def read(path: Path) -> Any:
    """Read all that a checkpoint has, its tensors too."""
    return migrate(path, as_is=True).params


@contextlib.contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Check that no more memory is allocated inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size_bytes, f"{peak:,} bytes"


# Pickles that ask for more than tensors


HARMFUL = [
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("builtins", "eval", "open({!r}, 'w')"),
    ("builtins", "exec", "open({!r}, 'w')"),
    ("__builtin__", "eval", "open({!r}, 'w')"),
    ("builtins", "open", "{}", "w"),
    ("builtins", "getattr", "{}", "__class__"),
    ("builtins", "__import__", "os"),
    ("subprocess", "Popen", "touch {}"),
    ("numpy", "load", "{}"),
    ("torch", "load", "{}"),
    ("torch.hub", "load", "{}"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.storage", "_load_from_bytes", "{}"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", "{}"),
    ("argparse", "Namespace"),
    ("functools", "partial", "{}"),
    ("operator", "attrgetter", "{}"),
    ("codecs", "decode", "{}"),
    ("pickle", "loads", "{}"),
    ("collections", "namedtuple", "{}", "a b"),
    ("torch", "float32.__class__"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", HARMFUL, ids=lambda call: f"{call[0]}.{call[1]}")
def test_what_a_pickle_must_not_ask_for_is_refused_by_name(
    tmp_path: Path, call: tuple[str, ...], protocol: int
) -> None:
    module, name, *arguments = call
    canary = tmp_path / "canary"
    asks = Asks(module, name, *(each.format(str(canary)) for each in arguments))
    path = write_archive(tmp_path / "a.pt", pickled({"w": [asks]}, protocol))
    shown = f"{module.replace('__builtin__', 'builtins')}.{name}"
    with pytest.raises(BadParams, match=rf"a\.pt: the pickle asks for {shown}, which"):
        read(path)
    assert not canary.exists()


def test_a_call_inside_of_a_call_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    inner = Asks("os", "system", f"touch {canary}")
    for outer in (
        Asks("collections", "OrderedDict", [("w", inner)]),
        Asks("torch._utils", "_rebuild_parameter", inner, True, None),
        Asks("torch._tensor", "_rebuild_from_type_v2", inner, None, (), None),
        Asks("collections", "defaultdict", inner),
    ):
        with pytest.raises(BadParams, match=r"asks for os\.system"):
            read(write_archive(tmp_path / "a.pt", pickled(outer)))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"(S'x'\nios\nsystem\n.", "unknown opcode"),
        (b"(V.\nios\nsystem\n.", r"asks for os\.system"),
        (b"(icollections\nOrderedDict\n.", "asks for INST"),
        (b"(ccollections\nOrderedDict\no.", "asks for OBJ"),
        (b"Px\n.", "asks for PERSID"),
        (b"\x82\x01.", "asks for EXT1"),
        (b"\x8c\x02os\x8c\x06system\x93.", r"asks for os\.system"),
        (b"K\x01K\x02\x93.", "whose name is no text"),
        (b"K\x01)R.", "calls int"),
        (b"X\x02\x00\x00\x00os)R.", "calls str"),
        (b"ctorch\nfloat32\n)R.", r"calls torch\.float32 in a way"),
        (b"ccollections\nOrderedDict\nK\x01R.", r"calls collections\.OrderedDict in a way"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02tR.", "with what does not fit"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "byte array of what is no bytes"),
    ],
)
def test_opcodes_that_run_anything_are_refused(tmp_path: Path, body: bytes, problem: str) -> None:
    with pytest.raises(BadParams, match=problem):
        read(write_archive(tmp_path / "a.pt", body))


@pytest.mark.parametrize(
    "body",
    [
        b"ccollections\nOrderedDict\n)R]b.",
        b"ccollections\nOrderedDict\n}b.",
        b"]}b.",
        b"K\x01}b.",
        b"ctorch\nSize\n)R}b.",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R}b.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02tb.",
    ],
)
def test_states_that_do_not_fit_are_refused(body: bytes) -> None:
    with pytest.raises(BadParams, match=r"state|made of numbers"):
        unpickle(body, KNOWN)


def test_the_attributes_of_a_state_dict_change_nothing() -> None:
    class Ordered(OrderedDict[str, int]):
        pass

    state = {"__class__": 1, "keys": 2, "_metadata": {"": {"version": 1}}}
    body = pickled(Asks("collections", "OrderedDict", [["a", 1]], state=state))
    found = unpickle(body, KNOWN)
    assert type(found) is dict
    assert found == {"a": 1}
    assert list(found.keys()) == ["a"]


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(BadParams, match=r"torch\.nn\.modules\.container\.Sequential.*state_dict"):
        read(path)


# Pickles that claim much


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


BOMBS = {
    "lists in lists": opcodes(b"]" * 100_000, b"a" * 99_999),
    "tuples in tuples": opcodes(b")", b"\x85" * 300_000),
    "dicts in dicts": opcodes(b"}" + b"K\x00}" * 50_000, b"s" * 50_000),
    "a list in itself": opcodes(b"]q\x00h\x00a"),
    "a dict in itself": opcodes(b"}q\x00X\x01\x00\x00\x00ah\x00s"),
    "a deep key": opcodes(b"}", b")", b"\x85" * 200_000, b"K\x01s"),
    "a long key": opcodes(b"}B\xff\xff\x00\x00", b"x" * 65535, b"K\x01s"),
    "keys that collide": opcodes(b"}\x8a\x09", (2**61 - 1).to_bytes(9, "little"), b"K\x01s"),
    "text that grows": opcodes(
        b"X\xff\xff\x0f\x00", b"x" * 0xFFFFF, b"q\x00X\x06\x00\x00\x00latin1q\x01]",
        *[b"c_codecs\nencode\nh\x00h\x01\x86Ra"] * 400,
    ),
    "sizes that grow": opcodes(
        b"(", b"K\x00" * 100_000, b"tq\x00]", *[b"ctorch\nSize\nh\x00\x85Ra"] * 1000
    ),
    "a number of many digits": opcodes(b"I" + b"9" * 100_000 + b"\n"),
    "a string of 4 GB": opcodes(b"X\xff\xff\xff\xff"),
    "bytes of 16 EB": opcodes(b"\x8e" + b"\xff" * 8),
    "a memo that is not there": opcodes(b"h\x07"),
    "an empty stack": opcodes(b"a"),
    "no mark": opcodes(b"t"),
    "no end": b"\x80\x02]",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_within_bounds(tmp_path: Path, body: bytes) -> None:
    path = write_archive(tmp_path / "a.pt", body)
    with at_most(400 * MEBIBYTE), pytest.raises(BadParams, match=r"a\.pt"):
        read(path)


@pytest.mark.parametrize("node", [b"](h\x00h\x00eq\x00", b"}(K\x01h\x00K\x02h\x00uq\x00"])
def test_shared_containers_are_not_walked_for_ever(tmp_path: Path, node: bytes) -> None:
    path = write_archive(tmp_path / "a.pt", opcodes(b"]q\x00", node * 30))
    with pytest.raises(BadParams, match="more than 1,048,576 values"):
        read(path)


def test_sets_are_charged_and_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with at_most(400 * MEBIBYTE), pytest.raises(BadParams, match="builds more than 256 MiB"):
        unpickle(b"\x8f" * 1_300_000 + b".", KNOWN)
    monkeypatch.setattr("brainstore.migrate.unpickling.MAX_STEPS", 1000)
    with pytest.raises(BadParams, match="more than 1,000 steps"):
        unpickle(b"N0" * 600 + b"N.", KNOWN)


def test_a_pickle_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(BadParams, match="Save the tensors alone"):
        unpickle(bytes(65 * MEBIBYTE), KNOWN)


# Tensors that do not lie in their storage


def tensor(offset: Any, shape: Any, strides: Any, **storage: Any) -> bytes:
    """Return a pickle of one tensor in storage 0, of `count` elements of float32."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, found: Any) -> Any:
            kind = torch.FloatStorage
            known = ("storage", kind, "0", "cpu", storage.get("count", 12))
            return storage.get("identity", known) if found is Ellipsis else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            arguments = (Ellipsis, offset, shape, strides, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": Rebuilt()})
    return stream.getvalue()


GOOD = (0, (3, 4), (4, 1))


def test_a_tensor_in_its_storage_is_read(tmp_path: Path) -> None:
    content = np.arange(12, dtype=np.float32)
    path = write_archive(tmp_path / "a.pt", tensor(*GOOD), {"data/0": content.tobytes()})
    np.testing.assert_array_equal(read(path)["w"], content.reshape(3, 4))


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ((1, (3, 4), (4, 1)), "reaches element 12 of storage '0', which has 12"),
        ((0, (3, 4), (5, 1)), "reaches element 13"),
        ((0, (2**40,), (1,)), "reaches element"),
        ((2**62, (1,), (1,)), "reaches element"),
        ((0, (2**30, 2**30), (0, 0)), "more than any machine holds"),
        ((-1, (3, 4), (4, 1)), "no place"),
        ((0, (3, 4), (4, -1)), "strides of a tensor"),
        ((0, (-3, 4), (4, 1)), "shape of a tensor"),
        ((0, (3, 4), (4,)), "no place"),
        ((0, [3, 4], (4, 1)), "shape of a tensor"),
        ((0, (3.0, 4), (4, 1)), "shape of a tensor"),
        ((0, (1,) * 65, (1,) * 65), "shape of a tensor"),
        ((0.5, (3, 4), (4, 1)), "no place"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    tmp_path: Path, place: tuple[Any, ...], problem: str
) -> None:
    path = write_archive(tmp_path / "a.pt", tensor(*place), {"data/0": bytes(48)})
    with pytest.raises(BadParams, match=problem):
        read(path)


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        ({"count": 13}, "claims 13 elements of float32, 52 bytes, and has 48"),
        ({"count": 11}, "claims 11"),
        ({"count": 2**62}, "claims"),
        ({"count": -1}, "claims"),
        ({"identity": ("storage", torch.FloatStorage, "1", "cpu", 12)}, "data/1' is missing"),
        ({"identity": ("storage", torch.FloatStorage, "../data.pkl", "cpu", 12)}, "is missing"),
        ({"identity": ("module", torch.FloatStorage, "0", "cpu", 12)}, "torch never does"),
        ({"identity": ("storage", "FloatStorage", "0", "cpu", 12)}, "torch never does"),
        ({"identity": "0"}, "torch never does"),
    ],
)
def test_a_storage_that_is_not_there_is_refused(
    tmp_path: Path, storage: dict[str, Any], problem: str
) -> None:
    path = write_archive(tmp_path / "a.pt", tensor(*GOOD, **storage), {"data/0": bytes(48)})
    with pytest.raises(BadParams, match=problem):
        read(path)


def test_a_small_file_cannot_claim_terabytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.zeros(1).expand(2**30, 2**10)})
    with at_most(MEBIBYTE), pytest.raises(BadParams, match="claim 4,398,046,511,104 bytes"):
        read(path)
    shared = torch.zeros(2**20)
    views = {str(n): shared[n:] for n in range(1000)}
    path = saved(tmp_path / "b.pt", views)
    with at_most(16 * MEBIBYTE), pytest.raises(BadParams, match="claim 4,1"):
        read(path)


def test_tensors_that_jax_has_no_equal_of_are_refused_by_name(tmp_path: Path) -> None:
    for name, value in {
        "sparse": torch.eye(3).to_sparse(),
        "without values": torch.empty(2, device="meta"),
    }.items():
        path = saved(tmp_path / "a.pt", {"layer": {"w": value}})
        with pytest.raises(Unsupported, match=rf"a\.pt: layer\.w is a .*{name}"):
            read(path)


# Archives


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    state = torch.nn.Linear(3, 4).state_dict()
    return saved(tmp_path / "whole.pt", {"model": state, "epoch": 3}).read_bytes()


def test_truncated_files_are_refused(tmp_path: Path, whole: bytes) -> None:
    for length in range(0, len(whole), 13):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole[:length])
        with pytest.raises(BadParams, match=r"cut\.pt"):
            read(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path, whole: bytes) -> None:
    values = torch.load(io.BytesIO(whole))["model"]["weight"].numpy().tobytes()
    damaged = bytearray(whole)
    damaged[whole.index(values) + 5] ^= 1
    path = tmp_path / "a.pt"
    path.write_bytes(damaged)
    with pytest.raises(BadParams, match=r"a\.pt: .*data/0' does not match its CRC-32"):
        read(path)


def test_encrypted_archives_are_refused(tmp_path: Path, whole: bytes) -> None:
    encrypted = bytearray(whole)
    at = whole.index(b"PK\1\2")
    encrypted[at + 8] |= 1
    path = tmp_path / "a.pt"
    path.write_bytes(encrypted)
    with pytest.raises(Unsupported, match="is encrypted"):
        read(path)


def test_a_zip_bomb_is_refused_uninflated(tmp_path: Path) -> None:
    records = {"data/0": bytes(64 * MEBIBYTE)}
    path = write_archive(tmp_path / "a.pt", pickled({}), records, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    with at_most(MEBIBYTE), pytest.raises(Unsupported, match=r"is compressed.*zip -0"):
        read(path)


def test_records_that_share_bytes_are_refused(tmp_path: Path, whole: bytes) -> None:
    end = whole.rindex(b"PK\5\6")
    entries = [at for at in range(len(whole)) if whole.startswith(b"PK\1\2", at)]
    overlapping = bytearray(whole)
    first = whole[entries[0] + 42 : entries[0] + 46]
    overlapping[entries[1] + 42 : entries[1] + 46] = first
    path = tmp_path / "a.pt"
    path.write_bytes(overlapping)
    with pytest.raises(BadParams, match="overlaps"):
        read(path)
    assert end > entries[-1]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (20, 2**31, "two sizes"),
        (24, 2**31, "two sizes"),
        (42, 2**31, "points outside of itself"),
        (42, 1, "claims"),
        (28, 0xFFFF, "directory of the zip archive is damaged"),
    ],
)
def test_a_directory_that_lies_is_refused(
    tmp_path: Path, whole: bytes, field: int, value: int, problem: str
) -> None:
    lying = bytearray(whole)
    form = "<H" if field == 28 else "<L"
    struct.pack_into(form, lying, whole.index(b"PK\1\2") + field, value)
    path = tmp_path / "a.pt"
    path.write_bytes(lying)
    with pytest.raises(BadParams, match=problem):
        read(path)


def test_an_end_that_lies_is_refused(tmp_path: Path) -> None:
    # torch writes a 64-bit end, which counts alone; this archive has none.
    whole = write_archive(tmp_path / "whole.pt", pickled({})).read_bytes()
    at = whole.rindex(b"PK\5\6")
    for field, value in ((10, 0xFFFE), (12, 2**31), (16, 2**31), (16, 2**32 - 1)):
        lying = bytearray(whole)
        struct.pack_into("<H" if field == 10 else "<L", lying, at + field, value)
        path = tmp_path / "a.pt"
        path.write_bytes(lying)
        with pytest.raises(BadParams, match=r"a\.pt"):
            read(path)


# Other files


@pytest.mark.filterwarnings("ignore")
def test_files_of_old_torch_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(Unsupported, match=r"a\.pt: .*before 1\.6.*save it again"):
        read(path)
    path.write_bytes(bytes(257) + b"ustar\x0000" + bytes(300))
    with pytest.raises(Unsupported, match=r"before 1\.6"):
        read(path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(Unsupported, match=r"a\.pt: .*TorchScript.*torch\.jit\.load"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"hello, world", "no checkpoint"),
        (b"\x89PNG\r\n\x1a\n", "no checkpoint"),
        (pickle.dumps({"a": 1}), "no checkpoint"),
        (b"PK", "end of the zip"),
        (b"PK\5\6" + bytes(18), "no data.pkl"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(BadParams, match=rf"a\.pt: .*{problem}"):
        read(tmp_path / "a.pt")


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for name in ("", "missing.pt"):
        with pytest.raises(BadParams, match=str(tmp_path / name)):
            read(tmp_path / name)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    with pytest.raises(Unsupported, match="brainstore import"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "a.pt")
    with pytest.raises(BadParams, match=r"no data\.pkl"):
        read(tmp_path / "a.pt")


def test_checkpoints_without_a_tensor_are_refused(tmp_path: Path) -> None:
    for value in ({}, {"epoch": 3}, [], 5, None, {"a": {"b": []}}):
        with pytest.raises(BadParams, match=r"a\.pt: .*tensor"):
            read(saved(tmp_path / "a.pt", value))


# Anything at all

FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def checkpoint_bytes() -> bytes:
    stream = io.BytesIO()
    layer = torch.nn.Linear(2, 3)
    torch.save(
        {
            "model": {**layer.state_dict(), "view": layer.weight.detach().t()},
            "numpy": np.arange(3.0),
            "typed": torch.zeros(3, dtype=torch.uint16),
            "n": [1, (2.5, "three"), {4}],
        },
        stream,
    )
    return stream.getvalue()


WHOLE = checkpoint_bytes()
with zipfile.ZipFile(io.BytesIO(WHOLE)) as _archive:
    PICKLE = next(_archive.read(name) for name in _archive.namelist() if name.endswith(".pkl"))
    RECORDS = {
        name.partition("/")[2]: _archive.read(name)
        for name in _archive.namelist()
        if "/data/" in name
    }

edits = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(["set", "cut", "add"]), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for position, change, value in changes:
        at = position % (len(content) + 1)
        kept = {"set": len(value), "cut": len(value) + 1, "add": 0}[change]
        content = content[:at] + (b"" if change == "cut" else value) + content[at + kept :]
    return content


def nothing_but_our_errors(path: Path) -> None:
    with contextlib.suppress(BrainstoreError):
        read(path)
    with contextlib.suppress(BrainstoreError):
        migrate(path)


@FUZZ
@given(edits)
def test_an_edited_archive_is_read_or_refused(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(edited(WHOLE, changes))
    nothing_but_our_errors(path)


@FUZZ
@given(edits)
def test_an_edited_pickle_is_read_or_refused(tmp_path: Path, changes: Any) -> None:
    nothing_but_our_errors(write_archive(tmp_path / "a.pt", edited(PICKLE, changes), RECORDS))


snippets = st.sampled_from(
    [bytes([code]) for code in range(256)]
    + [f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in KNOWN]
    + [b"K\x01", b"X\x01\x00\x00\x000", b"h\x00", b"q\x00", b"\x85R", b"\x86R", b"tR", b")R", b"("]
)


@FUZZ
@given(st.lists(snippets, max_size=40))
def test_any_pickle_is_read_or_refused(tmp_path: Path, parts: list[bytes]) -> None:
    body = b"\x80\x02" + b"".join(parts) + b"."
    nothing_but_our_errors(write_archive(tmp_path / "a.pt", body, RECORDS))


@pytest.mark.soak
def test_every_byte_of_a_checkpoint_may_be_anything(tmp_path: Path) -> None:
    for position in range(len(WHOLE)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, WHOLE[position] ^ 0x20):
            damaged = bytearray(WHOLE)
            damaged[position] = value
            path = tmp_path / "a.pt"
            path.write_bytes(damaged)
            nothing_but_our_errors(path)


def test_nothing_of_the_reader_can_import_or_call() -> None:
    """What stands in the table is ours; no name in it is that of Python's own function."""
    for name, constructor in KNOWN.items():
        build = constructor.build
        assert build is None or build.__module__.startswith("brainstore.migrate."), name
    assert not {"os", "posix", "sys", "builtins.eval"} & set(KNOWN)
    assert os.system not in [each.build for each in KNOWN.values()]
    assert builtins.eval not in [each.build for each in KNOWN.values()]

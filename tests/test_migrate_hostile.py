"""Files that are damaged, or made to harm: a clear error, nothing run, bounded memory."""

from __future__ import annotations

import builtins
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_files import MEBIBYTE, Asks, at_most, pickled, read, saved, write_archive

from brainstore.errors import BadParams, Unsupported
from brainstore.migrate.torchfile import KNOWN
from brainstore.migrate.unpickling import unpickle

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
    "lists in lists": opcodes(b"]" * 50_000, b"a" * 49_999),
    "tuples in tuples": opcodes(b")", b"\x85" * 200_000),
    "dicts in dicts": opcodes(b"}" + b"K\x00}" * 30_000, b"s" * 30_000),
    "a list in itself": opcodes(b"]q\x00h\x00a"),
    "a dict in itself": opcodes(b"}q\x00X\x01\x00\x00\x00ah\x00s"),
    "a deep key": opcodes(b"}", b")", b"\x85" * 200_000, b"K\x01s"),
    "a long key": opcodes(b"}B\xff\xff\x00\x00", b"x" * 65535, b"K\x01s"),
    "keys that collide": opcodes(b"}\x8a\x09", (2**61 - 1).to_bytes(9, "little"), b"K\x01s"),
    "a number of many digits": opcodes(b"I" + b"9" * 100_000 + b"\n"),
    "a memo that is not there": opcodes(b"h\x07"),
    "an empty stack": opcodes(b"a"),
    "no mark": opcodes(b"t"),
    "no end": b"\x80\x02]",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_whatever_they_are(tmp_path: Path, body: bytes) -> None:
    path = write_archive(tmp_path / "a.pt", body)
    with pytest.raises(BadParams, match=r"a\.pt"):
        read(path)


GROWING = {
    "text that grows": opcodes(
        b"X\xff\xff\x0f\x00",
        b"x" * 0xFFFFF,
        b"q\x00X\x06\x00\x00\x00latin1q\x01]",
        *[b"c_codecs\nencode\nh\x00h\x01\x86Ra"] * 400,
    ),
    "sizes that grow": opcodes(
        b"(", b"K\x00" * 100_000, b"tq\x00]", *[b"ctorch\nSize\nh\x00\x85Ra"] * 1000
    ),
    "a string of 4 GB": opcodes(b"X\xff\xff\xff\xff"),
    "bytes of 16 EB": opcodes(b"\x8e" + b"\xff" * 8),
}


@pytest.mark.parametrize("body", GROWING.values(), ids=GROWING.keys())
def test_what_claims_more_than_it_has_takes_little_memory(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brainstore.migrate.constructors.MAX_BUILT_BYTES", 8 * MEBIBYTE)
    with at_most(16 * MEBIBYTE), pytest.raises(BadParams, match=r"builds more|ends too early"):
        unpickle(body, KNOWN)


@pytest.mark.parametrize("node", [b"](h\x00h\x00eq\x00", b"}(K\x01h\x00K\x02h\x00uq\x00"])
def test_shared_containers_are_not_walked_for_ever(
    tmp_path: Path, node: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "a.pt", opcodes(b"]q\x00", node * 30))
    monkeypatch.setattr("brainstore.migrate.checkpoint._MAX_VALUES", 10_000)
    with pytest.raises(BadParams, match="more than 10,000 values"):
        read(path)


def test_sets_are_charged_and_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brainstore.migrate.constructors.MAX_BUILT_BYTES", MEBIBYTE)
    with pytest.raises(BadParams, match="builds more than 1 MiB"):
        unpickle(b"\x8f" * 6000 + b".", KNOWN)
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


def test_nothing_of_the_reader_can_import_or_call() -> None:
    """What stands in the table is ours; no name in it is that of Python's own function."""
    for name, constructor in KNOWN.items():
        build = constructor.build
        assert build is None or build.__module__.startswith("brainstore.migrate."), name
    assert not {"os", "posix", "sys", "builtins.eval"} & set(KNOWN)
    assert os.system not in [each.build for each in KNOWN.values()]
    assert builtins.eval not in [each.build for each in KNOWN.values()]

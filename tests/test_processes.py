"""One program among its forks, its threads and its end: nothing hangs, nothing is half done."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
PATIENCE_S = 60


def run(program: str, *arguments: object) -> str:
    """Return what the program printed; it must end, and well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
    import os, sys
    from zoos import params, same
    from brainstore import BrainManager

    zoo = BrainManager(sys.argv[1])
    zoo.save("ppo", params(1))
    child = os.fork()
    name = zoo.save("ppo", params(2))
    assert same(zoo.load(name, as_numpy=True)[0], params(2))
    if child == 0:
        zoo.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    zoo.close()
    print(*BrainManager(sys.argv[1]).list_models())
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this platform cannot fork")
def test_a_forked_child_saves_beside_its_parent(tmp_path: Path) -> None:
    assert run(FORK, tmp_path / "zoo").split() == ["ppo_v1", "ppo_v2", "ppo_v3"]


FORK_S3 = """
    import json, os, sys
    from zoos import params
    from brainstore import BrainManager, Unsupported

    zoo = BrainManager(sys.argv[1], storage_options=json.loads(sys.argv[2]), cache=sys.argv[3])
    zoo.save("ppo", params(1))
    child = os.fork()
    if child == 0:
        try:
            zoo.save("ppo", params(2))
        except Unsupported as error:
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    print(zoo.save("ppo", params(3)))
    zoo.close()
"""


@pytest.mark.s3
def test_a_forked_child_is_told_to_open_the_bucket_itself(s3_place: Any, tmp_path: Path) -> None:
    import json

    place = s3_place.url, json.dumps(s3_place.storage_options), tmp_path
    assert run(FORK_S3, *place) == "ppo_v2\n"

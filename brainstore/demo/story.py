"""The main job, for real: train, save, share over S3, load elsewhere, fine-tune, roll back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from brainstore import BrainManager
from brainstore.address import BLOBS_PREFIX, new_ulid
from brainstore.demo import ppo, swarm
from brainstore.demo.seaweed import seaweed

MODEL = "ppo_swarm"
MILESTONES = (10, 20, 40)
BUCKET = "team"
AGENT_STEPS = ppo.WORLDS * swarm.STEPS * swarm.AGENTS


def run(zoo_url: str | None = None) -> None:
    """Tell the whole story in a temporary folder, on a server started for it.

    With `zoo_url`, the shared zoo is made under that URL instead, with the credentials
    that this machine has for it, and stays there.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="brainstore-demo-") as folder:
        local = Path(folder, "brains")
        train(local)
        with _shared_zoo(zoo_url, Path(folder)) as (url, environment):
            publish(local, url, environment)
            _elsewhere(url, environment | {"BRAINSTORE_CACHE": str(Path(folder, "cache"))})
            headline("The zoo in the end")
            _brainstore(url, environment, "ls")
            _brainstore(url, environment, "log")
    say(f"All of it took {time.perf_counter() - began:.0f} s.")


def train(zoo: Path) -> None:
    """Train the swarm policy, and save it after 10, 20 and 40 updates."""
    headline(f"Train a policy for {swarm.AGENTS} agents, and save it on the way")
    for name, rival in (("random", swarm.random_policy), ("greedy", swarm.greedy_policy)):
        say(f"{name:>12}: {figures(swarm.evaluate(rival))}")
    manager = BrainManager(zoo)
    state = ppo.start(seed=0)
    for milestone in MILESTONES:
        state = ppo.train(state, milestone - int(state.updates))
        seen = swarm.evaluate(ppo.policy(state.params))
        saved = manager.save(
            MODEL,
            state.params,
            brain_type="ppo",
            input_dim=swarm.OBS_DIM,
            output_dim=swarm.ACTION_DIM,
            hidden_dim=ppo.HIDDEN_DIM,
            training_steps=milestone * AGENT_STEPS,
            metrics=metrics_of(seen),
            groups={"opt_state": state.opt_state, "rng": state.key},
        )
        say(f"{saved:>12}: {figures(seen)}, after {milestone} updates")
    manager.close()
    _brainstore(str(zoo), {}, "ls")


def publish(zoo: Path, url: str, environment: Mapping[str, str]) -> None:
    """Push every version to the shared zoo."""
    headline(f"Publish the zoo to {url}")
    _brainstore(str(zoo), environment, "push", url)


@contextmanager
def _shared_zoo(url: str | None, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of an empty shared zoo, and what the environment must hold to reach it."""
    if url is not None:
        yield f"{url.rstrip('/')}/brainstore-demo-{new_ulid().lower()}", {}
        return
    with seaweed(folder / "server") as server:
        server.create_bucket(BUCKET)
        yield (
            f"s3://{BUCKET}/zoo",
            {
                "AWS_ENDPOINT_URL": server.endpoint_url,
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
            },
        )


def _elsewhere(url: str, environment: Mapping[str, str]) -> None:
    """Go on in a fresh process with an empty cache, as another machine would."""
    _run([sys.executable, "-m", "brainstore.demo.elsewhere", url], environment)


def _brainstore(zoo: str, environment: Mapping[str, str], *arguments: str) -> None:
    click.secho(f"$ brainstore --zoo {zoo} {' '.join(arguments)}", bold=True)
    _run([sys.executable, "-m", "brainstore", "--zoo", zoo, *arguments], environment)


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    sys.stdout.flush()
    subprocess.run(command, env=os.environ | environment, check=True)


def stored_bytes(manager: BrainManager) -> int:
    """Return how many bytes the blobs of the zoo take, in its store."""
    return sum(entry.size_bytes for entry in manager.zoo.store.list(BLOBS_PREFIX))


def metrics_of(seen: swarm.Evaluation) -> dict[str, float]:
    """Return an evaluation as the metrics of a brain."""
    return {"return": seen.return_, "at_goal": seen.at_goal, "colliding": seen.colliding}


def figures(seen: swarm.Evaluation) -> str:
    """Return an evaluation as people read it."""
    return (
        f"return {seen.return_:6.3f}, {seen.at_goal:6.1%} at the goal, "
        f"{seen.colliding:.3f} collisions per agent-step"
    )


def headline(text: str) -> None:
    click.secho(f"\n== {text}", bold=True)


def say(text: str) -> None:
    click.echo(f"   {text}")

"""The group of all verbs, the options that they share, and what an error exits with."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brainstore import __version__, errors, settings
from brainstore.cli.codes import (
    BROKEN_PIPE,
    CONFLICT,
    CORRUPT,
    GATE,
    INTERRUPTED,
    NOT_FOUND,
    OTHER,
    UNAVAILABLE,
    USAGE,
)
from brainstore.cli.render import visible

if TYPE_CHECKING:
    from brainstore.manager import BrainManager

_log = logging.getLogger(__name__)

_ORDER = [
    "init", "save", "ls", "show", "log", "diff", "alias", "unalias", "rollback", "rm", "undelete",
    "report", "promote", "policy", "lineage", "export", "import", "migrate", "push", "pull", "sync",
    "cache", "doctor", "fsck", "gc", "why", "verify", "demo", "completion",
]  # fmt: skip

_CODES: list[tuple[type[BaseException], int]] = [
    (errors.BadReference, USAGE),
    (errors.BadParams, USAGE),
    (errors.NotFound, NOT_FOUND),
    (errors.AlreadyExists, CONFLICT),
    (errors.Conflict, CONFLICT),
    (errors.Corrupt, CORRUPT),
    (errors.GateFailed, GATE),
    (errors.StoreUnavailable, UNAVAILABLE),
]


@dataclass
class Call:
    """What the options that all verbs share say."""

    zoo: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)
    as_json: bool = False
    verbosity: int = 0
    _opened: dict[str, BrainManager] = field(default_factory=dict)

    @property
    def zoo_url(self) -> str:
        """The zoo as it was named: by --zoo, BRAINSTORE_ZOO, or nobody."""
        return self.zoo or settings.zoo_url()

    def open(self, url: str | None = None) -> BrainManager:
        """Return the zoo at `url`, or the one that was named; it is closed after the verb."""
        from brainstore.manager import BrainManager

        where = url or self.zoo_url
        if where not in self._opened:
            zoo = BrainManager(where, storage_options=self.storage_options or None)
            click.get_current_context().call_on_close(zoo.close)
            self._opened[where] = zoo
        return self._opened[where]

    def open_for(self, ref: str) -> tuple[BrainManager, str]:
        """Return the zoo that a reference names, or the usual one, and what to ask of it."""
        url, named, rest = ref.rpartition("::")
        # "::x" names no zoo: not the usual one either.
        return self.open(url or None), rest if url or not named else ref


class Verbs(click.Group):
    """All verbs, from first need to last; every error becomes one line and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=[*_ORDER, *self.commands].index)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_reported():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


def verb(name: str, group: click.Group | None = None) -> Callable[[Callable[..., None]], Any]:
    """Make a function the verb `name`; it is given a Call, and its own arguments."""

    def decorate(function: Callable[..., None]) -> click.Command:
        command = click.command(name)(click.make_pass_decorator(Call, ensure=True)(function))
        command.params += shared_options()
        (group or verbs).add_command(command)
        return command

    return decorate


def shared_options() -> list[click.Parameter]:
    """Return the options that stand before or after any verb."""
    return [
        click.Option(
            ["--zoo"], metavar="URL", expose_value=False, callback=_set_zoo,
            help="The zoo: a folder or a URL. [default: BRAINSTORE_ZOO, else ./brains]",
        ),
        click.Option(
            ["--storage-option"], metavar="KEY=VALUE", multiple=True, expose_value=False,
            callback=_set_storage_options,
            help="For the filesystem of a URL, such as endpoint_url=http://…; may be repeated.",
        ),
        click.Option(
            ["--json", "as_json"], is_flag=True, expose_value=False, callback=_set_json,
            help="Print JSON.",
        ),
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_set_verbosity,
            help="Say what is being done; -vv says more.",
        ),
    ]  # fmt: skip


def pairs(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return [(key, value)] of options such as `--config lr=0.1`."""
    found = [value.partition("=") for value in values]
    for key, separator, _ in found:
        if not key or not separator:
            raise click.BadParameter(f"{key!r}: expected KEY=VALUE", ctx, option)
    return [(key, value) for key, _, value in found]


def plain_value(text: str) -> Any:
    """Return the number, boolean, list or dict that `text` is as JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_table(path: str, option: str) -> dict[str, Any]:
    """Return what a .json or .toml file holds, which must be a table of fields.

    Raises:
        click.UsageError: it does not parse, or is something else.
    """
    import tomllib

    try:
        text = Path(path).read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {path}: {error}") from None
    except RecursionError:
        raise click.UsageError(f"{option} {path}: is nested too deep") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"{option} {path}: expected a table of fields")
    return found


def _set_zoo(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value == "":
        raise click.UsageError("--zoo is empty; name a folder or a URL, or leave it out")
    if value is not None:
        ctx.ensure_object(Call).zoo = value


def _set_storage_options(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> None:
    for key, text in pairs(ctx, option, values):
        # A key made of digits is text; only what cannot be text is read as JSON.
        is_json = text in ("true", "false") or text.startswith("{")
        ctx.ensure_object(Call).storage_options[key] = plain_value(text) if is_json else text


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Call).as_json |= value


def _set_verbosity(ctx: click.Context, _: click.Parameter, value: int) -> None:
    call = ctx.ensure_object(Call)
    call.verbosity += value
    level = max(logging.DEBUG, logging.WARNING - 10 * call.verbosity)
    logging.getLogger("brainstore").setLevel(level)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def verbs(ctx: click.Context) -> None:
    """A model zoo without a server, in a folder or a bucket.

    A REF names a version: ppo_swarm (its latest), ppo_swarm:3, ppo_swarm:prod,
    ppo_swarm:prod~1 (where prod pointed before), s3://team/zoo::ppo_swarm:3.
    """
    ctx.ensure_object(Call)
    ctx.with_resource(_messages_on_stderr())


verbs.params += shared_options()


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Show Python's warnings, and what brainstore logs, as lines such as `warning: …`."""
    logger, handler = logging.getLogger("brainstore"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger.addHandler(handler)
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(visible(f"warning: {message}"), err=True)


@contextmanager
def _errors_reported() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not flush more to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(BROKEN_PIPE) from None
    except (errors.BrainstoreError, OSError, ImportError) as error:
        _log.debug("traceback", exc_info=error)
        for line in lines_of(error):
            click.echo(line, err=True)
        raise click.exceptions.Exit(code_of(error)) from None


def lines_of(error: BaseException) -> list[str]:
    """Return what to print of an error: what went wrong, then the notes on it."""
    text = visible(str(error) or type(error).__name__)
    if isinstance(error, ImportError):
        text += ". See what is missing: brainstore doctor"
    return [f"error: {text}", *getattr(error, "__notes__", [])]


def code_of(error: BaseException) -> int:
    """Return the exit code of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), OTHER)

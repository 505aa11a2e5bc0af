"""What has been mapped: one process at a time in an output directory, and a manifest of every super-tile."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

RUN = "geomed_run.json"
"""Where the settings of a run stand in its output directory."""

_TABLES = """
CREATE TABLE IF NOT EXISTS tiles (
    scene TEXT, identity TEXT, tile INTEGER, files TEXT, seconds REAL, finished TEXT,
    PRIMARY KEY (scene, identity, tile)
);
CREATE TABLE IF NOT EXISTS failures (scene TEXT PRIMARY KEY, identity TEXT, reason TEXT, failed TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of several processes that share the work."""

    number: int = 0
    """Which, from 0."""

    count: int = 1
    """Of how many."""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``, i from 1 to n.

        Raises:
            ValueError: it is written otherwise.
        """
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            raise ValueError(f"a shard is i/n with i from 1 to n, as 2/8, not {text!r}; correct it")
        return cls(number=int(first) - 1, count=int(second))

    def __str__(self) -> str:
        return f"{self.number + 1}-of-{self.count}"

    def own(self, scene: int, tiles: int) -> range:
        """Its super-tiles of a scene: neighbours, and of small scenes one after the other."""
        turn = (self.number + scene) % self.count
        return range(tiles * turn // self.count, tiles * (turn + 1) // self.count)


class Ledger:
    """The manifest of one shard, held by one process.

    SQLite in WAL mode: what has been noted stays noted, whenever the process is killed. Several shards have several
    manifests, since such a file cannot be shared over a network.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], shard: Shard = Shard()) -> None:
        """Take the output directory, and make it if there is none.

        Args:
            out: the directory.
            settings: all that the bytes of a map depend on besides its scene, fit for JSON.
            shard: which part of the work is done here.

        Raises:
            ValueError: another process holds it, or it is of another run.
            OSError: it cannot be written.
        """
        self.out, self.shard = out, shard
        self.fingerprint = fingerprint_of(settings)
        out.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(out / f".lock-{shard}")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"{out}: another process is mapping into it; wait for it, choose another --out, or share the work by "
                "--shard i/n"
            ) from error
        try:
            with FileLock(out / ".lock"):  # shards that start together
                self._refuse_other_run(settings)
            name = "manifest.sqlite" if shard.count == 1 else f"manifest-{shard}.sqlite"
            self._base = sqlite3.connect(out / name, isolation_level=None, check_same_thread=False)
            try:
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.executescript(_TABLES)
            except sqlite3.DatabaseError as error:
                self._base.close()
                raise ValueError(
                    f"{out / name}: the manifest cannot be used ({error}); remove it to map anew what it tells of"
                ) from error
        except BaseException:
            self._lock.release()
            raise

    def _refuse_other_run(self, settings: Mapping[str, Any]) -> None:
        path = self.out / RUN
        if path.is_file():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                theirs, before = told["fingerprint"], told["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: it does not tell of a run; choose another --out") from error
            if theirs != self.fingerprint:
                differing = ", ".join(
                    f"{key} {_short(before.get(key))} there and {_short(settings.get(key))} here"
                    for key in sorted({*before, *settings})
                    if before.get(key) != json.loads(json.dumps(settings.get(key)))
                )
                raise ValueError(
                    f"{self.out}: it holds maps of another run, fingerprint {theirs[:12]}, this one has "
                    f"{self.fingerprint[:12]}: {differing}; choose another --out"
                )
            return
        write_text(path, json.dumps({"fingerprint": self.fingerprint, "settings": dict(settings)}, indent=2) + "\n")

    def finished(self, scene: str, identity: str) -> dict[int, dict[str, str]]:
        """Super-tiles that are done: number → file name → its SHA-256."""
        with closing(
            self._base.execute("SELECT tile, files FROM tiles WHERE scene = ? AND identity = ?", (scene, identity))
        ) as rows:
            return {int(tile): json.loads(files) for tile, files in rows}

    def finish(self, scene: str, identity: str, tile: int, files: Mapping[str, str], seconds: float) -> None:
        """Note a super-tile whose files stand."""
        self._base.execute(
            "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?, ?, ?)",
            (scene, identity, tile, json.dumps(dict(files)), round(seconds, 3), _now()),
        )

    def forget(self, scene: str, identity: str, tile: int) -> None:
        """Strike out a super-tile whose files are gone or changed."""
        self._base.execute("DELETE FROM tiles WHERE scene = ? AND identity = ? AND tile = ?", (scene, identity, tile))

    def fail(self, scene: str, identity: str, reason: str) -> None:
        """Note why a scene cannot be mapped."""
        self._base.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)", (scene, identity, reason, _now()))

    def failed(self, scene: str, identity: str) -> str | None:
        """Why this scene, unchanged since, could not be mapped; None: it has not failed."""
        with closing(
            self._base.execute("SELECT reason FROM failures WHERE scene = ? AND identity = ?", (scene, identity))
        ) as rows:
            row = rows.fetchone()
        return None if row is None else str(row[0])

    def pardon(self, scene: str) -> None:
        """Strike out a failure."""
        self._base.execute("DELETE FROM failures WHERE scene = ?", (scene,))

    def close(self) -> None:
        """Let the directory go."""
        self._base.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def begun_with(out: Path) -> dict[str, Any]:
    """The settings of the run whose maps a directory holds, as far as they can be read."""
    try:
        told = json.loads((out / RUN).read_text(encoding="utf-8"))
        return dict(told["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file aside and put it in place."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

"""Names of cases and patients that say nothing about them: keyed hashes, the key outside of every run."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_BYTES = 32
_DIGITS = 16  # 64 bits: among a million cases two share a name with a chance of 3e-8


@dataclass(frozen=True, kw_only=True)
class CaseIds:
    """HMAC-SHA256 (RFC 2104, FIPS 198-1) of what identifies a case, in 16 hexadecimal digits.

    A plain hash of a patient number can be undone by hashing all numbers; without the key a keyed one cannot. Who has
    key and table can tell who a name is, nobody else. The key never leaves its file: it is neither shown, pickled nor
    saved.
    """

    key_file: str | None = None
    """Where the key lies: a file of the user's own. None: ``geomed/case_key`` in the folder of the user's settings
    (``XDG_CONFIG_HOME``, else ``~/.config``). It is made where there is none, readable by its owner only."""

    def patient(self, identity: str) -> str:
        """The name of a patient."""
        return self._name("patient", identity)

    def case(self, identity: str) -> str:
        """The name of an image or a volume."""
        return self._name("case", identity)

    @property
    def path(self) -> Path:
        """Where the key lies."""
        if self.key_file is not None:
            return Path(self.key_file).expanduser()
        folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        return Path(folder).expanduser() / "geomed" / "case_key"

    def refuse_inside(self, folder: Path) -> None:
        """Make sure that the key does not lie where results are shared.

        Raises:
            ValueError: it does.
        """
        if self.path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("the key of the case ids lies inside the run's folder; put key_file elsewhere")

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: where the key is, not the key."""
        return {"key_file": self.key_file}

    @cached_property
    def _key(self) -> bytes:
        path = self.path
        try:
            if not path.exists():
                _make(path)
            key = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"the key of the case ids can be neither read nor made ({error.strerror}); name another key_file"
            ) from None
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise ValueError(
                f"the key of the case ids can be read by others (mode {mode:o}); make a new one, or, if nobody has, "
                "chmod 600 it"
            )
        if len(key) < _BYTES:
            raise ValueError(
                f"the key of the case ids needs at least {_BYTES} bytes, it has {len(key)}; make a new one"
            )
        return key

    def _name(self, kind: str, identity: str) -> str:
        message = f"{kind}\0{identity}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def _make(path: Path) -> None:
    """A new key, complete at once; where two processes make one, both read the first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()

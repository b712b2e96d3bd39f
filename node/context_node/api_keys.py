"""API keys: how they look, how they are kept at rest, and who a request is from.

Knows: the form `cs_ID_SECRET`, the file of hashed keys (JSON Lines, one key a line, mode 0600), and the keys that a
secret store puts into the environment. Does not know routes or HTTP statuses: `http/` asks `KeyRing.verify`
who sent a header, and compares scopes itself.

Invariants: the secret is shown once, when it is made, and is never written; the file is replaced as a whole
(temporary file, fsync, rename, fsync of the directory) by one process at a time, so a reader sees the old keys or the
new ones and no change is lost; a file that cannot be read or understood never opens a node and never drops the keys
that were good before.

Why SHA-256 and no bcrypt or argon2: slow hashes protect secrets that people choose, by making each guess expensive.
A secret here is 256 random bits, which nobody guesses at any speed (NIST SP 800-63B §5.1.1.2 asks for
slow hashing of memorized secrets only), while a slow hash would let unauthenticated requests burn the node's CPU.
"""

import base64
import fcntl
import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec

SECRET_BYTES = 32
ID_BYTES = 6
FILE_BYTES_MAX = 16 * 2**20
CACHE_MAX = 4096
NAME_MAX = 128
# The id may not hold `_`, so the parts are unambiguous; the secret is base64url. Bounds keep hostile headers cheap.
KEY = re.compile(r"cs_([A-Za-z0-9-]{1,64})_([A-Za-z0-9_-]{1,128})")
# A secret of our own has 43 characters. One brought from elsewhere must be long enough not to be guessed.
SECRET_CHARACTERS_MIN = 22


class Scope(StrEnum):
    """What a key may do. `write` and `admin` include nothing else: a key lists every scope it has."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.WRITE})


class KeyFileError(Exception):
    """The key file cannot be used; the message names the file, the line and the reason, never a secret."""


class KeyNotFound(Exception):
    """No key has this id."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request: the key's id (safe to log), its name, and its scopes."""

    key_id: str
    name: str
    scopes: frozenset[Scope]


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the key file.

    `hash` is `sha256:` and the hex digest of the secret's text. `created` and `revoked` are RFC 3339 in UTC; a revoked
    key stays in the file, so that a list still tells whose it was.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    hash: str
    created: str
    revoked: str | None = None

    @property
    def active(self) -> bool:
        return self.revoked is None

    @property
    def identity(self) -> Identity:
        return Identity(self.id, self.name, frozenset(self.scopes))


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key that was just made. `plain` is the only place where the secret exists."""

    plain: str
    stored: StoredKey


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_key(
    path: Path,
    name: str,
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    *,
    now: Callable[[], datetime] = utc_now,
    random: Callable[[int], bytes] = os.urandom,
) -> CreatedKey:
    """Adds a key to the file, which is made if missing. Raises KeyFileError, or ValueError for a bad name or no scope.

    `random` must be a cryptographic source.
    """
    kept = tuple(scope for scope in Scope if scope in set(scopes))
    if not kept:
        raise ValueError(f"give at least one scope of {', '.join(Scope)}")
    if not 1 <= len(name) <= NAME_MAX or not name.isprintable():
        raise ValueError(f"the name must have 1 to {NAME_MAX} printable characters")
    with one_writer(path):
        keys = list_keys(path)
        taken = {key.id for key in keys}
        key_id = next(fresh for _ in range(100) if (fresh := random(ID_BYTES).hex()) not in taken)
        secret = base64.urlsafe_b64encode(random(SECRET_BYTES)).rstrip(b"=").decode()
        stored = StoredKey(key_id, name, kept, hashed(secret), timestamp(now()))
        write_keys(path, [*keys, stored])
    return CreatedKey(f"cs_{key_id}_{secret}", stored)


def list_keys(path: Path) -> list[StoredKey]:
    """All keys of the file in the order they were made, revoked ones too. A missing file holds none."""
    return read_keys(path) if path.exists() else []


def revoke_key(path: Path, key_id: str, *, now: Callable[[], datetime] = utc_now) -> StoredKey:
    """Marks a key as revoked; one that was revoked before keeps its time. Raises KeyNotFound, KeyFileError."""
    with one_writer(path):
        keys = list_keys(path)
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            raise KeyNotFound(f"{path} holds no key with the id {key_id!r}")
        if not found.active:
            return found
        revoked = msgspec.structs.replace(found, revoked=timestamp(now()))
        write_keys(path, [revoked if key.id == key_id else key for key in keys])
    return revoked


def keys_from_environment(entries: Iterable[str]) -> list[StoredKey]:
    """Keys as in `CONTEXTSTORE_API_KEYS`: `cs_ID_SECRET`, or with scopes `cs_ID_SECRET=read+admin`.

    Raises ValueError that counts the entries instead of repeating them: an entry is a secret.
    """
    keys: dict[str, StoredKey] = {}
    for position, entry in enumerate(entries, start=1):
        plain, _, listed = entry.partition("=")
        match = KEY.fullmatch(plain)
        if not match or len(match[2]) < SECRET_CHARACTERS_MIN:
            form = f"cs_ID_SECRET with at least {SECRET_CHARACTERS_MIN} characters of secret"
            raise ValueError(f"API key number {position} does not look like {form}")
        try:
            scopes = frozenset(Scope(word) for word in listed.split("+")) if listed else DEFAULT_SCOPES
        except ValueError:
            raise ValueError(f"API key number {position} has a scope that is not one of {', '.join(Scope)}") from None
        if match[1] in keys:
            raise ValueError(f"API key number {position} has the same id as an earlier one")
        ordered = tuple(scope for scope in Scope if scope in scopes)
        keys[match[1]] = StoredKey(match[1], "environment", ordered, hashed(match[2]), "")
    return list(keys.values())


def read_keys(path: Path) -> list[StoredKey]:
    """Raises KeyFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as refusal:
        raise KeyFileError(f"{path} cannot be read: {refusal.strerror}") from refusal
    if len(content) > FILE_BYTES_MAX:
        raise KeyFileError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    keys: dict[str, StoredKey] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            key = msgspec.json.decode(line, type=StoredKey)
        except (msgspec.MsgspecError, UnicodeDecodeError) as refusal:
            raise KeyFileError(f"{path}, line {number}: {refusal}") from None
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", key.hash):
            raise KeyFileError(f"{path}, line {number}: the hash is not `sha256:` and 64 hex digits")
        if key.id in keys:
            raise KeyFileError(f"{path}, line {number}: the id {key.id!r} is there twice")
        keys[key.id] = key
    return list(keys.values())


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Two processes that change the file take turns, or one would overwrite what the other added. Raises KeyFileError.

    The lock is a file beside it that stays: the key file itself is replaced, so a lock on it would protect nothing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as refusal:
        raise KeyFileError(f"{path} cannot be written: {refusal.strerror}") from refusal
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_keys(path: Path, keys: Iterable[StoredKey]) -> None:
    """Replaces the file as a whole, readable by its owner only. Raises KeyFileError."""
    content = b"".join(msgspec.json.encode(key) + b"\n" for key in keys)
    directory = path.parent
    try:
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{path.name}.")  # 0600 from the start
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        # The rename itself is durable only with the directory: a revoked key must not come back after a power cut.
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as refusal:
        raise KeyFileError(f"{path} cannot be written: {refusal.strerror}") from refusal


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


NOBODY = hashed("no secret has this hash: it is compared for unknown ids, so that they take as long as known ones")


class KeyRing:
    """The keys of a node: those of a file, and those that were given in plain.

    Owned by the event loop; `verify` does no I/O. `reload` re-reads the file and `reload_if_changed` asks for its
    modification time first: call it every second or so and on SIGHUP, so that a revoked key stops working without a
    restart. Who let somebody in for long asks `current` again when `on_change` tells that the file was read.
    """

    def __init__(self, path: Path | None = None, given: Iterable[StoredKey] = ()) -> None:
        """Reads the file at once. Raises KeyFileError: a node must not start with fewer keys than it was told of."""
        self._path = path
        self._given = {key.id: key for key in given}
        self._keys: Mapping[str, StoredKey] = {}
        self._cache: dict[str, Identity] = {}
        self._seen: tuple[int, int, int] | None = None
        self._listeners: list[Callable[[], None]] = []
        self.reload()

    def __len__(self) -> int:
        """How many keys work."""
        return sum(key.active for key in self._keys.values())

    def verify(self, header: str | None) -> Identity | None:
        """Whose `Authorization` header this is: `Bearer cs_ID_SECRET`, the scheme in any case. None: nobody's."""
        if header is None:
            return None
        # Only headers that proved right are cached, so an attacker can't fill the cache; a lookup of a whole
        # header in a hash table tells less about a secret than the hash comparison it saves.
        identity = self._cache.get(header)
        if identity is not None:
            return identity
        scheme, _, plain = header.partition(" ")
        identity = self.verify_key(plain.strip()) if scheme.lower() == "bearer" else None
        if identity is not None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            self._cache[header] = identity
        return identity

    def verify_key(self, plain: str) -> Identity | None:
        """Whose key this is, in constant time for all keys of one length; None if unknown, wrong or revoked."""
        match = KEY.fullmatch(plain)
        if match is None:
            return None
        key = self._keys.get(match[1])
        right = hmac.compare_digest(key.hash if key else NOBODY, hashed(match[2]))
        return key.identity if right and key is not None and key.active else None

    def current(self, key_id: str) -> Identity | None:
        """What the key of this id may do now; None if there is none or it is revoked. Proves nobody's identity."""
        key = self._keys.get(key_id)
        return key.identity if key is not None and key.active else None

    def on_change(self, tell: Callable[[], None]) -> None:
        """`tell` is called whenever the file was read anew. It must not raise."""
        self._listeners.append(tell)

    def reload_if_changed(self) -> bool:
        """Whether the file was read anew. Raises KeyFileError, and then the keys stay as they were."""
        if self._path is None or fingerprint(self._path) == self._seen:
            return False
        self.reload()
        return True

    def reload(self) -> None:
        """Reads the file. Raises KeyFileError, and then the keys stay as they were."""
        if self._path is None:
            self._keys = self._given
            return
        # The fingerprint is taken before reading: a replacement in between is then seen as a change next time.
        seen = fingerprint(self._path)
        keys = {key.id: key for key in read_keys(self._path)}
        self._keys = {**keys, **self._given}
        self._seen = seen
        self._cache.clear()
        for tell in self._listeners:
            tell()


def fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file is replaced or written; None while it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size

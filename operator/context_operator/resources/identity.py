"""What a cluster is known by: its id, its secrets and its keys.

The id and the secrets are drawn once, outside, and never rendered again. They stay as long as volumes may: a cluster of the same name that
is made later takes them up.
"""

import hashlib
import json
import re
from typing import Annotated, Literal

import msgspec

from context_operator.resources import names
from context_operator.spec import Cluster, Object

OPERATOR_KEY_ID = "operator"
CLIENT_KEY_ID = "client"
KEY = re.compile(r"cs_([A-Za-z0-9-]{1,64})_([A-Za-z0-9_-]{22,128})")
SCOPES = ("read", "write", "admin")


class KeyLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the nodes' key file, as strictly as they read it: what they refuse must not get there, since a node does not start then."""

    id: str
    name: str
    scopes: tuple[Literal["read", "write", "admin"], ...]
    hash: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
    created: str
    revoked: str | None = None


_key_lines = msgspec.json.Decoder(KeyLine)


def identity(cluster: Cluster, cluster_id: str, is_bootstrapped: bool) -> Object:
    """ConfigMap NAME-identity, to be created and never replaced."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(cluster, names.identity(cluster.metadata.name), is_owned=is_owned(cluster)),
        "data": {"clusterId": cluster_id, names.BOOTSTRAPPED: "true" if is_bootstrapped else "false"},
    }


def secrets(cluster: Cluster, cluster_secret: str, operator_secret: str) -> Object:
    """Secret NAME-cluster: what nodes prove to each other that they belong together by, and the operator's key."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(cluster, names.secrets(cluster.metadata.name), is_owned=is_owned(cluster)),
        "stringData": {"cluster-secret": cluster_secret, "operator-key": operator_key(operator_secret)},
    }


def operator_key(operator_secret: str) -> str:
    """The key by which nodes know the operator."""
    return f"cs_{OPERATOR_KEY_ID}_{operator_secret}"


def api_key(cluster: Cluster, client_secret: str) -> Object:
    """Secret NAME-api-key: a key with scopes read and write, where the user brings none."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(cluster, names.api_key(cluster.metadata.name), is_owned=is_owned(cluster)),
        "stringData": {"api-key": f"cs_{CLIENT_KEY_ID}_{client_secret}"},
    }


def policy_list(cluster: Cluster, known: dict[str, str]) -> Object:
    """ConfigMap NAME-policies: by name the policies that came from resources. It stays as long as the nodes' copies do."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(cluster, names.policies(cluster.metadata.name), is_owned=is_owned(cluster)),
        "data": known,
    }


def is_owned(cluster: Cluster) -> bool:
    """Whether what stays as long as volumes goes with the cluster."""
    return cluster.spec.storage.retention_policy.when_deleted == "Delete"


def keys(cluster: Cluster, lines: list[str]) -> Object:
    """Secret NAME-keys: the file that the nodes read, hashes only."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(cluster, names.keys(cluster.metadata.name)),
        "stringData": {names.KEYS_FILE: "".join(line + "\n" for line in lines)},
    }


class BadKeys(Exception):
    """A Secret with keys cannot be used; the message names the entry, never what it holds."""


def key_line(name: str, plain: str) -> str:
    """A key in plain, `cs_ID_SECRET` or `cs_ID_SECRET=read+admin`, as a line of the nodes' file. Raises `BadKeys`."""
    secret, _, listed = plain.strip().partition("=")
    match = KEY.fullmatch(secret)
    if match is None:
        raise BadKeys(f"Entry {name} is no key: it must look like cs_ID_SECRET with at least 22 characters of secret.")
    scopes = listed.split("+") if listed else ["read", "write"]
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise BadKeys(f"Entry {name} has the scope {unknown[0]!r}; scopes are {', '.join(SCOPES)}.")
    digest = hashlib.sha256(match[2].encode()).hexdigest()
    line = {"id": match[1], "name": name[:128], "scopes": scopes, "hash": f"sha256:{digest}", "created": "1970-01-01T00:00:00Z"}
    return json.dumps(line)


def key_lines(entries: dict[str, str]) -> list[str]:
    """The lines of a user's Secret: `keys.jsonl` as it is, everything else a key in plain. Raises `BadKeys`."""
    lines = []
    for name, text in sorted(entries.items()):
        if name != names.KEYS_FILE:
            lines.append(key_line(name, text))
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                _key_lines.decode(line)
            except msgspec.DecodeError as problem:
                # msgspec names the field, never what it holds.
                raise BadKeys(f"Line {number} of {name} is not as `contextstore keys create` writes it: {problem}.") from None
            lines.append(line)
    ids = [json.loads(line)["id"] for line in lines]
    if twice := sorted({one for one in ids if ids.count(one) > 1 or one == OPERATOR_KEY_ID}):
        raise BadKeys(f"The key id {twice[0]} is there twice, or is the operator's own; ids are the part between the underscores.")
    return lines

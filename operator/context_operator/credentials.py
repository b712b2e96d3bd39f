"""What nodes, operator and clients know each other by: secrets, API keys, certificates; made, checked and renewed.

Knows the Secrets and ConfigMaps of a cluster and in which order they may change. Does not know pods: nodes read what is mounted again when
it changes. Invariants: what was drawn once is never drawn again while it is there; what cannot be used replaces nothing; a new authority
is trusted by every node before any node shows a certificate of it, and an old one until no node does.
"""

import base64
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from context_operator import certificates
from context_operator.applying import keep_owner
from context_operator.certificates import BadCertificate, Pair
from context_operator.kube import Kube, KubeError
from context_operator.resources import identity, names, tls
from context_operator.spec import Cluster, Object

SETTLE = timedelta(minutes=3)
"""By then every node has read what was mounted: kubelet brings changes within a minute and a bit, the node looks each second."""


CHECK_AGAIN = timedelta(minutes=10)
"""What was good is looked at again after this time: certificates run out."""


class Unusable(Exception):
    """Something that the user gave cannot be used; the message says what to do."""


class Applies(Protocol):
    async def __call__(self, body: Object) -> None: ...


@dataclass(frozen=True, slots=True)
class Known:
    """What the operator needs to speak to the nodes: its key, and the authorities of their certificates (PEM; empty without TLS)."""

    operator_key: str
    trust: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What nodes mount: a certificate with its key, whom they trust, and since when it is so (RFC 3339)."""

    pair: Pair
    trust: str
    since: str


class CredentialKeeper:
    """Keeps a cluster's credentials. `apply` applies an object, `crash` is called between two effects (tests end the process there)."""

    def __init__(self, kube: Kube, now: Callable[[], str], apply: Applies, crash: Callable[[str], Awaitable[None]]) -> None:
        self._kube, self._now, self._apply, self._crash = kube, now, apply, crash
        self._passed: tuple[Pair, str, datetime] | None = None
        """The user's certificate that was checked last and found good, its authority, and when."""

    async def keep(self, cluster: Cluster, *, has_begun: bool) -> tuple[Known, list[str]]:
        """What to speak to the nodes by, and what the user gave and cannot be used, in sentences: what was good stays then. Raises
        `Unusable` where there was nothing good yet."""
        operator_key = await self._secret(cluster, has_begun)
        troubles = []
        for part, name in ((partial(self._keys, cluster, operator_key), names.keys), (partial(self._tls, cluster), names.tls)):
            try:
                await part()
            except Unusable as problem:
                if await self._get("Secret", cluster, name(cluster.metadata.name)) is None:
                    raise
                troubles.append(str(problem))
        return await self.read(cluster), troubles

    async def read(self, cluster: Cluster) -> Known:
        """What to speak to the nodes by as it stands, without a change."""
        name = cluster.metadata.name
        secret = await self._get("Secret", cluster, names.secrets(name))
        trust = await self._get("ConfigMap", cluster, names.authority(name)) if cluster.spec.is_tls else None
        return Known(entries(secret or {}).get("operator-key", ""), ((trust or {}).get("data") or {}).get("ca.crt", ""))

    # --- secrets and keys -----------------------------------------------------------------------------------------------

    async def _secret(self, cluster: Cluster, has_begun: bool) -> str:
        """The operator's key. It is drawn if it is not there; the nodes' secret only for a cluster that has not begun, since running nodes
        would not take in those with another one."""
        meta = cluster.metadata
        name = names.secrets(meta.name)
        found = await self._get("Secret", cluster, name)
        if found is not None:
            await keep_owner(self._kube, cluster, found, is_owned=identity.is_owned(cluster))
        held = entries(found or {})
        if "cluster-secret" not in held:
            if has_begun:
                raise Unusable(
                    f"Secret {name} is missing or has no entry cluster-secret, which nodes know each other by. Make it again with it, as a "
                    f"running pod has it (kubectl exec {names.pod(meta.name, 0)} -- printenv CONTEXTSTORE_CLUSTER_SECRET)."
                )
            await self._kube.create(identity.secrets(cluster, secrets.token_hex(32), secrets.token_urlsafe(32)))
            await self._crash("secrets")
        elif "operator-key" not in held:
            body = {"stringData": {"operator-key": identity.operator_key(secrets.token_urlsafe(32))}}
            await self._kube.patch("Secret", meta.namespace, name, body)
        else:
            return held["operator-key"]
        return entries(await self._get("Secret", cluster, name) or {}).get("operator-key", "")

    async def _keys(self, cluster: Cluster, operator_key: str) -> None:
        ref = cluster.spec.auth.api_keys_secret_ref
        if ref is not None:
            given = await self._get("Secret", cluster, ref.name)
            if given is None:
                raise Unusable(f"Secret {ref.name} of spec.auth.apiKeysSecretRef is not there; make it, or leave the field out.")
        else:
            name = names.api_key(cluster.metadata.name)
            given = await self._get("Secret", cluster, name)
            if given is None:
                await self._kube.create(identity.api_key(cluster, secrets.token_urlsafe(32)))
                given = await self._get("Secret", cluster, name)
            else:
                await keep_owner(self._kube, cluster, given, is_owned=identity.is_owned(cluster))
        try:
            lines = identity.key_lines(entries(given or {}))
            lines.append(identity.key_line(identity.OPERATOR_KEY_ID, f"{operator_key}=read+write+admin"))
        except identity.BadKeys as problem:
            raise Unusable(f"The API keys cannot be used, and those before stay: {problem}") from problem
        await self._apply(identity.keys(cluster, lines))

    # --- certificates ---------------------------------------------------------------------------------------------------

    async def _tls(self, cluster: Cluster) -> None:
        if not cluster.spec.is_tls:
            return
        shown = shown_of(await self._get("Secret", cluster, names.tls(cluster.metadata.name)))
        now = datetime.fromisoformat(self._now())
        pair, authority = await self._given(cluster, shown, now)
        turned = turn(shown, pair, authority, now)
        await self._apply(tls.secret(cluster, turned.pair, turned.trust, turned.since))
        await self._apply(tls.authority(cluster, turned.trust))

    async def _given(self, cluster: Cluster, shown: Shown | None, now: datetime) -> tuple[Pair, str]:
        """The certificate that nodes should show, and its authority."""
        if cluster.spec.tls.mode == "SelfSigned":
            return await self._self_signed(cluster, shown, now)
        name = await self._secret_with_certificate(cluster)
        found = await self._get("Secret", cluster, name)
        if found is None:
            waits = (
                "cert-manager has not made it yet" if cluster.spec.tls.mode == "CertManager" else "make it, or choose another spec.tls.mode"
            )
            raise Unusable(f"Secret {name} with the nodes' certificate is not there: {waits}.")
        held = entries(found)
        pair, authority = Pair(held.get("tls.crt", ""), held.get("tls.key", "")), held.get("ca.crt", "")
        try:
            if self._passed is None or self._passed[:2] != (pair, authority) or now >= self._passed[2] + CHECK_AGAIN:
                certificates.check(pair, authority, tls.hosts_needed(cluster), now)
                self._passed = pair, authority, now
        except BadCertificate as problem:
            self._passed = None
            stays = " The one before stays." if shown is not None else ""
            raise Unusable(f"The certificate in Secret {name} cannot be used: {problem}{stays}") from problem
        return pair, certificates.join(authority)

    async def _self_signed(self, cluster: Cluster, shown: Shown | None, now: datetime) -> tuple[Pair, str]:
        name = names.authority_key(cluster.metadata.name)
        found = await self._get("Secret", cluster, name)
        if found is None:
            await self._kube.create(tls.authority_key(cluster, certificates.make_authority(f"{cluster.metadata.name} nodes", now)))
            await self._crash("authority")
            found = await self._get("Secret", cluster, name)
        held = entries(found or {})
        authority = Pair(held.get("ca.crt", ""), held.get("ca.key", ""))
        hosts = tls.hosts(cluster)
        if shown is not None and certificates.is_good(shown.pair, authority.certificate, hosts, now):
            return shown.pair, certificates.join(authority.certificate)
        try:
            return certificates.issue(authority, hosts, now), certificates.join(authority.certificate)
        except (ValueError, TypeError) as problem:
            raise Unusable(f"Secret {name} holds no authority ({problem}); delete it, and the operator draws a new one.") from problem

    async def _secret_with_certificate(self, cluster: Cluster) -> str:
        wished = cluster.spec.tls
        if wished.mode == "Secret" and wished.secret_ref is not None:
            return wished.secret_ref.name
        try:
            await self._apply(tls.certificate(cluster))
        except KubeError as problem:
            if problem.status != 404:
                raise
            raise Unusable(
                "spec.tls.mode is CertManager, and cert-manager is not installed here; install it, or choose SelfSigned."
            ) from None
        return names.issued(cluster.metadata.name)

    async def _get(self, kind: str, cluster: Cluster, name: str) -> Object | None:
        return await self._kube.get(kind, cluster.metadata.namespace, name)


def turn(shown: Shown | None, pair: Pair, authority: str, now: datetime) -> Shown:
    """The next step from what nodes show towards `pair`, signed by `authority`, that no connection between them notices.

    Trust both authorities; when every node does, show the new certificate; when every node does that, trust the new authority alone. A
    renewal by the same authority is one step.
    """
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    if shown is None:
        return Shown(pair, authority, at)
    wanted, trusted = set(certificates.blocks(authority)), set(certificates.blocks(shown.trust))
    is_settled = now >= datetime.fromisoformat(shown.since) + SETTLE
    if not wanted <= trusted:
        return Shown(shown.pair, certificates.join(shown.trust, authority), at)
    if shown.pair != pair:
        return Shown(pair, shown.trust, at) if is_settled or trusted == wanted else shown
    return Shown(pair, authority, at) if trusted != wanted and is_settled else shown


def shown_of(secret: Object | None) -> Shown | None:
    """What a Secret made by `tls.secret` holds; None if there is none, or somebody emptied it."""
    if secret is None:
        return None
    held = entries(secret)
    since = (secret["metadata"].get("annotations") or {}).get(names.SINCE, "")
    try:
        datetime.fromisoformat(since)
    except ValueError:
        since = "1970-01-01T00:00:00Z"
    shown = Shown(Pair(held.get("tls.crt", ""), held.get("tls.key", "")), held.get("ca.crt", ""), since)
    return shown if shown.trust and shown.pair.certificate and shown.pair.key else None


def entries(secret: Object) -> dict[str, str]:
    """The entries of a Secret as text. Raises `Unusable` for one that is none."""
    try:
        return {name: base64.b64decode(text).decode() for name, text in (secret.get("data") or {}).items()}
    except ValueError as problem:
        raise Unusable(f"An entry of Secret {secret['metadata']['name']} is not text.") from problem

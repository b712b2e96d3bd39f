"""TLS of a node: the certificate that it shows, and whom it believes.

Knows files in PEM form and Python's `ssl`. Does not know sockets, HTTP or peers. With an authority (a file of CA certificates) nodes prove
to each other by certificate that they belong together, both ways; clients are asked for none, they have API keys. Invariants: files that
cannot be used never replace those that could, so a rotation that goes wrong costs nothing; new files hold for every connection that is
made after they were read, also for the loss of an authority; connections that stand are left alone.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from context_node.api_keys import fingerprint


class TlsError(Exception):
    """The files cannot be used; the message names them and the reason, never what a key holds."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the node's certificate with those between it and its authority, its private key (without a password), and the
    certificates of the authorities that sign the nodes' (None: nodes do not speak TLS to each other)."""

    certificate: Path
    key: Path
    authority: Path | None = None


@dataclass(frozen=True, slots=True)
class _Contexts:
    client: ssl.SSLContext
    """For those who ask this node as clients."""
    accepting: ssl.SSLContext | None
    dialing: ssl.SSLContext | None


class Credentials:
    """What the files hold. `reload_if_changed` may be called at any time from the event loop's thread; reading takes a millisecond."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises TlsError: a node must not start with another protection than it was told of."""
        self.files = files
        self._seen = self._fingerprints()
        self._current = _read(files)
        # Listeners keep the context that they began with: it hands each connection on to the newest.
        self.for_clients = _read(files).client
        self.for_clients.sni_callback = self._hand_to_client
        self.for_peers = _read(files).accepting
        if self.for_peers is not None:
            self.for_peers.sni_callback = self._hand_to_peer

    @property
    def to_peers(self) -> ssl.SSLContext | None:
        """For dialing another node; ask anew for each connection."""
        return self._current.dialing

    def reload_if_changed(self) -> bool:
        """Whether other files were read. Raises TlsError, and then everything stays as it was."""
        seen = self._fingerprints()
        if seen == self._seen:
            return False
        self.reload()
        return True

    def reload(self) -> None:
        """Read the files. Raises TlsError, and then everything stays as it was."""
        seen = self._fingerprints()
        self._current = _read(self.files)
        self._seen = seen

    def _hand_to_client(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current.client

    def _hand_to_peer(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._current.accepting is not None:
            connection.context = self._current.accepting

    def _fingerprints(self) -> tuple[object, ...]:
        files = self.files
        return tuple(fingerprint(path) for path in (files.certificate, files.key, files.authority) if path is not None)


def _read(files: TlsFiles) -> _Contexts:
    """Raises TlsError."""
    client = _with_certificate(files, ssl.Purpose.CLIENT_AUTH, ssl.TLSVersion.TLSv1_2)
    if files.authority is None:
        return _Contexts(client, None, None)
    # Nodes are ours: nothing older has to be spoken.
    accepting = _with_certificate(files, ssl.Purpose.CLIENT_AUTH, ssl.TLSVersion.TLSv1_3)
    dialing = _with_certificate(files, ssl.Purpose.SERVER_AUTH, ssl.TLSVersion.TLSv1_3)
    for context in (accepting, dialing):
        try:
            context.load_verify_locations(cafile=os.fspath(files.authority))
        except (OSError, ssl.SSLError) as error:
            raise TlsError(f"{files.authority} holds no certificates of authorities: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return _Contexts(client, accepting, dialing)


def _with_certificate(files: TlsFiles, purpose: ssl.Purpose, version: ssl.TLSVersion) -> ssl.SSLContext:
    protocol = ssl.PROTOCOL_TLS_SERVER if purpose is ssl.Purpose.CLIENT_AUTH else ssl.PROTOCOL_TLS_CLIENT
    # Without the system's authorities: for peers only the given ones count, and clients are asked for no certificate.
    context = ssl.SSLContext(protocol)
    context.minimum_version = version
    for path in (files.certificate, files.key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        # A key with a password would ask at the terminal; there is nobody there.
        context.load_cert_chain(os.fspath(files.certificate), os.fspath(files.key), password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise TlsError(f"{files.certificate} and {files.key} are no certificate with its key: {_reason(error)}") from error
    return context


def _reason(error: BaseException) -> str:
    return (
        (getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__).replace("_", " ").lower()
    )

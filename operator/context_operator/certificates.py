"""Certificates: an authority of one's own, what it signs, and whether somebody else's will do.

Knows X.509 in PEM form. Does not know Kubernetes, clocks or where the files go; the time comes in. Keys are drawn here, from the system's
randomness. Profiles follow RFC 5280 §4.2 strictly enough for Python's VERIFY_X509_STRICT. Keys are ECDSA on P-256, which every client of
the last ten years takes.
"""

import ipaddress
import re
import ssl
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 365
CLOCKS_DIFFER = timedelta(minutes=10)
"""A certificate is valid from a little before it is made, for machines whose clocks are late."""

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class BadCertificate(Exception):
    """It cannot be used; the message says why and what to do, never what a key holds."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate (with those between it and its authority behind it) and its private key, both in PEM form."""

    certificate: str
    key: str


def make_authority(name: str, now: datetime) -> Pair:
    """An authority that signs certificates of nodes, and nothing below them (RFC 5280 §4.2.1.9, path length 0)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Pair(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue(authority: Pair, hosts: Iterable[str], now: datetime) -> Pair:
    """A certificate for servers and clients alike, for these DNS names (a first label may be `*`) and IP addresses."""
    hosts = list(hosts)
    signer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signing_key = serialization.load_pem_private_key(authority.key.encode(), password=None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(hosts[0]), signer.subject, key, now, CERTIFICATE_DAYS)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    for extension, is_critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectAlternativeName([_general(host) for host in hosts]), False),
        (identifier, False),
    ):
        builder = builder.add_extension(extension, critical=is_critical)
    return Pair(_pem(builder.sign(signing_key, hashes.SHA256())), _key_pem(key))


def is_good(pair: Pair, authority: str, hosts: Iterable[str], now: datetime) -> bool:
    """Whether a certificate may stay: it fits its key, comes from this authority, names the hosts, and has a third of its life left."""
    try:
        _check_form(pair, authority, hosts, now)
    except BadCertificate:
        return False
    found = _first(pair.certificate)
    return now < found.not_valid_after_utc - (found.not_valid_after_utc - found.not_valid_before_utc) / 3


def check(pair: Pair, authority: str, hosts: Iterable[str], now: datetime) -> None:
    """Whether nodes can prove themselves with it, by these names and to holders of these authorities. Takes some milliseconds, and files
    that are gone afterwards. Raises `BadCertificate`."""
    _check_form(pair, authority, hosts, now)
    _check_handshake(pair, authority)


def _check_form(pair: Pair, authority: str, hosts: Iterable[str], now: datetime) -> None:
    try:
        found = _first(pair.certificate)
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise BadCertificate(f"tls.crt and tls.key must be PEM, the key without a password: {error}") from error
    if found.public_key() != key.public_key():
        raise BadCertificate("tls.key is not the key of tls.crt.")
    if now >= found.not_valid_after_utc:
        raise BadCertificate(f"tls.crt has expired on {found.not_valid_after_utc:%Y-%m-%d}.")
    if missing := [host for host in hosts if host.lower() not in _hosts(found)]:
        raise BadCertificate(f"tls.crt does not name {', '.join(missing)} among its subject alternative names.")
    _check_usage(found)
    _check_chain(pair.certificate, authority)


def expires(certificate: str) -> datetime:
    """When the certificate ends. Raises ValueError."""
    return _first(certificate).not_valid_after_utc


def blocks(pem: str) -> list[str]:
    """The certificates of a PEM text, each once, in their order."""
    return list(dict.fromkeys(PEM.findall(pem.replace("\r\n", "\n"))))


def join(*pems: str) -> str:
    """One PEM text of several, each certificate once."""
    return "".join(f"{block}\n" for block in blocks("\n".join(pems)))


def _check_usage(found: x509.Certificate) -> None:
    try:
        usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if lacks := [name for usage, name in USAGES if usage not in usages]:
        raise BadCertificate(f"tls.crt may not be used for {' and '.join(lacks)}: nodes are servers and clients of each other.")


def _check_chain(certificate: str, authority: str) -> None:
    """Names and signatures from the first certificate up to an authority that is trusted."""
    try:
        trusted = [x509.load_pem_x509_certificate(block.encode()) for block in blocks(authority)]
        chain = [x509.load_pem_x509_certificate(block.encode()) for block in blocks(certificate)]
    except ValueError as error:
        raise BadCertificate(f"ca.crt or tls.crt holds a certificate that cannot be read: {error}") from error
    if not trusted:
        raise BadCertificate("ca.crt is missing: without the authorities' certificates nodes could not check each other.")
    last = chain[0]
    for _ in range(len(chain) + 1):
        if any(_is_signed(last, one) for one in trusted):
            return
        last = next((one for one in chain[1:] if one is not last and _is_signed(last, one)), last)
    raise BadCertificate("tls.crt is not signed by an authority of ca.crt; put those between them behind the certificate in tls.crt.")


def _check_handshake(pair: Pair, authority: str) -> None:
    """Two nodes with this certificate meet, in memory: whatever else keeps OpenSSL from trusting it shows now, not on every node."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("crt", "key", "ca")}
        for path in paths.values():
            path.touch(mode=0o600)
        for name, text in (("crt", pair.certificate), ("key", pair.key), ("ca", authority)):
            paths[name].write_text(text)
        try:
            contexts = [ssl.SSLContext(protocol) for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)]
            for context in contexts:
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_cert_chain(paths["crt"], paths["key"], password="")
                context.load_verify_locations(paths["ca"])
                context.verify_mode = ssl.CERT_REQUIRED
            contexts[1].check_hostname = False
            _meet(*contexts)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
            raise BadCertificate(f"a node would not trust another with it: {reason.replace('_', ' ').lower()}.") from None


def _meet(accepting: ssl.SSLContext, dialing: ssl.SSLContext) -> None:
    """A TLS handshake, and a byte each way: in TLS 1.3 a client learns only then that it was refused. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [accepting.wrap_bio(up, down, server_side=True), dialing.wrap_bio(down, up)]
    for step in ("do_handshake", "do_handshake", "do_handshake", "write", "read"):
        for side in reversed(sides):
            with suppress(ssl.SSLWantReadError):
                getattr(side, step)(*([b"x"] if step == "write" else []))


def _is_signed(found: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(by)
    except Exception:  # it raises what the signature's algorithm raises; each means no
        return False
    return True


def _hosts(found: x509.Certificate) -> set[str]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(one.value).lower() for one in names if isinstance(one, x509.DNSName | x509.IPAddress)}


def _first(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    # RFC 5280's upper bound of a common name; the names that count are the alternative ones.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


USAGES = ((ExtendedKeyUsageOID.SERVER_AUTH, "servers"), (ExtendedKeyUsageOID.CLIENT_AUTH, "clients"))

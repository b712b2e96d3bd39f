"""Certificates and their rotation: nodes that read what is mounted at different moments understand each other at every step."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from context_operator import certificates
from context_operator.certificates import BadCertificate, Pair, check, is_good, issue, make_authority
from context_operator.credentials import SETTLE, Shown, turn

NOW = datetime.now(UTC).replace(microsecond=0)
HOSTS = ["demo.apps.svc", "*.demo-peers.apps.svc", "127.0.0.1"]
AUTHORITY, OTHER = make_authority("one", NOW), make_authority("two", NOW)
GOOD = issue(AUTHORITY, HOSTS, NOW)


def test_what_we_sign_passes_our_own_check() -> None:
    check(GOOD, AUTHORITY.certificate, HOSTS, NOW)
    assert is_good(GOOD, AUTHORITY.certificate, HOSTS, NOW)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    life = certificates.expires(GOOD.certificate) - NOW
    assert is_good(GOOD, AUTHORITY.certificate, HOSTS, NOW + life * 0.6)
    assert not is_good(GOOD, AUTHORITY.certificate, HOSTS, NOW + life * 0.7)


@pytest.mark.parametrize(
    ("pair", "authority", "hosts", "now", "says"),
    [
        (GOOD, "", HOSTS, NOW, "ca.crt is missing"),
        (GOOD, OTHER.certificate, HOSTS, NOW, "not signed by an authority"),
        (GOOD, AUTHORITY.certificate, [*HOSTS, "other.example"], NOW, r"does not name other\.example"),
        (GOOD, AUTHORITY.certificate, HOSTS, NOW + timedelta(days=366), "has expired on "),
        (Pair(GOOD.certificate, OTHER.key), AUTHORITY.certificate, HOSTS, NOW, "not the key of"),
        (Pair("nonsense", GOOD.key), AUTHORITY.certificate, HOSTS, NOW, "must be PEM"),
        (Pair(GOOD.certificate, "nonsense"), AUTHORITY.certificate, HOSTS, NOW, "must be PEM"),
        (Pair("", ""), AUTHORITY.certificate, HOSTS, NOW, "must be PEM"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(pair: Pair, authority: str, hosts: list[str], now: datetime, says: str) -> None:
    with pytest.raises(BadCertificate, match=says):
        check(pair, authority, hosts, now)


def test_a_certificate_for_servers_only_is_refused_since_nodes_are_clients_too() -> None:
    signer = x509.load_pem_x509_certificate(GOOD.certificate.encode())
    assert {usage.dotted_string for usage in signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value} == {
        "1.3.6.1.5.5.7.3.1",
        "1.3.6.1.5.5.7.3.2",
    }


def test_a_key_never_stands_in_a_message() -> None:
    with pytest.raises(BadCertificate) as told:
        check(Pair(GOOD.certificate, GOOD.key.replace("PRIVATE", "STRANGE")), AUTHORITY.certificate, HOSTS, NOW)
    assert GOOD.key.splitlines()[1] not in str(told.value)


# --- rotation ----------------------------------------------------------------------------------------------------------


def understands(one: Shown, other: Shown) -> bool:
    """Whether a node that shows and trusts `one` takes a connection with one of `other`, either way."""
    signers = {GOOD: AUTHORITY, RENEWED: AUTHORITY, FOREIGN: OTHER}
    return all(
        set(certificates.blocks(signers[a.pair].certificate)) <= set(certificates.blocks(b.trust)) for a, b in ((one, other), (other, one))
    )


RENEWED, FOREIGN = issue(AUTHORITY, HOSTS, NOW), issue(OTHER, HOSTS, NOW)


def steps(shown: Shown, pair: Pair, authority: str, every: timedelta) -> list[tuple[datetime, Shown]]:
    """Everything that is shown until nothing changes any more, with its time."""
    found, now = [(NOW, shown)], NOW - every
    while now < NOW + 8 * SETTLE:
        now += every
        following = turn(found[-1][1], pair, authority, now)
        if following != found[-1][1]:
            found.append((now, following))
    return found


def test_the_first_certificate_is_shown_at_once() -> None:
    assert turn(None, GOOD, AUTHORITY.certificate, NOW) == Shown(GOOD, AUTHORITY.certificate, f"{NOW:%Y-%m-%dT%H:%M:%SZ}")


def test_a_renewal_by_the_same_authority_is_one_step() -> None:
    shown = Shown(GOOD, AUTHORITY.certificate, "2020-01-01T00:00:00Z")
    assert turn(shown, RENEWED, AUTHORITY.certificate, NOW).pair == RENEWED


@pytest.mark.parametrize("every", [timedelta(seconds=2), timedelta(minutes=1), timedelta(minutes=10)], ids=str)
def test_a_new_authority_is_trusted_before_it_is_used_and_the_old_one_until_nobody_needs_it(every: timedelta) -> None:
    shown = Shown(GOOD, certificates.join(AUTHORITY.certificate), "2020-01-01T00:00:00Z")
    found = steps(shown, FOREIGN, certificates.join(OTHER.certificate), every)
    assert [one.pair for _, one in found] == [GOOD, GOOD, FOREIGN, FOREIGN]
    assert certificates.blocks(found[-1][1].trust) == certificates.blocks(OTHER.certificate)
    # Nodes are one step apart at most: before the next one everybody has read the last.
    for (at, one), (later, other) in itertools.pairwise(found):
        assert understands(one, other)
        assert later - at >= SETTLE or at == NOW


def test_an_authority_that_comes_back_in_the_middle_of_a_rotation_is_no_trouble() -> None:
    shown = Shown(GOOD, certificates.join(AUTHORITY.certificate), "2020-01-01T00:00:00Z")
    half = turn(shown, FOREIGN, certificates.join(OTHER.certificate), NOW)
    back = steps(half, GOOD, certificates.join(AUTHORITY.certificate), timedelta(minutes=1))
    assert all(one.pair == GOOD for _, one in back)
    assert certificates.blocks(back[-1][1].trust) == certificates.blocks(AUTHORITY.certificate)

"""A cluster whose nodes speak TLS, to clients and to each other, as people start it; certificates change while it serves."""

import ssl
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from context_operator.certificates import Pair, issue, make_authority
from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import RunningNode, run_command, running_node
from support.waiting import wait_until

NOW = datetime.now(UTC)
AUTHORITY = make_authority("test", NOW)


def write(folder: Path, pair: Pair) -> None:
    """As kubelet and careful people do it: each file is replaced as a whole."""
    folder.mkdir(exist_ok=True)
    for name, text in (("tls.crt", pair.certificate), ("tls.key", pair.key), ("ca.crt", AUTHORITY.certificate)):
        (folder / f"{name}.new").write_text(text)
        (folder / f"{name}.new").replace(folder / name)


def flags(folder: Path) -> list[str]:
    return [f"--tls-{name}-file={folder / file}" for name, file in (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"))]


def ask(url: str, method: str = "GET", body: object = None) -> tuple[int, Any]:
    return call(url, method, body, AUTHORITY.certificate)


def is_replicated(node: RunningNode) -> bool:
    view = ask(f"{node.url}/v1/cluster")[1]
    return bool(view["shards_healthy"] == 4 and all(sum(one["is_voter"] for one in shard["replicas"]) == 3 for shard in view["shards"]))


def test_three_nodes_speak_tls_and_take_up_new_certificates(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert run_command("cluster", "init", str(secret)).returncode == 0
    first = free_port()
    with ExitStack() as stack:
        nodes = []
        for name in ("n1", "n2", "n3"):
            write(tmp_path / f"tls-{name}", issue(AUTHORITY, ["127.0.0.1"], NOW))
            where = ["--peer-port", str(first)] if name == "n1" else ["--peer-port", "0", "--join", f"127.0.0.1:{first}"]
            words = ["--cluster-secret-file", str(secret), "--node-name", name, *where, *FAST, *flags(tmp_path / f"tls-{name}")]
            nodes.append(stack.enter_context(running_node(tmp_path / name, *words, command="serve")))
        assert nodes[0].url.startswith("https://")
        wait_until(lambda: is_replicated(nodes[1]), "every shard to have three voters")
        for number, node in enumerate(nodes, 1):
            body = {"message": {"role": "user", "content": node.url, "id": f"m{number}"}}
            wait_until(
                lambda node=node, body=body: ask(f"{node.url}/v1/contexts/talk/messages?create=true", "POST", body)[0] == 201, "an append"
            )
        assert ask(f"{nodes[0].url}/v1/contexts/talk")[1]["last_seq"] == 3
        told = run_command("cluster", "status", "--url", nodes[2].url, SSL_CERT_FILE=str(tmp_path / "tls-n1" / "ca.crt"))
        assert told.returncode == 0, told
        stranger = run_command("cluster", "status", "--url", nodes[2].url)
        assert stranger.returncode == 1
        assert b"certificate verify failed" in stranger.stderr

        host, port = nodes[0].url.removeprefix("https://").split(":")
        renewed = issue(AUTHORITY, ["127.0.0.1"], NOW)
        write(tmp_path / "tls-n1", renewed)
        wait_until(lambda: ssl.get_server_certificate((host, int(port))) == renewed.certificate, "the new certificate to be shown")
        write(tmp_path / "tls-n1", Pair("nonsense", renewed.key))
        wait_until(lambda: any("certificate_not_reloaded" in line for line in nodes[0].errors), "a complaint")
        assert ssl.get_server_certificate((host, int(port))) == renewed.certificate
        assert not any(renewed.key.splitlines()[1] in line for line in nodes[0].errors)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tls-cert-file=tls.crt"], "tls_key_file"),
        (["--tls-key-file=tls.key"], "tls_cert_file"),
        (["--tls-ca-file=ca.crt"], "needs a certificate to show"),
        (["--tls-cert-file=tls.crt", "--tls-key-file=no.key"], "no.key cannot be read: No such file"),
        (["--tls-cert-file=ca.crt", "--tls-key-file=tls.key"], "are no certificate with its key"),
        (["--tls-cert-file=tls.crt", "--tls-key-file=tls.key", "--tls-ca-file=tls.key"], "holds no certificates of authorities"),
    ],
)
def test_files_that_do_not_do_stop_the_start_with_a_sentence(tmp_path: Path, words: list[str], says: str) -> None:
    write(tmp_path / "files", issue(AUTHORITY, ["127.0.0.1"], NOW))
    given = [f"{word.partition('=')[0]}={tmp_path / 'files' / word.partition('=')[2]}" for word in words]
    ended = run_command("dev", "--port", "0", "--data-dir", str(tmp_path / "data"), *given)
    assert ended.returncode == 2
    assert says in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()

"""Settings: which source wins, what is refused and in which words, and that the documentation is the table's."""

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from context_node.setting_sources import specs
from context_node.settings import Settings, SettingsError, documentation, load_settings, setting_options

REPOSITORY = Path(__file__).resolve().parents[2]


def problems_of(**sources: object) -> list[str]:
    with pytest.raises(SettingsError) as refusal:
        load_settings(**{"env": {}, **sources})  # type: ignore[arg-type]
    return refusal.value.problems


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "contextstore.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_source_the_defaults_hold_and_are_within_their_own_ranges() -> None:
    loaded = load_settings(env={})
    assert loaded.settings == Settings()
    assert loaded.origins == {} and loaded.warnings == ()
    as_text = {row.env: str(row.default) for row in specs(Settings) if row.kind in (int, float) and row.default is not None}
    assert load_settings(env=as_text).settings == Settings()


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1001\nshards = 8\ndrain_s = 1\n")
    env = {"CONTEXTSTORE_PORT": "1002", "CONTEXTSTORE_SHARDS": "16"}
    loaded = load_settings(flags={"port": "1003", "shards": None}, env=env, config=config)
    assert (loaded.settings.port, loaded.settings.shards, loaded.settings.drain_s) == (1003, 16, 1.0)
    assert loaded.origins == {
        "port": "--port",
        "shards": "CONTEXTSTORE_SHARDS",
        "drain_s": f"drain_s in {config}",
    }


def test_a_command_may_have_defaults_of_its_own_and_any_source_beats_them() -> None:
    defaults = {"log_format": "console", "drain_s": 0.0}
    loaded = load_settings(env={"CONTEXTSTORE_DRAIN_S": "3"}, defaults=defaults)
    assert (loaded.settings.log_format, loaded.settings.drain_s) == ("console", 3.0)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("MESSAGE_BYTES_MAX", "64KiB", 65_536),
        ("MESSAGE_BYTES_MAX", "2 MiB", 2_097_152),
        ("MESSAGE_BYTES_MAX", "1_000_000", 1_000_000),
        ("HEARTBEAT_S", "0.5", 0.5),
        ("OPEN", "yes", True),
        ("COMPRESSION", "off", False),
        ("CORS_ORIGINS", "https://a.example, https://b.example", ("https://a.example", "https://b.example")),
        ("CORS_ORIGINS", "", ()),
        ("DEFAULT_TARGET_RATIO", "none", None),
        ("DATA_DIR", "/var/lib/contexts", Path("/var/lib/contexts")),
        ("DEFAULT_TOKENIZER", "cl100k_base", "cl100k_base"),
    ],
)
def test_values_of_the_environment_are_parsed_by_the_type_of_the_setting(name: str, raw: str, value: object) -> None:
    loaded = load_settings(env={f"CONTEXTSTORE_{name}": raw})
    assert getattr(loaded.settings, name.lower()) == value


@pytest.mark.parametrize(
    ("name", "raw", "sentence"),
    [
        ("PORT", "99999", "'99999' is outside 0 to 65535"),
        ("PORT", "4000x", "'4000x' is not a whole number"),
        ("PORT", "64KiB", "'64KiB' is not a whole number"),
        ("PORT", "9" * 40, "is not a whole number"),
        ("MESSAGE_BYTES_MAX", "1", "'1' is outside 1 KiB to 16 MiB bytes"),
        ("MESSAGE_BYTES_MAX", "1 mile", "'1 mile' is not a whole number of bytes (such as 65536 or 64KiB)"),
        ("HEARTBEAT_S", "nan", "'nan' is not a number"),
        ("HEARTBEAT_S", "0", "'0' is outside 0.1 to 300 s"),
        ("OPEN", "maybe", "'maybe' is not true or false"),
        ("DEFAULT_TOKENIZER", "p50k_base", "'p50k_base' is not one of o200k_base, cl100k_base"),
        ("NODE_NAME", "Node 1", "'Node 1' does not match"),
        ("DATA_DIR", "a\0b", "has a zero character"),
    ],
)
def test_a_bad_value_is_refused_by_a_sentence_that_names_the_variable(name: str, raw: str, sentence: str) -> None:
    (problem,) = problems_of(env={f"CONTEXTSTORE_{name}": raw})
    assert problem.startswith(f"CONTEXTSTORE_{name}: ") and sentence in problem


def test_all_bad_values_are_reported_at_once_each_with_its_place(tmp_path: Path) -> None:
    config = toml(tmp_path, 'shards = "many"\ncolour = "blue"\nopen = 1.5\n')
    found = problems_of(flags={"port": "-1"}, env={"CONTEXTSTORE_LOG_LEVEL": "loud"}, config=config)
    places = sorted(problem.split(":")[0] for problem in found)
    assert places == [
        "--port", "CONTEXTSTORE_LOG_LEVEL", f"colour in {config}", f"open in {config}", f"shards in {config}",
    ]  # fmt: skip


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path: Path) -> None:
    (missing,) = problems_of(config=tmp_path / "none.toml")
    assert missing.startswith("--config: ") and "cannot be read" in missing
    (broken,) = problems_of(config=toml(tmp_path, "port = = 1"))
    assert "is not valid TOML" in broken


@pytest.mark.parametrize("line", ["port = true", "compression = 1", "data_dir = 7", "cors_origins = [1]", "drain_s = true"])
def test_a_value_of_another_toml_type_is_refused(tmp_path: Path, line: str) -> None:
    assert len(problems_of(config=toml(tmp_path, line))) == 1


def test_an_unknown_variable_is_a_warning_but_those_of_kubernetes_and_of_the_command_line_are_not() -> None:
    loaded = load_settings(
        env={
            "CONTEXTSTORE_PROT": "4001",
            "CONTEXTSTORE_URL": "http://localhost:4000",
            "CONTEXTSTORE_SERVICE_HOST": "10.0.0.1",
            "CONTEXTSTORE_PORT_4000_TCP_ADDR": "10.0.0.1",
        }
    )
    assert loaded.warnings == ("CONTEXTSTORE_PROT is not a setting of this version and was ignored",)


def test_the_service_link_that_kubernetes_puts_into_every_pod_is_not_taken_for_a_port() -> None:
    loaded = load_settings(env={"CONTEXTSTORE_PORT": "tcp://10.0.0.1:4000"})
    assert loaded.settings.port == 4000
    assert loaded.warnings == ("CONTEXTSTORE_PORT looks like a Kubernetes service link and was ignored",)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"BATCH_BYTES_MAX": "512KiB"}, "batch_bytes_max"),
        ({"BATCH_BYTES_MAX": "32MiB"}, "proposal_queue_bytes_max"),
        ({"NODE_LOG_BYTES_MAX": "1MiB"}, "node_log_bytes_max"),
        ({"DEFAULT_TARGET_RATIO": "0.7"}, "default_target_ratio"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(env: dict[str, str], named: str) -> None:
    (problem,) = problems_of(env={f"CONTEXTSTORE_{name}": raw for name, raw in env.items()})
    assert named in problem.lower()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "node-1.example"])
def test_s5_an_address_that_others_can_reach_needs_keys_or_an_explicit_open(host: str) -> None:
    """S5: without a key nobody reads or writes."""
    (problem,) = problems_of(flags={"host": host})
    assert problem.startswith("--host: ") and "--api-keys-file" in problem and "--open" in problem
    assert load_settings(env={}, flags={"host": host, "open": True}).settings.open_mode
    assert not load_settings(env={}, flags={"host": host, "api_keys_file": "keys.jsonl"}).settings.open_mode


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_s5_on_loopback_the_node_is_open_until_keys_are_configured(host: str) -> None:
    assert load_settings(env={}, flags={"host": host}).settings.open_mode
    env = {"CONTEXTSTORE_API_KEYS": "cs_a_b"}
    assert not load_settings(env=env, flags={"host": host}).settings.open_mode


def test_secrets_are_never_repeated_in_a_refusal_nor_offered_as_a_flag(tmp_path: Path) -> None:
    (problem,) = problems_of(config=toml(tmp_path, 'api_keys = [1, "cs_id_topsecret"]'))
    assert "topsecret" not in problem
    assert "--api-keys " not in CliRunner().invoke(command(), ["--help"]).output
    assert "topsecret" not in repr(Settings(api_keys=("cs_id_topsecret",)))


def test_settings_never_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def command() -> click.Command:
    @click.command()
    @setting_options(defaults={"drain_s": 0.0})
    def show(flags: dict[str, object], config: Path | None) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        settings = load_settings(flags=flags, env={}, config=config).settings
        click.echo(f"{sorted(given)} {settings.port} {settings.open} {settings.compression} {settings.drain_s:g}")

    return show


def test_the_command_line_passes_on_only_the_flags_that_were_given(tmp_path: Path) -> None:
    config = toml(tmp_path, "drain_s = 9")
    arguments = ["--port", "4100", "--open", "--no-compression", "--config", str(config)]
    result = CliRunner().invoke(command(), arguments, catch_exceptions=False)
    assert result.output == "['compression', 'open', 'port'] 4100 True False 9\n"
    nothing = CliRunner().invoke(command(), [], catch_exceptions=False)
    assert nothing.output == "[] 4000 False True 5\n"


def test_help_shows_the_common_options_and_leaves_the_rest_to_the_documentation() -> None:
    text = CliRunner().invoke(command(), ["--help"]).output
    assert "--port" in text and "default: 4000" in text
    assert "--dirty-bytes-max" not in text


def test_every_setting_has_a_reason_and_every_number_a_range() -> None:
    for row in specs(Settings):
        assert len(row.reason) > 20, row.name
        assert row.kind not in (int, float) or (row.low is not None and row.high is not None), row.name
        for unit in ("bytes", "s"):
            assert (f"_{unit}" in row.name + "_") == (row.unit == unit) or not row.name.endswith(f"_{unit}"), row.name


def test_the_page_of_settings_is_the_one_that_the_table_gives() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == documentation(), "docs/settings.md is stale: run `make docs-settings`"

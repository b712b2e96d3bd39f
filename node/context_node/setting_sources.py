"""How settings are declared, read from flags, environment, TOML and defaults, and checked.

Knows: a frozen dataclass whose fields were made by `setting()` is a table; everything else (names of flags and
variables, parsing, ranges, messages, command-line options, documentation) is derived from it. Does not know any single
setting.

Invariants: flag > environment variable > TOML file > default; a value is checked against its range whatever it came
from, and a refusal names the place it came from; all refusals of one start are reported at once; an unknown TOML key is
refused (a typo must not silently mean "default"), an unknown variable is only warned about (the environment is shared).
"""

import dataclasses
import functools
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import click

T = TypeVar("T")

ENV_PREFIX = "CONTEXTSTORE_"
BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class SettingsError(Exception):
    """One or more settings cannot be used. `problems` are sentences; each names the flag, variable or file key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the table.

    `kind` is bool, int, float, str, Path or tuple (of strings); `optional` permits absence (None). `low` and `high` are
    inclusive and bound numbers, or the length of a string. `secret` values have no flag (the process list shows
    flags) and are never printed. `advanced` options work but are left out of `--help`.
    """

    name: str
    group: str
    kind: type
    optional: bool
    default: object
    unit: str
    reason: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    pattern: str
    secret: bool
    advanced: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """The settings, where each that is not a default came from, and what a start should warn about."""

    settings: T
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def setting(
    default: object,
    *,
    group: str,
    reason: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    secret: bool = False,
    advanced: bool = True,
) -> Any:
    """Declares a field of a settings class; the field's annotation gives the type. See `Spec` for the arguments."""
    row = {
        "group": group, "unit": unit, "reason": reason, "low": low, "high": high, "choices": choices,
        "pattern": pattern, "secret": secret, "advanced": advanced,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=row, repr=not secret)


@functools.cache
def specs(table: type) -> tuple[Spec, ...]:
    """The rows of a settings class, in the order in which they are written."""
    hints = typing.get_type_hints(table)
    rows = []
    for field in dataclasses.fields(table):
        hint, optional = hints[field.name], False
        if isinstance(hint, types.UnionType):
            hint, optional = next(arm for arm in hint.__args__ if arm is not types.NoneType), True
        kind = typing.get_origin(hint) or hint
        rows.append(Spec(name=field.name, kind=kind, optional=optional, default=field.default, **field.metadata))
    return tuple(rows)


def load(
    table: type[T],
    *,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    config: Path | None = None,
    defaults: Mapping[str, object] | None = None,
    env_of_others: Collection[str] = (),
) -> Loaded[T]:
    """Reads all sources once. Raises SettingsError with every problem found, also those of the table's `problems()`.

    `flags`: values by field name, None where not given. `config`: a TOML file. `defaults` replace the table's (a
    command may have its own). `env_of_others`: variables with our prefix that are no settings but known.
    """
    env = os.environ if env is None else env
    flags = flags or {}
    rows = {row.name: row for row in specs(cast(type, table))}
    problems: list[str] = []
    warnings = [f"{name} is not a setting of this version and was ignored" for name in unknown_env(env, rows, env_of_others)]
    from_file = read_toml(config, rows, problems) if config else {}
    values: dict[str, object] = dict(defaults or {})
    origins: dict[str, str] = {}
    for row in rows.values():
        if flags.get(row.name) is not None:
            raw, origin = flags[row.name], row.flag
        elif row.env in env:
            raw, origin = env[row.env], row.env
            if env[row.env].startswith("tcp://"):
                # Kubernetes puts such a variable into every pod beside a Service named `contextstore`.
                warnings.append(f"{row.env} looks like a Kubernetes service link and was ignored")
                continue
        elif row.name in from_file:
            raw, origin = from_file[row.name], f"{row.name} in {config}"
        else:
            continue
        try:
            values[row.name] = checked(row, raw)
            origins[row.name] = origin
        except ValueError as refusal:
            problems.append(f"{origin}: {refusal}")
    if not problems:
        settings = table(**values)
        problems = [with_origin(problem, origins) for problem in cast(Any, settings).problems()]
        if not problems:
            return Loaded(settings, origins, tuple(warnings))
    raise SettingsError(problems)


def unknown_env(env: Mapping[str, str], rows: Mapping[str, Spec], others: Collection[str]) -> list[str]:
    known = {row.env for row in rows.values()} | set(others)
    # A Service named `contextstore` also adds CONTEXTSTORE_SERVICE_… and CONTEXTSTORE_PORT_4000_TCP…: nobody's typo.
    link = re.compile(ENV_PREFIX + r"(SERVICE_|PORT_\d+_(TCP|UDP))")
    return sorted(name for name in env if name.startswith(ENV_PREFIX) and name not in known and not link.match(name))


def read_toml(config: Path, rows: Mapping[str, Spec], problems: list[str]) -> dict[str, object]:
    try:
        parsed = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as refusal:
        problems.append(f"--config: {config} cannot be read: {refusal.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as refusal:
        problems.append(f"--config: {config} is not valid TOML: {refusal}")
        return {}
    problems.extend(f"{key} in {config}: there is no such setting" for key in parsed if key not in rows)
    return parsed


def with_origin(problem: tuple[str, str], origins: Mapping[str, str]) -> str:
    name, sentence = problem
    return f"{origins.get(name, name)}: {sentence}"


def checked(row: Spec, raw: object) -> object:
    """`raw` (a string of flag or environment, or a TOML value) as the row's type. Raises ValueError with a sentence."""
    shown = "the value" if row.secret else repr(raw)
    try:
        value = parsed(row, raw)
    except ValueError as refusal:
        raise ValueError(f"{shown} {refusal}") from None
    if row.choices and value not in row.choices:
        raise ValueError(f"{shown} is not one of {', '.join(row.choices)}")
    if row.pattern and isinstance(value, str) and not re.fullmatch(row.pattern, value):
        raise ValueError(f"{shown} does not match {row.pattern}")
    if not in_range(row, value):
        raise ValueError(f"{shown} is outside {range_text(row)}{' ' + row.unit if row.unit else ''}")
    return value


def in_range(row: Spec, value: object) -> bool:
    measured = len(value) if isinstance(value, str | tuple) else value
    if isinstance(measured, bool) or not isinstance(measured, int | float):
        return True
    return (row.low is None or measured >= row.low) and (row.high is None or measured <= row.high)


def parsed(row: Spec, raw: object) -> object:
    """Raises ValueError with the end of a sentence that begins with the value."""
    if row.optional and raw in ("", "none"):
        return None
    if row.kind is bool:
        return parsed_bool(raw)
    if row.kind is int:
        return parsed_int(raw, suffixes=row.unit == "bytes")
    if row.kind is float:
        return parsed_float(raw)
    if row.kind is tuple:
        return parsed_list(raw)
    if not isinstance(raw, str | Path):
        raise ValueError("is not a string")
    if "\0" in str(raw):
        raise ValueError("has a zero character")
    return Path(raw).expanduser() if row.kind is Path else str(raw)


def parsed_bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(raw, str) and raw.lower() in words:
        return words[raw.lower()]
    raise ValueError("is not true or false")


def parsed_int(raw: object, *, suffixes: bool) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = re.fullmatch(r"(-?[0-9][0-9_]{0,19}) ?([A-Za-z]*)", raw.strip()) if isinstance(raw, str) else None
    if match and (factor := BYTE_UNITS.get(match[2].upper())) and (suffixes or not match[2]):
        return int(match[1]) * factor
    raise ValueError("is not a whole number" + (" of bytes (such as 65536 or 64KiB)" if suffixes else ""))


def parsed_float(raw: object) -> float:
    try:
        value = math.nan if isinstance(raw, bool) else float(cast(Any, raw))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("is not a number")
    return value


def parsed_list(raw: object) -> tuple[str, ...]:
    words = re.split(r"[,\s]+", raw) if isinstance(raw, str) else raw
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError("is not a list of strings")
    return tuple(word for word in words if word)


def range_text(row: Spec) -> str:
    """The range for people: `1 to 65535`, `at least 1`, or what is allowed instead of a range."""
    if row.choices:
        return ", ".join(f"`{choice}`" for choice in row.choices)
    what = "length " if row.kind in (str, Path) and row.high is not None else ""
    if row.low is not None and row.high is not None:
        return f"{what}{number_text(row.low, row.unit)} to {number_text(row.high, row.unit)}"
    return f"at least {number_text(row.low, row.unit)}" if row.low is not None else ""


def number_text(number: float, unit: str = "") -> str:
    if unit == "bytes":
        for name, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if number >= factor and number % factor == 0:
                return f"{int(number // factor):,} {name}"
    if number != int(number):
        return f"{number:.10f}".rstrip("0")
    return f"{int(number):,}" if unit else str(int(number))  # what has no unit is a name rather than an amount: a port


def value_text(row: Spec, value: object) -> str:
    """A default for people, in the unit of its row."""
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value)
    return number_text(value, row.unit) if isinstance(value, int | float) else str(value)


def options(table: type, *, defaults: Mapping[str, object] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a click command `--config` and an option for each setting that is no secret.

    The command is called with `flags` (values by field name, None where not given) and `config` (Path or None): the
    arguments of `load`. Nothing is converted here, so that every source meets the same checks.
    """
    shown = [row for row in specs(table) if not row.secret]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def collect(*args: Any, config: str | None, **kwargs: Any) -> Any:
            flags = {row.name: kwargs.pop(row.name) for row in shown}
            return command(*args, flags=flags, config=Path(config) if config else None, **kwargs)

        decorated: Callable[..., Any] = collect
        for row in reversed(shown):
            default = (defaults or {}).get(row.name, row.default)
            names = f"{row.flag}/--no-{row.flag[2:]}" if row.kind is bool else row.flag
            text = f"{row.reason} [{row.unit + '; ' if row.unit else ''}default: {value_text(row, default)}]"
            extra: dict[str, Any] = {} if row.kind is bool else {"metavar": row.kind.__name__.upper()}
            decorated = click.option(names, row.name, default=None, help=text, hidden=row.advanced, **extra)(decorated)
        return click.option("--config", default=None, metavar="FILE", envvar=ENV_PREFIX + "CONFIG", help="A TOML file with settings.")(
            decorated
        )

    return decorate


def documentation(table: type) -> str:
    """All settings as Markdown tables, one for each group in order of first appearance."""
    groups: dict[str, list[Spec]] = {}
    for row in specs(table):
        groups.setdefault(row.group, []).append(row)
    lines: list[str] = []
    for group, rows in groups.items():
        lines += [f"## {group}", "", "| setting | default | unit | range | why |", "| --- | --- | --- | --- | --- |"]
        for row in rows:
            cells = (f"`{row.name}`", value_text(row, row.default), row.unit or "–", range_text(row) or "–", row.reason)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)

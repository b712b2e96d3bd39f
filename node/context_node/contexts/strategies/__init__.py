"""The built-in strategies and the one place that knows their names and configurations.

A strategy is asked for by name with a JSON object as its config; `parse_strategy` refuses nonsense before it reaches the log (S1) and gives
a `Strategy`, which compaction runs inside apply. Each has a revision number: behaviour changes by a new revision, never by an edit.
Strategies that call out (`summarize`, `webhook`, plugins) have their place in `NOT_BUILT_IN` and are refused with a clear word.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from context_node.contexts.compaction import Strategy
from context_node.contexts.refusals import InvalidPolicy
from context_node.contexts.strategies.clear_tool_results import ClearToolResults
from context_node.contexts.strategies.skip_parts import SkipParts

T = TypeVar("T")


class LastNConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`limit`: above so many messages the oldest turns go (system, pinned and the last user message are not counted)."""

    limit: int | None = None


class SkipPartsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`kinds`: prefixes of part types to leave out; `skip_kinds` means the same. `keep_last` newest messages stay whole;
    `limit` as `last_n`."""

    kinds: list[str] | None = None
    skip_kinds: list[str] | None = None
    keep_last: int = 0
    limit: int | None = None


class ClearToolResultsConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`keep_last` newest results stay; `exclude_tools` never; the pass is left out if it gains less than `clear_at_least` tokens."""

    keep_last: int = 3
    exclude_tools: list[str] = []
    clear_at_least: int = 0


class ManualConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Nothing to set: the app compacts by itself; only above the budget does the store evict."""


class Step(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One rung of a pipeline."""

    strategy: str
    config: dict[str, Any] = {}


class PipelineConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`strategies` run in order until the target is met; 1 to 16 of them, none itself a pipeline or manual."""

    strategies: list[Step]


def parse_strategy(name: str, config: Mapping[str, Any], field: str = "config") -> Strategy:
    """The strategy of that name and config. Raises `InvalidPolicy` with the path of what is wrong and what would do."""
    parse = _PARSERS.get(name)
    if parse is None:
        if name in NOT_BUILT_IN:
            raise InvalidPolicy(f"Strategy {name!r} is not available in this version; use one of {_names()}.", field="strategy")
        raise InvalidPolicy(f"There is no strategy {name!r}; use one of {_names()}.", field="strategy")
    return parse(config, field)


def _names() -> str:
    return ", ".join(sorted(_PARSERS))


def _convert(kind: type[T], config: Mapping[str, Any], field: str) -> T:
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = text.rpartition("`$")[2].rstrip("`") if "`$" in text else ""
        raise InvalidPolicy(f"{field}{where}: {text.split(' - at ')[0]}.", field=field + where) from None


def _check_limit(limit: int | None, field: str) -> None:
    if limit is not None and not 1 <= limit <= 1_000_000:
        raise InvalidPolicy(f"{field}.limit must be from 1 to 1,000,000, not {limit}.", field=f"{field}.limit")


def _check_count(value: int, name: str, field: str, most: int = 1_000_000_000) -> None:
    if not 0 <= value <= most:
        raise InvalidPolicy(f"{field}.{name} must be from 0 to {most:,}, not {value}.", field=f"{field}.{name}")


def _check_names(values: list[str], name: str, field: str) -> None:
    if len(values) > 256 or any(not value or len(value) > 256 for value in values):
        raise InvalidPolicy(f"{field}.{name} takes up to 256 non-empty names of at most 256 characters.", field=f"{field}.{name}")


def _parse_last_n(config: Mapping[str, Any], field: str) -> Strategy:
    limit = _convert(LastNConfig, config, field).limit
    _check_limit(limit, field)
    return Strategy(limit=limit)


def _parse_skip_parts(config: Mapping[str, Any], field: str) -> Strategy:
    parsed = _convert(SkipPartsConfig, config, field)
    if (parsed.kinds is None) == (parsed.skip_kinds is None):
        raise InvalidPolicy(
            f"{field}.kinds must name the part types to leave out, such as ['reasoning'] (give it once).", field=f"{field}.kinds"
        )
    kinds = parsed.kinds if parsed.kinds is not None else parsed.skip_kinds or []
    if not kinds:
        raise InvalidPolicy(f"{field}.kinds must name at least one part type.", field=f"{field}.kinds")
    _check_names(kinds, "kinds", field)
    _check_limit(parsed.limit, field)
    _check_count(parsed.keep_last, "keep_last", field)
    return Strategy((SkipParts(tuple(kinds), parsed.keep_last),), parsed.limit)


def _parse_clear(config: Mapping[str, Any], field: str) -> Strategy:
    parsed = _convert(ClearToolResultsConfig, config, field)
    _check_count(parsed.keep_last, "keep_last", field)
    _check_count(parsed.clear_at_least, "clear_at_least", field)
    _check_names(parsed.exclude_tools, "exclude_tools", field)
    return Strategy((ClearToolResults(parsed.keep_last, frozenset(parsed.exclude_tools), parsed.clear_at_least),))


def _parse_manual(config: Mapping[str, Any], field: str) -> Strategy:
    _convert(ManualConfig, config, field)
    return Strategy(manual=True)


def _parse_pipeline(config: Mapping[str, Any], field: str) -> Strategy:
    steps = _convert(PipelineConfig, config, field).strategies
    if not 1 <= len(steps) <= 16:
        raise InvalidPolicy(f"{field}.strategies takes 1 to 16 strategies, not {len(steps)}.", field=f"{field}.strategies")
    parsed = []
    for place, step in enumerate(steps):
        where = f"{field}.strategies[{place}]"
        if step.strategy in ("pipeline", "manual"):
            raise InvalidPolicy(f"{where}: {step.strategy!r} can't be part of a pipeline.", field=f"{where}.strategy")
        parsed.append(parse_strategy(step.strategy, step.config, f"{where}.config"))
    limits = [step.limit for step in parsed if step.limit is not None]
    return Strategy(tuple(edit for step in parsed for edit in step.edits), min(limits, default=None))


NOT_BUILT_IN = frozenset({"summarize", "webhook"})
"""Known by name; they run on the leader, outside apply."""

_PARSERS: dict[str, Callable[[Mapping[str, Any], str], Strategy]] = {
    "last_n": _parse_last_n,
    "skip_parts": _parse_skip_parts,
    "clear_tool_results": _parse_clear,
    "manual": _parse_manual,
    "pipeline": _parse_pipeline,
}

STRATEGY_NAMES = tuple(sorted(_PARSERS))
DEFAULT_STRATEGY = Strategy()
"""`last_n` without a limit: what a context has without a policy."""

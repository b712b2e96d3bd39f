"""The rules of windows once more, written from the specification, slowly and naively: what `contexts/` is compared with.

Shares no code with it. A window is a list of `Entry`; whatever is asked of it is computed anew from that list. Knows the
strategies `last_n` and `manual`; ratios are exact fractions.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from support.window_messages import Message, Part

ENDED = ("output-available", "output-error", "output-denied")
MARKER_TOKENS = 64


class Refused(Exception):
    """The command changes nothing; `args[0]` is the code."""


@dataclass(eq=False)
class Entry:
    """What stands in a window: a message (or some of its parts), a replacement, or the marker of a call that got no result."""

    kind: str
    seq: int
    to_seq: int
    role: str
    parts: dict[int, Part]
    tokens: int
    pinned: bool = False

    @property
    def kinds(self) -> set[str]:
        return {part[0] for part in self.parts.values()}

    @property
    def is_head(self) -> bool:
        return self.pinned or self.role == "system"

    @property
    def ends_waiting(self) -> bool:
        links = self.kinds & {"call", "result", "failed", "ui"}
        return self.role != "system" and self.kind != "marker" and not links and self.kinds != {"reasoning"}


@dataclass
class Call:
    entry: Entry
    part: int
    id: str
    marker: Entry | None = None


def is_result(part: Part) -> bool:
    return part[0] in ("result", "failed")


def is_ended(part: Part) -> bool:
    return part[0] == "ui" and part[2] in ENDED


def calls_something(part: Part) -> bool:
    return part[0] == "call" or (part[0] == "ui" and not is_ended(part))


def answers(part: Part, open_calls: list[Call]) -> Call | None:
    """Which call a part answers: the latest of its id without a result."""
    if not is_result(part) and part[0] != "ui":
        return None
    latest = next((call for call in reversed(open_calls) if call.id == part[1]), None)
    if latest is not None and part[0] == "ui" and not is_ended(part) and latest.marker is not None:
        return None
    return latest


def read(entries: list[Entry]) -> tuple[list[list[Entry]], list[Call]]:
    """The units of a window, and its calls without a result."""
    bonds: list[tuple[Entry, Entry]] = []
    open_calls: list[Call] = []
    loose: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind == "marker":
            call = [each for each in open_calls if each.id == entry.parts[0][1] and each.marker is None][-1]
            call.marker = entry
            bonds.append((call.entry, entry))
            continue
        if entry.role in loose:
            bonds.append((loose.pop(entry.role), entry))
        if entry.kinds == {"reasoning"}:
            loose[entry.role] = entry
        for place, part in entry.parts.items():
            call_or_none = answers(part, open_calls)
            if call_or_none is not None:
                open_calls.remove(call_or_none)
                bonds.append((call_or_none.entry, entry))
            if calls_something(part):
                open_calls.append(Call(entry, place, part[1]))
    units = [[entry] for entry in entries]
    for left, right in bonds:
        first = next(unit for unit in units if left in unit)
        second = next(unit for unit in units if right in unit)
        if first is not second:
            units.remove(second)
            first += second
    for unit in units:
        unit.sort(key=entries.index)
    units.sort(key=lambda unit: entries.index(unit[0]))
    return units, open_calls


@dataclass
class Model:
    """One context. `window` is what `contexts/` must have; `changed` tells whether the last command changed it before its end."""

    budget: int = 8192
    trigger: Fraction = Fraction(7, 10)
    target: Fraction | None = None
    limit: int | None = None
    manual: bool = False
    items_max: int = 10_000
    version: int = 0
    history: list[Message] = field(default_factory=list)
    window: list[Entry] = field(default_factory=list)
    changed: bool = False
    rewrites: list[tuple[int, int, int]] = field(default_factory=list)

    # --- what the window is made of ----------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        return len(self.history)

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.window)

    def head(self) -> list[Entry]:
        units, _ = read(self.window)
        return [entry for unit in units if any(each.is_head for each in unit) for entry in unit]

    def last_user(self) -> Entry | None:
        users = [
            entry
            for entry in self.window
            if entry.kind == "live" and entry.role == "user" and not all(is_result(part) for part in entry.parts.values())
        ]
        return users[-1] if users else None

    def floor(self) -> list[Entry]:
        units, open_calls = read(self.window)
        real = [entry for entry in self.window if entry.kind != "marker"]
        newest = max(real, key=lambda entry: (entry.to_seq, self.window.index(entry)), default=None)
        waiting = [call.entry for call in open_calls if call.marker is None]
        held = [unit for unit in units if any(entry.is_head or entry in waiting or entry is newest for entry in unit)]
        user = self.last_user()
        if user is not None:
            unit = next(unit for unit in units if user in unit)
            cost = sum(entry.tokens for each in held for entry in each)
            if unit not in held and cost + sum(entry.tokens for entry in unit) <= self.budget:
                held.append(unit)
        return [entry for unit in held for entry in unit]

    def counted(self) -> int:
        head = self.head()
        return sum(1 for entry in self.window if entry not in head and entry is not self.last_user())

    # --- joining -----------------------------------------------------------------------------------------------------

    def join(self, seq: int, message: Message) -> None:
        parts = dict(enumerate(message.parts))
        _, open_calls = read(self.window)
        late: list[tuple[int, Call]] = []
        mine = Entry("live", seq, seq, message.role, {}, message.tokens, message.pinned)
        for place, part in parts.items():
            call = answers(part, open_calls)
            if call is None and is_result(part):
                continue
            if call is not None:
                open_calls.remove(call)
            if call is not None and call.marker is not None:
                late.append((place, call))
                continue
            mine.parts[place] = part
            if calls_something(part):
                open_calls.append(Call(mine, place, part[1]))
        own_cost = 0 if message.token_count is not None else 4

        def cost(places: list[int]) -> int:
            if message.token_count is not None:
                return message.token_count if 0 in places else 0
            return own_cost + sum(int(message.parts[place][-1]) for place in places)

        if mine.parts:
            mine.tokens = cost(list(mine.parts))
            if mine.ends_waiting:
                self.mark([call for call in open_calls if call.marker is None])
            self.window.append(mine)
        for place, call in late:
            assert call.marker is not None
            answer = Entry("live", seq, seq, message.role, {place: message.parts[place]}, cost([place]), message.pinned)
            self.window[self.window.index(call.marker)] = answer
            self.changed = True
            self.rewrites.append((self.version, call.entry.seq, call.entry.seq))

    def mark(self, waiting: list[Call]) -> None:
        for call in sorted(waiting, key=lambda call: (self.window.index(call.entry), call.part)):
            # Of equal ids, the latest call has the first marker.
            owner = [each for each in waiting if each.id == call.id and each.marker is None]
            owner.sort(key=lambda each: (self.window.index(each.entry), each.part))
            marker = Entry("marker", owner[-1].entry.seq, owner[-1].entry.seq, "tool", {0: ("result", call.id, 60)}, MARKER_TOKENS)
            owner[-1].marker = marker
            self.window.append(marker)

    # --- compaction --------------------------------------------------------------------------------------------------

    def numbers(self) -> tuple[Fraction, Fraction]:
        room = max(0, self.budget - sum(entry.tokens for entry in self.head()))
        target = self.target if self.target is not None else min(Fraction(1, 2), self.trigger * Fraction(5, 7))
        return self.trigger * room, target * room

    def body(self) -> int:
        return self.tokens - sum(entry.tokens for entry in self.head())

    def shrunk(self, count: int) -> int:
        target = self.target if self.target is not None else min(Fraction(1, 2), self.trigger * Fraction(5, 7))
        return max(1, int(count * target / self.trigger))

    def is_above(self) -> bool:
        too_many = self.limit is not None and self.counted() > self.limit
        return self.body() > self.numbers()[0] or too_many or len(self.window) > self.items_max

    def compact(self) -> None:
        if self.manual and self.tokens <= self.budget and len(self.window) <= self.items_max:
            return
        if not self.is_above():
            return
        most, count, total = self.numbers()[1], self.limit, self.items_max
        if count is not None and self.counted() > count:
            count = self.shrunk(count)
        if len(self.window) > total:
            total = self.shrunk(total)
        for group in self.groups():
            if self.body() <= most and (count is None or self.counted() <= count) and len(self.window) <= total:
                return
            self.window = [entry for entry in self.window if entry not in group]
            self.changed = True

    def groups(self) -> list[list[Entry]]:
        """What may go, in order: earlier turns, summaries, units of the last turn."""
        units, _ = read(self.window)
        floor = self.floor()
        turn_of: dict[int, int] = {}
        turn = 0
        for place, entry in enumerate(self.window):
            unit = next(unit for unit in units if entry in unit)
            started = [each for each in units if self.window.index(each[0]) < place <= self.window.index(each[-1])]
            is_user = entry.kind == "live" and entry.role == "user" and not all(is_result(part) for part in entry.parts.values())
            if is_user and not started:
                turn += 1
            if unit[0] is entry:
                turn_of[id(unit)] = turn
        free = [unit for unit in units if unit[0] not in floor]
        turns: dict[int, list[Entry]] = {}
        for unit in free:
            if unit[0].kind != "summary" and turn_of[id(unit)] < turn:
                turns.setdefault(turn_of[id(unit)], []).extend(unit)
        summaries = [unit for unit in free if unit[0].kind == "summary"]
        last = [unit for unit in free if unit[0].kind != "summary" and turn_of[id(unit)] == turn]
        return [*turns.values(), *summaries, *last]

    # --- commands ----------------------------------------------------------------------------------------------------

    def append(self, messages: list[Message]) -> None:
        self.changed = False
        self.version += 1
        for message in messages:
            self.history.append(message)
            self.join(len(self.history), message)
        self.compact()

    def configure(self, budget: int, trigger: Fraction, target: Fraction | None, limit: int | None, manual: bool) -> None:
        self.changed = False
        before = (self.budget, self.trigger, self.target, self.limit, self.manual)
        self.budget, self.trigger, self.target, self.limit, self.manual = budget, trigger, target, limit, manual
        if before == (budget, trigger, target, limit, manual):
            return
        self.compact()
        self.version += self.changed

    def pin(self, seq: int, pinned: bool) -> None:
        """Pin or unpin a message that is in the window."""
        self.changed = False
        here = [entry for entry in self.window if entry.kind == "live" and entry.seq == seq]
        if all(entry.pinned == pinned for entry in here):
            return
        for entry in here:
            entry.pinned = pinned
        self.version += 1
        self.rewrites.append((self.version, seq, seq))
        self.changed = True
        self.compact()

    def works(self, first: int, last: int) -> bool:
        """Whether a range can be replaced: it splits nothing and holds no call that waits."""
        if not 1 <= first <= last <= self.last_seq:
            return False
        units, open_calls = read(self.window)
        head = self.head()
        for unit in units:
            if unit[0] in head:
                continue
            inside = all(first <= entry.seq and entry.to_seq <= last for entry in unit)
            touched = any(entry.seq <= last and entry.to_seq >= first for entry in unit)
            waits = any(call.marker is None and call.entry in unit for call in open_calls)
            if touched and (not inside or waits):
                return False
        return True

    def replace(self, first: int, last: int, messages: list[Message], if_version: int | None) -> None:
        """Replace a range by plain messages."""
        self.changed = False
        if not 1 <= first <= last <= self.last_seq:
            raise Refused("unprocessable")
        if if_version is not None and (
            if_version > self.version or any(at > if_version and low <= last and high >= first for at, low, high in self.rewrites)
        ):
            raise Refused("version_conflict")
        if not self.works(first, last):
            raise Refused("unprocessable")
        head = self.head()
        covered = [
            entry for entry in self.window if entry not in head and (entry.kind != "marker" and first <= entry.seq and entry.to_seq <= last)
        ]
        _, open_calls = read(self.window)
        covered += [call.marker for call in open_calls if call.marker is not None and call.entry in covered]
        later = [entry for entry in self.window if entry.seq > first and entry.kind != "marker"]
        stand_in = [
            Entry("summary", first, last, "user" if each.role == "system" else each.role, dict(enumerate(each.parts)), each.tokens)
            for each in messages
        ]
        anchor = covered[:1] or later[:1]
        if covered:
            anchor = [min(covered, key=self.window.index)]
        place = self.window.index(anchor[0]) if anchor else len(self.window)
        new = [*self.window[:place], *stand_in, *self.window[place:]]
        new = [entry for entry in new if entry not in covered]
        if not new or sum(entry.tokens for entry in new) > self.budget:
            raise Refused("unprocessable")
        self.window = new
        self.version += 1
        self.rewrites.append((self.version, first, last))
        self.changed = True

    def replace_all(self, through: int | None, messages: list[Message], if_version: int | None) -> None:
        """Replace all, or what is not newer than `through`, by plain messages."""
        self.changed = False
        if if_version is not None and if_version != self.version:
            raise Refused("version_conflict")
        last = self.last_seq if through is None else through
        if not 0 <= last <= self.last_seq:
            raise Refused("unprocessable")
        units, open_calls = read(self.window)
        head = self.head()
        waiting = [call.entry for call in open_calls if call.marker is None]
        body = [unit for unit in units if unit[0] not in head]
        for unit in body:
            if any(entry.seq <= last for entry in unit) and any(entry.to_seq > last for entry in unit):
                raise Refused("unprocessable")
        gone = [
            entry
            for unit in body
            if all(entry.to_seq <= last for entry in unit) and not any(entry in waiting for entry in unit)
            for entry in unit
        ]
        stand_in = [Entry("summary", min(1, last), last, each.role, dict(enumerate(each.parts)), each.tokens) for each in messages]
        heads = [entry for entry in stand_in if entry.role == "system"]
        rest = [entry for entry in stand_in if entry.role != "system"]
        old: list[Entry] = []
        if heads:
            alone = [unit[0] for unit in units if len(unit) == 1]
            old = [entry for entry in alone if entry.role == "system" and not entry.pinned and entry.seq <= last]
        later = [entry for entry in self.window if entry.seq > last and entry.kind != "marker"]
        head_place = self.window.index(old[0]) if old else 0
        anchor = min(gone, key=self.window.index) if gone else (later[0] if later else None)
        body_place = max(head_place, self.window.index(anchor) if anchor is not None else len(self.window))
        new = [*self.window[:head_place], *heads, *self.window[head_place:body_place], *rest, *self.window[body_place:]]
        new = [entry for entry in new if entry not in gone and entry not in old]
        if not new or sum(entry.tokens for entry in new) > self.budget:
            raise Refused("unprocessable")
        self.window = new
        self.version += 1
        self.rewrites.append((self.version, 1, last))
        self.changed = True

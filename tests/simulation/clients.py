"""Clients of a simulated cluster: what they ask, what they were told, and the judgement of it.

Knows the service that a node gives, and the judges of `support.histories`. Does not know faults. A client asks any node, as if through a
load balancer; a write that was not acknowledged is tried again where that is safe (a message id or an idempotency key), and never where it
is not. Invariant: an operation whose answer was lost may have happened.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from context_node.contexts.refusals import ContextNotFound, OutcomeUnknown, Refusal
from context_node.contexts.requests import Append as AppendRequest
from context_node.contexts.requests import Compact, PatchMetadata, PolicyChoice, PutContext, PutPolicy
from context_node.runtime.proposals import OUTLIVE_ELECTIONS
from context_node.runtime.service import Service
from context_node.runtime.shards import shard_of
from simulation.judge import Judge
from simulation.world import ELECTION_TICKS, Life, World, settle
from support.histories import Append, LogOperation, Mark, Operation, Read, Seen, Tail, by_context, check_log
from support.running_nodes import history, message

LOGS = ("by-id-0", "by-id-1", "by-key-0", "by-key-1", "plain-0")
WILD = ("wild-0", "wild-1", "wild-2")
TAIL = 4
BURST = 6
CLIENT_TIMEOUT_S = 6.0
SILENCE_S = 60.0
"""No operation of a living process may stay without an answer for so long (P4)."""

OUTLIVES_TICKS = OUTLIVE_ELECTIONS * ELECTION_TICKS
"""So long a write may stay without an answer after its leader ceased to lead (P4)."""

ANSWER_S = 45.0
"""So long after all is whole, the end of every operation has come: a call between nodes has 30 s."""


class NotSent(Exception):
    """The node could not be reached: nothing happened."""


class Lost(Exception):
    """The answer was lost: anything may have happened."""


@dataclass
class Question:
    """An operation that a process works on, for the judge of silence."""

    life: Life
    process: Any
    asked: float
    task: "asyncio.Task[Any]"
    was_paused: bool = False


class Clients:
    """All clients, their operations, and the oracle over them."""

    def __init__(self, world: World, judge: Judge, count: int = 5) -> None:
        self.world = world
        self.judge = judge
        self.operations: list[LogOperation] = []
        self.acknowledged = 0
        self.asked = 0
        self.is_over = False
        self._random = random.Random(world.loop.random.getrandbits(64))
        self._windows: dict[tuple[str, int, int], bytes] = {}
        self._floors: dict[str, int] = {}
        """By context the greatest last seq that was acknowledged or shown: no later read may show less (H5)."""
        self._numbers = 0
        self._questions: list[Question] = []
        self._count = count

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                tasks.create_task(self._client(number))
            tasks.create_task(self._watch_silence())

    async def _client(self, number: int) -> None:
        chosen = random.Random(self._random.getrandbits(64))
        while not self.is_over:
            await asyncio.sleep(chosen.random() * 0.02)
            dice = chosen.random()
            if dice < 0.46:
                await self._append(number, chosen)
            elif dice < 0.5:
                await self._burst(number, chosen)
            elif dice < 0.85:
                await self._look(number, chosen)
            else:
                await self._wild(chosen)

    # --- asking -------------------------------------------------------------------------------------------------------

    async def ask(self, life: Life, work: Callable[[Service], Awaitable[Any]]) -> Any:
        """Run something in a node. Raises `NotSent`, `Lost`, and the refusal that it gave."""
        loop, process = self.world.loop, life.process
        if process is None or not life.is_serving or life.node is None:
            await asyncio.sleep(0.01)
            raise NotSent
        service: Any = life.node.service
        answer: asyncio.Future[Any] = loop.create_future()
        keep = self._random.random() >= 0.01
        self.asked += 1

        async def handle() -> None:
            result: Any = None
            error: Exception | None = None
            try:
                result = await work(service)
            except Refusal as refusal:
                error = refusal
            if keep:
                loop.call_soon(settle, answer, result, error, context=self.world.outside)

        def died() -> None:
            loop.call_soon(settle, answer, None, Lost(), context=self.world.outside)

        process.on_death.append(died)
        self._questions.append(Question(life, process, loop.time(), process.spawn(handle())))
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise Lost from None
        finally:
            if died in process.on_death:
                process.on_death.remove(died)

    def _someone(self, chosen: random.Random) -> Life:
        return chosen.choice(self.world.lives)

    async def _watch_silence(self) -> None:
        """P4: a process that lives answers, sooner or later."""
        while not self.is_over:
            await asyncio.sleep(1.0)
            self.check_silence()

    def check_silence(self) -> None:
        now = self.world.loop.time()
        left = []
        for question in self._questions:
            if question.task.done() or question.process.is_dead:
                continue
            question.was_paused |= question.process.is_paused
            left.append(question)
            if not question.was_paused and now - question.asked > SILENCE_S:
                self.judge.fail("P4", f"{question.life.name} did not answer for {SILENCE_S:g} s: {question.task.get_coro()}")
        self._questions = left
        for life in self.world.lives:
            for replica in life.replicas:
                waiting = replica._proposals._waiting.values()
                since = min((one.since for one in waiting if one.since is not None), default=replica.ticks)
                if replica.ticks - since > OUTLIVES_TICKS:
                    self.judge.fail("P4", f"{life.name} keeps a write of shard {replica.shard} for {replica.ticks - since} ticks")

    def unanswered(self) -> list[str]:
        """What living processes still work on: what they were asked here, and what they ask each other."""
        asked = [each for each in self._questions if not each.task.done() and not each.process.is_dead]
        calls = [each for each in self.world.network.listening.values() if each.running and not each.process.is_dead]
        return [f"{each.life.name}: {each.task.get_coro()}" for each in asked] + [f"{each.host}: a call" for each in calls]

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def _burst(self, client: int, chosen: random.Random) -> None:
        """Many writes at once through one node, so that a leader that is cut off has more than one under way."""
        life = self._someone(chosen)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(BURST):
                tasks.create_task(self._append(client, random.Random(chosen.getrandbits(64)), life))

    async def _append(self, client: int, chosen: random.Random, first: Life | None = None) -> None:
        """Append to one of the logs through any node, or at first through this one."""
        context = chosen.choice(LOGS)
        count = 1 if chosen.random() < 0.8 else 3
        texts = []
        for _ in range(count):
            self._numbers += 1
            texts.append(f"m{self._numbers}" + (" and more" * 40 if chosen.random() < 0.2 else ""))
        if context.startswith("by-id"):
            request = AppendRequest([message(text, id=text.split()[0]) for text in texts], batch=count > 1, create=True)
        elif context.startswith("by-key"):
            request = AppendRequest([message(text) for text in texts], batch=count > 1, create=True, key=f"k{self._numbers}")
        else:
            request = AppendRequest([message(text) for text in texts], batch=count > 1, create=True)
        is_safe = not context.startswith("plain")
        for attempt in range(6):
            called = self._now_ns()
            try:
                life = self._someone(chosen) if first is None or attempt else first
                reply = await self.ask(life, lambda service: service.append(context, request))
            except NotSent:
                continue
            except (Lost, OutcomeUnknown) as error:
                self.judge.mark("a write had an unknown outcome", isinstance(error, OutcomeUnknown))
                for text in texts:
                    self._note(client, called, None, Append(text.split()[0], context), Mark.UNKNOWN)
                if not is_safe:
                    return
                self.judge.mark("a write of unknown outcome was tried again")
                continue
            except Refusal as refusal:
                self.judge.mark(f"a write was refused: {refusal.code}")
                await asyncio.sleep(0.05)
                continue
            self.acknowledged += 1
            self.judge.mark("a write was acknowledged at a second try", attempt > 0)
            for seq, text in enumerate(texts, reply.first_seq):
                self._note(client, called, self._now_ns(), Append(text.split()[0], context), seq)
            self._floors[context] = max(self._floors.get(context, 0), reply.first_seq + count - 1)
            return

    async def _look(self, client: int, chosen: random.Random) -> None:
        context = chosen.choice(LOGS)
        life, floor, called = self._someone(chosen), self._floors.get(context, 0), self._now_ns()
        kind = chosen.choice(("read", "tail", "window", "page"))
        last, what, seen = 0, Read(context), 0
        try:
            if kind == "read":
                last = (await self.ask(life, lambda service: service.get_context(context))).last_seq
                seen = last
            elif kind == "tail":
                page = await self.ask(life, lambda service: service.tail(context, 0, TAIL))
                last = page.last_seq
                what, seen = Tail(TAIL, context), Seen(tuple(_name(body) for body in page.messages), last)  # type: ignore[assignment]
            elif kind == "window":
                await self._window(life, context)
                return
            else:
                page = await self.ask(life, lambda service: service.page(context, 1, 1000, False))
                last = seen = page.last_seq
        except ContextNotFound:
            pass
        except (NotSent, Lost):
            return
        except Refusal as refusal:
            self.judge.mark(f"a read was refused: {refusal.code}")
            return
        self.judge.check(last >= floor, "H5", f"{life.name} shows {context} to {last}; before the question it was shown to {floor}")
        self.judge.mark("a read was answered by a follower", not self._leads(life, context))
        self._floors[context] = max(self._floors.get(context, 0), last)
        self._note(client, called, self._now_ns(), what, seen)

    def _leads(self, life: Life, context: str) -> bool:
        if life.node is None or life.node.engine is None:
            return False
        replica = life.node.engine.replicas.get(shard_of(context, life.node.options.shards))
        return replica is not None and replica.failure is None and replica.group.is_leader

    async def _window(self, life: Life, context: str) -> None:
        """W5: a window at a version is the same on whichever node it is read."""
        budget = 8000
        answer = await self.ask(life, lambda service: service.window(context, budget, None, None))
        known = self._windows.setdefault((context, answer.version, budget), answer.body)
        self.judge.check(known == answer.body, "W5", f"the window of {context} at version {answer.version} is not the same on {life.name}")
        self.judge.mark("a window was compared")

    async def _wild(self, chosen: random.Random) -> None:
        """Everything else that changes contexts; that replicas agree about it is for digests to say."""
        context = chosen.choice(WILD)
        seq, number = chosen.randint(1, 6), chosen.randint(0, 9)
        short = message("short", "assistant")
        moves: list[Callable[[Service], Awaitable[Any]]] = [
            lambda service: service.put_context(context, PutContext(token_budget=60 + 40 * number, metadata={"n": number})),
            lambda service: service.put_context(context, PutContext(policy=PolicyChoice(ref="p"))),
            lambda service: service.patch_metadata(context, PatchMetadata({"k": number}, key=f"patch-{number}")),
            lambda service: service.compact(context, Compact([short], covers=(seq, seq + 2))),
            lambda service: service.compact(context, Compact(rebuild=True)),
            lambda service: service.pin(context, seq, number < 7),
            lambda service: service.delete_context(context),
            lambda service: service.purge_context(context),
            lambda service: service.put_policy("p", PutPolicy("last_n", {"limit": 1 + number})),
        ]
        appends: list[Callable[[Service], Awaitable[Any]]] = [
            lambda service: service.append(
                context, AppendRequest([message(f"wild {number} " * number + ".")], create=True, key=f"w{number}")
            ),
            lambda service: service.append(
                context, AppendRequest([message(f"pair {number}"), message("its other half", "assistant")], create=True, batch=True)
            ),
        ]
        try:
            await self.ask(self._someone(chosen), chosen.choice(moves + appends * 4))
        except (NotSent, Lost, Refusal):
            return

    def _note(self, client: int, called: int, returned: int | None, asked: Any, output: Any) -> None:
        self.operations.append(Operation(client, called, returned, asked, output))

    def _now_ns(self) -> int:
        return int(self.world.loop.time() * 1e9)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def judge_all(self) -> None:
        """When everything is whole again: every node shows the same histories, and they explain every answer (H1, H2, H4, H5)."""
        for context, operations in sorted(by_context(self.operations).items()):
            for life in self.world.lives:
                found = await self._history(life, context)
                violations = check_log(operations, found)
                if violations:
                    self.judge.fail(violations[0].rule.name, f"{context} on {life.name}: {violations[0]}")

    async def _history(self, life: Life, context: str) -> list[tuple[int, str]]:
        for _ in range(40):
            try:
                messages = await self.ask(life, lambda service: history(service, context))
                return [(one["seq"], one["parts"][0]["text"].split()[0]) for one in messages]
            except ContextNotFound:
                return []
            except (NotSent, Lost, Refusal):
                await asyncio.sleep(0.1)
        self.judge.fail("LIVENESS", f"{life.name} does not show {context} after everything was healed")
        return []


def _name(body: bytes) -> str:
    text: str = msgspec.json.decode(body)["parts"][0]["text"]
    return text.split()[0]

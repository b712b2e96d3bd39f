"""The evenest choice of nodes for many demands at the least cost: one minimum-cost flow for replicas and for leaders.

Knows: demands (how many nodes, which may be used, what using each costs) and the zone of each node.
Does not know: shards, voters, learners, steps, time.

Invariants:
- The answer is the best of all in this order: each demand even over the zones; each node as many as any other; the least cost.
  Evenness is the sum of squares, so "within one of each other" follows wherever it is possible at all.
- Because it is exact, a step towards an answer lowers the cost of the next one: a caller that asks anew after each step comes to an end.
- Deterministic: equal demands in equal order give equal answers.

Method: the flow demand → its zones → nodes, begun greedily, then every negative cycle of the residual graph cancelled
(Klein 1967; Ahuja, Magnanti, Orlin, "Network Flows", 9.6; convex costs as in 14.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """`size` different nodes, `fixed` among them; the others out of `costs`, of which there must be enough."""

    size: int
    costs: Mapping[int, int]
    """The nodes that may be used, none of them fixed, with what each costs."""
    fixed: tuple[int, ...] = ()
    """Nodes it has in any case. They count for its zones, not for how even the nodes are."""


def spread(demands: Sequence[Demand], zones: Mapping[int, str]) -> list[tuple[int, ...]]:
    """For each demand its nodes, sorted. `zones` names the zone of every node that occurs."""
    flow = _Flow(demands, zones)
    while cycles := _negative_cycles(flow.vertices, flow.residual()):
        # The cycles of one pass share no vertex, so none changes what another costs.
        for cycle in cycles:
            flow.cancel(cycle)
    return [tuple(sorted((*demand.fixed, *chosen))) for demand, chosen in zip(demands, flow.chosen, strict=True)]


class _Flow:
    """Vertices: 0 is the sink; then the nodes; then each demand: its hub, and one for each zone."""

    def __init__(self, demands: Sequence[Demand], zones: Mapping[int, str]) -> None:
        self._demands = demands
        self._nodes = sorted(zones)
        names = sorted(dict.fromkeys(zones.values()))
        self._zone_of = {node: names.index(zone) for node, zone in zones.items()}
        self._width = len(names) + 1
        self._vertex_of = {node: at for at, node in enumerate(self._nodes, start=1)}
        self.vertices = 1 + len(self._nodes) + len(demands) * self._width
        # One unit of evenness outweighs all costs together, one unit of zones all evenness.
        units = sum(demand.size for demand in demands)
        self._per_node = 1 + sum(demand.size * max(demand.costs.values(), default=0) for demand in demands)
        self._per_zone = self._per_node * (1 + units * units)
        self._load = dict.fromkeys(self._nodes, 0)
        self._fixed_in = [self._count_zones(demand.fixed) for demand in demands]
        self.chosen = [self._cheapest(demand, list(fixed)) for demand, fixed in zip(demands, self._fixed_in, strict=True)]

    def _count_zones(self, nodes: Sequence[int]) -> list[int]:
        counts = [0] * (self._width - 1)
        for node in nodes:
            counts[self._zone_of[node]] += 1
        return counts

    def _cheapest(self, demand: Demand, in_zone: list[int]) -> list[int]:
        chosen: list[int] = []
        for _ in range(demand.size - len(demand.fixed)):
            free = (node for node in demand.costs if node not in chosen)
            node = min(free, key=lambda node: (demand.costs[node], in_zone[self._zone_of[node]], self._load[node], node))
            chosen.append(node)
            in_zone[self._zone_of[node]] += 1
            self._load[node] += 1
        return chosen

    def residual(self) -> list[tuple[int, int, int]]:
        """What one unit may still change: (from, to, what that adds to the cost)."""
        arcs: list[tuple[int, int, int]] = []
        for node, load in self._load.items():
            arcs.append((self._vertex_of[node], 0, (2 * load + 1) * self._per_node))
            if load:
                arcs.append((0, self._vertex_of[node], (1 - 2 * load) * self._per_node))
        hub = 1 + len(self._nodes)
        for demand, fixed, chosen in zip(self._demands, self._fixed_in, self.chosen, strict=True):
            in_zone = self._count_zones(chosen)
            for zone, free in enumerate(in_zone):
                count = free + fixed[zone]
                arcs.append((hub, hub + 1 + zone, (2 * count + 1) * self._per_zone))
                if free:
                    arcs.append((hub + 1 + zone, hub, (1 - 2 * count) * self._per_zone))
            for node, cost in demand.costs.items():
                at = hub + 1 + self._zone_of[node]
                arcs.append((self._vertex_of[node], at, -cost) if node in chosen else (at, self._vertex_of[node], cost))
            hub += self._width
        return arcs

    def cancel(self, cycle: Sequence[int]) -> None:
        """Takes the arcs of the cycle; those between a demand and a node are the ones that say something."""
        for start, end in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            if 0 < end <= len(self._nodes) < start:
                self._chosen_at(start).append(self._nodes[end - 1])
                self._load[self._nodes[end - 1]] += 1
            elif 0 < start <= len(self._nodes) < end:
                self._chosen_at(end).remove(self._nodes[start - 1])
                self._load[self._nodes[start - 1]] -= 1

    def _chosen_at(self, vertex: int) -> list[int]:
        return self.chosen[(vertex - 1 - len(self._nodes)) // self._width]


def _negative_cycles(vertices: int, arcs: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Some cycles of negative cost without a common vertex; none if there is none at all (Bellman and Ford)."""
    distance = [0] * vertices
    parent = [-1] * vertices
    for _ in range(vertices + 1):
        shorter = False
        for start, end, cost in arcs:
            if distance[start] + cost < distance[end]:
                distance[end] = distance[start] + cost
                parent[end] = start
                shorter = True
        if not shorter:
            return []
        if cycles := _cycles(parent):
            return cycles
    raise AssertionError("distances fell without a cycle")


def _cycles(parent: Sequence[int]) -> list[list[int]]:
    seen_from = [-1] * len(parent)
    cycles = []
    for origin in range(len(parent)):
        at = origin
        while at != -1 and seen_from[at] == -1:
            seen_from[at] = origin
            at = parent[at]
        if at != -1 and seen_from[at] == origin:
            cycle = [at]
            while parent[cycle[-1]] != at:
                cycle.append(parent[cycle[-1]])
            cycles.append(cycle[::-1])
    return cycles

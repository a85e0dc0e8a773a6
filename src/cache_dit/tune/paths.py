"""Shortest paths over the steps of a run: nodes are computed steps, an edge skips what lies between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def bottleneck_path(
    weights: Mapping[tuple[int, int], float], total: int, count: int
) -> tuple[int, ...] | None:
    """The path of exactly `count` steps whose edge weights, sorted from the worst, are smallest.

    LeMiCa (arXiv 2511.00090): the worst edges are compared first, of paths with equal ones the next worst.
    All paths to a node after the same number of steps have equally many edges, and one more edge for both
    does not change their order, so the best path to each node is all that must be kept.

    Args:
        weights: For `(i, j)`: what it costs to compute i and j and skip what is between. `j == total` is the
            end of the run. Edges that are not in it are not allowed.
        total: Steps of the run.
        count: Computed steps, step 0 among them.

    Returns:
        The computed steps; None where no such path exists.
    """
    best: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {0: ((), (0,))}
    for number in range(1, count + 1):
        targets = range(number, total) if number < count else (total,)
        grown: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for node, (passed, path) in best.items():
            for target in targets:
                if (node, target) in weights:
                    worst_first = tuple(sorted((*passed, weights[node, target]), reverse=True))
                    found = (worst_first, (*path, target))
                    grown[target] = min(found, grown.get(target, found))
        best = grown
    return best[total][1][:-1] if total in best else None


def cheapest_path(
    cost: Callable[[int, int, int], float], start: tuple[int, ...], total: int, count: int, longest: int
) -> tuple[int, ...] | None:
    """The path of exactly `count` steps with the smallest sum of costs.

    Args:
        cost: For `(i, j, k)`: what it costs to skip what is between the computed steps j and k where i was
            the one computed before j. `k == total` is the end of the run.
        start: First steps of every path, two at least.
        total: Steps of the run.
        count: Computed steps, the start among them.
        longest: Largest distance between two computed steps, and to the end.

    Returns:
        The computed steps; None where no such path exists.
    """
    best = {start[-2:]: (0.0, start)}
    for number in range(len(start) + 1, count + 2):
        grown: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for (before, node), (passed, path) in best.items():
            targets = range(node + 1, min(node + longest + 1, total)) if number <= count else (total,)
            for target in targets:
                if target - node <= longest:
                    found = (passed + cost(before, node, target), (*path, target))
                    grown[node, target] = min(found, grown.get((node, target), found))
        best = grown
    return min(best.values())[1][:-1] if best else None

"""Prints the packages as they import each other now: levels, boxes, arrows, circles. ``make map`` runs it.

A box is a package or module directly below marble_core, and pipelines and components; it stands one level above the highest
box that it imports. Imports for type checkers alone do not count. A circle is a set of boxes that reach each other.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp


def box_of(module: str) -> str:
    """``marble_core.rewards.clip`` -> ``rewards``, ``marble_kubeflow.pipelines.local`` -> ``pipelines``; a root is no box."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0]


def boxes() -> dict[str, set[str]]:
    """Of each box the boxes that it imports."""
    graph = grimp.build_graph("marble_core", "marble_kubeflow", exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {box_of(module): set() for module in graph.modules if box_of(module)}
    for module in graph.modules:
        own = box_of(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if own and (other := box_of(imported)) and other != own:
                found[own].add(other)
    return found


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The sets of boxes that reach each other."""
    reached = {box: _reach(box, arrows) for box in arrows}
    joined = {frozenset({other for other in reached[box] if box in reached[other]}) for box in arrows if box in reached[box]}
    return [set(circle) for circle in joined]


def levels(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The lowest first. Raises graphlib.CycleError where there is a circle."""
    level: dict[str, int] = {}
    for box in TopologicalSorter(arrows).static_order():
        level[box] = 1 + max((level[other] for other in arrows[box]), default=0)
    return [sorted(box for box in level if level[box] == n) for n in range(1, max(level.values()) + 1)]


def _reach(box: str, arrows: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    todo = [*arrows[box]]
    while todo:
        if (other := todo.pop()) not in reached:
            reached.add(other)
            todo += arrows[other]
    return reached


def main() -> None:
    arrows = boxes()
    try:
        found = levels(arrows)
    except CycleError:
        found = []
    for number, names in reversed(list(enumerate(found, 1))):
        print(f"{number:3}  {', '.join(names)}")
    for circle in circles(arrows):
        print(f"circle: {', '.join(sorted(circle))}")
    count = sum(map(len, arrows.values()))
    print(f"{len(found)} levels, {len(arrows)} boxes, {count} arrows, {len(circles(arrows))} circles")


if __name__ == "__main__":
    main()

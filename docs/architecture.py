"""The diagram of the architecture page, drawn from the imports of the code."""

from __future__ import annotations

import html
import textwrap

import grimp

PARTS = {
    "entry points": "__main__ serving serving_input",
    "experiments": "experiments",
    "generative classifier": "classifier classifier_settings prediction evidence typicality "
    "uncertainty transfer",
    "baselines": "baselines",
    "one protocol": "protocol model_files",
    "likelihood": "likelihood probability_flow objective evaluation_plan sampling noise_levels "
    "analytic prevalence",
    "training": "training training_state training_settings ranks batches augmentation "
    "moving_average checkpoint calibration",
    "network": "score_network",
    "SDEs": "sde",
    "figures": "figures",
    "evaluation": "evaluation intervals metrics bootstrap comparison curves learning_curves "
    "predictions",
    "MLflow": "tracking tracked_run past_runs registered_models low_data_registry delivery",
    "this machine": "resumption file_lock claims interruption provenance freed_memory",
    "parameters": "config command_line choices",
    "data": "data",
}
"""Modules and packages of `sgc_experiments`, and `baselines`, by the part of the diagram."""

EVERYWHERE = {"errors", "progress"}
"""What any part may import; left out of the diagram."""

_WIDTH, _HEIGHT, _GAP, _LINE = 196, 130, 16, 17


def members() -> dict[str, str]:
    """The part of every module or package at the top."""
    return {module: part for part, modules in PARTS.items() for module in modules.split()}


def imports() -> dict[str, set[str]]:
    """Which parts each part imports, with a path over others left out.

    Raises:
        ValueError: A module belongs to no part, or parts import one another.
    """
    graph = grimp.build_graph("sgc_experiments", "baselines", cache_dir=None)
    part_of = members()
    found: dict[str, set[str]] = {part: set() for part in PARTS}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            tops = [_top(name) for name in (module, imported)]
            if "" in tops or set(tops) & EVERYWHERE:
                continue
            if missing := set(tops) - set(part_of):
                raise ValueError(f"no part of the diagram holds {', '.join(sorted(missing))}")
            ours, theirs = (part_of[top] for top in tops)
            if ours != theirs:
                found[ours].add(theirs)
    below = {part: _reached(found, part) for part in found}
    for part, others in below.items():
        if part in others:
            raise ValueError(f"{part} imports itself by way of others")
    return {
        part: {t for t in targets if not any(t in below[other] for other in targets)}
        for part, targets in found.items()
    }


def _top(module: str) -> str:
    package, _, rest = module.partition(".")
    return package if package == "baselines" else rest.split(".")[0]


def _reached(edges: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        part = waiting.pop()
        if part not in reached:
            reached.add(part)
            waiting += edges[part]
    return reached


def levels(edges: dict[str, set[str]]) -> list[list[str]]:
    """Parts by their distance from the top: each stands above all that it imports."""
    depth = dict.fromkeys(edges, 0)
    for _ in edges:
        for part, targets in edges.items():
            for target in targets:
                depth[target] = max(depth[target], depth[part] + 1)
    return [
        [part for part in edges if depth[part] == level] for level in range(max(depth.values()) + 1)
    ]


def diagram() -> str:
    """An SVG: boxes with their modules, lines from each part down to those that it imports."""
    edges = imports()
    rows = levels(edges)
    width = max(map(len, rows)) * (_WIDTH + _GAP)
    place = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP) + _GAP) / 2
        for index, part in enumerate(row):
            place[part] = (left + index * (_WIDTH + _GAP), level * (_HEIGHT + 3 * _GAP))
    height = len(rows) * (_HEIGHT + 3 * _GAP) - 2 * _GAP
    lines = [_line(place[part], place[target]) for part in edges for target in sorted(edges[part])]
    boxes = [_box(part, *place[part]) for part in edges]
    return "\n".join(
        [
            f'<svg viewBox="-2 -2 {width + 4:.0f} {height + 4}" role="img" '
            'aria-label="Parts of the code and their imports" '
            'style="width:100%;font-family:sans-serif" xmlns="http://www.w3.org/2000/svg">',
            *lines,
            *boxes,
            "</svg>",
        ]
    )


def _line(above: tuple[float, float], below: tuple[float, float]) -> str:
    x0, y0 = above[0] + _WIDTH / 2, above[1] + _HEIGHT
    x1, y1 = below[0] + _WIDTH / 2, below[1]
    return (
        f'<path d="M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + 30:.0f} {x1:.0f} {y1 - 30:.0f} '
        f'{x1:.0f} {y1:.0f}" fill="none" stroke="#0072B2" stroke-width="1.5" opacity="0.7"/>'
    )


def _box(part: str, x: float, y: float) -> str:
    wrapped = textwrap.wrap(PARTS[part], 25)
    texts = [
        f'<text x="{x + 8:.0f}" y="{y + 42 + _LINE * n:.0f}" font-size="14" fill="#333">'
        f"{html.escape(line)}</text>"
        for n, line in enumerate(wrapped)
    ]
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
        f'fill="#f5f7fa" stroke="#6E6E6E"/><text x="{x + 8:.0f}" y="{y + 18:.0f}" font-size="16" '
        f'font-weight="bold" fill="#000">{html.escape(part)}</text>{"".join(texts)}'
    )

"""`cache-dit models`: which models are known, what is known of one, and what a configuration does to it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache_dit.cli.errors import plain_errors

if TYPE_CHECKING:
    from cache_dit.caching.models.row import BlockList, Row
    from cache_dit.configs.preview import Effect


def models(
    name: Annotated[
        str | None,
        typer.Argument(help="Class name of a transformer: show what is known of it.", show_default="all"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration file: show what it will do to --model.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="What the file is for: a class name, a folder as diffusers saves it (weights are not read), "
            "or demo: then one picture is drawn and the figures are measured."
        ),
    ] = "demo",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a run.")] = 28,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of configuration files, for editors.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that can be cached, show one, or show what a configuration file will do to one.

    The exit code is 1 for a class that is known to be impossible, with the reason.
    """
    with plain_errors():
        if schema:
            from cache_dit.configs import config_schema

            typer.echo(json.dumps(config_schema(), indent=2))
        elif config is not None:
            _show_effects(config, model if name is None else name, steps, as_json)
        elif name is not None:
            _show_row(name, as_json)
        else:
            _show_list(as_json)


def _show_list(as_json: bool) -> None:
    from cache_dit.caching.models.rows import ROWS
    from cache_dit.caching.models.unsupported import UNSUPPORTED

    cells = _matrix()
    if as_json:
        known = [_row(row, cells[row.name]) for row in ROWS]
        typer.echo(json.dumps({"models": known, "unsupported": UNSUPPORTED}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*next(iter(cells.values())), title=f"{len(cells)} transformer classes")
    for row in cells.values():
        table.add_row(*row.values())
    console = Console()
    console.print(table)
    console.print(f"Not possible, see `cache-dit models NAME`: {', '.join(UNSUPPORTED)}", highlight=False)


def _matrix() -> dict[str, dict[str, str]]:
    """The cells of `supported_matrix` and of the plans for parallelism, by class name and column."""
    from cache_dit import supported_matrix
    from cache_dit.parallelism.context import CONTEXT_PLANS
    from cache_dit.parallelism.tensor import TENSOR_PLANS

    head, _, *rows = [
        [cell.strip() for cell in line[1:-1].replace("`", "").split("|")]
        for line in supported_matrix().splitlines()
    ]
    plans = {"Context parallel": set(CONTEXT_PLANS), "Tensor parallel": {plan.name for plan in TENSOR_PLANS}}
    return {
        row[0]: dict(zip(head, row, strict=True))
        | {column: "yes" if row[0] in known else "no" for column, known in plans.items()}
        for row in rows
    }


def _show_row(name: str, as_json: bool) -> None:
    from cache_dit.caching.models.rows import ROWS
    from cache_dit.caching.models.unsupported import UNSUPPORTED
    from cache_dit.configs.preview import check_known

    if name in UNSUPPORTED:
        found: dict[str, Any] = {"model": name, "unsupported": UNSUPPORTED[name]}
        typer.echo(json.dumps(found, indent=2) if as_json else f"{name}: no, because {UNSUPPORTED[name]}.")
        raise typer.Exit(1)
    check_known(name)
    found = _row(next(row for row in ROWS if row.name == name), _matrix()[name])
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _row(row: Row, cells: dict[str, str]) -> dict[str, Any]:
    """What is known of a class, as plain data; `cells` is its line of the matrix."""
    return {
        "model": row.name,
        "pipelines": [f"{start}*" for start in row.pipelines],
        "guidance": cells["CFG"],
        "context_parallel": cells["Context parallel"],
        "tensor_parallel": cells["Tensor parallel"],
        "lists": [_list(flow) for flow in row.lists],
        "timestep": row.timestep,
        "caveats": _caveats(row),
    }


def _list(flow: BlockList) -> dict[str, Any]:
    from cache_dit.caching.forward_pattern import matching

    return {
        "path": flow.label,
        "streams": ["side output" if stream is None else stream for stream in flow.continues],
        "pattern": matching(flow.continues) or None,
    }


def _caveats(row: Row) -> list[str]:
    """What is special about a class, in words."""
    told = (
        (row.joined, "one forecast spans all lists that decide together"),
        (row.last_within_first, "Bn_compute_blocks must not exceed Fn_compute_blocks"),
        (row.bypass is not None, "forwards that are no denoising step run as if there were no caching"),
        (bool(row.controls), f"a step is computed when one of these switches: {', '.join(row.controls)}"),
        (bool(row.muted), f"not computed on skipped steps either: {', '.join(row.muted)}"),
        (row.on_request, "cached only when it is given by itself"),
        (row.modulated is not None, "the input of the first block is modulated in a way of its own"),
    )
    of_lists = (
        (flow.label, caveat)
        for flow in row.lists
        for holds, caveat in (
            (flow.along is not None, "blocks of two lists take turns and are counted in pairs"),
            (flow.each_counts, "every block is forecast by itself"),
            (flow.stacks, "every block adds one output to the stream, so what leaves the list is forecast"),
            (flow.made_of is not None, f"meant are models whose blocks are {flow.made_of}"),
        )
        if holds
    )
    return [words for holds, words in told if holds] + [f"{path}: {words}" for path, words in of_lists]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [found["model"], f"  pipelines: {', '.join(found['pipelines']) or 'none'}"]
    for key in ("guidance", "context_parallel", "tensor_parallel"):
        lines.append(f"  {key.replace('_', ' ')}: {found[key]}")
    for one in found["lists"]:
        pattern = f" ({one['pattern']})" if one["pattern"] else ""
        lines.append(f"  {one['path']}: {', '.join(one['streams'])}{pattern}")
    return [*lines, *(f"  - {caveat}" for caveat in found["caveats"])]


def _show_effects(config: Path, model: str, steps: int, as_json: bool) -> None:
    from cache_dit.configs import load_sections
    from cache_dit.configs.preview import models_of, preview

    sections = load_sections(config)
    caching = ("cache_config", "calibrator_config", "params_modifiers")
    configs = {name: sections[name] for name in caching if name in sections}
    others = {name: str(value) for name, value in sections.items() if name not in caching}
    pipe = _demo() if model == "demo" else None
    effects = preview([pipe.transformer] if pipe else models_of(model), configs, steps)
    measured = [] if pipe is None else _measured(pipe, configs, steps)
    if as_json:
        found = {"steps": steps, "effects": list(map(dataclasses.asdict, effects)), "measured": measured}
        typer.echo(json.dumps(found | {"other_sections": others}, indent=2))
        return
    blocks = ["\n".join(_effect(effect)) for effect in effects]
    blocks += [_measured_line(one) for one in measured]
    blocks += [f"{name}: {value}" for name, value in others.items()]
    typer.echo("\n\n".join(blocks))


def _demo() -> Any:
    from cache_dit.demo import load_pipeline

    return load_pipeline()


def _measured(pipe: Any, configs: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """What one picture of the demo model, without guidance, has shown."""
    import cache_dit
    from cache_dit.demo import PROMPTS, generate

    cache_dit.disable_cache(pipe.transformer)
    cache_dit.enable_cache(pipe, **configs)
    generate(pipe, PROMPTS[0], steps=steps, cfg=1.0)
    return [
        {
            "config": cache_dit.strify(stats),
            "steps": "".join("CS"[step in stats.cached_steps] for step in range(stats.total_steps)),
            "flops": None if stats.flops_saved is None else 1.0 - stats.flops_saved,
            "state_bytes": stats.state_bytes,
        }
        for stats in cache_dit.summary(pipe, logging=False)
    ]


def _effect(effect: Effect) -> list[str]:
    lists = ", ".join(f"{path} ({count} blocks)" for path, count in effect.lists.items())
    lines = [f"{effect.model}: {lists}", f"  config: {effect.config}"]
    lines.append(f"  when: {effect.method}, which looks at {effect.signal}")
    lines.append(f"  what: {effect.forecaster}")
    kept = "as many tensors as the run decides" if effect.kept is None else f"{effect.kept} tensors"
    lines.append(f"  kept: {kept} of the size of their streams, in each branch of guidance")
    lines.append(f"  where: {effect.place}")
    for part in effect.parts:
        plural = "s" * (part.decisions > 1)
        lines.append(f"    {part.where}: {part.skipped} may be skipped, in {part.decisions} decision{plural}")
    if effect.steps is None:
        return [*lines, "  steps: decided at run time", "  FLOPs: decided at run time"]
    shown = [f"{pattern} (for {count} of them)" for pattern, count in effect.steps.items()]
    shown = list(effect.steps) if len(shown) == 1 else shown
    lines += [f"  steps: {pattern}" for pattern in shown]
    return [*lines, f"  FLOPs: {effect.flops:.0%} of uncached, estimated from the weights"]


def _measured_line(one: dict[str, Any]) -> str:
    flops = "not counted" if one["flops"] is None else f"{one['flops']:.1%} of uncached"
    size = f"{one['state_bytes'] / 2**20:.2f} MiB"
    return (
        f"measured on one picture, without guidance: {one['config']}\n"
        f"  steps: {one['steps']}\n  FLOPs: {flops}\n  cache state: {size}"
    )

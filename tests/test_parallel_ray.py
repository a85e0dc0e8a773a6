"""Pipelines in Ray actors: every request is answered once, in order, whatever dies."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cache_dit
from cache_dit import CacheDiTError
from cache_dit.errors import ConfigError

ray = pytest.importorskip("ray")


class Counting:
    """A pipeline that writes down every request, and ends its process at one of them, once.

    Behind it, requests wait until `processes` have taken one, so that the others leave some to the new one.
    """

    def __init__(
        self, folder: Path, dies_at: int | None = None, always: bool = False, processes: int = 0
    ) -> None:
        self.folder, self.dies_at, self.always, self.processes = folder, dies_at, always, processes

    def __call__(self, number: int) -> int:
        with open(self.folder / "log", "a") as log:
            log.write(f"{number} {os.getpid()}\n")
        mark = self.folder / "died"
        if number == self.dies_at and (self.always or not mark.exists()):
            mark.touch()
            os._exit(1)
        if number < 0:
            raise ValueError("a negative number")
        deadline = time.monotonic() + 120
        while mark.exists() and len(self.seen()) < self.processes and time.monotonic() < deadline:
            time.sleep(0.05)
        return 10 * number

    def seen(self) -> set[str]:
        """The processes that have taken a request."""
        return {line.split()[1] for line in (self.folder / "log").read_text().splitlines()}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(
        num_cpus=4,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}},
        include_dashboard=False,
        _node_ip_address="127.0.0.2",  # in place of 127.0.0.1 Ray takes the address in the network
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=80 * 2**20,
    )
    yield
    ray.shutdown()


def counting(folder: Path, replicas: int = 2, ranks: int = 1, **details: Any) -> Any:
    from cache_dit.parallelism.ray import RayPipeline

    attempts = details.pop("max_attempts", 3)
    load = functools.partial(Counting, folder, **details)
    return RayPipeline(load, replicas, ranks, max_attempts=attempts)


def numbers(*values: int) -> list[dict[str, int]]:
    return [{"number": value} for value in values]


def test_forty_requests_with_an_actor_that_dies(tmp_path: Path) -> None:
    with counting(tmp_path, dies_at=17, processes=3) as pipe:
        assert pipe(numbers(*range(40))) == [10 * number for number in range(40)]
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for number, _ in done) == sorted([*range(40), 17])
    assert len({process for _, process in done}) == 3


def drawn(model: Any, seed: int) -> tuple[list[float], list[int]]:
    """The latents after a few steps of a tiny Flux, and the steps in which its last block ran."""
    import torch

    made = torch.Generator().manual_seed(seed)
    latents, text = (torch.randn(1, tokens, 4, generator=made) for tokens in (9, 5))
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(3.0))
    computed: list[int] = []
    step = 0
    hook = model.single_transformer_blocks[-1].register_forward_hook(lambda *_: computed.append(step))
    with torch.no_grad(), cache_dit.Request(6):
        for step in range(6):
            velocity = model(
                hidden_states=latents,
                encoder_hidden_states=text,
                pooled_projections=text[:, 0],
                timestep=torch.full((1,), 1 - step / 6),
                img_ids=places,
                txt_ids=torch.zeros(5, 3),
                return_dict=False,
            )[0]
            latents = latents - velocity / 6
    hook.remove()
    return latents.flatten().tolist(), computed


def cached_flux(**options: Any) -> Any:
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=4,
        pooled_projection_dim=4,
        axes_dims_rope=(2, 2, 4),
    )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
    )
    return cache_dit.enable_cache(model.eval(), config, **options)


class Together:
    """A pipeline of two ranks that share every sequence; one rank may die, once."""

    def __init__(self, folder: Path) -> None:
        from cache_dit.parallelism import ParallelismConfig

        self.folder = folder
        sharing = ParallelismConfig(ulysses_size=2, ulysses_anything=True)
        self.model = cached_flux(parallelism_config=sharing)

    def __call__(self, seed: int, dies: bool = False) -> tuple[list[float], list[int]]:
        import torch.distributed as dist

        if dies and dist.get_rank() == 1 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        return drawn(self.model, seed)


def test_ranks_of_a_copy_share_a_sample_and_are_replaced_together(tmp_path: Path) -> None:
    from cache_dit.parallelism.ray import RayPipeline

    requests = [{"seed": 1}, {"seed": 2, "dies": True}, {"seed": 3}]
    with RayPipeline(functools.partial(Together, tmp_path), ranks_per_replica=2) as pipe:
        together = pipe(requests)
    assert (tmp_path / "died").exists()
    alone = cached_flux()
    for request, (latents, computed) in zip(requests, together, strict=True):
        wanted, steps = drawn(alone, int(request["seed"]))
        assert latents == pytest.approx(wanted, abs=1e-5)
        assert computed == steps
        assert 2 < len(steps) < 6


def test_errors_name_the_request(tmp_path: Path) -> None:
    with counting(tmp_path, replicas=1, dies_at=5, always=True, max_attempts=2) as pipe:
        with pytest.raises(CacheDiTError, match=r"(?s)Request 1 failed.*a negative number"):
            pipe(numbers(3, -1, 4))
        # The copy is a new one, and goes on.
        results = pipe.stream(numbers(6, 5))
        assert next(results) == 60
        with pytest.raises(CacheDiTError, match="Request 1 was given up: its actors died 2 times"):
            next(results)


def failing() -> Any:
    raise OSError("no such model")


def test_a_pipeline_that_cannot_be_loaded() -> None:
    from cache_dit.parallelism.ray import RayPipeline

    with pytest.raises(CacheDiTError, match=r"(?s)could not load the pipeline.*no such model"):
        RayPipeline(failing)


def test_numbers_are_checked() -> None:
    from cache_dit.parallelism.ray import RayPipeline

    with pytest.raises(ConfigError, match="num_replicas"):
        RayPipeline(failing, num_replicas=0)

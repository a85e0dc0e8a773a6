"""Settings of torch's compiler that a diffusion transformer wants."""

from __future__ import annotations

from contextlib import ExitStack

import torch.distributed

from cache_dit.caching.options import flag, optional, whole


def set_compile_configs(
    *,
    recompile_limit: int = 96,
    accumulated_recompile_limit: int = 2048,
    descent_tuning: bool = False,
    cuda_graphs: bool = False,
    overlap_communication: bool | None = None,
    use_disk_cache: bool = True,
) -> ExitStack:
    """Set torch's compiler up for transformers that see several shapes and pipelines.

    torch gives up compiling a function after 8 recompilations, without an error: pictures of a few sizes, or
    several transformers in a process, reach that. These are settings of the whole process, in torch; what
    is returned puts the former ones back.

    Args:
        recompile_limit: How often one piece of code may be compiled again; torch's default: 8. At least 1.
        accumulated_recompile_limit: The same over all that is compiled of it; torch's default: 256.
        descent_tuning: Let inductor search for better tile sizes; compiling takes several times as long.
        cuda_graphs: Let inductor replay kernels as CUDA graphs. `compile_repeated_blocks` must be called
            after this, so that it protects what the cache keeps.
        overlap_communication: Reorder kernels so that collectives run beside computation. None: where
            `torch.distributed` is initialized now.
        use_disk_cache: Keep compiled kernels for later processes, as torch does by default.

    Returns:
        What undoes it: call its `close()`, or use it in a `with` statement. It may be ignored.

    Raises:
        ConfigTypeError: A value is of the wrong type.
        ConfigError: A limit is under 1.

    Examples:
        >>> cache_dit.set_compile_configs()
        >>> cache_dit.enable_cache(pipe)
        >>> compile_repeated_blocks(pipe)
    """
    whole(1)("recompile_limit", recompile_limit)
    whole(1)("accumulated_recompile_limit", accumulated_recompile_limit)
    for name, value in (
        ("descent_tuning", descent_tuning),
        ("cuda_graphs", cuda_graphs),
        ("use_disk_cache", use_disk_cache),
    ):
        flag(name, value)
    optional(flag)("overlap_communication", overlap_communication)
    if overlap_communication is None:
        overlap_communication = torch.distributed.is_available() and torch.distributed.is_initialized()

    # Both take a second to import.
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    undo = ExitStack()
    # By the names of torch 2.6, which later ones know too.
    limits = {
        "cache_size_limit": recompile_limit,
        "accumulated_cache_size_limit": accumulated_recompile_limit,
    }
    undo.enter_context(dynamo.patch(limits))
    undo.enter_context(
        inductor.patch(
            {
                "coordinate_descent_tuning": descent_tuning,
                "coordinate_descent_check_all_directions": descent_tuning,
                "triton.cudagraphs": cuda_graphs,
                "reorder_for_compute_comm_overlap": overlap_communication,
                "force_disable_caches": not use_disk_cache,
            }
        )
    )
    return undo

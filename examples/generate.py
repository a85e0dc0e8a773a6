"""`cache-dit generate` as a script, for torchrun: what it does is in docs/generate.md.

python examples/generate.py flux --steps 28 --cache
torchrun --nproc_per_node=2 examples/generate.py flux --steps 50 --parallel ulysses --attn _flash_3 --cache
"""

import typer

from cache_dit.cli.generate import generate

if __name__ == "__main__":
    typer.run(generate)

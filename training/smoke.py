"""The whole chain at toy size in a temporary folder: data, autoencoder, transformer, export, figures.

    python -m training.smoke

One process and one import of torch, so that it takes seconds; it proves that the scripts fit together,
not quality.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from training import autoencoder, export, figures, landscapes, transformer


def run_all(folder: Path) -> Path:
    """Runs every stage under `folder`; returns the exported diffusers directory."""
    runs, data, weights = folder / "runs", folder / "runs" / "data", folder / "weights"
    places = ["--data", str(data), "--out", str(runs), "--smoke"]
    landscapes.main(["--out", str(data), "--smoke"])
    autoencoder.main(["joint", *places])
    autoencoder.main(["decoder", *places])
    transformer.main(places)
    export.main(["--runs", str(runs), "--to", str(weights)])
    figures.main(["--weights", str(weights), "--runs", str(runs), "--to", str(folder / "results"), "--smoke"])
    return weights


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="accepted, and always so")
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run_all(Path(folder))
    print("smoke: all stages passed")


if __name__ == "__main__":
    main()

"""The house rules that a reader can check from the text alone: imports point downward, files stay short."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "cache_dit"

# Module prefix -> layer. A module belongs to the longest prefix that it starts with.
LAYERS: dict[str, float] = {
    "cache_dit._version": 0,
    "cache_dit.errors": 0,
    "cache_dit.files": 0,
    "cache_dit.presets": 0,
    "cache_dit.caching.catalogue": 0,
    "cache_dit.caching.config": 0,
    "cache_dit.caching.forecasters": 0,
    "cache_dit.caching.forward_pattern": 0,
    "cache_dit.caching.gates": 0,
    "cache_dit.caching.maths": 0,
    "cache_dit.caching.options": 0,
    "cache_dit.caching.engine": 1,
    "cache_dit.caching.attach": 2,
    "cache_dit.caching.block_adapters": 2,
    "cache_dit.caching.models": 2,
    "cache_dit.caching.patch_functors": 2,
    "cache_dit.api": 3,
    "cache_dit.stats": 3,
    "cache_dit.attention": 4,
    "cache_dit.bench": 4,
    "cache_dit.compile": 4,
    "cache_dit.configs": 4,
    "cache_dit.demo": 4,
    "cache_dit.generate": 4,
    "cache_dit.kernels": 4,
    "cache_dit.metrics": 4,
    "cache_dit.offload": 4,
    "cache_dit.pages": 4,
    "cache_dit.parallelism": 4,
    "cache_dit.quantize": 4,
    "cache_dit.short_names": 4,
    "cache_dit.shorthand": 4,
    "cache_dit.supported": 4,
    "cache_dit.tune": 4,
    "cache_dit.cli": 5,
}
# These two only gather names: each stands right above what it gathers, and speaks for no module inside.
FACES: dict[str, float] = {"cache_dit.caching": 2.5, "cache_dit": 4.5}

# The only arrows between the optional packages of layer 4.
SIBLINGS_ALLOWED = {
    ("cache_dit.bench", "cache_dit.demo"),
    ("cache_dit.bench", "cache_dit.shorthand"),
    *(
        ("cache_dit.generate", f"cache_dit.{part}")
        for part in (
            "attention",
            "compile",
            "configs",
            "demo",
            "offload",
            "parallelism",
            "quantize",
            "shorthand",
        )
    ),
    *(
        ("cache_dit.configs", f"cache_dit.{section}")
        for section in ("attention", "compile", "parallelism", "quantize")
    ),
    ("cache_dit.tune", "cache_dit.configs"),
    *(
        (user, "cache_dit.metrics")
        for user in ("cache_dit.bench", "cache_dit.demo", "cache_dit.pages", "cache_dit.tune")
    ),
}

LINES_PER_FILE = 400
LINES_OF_LAYERS_0_TO_3 = 5_000
# The methods: a list that grows by files, each of which is short, and which the house does not depend on.
CATALOGUE = ("caching/forecasters/", "caching/gates/")
LINES_PER_METHOD = 80

Arrow = tuple[str, int, bool]  # imported module, line, stands inside a function


def home(module: str) -> tuple[str, float] | None:
    """The prefix and the layer of a module, None if it belongs nowhere."""
    if module in FACES:
        return module, FACES[module]
    parts = module.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next(((prefix, LAYERS[prefix]) for prefix in prefixes if prefix in LAYERS), None)


def module_name(path: str) -> str:
    """`caching/engine/__init__.py` -> `cache_dit.caching.engine`."""
    stem = path.removesuffix(".pyi").removesuffix(".py")
    return ".".join(["cache_dit", *stem.split("/")]).removesuffix(".__init__")


def imports(path: str, source: str, modules: set[str]) -> Iterator[Arrow]:
    """Every import in a file: at the top, in functions, relative, and `import_module` of a literal name."""
    here = module_name(path)
    package = here if path.endswith(("__init__.py", "__init__.pyi")) else here.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Arrow]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule if submodule in modules else base), node.lineno, lazy
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            )
            if function in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno, lazy
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(source, path), False)


def objection(user: tuple[str, float], target: str, lazy: bool) -> str | None:
    """Why a module at home in `user` may not import `target`, None if it may."""
    prefix, layer = user
    top = target.partition(".")[0]
    if top == "cache_dit":
        used = home(target)
        if used is None:
            return "which belongs to no layer"
        if used[1] > layer:
            return f"which is above it (layer {used[1]:g})"
        siblings = layer == used[1] == 4 and prefix != used[0]
        if siblings and (prefix, used[0]) not in SIBLINGS_ALLOWED:
            return "but the packages of layer 4 do not know each other"
    elif top not in sys.stdlib_module_names and top != "torch":
        if layer <= 1:
            return "but layers 0 and 1 know nothing but torch"
        if layer < 4 and not lazy:
            return "at module level; move it into the function that needs it"
    return None


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks the rules in `{path below src/cache_dit: source text}`, one sentence each."""
    modules = {module_name(path) for path in sources}
    found: dict[str, None] = {}  # a set in order: two names imported from one module are one arrow
    for path, source in sorted(sources.items()):
        user = home(module_name(path))
        if user is None:
            found[f"{path} belongs to no layer; give {module_name(path)} one in LAYERS"] = None
            continue
        for target, line, lazy in imports(path, source, modules):
            if reason := objection(user, target, lazy):
                found[f"{path}:{line} (layer {user[1]:g}) imports {target}, {reason}"] = None
    return list(found)


def package_sources() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]
    }


def test_imports_point_downward() -> None:
    sources = package_sources()
    assert sources, f"no modules under {PACKAGE}"
    found = violations(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("caching/engine/clock.py", "import cache_dit.caching.attach", "above"),
        ("caching/engine/clock.py", "from cache_dit.caching import models", "above"),
        ("caching/engine/clock.py", "from ..attach import install", "above"),
        ("caching/engine/__init__.py", "from .. import attach", "above"),
        ("caching/maths/gates.py", "def f():\n    from ..engine import clock", "above"),
        ("caching/maths/gates.py", "from cache_dit import __version__", "above"),
        ("caching/maths/gates.py", "if TYPE_CHECKING:\n    from ..engine import clock", "above"),
        ("api.py", "import importlib\nimportlib.import_module('cache_dit.bench')", "above"),
        ("__init__.py", "from .cli import app", "above"),
        ("quantize/fp8.py", "from cache_dit.metrics import psnr", "do not know each other"),
        ("metrics/psnr.py", "from cache_dit.bench import table", "do not know each other"),
        ("caching/maths/masks.py", "def f():\n    import numpy", "nothing but torch"),
        (
            "caching/engine/clock.py",
            "from diffusers.models import FluxTransformer2DModel",
            "nothing but torch",
        ),
        ("caching/attach/install.py", "import diffusers", "at module level"),
        ("caching/models/rows.py", "class Rows:\n    import diffusers", "at module level"),
        ("helpers.py", "", "helpers.py belongs to no layer"),
        ("caching/utils.py", "", "caching/utils.py belongs to no layer"),
        ("api.py", "import cache_dit.helpers", "imports cache_dit.helpers, which belongs to no layer"),
    ],
)
def test_a_breach_is_found(path: str, source: str, complaint: str) -> None:
    submodules = {"caching/attach/__init__.py": "", "caching/models/__init__.py": ""}
    (found,) = violations({**submodules, path: source})
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "caching/maths/gates.py",
            "import math\nimport torch\nfrom .change import relative\nfrom ...errors import E",
        ),
        (
            "caching/engine/clock.py",
            "from cache_dit.caching.maths import gates\nimport torch.nn.functional as F",
        ),
        ("caching/models/rows.py", "from ..engine import clock\nfrom ..attach import install"),
        ("caching/attach/install.py", "def f():\n    import diffusers"),
        ("caching/__init__.py", "from . import config, models"),
        ("__init__.py", "from .api import enable_cache\nfrom ._version import __version__"),
        (
            "demo/pipeline.py",
            "import diffusers\nfrom cache_dit.api import enable_cache\nfrom ..metrics import psnr",
        ),
        ("demo/pipeline.py", "from . import weights"),
        ("cli.py", "import typer\nfrom cache_dit import bench"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    submodules = {"caching/config.py": "", "caching/models/__init__.py": "", "bench/__init__.py": ""}
    assert violations({**submodules, path: source}) == []


def code_lines(source: str) -> list[int]:
    """Numbers of the lines with code on them: without blank lines, comments and docstrings."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spans = [(token.start[0], token.end[0]) for token in tokens if token.type not in ignored and token.string]
    docstrings = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    code, prose = ({line for a, b in found for line in range(a, b + 1)} for found in (spans, docstrings))
    return sorted(code - prose)


def test_lines_of_code_are_counted() -> None:
    source = (
        '"""A docstring\n\nof three lines."""\n\nx = [\n    1,  # one\n]\n# a comment\n\ny = """a\nb"""\n'
    )
    assert code_lines(source) == [5, 6, 7, 10, 11]


def test_files_stay_short() -> None:
    sources = package_sources()
    lines = {path: len(source.splitlines()) for path, source in sources.items()}
    assert {path: count for path, count in lines.items() if count > LINES_PER_FILE} == {}
    homes = {path: home(module_name(path)) for path in lines}
    methods = {path for path in lines if path.startswith(CATALOGUE)}
    assert {path: lines[path] for path in methods if lines[path] > LINES_PER_METHOD} == {}
    house = [path for path, place in homes.items() if place and place[1] < 4 and path not in methods]
    core = sum(len(code_lines(sources[path])) for path in house)
    assert 1_000 < core < LINES_OF_LAYERS_0_TO_3


def test_importing_the_package_is_light() -> None:
    """What only some users need must not cost every user its import time."""
    heavy = "{'torch', 'numpy', 'diffusers', 'transformers', 'typer', 'matplotlib', 'pydantic', 'yaml'}"
    code = f"import sys, cache_dit; print(*sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []

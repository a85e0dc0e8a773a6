#!/bin/sh
# Run the tests with the oldest versions that pyproject.toml allows, all at once.
#
#   bench/compat.sh                         all tests; about 6 GB to fetch, and an hour or more on two cores
#   bench/compat.sh tests/test_api.py ...   these tests
#
# PYTHON names the interpreter (python3.11), ENV a virtual environment that is made once and kept. Tests of classes
# that an old diffusers lacks are skipped, with the reason. Results are in bench/results/compat.md.
set -eu
cd "$(dirname "$0")/.."
ENV="${ENV:-$(mktemp -d)/env}"
if [ ! -x "$ENV/bin/pytest" ]; then
    "${PYTHON:-python3.11}" -m venv "$ENV"
    "$ENV/bin/python" - > "$ENV/lowest.txt" <<'EOF'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
asked = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
pins = (re.match(r"([\w-]+)>=([\w.]+)$", one) for one in asked)
print(*sorted({f"{pin[1]}=={pin[2]}" for pin in pins if pin}), sep="\n")
EOF
    # numpy and Pillow are asked for without a version; pytest and hypothesis only run the tests.
    "$ENV/bin/pip" install -r "$ENV/lowest.txt" numpy pillow pytest hypothesis
fi
"$ENV/bin/pip" list --format=freeze | grep -iE '^(torch|diffusers|transformers|accelerate|numpy|typer|pydantic)=='
# An old typer imports names that today's click will drop; users do not see that warning.
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 nice -n 19 \
    "$ENV/bin/python" -m pytest -q -rs -p no:cacheprovider --continue-on-collection-errors \
    -W "ignore:'click.:DeprecationWarning" "$@"

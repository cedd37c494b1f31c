#!/usr/bin/env bash
# The wheel, away from the checkout: build it, install it into an empty environment, and run
# examples/ci.sh there. A data file that the wheel lacks, a command that is not on PATH, or a path
# that only the checkout has fails here.
#
#     bash tests/package.sh PYTHON      (an interpreter that has the dependencies: .venv/bin/python)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")  # as it is: a venv has a link there
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=("$python" -m pip --quiet --disable-pip-version-check)

# Built from a copy: setuptools would leave build/ in the checkout and pack what it left before.
mkdir "$work/source" "$work/empty"
cp -R "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/dsa_sandbox" "$work/source"
find "$work/source" -name __pycache__ -prune -exec rm -rf {} +
# setuptools is PYTHON's own (torch brings it): nothing is downloaded.
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$work" "$work/source"
wheel=("$work"/dsa_sandbox-*.whl)

# Into an environment of its own. The dependencies are those of PYTHON, found by a .pth file, since
# another torch would be a download of minutes. A .pth file inside a folder that a .pth file names
# is not read, so PYTHON's own editable install of this package stays invisible. It is written
# after the installation: before, pip would take that install for ours and remove it.
"$python" -m venv --without-pip "$work/env"
"${pip[@]}" --python "$work/env/bin/python" install --no-deps --no-index "${wheel[0]}"
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$purelib" >"$("$work/env/bin/python" -c "$purelib")/dependencies.pth"

cd "$work/empty"
unset PYTHONPATH PYTHONHOME
export PATH="$work/env/bin:$PATH"
python - "$work" "${wheel[0]}" <<'CHECK'
import sys
import zipfile
from pathlib import Path

import dsa_sandbox

work, wheel = map(Path, sys.argv[1:])
found = Path(dsa_sandbox.__file__)
if not found.is_relative_to(work / "env"):
    sys.exit(f"{found}: not the wheel's package")
files = [file for file in work.glob("source/dsa_sandbox/**/*") if file.is_file()]
packed = zipfile.ZipFile(wheel).namelist()
lacking = {str(file.relative_to(work / "source")) for file in files}.difference(packed)
if lacking:
    sys.exit(f"pyproject.toml: package-data leaves out {', '.join(sorted(lacking))}")
CHECK
# as users run it; it says nothing on stderr and writes nothing beside its home
code=0
bash "$root/examples/ci.sh" "$work/empty/home" 2>"$work/errors" || code=$?
cat "$work/errors" >&2
[ "$code" = 0 ] || exit "$code"
[ ! -s "$work/errors" ] || { echo "examples/ci.sh: wrote to stderr" >&2; exit 1; }
[ "$(ls)" = home ] || { echo "examples/ci.sh: wrote beside its home: $(ls)" >&2; exit 1; }

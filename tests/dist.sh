#!/usr/bin/env bash
# Builds what a package index gets, and tries it as somebody would who has no checkout: `make dist`.
#
# dist/ then holds an sdist and a wheel that was built from it. An environment with nothing else in it gets that wheel and the
# packages of constraints.txt, 6.6 GB, which are removed at the end; `qrdali demo` runs from it, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
python=${PYTHON:-python3}
tools=.dist/tools clean=$checkout/.dist/clean

fail() { echo "make dist: $*" >&2; exit 1; }
ok() { echo "ok: $* ($SECONDS s)"; }
pip() { "$1" -m pip --disable-pip-version-check "${@:2}"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is too old: make PYTHON=python3.12 dist"
[ "$(df --output=avail -k . | tail -1)" -gt 20000000 ] || fail "less than 20 GB are free here"
[ -z "$(git status --porcelain 2> /dev/null)" ] || echo "note: there are changes that are not committed; what is built has them"

[ -x $tools/bin/twine ] || {
  "$python" -m venv $tools
  pip $tools/bin/python install --quiet -c constraints.txt build twine==7.0.0
}
rm -rf dist build qrdali.egg-info  # the last lists what an earlier build held
$tools/bin/python -m build --outdir dist . > .dist/build.log 2>&1 || { tail -n 20 .dist/build.log >&2; fail "the build failed"; }
ok "built $(cd dist && echo *), the wheel from the sdist"
$tools/bin/twine check --strict dist/*
$tools/bin/python tests/distribution_contents.py dist/*
ok "they hold every file of the package and nothing else"

rm -rf "$clean"
work=$(mktemp -d)
trap 'rm -rf "$work" "$clean"' EXIT
"$python" -m venv "$clean"
pip "$clean/bin/python" install --quiet -c constraints.txt dist/*.whl
pip "$clean/bin/python" check
ok "installed in a clean environment of $(du -sh "$clean" | cut -f1)"

cd "$work"
unset PYTHONPATH PYTHONHOME
qrdali() { "$clean/bin/qrdali" "$@"; }
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$checkout/qrdali/version.py")
[ "$(qrdali --version)" = "qrdali, version $version" ] || fail "qrdali --version says $(qrdali --version), not $version"
"$clean/bin/python" -I - "$clean" << 'END' || fail "the packages do not come from the wheel"
import sys
import qrdali.cli, qrdali.pipelines
from pathlib import Path
for module in (qrdali, qrdali.cli, qrdali.pipelines):
    file = Path(module.__file__).resolve()
    sys.exit(f"{file} is not the wheel's") if not file.is_relative_to(sys.argv[1]) else None
END
qrdali completion bash > completion
bash -c 'source ./completion && complete -p qrdali' > /dev/null || fail "bash does not take qrdali completion bash"
qrdali reproduce demo.toml --dry-run > /dev/null
ok "version, completion and the experiments that come with it"
qrdali demo --out demo > "$checkout/.dist/demo.log" 2>&1 || { tail -n 20 "$checkout/.dist/demo.log" >&2; fail "the demo failed"; }
[ -s demo/report/report.html ] || fail "the demo wrote no report"
ok "qrdali demo"

cd "$checkout"
placeholders=$(grep -lE 'PLACEHOLDER|example\.org' pyproject.toml CITATION.cff SECURITY.md CHANGELOG.md || true)
[ -z "$placeholders" ] || echo "note: before publishing, fill in the placeholders of" $placeholders
grep -q "^## \[$version\] - 20" CHANGELOG.md || echo "note: CHANGELOG.md has no date for $version yet"
sha256sum dist/*
echo "to publish: $tools/bin/twine upload dist/*"

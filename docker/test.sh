#!/usr/bin/env bash
# Builds docker/Dockerfile and tries the image, without a Docker engine: buildah with chroot isolation, on a base that debootstrap makes
# and that is tagged with the Dockerfile's name for it. Needs root, Debian's buildah and debootstrap, 40 GB of disk for a while, and takes
# about a quarter of an hour. Everything lies in one folder, in /var/tmp or in the one given, and is removed at the end.
#
#   docker/test.sh [FOLDER]
#
# RUNNER, if set, is put before the commands that train: RUNNER="taskset -c 0".
set -euo pipefail
SUITE=trixie  # Debian's name for the version of the Dockerfile's base
cd "$(dirname "$0")/.."

fail() { echo "docker/test.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "chroot isolation needs root: run it with sudo"
for tool in buildah debootstrap unshare; do
  command -v "$tool" > /dev/null || fail "$tool is not here: apt-get install buildah debootstrap"
done

WORK=$(mktemp -d "${1:-/var/tmp}/qrdali-docker.XXXXXX")
mkdir "$WORK"/{storage,state,tmp,log,checkout}
[ "$(df --output=avail -k "$WORK" | tail -1)" -gt 40000000 ] || { rm -r "$WORK"; fail "less than 40 GB are free in ${1:-/var/tmp}"; }
export TMPDIR=$WORK/tmp BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF=$WORK/storage.conf
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/storage"\nrunroot = "%s/state"\n' "$WORK" "$WORK" > "$WORK/storage.conf"
printf '{"default": [{"type": "reject"}], "transports": {"containers-storage": {"": [{"type": "insecureAcceptAnything"}]}}}\n' \
  > "$WORK/policy.json"  # nothing is pulled from anywhere

clean() {
  status=$?
  [ $status = 0 ] || (cd "$WORK/log" && ls -t | head -2 | xargs -r tail -n 20) >&2
  buildah umount --all > /dev/null 2>&1 || true
  buildah rm --all > /dev/null 2>&1 || true
  awk -v at="$WORK/" 'index($2, at) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
  rm -rf --one-file-system "$WORK"
  exit $status
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed=0
ok() { passed=$((passed + 1)); echo "ok: $*"; }
seconds() { echo $(( $(date +%s) - $1 )); }

# --- the base
base=$(sed -n 's/^FROM \([^ ]*:[^ ]*\).*/\1/p' docker/Dockerfile | head -1)
begun=$(date +%s)
root=$(buildah from --name base scratch)
place=$(buildah mount "$root")
debootstrap --variant=minbase "$SUITE" "$place" > "$WORK/log/debootstrap" 2>&1
version=$(cat "$place/etc/debian_version")
[ "debian:$version-slim" = "$base" ] || echo "note: the Dockerfile's base is $base, its stand-in is Debian $version"
[ "${version%%.*}" = "$(echo "${base#debian:}" | cut -d. -f1)" ] || fail "Debian's $SUITE is $version, the Dockerfile's base is $base"
rm -rf "$place"/var/cache/apt/archives/*.deb "$place"/var/lib/apt/lists/* "$place"/usr/share/{doc,man,locale}/*
buildah umount "$root" > /dev/null
buildah commit --quiet --rm "$root" "docker.io/library/$base" > /dev/null
ok "base $base made of Debian $version in $(seconds "$begun") s"

# --- the build: of a copy, in which a file can be changed; with this machine's package index and certificates, which stay outside
git ls-files -z | xargs -0 cp -a --parents -t "$WORK/checkout"
settings=$WORK/pip.conf
echo '[global]' > "$settings"
python3 -m pip config list 2> /dev/null \
  | sed -n "s/^[a-z:]*[.:]\(index-url\|extra-index-url\|trusted-host\|proxy\|timeout\)='\(.*\)'$/\1 = \2/p" \
  | grep -v file: | sort -u -t= -k1,1 >> "$settings" || true
mounts=()
certificates=$(python3 -m pip config list 2> /dev/null | sed -n "s/^[a-z:]*[.:]cert='\(.*\)'$/\1/p" | head -1)
if [ -n "$certificates" ]; then
  echo 'cert = /run/certificates.crt' >> "$settings"
  mounts=(--volume "$certificates:/run/certificates.crt:ro")
fi
build() {  # LOG
  buildah build --layers --format docker --pull-never --signature-policy "$WORK/policy.json" --secret "id=pip,src=$settings" \
    "${mounts[@]}" --tag qrdali --file "$WORK/checkout/docker/Dockerfile" "$WORK/checkout" > "$WORK/log/$1" 2>&1 \
    || { tail -n 30 "$WORK/log/$1" >&2; fail "the build failed"; }
}
begun=$(date +%s)
build build
ok "built in $(seconds "$begun") s: $(buildah images --format '{{.Size}}' qrdali)"
begun=$(date +%s)
build again
ok "built again without a change in $(seconds "$begun") s"
echo '# changed' >> "$WORK/checkout/cli/models.py"
begun=$(date +%s)
build changed
took=$(seconds "$begun")
[ "$(grep -c 'Using cache' "$WORK/log/changed")" -ge 5 ] || fail "a change of code rebuilt the packages"
[ "$took" -lt 120 ] || fail "a change of code took $took s"
ok "built with a changed .py in $took s, packages from the cache"

# --- the image, as a user without a name, on read-only data
container=$(buildah from --pull-never --name tried qrdali)
mkdir "$WORK"/{images,runs,locked}
chown 12345:12345 "$WORK/runs"
chmod 755 "$WORK"
run() {  # [--option …] -- COMMAND…
  "${runner[@]}" "${around[@]}" buildah run --user 12345:12345 --volume "$WORK/images:/data:ro" --volume "$WORK/runs:/runs" "$@"
}
runner=() around=()
inside() { run "$container" -- "$@"; }
read -ra heavy <<< "${RUNNER:-}"
works() { local runner=("${heavy[@]}"); inside "$@"; }
setting() { buildah inspect --type image --format "{{.Docker.Config.$1}}" qrdali; }

[ "$(setting Entrypoint)" = '[qrdali]' ] || fail "the entry point is $(setting Entrypoint)"
[ "$(setting User)" = qrdali ] || fail "the image's user is $(setting User)"
setting Healthcheck | grep -q 'qrdali doctor --json' || fail "no health check"
[ "$(inside id -u)" = 12345 ] || fail "not the caller's uid"
[ "$(buildah run "$container" -- id -u)" = 1000 ] || fail "the image's own user is not 1000"
ok "entry point, user and health check"
for tool in cc gcc g++ clang cpp make git; do
  if inside sh -c "command -v $tool" > /dev/null 2>&1; then fail "$tool is in the image"; fi
done
ok "no compiler"
inside pip list --format=json --disable-pip-version-check > "$WORK/log/packages" 2> /dev/null || fail "pip list fails"
inside python - "$(cat "$WORK/log/packages")" <<'PYTHON' || fail "the image has other versions than constraints.txt"
import json, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
lines = [Requirement(line.strip()) for line in open("/opt/qrdali/made-of/constraints.txt") if not line.startswith("#")]
pins = {canonicalize_name(pin.name): pin.specifier for pin in lines if pin.marker is None or pin.marker.evaluate()}
wrong = [found for found in json.loads(sys.argv[1]) if (name := canonicalize_name(found["name"])) not in ("pip", "qrdali")
         and (name not in pins or not pins[name].contains(found["version"], prereleases=True))]
sys.exit(f"not as in constraints.txt: {wrong}" if wrong else 0)
PYTHON
ok "every package in the version of constraints.txt"
inside qrdali --help > "$WORK/log/help" && grep -q build-mepi "$WORK/log/help" || fail "qrdali --help says something else"
ok "qrdali --help"
inside bash -ic 'complete -p qrdali' 2> /dev/null | grep -q qrdali || fail "no completion in bash"
inside head -1 /usr/local/share/zsh/site-functions/_qrdali | grep -q '#compdef qrdali' || fail "no completion for zsh"
inside env COMP_WORDS='qrdali build-m' COMP_CWORD=1 _QRDALI_COMPLETE=bash_complete qrdali | grep -q build-mepi \
  || fail "nothing is completed"
ok "completion in bash, for zsh"
inside torchrun --help > "$WORK/log/help" || fail "torchrun does not start"
ok "torchrun --help"
if inside touch /data/x 2> /dev/null; then fail "/data can be written"; fi
if inside touch /opt/qrdali/x 2> /dev/null; then fail "the packages can be written"; fi
inside sh -c 'touch "$HOME/x" "$HOME/.cache/x" /runs/x && rm "$HOME/x" "$HOME/.cache/x" /runs/x' || fail "home or runs cannot be written"
ok "data and packages cannot be written, home and runs can"

works qrdali doctor --json --run /runs > "$WORK/log/doctor" || fail "qrdali doctor: training cannot work"
python3 - "$WORK/log/doctor" <<'PYTHON'
import json, sys
found = json.load(open(sys.argv[1]))
assert found["works"], found
for finding in found["findings"]:
    print(f"    {finding['state']:8s} {finding['name']:14s} {finding['value']}")
PYTHON
ok "qrdali doctor --json, exit status 0"

refused() {  # STATUS WORDS: of the last command's log, which must be one line
  [ "$status" = "$1" ] || fail "exit status $status, not $1: $(cat "$WORK/log/refused")"
  [ "$(grep -c 'qrdali: error:' "$WORK/log/refused")" = 1 ] || fail "no one line: $(cat "$WORK/log/refused")"
  for word in "${@:2}"; do
    grep -q -e "$word" "$WORK/log/refused" || fail "nothing of $word: $(cat "$WORK/log/refused")"
  done
  grep 'qrdali: error:' "$WORK/log/refused" | sed 's/^/    /'
}

# --- the main job
begun=$(date +%s)
works qrdali demo --out /runs/demo > "$WORK/log/demo" 2>&1 || fail "qrdali demo failed"
[ -s "$WORK/runs/demo/report/report.html" ] || fail "no report"
[ "$(stat -c %u "$WORK/runs/demo/report/report.html")" = 12345 ] || fail "the report is not the caller's"
grep -a -o '[^ ]*: test accuracy [0-9.]* ([0-9]* of [0-9]*)' "$WORK/log/demo" | sed 's/^/    /'
ok "qrdali demo in $(seconds "$begun") s, its files are the caller's"
elsewhere=$(inside find / -xdev -user 12345 ! -path '/home/qrdali/*' ! -path '/tmp/*' ! -path '/runs*' ! -path '/dev/*' ! -path '/proc/*' \
  2> /dev/null) || true
[ -z "$elsewhere" ] || fail "written outside of the home, /tmp and /runs: $elsewhere"
ok "nothing written but in the home, /tmp and /runs"

# --- images from the read-only mount
mv "$WORK"/runs/demo/images/* "$WORK/images/"
works qrdali data index /data --out /runs/data > "$WORK/log/index" 2>&1 || fail "qrdali data index failed"
common=(--data /runs/data --model test_resnet --input-size 64 --epochs 1)
works qrdali train shared "${common[@]}" --run /runs/shared > "$WORK/log/train" 2>&1 || fail "qrdali train failed"
ok "index of /data (read-only) and an epoch on it"
status=0; works qrdali train shared "${common[@]}" --run /runs/gpu --device cuda > "$WORK/log/refused" 2>&1 || status=$?
refused 1 '--gpus all' driver
[ ! -e "$WORK/runs/gpu" ] || fail "a refused run left its folder"
ok "--device cuda without a GPU"
status=0; run --volume "$WORK/locked:/locked" "$container" -- \
  qrdali train shared "${common[@]}" --run /locked/run > "$WORK/log/refused" 2>&1 || status=$?
refused 1 '/locked/run' '--user'
ok "a run volume that cannot be written"
status=0; run --volume "$WORK/locked:/locked" "$container" -- qrdali doctor --run /locked > "$WORK/log/refused" 2>&1 || status=$?
[ "$status" = 1 ] && grep -q 'run folder' "$WORK/log/refused" || fail "qrdali doctor is content with a folder that cannot be written"
ok "qrdali doctor names it too"

# --- shared memory of 64 MB, as Docker gives it
around=(unshare --mount sh -c 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"' sh)
works qrdali doctor --json --run /runs > "$WORK/log/doctor" || fail "qrdali doctor: training cannot work in 64 MB of shared memory"
grep -q '64 MiB in /dev/shm' "$WORK/log/doctor" && grep -q -e --shm-size "$WORK/log/doctor" || fail "qrdali doctor does not see 64 MB"
works qrdali train shared "${common[@]}" --run /runs/small > "$WORK/log/train" 2>&1 || fail "qrdali train needs more than 64 MB"
ok "64 MB of shared memory: a warning, and training works"
echo "$passed passed, 0 failed"

#!/usr/bin/env bash
# Builds the CPU image with buildah, without a Docker daemon, and runs it like Docker.
#
#   docker/check.sh              needs root, buildah and (without a registry) debootstrap
#   TORCH=index docker/check.sh  installs torch from pip's configured index
#   EXTRAS=traces,ray docker/check.sh  builds the image for a cluster
#
# The image runs with chroot isolation, so it uses this machine's network.
set -euo pipefail
cd "$(dirname "$0")/.."

export BUILDAH_ISOLATION=chroot
base=python:3.11-slim
image=alarm:check
port=${PORT:-18000}
work=$(mktemp -d)
container=
server=
trap 'clean_up' EXIT

clean_up() {
    if [ -n "$server" ]; then
        # buildah does not forward signals, so signal the whole process group.
        kill -TERM -- "-$server" 2>/dev/null || true
        sleep 5
        kill -KILL -- "-$server" 2>/dev/null || true
    fi
    if [ -n "$container" ]; then buildah rm "$container" >/dev/null; fi
    rm -rf "$work"
}

say() { printf '\n== %s\n' "$*"; }

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Debian with its Python 3.11, tagged with the base image's name.
make_stand_in() {
    local mirror
    # shellcheck disable=SC2016 # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | awk 'NR == 1')
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$work/base" "$mirror" >"$work/debootstrap.log" || fail "see $work/debootstrap.log"
    tar --create --directory "$work/base" --file "$work/base.tar" .
    rm -rf "$work/base"
    printf 'FROM scratch\nADD base.tar /\n' >"$work/Containerfile"
    buildah bud --quiet --file "$work/Containerfile" --tag "$base" "$work" >/dev/null
    rm "$work/base.tar"
}

# The build needs pip's configuration of this machine (certificates, mirrors, folders of wheels).
mounts=()
find_mounts() {
    local path
    {
        echo '[global]'
        python3 -m pip config list | sed "s/^[^.]*\.//; s/='/ = /; s/'\$//" | awk '!seen[$1]++'
    } >"$work/pip.conf"
    mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    for path in $(sed 's|file://\([^ ]*\)/simple|\1|g' "$work/pip.conf") "${SSL_CERT_FILE:-}"; do
        case $path in /*) if [ -e "$path" ]; then mounts+=(--volume "$path:$path:ro"); fi ;; esac
    done
}

say "the base image"
buildah inspect --type image "$base" >/dev/null 2>&1 || buildah pull --quiet "$base" 2>/dev/null \
    || make_stand_in

say "the image"
find_mounts
buildah bud --pull-never --format docker --file docker/Dockerfile --tag "$image" \
    --build-arg "TORCH=${TORCH:-cpu}" --build-arg "EXTRAS=${EXTRAS:-traces}" "${mounts[@]}" .
buildah images "$image"

container=$(buildah from --pull-never "$image")
in_container=(buildah run --env "ALARM_PORT=$port")
[ "$("${in_container[@]}" "$container" -- id --user)" = 10001 ] || fail "the image runs as root"
# shellcheck disable=SC2016 # the container's own variable
"${in_container[@]}" "$container" -- sh -c 'touch "$HF_HOME/weights"' || fail "the weights' volume is read-only"

say "the server refuses the network without a key"
if "${in_container[@]}" "$container" -- alarm serve 2>"$work/refusal"; then fail "it served"; fi
grep insecure "$work/refusal"

say "the server, as docker-compose.yml starts it"
format='{{range .Docker.Config.Healthcheck.Test}}{{.}} {{end}}{{"\n"}}'
read -r -a health < <(buildah inspect --type image --format "$format" "$image")
[ "${health[0]}" = CMD ] || fail "the health check is '${health[*]}'"
setsid "${in_container[@]}" --env ALARM_PUBLISHED=127.0.0.1 "$container" -- alarm serve 2>"$work/log" &
server=$!
for _ in $(seq 60); do
    if "${in_container[@]}" "$container" -- "${health[@]:1}" >"$work/health" 2>"$work/probe"; then break; fi
    kill -0 "$server" 2>/dev/null || fail "the server ended: $(cat "$work/log")"
    sleep 1
done
cat "$work/health"
grep --quiet '^ready$' "$work/health" || fail "the server did not become healthy"
curl --silent --fail "http://127.0.0.1:$port/hierarchical_reward" --header 'Content-Type: application/json' \
    --data '{"samples": [{"prompt": "Who wrote Emma?", "completion": "Jane Austen wrote it."}]}'
say "all checks passed"

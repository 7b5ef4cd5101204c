#!/usr/bin/env bash
# `make image-test`: docker-compose.yml with the image that `make image` made, with privileges and without.
#
#   IMAGE         the image (windlass)
#   NATS_IMAGE    that of NATS; else the one that docker-compose.yml names when it is here or can be had, else one that is made of
#                 the nats-server that the other tests use
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'image-test: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
skip() {
  say "SKIPPED: $*"
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
}

docker info >/dev/null 2>&1 || skip "there is no Docker daemon that answers"
compose=$(deploy/fetch-compose.sh) || skip "there is no Docker Compose 2"
export WINDLASS_IMAGE=${IMAGE:-windlass}
docker image inspect "$WINDLASS_IMAGE" >/dev/null 2>&1 || skip "there is no image $WINDLASS_IMAGE; make image"
export COMPOSE_PROJECT_NAME=windlass-test-$$
work=$(mktemp -d)
files=()

c() { "$compose" "${files[@]}" "$@"; }

cleanup() {
  status=$?
  trap - EXIT INT TERM
  [ "$status" = 0 ] || c logs --no-color >&2 || true
  c down --volumes --remove-orphans --timeout 60 >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# nats-server is one static file; busybox is for the health check.
nats_image() {
  local named root=$work/nats
  named=$(sed -n 's/.*image: ${NATS_IMAGE:-\(.*\)}/\1/p' docker-compose.yml)
  if docker image inspect "$named" >/dev/null 2>&1 || timeout 60 docker pull --quiet "$named" >/dev/null 2>&1; then
    echo "$named"
    return
  fi
  command -v busybox >/dev/null || skip "$named cannot be had, and busybox to make one with is missing (Debian: apt-get install busybox-static)"
  mkdir -p "$root/bin" "$root/tmp"
  cp "${WINDLASS_TEST_NATS_SERVER:-$(deploy/fetch-nats.sh)}" "$root/nats-server"
  cp "$(command -v busybox)" "$root/bin/wget"
  tar -C "$root" -c . | docker import --change 'ENTRYPOINT ["/nats-server"]' - windlass-test-nats >/dev/null
  say "$named cannot be had here: NATS is an image made of $("$root/nats-server" --version)"
  echo windlass-test-nats
}

# A port of the machine may be in use: clients are containers here.
printf 'services:\n  nats:\n    ports: !reset []\n' >"$work/no-ports.yml"

# client WORDS…: a verb, in a container beside the others
client() { c run --rm -T --no-deps init "$@" </dev/null; }

# expect CODE WORDS…: output in $work/out
expect() {
  local code=0 wanted=$1
  shift
  client "$@" >"$work/out" 2>"$work/err" || code=$?
  [ "$code" = "$wanted" ] || { cat "$work/out" "$work/err" >&2; fail "windlass $*: exit code $code instead of $wanted"; }
}

# Containers of workers, running or not.
workers() { c ps --all -q worker; }

up() {
  local container health
  files=()
  for file; do files+=(-f "$file"); done
  files+=(-f "$work/no-ports.yml")
  c up --no-build --detach >"$work/up" 2>&1 || { cat "$work/up" >&2; fail "compose up"; }
  [ "$(c ps --status running -q worker | wc -l)" = 2 ] || fail "there are not two workers"
  for container in $(workers); do
    health=starting
    for _ in $(seq 120); do
      health=$(docker inspect -f '{{.State.Health.Status}}' "$container")
      [ "$health" = starting ] || break
      sleep 0.5
    done
    [ "$health" = healthy ] || fail "a worker is $health: $(docker inspect -f '{{json .State.Health.Log}}' "$container")"
  done
}

privileged() {
  local containers container leftover=''
  say "as in docker-compose.yml"
  up docker-compose.yml
  expect 0 run --id hello -- echo hello
  [ "$(cat "$work/out")" = hello ] || fail "a task's output: $(cat "$work/out")"
  expect 137 run --id fat --memory 32MiB --bash 'x=$(head -c 200M /dev/zero | tr "\0" x); echo "not reached ${#x}"'
  expect 0 status fat -o json
  grep -q '"reason":"oom_killed"' "$work/out" && grep -q '"enforced":true' "$work/out" || fail "the limit: $(cat "$work/out")"
  expect 0 run -- id -u
  [ "$(cat "$work/out")" -gt 65536 ] || fail "the sandbox gives no user of the tenant's: $(cat "$work/out")"
  expect 1 run -- sh -c 'touch /usr/found 2>/dev/null'

  say "drain: what runs is ended before the containers stop"
  client run --id slow --bash 'echo working; sleep 4; echo done' >"$work/slow" 2>&1 &
  slow=$!
  until grep -q working "$work/slow"; do
    kill -0 "$slow" 2>/dev/null || { cat "$work/slow" >&2; fail "the slow task did not start"; }
    sleep 0.2
  done
  c stop worker >/dev/null 2>&1
  wait "$slow" || fail "the slow task: $(cat "$work/slow")"
  for container in $(workers); do
    [ "$(docker inspect -f '{{.State.ExitCode}}' "$container")" = 0 ] || fail "a worker did not end well: $(docker logs "$container" 2>&1 | tail -n 5)"
  done

  say "everything down and up again: what was stored is there"
  containers=$(workers)
  c down --timeout 60 >/dev/null 2>&1
  for container in $containers; do leftover+=$(find /sys/fs/cgroup -type d -path "*$container*" 2>/dev/null); done
  [ -z "$leftover" ] || fail "cgroups are left: $leftover"
  up docker-compose.yml
  expect 0 logs hello
  [ "$(cat "$work/out")" = hello ] || fail "stored output: $(cat "$work/out")"
  expect 0 run -- true
  c down --volumes --timeout 60 >/dev/null 2>&1
}

unprivileged() {
  say "without privileges"
  up docker-compose.yml deploy/compose-unprivileged.yml
  expect 0 run --id plain --bash 'id -u; grep CapEff /proc/self/status'
  grep -qx 10001 "$work/out" && grep -q 'CapEff:.0000000000000000' "$work/out" || fail "it has privileges: $(cat "$work/out")"
  expect 0 events plain -o json
  grep -q '"enforced":false' "$work/out" || fail "the event does not say that limits are not enforced: $(cat "$work/out")"
  expect 124 run --timeout 1 --grace 0.2 -- sleep 100
  c down --volumes --timeout 60 >/dev/null 2>&1
}

NATS_IMAGE=${NATS_IMAGE:-$(nats_image)}
[ -n "$NATS_IMAGE" ] || exit 0
export NATS_IMAGE
privileged
unprivileged
say "passed"

#!/usr/bin/env bash
# `make demo`: a nats-server and a worker, and a handful of tasks with everything that happens to them.
# All of it lives in one temporary directory and is gone at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
  bold='' dim='' green='' red='' plain=''
fi
heading() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
# A command line as one would type it.
shown() {
  local word line=''
  for word in "$@"; do
    case $word in *[!A-Za-z0-9_./=-]*) line+=" '$word'" ;; *) line+=" $word" ;; esac
  done
  printf '%s$%s%s\n' "$dim" "$line" "$plain"
}

nats=$(deploy/fetch-nats.sh)
windlass=${WINDLASS_DEMO_PROGRAM:-}
if [ -z "$windlass" ]; then
  cargo build --locked --quiet
  windlass=$PWD/target/debug/windlass
fi
# Not what the caller's environment says: the demo talks to its own server only.
unset NATS_URL NATS_CREDS WINDLASS_PREFIX WINDLASS_CONFIG
data=$(mktemp -d "${TMPDIR:-/tmp}/windlass-demo.XXXXXX")
dev='' feed=''

cleanup() {
  status=$?
  trap - EXIT INT TERM
  [ -z "$feed" ] || kill "$feed" 2>/dev/null || true
  if [ -n "$dev" ] && kill -INT "$dev" 2>/dev/null; then wait "$dev" || true; fi
  rm -rf "$data"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

heading "1. A nats-server, the streams and one worker: windlass dev"
"$windlass" dev -o json --nats-server "$nats" --data "$data/dev" ${WINDLASS_DEMO_DEV:-} >"$data/ready" 2>"$data/log" &
dev=$!
while [ ! -s "$data/ready" ]; do
  kill -0 "$dev" 2>/dev/null || { cat "$data/log" >&2; exit 1; }
  sleep 0.05
done
NATS_URL=$(sed -n 's/.*"nats_url":"\([^"]*\)".*/\1/p' "$data/ready")
[ -n "$NATS_URL" ] || { cat "$data/log" >&2; exit 1; }
export NATS_URL
printf 'NATS at %s, nats-server %s\n' "$NATS_URL" "$("$nats" --version | sed 's/.*: //')"

# Events as they are stored, between the output of the tasks; a copy says which were shown.
: >"$data/shown"
"$windlass" events -f --from-start > >(while IFS= read -r line; do
  printf '%s  event %s%s\n' "$dim" "$line" "$plain"
  printf '%s\n' "$line" >>"$data/shown"
done) 2>/dev/null &
feed=$!

# over ID: waits until the end of that task was shown.
over() {
  until grep -qE " $1 .*task_(completed|failed)" "$data/shown"; do
    kill -0 "$feed" || exit 1
    sleep 0.02
  done
}

# example EXPECTED-CODE TASK WORDS...: runs `windlass WORDS...` and says whether it ended as it should, after the end of the task
# that it ends; - when it ends none.
example() {
  local expected=$1 task=$2 code=0
  shift 2
  shown windlass "$@"
  "$windlass" "$@" || code=$?
  [ "$task" = - ] || over "$task"
  if [ "$code" = "$expected" ]; then
    printf '%sexit code %s%s\n' "$green" "$code" "$plain"
  else
    printf '%sexit code %s, but %s was expected%s\n' "$red" "$code" "$expected" "$plain"
    exit 1
  fi
}

heading "2. A task with live output: queued, started, its lines as it writes them, completed"
example 0 demo-ok run --id demo-ok --bash 'for i in 1 2 3; do echo "line $i"; sleep 0.3; done; echo "{\"answer\": 42}" > "$WINDLASS_RESULT"'

heading "3. A task that fails: its stderr and its exit code are ours"
example 3 demo-fails run --id demo-fails --bash 'echo "no such customer" >&2; exit 3'

heading "4. A task that takes too long: SIGTERM, then its whole process tree is killed"
example 124 demo-timeout run --id demo-timeout --timeout 1 --grace 0.5 --bash 'trap "" TERM; echo "I ignore SIGTERM"; (setsid sleep 60 &); sleep 60'

heading "5. A task that eats memory: the kernel ends it at its limit, and we say so"
example 137 demo-oom run --id demo-oom --memory 32MiB --bash 'x=$(head -c 200M /dev/zero | tr "\0" x); echo "not reached ${#x}"'

heading "6. A task that is canceled while it runs"
printf '{"task_id": "demo-cancel", "execution": {"runtime": "bash", "script": "echo working; sleep 60"}}' >"$data/cancel.json"
cd "$data"
example 0 - submit cancel.json
until "$windlass" logs demo-cancel 2>/dev/null | grep -q working; do sleep 0.05; done
example 0 demo-cancel cancel demo-cancel --reason 'seen enough' --wait

heading "7. Afterwards everything can be read again, and proves that it is whole"
example 0 - status demo-ok
example 0 - logs demo-ok

heading "Where to look next"
cat <<'TEXT'
  target/debug/windlass dev         the same, for you to play with (Ctrl-C ends it)
  docs/tutorial.md                  ten minutes: submit, follow, cancel, whose fault, dead letters
  README.md                         publish tasks and read events in Python
  docs/protocol.md                  subjects, events, log chunks: the contract
  docs/reasons.md                   every reason that a task can end with
  docs/operating.md                 real workers on real machines
TEXT

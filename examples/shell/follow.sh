#!/usr/bin/env bash
# Publishes a task, follows its events to the end, and proves that history and output are whole: with requests alone.
#
#   ./follow.sh 'echo hello'            a bash script
#   ./follow.sh --verify TASK_ID        a task that somebody else published
#
# Ends with 0 when the task worked, 1 when it did not, 7 when what is stored is not what was promised.
# NATS_URL, WINDLASS_PREFIX and WINDLASS_TENANT say where. Needs: the nats command line (NATS_CLI names another one), jq.
# It reads JSON; workers with `events.encoding = "msgpack"` are not for a shell.
set -euo pipefail

prefix=${WINDLASS_PREFIX:-windlass} tenant=${WINDLASS_TENANT:-default}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

request() { "${NATS_CLI:-nats}" --server "${NATS_URL:-nats://127.0.0.1:4222}" request --raw "$@"; }
failed() { echo "verification failed: $1" >&2; exit 7; }
digest() { sha256sum "$1" | cut -d ' ' -f 1; }

# next STREAM SUBJECT SEQUENCE: the first message of SUBJECT from SEQUENCE on, {seq, hdrs, data}; nothing when there is none.
next() {
  local answer
  answer=$(request "\$JS.API.STREAM.MSG.GET.${prefix^^}_$1" "{\"next_by_subj\": \"$2\", \"seq\": $3}")
  case $(jq '.error.err_code // 0' <<<"$answer") in
    0) jq -c .message <<<"$answer" ;;
    10037) ;;
    *) jq -r .error.description <<<"$answer" >&2; exit 2 ;;
  esac
}

publish() {
  local id task
  id=$(cat /proc/sys/kernel/random/uuid)
  task=$(jq -nc --arg id "$id" --arg script "$1" '{task_id: $id, execution: {runtime: "bash", script: $script, timeout_s: 60}}')
  request -H Content-Type:application/json "$prefix.tasks.cpu_short.normal.$tenant.$id" "$task" | jq -e '.seq > 0' >"$work/stored" ||
    { echo "not queued" >&2; exit 2; }
  echo "queued $id" >&2
  echo "$id"
}

# follow ID: prints the chain as it grows, checks it link by link, leaves the end in $work/event and the fence in $work/fence.
follow() {
  local from=1 seq=0 before=null message
  while true; do
    message=$(next EVENTS "$prefix.events.$tenant.$1.*" "$from")
    if [ -z "$message" ]; then sleep 0.5; continue; fi
    jq -r .data <<<"$message" | base64 -d >"$work/event"
    jq -r '"\(.time) \(.event) \(.reason // "")"' "$work/event"
    [ "$(jq .seq "$work/event")" = "$seq" ] || failed "event $(jq .seq "$work/event") where $seq belongs"
    [ "$(jq -r .prev_sha256 "$work/event")" = "$before" ] || failed "event $seq does not follow the one before it"
    before=$(digest "$work/event") seq=$((seq + 1)) from=$(($(jq .seq <<<"$message") + 1))
    case $(jq -r .event "$work/event") in
      task_started) echo $((from - 1)) >"$work/fence" ;;
      task_completed | task_failed) return ;;
    esac
  done
}

# Writes the chunks that count, each once, to $work/chunk.<seq>.
chunks() {
  local from=1 message seq
  while true; do
    message=$(next LOGS "$1" "$from")
    [ -n "$message" ] || return 0
    from=$(($(jq .seq <<<"$message") + 1))
    jq -r .data <<<"$message" | base64 -d >"$work/chunk"
    seq=$(jq .seq "$work/chunk")
    [ "$(jq .fence "$work/chunk")" != "$2" ] || mv "$work/chunk" "$work/chunk.$seq"
  done
}

output() {
  local fence count seq chunk stream
  fence=$(jq .logs.fence "$work/event") count=$(jq .logs.chunks "$work/event")
  [ "$fence" = "$(cat "$work/fence")" ] || failed "the manifest is of another attempt"
  touch "$work/stdout" "$work/stderr" "$work/system"
  chunks "$(jq -r .logs.subject "$work/event")" "$fence"
  for ((seq = 0; seq < count; seq++)); do
    chunk=$work/chunk.$seq
    [ -e "$chunk" ] || failed "chunk $seq of $count is missing"
    stream=$(jq -r .stream "$chunk")
    [ "$(jq .offset "$chunk")" = "$(stat -c %s "$work/$stream")" ] || failed "chunk $seq is not where the one before it ends"
    [ "$(jq .eof "$chunk")" = "$([ $((seq + 1)) = "$count" ] && echo true || echo false)" ] || failed "chunk $seq: wrong eof"
    case $(jq -r .encoding "$chunk") in
      utf8) jq -j .data "$chunk" ;;
      base64) jq -r .data "$chunk" | base64 -d ;;
    esac >>"$work/$stream"
  done
  for stream in $(jq -r '.logs | keys[] | select(. == "stdout" or . == "stderr" or . == "system")' "$work/event"); do
    [ "$(jq ".logs.$stream.bytes" "$work/event")" = "$(stat -c %s "$work/$stream")" ] || failed "$stream has another size than promised"
    [ "$(jq -r ".logs.$stream.sha256" "$work/event")" = "$(digest "$work/$stream")" ] || failed "$stream has another SHA-256 than promised"
  done
}

[ $# -gt 0 ] || { echo "usage: follow.sh SCRIPT | --verify TASK_ID" >&2; exit 2; }
if [ "$1" = --verify ]; then id=$2; else id=$(publish "$1"); fi
follow "$id"
if [ "$(jq 'has("logs")' "$work/event")" = true ]; then output; else touch "$work/stdout" "$work/stderr"; fi
echo "verified: stdout $(stat -c %s "$work/stdout") bytes, stderr $(stat -c %s "$work/stderr") bytes"
jq -r 'select(has("result")) | "result: \(.result.value | tojson)"' "$work/event"
[ "$(jq -r .event "$work/event")" = task_completed ]

#!/bin/bash
# Takes memory without end: tail keeps the last line, and the line has none. As a child with "child", else in its own place.
if [ "${1:-}" = child ]; then
  tail /dev/zero
  echo "child ended with $?"
  exit "${2:-0}"
fi
exec tail /dev/zero

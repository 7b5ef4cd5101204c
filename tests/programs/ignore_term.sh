#!/bin/bash
# Ignores SIGTERM and says when it is ready. Arguments: seconds (default 60).
trap '' TERM
echo ready
end=$((SECONDS + ${1:-60}))
while [ "$SECONDS" -lt "$end" ]; do sleep 1; done

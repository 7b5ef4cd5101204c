#!/bin/bash
# Starts N children (default 50), each in a session of its own where no process group reaches it. Says when all are up.
for ((i = 0; i < ${1:-50}; i++)); do
  setsid sleep 300 </dev/null >/dev/null 2>&1 &
done
echo ready
wait

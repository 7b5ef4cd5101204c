#!/bin/bash
# A daemon: forked twice, own session, its parent gone, standard output kept. Prints its pid and ends or, with "wait", stays.
exec 3>&1
# Read to the end, which comes when the daemon has turned to the old output: it is on its own by then.
pid=$( (setsid bash -c 'echo $$; exec sleep 300 >&3 3>&-' </dev/null 2>/dev/null &) )
exec 3>&-
echo "$pid"
[ "${1:-}" = wait ] && sleep 300
exit 0

#!/bin/bash
# A daemon: forked twice, own session, its parent gone. Prints its pid and ends or, with "wait", stays.
(setsid bash -c 'echo $$; exec sleep 300' </dev/null 2>/dev/null &)
sleep 0.2
[ "${1:-}" = wait ] && sleep 300
exit 0

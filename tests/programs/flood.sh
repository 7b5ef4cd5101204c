#!/bin/bash
# Writes N bytes (default 1 MiB) to standard output in lines of 64.
exec head -c "${1:-1048576}" < <(yes "$(printf '%063d' 0)")

#!/bin/bash
# Ends at once; a detached grandchild holds standard output open.
setsid sleep "${1:-300}" &
echo done
exit 0

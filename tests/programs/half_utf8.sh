#!/bin/bash
# The three bytes of a euro sign in two writes, then two bytes of another one and the end.
printf '\xe2\x82'
sleep "${1:-0.2}"
printf '\xac ok \xe2\x82'

#!/usr/bin/env bash
# From a pod to another, both with bandwidth limits that nothing reaches.
# shellcheck source=bench/pktgen/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameters 'Packets from a pod to another, both with bandwidth limits that nothing reaches.' \
    shaped 0 1 "$@"
need_pods
measure "$from"

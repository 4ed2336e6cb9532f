#!/usr/bin/env bash
# From one pod to another, in many flows.
# shellcheck source=bench/pktgen/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameters 'Packets from one pod to another of the node, each from the next source port.' \
    plain 0 10000 "$@"
need_pods
measure "$from"

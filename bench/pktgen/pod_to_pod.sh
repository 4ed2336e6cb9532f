#!/usr/bin/env bash
# From one pod to another of the node.
# shellcheck source=bench/pktgen/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameters 'Packets from one pod to another of the node.' \
    plain 0 1 "$@"
need_pods
measure "$from"

#!/usr/bin/env bash
# From a pod to a hostPort of another.
# shellcheck source=bench/pktgen/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameters 'Packets from a pod to a hostPort of another: -d is an address of the node, -p
the hostPort, -P the port of the pod.' \
    hostport 0 1 "$@"
need_pods
measure "$from"

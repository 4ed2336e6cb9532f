#!/usr/bin/env bash
# From many pods at once to one.
# shellcheck source=bench/pktgen/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameters 'Packets from many pods of the node at once to one: from that of -F, and from
those whose namespaces PKTGEN_OTHERS names (set up: 8 of them). -n is for each.' \
    plain 8 1 "$@"
need_pods
read -ra further <<<"${PKTGEN_OTHERS:-}"
measure "$from" "${further[@]}"

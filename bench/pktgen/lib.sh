# shellcheck shell=bash
# What the scripts of this folder share. Sourced, not run.
#
# Options are those of the kernel's samples/pktgen (parameters.sh there), as far
# as they mean something between pods. The generator is the kernel's pktgen where
# /proc/net/pktgen is there, and `sluice-bench pktgen` where not; the sink is
# always that of sluice-bench, so that both are summed up alike.

set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${CARGO_TARGET_DIR:-$folder/../../target}/release
bench=${SLUICE_BENCH:-$(command -v sluice-bench || echo "$build/sluice-bench")}

# Where the kernel's pktgen is. Another folder is for tests.
proc=${PKTGEN_PROC:-/proc/net/pktgen}

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

usage() {
    cat <<END
Usage: ${0##*/} [OPTION]...

$about

Without -F and -R a node is set up for it, which goes again.

  -F NETNS  the sending pod, by name or path of its network namespace
  -R NETNS  the receiving pod; needs -d
  -i DEV    interface of both pods (eth0)
  -s BYTES  packet size without FCS (60)
  -d ADDR   destination address
  -m MAC    MAC address of the next hop (the kernel's pktgen; asked for if not given)
  -p PORT   destination port (5201)
  -P PORT   port that arrives, where something between translates it (that of -p)
  -t N      threads (the kernel's pktgen; 1)
  -f CPU    the first thread's CPU (0)
  -c N      clones of each packet (the kernel's pktgen; 0: a veth takes no clones)
  -n COUNT  packets of each thread (1000000)
  -b N      packets in one call (the kernel's pktgen; 1: a veth takes no more)
  -w NS     nanoseconds between two packets (0)
  -k        fill in UDP checksums (the kernel's pktgen; sluice-bench always does)
  -6        IPv6
  -l FLOWS  flows, told apart by their source ports ($flows)
  -D NAME   set up: sluice, bridge, ptp, ovs or floor (sluice)
  -v        show what is done
  -h        this text

Needs: root, jq, nsenter, and sluice-bench beside sluice and sluiced in
target/release, on PATH, or named by SLUICE_BENCH.
END
}

# ABOUT CASE OTHERS FLOWS OPTION...: reads the options into variables. CASE and
# OTHERS are what `sluice-bench node` is to set up, FLOWS is the default of -l.
parameters() {
    about=$1 case=$2 others=$3 flows=$4
    shift 4
    from=${PKTGEN_FROM:-} into=${PKTGEN_INTO:-} dev=eth0 size=60
    address=${PKTGEN_ADDRESS:-} mac='' port=${PKTGEN_PORT:-5201}
    sink_port=${PKTGEN_SINK_PORT:-} threads=1 first_cpu=0 clones=0
    count=1000000 burst=1 delay=0 checksum='' v6=''
    design=sluice verbose='' given=("$@")
    local option
    while getopts 'F:R:i:s:d:m:p:P:t:f:c:n:b:w:k6l:D:vh' option; do
        case $option in
            F) from=$OPTARG ;;
            R) into=$OPTARG ;;
            i) dev=$OPTARG ;;
            s) size=$(number "-s" "$OPTARG" 60 65549) ;;
            d) address=$OPTARG ;;
            m) mac=$OPTARG ;;
            p) port=$(number "-p" "$OPTARG" 1 65535) ;;
            P) sink_port=$(number "-P" "$OPTARG" 1 65535) ;;
            t) threads=$(number "-t" "$OPTARG" 1 1024) ;;
            f) first_cpu=$(number "-f" "$OPTARG" 0 1023) ;;
            c) clones=$(number "-c" "$OPTARG" 0 1000000) ;;
            n) count=$(number "-n" "$OPTARG" 1 1000000000000) ;;
            b) burst=$(number "-b" "$OPTARG" 1 1024) ;;
            w) delay=$(number "-w" "$OPTARG" 0 1000000000) ;;
            k) checksum=yes ;;
            6) v6=yes ;;
            l) flows=$(number "-l" "$OPTARG" 1 50000) ;;
            D) design=$OPTARG ;;
            v) verbose=yes ;;
            h)
                usage
                exit
                ;;
            *)
                usage >&2
                exit 2
                ;;
        esac
    done
    shift $((OPTIND - 1))
    [[ $# -eq 0 ]] || fail "$1 is no option: see -h"
    sink_port=${sink_port:-$port}
    [[ $EUID -eq 0 ]] || fail "run it as root: it enters network namespaces"
    [[ -x $bench ]] || fail "sluice-bench is missing: cargo build --release -p sluice-bench"
    command -v jq >/dev/null || fail "jq is missing: apt-get install jq"
}

# OPTION TEXT LEAST MOST
number() {
    if ! [[ $2 =~ ^[0-9]{1,13}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        fail "$1 $2: a number from $3 to $4"
    fi
    echo $((10#$2))
}

# Has a node set up for this very script, unless the pods are given.
need_pods() {
    if [[ -n $from && -n $into ]]; then
        [[ -n $address ]] || fail "-F and -R need -d, the destination address"
        return
    fi
    [[ -z $from$into ]] || fail "-F and -R go together"
    [[ -z $v6 ]] || fail "the node that is set up has no IPv6: give -F, -R and -d"
    exec "$bench" node --design "$design" --case "$case" --pods "$others" -- "$0" "${given[@]}"
}

netns_file() {
    case $1 in
        */*) echo "$1" ;;
        *) echo "/run/netns/$1" ;;
    esac
}

# NETNS COMMAND...: not by `ip netns exec`, which needs iproute2.
inside() {
    local netns
    netns=$(netns_file "$1")
    shift
    nsenter --net="$netns" "$@"
}

has_kernel_pktgen() {
    [[ -n ${PKTGEN_PROC:-} ]] || modprobe -q pktgen 2>/dev/null || true
    inside "$1" test -e "$proc/pgctrl"
}

# ---- the kernel's pktgen

# FILE COMMAND: as pg_ctrl, pg_thread and pg_set of samples/pktgen. Appended,
# which /proc does not care about.
pg() {
    [[ -z $verbose ]] || echo "$1: $2" >&2
    # shellcheck disable=SC2016 # expanded by the inner shell
    inside "$sender" sh -c 'echo "$1" >>"$2"' sh "$2" "$proc/$1" ||
        fail "pktgen refuses \"$2\" in $proc/$1: see dmesg"
}

# The MAC address of the next hop, as the sender's namespace knows it.
next_hop_mac() {
    local hop
    inside "$sender" ping -c 1 -W 2 "$address" >/dev/null 2>&1 || true
    hop=$(inside "$sender" ip -j route get "$address" | jq -r '.[0].gateway // .[0].dst')
    inside "$sender" ip -j neighbour show to "$hop" dev "$dev" | jq -r '.[0].lladdr // empty'
}

# One sender by the kernel's pktgen: prints "PACKETS MICROSECONDS".
kernel_send() {
    local sender=$1 thread device to=$mac
    [[ -n $to ]] || to=$(next_hop_mac)
    [[ -n $to ]] || fail "the next hop to $address does not tell its MAC address: give -m"
    pg pgctrl reset
    for ((thread = first_cpu; thread < first_cpu + threads; thread++)); do
        device=$dev@$thread
        pg "kpktgend_$thread" rem_device_all
        pg "kpktgend_$thread" "add_device $device"
        pg "$device" "flag QUEUE_MAP_CPU"
        pg "$device" "count $count"
        pg "$device" "clone_skb $clones"
        pg "$device" "pkt_size $size"
        pg "$device" "delay $delay"
        pg "$device" "flag NO_TIMESTAMP"
        pg "$device" "dst_mac $to"
        pg "$device" "dst${v6:+6} $address"
        pg "$device" "udp_dst_min $port"
        pg "$device" "udp_dst_max $port"
        pg "$device" "udp_src_min 10000"
        pg "$device" "udp_src_max $((10000 + flows))"
        ((burst == 1)) || pg "$device" "burst $burst"
        [[ -z $checksum ]] || pg "$device" "flag UDPCSUM"
    done
    pg pgctrl start
    for ((thread = first_cpu; thread < first_cpu + threads; thread++)); do
        inside "$sender" cat "$proc/$dev@$thread"
    done | awk '
        # Result: OK: 13101142(c12220741+d880401) usec, 10000000 (60byte,0frags)
        /^Result: OK:/ {
            sub(/^Result: OK: /, "")
            micros = $1 + 0
            if (micros > longest) longest = micros
            sub(/^[^,]*, /, "")
            packets += $1
        }
        END { printf "%d %d\n", packets, longest }'
}

# ---- sluice-bench in its place

# One sender by sluice-bench: prints "PACKETS MICROSECONDS".
bench_send() {
    local to=$address rate=max
    [[ -z $v6 ]] || to="[$address]"
    ((delay == 0)) || rate=$(awk -v delay="$delay" 'BEGIN { printf "%.3f", 1e9 / delay }')
    local words=(--to "$to:$port" --size $((size + 4)) --flows "$flows" --rate "$rate"
        --count $((count * threads)) --seconds 3600 --cpu "$first_cpu" --json)
    [[ -z $verbose ]] || echo "$bench pktgen send --netns $1 ${words[*]}" >&2
    "$bench" pktgen send --netns "$1" "${words[@]}" |
        jq -r '"\(.packets) \(.seconds * 1e6 | floor)"'
}

# ---- both

# Starts the sink, and waits until it is there.
start_sink() {
    "$bench" pktgen receive --netns "$into" --interface "$dev" --port "$sink_port" --by xdp \
        --seconds 3600 --idle 3600 --json >"$work/sink" 2>"$work/sink.log" &
    sink=$!
    local deadline=$((SECONDS + 20))
    until grep -q '^ready' "$work/sink.log"; do
        kill -0 "$sink" 2>/dev/null || fail "the sink ended: $(cat "$work/sink.log")"
        ((SECONDS < deadline)) || fail "the sink does not start"
        sleep 0.02
    done
}

stop_sink() {
    # For what is still on its way.
    sleep 0.5
    kill -INT "$sink"
    wait "$sink" || fail "the sink failed: $(cat "$work/sink.log")"
    sink=''
}

clean_up() {
    [[ -z ${sink:-} ]] || kill "$sink" 2>/dev/null || true
    rm -rf "$work"
}

# SENDER...: lets all send at once, and prints the summary.
measure() {
    local by=bench_send generator pids=() pid number=0 netns
    generator="sluice-bench pktgen: $proc is not there"
    if has_kernel_pktgen "$1"; then
        by=kernel_send
        generator="the kernel's pktgen: $proc"
    fi
    work=$(mktemp -d)
    trap clean_up EXIT
    start_sink
    for netns in "$@"; do
        "$by" "$netns" >"$work/sent.$number" &
        pids+=($!)
        number=$((number + 1))
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || fail "a generator failed: see above"
    done
    stop_sink
    echo "generator  $generator"
    echo "packets    $size bytes and FCS, $flows flows, to $address port $port, $# senders"
    cat "$work"/sent.* | awk -v received="$(jq .packets "$work/sink")" '
        { sent += $1; if ($2 > micros) micros = $2 }
        END {
            if (micros == 0) micros = 1
            lost = sent - received
            printf "sent       %d packets in %.2f s: %d pps\n", sent, micros / 1e6, sent * 1e6 / micros
            printf "received   %d packets: %d pps\n", received, received * 1e6 / micros
            printf "lost       %d (%.4f %%)\n", lost, sent ? lost * 100 / sent : 0
        }'
}

# shellcheck shell=bash
# A node for a container runtime, in namespaces of its own. Sourced, not run.
#
# The script that calls enter_node goes on as the first process of a PID
# namespace, in a network namespace that plays the node's and a mount namespace
# with an empty /run. When it ends, however it ends, the kernel kills what it
# started and takes back namespaces, mounts and files.

# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# The node's files, on a tmpfs that nobody else sees.
run=/run/sluice-e2e
# The plugin and the reference plugins, in one folder as on a node.
plugins=$run/plugins
conflist=$run/net.d/10-sluice.conflist
rootfs=$run/rootfs
image=localhost/sluice-e2e:1
# Where runtimes put containers, below the root of each cgroup hierarchy.
cgroup=sluice-e2e-${SLUICE_E2E_NODE:-$$}
# Where runtimes keep their state, whatever their configuration says.
runtimes_own=(/var/lib/cni /var/lib/containers)

# Documentation addresses (RFC 5737, RFC 3849): nobody's.
node4=192.0.2.2 outside4=192.0.2.1
node6=2001:db8::2 outside6=2001:db8::1
# Who is not a pod, as reach wants it.
others=(node "$node4" node "$node6" outside "$outside4" outside "$outside6")

daemon=''

# ---- enter and leave ------------------------------------------------------

# Starts the script once more, in its namespaces, and ends with its status.
enter_node() {
    if [[ -n ${SLUICE_E2E_NODE:-} ]]; then
        trap leave_node EXIT
        trap 'exit 143' TERM PIPE
        return
    fi
    need_root "it makes namespaces"
    "$root/deploy/setup" --tests
    mkdir -p "${runtimes_own[@]}" # to mount something there
    local node status=0
    # A process group of its own, since unshare itself blocks the signals that
    # should end it: this process passes them on.
    set -m
    SLUICE_E2E_NODE=$$ unshare --net --mount --propagation private --pid --fork \
        --kill-child --mount-proc -- "$0" </dev/null &
    node=$!
    trap 'kill -TERM -- "-$node" 2>/dev/null || true' INT TERM HUP
    wait "$node" || status=$?
    # A signal interrupts the first wait.
    while kill -0 "$node" 2>/dev/null; do
        status=0
        wait "$node" || status=$?
    done
    wait_for remove_cgroups || fail "these cgroups are left: /sys/fs/cgroup/*/$cgroup"
    exit "$status"
}

# Cgroups are in no namespace of ours, so the kernel does not take them back. A
# runc that is killed while it kills a container leaves that frozen (cgroup v1),
# and what is frozen does not die.
remove_cgroups() {
    local state
    find /sys/fs/cgroup -path "*/$cgroup/*/freezer.state" | while read -r state; do
        echo THAWED >"$state"
    done
    find /sys/fs/cgroup -depth -type d -regex ".*/$cgroup\(/.*\)?" -exec rmdir {} +
}

leave_node() {
    local status=$?
    trap '' TERM PIPE
    set +e
    # Above 128 are signals: nothing went wrong.
    if ((status > 0 && status < 128)); then
        printf '\nThe last lines of each log:\n' >&2
        find "$run" -maxdepth 1 -name '*.log' -size +0 -exec tail -v -n 15 {} + >&2 2>/dev/null
    fi
    disown -a
    # All but this process: it is the first of its PID namespace.
    [[ $$ -ne 1 ]] || kill -KILL -1 2>/dev/null
    wait_for remove_cgroups
    exit "$status"
}

# ---- the node -------------------------------------------------------------

make_node() {
    local folder
    for folder in /run "${runtimes_own[@]}"; do
        mount -t tmpfs -o mode=755 tmpfs "$folder"
    done
    mkdir -p /run/netns "$plugins" "${conflist%/*}"
    cp /usr/lib/cni/* "$release/sluice" "$plugins"
    # capabilities, so that runtimes pass on what pods ask for.
    own_conflist "$run/sluice" 32 |
        jq '.plugins[0].capabilities = {bandwidth: true, portMappings: true}' >"$conflist"
    make_network
    make_rootfs
    start serve-node "$root/deploy/e2e/serve" node "$run/node"
    start serve-outside ip netns exec outside "$root/deploy/e2e/serve" outside "$run/outside"
}

make_network() {
    ip netns add outside
    ip link set lo up
    ip -n outside link set lo up
    ip link add uplink mtu 1500 type veth peer name eth0 netns outside
    ip address add "$node4/24" dev uplink
    ip address add "$node6/64" dev uplink nodad
    ip -n outside address add "$outside4/24" dev eth0
    ip -n outside address add "$outside6/64" dev eth0 nodad
    ip link set uplink up
    ip -n outside link set eth0 up
    ip route add default via "$outside4"
    ip route add default via "$outside6"
}

# LOG COMMAND...: starts a command in the background; its process is $!.
start() {
    "${@:2}" </dev/null >>"$run/$1.log" 2>&1 &
}

start_daemon() {
    start sluiced "$release/sluiced" run --conflist "$conflist"
    daemon=$!
    wait_for show kernel || fail "sluiced did not get ready"
}

kill_daemon() {
    kill -KILL "$daemon"
    wait "$daemon" 2>/dev/null || true
}

# Stops the daemon for good and removes what it left for the next one.
reset_daemon() {
    kill -TERM "$daemon"
    wait "$daemon" || fail "sluiced exited with $?"
    ! grep -E ' ERROR |panicked' "$run/sluiced.log" >&2 || fail "sluiced logged an error"
    "$release/sluiced" reset --conflist "$conflist" >/dev/null ||
        fail "sluiced reset exited with $?"
    ! ip link show sluice0 >/dev/null 2>&1 || fail "sluice0 is left on the node"
    ok "sluiced stopped; sluiced reset removed its host port"
}

show() {
    "$release/sluiced" show "$1" --run-dir "$run/sluice" "${@:2}"
}

# ---- containers -----------------------------------------------------------

# All that a container has: busybox, and a program that serves its name.
make_rootfs() {
    mkdir -p "$rootfs"/{bin,dev,etc,proc,sys,tmp}
    cp "$(command -v busybox)" "$rootfs/bin"
    # Its libraries, unless it is static.
    ldd "$rootfs/bin/busybox" 2>/dev/null | grep -o '/[^ ]*' |
        xargs --no-run-if-empty cp --parents --dereference --target-directory="$rootfs" || true
    ln -s busybox "$rootfs/bin/sh"
    cp "$root/deploy/e2e/serve" "$rootfs/bin"
}

# FILE: an image of it, in the format of `docker save`: containerd and podman
# load it, so there is no need for a registry.
make_image() {
    local parts=$run/image id
    mkdir "$parts"
    tar -C "$rootfs" -cf "$parts/layer.tar" .
    id=$(sha256sum <"$parts/layer.tar")
    jq -n --arg id "sha256:${id%% *}" '{
        architecture: "amd64", os: "linux",
        config: {Cmd: ["/bin/busybox", "sleep", "1000000"], Env: ["PATH=/bin"]},
        rootfs: {type: "layers", diff_ids: [$id]}
    }' >"$parts/config.json"
    jq -n --arg image "$image" \
        '[{Config: "config.json", RepoTags: [$image], Layers: ["layer.tar"]}]' >"$parts/manifest.json"
    tar -C "$parts" -cf "$1" manifest.json config.json layer.tar
}

# All reach all. Reads a line a container: ID NAME IPV4 IPV6. Everybody answers
# with its name, so that who answers in another's stead is found out.
all_reach_all() {
    local id name v4 v6 ids=() everyone=() reaching=()
    while read -r id name v4 v6; do
        ids+=("$id")
        everyone+=("$name" "$v4" "$name" "$v6")
        ping -q -c 1 -W 5 "$v4" >/dev/null || fail "the node cannot ping $v4"
        ping -q -c 1 -W 5 "$v6" >/dev/null || fail "the node cannot ping $v6"
    done
    ok "from the node, ping to all ${#ids[@]} pods by IPv4 and IPv6"
    # Whoever adds a pod waits for its readiness probe.
    wait_for reach "${everyone[@]}" || reach "${everyone[@]}" || fail "an HTTP probe fails"
    ok "from the node, HTTP to all pods, as kubelet's probes"
    for id in "${ids[@]}"; do
        reach_from "$id" "${everyone[@]}" "${others[@]}" &
        reaching+=($!)
    done
    for id in "${reaching[@]}"; do
        wait "$id" || fail "a pod does not reach all others, the node and beyond"
    done
    ok "from every pod, HTTP to all pods, the node and beyond"
}

# NAME ADDRESS...
reach() {
    "$root/deploy/e2e/reach" "$@" >&2
}

# ID NAME ADDRESS...: from the container's network namespace. Not by exec in the
# container: where the runtime runs in a chroot, that finds the files of the
# machine.
reach_from() {
    nsenter --net="$(namespace_of "$1")" "$root/deploy/e2e/reach" "${@:2}" >&2
}

# ID: libcni keeps the plugin's result, which names the network namespace.
namespace_of() {
    jq -r '.result.interfaces[].sandbox // "" | select(. != "")' \
        "/var/lib/cni/results/sluice-$1-eth0"
}

# HOSTPORT NAME: by it the outside reaches the container of that name.
outside_reaches() {
    PORT=$1 ip netns exec outside "$root/deploy/e2e/reach" "$2" "$node4" "$2" "$node6" >&2 ||
        fail "the outside does not reach $2 by its hostPort"
    ok "from outside, HTTP to port $1 of the node leads to $2, by IPv4 and IPv6"
}

# ---- before and after -----------------------------------------------------

# The kernel finds out that a link is up, and that nobody else has its link-local
# address, a little later.
settled() {
    ip -j address | jq -e 'map(select(.flags | index("UP"))) |
        all(.[]; (.operstate | IN("UP", "UNKNOWN")) and all(.addr_info[]; .tentative | not))'
}

# FOLDER: what there is on the node, a file each.
snapshot() {
    local family
    wait_for settled || fail "a link does not come up: $(ip address)"
    mkdir "$1"
    # Each daemon loads the XDP program anew, so its ID changes with a restart.
    ip -j link | jq 'walk(if type == "object" then del(.prog.id?) else . end)' >"$1/links"
    for family in 4 6; do
        ip -j "-$family" route show table all | jq . >"$1/routes-$family"
        ip -j "-$family" rule | jq . >"$1/rules-$family"
        # What the kernel learns of the uplink's neighbours comes, ages and goes.
        ip -j "-$family" neigh | jq 'map(select(.dev != "uplink"))' >"$1/neighbours-$family"
    done
    nft list ruleset >"$1/nftables"
    ls /run/netns >"$1/namespaces"
    # Pins, journal entries and leases are a file each, so their names say all.
    # What host-local's last_reserved_ip.N holds is no lease: where to go on.
    find "$run/sluice" -printf '%P %y %m\n' | sort >"$1/files"
}

# FOLDER: what there is on the node now is what was there then.
same_as() {
    rm -rf "$run/now"
    snapshot "$run/now"
    diff -r -U 2 "$1" "$run/now" >&2 || fail "not all is as it was before (+ is now)"
    ok "all removed at once: links, routes, rules, neighbours, nftables, pins, journal, IPAM are as before"
}

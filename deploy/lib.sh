# shellcheck shell=bash
# What the scripts of this folder share. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where `cargo build --release` puts sluice and sluiced.
# shellcheck disable=SC2034 # for the scripts that source this
release=${CARGO_TARGET_DIR:-$root/target}/release

# nft, ethtool and tcpdump are there, and `su` leaves these out; rustup's
# directory is on the PATH of login shells only.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${HOME:-/root}/.cargo/bin

bold='' green='' red='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

heading() {
    printf '\n%s== %s%s\n' "$bold" "$*" "$plain"
}

# A line about something that worked.
ok() {
    printf '   %sok%s   %s\n' "$green" "$plain" "$*"
}

fail() {
    printf '%s: %s%s%s\n' "${0##*/}" "$red" "$*" "$plain" >&2
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || fail "run it as root: $1"
}

# ARGUMENT...: for a script whose only option is --help.
no_options() {
    case ${1:-} in
        '') ;;
        --help | -h)
            usage
            exit
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
}

# Waits for a condition, at most 30 s.
wait_for() {
    local deadline=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# RUN PORTS: the shipped conflist for a daemon in the folder RUN, with room for
# PORTS pods.
own_conflist() {
    jq --arg run "$1" --argjson ports "$2" '.plugins[0] |=
        (.dataplane.runDir = $run | .dataplane.maxPorts = $ports | .ipam.dataDir = $run + "/ipam")' \
        "$root/deploy/10-sluice.conflist"
}

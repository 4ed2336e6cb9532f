// SPDX-License-Identifier: Apache-2.0
//
// The tables of mapped ports (hostPorts), which several programs look into.
// Pinned, so that all have the same ones, and what was mapped outlives the
// daemon.

#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Network byte order throughout. IPv4 is kept as ::ffff:a.b.c.d (RFC 4291
// section 2.5.5.2), so that one table serves both families.
struct address {
	__be32 word[4];
};

// A port of the node. Where it leads is of the same family.
struct mapping_key {
	// The node's address, or the unspecified one of its family for all.
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct endpoint {
	struct address address;
	__be16 port;
	__u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct mapping_key);
	__type(value, struct endpoint);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mappings SEC(".maps");

// The node's addresses, without loopback ones: a mapping counts on no other
// (CVE-2025-67499).
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} node_addresses SEC(".maps");

static __always_inline struct address from_v4(__be32 v4)
{
	return (struct address){ { 0, 0, bpf_htonl(0xffff), v4 } };
}

static __always_inline bool is_v4(const struct address *address)
{
	return !address->word[0] && !address->word[1] &&
	       address->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_nodes(const struct address *address)
{
	return bpf_map_lookup_elem(&node_addresses, address);
}

// Where a port of every address of a family leads.
static __always_inline struct endpoint *find_any(bool ipv4, __be16 port, __u8 protocol)
{
	struct mapping_key key = { .port = port, .protocol = protocol };

	if (ipv4)
		key.address = from_v4(0);
	return bpf_map_lookup_elem(&mappings, &key);
}

// Where a port of the node leads; whether the address is the node's, the caller
// has seen.
static __always_inline struct endpoint *find_backend(const struct endpoint *to, __u8 protocol)
{
	struct mapping_key key = { .address = to->address, .port = to->port, .protocol = protocol };
	struct endpoint *backend = bpf_map_lookup_elem(&mappings, &key);

	return backend ? backend : find_any(is_v4(&to->address), to->port, protocol);
}

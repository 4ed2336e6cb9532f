// SPDX-License-Identifier: Apache-2.0
//
// The XDP program of every port: hands each frame that a pod (or the host
// port) sends to the port's AF_XDP socket. What is not here on purpose: any
// look at the frame. Policy belongs in userspace; see README.md.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// The sizes of `ports`, `sockets` and `doorbell` are set when the daemon loads
// this object: they follow from `maxPorts`.

// Interface index -> slot. One program serves all ports, because the first
// attachment of a program costs 15 ms and each further one 0.02 ms.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} ports SEC(".maps");

// Slot -> the port's AF_XDP socket.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} sockets SEC(".maps");

// Bit `slot % 64` of word `slot / 64`: the port has had traffic since the
// worker last cleared the bit. The worker maps this array into its memory.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} doorbell SEC(".maps");

// What becomes of a frame whose port has no socket: an XDP action. A map and
// not a constant, so that the daemon can change it while the program runs.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} no_socket_action SEC(".maps");

static __always_inline void ring_doorbell(__u32 slot)
{
	__u32 index = slot / 64;
	__u64 bit = 1ULL << (slot % 64);
	__u64 *word = bpf_map_lookup_elem(&doorbell, &index);

	// Under load the bit is set already: reading it leaves the cache line
	// shared, an atomic OR would take it from the worker for every frame.
	if (word && !(*(volatile __u64 *)word & bit))
		__sync_fetch_and_or(word, bit);
}

static __always_inline int to_socket(struct xdp_md *ctx)
{
	__u32 only = 0;
	__u32 *action = bpf_map_lookup_elem(&no_socket_action, &only);

	if (!action) // cannot be, but the verifier wants it said
		return XDP_DROP;

	__u32 ifindex = ctx->ingress_ifindex;
	__u32 *slot = bpf_map_lookup_elem(&ports, &ifindex);

	if (!slot)
		return *action;

	ring_doorbell(*slot);
	// Without a socket at this slot the helper returns its flags argument.
	return bpf_redirect_map(&sockets, *slot, *action);
}

// Takes frames in several buffers, and so lets a port have an MTU of up to
// 65535 bytes. AF_XDP sockets take such frames from Linux 6.6 on.
SEC("xdp.frags")
int port_frags(struct xdp_md *ctx)
{
	return to_socket(ctx);
}

// The same for kernels without that.
SEC("xdp")
int port_single(struct xdp_md *ctx)
{
	return to_socket(ctx);
}

char _license[] SEC("license") = "Apache-2.0";

// SPDX-License-Identifier: Apache-2.0
//
// The end of a measurement, on a pod's own interface: takes what is for one
// UDP or TCP port, and lets all else pass, so that the pod still answers ARP
// and neighbour discovery. For `sluice-bench`, never for a node.

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Set when the object is loaded. In host byte order.
const volatile __u16 sink_port = 0;

struct counter {
	__u64 frames;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, 1);
} counters SEC(".maps");

// RX queue -> AF_XDP socket.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 64);
} receivers SEC(".maps");

// UDP and TCP have their ports in the same place.
struct ports {
	__be16 source;
	__be16 destination;
};

static __always_inline bool is_taken(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct ports *ports;
	__u8 protocol;

	if ((void *)(ethernet + 1) > end)
		return false;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		// The generator sends no options and no fragments.
		if ((void *)(ip + 1) > end || ip->ihl != 5)
			return false;
		protocol = ip->protocol;
		ports = (void *)(ip + 1);
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return false;
		protocol = ip->nexthdr;
		ports = (void *)(ip + 1);
	} else {
		return false;
	}
	if (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)
		return false;
	if ((void *)(ports + 1) > end)
		return false;
	return ports->destination == bpf_htons(sink_port);
}

// `xdp.frags`, so that frames may come in several buffers, and the peer of a
// veth may have an MTU of up to 65535 bytes.
SEC("xdp.frags")
int sink_count(struct xdp_md *ctx)
{
	__u32 only = 0;
	struct counter *counter;

	if (!is_taken(ctx))
		return XDP_PASS;
	counter = bpf_map_lookup_elem(&counters, &only);
	if (counter) { // cannot be NULL, but the verifier wants it said
		counter->frames++;
		counter->bytes += bpf_xdp_get_buff_len(ctx);
	}
	return XDP_DROP;
}

SEC("xdp.frags")
int sink_receive(struct xdp_md *ctx)
{
	if (!is_taken(ctx))
		return XDP_PASS;
	return bpf_redirect_map(&receivers, ctx->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "Apache-2.0";

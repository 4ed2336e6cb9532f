// SPDX-License-Identifier: Apache-2.0
//
// The XDP program of the uplink: hands the dataplane what comes for a mapped
// port (hostPort) of this node, and passes everything else untouched, so that
// ssh and the API server never depend on us. Passing is always right: the
// kernel's rules (nftables) mean the same, only slower.

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include "mappings.h"

// RX queue -> the AF_XDP socket that serves it. Its size is set when the daemon
// loads this object; empty, everything passes.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} queues SEC(".maps");

// Written when the daemon loads this object: the longest frame that the link carries.
// A longer one is merged segments, as a stack leaves them for a device to cut. How
// datagrams are cut nobody beyond the kernel knows; TCP's may be of any length.
const volatile __u32 longest_frame = 0;

#define IPPROTO_ICMP6 58
#define IP_FRAGMENT 0x3fff // more fragments, or an offset
#define ICMP_HEADER_LEN 8

// TCP, UDP and SCTP begin alike.
struct ports {
	__be16 source;
	__be16 destination;
};

// A packet's, as far as this program must know them.
struct headers {
	struct endpoint source;
	struct endpoint destination;
	__u8 protocol;
	void *payload; // of IP
};

// Source and destination of an IP packet that is whole, has no options or
// extensions, and is followed by `end`.
static __always_inline bool parse_ip(void *packet, void *end, bool ipv4, struct headers *found)
{
	if (ipv4) {
		struct iphdr *ip = packet;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 ||
		    ip->frag_off & bpf_htons(IP_FRAGMENT))
			return false;
		found->source.address = from_v4(ip->saddr);
		found->destination.address = from_v4(ip->daddr);
		found->protocol = ip->protocol;
		found->payload = ip + 1;
	} else {
		struct ipv6hdr *ip = packet;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		__builtin_memcpy(&found->source.address, &ip->saddr, 16);
		__builtin_memcpy(&found->destination.address, &ip->daddr, 16);
		// It would pass for the IPv4 address that it looks like.
		if (is_v4(&found->source.address) || is_v4(&found->destination.address))
			return false;
		found->protocol = ip->nexthdr;
		found->payload = ip + 1;
	}
	return true;
}

static __always_inline bool parse_ports(void *end, struct headers *found)
{
	struct ports *ports = found->payload;

	if (found->protocol != IPPROTO_TCP && found->protocol != IPPROTO_UDP &&
	    found->protocol != IPPROTO_SCTP)
		return false;
	if ((void *)(ports + 1) > end)
		return false;
	found->source.port = ports->source;
	found->destination.port = ports->destination;
	return true;
}

// Whether a socket of the host is in this conversation: one that it opened from
// what happens to be a mapped port. A TCP listener is not: a mapping wins, as it
// does in the kernel's rules. A UDP socket may wait for an answer or serve: let
// the kernel's connection tracking tell.
static __always_inline bool is_hosts(struct xdp_md *ctx, const struct headers *packet)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	__u32 len = sizeof(tuple.ipv6);
	bool is_hosts;

	if (is_v4(&packet->destination.address)) {
		tuple.ipv4.saddr = packet->source.address.word[3];
		tuple.ipv4.daddr = packet->destination.address.word[3];
		tuple.ipv4.sport = packet->source.port;
		tuple.ipv4.dport = packet->destination.port;
		len = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &packet->source.address, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &packet->destination.address, 16);
		tuple.ipv6.sport = packet->source.port;
		tuple.ipv6.dport = packet->destination.port;
	}
	switch (packet->protocol) {
	case IPPROTO_TCP:
		socket = bpf_skc_lookup_tcp(ctx, &tuple, len, BPF_F_CURRENT_NETNS, 0);
		break;
	case IPPROTO_UDP:
		socket = bpf_sk_lookup_udp(ctx, &tuple, len, BPF_F_CURRENT_NETNS, 0);
		break;
	default:
		return false;
	}
	if (!socket)
		return false;
	is_hosts = packet->protocol == IPPROTO_UDP || socket->state != BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return is_hosts;
}

static __always_inline bool is_error(void *end, const struct headers *packet)
{
	__u8 *type = packet->payload;

	if ((void *)(type + ICMP_HEADER_LEN) > end)
		return false;
	if (packet->protocol == IPPROTO_ICMP) // unreachable, time exceeded, parameter problem
		return *type == 3 || *type == 11 || *type == 12;
	return *type < 128; // RFC 4443 section 2.1
}

static __always_inline int filter(struct xdp_md *ctx, __u64 frame_len)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct headers packet = {};
	bool ipv4;

	if ((void *)(ethernet + 1) > end)
		return XDP_PASS;
	ipv4 = ethernet->h_proto == bpf_htons(ETH_P_IP);
	if (!ipv4 && ethernet->h_proto != bpf_htons(ETH_P_IPV6))
		return XDP_PASS;
	if (!parse_ip(ethernet + 1, end, ipv4, &packet) || !is_nodes(&packet.destination.address))
		return XDP_PASS;
	if (packet.protocol == (ipv4 ? IPPROTO_ICMP : IPPROTO_ICMP6)) {
		struct headers quoted = {};

		// An error about what a mapped port answered: the pod must know,
		// or path MTU discovery breaks.
		if (!is_error(end, &packet) ||
		    !parse_ip(packet.payload + ICMP_HEADER_LEN, end, ipv4, &quoted) ||
		    !parse_ports(end, &quoted) || !is_nodes(&quoted.source.address) ||
		    !find_backend(&quoted.source, quoted.protocol))
			return XDP_PASS;
	} else if (!parse_ports(end, &packet) ||
		   !find_backend(&packet.destination, packet.protocol) ||
		   (packet.protocol != IPPROTO_TCP && frame_len > longest_frame) ||
		   is_hosts(ctx, &packet)) {
		return XDP_PASS;
	}
	return bpf_redirect_map(&queues, ctx->rx_queue_index, XDP_PASS);
}

// Takes frames in several buffers, as a port with a large MTU has them.
SEC("xdp.frags")
int uplink_frags(struct xdp_md *ctx)
{
	return filter(ctx, bpf_xdp_get_buff_len(ctx));
}

SEC("xdp")
int uplink_single(struct xdp_md *ctx)
{
	return filter(ctx, ctx->data_end - ctx->data);
}

char _license[] SEC("license") = "Apache-2.0";

// SPDX-License-Identifier: Apache-2.0
//
// Says how merged TCP segments are cut, on the interface that sends them to the
// dataplane: XDP and AF_XDP hand the packet over whole, and have no place for
// the size of its segments (gso_size). The source MAC address is one: from here
// nobody but the dataplane gets the frame, and it knows who sends on this veth.

#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// `MARK` in lib.rs. Locally administered; spells "SLG".
struct source {
	__u8 mark[4];
	__be16 gso_size;
} __attribute__((packed));

SEC("classifier")
int mark_merged(struct __sk_buff *skb)
{
	struct source source = { .mark = { 2, 'S', 'L', 'G' } };

	if (!skb->gso_size)
		return TC_ACT_UNSPEC;
	source.gso_size = bpf_htons(skb->gso_size);
	// What cannot be marked is too long for every pod, and dropped there.
	bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &source, sizeof(source), 0);
	return TC_ACT_UNSPEC; // on to the next program
}

char _license[] SEC("license") = "Apache-2.0";

// SPDX-License-Identifier: Apache-2.0
//
// hostPorts for processes of the host: what they send to a mapped port of the
// node goes to the pod, by a change of the address that they name in connect()
// or sendmsg(). 127.0.0.1 and ::1 work so, for which packets would be too late:
// they would need route_localnet (CVE-2020-8558), and there is none for ::1.
//
// Attached to the root of cgroup v2, so they see every socket of the machine:
// those of other network namespaces are left alone.

#include "mappings.h"

// Written when the daemon loads this object: SO_NETNS_COOKIE of the host's.
const volatile __u64 host_netns_cookie = 0;

// What a socket talks to in truth.
struct peer_key {
	__u64 socket;
	struct endpoint backend;
	__u32 zero;
};

// Whom a socket asked for: the source of answers and getpeername() say so.
// Pinned, since sockets outlive the daemon. The least recently used go: a
// socket's end is not seen from here.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct peer_key);
	__type(value, struct endpoint);
	__uint(max_entries, 16384);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} peers SEC(".maps");

static __always_inline bool is_loopback(const struct address *address)
{
	if (is_v4(address))
		return (address->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !address->word[0] && !address->word[1] && !address->word[2] &&
	       address->word[3] == bpf_htonl(1);
}

// Turns `to` into the pod's endpoint, and remembers what it was. A socket of
// IPv6 may connect to a pod that has only IPv4, but not send there unconnected:
// the kernel refuses a destination that becomes IPv4 in sendmsg().
static __always_inline bool translate(struct bpf_sock_addr *ctx, struct endpoint *to,
				      bool may_become_v4)
{
	struct peer_key key = { .socket = bpf_get_socket_cookie(ctx) };
	struct endpoint *backend;

	if (!is_loopback(&to->address) && !is_nodes(&to->address))
		return false;
	backend = find_backend(to, ctx->protocol);
	if (!backend && may_become_v4)
		backend = find_any(true, to->port, ctx->protocol);
	if (!backend)
		return false;
	key.backend = *backend;
	bpf_map_update_elem(&peers, &key, to, BPF_ANY);
	*to = key.backend;
	return true;
}

// Turns `from`, a pod's endpoint, into what the socket asked for.
static __always_inline bool restore(struct bpf_sock_addr *ctx, struct endpoint *from)
{
	struct peer_key key = { .socket = bpf_get_socket_cookie(ctx), .backend = *from };
	struct endpoint *asked = bpf_map_lookup_elem(&peers, &key);

	if (!asked)
		return false;
	*from = *asked;
	return true;
}

static __always_inline bool is_hosts(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == host_netns_cookie;
}

static __always_inline struct endpoint get4(struct bpf_sock_addr *ctx)
{
	return (struct endpoint){ .address = from_v4(ctx->user_ip4), .port = ctx->user_port };
}

static __always_inline void set4(struct bpf_sock_addr *ctx, const struct endpoint *to)
{
	ctx->user_ip4 = to->address.word[3];
	ctx->user_port = to->port;
}

static __always_inline struct endpoint get6(struct bpf_sock_addr *ctx)
{
	return (struct endpoint){
		.address = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
			       ctx->user_ip6[3] } },
		.port = ctx->user_port,
	};
}

static __always_inline void set6(struct bpf_sock_addr *ctx, const struct endpoint *to)
{
	ctx->user_ip6[0] = to->address.word[0];
	ctx->user_ip6[1] = to->address.word[1];
	ctx->user_ip6[2] = to->address.word[2];
	ctx->user_ip6[3] = to->address.word[3];
	ctx->user_port = to->port;
}

// A socket bound to a loopback address cannot reach a pod: it stays as it is,
// and is refused, or served by who listens there.
static __always_inline bool is_bound_to_loopback(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *socket = ctx->sk;
	struct address source;

	if (!socket)
		return false;
	source = from_v4(socket->src_ip4);
	if (is_loopback(&source))
		return true;
	if (ctx->family != 10) // AF_INET6, which no header for BPF has
		return false;
	source = (struct address){ { socket->src_ip6[0], socket->src_ip6[1], socket->src_ip6[2],
				     socket->src_ip6[3] } };
	return is_loopback(&source);
}

static __always_inline int to_pod4(struct bpf_sock_addr *ctx)
{
	struct endpoint to = get4(ctx);

	if (is_hosts(ctx) && !is_bound_to_loopback(ctx) && translate(ctx, &to, false))
		set4(ctx, &to);
	return 1;
}

static __always_inline int to_pod6(struct bpf_sock_addr *ctx, bool may_become_v4)
{
	struct endpoint to = get6(ctx);

	if (is_hosts(ctx) && !is_bound_to_loopback(ctx) && translate(ctx, &to, may_become_v4))
		set6(ctx, &to);
	return 1;
}

static __always_inline int from_pod4(struct bpf_sock_addr *ctx)
{
	struct endpoint from = get4(ctx);

	if (is_hosts(ctx) && restore(ctx, &from))
		set4(ctx, &from);
	return 1;
}

static __always_inline int from_pod6(struct bpf_sock_addr *ctx)
{
	struct endpoint from = get6(ctx);

	if (is_hosts(ctx) && restore(ctx, &from))
		set6(ctx, &from);
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return to_pod4(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return to_pod6(ctx, true);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_pod4(ctx);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return to_pod6(ctx, false);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return from_pod4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return from_pod6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return from_pod4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return from_pod6(ctx);
}

char _license[] SEC("license") = "Apache-2.0";

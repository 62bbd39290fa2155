/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Parsing: an Ethernet frame into one struct packet for both IP families.
 * Each function returns 0 or the drop reason. Nothing here looks into a map.
 */
#pragma once
#include "lib/common.h"

enum fragment_kind {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
};

/* What a packet does to its connection, in protocols that say so. */
enum phase {
	PHASE_NONE = 0,
	PHASE_OPEN = 1, /* TCP: SYN without ACK; SCTP: INIT */
	PHASE_ABORT = 2, /* TCP: RST; SCTP: ABORT, SHUTDOWN COMPLETE */
};

enum icmp_kind {
	ICMP_NONE = 0,
	ICMP_QUERY = 1, /* a question: its sender opens a "connection" */
	ICMP_ANSWER = 2,
	ICMP_ERROR = 3, /* about another packet, which it quotes */
	ICMP_NEIGHBOUR = 4, /* RFC 4861 */
	ICMP_MULTICAST = 5, /* RFC 2710, 3810 */
	ICMP_OTHER = 6,
};

struct packet {
	struct address source;
	struct address destination;
	__u32 l3; /* offsets in the frame */
	__u32 l4;
	__u32 l4_length; /* bytes that the IP header promises from l4 on */
	__u32 fragment_id;
	__u32 fragment_offset; /* bytes */
	__u32 fragment_length; /* bytes of the datagram that this fragment holds */
	__u16 source_port; /* network order; ICMP: see set_icmp() */
	__u16 destination_port;
	__u8 protocol;
	__u8 version; /* 4, 6 */
	__u8 fragment; /* enum fragment_kind */
	__u8 icmp; /* enum icmp_kind */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tcp_flags; /* as on the wire: FIN 1 SYN 2 RST 4 PSH 8 ACK 16 */
	__u8 hop_limit;
	__u8 phase; /* enum phase */
	__u8 header; /* bytes of a TCP or UDP header */
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

#define MAX_EXTENSION_HEADERS 8

#define SCTP_INIT 1
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN_COMPLETE 14

struct ports {
	__be16 source;
	__be16 destination;
};

/* RFC 8200, section 4.5 */
struct ipv6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* 13 bits, 2 reserved, M */
	__be32 id;
};

struct ipv6_extension {
	__u8 next;
	__u8 length; /* 8-byte units after the first; AH: 4-byte units, less 2 */
};

/* A query has its identifier as the port of the side that asks and 0 as the
 * other, so a ping from each side with the same identifier is two connections.
 */
INLINE void set_icmp(struct packet *p, __u16 id)
{
	__u8 type = p->icmp_type;

	p->source_port = 0;
	p->destination_port = 0;
	if (p->version == 4) {
		switch (type) {
		case 8: /* echo, timestamp, information, mask: RFC 792, 950 */
		case 13:
		case 15:
		case 17:
			p->icmp = ICMP_QUERY;
			p->source_port = id;
			return;
		case 0:
		case 14:
		case 16:
		case 18:
			p->icmp = ICMP_ANSWER;
			p->destination_port = id;
			return;
		case 3: /* unreachable, source quench, time exceeded, parameter */
		case 4:
		case 11:
		case 12:
			p->icmp = ICMP_ERROR;
			return;
		default:
			p->icmp = ICMP_OTHER;
			return;
		}
	}
	if (type == 128) {
		p->icmp = ICMP_QUERY;
		p->source_port = id;
	} else if (type == 129) {
		p->icmp = ICMP_ANSWER;
		p->destination_port = id;
	} else if (type >= 1 && type <= 4) {
		p->icmp = ICMP_ERROR;
	} else if (type >= 133 && type <= 137) {
		p->icmp = ICMP_NEIGHBOUR;
	} else if ((type >= 130 && type <= 132) || type == 143) {
		p->icmp = ICMP_MULTICAST;
	} else {
		p->icmp = ICMP_OTHER;
	}
}

INLINE __u32 transport_minimum(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return sizeof(struct tcphdr);
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 8;
	case IPPROTO_SCTP:
		return 12; /* common header, RFC 9260 section 3.1 */
	default:
		return 0;
	}
}

/* Ports, flags and ICMP type at p->l4; not for later fragments. */
INLINE int load_header(struct __sk_buff *ctx, __u32 at, void *to, __u32 size)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	/* Headers mostly lie in the linear part, near the front. */
	if (likely(at < 256 && data + at + size <= end)) {
		__builtin_memcpy(to, data + at, size);
		return 0;
	}
	return bpf_skb_load_bytes(ctx, at, to, size);
}

INLINE int parse_transport(struct __sk_buff *ctx, struct packet *p)
{
	__u32 minimum = transport_minimum(p->protocol);
	struct tcphdr tcp = {};

	if (!minimum)
		return 0;
	/* RFC 1858: a first fragment that ends before the header does. */
	if (p->l4_length < minimum)
		return p->fragment == FRAGMENT_FIRST ? DROP_FRAGMENT_NOT_FOUND :
						       DROP_CT_INVALID_HEADER;
	if (p->protocol == IPPROTO_TCP) {
		if (load_header(ctx, p->l4, &tcp, 16))
			return DROP_CT_INVALID_HEADER;
		if (tcp.doff < 5)
			return DROP_CT_INVALID_HEADER;
		if (p->l4_length < tcp.doff * 4)
			return p->fragment == FRAGMENT_FIRST ? DROP_FRAGMENT_NOT_FOUND :
							       DROP_CT_INVALID_HEADER;
		p->header = tcp.doff * 4;
		p->tcp_flags = ((__u8 *)&tcp)[13];
		if (p->tcp_flags & TCP_RST)
			p->phase = PHASE_ABORT;
		else if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			p->phase = PHASE_OPEN;
		p->source_port = tcp.source;
		p->destination_port = tcp.dest;
		return 0;
	}
	if (load_header(ctx, p->l4, &tcp, 4))
		return DROP_CT_INVALID_HEADER;
	if (p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_SCTP) {
		p->source_port = tcp.source;
		p->destination_port = tcp.dest;
		p->header = 8;
		if (p->protocol == IPPROTO_UDP || p->l4_length < 13)
			return 0;
		/* The first chunk: RFC 9260, section 3.2. */
		if (bpf_skb_load_bytes(ctx, p->l4 + 12, &tcp, 1))
			return DROP_CT_INVALID_HEADER;
		if (*(__u8 *)&tcp == SCTP_INIT)
			p->phase = PHASE_OPEN;
		else if (*(__u8 *)&tcp == SCTP_ABORT || *(__u8 *)&tcp == SCTP_SHUTDOWN_COMPLETE)
			p->phase = PHASE_ABORT;
		return 0;
	}
	if ((p->protocol == IPPROTO_ICMP) != (p->version == 4))
		return 0; /* ICMP of the other family: a protocol like any */
	p->icmp_type = ((__u8 *)&tcp)[0];
	p->icmp_code = ((__u8 *)&tcp)[1];
	if (bpf_skb_load_bytes(ctx, p->l4 + 4, &tcp, 2))
		return DROP_CT_INVALID_HEADER;
	set_icmp(p, tcp.source);
	return 0;
}

INLINE int parse_ipv4(struct __sk_buff *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 header, total, offset;

	if ((void *)(ip + 1) > end) {
		/* The headers may lie outside the linear part. */
		if (bpf_skb_pull_data(ctx, ETH_HLEN + sizeof(*ip)))
			return DROP_INVALID_PACKET;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return DROP_INVALID_PACKET;
	}
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	/* No length: longer than 64 KiB, made by segmentation offload alone. */
	if (!total && ctx->gso_segs > 1)
		total = ctx->len - ETH_HLEN;
	if (ip->version != 4 || header < sizeof(*ip) || total < header ||
	    ETH_HLEN + total > ctx->len)
		return DROP_INVALID_PACKET;
	p->version = 4;
	p->protocol = ip->protocol;
	p->hop_limit = ip->ttl;
	map_ipv4(&p->source, ip->saddr);
	map_ipv4(&p->destination, ip->daddr);
	p->l3 = ETH_HLEN;
	p->l4 = ETH_HLEN + header;
	p->l4_length = total - header;
	p->fragment_length = p->l4_length;
	offset = bpf_ntohs(ip->frag_off);
	if (unlikely(offset & (IPV4_MF | IPV4_OFFSET))) {
		p->fragment_id = ip->id;
		p->fragment_offset = (offset & IPV4_OFFSET) * 8;
		p->fragment = p->fragment_offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
		if ((offset & IPV4_MF) && (p->l4_length & 7))
			return DROP_INVALID_PACKET;
		if (p->fragment_offset + p->l4_length > 65535)
			return DROP_INVALID_PACKET;
	}
	forget_values();
	return p->fragment == FRAGMENT_LATER ? 0 : parse_transport(ctx, p);
}

/* Headers that are stepped over; RFC 8200, 4302, 6275, 7401, 5533. */
INLINE bool is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60 || next == 135 ||
	       next == 139 || next == 140;
}

/* Walks the extension headers, RFC 8200 section 4. */
INLINE int parse_ipv6(struct __sk_buff *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	struct ipv6_extension extension = {};
	struct ipv6_fragment fragment = {};
	__u32 limit, offset = ETH_HLEN + sizeof(*ip), length;
	__u8 next;
	int i;

	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(ctx, ETH_HLEN + sizeof(*ip)))
			return DROP_INVALID_PACKET;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return DROP_INVALID_PACKET;
	}
	if (ip->version != 6)
		return DROP_INVALID_PACKET;
	p->version = 6;
	p->hop_limit = ip->hop_limit;
	__builtin_memcpy(&p->source, &ip->saddr, 16);
	__builtin_memcpy(&p->destination, &ip->daddr, 16);
	/* Never on the wire (RFC 4038, 4.2), and keys of IPv4 in every table. */
	if (mapped_ipv4(&p->source) || mapped_ipv4(&p->destination))
		return DROP_INVALID_PACKET;
	p->l3 = ETH_HLEN;
	limit = ETH_HLEN + sizeof(*ip) + bpf_ntohs(ip->payload_len);
	/* No length at all: a jumbogram (RFC 2675), made by segmentation
	 * offload alone; the frame says how long it is.
	 */
	if (!ip->payload_len && ctx->gso_segs > 1)
		limit = ctx->len;
	if (limit > ctx->len)
		return DROP_INVALID_PACKET;
	next = ip->nexthdr;
	for (i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		if (likely(!is_extension(next)))
			break;
		if (offset + 8 > limit)
			return DROP_INVALID_EXTENSION_HEADER;
		if (next == 44) {
			if (p->fragment)
				return DROP_INVALID_EXTENSION_HEADER;
			if (bpf_skb_load_bytes(ctx, offset, &fragment, sizeof(fragment)))
				return DROP_INVALID_EXTENSION_HEADER;
			next = fragment.next;
			offset += sizeof(fragment);
			length = bpf_ntohs(fragment.offset);
			if (!(length & 0xfff9))
				continue; /* atomic, RFC 6946: not a fragment */
			p->fragment_id = fragment.id;
			p->fragment_offset = length & 0xfff8;
			p->fragment_length = limit - offset;
			p->fragment = p->fragment_offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
			if ((length & 1) && ((limit - offset) & 7))
				return DROP_INVALID_PACKET;
			if (p->fragment_offset + (limit - offset) > 65535)
				return DROP_INVALID_PACKET;
			if (p->fragment == FRAGMENT_LATER)
				break;
			continue;
		}
		if (bpf_skb_load_bytes(ctx, offset, &extension, sizeof(extension)))
			return DROP_INVALID_EXTENSION_HEADER;
		length = next == 51 ? (extension.length + 2) * 4 : (extension.length + 1) * 8;
		next = extension.next;
		offset += length;
		if (offset > limit)
			/* RFC 7112: the first fragment holds the whole chain. */
			return p->fragment ? DROP_FRAGMENT_NOT_FOUND :
					     DROP_INVALID_EXTENSION_HEADER;
	}
	if (i == MAX_EXTENSION_HEADERS)
		return DROP_INVALID_EXTENSION_HEADER;
	p->protocol = next;
	p->l4 = offset;
	p->l4_length = limit - offset;
	forget_values();
	return p->fragment == FRAGMENT_LATER ? 0 : parse_transport(ctx, p);
}

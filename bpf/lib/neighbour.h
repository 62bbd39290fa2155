/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The pod's link has one neighbour, its gateway: whatever address a pod asks
 * for, by ARP (RFC 826) or neighbour solicitation (RFC 4861), the answer is
 * the host's end of its pair. Its own addresses are never answered for
 * (duplicate detection: RFC 5227, RFC 4862).
 */
#pragma once
#include "lib/endpoint.h"
#include "lib/telemetry.h"

#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define ROUTER_SOLICITATION 133

struct arp_ethernet {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

struct solicitation {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	struct address target;
	__u8 option;
	__u8 option_length;
	__u8 mac[6];
} __attribute__((packed));

#define ARP_REQUEST 1
#define ADVERTISEMENT_FLAGS 0x60000000 /* solicited, override */

INLINE void swap_macs(struct __sk_buff *ctx, struct device *device)
{
	bpf_skb_store_bytes(ctx, 0, device->mac, 6, 0);
	bpf_skb_store_bytes(ctx, 6, device->host_mac, 6, 0);
}

/* Returns a TC action, or a drop reason as a negative number. */
INLINE int handle_arp(struct __sk_buff *ctx, struct device *device)
{
	struct arp_ethernet arp;
	__be32 own = *(__be32 *)(device->address4.bytes + 12);

	if (bpf_skb_load_bytes(ctx, ETH_HLEN, &arp, sizeof(arp)))
		return -DROP_INVALID_PACKET;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return -DROP_INVALID_PACKET;
	if (!same_mac(arp.sender_mac, device->mac))
		return -DROP_INVALID_SOURCE_MAC;
	if (arp.sender != own && arp.sender != 0)
		return -DROP_INVALID_SOURCE_IP;
	if (arp.operation != bpf_htons(ARP_REQUEST))
		return TC_ACT_OK; /* an answer to the host */
	if (arp.target == own)
		return TC_ACT_OK; /* a probe or an announcement */
	arp.operation = bpf_htons(2);
	__builtin_memcpy(arp.target_mac, device->mac, 6);
	__builtin_memcpy(arp.sender_mac, device->host_mac, 6);
	own = arp.sender;
	arp.sender = arp.target;
	arp.target = own;
	if (bpf_skb_store_bytes(ctx, ETH_HLEN, &arp, sizeof(arp), 0))
		return -DROP_INVALID_PACKET;
	swap_macs(ctx, device);
	return bpf_redirect(CTX_LOAD(ctx, ifindex), 0);
}

/* Neighbour discovery from a pod. Router advertisements and redirects are not
 * a pod's to send.
 */
INLINE int handle_neighbour(struct __sk_buff *ctx, const struct packet *p, struct device *device)
{
	struct solicitation ns = {};
	struct ipv6hdr ip = {};
	__u32 length = sizeof(ns), sum;
	__be32 zero = 0;

	if (p->hop_limit != 255 || p->icmp_code != 0 || p->l4 != ETH_HLEN + sizeof(ip))
		return -DROP_FORBIDDEN_ICMP6;
	/* Of the link, so not beyond it: a solicitation apart, which is answered
	 * here, nothing may have a destination that the stack would forward to.
	 */
	if (!link_local6(&p->destination) && !multicast6(&p->destination) &&
	    p->icmp_type != NEIGHBOUR_SOLICITATION)
		return -DROP_FORBIDDEN_ICMP6;
	if (p->icmp_type == ROUTER_SOLICITATION)
		return TC_ACT_OK;
	if (p->icmp_type != NEIGHBOUR_SOLICITATION && p->icmp_type != NEIGHBOUR_ADVERTISEMENT)
		return -DROP_FORBIDDEN_ICMP6;
	if (p->l4_length < 24 || bpf_skb_load_bytes(ctx, p->l4, &ns, 24))
		return -DROP_CT_INVALID_HEADER;
	if (multicast6(&ns.target) || mapped_ipv4(&ns.target))
		return -DROP_CT_INVALID_HEADER; /* RFC 4861, 7.1.1 */
	if (p->icmp_type == NEIGHBOUR_ADVERTISEMENT)
		return same_address(&ns.target, &device->address6) || link_local6(&ns.target) ?
			       TC_ACT_OK :
			       -DROP_INVALID_SOURCE_IP;
	if (no_address(&p->source) || same_address(&ns.target, &device->address6) ||
	    same_address(&ns.target, &p->source))
		/* Duplicate detection: silence means unused. */
		return multicast6(&p->destination) ? TC_ACT_OK : -DROP_FORBIDDEN_ICMP6;

	ns.type = NEIGHBOUR_ADVERTISEMENT;
	ns.code = 0;
	ns.checksum = 0;
	ns.flags = bpf_htonl(ADVERTISEMENT_FLAGS);
	ns.option = 2; /* target link-layer address */
	ns.option_length = 1;
	__builtin_memcpy(ns.mac, device->host_mac, 6);
	if (bpf_skb_change_tail(ctx, ETH_HLEN + sizeof(ip) + length, 0))
		return -DROP_INVALID_PACKET;
	ip.version = 6;
	ip.payload_len = bpf_htons(length);
	ip.nexthdr = IPPROTO_ICMPV6;
	ip.hop_limit = 255;
	__builtin_memcpy(&ip.saddr, &ns.target, 16);
	__builtin_memcpy(&ip.daddr, &p->source, 16);
	/* Pseudo header (RFC 8200, 8.1) and message in one sum. */
	sum = bpf_csum_diff(NULL, 0, (void *)&ip.saddr, 32, 0);
	sum = bpf_csum_diff(NULL, 0, (void *)&ns, sizeof(ns), sum);
	zero = bpf_htonl(length);
	sum = bpf_csum_diff(NULL, 0, &zero, 4, sum);
	zero = bpf_htonl(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(NULL, 0, &zero, 4, sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ns.checksum = ~sum;
	if (bpf_skb_store_bytes(ctx, ETH_HLEN, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(ctx, ETH_HLEN + sizeof(ip), &ns, sizeof(ns), 0))
		return -DROP_INVALID_PACKET;
	swap_macs(ctx, device);
	return bpf_redirect(CTX_LOAD(ctx, ifindex), 0);
}

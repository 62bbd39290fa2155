/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting: an address or a port in a header, with every checksum that covers
 * it. By the kernel's helpers, which make the header writable and know what a
 * device has still to fill in (CHECKSUM_PARTIAL) or has summed up already
 * (CHECKSUM_COMPLETE). Each function returns 0 or the drop reason.
 */
#pragma once
#include "lib/packet.h"

/* Which end of a packet is replaced. */
enum end {
	END_SOURCE = 0,
	END_DESTINATION = 1,
};

/* Offset of the checksum of the packet's own transport header, 0: there is none
 * that covers addresses or ports. That of SCTP covers its ports, but by a CRC of
 * the whole packet: they are never replaced.
 */
INLINE __u32 checksum_at(const struct packet *p)
{
	switch (p->protocol) {
	case IPPROTO_TCP:
		return p->l4 + offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return p->l4 + offsetof(struct udphdr, check);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return p->l4 + offsetof(struct icmphdr, checksum);
	default:
		return 0;
	}
}

/* A UDP checksum of zero says that there is none (RFC 768), and stays so. */
INLINE __u64 checksum_flags(__u8 protocol)
{
	return protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

INLINE int replace_address(struct __sk_buff *ctx, const struct packet *p, struct address *from,
			   struct address *to, enum end end)
{
	/* Of a mapped address all but the last word cancel out. */
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	__u32 at, sum = checksum_at(p);

	if (p->version == 4) {
		at = p->l3 + (end == END_SOURCE ? offsetof(struct iphdr, saddr) :
						  offsetof(struct iphdr, daddr));
		if (bpf_l3_csum_replace(ctx, p->l3 + offsetof(struct iphdr, check), 0, diff, 0) ||
		    bpf_skb_store_bytes(ctx, at, to->bytes + 12, 4, 0))
			return DROP_WRITE_FAILED;
		/* RFC 792: without a pseudo header. */
		if (p->protocol == IPPROTO_ICMP)
			return 0;
	} else {
		at = p->l3 + (end == END_SOURCE ? offsetof(struct ipv6hdr, saddr) :
						  offsetof(struct ipv6hdr, daddr));
		/* No header checksum evens it out: the sum that a device has
		 * made of the whole must follow.
		 */
		if (bpf_skb_store_bytes(ctx, at, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM))
			return DROP_WRITE_FAILED;
	}
	if (!sum || p->fragment == FRAGMENT_LATER)
		return 0;
	if (bpf_l4_csum_replace(ctx, sum, 0, diff, BPF_F_PSEUDO_HDR | checksum_flags(p->protocol)))
		return DROP_WRITE_FAILED;
	return 0;
}

/* For an ICMP query: its identifier, at either end. */
INLINE int replace_port(struct __sk_buff *ctx, const struct packet *p, __u16 from, __u16 to,
			enum end end)
{
	__u32 sum = checksum_at(p), at = p->l4 + (end == END_SOURCE ? 0 : 2);

	if (from == to || !sum || p->fragment == FRAGMENT_LATER)
		return 0;
	if (p->icmp)
		at = p->l4 + 4;
	if (bpf_l4_csum_replace(ctx, sum, from, to, 2 | checksum_flags(p->protocol)) ||
	    bpf_skb_store_bytes(ctx, at, &to, sizeof(to), 0))
		return DROP_WRITE_FAILED;
	return 0;
}

/* One word of what an ICMP error quotes; outer is the error's own checksum. */
INLINE int replace_quoted_word(struct __sk_buff *ctx, __u32 outer, __u32 at, __u16 from, __u16 to)
{
	return bpf_l4_csum_replace(ctx, outer, from, to, 2) ||
	       bpf_skb_store_bytes(ctx, at, &to, sizeof(to), 0);
}

/* RFC 1624, equation 3. */
INLINE __u16 adjusted_checksum(__u16 sum, __u64 diff)
{
	__u64 folded = (__u64)(__u16)~sum + diff;

	folded = (folded >> 16) + (folded & 0xffff);
	folded = (folded >> 16) + (folded & 0xffff);
	folded = (folded >> 16) + (folded & 0xffff);
	return ~folded;
}

INLINE int adjust_quoted_checksum(struct __sk_buff *ctx, __u32 outer, __u32 at, __u64 diff,
				  bool optional)
{
	__u16 sum = 0, new;

	if (bpf_skb_load_bytes(ctx, at, &sum, sizeof(sum)))
		return 1;
	if (optional && !sum)
		return 0;
	new = adjusted_checksum(sum, diff);
	if (optional && !new)
		new = 0xffff;
	return replace_quoted_word(ctx, outer, at, sum, new);
}

/* One end of the packet that an ICMP error quotes: what it was before, or will
 * be again, for who is told. inner: the quoted packet; at: its transport header.
 * The checksums in the quote are brought along, as far as they are quoted.
 */
INLINE int replace_quoted(struct __sk_buff *ctx, const struct packet *p, const struct packet *inner,
			  __u32 at, struct address *from, struct address *to, __u16 from_port,
			  __u16 to_port, enum end end)
{
	__u32 outer = p->l4 + offsetof(struct icmphdr, checksum), l3 = p->l4 + 8, place, sum = 0;
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	bool udp = inner->protocol == IPPROTO_UDP;

	if (bpf_l4_csum_replace(ctx, outer, 0, diff, 0))
		return DROP_WRITE_FAILED;
	if (p->version == 4) {
		place = l3 + (end == END_SOURCE ? offsetof(struct iphdr, saddr) :
						  offsetof(struct iphdr, daddr));
		if (bpf_skb_store_bytes(ctx, place, to->bytes + 12, 4, 0) ||
		    adjust_quoted_checksum(ctx, outer, l3 + offsetof(struct iphdr, check), diff,
					   false))
			return DROP_WRITE_FAILED;
	} else {
		place = l3 + (end == END_SOURCE ? offsetof(struct ipv6hdr, saddr) :
						  offsetof(struct ipv6hdr, daddr));
		if (bpf_skb_store_bytes(ctx, place, to, sizeof(*to), 0))
			return DROP_WRITE_FAILED;
	}
	if (inner->protocol == IPPROTO_TCP)
		sum = at + offsetof(struct tcphdr, check);
	else if (udp)
		sum = at + offsetof(struct udphdr, check);
	else if (inner->icmp)
		sum = at + offsetof(struct icmphdr, checksum);
	/* Of TCP the ports alone need be quoted. */
	if (sum + 2 > p->l4 + p->l4_length)
		sum = 0;
	if (p->version == 4 && inner->icmp)
		diff = 0;
	if (from_port != to_port) {
		place = inner->icmp ? at + 4 : at + (end == END_SOURCE ? 0 : 2);
		if (replace_quoted_word(ctx, outer, place, from_port, to_port))
			return DROP_WRITE_FAILED;
		diff += (__u16)~from_port + (__u32)to_port;
	}
	if (sum && adjust_quoted_checksum(ctx, outer, sum, diff, udp))
		return DROP_WRITE_FAILED;
	return 0;
}

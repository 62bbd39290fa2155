/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Endpoints: which pod is behind a device, which addresses are here, and what
 * a pod may claim to be.
 */
#pragma once
#include "lib/packet.h"

INLINE struct device *find_device(__u32 ifindex)
{
	return bpf_map_lookup_elem(MAP(DEVICES_FD), &ifindex);
}

INLINE struct local_address *find_local(struct address *address)
{
	return bpf_map_lookup_elem(MAP(ADDRESSES_FD), address);
}

/* NULL also for a pod that shares its slot with another: then by the tables. */
INLINE struct place *place_of_device(__u32 ifindex)
{
	__u32 slot = ifindex % PLACE_SLOTS;
	struct place *place = bpf_map_lookup_elem(MAP(PLACES_FD), &slot);

	return place && place->endpoint && place->ifindex == ifindex ? place : NULL;
}

INLINE struct place *place_of_endpoint(__u32 endpoint)
{
	__u32 slot = PLACE_SLOTS + endpoint % PLACE_SLOTS;
	struct place *place = bpf_map_lookup_elem(MAP(PLACES_FD), &slot);

	return place && endpoint && place->endpoint == endpoint ? place : NULL;
}

INLINE bool lives_at(const struct place *place, const struct address *address, __u8 version)
{
	return version == 4 ? place->address4 && place->address4 == unmapped_ipv4(address) :
			      same_address(&place->address6, address);
}

/* Does the frame come from this hardware address? */
INLINE bool from_mac(struct __sk_buff *ctx, const __u8 *mac)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	return (void *)(eth + 1) <= end && same_mac(eth->h_source, mac);
}

INLINE bool link_local6(const struct address *a)
{
	return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

INLINE bool multicast6(const struct address *a)
{
	return a->bytes[0] == 0xff;
}

/* Is this source the pod's own? Beside its addresses: link-local ones within
 * the link (RFC 4291), none at all in duplicate detection, MLD (RFC 3590) and
 * when DHCP asks for one (RFC 2131).
 */
INLINE bool valid_source(const struct device *device, const struct packet *p)
{
	if (p->version == 4) {
		struct address unspecified = {};

		if (likely(same_address(&p->source, &device->address4)))
			return !no_address(&device->address4);
		map_ipv4(&unspecified, 0);
		return same_address(&p->source, &unspecified) && p->protocol == IPPROTO_UDP &&
		       p->source_port == bpf_htons(68) && p->destination_port == bpf_htons(67);
	}
	if (no_address(&p->source))
		return p->icmp == ICMP_MULTICAST || p->icmp == ICMP_NEIGHBOUR;
	if (likely(same_address(&p->source, &device->address6)))
		return true;
	return link_local6(&p->source) &&
	       (link_local6(&p->destination) || multicast6(&p->destination));
}

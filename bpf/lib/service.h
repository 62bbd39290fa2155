/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Egress policy for services: the node's stack (kube-proxy) leads a connection to
 * one of those who are behind a service's address, of its own choice and only after
 * the pod's program was asked.
 */
#pragma once
#include "lib/policy.h"

/* Who is behind a port (network order) of an address, copied; count 0: it is no
 * service's.
 */
INLINE void find_service(struct service_peers *to, const struct address *address, __u16 port,
			 __u8 protocol)
{
	struct service_key key = {};
	struct service_peers *found;

	key.address = *address;
	key.port = port;
	key.protocol = protocol;
	found = bpf_map_lookup_elem(MAP(SERVICE_PEERS_FD), &key);
	to->count = 0;
	if (likely(!found))
		return;
	*to = *found;
	/* The element was freed and reused under us: an address like others. */
	if (!same_address(&to->address, address) || to->service_port != port ||
	    to->protocol != protocol)
		to->count = 0;
}

/* Allowed if each of them is; told is who is not, or the last one. */
INLINE void decide_service(__u32 endpoint, __u8 protocol, const struct service_peers *service,
			   struct decision *d)
{
	__u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < SERVICE_PEERS; i++) {
		d->key.peer_class = service->peer_class[i];
		d->identity = service->identity[i];
		d->key.protocol = protocol;
		d->port = service->port[i];
		forget_values();
		decide(endpoint, false, d);
		forget_values();
		if (!d->allowed || i + 1 >= service->count)
			break;
	}
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters, which are exact, and events, which may be lost (and are counted). */
#pragma once
#include "lib/packet.h"

/* Beyond this much unread the reader is woken; below it, it comes by itself. */
#define EVENTS_WAKE_BYTES (256 * 1024)

INLINE struct config *configuration(void)
{
	return ONLY_VALUE(CONFIG_FD);
}

INLINE void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(MAP(COUNTERS_FD), &counter);

	if (value)
		*value += 1;
}

INLINE void count_packet(struct __sk_buff *ctx, __u32 direction, __u32 reason)
{
	__u32 index = direction * 256 + (reason & 255);
	struct traffic *traffic = bpf_map_lookup_elem(MAP(METRICS_FD), &index);

	if (traffic) {
		traffic->packets += 1;
		traffic->bytes += CTX_LOAD(ctx, len);
	}
}

/* What an event says besides the packet. */
struct report {
	__u32 rule;
	__u32 endpoint;
	__u32 source_identity;
	__u32 destination_identity;
	__u8 type;
	__u8 reason;
	__u8 direction;
	__u8 observation;
	__u8 flags;
};

INLINE void emit(struct __sk_buff *ctx, const struct packet *p, const struct report *r)
{
	struct event *event;
	__u64 flags = BPF_RB_NO_WAKEUP;

	event = bpf_ringbuf_reserve(MAP(EVENTS_FD), sizeof(*event), 0);
	if (!event) {
		count(COUNTER_EVENTS_LOST);
		return;
	}
	event->time = bpf_ktime_get_ns();
	event->source = p->source;
	event->destination = p->destination;
	event->length = CTX_LOAD(ctx, len);
	event->rule = r->rule;
	event->endpoint = r->endpoint;
	event->source_identity = r->source_identity;
	event->destination_identity = r->destination_identity;
	event->ifindex = CTX_LOAD(ctx, ifindex);
	event->source_port = p->source_port;
	event->destination_port = p->destination_port;
	event->type = r->type;
	event->reason = r->reason;
	event->direction = r->direction;
	event->observation = r->observation;
	event->flags = r->flags | (p->fragment ? EVENT_FRAGMENT : 0);
	event->ip_version = p->version;
	event->protocol = p->protocol;
	event->tcp_flags = p->tcp_flags;
	event->icmp_type = p->icmp_type;
	event->icmp_code = p->icmp_code;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	if (bpf_skb_load_bytes(ctx, 0, event->destination_mac, 6) ||
	    bpf_skb_load_bytes(ctx, 6, event->source_mac, 6)) {
		__builtin_memset(event->destination_mac, 0, 6);
		__builtin_memset(event->source_mac, 0, 6);
	}
	if (bpf_ringbuf_query(MAP(EVENTS_FD), BPF_RB_AVAIL_DATA) > EVENTS_WAKE_BYTES)
		flags = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(event, flags);
}

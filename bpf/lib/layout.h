/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every structure and number that the programs share with user space, and the
 * only place where they are written down: bpf/layouts.py is generated from the
 * BTF of this file. The generator refuses bit-fields, implicit padding and
 * multi-dimensional arrays. Constants are enums, because macros leave no BTF.
 *
 * Addresses are 16 bytes in network order; IPv4 is mapped (::ffff:a.b.c.d), so
 * that one table and one code path serve both families. Ports in keys are in
 * network order where they come from a packet (conntrack) and in host order
 * where an interval is meant (policy).
 */
#pragma once
#include <linux/types.h>

/* A map whose layout changes gets a new number in its name (bpf/maps.py). */

struct address {
	__u8 bytes[16];
};

/* ---- endpoints ------------------------------------------------------- */

enum local_kind {
	LOCAL_POD = 1,
	LOCAL_NODE = 2,
};

/* devices: host-side ifindex -> what may come out of this pod. Never changes
 * while the endpoint lives.
 */
struct device {
	struct address address4; /* all zero: the pod has none */
	struct address address6;
	__u8 mac[6]; /* of the pod's end */
	__u8 host_mac[6]; /* of the host's end; the gateway the pod sees */
	__u32 endpoint;
};

/* addresses: address -> where it is on this node. */
struct local_address {
	__u32 endpoint; /* 0 for an address of the node */
	__u32 ifindex; /* host side of the pod's pair */
	__u8 mac[6];
	__u8 host_mac[6];
	__u32 kind; /* enum local_kind */
};

enum endpoint_flag {
	ENDPOINT_INGRESS_ENFORCED = 1, /* a table decides; else all is allowed */
	ENDPOINT_EGRESS_ENFORCED = 2,
};

/* endpoints: endpoint id -> the policy in force. Replaced whole, so one write
 * moves an endpoint from one policy to another.
 */
struct endpoint_policy {
	__u32 endpoint; /* repeated, so that a reader sees a reused element */
	__u32 identity;
	__u32 ingress_table;
	__u32 egress_table;
	__u32 ingress_levels; /* bit n: the table has entries of level n */
	__u32 egress_levels;
	__u32 flags; /* enum endpoint_flag */
	__u32 class4; /* peer class of the pod's own addresses */
	__u32 class6;
	__u32 pad;
};

/* ---- peers and policy ------------------------------------------------ */

/* peers: longest-prefix table, address -> peer class. */
struct peer_key {
	__u32 prefix_length; /* in bits of the 16 byte address */
	struct address address;
};

struct peer {
	__u32 peer_class;
	__u32 identity;
};

enum reserved_identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
};

/* Peer class numbers below 256 are fixed; the agent hands out the others. */
enum reserved_class {
	CLASS_NONE = 0,
	CLASS_HOST = 1, /* the node's own stack, by provenance */
};

/* An entry matches ports that agree with it in the first prefix_length bits.
 * Level n (0-16) holds entries of prefix length n for one protocol; level 17
 * holds those for every protocol. The kernel takes the highest level that
 * matches, 16 first, 17 last: each entry is a final verdict.
 */
enum policy_level {
	LEVEL_PORT = 16,
	LEVEL_ANY_PORT = 0,
	LEVEL_ANY_PROTOCOL = 17,
};

struct policy_key {
	__u32 table;
	__u32 peer_class;
	__u16 port; /* host order, low bits beyond the prefix zero */
	__u8 protocol; /* 0 at LEVEL_ANY_PROTOCOL */
	__u8 level;
};

enum policy_action {
	ACTION_DENY = 0,
	ACTION_ALLOW = 1,
};

struct policy_verdict {
	__u32 rule;
	__u32 action;
};

/* Rules below 256 name decisions that no policy object makes. */
enum reserved_rule {
	RULE_DEFAULT_DENY = 0, /* isolated, and nothing allows it */
	RULE_NO_POLICY = 1, /* no policy isolates the endpoint */
	RULE_NODE = 2, /* from or to the endpoint's own node */
	RULE_SELF = 3, /* the pod to itself */
	RULE_REPLY = 4, /* a reply */
	RULE_RELATED = 5, /* an ICMP error about a known connection */
	RULE_INIT = 6, /* the pod's labels are not known yet */
	RULE_CONTROL = 7, /* neighbour discovery, ARP, MLD */
};

/* ---- connection tracking --------------------------------------------- */

/* ct: one entry per endpoint and connection, seen from the endpoint, so that
 * both directions of a packet find it by one look-up; the local address is the
 * endpoint's own. ICMP queries have the identifier as the port of the side that
 * asked, and 0 as the other. Key and value are small, so that an element (with
 * 48 bytes of the kernel's before the key) is two cache lines.
 */
struct ct_key {
	struct address remote;
	__u32 endpoint;
	__u16 local_port; /* network order */
	__u16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

enum ct_flag {
	CT_INGRESS = 1, /* the remote side opened it; else the endpoint did */
	CT_VIA_STACK = 2, /* opened through the node's stack; replies too */
	CT_SEEN_REPLY = 4,
	CT_FIN_ORIGINAL = 8,
	CT_FIN_REPLY = 16,
	CT_RST = 32,
	CT_DENIED = 64, /* what the verdict was, looked up again under this epoch */
};

/* Who sent the packets that opened an ingress connection. The packet's way
 * tells, not its source address; smaller numbers are endpoint ids.
 */
enum origin {
	ORIGIN_ADDRESS = 0, /* from outside: the address is all there is */
	ORIGIN_UNKNOWN = 0x7ffffffe, /* from outside, source translated here */
	ORIGIN_NODE = 0x7fffffff, /* the node's own stack */
};

struct ct_entry {
	__u64 epoch; /* policy epoch that the verdict was read under */
	__u32 seen; /* CLOCK_MONOTONIC_COARSE, s, of the last packet */
	__u32 flags; /* enum ct_flag */
	__u64 bytes[2]; /* original direction, reply direction */
	__u32 packets[2]; /* the same; they wrap around */
	__u32 rule; /* that allowed it */
	__u32 origin; /* ingress: enum origin or an endpoint id */
};

/* fragments: what the first fragment said, for those that follow. */
struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
	__u32 ifindex; /* where it was seen */
	__u8 protocol;
	__u8 direction; /* 0: ingress hook of that device, 1: egress hook */
	__u8 pad[2];
};

struct fragment {
	__u64 seen; /* CLOCK_MONOTONIC_COARSE, ns */
	__u16 source_port; /* network order; as parsed, for ICMP too */
	__u16 destination_port;
	__u16 end; /* bytes of payload that the first fragment covers */
	__u8 icmp_type;
	__u8 protocol;
};

/* ---- telemetry ------------------------------------------------------- */

enum direction {
	DIRECTION_UNKNOWN = 0,
	DIRECTION_INGRESS = 1,
	DIRECTION_EGRESS = 2,
};

/* Numbers and meaning as in the flow API; only ever appended to. */
enum drop_reason {
	REASON_FORWARDED = 0,
	DROP_INVALID_SOURCE_MAC = 130,
	DROP_INVALID_SOURCE_IP = 132,
	DROP_POLICY_DENIED = 133,
	DROP_INVALID_PACKET = 134,
	DROP_CT_INVALID_HEADER = 135,
	DROP_UNSUPPORTED_L3 = 139,
	DROP_CT_INSERTION_FAILED = 155,
	DROP_INVALID_EXTENSION_HEADER = 156,
	DROP_NO_ENDPOINT_POLICY = 165,
	DROP_FIB_LOOKUP_FAILED = 169,
	DROP_FRAGMENT_NOT_FOUND = 175,
	DROP_FORBIDDEN_ICMP6 = 176,
	DROP_POLICY_DENY_RULE = 181,
	DROP_VLAN_FILTERED = 182,
	DROP_ENDPOINT_NOT_READY = 203,
};

/* metrics: per CPU, index = direction * 256 + enum drop_reason. */
enum metrics_size {
	METRICS_ENTRIES = 768,
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

/* counters: per CPU, one u64 each. */
enum counter {
	COUNTER_EVENTS_LOST = 0,
	COUNTER_CT_OVERFLOW = 1, /* new connections kept in the overflow table */
	COUNTER_CT_CREATED = 2,
	COUNTER_CT_REVALIDATED = 3,
	COUNTERS = 8,
};

enum event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 4, /* a new connection */
	EVENT_POLICY_VERDICT = 5,
};

/* Where a packet was seen or sent on; numbers of the flow API's sub-types. */
enum observation {
	OBSERVE_TO_ENDPOINT = 0,
	OBSERVE_TO_HOST = 2,
	OBSERVE_TO_STACK = 3,
	OBSERVE_FROM_ENDPOINT = 5,
	OBSERVE_FROM_NETWORK = 10,
	OBSERVE_TO_NETWORK = 11,
};

enum event_flag {
	EVENT_ALLOWED = 1,
	EVENT_REPLY = 2,
	EVENT_FRAGMENT = 4,
};

struct event {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	struct address source;
	struct address destination;
	__u32 length; /* bytes on the wire, with the Ethernet header */
	__u32 rule; /* of a verdict or a policy drop */
	__u32 endpoint; /* whose policy or whose packet it is */
	__u32 source_identity;
	__u32 destination_identity;
	__u32 ifindex;
	__u16 source_port; /* network order */
	__u16 destination_port;
	__u8 type; /* enum event_type */
	__u8 reason; /* enum drop_reason */
	__u8 direction; /* enum direction */
	__u8 observation; /* enum observation */
	__u8 flags; /* enum event_flag */
	__u8 ip_version; /* 4, 6, or 0: not IP */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 source_mac[6];
	__u8 destination_mac[6];
	__u8 pad[6];
};

/* scratch: per CPU, working memory of a program run; its contents are the
 * programs' own (bpf/lib/scratch.h).
 */
enum scratch_size {
	SCRATCH_BYTES = 512,
};

/* ---- configuration --------------------------------------------------- */

/* config: one entry. */
struct config {
	/* A packet with this mark and priority is a question of the agent's
	 * (BPF_PROG_TEST_RUN): it leaves no trace, and the answer is in cb[].
	 * Random, known to root alone, so no sender can forge it.
	 */
	__u32 probe_mark; /* never 0 */
	__u32 probe_priority;
	__u32 trace; /* 1: events for new connections and allowed verdicts too */
	__u32 pad;
};

/* Indexes of __sk_buff.cb in the answer to a probe. */
enum probe_answer {
	PROBE_EGRESS_RULE = 0,
	PROBE_INGRESS_RULE = 1,
	PROBE_DECIDED = 2, /* bits: enum probe_bit */
	PROBE_REASON = 3, /* enum drop_reason */
};

enum probe_bit {
	PROBE_EGRESS_DECIDED = 1,
	PROBE_EGRESS_ALLOWED = 2,
	PROBE_INGRESS_DECIDED = 4,
	PROBE_INGRESS_ALLOWED = 8,
};

/* numbers: agent only; what a number means, so that a new agent adopts it. */
enum number_kind {
	NUMBER_CLASS = 1,
	NUMBER_TABLE = 2,
	NUMBER_RULE = 3,
};

struct number_key {
	__u32 kind;
	__u32 number;
};

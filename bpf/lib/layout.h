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

/* Slots of places for devices, and as many for ids. */
enum place_size {
	PLACE_SLOTS = 16384,
};

/* places: slot -> the pod there: what devices and addresses say, for who finds
 * it by its position, without a hash and in one cache line. A pod is in the slot
 * of its device, ifindex % PLACE_SLOTS, and in that of its id, PLACE_SLOTS +
 * endpoint % PLACE_SLOTS; of two that fall together one is left to the tables
 * above. An endpoint of 0 says that nobody is there: it is written last and
 * taken away first, and no other pod comes into a slot that a program may still
 * be reading (agent/kernel/places.py).
 */
struct place {
	__u32 endpoint;
	__u32 ifindex; /* host side of the pod's pair */
	__u8 mac[6]; /* of the pod's end */
	__u8 host_mac[6];
	__u32 address4; /* network order; 0: the pod has none */
	struct address address6; /* all zero: the pod has none */
	__u32 pad[6]; /* values of an array are 16 bytes into a cache line */
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

/* ---- services --------------------------------------------------------- */

enum service_limit {
	SERVICE_PEERS = 4,
};

/* service_peers: a port of a service's address -> who is behind it. Egress policy
 * speaks of these, but the node's stack (kube-proxy) chooses one only after it was
 * asked: so a connection is allowed if it is allowed to each of them. A service
 * with more kinds of peers has no entry, and its address is an address like others.
 */
struct service_key {
	struct address address;
	__u16 port; /* network order */
	__u8 protocol;
	__u8 pad;
};

struct service_peers {
	/* The key repeated, so that a reader sees a reused element. */
	struct address address;
	__u16 service_port;
	__u8 protocol;
	__u8 pad;
	__u32 count;
	__u32 peer_class[4]; /* the first `count` of SERVICE_PEERS */
	__u32 identity[4];
	__u16 port[4]; /* of the peer, host order */
};

/* ---- other nodes ----------------------------------------------------- */

/* tunnels: longest-prefix table with peer_key, addresses of other nodes and of
 * their pods -> the node. What it holds may only come from there.
 */
struct tunnel {
	/* Outer address of that node; all zero: no tunnel, along the route. */
	struct address remote;
	struct address local; /* of this node, towards it */
	__u32 ifindex; /* of the tunnel's device; 0: there is none now */
	__u32 flags; /* enum tunnel_flag */
};

enum tunnel_flag {
	/* An address that the node may send from, but perhaps not be reached
	 * at: a cloud may translate it.
	 */
	TUNNEL_SOURCE_ONLY = 1,
};

/* The identity travels as the network identifier (VNI), which has 24 bits; what
 * does not fit in these is local to its node and never sent.
 */
enum tunnel_limit {
	TUNNEL_VNI_MAX = 65535,
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
	/* Straight between two pods of this node: each end's entry counts what
	 * its own pod sent, and no packet twice.
	 */
	CT_LOCAL = 64,
	CT_TUNNEL = 128, /* from or to another node, through the tunnel */
};

/* Who sent the packets that opened an ingress connection. The packet's way
 * tells, not its source address; smaller numbers are endpoint ids.
 */
enum origin {
	ORIGIN_ADDRESS = 0, /* from outside: the address is all there is */
	ORIGIN_UNKNOWN = 0x7ffffffe, /* from outside, source translated here */
	ORIGIN_NODE = 0x7fffffff, /* the node's own stack */
};

/* With this bit the origin is another node's tunnel, and the low 16 bits are
 * the identity that it gave the sender.
 */
enum origin_bit {
	ORIGIN_TUNNEL_BIT = 31,
};

/* The verdict in one word, so that no reader sees half of a change: the policy
 * epoch that it was read under and these bits.
 */
enum ct_verdict_bit {
	CT_VOUCHED_BIT = 62, /* the policy at the far end allows it too */
	CT_DENIED_BIT = 63,
};

/* How old the far end's entry of a connection within the node may look, in bits
 * of seconds: the first packet in each slot of that length tells it.
 */
enum ct_told {
	CT_TOLD_BITS = 4,
};

struct ct_entry {
	__u64 verdict; /* epoch and enum ct_verdict_bit */
	__u32 seen; /* CLOCK_MONOTONIC_COARSE, s, of the last packet */
	__u32 flags; /* enum ct_flag */
	__u64 bytes[2]; /* original direction, reply direction */
	__u32 packets[2]; /* the same; they wrap around */
	__u32 rule; /* that allowed it */
	/* ingress: who opened it, enum origin or an endpoint id; egress: the
	 * endpoint that the verdict vouches for
	 */
	__u32 far_end;
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

/* ---- masquerading ---------------------------------------------------- */

/* masquerade: what pods look like to the outside on the way out by an uplink.
 * Without an entry nothing of theirs leaves that way, but for destinations in
 * masquerade_exclude.
 */
struct masquerade_key {
	__u32 ifindex;
	__u32 family; /* 4, 6 */
};

struct masquerade_source {
	struct address address; /* of the node */
	__u32 seed; /* of the choice of ports, so that nobody can guess them */
	__u16 first_port; /* host order */
	__u16 last_port;
};

/* nat: a pod's connection, seen from the endpoint as in ct, -> what it is to the
 * outside. Made and touched by what goes out. There is an entry of nat_reverse
 * for each one; it is made first and removed last.
 */
struct nat_entry {
	struct address address; /* of the node */
	__u32 seen; /* CLOCK_MONOTONIC_COARSE, s, of the last packet out */
	__u16 port; /* network order; of ICMP queries the identifier */
	__u16 flags; /* enum ct_flag, of packets out */
};

/* nat_reverse: the same as the outside sees it -> whose it is. Touched by what
 * comes back.
 */
struct nat_reverse_key {
	struct address remote;
	struct address address; /* of the node */
	__u16 remote_port; /* network order */
	__u16 port;
	__u8 protocol;
	__u8 pad[3];
};

struct nat_origin {
	struct address address; /* of the pod */
	__u32 endpoint;
	__u32 seen;
	__u16 port;
	__u16 flags; /* enum ct_flag, of packets back */
};

/* ---- socket redirect ------------------------------------------------- */

enum redirect_mode {
	REDIRECT_OFF = 0,
	REDIRECT_ON = 1, /* sockets that never block in a call */
	REDIRECT_ALL = 2, /* blocking ones too */
};

/* namespaces: network namespace cookie -> the endpoint whose namespace it is,
 * as CNI found it. A namespace that a process in a pod made for itself is not
 * here, whatever addresses it gives itself.
 */

/* socket_endpoints: endpoint id -> its sockets. */
struct socket_endpoint {
	__u64 netns; /* cookie of its network namespace */
	__u32 mode; /* enum redirect_mode */
	__u32 pad;
};

/* redirect: one entry. */
struct redirect_config {
	__u32 enabled; /* 0: every message goes through the stack */
	__u32 unread_max; /* bytes that may wait in a receiver */
};

/* spliced: one u64, counted up whenever a socket was seen to be read by splice,
 * so that senders need not look at each receiver for each message.
 */

/* What the two ends of one TCP connection have in common, and nobody else: the
 * first sequence numbers, as chosen by both ends' kernel (RFC 9293, 3.4.1).
 */
struct handshake_key {
	__u32 client; /* first sequence number of data, of who opened it */
	__u32 server;
};

/* sockets: SOCKHASH. Neither address nor port: with translation on the way the
 * two ends see different ones, and a process can claim any.
 */
struct socket_key {
	__u64 netns; /* cookie of the socket's own namespace */
	__u64 far_netns; /* of the other end's */
	__u32 client; /* as struct handshake_key */
	__u32 server;
	__u32 side; /* enum socket_side */
	__u32 pad;
};

enum socket_side {
	SIDE_OPENED = 1, /* connect */
	SIDE_ANSWERED = 2, /* accept */
};

/* handshakes: handshake_key -> what the opening end says of itself; the other
 * end, if it agrees, puts its own beside it. The opening end reads it at its
 * first message. Addresses of kernel memory are read with
 * bpf_probe_read_kernel, so stale ones do no harm.
 */
struct handshake {
	__u64 netns;
	__u64 far_netns; /* where it expects the other end */
	__u64 socket; /* address of its struct sock */
	__u64 state; /* of its struct socket_state */
	__u64 far_socket; /* written last by the other end; 0: it did not agree */
	__u64 far_state;
	struct address source; /* as the opening end sees the connection */
	struct address destination;
	__u16 source_port; /* network order */
	__u16 destination_port;
	__u32 endpoint;
	__u32 far_endpoint;
	__u32 far_port; /* host order, of the other end */
};

/* listeners: how the sockets of a port have been used so far. */
struct listener_key {
	__u64 netns;
	__u16 port; /* host order, of the answering side */
	__u16 side; /* enum socket_side */
	__u32 pad;
};

enum socket_use {
	USE_UNKNOWN = 0,
	USE_NEVER_BLOCKS = 1,
	USE_BLOCKS = 2,
	USE_SPLICES = 3,
	USE_ZEROCOPY = 4,
};

enum redirect_state {
	REDIRECT_WAITING = 0, /* nothing was sent yet */
	REDIRECT_DIRECT = 1,
	REDIRECT_STACK = 2,
	REDIRECT_LEARNING = 3, /* not in the table; only looked at */
};

/* Why a message went through the stack. */
enum stack_reason {
	STACK_NONE = 0,
	STACK_DISABLED = 1,
	STACK_UNANSWERED = 2, /* the other end did not agree, or not yet */
	STACK_BLOCKING = 3, /* the receiver may block in a call */
	STACK_SPLICES = 4, /* the receiver uses splice */
	STACK_POLICY = 5, /* not allowed under the present epoch, as far as known */
	STACK_UNREAD = 6, /* as much waits in the receiver as may */
	STACK_DRAINING = 7, /* what went before is not consumed yet */
	STACK_GONE = 8, /* the other end has left the table */
	STACK_UNKNOWN_USE = 9, /* first connection to a port: it is looked at */
	STACK_REASONS = 16,
};

/* Why a connection of an endpoint with redirect on is none of ours; index of
 * the counters after those of enum stack_reason.
 */
enum socket_outcome {
	SOCKET_ENTERED = 0,
	SOCKET_FAR_AWAY = 1, /* the other end is not on this node, or has it off */
	SOCKET_BLOCKING = 2,
	SOCKET_SPLICES = 3,
	SOCKET_DENIED = 4, /* no tracked connection allows it */
	SOCKET_TABLE_FULL = 5,
	SOCKET_UNKNOWN_USE = 6, /* first connection to a listener */
	SOCKET_REFUSED = 7, /* the kernel does not take it */
	SOCKET_FORGED = 8, /* an address that is not of its namespace */
	SOCKET_STUCK = 9, /* splice met data that was redirected */
	SOCKET_INTERCEPTED = 10, /* answered elsewhere than was thought */
	SOCKET_ZEROCOPY = 11, /* completions are never told of what is redirected */
	SOCKET_OUTCOMES = 16,
};

/* socket_counters: per CPU, u64. */
enum socket_counter {
	SOCKETS_BY_STACK_REASON = 0, /* messages, index: enum stack_reason */
	SOCKETS_BY_OUTCOME = 16, /* connections' ends, index: enum socket_outcome */
	SOCKETS_FIRST_DIRECT = 32, /* directions redirected from their first byte */
	SOCKETS_FIRST_STACK = 33, /* directions that began on the stack */
	SOCKET_COUNTERS = 48,
};

enum socket_flag {
	SOCKET_MAY_BLOCK = 1, /* mode REDIRECT_ALL: its use is not looked at */
	SOCKET_SPLICED = 2, /* the application called splice on it */
	SOCKET_SAME_NETNS = 4, /* both ends in one namespace: no policy between */
	SOCKET_LOOKS_ON = 8, /* at how the other end, which is not in, is used */
	SOCKET_LEARNT = 16, /* and has seen it */
	SOCKET_FAR_MAY_BLOCK = 32, /* as found at the other end */
	SOCKET_FAR_SPLICES = 64,
	SOCKET_PARTED = 128, /* its last message was redirected in part only, so far */
	SOCKET_IN_VAIN = 256, /* splice found nothing though redirected bytes waited */
	SOCKET_USE_TOLD = 512, /* how it is used itself was looked at */
};

/* socket_states: SK_STORAGE. One end of a connection, and what it sent. What each
 * message needs comes first, in two lines of the cache.
 */
struct socket_state {
	/* Its own key in `sockets`, field by field. */
	__u64 netns;
	__u64 far_netns;
	__u32 client;
	__u32 server;
	__u32 side;
	__u32 flags; /* enum socket_flag */
	__u64 far_socket; /* 0: not known (yet) */
	__u64 epoch; /* under which the connection was found allowed */
	__u64 spliced; /* the count of `spliced` when its receiver was looked at */
	__u64 bytes; /* sent and redirected */
	__u64 messages;
	__u64 read_messages; /* of them: known to be read by the other end */
	__u64 tick; /* of the kernel, at the last redirected message */
	__u64 refreshed; /* CLOCK_MONOTONIC_COARSE, ns: when its entries in ct were touched */
	__u16 state; /* enum redirect_state */
	__u16 reason; /* enum stack_reason */
	__u32 endpoint;
	__u32 far_endpoint;
	__u32 identity; /* when the connection was opened */
	__u32 far_identity;
	__u32 far_port; /* host order: where the other end listened */
	__u64 far_state;
	__u64 far_file_flags; /* address of f_flags; 0: not accepted yet */
	/* A place in what it sent, of which it is not known yet to be read. */
	__u64 mark_messages;
	__u64 mark_bytes;
	__u64 stack_messages;
	__u64 told_bytes; /* of bytes, already added to `socket_traffic` */
	__u64 told_messages;
	struct address source; /* as the opening end sees the connection */
	struct address destination;
	__u16 source_port; /* network order */
	__u16 destination_port;
	__u32 port; /* host order, in `listeners`: listened at, or dialled */
	__u64 cookie; /* SO_COOKIE */
};

/* socket_traffic: what was redirected between two identities. */
struct socket_traffic_key {
	__u32 source_identity;
	__u32 destination_identity;
};

struct socket_traffic {
	__u64 bytes;
	__u64 messages;
	__u64 connections; /* ends that have closed */
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
	DROP_WRITE_FAILED = 141,
	DROP_TUNNEL_KEY = 147,
	DROP_NO_LOCAL_ENDPOINT = 152,
	DROP_CT_INSERTION_FAILED = 155,
	DROP_INVALID_EXTENSION_HEADER = 156,
	DROP_NO_TUNNEL = 160,
	DROP_NO_ENDPOINT_POLICY = 165,
	DROP_NAT_NO_MAPPING = 167,
	DROP_NAT_UNSUPPORTED_PROTOCOL = 168,
	DROP_FIB_LOOKUP_FAILED = 169,
	DROP_INVALID_IDENTITY = 171,
	DROP_UNKNOWN_SENDER = 172,
	DROP_FRAGMENT_NOT_FOUND = 175,
	DROP_FORBIDDEN_ICMP6 = 176,
	DROP_POLICY_DENY_RULE = 181,
	DROP_VLAN_FILTERED = 182,
	DROP_INVALID_VNI = 183,
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
	COUNTER_NAT_CREATED = 4,
	COUNTER_NAT_EXHAUSTED = 5, /* no free port was found */
	COUNTER_NAT_FULL = 6, /* no room in the table */
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
	OBSERVE_TO_OVERLAY = 4,
	OBSERVE_FROM_ENDPOINT = 5,
	OBSERVE_FROM_OVERLAY = 9,
	OBSERVE_FROM_NETWORK = 10,
	OBSERVE_TO_NETWORK = 11,
	OBSERVE_TO_SOCKET = 64, /* ours: from here on from socket to socket */
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
	SCRATCH_BYTES = 1024,
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
	__u32 tunnel_port; /* UDP, network order; 0: there is no tunnel */
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

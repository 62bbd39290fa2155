/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Wanted by <linux/icmp.h> and <linux/if_arp.h>, which leave it to the C library. */
#pragma once
#include <uapi/linux/socket.h>

struct sockaddr {
	__kernel_sa_family_t sa_family;
	char sa_data[14];
};

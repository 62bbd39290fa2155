/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The compiler includes this file before everything else. Kernel sources would
 * have the kernel's configuration here; bcc's helpers.h asks for these alone.
 */
#pragma once
#define __LINUX_BPF_H__ 1 /* bcc brings a bpf.h of its own */
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_CC_STACKPROTECTOR 1

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bcc's helpers.h includes it; nothing of it is used. */
#pragma once

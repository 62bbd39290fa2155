/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for ICU's 31 MB of locale data in the image, as ICU's own "stubdata" does: a package
 * with no entries. LLVM is linked against libxml2, and that against ICU, for merging manifests of
 * Windows programs; bcc never gets there. Layout: UDataInfo and ToCEntry of ICU's udata.h, ucmndata.h.
 */
#include <stdint.h>

struct package {
	uint16_t header_size;
	uint8_t magic[2];
	uint16_t info_size, reserved;
	uint8_t big_endian, charset, uchar_size, reserved_byte;
	uint8_t format[4], format_version[4], data_version[4];
	uint8_t pad[8];
	uint32_t entries, pad_entries[3];
};

__attribute__((visibility("default"))) const struct package ENTRY_POINT = {
	.header_size = 32,
	.magic = { 0xda, 0x27 },
	.info_size = 20,
	.big_endian = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__,
	.uchar_size = 2,
	.format = "ToCP",
	.format_version = { 1 },
};

/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SIZES_H
#define REWIND_CLI_SIZES_H

#include <stdint.h>

#include "base/err.h"

/*
 * A number of bytes as people write it: decimal or 0x hexadecimal, then
 * nothing or one of K M G T P E (powers of 1024, either case), then nothing or
 * "iB". "KB" is refused because it means 1000 to some. 0, or -EINVAL or
 * -ERANGE with `e` set.
 */
int size_parse(const char *text, uint64_t *ret_bytes, struct err *e);

/* A whole number from 0 to `max`, decimal or 0x hexadecimal; as size_parse. */
int number_parse(const char *text, uint64_t max, uint64_t *ret, struct err *e);

#define SIZE_TEXT_BYTES 24u

/* "512 B", "4 KiB", "1.5 GiB": exact up to 1023 of a unit, else one digit
 * after the point. Returns `buf`. */
const char *size_format(char buf[SIZE_TEXT_BYTES], uint64_t bytes);

/* "850 ns", "12 us", "3.4 ms", "2.1 s". Returns `buf`. */
const char *duration_format(char buf[SIZE_TEXT_BYTES], uint64_t ns);

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_TEXT_H
#define REWIND_NBD_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* True if the bytes are a string as the protocol wants them (proto.md
 * "Conventions"): UTF-8, no NUL, at most NBD_STRING_MAX bytes. */
bool text_valid(const void *bytes, size_t len_bytes);

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_JSON_H
#define REWIND_CLI_JSON_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

/*
 * What every --json output shares. A document that could not be built for want
 * of memory is NULL, or has NULL in it; jansson takes that everywhere, and
 * json_write tells.
 */

/* A number of bytes or a count. JSON has no unsigned 64 bits; beyond 2^63 - 1
 * it says that much. */
json_t *json_bytes(uint64_t value);

/* A string from anywhere, say from a server or a file name: what is not UTF-8
 * becomes \xNN as in messages. */
json_t *json_any_string(const char *text);

/* Prints a document, one line, and drops it. 0, or -1 if it is incomplete or
 * does not go out. */
int json_write(json_t *document, FILE *out);

/* The same for people, indented, on standard output. Returns enum cli_status,
 * after a message if it failed. */
int json_print(json_t *document);

#endif

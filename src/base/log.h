/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_LOG_H
#define REWIND_BASE_LOG_H

#include <stddef.h>

/* Messages for the person who runs us; they go to standard error, one line
 * each, written by one write(2) so that threads do not mix. */
enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Set once before threads start. Default: LOG_WARN, prefix "rewind". */
void log_setup(enum log_level level, const char *prefix);
enum log_level log_level_now(void);

void log_write(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

/*
 * Makes bytes from a peer or a file safe to print: printable ASCII stays,
 * everything else becomes \xNN, and what does not fit ends in "...". Writes at
 * most `cap` bytes with the NUL (cap >= 8) and returns `buf`.
 */
const char *log_quote(char *buf, size_t cap, const void *bytes, size_t len);

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Messages for the person who runs us: see log.h for the contract. Level and
 * prefix are set before threads start and only read afterwards; a message is
 * built on the caller's stack, so that nothing here needs a lock.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Longer than an err text with its prefix; the rest of a longer line is cut. */
#define LINE_MAX_BYTES 2048

static enum log_level level_max = LOG_WARN;
static char prefix_text[64] = "rewind";

static const char *const level_words[] = {
    [LOG_ERROR] = "error: ",
    [LOG_WARN] = "warning: ",
    [LOG_INFO] = "",
    [LOG_DEBUG] = "debug: ",
};

void
log_setup(enum log_level level, const char *prefix)
{
    level_max = level;
    snprintf(prefix_text, sizeof(prefix_text), "%s", prefix);
}

enum log_level
log_level_now(void)
{
    return level_max;
}

/* Standard error may be a closed or full pipe: then the message is lost, and
 * nothing else happens. */
static void
write_line(const char *line, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDERR_FILENO, line, len);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return;
        }
        line += n;
        len -= (size_t)n;
    }
}

/* One message is one line, whatever a file name in it holds; bytes above
 * 0x7f stay, since names may be UTF-8. */
static void
flatten(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) {
            *text = ' ';
        }
    }
}

void
log_write(enum log_level level, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    const size_t cap = sizeof(line) - 1; /* with a NUL; then the newline */
    int errno_before = errno;
    size_t len;
    va_list ap;
    int n;

    if (level > level_max) {
        return;
    }
    snprintf(line, cap, "%s: %s", prefix_text, level_words[level]);
    len = strlen(line);
    va_start(ap, fmt);
    n = vsnprintf(line + len, cap - len, fmt, ap);
    va_end(ap);
    if (n < 0) {
        line[len] = '\0';
    } else if ((size_t)n >= cap - len) {
        memcpy(line + cap - 4, "...", 4);
    }
    flatten(line);
    len = strlen(line);
    line[len++] = '\n';
    write_line(line, len);
    errno = errno_before;
}

const char *
log_quote(char *buf, size_t cap, const void *bytes, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *in = bytes;
    size_t at = 0;
    size_t fits = 0; /* how far `at` may be cut back to leave room for "..." */

    for (size_t i = 0; i < len; i++) {
        bool plain = in[i] >= 0x20 && in[i] < 0x7f;
        size_t need = plain ? 1 : 4;

        if (need > cap - 1 - at) {
            memcpy(buf + fits, "...", 4);
            return buf;
        }
        if (plain) {
            buf[at] = (char)in[i];
        } else {
            memcpy(buf + at, "\\x", 2);
            buf[at + 2] = hex[in[i] >> 4];
            buf[at + 3] = hex[in[i] & 15];
        }
        at += need;
        if (at <= cap - 4) {
            fits = at;
        }
    }
    buf[at] = '\0';
    return buf;
}

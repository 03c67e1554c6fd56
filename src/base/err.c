/* SPDX-License-Identifier: BSD-2-Clause */
/* Errors of the control path: see err.h for the contract. No state. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int
err_set(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;

    if (e != NULL) {
        e->code = code;
        va_start(ap, fmt);
        vsnprintf(e->text, sizeof(e->text), fmt, ap);
        va_end(ap);
    }
    return -code;
}

void
err_prefix(struct err *e, const char *fmt, ...)
{
    char old[sizeof(e->text)];
    size_t len;
    va_list ap;
    int n;

    if (e == NULL) {
        return;
    }
    memcpy(old, e->text, sizeof(old));
    va_start(ap, fmt);
    n = vsnprintf(e->text, sizeof(e->text), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 3 > sizeof(e->text)) {
        return;
    }
    e->text[n++] = ':';
    e->text[n++] = ' ';
    len = strnlen(old, sizeof(e->text) - (size_t)n - 1);
    memcpy(e->text + n, old, len);
    e->text[(size_t)n + len] = '\0';
}

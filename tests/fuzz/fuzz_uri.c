/* SPDX-License-Identifier: BSD-2-Clause */
/* Parses any text as an NBD URI. What is accepted must be written back, and
 * mean the same when it is read again. */
#include <stdlib.h>
#include <string.h>

#include "nbd/uri.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every byte of every part escaped, and the rest. */
#define TEXT_BYTES (3 * sizeof(struct uri) + 64)

static bool
same(const struct uri *a, const struct uri *b)
{
    return a->scheme == b->scheme && a->tls == b->tls && a->port == b->port &&
           strcmp(a->host, b->host) == 0 && strcmp(a->socket, b->socket) == 0 &&
           strcmp(a->export, b->export) == 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), *again = malloc(TEXT_BYTES);
    struct uri a, b;
    struct err e = {0};
    int rc;

    if (text == NULL || again == NULL) {
        abort();
    }
    if (size > 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    rc = uri_parse(text, &a, &e);
    if (rc != 0 && (rc != -e.code || e.text[0] == '\0')) {
        abort();
    }
    if (rc == 0 && (uri_format(&a, again, TEXT_BYTES) != 0 ||
                    uri_parse(again, &b, NULL) != 0 || !same(&a, &b))) {
        abort();
    }
    free(text);
    free(again);
    return 0;
}

/* SPDX-License-Identifier: BSD-2-Clause */
/* JSON output (json.h), through jansson. No state. */
#include "cli/json.h"

#include <string.h>

#include "base/log.h"
#include "cli/cli.h"

/* Longer than any export name or path with every byte escaped would need be;
 * the rest is cut. */
#define STRING_MAX 8192

json_t *
json_bytes(uint64_t value)
{
    return json_integer(value > (uint64_t)INT64_MAX ? INT64_MAX
                                                    : (json_int_t)value);
}

json_t *
json_any_string(const char *text)
{
    char quoted[STRING_MAX];
    json_t *s = json_string(text);

    if (s != NULL) {
        return s;
    }
    return json_string(log_quote(quoted, sizeof(quoted), text, strlen(text)));
}

static int
dump(json_t *document, FILE *out, size_t flags)
{
    int r = document == NULL ? -1 : json_dumpf(document, out, flags);

    json_decref(document);
    if (r == 0 && (fputc('\n', out) == EOF || fflush(out) != 0)) {
        r = -1;
    }
    return r;
}

int
json_write(json_t *document, FILE *out)
{
    return dump(document, out, JSON_COMPACT);
}

int
json_print(json_t *document)
{
    if (dump(document, stdout, JSON_INDENT(2)) != 0) {
        log_error("cannot write JSON to standard output");
        return CLI_FAILED;
    }
    return CLI_OK;
}

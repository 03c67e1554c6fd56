/* SPDX-License-Identifier: BSD-2-Clause */
/* Sizes, numbers and durations, read and written (sizes.h). No state. */
#include "cli/sizes.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

static const char units[] = "KMGTPE";

/* The digits at the beginning of `text`. NULL if there are none. */
static const char *
parse_digits(const char *text, uint64_t *ret)
{
    char *end;

    /* strtoull would take a sign and white space. */
    if (!isdigit((unsigned char)text[0])) {
        return NULL;
    }
    errno = 0;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        if (!isxdigit((unsigned char)text[2])) {
            return NULL;
        }
        *ret = strtoull(text, &end, 16);
    } else {
        *ret = strtoull(text, &end, 10);
    }
    return end;
}

int
size_parse(const char *text, uint64_t *ret_bytes, struct err *e)
{
    const char *end, *unit;
    unsigned shift = 0;
    uint64_t value;

    end = parse_digits(text, &value);
    if (end == NULL) {
        return err_set(e, EINVAL,
                       "\"%s\" is not a size; write for example "
                       "1048576, 1M or 0x100000",
                       text);
    }
    if (errno == ERANGE) {
        return err_set(e, ERANGE, "\"%s\" is more than 64 bits hold", text);
    }
    unit = *end != '\0' ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit != NULL) {
        shift = 10 * (unsigned)(unit - units + 1);
        end++;
        if (strcmp(end, "iB") == 0) {
            end += 2;
        }
    }
    if (*end != '\0') {
        return err_set(e, EINVAL,
                       "\"%s\" is not a size; after the number comes nothing, "
                       "K, M, G, T, P or E (powers of 1024)",
                       text);
    }
    if (shift > 0 && value > UINT64_MAX >> shift) {
        return err_set(e, ERANGE, "\"%s\" is more than 64 bits hold", text);
    }
    *ret_bytes = value << shift;
    return 0;
}

int
number_parse(const char *text, uint64_t max, uint64_t *ret, struct err *e)
{
    uint64_t value;
    const char *end = parse_digits(text, &value);

    if (end == NULL || *end != '\0') {
        return err_set(e, EINVAL, "\"%s\" is not a number from 0 to %llu", text,
                       (unsigned long long)max);
    }
    if (errno == ERANGE || value > max) {
        return err_set(e, ERANGE, "%s is more than %llu", text,
                       (unsigned long long)max);
    }
    *ret = value;
    return 0;
}

const char *
size_format(char buf[SIZE_TEXT_BYTES], uint64_t bytes)
{
    unsigned shift = 0;

    if (bytes < KIB) {
        snprintf(buf, SIZE_TEXT_BYTES, "%u B", (unsigned)bytes);
        return buf;
    }
    while (bytes >> shift >= KIB) {
        shift += 10;
    }
    const char unit = units[shift / 10 - 1];
    const uint64_t whole = bytes >> shift;

    if (whole << shift == bytes) {
        snprintf(buf, SIZE_TEXT_BYTES, "%u %ciB", (unsigned)whole, unit);
    } else {
        /* Downwards: what is free or left is never told too large. */
        uint64_t rest = (bytes >> (shift - 10)) % KIB;

        snprintf(buf, SIZE_TEXT_BYTES, "%u.%u %ciB", (unsigned)whole,
                 (unsigned)(rest * 10 / KIB), unit);
    }
    return buf;
}

const char *
duration_format(char buf[SIZE_TEXT_BYTES], uint64_t ns)
{
    static const struct {
        const char *unit;
        uint64_t ns;
    } steps[] = {{"s", 1000000000}, {"ms", 1000000}, {"us", 1000}, {"ns", 1}};
    unsigned i = 0;

    while (i + 1 < ARRAY_LEN(steps) && ns < steps[i].ns) {
        i++;
    }
    const uint64_t tenths = ns / (steps[i].ns > 1 ? steps[i].ns / 10 : 1);

    if (steps[i].ns == 1 || tenths >= 100) {
        snprintf(buf, SIZE_TEXT_BYTES, "%llu %s",
                 (unsigned long long)(ns / steps[i].ns), steps[i].unit);
    } else {
        snprintf(buf, SIZE_TEXT_BYTES, "%u.%u %s", (unsigned)(tenths / 10),
                 (unsigned)(tenths % 10), steps[i].unit);
    }
    return buf;
}

/* SPDX-License-Identifier: BSD-2-Clause */
/* The set of exports, the strings it takes, and the transmission flags. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "nbd/export.h"
#include "nbd/limits.h"
#include "nbd/text.h"

static void
test_defaults(void **state)
{
    struct export_set set = {0};
    struct err e = {0};
    struct export *x = export_set_add(&set, "disk", NULL, NULL, &e);

    (void)state;
    assert_non_null(x);
    assert_int_equal(set.count, 1);
    assert_string_equal(x->name, "disk");
    assert_null(x->description);
    assert_int_equal(x->size_bytes, 0);
    assert_true(x->read_only);
    assert_int_equal(x->min_block_bytes, 1);
    assert_int_equal(x->pref_block_bytes, 4096);
    assert_int_equal(x->max_payload_bytes, LIMIT_PAYLOAD_BYTES);
    assert_int_equal(x->contexts, 1u << NBD_CONTEXT_ALLOCATION);
    export_set_free(&set);
    assert_int_equal(set.count, 0);
    export_set_free(&set);
}

static const struct export *
find(const struct export_set *set, const char *name)
{
    return export_set_find(set, name, strlen(name));
}

static void
test_find(void **state)
{
    struct export_set set = {0};

    (void)state;
    assert_null(find(&set, ""));
    assert_null(find(&set, "a"));
    for (char name[] = "a"; name[0] <= 'z'; name[0]++) {
        assert_non_null(export_set_add(&set, name, "text", NULL, NULL));
    }
    assert_int_equal(set.count, 26);
    assert_ptr_equal(find(&set, "a"), &set.exports[0]);
    assert_ptr_equal(find(&set, "z"), &set.exports[25]);
    assert_ptr_equal(find(&set, ""), &set.exports[0]);
    assert_ptr_equal(export_set_find(&set, NULL, 0), &set.exports[0]);
    assert_ptr_equal(export_set_find(&set, "cd", 1), &set.exports[2]);
    assert_null(find(&set, "ab"));
    assert_null(find(&set, "A"));
    assert_null(export_set_find(&set, "a", 2)); /* with its NUL */
    assert_non_null(export_set_add(&set, "", NULL, NULL, NULL));
    assert_ptr_equal(find(&set, ""), &set.exports[26]);
    export_set_free(&set);
}

static void
expect_refused(struct export_set *set, const char *name,
               const char *description, const char *says)
{
    unsigned count = set->count;
    struct err e = {0};

    assert_null(export_set_add(set, name, description, NULL, &e));
    assert_int_not_equal(e.code, 0);
    if (strstr(e.text, says) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    }
    assert_int_equal(set->count, count);
}

static void
test_refused(void **state)
{
    struct export_set set = {0};
    char text[NBD_STRING_MAX + 2];

    (void)state;
    memset(text, 'n', sizeof(text));
    text[NBD_STRING_MAX + 1] = '\0';
    expect_refused(&set, text, NULL, "has 4097 bytes; NBD allows 4096");
    expect_refused(&set, "x", text, "description");
    text[NBD_STRING_MAX] = '\0';
    assert_non_null(export_set_add(&set, text, text, NULL, NULL));
    expect_refused(&set, text, NULL, "used twice");
    assert_non_null(export_set_add(&set, "", NULL, NULL, NULL));
    expect_refused(&set, "", NULL, "used twice");
    expect_refused(&set, "\xff%n", NULL, "\"\\xff%n\" is not UTF-8");
    expect_refused(&set, "x", "caf\xe9", "not UTF-8");
    export_set_free(&set);
}

static void
test_text(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        bool valid;
    } cases[] = {
        {"", 0, true},
        {"plain\n\x7f", 7, true},
        {"a\0b", 3, false},
        {"\xc3\xa9", 2, true},
        {"\xc3", 1, false},
        {"\xc3z", 2, false},
        {"\xa9", 1, false},
        {"\xc0\x80", 2, false}, /* NUL, overlong */
        {"\xc1\xbf", 2, false},
        {"\xc2\x80", 2, true},
        {"\xe0\x9f\xbf", 3, false}, /* overlong */
        {"\xe0\xa0\x80", 3, true},
        {"\xed\x9f\xbf", 3, true},
        {"\xed\xa0\x80", 3, false}, /* surrogate */
        {"\xee\x80\x80", 3, true},
        {"\xef\xbf", 2, false},
        {"\xe2\x82z", 3, false},
        {"\xf0\x8f\xbf\xbf", 4, false}, /* overlong */
        {"\xf0\x90\x80\x80", 4, true},
        {"\xf4\x8f\xbf\xbf", 4, true},
        {"\xf4\x90\x80\x80", 4, false}, /* beyond U+10FFFF */
        {"\xf5\x80\x80\x80", 4, false},
        {"\xff", 1, false},
        {"\xf0\x9f\x98\x80 ok", 7, true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        if (text_valid(cases[i].bytes, cases[i].len) != cases[i].valid) {
            fail_msg("case %zu", i);
        }
    }
}

static void
test_flags(void **state)
{
    const unsigned always = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                            NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN |
                            NBD_FLAG_SEND_CACHE;
    const unsigned writable = always | NBD_FLAG_SEND_TRIM |
                              NBD_FLAG_SEND_WRITE_ZEROES |
                              NBD_FLAG_SEND_FAST_ZERO;
    struct export x = {0};

    (void)state;
    assert_int_equal(export_flags(&x, false, false, 0), writable);
    assert_int_equal(export_flags(&x, false, false, 1), writable);
    assert_int_equal(export_flags(&x, true, false, 3),
                     writable | NBD_FLAG_SEND_DF);
    assert_int_equal(export_flags(&x, true, true, 0),
                     writable | NBD_FLAG_SEND_DF);
    assert_int_equal(export_flags(&x, false, true, 2),
                     writable | NBD_FLAG_SEND_DF |
                         NBD_FLAG_BLOCK_STATUS_PAYLOAD);
    x.read_only = true;
    assert_int_equal(export_flags(&x, false, false, 0),
                     always | NBD_FLAG_READ_ONLY);
    assert_int_equal(export_flags(&x, true, true, 1),
                     always | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_DF |
                         NBD_FLAG_BLOCK_STATUS_PAYLOAD);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_find),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_text),
        cmocka_unit_test(test_flags),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

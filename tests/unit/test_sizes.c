/* SPDX-License-Identifier: BSD-2-Clause */
/* Sizes, numbers and durations as people write and read them (cli/sizes.h),
 * and the nearest word (cli/suggest.h). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cli/sizes.h"
#include "cli/suggest.h"

static void
reads_sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } rows[] = {
        {"0", 0},
        {"1", 1},
        {"0512", 512},
        {"0x10", 16},
        {"0X1f", 31},
        {"4K", 4096},
        {"4k", 4096},
        {"4KiB", 4096},
        {"1M", MIB},
        {"3G", 3 * GIB},
        {"64T", 64 * TIB},
        {"1P", TIB << 10},
        {"15E", UINT64_C(15) << 60},
        {"18446744073709551615", UINT64_MAX},
        {"0xffffffffffffffff", UINT64_MAX},
        {"16383P", UINT64_C(16383) << 50},
    };
    struct err e = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        uint64_t bytes = 7;

        assert_int_equal(size_parse(rows[i].text, &bytes, &e), 0);
        assert_int_equal(bytes, rows[i].bytes);
    }
}

static void
refuses_what_is_no_size(void **state)
{
    static const struct {
        const char *text;
        int code;
    } rows[] = {
        {"", EINVAL},
        {"K", EINVAL},
        {"-1", EINVAL},
        {"+1", EINVAL},
        {" 1", EINVAL},
        {"1 ", EINVAL},
        {"1.5G", EINVAL},
        {"4KB", EINVAL},
        {"4B", EINVAL},
        {"4KK", EINVAL},
        {"4Ki", EINVAL},
        {"4iB", EINVAL},
        {"0x", EINVAL},
        {"0xg", EINVAL},
        {"1Z", EINVAL},
        {"ten", EINVAL},
        {"18446744073709551616", ERANGE},
        {"16E", ERANGE},
        {"16384P", ERANGE},
        {"99999999999999999999K", ERANGE},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct err e = {0};
        uint64_t bytes = 7;

        assert_int_equal(size_parse(rows[i].text, &bytes, &e), -rows[i].code);
        assert_int_equal(e.code, rows[i].code);
        assert_int_equal(bytes, 7);
        assert_non_null(strstr(e.text, rows[i].text));
    }
}

static void
reads_numbers_up_to_a_limit(void **state)
{
    struct err e = {0};
    uint64_t n = 7;

    (void)state;
    assert_int_equal(number_parse("65535", 65535, &n, &e), 0);
    assert_int_equal(n, 65535);
    assert_int_equal(number_parse("65536", 65535, &n, &e), -ERANGE);
    assert_int_equal(number_parse("1K", 65535, &n, &e), -EINVAL);
    assert_int_equal(number_parse("", 65535, &n, &e), -EINVAL);
    assert_int_equal(number_parse("-1", 65535, &n, &e), -EINVAL);
    assert_int_equal(number_parse("99999999999999999999", UINT64_MAX, &n, &e),
                     -ERANGE);
    assert_int_equal(n, 65535);
}

static void
writes_sizes(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } rows[] = {
        {0, "0 B"},
        {1023, "1023 B"},
        {1024, "1 KiB"},
        {1025, "1.0 KiB"},
        {1536, "1.5 KiB"},
        {2047, "1.9 KiB"},
        {1023 * KIB, "1023 KiB"},
        {MIB - 1, "1023.9 KiB"},
        {MIB, "1 MiB"},
        {64 * TIB, "64 TiB"},
        {UINT64_MAX, "15.9 EiB"},
    };
    char text[SIZE_TEXT_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        assert_string_equal(size_format(text, rows[i].bytes), rows[i].text);
    }
}

static void
writes_durations(void **state)
{
    static const struct {
        uint64_t ns;
        const char *text;
    } rows[] = {
        {0, "0 ns"},           {999, "999 ns"},
        {1000, "1.0 us"},      {9999, "9.9 us"},
        {10000, "10 us"},      {999999, "999 us"},
        {1500000, "1.5 ms"},   {60000000000, "60 s"},
        {2100000000, "2.1 s"}, {UINT64_MAX, "18446744073 s"},
    };
    char text[SIZE_TEXT_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        assert_string_equal(duration_format(text, rows[i].ns), rows[i].text);
    }
}

static void
suggests_the_nearest_word(void **state)
{
    static const char *const words[] = {"serve", "doctor", "version",
                                        "completion", "help"};
    static const struct {
        const char *word;
        const char *best;
    } rows[] = {
        {"srve", "serve"},
        {"sevre", "serve"},
        {"serv", "serve"},
        {"serveer", "serve"},
        {"docter", "doctor"},
        {"comp", "completion"},
        {"versions", "version"},
        {"hlep", "help"},
        {"xyzzy", NULL},
        {"x", NULL},
        {"", NULL},
        {"an-argument-that-is-longer-than-any-word-we-know-of", NULL},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct suggest s;

        suggest_begin(&s, rows[i].word);
        for (size_t j = 0; j < ARRAY_LEN(words); j++) {
            suggest_offer(&s, words[j]);
        }
        if (rows[i].best == NULL) {
            assert_null(s.best);
        } else {
            assert_non_null(s.best);
            assert_string_equal(s.best, rows[i].best);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_sizes),
        cmocka_unit_test(refuses_what_is_no_size),
        cmocka_unit_test(reads_numbers_up_to_a_limit),
        cmocka_unit_test(writes_sizes),
        cmocka_unit_test(writes_durations),
        cmocka_unit_test(suggests_the_nearest_word),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

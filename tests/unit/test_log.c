/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of base/log.c: what is written, what is not, and in what shape.
 * Standard error is a pipe while a message is written. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static char caught[8192];

/* What one call of log_write puts on standard error, in `caught`. */
static void
catch_message(enum log_level level, const char *text)
{
    int fds[2];
    int before = dup(STDERR_FILENO);
    ssize_t n;

    assert_int_equal(pipe(fds), 0);
    assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
    close(fds[1]);
    log_write(level, "%s", text);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    close(before);
    n = read(fds[0], caught, sizeof(caught) - 1);
    assert_true(n >= 0);
    caught[n] = '\0';
    close(fds[0]);
}

static void
test_default_is_warnings(void **state)
{
    (void)state;
    assert_int_equal(log_level_now(), LOG_WARN);
    catch_message(LOG_ERROR, "it broke");
    assert_string_equal(caught, "rewind: error: it broke\n");
    catch_message(LOG_WARN, "careful");
    assert_string_equal(caught, "rewind: warning: careful\n");
    catch_message(LOG_INFO, "hello");
    assert_string_equal(caught, "");
}

static void
test_setup(void **state)
{
    (void)state;
    log_setup(LOG_DEBUG, "qemu-nbd");
    assert_int_equal(log_level_now(), LOG_DEBUG);
    catch_message(LOG_INFO, "hello");
    assert_string_equal(caught, "qemu-nbd: hello\n");
    catch_message(LOG_DEBUG, "details");
    assert_string_equal(caught, "qemu-nbd: debug: details\n");
    log_setup(LOG_WARN, "rewind");
}

static void
test_one_line_whatever_it_holds(void **state)
{
    (void)state;
    catch_message(LOG_ERROR, "a\nb\033[2J\177 M\303\274ller");
    assert_string_equal(caught, "rewind: error: a b [2J  M\303\274ller\n");
}

static void
test_long_message_is_cut(void **state)
{
    static char text[5000];
    size_t len;

    (void)state;
    memset(text, 'x', sizeof(text) - 1);
    catch_message(LOG_ERROR, text);
    len = strlen(caught);
    assert_true(len > 1500 && len <= 2048);
    assert_string_equal(caught + len - 5, "x...\n");

    /* Around the limit: whole, or cut, and always one newline at the end. */
    for (size_t n = 2000; n < 2060; n++) {
        text[n] = '\0';
        catch_message(LOG_ERROR, text);
        len = strlen(caught);
        assert_true(len <= 2048);
        assert_ptr_equal(strchr(caught, '\n'), caught + len - 1);
        if (len < n + strlen("rewind: error: ") + 1) {
            assert_string_equal(caught + len - 5, "x...\n");
        }
        text[n] = 'x';
    }
}

static void
test_keeps_errno(void **state)
{
    int before = dup(STDERR_FILENO);

    (void)state;
    close(STDERR_FILENO);
    errno = ENOSPC;
    log_error("nobody hears this");
    assert_int_equal(errno, ENOSPC);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    close(before);
}

static void
test_quote(void **state)
{
    static const struct {
        const char *in;
        size_t len;
        size_t cap;
        const char *out;
    } cases[] = {
        {"", 0, 8, ""},
        {"disk", 4, 8, "disk"},
        {"1234567", 7, 8, "1234567"},
        {"12345678", 8, 8, "1234..."},
        {"a\0b", 3, 16, "a\\x00b"},
        {"\n\xff", 2, 16, "\\x0a\\xff"},
        {"abc\n", 4, 8, "abc\\x0a"},
        {"abcd\n", 5, 8, "abcd..."},
        {"a\n\n", 3, 8, "a..."},
        {"\n\n\n", 3, 9, "\\x0a..."},
        {"\n\n", 2, 9, "\\x0a\\x0a"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char buf[32];

        memset(buf, '#', sizeof(buf));
        assert_ptr_equal(
            log_quote(buf, cases[i].cap, cases[i].in, cases[i].len), buf);
        assert_string_equal(buf, cases[i].out);
        assert_int_equal(buf[cases[i].cap], '#');
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_is_warnings),
        cmocka_unit_test(test_setup),
        cmocka_unit_test(test_one_line_whatever_it_holds),
        cmocka_unit_test(test_long_message_is_cut),
        cmocka_unit_test(test_keeps_errno),
        cmocka_unit_test(test_quote),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

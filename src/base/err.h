/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_ERR_H
#define REWIND_BASE_ERR_H

/*
 * An error on the control path: a positive errno and a sentence that says
 * what happened, to which file, and what to do. It is owned by the caller,
 * has a fixed size, and so can neither fail nor leak. The data path does not
 * use it: there, 0 or -errno is all.
 */
struct err {
    int code;        /* errno value, 0 while nothing went wrong */
    char text[1024]; /* NUL-terminated, no newline at the end */
};

/*
 * Records an error. `code` is a positive errno. `e` may be NULL (then only the
 * return value counts). Returns -code, so that a caller can write
 * `return err_set(e, EINVAL, "...")`.
 */
int err_set(struct err *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before what `e` already says. */
void err_prefix(struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_OPT_H
#define REWIND_CLI_OPT_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

/*
 * A command's options are a table with one handler per entry. The same table
 * drives getopt_long, --help and the shell completions, and a test holds it
 * against the man page; so an option is written down once.
 *
 * One thread: getopt's state is the process's.
 */
struct opt;

/*
 * Takes one option into the command's own struct. `arg` is borrowed from argv,
 * NULL if there is none. Returns 0, or -errno with a message that names the
 * value and says what is wanted.
 */
typedef int opt_set_fn(void *into, const struct opt *opt, const char *arg,
                       struct err *e);

/* Takes what is not an option, in its place among the options. */
typedef int opt_operand_fn(void *into, const char *arg, struct err *e);

/* What `choices` says of a name in the file system. */
#define OPT_FILE "<file>"
#define OPT_DIR "<dir>"

struct opt {
    const char *long_name; /* NULL: the table ends here */
    int short_name;        /* 0: none */
    int value;             /* for a handler that several entries share */
    const char *arg;       /* its argument's name, or NULL if it takes none */
    const char *heading;   /* a group of options begins here, or NULL */
    const char *help;      /* lines by \n */
    const char *choices; /* the words ARG can be, OPT_FILE, OPT_DIR, or NULL */
    opt_set_fn *set;
    const char *instead; /* refused: what to do instead. Then set is
                            opt_refuse */
    bool arg_optional;   /* --name or --name=ARG */
};

/* Every command's own struct begins with this. */
struct opt_common {
    bool help;
    bool json;
    bool version;
};

/* Handlers and entries that all commands share. */
opt_set_fn opt_set_help, opt_set_json, opt_set_version;

/* The handler of an option that we know and can't serve: says what to do
 * instead. */
opt_set_fn opt_refuse;

#define OPT_HELP                                                               \
    {                                                                          \
        .short_name = 'h', .long_name = "help", .set = opt_set_help,           \
        .help = "print this help"                                              \
    }
#define OPT_JSON                                                               \
    {                                                                          \
        .long_name = "json", .set = opt_set_json,                              \
        .help = "print JSON instead of text"                                   \
    }

/* The last entry of every table. */
#define OPT_END                                                                \
    {                                                                          \
        .long_name = NULL                                                      \
    }

/* Entries a table may have. */
#define OPT_COUNT_MAX 96u

/*
 * Goes through argv[1..argc) and calls the handlers in order. With `operand`
 * NULL it stops at the first word that is not an option and returns its index
 * (argc if there is none); else all words are taken and it returns argc.
 * -EINVAL with `e` set for an unknown option (the nearest one is suggested), a
 * missing or superfluous value, or what a handler says.
 */
int opt_parse(const struct opt *opts, opt_operand_fn *operand, int argc,
              char **argv, void *into, struct err *e);

/* The options as --help shows them, 80 columns wide. */
void opt_print(const struct opt *opts, FILE *out);

#endif

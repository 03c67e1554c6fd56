/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_CLI_H
#define REWIND_CLI_CLI_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"
#include "cli/opt.h"

/* Exit statuses, the same for every command. Under the name of qemu-nbd, which
 * has only the first two, wrong usage is CLI_FAILED too. */
enum cli_status {
    CLI_OK = 0,
    CLI_FAILED = 1, /* it was right to ask, but it did not work */
    CLI_USAGE = 2,  /* wrong usage; nothing has been done */
};

/* What stands before the command's name on the command line. */
struct cli {
    const char *program; /* "rewind", or "qemu-nbd" under that name */
    bool as_qemu_nbd;    /* started as qemu-nbd: its defaults, no commands */
    struct opt_common common;
    const char *home; /* --home; NULL: not given. Borrowed from argv */
};

/* A command: what it is called, what its --help says, what it does. */
struct command {
    const char *name;
    const char *summary;  /* one line, no full stop */
    const char *synopsis; /* what follows the name; lines by \n */
    const char *notes;    /* after the options in --help; NULL: nothing */
    const char *examples; /* command lines, one a line */
    const char *operands; /* what completion offers; as opt.choices */
    const struct opt *opts;
    /* argv[0] is the command's name. Returns enum cli_status. */
    int (*run)(struct cli *cli, int argc, char **argv);
};

/* All commands, in the order in which they are listed, up to a NULL. */
extern const struct command *const commands[];

extern const struct command serve_command;
extern const struct command doctor_command;
extern const struct command version_command;
extern const struct command completion_command;
extern const struct command help_command;

/* The options before the command's name. */
extern const struct opt global_opts[];

/* The program: main() without its name, so that tests can link the rest. */
int cli_main(int argc, char **argv);

/* The command called `name`, or NULL. */
const struct command *command_find(const char *name);

/*
 * Reads a command's arguments into `into`, which begins with a struct
 * opt_common, by the command's table. Returns true to go on; false if the
 * command is over, with *ret_status to be returned: --help was asked for and
 * has been printed, or the usage was wrong and has been told. `operand` may be
 * NULL: then the command takes none.
 */
bool command_parse(const struct cli *cli, const struct command *command,
                   opt_operand_fn *operand, int argc, char **argv,
                   struct opt_common *into, int *ret_status);

/* Tells of wrong usage and where help is. Returns CLI_USAGE, or what qemu-nbd
 * would. */
int command_misused(const struct cli *cli, const struct command *command,
                    const struct err *e);

void command_print_help(const struct cli *cli, const struct command *command,
                        FILE *out);

/* Flushes what was printed on standard output: CLI_OK, or CLI_FAILED with a
 * message if it did not all go out (a full disk, a closed pipe). */
int cli_flush(void);

#endif

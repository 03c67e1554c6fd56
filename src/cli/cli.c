/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command line's outer half (cli.h): global options, the table of
 * commands, help. One thread; runs before anything else does.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/suggest.h"

const struct command *const commands[] = {
    &serve_command,      &doctor_command, &version_command,
    &completion_command, &help_command,   NULL,
};

/* opt_parse fills in one of these. */
struct globals {
    struct opt_common common;
    const char *home;
};

static int
set_home(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt;
    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "--home is empty; name a directory");
    }
    ((struct globals *)into)->home = arg;
    return 0;
}

const struct opt global_opts[] = {
    OPT_JSON,
    {.long_name = "home",
     .arg = "DIR",
     .choices = OPT_DIR,
     .set = set_home,
     .help = "the directory for machines, which so far only doctor\n"
             "looks at (default: $REWIND_HOME, else ~/.rewind)"},
    OPT_HELP,
    {.short_name = 'V',
     .long_name = "version",
     .set = opt_set_version,
     .help = "print the version"},
    OPT_END,
};

int
cli_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        log_error("cannot write to standard output: %s", strerror(errno));
        return CLI_FAILED;
    }
    return CLI_OK;
}

const struct command *
command_find(const char *name)
{
    for (unsigned i = 0; commands[i] != NULL; i++) {
        if (strcmp(commands[i]->name, name) == 0) {
            return commands[i];
        }
    }
    return NULL;
}

/* Lines of `text`, each with `before` in front. */
static void
print_lines(FILE *out, const char *before, const char *text)
{
    while (text != NULL) {
        const char *end = strchr(text, '\n');
        int len = end != NULL ? (int)(end - text) : (int)strlen(text);

        fprintf(out, "%s%.*s\n", len > 0 ? before : "", len, text);
        text = end != NULL ? end + 1 : NULL;
    }
}

void
command_print_help(const struct cli *cli, const struct command *command,
                   FILE *out)
{
    char before[64];

    if (cli->as_qemu_nbd) {
        fprintf(out, "Usage: qemu-nbd [OPTION]... IMAGE\n"
                     "       qemu-nbd -L [OPTION]...\n"
                     "\nThis is rewind's serve command with the defaults of "
                     "qemu-nbd.\n");
    } else {
        snprintf(before, sizeof(before), "Usage: rewind %s ", command->name);
        print_lines(out, before, command->synopsis);
        fprintf(out, "\n%c%s.\n", toupper((unsigned char)command->summary[0]),
                command->summary + 1);
    }
    if (command->opts[0].heading == NULL) {
        fprintf(out, "\n");
    }
    opt_print(command->opts, out);
    if (command->notes != NULL) {
        fprintf(out, "\n%s\n", command->notes);
    }
    fprintf(out, "\nExamples:\n");
    print_lines(out, "  ", command->examples);
    if (command == &help_command) {
        fprintf(out, "\nMore: man rewind\n");
    } else {
        fprintf(out, "\nMore: man rewind-%s\n", command->name);
    }
}

int
command_misused(const struct cli *cli, const struct command *command,
                const struct err *e)
{
    log_error("%s", e->text);
    if (cli->as_qemu_nbd) {
        fprintf(stderr, "Try \"qemu-nbd --help\".\n");
        return CLI_FAILED; /* its scripts know no other */
    }
    fprintf(stderr, "Try \"rewind %s --help\".\n", command->name);
    return CLI_USAGE;
}

static int
no_operand(void *into, const char *arg, struct err *e)
{
    (void)into;
    return err_set(e, EINVAL, "\"%s\" is one argument too many", arg);
}

bool
command_parse(const struct cli *cli, const struct command *command,
              opt_operand_fn *operand, int argc, char **argv,
              struct opt_common *into, int *ret_status)
{
    struct err e = {0};
    int r;

    into->json = cli->common.json;
    r = opt_parse(command->opts, operand != NULL ? operand : no_operand, argc,
                  argv, into, &e);
    /* Also if a mistake follows behind --help. */
    if (into->help) {
        command_print_help(cli, command, stdout);
        *ret_status = cli_flush();
        return false;
    }
    if (r < 0) {
        *ret_status = command_misused(cli, command, &e);
        return false;
    }
    return true;
}

/* ---- help ---- */

static void
print_overview(FILE *out)
{
    fprintf(out, "Usage: rewind [OPTION]... COMMAND ...\n"
                 "\nDisks for virtual machines that you can rewind.\n"
                 "\nCommands:\n");
    for (unsigned i = 0; commands[i] != NULL; i++) {
        fprintf(out, "  %-12s%s\n", commands[i]->name, commands[i]->summary);
    }
    fprintf(out, "\nOptions:\n");
    opt_print(global_opts, out);
    fprintf(out, "\nExamples:\n"
                 "  rewind serve --ephemeral disk.img\n"
                 "  rewind help serve\n"
                 "\nMore: man rewind\n");
}

static int
unknown_command(const char *name)
{
    struct suggest s;

    suggest_begin(&s, name);
    for (unsigned i = 0; commands[i] != NULL; i++) {
        suggest_offer(&s, commands[i]->name);
    }
    if (s.best != NULL) {
        log_error("unknown command \"%s\"; did you mean \"%s\"?", name, s.best);
    } else {
        log_error("unknown command \"%s\"", name);
    }
    fprintf(stderr, "Try \"rewind help\".\n");
    return CLI_USAGE;
}

struct help_options {
    struct opt_common common;
    const char *topic;
};

static int
help_operand(void *into, const char *arg, struct err *e)
{
    struct help_options *o = into;

    if (o->topic != NULL) {
        return err_set(e, EINVAL, "\"%s\" is one argument too many", arg);
    }
    o->topic = arg;
    return 0;
}

static int
help_run(struct cli *cli, int argc, char **argv)
{
    struct help_options o = {.topic = NULL};
    const struct command *command;
    int status;

    if (!command_parse(cli, &help_command, help_operand, argc, argv, &o.common,
                       &status)) {
        return status;
    }
    if (o.topic == NULL) {
        print_overview(stdout);
        return cli_flush();
    }
    command = command_find(o.topic);
    if (command == NULL) {
        return unknown_command(o.topic);
    }
    command_print_help(cli, command, stdout);
    return cli_flush();
}

static const struct opt help_opts[] = {OPT_HELP, OPT_END};

const struct command help_command = {
    .name = "help",
    .summary = "explain a command",
    .synopsis = "[COMMAND]",
    .examples = "rewind help\nrewind help serve",
    .operands = "serve doctor version completion help",
    .opts = help_opts,
    .run = help_run,
};

/* ---- the way in ---- */

/* Whoever starts us may have closed these; a file that we open must not land
 * on them and then be taken for a terminal. */
static void
open_standard_fds(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) {
        close(fd);
    }
}

static int
run_globals(struct cli *cli, int argc, char **argv)
{
    struct globals g = {.home = NULL};
    struct err e = {0};
    const struct command *command;
    int first = opt_parse(global_opts, NULL, argc, argv, &g, &e);

    if (first < 0) {
        log_error("%s", e.text);
        fprintf(stderr, "Try \"rewind --help\".\n");
        return CLI_USAGE;
    }
    cli->common = g.common;
    cli->home = g.home;
    if (g.common.help) {
        print_overview(stdout);
        return cli_flush();
    }
    if (g.common.version) {
        char *version_argv[] = {(char *)"version", NULL};

        return version_command.run(cli, 1, version_argv);
    }
    if (first == argc) {
        print_overview(stderr);
        return CLI_USAGE;
    }
    command = command_find(argv[first]);
    if (command == NULL) {
        return unknown_command(argv[first]);
    }
    return command->run(cli, argc - first, argv + first);
}

int
cli_main(int argc, char **argv)
{
    struct cli cli = {.program = "rewind"};
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = slash != NULL ? slash + 1 : argc > 0 ? argv[0] : "";

    open_standard_fds();
    /* A peer or a reader of our output that goes away is an error of that
     * write, not our end. */
    signal(SIGPIPE, SIG_IGN);
    /* A write past the limit of file sizes is the guest's error (EFBIG), not
     * our death. */
    signal(SIGXFSZ, SIG_IGN);
    if (strcmp(name, "qemu-nbd") == 0) {
        cli.program = "qemu-nbd";
        cli.as_qemu_nbd = true;
    }
    log_setup(LOG_WARN, cli.program);
    if (cli.as_qemu_nbd) {
        return serve_command.run(&cli, argc, argv);
    }
    return run_globals(&cli, argc, argv);
}

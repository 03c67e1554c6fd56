/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `rewind completion`: scripts that teach a shell our commands and options,
 * made from the same tables that parse them. No state.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "cli/cli.h"

/* Where the part of a help text ends that stands for all of it. */
static const char *
essence_end(const char *help)
{
    static const char *const marks[] = {" (", ";", ": "};
    const char *end = help + strlen(help);

    for (size_t i = 0; i < ARRAY_LEN(marks); i++) {
        const char *found = strstr(help, marks[i]);

        end = found != NULL && found < end ? found : end;
    }
    return end;
}

/* A short text that may stand in single quotes, in zsh's brackets too. */
static void
print_essence(const char *help)
{
    const char *end = essence_end(help);

    for (const char *c = help; c < end; c++) {
        if (*c == '\n') {
            putchar(' ');
        } else if (*c == '\'') {
            printf("'\\''"); /* out of the quotes and in again */
        } else if (strchr("[]\\", *c) == NULL) {
            putchar(*c);
        }
    }
}

static bool
is_words(const char *choices)
{
    return choices != NULL && strcmp(choices, OPT_FILE) != 0 &&
           strcmp(choices, OPT_DIR) != 0;
}

/* ---- bash ---- */

static void
bash_words(const struct opt *opts)
{
    const char *before = "";

    printf("words='");
    for (const struct opt *o = opts; o->long_name != NULL; o++) {
        if (o->short_name != 0) {
            printf("%s-%c", before, o->short_name);
            before = " ";
        }
        printf("%s--%s", before, o->long_name);
        before = " ";
    }
    printf("'");
}

/* What an option's value can be, by the word before the cursor. */
static void
bash_values(const struct opt *opts, const char *indent)
{
    for (const struct opt *o = opts; o->long_name != NULL; o++) {
        if (o->arg == NULL) {
            continue;
        }
        printf("%s", indent);
        if (o->short_name != 0) {
            printf("-%c|", o->short_name);
        }
        printf("--%s) ", o->long_name);
        if (is_words(o->choices)) {
            printf("values='%s'", o->choices);
        } else {
            printf("values=%s", o->choices == NULL            ? "none"
                                : strcmp(o->choices, OPT_DIR) ? "files"
                                                              : "dirs");
        }
        printf(" ;;\n");
    }
}

static void
bash_command(const struct command *c)
{
    printf("    %s)\n        ", c->name);
    bash_words(c->opts);
    printf("\n        operands='%s'\n        case $prev in\n",
           is_words(c->operands) ? c->operands : "");
    bash_values(c->opts, "        ");
    printf("        esac ;;\n");
}

static void
print_bash(void)
{
    printf("# bash completion for rewind: source it, or install it as\n"
           "# share/bash-completion/completions/rewind\n"
           "_rewind() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev='' cmd='' words=''\n"
           "    local values='' operands='' i newline=$'\\n'\n"
           "    COMPREPLY=()\n"
           "    [ \"$COMP_CWORD\" -gt 0 ] && "
           "prev=${COMP_WORDS[COMP_CWORD-1]}\n"
           "    # bash cuts --name=value at the equals sign.\n"
           "    if [ \"$cur\" = = ]; then\n"
           "        cur=\n"
           "    elif [ \"$prev\" = = ] && [ \"$COMP_CWORD\" -gt 1 ]; then\n"
           "        prev=${COMP_WORDS[COMP_CWORD-2]}\n"
           "    fi\n"
           "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
           "        case ${COMP_WORDS[i]} in\n"
           "        --home) ((i++)) ;;\n"
           "        -*|=) ;;\n"
           "        *) cmd=${COMP_WORDS[i]}; break ;;\n"
           "        esac\n"
           "    done\n"
           "    case $cmd in\n"
           "    '')\n        ");
    bash_words(global_opts);
    printf("\n        operands='");
    for (unsigned i = 0; commands[i] != NULL; i++) {
        printf("%s%s", i > 0 ? " " : "", commands[i]->name);
    }
    printf("'\n        case $prev in\n");
    bash_values(global_opts, "        ");
    printf("        esac ;;\n");
    for (unsigned i = 0; commands[i] != NULL; i++) {
        bash_command(commands[i]);
    }
    printf("    esac\n"
           "    case $values in\n"
           "    none) ;;\n"
           "    dirs) local IFS=$newline; "
           "COMPREPLY=($(compgen -d -- \"$cur\")) ;;\n"
           "    files) local IFS=$newline; "
           "COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
           "    '')\n"
           "        case $cur in\n"
           "        -*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
           "        *)\n"
           "            if [ -n \"$operands\" ]; then\n"
           "                COMPREPLY=($(compgen -W \"$operands\" -- "
           "\"$cur\"))\n"
           "            else\n"
           "                local IFS=$newline\n"
           "                COMPREPLY=($(compgen -f -- \"$cur\"))\n"
           "            fi ;;\n"
           "        esac ;;\n"
           "    *) COMPREPLY=($(compgen -W \"$values\" -- \"$cur\")) ;;\n"
           "    esac\n"
           "}\n"
           "complete -o filenames -F _rewind rewind\n");
}

/* ---- zsh ---- */

static void
zsh_action(const char *choices)
{
    if (is_words(choices)) {
        printf("(%s)", choices);
    } else if (choices != NULL) {
        printf("%s", strcmp(choices, OPT_DIR) == 0 ? "_files -/" : "_files");
    }
}

/* One specification of _arguments. */
static void
zsh_spec(const char *dashes, const char *name, const char *joint,
         const struct opt *o)
{
    printf(" \\\n        '*%s%s%s[", dashes, name, o->arg != NULL ? joint : "");
    print_essence(o->help);
    printf("]");
    if (o->arg != NULL) {
        /* Two colons: it may be left out. */
        printf("%s:%s:", o->arg_optional ? ":" : "", o->arg);
        zsh_action(o->choices);
    }
    putchar('\'');
}

static void
zsh_opts(const struct opt *opts)
{
    for (const struct opt *o = opts; o->long_name != NULL; o++) {
        char letter[2] = {(char)o->short_name, '\0'};

        if (o->short_name != 0) {
            zsh_spec("-", letter, "+", o);
        }
        zsh_spec("--", o->long_name, o->arg_optional ? "=-" : "=", o);
    }
}

static void
print_zsh(void)
{
    printf("#compdef rewind\n"
           "# zsh completion for rewind: install it as _rewind in a folder of "
           "$fpath\n"
           "_rewind() {\n"
           "    local -a commands\n"
           "    local context state line\n"
           "    typeset -A opt_args\n"
           "    commands=(");
    for (unsigned i = 0; commands[i] != NULL; i++) {
        printf("\n        '%s:%s'", commands[i]->name, commands[i]->summary);
    }
    printf(")\n    _arguments -C");
    zsh_opts(global_opts);
    printf(" \\\n        '1:command:->command' '*::argument:->argument'\n"
           "    case $state in\n"
           "    command) _describe command commands ;;\n"
           "    argument)\n"
           "        case $words[1] in\n");
    for (unsigned i = 0; commands[i] != NULL; i++) {
        const struct command *c = commands[i];

        printf("        %s) _arguments -S", c->name);
        zsh_opts(c->opts);
        if (c->operands != NULL) {
            printf(" \\\n        '*:argument:");
            zsh_action(c->operands);
            putchar('\'');
        }
        printf(" ;;\n");
    }
    printf("        esac ;;\n"
           "    esac\n"
           "}\n"
           "_rewind \"$@\"\n");
}

/* ---- fish ---- */

static void
fish_opts(const char *condition, const struct opt *opts)
{
    for (const struct opt *o = opts; o->long_name != NULL; o++) {
        printf("complete -c rewind -n '%s'", condition);
        if (o->short_name != 0) {
            printf(" -s %c", o->short_name);
        }
        printf(" -l %s", o->long_name);
        if (is_words(o->choices)) {
            printf(" -x -a '%s'", o->choices);
        } else if (o->choices != NULL && strcmp(o->choices, OPT_DIR) == 0) {
            printf(" -x -a '(__fish_complete_directories)'");
        } else if (o->choices != NULL && !o->arg_optional) {
            printf(" -r -F");
        } else if (o->arg != NULL && !o->arg_optional) {
            printf(" -x");
        }
        printf(" -d '");
        print_essence(o->help);
        printf("'\n");
    }
}

static void
print_fish(void)
{
    char condition[64];

    printf("# fish completion for rewind: source it, or install it as\n"
           "# share/fish/vendor_completions.d/rewind.fish\n"
           "complete -c rewind -f\n");
    fish_opts("__fish_use_subcommand", global_opts);
    for (unsigned i = 0; commands[i] != NULL; i++) {
        const struct command *c = commands[i];

        printf("complete -c rewind -n __fish_use_subcommand -a %s -d '%s'\n",
               c->name, c->summary);
        snprintf(condition, sizeof(condition), "__fish_seen_subcommand_from %s",
                 c->name);
        fish_opts(condition, c->opts);
        if (is_words(c->operands)) {
            printf("complete -c rewind -n '%s' -a '%s'\n", condition,
                   c->operands);
        } else if (c->operands != NULL) {
            printf("complete -c rewind -n '%s' -F\n", condition);
        }
    }
}

/* ---- the command ---- */

static const struct {
    const char *name;
    void (*print)(void);
} shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};

struct completion_options {
    struct opt_common common;
    void (*print)(void);
};

static int
completion_operand(void *into, const char *arg, struct err *e)
{
    struct completion_options *o = into;

    for (size_t i = 0; i < ARRAY_LEN(shells); i++) {
        if (strcmp(arg, shells[i].name) == 0 && o->print == NULL) {
            o->print = shells[i].print;
            return 0;
        }
    }
    return err_set(e, EINVAL,
                   o->print != NULL
                       ? "\"%s\" is one argument too many"
                       : "no completion for \"%s\", only for bash, "
                         "zsh and fish",
                   arg);
}

static int
completion_run(struct cli *cli, int argc, char **argv)
{
    struct completion_options o = {.print = NULL};
    struct err e = {0};
    int status;

    if (!command_parse(cli, &completion_command, completion_operand, argc, argv,
                       &o.common, &status)) {
        return status;
    }
    if (o.print == NULL) {
        err_set(&e, EINVAL, "which shell? bash, zsh or fish");
        return command_misused(cli, &completion_command, &e);
    }
    o.print();
    return cli_flush();
}

static const struct opt completion_opts[] = {OPT_HELP, OPT_END};

const struct command completion_command = {
    .name = "completion",
    .summary = "print a completion script for a shell",
    .synopsis = "bash|zsh|fish",
    .examples = "source <(rewind completion bash)\n"
                "rewind completion zsh >~/.zfunc/_rewind\n"
                "rewind completion fish | source",
    .operands = "bash zsh fish",
    .opts = completion_opts,
    .run = completion_run,
};

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Options from a table (opt.h), on top of getopt_long. A long option's value
 * for getopt is LONG_BASE plus its index; a short one's is its letter. getopt
 * prints nothing: the words are ours, and a misspelt option gets a suggestion.
 */
#include "cli/opt.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <string.h>

#include "cli/suggest.h"

/* Above every char, so that the two kinds of value can't meet. */
#define LONG_BASE 256

/* What getopt returns for a word that is no option, under '-'. */
#define OPERAND 1

/* Where the help texts begin. */
#define HELP_COLUMN 28

struct parser {
    const struct opt *opts; /* borrowed */
    unsigned count;
    char shorts[2 * OPT_COUNT_MAX + 3];
    struct option longs[OPT_COUNT_MAX + 1];
};

static void
parser_init(struct parser *p, const struct opt *opts, bool in_order)
{
    char *s = p->shorts;

    *p = (struct parser){.opts = opts};
    *s++ = in_order ? '-' : '+';
    *s++ = ':'; /* tells a missing value from an unknown option */
    for (unsigned i = 0; opts[i].long_name != NULL; i++) {
        const struct opt *o = &opts[i];
        bool required = o->arg != NULL && !o->arg_optional;

        assert(i < OPT_COUNT_MAX);
        p->count = i + 1;
        if (o->short_name != 0) {
            *s++ = (char)o->short_name;
            if (required) {
                *s++ = ':';
            }
        }
        p->longs[i] = (struct option){
            .name = o->long_name,
            .has_arg = required         ? required_argument
                       : o->arg != NULL ? optional_argument
                                        : no_argument,
            .val = LONG_BASE + (int)i,
        };
    }
}

static const struct opt *
opt_of(const struct parser *p, int value)
{
    if (value >= LONG_BASE) {
        return &p->opts[value - LONG_BASE];
    }
    for (unsigned i = 0; i < p->count; i++) {
        if (value != 0 && p->opts[i].short_name == value) {
            return &p->opts[i];
        }
    }
    return NULL;
}

/* "--name" or "--name=value": neither known, or short for several. */
static int
fail_long(const struct parser *p, const char *word, struct err *e)
{
    size_t len = strcspn(word, "=");
    const char *first = NULL, *second = NULL;
    struct suggest s;
    char name[64];

    snprintf(name, sizeof(name), "%.*s", (int)len, word);
    suggest_begin(&s, name);
    for (unsigned i = 0; i < p->count; i++) {
        const char *known = p->opts[i].long_name;

        suggest_offer(&s, known);
        if (strncmp(known, name, len) == 0) {
            second = first;
            first = known;
        }
    }
    if (second != NULL) {
        return err_set(e, EINVAL, "--%s can mean --%s or --%s", name, second,
                       first);
    }
    if (s.best != NULL) {
        return err_set(e, EINVAL, "unknown option --%s; did you mean --%s?",
                       name, s.best);
    }
    return err_set(e, EINVAL, "unknown option --%s", name);
}

/* getopt said '?': an unknown option, or a value for one that takes none. */
static int
fail_option(const struct parser *p, char **argv, struct err *e)
{
    if (optopt >= LONG_BASE) {
        return err_set(e, EINVAL, "--%s takes no value",
                       opt_of(p, optopt)->long_name);
    }
    if (optopt != 0) {
        return err_set(e, EINVAL, "unknown option -%c", optopt);
    }
    return fail_long(p, argv[optind - 1] + 2, e);
}

static int
fail_missing(const struct parser *p, struct err *e)
{
    const struct opt *o = opt_of(p, optopt);

    if (optopt < LONG_BASE) {
        return err_set(e, EINVAL, "-%c needs a value: -%c %s", optopt, optopt,
                       o->arg);
    }
    return err_set(e, EINVAL, "--%s needs a value: --%s=%s", o->long_name,
                   o->long_name, o->arg);
}

static int
take(const struct parser *p, opt_operand_fn *operand, int value, char **argv,
     void *into, struct err *e)
{
    const struct opt *o;

    switch (value) {
    case OPERAND: /* only where there is an `operand` */
        return operand != NULL ? operand(into, optarg, e) : 0;
    case '?':
        return fail_option(p, argv, e);
    case ':':
        return fail_missing(p, e);
    default:
        o = opt_of(p, value);
        return o->set(into, o, optarg, e);
    }
}

int
opt_parse(const struct opt *opts, opt_operand_fn *operand, int argc,
          char **argv, void *into, struct err *e)
{
    struct parser p;
    int value, r;

    parser_init(&p, opts, operand != NULL);
    optind = 0; /* begin anew; the BSDs' getopt_long takes it so too */
    opterr = 0;
    while ((value = getopt_long(argc, argv, p.shorts, p.longs, NULL)) != -1) {
        r = take(&p, operand, value, argv, into, e);
        if (r < 0) {
            return r;
        }
    }
    if (operand == NULL) {
        return optind;
    }
    /* What stands after "--". */
    for (int i = optind; i < argc; i++) {
        r = operand(into, argv[i], e);
        if (r < 0) {
            return r;
        }
    }
    return argc;
}

int
opt_set_help(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt, (void)arg, (void)e;
    ((struct opt_common *)into)->help = true;
    return 0;
}

int
opt_set_json(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt, (void)arg, (void)e;
    ((struct opt_common *)into)->json = true;
    return 0;
}

int
opt_set_version(void *into, const struct opt *opt, const char *arg,
                struct err *e)
{
    (void)opt, (void)arg, (void)e;
    ((struct opt_common *)into)->version = true;
    return 0;
}

int
opt_refuse(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)into, (void)arg;
    return err_set(e, EINVAL, "--%s is not served: %s", opt->long_name,
                   opt->instead);
}

/* "  -x, --export-name=NAME"; returns its width. */
static int
print_name(const struct opt *o, FILE *out)
{
    int width;

    if (o->short_name != 0) {
        width = fprintf(out, "  -%c, --%s", o->short_name, o->long_name);
    } else {
        width = fprintf(out, "      --%s", o->long_name);
    }
    if (o->arg != NULL) {
        width += fprintf(out, o->arg_optional ? "[=%s]" : "=%s", o->arg);
    }
    return width;
}

void
opt_print(const struct opt *opts, FILE *out)
{
    for (unsigned i = 0; opts[i].long_name != NULL; i++) {
        const char *line = opts[i].help;
        int width;

        if (opts[i].heading != NULL) {
            fprintf(out, "\n%s:\n", opts[i].heading);
        }
        width = print_name(&opts[i], out);
        if (width > HELP_COLUMN - 2) {
            fputc('\n', out);
            width = 0;
        }
        while (line != NULL) {
            const char *end = strchr(line, '\n');
            int len = end != NULL ? (int)(end - line) : (int)strlen(line);

            fprintf(out, "%*s%.*s\n", HELP_COLUMN - width, "", len, line);
            width = 0;
            line = end != NULL ? end + 1 : NULL;
        }
    }
}

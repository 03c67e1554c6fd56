/* SPDX-License-Identifier: BSD-2-Clause */
/* `rewind version`: what this program is made of. No state. */
#include <jansson.h>
#include <zlib.h>
#include <zstd.h>

#include "base/checked.h"
#include "cli/cli.h"
#include "cli/json.h"
#include "io/io.h"

struct part {
    const char *name;
    const char *version;
};

static const char *
compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

/* Built in; whether the ring can be used on this host, doctor tells. */
static const char *
engines(void)
{
#if REWIND_HAVE_URING
    return "io_uring threads";
#else
    return "threads";
#endif
}

static int
version_run(struct cli *cli, int argc, char **argv)
{
    const struct part parts[] = {
        {"compiler", compiler()},       {"engines", engines()},
        {"jansson", JANSSON_VERSION},   {"zlib", zlibVersion()},
        {"zstd", ZSTD_versionString()},
    };
    struct opt_common o = {.json = false};
    int status;

    if (!command_parse(cli, &version_command, NULL, argc, argv, &o, &status)) {
        return status;
    }
    if (o.json) {
        json_t *root = json_object();

        json_object_set_new(root, "version", json_string(REWIND_VERSION));
        for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
            json_object_set_new(root, parts[i].name,
                                json_any_string(parts[i].version));
        }
        return json_print(root);
    }
    /* Scripts that look for qemu-nbd read its name on the first line. */
    printf("%s" REWIND_VERSION "\n",
           cli->as_qemu_nbd ? "qemu-nbd (rewind) " : "rewind ");
    for (size_t i = 0; i < ARRAY_LEN(parts) && !cli->as_qemu_nbd; i++) {
        printf("  %-10s%s\n", parts[i].name, parts[i].version);
    }
    return cli_flush();
}

static const struct opt version_opts[] = {OPT_JSON, OPT_HELP, OPT_END};

const struct command version_command = {
    .name = "version",
    .summary = "print the version and what it was built with",
    .synopsis = "[--json]",
    .examples = "rewind version\nrewind version --json",
    .opts = version_opts,
    .run = version_run,
};

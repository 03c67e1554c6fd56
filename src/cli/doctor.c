/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `rewind doctor`: tries what serve needs on this host and says what works,
 * what does not, and why. Each check is one entry of a table; nothing stays
 * behind. One thread.
 */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/overlay_dir.h"
#include "cli/cli.h"
#include "cli/host.h"
#include "cli/json.h"
#include "cli/limits.h"
#include "cli/program.h"
#include "cli/sizes.h"
#include "io/io.h"
#include "nbd/listen.h"

/* The test file: some data, then what is to become a hole, then data. */
#define PIECE_BYTES (64 * KIB)
#define PIECES 3

/* Fewer open files than this are soon used up: a session takes a few. */
#define FILES_FEW 4096

/* Less room than this for an overlay is hardly worth to start with. */
#define SPACE_LITTLE (1 * GIB)

enum verdict {
    VERDICT_OK,
    VERDICT_INFO, /* does not matter for serve */
    VERDICT_WARN, /* serve works, but less well */
    VERDICT_FAIL, /* serve does not work */
};

static const char *const verdict_words[] = {
    [VERDICT_OK] = "ok",
    [VERDICT_INFO] = "-",
    [VERDICT_WARN] = "warn",
    [VERDICT_FAIL] = "FAIL",
};

struct finding {
    enum verdict verdict;
    char text[1024];
    json_t *details; /* owned; numbers and words beside the text */
};

struct doctor {
    struct opt_common common;
    struct cli *cli;
    const char *overlay_dir;
    const char *dir; /* where overlays go */
    int fd;          /* owned: a test file there; or -1 with `no_fd` */
    struct err no_fd;
};

static void __attribute__((format(printf, 3, 4)))
find(struct finding *f, enum verdict verdict, const char *fmt, ...)
{
    va_list ap;

    f->verdict = verdict;
    va_start(ap, fmt);
    vsnprintf(f->text, sizeof(f->text), fmt, ap);
    va_end(ap);
}

static void
detail(struct finding *f, const char *name, json_t *value)
{
    json_object_set_new(f->details, name, value);
}

/* ---- the process ---- */

static int64_t read_result;

static void
read_done(struct io_op *op, int64_t result)
{
    (void)op;
    read_result = result;
}

/* Not only whether there is an engine: whether it reads. */
static int
try_engine(const struct doctor *d, enum io_engine_kind kind, struct err *e)
{
    struct io_ctx *ctx = io_ctx_new(kind, 4, e);
    struct io_op op = {.done = read_done};
    char bytes[16];

    if (ctx == NULL) {
        return -e->code;
    }
    read_result = sizeof(bytes);
    if (d->fd >= 0) {
        io_submit_read(ctx, &op, d->fd, bytes, sizeof(bytes), 0);
        while (io_pending(ctx) > 0) {
            io_reap(ctx, true);
        }
    }
    io_ctx_free(ctx);
    if (read_result != (int64_t)sizeof(bytes)) {
        return err_set(e, EIO, "it does not read: %s",
                       read_result < 0 ? strerror((int)-read_result)
                                       : "too little");
    }
    return 0;
}

static void
check_engine(struct doctor *d, struct finding *f)
{
    struct err why = {0}, e = {0};
    enum io_engine_kind kind = io_engine_probe(&why);
    const char *name = io_engine_name(kind);

    detail(f, "engine", json_string(name));
    if (try_engine(d, kind, &e) < 0) {
        find(f, VERDICT_FAIL, "%s: %s", name, e.text);
    } else if (kind == IO_ENGINE_URING) {
        find(f, VERDICT_OK, "%s", name);
    } else {
        find(f, VERDICT_INFO, "%s; no io_uring: %s", name, why.text);
        detail(f, "reason", json_any_string(why.text));
    }
}

static void
check_files(struct doctor *d, struct finding *f)
{
    (void)d;
    limits_raise_files();
    const uint64_t files = limits_files();

    detail(f, "limit", json_bytes(files));
    find(f, files < FILES_FEW ? VERDICT_WARN : VERDICT_OK, "%llu at once%s",
         (unsigned long long)files,
         files < FILES_FEW ? "; raise it with ulimit -n for many clients" : "");
}

static void
check_socket(struct doctor *d, struct finding *f)
{
    const struct listen_address a = {.kind = LISTEN_PRIVATE};
    const size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
    struct listener l;
    struct err e = {0};

    (void)d;
    detail(f, "path_max", json_bytes(max));
    if (listen_open(&a, 0600, &l, &e) < 0) {
        find(f, VERDICT_FAIL, "%s", e.text);
        return;
    }
    find(f, VERDICT_OK, "%s; paths up to %zu bytes", l.uri.socket, max);
    listen_close(&l);
}

static void
check_home(struct doctor *d, struct finding *f)
{
    const char *home = d->cli->home != NULL ? d->cli->home
                                            : getenv("REWIND_HOME");
    const char *user = getenv("HOME");
    char path[1000];
    struct stat st;

    if (home != NULL && home[0] != '\0') {
        snprintf(path, sizeof(path), "%s", home);
    } else {
        snprintf(path, sizeof(path), "%s/.rewind", user != NULL ? user : "");
    }
    detail(f, "path", json_any_string(path));
    if (stat(path, &st) != 0) {
        find(f, VERDICT_INFO, "%s: %s", path,
             errno == ENOENT ? "not there yet" : strerror(errno));
    } else {
        find(f, S_ISDIR(st.st_mode) ? VERDICT_OK : VERDICT_WARN, "%s%s", path,
             S_ISDIR(st.st_mode) ? "" : " is not a directory");
    }
}

/* ---- the overlay's directory ---- */

/* Makes the file that the checks below try things on. */
static int
make_test_file(struct doctor *d, struct err *e)
{
    static char piece[PIECE_BYTES];
    int r = 0;

    d->fd = file_open_unnamed(d->dir, e);
    if (d->fd < 0) {
        return d->fd;
    }
    memset(piece, 0x5a, sizeof(piece));
    for (unsigned i = 0; i < PIECES && r == 0; i++) {
        r = file_pwrite(d->fd, piece, sizeof(piece), i * PIECE_BYTES);
    }
    if (r < 0) {
        file_close_ptr(&d->fd);
        err_set(e, -r, "cannot write to a file in %s: %s", d->dir,
                strerror(-r));
    }
    return r;
}

static void
check_overlay(struct doctor *d, struct finding *f)
{
    const bool in_memory = overlay_dir_in_memory(d->dir);
    char type[32], room[SIZE_TEXT_BYTES];
    uint64_t bytes = 0;
    struct statvfs fs;

    host_filesystem(d->dir, type, sizeof(type));
    if (statvfs(d->dir, &fs) == 0) {
        bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    detail(f, "path", json_any_string(d->dir));
    detail(f, "filesystem", json_string(type));
    detail(f, "free_bytes", json_bytes(bytes));
    detail(f, "in_memory", json_boolean(in_memory));
    if (d->fd < 0) {
        find(f, VERDICT_FAIL, "%s", d->no_fd.text);
        return;
    }
    find(f, in_memory || bytes < SPACE_LITTLE ? VERDICT_WARN : VERDICT_OK,
         "%s: %s, %s free%s", d->dir, type, size_format(room, bytes),
         in_memory              ? "; it is kept in memory, so writes take "
                                  "RAM: choose --overlay-dir"
         : bytes < SPACE_LITTLE ? "; that is soon full: choose --overlay-dir"
                                : "");
}

/* Checks that need the test file answer this without it. */
static bool
no_file(const struct doctor *d, struct finding *f)
{
    if (d->fd < 0) {
        find(f, VERDICT_INFO, "not tried: no file in %s", d->dir);
    }
    return d->fd < 0;
}

static void
check_punch(struct doctor *d, struct finding *f)
{
    struct stat before, after;
    char byte = 1;
    int r;

    if (no_file(d, f)) {
        return;
    }
    (void)fsync(d->fd); /* or there are no blocks to count yet */
    if (fstat(d->fd, &before) != 0) {
        before.st_blocks = 0;
    }
    r = file_punch_hole(d->fd, PIECE_BYTES, PIECE_BYTES);
    if (r < 0) {
        find(f, VERDICT_WARN,
             "no: %s; space that a guest trims is not given "
             "back before the end",
             strerror(-r));
        return;
    }
    if (file_pread(d->fd, &byte, 1, PIECE_BYTES) != 1 || byte != 0) {
        find(f, VERDICT_FAIL, "a punched hole does not read as zeroes");
    } else if (fstat(d->fd, &after) == 0 &&
               after.st_blocks >= before.st_blocks) {
        find(f, VERDICT_WARN, "holes can be punched, but no space came back");
    } else {
        find(f, VERDICT_OK, "trimmed space is given back");
    }
}

static void
check_seek_hole(struct doctor *d, struct finding *f)
{
    bool data = true;
    uint64_t len = 0;
    int r;

    if (no_file(d, f)) {
        return;
    }
    /* check_punch has made the hole, if one can be made. */
    r = file_extent_at(d->fd, PIECE_BYTES, PIECES * PIECE_BYTES, &data, &len);
    if (r == 0 && !data) {
        find(f, VERDICT_OK, "holes in images are found");
    } else {
        find(f, VERDICT_WARN,
             "holes are not seen: sparse images are read and "
             "copied as if they were full");
    }
}

static void
check_clone(struct doctor *d, struct finding *f)
{
    int r;

    if (no_file(d, f)) {
        return;
    }
    r = host_try_clone(d->dir);
    if (r == 0) {
        find(f, VERDICT_OK, "files can share blocks");
    } else {
        find(f, VERDICT_INFO, "no: %s; copying an image takes its space again",
             strerror(-r));
    }
}

static void
check_locks(struct doctor *d, struct finding *f)
{
    if (no_file(d, f)) {
        return;
    }
    if (host_has_locks(d->fd)) {
        find(f, VERDICT_OK, "images are locked as QEMU does");
    } else {
        find(f, VERDICT_WARN,
             "no: nothing keeps two programs from writing to "
             "one image");
    }
}

static void
check_nowait(struct doctor *d, struct finding *f)
{
    bool may_wait = false;
    char byte;

    if (no_file(d, f)) {
        return;
    }
    (void)file_pread_cached(d->fd, &byte, 1, 0, &may_wait);
    if (may_wait) {
        find(f, VERDICT_INFO, "no: whether a read must wait is guessed");
    } else {
        find(f, VERDICT_OK, "reads from the page cache never wait for a disk");
    }
}

/* ---- hypervisors ---- */

static void
check_hypervisor(struct doctor *d, struct finding *f)
{
    struct err e = {0};

    (void)d;
    detail(f, "name", json_string(host_hypervisor()));
    if (host_try_hypervisor(&e) == 0) {
        find(f, VERDICT_OK, "%s", host_hypervisor());
    } else {
        find(f, VERDICT_INFO, "no %s: %s; QEMU can emulate", host_hypervisor(),
             e.text);
    }
}

static void
check_qemu(struct doctor *d, struct finding *f)
{
    static const char *const names[] = {
        "qemu-system-x86_64",
        "qemu-system-aarch64",
        "qemu-img",
    };
    size_t len = 0;

    (void)d;
    f->verdict = VERDICT_INFO;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char line[256], *version;
        int r = program_version(names[i], line, sizeof(line));

        if (r == -ENOENT) {
            continue;
        }
        version = strstr(line, "version ");
        if (r < 0) {
            version = strerror(-r);
        } else {
            version = version != NULL ? version + 8 : line;
            version[strcspn(version, " (")] = '\0';
            f->verdict = VERDICT_OK;
        }
        detail(f, names[i], json_any_string(version));
        len += (size_t)snprintf(f->text + len, sizeof(f->text) - len, "%s%s %s",
                                len > 0 ? ", " : "", names[i], version);
    }
    if (len == 0) {
        find(f, VERDICT_INFO, "not found on $PATH");
    }
}

/* ---- all of it ---- */

static const struct check {
    const char *name;
    const char *label;
    void (*run)(struct doctor *d, struct finding *f);
} checks[] = {
    {"engine", "I/O engine", check_engine},
    {"files", "open files", check_files},
    {"socket", "Unix socket", check_socket},
    {"overlay", "overlays", check_overlay},
    {"punch", "punch holes", check_punch},
    {"seek_hole", "find holes", check_seek_hole},
    {"clone", "clone files", check_clone},
    {"locks", "image locks", check_locks},
    {"nowait", "cached reads", check_nowait},
    {"hypervisor", "hypervisor", check_hypervisor},
    {"qemu", "QEMU", check_qemu},
    {"home", "machines", check_home},
};

static json_t *
finding_json(const struct check *c, struct finding *f)
{
    json_t *o = json_object();

    json_object_set_new(o, "check", json_string(c->name));
    json_object_set_new(o, "verdict",
                        json_string(f->verdict == VERDICT_INFO ? "info"
                                    : f->verdict == VERDICT_FAIL
                                        ? "fail"
                                        : verdict_words[f->verdict]));
    json_object_set_new(o, "text", json_any_string(f->text));
    json_object_update(o, f->details);
    return o;
}

static int
examine(struct doctor *d)
{
    json_t *root = json_object(), *list = json_array();
    bool works = true;
    int status;

    for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
        struct finding f = {.details = json_object()};

        checks[i].run(d, &f);
        works = works && f.verdict != VERDICT_FAIL;
        if (d->common.json) {
            json_array_append_new(list, finding_json(&checks[i], &f));
        } else {
            printf("%-5s %-13s %s\n", verdict_words[f.verdict], checks[i].label,
                   f.text);
        }
        json_decref(f.details);
    }
    json_object_set_new(root, "works", json_boolean(works));
    json_object_set_new(root, "checks", list);
    if (d->common.json) {
        status = json_print(root);
    } else {
        json_decref(root);
        printf("\n%s\n", works ? "rewind serve works here."
                               : "rewind serve does not work here.");
        status = cli_flush();
    }
    return status == CLI_OK && !works ? CLI_FAILED : status;
}

static int
set_overlay_dir(void *into, const struct opt *opt, const char *arg,
                struct err *e)
{
    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "--%s is empty; name a directory",
                       opt->long_name);
    }
    ((struct doctor *)into)->overlay_dir = arg;
    return 0;
}

static int
doctor_run(struct cli *cli, int argc, char **argv)
{
    struct doctor d = {.cli = cli, .fd = -1};
    int status;

    if (!command_parse(cli, &doctor_command, NULL, argc, argv, &d.common,
                       &status)) {
        return status;
    }
    d.dir = overlay_dir_choose(d.overlay_dir);
    (void)make_test_file(&d, &d.no_fd);
    status = examine(&d);
    file_close_ptr(&d.fd);
    return status;
}

static const struct opt doctor_opts[] = {
    {.long_name = "overlay-dir",
     .arg = "DIR",
     .choices = OPT_DIR,
     .set = set_overlay_dir,
     .help = "the directory to examine (default: $TMPDIR, else\n"
             "/var/tmp, where serve puts overlays)"},
    OPT_JSON,
    OPT_HELP,
    OPT_END,
};

const struct command doctor_command = {
    .name = "doctor",
    .summary = "tell what works on this host and why not",
    .synopsis = "[--overlay-dir=DIR] [--json]",
    .examples = "rewind doctor\nrewind doctor --overlay-dir=/mnt/fast --json",
    .opts = doctor_opts,
    .run = doctor_run,
};

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The options of `rewind serve`: a table with a handler per entry. They are
 * qemu-nbd's, 7.2 to 10, with its meaning (qemu-nbd(8)), and ours. What can't
 * be served is refused with the way out, never passed over where that could
 * do harm. One thread.
 */
#include "cli/serve_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/sizes.h"
#include "nbd/limits.h"
#include "nbd/proto.h"

/* Where an image option goes: see serve_options.h. */
static struct serve_image *
image_of(void *into)
{
    struct serve_options *o = into;

    return o->is_next ? &o->next : &o->shared;
}

/* A word of a small set. */
struct word {
    const char *text;
    int value; /* not negative */
};

/* The value of the word that `arg` is, or -EINVAL. */
static int
find_word(const struct word *words, const struct opt *opt, const char *arg,
          struct err *e)
{
    for (; words->text != NULL; words++) {
        if (strcmp(words->text, arg) == 0) {
            return words->value;
        }
    }
    return err_set(e, EINVAL, "--%s=%s is none of: %s", opt->long_name, arg,
                   opt->choices);
}

/* Puts the option's name before what a number's parser said. */
static int
named(const struct opt *opt, int r, struct err *e)
{
    if (r < 0) {
        err_prefix(e, "--%s", opt->long_name);
    }
    return r;
}

/* ---- where to listen ---- */

static int
set_port(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;
    uint64_t value;
    int r = number_parse(arg, UINT16_MAX, &value, e);

    if (r == 0) {
        o->port = (uint16_t)value;
        o->has_port = true;
    }
    return named(opt, r, e);
}

static int
set_bind(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;

    (void)opt;
    if (strlen(arg) >= sizeof(((struct listen_address *)0)->host)) {
        return err_set(e, EINVAL, "--bind: the host name is too long");
    }
    o->bind_host = arg;
    return 0;
}

static int
set_socket(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt, (void)e;
    ((struct serve_options *)into)->socket_path = arg;
    return 0;
}

static int
set_listen(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;
    int r = listen_parse(arg, &o->listen[o->listen_count], e);

    if (r == 0) {
        o->listen_count++;
    }
    return named(opt, r, e);
}

static int
set_socket_mode(void *into, const struct opt *opt, const char *arg,
                struct err *e)
{
    char *end;
    unsigned long mode = strtoul(arg, &end, 8);

    (void)opt;
    if (arg[0] < '0' || arg[0] > '7' || *end != '\0' || mode > 0777) {
        return err_set(e, EINVAL,
                       "--socket-mode=%s is not an octal mode like "
                       "0600",
                       arg);
    }
    ((struct serve_options *)into)->socket_mode = (int)mode;
    return 0;
}

/* ---- images ---- */

static int
set_name(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;

    if (strlen(arg) > NBD_STRING_MAX) {
        return err_set(e, EINVAL, "--%s: the name is longer than %d bytes",
                       opt->long_name, NBD_STRING_MAX);
    }
    o->is_next = true;
    o->next.name = arg;
    return 0;
}

static int
set_description(void *into, const struct opt *opt, const char *arg,
                struct err *e)
{
    if (strlen(arg) > NBD_STRING_MAX) {
        return err_set(e, EINVAL, "--%s: the text is longer than %d bytes",
                       opt->long_name, NBD_STRING_MAX);
    }
    image_of(into)->description = arg;
    return 0;
}

static int
set_offset(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_image *image = image_of(into);
    int r = size_parse(arg, &image->offset_bytes, e);

    image->has_offset = r == 0;
    return named(opt, r, e);
}

static int
set_format(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt;
    if (!image_format_parse(arg, &image_of(into)->format)) {
        return err_set(e, EINVAL,
                       "--format=%s is not served, only raw and "
                       "qcow2; convert the image: qemu-img convert -O qcow2",
                       arg);
    }
    return 0;
}

static int
set_snapshot(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt, (void)e;
    image_of(into)->snapshot = arg;
    return 0;
}

static int
set_discard(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    static const struct word words[] = {
        {"ignore", DISCARD_IGNORE},
        {"off", DISCARD_IGNORE},
        {"unmap", DISCARD_UNMAP},
        {"on", DISCARD_UNMAP},
        {NULL, 0},
    };
    int value = find_word(words, opt, arg, e);

    if (value >= 0) {
        image_of(into)->discard = (enum serve_discard)value;
    }
    return value < 0 ? value : 0;
}

static int
set_detect_zeroes(void *into, const struct opt *opt, const char *arg,
                  struct err *e)
{
    static const struct word words[] = {
        {"off", DETECT_OFF},
        {"on", DETECT_ON},
        {"unmap", DETECT_UNMAP},
        {NULL, 0},
    };
    int value = find_word(words, opt, arg, e);

    if (value >= 0) {
        image_of(into)->detect_zeroes = (enum serve_detect)value;
    }
    return value < 0 ? value : 0;
}

/* Options without a value: opt->value says which. */
enum flag {
    FLAG_READ_ONLY,
    FLAG_EPHEMERAL,
    FLAG_DEPTH,
    FLAG_INSECURE,
    FLAG_INETD,
    FLAG_PERSISTENT,
    FLAG_LIST,
    FLAG_FORK,
    FLAG_PARENT,
};

static int
set_flag(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;
    struct serve_image *image = image_of(into);
    bool *const flags[] = {
        [FLAG_READ_ONLY] = &image->read_only,
        [FLAG_EPHEMERAL] = &image->ephemeral,
        [FLAG_DEPTH] = &image->allocation_depth,
        [FLAG_INSECURE] = &o->insecure,
        [FLAG_INETD] = &o->inetd,
        [FLAG_PERSISTENT] = &o->persistent,
        [FLAG_LIST] = &o->list,
        [FLAG_FORK] = &o->fork,
        [FLAG_PARENT] = &o->exit_with_parent,
    };

    (void)arg, (void)e;
    *flags[opt->value] = true;
    return 0;
}

/* ---- the server ---- */

static int
set_shared(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    uint64_t value;
    int r = number_parse(arg, INT32_MAX, &value, e);

    if (r == 0) {
        ((struct serve_options *)into)->session_max = (unsigned)value;
    }
    return named(opt, r, e);
}

static int
set_handshake(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    uint64_t value;
    int r = number_parse(arg, INT32_MAX, &value, e);

    if (r == 0) {
        ((struct serve_options *)into)->handshake_s = (unsigned)value;
    }
    return named(opt, r, e);
}

/* What qemu-nbd's words say of the host's page cache is not followed, since it
 * changes no promise to the guest; what they say of durability is. */
static int
set_cache(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    static const struct word words[] = {
        {"writeback", CACHE_WRITEBACK},
        {"writethrough", CACHE_WRITETHROUGH},
        {"unsafe", CACHE_UNSAFE},
        {"none", CACHE_WRITEBACK},
        {"off", CACHE_WRITEBACK},
        {"directsync", CACHE_WRITETHROUGH},
        {NULL, 0},
    };
    struct serve_options *o = into;
    int value = find_word(words, opt, arg, e);

    if (value >= 0) {
        o->cache = (enum serve_cache)value;
        o->direct_asked = strcmp(arg, "none") == 0 || strcmp(arg, "off") == 0 ||
                          strcmp(arg, "directsync") == 0;
    }
    return value < 0 ? value : 0;
}

static int
set_nocache(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)arg;
    return set_cache(into, opt, "none", e);
}

static int
set_aio(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    static const struct word words[] = {
        {"threads", IO_ENGINE_THREADS},
        {"io_uring", IO_ENGINE_URING},
        {"native", IO_ENGINE_AUTO}, /* any that does not wait in line */
        {NULL, 0},
    };
    int value = find_word(words, opt, arg, e);

    if (value >= 0) {
        ((struct serve_options *)into)->engine = (enum io_engine_kind)value;
    }
    return value < 0 ? value : 0;
}

static int
set_engine(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt;
    if (!io_engine_parse(arg, &((struct serve_options *)into)->engine)) {
        return err_set(e, EINVAL, "--engine=%s is none of: %s", arg,
                       opt->choices);
    }
    return 0;
}

static int
set_overlay_dir(void *into, const struct opt *opt, const char *arg,
                struct err *e)
{
    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "--%s is empty; name a directory",
                       opt->long_name);
    }
    ((struct serve_options *)into)->overlay_dir = arg;
    return 0;
}

static int
set_allow_path(void *into, const struct opt *opt, const char *arg,
               struct err *e)
{
    struct serve_options *o = into;

    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "--%s is empty; name a directory",
                       opt->long_name);
    }
    o->allow_paths[o->allow_count++] = arg;
    return 0;
}

static int
set_pid_file(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "--%s is empty; name a file", opt->long_name);
    }
    ((struct serve_options *)into)->pid_file = arg;
    return 0;
}

static int
set_stats(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    struct serve_options *o = into;

    (void)opt, (void)e;
    o->stats = true;
    o->stats_file = arg != NULL && arg[0] != '\0' ? arg : NULL;
    return 0;
}

static int
set_verbose(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)opt, (void)arg, (void)e;
    ((struct serve_options *)into)->verbose++;
    return 0;
}

/* Tracing is qemu's own; without it nothing else changes. */
static int
set_trace(void *into, const struct opt *opt, const char *arg, struct err *e)
{
    (void)into, (void)opt, (void)arg, (void)e;
    log_debug("--trace is taken and does nothing; see --verbose, --stats");
    return 0;
}

#define TLS_INSTEAD                                                            \
    "there is no TLS yet; serve a Unix socket and carry it over ssh: "         \
    "ssh -L 10809:/run/disk.sock HOST"

/* One paragraph an option; clang-format would make it a line a field. */
/* clang-format off */
const struct opt serve_opts[] = {
    {.heading = "Where to listen",
     .short_name = 'p', .long_name = "port", .arg = "PORT", .set = set_port,
     .help = "TCP port (default 10809; 0: any that is free); on\n"
             "loopback only, unless --bind says otherwise"},
    {.short_name = 'b', .long_name = "bind", .arg = "HOST", .set = set_bind,
     .help = "TCP address or name to bind to; beyond loopback it\n"
             "needs --insecure"},
    {.short_name = 'k', .long_name = "socket", .arg = "PATH",
     .choices = OPT_FILE, .set = set_socket, .help = "Unix socket"},
    {.long_name = "listen", .arg = "ADDR", .choices = OPT_FILE,
     .set = set_listen,
     .help = "unix:PATH, HOST:PORT or [IPV6]:PORT; may be given\n"
             "several times (default: a private Unix socket)"},
    {.long_name = "socket-mode", .arg = "MODE", .choices = "0600 0660 0666",
     .set = set_socket_mode,
     .help = "permissions of Unix sockets, octal (default 0600)"},
    {.long_name = "insecure", .set = set_flag, .value = FLAG_INSECURE,
     .help = "listen on a network without TLS: whoever reaches\n"
             "the port can read and write the disk"},
    {.long_name = "inetd", .set = set_flag, .value = FLAG_INETD,
     .help = "serve one session on standard input and output"},

    {.heading = "Clients",
     .short_name = 'e', .long_name = "shared", .arg = "NUM",
     .set = set_shared,
     .help = "clients at once, more wait (default 0: no limit;\n"
             "as qemu-nbd: 1)"},
    {.short_name = 't', .long_name = "persistent", .set = set_flag,
     .value = FLAG_PERSISTENT,
     .help = "go on after the last client (default, but not as\n"
             "qemu-nbd)"},
    {.long_name = "handshake-limit", .arg = "SECONDS", .set = set_handshake,
     .help = "time a client has to choose an export (default 10;\n"
             "0: no limit)"},

    {.heading = "Each IMAGE",
     .short_name = 'x', .long_name = "export-name", .arg = "NAME",
     .set = set_name,
     .help = "the next IMAGE's export name (default: the empty\n"
             "name; of several images: the file's name without\n"
             "its suffix)"},
    {.short_name = 'D', .long_name = "description", .arg = "TEXT",
     .set = set_description, .help = "a text for people, told to clients"},
    {.short_name = 's', .long_name = "snapshot", .set = set_flag,
     .value = FLAG_EPHEMERAL, .help = "the same as --ephemeral"},
    {.long_name = "ephemeral", .set = set_flag, .value = FLAG_EPHEMERAL,
     .help = "keep writes in an overlay that is gone at the end;\n"
             "the image is not changed"},
    {.short_name = 'r', .long_name = "read-only", .set = set_flag,
     .value = FLAG_READ_ONLY, .help = "refuse writes"},
    {.short_name = 'f', .long_name = "format", .arg = "FORMAT",
     .choices = "raw qcow2", .set = set_format,
     .help = "the image's format"},
    {.short_name = 'l', .long_name = "load-snapshot", .arg = "SNAPSHOT",
     .set = set_snapshot,
     .help = "an internal snapshot of a qcow2 image, read-only\n"
             "unless --ephemeral: ID_OR_NAME, or\n"
             "snapshot.id=ID,snapshot.name=NAME"},
    {.short_name = 'o', .long_name = "offset", .arg = "SIZE",
     .set = set_offset, .help = "where in the image the export begins"},
    {.short_name = 'A', .long_name = "allocation-depth", .set = set_flag,
     .value = FLAG_DEPTH,
     .help = "tell clients that ask which layer holds what, as\n"
             "qemu:allocation-depth (default, but not as qemu-nbd)"},
    {.long_name = "discard", .arg = "MODE", .choices = "ignore off unmap on",
     .set = set_discard,
     .help = "what a trim of the image does (default unmap; as\n"
             "qemu-nbd: ignore)"},
    {.long_name = "detect-zeroes", .arg = "MODE", .choices = "off on unmap",
     .set = set_detect_zeroes,
     .help = "taken for compatibility; zeroes that are written\n"
             "are stored"},

    {.heading = "Files and the engine",
     .long_name = "overlay-dir", .arg = "DIR", .choices = OPT_DIR,
     .set = set_overlay_dir,
     .help = "where overlays go (default: $TMPDIR, else /var/tmp)"},
    {.long_name = "allow-path", .arg = "DIR", .choices = OPT_DIR,
     .set = set_allow_path,
     .help = "backing files may lie in DIR too, not only beside\n"
             "their image; may be given several times"},
    {.long_name = "cache", .arg = "MODE",
     .choices = "writeback writethrough none directsync unsafe",
     .set = set_cache,
     .help = "when writes are durable: writeback or none, after a\n"
             "flush (default); writethrough or directsync, each at\n"
             "once; unsafe, never"},
    {.short_name = 'n', .long_name = "nocache", .set = set_nocache,
     .help = "the same as --cache=none"},
    {.long_name = "engine", .arg = "ENGINE",
     .choices = "auto io_uring threads", .set = set_engine,
     .help = "how files are read and written"},
    {.long_name = "aio", .arg = "MODE", .choices = "threads native io_uring",
     .set = set_aio, .help = "qemu-nbd's word for --engine"},

    {.heading = "The process",
     .long_name = "fork", .set = set_flag, .value = FLAG_FORK,
     .help = "return when the server is ready; it goes on in the\n"
             "background"},
    {.long_name = "pid-file", .arg = "PATH", .choices = OPT_FILE,
     .set = set_pid_file, .help = "write the server's process id there"},
    {.long_name = "exit-with-parent", .set = set_flag, .value = FLAG_PARENT,
     .help = "stop when the process that started us ends"},
    {.long_name = "stats", .arg = "FILE", .arg_optional = true,
     .choices = OPT_FILE, .set = set_stats,
     .help = "at the end print what was done, to standard error\n"
             "or FILE; at any time on SIGUSR1"},
    {.short_name = 'v', .long_name = "verbose", .set = set_verbose,
     .help = "say more; twice: much more"},
    {.short_name = 'T', .long_name = "trace", .arg = "WHAT",
     .set = set_trace, .help = "taken for compatibility; does nothing"},

    {.heading = "Other",
     .short_name = 'L', .long_name = "list", .set = set_flag,
     .value = FLAG_LIST,
     .help = "list what a server exports: the one at a URI, or at\n"
             "--bind and --port, or at --socket"},
    OPT_JSON,
    OPT_HELP,
    {.short_name = 'V', .long_name = "version", .set = opt_set_version,
     .help = "print the version"},

    {.heading = "Options of qemu-nbd that are refused, with advice",
     .long_name = "tls-creds", .arg = "ID", .set = opt_refuse,
     .help = "TLS", .instead = TLS_INSTEAD},
    {.long_name = "tls-authz", .arg = "ID", .set = opt_refuse,
     .help = "TLS", .instead = TLS_INSTEAD},
    {.long_name = "tls-hostname", .arg = "HOST", .set = opt_refuse,
     .help = "TLS", .instead = TLS_INSTEAD},
    {.long_name = "object", .arg = "OBJECT", .set = opt_refuse,
     .help = "TLS and passwords",
     .instead = "it carries TLS credentials and disk passwords. For TLS, "
                "serve a Unix socket and carry it over ssh; an encrypted "
                "image can be decrypted with qemu-img convert"},
    {.short_name = 'B', .long_name = "bitmap", .arg = "NAME",
     .set = opt_refuse, .help = "dirty bitmaps",
     .instead = "dirty bitmaps are not told to clients; use qemu-nbd for "
                "this image"},
    {.long_name = "image-opts", .set = opt_refuse,
     .help = "the image as driver options",
     .instead = "name the file, and say the rest with --format, --offset, "
                "--load-snapshot and --allow-path"},
    {.long_name = "selinux-label", .arg = "LABEL", .set = opt_refuse,
     .help = "the socket's label",
     .instead = "start the server in that context with runcon, or let systemd "
                "make the socket and hand it over"},
    {.short_name = 'c', .long_name = "connect", .arg = "DEV",
     .set = opt_refuse, .help = "kernel device",
     .instead = "start the server with -t -k SOCKET, then attach the kernel's "
                "device: nbd-client -unix SOCKET /dev/nbd0"},
    {.short_name = 'd', .long_name = "disconnect", .set = opt_refuse,
     .help = "kernel device",
     .instead = "detach the kernel's device with: nbd-client -d /dev/nbd0"},
    OPT_END,
};
/* clang-format on */

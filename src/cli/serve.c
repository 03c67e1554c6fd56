/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `rewind serve`: puts the parts together. Starting is a list of steps, each
 * of which may fail and says why; ending undoes what was done, in the other
 * direction.
 *
 * Threads: the steps run on the main thread, which then serves. The fork comes
 * before any other thread is there, and the signals' thread is started when
 * there is something to stop and something to leave behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/daemon.h"
#include "cli/json.h"
#include "cli/limits.h"
#include "cli/parent.h"
#include "cli/serve_list.h"
#include "cli/serve_options.h"
#include "cli/serve_stats.h"
#include "cli/signals.h"
#include "io/io.h"
#include "nbd/activate.h"
#include "nbd/listen.h"
#include "nbd/server.h"

struct serving {
    struct serve_options options;
    int activated[ACTIVATE_SOCKETS_MAX]; /* owned; -1: a listener now */
    unsigned activated_count;
    struct daemon daemon;
    FILE *stats_out;   /* owned if a file; NULL: standard error */
    int in_fd, out_fd; /* --inetd's; owned; -1 */
    struct export_set exports;
    struct listener *listeners; /* owned */
    unsigned listener_count;
    struct server *server;
    struct pid_file pid_file;
    struct signals signals;
    _Atomic bool stopped;    /* a signal said so */
    pthread_mutex_t leaving; /* guards the listeners' and the pid file's end */
    bool left;
};

/* ---- what signals do ---- */

static void
report(void *arg)
{
    struct serving *s = arg;
    struct stats stats;

    server_stats(s->server, &stats);
    serve_stats_print(s->stats_out != NULL ? s->stats_out : stderr,
                      s->options.common.json, &stats, &s->exports);
}

/* First of all at a stop: a client that comes then finds no socket, instead of
 * one that nobody answers. */
static void
unlink_sockets(struct serving *s)
{
    pthread_mutex_lock(&s->leaving);
    for (unsigned i = 0; i < s->listener_count && !s->left; i++) {
        listen_unlink(&s->listeners[i]);
    }
    pthread_mutex_unlock(&s->leaving);
}

/* From whichever thread ends the process first. */
static void
leave_nothing(struct serving *s)
{
    pthread_mutex_lock(&s->leaving);
    if (!s->left) {
        for (unsigned i = 0; i < s->listener_count; i++) {
            listen_close(&s->listeners[i]);
        }
        pid_file_remove(&s->pid_file);
        s->left = true;
    }
    pthread_mutex_unlock(&s->leaving);
}

/* Makes durable what was answered. A flush that has failed before fails again
 * (S8). */
static int
flush_exports(struct serving *s)
{
    int result = 0;

    for (unsigned i = 0; i < s->exports.count; i++) {
        const struct export *x = &s->exports.exports[i];
        int r = x->read_only || x->ignore_flush ? 0 : disk_flush(x->disk);

        result = r < 0 ? r : result;
    }
    return result;
}

/* The one session of --inetd is not the server's to shut. A socket can be;
 * a pipe's reader can't be woken, so what was answered is made durable and
 * that is the end. */
static void
stop_inetd(struct serving *s)
{
    int r;

    if (shutdown(s->in_fd, SHUT_RD) == 0) {
        return;
    }
    r = flush_exports(s);
    leave_nothing(s);
    _exit(r == 0 ? CLI_OK : CLI_FAILED);
}

/* A session that we cut short may call that an error, as one does that is in
 * its handshake still; only the disk's word counts then, as in server_run. */
static int
run_inetd(struct serving *s)
{
    int r = server_run_pair(s->server, s->in_fd, s->out_fd);

    return atomic_load(&s->stopped) ? flush_exports(s) : r;
}

/* The first time in good order, the second time at once; the third time
 * somebody means it. */
static void
stop(void *arg, unsigned count)
{
    struct serving *s = arg;

    if (count > 2) {
        leave_nothing(s);
        _exit(CLI_FAILED);
    }
    atomic_store(&s->stopped, true);
    unlink_sockets(s);
    server_stop(s->server);
    if (s->options.inetd) {
        stop_inetd(s);
    }
}

/* ---- the steps ---- */

/* A server with many sessions has many files open. */
static int
step_limits(struct serving *s, struct err *e)
{
    (void)s, (void)e;
    limits_raise_files();
    return 0;
}

static int
step_engine(struct serving *s, struct err *e)
{
    struct err why = {0};

    /* AUTO is found out by the first session that needs it. */
    if (s->options.engine == IO_ENGINE_URING &&
        io_engine_probe(&why) != IO_ENGINE_URING) {
        return err_set(e, ENOSYS,
                       "io_uring cannot be used here: %s; use "
                       "--engine=auto or threads",
                       why.text);
    }
    return 0;
}

static int
step_fork(struct serving *s, struct err *e)
{
    return s->options.fork ? daemon_start(&s->daemon, e) : 0;
}

static int
step_parent(struct serving *s, struct err *e)
{
    return s->options.exit_with_parent ? parent_watch(e) : 0;
}

static int
step_stats_file(struct serving *s, struct err *e)
{
    const char *path = s->options.stats_file;

    if (path == NULL) {
        return 0;
    }
    s->stats_out = fopen(path, "we");
    if (s->stats_out == NULL) {
        return err_set(e, errno, "cannot write %s: %s", path, strerror(errno));
    }
    return 0;
}

/* Nothing that is printed later may get into the session. */
static int
step_inetd(struct serving *s, struct err *e)
{
    int null;

    if (!s->options.inetd) {
        return 0;
    }
    s->in_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    s->out_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (s->in_fd < 0 || s->out_fd < 0 || null < 0 ||
        dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0) {
        return err_set(e, errno,
                       "cannot take over standard input and output: "
                       "%s",
                       strerror(errno));
    }
    close(null);
    return 0;
}

static int
open_export(struct serving *s, const struct serve_image *image, struct err *e)
{
    const struct serve_options *o = &s->options;
    const struct image_options options = {
        .path = image->path,
        .format = image->format,
        .ephemeral = image->ephemeral,
        .read_only = image->read_only,
        .probe_writable = o->as_qemu_nbd,
        .ignore_trim = image->discard == DISCARD_IGNORE,
        .overlay_dir = o->overlay_dir,
        .allow_paths = o->allow_paths,
        .snapshot = image->snapshot,
        .offset_bytes = image->offset_bytes,
    };
    struct disk *disk = image_open(&options, e);
    struct export *x;

    if (disk == NULL) {
        return -e->code;
    }
    x = export_set_add(&s->exports, image->name, image->description, disk, e);
    if (x == NULL) {
        return -e->code;
    }
    if (image->allocation_depth) {
        x->contexts |= 1u << NBD_CONTEXT_DEPTH;
    }
    x->write_through = o->cache == CACHE_WRITETHROUGH;
    x->ignore_flush = o->cache == CACHE_UNSAFE;
    return 0;
}

static int
step_images(struct serving *s, struct err *e)
{
    const struct serve_options *o = &s->options;

    if (o->direct_asked) {
        log_info("the host's page cache is used in spite of --cache=none, "
                 "directsync or -n; the promises to the guest are the same");
    }
    for (unsigned i = 0; i < o->image_count; i++) {
        const struct serve_image *image = &o->images[i];

        if (image->detect_zeroes == DETECT_ON ||
            image->detect_zeroes == DETECT_UNMAP) {
            log_warn("%s: zeroes that are written are stored, not detected",
                     image->path);
        }
        int r = open_export(s, image, e);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int
step_server(struct serving *s, struct err *e)
{
    const struct server_options options = {
        .exports = &s->exports,
        .engine = s->options.engine,
        .session_max = s->options.session_max,
        .handshake_s = s->options.handshake_s,
        .exit_after_last = s->options.as_qemu_nbd && !s->options.persistent,
    };

    s->server = server_new(&options, e);
    return s->server != NULL ? 0 : -e->code;
}

/* From here on there is something that must not stay behind: signals wait
 * until all of it is known. */
static int
step_block_signals(struct serving *s, struct err *e)
{
    (void)e;
    signals_block(&s->signals, s->options.fork);
    return 0;
}

static int
adopt_all(struct serving *s, struct err *e)
{
    for (unsigned i = 0; i < s->activated_count; i++) {
        int fd = s->activated[i];

        s->activated[i] = -1;
        int r = listen_adopt(fd, &s->listeners[s->listener_count], e);

        if (r < 0) {
            return r;
        }
        s->listener_count++;
    }
    return 0;
}

static int
step_listen(struct serving *s, struct err *e)
{
    const struct serve_options *o = &s->options;
    const unsigned count = s->activated_count + o->listen_count;

    s->listeners = calloc(count > 0 ? count : 1, sizeof(*s->listeners));
    if (s->listeners == NULL) {
        return err_set(e, ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i < o->listen_count; i++) {
        int r = listen_open(&o->listen[i], o->socket_mode,
                            &s->listeners[s->listener_count], e);

        if (r < 0) {
            return r;
        }
        s->listener_count++;
    }
    return adopt_all(s, e);
}

static int
step_hand_over(struct serving *s, struct err *e)
{
    for (unsigned i = 0; i < s->listener_count; i++) {
        struct listener *l = &s->listeners[i];

        for (unsigned j = 0; j < l->fd_count; j++) {
            int fd = l->fds[j];

            l->fds[j] = -1; /* the server's, whatever it says */
            int r = server_add_listener(s->server, fd, e);

            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

static int
step_pid_file(struct serving *s, struct err *e)
{
    return s->options.pid_file != NULL
               ? pid_file_write(&s->pid_file, s->options.pid_file, e)
               : 0;
}

/* The thread may unlink sockets and the pid file, so it comes after them; and
 * it is over before the main thread touches them again. */
static int
step_signals(struct serving *s, struct err *e)
{
    s->signals.stop = stop;
    s->signals.report = report;
    s->signals.arg = s;
    return signals_start(&s->signals, e);
}

static void
print_ready(const struct serving *s, const struct listener *l,
            const struct export *x)
{
    char text[sizeof(l->uri.socket) * 3 + sizeof(l->uri.export) * 3];
    struct uri uri = l->uri;
    json_t *o;

    snprintf(uri.export, sizeof(uri.export), "%s", x->name);
    if (uri_format(&uri, text, sizeof(text)) < 0) {
        return; /* longer than every part's limit: it can't be */
    }
    if (!s->options.common.json) {
        printf("%s\n", text);
        return;
    }
    o = json_object();
    json_object_set_new(o, "uri", json_string(text));
    json_object_set_new(o, "export", json_any_string(x->name));
    json_object_set_new(o, "size", json_bytes(x->size_bytes));
    json_object_set_new(o, "read_only", json_boolean(x->read_only));
    json_write(o, stdout);
}

/* Says that clients may come, and lets a waiting parent go. */
static int
step_ready(struct serving *s, struct err *e)
{
    const struct serve_options *o = &s->options;
    int r;

    log_info("serving %u image(s) on %u address(es), engine %s",
             s->exports.count, s->listener_count, io_engine_name(o->engine));
    for (unsigned i = 0; i < s->listener_count && !o->as_qemu_nbd; i++) {
        for (unsigned j = 0; j < s->exports.count; j++) {
            print_ready(s, &s->listeners[i], &s->exports.exports[j]);
        }
    }
    if (cli_flush() != CLI_OK) {
        return err_set(e, EPIPE, "nobody learns where the server listens");
    }
    r = daemon_ready(&s->daemon, o->verbose > 0);
    if (r < 0) {
        return err_set(e, -r, "cannot go into the background: %s",
                       strerror(-r));
    }
    return 0;
}

/* Order matters: the fork before threads; images before sockets, so that a
 * bad image leaves no socket; sockets with their signals blocked, so that an
 * early SIGTERM leaves none either. */
static int (*const steps[])(struct serving *s, struct err *e) = {
    step_limits,        step_fork,   step_parent,    step_engine,
    step_stats_file,    step_inetd,  step_images,    step_server,
    step_block_signals, step_listen, step_hand_over, step_pid_file,
    step_signals,       step_ready,
};

/* ---- from beginning to end ---- */

static int
start_and_run(struct serving *s)
{
    struct err e = {0};
    int r;

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        r = steps[i](s, &e);
        if (r < 0) {
            log_error("%s", e.text);
            return CLI_FAILED;
        }
    }
    r = s->options.inetd ? run_inetd(s) : server_run(s->server);
    if (s->options.stats) {
        report(s);
    }
    if (r == -EINTR) {
        /* Sessions are stuck, in the kernel say, and use the disks still. */
        log_error("ended with requests unanswered");
        leave_nothing(s);
        _exit(CLI_FAILED);
    }
    return r == 0 ? CLI_OK : CLI_FAILED;
}

static void
serving_end(struct serving *s)
{
    signals_end(&s->signals);
    server_free(s->server);
    leave_nothing(s);
    free(s->listeners);
    export_set_free(&s->exports);
    for (unsigned i = 0; i < s->activated_count; i++) {
        file_close_ptr(&s->activated[i]);
    }
    file_close_ptr(&s->in_fd);
    file_close_ptr(&s->out_fd);
    if (s->stats_out != NULL) {
        fclose(s->stats_out);
    }
    serve_options_clear(&s->options);
}

/* Reads the arguments; true if there is something to serve, else *ret_status
 * is the end. */
static bool
prepare(struct serving *s, struct cli *cli, int argc, char **argv,
        int *ret_status)
{
    static const enum log_level levels[] = {LOG_WARN, LOG_INFO, LOG_DEBUG};
    struct serve_options *o = &s->options;
    struct err e = {0};
    int r;

    if (serve_options_init(o, cli->as_qemu_nbd, argc, &e) < 0) {
        log_error("%s", e.text);
        *ret_status = CLI_FAILED;
        return false;
    }
    if (!command_parse(cli, &serve_command, serve_options_operand, argc, argv,
                       &o->common, ret_status)) {
        return false;
    }
    if (o->common.version) {
        char *version_argv[] = {(char *)"version", NULL};

        *ret_status = version_command.run(cli, 1, version_argv);
        return false;
    }
    log_setup(levels[min_u64(o->verbose, ARRAY_LEN(levels) - 1)], cli->program);
    r = activate_sockets(s->activated, &e);
    if (r < 0) {
        log_error("%s", e.text);
        *ret_status = CLI_FAILED;
        return false;
    }
    s->activated_count = (unsigned)r;
    r = serve_options_finish(o, s->activated_count, &e);
    if (r < 0) {
        *ret_status = command_misused(cli, &serve_command, &e);
        return false;
    }
    if (o->list) {
        *ret_status = serve_list(o);
        return false;
    }
    return true;
}

static int
serve_run(struct cli *cli, int argc, char **argv)
{
    struct serving s = {
        .daemon = DAEMON_INIT,
        .in_fd = -1,
        .out_fd = -1,
        .leaving = PTHREAD_MUTEX_INITIALIZER,
    };
    int status;

    if (prepare(&s, cli, argc, argv, &status)) {
        status = start_and_run(&s);
    }
    serving_end(&s);
    return status;
}

const struct command serve_command = {
    .name = "serve",
    .summary = "serve disk images over NBD",
    .synopsis = "[OPTION]... IMAGE...\n--list [OPTION]... [URI]",
    .notes =
        "When ready, one NBD URI per address and export is printed, a line "
        "each.\n"
        "Options for images that stand before the first IMAGE and the first\n"
        "-x are for all images, later ones for the next IMAGE alone. With one\n"
        "IMAGE their place does not matter.",
    .examples =
        "rewind serve --ephemeral disk.qcow2\n"
        "rewind serve -s -f raw -x myDisk --listen localhost:10809 Disk.img\n"
        "rewind serve -x root -s root.qcow2 -x data -r data.img\n"
        "rewind serve --fork --pid-file vm.pid -k vm.sock -s disk.qcow2\n"
        "rewind serve --list nbd://localhost",
    .operands = OPT_FILE,
    .opts = serve_opts,
    .run = serve_run,
};

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What serve's options mean together (serve_options.h): which image gets which,
 * what the exports are called, where to listen, and what contradicts itself.
 * One thread; touches no disk and makes no socket.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "cli/serve_options.h"
#include "nbd/limits.h"
#include "nbd/proto.h"

int
serve_options_init(struct serve_options *o, bool as_qemu_nbd, int argc,
                   struct err *e)
{
    const size_t count = (size_t)argc + 1;

    *o = (struct serve_options){
        .as_qemu_nbd = as_qemu_nbd,
        .handshake_s = LIMIT_HANDSHAKE_S_DEFAULT,
        .session_max = as_qemu_nbd ? 1 : 0,
        .socket_mode = as_qemu_nbd ? LISTEN_MODE_UMASK : 0600,
        .images = calloc(count, sizeof(*o->images)),
        .made_names = calloc(count, sizeof(*o->made_names)),
        /* Beside what --listen gives: one for -k, one for -p. */
        .listen = calloc(count + 2, sizeof(*o->listen)),
        .allow_paths = calloc(count, sizeof(*o->allow_paths)),
    };
    if (o->images == NULL || o->made_names == NULL || o->listen == NULL ||
        o->allow_paths == NULL) {
        serve_options_clear(o);
        return err_set(e, ENOMEM, "out of memory");
    }
    return 0;
}

void
serve_options_clear(struct serve_options *o)
{
    for (unsigned i = 0; o->made_names != NULL && i < o->image_count; i++) {
        free(o->made_names[i]);
    }
    free(o->made_names);
    free(o->images);
    free(o->listen);
    free(o->allow_paths);
    *o = (struct serve_options){.image_count = 0};
}

/* What is set in `from` goes over what `to` says. */
static void
merge(struct serve_image *to, const struct serve_image *from)
{
    to->name = from->name != NULL ? from->name : to->name;
    to->description = from->description != NULL ? from->description
                                                : to->description;
    to->snapshot = from->snapshot != NULL ? from->snapshot : to->snapshot;
    if (from->format != IMAGE_FORMAT_UNSET) {
        to->format = from->format;
    }
    if (from->discard != DISCARD_UNSET) {
        to->discard = from->discard;
    }
    if (from->detect_zeroes != DETECT_UNSET) {
        to->detect_zeroes = from->detect_zeroes;
    }
    if (from->has_offset) {
        to->has_offset = true;
        to->offset_bytes = from->offset_bytes;
    }
    to->read_only = to->read_only || from->read_only;
    to->ephemeral = to->ephemeral || from->ephemeral;
    to->allocation_depth = to->allocation_depth || from->allocation_depth;
}

static bool
is_set(const struct serve_image *i)
{
    return i->name != NULL || i->description != NULL || i->snapshot != NULL ||
           i->format != IMAGE_FORMAT_UNSET || i->discard != DISCARD_UNSET ||
           i->detect_zeroes != DETECT_UNSET || i->has_offset || i->read_only ||
           i->ephemeral || i->allocation_depth;
}

int
serve_options_operand(void *into, const char *arg, struct err *e)
{
    struct serve_options *o = into;
    struct serve_image *image = &o->images[o->image_count];

    if (arg[0] == '\0') {
        return err_set(e, EINVAL, "the name of an image is empty");
    }
    *image = o->shared;
    merge(image, &o->next);
    image->path = arg;
    o->image_count++;
    o->next = (struct serve_image){.path = NULL};
    o->is_next = true;
    return 0;
}

/* ---- images ---- */

/* Options behind the last image: with one image the place does not matter. */
static int
place_rest(struct serve_options *o, struct err *e)
{
    if (!is_set(&o->next)) {
        return 0;
    }
    if (o->image_count > 1) {
        return err_set(e, EINVAL,
                       "options stand behind the last image; with "
                       "several images put them before the one they are for");
    }
    merge(&o->images[0], &o->next);
    return 0;
}

/* The file's name without directory and suffix. */
static char *
name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(base, '.');

    return dot != NULL && dot > base ? strndup(base, (size_t)(dot - base))
                                     : strdup(base);
}

static int
name_exports(struct serve_options *o, struct err *e)
{
    for (unsigned i = 0; i < o->image_count; i++) {
        struct serve_image *image = &o->images[i];

        if (image->name == NULL && o->image_count == 1) {
            image->name = "";
        } else if (image->name == NULL) {
            image->name = o->made_names[i] = name_of(image->path);
            if (image->name == NULL) {
                return err_set(e, ENOMEM, "out of memory");
            }
        }
        for (unsigned j = 0; j < i; j++) {
            if (strcmp(o->images[j].name, image->name) == 0) {
                return err_set(e, EINVAL,
                               "%s and %s would both be the export "
                               "\"%s\"; name one with -x before it",
                               o->images[j].path, image->path, image->name);
            }
        }
    }
    return 0;
}

static int
check_image(const struct serve_options *o, struct serve_image *image,
            struct err *e)
{
    /* qemu-nbd's -l is always read-only. */
    if (image->snapshot != NULL && (o->as_qemu_nbd || !image->ephemeral)) {
        image->read_only = true;
    }
    image->allocation_depth = image->allocation_depth || !o->as_qemu_nbd;
    if (image->discard == DISCARD_UNSET) {
        image->discard = o->as_qemu_nbd ? DISCARD_IGNORE : DISCARD_UNMAP;
    }
    if (image->detect_zeroes == DETECT_UNMAP &&
        image->discard != DISCARD_UNMAP) {
        return err_set(e, EINVAL,
                       "--detect-zeroes=unmap needs "
                       "--discard=unmap");
    }
    return 0;
}

static int
finish_images(struct serve_options *o, struct err *e)
{
    int r;

    if (o->image_count == 0) {
        return err_set(e, EINVAL, "no image to serve");
    }
    if (o->as_qemu_nbd && o->image_count > 1) {
        return err_set(e, EINVAL,
                       "\"%s\" is one image too many; as qemu-nbd "
                       "there is one, rewind serve takes several",
                       o->images[1].path);
    }
    r = place_rest(o, e);
    for (unsigned i = 0; i < o->image_count && r == 0; i++) {
        r = check_image(o, &o->images[i], e);
    }
    return r == 0 ? name_exports(o, e) : r;
}

/* ---- listening ---- */

static void
add_tcp(struct serve_options *o, const char *host)
{
    struct listen_address *a = &o->listen[o->listen_count++];

    a->kind = LISTEN_TCP;
    a->port = o->has_port ? o->port : NBD_PORT;
    snprintf(a->host, sizeof(a->host), "%s",
             o->bind_host != NULL ? o->bind_host : host);
}

static int
add_socket(struct serve_options *o, struct err *e)
{
    struct listen_address *a = &o->listen[o->listen_count];

    if (o->socket_path[0] == '\0' ||
        strlen(o->socket_path) >= sizeof(a->path)) {
        return err_set(e, EINVAL, "--socket: the path is %s",
                       o->socket_path[0] == '\0' ? "empty" : "too long");
    }
    a->kind = LISTEN_UNIX;
    snprintf(a->path, sizeof(a->path), "%s", o->socket_path);
    o->listen_count++;
    return 0;
}

/* Whoever started us has decided already. */
static int
check_activated(const struct serve_options *o, struct err *e)
{
    const char *clash = o->listen_count > 0      ? "--listen"
                        : o->socket_path != NULL ? "--socket"
                        : o->bind_host != NULL   ? "--bind"
                        : o->has_port            ? "--port"
                        : o->inetd               ? "--inetd"
                        : o->list                ? "--list"
                                                 : NULL;

    if (clash != NULL) {
        return err_set(e, EINVAL,
                       "%s does not go with the listening sockets "
                       "that we were started with (socket activation); leave "
                       "it out",
                       clash);
    }
    return 0;
}

/* Before any socket is made, so that nothing has happened if it is refused. */
static int
check_network(const struct serve_options *o, struct err *e)
{
    for (unsigned i = 0; i < o->listen_count && !o->insecure; i++) {
        const struct listen_address *a = &o->listen[i];
        bool network;
        int r = listen_reaches_network(a, &network, e);

        if (r < 0) {
            return r;
        }
        if (network) {
            return err_set(e, EINVAL,
                           "\"%s\" is reached from other hosts, and "
                           "without TLS anyone there could read and write the "
                           "disk; listen on a Unix socket or on localhost, or "
                           "allow it with --insecure",
                           a->host[0] != '\0' ? a->host : "*");
        }
    }
    return 0;
}

static int
finish_listen(struct serve_options *o, unsigned activated, struct err *e)
{
    const bool tcp_asked = o->has_port || o->bind_host != NULL;
    int r = 0;

    if (activated > 0) {
        return check_activated(o, e);
    }
    if (o->inetd) {
        return o->listen_count > 0 || o->socket_path != NULL || tcp_asked
                   ? err_set(e, EINVAL,
                             "--inetd does not listen; leave out "
                             "--listen, --socket, --bind and --port")
                   : 0;
    }
    if (o->socket_path != NULL) {
        r = add_socket(o, e);
    }
    if (r < 0) {
        return r;
    }
    if (o->as_qemu_nbd) {
        /* There a Unix socket stands instead of TCP, and all interfaces are
         * the default. */
        if (o->listen_count == 0) {
            add_tcp(o, "0.0.0.0");
        }
        return 0;
    }
    if (tcp_asked) {
        add_tcp(o, "localhost");
    }
    if (o->listen_count == 0) {
        o->listen[o->listen_count++].kind = LISTEN_PRIVATE;
    }
    return check_network(o, e);
}

/* ---- all of it ---- */

/* --list is another program: a client. */
static int
finish_list(struct serve_options *o, struct err *e)
{
    if (o->image_count > 1 || (o->image_count == 1 && o->as_qemu_nbd) ||
        (o->image_count == 1 && strstr(o->images[0].path, "://") == NULL)) {
        return err_set(e, EINVAL,
                       "--list takes no image, only the URI of a "
                       "server, or --bind and --port, or --socket");
    }
    if (is_set(&o->shared) || is_set(&o->next) || o->fork || o->inetd ||
        o->listen_count > 0 || o->pid_file != NULL || o->stats ||
        o->cache != CACHE_WRITEBACK || o->direct_asked ||
        o->engine != IO_ENGINE_AUTO) {
        return err_set(e, EINVAL,
                       "--list is a client and goes with none of "
                       "the options for images and for the server");
    }
    if (o->image_count == 1) {
        o->list_uri = o->images[0].path;
        if (o->socket_path != NULL || o->bind_host != NULL || o->has_port) {
            return err_set(e, EINVAL,
                           "--list %s says where the server is; "
                           "leave out --socket, --bind and --port",
                           o->list_uri);
        }
    }
    return 0;
}

static int
finish_process(const struct serve_options *o, struct err *e)
{
    if (o->fork && o->inetd) {
        return err_set(e, EINVAL, "--fork and --inetd do not go together");
    }
    if (o->fork && o->exit_with_parent) {
        return err_set(e, EINVAL,
                       "--fork leaves its parent; leave out "
                       "--exit-with-parent");
    }
    if (o->fork && o->stats && o->stats_file == NULL) {
        return err_set(e, EINVAL,
                       "after --fork nobody sees standard error; "
                       "name a file: --stats=FILE");
    }
    return 0;
}

int
serve_options_finish(struct serve_options *o, unsigned activated, struct err *e)
{
    int r;

    if (o->list) {
        r = activated > 0 ? check_activated(o, e) : 0;
        return r == 0 ? finish_list(o, e) : r;
    }
    r = finish_process(o, e);
    if (r == 0) {
        r = finish_images(o, e);
    }
    if (r == 0) {
        r = finish_listen(o, activated, e);
    }
    return r;
}

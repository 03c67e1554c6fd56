/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SERVE_OPTIONS_H
#define REWIND_CLI_SERVE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/image.h"
#include "cli/cli.h"
#include "cli/opt.h"
#include "io/io.h"
#include "nbd/listen.h"

/*
 * What `rewind serve` was asked to do: the command line as data, checked as
 * far as that goes without touching a disk or a socket. All strings are
 * borrowed from argv.
 */

enum serve_discard { DISCARD_UNSET, DISCARD_IGNORE, DISCARD_UNMAP };
enum serve_detect { DETECT_UNSET, DETECT_OFF, DETECT_ON, DETECT_UNMAP };
enum serve_cache { CACHE_WRITEBACK, CACHE_WRITETHROUGH, CACHE_UNSAFE };

/* The options that describe one image. NULL, false or UNSET: not given. */
struct serve_image {
    const char *path;
    const char *name;
    const char *description;
    const char *snapshot;
    enum image_format format;
    enum serve_discard discard;
    enum serve_detect detect_zeroes;
    bool read_only;
    bool ephemeral;
    bool allocation_depth;
    bool has_offset;
    uint64_t offset_bytes;
};

struct serve_options {
    struct opt_common common;
    bool as_qemu_nbd;

    bool is_next; /* options go to `next` */
    bool has_port;
    uint16_t port; /* -p */

    /* Images, in order. While parsing, options that stand before the first
     * image and the first -x are in `shared`, later ones in `next`. */
    unsigned image_count;
    struct serve_image *images; /* owned */
    struct serve_image shared, next;
    char **made_names; /* owned; of images without -x among several */

    /* Where to listen. serve_options_finish puts all of it in `listen`. */
    struct listen_address *listen; /* owned */
    unsigned listen_count;
    int socket_mode;         /* bits, or LISTEN_MODE_UMASK */
    const char *socket_path; /* -k */
    const char *bind_host;   /* -b */

    unsigned session_max; /* 0: no limit but the server's own */
    unsigned handshake_s; /* 0: no limit */

    const char *overlay_dir;
    const char **allow_paths; /* owned array, NULL-terminated */
    unsigned allow_count;
    enum serve_cache cache;
    enum io_engine_kind engine;

    unsigned verbose;
    const char *list_uri; /* --list URI; NULL: by -b, -p, -k */
    const char *pid_file;
    const char *stats_file; /* NULL: standard error */

    bool direct_asked; /* O_DIRECT was: --cache=none, directsync */
    bool insecure;
    bool inetd;
    bool persistent;
    bool list;
    bool fork;
    bool exit_with_parent;
    bool stats;
};

extern const struct opt serve_opts[];

/* Room for what argc arguments can name, and the defaults. -ENOMEM. */
int serve_options_init(struct serve_options *o, bool as_qemu_nbd, int argc,
                       struct err *e);

/* Takes an IMAGE (or, with --list, a URI); an opt_operand_fn. */
int serve_options_operand(void *into, const char *arg, struct err *e);

/*
 * After all arguments: gives each image its options and its name, decides
 * where to listen, and refuses what does not go together. `activated` is
 * the number of sockets we were started with. -EINVAL and `e`.
 */
int serve_options_finish(struct serve_options *o, unsigned activated,
                         struct err *e);

/* Frees what is owned. */
void serve_options_clear(struct serve_options *o);

#endif

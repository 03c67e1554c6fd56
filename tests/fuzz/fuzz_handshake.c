/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Feeds bytes to the server's handshake as a client would send them. The first
 * byte chooses the set of exports and whether the server is stopping; what it
 * answers goes nowhere. A result must be one that handshake.h allows.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nbd/handshake.h"
#include "nbd/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct export_set sets[3];
static int in_fd, out_fd;

static void
require(bool what)
{
    if (!what) {
        abort();
    }
}

static void
set_up(void)
{
    static char long_name[NBD_STRING_MAX + 1];
    struct export *x;

    if (out_fd != 0) {
        return;
    }
    memset(long_name, 'n', NBD_STRING_MAX);
    x = export_set_add(&sets[0], "a", "text", NULL, NULL);
    require(x != NULL);
    x->size_bytes = 1 << 20;
    x->read_only = false;
    x->contexts = 3;
    x = export_set_add(&sets[0], "b", NULL, NULL, NULL);
    require(x != NULL);
    x->min_block_bytes = 512;
    require(export_set_add(&sets[1], "", "", NULL, NULL) != NULL);
    require(export_set_add(&sets[1], long_name, long_name, NULL, NULL) != NULL);
    in_fd = memfd_create("input", MFD_CLOEXEC);
    out_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    require(in_fd > 0 && out_fd > 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct stream s;
    struct negotiated result = {0};
    bool stopping;
    struct handshake_options options = {.stopping = &stopping};
    int rc;

    set_up();
    if (size < 1) {
        return 0;
    }
    options.exports = &sets[data[0] % 3];
    stopping = (data[0] & 0x80) != 0;
    require(ftruncate(in_fd, 0) == 0);
    require(pwrite(in_fd, data + 1, size - 1, 0) == (ssize_t)size - 1);
    require(lseek(in_fd, 0, SEEK_SET) == 0);
    s = (struct stream){.in_fd = in_fd, .out_fd = out_fd};
    rc = handshake_run(&s, &options, &result);
    require(rc <= 1);
    require((rc == 0) == (result.export != NULL));
    if (rc == 0) {
        require(!stopping);
        require(result.structured || !result.extended);
        require(result.structured || result.contexts == 0);
        require((result.contexts & ~result.export->contexts) == 0);
        require(result.block_size_known || result.export->min_block_bytes == 1);
    }
    return 0;
}

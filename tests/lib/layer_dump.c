/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * layer_dump [OPTION...] IMAGE: opens an image as a server would and writes
 * the whole disk to standard output, for comparison with what other programs
 * read. Exit status 0; 1 if the image is refused (with the reason on standard
 * error); 3 if it was opened but a read failed, which is what a client would
 * be told in band.
 *
 *   -f FORMAT   as image_options.format      -l SNAPSHOT   .snapshot
 *   -o BYTES    .offset_bytes                -a DIR        .allow_paths
 *   -e          .ephemeral                   -w            writable in place
 *   -p          .probe_writable (always unless -w)
 *                                            -m            print extents
 *   -b BYTES    size of one read             -q            print the size only
 *   -s START, -n BYTES  only that part        -j THREADS  that all read at once
 *                                             and must agree
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/disk.h"
#include "blk/image.h"

#define EXTENTS 64u
#define THREADS_MAX 16u

struct job {
    struct disk *disk;
    uint64_t start, end; /* in the disk */
    size_t step_bytes;
    bool output;
    uint64_t sum; /* of what was read */
    int err;
};

static uint64_t
sum_bytes(uint64_t sum, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        sum = (sum ^ p[i]) * UINT64_C(0x100000001b3);
    }
    return sum;
}

/* Zeroes are skipped where the output is a file, so that it stays sparse. */
static int
put(const uint8_t *buf, uint64_t off, size_t len)
{
    bool zero = buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;

    if (zero && lseek(STDOUT_FILENO, 0, SEEK_CUR) >= 0) {
        return 0;
    }
    if (lseek(STDOUT_FILENO, 0, SEEK_CUR) >= 0) {
        return file_pwrite(STDOUT_FILENO, buf, len, off);
    }
    return fwrite(buf, 1, len, stdout) == len ? 0 : -EIO;
}

static void *
read_all(void *arg)
{
    struct job *j = arg;
    uint64_t off = j->start;
    uint8_t *buf = malloc(j->step_bytes);

    j->err = buf != NULL ? 0 : -ENOMEM;
    while (j->err == 0 && off < j->end) {
        size_t len = (size_t)min_u64(j->step_bytes, j->end - off);

        j->err = disk_read(j->disk, buf, off, len);
        if (j->err != 0) {
            fprintf(stderr, "read of %zu at %llu: %s\n", len,
                    (unsigned long long)off, strerror(-j->err));
        } else if (j->output) {
            j->err = put(buf, off - j->start, len);
        } else {
            j->sum = sum_bytes(j->sum, buf, len);
        }
        off += len;
    }
    free(buf);
    return NULL;
}

static int
dump(struct job j)
{
    j.output = true;
    read_all(&j);
    if (j.err == 0 && lseek(STDOUT_FILENO, 0, SEEK_CUR) >= 0 &&
        ftruncate(STDOUT_FILENO, (off_t)(j.end - j.start)) != 0) {
        j.err = -errno;
    }
    return j.err;
}

static int
read_together(struct job j, unsigned threads)
{
    struct job jobs[THREADS_MAX];
    pthread_t ids[THREADS_MAX];
    int err = 0;

    for (unsigned i = 0; i < threads; i++) {
        jobs[i] = j;
        if (pthread_create(&ids[i], NULL, read_all, &jobs[i]) != 0) {
            abort();
        }
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        err = err != 0 ? err : jobs[i].err;
        if (err == 0 && jobs[i].sum != jobs[0].sum) {
            fprintf(stderr, "threads read different bytes\n");
            err = -EIO;
        }
    }
    return err;
}

static int
print_extents(struct disk *d)
{
    static const char *const kinds[] = {"backing", "zero", "data", "packed"};
    uint64_t size = disk_size(d), off = 0;

    while (off < size) {
        struct extent x[EXTENTS];
        unsigned count;
        int err = disk_extents(d, off, size - off, x, EXTENTS, &count);

        if (err != 0) {
            return err;
        }
        for (unsigned i = 0; i < count; i++) {
            printf("%llu %llu %s %u\n", (unsigned long long)x[i].guest_off,
                   (unsigned long long)x[i].len_bytes, kinds[x[i].kind],
                   x[i].depth);
            off = x[i].guest_off + x[i].len_bytes;
        }
    }
    return 0;
}

struct args {
    struct image_options image;
    const char *allow[2];
    struct job job;
    unsigned threads;
    bool map, size;
};

static bool
take_option(struct args *a, int option)
{
    switch (option) {
    case 'f':
        return image_format_parse(optarg, &a->image.format);
    case 'l':
        a->image.snapshot = optarg;
        return true;
    case 'o':
        a->image.offset_bytes = strtoull(optarg, NULL, 0);
        return true;
    case 'a':
        a->allow[0] = optarg;
        a->image.allow_paths = a->allow;
        return true;
    case 'e':
        a->image.ephemeral = true;
        a->image.read_only = false;
        return true;
    case 'w':
        a->image.read_only = false;
        return true;
    case 'p':
        a->image.probe_writable = true;
        return true;
    case 'm':
        a->map = true;
        return true;
    case 'q':
        a->size = true;
        return true;
    case 'b':
        a->job.step_bytes = strtoul(optarg, NULL, 0);
        return true;
    case 's':
        a->job.start = strtoull(optarg, NULL, 0);
        return true;
    case 'n':
        a->job.end = strtoull(optarg, NULL, 0); /* a length until later */
        return true;
    case 'j':
        a->threads = (unsigned)min_u64(strtoul(optarg, NULL, 0), THREADS_MAX);
        return true;
    default:
        return false;
    }
}

static int
run(struct args *a, struct disk *d)
{
    uint64_t size = disk_size(d);

    a->job.disk = d;
    a->job.start = min_u64(a->job.start, size);
    a->job.end = a->job.start + min_u64(a->job.end, size - a->job.start);
    if (a->size) {
        printf("%llu\n", (unsigned long long)size);
        return 0;
    }
    if (a->map) {
        return print_extents(d);
    }
    return a->threads > 0 ? read_together(a->job, a->threads) : dump(a->job);
}

int
main(int argc, char **argv)
{
    struct args a = {
        .image.read_only = true,
        .job = {.end = UINT64_MAX, .step_bytes = 1 << 20},
    };
    struct err e = {0};
    struct disk *d;
    int option, err;

    while ((option = getopt(argc, argv, "f:l:o:a:ewpmqb:s:n:j:")) != -1) {
        if (!take_option(&a, option)) {
            return 2;
        }
    }
    if (optind != argc - 1) {
        return 2;
    }
    a.image.path = argv[optind];
    if (a.image.read_only || a.image.ephemeral) {
        a.image.probe_writable = true; /* what is not declared is followed */
    }
    d = image_open(&a.image, &e);
    if (d == NULL) {
        fprintf(stderr, "layer_dump: %s\n", e.text);
        return 1;
    }
    err = run(&a, d);
    disk_free(d);
    return err == 0 ? 0 : 3;
}

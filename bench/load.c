/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The lean load client of the benchmarks: it speaks just enough NBD (GO,
 * simple replies, a Unix socket), sends all requests that are due in one
 * system call and takes all replies that are there in another, and looks at no
 * data, so that on a machine of few cores the server is what is measured.
 *
 *   load run   SOCKET EXPORT --rw read|write|randread|randwrite|randrw
 *              [--bs N] [--qd N] [--conns N] [--ms N] [--range N] [--mix PCT]
 *              [--flush-every N] [--once] [--seed N]
 *   load first SOCKET EXPORT OFFSET -- COMMAND...
 *              starts COMMAND, and tells the time from there to the first 4
 *              KiB read; then waits for end of file and kills it
 *   load idle  SOCKET EXPORT COUNT     holds COUNT sessions until end of file
 *   load stuck SOCKET EXPORT           asks for reads and never takes them,
 *              until end of file
 *   load pingpong [--bs N] [--qd N] [--ms N]   no server: what a bare
 *              socket pair with the same message sizes can do here
 *
 * One JSON object on standard output. One thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "nbd/proto.h"

#define QD_MAX 256u
#define CONNS_MAX 16u
#define STALL_S 10u
#define RECV_BYTES (UINT32_C(4) << 20)

/* Powers of two of nanoseconds, each cut into 32. */
#define BUCKETS (64u * 32)

enum kind { OP_READ, OP_WRITE, OP_FLUSH };

struct options {
    const char *rw;
    uint32_t bs;
    unsigned qd, conns, mix_percent, flush_every;
    uint64_t run_ns, range_bytes, seed;
    bool once; /* stop when the range has been gone through */
};

struct conn {
    int fd;
    uint64_t size_bytes;
    uint64_t sent_ns[QD_MAX]; /* by cookie */
    uint8_t kind[QD_MAX];
    unsigned idle[QD_MAX], idle_count; /* free cookies */
    uint8_t *in;
    size_t in_len;
    uint64_t skip; /* bytes of read data still to come */
    uint8_t *out;
    size_t out_len, out_done;
};

struct totals {
    uint64_t ops[3], bytes, errors, sends, recvs;
    uint64_t latency[BUCKETS], counted;
};

static struct totals totals;
static uint64_t random_state;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("load: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static uint64_t
now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t
next_random(void)
{
    uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- latency ---- */

static void
count_latency(uint64_t ns)
{
    unsigned log = 63 - (unsigned)__builtin_clzll(ns | 32);
    unsigned idx = log * 32 + (unsigned)(ns >> (log - 5) & 31);

    totals.latency[idx]++;
    totals.counted++;
}

static double
percentile_us(double percent)
{
    uint64_t want = (uint64_t)((double)totals.counted * percent / 100);
    uint64_t seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += totals.latency[i];
        if (seen > want) {
            unsigned log = i / 32;
            uint64_t ns = (UINT64_C(1) << log) +
                          ((uint64_t)(i % 32) << (log - 5));

            return (double)ns / 1000;
        }
    }
    return 0;
}

/* ---- connecting ---- */

static bool
read_all(int fd, void *buf, size_t len)
{
    uint8_t *p = buf;

    while (len > 0) {
        ssize_t n = read(fd, p, len);

        if (n <= 0) {
            if (n < 0 && errno == EINTR) {
                continue;
            }
            return false;
        }
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static int
connect_unix(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    if (fd < 0 || strlen(path) >= sizeof(a.sun_path)) {
        die("%s: no such socket path", path);
    }
    memcpy(a.sun_path, path, strlen(path));
    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* The handshake up to the transmission phase. */
static bool
go(int fd, const char *export, uint64_t *ret_size)
{
    uint8_t buf[8192], hello[18];
    struct builder b = builder_of(buf, sizeof(buf));
    uint32_t name = (uint32_t)strlen(export);

    builder_u32(&b, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    builder_u64(&b, NBD_OPTION_MAGIC);
    builder_u32(&b, NBD_OPT_GO);
    builder_u32(&b, 6 + name);
    builder_u32(&b, name);
    builder_bytes(&b, export, name);
    builder_u16(&b, 0);
    if (b.full || !read_all(fd, hello, sizeof(hello)) ||
        write(fd, buf, b.len_bytes) != (ssize_t)b.len_bytes) {
        return false;
    }
    for (;;) {
        uint8_t reply[NBD_OPTION_REPLY_BYTES];

        if (!read_all(fd, reply, sizeof(reply))) {
            return false;
        }
        uint32_t type = load_be32(reply + 12), len = load_be32(reply + 16);

        if (len > sizeof(buf) || !read_all(fd, buf, len)) {
            return false;
        }
        if (type == NBD_REP_ACK) {
            return true;
        }
        if (type & NBD_REP_ERR_BIT) {
            die("the server refuses \"%s\": %.*s", export, (int)len, buf);
        }
        if (len >= 12 && load_be16(buf) == NBD_INFO_EXPORT) {
            *ret_size = load_be64(buf + 2);
        }
    }
}

static void
conn_open(struct conn *c, const char *path, const char *export,
          const struct options *o)
{
    size_t out = (size_t)o->qd * (NBD_REQUEST_BYTES + o->bs);

    c->fd = connect_unix(path);
    if (c->fd < 0 || !go(c->fd, export, &c->size_bytes)) {
        die("cannot connect to %s: %s", path, strerror(errno));
    }
    c->in = malloc(RECV_BYTES);
    c->out = malloc(out);
    if (c->in == NULL || c->out == NULL) {
        die("out of memory");
    }
    for (unsigned i = 0; i < o->qd; i++) {
        c->idle[c->idle_count++] = i;
    }
    /* Payloads that no server can take for zeroes. */
    for (size_t i = 0; i < out; i++) {
        c->out[i] = (uint8_t)(next_random() | 1);
    }
}

/* ---- requests and replies ---- */

struct plan {
    const struct options *o;
    uint64_t blocks, next, issued;
};

/* The next request's kind and offset; false if there is none. */
static bool
plan_next(struct plan *p, enum kind *ret_kind, uint64_t *ret_off)
{
    const struct options *o = p->o;
    bool random = strncmp(o->rw, "rand", 4) == 0;
    const char *what = random ? o->rw + 4 : o->rw;

    if (o->once && p->next >= p->blocks) {
        return false;
    }
    p->issued++;
    *ret_off = 0;
    if (o->flush_every != 0 && p->issued % (o->flush_every + 1) == 0) {
        *ret_kind = OP_FLUSH;
        return true;
    }
    *ret_kind = strcmp(what, "read") == 0              ? OP_READ
                : strcmp(what, "write") == 0           ? OP_WRITE
                : next_random() % 100 < o->mix_percent ? OP_READ
                                                       : OP_WRITE;
    uint64_t block = p->next++ % p->blocks;

    if (random && o->once) {
        /* An odd stride goes through a power of two of blocks just once. */
        block = block * UINT64_C(0x9e3779b1) % p->blocks;
    } else if (random) {
        block = next_random() % p->blocks;
    }
    *ret_off = block * o->bs;
    return true;
}

static void
put_request(struct conn *c, enum kind kind, uint64_t off, uint32_t bs,
            uint64_t now)
{
    static const uint16_t command[] = {NBD_CMD_READ, NBD_CMD_WRITE,
                                       NBD_CMD_FLUSH};
    unsigned cookie = c->idle[--c->idle_count];
    uint8_t *p = c->out + c->out_len;

    store_be32(p, NBD_REQUEST_MAGIC);
    store_be16(p + 4, 0);
    store_be16(p + 6, command[kind]);
    store_be64(p + 8, cookie);
    store_be64(p + 16, off);
    store_be32(p + 24, kind == OP_FLUSH ? 0 : bs);
    c->out_len += NBD_REQUEST_BYTES + (kind == OP_WRITE ? bs : 0);
    c->sent_ns[cookie] = now;
    c->kind[cookie] = (uint8_t)kind;
}

/* Sends what is queued; false if the socket takes no more for now. */
static bool
conn_send(struct conn *c)
{
    while (c->out_done < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_done, c->out_len - c->out_done,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

        totals.sends++;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return false;
        }
        if (n < 0) {
            die("send: %s", strerror(errno));
        }
        c->out_done += (size_t)n;
    }
    c->out_len = c->out_done = 0;
    return true;
}

/* Takes what has come. Data that is read is skipped over. */
static void
conn_receive(struct conn *c, uint32_t bs, bool wait)
{
    ssize_t n = recv(c->fd, c->in + c->in_len, RECV_BYTES - c->in_len,
                     wait ? 0 : MSG_DONTWAIT);
    size_t at = 0;

    totals.recvs++;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        die("the server closed the connection");
    }
    c->in_len += (size_t)n;

    uint64_t now = now_ns();

    while (at < c->in_len) {
        if (c->skip > 0) {
            size_t skip = (size_t)min_u64(c->skip, c->in_len - at);

            c->skip -= skip;
            at += skip;
            continue;
        }
        if (c->in_len - at < NBD_SIMPLE_REPLY_BYTES) {
            break;
        }
        uint64_t cookie = load_be64(c->in + at + 8);

        if (load_be32(c->in + at) != NBD_SIMPLE_REPLY_MAGIC ||
            cookie >= QD_MAX) {
            die("the server's stream is out of step");
        }
        if (load_be32(c->in + at + 4) != 0) {
            totals.errors++;
        } else if (c->kind[cookie] == OP_READ) {
            c->skip = bs;
        }
        at += NBD_SIMPLE_REPLY_BYTES;
        totals.ops[c->kind[cookie]]++;
        totals.bytes += c->kind[cookie] == OP_FLUSH ? 0 : bs;
        count_latency(now - c->sent_ns[cookie]);
        c->idle[c->idle_count++] = (unsigned)cookie;
    }
    memmove(c->in, c->in + at, c->in_len - at);
    c->in_len -= at;
}

static void
run_load(struct conn *conns, const struct options *o)
{
    struct plan plan = {
        .o = o, .blocks = min_u64(o->range_bytes, conns[0].size_bytes) / o->bs};
    uint64_t end = now_ns() + o->run_ns;
    bool more = plan.blocks > 0, busy = true;

    while (busy) {
        struct pollfd p[CONNS_MAX];
        uint64_t now = now_ns();

        busy = false;
        more = more && now < end;
        for (unsigned i = 0; i < o->conns; i++) {
            struct conn *c = &conns[i];
            enum kind kind;
            uint64_t off;

            while (more && c->out_len == 0 && c->idle_count > 0) {
                while (c->idle_count > 0 &&
                       (more = plan_next(&plan, &kind, &off))) {
                    put_request(c, kind, off, o->bs, now);
                }
                break;
            }
            bool sent = conn_send(c);

            p[i] = (struct pollfd){
                .fd = c->fd,
                .events = (short)(POLLIN | (sent ? 0 : POLLOUT)),
            };
            busy |= c->idle_count < o->qd;
        }
        if (!busy) {
            break;
        }
        if (o->conns == 1 && p[0].events == POLLIN) {
            conn_receive(&conns[0], o->bs, true);
            continue;
        }
        if (poll(p, o->conns, -1) < 0) {
            continue;
        }
        for (unsigned i = 0; i < o->conns; i++) {
            if (p[i].revents & (POLLIN | POLLHUP)) {
                conn_receive(&conns[i], o->bs, false);
            }
        }
    }
}

static double
own_cpu_s(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void
print_totals(double seconds)
{
    uint64_t ops = totals.ops[0] + totals.ops[1] + totals.ops[2];

    printf("{\"seconds\": %.6f, \"ops\": %" PRIu64 ", \"reads\": %" PRIu64
           ", \"writes\": %" PRIu64 ", \"flushes\": %" PRIu64
           ", \"bytes\": %" PRIu64 ", \"errors\": %" PRIu64
           ", \"iops\": %.1f, \"mb_s\": %.2f, \"p50_us\": %.1f"
           ", \"p99_us\": %.1f, \"p999_us\": %.1f, \"client_cpu_s\": %.4f"
           ", \"sends\": %" PRIu64 ", \"recvs\": %" PRIu64 "}\n",
           seconds, ops, totals.ops[0], totals.ops[1], totals.ops[2],
           totals.bytes, totals.errors, (double)ops / seconds,
           (double)totals.bytes / seconds / 1e6, percentile_us(50),
           percentile_us(99), percentile_us(99.9), own_cpu_s(), totals.sends,
           totals.recvs);
}

/* ---- the commands ---- */

static uint64_t
number(const char *text)
{
    char *end;
    uint64_t v = strtoull(text, &end, 0);
    static const char suffix[] = "KMGT";
    const char *s = *end != '\0' ? strchr(suffix, *end) : NULL;

    if (end == text || (*end != '\0' && (s == NULL || end[1] != '\0'))) {
        die("%s is not a number", text);
    }
    return s != NULL ? v << (10 * (s - suffix + 1)) : v;
}

static void
parse_options(int argc, char **argv, struct options *o)
{
    *o = (struct options){.rw = "randread",
                          .bs = 4096,
                          .qd = 32,
                          .conns = 1,
                          .mix_percent = 70,
                          .run_ns = 1000000000,
                          .range_bytes = UINT64_MAX,
                          .seed = 1};
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--once") == 0) {
            o->once = true;
            continue;
        }
        if (i + 1 == argc) {
            die("%s needs a value", argv[i]);
        }
        const char *name = argv[i], *value = argv[++i];

        if (strcmp(name, "--rw") == 0) {
            o->rw = value;
        } else if (strcmp(name, "--bs") == 0) {
            o->bs = (uint32_t)number(value);
        } else if (strcmp(name, "--qd") == 0) {
            o->qd = (unsigned)number(value);
        } else if (strcmp(name, "--conns") == 0) {
            o->conns = (unsigned)number(value);
        } else if (strcmp(name, "--ms") == 0) {
            o->run_ns = number(value) * 1000000;
        } else if (strcmp(name, "--range") == 0) {
            o->range_bytes = number(value);
        } else if (strcmp(name, "--mix") == 0) {
            o->mix_percent = (unsigned)number(value);
        } else if (strcmp(name, "--flush-every") == 0) {
            o->flush_every = (unsigned)number(value);
        } else if (strcmp(name, "--seed") == 0) {
            o->seed = number(value);
        } else {
            die("unknown option %s", name);
        }
    }
    if (o->qd == 0 || o->qd > QD_MAX || o->conns == 0 || o->conns > CONNS_MAX ||
        o->bs == 0 || o->bs > RECV_BYTES / 2) {
        die("--qd, --conns or --bs out of range");
    }
    random_state = o->seed;
}

static int
command_run(int argc, char **argv)
{
    static struct conn conns[CONNS_MAX];
    struct options o;

    if (argc < 2) {
        die("run needs a socket and an export");
    }
    parse_options(argc - 2, argv + 2, &o);
    /* A server that stops answering must not stop the benchmark. */
    alarm((unsigned)(o.run_ns / 1000000000) + STALL_S);
    for (unsigned i = 0; i < o.conns; i++) {
        conn_open(&conns[i], argv[0], argv[1], &o);
    }
    uint64_t begin = now_ns();

    run_load(conns, &o);
    print_totals((double)(now_ns() - begin) / 1e9);
    return 0;
}

static void
wait_for_eof(void)
{
    char c;

    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
}

static bool
read_4k(int fd, uint64_t off)
{
    uint8_t q[NBD_REQUEST_BYTES], reply[NBD_SIMPLE_REPLY_BYTES], data[4096];

    store_be32(q, NBD_REQUEST_MAGIC);
    store_be16(q + 4, 0);
    store_be16(q + 6, NBD_CMD_READ);
    store_be64(q + 8, 1);
    store_be64(q + 16, off);
    store_be32(q + 24, sizeof(data));
    return write(fd, q, sizeof(q)) == sizeof(q) &&
           read_all(fd, reply, sizeof(reply)) && load_be32(reply + 4) == 0 &&
           read_all(fd, data, sizeof(data));
}

static int
command_first(int argc, char **argv)
{
    if (argc < 5 || strcmp(argv[3], "--") != 0) {
        die("first needs SOCKET EXPORT OFFSET -- COMMAND");
    }
    uint64_t begin = now_ns(), size = 0, off = number(argv[2]);
    struct timespec pause = {.tv_nsec = 100000};
    pid_t pid = fork();
    int fd = -1;

    if (pid == 0) {
        execvp(argv[4], argv + 4);
        _exit(127);
    }
    while (fd < 0) {
        fd = connect_unix(argv[0]);
        if (fd < 0) {
            if (now_ns() - begin > UINT64_C(20000000000) ||
                waitpid(pid, NULL, WNOHANG) == pid) {
                die("%s did not come up", argv[4]);
            }
            nanosleep(&pause, NULL);
        }
    }
    if (!go(fd, argv[1], &size) || !read_4k(fd, off)) {
        die("the first read failed");
    }
    printf("{\"first_byte_ms\": %.3f, \"pid\": %d}\n",
           (double)(now_ns() - begin) / 1e6, (int)pid);
    fflush(stdout);
    wait_for_eof();
    close(fd); /* some servers wait for their clients */
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    return 0;
}

static int
command_idle(int argc, char **argv)
{
    if (argc != 3) {
        die("idle needs SOCKET EXPORT COUNT");
    }
    for (uint64_t i = number(argv[2]), size; i > 0; i--) {
        int fd = connect_unix(argv[0]);

        if (fd < 0 || !go(fd, argv[1], &size)) {
            die("idle session refused: %s", strerror(errno));
        }
    }
    puts("{\"ready\": true}");
    fflush(stdout);
    wait_for_eof();
    return 0;
}

static int
command_stuck(int argc, char **argv)
{
    uint8_t q[NBD_REQUEST_BYTES] = {0};
    uint64_t size;

    if (argc != 2) {
        die("stuck needs SOCKET EXPORT");
    }
    int fd = connect_unix(argv[0]);

    if (fd < 0 || !go(fd, argv[1], &size)) {
        die("refused: %s", strerror(errno));
    }
    store_be32(q, NBD_REQUEST_MAGIC);
    store_be32(q + 24, (uint32_t)min_u64(size, 32 << 20));
    while (send(fd, q, sizeof(q), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(q)) {
    }
    puts("{\"ready\": true}");
    fflush(stdout);
    wait_for_eof();
    return 0;
}

/* A server of nothing: takes requests, sends replies of the same sizes. */
static void
pingpong_server(int fd, const struct options *o)
{
    size_t reply = NBD_SIMPLE_REPLY_BYTES + o->bs, at, have = 0;
    uint8_t *in = malloc(RECV_BYTES), *out = calloc(o->qd, reply);

    if (in == NULL || out == NULL) {
        _exit(1);
    }
    for (;;) {
        ssize_t n = read(fd, in + have, RECV_BYTES - have);
        size_t len = 0;

        if (n <= 0) {
            _exit(0);
        }
        have += (size_t)n;
        for (at = 0; have - at >= NBD_REQUEST_BYTES;
             at += NBD_REQUEST_BYTES, len += reply) {
            store_be32(out + len, NBD_SIMPLE_REPLY_MAGIC);
            memcpy(out + len + 8, in + at + 8, 8);
        }
        memmove(in, in + at, have - at);
        have -= at;
        for (size_t sent = 0; sent < len; sent += (size_t)n) {
            n = write(fd, out + sent, len - sent);
            if (n <= 0) {
                _exit(0);
            }
        }
    }
}

static int
command_pingpong(int argc, char **argv)
{
    static struct conn c;
    struct options o;
    struct rusage u;
    int pair[2];

    parse_options(argc, argv, &o);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        die("socketpair: %s", strerror(errno));
    }
    pid_t pid = fork();

    if (pid == 0) {
        close(pair[0]);
        pingpong_server(pair[1], &o);
    }
    close(pair[1]);
    c.fd = pair[0];
    c.size_bytes = GIB;
    c.in = malloc(RECV_BYTES);
    c.out = malloc((size_t)o.qd * NBD_REQUEST_BYTES);
    for (unsigned i = 0; i < o.qd; i++) {
        c.idle[c.idle_count++] = i;
    }
    uint64_t begin = now_ns();

    run_load(&c, &o);
    double seconds = (double)(now_ns() - begin) / 1e9;

    close(c.fd);
    wait4(pid, NULL, 0, &u);
    fprintf(stderr, "{\"server_cpu_s\": %.4f}\n",
            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    print_totals(seconds);
    return 0;
}

int
main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {
        {"run", command_run},           {"first", command_first},
        {"idle", command_idle},         {"stuck", command_stuck},
        {"pingpong", command_pingpong},
    };

    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; argc > 1 && i < ARRAY_LEN(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 2, argv + 2);
        }
    }
    fputs("usage: load run|first|idle|stuck|pingpong ... (see the source)\n",
          stderr);
    return 2;
}

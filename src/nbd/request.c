/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Decoding and judging requests: proto.md "Request message", "Request types",
 * "Command flags". Pure: no I/O, no state, any thread.
 */
#include "nbd/request.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "nbd/limits.h"

/* How a command's range is judged. */
enum range_rule {
    RANGE_NONE,   /* no range: offset and length say nothing */
    RANGE_READS,  /* past the end is EINVAL */
    RANGE_WRITES, /* past the end is ENOSPC; needs a writable export */
    RANGE_HINT,   /* TRIM: as RANGE_WRITES, but past the end is EINVAL */
};

struct command_rule {
    uint16_t flags;   /* command flags it may carry, FUA aside */
    uint16_t feature; /* transmission flag that must have been offered */
    enum range_rule range;
};

static const struct command_rule rules[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = {NBD_CMD_FLAG_DF, 0, RANGE_READS},
    [NBD_CMD_WRITE] = {NBD_CMD_FLAG_PAYLOAD_LEN, 0, RANGE_WRITES},
    [NBD_CMD_DISC] = {0, 0, RANGE_NONE},
    [NBD_CMD_FLUSH] = {0, NBD_FLAG_SEND_FLUSH, RANGE_NONE},
    [NBD_CMD_TRIM] = {0, NBD_FLAG_SEND_TRIM, RANGE_HINT},
    [NBD_CMD_CACHE] = {0, NBD_FLAG_SEND_CACHE, RANGE_READS},
    [NBD_CMD_WRITE_ZEROES] = {NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              NBD_FLAG_SEND_WRITE_ZEROES, RANGE_WRITES},
    [NBD_CMD_BLOCK_STATUS] = {NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN,
                              0, RANGE_READS},
};

static void
refuse(struct request *r, uint32_t error, const char *why)
{
    if (r->error == 0) {
        r->error = error;
        r->why = why;
    }
}

static void
check_flags(struct request *r, const struct command_rule *rule,
            const struct negotiated *n)
{
    uint16_t allowed = rule->flags | NBD_CMD_FLAG_FUA;

    if (!n->extended) {
        allowed &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    if (!(n->flags & NBD_FLAG_SEND_DF)) {
        allowed &= (uint16_t)~NBD_CMD_FLAG_DF;
    }
    if (!(n->flags & NBD_FLAG_SEND_FAST_ZERO)) {
        allowed &= (uint16_t)~NBD_CMD_FLAG_FAST_ZERO;
    }
    if (r->flags & ~allowed) {
        refuse(r, NBD_EINVAL, "a flag that this command does not take");
    }
    if (n->extended && r->type == NBD_CMD_WRITE &&
        !(r->flags & NBD_CMD_FLAG_PAYLOAD_LEN)) {
        refuse(r, NBD_EINVAL, "a write without the payload length flag");
    }
}

/* First of all: whatever else is wrong with it, a write to a read-only export
 * is EPERM. */
static void
check_permission(struct request *r, const struct command_rule *rule,
                 const struct negotiated *n)
{
    bool writes = rule->range == RANGE_WRITES || rule->range == RANGE_HINT;

    if (writes && n->export->read_only) {
        refuse(r, NBD_EPERM, "the export is read-only");
    }
}

/* For BLOCK_STATUS with a payload the effect length is
 * in the payload, and its handler looks at the range. */
static void
check_range(struct request *r, const struct command_rule *rule,
            const struct negotiated *n)
{
    const struct export *x = n->export;

    if (rule->range == RANGE_NONE) {
        return;
    }
    if (r->type == NBD_CMD_BLOCK_STATUS && r->payload_bytes > 0) {
        return;
    }
    if (!range_within(r->off, r->len_bytes, x->size_bytes)) {
        refuse(r, rule->range == RANGE_WRITES ? NBD_ENOSPC : NBD_EINVAL,
               "the range ends past the end of the export");
    }
    if (((r->off | r->len_bytes) & (x->min_block_bytes - 1)) != 0) {
        refuse(r, NBD_EINVAL, "the range is not aligned to the block size");
    }
}

static void
check_size(struct request *r, const struct negotiated *n)
{
    uint64_t max = n->export->max_payload_bytes;

    if (r->payload_bytes > max) {
        refuse(r, NBD_EINVAL, "the payload is larger than the maximum");
    } else if (r->type == NBD_CMD_READ && r->len_bytes > max) {
        refuse(r, n->structured ? NBD_EOVERFLOW : NBD_EINVAL,
               "the read is larger than the maximum payload");
    }
    if (r->type == NBD_CMD_BLOCK_STATUS && n->contexts == 0) {
        refuse(r, NBD_EINVAL, "no metadata context was negotiated");
    }
}

bool
request_decode(const void *bytes, const struct negotiated *n,
               struct request *ret)
{
    struct reader r = reader_of(bytes, request_header_bytes(n));
    uint32_t magic = reader_u32(&r);

    if (magic !=
        (n->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return false;
    }
    *ret = (struct request){0};
    ret->flags = reader_u16(&r);
    ret->type = reader_u16(&r);
    ret->cookie = reader_u64(&r);
    ret->off = reader_u64(&r);
    ret->len_bytes = n->extended ? reader_u64(&r) : reader_u32(&r);
    if (n->extended ? (ret->flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0
                    : ret->type == NBD_CMD_WRITE) {
        ret->payload_bytes = ret->len_bytes;
    }
    if (ret->type >= NBD_CMD_COUNT || ret->type == NBD_CMD_RESIZE) {
        refuse(ret, NBD_EINVAL,
               ret->type == NBD_CMD_RESIZE ? "exports have a fixed size"
                                           : "unknown command");
        return true;
    }
    const struct command_rule *rule = &rules[ret->type];

    check_permission(ret, rule, n);
    check_flags(ret, rule, n);
    if (rule->feature != 0 && !(n->flags & rule->feature)) {
        refuse(ret, NBD_EINVAL, "a command that was not offered");
    }
    check_size(ret, n);
    check_range(ret, rule, n);
    return true;
}

uint32_t
request_wire_error(int result, bool fast_zero)
{
    switch (-result) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    case ENOTSUP:
        return fast_zero ? NBD_ENOTSUP : NBD_EINVAL;
    default:
        return NBD_EIO;
    }
}

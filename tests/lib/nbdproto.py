# SPDX-License-Identifier: BSD-2-Clause
"""The numbers of the NBD protocol, and messages as bytes.

Reference: doc/proto.md of NetworkBlockDevice/nbd with its branch
extension-ext-header. Written from the specification, not from the server's
own headers, so that a wrong number there is found.
"""
import struct

INIT_MAGIC = 0x4e42444d41474943
OPTION_MAGIC = 0x49484156454f5054
OPTION_REPLY_MAGIC = 0x3e889045565a9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21e41c71
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668e33ef
EXTENDED_REPLY_MAGIC = 0x6e8a278c

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_FUA = 1, 2, 4, 8
FLAG_ROTATIONAL, FLAG_SEND_TRIM, FLAG_SEND_WRITE_ZEROES = 16, 32, 64
FLAG_SEND_DF, FLAG_CAN_MULTI_CONN, FLAG_SEND_RESIZE = 128, 256, 512
FLAG_SEND_CACHE, FLAG_SEND_FAST_ZERO = 1024, 2048
FLAG_BLOCK_STATUS_PAYLOAD = 4096
FLAGS_KNOWN = 8191

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_PEEK_EXPORT = 1, 2, 3, 4
OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 5, 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10
OPT_EXTENDED_HEADERS = 11

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERR = 1 << 31
(ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN,
 ERR_SHUTDOWN, ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG,
 ERR_EXT_HEADER_REQD) = (REP_ERR + n for n in range(1, 11))

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

(CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE,
 CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, CMD_RESIZE) = range(9)
CMD_NAMES = ("READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE",
             "WRITE_ZEROES", "BLOCK_STATUS", "RESIZE")

F_FUA, F_NO_HOLE, F_DF, F_REQ_ONE, F_FAST_ZERO, F_PAYLOAD_LEN = (
    1, 2, 4, 8, 16, 32)

REPLY_DONE = 1
CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE = 0, 1, 2
CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT = 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002

OK, EPERM, EIO, ENOMEM, EINVAL, ENOSPC = 0, 1, 5, 12, 22, 28
EOVERFLOW, ENOTSUP, ESHUTDOWN = 75, 95, 108
ERROR_NAMES = {OK: "OK", EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM",
               EINVAL: "EINVAL", ENOSPC: "ENOSPC", EOVERFLOW: "EOVERFLOW",
               ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN"}

STATE_HOLE, STATE_ZERO = 1, 2

SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
MODES = (SIMPLE, STRUCTURED, EXTENDED)

STRING_MAX = 4096
EXTENTS_MAX = 1 << 20
PAYLOAD_MAX_DEFAULT = 1 << 25


def be(fmt, *values):
    return struct.pack(">" + fmt, *values)


def option_bytes(option, data=b"", length=None, magic=OPTION_MAGIC):
    return be("QII", magic, option,
              len(data) if length is None else length) + data


def info_data(name, requests=()):
    """The data of INFO and GO."""
    name = name.encode() if isinstance(name, str) else name
    return (be("I", len(name)) + name + be("H", len(requests))
            + b"".join(be("H", r) for r in requests))


def meta_data(name, queries=()):
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    name = name.encode() if isinstance(name, str) else name
    data = be("I", len(name)) + name + be("I", len(queries))
    for q in queries:
        q = q.encode() if isinstance(q, str) else q
        data += be("I", len(q)) + q
    return data

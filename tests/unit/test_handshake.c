/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server's handshake, byte for byte: tables of conversations, each with
 * what the client sends and all that it must get back, over a socket pair and
 * over two pipes. Reference: proto.md "Fixed newstyle negotiation", "Option
 * types".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "handshake_talk.h"

struct conversation {
    const char *name;
    const char *client;
    const char *server; /* everything it sends, "g" included */
    int rc;
    const char *settled; /* with rc 0: export, flags, s x b, contexts */
    size_t left;         /* bytes that are not the handshake's */
    const struct export_set *set; /* NULL: standard */
    bool stopping;
};

static const struct conversation greetings[] = {
    {"closed at once", "", "g", .rc = -ECONNRESET},
    {"closed after the flags", "f3", "g", .rc = -ECONNRESET},
    {"flags cut", "b0 b0 b0", "g", .rc = -ECONNRESET},
    {"unknown flag 2", "f4 " GO_DISK, "g", .rc = -EPROTO, .left = 26},
    {"unknown flag 31", "f0x80000003 " GO_DISK, "g", .rc = -EPROTO, .left = 26},
    {"all flags", "f0xffffffff", "g", .rc = -EPROTO},
    {"no option magic", "f3 \"IHAVEOPS\" l7 l0", "g", .rc = -EPROTO},
    {"oldstyle magic", "f3 q0x420281861253 l7 l0", "g", .rc = -EPROTO},
    {"noise", "f3 *64:0xff", "g", .rc = -EPROTO, .left = 48},
    {"request in place of an option", "f3 l0x25609513 w0 w0 q1 q0 l512", "g",
     .rc = -EPROTO, .left = 12},
};

static const struct conversation nonfixed[] = {
    {"export name, zeroes", "f0 o1{\"disk\"}", "g q0x800000 " PLAIN " *124:0",
     .settled = SETTLED},
    {"export name, no zeroes", "f2 o1{\"disk\"}", "g q0x800000 " PLAIN,
     .settled = SETTLED},
    {"default export", "f2 o1{}", "g q0x800000 " PLAIN, .settled = SETTLED},
    {"LIST", "f0 o3{}", "g", .rc = -EPROTO},
    {"ABORT", "f0 o2{}", "g", .rc = -EPROTO},
    {"GO", "f2 " GO_DISK, "g", .rc = -EPROTO, .left = 10},
    {"unknown", "f0 o99{}", "g", .rc = -EPROTO},
};

static const struct conversation export_name[] = {
    {"zeroes", "f1 o1{\"disk\"}", "g q0x800000 " PLAIN " *124:0",
     .settled = SETTLED},
    {"no zeroes", "f3 o1{\"disk\"}", "g q0x800000 " PLAIN, .settled = SETTLED},
    {"requests follow", "f3 o1{\"disk\"} l0x25609513 *24:0",
     "g q0x800000 " PLAIN, .settled = SETTLED, .left = 28},
    {"read-only", "f3 o1{\"ro\"}", "g q0x1000000 " READ_ONLY,
     .settled = "ro 0x50f 0"},
    {"structured", "f3 " STRUCTURED "o1{\"disk\"}",
     "g " ACK(8) "q0x800000 " WITH_DF, .settled = "disk 0xded s 0"},
    {"contexts", "f3 " STRUCTURED SET_BASE "o1{\"disk\"}",
     "g " ACK(8) SET_BASE_OK "q0x800000 " WITH_DF, .settled = "disk 0xded s 1"},
    {"contexts of another", "f3 " STRUCTURED SET_BASE "o1{\"ro\"}",
     "g " ACK(8) SET_BASE_OK "q0x1000000 w0x58f", .settled = "ro 0x58f s 0"},
    {"after extended headers", "f3 " EXTENDED "o1{\"disk\"}", "g " ACK(11),
     .rc = -EPROTO},
    {"unknown", "f3 o1{\"nope\"}", "g", .rc = -ENOENT},
    {"prefix", "f3 o1{\"dis\"}", "g", .rc = -ENOENT},
    {"NUL inside", "f3 o1{\"disk\" b0}", "g", .rc = -ENOENT},
    {"4096 bytes, known", "f3 o1{" LONG "}", "g q0x2000000 " PLAIN,
     .settled = "n 0xd6d 0"},
    {"4096 bytes, unknown", "f3 o1{*4096:0x25}", "g", .rc = -ENOENT},
    {"4097 bytes", "f3 o1{*4097:0x6e}", "g", .rc = -EPROTO, .left = 4097},
    {"0xffffffff bytes", "f3 o1=0xffffffff *8:0", "g", .rc = -EPROTO,
     .left = 8},
    {"cut", "f3 o1=5 \"disk\"", "g", .rc = -ECONNRESET},
    {"block size needed", "f3 o1{\"sectors\"}", "g", .rc = -EPROTO},
    {"no exports", "f3 o1{}", "g", .rc = -ENOENT, .set = &none},
    {"an export called \"\"", "f3 o1{}", "g q0x400000 " PLAIN,
     .settled = " 0xd6d 0", .set = &named_default},
};

static const struct conversation simple_options[] = {
    {"ABORT", "f3 o2{}", "g " ACK(2), .rc = 1},
    {"ABORT with data", "f3 o2{\"bye\"}", "g " ACK(2), .rc = 1},
    {"ABORT with much data", "f3 o2{*300000:0x41}", "g " ACK(2), .rc = 1},
    {"ABORT then more", "f3 o2{} o3{}", "g " ACK(2), .rc = 1, .left = 16},
    {"ABORT cut", "f3 o2=4 \"by\"", "g", .rc = -ECONNRESET},
    {"LIST", "f3 o3{}", "g " LIST_REPLIES, .rc = 1},
    {"LIST twice", "f3 o3{} o3{}", "g " LIST_REPLIES LIST_REPLIES, .rc = 1},
    {"LIST with data", "f3 o3{b0} " GO_DISK, "g e3:3 " GONE_DISK,
     .settled = SETTLED},
    {"LIST of nothing", "f3 o3{}", "g " ACK(3), .rc = 1, .set = &none},
    {"STARTTLS", "f3 o5{} " GO_DISK, "g e5:2 " GONE_DISK, .settled = SETTLED},
    {"STARTTLS with data", "f3 o5{\"x\"} o2{}", "g e5:3 " ACK(2), .rc = 1},
    {"PEEK_EXPORT", "f3 o4{n\"disk\"} o2{}", "g e4:1 " ACK(2), .rc = 1},
    {"option 0", "f3 o0{} o2{}", "g e0:1 " ACK(2), .rc = 1},
    {"option 12", "f3 o12{\"data\"} o2{}", "g e12:1 " ACK(2), .rc = 1},
    {"option 0xffffffff", "f3 o0xffffffff{} o2{}", "g e0xffffffff:1 " ACK(2),
     .rc = 1},
    {"unknown and 65537 bytes", "f3 o77{*65537:0} o2{}", "g e77:1 " ACK(2),
     .rc = 1},
    {"unknown and 32 MiB", "f3 o77{*33554432:0} o2{}", "g e77:1 " ACK(2),
     .rc = 1},
    {"unknown and 32 MiB + 1", "f3 o77=33554433 *9:0", "g", .rc = -EPROTO,
     .left = 9},
    {"unknown and 4 GiB", "f3 o77=0xffffffff *9:0", "g", .rc = -EPROTO,
     .left = 9},
    {"STRUCTURED_REPLY", "f3 " STRUCTURED GO_DISK,
     "g " ACK(8) INFO_EXPORT(7, WITH_DF) "r7:1{}", .settled = "disk 0xded s 0"},
    {"STRUCTURED_REPLY twice", "f3 " STRUCTURED STRUCTURED, "g " ACK(8) ACK(8),
     .rc = 1},
    {"STRUCTURED_REPLY with data", "f3 o8{w1} " GO_DISK, "g e8:3 " GONE_DISK,
     .settled = SETTLED},
    {"EXTENDED_HEADERS", "f3 " EXTENDED GO_DISK,
     "g " ACK(11) INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s x 0"},
    {"EXTENDED_HEADERS with data", "f3 o11{b1} " GO_DISK, "g e11:3 " GONE_DISK,
     .settled = SETTLED},
    {"structured, then extended", "f3 " STRUCTURED EXTENDED GO_DISK,
     "g " ACK(8) ACK(11) INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s x 0"},
    {"extended, then structured", "f3 " EXTENDED STRUCTURED GO_DISK,
     "g " ACK(11) "e8:10 " INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s x 0"},
};

static const struct conversation info[] = {
    {"GO", "f3 " GO_DISK, "g " GONE_DISK, .settled = SETTLED},
    {"GO without NO_ZEROES", "f1 " GO_DISK, "g " GONE_DISK, .settled = SETTLED},
    {"GO, requests follow", "f3 " GO_DISK " l0x25609513 *24:0", "g " GONE_DISK,
     .settled = SETTLED, .left = 28},
    {"GO to the default", "f3 o7{l0 w0}", "g " GONE_DISK, .settled = SETTLED},
    {"GO to an export called \"\"", "f3 o7{l0 w1 w1}",
     "g r7:3{w0 q0x400000 " PLAIN "} r7:3{w1} r7:1{}", .settled = " 0xd6d 0",
     .set = &named_default},
    {"the framework's client", "f3 o6{n\"disk\" w1 w3} o7{n\"disk\" w1 w3}",
     "g " INFO_EXPORT(6, PLAIN) BLOCKS(6) ACK(6) INFO_EXPORT(7, PLAIN) BLOCKS(7)
         ACK(7),
     .settled = "disk 0xd6d b 0"},
    {"everything", "f3 o7{n\"disk\" w4 w0 w1 w2 w3}",
     "g " INFO_EXPORT(7, PLAIN)
         BLOCKS(7) "r7:3{w1 \"disk\"} r7:3{w2 \"a disk\"} r7:1{}",
     .settled = "disk 0xd6d b 0"},
    {"the default's name", "f3 o6{l0 w1 w1}",
     "g " INFO_EXPORT(6, PLAIN) "r6:3{w1 \"disk\"} " ACK(6), .rc = 1},
    {"no description", "f3 o6{n\"ro\" w2 w2 w1}",
     "g r6:3{w0 q0x1000000 " READ_ONLY "} r6:3{w1 \"ro\"} " ACK(6), .rc = 1},
    {"4096 bytes of name and description", "f3 o6{l4096 " LONG " w3 w1 w2 w3}",
     "g r6:3{w0 q0x2000000 " PLAIN
     "} " BLOCKS(6) "r6:3{w1 " LONG "} r6:3{w2 *4096:0x64} " ACK(6),
     .rc = 1},
    {"unknown informations", "f3 o6{n\"disk\" w5 w4 w31 w32 w35 w65535}",
     "g " INFO_EXPORT(6, PLAIN) ACK(6), .rc = 1},
    {"unknown repeated", "f3 o6{n\"disk\" w2 w77 w77}",
     "g " INFO_EXPORT(6, PLAIN) ACK(6), .rc = 1},
    {"BLOCK_SIZE repeated", "f3 o6{n\"disk\" w2 w3 w3}", "g e6:3", .rc = 1},
    {"EXPORT repeated", "f3 o7{n\"disk\" w3 w0 w1 w0} " GO_DISK,
     "g e7:3 " GONE_DISK, .settled = SETTLED},
    {"unknown export", "f3 o7{n\"nope\" w0} " GO_DISK, "g e7:6 " GONE_DISK,
     .settled = SETTLED},
    {"unknown, all percent", "f3 o7{n\"%s%n%d%999999999s\" w0}", "g e7:6",
     .rc = 1},
    {"unknown, 4096 percents", "f3 o7{l4096 *4096:0x25 w0}", "g e7:6", .rc = 1},
    {"unknown, 4096 bytes of 0xff", "f3 o6{l4096 *4096:0xff w0}", "g e6:6",
     .rc = 1},
    {"unknown, control characters", "f3 o6{l4 b27 b10 b0 b34 w0}", "g e6:6",
     .rc = 1},
    {"no exports", "f3 o7{l0 w0}", "g e7:6", .rc = 1, .set = &none},
    {"name of 4097 bytes", "f3 o7{l4097 *4097:0x6e w0}", "g e7:3", .rc = 1},
    {"name length 0xffffffff", "f3 o7{l0xffffffff \"disk\" w0}", "g e7:3",
     .rc = 1},
    {"name length one over", "f3 o7{l7 \"disk\" w0}", "g e7:3", .rc = 1},
    {"name takes the count", "f3 o7{l6 \"disk\" w0}", "g e7:3", .rc = 1},
    {"no data", "f3 o7{}", "g e7:3", .rc = 1},
    {"3 bytes", "f3 o6{b0 b0 b0}", "g e6:3", .rc = 1},
    {"no count", "f3 o6{n\"disk\"}", "g e6:3", .rc = 1},
    {"half a count", "f3 o6{n\"disk\" b0}", "g e6:3", .rc = 1},
    {"count too high", "f3 o6{n\"disk\" w2 w3}", "g e6:3", .rc = 1},
    {"count 0xffff", "f3 o6{n\"disk\" w0xffff w3}", "g e6:3", .rc = 1},
    {"count too low", "f3 o6{n\"disk\" w1 w3 w1}", "g e6:3", .rc = 1},
    {"half a request", "f3 o6{n\"disk\" w1 b0}", "g e6:3", .rc = 1},
    {"65536 bytes", "f3 o6{n\"disk\" w32763 *65526:0x77}",
     "g " INFO_EXPORT(6, PLAIN) ACK(6), .rc = 1},
    {"65537 bytes", "f3 o7{*65537:0} " GO_DISK, "g e7:9 " GONE_DISK,
     .settled = SETTLED},
    {"32 MiB", "f3 o7{*33554432:0} " GO_DISK, "g e7:9 " GONE_DISK,
     .settled = SETTLED},
    {"32 MiB + 1", "f3 o7=33554433", "g", .rc = -EPROTO},
    {"block size needed, GO", "f3 o7{n\"sectors\" w1 w1} o2{}",
     "g r7:3{w3 l512 l4096 l0x4000000} e7:8 " ACK(2), .rc = 1},
    {"block size needed, INFO", "f3 o6{n\"sectors\" w0}",
     "g r6:3{w3 l512 l4096 l0x4000000} e6:8", .rc = 1},
    {"block size asked", "f3 o7{n\"sectors\" w1 w3}",
     "g r7:3{w0 q0x100000 " PLAIN "} r7:3{w3 l512 l4096 l0x4000000} r7:1{}",
     .settled = "sectors 0xd6d b 0"},
    {"INFO with it is no promise", "f3 o6{n\"disk\" w1 w3} " GO_DISK,
     "g " INFO_EXPORT(6, PLAIN) BLOCKS(6) ACK(6) GONE_DISK, .settled = SETTLED},
};

static const struct conversation meta[] = {
    {"LIST without structured", "f3 o9{n\"disk\" l0}", "g e9:3", .rc = 1},
    {"SET without structured", "f3 " SET_BASE, "g e10:3", .rc = 1},
    {"LIST all", "f3 " STRUCTURED "o9{n\"disk\" l0}", "g " ACK(8) BOTH(9, 0, 0),
     .rc = 1},
    {"LIST all, extended", "f3 " EXTENDED "o9{n\"disk\" l0}",
     "g " ACK(11) BOTH(9, 0, 0), .rc = 1},
    {"LIST of one that has one", "f3 " STRUCTURED "o9{n\"ro\" l0}",
     "g " ACK(8) "r9:4{l0 \"base:allocation\"} r9:1{}", .rc = 1},
    {"LIST wildcards",
     "f3 " STRUCTURED "o9{n\"disk\" l1 n\"base:\"} "
     "o9{n\"disk\" l1 n\"qemu:\"} o9{n\"disk\" l2 n\"qemu:\" n\"base:\"}",
     "g " ACK(8) "r9:4{l0 \"base:allocation\"} r9:1{} "
                 "r9:4{l0 \"qemu:allocation-depth\"} r9:1{} " BOTH(9, 0, 0),
     .rc = 1},
    {"LIST the same twice",
     "f3 " STRUCTURED "o9{n\"disk\" l2 n\"base:\" n\"base:allocation\"}",
     "g " ACK(8) "r9:4{l0 \"base:allocation\"} r9:1{}", .rc = 1},
    {"LIST unknown",
     "f3 " STRUCTURED "o9{n\"disk\" l4 n\"x-a:b\" n\"base:alloc\" "
     "n\"qemu:dirty-bitmap:\" n\"bas:\"}",
     "g " ACK(8) ACK(9), .rc = 1},
    {"LIST changes no selection",
     "f3 " EXTENDED SET_BASE "o9{n\"ro\" l1 n\"x-a:b\"} " GO_DISK,
     "g " ACK(11) SET_BASE_OK ACK(9) INFO_EXPORT(7, "w0x1ded") "r7:1{}",
     .settled = "disk 0x1ded s x 1"},
    {"SET", "f3 " STRUCTURED SET_BASE GO_DISK,
     "g " ACK(8) SET_BASE_OK INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 1"},
    {"SET both, other order",
     "f3 " STRUCTURED "o10{n\"disk\" l2 n\"qemu:allocation-depth\" "
     "n\"base:allocation\"} " GO_DISK,
     "g " ACK(8) BOTH(10, 1, 2) INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 3"},
    {"SET extended: payload flag", "f3 " EXTENDED SET_BASE GO_DISK,
     "g " ACK(11) SET_BASE_OK INFO_EXPORT(7, "w0x1ded") "r7:1{}",
     .settled = "disk 0x1ded s x 1"},
    {"SET before extended", "f3 " STRUCTURED SET_BASE EXTENDED GO_DISK,
     "g " ACK(8) SET_BASE_OK ACK(11) INFO_EXPORT(7, "w0x1ded") "r7:1{}",
     .settled = "disk 0x1ded s x 1"},
    {"SET for the default by its name",
     "f3 " STRUCTURED "o10{l0 l1 n\"base:allocation\"} " GO_DISK,
     "g " ACK(8) SET_BASE_OK INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 1"},
    {"SET no query", "f3 " STRUCTURED SET_BASE "o10{n\"disk\" l0} " GO_DISK,
     "g " ACK(8) SET_BASE_OK ACK(10) INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 0"},
    {"SET wildcards select nothing",
     "f3 " STRUCTURED "o10{n\"disk\" l2 n\"base:\" n\"qemu:\"} " GO_DISK,
     "g " ACK(8) ACK(10) INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 0"},
    {"SET what this export has not",
     "f3 " STRUCTURED "o10{n\"ro\" l1 n\"qemu:allocation-depth\"}",
     "g " ACK(8) ACK(10), .rc = 1},
    {"GO to another drops it", "f3 " EXTENDED SET_BASE "o7{n\"ro\" w0}",
     "g " ACK(11) SET_BASE_OK "r7:3{w0 q0x1000000 w0x58f} r7:1{}",
     .settled = "ro 0x58f s x 0"},
    {"INFO of another keeps it",
     "f3 " EXTENDED SET_BASE "o6{n\"ro\" w0} " GO_DISK,
     "g " ACK(11) SET_BASE_OK "r6:3{w0 q0x1000000 w0x58f} " ACK(6)
         INFO_EXPORT(7, "w0x1ded") "r7:1{}",
     .settled = "disk 0x1ded s x 1"},
    {"failed GO keeps it",
     "f3 " STRUCTURED SET_BASE "o7{n\"nope\" w0} " GO_DISK,
     "g " ACK(8) SET_BASE_OK "e7:6 " INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 1"},
    {"failed SET drops it: unknown export",
     "f3 " STRUCTURED SET_BASE "o10{n\"nope\" l0} " GO_DISK,
     "g " ACK(8) SET_BASE_OK "e10:6 " INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 0"},
    {"failed SET drops it: malformed",
     "f3 " STRUCTURED SET_BASE "o10{b0} " GO_DISK,
     "g " ACK(8) SET_BASE_OK "e10:3 " INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 0"},
    {"failed SET drops it: too long",
     "f3 " STRUCTURED SET_BASE "o10{*65537:0} " GO_DISK,
     "g " ACK(8) SET_BASE_OK "e10:9 " INFO_EXPORT(7, WITH_DF) "r7:1{}",
     .settled = "disk 0xded s 0"},
    {"unknown export", "f3 " STRUCTURED "o9{n\"nope\" l0}", "g " ACK(8) "e9:6",
     .rc = 1},
    {"64 queries", "f3 " STRUCTURED "o10{n\"disk\" l64 " QUERIES_64 "}",
     "g " ACK(8) ACK(10), .rc = 1},
    {"65 queries",
     "f3 " STRUCTURED "o10{n\"disk\" l65 " QUERIES_64 "n\"x:\"} " ABORT,
     "g " ACK(8) "e10:9 " ACK(2), .rc = 1},
    {"0xffffffff queries", "f3 " STRUCTURED "o10{n\"disk\" l0xffffffff *16:0}",
     "g " ACK(8) "e10:3", .rc = 1},
    {"one query less than said", "f3 " STRUCTURED "o9{n\"disk\" l1}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a query one too long", "f3 " STRUCTURED "o9{n\"disk\" l1 l6 \"base:\"}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a query of 0xffffffff bytes",
     "f3 " STRUCTURED "o9{n\"disk\" l1 l0xffffffff \"base:\"}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a query of 4096 bytes",
     "f3 " STRUCTURED "o9{n\"disk\" l1 l4096 \"x:\" *4094:0x61}",
     "g " ACK(8) ACK(9), .rc = 1},
    {"a query of 4097 bytes",
     "f3 " STRUCTURED "o9{n\"disk\" l1 l4097 \"x:\" *4095:0x61}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a query without colon", "f3 " STRUCTURED "o9{n\"disk\" l1 n\"base\"}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a query without namespace", "f3 " STRUCTURED "o9{n\"disk\" l1 n\":a\"}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"an empty query", "f3 " STRUCTURED "o9{n\"disk\" l1 l0}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"bytes behind the queries", "f3 " STRUCTURED "o9{n\"disk\" l0 b0}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"no data", "f3 " STRUCTURED "o9{} o10{}", "g " ACK(8) "e9:3 e10:3",
     .rc = 1},
    {"a name of 4097 bytes", "f3 " STRUCTURED "o9{l4097 *4097:0x6e l0}",
     "g " ACK(8) "e9:3", .rc = 1},
    {"a name of 0xffffffff bytes", "f3 " STRUCTURED "o9{l0xffffffff l0}",
     "g " ACK(8) "e9:3", .rc = 1},
};

static const struct conversation stopped[] = {
    {"LIST", "f3 o3{}", "g e3:7", .rc = 1, .stopping = true},
    {"GO, then ABORT", "f3 " GO_DISK " o2{}", "g e7:7 " ACK(2), .rc = 1,
     .stopping = true},
    {"unknown", "f3 o99{\"x\"} o2{}", "g e99:7 " ACK(2), .rc = 1,
     .stopping = true},
    {"too long", "f3 o7{*70000:0} o2{}", "g e7:7 " ACK(2), .rc = 1,
     .stopping = true},
    {"EXPORT_NAME", "f3 o1{\"disk\"}", "g", .rc = -ESHUTDOWN, .stopping = true,
     .left = 4},
};

static void
describe(const struct negotiated *n, char *buf, size_t cap)
{
    snprintf(buf, cap, "%.*s %#x%s%s%s %u",
             strlen(n->export->name) > 100 ? 1 : 100, n->export->name, n->flags,
             n->structured ? " s" : "", n->extended ? " x" : "",
             n->block_size_known ? " b" : "", n->contexts);
}

static void
check_conversation(const struct conversation *c, bool pipes)
{
    struct talk t = {
        .set = c->set != NULL ? c->set : &standard,
        .bytes = client_buf,
        .pipes = pipes,
    };
    char settled[200] = "";
    struct end end;
    size_t got, want, left;

    t.len_bytes = compile(c->client, client_buf, NULL, 0);
    stopping = c->stopping;
    got = talk(&t, &end, &left);
    stopping = false;
    if (end.rc == 0) {
        describe(&end.result, settled, sizeof(settled));
    }
    want = compile(c->server, want_buf, server_buf, got);
    if (end.rc != c->rc || got != want ||
        memcmp(want_buf, server_buf, got) != 0 ||
        strcmp(settled, c->settled != NULL ? c->settled : "") != 0 ||
        left != c->left) {
        fail_msg("%s%s: result %d, want %d; %zu bytes back, want %zu; settled "
                 "\"%s\"; %zu bytes left, want %zu",
                 c->name, pipes ? " (pipes)" : "", end.rc, c->rc, got, want,
                 settled, left, c->left);
    }
}

static void
check_table(const struct conversation *table, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        check_conversation(&table[i], false);
        check_conversation(&table[i], true);
    }
}

#define TABLE_TEST(table)                                                      \
    static void test_##table(void **state)                                     \
    {                                                                          \
        (void)state;                                                           \
        check_table(table, ARRAY_LEN(table));                                  \
    }

TABLE_TEST(greetings)
TABLE_TEST(nonfixed)
TABLE_TEST(export_name)
TABLE_TEST(simple_options)
TABLE_TEST(info)
TABLE_TEST(meta)
TABLE_TEST(stopped)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greetings),
        cmocka_unit_test(test_nonfixed),
        cmocka_unit_test(test_export_name),
        cmocka_unit_test(test_simple_options),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_meta),
        cmocka_unit_test(test_stopped),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}

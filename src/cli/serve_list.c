/* SPDX-License-Identifier: BSD-2-Clause */
/* The client half of serve (serve_list.h): what a server exports, as text like
 * qemu-nbd's or as JSON. What the server says is quoted before it is shown. */
#include "cli/serve_list.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "cli/json.h"
#include "nbd/client.h"
#include "nbd/proto.h"

/* A server on this earth answers within that time. */
#define LIST_TIMEOUT_S 30

/* As qemu-nbd names them; HAS_FLAGS goes without saying. */
static const struct {
    uint16_t flag;
    const char *name;
} flag_names[] = {
    {NBD_FLAG_READ_ONLY, "readonly"},
    {NBD_FLAG_SEND_FLUSH, "flush"},
    {NBD_FLAG_SEND_FUA, "fua"},
    {NBD_FLAG_ROTATIONAL, "rotational"},
    {NBD_FLAG_SEND_TRIM, "trim"},
    {NBD_FLAG_SEND_WRITE_ZEROES, "zeroes"},
    {NBD_FLAG_SEND_DF, "df"},
    {NBD_FLAG_CAN_MULTI_CONN, "multi"},
    {NBD_FLAG_SEND_RESIZE, "resize"},
    {NBD_FLAG_SEND_CACHE, "cache"},
    {NBD_FLAG_SEND_FAST_ZERO, "fast-zero"},
    {NBD_FLAG_BLOCK_STATUS_PAYLOAD, "block-status-payload"},
};

static void
print_text(const char *before, const char *text)
{
    char quoted[4096];

    printf("%s%s\n", before,
           log_quote(quoted, sizeof(quoted), text, strlen(text)));
}

static void
print_export(const struct listed_export *x)
{
    char quoted[4096];

    printf(" export: '%s'\n",
           log_quote(quoted, sizeof(quoted), x->name, strlen(x->name)));
    if (x->description != NULL && x->description[0] != '\0') {
        print_text("  description: ", x->description);
    }
    if (!x->has_details) {
        return;
    }
    printf("  size:  %" PRIu64 "\n", x->size_bytes);
    printf("  flags: 0x%x (", x->flags);
    for (size_t i = 0; i < ARRAY_LEN(flag_names); i++) {
        if ((x->flags & flag_names[i].flag) != 0) {
            printf(" %s", flag_names[i].name);
        }
    }
    printf(" )\n");
    if (x->has_block_size) {
        printf("  min block: %" PRIu32 "\n  opt block: %" PRIu32
               "\n  max block: %" PRIu32 "\n",
               x->min_block_bytes, x->pref_block_bytes, x->max_payload_bytes);
    }
    if (x->context_count > 0) {
        printf("  available meta contexts: %u\n", x->context_count);
        for (unsigned i = 0; i < x->context_count; i++) {
            print_text("   ", x->contexts[i]);
        }
    }
}

static json_t *
export_json(const struct listed_export *x)
{
    json_t *o = json_object(), *names = json_array();

    json_object_set_new(o, "name", json_any_string(x->name));
    if (x->description != NULL) {
        json_object_set_new(o, "description", json_any_string(x->description));
    }
    if (!x->has_details) {
        json_decref(names);
        return o;
    }
    json_object_set_new(o, "size", json_bytes(x->size_bytes));
    for (size_t i = 0; i < ARRAY_LEN(flag_names); i++) {
        if ((x->flags & flag_names[i].flag) != 0) {
            json_array_append_new(names, json_string(flag_names[i].name));
        }
    }
    json_object_set_new(o, "flags", names);
    if (x->has_block_size) {
        json_object_set_new(o, "min_block", json_bytes(x->min_block_bytes));
        json_object_set_new(o, "opt_block", json_bytes(x->pref_block_bytes));
        json_object_set_new(o, "max_block", json_bytes(x->max_payload_bytes));
    }
    names = json_array();
    for (unsigned i = 0; i < x->context_count; i++) {
        json_array_append_new(names, json_any_string(x->contexts[i]));
    }
    json_object_set_new(o, "contexts", names);
    return o;
}

static int
print_json(const struct export_list *list)
{
    json_t *root = json_object(), *exports = json_array();

    for (unsigned i = 0; i < list->count; i++) {
        json_array_append_new(exports, export_json(&list->exports[i]));
    }
    json_object_set_new(root, "exports", exports);
    return json_print(root);
}

/* The server's address: a URI, or -k, or -b and -p. */
static int
find_server(const struct serve_options *o, struct uri *ret, struct err *e)
{
    if (o->list_uri != NULL) {
        return uri_parse(o->list_uri, ret, e);
    }
    *ret = (struct uri){.port = o->has_port ? o->port : NBD_PORT};
    if (o->socket_path != NULL) {
        ret->scheme = URI_UNIX;
        snprintf(ret->socket, sizeof(ret->socket), "%s", o->socket_path);
    } else {
        ret->scheme = URI_TCP;
        snprintf(ret->host, sizeof(ret->host), "%s",
                 o->bind_host != NULL ? o->bind_host : "localhost");
    }
    return 0;
}

int
serve_list(const struct serve_options *o)
{
    struct export_list list = {.count = 0};
    struct err e = {0};
    struct uri uri;
    int r = find_server(o, &uri, &e);

    if (r < 0) {
        log_error("%s", e.text);
        return CLI_USAGE;
    }
    r = client_list(&uri, LIST_TIMEOUT_S, &list, &e);
    if (r < 0) {
        log_error("%s", e.text);
        return CLI_FAILED;
    }
    if (o->common.json) {
        r = print_json(&list);
    } else {
        printf("exports available: %u\n", list.count);
        for (unsigned i = 0; i < list.count; i++) {
            print_export(&list.exports[i]);
        }
        r = cli_flush();
    }
    export_list_free(&list);
    return r;
}

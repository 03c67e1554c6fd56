/* SPDX-License-Identifier: BSD-2-Clause */
/* A server's counters as text or JSON (serve_stats.h). No state. */
#include "cli/serve_stats.h"

#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "cli/json.h"
#include "cli/sizes.h"

static const struct {
    enum nbd_command command;
    const char *name;
} command_names[] = {
    {NBD_CMD_READ, "read"},
    {NBD_CMD_WRITE, "write"},
    {NBD_CMD_FLUSH, "flush"},
    {NBD_CMD_TRIM, "trim"},
    {NBD_CMD_WRITE_ZEROES, "write_zeroes"},
    {NBD_CMD_BLOCK_STATUS, "block_status"},
    {NBD_CMD_CACHE, "cache"},
};

static const struct {
    double percent;
    const char *name;
} percentiles[] = {{50, "p50"}, {90, "p90"}, {99, "p99"}, {100, "max"}};

static void
print_command(FILE *out, const char *name, const struct stats_command *c)
{
    char text[SIZE_TEXT_BYTES];

    fprintf(out, "%-13s %10" PRIu64 " %11s %7" PRIu64, name, c->requests,
            size_format(text, c->bytes), c->errors);
    for (size_t i = 0; i < ARRAY_LEN(percentiles); i++) {
        fprintf(out, " %8s",
                duration_format(
                    text, stats_percentile_ns(c, percentiles[i].percent)));
    }
    fprintf(out, "\n");
}

static void
print_text(FILE *out, const struct stats *s, const struct export_set *exports)
{
    char a[SIZE_TEXT_BYTES], b[SIZE_TEXT_BYTES], name[64];
    bool any = false;

    for (size_t i = 0; i < ARRAY_LEN(command_names); i++) {
        const struct stats_command *c = &s->command[command_names[i].command];

        if (c->requests == 0) {
            continue;
        }
        if (!any) {
            fprintf(out, "%-13s %10s %11s %7s %8s %8s %8s %8s\n", "command",
                    "requests", "bytes", "errors", "p50", "p90", "p99", "max");
            any = true;
        }
        print_command(out, command_names[i].name, c);
    }
    fprintf(out,
            "sessions: %" PRIu64 " (%" PRIu64 " open, %" PRIu64
            " failed), received %s in %" PRIu64 " calls, sent %s in %" PRIu64
            " calls\n",
            s->sessions, s->sessions_open, s->sessions_failed,
            size_format(a, s->bytes_in), s->recv_calls,
            size_format(b, s->bytes_out), s->send_calls);
    for (unsigned i = 0; i < exports->count; i++) {
        const struct export *x = &exports->exports[i];
        struct disk_usage usage;

        disk_usage(x->disk, &usage);
        fprintf(out, "export \"%s\": top layer %s on disk",
                log_quote(name, sizeof(name), x->name, strlen(x->name)),
                size_format(a, usage.top_bytes));
        fprintf(out, ", maps %s + %s in memory\n",
                size_format(a, usage.top_map_bytes),
                size_format(b, usage.merged_map_bytes));
    }
    fflush(out);
}

static json_t *
command_json(const struct stats_command *c)
{
    json_t *o = json_object(), *latency = json_object();

    for (size_t i = 0; i < ARRAY_LEN(percentiles); i++) {
        json_object_set_new(
            latency, percentiles[i].name,
            json_bytes(stats_percentile_ns(c, percentiles[i].percent)));
    }
    json_object_set_new(o, "requests", json_bytes(c->requests));
    json_object_set_new(o, "bytes", json_bytes(c->bytes));
    json_object_set_new(o, "errors", json_bytes(c->errors));
    json_object_set_new(o, "latency_ns", latency);
    return o;
}

static json_t *
export_json(const struct export *x)
{
    struct disk_usage usage;
    json_t *o = json_object();

    disk_usage(x->disk, &usage);
    json_object_set_new(o, "name", json_any_string(x->name));
    json_object_set_new(o, "size", json_bytes(x->size_bytes));
    json_object_set_new(o, "top_bytes", json_bytes(usage.top_bytes));
    json_object_set_new(o, "top_map_bytes", json_bytes(usage.top_map_bytes));
    json_object_set_new(o, "merged_map_bytes",
                        json_bytes(usage.merged_map_bytes));
    return o;
}

static json_t *
stats_json(const struct stats *s, const struct export_set *exports)
{
    const struct {
        const char *name;
        uint64_t value;
    } totals[] = {
        {"sessions", s->sessions},
        {"sessions_open", s->sessions_open},
        {"sessions_failed", s->sessions_failed},
        {"bytes_in", s->bytes_in},
        {"bytes_out", s->bytes_out},
        {"recv_calls", s->recv_calls},
        {"send_calls", s->send_calls},
    };
    json_t *o = json_object(), *group = json_object();

    for (size_t i = 0; i < ARRAY_LEN(command_names); i++) {
        json_object_set_new(
            group, command_names[i].name,
            command_json(&s->command[command_names[i].command]));
    }
    json_object_set_new(o, "commands", group);
    for (size_t i = 0; i < ARRAY_LEN(totals); i++) {
        json_object_set_new(o, totals[i].name, json_bytes(totals[i].value));
    }
    group = json_array();
    for (unsigned i = 0; i < exports->count; i++) {
        json_array_append_new(group, export_json(&exports->exports[i]));
    }
    json_object_set_new(o, "exports", group);
    return o;
}

void
serve_stats_print(FILE *out, bool json, const struct stats *stats,
                  const struct export_set *exports)
{
    if (!json) {
        print_text(out, stats, exports);
    } else if (json_write(stats_json(stats, exports), out) != 0) {
        log_warn("the statistics could not be written");
    }
}

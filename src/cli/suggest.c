/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The nearest word (suggest.h): the optimal string alignment distance, that is
 * letters added, left out, exchanged, or two neighbours swapped. No state.
 */
#include "cli/suggest.h"

#include <string.h>

#include "base/checked.h"

static size_t
min3(size_t a, size_t b, size_t c)
{
    size_t m = a < b ? a : b;

    return m < c ? m : c;
}

static size_t
distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    /* Row i of the table lies in rows[i % 3]: two neighbours look back two. */
    size_t rows[3][SUGGEST_WORD_MAX + 1];

    for (size_t j = 0; j <= b_len; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= a_len; i++) {
        size_t *row = rows[i % 3];
        const size_t *before = rows[(i + 2) % 3];
        const size_t *before2 = rows[(i + 1) % 3];

        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t cost = a[i - 1] != b[j - 1];

            row[j] = min3(before[j] + 1, row[j - 1] + 1, before[j - 1] + cost);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] &&
                a[i - 2] == b[j - 1] && before2[j - 2] + 1 < row[j]) {
                row[j] = before2[j - 2] + 1;
            }
        }
    }
    return rows[a_len % 3][b_len];
}

void
suggest_begin(struct suggest *s, const char *word)
{
    size_t len = strlen(word);

    /* Of a short word little may be wrong, or anything would be near. */
    *s = (struct suggest){.word = word, .best_distance = len / 3 + 2};
}

void
suggest_offer(struct suggest *s, const char *candidate)
{
    size_t len = strlen(s->word), candidate_len = strlen(candidate), d;

    if (len < 2 || len > SUGGEST_WORD_MAX || candidate_len > SUGGEST_WORD_MAX) {
        return;
    }
    /* The beginning of a word is likelier meant than any other near one. */
    if (strncmp(s->word, candidate, len) == 0) {
        d = 0;
    } else {
        d = distance(s->word, len, candidate, candidate_len);
        if (d >= len) {
            return; /* nothing in common */
        }
    }
    if (d < s->best_distance) {
        s->best = candidate;
        s->best_distance = d;
    }
}

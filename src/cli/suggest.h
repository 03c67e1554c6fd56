/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SUGGEST_H
#define REWIND_CLI_SUGGEST_H

#include <stddef.h>

/* Longer words are not compared. */
#define SUGGEST_WORD_MAX 48u

/*
 * Finds the known word that a misspelt one was most likely meant to be: begin
 * with the word, offer all that are known, and `best` is the nearest, or NULL
 * if none is near. `word` and candidates are borrowed.
 */
struct suggest {
    const char *word;
    const char *best;
    size_t best_distance;
};

void suggest_begin(struct suggest *s, const char *word);
void suggest_offer(struct suggest *s, const char *candidate);

#endif

/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * lock_holder base|write FILE: takes the image lock on FILE, prints "held" and
 * keeps it until standard input ends. If it is refused, says why and exits 1.
 * For interop/locks.sh.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

int
main(int argc, char **argv)
{
    bool write_lock = argc == 3 && strcmp(argv[1], "write") == 0;
    struct err e;
    char byte;
    int fd;

    if (argc != 3 || (!write_lock && strcmp(argv[1], "base") != 0)) {
        fprintf(stderr, "usage: lock_holder base|write FILE\n");
        return 2;
    }
    fd = open(argv[2], (write_lock ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) {
        perror(argv[2]);
        return 2;
    }
    if (file_lock_image(fd, argv[2],
                        write_lock ? FILE_LOCK_WRITE : FILE_LOCK_BASE,
                        &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("held\n");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    return 0;
}

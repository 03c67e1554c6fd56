/* SPDX-License-Identifier: BSD-2-Clause */
/* The program's name; everything else is cli_main's, so that tests link it. */
#include "cli/cli.h"

int
main(int argc, char **argv)
{
    return cli_main(argc, argv);
}

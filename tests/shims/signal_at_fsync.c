/*
 * Preloaded into a program, sends it the signal ANE_MATMUL_TEST_SIGNAL where it flushes a file that is
 * written to the disk, and keeps that thread there: what it would do next, it never does. After a minute it
 * goes on, as if no signal had come. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int fsync(int file) {
    const char *number = getenv("ANE_MATMUL_TEST_SIGNAL");
    struct stat data;
    if (number == NULL || fstat(file, &data) != 0 || data.st_size == 0) _exit(99);
    kill(getpid(), atoi(number));
    /* In parts, since the signal's handler may run on this thread. */
    for (int i = 0; i < 600; i++) {
        struct timespec tenth = {0, 100000000};
        nanosleep(&tenth, NULL);
    }
    return 0;
}

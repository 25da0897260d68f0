/*
 * ws_handler_test.h: conversations with a handler, in a test program of your own.
 *
 *     #include <ws_handler_test.h>
 *
 *     int main(void)
 *     {
 *         char said[4096];
 *
 *         if (ws_test("./echo_wsh.so", "> hello\n< hello\n", said, sizeof said) == WS_TEST_PASSED)
 *             return 0;
 *         fputs(said, stderr);
 *         return 1;
 *     }
 *
 * wshd-test(1) describes the language of scripts. The program wshd (named by the
 * environment variable WSHD, or else the one in PATH) runs the conversation, not a
 * library in your program: a handler that crashes fails a test, not the test
 * program, and signals, threads and memory of the host stay out of it. There is
 * nothing to link. For a debugger see DEBUGGING in wshd-test(1).
 *
 * For POSIX systems, in C99 and C++11. The functions may be called on any thread.
 */
#ifndef WS_HANDLER_TEST_H
#define WS_HANDLER_TEST_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* All steps passed. */
#define WS_TEST_PASSED 0
/* A step failed; said names it, with what was expected and received. */
#define WS_TEST_FAILED 1
/* The conversation could not run: no such program, handler or script; see said. */
#define WS_TEST_ERROR 2

/* In the child: runs wshd. Does not return. */
static inline void ws_test_exec_(const char *file, const char *const *options, int in, int out)
{
    const char *wshd = getenv("WSHD");
    const char *args[64];
    size_t      count = 0;

    if (wshd == NULL || *wshd == '\0')
        wshd = "wshd";
    args[count++] = wshd;
    args[count++] = "test";
    for (; options != NULL && *options != NULL && count + 4 < sizeof args / sizeof *args; options++) {
        args[count++] = "-o";
        args[count++] = *options;
    }
    args[count++] = file;
    args[count++] = "-";
    args[count] = NULL;
    if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0)
        execvp(wshd, (char *const *)args);
    dprintf(out, "%s: %s; install wshd, or set WSHD to its path\n", wshd, strerror(errno));
    _exit(127);
}

/* Runs the script against the handler, a file as for wshd-test(1). The report of a
 * failure and the log are stored in said[0..size), truncated and ended by a NUL;
 * size may be 0. options are settings of wshd.conf(5), such as "max_message=1K", at
 * most 29 and a NULL; or NULL for none.
 * WS_TEST_PASSED, WS_TEST_FAILED or WS_TEST_ERROR. */
static inline int ws_test_with(const char *file, const char *script, const char *const *options, char *said,
                               size_t size)
{
    FILE   *in = tmpfile();
    int     out[2], status = 0;
    size_t  used = 0;
    char    rest[512];
    ssize_t count;
    pid_t   child;

    if (size > 0)
        *said = '\0';
    if (in == NULL || fputs(script, in) < 0 || fflush(in) != 0 || fseek(in, 0, SEEK_SET) != 0 || pipe(out) != 0) {
        if (size > 0)
            snprintf(said, size, "cannot pass the script: %s\n", strerror(errno));
        if (in != NULL)
            fclose(in);
        return WS_TEST_ERROR;
    }
    child = fork();
    if (child == 0) {
        close(out[0]);
        ws_test_exec_(file, options, fileno(in), out[1]);
    }
    close(out[1]);
    fclose(in);
    while ((count = read(out[0], rest, sizeof rest)) > 0 || (count < 0 && errno == EINTR)) {
        size_t room = size > used + 1 ? size - used - 1 : 0;
        size_t part = count < 0 ? 0 : (size_t)count < room ? (size_t)count : room;

        if (part > 0) {
            memcpy(said + used, rest, part);
            said[used += part] = '\0';
        }
    }
    close(out[0]);
    if (child < 0)
        return WS_TEST_ERROR;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return WS_TEST_ERROR;
    if (!WIFEXITED(status))
        return WS_TEST_ERROR;
    return WEXITSTATUS(status) == 0 ? WS_TEST_PASSED
           : WEXITSTATUS(status) == 6 ? WS_TEST_FAILED
                                      : WS_TEST_ERROR;
}

/* The same with the default settings. */
static inline int ws_test(const char *file, const char *script, char *said, size_t size)
{
    return ws_test_with(file, script, NULL, said, size);
}

#endif

/*
 * broadcast - one message to many connections, from both sides.
 *
 *   broadcast floor PORT                               about the least that it can cost: what a client sends goes, as one
 *                                                      frame that was made once, to each connection in turn
 *   broadcast load PORT PATH COUNT MESSAGES SIZE [deflate | stalled]
 *                                                      COUNT clients; the first says a message, and the next one when all
 *                                                      have it. Prints "ready", waits for a line, and prints "done SECONDS".
 *                                                      stalled: the others read nothing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void floor_(int port)
{
    static int conns[65536], count;
    static uint8_t in[70000], out[70000];
    int one = 1, sock = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct sockaddr_in at = loopback(port);
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(sock, (struct sockaddr *)&at, sizeof at) || listen(sock, 4096))
        die("floor");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = sock}, ready[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, sock, &event);
    for (;;) {
        int events = epoll_wait(poll, ready, 512, -1);
        for (int i = 0; i < events; i++) {
            int conn = ready[i].data.fd;
            if (conn == sock) {
                event.data.fd = conn = accept4(sock, NULL, NULL, SOCK_NONBLOCK);
                setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(poll, EPOLL_CTL_ADD, conn, &event);
                continue;
            }
            ssize_t size = recv(conn, in, sizeof in, 0);
            if (size <= 0) {
                close(conn);
                continue;
            }
            if (in[0] == 'G') {
                send(conn, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
                conns[count++] = conn;
                continue;
            }
            size_t header = (in[1] & 127) == 126 ? 4 : 2, length = header == 4 ? (size_t)(in[2] << 8 | in[3]) : in[1] & 127u;
            memcpy(out, in, header);
            out[1] &= 127;
            for (size_t at = 0; at < length; at++)
                out[header + at] = in[header + 4 + at] ^ in[header + (at & 3)];
            for (int at = 0; at < count; at++)
                send(conns[at], out, header + length, MSG_NOSIGNAL);
        }
    }
}

struct conn {
    int      fd;
    uint8_t  head[4];
    unsigned have;
    size_t   left; /* of the payload of a frame */
};

/* Frames that end in these bytes. */
static unsigned frames(struct conn *c, const uint8_t *bytes, size_t size)
{
    unsigned ends = 0;
    while (size > 0) {
        if (c->left > 0) {
            size_t part = c->left < size ? c->left : size;
            bytes += part, size -= part, c->left -= part;
            ends += c->left == 0;
            continue;
        }
        c->head[c->have++] = *bytes++, size--;
        if (c->have == 2 && c->head[1] < 126)
            c->left = c->head[1], c->have = 0;
        else if (c->have == 4)
            c->left = (size_t)(c->head[2] << 8 | c->head[3]), c->have = 0;
    }
    return ends;
}

static int load(int port, const char *path, int count, int messages, size_t size, const char *extra)
{
    int deflate = !strcmp(extra, "deflate"), stalled = !strcmp(extra, "stalled"), little = 4096;
    struct conn *conns = calloc((size_t)count, sizeof *conns);
    static uint8_t bytes[256 * 1024];
    char request[512];
    int poll = epoll_create1(0), length;
    length = snprintf(request, sizeof request,
                      "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", path,
                      deflate ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
    for (int i = 0; i < count; i++) {
        struct sockaddr_in at = loopback(port);
        conns[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (stalled && i > 0)
            setsockopt(conns[i].fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
        if (connect(conns[i].fd, (struct sockaddr *)&at, sizeof at) || write(conns[i].fd, request, (size_t)length) != length)
            die("connect");
        if (recv(conns[i].fd, bytes, sizeof bytes, 0) < 12 || memcmp(bytes, "HTTP/1.1 101", 12))
            die("upgrade");
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (!stalled || i == 0)
            epoll_ctl(poll, EPOLL_CTL_ADD, conns[i].fd, &event);
    }
    size_t header = size < 126 ? 2 : 4;
    uint8_t *frame = calloc(1, header + 4 + size);
    frame[0] = 0x82, frame[1] = (uint8_t)(0x80 | (size < 126 ? size : 126));
    if (header == 4)
        frame[2] = (uint8_t)(size >> 8), frame[3] = (uint8_t)size;
    for (size_t i = 0; i < size; i++)
        frame[header + 4 + i] = (uint8_t)("{\"price\": 123.45, \"tea\": \"green\"}, "[i % 35] + (i / 35 * 7) % 5);
    puts("ready");
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    struct timespec begun, ended;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (int message = 0; message < messages; message++) {
        if (write(conns[0].fd, frame, header + 4 + size) < 0)
            die("write");
        for (long waiting = stalled ? 1 : count; waiting > 0;) {
            struct epoll_event ready[512];
            int events = epoll_wait(poll, ready, 512, 10000);
            if (events <= 0) {
                fprintf(stderr, "%ld of %d have not got message %d\n", waiting, count, message);
                return 1;
            }
            for (int i = 0; i < events; i++) {
                struct conn *c = ready[i].data.ptr;
                ssize_t got = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
                if (got <= 0)
                    die("recv");
                waiting -= frames(c, bytes, (size_t)got);
            }
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("done %f\n", (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9);
    fflush(stdout);
    return getchar() == EOF;
}

int main(int argc, char **argv)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 3 && !strcmp(argv[1], "floor"))
        floor_(atoi(argv[2]));
    if (argc >= 7 && !strcmp(argv[1], "load"))
        return load(atoi(argv[2]), argv[3], atoi(argv[4]), atoi(argv[5]), (size_t)atoi(argv[6]), argc > 7 ? argv[7] : "");
    fprintf(stderr, "usage: broadcast floor PORT | load PORT PATH COUNT MESSAGES SIZE [deflate | stalled]\n");
    return 2;
}

/*
 * least - what the system calls of an echo cost by themselves: reads whole frames of 20 bytes, looks at none of them, and
 * writes as many answers that were ready before. Edge-triggered and with another congestion control if asked to.
 *
 *   least [edge] [congestion=NAME] PORT
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "floor.h"

enum { SIZE = 20, FROM_CLIENT = SIZE + 6, TO_CLIENT = SIZE + 2, MOST = 4096 };

static char request[64 * 1024];
static uint8_t answers[MOST * TO_CLIENT];

static int listen_on(int port, const char *congestion)
{
    int one = 1, sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if ((congestion && setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)))
        || bind(sock, (struct sockaddr *)&at, sizeof at) || listen(sock, 4096)) {
        perror("least");
        exit(1);
    }
    return sock;
}

/* Answers what has come on a connection; -1 at its end. Knows requests by their first letter. */
static int answer(int conn)
{
    ssize_t count = recv(conn, request, sizeof request - 1, 0);
    if (count <= 0)
        return -1;
    if (request[0] == 'G') {
        char reply[256];
        request[count] = 0;
        int size = upgrade(request, reply);
        return size > 0 && send(conn, reply, (size_t)size, MSG_NOSIGNAL) == size ? 0 : -1;
    }
    size_t frames = (size_t)count / FROM_CLIENT;
    if (!frames || (size_t)count % FROM_CLIENT)
        return -1; /* a close frame, or not what this is for */
    return send(conn, answers, frames * TO_CLIENT, MSG_NOSIGNAL) > 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
    uint32_t events = EPOLLIN;
    const char *congestion = NULL;
    for (int i = 1; i + 1 < argc; i++) {
        if (!strcmp(argv[i], "edge"))
            events |= EPOLLET;
        else if (!strncmp(argv[i], "congestion=", 11))
            congestion = argv[i] + 11;
    }
    if (argc < 2) {
        fprintf(stderr, "usage: least [edge] [congestion=NAME] PORT\n");
        return 2;
    }
    for (size_t i = 0; i < MOST; i++)
        answers[i * TO_CLIENT] = 0x82, answers[i * TO_CLIENT + 1] = SIZE;
    int sock = listen_on(atoi(argv[argc - 1]), congestion), poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = sock}, ready[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, sock, &event);
    for (;;) {
        int count = epoll_wait(poll, ready, 512, -1);
        for (int i = 0; i < count; i++) {
            int conn = ready[i].data.fd;
            if (conn != sock) {
                if (answer(conn))
                    close(conn);
                continue;
            }
            event.data.fd = accept4(sock, NULL, NULL, SOCK_NONBLOCK);
            event.events = events;
            if (event.data.fd >= 0)
                epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
        }
    }
}

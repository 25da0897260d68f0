/*
 * least - what the system calls of an echo cost by themselves: reads whole frames of 20 bytes, looks at none of them, and
 * writes as many answers that were ready before. If asked to: edge-triggered, with another congestion control, or gathering,
 * which is to read from all sockets that are ready before it writes to any.
 *
 *   least [edge] [gather] [congestion=NAME] PORT
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

/* Reads what has come on a connection, and answers an upgrade request, which it knows by its first letter. Returns how many
 * frames are to be answered; -1 at the end. */
static int receive(int conn)
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
    return (int)frames;
}

static int answer(int conn, int frames)
{
    return frames && send(conn, answers, (size_t)frames * TO_CLIENT, MSG_NOSIGNAL) <= 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    uint32_t events = EPOLLIN;
    const char *congestion = NULL;
    int gathers = 0, frames[512];
    for (int i = 1; i + 1 < argc; i++) {
        if (!strcmp(argv[i], "edge"))
            events |= EPOLLET;
        else if (!strcmp(argv[i], "gather"))
            gathers = 1;
        else if (!strncmp(argv[i], "congestion=", 11))
            congestion = argv[i] + 11;
    }
    if (argc < 2) {
        fprintf(stderr, "usage: least [edge] [gather] [congestion=NAME] PORT\n");
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
            frames[i] = 0;
            if (conn != sock) {
                frames[i] = receive(conn);
                if (frames[i] < 0 || (!gathers && answer(conn, frames[i])))
                    close(conn);
                continue;
            }
            event.data.fd = accept4(sock, NULL, NULL, SOCK_NONBLOCK);
            event.events = events;
            if (event.data.fd >= 0)
                epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
        }
        for (int i = 0; gathers && i < count; i++)
            if (frames[i] > 0 && answer(ready[i].data.fd, frames[i]))
                close(ready[i].data.fd);
    }
}

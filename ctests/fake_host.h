/*
 * A host for unit tests of handlers in C: include it, then the handler's own .c
 * file, and call its functions. What the handler sends and closes is recorded.
 * See echo_unit.c.
 */
#ifndef FAKE_HOST_H
#define FAKE_HOST_H

#include <ws_handler.h>

/* What the handler did last, and how often. */
static struct {
    int      sent;
    uint32_t sent_type;
    char     sent_data[4096];
    size_t   sent_size;
    int      closed;
    uint32_t close_code;
    char     close_reason[124];
    int32_t  send_result; /* what ws_send() is to return */
} fake;

static void fake_reset(void)
{
    memset(&fake, 0, sizeof fake);
}

static int32_t fake_send(ws_conn conn, uint32_t type, const void *data, size_t size, uint32_t flags)
{
    (void)conn, (void)flags;
    if (fake.send_result != WS_OK)
        return fake.send_result;
    fake.sent++;
    fake.sent_type = type;
    fake.sent_size = size < sizeof fake.sent_data ? size : sizeof fake.sent_data;
    memcpy(fake.sent_data, data, fake.sent_size);
    return WS_OK;
}

static int32_t fake_close(ws_conn conn, uint32_t code, const char *reason, size_t size)
{
    (void)conn;
    fake.closed++;
    fake.close_code = code;
    snprintf(fake.close_reason, sizeof fake.close_reason, "%.*s", (int)size, reason != NULL ? reason : "");
    return WS_OK;
}

static void fake_log(const ws_host *host, ws_conn conn, uint32_t level, const char *text, size_t size)
{
    (void)host, (void)conn, (void)level, (void)text, (void)size;
}

/* A call that the test does not expect is a NULL in this table: it crashes, and a
 * debugger names it. Add here what your handler needs. */
static const ws_host fake_host = {
    .size = sizeof(ws_host),
    .abi = WS_ABI,
    .log = fake_log,
    .send = fake_send,
    .close = fake_close,
};

#endif

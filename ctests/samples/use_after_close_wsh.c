/* Mistake: on_close does not take the connection off the list. */
#include <ws_handler.h>

static ws_conn room[64];
static int     members;

static int32_t on_open(ws_conn conn)
{
    if (members < 64)
        room[members++] = conn;
    return WS_OK;
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    int i;

    (void)conn;
    for (i = 0; i < members; i++)
        ws_send(room[i], msg->type, msg->data, msg->size);
}

static void on_close(ws_conn conn, uint32_t by, uint32_t code)
{
    ws_log(WS_LOG_DEBUG, "%llx has left: %u, %u", (unsigned long long)conn, by, code);
}

WS_HANDLER(.name = "use_after_close", .on_open = on_open, .on_message = on_message, .on_close = on_close);

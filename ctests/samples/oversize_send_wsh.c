/* Mistake: a Ping carries at most 125 bytes, and nobody looks at the result. */
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_ping(conn, msg->data, msg->size);
}

WS_HANDLER(.name = "oversize_send", .on_message = on_message);

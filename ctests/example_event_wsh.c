#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_send(conn, msg->type, msg->data, msg->size);
}

WS_HANDLER(.name = "echo", .on_message = on_message);

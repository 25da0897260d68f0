/*
 * chat: a message in a room is sent to all its members, in every worker.
 *
 *     cc -shared -fPIC chat_wsh.c -o chat_wsh.so
 *     ws://127.0.0.1:8080/chat?kitchen
 */
#include <ws_handler.h>

static const char *room(ws_conn conn)
{
    ws_bytes query = ws_query(conn);
    return query.size > 0 ? query.data : "lobby";
}

/* Called again when the connection has moved to another process; its subscription
 * has moved too, and the call has no effect. */
static int32_t on_open(ws_conn conn)
{
    return ws_subscribe(conn, room(conn), 0);
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    if (ws_publish(room(conn), msg->type, msg->data, msg->size, 0) == WS_E_FULL)
        ws_close(conn, WS_CLOSE_TRY_LATER, "too much is being said");
}

WS_HANDLER(.name = "chat", .on_open = on_open, .on_message = on_message);

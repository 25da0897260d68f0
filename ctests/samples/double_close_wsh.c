/* Mistake: the function goes on after it has closed. */
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    if (msg->type != WS_TEXT)
        ws_close(conn, 1003, "text only");
    if (msg->size != 3 || memcmp(msg->data, "bye", 3) != 0)
        ws_close(conn, 4000, "expected bye");
}

WS_HANDLER(.name = "double_close", .on_message = on_message);

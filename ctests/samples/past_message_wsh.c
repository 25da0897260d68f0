/* Mistake: searches a message that need not have what is searched. */
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    const char *text = (const char *)msg->data;
    size_t      size = 0;

    while (text[size] != ';')
        size++;
    ws_send(conn, WS_TEXT, text, size);
}

WS_HANDLER(.name = "past_message", .on_message = on_message);

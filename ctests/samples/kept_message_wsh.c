/* Mistake: keeps the address of a message instead of its bytes. */
#include <ws_handler.h>

static const char *last;
static size_t      last_size;

static void on_message(ws_conn conn, const ws_message *msg)
{
    if (last != NULL)
        ws_send(conn, WS_TEXT, last, last_size);
    last = (const char *)msg->data;
    last_size = msg->size;
}

WS_HANDLER(.name = "kept_message", .on_message = on_message);
